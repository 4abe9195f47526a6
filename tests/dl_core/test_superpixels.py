"""Superpixels: connected segments that follow the colours, on a grid where there is nothing to follow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from dl_core.errors import UsageError
from dl_core.superpixels import lab, slic

RANDOM = np.random.default_rng(0).uniform(size=(2, 24, 30, 3)).astype(np.float32)


def blobs(seed, height=24, width=30, regions=6):
    """Regions of one colour each (nearest of random points), a little noise, and the region of every pixel."""
    random = np.random.default_rng(seed)
    points = random.uniform((0, 0), (height, width), (regions, 2))
    places = np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij"), axis=-1)
    region = ((places[:, :, None] - points) ** 2).sum(axis=-1).argmin(axis=-1)
    colours = random.uniform(size=(regions, 3))
    image = np.clip(colours[region] + random.normal(scale=0.02, size=(height, width, 3)), 0, 1)
    return image.astype(np.float32), region


def test_a_uniform_image_gives_the_grid():
    rows, columns = np.arange(24) * 5 // 24, np.arange(30) * 6 // 30
    for images in (np.full((2, 24, 30, 3), 0.5, np.float32), np.zeros((1, 24, 30, 1), np.float32)):
        np.testing.assert_array_equal(slic(images, 30)[0], rows[:, None] * 6 + columns[None])


@pytest.mark.parametrize("n_segments", [1, 30])
@pytest.mark.parametrize("images", [RANDOM, np.stack([blobs(0)[0], blobs(1)[0]])], ids=["noise", "blobs"])
def test_every_pixel_lies_in_one_connected_segment_and_their_numbers_have_no_gaps(images, n_segments):
    for segments in np.asarray(slic(images, n_segments, compactness=1.0)):
        np.testing.assert_array_equal(np.unique(segments), np.arange(segments.max() + 1))
        assert segments.max() < 1.2 * n_segments  # the cells of the grid
        for label in range(segments.max() + 1):
            assert ndimage.label(segments == label)[1] == 1
        assert np.bincount(segments.ravel()).min() >= 0.2 * segments.size / n_segments  # a quarter of a cell


def test_without_enforced_connectivity_noise_scatters_the_segments():
    segments = np.asarray(slic(RANDOM, 30, compactness=0.1, enforce_connectivity=False)[0])
    pieces = sum(ndimage.label(segments == label)[1] for label in range(segments.max() + 1))
    assert pieces > 3 * 30


def test_segments_stay_inside_of_regions_of_one_colour():
    """Nearly every pixel lies in a segment whose commonest region is its own, and of a grid it does not."""
    images, regions = zip(*(blobs(seed) for seed in range(2)), strict=True)
    flat = np.zeros_like(images)
    for given, lowest, highest in ((np.stack(images), 0.98, 1), (flat, 0, 0.95)):
        for segments, region in zip(np.asarray(slic(given, 30)), regions, strict=True):
            commonest = [np.bincount(region[segments == label]).max() for label in np.unique(segments)]
            assert lowest <= np.sum(commonest) / region.size <= highest


def test_compactness_makes_squares():
    image = np.stack([blobs(0)[0], blobs(1)[0]])
    grid = slic(jnp.full_like(image, 0.5), 30)
    assert (slic(image, 30, compactness=1e4) == grid).mean() > 0.99
    assert (slic(image, 30, compactness=1.0) == grid).mean() < 0.9


def test_images_are_divided_as_if_they_were_alone_and_inside_of_jit():
    together = slic(RANDOM, 30)
    np.testing.assert_array_equal(slic(RANDOM[1:], 30)[0], together[1])
    np.testing.assert_array_equal(jax.jit(lambda x: slic(x, 30))(RANDOM), together)


def test_lab_of_known_colours():
    """Of the sRGB primaries under D65 (Lindbloom's tables, two decimals)."""
    colours = jnp.array([[1.0, 1, 1], [0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    expected = [[100, 0, 0], [0, 0, 0], [53.24, 80.09, 67.20], [87.73, -86.18, 83.18], [32.30, 79.19, -107.86]]
    np.testing.assert_allclose(lab(colours), expected, atol=0.02)
    assert np.isfinite(jax.grad(lambda x: lab(x).sum())(colours)).all()


def test_bad_input(annotations_off):
    for images, words in (
        (RANDOM[0], r"\[24, 30, 3\]; one image is image\[None\]"),
        ((RANDOM * 255).astype(np.uint8), "bytes are divided by 255"),
    ):
        with pytest.raises(UsageError, match=words):
            slic(images, 10)
    for options, words in (
        ({"n_segments": 0}, r"n_segments must be in \[1, 720\]"),
        ({"n_segments": 721}, "number of pixels; got 721"),
        ({"compactness": 0.0}, "compactness must be above 0"),
        ({"iterations": 0}, "iterations at least 1"),
    ):
        with pytest.raises(UsageError, match=words):
            slic(RANDOM, **options)
    with pytest.raises(UsageError, match="3 channels"):
        lab(jnp.zeros((4, 4)))
