"""Boxes: the same box in three formats, and overlaps that can be worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dl_core.boxes import BOX_FORMATS, box_area, convert_boxes, pairwise_generalized_iou, pairwise_iou
from dl_core.errors import UsageError

SAME = {"xyxy": [2.0, 3.0, 8.0, 7.0], "xywh": [2.0, 3.0, 6.0, 4.0], "cxcywh": [5.0, 5.0, 6.0, 4.0]}


def random_boxes(seed, *shape):
    low, size = np.random.default_rng(seed).integers(0, 12, (2, *shape, 2))
    return np.concatenate([low, low + size], axis=-1).astype(np.float32)


@pytest.mark.parametrize("source", BOX_FORMATS)
@pytest.mark.parametrize("target", BOX_FORMATS)
def test_one_box_in_three_formats(source, target):
    np.testing.assert_array_equal(convert_boxes(np.array(SAME[source]), source, target), SAME[target])
    assert box_area(np.array(SAME[source]), box_format=source) == 24


def test_overlaps_worked_out_by_hand():
    boxes = np.array([[0, 0, 4, 4], [2, 0, 6, 4], [4, 0, 8, 4], [1, 1, 2, 2], [3, 3, 3, 3]])
    expected = [1, 8 / 24, 0, 1 / 16, 0]  # the same; half of each; side by side; inside; a point
    np.testing.assert_allclose(pairwise_iou(boxes[:1], boxes)[0], expected, rtol=1e-7)  # one rounding to float32
    assert pairwise_iou(boxes[4:], boxes[4:])[0, 0] == 0  # 0 / 0 of two points


def test_the_union_with_a_crowd_is_the_detection_alone():
    crowd = np.array([[0, 0, 10, 10]])
    inside, half = np.array([[1, 1, 3, 3]]), np.array([[8, 0, 12, 4]])
    for box, expected in ((inside, 1), (half, 0.5)):
        assert pairwise_iou(box, crowd, crowd=np.array([True]))[0, 0] == expected


def test_leading_axes_are_independent():
    a, b = random_boxes(0, 3, 4), random_boxes(1, 3, 5)
    together = pairwise_iou(a, b)
    for image in range(3):
        np.testing.assert_array_equal(together[image], pairwise_iou(a[image], b[image]))


@pytest.mark.parametrize("jitted", [False, True])
def test_products_are_rounded_before_they_are_added(jitted):
    """As the same formula in NumPy: an IoU exactly on a threshold must not move with the processor."""
    rng = np.random.default_rng(0)
    a, b = (rng.uniform(0.1, 10, (400, 4)).round(2) for _ in range(2))
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum((a[:, :2] + a[:, 2:])[:, None], (b[:, :2] + b[:, 2:])[None])
    shared = np.maximum(high - low, 0).prod(axis=2)
    expected = shared / (a[:, 2:].prod(axis=1)[:, None] + b[:, 2:].prod(axis=1)[None] - shared)
    iou = lambda a, b: pairwise_iou(a, b, box_format="xywh")
    with jax.enable_x64(True):
        np.testing.assert_array_equal((jax.jit(iou) if jitted else iou)(a, b), expected)


def test_generalised_iou_by_hand():
    one, far = np.array([[0, 0, 2, 2]]), np.array([[4, 0, 6, 2]])
    assert pairwise_generalized_iou(one, one)[0, 0] == 1
    np.testing.assert_allclose(pairwise_generalized_iou(one, far), [[-(12 - 8) / 12]], rtol=1e-6)  # hull 12, union 8


def test_generalised_iou_has_a_gradient_where_boxes_do_not_meet():
    far = jnp.array([[4.0, 0.0, 6.0, 2.0]])
    slope = jax.grad(lambda box: pairwise_generalized_iou(box, far).sum())(jnp.array([[0.0, 0.0, 2.0, 2.0]]))
    assert slope[0, 2] > 0  # its right side should move towards the other box
    assert np.isfinite(slope).all()


@given(seed=st.integers(0, 2**31), crowded=st.booleans())
@settings(max_examples=1000, deadline=None, derandomize=True, database=None)
def test_overlaps_are_symmetric_fractions(seed, crowded):
    boxes, more = random_boxes(seed, 4), random_boxes(seed + 1, 3)
    crowd = np.full(3, crowded)
    iou, generalised = _overlaps(boxes, more, crowd)
    back, _ = _overlaps_back(more, boxes)
    assert ((iou >= 0) & (iou <= 1)).all()
    assert ((generalised >= -1) & (generalised <= 1)).all()
    assert crowded or (iou == back.T).all()


_overlaps = jax.jit(lambda a, b, crowd: (pairwise_iou(a, b, crowd=crowd), pairwise_generalized_iou(a, b)))
_overlaps_back = jax.jit(lambda a, b: (pairwise_iou(a, b), None))


@pytest.mark.parametrize("function", [lambda f: convert_boxes(np.zeros(4), f, "xyxy"),
                                      lambda f: convert_boxes(np.zeros(4), "xyxy", f),
                                      lambda f: box_area(np.zeros(4), box_format=f)])  # fmt: skip
def test_an_unknown_format_is_refused_with_the_nearest(function):
    with pytest.raises(UsageError, match=r"'xyhw'; did you mean.*'xywh'"):
        function("xyhw")
