"""Losses of values and of angles: what they are at known points, and what they do not depend on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from dl_core import losses
from dl_core.errors import UsageError

RANDOM = np.random.default_rng(0)
VECTORS = RANDOM.normal(scale=3, size=(50, 2)).astype(np.float32)
ANGLES = RANDOM.uniform(0, 360, 50).astype(np.float32)


def test_the_way_around_a_circle_is_the_shorter_one():
    a, b = np.array([359.0, 1, 0, 180, 90, -10]), np.array([1.0, 359, 180, 0, 90, 370])
    np.testing.assert_allclose(losses.circular_distance(a, b), [2, 2, 180, 180, 0, 20])


def test_the_distance_of_angles_is_a_metric_that_full_turns_do_not_change():
    a, b, c = RANDOM.uniform(-720, 720, (3, 200))
    between = losses.circular_distance
    ab = np.asarray(between(a, b))
    assert ab.min() >= 0
    assert ab.max() <= 180
    np.testing.assert_allclose(ab, between(b, a), atol=1e-3)  # float32 degrees up to a thousand
    np.testing.assert_allclose(ab, between(a + 360, b - 720), atol=1e-3)
    assert (np.asarray(between(a, c)) <= ab + np.asarray(between(b, c)) + 1e-3).all()
    complex_angle = np.rad2deg(np.abs(np.angle(np.exp(1j * np.deg2rad(a - b)))))
    np.testing.assert_allclose(ab, complex_angle, atol=1e-3)


def test_angles_come_back_from_their_vectors():
    lengths = RANDOM.uniform(0.1, 9, (50, 1))
    np.testing.assert_allclose(losses.angle_of(lengths * losses.unit_vector(ANGLES)), ANGLES, atol=1e-3)
    just_below = losses.angle_of(np.array([[1, -1e-9]], np.float32))
    assert 0 <= float(just_below[0]) < 360


def test_the_cosine_loss_is_one_less_the_cosine_of_the_angle_between():
    apart = np.deg2rad(losses.circular_distance(losses.angle_of(VECTORS), ANGLES))
    np.testing.assert_allclose(losses.cosine_angle_loss(VECTORS, ANGLES), 1 - np.cos(apart), atol=1e-5)
    np.testing.assert_allclose(
        losses.cosine_angle_loss(7 * VECTORS, ANGLES + 360), losses.cosine_angle_loss(VECTORS, ANGLES), atol=1e-5
    )


def test_the_von_mises_loss_is_the_density_of_scipy():
    angle, length = np.deg2rad(losses.angle_of(VECTORS)), np.linalg.norm(VECTORS, axis=1)
    expected = -stats.vonmises.logpdf(np.deg2rad(ANGLES), length, loc=angle)
    np.testing.assert_allclose(losses.von_mises_nll(VECTORS, ANGLES), expected, rtol=1e-4, atol=1e-4)
    sure = losses.von_mises_nll(1e4 * losses.unit_vector(ANGLES), ANGLES)  # I0(10,000) overflows
    np.testing.assert_allclose(sure, -stats.norm.logpdf(0, scale=0.01), rtol=1e-3)  # nearly normal, σ² = 1/κ


@pytest.mark.parametrize("loss", [losses.cosine_angle_loss, losses.von_mises_nll])
def test_losses_of_angles_have_finite_gradients_at_the_origin_and_point_the_right_way(loss):
    origin = jnp.zeros((4, 2))
    values, pullback = jax.vjp(lambda v: loss(v, ANGLES[:4]), origin)
    gradient = pullback(jnp.ones_like(values))[0]
    assert np.isfinite(gradient).all()
    towards = -gradient / jnp.linalg.norm(gradient, axis=1, keepdims=True)
    np.testing.assert_allclose(towards, losses.unit_vector(ANGLES[:4]), atol=1e-5)


def test_the_gaussian_loss_is_the_density_of_scipy_and_lowest_at_the_true_variance():
    means, log_variances, targets = RANDOM.normal(size=(3, 40))
    expected = -stats.norm.logpdf(targets, means, np.exp(log_variances / 2))
    np.testing.assert_allclose(losses.gaussian_nll(means, log_variances, targets), expected, rtol=1e-5)
    slope = jax.grad(lambda s: losses.gaussian_nll(jnp.float32(1), s, jnp.float32(4)))
    assert float(slope(jnp.log(9.0))) == pytest.approx(0, abs=1e-6)


def test_smooth_l1_is_huber_over_beta_and_becomes_l1():
    p, t = RANDOM.normal(size=(2, 30))
    np.testing.assert_allclose(
        0.3 * losses.smooth_l1(p, t, beta=0.3), losses.huber_loss(jnp.array(p), jnp.array(t), delta=0.3), rtol=1e-5
    )
    np.testing.assert_array_equal(losses.smooth_l1(p, t, beta=0), losses.l1(p, t))
    with pytest.raises(UsageError, match="at least 0"):
        losses.smooth_l1(p, t, beta=-1)


def test_the_poisson_loss_is_the_probability_of_scipy_and_lowest_at_the_count():
    counts = RANDOM.poisson(5, 30).astype(np.float32)
    log_rates = RANDOM.normal(1, 1, 30).astype(np.float32)
    expected = -stats.poisson.logpmf(counts, np.exp(log_rates))
    np.testing.assert_allclose(losses.poisson_nll(log_rates, counts, full=True), expected, rtol=1e-4)
    without = losses.poisson_nll(log_rates, counts, full=True) - losses.poisson_nll(log_rates, counts)
    np.testing.assert_allclose(without, special.gammaln(counts + 1), rtol=1e-4, atol=1e-4)
    slope = jax.grad(lambda z: losses.poisson_nll(z, jnp.float32(7)))
    assert float(slope(jnp.log(7.0))) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(
    "loss",
    [lambda z: losses.poisson_nll(z, jnp.float32(3)), lambda z: losses.gaussian_nll(0.0 * z, -z, jnp.float32(3))],
)
def test_beyond_any_rate_or_precision_the_loss_goes_on_as_its_tangent(loss):
    """exp(1e4) is no number; the way back is downhill all the same, and the bend has no corner."""
    slope = jax.grad(loss)
    at = [float(slope(jnp.float32(z))) for z in (39.9, 40.0, 40.1, 1e4)]
    assert all(np.isfinite(at))
    assert at[0] < at[1] == pytest.approx(at[2], rel=1e-6) == pytest.approx(at[3], rel=1e-6)
    assert np.isfinite(float(loss(jnp.float32(1e4))))
