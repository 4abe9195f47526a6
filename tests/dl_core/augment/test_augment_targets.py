"""Masks, boxes and key points move with the image: every label agrees with what is seen in the moved picture."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import config as annotations

from dl_core.augment import affine, geometric, resize, targets
from dl_core.augment.targets import Sample
from dl_core.data import scenes
from dl_core.errors import UsageError

KEY = jax.random.key(0)
SIDE, OBJECTS, BATCH = 64, 3, 24
FRAME = (SIDE, SIDE)
warp_sample = jax.jit(targets.warp_sample, static_argnames=("size", "mask_fill", "min_visible", "min_side"))
warp_boxes = jax.jit(targets.warp_boxes, static_argnums=2, static_argnames=("min_visible", "min_side"))
warp_keypoints = jax.jit(targets.warp_keypoints, static_argnums=2, static_argnames="mirrored_points")
boxes_of = jax.jit(jax.vmap(scenes.boxes))
IDENTITY = jnp.eye(3)[None]


@pytest.fixture(scope="module")
def sample():
    """Scenes of up to three whole objects, with a mask, a box and the centre of gravity of each."""

    @jax.jit
    def label(scene):
        masks = jax.vmap(lambda one: scenes.masks(one, SIDE))(scene)
        place = jnp.arange(SIDE) + 0.5
        area = jnp.maximum(masks.sum(axis=(2, 3)), 1)
        x, y = (masks * place[None, None, None]).sum((2, 3)), (masks * place[None, None, :, None]).sum((2, 3))
        points = (jnp.stack([x, y], axis=-1) / area[..., None])[:, :, None]
        return masks, jax.vmap(scenes.boxes)(masks), points

    drawn = scenes.sample_batch(scenes.key_of(0), 0, BATCH, max_objects=OBJECTS, sizes=(120, 220))
    masks, boxes, points = label(drawn)
    images = scenes.render_batch(drawn, SIDE).astype(jnp.float32) / 255
    valid = masks.any(axis=(2, 3))
    return Sample(images, masks, boxes, valid, points, valid[..., None])


MOVES = {
    "flip": lambda: geometric.random_flip_matrices(KEY, BATCH, FRAME),
    "upside down": lambda: geometric.random_flip_matrices(KEY, BATCH, FRAME, axis="vertical", probability=1.0),
    "crop": lambda: geometric.random_crop_matrices(KEY, BATCH, FRAME, padding=8, size=48),
    "shift and scale": lambda: affine.random_affine_matrices(KEY, BATCH, FRAME, translate=(0.3, 0.3), scale=(0.6, 1.5)),
    "resized crop": lambda: resize.random_resized_crop_matrices(KEY, BATCH, FRAME, size=48, scale=(0.3, 1.0)),
    "quarter turn": lambda: affine.rotation(jnp.full(BATCH, 90.0), FRAME),
    "everything": lambda: affine.random_affine_matrices(
        KEY, BATCH, FRAME, degrees=45.0, translate=(0.2, 0.2), scale=(0.7, 1.4), shear=(0.3, 0.3)
    ),
}
SIZES = {"crop": (48, 48), "resized crop": (48, 48)}
UPRIGHT = [name for name in MOVES if name != "everything"]  # moves that take upright boxes to upright boxes


@functools.cache
def matrices_of(name):
    return jax.jit(MOVES[name])()


@pytest.mark.parametrize("name", MOVES)
def test_boxes_and_points_agree_with_the_moved_masks(sample, name):
    moved = warp_sample(sample, matrices_of(name), size=SIZES.get(name, FRAME), min_visible=0.0)
    assert moved.mask.dtype == bool
    seen = np.asarray(moved.mask.any(axis=(2, 3)))
    expected, boxes, valid = np.asarray(boxes_of(moved.mask)), np.asarray(moved.boxes), np.asarray(moved.boxes_valid)
    low, high = np.s_[..., :2], np.s_[..., 2:]
    compared = valid & seen
    assert compared.sum() > 30
    assert (valid | ~seen | (expected[..., 2:] - expected[..., :2] <= 2).any(axis=-1)).all()  # seen, and no sliver
    # a mask's box ends at whole pixels, of which a centre is inside: off by one, and one source pixel, enlarged, more
    slack = 2.6
    assert (boxes[low] <= expected[low] + slack)[compared].all()
    assert (boxes[high] >= expected[high] - slack)[compared].all()
    if name in UPRIGHT:
        # the other way only where the object reaches its box inside the frame: what is cut off may have been the tip
        whole = compared & ((boxes > 0) & (boxes < SIZES.get(name, FRAME)[0])).all(axis=-1)
        np.testing.assert_allclose(boxes[whole], expected[whole], atol=slack)
    height, width = moved.mask.shape[2:]
    area = np.asarray(moved.mask).sum(axis=(2, 3))
    row, column = np.mgrid[:height, :width] + 0.5
    centre = np.stack([(np.asarray(moved.mask) * at).sum(axis=(2, 3)) for at in (column, row)], axis=-1)
    inside = compared & ((expected[low] > 0) & (expected[high] < width)).all(axis=-1) & (area > 20)
    assert inside.sum() > 10
    assert np.asarray(moved.keypoints_valid)[inside].all()
    # the centre of gravity moves with the matrix; counting whole pixels moves it by less than half of one
    points = np.asarray(moved.keypoints)[:, :, 0]
    np.testing.assert_allclose(points[inside], centre[inside] / area[inside][:, None], atol=0.5)


def test_flips_and_crops_move_pixels_and_labels_by_the_same_draw(sample):
    flipped = warp_sample(sample, matrices_of("flip"))
    np.testing.assert_array_equal(flipped.image, geometric.random_flip(KEY, sample.image))
    masks = jnp.moveaxis(sample.mask, 1, -1)
    np.testing.assert_array_equal(jnp.moveaxis(flipped.mask, 1, -1), geometric.random_flip(KEY, masks * 1) == 1)
    cropped = warp_sample(sample, matrices_of("crop"), size=(48, 48))
    np.testing.assert_array_equal(cropped.image, geometric.random_crop(KEY, sample.image, padding=8, size=48))
    assert 0 < (np.asarray(flipped.image) == np.asarray(sample.image)).all(axis=(1, 2, 3)).sum() < BATCH


def test_a_flip_twice_is_where_it_began(sample):
    both = affine.compose(matrices_of("flip"), matrices_of("flip"))
    again = warp_sample(sample, both, min_visible=0.0, min_side=0.0)
    for name, field in again._asdict().items():
        np.testing.assert_array_equal(field, getattr(sample, name), err_msg=name)


def test_boxes_are_clipped_and_what_is_hardly_left_is_not_valid():
    boxes = jnp.array([[[10.0, 10, 30, 20], [0, 0, 4, 4], [40, 40, 64, 64], [5, 5, 9, 9]]])
    shift = affine.translation(jnp.array([-20.0]), jnp.array([0.0]))
    moved, valid = warp_boxes(boxes, shift, FRAME, valid=jnp.array([[True, True, True, False]]), min_visible=0.5)
    np.testing.assert_array_equal(valid, [[True, False, True, False]])  # half of the first is left, none of the second
    np.testing.assert_array_equal(moved, [[[0, 10, 10, 20], [0, 0, 0, 0], [20, 40, 44, 64], [0, 0, 0, 0]]])
    _, valid = warp_boxes(boxes, shift, FRAME, min_visible=0.51)
    np.testing.assert_array_equal(valid, [[False, False, True, False]])
    small = affine.scaling(jnp.array([0.25]), FRAME)
    _, valid = warp_boxes(boxes, small, FRAME, min_side=2.5)
    np.testing.assert_array_equal(valid, [[True, False, True, False]])  # 5 × 2.5, 1 × 1, 6 × 6, 1 × 1 pixels


def test_a_turned_box_is_the_hull_of_its_corners():
    turn = affine.rotation(jnp.array([45.0]), FRAME)
    moved, _ = warp_boxes(jnp.array([[[22.0, 22, 42, 42]]]), turn, FRAME)
    half = 10 * 2**0.5
    np.testing.assert_allclose(moved[0, 0], [32 - half, 32 - half, 32 + half, 32 + half], rtol=1e-6)


def test_points_outside_are_not_valid_and_those_on_the_edge_are():
    points = jnp.array([[[0.0, 0.0], [64.0, 64.0], [10.0, 10.0], [3.0, 20.0]]])
    moved, valid = warp_keypoints(points, IDENTITY, FRAME)
    np.testing.assert_array_equal(valid, [[True] * 4])
    np.testing.assert_array_equal(moved, points)
    shift = affine.translation(jnp.array([-5.0]), jnp.array([0.0]))
    moved, valid = warp_keypoints(points, shift, FRAME, valid=jnp.array([[True, True, False, True]]))
    np.testing.assert_array_equal(valid, [[False, True, False, False]])
    np.testing.assert_array_equal(moved, [[[0, 0], [59, 64], [0, 0], [0, 0]]])


def test_left_and_right_change_places_in_a_mirror_and_not_in_a_turn():
    points = jnp.array([[[10.0, 30.0], [50.0, 31.0], [32.0, 40.0]]] * 3)  # left eye, right eye, nose
    matrices = jnp.concatenate(
        [affine.scaling(jnp.array([[-1.0, 1.0]]), FRAME), affine.rotation(jnp.array([180.0]), FRAME), IDENTITY]
    )
    moved, valid = warp_keypoints(points, matrices, FRAME, mirrored_points=(1, 0, 2))
    assert valid.all()
    np.testing.assert_allclose(moved[0], [[14, 31], [54, 30], [32, 40]], atol=1e-4)
    np.testing.assert_allclose(moved[1], [[54, 34], [14, 33], [32, 24]], atol=1e-4)
    np.testing.assert_allclose(moved[2], points[2], atol=1e-4)


def test_what_lies_behind_the_camera_of_a_perspective_is_not_valid():
    tilt = jnp.array([[[1.0, 0, 0], [0, 1, 0], [-0.05, 0, 1]]])  # the plane's horizon is at x = 20
    moved, valid = warp_keypoints(jnp.array([[[10.0, 10.0], [30.0, 10.0]]]), tilt, FRAME)
    np.testing.assert_array_equal(valid, [[True, False]])
    np.testing.assert_allclose(moved[0, 0], [20, 20], rtol=1e-6)
    _, valid = warp_boxes(jnp.array([[[5.0, 5, 10, 10], [15, 5, 30, 10]]]), tilt, FRAME)
    np.testing.assert_array_equal(valid, [[True, False]])


def test_what_was_not_given_is_not_made_up(sample):
    moved = warp_sample(Sample(sample.image, boxes=sample.boxes), matrices_of("flip"))
    assert moved.mask is None
    assert moved.keypoints is None
    assert moved.boxes_valid.shape == (BATCH, OBJECTS)
    semantic = warp_sample(Sample(sample.image, mask=sample.mask.any(axis=1) * 3), matrices_of("crop"), mask_fill=255)
    assert semantic.mask.shape == (BATCH, SIDE, SIDE)
    assert set(np.unique(semantic.mask)) == {0, 3, 255}


@settings(max_examples=1000, deadline=None, derandomize=True, database=None)
@given(seed=st.integers(0, 2**31 - 1), strength=st.floats(0, 3))
def test_moved_boxes_lie_in_the_frame_and_hold_what_the_old_ones_held(seed, strength):
    rng = np.random.default_rng(seed)
    matrices = np.eye(3) + strength * rng.normal(size=(2, 3, 3)) * np.array([[0.3, 0.3, 20], [0.3, 0.3, 20], [0, 0, 0]])
    ends = np.sort(rng.uniform(0, 64, (2, 5, 2, 2)), axis=2)
    inside = (ends[:, :, 0] + rng.random((2, 5, 2)) * (ends[:, :, 1] - ends[:, :, 0])).astype(np.float32)
    boxes = ends.reshape(2, 5, 4).astype(np.float32)
    moved, valid = map(np.asarray, warp_boxes(boxes, matrices.astype(np.float32), FRAME))
    points, seen = map(np.asarray, warp_keypoints(inside, matrices.astype(np.float32), FRAME))
    assert moved.min() >= 0
    assert moved.max() <= SIDE
    assert (moved[~valid] == 0).all()
    assert (moved[valid][:, 2:] - moved[valid][:, :2] >= 1 - 1e-4).all()
    both = valid & seen
    assert (points[both] >= moved[both][:, :2] - 1e-3).all()  # a point of the box, in the frame, is in the moved box
    assert (points[both] <= moved[both][:, 2:] + 1e-3).all()


@settings(max_examples=1000, deadline=None, derandomize=True, database=None)
@given(data=st.data())
def test_what_does_not_fit_together_is_refused(data):
    good = Sample(
        np.zeros((2, 4, 4, 1), np.float32),
        np.zeros((2, 4, 4), bool),
        np.zeros((2, 3, 4), np.float32),
        np.ones((2, 3), bool),
        np.zeros((2, 3, 2), np.float32),
        np.ones((2, 3), bool),
    )
    options, name = {}, data.draw(st.sampled_from([*Sample._fields, "min_visible", "min_side", "pairs", "size"]))
    match name:
        case "min_visible":
            options = {"min_visible": data.draw(st.sampled_from([-0.1, 1.1, float("nan")]))}
        case "min_side":
            options = {"min_side": data.draw(st.floats(-1e6, -1e-6))}
        case "pairs":
            options = {"mirrored_points": data.draw(st.sampled_from([(1, 0), (1, 2, 0), (0, 0, 2), (3, 1, 2)]))}
        case "size":
            good = good._replace(mask=np.zeros((2, 4, data.draw(st.integers(5, 9))), bool))
        case _:
            rows = data.draw(st.sampled_from([0, 1, 3, 5]))
            good = good._replace(**{name: np.resize(getattr(good, name), (rows, *getattr(good, name).shape[1:]))})
    annotations.update("jaxtyping_disable", True)
    try:
        with pytest.raises(UsageError):
            targets.warp_sample(jax.tree.map(jnp.asarray, good), jnp.tile(IDENTITY, (2, 1, 1)), **options)
    finally:
        annotations.update("jaxtyping_disable", False)
