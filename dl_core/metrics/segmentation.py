"""Scores of class maps, pixel by pixel: pixel accuracy, IoU and Dice.

Per class, with TP the pixels that have it in both maps, FP those that have it in the prediction alone, FN those that
have it in the truth alone:

    IoU = TP / (TP + FP + FN)    Dice = 2TP / (2TP + FP + FN)    pixel accuracy of a class = TP / (TP + FN)

Two figures go by the name "mean IoU", and they differ. `aggregate="dataset"` adds the counts of all images and then
divides, as Pascal VOC, Cityscapes and ADE20K do (the sum of the images' confusion matrices); a large object weighs
more than a small one. `aggregate="images"` scores each image and takes the mean over images, as is usual in medicine.

A class that occurs in neither map has no score: it is nan among the per-class values, and means leave it out. A class
that is predicted and never true scores 0. `average="macro"` is the mean over classes, "weighted" weighs each by its
true pixels (frequency-weighted IoU; Long, Shelhamer, Darrell 2015, §5), "micro" pools the counts, None gives every
class; the mean without a background class is `jnp.nanmean(scores[1:])`.

Pixels are left out by `ignore_label` (those whose true label it is) and by `where`: bool [n] for images, such as the
padding of a batch, or bool [n, ...] for pixels. What is predicted there does not matter.

Counts are kept as a pair of float32 (value and rounding error), so no data set is too large for them: whole numbers
are exact up to 2^48, where int32 would overflow after two thousand images of 1024 x 1024. A confusion matrix of
pixels is `confusion_metric` of the flattened maps.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, Integer, Shaped

from dl_core.errors import UsageError, unknown_name
from dl_core.metrics.accumulator import AnyArray, CompensatedSum, Metric, add_sums, compensated
from dl_core.metrics.checks import check_classes

AVERAGES = ("macro", "micro", "weighted")
AGGREGATES = ("dataset", "images")

ClassMap = Integer[AnyArray, "n *space"] | Bool[AnyArray, "n *space"]
Where = Bool[AnyArray, " n"] | Bool[AnyArray, "n *space"] | None
Score = Float[Array, ""] | Float[Array, " classes"]


class PixelCounts(NamedTuple):
    """Pixels per class, each [..., classes] (CompensatedSums of that shape in the state of an accumulator)."""

    true_positive: Any
    false_positive: Any
    false_negative: Any


def iou_fraction(counts: PixelCounts) -> tuple[Shaped[Array, "*n classes"], Shaped[Array, "*n classes"]]:
    """TP and TP + FP + FN of counts [..., classes]."""
    return counts.true_positive, counts.true_positive + counts.false_positive + counts.false_negative


def _dice(counts: PixelCounts) -> tuple[Array, Array]:
    hits = 2 * counts.true_positive
    return hits, hits + counts.false_positive + counts.false_negative


def _recall(counts: PixelCounts) -> tuple[Array, Array]:
    return counts.true_positive, counts.true_positive + counts.false_negative


def _divide(numerator: Array, denominator: Array) -> Float[Array, "..."]:
    return jnp.where(denominator > 0, numerator / jnp.where(denominator > 0, denominator, 1), jnp.nan)


def _mean_of_defined(values: Array, weights: Array | None = None) -> Float[Array, "..."]:
    """Mean over the last axis without the nan; nan where all are."""
    weights = jnp.ones_like(values) if weights is None else weights
    weights = jnp.where(jnp.isnan(values), 0, weights)
    return _divide((jnp.nan_to_num(values) * weights).sum(axis=-1), weights.sum(axis=-1))


@functools.partial(jax.jit, static_argnames=("fraction", "average"))
def _averaged(fraction: Callable[[PixelCounts], tuple[Array, Array]], counts: PixelCounts, average: str | None):
    """The score of counts [..., classes]: [..., classes], or [...] if it is averaged over classes."""
    numerator, denominator = fraction(counts)
    if average == "micro":
        return _divide(numerator.sum(axis=-1), denominator.sum(axis=-1))
    scores = _divide(numerator, denominator)
    if average is None:
        return scores
    support = counts.true_positive + counts.false_negative
    return _mean_of_defined(scores, support if average == "weighted" else None)


def _kept(labels: AnyArray, predictions: AnyArray, ignore_label: int | None, where: Any) -> Bool[AnyArray, "n *space"]:
    """The pixels that count, a NumPy array if all arguments can be looked at; refuses shapes that do not fit."""
    shape = np.shape(labels)
    if len(shape) < 2 or np.shape(predictions) != shape:
        raise UsageError(
            f"labels and predictions must be class maps [n, ...] of one shape, got {list(shape)} and "
            f"{list(np.shape(predictions))}; scores or one-hot maps become class maps with argmax over the classes"
        )
    if where is not None and np.shape(where) not in (shape, shape[:1]):
        raise UsageError(f"where must be [n] or of the labels' shape {list(shape)}, got {list(np.shape(where))}")
    xp = jnp if any(isinstance(array, Tracer) for array in (labels, where)) else np
    kept = xp.ones(shape, bool)
    if where is not None:
        kept = kept & xp.reshape(xp.asarray(where), (*np.shape(where), *(1,) * (len(shape) - np.ndim(where))))
    return kept if ignore_label is None else kept & (xp.asarray(labels) != ignore_label)


def pixels_that_count(
    labels: Integer[AnyArray, "n *space"] | Bool[AnyArray, "n *space"],
    predictions: Integer[AnyArray, "n *space"] | Bool[AnyArray, "n *space"],
    classes: int,
    ignore_label: int | None,
    where: Where,
) -> Bool[Array, "n *space"]:
    """Which pixels count: those that are neither ignored nor masked.

    Args:
      labels: true class of each pixel.
      predictions: predicted class of each pixel.
      classes: both must lie in [0, classes) where they count.
      ignore_label: as in `iou`.
      where: as in `iou`.

    Returns:
      bool [n, ...]. Inside jit, pixels with a class outside the range do not count.

    Raises:
      UsageError: shapes that do not fit; a class outside the range, seen outside jit.
    """
    kept = _kept(labels, predictions, ignore_label, where)
    check_classes("labels", labels.reshape(-1), classes, kept.reshape(-1))
    check_classes("predictions", predictions.reshape(-1), classes, kept.reshape(-1))
    inside = lambda values: (values >= 0) & (values < classes)
    return kept & inside(jnp.asarray(labels, jnp.int32)) & inside(jnp.asarray(predictions, jnp.int32))


def _count_pixels(
    labels: AnyArray, predictions: AnyArray, chosen: range, ignore_label: int | None, where: Any
) -> PixelCounts:
    """How many pixels of each image and chosen class are right and wrong, int32 [n, len(chosen)]."""
    kept = pixels_that_count(labels, predictions, chosen.stop, ignore_label, where)
    return _counts_of_kept(jnp.asarray(labels, jnp.int32), jnp.asarray(predictions, jnp.int32), kept, chosen)


@functools.partial(jax.jit, static_argnames="chosen")
def _counts_of_kept(labels: Array, predictions: Array, kept: Array, chosen: range) -> PixelCounts:
    n, classes = kept.shape[0], chosen.stop
    first = classes * jnp.arange(n, dtype=jnp.int32).reshape(n, *(1,) * (labels.ndim - 1))

    def count(values: Array, counted: Array) -> Int[Array, "n chosen"]:
        place = jnp.where(counted, first + values, n * classes)  # beyond the end: dropped
        return jnp.zeros(n * classes, jnp.int32).at[place].add(1, mode="drop").reshape(n, classes)[:, chosen.start :]

    hits = count(labels, kept & (labels == predictions))
    return PixelCounts(hits, count(predictions, kept) - hits, count(labels, kept) - hits)


def _exactly(counts: Int[Array, " classes"]) -> CompensatedSum:
    """Whole numbers that float32 alone would round."""
    rounded = counts.astype(jnp.float32)
    return CompensatedSum(rounded, (counts - rounded.astype(jnp.int32)).astype(jnp.float32))


def _score_metric(
    count: Callable[[Any, Any, Any], PixelCounts],
    fraction: Callable[[PixelCounts], tuple[Array, Array]],
    classes: int,
    average: str | None,
    aggregate: str,
) -> Metric:
    """The accumulator of a score of counts.

    count: (labels, predictions, where) -> PixelCounts of int32 [n, classes].
    fraction: (PixelCounts of [..., classes]) -> numerator and denominator of the score, [..., classes].
    """
    if average is not None and average not in AVERAGES:
        raise unknown_name("average", average, AVERAGES)
    if aggregate not in AGGREGATES:
        raise unknown_name("aggregate", aggregate, AGGREGATES)
    shape = (classes,) if average is None else ()

    def zeros() -> Any:
        if aggregate == "dataset":
            return PixelCounts(*(compensated(jnp.zeros(classes, jnp.float32)) for _ in PixelCounts._fields))
        return compensated(jnp.zeros(shape, jnp.float32)), jnp.zeros(shape, jnp.int32)

    def update(state: Any, labels: ClassMap, predictions: ClassMap, where: Where = None) -> Any:
        counts = count(labels, predictions, where)
        if aggregate == "dataset":
            return add_sums(state, PixelCounts(*(_exactly(each.sum(axis=0)) for each in counts)))
        scores = _averaged(fraction, counts, average)
        total = compensated(jnp.nan_to_num(scores).sum(axis=0))
        return add_sums(state, (total, (~jnp.isnan(scores)).sum(axis=0, dtype=jnp.int32)))

    def compute(state: Any) -> Score:
        if aggregate == "dataset":
            counts = PixelCounts(*(each.high + each.low for each in state))
            return _averaged(fraction, counts, average)
        total, images = state
        return _divide(total.high + total.low, images)

    return Metric(zeros, update, add_sums, compute)


def class_score_metric(
    fraction: Callable[[PixelCounts], tuple[Array, Array]],
    num_classes: int | None,
    average: str | None,
    aggregate: str,
    ignore_label: int | None,
    count: Callable[..., PixelCounts] = _count_pixels,
) -> Metric:
    """The accumulator of a score of class maps [n, ...].

    Args:
      fraction: (PixelCounts of [..., classes]) -> numerator and denominator of the score, both [..., classes].
      num_classes: as in `iou`.
      average: as in `iou`.
      aggregate: as in `iou`.
      ignore_label: as in `iou`.
      count: (labels, predictions, range of the classes to count, ignore_label, where) -> PixelCounts of int32
        [n, classes]; the pixels of the classes by default.

    Returns:
      A Metric; `update(state, labels, predictions, where=None)`.

    Raises:
      UsageError: num_classes < 1; an unknown average or aggregate.
    """
    if num_classes is not None and num_classes < 1:
        raise UsageError(f"num_classes must be at least 1, got {num_classes}; leave it out for binary masks")
    if num_classes is None:  # the foreground alone, and "the mean" of that one class
        chosen, average = range(1, 2), "macro"
    else:
        chosen = range(num_classes)
    counts = lambda labels, predictions, where: count(labels, predictions, chosen, ignore_label, where)
    return _score_metric(counts, fraction, len(chosen), average, aggregate)


def score_of_maps(
    metric: Metric,
    labels: Integer[AnyArray, "n *space"] | Bool[AnyArray, "n *space"],
    predictions: Integer[AnyArray, "n *space"] | Bool[AnyArray, "n *space"],
    where: Where,
) -> Score:
    """What the accumulator gives for these maps [n, ...] alone."""
    return metric.compute(metric.update(metric.init(), labels, predictions, where))


def iou_metric(
    *,
    num_classes: int | None = None,
    average: str | None = "macro",
    aggregate: str = "dataset",
    ignore_label: int | None = None,
) -> Metric:
    """Accumulator of `iou`, with its arguments: `update(state, labels [n, ...], predictions [n, ...], where=None)`."""
    return class_score_metric(iou_fraction, num_classes, average, aggregate, ignore_label)


def iou(
    labels: Integer[AnyArray, "n *space"] | Bool[AnyArray, "n *space"],
    predictions: Integer[AnyArray, "n *space"] | Bool[AnyArray, "n *space"],
    *,
    num_classes: int | None = None,
    average: str | None = "macro",
    aggregate: str = "dataset",
    ignore_label: int | None = None,
    where: Where = None,
) -> Score:
    """Intersection over union of the pixels of each class (the Jaccard index): TP / (TP + FP + FN).

    Args:
      labels: true class of each pixel, [n, height, width] or any other space, in [0, num_classes) or ignore_label.
      predictions: predicted class of each pixel, in [0, num_classes).
      num_classes: number of classes; leave it out for binary masks (boolean or 0/1), whose score is that of the
        foreground, 1.
      average: over classes: "macro", "micro", "weighted", or None for one value per class.
      aggregate: "dataset" adds the counts of all images first, "images" is the mean of the images' scores (with
        average=None, of each class over the images where it occurs).
      ignore_label: true label of pixels that do not count, e.g. 255.
      where: images bool [n], or pixels bool [n, ...], that count; all by default.

    Returns:
      A scalar in [0, 1], or [classes] when average is None; nan where there is nothing to score. Inside jit, pixels
      with a class outside the range are left out.

    Raises:
      UsageError: shapes that differ; an unknown average or aggregate; a class outside the range, seen outside jit.
    """
    metric = iou_metric(num_classes=num_classes, average=average, aggregate=aggregate, ignore_label=ignore_label)
    return score_of_maps(metric, labels, predictions, where)


def dice_metric(
    *,
    num_classes: int | None = None,
    average: str | None = "macro",
    aggregate: str = "dataset",
    ignore_label: int | None = None,
) -> Metric:
    """Accumulator of `dice`, with its arguments: `update(state, labels [n, ...], predictions [n, ...], where=None)`."""
    return class_score_metric(_dice, num_classes, average, aggregate, ignore_label)


def dice(
    labels: Integer[AnyArray, "n *space"] | Bool[AnyArray, "n *space"],
    predictions: Integer[AnyArray, "n *space"] | Bool[AnyArray, "n *space"],
    *,
    num_classes: int | None = None,
    average: str | None = "macro",
    aggregate: str = "dataset",
    ignore_label: int | None = None,
    where: Where = None,
) -> Score:
    """Dice coefficient of the pixels of each class (their F1): 2TP / (2TP + FP + FN). As `iou` otherwise."""
    metric = dice_metric(num_classes=num_classes, average=average, aggregate=aggregate, ignore_label=ignore_label)
    return score_of_maps(metric, labels, predictions, where)


def mean_pixel_accuracy_metric(
    *,
    num_classes: int,
    average: str | None = "macro",
    aggregate: str = "dataset",
    ignore_label: int | None = None,
) -> Metric:
    """Accumulator of `mean_pixel_accuracy`: `update(state, labels [n, ...], predictions [n, ...], where=None)`."""
    return class_score_metric(_recall, num_classes, average, aggregate, ignore_label)


def mean_pixel_accuracy(
    labels: Integer[AnyArray, "n *space"] | Bool[AnyArray, "n *space"],
    predictions: Integer[AnyArray, "n *space"] | Bool[AnyArray, "n *space"],
    *,
    num_classes: int,
    average: str | None = "macro",
    aggregate: str = "dataset",
    ignore_label: int | None = None,
    where: Where = None,
) -> Score:
    """Share of the pixels of each true class that are right: TP / (TP + FN), nan for a class that is never true.

    As `iou` otherwise, save that both classes of a binary mask count: num_classes=2.
    """
    metric = mean_pixel_accuracy_metric(
        num_classes=num_classes, average=average, aggregate=aggregate, ignore_label=ignore_label
    )
    return score_of_maps(metric, labels, predictions, where)


def pixel_accuracy_metric(*, aggregate: str = "dataset", ignore_label: int | None = None) -> Metric:
    """Accumulator of `pixel_accuracy`: `update(state, labels [n, ...], predictions [n, ...], where=None)`."""

    def count(labels: Any, predictions: Any, where: Any) -> PixelCounts:
        kept = _kept(labels, predictions, ignore_label, where)
        right = jnp.asarray(labels) == jnp.asarray(predictions)
        total = lambda mask: mask.reshape(mask.shape[0], -1).sum(axis=1, keepdims=True, dtype=jnp.int32)
        wrong = total(kept & ~right)
        return PixelCounts(total(kept & right), wrong, wrong)

    return _score_metric(count, _recall, 1, "macro", aggregate)


def pixel_accuracy(
    labels: Integer[AnyArray, "n *space"] | Bool[AnyArray, "n *space"],
    predictions: Integer[AnyArray, "n *space"] | Bool[AnyArray, "n *space"],
    *,
    aggregate: str = "dataset",
    ignore_label: int | None = None,
    where: Where = None,
) -> Float[Array, ""]:
    """Share of pixels that are right. Arguments as in `iou`; nan without pixels."""
    metric = pixel_accuracy_metric(aggregate=aggregate, ignore_label=ignore_label)
    return score_of_maps(metric, labels, predictions, where)
