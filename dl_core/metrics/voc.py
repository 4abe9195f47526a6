"""Pascal VOC's average precision of detections, by eleven points (2007) or all points (2010 and later).

Everingham, Van Gool, Williams, Winn, Zisserman (2010), "The Pascal Visual Object Classes (VOC) Challenge", §4.2, and
the development kits of 2007 and 2010. In falling order of score each detection looks at the object of its class and
image with the highest IoU: a hit if that is at least the threshold and nobody has found the object before, a false
alarm otherwise, and nothing at all if the object is marked as difficult.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Integer

from dl_core.boxes import pairwise_iou
from dl_core.errors import UsageError, unknown_name
from dl_core.metrics.accumulator import AnyArray, Metric
from dl_core.metrics.detection import (
    Detections,
    GroundTruth,
    check_detections,
    gather_images,
    is_traced,
    prepare_images,
)
from dl_core.metrics.detection_curves import curve, precision_at_recalls, rank_by_class

ELEVEN = np.arange(11) / 10
INTERPOLATIONS = ("all_points", "eleven_points")


class VocAveragePrecision(NamedTuple):
    """In [0, 1]: the mean over the classes that have objects, and each class; nan without objects to find."""

    mean: Float[AnyArray, ""]
    per_class: Float[AnyArray, " classes"]


def voc_average_precision(
    ground_truth: GroundTruth,
    detections: Detections,
    *,
    num_classes: int,
    iou_threshold: float | int = 0.5,
    interpolation: str = "all_points",
    box_format: str = "xyxy",
    image_ids: Integer[AnyArray, " images"] | None = None,
    where: Bool[AnyArray, " images"] | None = None,
) -> VocAveragePrecision:
    """Pascal VOC's mean average precision.

    "all_points" is the area under the precision-recall curve whose precision is the best at that recall or a higher
    one; "eleven_points" the mean of that precision at recalls 0, 0.1, …, 1. VOC's annotations name the last pixel of an
    object: add 1 to x_max and y_max of both sides for the figures of its development kit. Outside jit the computation
    is float64; inside, in the precision of the context.

    Args:
      ground_truth: the objects; `crowd` and `area` are not looked at.
      detections: what was found. Those of equal score keep the order of the arrays, and of `image_ids`.
      num_classes: labels lie in [0, num_classes).
      iou_threshold: least IoU of a hit, in (0, 1].
      interpolation: "all_points" or "eleven_points".
      box_format: "xyxy", "xywh" or "cxcywh".
      image_ids: different numbers by which images are put in order; the order of the arrays by default.
      where: the images that count; all by default.

    Returns:
      VocAveragePrecision.

    Raises:
      UsageError: an unknown interpolation, a threshold out of range, or arrays as in `coco_evaluate`.
    """
    check_detections(ground_truth, detections, num_classes=num_classes, box_format=box_format, image_ids=image_ids,
                     where=where)  # fmt: skip
    if interpolation not in INTERPOLATIONS:
        raise unknown_name("interpolation", interpolation, INTERPOLATIONS)
    if not 0 < iou_threshold <= 1:
        raise UsageError(f"iou_threshold must lie in (0, 1], got {iou_threshold}")
    arrays = (ground_truth, detections, None, image_ids, where, np.ones(num_classes, bool))

    def evaluate() -> VocAveragePrecision:
        truth, found, _ = prepare_images(*arrays, box_format=box_format)
        return _average_precision(truth, found, iou_threshold, num_classes, interpolation)

    if is_traced(arrays):
        return evaluate()
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, evaluate())


@functools.partial(jax.jit, static_argnames=("num_classes", "interpolation"))
def _average_precision(
    truth: Any, found: Any, iou_threshold: Any, num_classes: int, interpolation: str
) -> VocAveragePrecision:
    order = jnp.argsort(jnp.where(found.valid, -found.scores, jnp.inf), axis=1)
    found = jax.tree.map(lambda array: jax.vmap(lambda row, places: row[places])(array, order), found)
    same = found.labels[:, :, None] == truth.labels[:, None]
    same &= found.valid[:, :, None] & truth.valid[:, None]
    ious = jnp.where(same, pairwise_iou(found.boxes, truth.boxes, box_format="xywh"), -1)
    claims = jnp.arange(ious.shape[2])[None, None] == ious.argmax(axis=2, keepdims=True)
    claims &= ious >= iou_threshold  # [images, found, objects]; at most one a detection
    difficult = (claims & truth.difficult[:, None]).any(axis=2)
    first = (claims & (jnp.cumsum(claims, axis=1, dtype=jnp.int32) == 1)).any(axis=2)

    ranked = rank_by_class(found.labels.ravel(), found.scores.ravel(), found.valid.ravel(), num_classes)
    hits, misses = ((flags & ~difficult).ravel()[ranked.order] for flags in (first, ~first))
    points = curve(ranked, hits, misses)
    labels = jnp.where(truth.valid & ~truth.difficult, truth.labels, num_classes)
    positives = jnp.zeros(num_classes + 1, jnp.int32).at[labels].add(1)[:num_classes]
    if interpolation == "eleven_points":
        per_class = precision_at_recalls(ranked, points, positives, ELEVEN).mean(axis=1)
    else:  # every hit adds 1 / positives to the recall
        gains = jnp.where(hits, points.envelope, 0)
        sums = jnp.zeros(num_classes + 1, gains.dtype).at[ranked.labels].add(gains)[:num_classes]
        per_class = sums / jnp.maximum(positives, 1)
    there = positives > 0
    mean = jnp.where(there, per_class, 0).sum() / there.sum()  # 0 / 0 = nan without any object
    return VocAveragePrecision(mean, jnp.where(there, per_class, jnp.nan))


def voc_metric(capacity: int, ground_truth: GroundTruth, detections: Detections, **options: Any) -> Metric:
    """The accumulator of `voc_average_precision`; images are kept as they are until it is computed.

    Args and errors as in `coco_metric`; options are those of `voc_average_precision`.

    Returns:
      A Metric; `update(state, image_ids int [batch], ground_truth, detections, where=None)`; `compute` gives
      VocAveragePrecision.
    """

    def evaluate(ground_truth: GroundTruth, detections: Detections, ious: None, **rows: Array) -> VocAveragePrecision:
        return voc_average_precision(ground_truth, detections, **rows, **options)

    return gather_images(evaluate, capacity, ground_truth, detections)
