"""The loss of what and where: no box where there is no object."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dl_core import losses
from dl_core.errors import UsageError

RANDOM = np.random.default_rng(0)
LOGITS = jnp.asarray(RANDOM.normal(size=(6, 3)), jnp.float32)
BOXES, TARGETS = jnp.asarray(RANDOM.uniform(size=(2, 6, 4)), jnp.float32)
LABELS = jnp.array([0, 1, 2, 0, 0, 1])


@pytest.mark.parametrize("background", [0, 2])
def test_the_box_term_vanishes_exactly_for_background(background):
    """W40, value and gradient, whatever the boxes there hold."""
    absent = background == LABELS
    targets = jnp.where(absent[:, None], jnp.nan, TARGETS)
    boxes = jnp.where(absent[:, None], jnp.inf, BOXES)
    loss = lambda b: losses.detection(LOGITS, b, LABELS, targets, background=background, box_weight=3.0)
    values, pullback = jax.vjp(loss, boxes)
    gradient = pullback(jnp.ones(6))[0]
    class_term = losses.cross_entropy(LOGITS, LABELS)
    np.testing.assert_array_equal(values[absent], class_term[absent])
    np.testing.assert_array_equal(gradient[absent], 0)
    squares = ((BOXES - TARGETS) ** 2).sum(-1)
    np.testing.assert_allclose(values[~absent], (class_term + 3.0 * squares)[~absent], rtol=1e-6)
    np.testing.assert_allclose(gradient[~absent], 6.0 * (BOXES - TARGETS)[~absent], rtol=1e-6)


def test_with_smooth_l1_it_is_the_loss_of_fast_r_cnn():
    loss = losses.detection(LOGITS, BOXES, LABELS, TARGETS, box_loss=losses.smooth_l1)
    by_hand = losses.cross_entropy(LOGITS, LABELS) + (LABELS > 0) * losses.smooth_l1(BOXES, TARGETS).sum(-1)
    np.testing.assert_allclose(loss, by_hand, rtol=1e-6)


def test_anchors_are_rows_too():
    grid = lambda a: a.reshape(2, 3, *a.shape[1:])
    loss = jax.jit(losses.detection)(*map(grid, (LOGITS, BOXES, LABELS, TARGETS)))
    np.testing.assert_allclose(loss.ravel(), losses.detection(LOGITS, BOXES, LABELS, TARGETS), rtol=1e-6)


@pytest.mark.usefixtures("annotations_off")
@pytest.mark.parametrize(
    ("boxes", "options", "words"),
    [
        (BOXES, {"background": 3}, r"background must lie in \[0, 3\), got 3"),
        (BOXES, {"box_weight": -1.0}, "box_weight must lie in"),
        (BOXES[:, :3], {}, r"need boxes and target_boxes of shape \(6, 4\), got \(6, 3\)"),
        (BOXES[:1], {}, r"need boxes and target_boxes of shape \(6, 4\), got \(1, 4\)"),
    ],
)
def test_nonsense_is_refused(boxes, options, words):
    with pytest.raises(UsageError, match=words):
        losses.detection(LOGITS, boxes, LABELS, TARGETS, **options)
