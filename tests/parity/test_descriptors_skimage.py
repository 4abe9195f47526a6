"""Histograms of oriented gradients are those of scikit-image."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

feature = pytest.importorskip("skimage.feature")

from dl_core.data import load  # noqa: E402
from dl_core.descriptors import BLOCK_NORMS, hog  # noqa: E402

PHOTO = np.random.default_rng(0).integers(0, 256, (3, 37, 29, 3)).astype(np.float32) / 255
OPTIONS = {
    "defaults": {"pixels_per_cell": (8, 8)},
    "even block, odd cell": {"pixels_per_cell": (5, 7), "cells_per_block": (2, 1), "orientations": 6},
    "square root": {"pixels_per_cell": (6, 4), "transform_sqrt": True},
    **{norm: {"pixels_per_cell": (8, 8), "cells_per_block": (2, 2), "block_norm": norm} for norm in BLOCK_NORMS},
}


def of_skimage(images, **options):
    return np.stack([feature.hog(image, channel_axis=-1, **options) for image in images])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", OPTIONS)
def test_hog_is_that_of_scikit_image_on_random_images(name, channels):
    images = PHOTO[..., :channels]
    here = jax.jit(functools.partial(hog, **OPTIONS[name]))(images)
    np.testing.assert_allclose(here, of_skimage(images, **OPTIONS[name]), atol=1e-6)


def test_hog_is_that_of_scikit_image_on_real_images():
    """In float64 too; digits have many flat cells, and gradients of exactly 0, 45 and 90 degrees."""
    images = load("digits", image_size=24).test.arrays()[0][:20] / 255
    expected = of_skimage(images, pixels_per_cell=(4, 4), cells_per_block=(2, 2))
    with jax.enable_x64(True):
        here = hog(images, pixels_per_cell=(4, 4), cells_per_block=(2, 2))
        assert here.dtype == jnp.float64
        np.testing.assert_allclose(here, expected, atol=1e-6)
