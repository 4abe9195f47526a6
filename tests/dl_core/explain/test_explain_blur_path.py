"""The blur, which is heat spreading between mirrors, and integrated gradients along it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.ndimage
from explanation_contract import assert_keeps_the_contract, small_images

from dl_core.errors import UsageError
from dl_core.explain.blur_path import blur_integrated_gradients, blurred
from dl_core.explain.path_integration import METHODS, integrated_gradients

IMAGES = np.random.default_rng(0).uniform(-1, 2, (3, 8, 6, 2)).astype(np.float32)


def heat(images, sigma):
    """The matrix exponential of σ²/2 times the second differences between mirrored ends, along both sides."""

    def kernel(n):
        laplacian = np.diag(np.full(n, -2.0)) + np.diag(np.ones(n - 1), 1) + np.diag(np.ones(n - 1), -1)
        laplacian[0, 0] = laplacian[-1, -1] = -1
        return scipy.linalg.expm(sigma**2 / 2 * laplacian)

    return np.einsum("hk,wl,bklc->bhwc", kernel(images.shape[1]), kernel(images.shape[2]), np.float64(images))


@pytest.mark.parametrize("sigma", [0.3, 1.0, 4.0, 30.0])
def test_a_blur_is_heat_that_spreads_between_mirrors(sigma):
    np.testing.assert_allclose(blurred(jnp.asarray(IMAGES), sigma), heat(IMAGES, sigma), atol=2e-6)  # float32


def test_a_blur_is_scipys_where_the_pixels_are_small_beside_it():
    image = np.zeros((1, 48, 48, 1), np.float32)
    image[0, 20, 25] = 1
    expected = scipy.ndimage.gaussian_filter(image[0, ..., 0], 5.0, mode="reflect", truncate=8.0)
    given = blurred(jnp.asarray(image), 5.0)[0, ..., 0]
    np.testing.assert_allclose(given, expected, atol=0.02 * expected.max())  # Gaussians of pixels differ by O(1 / σ²)
    rows = np.arange(48) - 20
    np.testing.assert_allclose((given.sum(axis=1) * rows**2).sum(), 25.0, rtol=1e-3)  # variance σ² but for the borders


def test_no_blur_changes_not_a_bit_and_a_long_one_leaves_the_mean():
    images = jnp.asarray(IMAGES)
    np.testing.assert_array_equal(blurred(images, 0.0), images)
    np.testing.assert_allclose(
        blurred(images, 100.0), np.broadcast_to(IMAGES.mean((1, 2), keepdims=True), IMAGES.shape), atol=1e-5
    )


@pytest.mark.parametrize("sigma", [0.2, 0.5, 2.0])
def test_a_blur_keeps_the_mean_and_makes_nothing_brighter(sigma):
    after = blurred(jnp.asarray(IMAGES), sigma)
    np.testing.assert_allclose(after.mean((1, 2)), IMAGES.mean((1, 2)), atol=1e-5)
    assert (after.max((1, 2)) < IMAGES.max((1, 2))).all()
    assert (after.min((1, 2)) > IMAGES.min((1, 2))).all()


def test_two_blurs_are_one():
    images = jnp.asarray(IMAGES)
    np.testing.assert_allclose(blurred(blurred(images, 3.0), 4.0), blurred(images, 5.0), atol=1e-5)


def test_each_image_may_have_a_blur_of_its_own_known_or_traced():
    images, sigma = jnp.asarray(IMAGES), jnp.array([0.0, 1.0, 3.0])
    together = jax.jit(blurred)(images, sigma)
    alone = [blurred(images[i : i + 1], float(sigma[i]))[0] for i in range(3)]
    np.testing.assert_allclose(together, jnp.stack(alone), atol=1e-6)
    slope = jax.jacfwd(lambda s: blurred(images, s))(2.0)
    np.testing.assert_allclose(slope, (heat(IMAGES, 2.01) - heat(IMAGES, 1.99)) / 0.02, atol=1e-4)  # O(step²)


def linear(weights, x):
    return x.reshape(len(x), -1) @ weights


WEIGHTS = jax.random.normal(jax.random.key(0), (8 * 6 * 2, 3))


@pytest.mark.parametrize("max_sigma", [1.0, 4.0, None])
def test_of_a_linear_model_what_the_blur_took_away_is_weighted(max_sigma):
    target = np.array([0, 1, 2])
    result = blur_integrated_gradients(linear, WEIGHTS, jnp.asarray(IMAGES), target, max_sigma=max_sigma, n_steps=30)
    expected = (IMAGES - heat(IMAGES, max_sigma or 8.0)) * WEIGHTS.T[target].reshape(IMAGES.shape)
    np.testing.assert_allclose(result.attributions, expected, atol=1e-4)  # float32; 30 nodes err less
    np.testing.assert_allclose(result.completeness_gap, 0, atol=1e-4)


def wave(_, x):
    return jnp.sin(x.reshape(len(x), -1) @ WEIGHTS / 4)


def test_attributions_follow_the_path_from_blurred_to_sharp():
    """Against a sum of gradient · step over 300 steps of the matrix exponential's path, in float64."""
    sigmas = 2.0 * np.linspace(1, 0, 301) ** 2
    path = np.stack([heat(IMAGES, sigma) for sigma in sigmas])
    weights = np.float64(WEIGHTS[:, 0]) / 4
    middle, steps = ((path[1:] + path[:-1]) / 2).reshape(300, 3, -1), np.diff(path, axis=0).reshape(300, 3, -1)
    expected = (np.cos(middle @ weights)[..., None] * weights * steps).sum(axis=0).reshape(IMAGES.shape)
    result = blur_integrated_gradients(wave, None, jnp.asarray(IMAGES), 0, max_sigma=2.0, n_steps=30)
    np.testing.assert_allclose(result.attributions, expected, atol=3e-5)  # the reference errs by 1e-5, float32 by less


@pytest.mark.parametrize("method", METHODS)
def test_the_gap_compares_with_the_blurred_image_and_falls_with_the_steps(method):
    explain = functools.partial(
        blur_integrated_gradients, wave, None, jnp.asarray(IMAGES), 0, max_sigma=3.0, method=method
    )
    gaps = []
    for n_steps in (10, 80):
        result = explain(n_steps=n_steps)
        change = (wave(None, IMAGES) - wave(None, heat(IMAGES, 3.0).astype(np.float32)))[:, 0]
        gaps.append(np.abs(result.completeness_gap).max())
        np.testing.assert_allclose(result.completeness_gap, result.attributions.sum((1, 2, 3)) - change, atol=1e-5)
    assert gaps[1] < max(gaps[0] / 4, 1e-5)


def test_an_image_without_structure_gets_nothing():
    result = blur_integrated_gradients(wave, None, jnp.full((2, 8, 6, 2), 0.7), 1, n_steps=5)
    np.testing.assert_allclose(result.attributions, 0, atol=1e-6)


def test_a_blurred_baseline_is_one_call():
    images = jnp.asarray(IMAGES)
    result = integrated_gradients(linear, WEIGHTS, images, 0, baselines=blurred(images, 2.0), n_steps=2)
    expected = (IMAGES - heat(IMAGES, 2.0)) * WEIGHTS[:, 0].reshape(1, 8, 6, 2)
    np.testing.assert_allclose(result.attributions, expected, atol=1e-5)


def test_memory_pieces_do_not_change_the_result():
    explain = functools.partial(blur_integrated_gradients, wave, None, jnp.asarray(IMAGES), 0, n_steps=7)
    for internal_batch_size in (1, 7, 100):
        pieces = explain(internal_batch_size=internal_batch_size)
        np.testing.assert_allclose(pieces.attributions, explain().attributions, rtol=1e-4, atol=1e-6)


def test_the_contract_is_kept():
    explain = functools.partial(blur_integrated_gradients, n_steps=8, max_sigma=3.0)
    # the path through bfloat16 points loses what neighbouring images differ by
    assert_keeps_the_contract(lambda *arguments: explain(*arguments).attributions, bfloat16_atol=0.2)


def test_few_bits_stay_few_bits():
    images = small_images(2).astype(jnp.bfloat16)
    assert blurred(images, 1.0).dtype == jnp.bfloat16


@pytest.mark.usefixtures("annotations_off")
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_sigma": 0.0}, r"max_sigma must lie in \(0, inf\), got 0.0"),
        ({"max_sigma": float("inf")}, "got inf"),
        ({"max_sigma": "wide"}, "max_sigma must be a number"),
        ({"n_steps": 0}, r"n_steps must lie in \[1, inf\), got 0"),
        ({"method": "simpson"}, "unknown method 'simpson'"),
        ({"internal_batch_size": 0}, "at least 1, got 0"),
        ({"inputs": jnp.zeros((2, 96))}, r"images \[batch, height, width, channels\], got shape \[2, 96\]"),
        ({"target": 3}, r"target must be in \[0, 3\), got 3"),
    ],
)
def test_nonsense_is_refused_with_the_value_given(options, words):
    arguments = {"inputs": jnp.asarray(IMAGES), "target": 0} | options
    with pytest.raises(UsageError, match=words):
        blur_integrated_gradients(linear, WEIGHTS, **arguments)


@pytest.mark.usefixtures("annotations_off")
@pytest.mark.parametrize(
    ("images", "sigma", "words"),
    [
        (jnp.zeros((8, 6)), 1.0, "a blur needs images"),
        (jnp.zeros((2, 8, 6, 1)), -1.0, r"sigma must lie in \[0, inf\), got -1.0"),
        (jnp.zeros((2, 8, 6, 1)), np.ones(3), "one for each of the 2 images"),
    ],
)
def test_a_blur_refuses_what_is_no_image_or_no_width(images, sigma, words):
    with pytest.raises(UsageError, match=words):
        blurred(images, sigma)
