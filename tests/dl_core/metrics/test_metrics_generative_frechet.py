"""Moments and the Fréchet distance: closed forms, singular covariances, streams, gradients, and the bias in n."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from jax.sharding import PartitionSpec
from partitions import assert_any_partition_gives_the_whole

from dl_core.errors import UsageError
from dl_core.metrics.frechet import (
    frechet_bias,
    frechet_distance,
    frechet_distance_at_infinity,
    frechet_distance_metric,
)
from dl_core.metrics.moments import Moments, feature_moments, feature_moments_metric

D = 6
EXACT = {"rtol": 1e-10, "atol": 1e-10}  # float64, and distances of order 1 to 100


def sample(n, seed=0, d=D, shift=0.0):
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).normal(size=(d, d))
    return (rng.normal(size=(n, d)) @ mixing + shift).astype(np.float32)


def gaussian(mean, covariance, n=1000):
    return Moments(np.asarray(mean, float), np.asarray(covariance, float), n)


def numpy_moments(x):
    return Moments(x.mean(axis=0), np.cov(x, rowvar=False), len(x))


def by_matrix_root(x, y):
    """What pytorch-fid computes: numpy's covariances and scipy's root of their product."""
    x, y = x.astype(float), y.astype(float)
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = scipy.linalg.sqrtm(a @ b).real
    return ((x.mean(axis=0) - y.mean(axis=0)) ** 2).sum() + np.trace(a + b - 2 * root)


def by_singular_values(x, y):
    """The same for any rank: tr (Σ₁Σ₂)^½ is the sum of the singular values of the product of the centred tables."""
    x, y = x.astype(float), y.astype(float)
    a, b = ((z - z.mean(axis=0)) / np.sqrt(len(z) - 1) for z in (x, y))
    roots = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    return ((x.mean(axis=0) - y.mean(axis=0)) ** 2).sum() + (a**2).sum() + (b**2).sum() - 2 * roots


def test_gaussians_of_equal_covariance_are_as_far_apart_as_their_means():
    covariance = np.cov(sample(50), rowvar=False)
    mean = np.arange(D, dtype=float)
    np.testing.assert_allclose(
        frechet_distance(gaussian(np.zeros(D), covariance), gaussian(mean, covariance)), 55, **EXACT
    )


def test_commuting_covariances_are_as_far_apart_as_their_roots():
    a, b = np.array([1.0, 4, 9, 0, 2, 0]), np.array([4.0, 4, 1, 3, 0, 0])
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(D, D)))[0]
    rotated = (gaussian(np.zeros(D), rotation * values @ rotation.T) for values in (a, b))
    expected = ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    np.testing.assert_allclose(frechet_distance(*rotated), expected, rtol=1e-7)  # roots of rounding: both are singular


def test_it_is_what_the_root_of_the_product_gives():
    x, y = sample(80), sample(70, seed=1, shift=1.0) * np.float32(1.3)
    np.testing.assert_allclose(frechet_distance(x, y), by_matrix_root(x, y), **EXACT)


@pytest.mark.parametrize(("n", "m"), [(2, 2), (5, 20), (20, 100), (100, 7)])
def test_fewer_examples_than_features_give_the_exact_distance(n, m):
    x, y = sample(n, d=40), sample(m, seed=1, d=40, shift=0.5)
    np.testing.assert_allclose(frechet_distance(x, y), by_singular_values(x, y), rtol=1e-6)  # roots of rounding
    np.testing.assert_allclose(frechet_distance(x, x), 0, atol=1e-9 * np.trace(np.cov(x, rowvar=False)))


def test_it_is_symmetric_and_does_not_see_rotations_and_shifts():
    x, y = sample(60).astype(float), sample(40, seed=1).astype(float) * 2
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(D, D)))[0]
    distance = frechet_distance(x, y)
    np.testing.assert_allclose(frechet_distance(y, x), distance, **EXACT)
    np.testing.assert_allclose(frechet_distance(x @ rotation + 3, y @ rotation + 3), distance, **EXACT)
    np.testing.assert_allclose(frechet_distance(3 * x, 3 * y), 9 * distance, rtol=1e-9)


def test_it_grows_with_noise():
    x = sample(200)
    noise = np.random.default_rng(5).normal(size=x.shape).astype(np.float32)
    distances = [float(frechet_distance(x, x + s * noise)) for s in np.float32([0, 0.5, 1, 2, 4])]
    assert distances[0] == pytest.approx(0, abs=1e-10)
    assert distances == sorted(distances)


def test_inside_jit_masked_rows_are_not_there():
    x, y = sample(80), sample(70, seed=1, shift=1.0)
    expected = frechet_distance(x[:64], y[:48])
    x[64:], y[48:] = np.nan, 1e30
    keep = {"where_reference": np.arange(80) < 64, "where_generated": np.arange(70) < 48}
    np.testing.assert_allclose(frechet_distance(x, y, **keep), expected, **EXACT)
    np.testing.assert_allclose(jax.jit(frechet_distance)(x, y, **keep), expected, rtol=1e-4)  # float32


@pytest.mark.parametrize("n", [80, 4])  # 4 examples of 6 features: singular
def test_the_gradient_is_the_slope(n):
    x, y = sample(80).astype(float), sample(n, seed=1, shift=1.0).astype(float)
    direction = np.random.default_rng(2).normal(size=y.shape)
    step = 1e-5
    slope = (by_singular_values(x, y + step * direction) - by_singular_values(x, y - step * direction)) / (2 * step)
    with jax.enable_x64(True):
        gradient = jax.jit(jax.grad(lambda y: frechet_distance(jnp.asarray(x), y)))(jnp.asarray(y))
        other = jax.jit(jax.grad(lambda y: frechet_distance(y, jnp.asarray(x))))(jnp.asarray(y))
    np.testing.assert_allclose((np.asarray(gradient) * direction).sum(), slope, rtol=1e-6)  # central differences
    np.testing.assert_allclose(other, gradient, rtol=1e-6, atol=1e-9)


def test_the_gradient_is_finite_where_covariances_vanish():
    x = jnp.asarray(sample(4))
    gradient = jax.jit(jax.grad(lambda y: frechet_distance(x, y)))
    for y in (x, jnp.ones_like(x)):
        assert np.isfinite(gradient(y)).all()


def test_moments_are_those_of_numpy_and_know_their_number():
    x = sample(30, shift=1e4)
    found = feature_moments(x)
    np.testing.assert_allclose(found.mean, x.astype(float).mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(found.covariance, np.cov(x.astype(float), rowvar=False), rtol=1e-9, atol=1e-9)
    assert found.num_examples == 30
    assert found.covariance.dtype == np.float64


def test_any_partition_gives_the_moments_and_the_distance_of_the_whole():
    x, y = sample(61), sample(40, seed=1, shift=1.0)
    assert_any_partition_gives_the_whole(
        feature_moments_metric(D), (x,), feature_moments(x), rtol=1e-5, atol=1e-5  # float32 products within a batch
    )  # fmt: skip
    rows = np.concatenate([x, y]), np.arange(101) >= 61
    assert_any_partition_gives_the_whole(frechet_distance_metric(D), rows, frechet_distance(x, y), rtol=1e-4)


def test_sums_of_devices_add_up():
    x = sample(64)
    metric = feature_moments_metric(D)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    def on_each(rows):
        return jax.lax.psum(metric.update(metric.init(), rows), "data")

    spread = jax.shard_map(on_each, mesh=mesh, in_specs=PartitionSpec("data"), out_specs=PartitionSpec())
    whole = feature_moments(x)
    found = metric.compute(jax.jit(spread)(x))
    np.testing.assert_allclose(found.covariance, whole.covariance, rtol=1e-5, atol=1e-5)  # float32 products
    assert found.num_examples == 64


def test_a_centre_near_the_mean_saves_the_digits_that_a_large_mean_costs():
    """Means of 10,000 and deviations of 1, in 2,000 batches of 8: the stated error is 1e-7 |mean - centre|²."""
    rng = np.random.default_rng(0)
    x = (1e4 + rng.normal(size=(2000, 8, D)) * np.arange(1, D + 1)).astype(np.float32)
    covariance = np.cov(x.reshape(-1, D).astype(float), rowvar=False)

    def error(centre):
        metric = feature_moments_metric(D, centre)
        state = jax.lax.scan(lambda state, rows: (metric.update(state, rows), None), metric.init(), x)[0]
        return np.abs(metric.compute(state).covariance - covariance).max()

    assert error(x[0].mean(axis=0)) < 1e-5 * covariance.max()
    assert error(9990.0) < 1e-7 * 2 * 10**2 + 1e-5 * covariance.max()
    assert 1e-2 < error(0.0) < 1e-7 * 2 * 1e8


def test_the_bias_is_what_two_samples_of_a_gaussian_show_and_shrinks_like_one_over_n():
    rng = np.random.default_rng(0)
    deviations = np.array([3.0, 2, 1, 1, 0.5, 0.1])
    draw = lambda n: numpy_moments(rng.normal(size=(n, D)) * deviations)
    true = gaussian(np.zeros(D), np.diag(deviations**2))
    means = {}
    for n in (100, 400):
        means[n] = np.mean([frechet_distance(draw(n), draw(n)) for _ in range(400)])
        expected = frechet_bias(true, n, n)
        assert means[n] == pytest.approx(expected, rel=0.1)  # 400 runs: a standard error of 3 %; next order: 1 / n
    assert means[100] / means[400] == pytest.approx(4, rel=0.15)
    one_sided = np.mean([frechet_distance(true, draw(100)) for _ in range(400)])
    assert one_sided == pytest.approx(means[100] / 2, rel=0.15)


def test_the_bias_of_the_identity_has_a_closed_form():
    assert frechet_bias(gaussian(np.zeros(D), np.eye(D)), 100, 50) == pytest.approx((D + D * (D + 1) / 4) * 0.03)


def test_the_distance_at_infinity_has_next_to_no_bias():
    """Generated and reference distribution agree: the truth is 0."""
    rng = np.random.default_rng(3)
    reference = gaussian(np.zeros(D), np.eye(D))
    plain, continued = [], []
    for run in range(12):
        generated = rng.normal(size=(300, D))
        plain.append(frechet_distance(reference, generated))
        found = frechet_distance_at_infinity(reference, generated, key=jax.random.key(run), num_sizes=6)
        continued.append(found.distance)
        np.testing.assert_allclose(found.distances[-1], plain[-1], rtol=1e-6)  # the last size is all
    assert found.sizes.tolist() == [30, 84, 138, 192, 246, 300]
    assert abs(np.mean(continued)) < 0.25 * np.mean(plain)


def test_moments_kept_from_an_earlier_run_do_as_well_as_features():
    x, y = sample(50), sample(40, seed=1)
    np.testing.assert_allclose(frechet_distance(feature_moments(x), y), frechet_distance(x, y), **EXACT)
    whole = jax.jit(lambda y: frechet_distance(feature_moments(x), y))(y)
    np.testing.assert_allclose(whole, frechet_distance(x, y), rtol=1e-4)  # float32


WRONG = {
    "at least 2 examples, got 1": (sample(1), sample(9)),
    "at least one example": (np.zeros((0, D), np.float32), sample(9)),
    "equally many features, got 6 and 5": (sample(9), sample(9)[:, :5]),
    r"must have shape \[n, d\]": (sample(9), sample(9)[:, 0]),
    "1 of 54 values NaN": (np.where(np.arange(54).reshape(9, 6) == 7, np.nan, sample(9)), sample(9)),
    "moments of at least 2": (gaussian(np.zeros(D), np.eye(D), n=1), sample(9)),
    "reference.covariance must be finite": (gaussian(np.zeros(D), np.eye(D) * np.nan), sample(9)),
    r"covariance \[d, d\], got \[6\] and \[5, 5\]": (gaussian(np.zeros(D), np.eye(5)), sample(9)),
}


@pytest.mark.usefixtures("annotations_off")
@pytest.mark.parametrize("message", WRONG)
def test_what_makes_no_sense_is_refused(message):
    with pytest.raises(UsageError, match=message):
        frechet_distance(*WRONG[message])


@pytest.mark.usefixtures("annotations_off")
def test_options_that_make_no_sense_are_refused():
    x, everything = sample(9), gaussian(np.zeros(D), np.eye(D))
    with pytest.raises(UsageError, match="given as Moments; leave it out"):
        frechet_distance(everything, x, where_reference=np.ones(9, bool))
    with pytest.raises(UsageError, match="one row for each example"):
        frechet_distance(x, x, where_generated=np.ones(8, bool))
    with pytest.raises(UsageError, match="at least 2 examples, got 1"):
        frechet_distance(x, x, where_generated=np.arange(9) < 1)
    with pytest.raises(UsageError, match=r"centre must be one number or have shape \[6\], got \[5\]"):
        feature_moments_metric(D, np.zeros(5))
    with pytest.raises(UsageError, match="num_features must be at least 1"):
        frechet_distance_metric(0)
    with pytest.raises(UsageError, match="reference set must hold at least 2 examples, got 0"):
        frechet_distance_metric(D).compute(frechet_distance_metric(D).init())
    with pytest.raises(UsageError, match="num_sizes must be at least 2"):
        frechet_distance_at_infinity(x, x, key=jax.random.key(0), num_sizes=1)
    with pytest.raises(UsageError, match="few enough for 9 generated"):
        frechet_distance_at_infinity(x, x, key=jax.random.key(0), num_sizes=15)
    with pytest.raises(UsageError, match="at least 2 examples, got 1 and 9"):
        frechet_bias(everything, 1, 9)
