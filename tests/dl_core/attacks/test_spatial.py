"""The spatial attack: rotations and shifts, all of a grid or some at random."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attack_contract import quadrants, small_network, trained_params

from dl_core.attacks.balls import distance
from dl_core.attacks.spatial import _shares, spatial
from dl_core.errors import UsageError

KEY = jax.random.key(5)
SMALL = {"grid": (5, 3, 3), "max_rotation": 20.0, "max_translation": 1.0}


def attack(batch=16, **options):
    images, labels = quadrants(batch)
    return spatial(small_network, trained_params(), images, labels, **{**SMALL, **options})


def brightness(params, images):
    """Whether the middle of the image is bright: mirror images and quarter turns change nothing."""
    del params
    middle = images[:, 2:6, 2:6].mean(axis=(1, 2, 3))
    return jnp.stack([0.5 - middle, middle - 0.5], axis=1)


def test_ranges_of_zero_leave_the_image_as_it_is():
    result = attack(max_rotation=0.0, max_translation=0.0)
    np.testing.assert_array_equal(result.adversarial, quadrants(16)[0])
    assert not result.distance.any()


def test_a_finer_grid_never_does_worse():
    """A grid with points between those of another fools all images that the other one does."""
    before = np.zeros(16, bool)
    for grid in ((1, 1, 1), (3, 1, 1), (5, 3, 3)):
        found = np.asarray(attack(grid=grid).success)
        assert (found >= before).all()
        before = found
    assert before.sum() > 0


def test_the_mildest_transforms_are_tried_first():
    shares = _shares((31, 5, 5))
    assert shares.shape == (775, 3)
    np.testing.assert_array_equal(shares[0], 0)
    sizes = (shares**2).sum(axis=1)
    assert (np.diff(sizes) >= 0).all()
    assert len(np.unique(shares, axis=0)) == 775


def test_rotations_do_not_fool_a_network_that_sees_none_of_them():
    """All pixels that matter lie in a disc of one grey, which turns into itself."""
    row, column = np.mgrid[:8, :8] - 3.5
    disc = (np.hypot(row, column) < 3.9)[None, :, :, None] * np.array([0.2, 0.8]).reshape(2, 1, 1, 1)
    images, labels = jnp.asarray(disc, jnp.float32), jnp.array([0, 1])
    turned = spatial(brightness, None, images, labels, max_rotation=180.0, max_translation=0.0, grid=(9, 1, 1))
    assert not turned.success.any()
    assert (turned.queries == 10).all()  # the image, and nine rotations
    shifted = spatial(brightness, None, images, labels, max_rotation=0.0, max_translation=8.0, grid=(1, 5, 5))
    np.testing.assert_array_equal(shifted.success, [False, True])  # the bright disc leaves, the dark one stays dark


def test_a_whole_shift_moves_pixels_and_shows_the_fill():
    images = jnp.full((1, 8, 8, 1), 0.75).at[:, :, 0].set(0.25)
    left_column = lambda params, x: jnp.stack([x[:, 0, 0, 0], 0.75 - x[:, 0, 0, 0]], axis=1)
    result = spatial(
        left_column, None, images, jnp.array([1]), max_rotation=0.0, max_translation=2.0, grid=(1, 2, 1), fill=1.0
    )
    assert result.success.all()
    # the first of the two shifts, by two to the left, brings the bright part to the corner
    np.testing.assert_array_equal(result.adversarial[0, :, :6], 0.75)
    np.testing.assert_array_equal(result.adversarial[0, :, 6:], 1.0)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_success_and_distance_are_those_of_the_image(norm):
    result = attack(norm=norm)
    images, labels = quadrants(16)
    missed = small_network(trained_params(), result.adversarial).argmax(axis=1) != labels
    np.testing.assert_array_equal(result.success, missed)
    np.testing.assert_allclose(result.distance, distance(result.adversarial - images, norm), rtol=1e-5)
    assert result.adversarial.min() >= 0
    assert result.adversarial.max() <= 1
    assert (result.queries[~result.success] == 46).all()
    assert (result.queries <= 46).all()
    np.testing.assert_array_equal(result.steps, result.queries - 1)


def test_random_draws_belong_to_the_image_and_more_of_them_never_do_worse():
    images, labels = quadrants(16)
    keys = jax.random.split(KEY, 16)
    run = functools.partial(spatial, small_network, trained_params(), **SMALL)
    few, many = (run(images, labels, samples=k, key=keys) for k in (2, 12))
    assert (np.asarray(many.success) >= np.asarray(few.success)).all()
    assert (many.queries <= 13).all()
    part = run(images[8:], labels[8:], samples=12, key=keys[8:])
    np.testing.assert_array_equal(part.queries, many.queries[8:])
    np.testing.assert_allclose(part.adversarial, many.adversarial[8:], atol=1e-6)


def test_it_can_be_compiled_and_mapped_over_networks_and_leaves_them_alone():
    images, labels = quadrants(8)
    params = trained_params()
    before = jax.tree.map(np.array, params)
    run = lambda p, loop="auto": spatial(small_network, p, images, labels, grid=(3, 3, 1), loop=loop)
    alone = run(params)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), trained_params(3), params)
    mapped = jax.jit(jax.vmap(run))(stacked)
    np.testing.assert_array_equal(mapped.queries[1], alone.queries)
    np.testing.assert_allclose(mapped.adversarial[1], alone.adversarial, atol=1e-5)  # warps round in another order
    jax.tree.map(np.testing.assert_array_equal, params, before)


def test_success_with_a_target_means_the_target():
    _, labels = quadrants(16)
    target = (labels + 1) % 4
    result = attack(target=target, max_translation=4.0)
    predicted = small_network(trained_params(), result.adversarial).argmax(axis=1)
    np.testing.assert_array_equal(result.success, predicted == target)
    assert result.success.mean() > 0.3  # a shift by half the image moves the bright quadrant


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_rotation": -1.0}, "max_rotation must be at least 0"),
        ({"max_translation": -1.0}, "max_translation must be at least 0"),
        ({"grid": (5, 0, 3)}, r"each >= 1; got \(5, 0, 3\)"),
        ({"grid": (5, 3)}, r"got \(5, 3\)"),
        ({"samples": 0, "key": KEY}, "samples must be at least 1"),
        ({"samples": 5}, "key is missing: samples draws"),
        ({"fill": 2.0}, "fill must lie in bounds"),
        ({"norm": "l3"}, "unknown norm 'l3'"),
    ],
)
def test_nonsense_is_refused_with_the_value_given(annotations_off, options, words):
    with pytest.raises(UsageError, match=words):
        attack(8, **options)


def test_images_have_four_axes(annotations_off):
    with pytest.raises(UsageError, match=r"\[batch, height, width, channels\], got \[8, 64\]"):
        spatial(lambda params, x: x[:, :4], None, quadrants()[0].reshape(8, 64), quadrants()[1])
