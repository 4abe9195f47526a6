"""Losses of adversarial networks: their fixed points, their gradients where one side is sure, the penalties."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dl_core import losses
from dl_core.errors import UsageError
from dl_core.metrics.distances import wasserstein

SURE = jnp.array([-1e4, -30.0, 0.0, 30.0, 1e4])
slope = lambda loss, at: jax.grad(lambda z: loss(z).sum())(jnp.asarray(at))


def test_a_discriminator_that_cannot_tell_pays_two_bits_and_a_perfect_one_nothing():
    np.testing.assert_allclose(losses.discriminator(jnp.zeros(1), jnp.zeros(1)), 2 * np.log(2), rtol=1e-6)
    np.testing.assert_array_equal(losses.discriminator(SURE[-1:], SURE[:1]), 0)
    cross_entropy = losses.sigmoid_binary_cross_entropy(SURE, jnp.ones(5)) + losses.sigmoid_binary_cross_entropy(
        SURE[::-1], jnp.zeros(5)
    )
    np.testing.assert_allclose(losses.discriminator(SURE, SURE[::-1]), cross_entropy, rtol=1e-6)


def test_the_best_discriminator_is_the_ratio_of_densities():
    """Goodfellow et al. (2014), proposition 1: D = p / (p + g), that is, a logit of log p - log g."""
    p, g = jnp.array([0.5, 0.3, 0.2]), jnp.array([0.1, 0.3, 0.6])
    objective = lambda z: p @ losses.discriminator(z, jnp.full(3, -1e4)) + g @ losses.discriminator(jnp.full(3, 1e4), z)
    np.testing.assert_allclose(jax.grad(objective)(jnp.log(p / g)), 0, atol=1e-6)


def test_the_saturating_generator_learns_nothing_from_a_sure_discriminator_and_the_other_does():
    np.testing.assert_allclose(slope(losses.saturating_generator, SURE[:1]), 0, atol=1e-30)
    np.testing.assert_allclose(slope(losses.non_saturating_generator, SURE[:1]), -1, rtol=1e-6)
    # at D = 1/2 the two agree, and everywhere they fall as the fake looks more real
    np.testing.assert_allclose(slope(losses.saturating_generator, [0.0]), -0.5)
    np.testing.assert_allclose(slope(losses.non_saturating_generator, [0.0]), -0.5)
    assert (np.diff(losses.non_saturating_generator(SURE)) < 0).all()
    assert (np.diff(losses.saturating_generator(SURE)) <= 0).all()
    np.testing.assert_allclose(losses.saturating_generator(SURE), jnp.array([0, 0, -np.log(2), -30, -1e4]), atol=1e-6)


def test_the_game_is_of_zero_sum_where_it_saturates():
    real, fake = jnp.array([1.0, -2.0]), jnp.array([0.5, 3.0])
    of_fake = lambda loss: jax.grad(lambda f: loss(f).sum())(fake)
    np.testing.assert_allclose(
        of_fake(losses.saturating_generator), -of_fake(lambda f: losses.discriminator(real, f)), rtol=1e-6
    )
    np.testing.assert_allclose(
        of_fake(losses.wasserstein_generator), -of_fake(lambda f: losses.wasserstein_critic(real, f)), rtol=1e-6
    )


def test_the_best_lipschitz_critic_measures_the_distance_between_the_samples():
    """Two Gaussians a shift apart: the critic is a line of slope 1, the distance is the shift."""
    fake = jax.random.normal(jax.random.key(0), (64,))
    real = fake + 3.0
    critic = lambda x: x
    estimate = -losses.wasserstein_critic(critic(real), critic(fake)).mean()
    np.testing.assert_allclose(estimate, 3.0, rtol=1e-5)
    np.testing.assert_allclose(wasserstein(real, fake), 3.0, rtol=1e-5)


def test_least_squares_and_hinge_are_zero_where_they_should_be():
    one, zero = jnp.ones(1), jnp.zeros(1)
    np.testing.assert_array_equal(losses.least_squares_discriminator(one, zero), 0)
    np.testing.assert_array_equal(losses.least_squares_discriminator(zero, one), 1)
    np.testing.assert_array_equal(losses.least_squares_generator(one), 0)
    np.testing.assert_array_equal(losses.hinge_discriminator(2 * one, -3 * one), 0)
    np.testing.assert_array_equal(losses.hinge_discriminator(0 * one, 0 * one), 2)
    assert losses.hinge_generator is losses.wasserstein_generator


def linear_critic(weights, images):
    return images.reshape(len(images), -1) @ weights


IMAGES = jax.random.normal(jax.random.key(1), (2, 4, 3, 3, 2))


def test_the_gradient_penalty_of_a_line_is_the_distance_of_its_slope_from_one():
    penalised = jax.jit(lambda weights: losses.gradient_penalty(linear_critic, weights, *IMAGES, key=jax.random.key(0)))
    for scale in (0.1, 1.0, 5.0):
        weights = np.full(18, scale / np.sqrt(18), np.float32)
        penalty = penalised(weights)
        np.testing.assert_allclose(penalty, (scale - 1) ** 2, atol=1e-5)
        np.testing.assert_allclose(losses.r1_penalty(linear_critic, weights, IMAGES[0]), scale**2 / 2, rtol=1e-5)


def test_the_penalty_is_taken_between_the_pair_and_its_gradient_reaches_the_critic():
    quadratic = lambda scale, x: 0.5 * scale * jnp.sum(x**2, axis=-1)  # the gradient is scale · x
    real, fake, keys = jnp.full((1, 1), 2.0), jnp.full((1, 1), 4.0), jax.random.split(jax.random.key(0), 200)
    at = lambda key, scale=1.0: losses.gradient_penalty(quadratic, scale, real, fake, key=key, target=0.0)[0]
    places = jnp.sqrt(jax.jit(jax.vmap(at))(keys))
    assert places.min() >= 2
    assert places.max() <= 4
    np.testing.assert_allclose(places.mean(), 3, atol=0.15)  # uniform between: 0.58 / √200 = 0.04
    place = places[0]
    slope_of_scale = jax.jit(jax.grad(lambda scale: at(keys[0], scale)))(1.5)
    np.testing.assert_allclose(slope_of_scale, 2 * 1.5 * place**2, rtol=1e-5)


def test_a_critic_without_a_slope_has_a_penalty_and_finite_gradients():
    penalty = lambda w: losses.gradient_penalty(linear_critic, w, *IMAGES, key=jax.random.key(0)).sum()
    value, gradient = jax.jit(jax.value_and_grad(penalty))(jnp.zeros(18))
    assert value == 4
    np.testing.assert_array_equal(gradient, 0)


def test_the_scores_of_a_patch_critic_are_summed():
    patches = lambda weights, x: x.reshape(len(x), 2, 9) @ weights
    weights = jnp.arange(9.0)
    np.testing.assert_allclose(
        losses.r1_penalty(patches, weights, IMAGES[0]),
        losses.r1_penalty(linear_critic, jnp.tile(weights, 2), IMAGES[0]),
        rtol=1e-6,
    )


def test_reconstruction_is_the_mean_absolute_difference_of_an_image():
    np.testing.assert_allclose(losses.reconstruction_l1(*IMAGES), losses.l1(*IMAGES).mean((1, 2, 3)), rtol=1e-6)
    np.testing.assert_array_equal(losses.reconstruction_l1(IMAGES[0], IMAGES[0]), 0)


@pytest.mark.usefixtures("annotations_off")
@pytest.mark.parametrize(
    "loss",
    [
        losses.discriminator,
        losses.wasserstein_critic,
        losses.least_squares_discriminator,
        losses.hinge_discriminator,
        lambda a, b: losses.gradient_penalty(linear_critic, None, a, b, key=jax.random.key(0)),
        losses.reconstruction_l1,
    ],
)
def test_pairs_of_two_shapes_are_refused(loss):
    """[n] with [n, 1] would broadcast to n² pairs in silence."""
    with pytest.raises(UsageError, match=r"one shape, got \(3,\) and \(3, 1\)"):
        loss(jnp.zeros(3), jnp.zeros((3, 1)))


def test_a_negative_target_is_refused():
    with pytest.raises(UsageError, match=r"target must lie in \[0, inf\), got -1"):
        losses.gradient_penalty(linear_critic, None, *IMAGES, key=jax.random.key(0), target=-1.0)
