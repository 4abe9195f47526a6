"""Hand-made descriptors against NumPy and matplotlib, and what they do not depend on."""

import jax
import jax.numpy as jnp
import matplotlib.colors
import numpy as np
import pytest

from dl_core.descriptors import color_histogram, hog, rgb_to_hsv
from dl_core.errors import UsageError

RANDOM = np.random.default_rng(0)
PHOTO = RANDOM.integers(0, 256, (3, 37, 29, 3)).astype(np.float32) / 255


def test_hog_of_a_batch_is_that_of_each_image_and_light_hardly_matters():
    options = {"pixels_per_cell": (6, 6)}
    whole = hog(PHOTO, **options)
    np.testing.assert_allclose(hog(PHOTO[1:2], **options)[0], whole[1], atol=1e-6)  # sums in another order
    # contrast drops out in the normalisation, but for eps; brightness in the differences
    np.testing.assert_allclose(hog(0.5 * PHOTO + 0.2, **options), whole, atol=1e-4)
    assert not np.asarray(hog(np.full((1, 24, 24, 1), 0.7, np.float32))).any()


def test_hog_has_a_gradient():
    gradient = jax.grad(lambda x: hog(x, pixels_per_cell=(6, 6))[:, 5].sum())(jnp.asarray(PHOTO))
    assert np.isfinite(gradient).all()
    assert gradient.any()


def test_colour_histograms_are_those_of_numpy():
    for bins in (4, 7):
        here = np.asarray(color_histogram(PHOTO, bins=bins)).reshape(3, 3, bins)
        together = np.asarray(color_histogram(PHOTO, bins=bins, joint=True))
        for image, channels, joint in zip(PHOTO, here, together, strict=True):
            for channel, shares in zip(np.moveaxis(image, -1, 0), channels, strict=True):
                expected = np.histogram(channel, bins, (0, 1))[0] / channel.size
                np.testing.assert_allclose(shares, expected, atol=1e-6)  # float32 shares of 1073 pixels
            expected = np.histogramdd(image.reshape(-1, 3), (bins,) * 3, [(0, 1)] * 3)[0] / channel.size
            np.testing.assert_allclose(joint, expected.ravel(), atol=1e-6)


def test_hue_saturation_and_value_are_those_of_matplotlib():
    grey = np.repeat(np.linspace(0, 1, 5, dtype=np.float32)[:, None], 3, axis=1)
    colours = np.concatenate([PHOTO.reshape(-1, 3), np.eye(3, dtype=np.float32), 1 - np.eye(3, dtype=np.float32), grey])
    np.testing.assert_allclose(rgb_to_hsv(colours), matplotlib.colors.rgb_to_hsv(colours), atol=1e-6)


def test_a_colour_histogram_knows_colours_and_not_places():
    shuffled = RANDOM.permutation(PHOTO.reshape(3, -1, 3), axis=1).reshape(PHOTO.shape)
    np.testing.assert_array_equal(color_histogram(shuffled, space="hsv"), color_histogram(PHOTO, space="hsv"))
    red = np.zeros((1, 4, 4, 3), np.float32)
    red[..., 0] = 1
    assert color_histogram(red, bins=2, joint=True)[0].tolist() == [0, 0, 0, 0, 1, 0, 0, 0]


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda: hog(PHOTO, pixels_per_cell=(16, 16)), "2×1 cells, fewer than one block of 3×3"),
        (lambda: hog(PHOTO, block_norm="L3"), "unknown block norm 'L3'"),
        (lambda: color_histogram(PHOTO, space="lab"), "unknown colour space 'lab'"),
        (lambda: color_histogram(PHOTO[..., :1], space="hsv"), "3 channels, got 1"),
        (lambda: color_histogram(PHOTO, bins=0), "at least 1, got 0"),
    ],
)
def test_what_cannot_be_described_is_refused(function, words):
    with pytest.raises(UsageError, match=words):
        function()
