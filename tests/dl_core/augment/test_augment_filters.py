"""Filters and noise: against SciPy, and by their moments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage, stats

from dl_core.augment import filters, noise
from dl_core.augment.policies import per_image_keys
from dl_core.errors import UsageError

KEY = jax.random.key(5)
IMAGES = jax.random.uniform(KEY, (3, 12, 9, 3))
GREY = jnp.full((4, 40, 40, 3), 0.5)


@pytest.mark.parametrize("sigma", [0.4, 1.0, 1.3])
def test_a_gaussian_blur_is_scipys(sigma):
    radius = round(4 * sigma)
    ours = filters.gaussian_blur(IMAGES, sigma, kernel_size=2 * radius + 1)
    theirs = ndimage.gaussian_filter(
        np.asarray(IMAGES, np.float64), (0, sigma, sigma, 0), mode="mirror", radius=(0, radius, radius, 0)
    )
    np.testing.assert_allclose(ours, theirs, atol=1e-6)  # two sums of some ten float32 below 1


def test_the_default_kernel_is_wide_enough_for_three_sigma():
    np.testing.assert_array_equal(filters.gaussian_blur(IMAGES, 0.9), filters.gaussian_blur(IMAGES, 0.9, kernel_size=7))
    point = jnp.zeros((1, 21, 21, 1)).at[0, 10, 10].set(1)
    spread = np.asarray(filters.gaussian_blur(point, 2.0))[0, :, :, 0]
    variance = (spread.sum(axis=0) * np.arange(-10, 11) ** 2).sum()
    np.testing.assert_allclose(variance, 4.0, rtol=0.03)  # what lies beyond three sigma is missing


@pytest.mark.parametrize("size", [1, 3, 5])
def test_a_median_is_scipys(size):
    theirs = ndimage.median_filter(np.asarray(IMAGES), size=(1, size, size, 1), mode="reflect")
    np.testing.assert_array_equal(filters.median_filter(IMAGES, size=size), theirs)


def test_sharpness_moves_pixels_away_from_their_neighbours_and_leaves_the_border():
    point = jnp.zeros((1, 5, 5, 1)).at[0, 2, 2].set(0.5)
    blurred = np.asarray(filters.adjust_sharpness(point, 0.0))[0, :, :, 0]
    np.testing.assert_allclose(blurred[1:4, 1:4], np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]]) / 26, rtol=1e-6)
    sharper = filters.adjust_sharpness(0.25 + point, 2.0)
    assert float(sharper[0, 2, 2, 0]) > 0.75
    assert float(sharper[0, 1, 1, 0]) < 0.25
    np.testing.assert_array_equal(filters.adjust_sharpness(IMAGES, 0.0)[:, 0], IMAGES[:, 0])
    np.testing.assert_array_equal(filters.adjust_sharpness(IMAGES[:, :2], 0.0), IMAGES[:, :2])


def test_kernels_that_do_not_fit_are_refused():
    with pytest.raises(UsageError, match=r"odd and in \[1, 17\].*got 4"):
        filters.gaussian_blur(IMAGES, 1.0, kernel_size=4)
    with pytest.raises(UsageError, match="got 19"):
        filters.median_filter(IMAGES, size=19)
    with pytest.raises(UsageError, match="kernel_size=5"):
        filters.gaussian_blur(IMAGES, jnp.ones(3))


def test_gaussian_noise_has_its_deviation_and_no_correlation():
    noisy = np.asarray(noise.gaussian_noise(KEY, GREY, std=0.1)) - 0.5
    assert stats.kstest(noisy.ravel() / 0.1, "norm").pvalue > 1e-3  # 19,200 values; clipping is five sigma away
    correlation = np.corrcoef(noisy.reshape(-1, 3).T)[np.triu_indices(3, 1)]
    np.testing.assert_allclose(correlation, 0, atol=4 / np.sqrt(6400))  # four standard errors
    spread = np.asarray(noise.gaussian_noise(KEY, GREY, std=jnp.array([0.0, 0.01, 0.05, 0.1]))).std(axis=(1, 2, 3))
    np.testing.assert_allclose(spread, [0, 0.01, 0.05, 0.1], rtol=0.05)


def test_salt_and_pepper_replaces_the_asked_share_of_pixels():
    noisy = np.asarray(noise.salt_and_pepper(KEY, GREY, amount=0.3, salt=0.25))
    white, black = (noisy == 1).all(axis=-1), (noisy == 0).all(axis=-1)
    assert (white | black | (noisy == 0.5).all(axis=-1)).all()
    np.testing.assert_allclose((white.mean(), black.mean()), (0.075, 0.225), atol=4 * np.sqrt(0.2 / 6400))
    assert ((noise.salt_and_pepper(KEY, GREY, amount=1.0, salt=1.0)) == 1).all()


def test_shot_noise_has_the_variance_of_counts_and_leaves_black():
    levels = jnp.broadcast_to(jnp.array([0.0, 0.25, 0.5]), (4, 40, 40, 3))
    noisy = np.asarray(noise.shot_noise(KEY, levels, photons=100.0))
    np.testing.assert_allclose(noisy.mean(axis=(0, 1, 2)), [0, 0.25, 0.5], atol=4 * np.sqrt(0.005 / 6400))
    np.testing.assert_allclose(noisy.var(axis=(0, 1, 2)), [0, 0.0025, 0.005], rtol=0.1)
    np.testing.assert_allclose(noisy * 100, np.round(noisy * 100), atol=1e-4)  # whole photons


def test_noise_depends_on_the_row_only():
    keys = per_image_keys(KEY, 4)
    for draw in (lambda k, x: noise.shot_noise(k, x, photons=20.0), lambda k, x: noise.gaussian_noise(k, x, std=0.2)):
        np.testing.assert_allclose(draw(keys[2:], GREY[2:]), jax.jit(draw)(KEY, GREY)[2:], atol=1e-6)


@pytest.mark.parametrize(
    ("draw", "words"),
    [
        (lambda: noise.gaussian_noise(KEY, GREY, std=-0.1), r"std must lie in \[0, inf\), got -0.1"),
        (lambda: noise.salt_and_pepper(KEY, GREY, amount=1.2), r"amount must lie in \[0, 1\], got 1.2"),
        (lambda: noise.salt_and_pepper(KEY, GREY, amount=0.2, salt=2), r"salt must lie in \[0, 1\], got 2"),
        (lambda: noise.shot_noise(KEY, GREY, photons=0), r"photons must lie in \(0, inf\), got 0"),
    ],
)
def test_strengths_out_of_range_are_refused(draw, words):
    with pytest.raises(UsageError, match=words):
        draw()
