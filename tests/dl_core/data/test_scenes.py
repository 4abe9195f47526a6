"""Scenes: the description is frozen, the drawing has the right geometry, and the labels are true of the drawing."""

import colorsys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.path import Path

from dl_core.data import scenes
from dl_core.errors import UsageError

masks = jax.jit(scenes.masks, static_argnums=1)
visible_masks = jax.jit(scenes.visible_masks, static_argnums=1)
visible_fraction = jax.jit(scenes.visible_fraction, static_argnums=1)
instance_ids = jax.jit(scenes.instance_ids, static_argnums=1)
silhouette = jax.jit(scenes.silhouette, static_argnums=2)
draw = lambda scene, size=64: np.asarray(jitted_render(scene, size))
jitted_render = jax.jit(scenes.render, static_argnums=1)
boxes = jax.jit(scenes.boxes)


def one(batch, index):
    return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)[index]), batch)


# ---- the description ----


def test_a_frozen_description_has_the_hash_it_always_had():
    """Computed with JAX 0.10.2, and the same with 0.12.0: a release that changes the random numbers shows here."""
    drawn = scenes.sample_batch(scenes.key_of(0), 0, 3, max_objects=3)
    assert scenes.description_hash(drawn) == "49a15df31b68b57792f3609580473431dd484ce99725aaab71e459ece801eb0d"


def test_the_description_does_not_depend_on_the_default_random_numbers():
    drawn = scenes.description_hash(scenes.sample_batch(scenes.key_of(4), 0, 2))
    with jax.default_prng_impl("rbg"):
        assert scenes.description_hash(scenes.sample_batch(scenes.key_of(4), 0, 2)) == drawn


def test_the_hash_sees_every_field():
    drawn = scenes.sample_batch(scenes.key_of(0), 0, 2, max_objects=2)
    hashes = {scenes.description_hash(drawn)}
    for field in drawn._fields:
        changed = drawn._replace(**{field: getattr(drawn, field).astype(jnp.int32) + 1})
        hashes.add(scenes.description_hash(changed))
    assert len(hashes) == 1 + len(drawn._fields)


def test_a_scene_depends_on_its_index_and_not_on_how_many_are_drawn():
    ten = scenes.sample_batch(scenes.key_of(1), 0, 10, max_objects=2)
    three = scenes.sample_batch(scenes.key_of(1), 4, 3, max_objects=2)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[4:7], b), ten, three)


def test_every_field_is_an_integer_in_its_range():
    drawn = jax.tree.map(
        np.asarray, scenes.sample_batch(scenes.key_of(2), 0, 400, max_objects=4, min_objects=0, kinds=scenes.KINDS)
    )
    assert all(values.dtype in (np.int32, np.bool_) for values in drawn)
    valid = drawn.valid
    assert set(valid.sum(axis=1)) == {0, 1, 2, 3, 4}
    for name, count in (("kind", 8), ("colour", 8), ("fill", 4)):
        assert set(getattr(drawn, name)[valid]) == set(range(count))
    for name in ("kind", "colour", "hue_shift", "fill", "size", "x", "y", "angle", "depth"):
        assert not getattr(drawn, name)[~valid].any()
    assert (drawn.x - drawn.size)[valid].min() >= 0
    assert (drawn.y + drawn.size)[valid].max() <= scenes.SIDE
    for ranks, exists in zip(drawn.depth, valid, strict=True):
        assert sorted(ranks[exists]) == list(range(exists.sum()))


def test_attributes_are_uniform_and_independent():
    drawn = jax.tree.map(np.asarray, scenes.sample_batch(scenes.key_of(3), 0, 4096))
    table = np.zeros((4, 8))
    np.add.at(table, (drawn.kind[:, 0], drawn.colour[:, 0]), 1)
    expected = 4096 / 32
    # chi-square with 31 degrees of freedom exceeds 61 once in a thousand; the seed is fixed
    assert ((table - expected) ** 2 / expected).sum() < 61


def test_only_what_was_asked_for_occurs():
    drawn = scenes.sample_batch(
        scenes.key_of(0), 0, 64, kinds=("star", "ring"), colours=("blue",), fills=("dots",), sizes=(100, 120)
    )
    assert set(np.unique(drawn.kind)) == {scenes.KINDS.index("star"), scenes.KINDS.index("ring")}
    assert set(np.unique(drawn.colour)) == {scenes.COLOURS.index("blue")}
    assert drawn.size.min() >= 100
    assert drawn.size.max() <= 120


def test_more_layouts_overlap_less():
    def hidden(layouts):
        options = {"max_objects": 4, "min_objects": 4, "sizes": (150, 200), "layouts": layouts}
        drawn = scenes.sample_batch(scenes.key_of(0), 0, 64, **options)
        return float(jax.vmap(lambda scene: 1 - visible_fraction(scene, 32))(drawn).mean())

    assert hidden(16) < 0.25 * hidden(1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kinds": ("sqare",)}, "unknown kind 'sqare'; did you mean 'square'"),
        ({"colours": ()}, "at least one colour"),
        ({"max_objects": 2, "min_objects": 3}, "got 3 and 2"),
        ({"sizes": (10, 600)}, "<= 512"),
    ],
)
def test_a_description_that_cannot_be_is_refused(options, words):
    with pytest.raises(UsageError, match=words):
        scenes.sample(scenes.key_of(0), **options)


# ---- the geometry ----


def single(kind, *, radius=400, x=512, y=512, angle=0, **fields):
    """A scene of one solid object on a flat background, lengths in 1/1024 of the side."""
    scene = one(scenes.sample_batch(scenes.key_of(0), 0, 1, fills=("solid",), backgrounds=("colour",)), 0)
    fields = {"kind": scenes.KINDS.index(kind), "size": radius, "x": x, "y": y, "angle": angle, **fields}
    return scene._replace(**{name: jnp.array([value]) for name, value in fields.items()})


def outline(kind):
    """Corners of the straight-edged kinds in a circle of radius 1, y down: written down anew, not derived."""
    around = lambda n, start, radius=1.0: [
        (radius * np.cos(a), radius * np.sin(a)) for a in np.deg2rad(start) + 2 * np.pi * np.arange(n) / n
    ]
    long, short = 3 / np.sqrt(10), 1 / np.sqrt(10)
    star = around(5, -90), around(5, -54, radius=np.cos(2 * np.pi / 5) / np.cos(np.pi / 5))
    quarter = [(long, -short), (long, short), (short, short)]
    return {
        "square": around(4, 45),
        "triangle": around(3, -90),
        "pentagon": around(5, -90),
        "star": [corner for pair in zip(*star, strict=True) for corner in pair],
        "cross": [(x * c - y * s, x * s + y * c) for c, s in ((1, 0), (0, 1), (-1, 0), (0, -1)) for x, y in quarter],
    }[kind]


LENS = 1 * np.arccos((0.45**2 + 1 - 0.64) / 0.9) + 0.64 * np.arccos((0.45**2 + 0.64 - 1) / (1.6 * 0.45))
LENS -= 0.5 * np.sqrt((-0.45 + 1.8) * (0.45 + 0.2) * (0.45 - 0.2) * (0.45 + 1.8))  # of circles 1 and 0.8, 0.45 apart
AREAS = {
    "circle": np.pi,
    "square": 2,
    "triangle": 3 * np.sqrt(3) / 4,
    "cross": 2.0,
    "star": 1.12257,
    "ring": 0.75 * np.pi,
    "pentagon": 2.5 * np.sin(2 * np.pi / 5),
    "crescent": np.pi - LENS,
}


@pytest.mark.parametrize("kind", scenes.KINDS)
@pytest.mark.parametrize("angle", [7, 33, 200])
def test_the_area_of_a_mask_is_that_of_the_shape(kind, angle):
    mask = masks(single(kind, angle=angle), 256)[0]
    radius = 100  # pixels
    # an edge of p pixels is counted to about sqrt(p): the longest here is the star's, 720
    assert abs(int(mask.sum()) - AREAS[kind] * radius**2) < 60


@pytest.mark.parametrize("kind", ["square", "triangle", "pentagon", "star", "cross"])
@pytest.mark.parametrize("angle", [0, 50, 147])
def test_a_straight_edged_mask_holds_the_pixels_inside_its_polygon(kind, angle):
    """Against matplotlib's point-in-polygon, for corners that are written down independently."""
    size, x, y, radius = 128, 500, 540, 380
    turn = np.deg2rad(angle)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    corners = (np.array(outline(kind)) @ rotation.T * radius + [x, y]) * size / 1024
    centres = np.stack(np.meshgrid(np.arange(size) + 0.5, np.arange(size) + 0.5), axis=-1).reshape(-1, 2)
    inside = Path(corners).contains_points(centres).reshape(size, size)
    scene = single(kind, radius=radius, x=x, y=y, angle=angle)
    on_the_edge = np.abs(silhouette(scene, jnp.int32(0), size)) < 1e-3  # float32 may fall on either side
    mask = np.asarray(masks(scene, size)[0])
    assert on_the_edge.sum() < 0.1 * inside.sum()
    np.testing.assert_array_equal(mask[~on_the_edge], inside[~on_the_edge])


@pytest.mark.parametrize(("kind", "filled"), [("circle", np.pi / 4), ("triangle", 1 / 2)])
def test_the_share_of_its_box_that_a_shape_fills(kind, filled):
    """The ceilings of a segmentation that fills the box: π/4 for a circle, 1/2 for a triangle."""
    mask = masks(single(kind), 256)
    x_min, y_min, x_max, y_max = boxes(mask)[0]
    assert mask.sum() / ((x_max - x_min) * (y_max - y_min)) == pytest.approx(
        filled, rel=0.02
    )  # one pixel in 150, twice


def test_the_amodal_box_of_a_circle_is_centre_and_radius():
    box = boxes(masks(single("circle", radius=200, x=300, y=600), 128))[0]
    np.testing.assert_allclose(box, np.array([100, 400, 500, 800]) / 8, atol=1)  # to one pixel


def test_every_shape_stays_inside_its_circle():
    for kind in scenes.KINDS:
        for angle in (0, 10, 77):
            disc = np.asarray(masks(single("circle"), 128)[0])
            assert not (np.asarray(masks(single(kind, angle=angle), 128)[0]) & ~disc).any(), kind


# ---- the drawing ----


@pytest.fixture(scope="module")
def crowd():
    return scenes.sample_batch(scenes.key_of(7), 0, 16, max_objects=5, min_objects=2, kinds=scenes.KINDS)


def test_the_colour_of_a_solid_object_is_the_nearest_of_the_eight_hues():
    for colour in range(8):
        for shift in (-8, 0, 8):
            pixel = draw(single("square", colour=colour, hue_shift=shift), 32)[16, 16]
            hue = 360 * colorsys.rgb_to_hsv(*map(float, pixel))[0]
            distance = [abs((hue - other + 180) % 360 - 180) for other in scenes.description.HUES]
            assert int(np.argmin(distance)) == colour
            assert min(distance) == pytest.approx(abs(shift), abs=0.1)


def test_the_nearest_object_is_painted_last(crowd):
    """Well inside what is seen of an object, the image is that of the object alone."""
    checked = 0
    for number in range(4):
        scene = one(crowd, number)
        distances = np.stack([silhouette(scene, jnp.int32(k), 64) for k in range(5)])
        for index in np.flatnonzero(scene.valid):
            nearer = np.asarray(scene.valid & (scene.depth < scene.depth[index]))
            clear = (distances[index] < -1) & (distances[nearer] > 1).all(axis=0)
            alone = draw(scene._replace(valid=jnp.arange(5) == index))
            np.testing.assert_allclose(draw(scene)[clear], alone[clear], atol=1e-6)
            checked += clear.sum()
    assert checked > 500


def test_the_image_does_not_depend_on_the_resolution_beyond_its_pixels(crowd):
    """64 pixels are the means of 4 × 4 of 256, to the width of the smoothed edges."""
    for index in range(4):
        scene = one(crowd, index)._replace(fill=jnp.zeros(5, jnp.int32))
        fine = draw(scene, 256).reshape(64, 4, 64, 4, 3).mean(axis=(1, 3))
        assert np.abs(fine - draw(scene, 64)).mean() < 0.01


def test_a_square_turned_by_a_quarter_is_the_same_square():
    first, second = draw(single("square", angle=20)), draw(single("square", angle=110))
    np.testing.assert_allclose(first, second, atol=1e-4)  # sines of the two angles in float32


def test_a_batch_is_drawn_as_its_scenes_are(crowd):
    batch = np.asarray(scenes.render_batch(crowd, 32))
    assert batch.dtype == np.uint8
    for index in (0, 9):
        alone = draw(one(crowd, index), 32) * 255
        assert np.abs(batch[index] - alone).max() <= 0.5 + 1e-3  # rounding to bytes


def test_objects_that_are_not_valid_leave_no_trace():
    scene = one(scenes.sample_batch(scenes.key_of(5), 0, 1, max_objects=4, min_objects=4), 0)
    two = jax.tree.map(lambda leaf: leaf[:2] if leaf.shape[:1] == (4,) and leaf.ndim == 1 else leaf, scene)
    four = scene._replace(valid=jnp.arange(4) < 2)
    np.testing.assert_allclose(draw(two), draw(four), atol=1e-6)
    np.testing.assert_array_equal(instance_ids(two, 32), instance_ids(four, 32))
    assert not boxes(masks(four, 32))[2:].any()


@pytest.mark.parametrize("fill", range(1, 4))
def test_a_pattern_leaves_paper_within_the_silhouette_and_nothing_outside(fill):
    solid, pattern = single("square"), single("square", fill=fill)
    inside = np.asarray(masks(solid, 64)[0])
    same = np.abs(draw(solid) - draw(pattern)).max(axis=2) < 1e-6
    outside = np.asarray(silhouette(solid, jnp.int32(0), 64)) > 0.5
    assert same[outside].all()
    assert 0.2 < same[inside].mean() < 0.8  # ink and paper both take up a good part


# ---- the labels ----


def test_instances_are_painted_from_far_to_near(crowd):
    """The same by an ordinary painter: the farthest object first, each covering what lies there."""
    for index in range(8):
        scene = one(crowd, index)
        expected = np.zeros((48, 48), int)
        for k in np.argsort(-np.asarray(scene.depth), kind="stable"):
            if scene.valid[k]:
                expected[np.asarray(silhouette(scene, jnp.int32(k), 48)) < 0] = k + 1
        np.testing.assert_array_equal(instance_ids(scene, 48), expected)


def test_visible_masks_are_disjoint_parts_of_the_amodal_masks(crowd):
    amodal = np.asarray(jax.vmap(lambda scene: masks(scene, 32))(crowd))
    visible = np.asarray(jax.vmap(lambda scene: visible_masks(scene, 32))(crowd))
    fraction = np.asarray(jax.vmap(lambda scene: visible_fraction(scene, 32))(crowd))
    assert not (visible & ~amodal).any()
    assert visible.sum(axis=1).max() == 1
    np.testing.assert_array_equal(visible.any(axis=1), amodal.any(axis=1))
    assert fraction.min() >= 0
    assert fraction.max() == 1
    nearest = np.asarray(crowd.valid) & (np.asarray(crowd.depth) == 0)
    np.testing.assert_array_equal(fraction[nearest], 1)


def test_a_hidden_object_has_a_box_that_is_amodal_only():
    scene = jax.tree.map(
        lambda far, near: jnp.concatenate([far, near]) if far.ndim == 1 and len(far) == 1 else far,
        single("circle", radius=100, depth=1),
        single("square", radius=450, depth=0),
    )
    assert visible_fraction(scene, 64)[0] == 0
    np.testing.assert_array_equal(boxes(visible_masks(scene, 64))[0], [0, 0, 0, 0])
    np.testing.assert_allclose(boxes(masks(scene, 64))[0], np.array([412, 412, 612, 612]) / 16, atol=1)
    assert set(np.unique(instance_ids(scene, 64))) == {0, 2}


def test_boxes_are_those_of_the_masks(crowd):
    visible = np.asarray(jax.vmap(lambda scene: visible_masks(scene, 40))(crowd))
    found = np.asarray(jax.vmap(boxes)(visible))
    for mask, box in zip(visible.reshape(-1, 40, 40), found.reshape(-1, 4), strict=True):
        rows, columns = np.nonzero(mask)
        expected = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] if len(rows) else [0, 0, 0, 0]
        np.testing.assert_array_equal(box, expected)


@pytest.mark.parametrize("target", ["kind", "colour", "fill"])
def test_the_semantic_map_names_the_instance_in_every_pixel(crowd, target):
    scene = one(crowd, 5)
    ids = np.asarray(instance_ids(scene, 32))
    classes = np.asarray(scenes.semantic_map(scene, 32, target=target))
    np.testing.assert_array_equal(classes, np.where(ids == 0, 0, np.asarray(getattr(scene, target))[ids - 1] + 1))


def test_the_label_is_that_of_the_nearest_object(crowd):
    for index in range(16):
        scene = one(crowd, index)
        nearest = next(k for k in range(5) if scene.valid[k] and scene.depth[k] == 0)
        for target in ("kind", "colour", "fill"):
            assert int(scenes.scene_label(scene, target)) == int(getattr(scene, target)[nearest])
        assert int(scenes.scene_label(scene, "count")) == int(scene.valid.sum()) - 1


# ---- the classification set ----


@pytest.mark.parametrize(("target", "num_classes"), [("kind", 4), ("colour", 8), ("fill", 4), ("count", 3)])
def test_examples_have_all_the_classes_of_their_target(target, num_classes):
    images, labels = scenes.scene_examples(0, 100, size=16, target=target, max_objects=3 if target == "count" else 1)
    assert (images.shape, images.dtype, labels.dtype) == ((100, 16, 16, 3), np.uint8, np.int32)
    assert set(labels) == set(range(num_classes))
    assert len(scenes.scene_class_names(target)) >= num_classes


def test_examples_are_the_same_in_every_call_and_however_they_are_divided():
    images, labels = scenes.scene_examples(11, 300, size=16)  # more than one chunk
    again, labels_again = scenes.scene_examples(11, 20, size=16, first=250)
    np.testing.assert_array_equal(again, images[250:270])
    np.testing.assert_array_equal(labels_again, labels[250:270])
    other, _ = scenes.scene_examples(12, 20, size=16, first=250)
    assert (other != again).any()


def test_examples_that_cannot_be_are_refused():
    with pytest.raises(UsageError, match="did you mean 'colour'"):
        scenes.scene_examples(0, 1, target="color")
    with pytest.raises(UsageError, match="got 0"):
        scenes.scene_examples(0, 0)
    with pytest.raises(UsageError, match="max_objects=9"):
        scenes.scene_examples(0, 1, target="count", max_objects=9)
