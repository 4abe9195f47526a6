"""Losses for detection: what it is, and where. For many boxes against much background see `sigmoid_focal_loss`, too."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float, Int
from optax.losses import squared_error

from dl_core.errors import UsageError
from dl_core.losses.classification import cross_entropy
from dl_core.optim.options import Number, in_interval


def detection(
    logits: Float[Array, "*batch classes"],
    boxes: Float[Array, "*batch 4"],
    labels: Int[Array, "*batch"],
    target_boxes: Float[Array, "..."],  # of the shape of the boxes, checked below
    *,
    background: int = 0,
    box_weight: Number = 1.0,
    box_loss: Callable[..., Float[Array, "..."]] = squared_error,
) -> Float[Array, "*batch"]:
    """Cross-entropy + [an object is present] · λ · Σ over the box's four numbers of box_loss; course notes, eq. 59.

    Where the label is background there is no box: that term is exactly 0 there, and so is its gradient, whatever the
    boxes hold. With `box_loss=smooth_l1` and encoded boxes this is the loss of Fast R-CNN (Girshick 2015, eq. 1).

    Args:
      logits: of the classes, background among them. One object per image, or one row per anchor: [batch, anchors, ...].
      boxes: predicted, in whatever coordinates the targets are in; best of unit size, e.g. fractions of the image.
      labels: the class, in [0, classes).
      target_boxes: true boxes.
      background: which class stands for "no object".
      box_weight: λ >= 0.
      box_loss: (predictions, targets) -> element by element; squared_error (L2), l1, smooth_l1, ...

    Returns:
      One loss per row, >= 0.

    Raises:
      UsageError: shapes that do not belong together, a negative weight, or a background that is no class.
    """
    in_interval("box_weight", box_weight, "[0, inf)")
    in_interval("background", background, f"[0, {logits.shape[-1]})", integer=True)
    expected = (*labels.shape, 4)
    if boxes.shape != expected or target_boxes.shape != expected:
        raise UsageError(
            f"labels of shape {labels.shape} need boxes and target_boxes of shape {expected}, "
            f"got {boxes.shape} and {target_boxes.shape}"
        )
    present = (labels != background)[..., None]
    between = box_loss(jnp.where(present, boxes, 0), jnp.where(present, target_boxes, 0))
    return cross_entropy(logits, labels) + box_weight * jnp.where(present, between, 0).sum(axis=-1)
