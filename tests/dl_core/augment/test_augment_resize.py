"""Resizing, random windows of one size, and predictions averaged over sizes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import config as annotations
from PIL import Image

from dl_core.augment import affine, resize
from dl_core.augment.policies import per_image_keys
from dl_core.errors import UsageError

KEY = jax.random.key(0)
IMAGES = jax.random.uniform(jax.random.key(1), (6, 18, 24, 2))
PILLOW = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos3": Image.Resampling.LANCZOS,
}
matrices_of = jax.jit(
    resize.random_resized_crop_matrices, static_argnums=(1, 2), static_argnames=("size", "scale", "ratio")
)
random_resized_crop = jax.jit(
    resize.random_resized_crop, static_argnames=("size", "scale", "ratio", "method", "antialias")
)


@pytest.mark.parametrize("method", PILLOW)
@pytest.mark.parametrize("size", [(12, 16), (40, 50), (30, 10)])
def test_resizing_agrees_with_pillow(method, size):
    # sizes at which no new centre falls between two pixels, where rounding decides which of them is the nearest
    expected = Image.fromarray(np.asarray(IMAGES[0, ..., 0])).resize(size[::-1], PILLOW[method])  # mode F: float32
    got = resize.resize(IMAGES, size=size, method=method)
    assert got.shape == (6, *size, 2)
    np.testing.assert_allclose(got[0, ..., 0], expected, atol=1e-5)  # weights in float32 here, in float64 there


def test_only_an_antialiased_image_forgets_what_is_finer_than_the_new_pixels():
    stripes = jnp.zeros((1, 8, 30, 1)).at[:, :, ::3].set(1.0)
    smooth = resize.resize(stripes, size=(8, 10))
    np.testing.assert_allclose(smooth[:, :, 1:-1], 1 / 3, atol=1e-6)
    sampled = resize.resize(stripes, size=(8, 10), antialias=False)
    np.testing.assert_allclose(sampled, 0, atol=1e-6)  # it looks at the middle of every three pixels


def test_the_matrix_of_a_resize_moves_points_as_the_pixels_move():
    matrices = resize.resize_matrices(6, (18, 24), size=(36, 36))
    np.testing.assert_allclose(matrices[0], np.diag([1.5, 2, 1]), rtol=1e-6)
    larger = resize.resize(IMAGES, size=36, antialias=False)
    warped = jax.jit(functools.partial(affine.warp, size=(36, 36)))(IMAGES, matrices)
    np.testing.assert_allclose(warped[:, 1:-1, 1:-1], larger[:, 1:-1, 1:-1], atol=1e-5)  # the border is repeated there


def test_windows_have_the_areas_and_shapes_asked_for_and_lie_inside():
    matrices = np.asarray(matrices_of(KEY, 4000, (18, 24), size=(10, 12), scale=(0.2, 0.6)), np.float64)
    width, height = 12 / matrices[:, 0, 0], 10 / matrices[:, 1, 1]
    left, top = -matrices[:, 0, 2] / matrices[:, 0, 0], -matrices[:, 1, 2] / matrices[:, 1, 1]
    share, shape = width * height / (18 * 24), np.log(width / height)
    assert min(left.min(), top.min()) > -1e-4
    assert (left + width).max() < 24 + 1e-4
    assert (top + height).max() < 18 + 1e-4
    for drawn, low, high in ((share, 0.2, 0.6), (shape, np.log(3 / 4), np.log(4 / 3))):
        ranks = np.sort((drawn - low) / (high - low))
        assert ranks[0] > -1e-3
        assert ranks[-1] < 1.001
        # every window fits, so both are uniform: Kolmogorov–Smirnov, 1 in 1000; the seed is fixed
        assert np.abs(ranks - np.arange(4000) / 4000).max() < 0.031
    assert abs(np.corrcoef(left / (24 - width), top / (18 - height))[0, 1]) < 0.06  # four standard deviations


def test_where_no_window_fits_the_middle_is_taken_in_the_nearest_shape_allowed():
    matrices = np.asarray(matrices_of(KEY, 3, (10, 40), size=10, scale=(1.0, 1.0)))  # all of it has a shape of 4
    np.testing.assert_allclose(matrices[:, 0, 0], 10 / (10 * 4 / 3), rtol=1e-5)
    np.testing.assert_allclose(matrices[:, 1, 1], 1, rtol=1e-5)
    np.testing.assert_allclose(-matrices[:, 0, 2] / matrices[:, 0, 0], (40 - 40 / 3) / 2, rtol=1e-5)


def test_a_window_of_everything_is_a_resize():
    got = random_resized_crop(KEY, IMAGES, size=(9, 8), scale=(1.0, 1.0), ratio=(24 / 18, 24 / 18), method="bicubic")
    np.testing.assert_allclose(got, resize.resize(IMAGES, size=(9, 8), method="bicubic"), atol=1e-5)


def test_without_antialias_a_window_is_what_warp_makes_of_its_matrix():
    matrices = matrices_of(KEY, 6, (18, 24), size=(20, 30), scale=(0.08, 0.5))
    got = random_resized_crop(KEY, IMAGES, size=(20, 30), scale=(0.08, 0.5), antialias=False)
    warped = jax.jit(functools.partial(affine.warp, size=(20, 30)))(IMAGES, matrices)
    weight = jax.jit(functools.partial(affine.warp, size=(20, 30)))(jnp.ones_like(IMAGES), matrices)
    inside = np.asarray(weight) > 1 - 1e-6  # else next to the border, which the one repeats and the other blends
    assert inside.mean() > 0.9
    np.testing.assert_allclose(np.asarray(got)[inside], np.asarray(warped)[inside], atol=1e-4)  # places up to 24


def test_the_result_depends_on_the_key_and_the_row_alone():
    crop = functools.partial(random_resized_crop, size=(8, 8))
    whole, keys = crop(KEY, IMAGES), per_image_keys(KEY, 6)
    pieces = [crop(keys[rows], IMAGES[rows]) for rows in (slice(0, 2), slice(2, 6))]
    np.testing.assert_allclose(jnp.concatenate(pieces), whole, atol=1e-5)
    stacked = jax.jit(jax.vmap(functools.partial(resize.random_resized_crop, size=(8, 8)), in_axes=(0, None)))
    np.testing.assert_allclose(
        stacked(jax.random.split(KEY, 2)[1:], IMAGES)[0], crop(jax.random.split(KEY, 2)[1], IMAGES), atol=1e-5
    )
    same = crop(KEY, jnp.broadcast_to(IMAGES[:1], IMAGES.shape))
    assert len(np.unique(np.asarray(same).reshape(6, -1), axis=0)) == 6


def pooled(params, images):
    """A classifier for images of any size: the mean of the squares of each channel."""
    return (images**2).mean(axis=(1, 2)) @ params


def test_averaging_is_over_the_probabilities_at_each_size():
    params = 5 * jax.random.normal(KEY, (2, 4))
    sizes = ((9, 12), 18, (30, 20))
    averaged = jax.jit(resize.average_over_sizes(pooled, sizes))(params, IMAGES)
    separate = [jax.nn.softmax(pooled(params, resize.resize(IMAGES, size=size))) for size in sizes]
    np.testing.assert_allclose(jnp.exp(averaged), np.mean(separate, axis=0), atol=1e-6)
    alone = resize.average_over_sizes(pooled, [(18, 24)])(params, IMAGES)
    np.testing.assert_allclose(jnp.exp(alone), jax.nn.softmax(pooled(params, IMAGES)), atol=1e-6)


@settings(max_examples=1000, deadline=None, derandomize=True, database=None)
@given(data=st.data())
def test_nonsense_is_refused(data):
    below = st.integers(-100, 0)
    size = data.draw(st.one_of(below, st.tuples(below, st.integers(1, 9)), st.tuples(st.integers(1, 9), below)))
    method = data.draw(st.text(max_size=9).filter(lambda name: name not in resize.METHODS))
    low, high = sorted(data.draw(st.tuples(st.floats(1e-6, 1), st.floats(1e-6, 1))))
    scale = data.draw(st.sampled_from([(0.0, high), (-low, high), (high + 1e-3, low), (low, 1 + high)]))
    ratio = data.draw(st.sampled_from([(0.0, high), (-low, high), (high + 1e-3, low)]))
    crop = functools.partial(resize.random_resized_crop, KEY, IMAGES)
    refused = [
        lambda: resize.resize(IMAGES, size=size),
        lambda: resize.resize(IMAGES, size=8, method=method),
        lambda: crop(size=size),
        lambda: crop(size=8, scale=scale),
        lambda: crop(size=8, ratio=ratio),
        lambda: resize.scale_and_translate(IMAGES, jnp.tile(jnp.eye(3), (6, 1, 1)), size=8, method="nearest"),
        lambda: resize.average_over_sizes(pooled, [8, size]),
        lambda: resize.average_over_sizes(pooled, []),
    ]
    annotations.update("jaxtyping_disable", True)
    try:
        with pytest.raises(UsageError):
            data.draw(st.sampled_from(refused))()
    finally:
        annotations.update("jaxtyping_disable", False)
