"""Players: what masks and baselines mean, what is refused, and how a player's value is spread over its pixels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dl_core.errors import UsageError
from dl_core.explain.players import patches, superpixels
from dl_core.explain.shapley import shapley_exact

IMAGES = np.random.default_rng(0).uniform(0.2, 1, (3, 4, 6, 2)).astype(np.float32)
WEIGHTS = np.random.default_rng(1).normal(size=(4, 6, 2)).astype(np.float32)


def linear(weights, images):
    """Two logits: the weighted sum of the values, and its negative."""
    logit = (images * weights[None]).reshape(len(images), -1).sum(axis=1)
    return jnp.stack([logit, -logit], axis=1)


def values(mask, baselines=0.0, **options):
    return shapley_exact(linear, WEIGHTS, IMAGES, 0, feature_mask=mask, baselines=baselines, **options)


def share(mask, difference):
    """w_i (x_i - b_i) summed over the pixels of each player: the Shapley values of a linear model."""
    contributions = np.broadcast_to(WEIGHTS * difference, IMAGES.shape)
    mask = np.broadcast_to(mask, IMAGES.shape)
    return np.stack([np.where(mask == i, contributions, 0).sum(axis=(1, 2, 3)) for i in range(mask.max() + 1)], axis=1)


def close(given, expected):
    np.testing.assert_allclose(given, expected, rtol=1e-4, atol=1e-5)  # float32 sums of 48 products


def test_patches_number_the_rectangles_of_a_grid_row_by_row():
    np.testing.assert_array_equal(patches((2, 4), 2), [[0, 0, 1, 1], [0, 0, 1, 1]])
    np.testing.assert_array_equal(patches((3, 3, 5), (2, 2)), [[0, 0, 1], [0, 0, 1], [2, 2, 3]])
    np.testing.assert_array_equal(np.unique(patches((28, 28), 4)), np.arange(49))


def test_a_mask_is_shared_or_of_each_example_with_or_without_channels():
    of_pixels = patches((4, 6), (2, 3))
    of_channels = np.stack([of_pixels, of_pixels + 4], axis=-1)
    of_examples = np.stack([of_pixels, of_pixels[::-1], of_pixels[:, ::-1]])
    for mask, full in (
        (of_pixels, of_pixels[None, :, :, None]),
        (of_pixels[..., None], of_pixels[None, :, :, None]),
        (of_channels, of_channels[None]),
        (of_examples, of_examples[..., None]),
        (np.arange(2)[None, None], np.arange(2)[None, None, None]),  # the channels are the players
    ):
        result = values(mask)
        close(result.values, share(full, IMAGES))
        picture = np.take_along_axis(
            np.asarray(result.values), np.broadcast_to(full, IMAGES.shape).reshape(3, -1), axis=1
        )
        np.testing.assert_array_equal(result.attributions, picture.reshape(IMAGES.shape))


def test_without_a_mask_every_pixel_or_every_feature_is_a_player():
    pixels = shapley_exact(linear, WEIGHTS[:3, :3], IMAGES[:, :3, :3], 0)
    close(pixels.values, (WEIGHTS * IMAGES)[:, :3, :3].sum(axis=3).reshape(3, 9))
    features = shapley_exact(linear, WEIGHTS[0, :, 0], IMAGES[:, 0, :, 0], 1)
    close(features.values, -(WEIGHTS * IMAGES)[:, 0, :, 0])


def test_baselines_are_a_number_an_example_one_for_each_or_a_background():
    mask, random = patches((4, 6), 3), np.random.default_rng(2)
    full = mask[None, :, :, None]
    example, each = (random.uniform(size=shape).astype(np.float32) for shape in (IMAGES.shape[1:], IMAGES.shape))
    background = random.uniform(size=(5, 1, *IMAGES.shape[1:])).astype(np.float32)
    of_each = random.uniform(size=(2, *IMAGES.shape)).astype(np.float32)
    for baselines, mean in (
        (0.25, np.float32(0.25)),
        (example.mean(axis=(0, 1)), example.mean(axis=(0, 1))),  # a colour
        (each, each),
        (background, background.mean(axis=0)),  # of a linear model, the background matters by its mean alone
        (of_each, of_each.mean(axis=0)),
    ):
        close(values(mask, baselines, internal_batch_size=21).values, share(full, IMAGES - mean))


def test_outputs_are_averaged_over_the_background_not_the_background_itself():
    square = lambda params, x: x.sum(axis=1, keepdims=True) ** 2
    x, background = jnp.array([[1.0, 2.0]]), jnp.array([[0.0, 3.0], [4.0, 1.0]])
    worth = lambda present: ((np.where(present, x, background)).sum(axis=1) ** 2).mean()
    none, first, second, both = (worth(np.array([present])) for present in ((0, 0), (1, 0), (0, 1), (1, 1)))
    expected = [((first - none) + (both - second)) / 2, ((second - none) + (both - first)) / 2]
    result = shapley_exact(square, None, x, 0, baselines=background[:, None])
    np.testing.assert_allclose(result.values[0], expected, rtol=1e-6)


def test_examples_may_have_different_numbers_of_players():
    """Two, three and four: what an example lacks gets exactly zero, and the others what they get alone."""
    columns = np.arange(6)
    mask = np.stack([np.broadcast_to(columns * n // 6, (4, 6)) for n in (2, 3, 4)])
    curved = lambda weights, x: jnp.tanh(linear(weights, x))
    result = shapley_exact(curved, WEIGHTS, IMAGES, 0, feature_mask=mask)
    assert result.values.shape == (3, 4)
    for example, n in enumerate((2, 3, 4)):
        alone = shapley_exact(curved, WEIGHTS, IMAGES[example : example + 1], 0, feature_mask=mask[example])
        close(result.values[example, :n], alone.values[0])
        np.testing.assert_array_equal(result.values[example, n:], 0)


def test_superpixels_are_players_inside_of_jit_where_their_most_is_said():
    images = np.random.default_rng(3).uniform(size=(2, 12, 12, 2)).astype(np.float32)
    weights = np.ones((12, 12, 2), np.float32)
    mask = superpixels(images, 9)
    outside = shapley_exact(linear, weights, images, 0, feature_mask=mask, n_players=9)
    explain = lambda x: shapley_exact(linear, weights, x, 0, feature_mask=superpixels(x, 9), n_players=9).values
    close(jax.jit(explain)(images), outside.values)
    close(outside.values.sum(axis=1), images.sum(axis=(1, 2, 3)))
    with pytest.raises(UsageError, match="inside of jit or vmap; give n_players"):
        jax.jit(lambda x: shapley_exact(linear, weights, x, 0, feature_mask=superpixels(x, 9)))(images)


def test_a_target_function_may_know_each_example():
    labels, mask = jnp.array([1, 0, 1]), patches((4, 6), 3)
    sign = np.array([[-1], [1], [-1]])
    by_function = shapley_exact(
        linear, WEIGHTS, IMAGES, lambda logits: logits[jnp.arange(3), labels], feature_mask=mask
    )
    close(by_function.values, sign * share(mask[None, :, :, None], IMAGES))
    by_class = shapley_exact(linear, WEIGHTS, IMAGES, labels, feature_mask=mask)
    close(by_class.values, by_function.values)


def test_apply_fn_may_put_the_batch_elsewhere_where_the_target_is_a_function(annotations_off):
    mask = patches((4, 6), 3)
    transposed = lambda weights, x: linear(weights, x).T
    other = shapley_exact(transposed, WEIGHTS, IMAGES, lambda output: output[0], feature_mask=mask)
    close(other.values, share(mask[None, :, :, None], IMAGES))


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (np.zeros((6, 4), int), r"shapes \[4, 6\], \[4, 6, 2\], \[3, 4, 6\], \[3, 4, 6, 2\]"),
        (np.zeros((2, 4, 6), int), r"for inputs \[3, 4, 6, 2\], got \[2, 4, 6\]"),
        (np.int32(0), "one of the shapes"),
        (np.zeros((4, 6)), r"integer ids of players, got float"),
        (np.zeros((4, 6), bool), r"astype\(int\)"),
        (patches((4, 6), 3) - 1, "from 0 on, got -1"),
        (patches((4, 6), 3) * 2, "has ids up to 6 but not 1, 3, 5"),
        (patches((4, 6), 3) + 1, "but not 0"),
    ],
)
def test_masks_that_do_not_fit_are_refused(annotations_off, mask, words):
    with pytest.raises(UsageError, match=words):
        values(mask)


def test_other_bad_input(annotations_off):
    with pytest.raises(UsageError, match=r"background\[:, None\]; got shape \[5, 4, 6, 2\]"):
        values(patches((4, 6), 3), np.zeros((5, 4, 6, 2), np.float32))
    with pytest.raises(UsageError, match="baselines must be a number"):
        values(patches((4, 6), 3), np.zeros((1, 1, 1, 4, 6, 2), np.float32))
    with pytest.raises(UsageError, match="id 7, and n_players = 5 ends at 4"):
        values(patches((4, 6), 2) + 2, n_players=5)
    with pytest.raises(UsageError, match="size 0"):
        patches((4, 6), 0)
    with pytest.raises(UsageError, match="height, width"):
        patches((3, 4, 6, 2), 2)
    with pytest.raises(UsageError, match="at least 1"):
        values(patches((4, 6), 3), internal_batch_size=0)
    with pytest.raises(UsageError, match="unknown loop"):
        values(patches((4, 6), 3), loop="python")
    with pytest.raises(UsageError, match=r"target must be in \[0, 2\)"):
        shapley_exact(linear, WEIGHTS, IMAGES, 2, feature_mask=patches((4, 6), 3))


def test_ids_may_be_unused_where_the_number_of_players_is_said():
    result = values(patches((4, 6), 3) * 2, n_players=8)
    np.testing.assert_array_equal(result.values[:, [1, 3, 5, 7]], 0)
    close(result.values[:, [0, 2, 4, 6]], share(patches((4, 6), 3)[None, :, :, None], IMAGES))
