"""Panoptic quality: how well an image is divided into segments, things (countable) and stuff (amorphous) alike.

Kirillov, He, Girshick, Rother, Dollár (2019), "Panoptic Segmentation", https://arxiv.org/abs/1801.00868, §4. Per class,
a predicted and a true segment with IoU > 0.5 are a match, TP (segments do not overlap, so a segment has at most one):

    SQ = sum of the matches' IoU / TP    RQ = TP / (TP + FP / 2 + FN / 2)    PQ = SQ · RQ

As in the COCO evaluation: pixels that are void in the truth do not count against a predicted segment's area; a
predicted segment without a match of which more than half is void, or crowd of its class, is no false positive; a crowd
region of the truth is neither matched nor missed.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, Integer

from dl_core.errors import UsageError
from dl_core.metrics.accumulator import AnyArray, CompensatedSum, Metric, add_sums, compensated

SegmentIds = Integer[AnyArray, "n height width"]
Where = Bool[AnyArray, " n"] | Bool[AnyArray, "n height width"] | None


class PanopticQuality(NamedTuple):
    """Panoptic, segmentation and recognition quality, in [0, 1]: per class [classes], or averaged [].

    A class without any true or predicted segment is nan; one without a match scores 0 in all three.
    """

    pq: Float[Array, "*classes"]
    sq: Float[Array, "*classes"]
    rq: Float[Array, "*classes"]

    def mean(self, classes: Bool[AnyArray, " classes"] | None = None) -> "PanopticQuality":
        """Means over the classes that occur, which is what papers report.

        Args:
          classes: those to average, e.g. a mask of the things for PQ-things, its complement for PQ-stuff; all by
            default.

        Returns:
          PanopticQuality of scalars; nan if none of the classes occurs.
        """
        chosen = ~jnp.isnan(self.pq) if classes is None else ~jnp.isnan(self.pq) & jnp.asarray(classes)
        count = chosen.sum()
        mean = lambda scores: jnp.where(count > 0, jnp.where(chosen, scores, 0).sum() / jnp.maximum(count, 1), jnp.nan)
        return PanopticQuality(mean(self.pq), mean(self.sq), mean(self.rq))


class SegmentCounts(NamedTuple):
    """What panoptic quality is made of, per class: the sum of the matches' IoU, and how many TP, FP, FN."""

    iou_sum: CompensatedSum
    true_positive: Int[Array, " classes"]
    false_positive: Int[Array, " classes"]
    false_negative: Int[Array, " classes"]


def _check(
    labels: Any, label_categories: Any, predictions: Any, prediction_categories: Any, num_classes: int, crowd: Any,
    where: Any,
) -> None:  # fmt: skip
    """Refuses shapes that do not fit, and ids and categories out of range where they can be seen."""
    shape = np.shape(labels)
    if len(shape) != 3 or np.shape(predictions) != shape:
        raise UsageError(
            "labels and predictions must be segment ids [n, height, width] of one shape, got "
            f"{list(shape)} and {list(np.shape(predictions))}"
        )
    if where is not None and np.shape(where) not in (shape, shape[:1]):
        raise UsageError(f"where must be [n] or of the labels' shape {list(shape)}, got {list(np.shape(where))}")
    if crowd is not None and np.shape(crowd) != np.shape(label_categories):
        raise UsageError(
            f"crowd must have the shape of label_categories, {list(np.shape(label_categories))}, got "
            f"{list(np.shape(crowd))}"
        )
    rows = np.ones(shape[0], bool) if where is None else where
    maps = (("labels", labels, label_categories), ("predictions", predictions, prediction_categories))
    for name, ids, categories in maps:
        of = f"{name.removesuffix('s')}_categories"
        if np.ndim(categories) != 2 or np.shape(categories)[0] != shape[0] or np.shape(categories)[1] == 0:
            raise UsageError(
                f"{of} must be [n, segments] with n = {shape[0]} and at least one segment, got "
                f"{list(np.shape(categories))}; pad with -1"
            )
        checks = ((name, ids, np.shape(categories)[1], "void"), (of, categories, num_classes, "padding"))
        for what, values, most, meaning in checks:
            if isinstance(values, Tracer) or isinstance(rows, Tracer):
                continue
            values, counted = np.asarray(values), np.asarray(rows)
            if not np.issubdtype(values.dtype, np.integer):
                raise UsageError(f"{what} must be integers, got {values.dtype}")
            if counted.ndim == 3 and values.ndim == 2:
                counted = counted.any(axis=(1, 2))
            values = values[counted]
            if values.size and (values.min() < -1 or values.max() >= most):
                raise UsageError(
                    f"{what} must lie in [0, {most}), or be -1 for {meaning}, got values in "
                    f"[{values.min()}, {values.max()}]"
                )


@functools.partial(jax.jit, static_argnames="num_classes")
def _segment_counts(
    labels: Any, label_categories: Any, predictions: Any, prediction_categories: Any, num_classes: int, crowd: Any,
    where: Any,
) -> SegmentCounts:  # fmt: skip
    """The counts over a batch; int32 and float32 [classes]."""
    n = labels.shape[0]
    categories, own_categories = (jnp.asarray(each, jnp.int32) for each in (label_categories, prediction_categories))
    crowd = jnp.zeros(categories.shape, bool) if crowd is None else jnp.asarray(crowd)

    def segment_or_void(ids: Any, categories: Array) -> Int[Array, "n pixels"]:
        ids, segments = jnp.asarray(ids, jnp.int32).reshape(n, -1), categories.shape[1]
        category = jnp.take_along_axis(categories, jnp.clip(ids, 0, segments - 1), axis=1)
        known = (ids >= 0) & (ids < segments) & (category >= 0) & (category < num_classes)
        return jnp.where(known, ids, segments)

    true, predicted = segment_or_void(labels, categories), segment_or_void(predictions, own_categories)
    kept = jnp.ones(1, bool) if where is None else jnp.asarray(where)
    kept = jnp.broadcast_to(kept.reshape(kept.shape[0], -1), true.shape)

    # Pixels of every pair of segments, void being the last: one count over all images.
    rows, columns = categories.shape[1] + 1, own_categories.shape[1] + 1
    pair = (jnp.arange(n, dtype=jnp.int32)[:, None] * rows + true) * columns + predicted
    pair = jnp.where(kept, pair, n * rows * columns)  # beyond the end: dropped
    overlap = jnp.zeros(n * rows * columns, jnp.int32).at[pair].add(1, mode="drop").reshape(n, rows, columns)

    true_area, area = overlap.sum(axis=2)[:, :-1], overlap.sum(axis=1)[:, :-1]
    shared, void = overlap[:, :-1, :-1], overlap[:, -1, :-1]
    union = true_area[:, :, None] + (area - void)[:, None, :] - shared
    same_class = categories[:, :, None] == own_categories[:, None, :]
    match = same_class & ~crowd[:, :, None] & (2 * shared > union)  # IoU > 0.5 in whole numbers
    iou = jnp.where(match, shared / jnp.maximum(union, 1), 0.0).sum(axis=2)

    matched = match.any(axis=2)
    missed = (true_area > 0) & ~crowd & ~matched
    excused = void + jnp.where(same_class & crowd[:, :, None], shared, 0).sum(axis=1)
    false = (area > 0) & ~match.any(axis=1) & (2 * excused <= area)

    def by_class(values: Array, of: Array) -> Array:
        place = jnp.where((of >= 0) & (of < num_classes), of, num_classes)
        return jnp.zeros(num_classes, values.dtype).at[place].add(values, mode="drop")

    count = lambda mask, of: by_class(mask.astype(jnp.int32), of)
    return SegmentCounts(
        compensated(by_class(iou.astype(jnp.float32), categories)),
        count(matched, categories), count(false, own_categories), count(missed, categories),
    )  # fmt: skip


@jax.jit
def _quality(counts: SegmentCounts) -> PanopticQuality:
    hits, wrong = counts.true_positive, counts.false_positive + counts.false_negative
    sq = (counts.iou_sum.high + counts.iou_sum.low) / jnp.maximum(hits, 1)
    rq = hits / jnp.maximum(hits + 0.5 * wrong, 0.5)
    occurs = lambda score: jnp.where(hits + wrong > 0, score, jnp.nan)
    return PanopticQuality(occurs(sq * rq), occurs(sq), occurs(rq))


def panoptic_quality_metric(*, num_classes: int) -> Metric:
    """Accumulator of `panoptic_quality`; its state is SegmentCounts.

    Args:
      num_classes: number of classes, things and stuff.

    Returns:
      A Metric; `update(state, labels, label_categories, predictions, prediction_categories, crowd=None, where=None)`.

    Raises:
      UsageError: num_classes < 1.
    """
    if num_classes < 1:
        raise UsageError(f"num_classes must be at least 1, got {num_classes}")

    def zeros() -> SegmentCounts:
        none = jnp.zeros(num_classes, jnp.int32)
        return SegmentCounts(compensated(jnp.zeros(num_classes, jnp.float32)), none, none, none)

    def update(
        state: SegmentCounts,
        labels: SegmentIds,
        label_categories: Integer[AnyArray, "n segments"],
        predictions: SegmentIds,
        prediction_categories: Integer[AnyArray, "n predicted_segments"],
        crowd: Bool[AnyArray, "n segments"] | None = None,
        where: Where = None,
    ) -> SegmentCounts:
        arrays = (labels, label_categories, predictions, prediction_categories)
        _check(*arrays, num_classes, crowd, where)
        return add_sums(state, _segment_counts(*arrays, num_classes, crowd, where))

    return Metric(zeros, update, add_sums, _quality)


def panoptic_quality(
    labels: Integer[AnyArray, "n height width"],
    label_categories: Integer[AnyArray, "n segments"],
    predictions: Integer[AnyArray, "n height width"],
    prediction_categories: Integer[AnyArray, "n predicted_segments"],
    *,
    num_classes: int,
    crowd: Bool[AnyArray, "n segments"] | None = None,
    where: Where = None,
) -> PanopticQuality:
    """Panoptic, segmentation and recognition quality of each class; `.mean()` of it is the usual figure.

        quality = panoptic_quality(labels, label_categories, predictions, prediction_categories, num_classes=133)
        quality.mean().pq, quality.mean(things).pq, quality.mean(~things).pq

    Stuff is a segment like any other, one per class and image.

    Args:
      labels: true segment of each pixel, an index into label_categories, or -1 for void (unlabelled).
      label_categories: class of each true segment, in [0, num_classes), padded with -1. A pixel of a segment of class
        -1 is void, and a segment without pixels is not there.
      predictions: predicted segment of each pixel, an index into prediction_categories, or -1 for none.
      prediction_categories: class of each predicted segment, padded with -1.
      num_classes: number of classes, things and stuff.
      crowd: true segments that stand for a group of objects; none by default.
      where: images bool [n], or pixels bool [n, height, width], that count; all by default.

    Returns:
      PanopticQuality per class. Inside jit, a pixel whose segment or class is out of range is void.

    Raises:
      UsageError: shapes that do not fit; ids or categories out of range, seen outside jit.
    """
    metric = panoptic_quality_metric(num_classes=num_classes)
    arrays = (labels, label_categories, predictions, prediction_categories)
    return metric.compute(metric.update(metric.init(), *arrays, crowd, where))
