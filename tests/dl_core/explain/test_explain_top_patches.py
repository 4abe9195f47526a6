"""Most-activating patches: against a search through everything, in blocks of any size, with what lies off the edge."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from explanation_contract import small_images, small_network, small_params

from dl_core.errors import UsageError
from dl_core.explain.layers import run_with_layer
from dl_core.explain.top_patches import top_patches

IMAGES = small_images(10)
ARGUMENTS = small_network, small_params(), IMAGES


def activations(layer):
    return np.asarray(run_with_layer(small_network, small_params(), IMAGES, layer)[1])


@pytest.mark.parametrize("internal_batch_size", [None, 3])
@pytest.mark.parametrize("one_per_image", [True, False])
def test_it_is_a_search_through_everything(internal_batch_size, one_per_image):
    found = top_patches(
        *ARGUMENTS, "conv2", channels=[4, 1], k=7, one_per_image=one_per_image, internal_batch_size=internal_batch_size
    )
    for row, channel in enumerate([4, 1]):
        maps = activations("conv2")[..., channel]
        if one_per_image:
            maps = np.where(maps == maps.max(axis=(1, 2), keepdims=True), maps, -np.inf)
        order = np.argsort(-maps.ravel(), kind="stable")[:7]
        image, y, x = np.unravel_index(order, maps.shape)
        np.testing.assert_allclose(found.values[row], maps.ravel()[order], rtol=1e-5)  # blocks of another size
        np.testing.assert_array_equal(found.images[row], image)
        np.testing.assert_array_equal(found.positions[row], np.stack([y, x], axis=1))
    if one_per_image:
        assert all(len(set(np.asarray(images).tolist())) == 7 for images in found.images)


def test_a_patch_is_all_that_the_unit_saw():
    """Two 3×3 convolutions see 5×5 pixels: the patch alone, its surroundings unknown, gives the same activation."""
    found = top_patches(*ARGUMENTS, "conv2", k=10, padding_value=-7.0)
    assert found.patches.shape == (6, 10, 5, 5, 3)
    np.testing.assert_array_equal(found.corners, found.positions - 2)
    around = np.full((10, 12, 12, 3), -7.0, np.float32)  # two pixels on each side
    around[:, 2:-2, 2:-2] = IMAGES
    inside = 0
    for channel in range(6):
        for rank in range(10):
            (y, x), image = found.positions[channel, rank], found.images[channel, rank]
            np.testing.assert_array_equal(found.patches[channel, rank], around[image, y : y + 5, x : x + 5])
            if 2 <= y < 6 and 2 <= x < 6:  # clear of the network's zero padding
                inside += 1
                canvas = jnp.zeros((1, 8, 8, 3)).at[0, 1:6, 1:6].set(found.patches[channel, rank])
                alone = run_with_layer(small_network, small_params(), canvas, "conv2")[1][0, 3, 3, channel]
                np.testing.assert_allclose(alone, found.values[channel, rank], rtol=1e-4, atol=1e-5)
    assert inside >= 3


def test_patches_of_another_size_have_the_same_middle():
    whole, middle, large = (
        top_patches(*ARGUMENTS, "conv2", channels=2, k=4, patch_size=size) for size in (None, (3, 1), (7, 9))
    )
    np.testing.assert_array_equal(middle.patches, whole.patches[:, :, 1:4, 2:3])
    np.testing.assert_array_equal(large.patches[:, :, 1:6, 2:7], whole.patches)
    np.testing.assert_array_equal(middle.corners - whole.corners, np.broadcast_to([1, 2], (1, 4, 2)))


def test_strides_and_pooling_place_the_patch():
    """One channel that is the mean of each block of 2×3 pixels."""

    def pooled(_, images):
        with jax.named_scope("pool"):
            return images.reshape(-1, 4, 2, 2, 3, 3).mean(axis=(2, 4))

    wrapped = lambda params, images: pooled(params, images).mean(axis=(1, 2))
    images = jnp.asarray(np.random.default_rng(0).uniform(size=(5, 8, 6, 3)).astype(np.float32))
    found = top_patches(wrapped, None, images, "pool", k=3)
    assert found.patches.shape == (3, 3, 2, 3, 3)
    means = np.stack([found.patches[channel, ..., channel].mean(axis=(1, 2)) for channel in range(3)])
    np.testing.assert_allclose(means, found.values, rtol=1e-5)


def test_a_unit_of_a_dense_layer_sees_the_whole_image():
    found = top_patches(*ARGUMENTS, "fc", channels=[3], k=2)
    np.testing.assert_array_equal(found.patches[0], IMAGES[found.images[0]])
    np.testing.assert_array_equal(found.images[0], np.argsort(-activations("fc")[:, 3])[:2])
    np.testing.assert_array_equal(found.positions, 0)


def test_images_on_the_host_stay_there():
    calls = []
    options = {"channels": [0], "k": 3, "internal_batch_size": 4}
    found = top_patches(
        *ARGUMENTS[:2], np.asarray(IMAGES), "conv1", **options, progress=lambda *done: calls.append(done)
    )
    assert isinstance(found.patches, np.ndarray)
    assert calls == [(1, 3), (2, 3), (3, 3)]
    np.testing.assert_array_equal(found.patches, top_patches(*ARGUMENTS, "conv1", **options).patches)


def test_it_works_under_jit():
    search = lambda params, images: top_patches(small_network, params, images, "conv2", k=3, internal_batch_size=5)
    expected = search(small_params(), IMAGES)
    found = jax.jit(search)(small_params(), IMAGES)
    np.testing.assert_allclose(found.values, expected.values, rtol=1e-5)
    np.testing.assert_array_equal(found.patches, expected.patches)


def test_more_patches_than_images_leave_places_empty():
    found = top_patches(*ARGUMENTS[:2], IMAGES[:2], "conv2", channels=[0], k=3, padding_value=0.5)
    assert np.isneginf(found.values[0]).tolist() == [False, False, True]
    assert found.images[0, 2] == -1
    np.testing.assert_array_equal(found.patches[0, 2], 0.5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"layer": "conv4"}, "unknown layer 'conv4'; did you mean"),
        ({"channels": 6}, r"channels must be whole numbers in \[0, 6\), those of layer 'conv2'; got 6"),
        ({"channels": [-1]}, r"got \[-1\]"),
        ({"channels": []}, "channels must be whole numbers"),
        ({"channels": [0.5]}, "channels must be whole numbers"),
        ({"k": 0}, "k must be at least 1, got 0"),
        ({"patch_size": (0, 3)}, "each at least 1"),
        ({"internal_batch_size": 0}, "internal_batch_size must be at least 1"),
        ({"images": np.zeros((3, 8, 8, 3), np.uint8)}, "floating numbers .*got uint8"),
        ({"images": np.zeros((0, 8, 8, 3), np.float32)}, "n >= 1"),
        ({"images": np.zeros((8, 8, 3), np.float32)}, r"of shape \[8, 8, 3\]"),
    ],
)
def test_nonsense_is_refused_with_the_value_given(annotations_off, options, words):
    options = {"images": IMAGES, "layer": "conv2", **options}
    with pytest.raises(UsageError, match=words):
        top_patches(small_network, small_params(), options.pop("images"), options.pop("layer"), **options)
