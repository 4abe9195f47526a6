"""Crops and flips: they move pixels and change none, image by image, and do not mind how the batch is divided."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dl_core.augment import geometric
from dl_core.augment.policies import per_image_keys
from dl_core.errors import UsageError

KEY = jax.random.key(0)
RANDOM = {
    "random_crop": jax.jit(functools.partial(geometric.random_crop, padding=3)),
    "random_crop_smaller": jax.jit(functools.partial(geometric.random_crop, padding=1, size=(5, 7))),
    "random_translate": jax.jit(functools.partial(geometric.random_translate, max_shift=2)),
    "random_flip": jax.jit(geometric.random_flip),
}


def numbered(batch=6, height=8, width=9, channels=2):
    """Images in which no two values are the same, none of them zero."""
    shape = (batch, height, width, channels)
    return 1 + jnp.arange(np.prod(shape), dtype=jnp.float32).reshape(shape)


@pytest.mark.parametrize(("padding", "size"), [(2, None), (0, 5), ((1, 3), (4, 6)), (0, (8, 2))])
def test_a_random_crop_is_a_window_of_the_padded_image(padding, size):
    images = numbered()
    vertical, horizontal = (padding, padding) if isinstance(padding, int) else padding
    padded = np.pad(images, ((0, 0), (vertical, vertical), (horizontal, horizontal), (0, 0)))
    crops = np.asarray(geometric.random_crop(KEY, images, padding=padding, size=size))
    height, width = crops.shape[1:3]
    windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(1, 2))  # [b, top, left, c, h, w]
    for crop, places in zip(crops.transpose(0, 3, 1, 2), windows, strict=True):
        assert (places == crop).all(axis=(2, 3, 4)).any()


def test_every_place_of_a_random_crop_is_equally_likely():
    images = jnp.broadcast_to(numbered(1, 3, 3, 1), (2000, 3, 3, 1))
    corners = np.asarray(geometric.random_crop(KEY, images, padding=1))[:, 1, 1, 0].astype(int)  # 1 … 9 at the centre
    counts = np.bincount(corners, minlength=10)[1:]
    expected = 2000 / 9
    assert ((counts - expected) ** 2 / expected).sum() < 26  # chi-square, 8 degrees of freedom: 1 in 1000; seed fixed


@pytest.mark.parametrize("mode", ["constant", "edge", "reflect", "wrap"])
def test_a_translation_shifts_by_whole_pixels_and_fills_as_asked(mode):
    images = numbered(40, 6, 6, 1)
    moved = np.asarray(geometric.random_translate(KEY, images, max_shift=(2, 0), mode=mode))
    padded = np.pad(images, ((0, 0), (2, 2), (0, 0), (0, 0)), mode=mode)
    shifts = [next(top for top in range(5) if (padded[i, top : top + 6] == moved[i]).all()) for i in range(40)]
    assert set(shifts) == {0, 1, 2, 3, 4}


@pytest.mark.parametrize(
    "nothing",
    [
        functools.partial(geometric.random_crop, padding=0),
        functools.partial(geometric.random_translate, max_shift=0),
        functools.partial(geometric.random_flip, probability=0.0),
    ],
)
def test_zero_strength_is_the_identity(nothing):
    np.testing.assert_array_equal(nothing(KEY, numbered()), numbered())


@pytest.mark.parametrize("axis", ["horizontal", "vertical"])
def test_a_flip_undoes_itself(axis):
    images = numbered(50)
    flipped = geometric.random_flip(KEY, images, axis=axis)
    np.testing.assert_array_equal(geometric.random_flip(KEY, flipped, axis=axis), images)
    mirrored = np.asarray(images)[:, :, ::-1] if axis == "horizontal" else np.asarray(images)[:, ::-1]
    changed = (np.asarray(flipped) != images).any(axis=(1, 2, 3))
    np.testing.assert_array_equal(np.asarray(flipped)[changed], mirrored[changed])
    assert 10 < changed.sum() < 40  # 25 expected, standard deviation 3.5
    np.testing.assert_array_equal(geometric.random_flip(KEY, images, probability=1.0, axis=axis), mirrored)


@pytest.mark.parametrize("name", RANDOM)
def test_images_are_augmented_one_by_one(name):
    images = jnp.broadcast_to(numbered(1), (64, 8, 9, 2))
    distinct = np.unique(np.asarray(RANDOM[name](KEY, images)).reshape(64, -1), axis=0)
    assert len(distinct) >= (2 if name == "random_flip" else 8)


@pytest.mark.parametrize("name", RANDOM)
def test_the_result_does_not_depend_on_how_the_batch_is_divided(name):
    images = numbered(10)
    whole = RANDOM[name](KEY, images)
    keys = per_image_keys(KEY, 10)
    pieces = [RANDOM[name](keys[rows], images[rows]) for rows in (slice(0, 3), slice(3, 10))]
    np.testing.assert_array_equal(jnp.concatenate(pieces), whole)
    np.testing.assert_array_equal(RANDOM[name](KEY, images[:4]), whole[:4])  # nor on its size


@pytest.mark.parametrize("name", RANDOM)
def test_random_functions_work_under_vmap_and_on_a_sharded_batch(name):
    images = numbered(16)
    expected = RANDOM[name](KEY, images)
    stacked = jax.vmap(RANDOM[name], in_axes=(0, None))(jax.random.split(KEY, 3), images)
    np.testing.assert_array_equal(stacked[1], RANDOM[name](jax.random.split(KEY, 3)[1], images))
    mesh = jax.sharding.Mesh(jax.devices(), ("data",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    divided = RANDOM[name](KEY, jax.device_put(images, sharding))
    np.testing.assert_array_equal(divided, expected)
    assert divided.sharding.is_equivalent_to(sharding, divided.ndim)


@pytest.mark.parametrize("name", RANDOM)
def test_bytes_stay_bytes(name):
    images = numbered(4).astype(jnp.uint8)
    assert RANDOM[name](KEY, images).dtype == jnp.uint8


@pytest.mark.parametrize(("height", "top"), [(8, 0), (6, 1), (5, 1), (1, 3)])
def test_the_centre_crop_is_the_middle(height, top):
    images = numbered()
    np.testing.assert_array_equal(geometric.center_crop(images, size=(height, 9)), images[:, top : top + height])


def test_five_and_ten_crops_are_corners_middle_and_mirror_images():
    images = np.asarray(numbered())
    crops = geometric.ten_crop(jnp.asarray(images), size=(4, 5))
    assert crops.shape == (6, 10, 4, 5, 2)
    corners = [images[:, :4, :5], images[:, :4, 4:], images[:, 4:, :5], images[:, 4:, 4:], images[:, 2:6, 2:7]]
    for index, expected in enumerate(corners):
        np.testing.assert_array_equal(crops[:, index], expected)
        np.testing.assert_array_equal(crops[:, 5 + index], expected[:, :, ::-1])
    np.testing.assert_array_equal(geometric.five_crop(jnp.asarray(images), size=(4, 5)), crops[:, :5])
    np.testing.assert_array_equal(geometric.corner_crops(jnp.asarray(images), size=(4, 5)), crops[:, :4])


def test_what_cannot_be_cut_is_refused():
    with pytest.raises(UsageError, match="12 × 12 from images of 10 × 11"):
        geometric.random_crop(KEY, numbered(), padding=1, size=12)
    with pytest.raises(UsageError, match="9 × 9 from images of 8 × 9"):
        geometric.five_crop(numbered(), size=9)
    with pytest.raises(UsageError, match="negative, got -1"):
        geometric.random_crop(KEY, numbered(), padding=-1)
    with pytest.raises(UsageError, match="did you mean 'horizontal'"):
        geometric.random_flip(KEY, numbered(), axis="horizontl")
    with pytest.raises(UsageError, match="did you mean 'horizontal'"):
        geometric.random_flip_matrices(KEY, 2, (8, 9), axis="horizontl")
    with pytest.raises(UsageError, match=r"probability must lie in \[0, 1\], got 1.5"):
        geometric.random_flip(KEY, numbered(), probability=1.5)
    with pytest.raises(UsageError, match="12 × 12 from images of 10 × 11"):
        geometric.random_crop_matrices(KEY, 2, (8, 9), padding=1, size=12)


def test_an_alternating_flip_shows_every_image_both_ways_in_any_two_epochs_running():
    images = jax.random.uniform(jax.random.key(0), (200, 4, 6, 1))
    index = jax.random.permutation(jax.random.key(1), 200)
    seen = [geometric.alternating_flip(images, index, jnp.full(200, epoch)) for epoch in range(3)]
    mirrored = np.array([(view == geometric.flip(images)).all(axis=(1, 2, 3)) for view in seen])
    np.testing.assert_array_equal(mirrored[0], ~mirrored[1])
    np.testing.assert_array_equal(mirrored[0], mirrored[2])
    assert 70 < mirrored[0].sum() < 130  # half of 200, give or take four standard deviations
    again = geometric.alternating_flip(images[::-1], index[::-1], jnp.zeros(200, int))
    np.testing.assert_array_equal(again[::-1], seen[0])
