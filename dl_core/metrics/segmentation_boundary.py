"""Boundary IoU: the IoU of the classes' contours, which asks for fine ones of large objects, too.

Cheng, Girshick, Dollár, Berg, Kirillov (2021), "Boundary IoU", https://arxiv.org/abs/2103.16562. The boundary of a
class is what an erosion by d pixels takes from it; the score is the IoU of the true and the predicted boundary.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Integer

from dl_core.errors import UsageError
from dl_core.metrics.accumulator import AnyArray, Metric
from dl_core.metrics.segmentation import (
    PixelCounts,
    Score,
    Where,
    class_score_metric,
    iou_fraction,
    pixels_that_count,
    score_of_maps,
)


def boundary_width(height: int, width: int, dilation_ratio: float = 0.02) -> int:
    """Thickness in pixels of the boundaries of an image [height, width]: dilation_ratio of its diagonal, at least 1."""
    return max(1, round(dilation_ratio * math.hypot(height, width)))


def _all_within(masks: Bool[Array, "... height width"], distance: int, axis: int) -> Bool[Array, "... height width"]:
    """Whether every pixel up to `distance` away along the axis is set; beyond the image none is."""
    pad = [(distance, distance) if each == axis % masks.ndim else (0, 0) for each in range(masks.ndim)]
    masks, covered, window = jnp.pad(masks, pad), 1, 2 * distance + 1
    while covered < window:  # each round doubles the pixels that one bit speaks for
        step = min(covered, window - covered)
        part = functools.partial(jax.lax.slice_in_dim, masks, axis=axis)
        masks = part(0, masks.shape[axis] - step) & part(step, None)
        covered += step
    return masks


def _boundary(masks: Bool[Array, "... height width"], kept: Bool[Array, "... height width"], distance: int) -> Array:
    """The pixels of each mask within `distance` of its outside. Pixels that do not count make no boundary."""
    eroded = _all_within(_all_within(masks | ~kept, distance, -1), distance, -2)
    return masks & kept & ~eroded


@functools.partial(jax.jit, static_argnames=("chosen", "distance"))
def _counts_of_boundaries(
    labels: Array, predictions: Array, kept: Array, chosen: range, distance: int
) -> PixelCounts:  # fmt: skip
    """Boundary pixels of each image and chosen class, int32 [n, len(chosen)]."""

    def of_class(index: Int[Array, ""]) -> PixelCounts:
        true, predicted = (_boundary(maps == index, kept, distance) for maps in (labels, predictions))
        total = lambda mask: mask.sum(axis=(1, 2), dtype=jnp.int32)
        return PixelCounts(total(true & predicted), total(predicted & ~true), total(true & ~predicted))

    # One class after another: the masks of all at once would need [classes, n, height, width].
    by_class = jax.lax.map(of_class, jnp.arange(chosen.start, chosen.stop, dtype=jnp.int32))
    return jax.tree.map(jnp.transpose, by_class)


def boundary_iou_metric(
    *,
    num_classes: int | None = None,
    dilation_ratio: float = 0.02,
    average: str | None = "macro",
    aggregate: str = "dataset",
    ignore_label: int | None = None,
) -> Metric:
    """Accumulator of `boundary_iou`, with its arguments: `update(state, labels, predictions, where=None)`."""
    if not 0 < dilation_ratio <= 1:
        raise UsageError(f"dilation_ratio must lie in (0, 1], got {dilation_ratio}; the paper's is 0.02")

    def count(labels: Any, predictions: Any, chosen: range, ignore_label: int | None, where: Any) -> PixelCounts:
        if np.ndim(labels) != 3:
            raise UsageError(f"labels must be [n, height, width], got shape {list(np.shape(labels))}")
        kept = pixels_that_count(labels, predictions, chosen.stop, ignore_label, where)
        distance = boundary_width(labels.shape[1], labels.shape[2], dilation_ratio)
        return _counts_of_boundaries(jnp.asarray(labels), jnp.asarray(predictions), kept, chosen, distance)

    return class_score_metric(iou_fraction, num_classes, average, aggregate, ignore_label, count)


def boundary_iou(
    labels: Integer[AnyArray, "n height width"] | Bool[AnyArray, "n height width"],
    predictions: Integer[AnyArray, "n height width"] | Bool[AnyArray, "n height width"],
    *,
    num_classes: int | None = None,
    dilation_ratio: float = 0.02,
    average: str | None = "macro",
    aggregate: str = "dataset",
    ignore_label: int | None = None,
    where: Where = None,
) -> Score:
    """IoU of the inner boundaries of each class.

    Erosion is by a square of 2d + 1 with d = max(1, round(dilation_ratio * diagonal)). Beyond the image's edge nothing
    is set, so that a region cut off by the edge has a boundary there, as in the authors' code. Pixels that do not
    count make no boundary, neither in the truth nor in the prediction.

    Args:
      labels: true class of each pixel, in [0, num_classes) or ignore_label.
      predictions: predicted class of each pixel, in [0, num_classes).
      num_classes: as in `iou`.
      dilation_ratio: boundary thickness as a share of the diagonal of the arrays, in (0, 1].
      average: as in `iou`.
      aggregate: as in `iou`; the paper's figure for a set of objects is the mean of binary masks, "images".
      ignore_label: as in `iou`.
      where: as in `iou`.

    Returns:
      A scalar in [0, 1], or [classes] when average is None; nan where there is nothing to score.

    Raises:
      UsageError: as `iou`; a dilation_ratio outside (0, 1].
    """
    metric = boundary_iou_metric(
        num_classes=num_classes,
        dilation_ratio=dilation_ratio,
        average=average,
        aggregate=aggregate,
        ignore_label=ignore_label,
    )
    return score_of_maps(metric, labels, predictions, where)
