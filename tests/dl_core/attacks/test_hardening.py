"""Adversarial examples inside a training step: where they lie, how high they climb, and the losses built on them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dl_core.attacks.balls import NORMS, distance, image_keys, random_in_ball
from dl_core.attacks.gradient import fgsm
from dl_core.attacks.hardening import (
    adversarial_images,
    divergence,
    next_perturbation,
    overfitted,
    trades_loss,
)
from dl_core.errors import UsageError

EPS = {"linf": 0.1, "l2": 0.5, "l1": 2.0}


def small_network(params, x):
    return jnp.tanh((x.reshape(len(x), -1) - 0.5) @ params["w1"]) @ params["w2"]


def loss_of(params, labels):
    return lambda x: optax.softmax_cross_entropy_with_integer_labels(small_network(params, x), labels)


@pytest.fixture(scope="module")
def problem():
    """A network, 16 images and the labels that it predicts."""
    keys = jax.random.split(jax.random.key(0), 3)
    params = {"w1": 0.5 * jax.random.normal(keys[0], (64, 12)), "w2": jax.random.normal(keys[1], (12, 4))}
    images = jax.random.uniform(keys[2], (16, 8, 8, 1))
    return params, images, small_network(params, images).argmax(axis=1)


@pytest.mark.parametrize("norm", NORMS)
def test_images_stay_in_the_ball_and_the_bounds_and_raise_the_loss(norm, problem):
    params, images, labels = problem
    loss, eps = loss_of(params, labels), EPS[norm]
    options = {"eps": eps, "step_size": eps / 2, "steps": 4, "norm": norm, "keys": image_keys(jax.random.key(0), 16)}
    changed = jax.jit(lambda x: adversarial_images(loss, x, **options))(images)
    assert changed.min() >= 0
    assert changed.max() <= 1
    # the difference with an image is rounded, for l1 in each of its 64 values
    assert (distance(changed - images, norm) <= eps * (1 + 1e-5) + 1e-5).all()
    assert (loss(changed) > loss(images)).mean() > 0.9  # a random start may end lower where the loss is flat


def test_one_step_of_eps_from_the_image_is_fgsm(problem):
    params, images, labels = problem
    changed = adversarial_images(loss_of(params, labels), images, eps=0.1, step_size=0.1, steps=1)
    expected = fgsm(small_network, params, images, labels, eps=0.1).adversarial
    np.testing.assert_allclose(changed, expected, atol=1e-6)  # one rounds x + 0.1, the other (x + 0.1) - x as well


def test_more_steps_on_a_linear_loss_end_in_the_corner_of_the_box():
    images = jnp.full((2, 3), 0.5)
    slope = jnp.array([[1.0, -2.0, 0.0], [3.0, 1.0, -1.0]])
    changed = adversarial_images(lambda x: (slope * x).sum(axis=1), images, eps=0.2, step_size=0.05, steps=9)
    np.testing.assert_allclose(changed, images + 0.2 * jnp.sign(slope), rtol=1e-6)


def test_the_step_of_fast_training_is_clipped_to_the_ball():
    images = jnp.full((1, 4000), 0.5)
    keys = image_keys(jax.random.key(0), 1)
    changed = adversarial_images(lambda x: x.sum(axis=1), images, eps=0.1, step_size=0.125, steps=1, keys=keys)
    # from a start uniform in [-0.1, 0.1]: uniform in [0.025, 0.1] and, where it would go further, 0.1
    moved = np.asarray(changed - images)
    np.testing.assert_allclose(moved.min(), 0.025, atol=1e-3)
    np.testing.assert_allclose(moved.max(), 0.1, rtol=1e-5)
    np.testing.assert_allclose((moved > 0.1 - 1e-6).mean(), 0.625, atol=0.03)  # 4,000 draws: four standard errors


def test_an_image_with_no_radius_stays_and_the_others_do_not_mind(problem):
    params, images, labels = problem
    options = {"step_size": 0.05, "steps": 2, "keys": image_keys(jax.random.key(0), 16)}
    whole = adversarial_images(loss_of(params, labels), images, eps=0.1, **options)
    part = adversarial_images(loss_of(params, labels), images, eps=jnp.full(16, 0.1).at[3].set(0), **options)
    np.testing.assert_array_equal(part[3], images[3])
    np.testing.assert_allclose(np.delete(part, 3, 0), np.delete(whole, 3, 0), atol=1e-6)


def test_the_images_are_constants_of_the_training_gradient(problem):
    params, images, labels = problem

    def end(params, images):
        return adversarial_images(loss_of(params, labels), images, eps=0.1, step_size=0.05, steps=2).sum()

    gradients = jax.grad(end, argnums=(0, 1))(params, images)
    assert not any(leaf.any() for leaf in jax.tree.leaves(gradients))


def test_a_flat_or_saturated_loss_gives_no_nan():
    images = jnp.zeros((2, 5))
    for norm in NORMS:
        flat = adversarial_images(lambda x: 0 * x.sum(axis=1), images, eps=0.1, step_size=0.1, steps=2, norm=norm)
        np.testing.assert_array_equal(flat, images)
        tiny = adversarial_images(lambda x: 1e-30 * x.sum(axis=1), images, eps=0.1, step_size=0.1, steps=1, norm=norm)
        np.testing.assert_allclose(distance(tiny, norm), 0.1, rtol=1e-5)


def test_the_loss_of_trades_is_cross_entropy_and_the_divergence_of_the_answers():
    random = np.random.default_rng(0)
    clean, changed = (random.normal(0, 3, (6, 4)).astype(np.float32) for _ in range(2))
    labels = np.arange(6) % 4
    p, q = (np.exp(z) / np.exp(z).sum(axis=1, keepdims=True) for z in (clean, changed))
    expected = -np.log(p[np.arange(6), labels]) + 6 * (p * np.log(p / q)).sum(axis=1)
    given = trades_loss(jnp.asarray(clean), jnp.asarray(changed), jnp.asarray(labels), beta=6.0)
    np.testing.assert_allclose(given, expected, rtol=1e-5)
    alone = trades_loss(jnp.asarray(clean), jnp.asarray(changed), jnp.asarray(labels), beta=0.0)
    np.testing.assert_allclose(alone, -np.log(p[np.arange(6), labels]), rtol=1e-5)


def test_the_divergence_starts_flat_and_random_starts_leave_that_point(problem):
    params, images, _ = problem
    answers = small_network(params, images)
    np.testing.assert_allclose(divergence(answers, answers), 0, atol=1e-6)
    options = {"eps": 0.1, "step_size": 0.05, "steps": 3}
    moved = lambda x: divergence(answers, small_network(params, x))
    started = adversarial_images(moved, images, **options, keys=image_keys(jax.random.key(0), 16))
    random = jnp.clip(images + random_in_ball(image_keys(jax.random.key(0), 16), images, 0.1, "linf"), 0, 1)
    assert (moved(started) > moved(random)).all()


def test_the_divergence_is_finite_for_certain_answers():
    certain = jnp.array([[1e4, -1e4], [1e4, -1e4]])
    gradient = jax.grad(lambda z: divergence(certain, z).sum())(-certain)
    assert jnp.isfinite(divergence(certain, -certain)).all()
    assert jnp.isfinite(gradient).all()


@pytest.mark.parametrize("norm", NORMS)
def test_the_perturbation_of_free_training_stays_in_its_ball(norm):
    eps = EPS[norm] * jnp.array([1.0, 0.5, 0.0])
    keys = image_keys(jax.random.key(0), 3)
    perturbation = random_in_ball(keys, jnp.zeros((3, 8)), eps, norm)
    ascent = jax.random.normal(jax.random.key(1), (3, 8))
    for _ in range(3):
        perturbation = next_perturbation(perturbation, ascent, eps=eps, step_size=EPS[norm], norm=norm)
    np.testing.assert_allclose(distance(perturbation, norm), eps, rtol=1e-5, atol=1e-7)
    assert not perturbation[2].any()


def test_a_gap_between_one_step_and_many_is_overfitting():
    assert overfitted(0.85, 0.02)
    assert not overfitted(0.76, 0.72)
    assert not overfitted(0.04, 0.0)  # never hardened is something else


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"eps": -0.1}, "eps must not be negative, got -0.1"),
        ({"eps": jnp.zeros(5)}, "eps must be one number, or one for each of the 3 images"),
        ({"step_size": 0.0}, "step_size must be above 0, got 0.0"),
        ({"steps": -1}, "steps must be at least 0, got -1"),
        ({"norm": "l3"}, "unknown norm 'l3'"),
        ({"bounds": (1.0, 0.0)}, "bounds must be"),
        ({"images": jnp.full((3, 2), 7.0)}, "images must lie in bounds"),
    ],
)
def test_nonsense_is_refused_before_anything_runs(changes, words, annotations_off):
    options = {"images": jnp.zeros((3, 2)), "eps": 0.1, "step_size": 0.1, "steps": 1, **changes}
    with pytest.raises(UsageError, match=words):
        adversarial_images(lambda x: pytest.fail("ran"), **options)
    zeros = jnp.zeros((3, 2))
    if set(changes) & {"eps", "step_size", "norm"}:
        rest = {name: options[name] for name in ("eps", "step_size", "norm") if name in options}
        with pytest.raises(UsageError, match=words):
            next_perturbation(zeros, zeros, **rest)


def test_a_negative_beta_is_refused():
    with pytest.raises(UsageError, match="beta must be at least 0, got -1"):
        trades_loss(jnp.zeros((1, 2)), jnp.zeros((1, 2)), jnp.zeros(1, jnp.int32), beta=-1.0)
