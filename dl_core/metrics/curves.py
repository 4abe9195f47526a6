"""Ranking curves: ROC, precision against recall, and the areas under them, exact or from binned scores.

A curve has one point for each example (and one end point), so that shapes are static: everything here works inside jit
and under vmap over classes. Examples with equal scores cannot be told apart by a threshold, so all points of a tie are
the same point, the last one. Exact curves need every score at once; their accumulator keeps every row:

    metric = gathering_metric(auroc, 10_000, jnp.int32(0), jnp.float32(0))  # capacity; one row of labels and of scores

`binned_curve_metric` is the accumulator for streams that do not fit: constant memory, and beside each area the bounds
between which the exact one lies.

Average precision is scikit-learn's step rule, Σ (R_i - R_{i-1}) P_i, without interpolation (course notes, §10.7-10.9).
So are the values of classes that do not occur, where scikit-learn also warns: the AUROC of a class without positives or
without negatives is nan, and so is an average with it; the recall of a class without positives is 1 and its average
precision 0. `skip_undefined=True` makes both nan and leaves them out of averages.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, Integer

from dl_core.errors import UsageError, unknown_name
from dl_core.metrics.accumulator import AnyArray, Metric, metric_from_sums, where_or_all
from dl_core.metrics.checks import (
    check_classes,
    check_finite,
    check_not_empty,
    check_probabilities,
    check_same_length,
)

AVERAGES = ("macro", "weighted", "micro", "samples")

Where = Bool[AnyArray, " n"] | None


class RocCurve(NamedTuple):
    """False and true positive rates in [0, 1] at falling thresholds, from (0, 0) at inf to (1, 1); each [points]."""

    false_positive_rate: Float[Array, "*classes points"]
    true_positive_rate: Float[Array, "*classes points"]
    thresholds: Float[Array, "*classes points"]


class PrecisionRecallCurve(NamedTuple):
    """Precision and recall in [0, 1] at falling thresholds, from precision 1 and recall 0 at inf; each [points]."""

    precision: Float[Array, "*classes points"]
    recall: Float[Array, "*classes points"]
    thresholds: Float[Array, "*classes points"]


class RankedCounts(NamedTuple):
    """How many positives and negatives score at least the threshold, thresholds falling; each [points].

    `spoiled` is 0, or nan where a score was: to be added to what is computed.
    """

    true_positive: Int[Array, " points"]
    false_positive: Int[Array, " points"]
    thresholds: Float[Array, " points"]
    spoiled: Float[Array, ""]


def falling_keys(scores: Float[Array, "*shape"], kept: Bool[Array, "*shape"]) -> Int[Array, "*shape"]:
    """Integers that fall as the scores rise, equal for equal scores; the largest of all for what is not kept.

    The bits of a float, read as an integer, have the order of the float but for the sign. XLA's CPU sorts integers five
    times as fast as floats, and has no fast sort of pairs.
    """
    integer = jnp.int64 if scores.dtype == jnp.float64 else jnp.int32
    largest = jnp.iinfo(integer).max
    bits = jax.lax.bitcast_convert_type(jnp.where(scores == 0, 0.0, scores), integer)  # -0 and 0 are one score
    return jnp.where(kept, ~jnp.where(bits < 0, bits ^ largest, bits), largest)


def _scores_of_keys(keys: Int[Array, " n"], like: Float[Array, " n"]) -> Float[Array, " n"]:
    largest = jnp.iinfo(keys.dtype).max
    bits = jnp.where(~keys < 0, ~keys ^ largest, ~keys)
    return jnp.where(keys == largest, -jnp.inf, jax.lax.bitcast_convert_type(bits, like.dtype))


def as_scores(scores: Float[AnyArray, "*shape"]) -> Float[Array, "*shape"]:
    """At least float32, so that halves and whole numbers sort as they are."""
    scores = jnp.asarray(scores)
    return scores.astype(jnp.promote_types(scores.dtype, jnp.float32))


@jax.jit
def ranked_counts(
    labels: Integer[AnyArray, " n"] | Bool[AnyArray, " n"], scores: Float[AnyArray, " n"], where: Where
) -> RankedCounts:
    """What every curve is made of, at each of the sorted scores; points past the kept rows repeat the last.

    Args:
      labels: 1 for positive, 0 for negative.
      scores: larger means more positive.
      where: the rows that count; all by default.

    Returns:
      RankedCounts of n points.
    """
    scores, kept = as_scores(scores), where_or_all(where, labels)
    positive = jnp.asarray(labels, bool) & kept
    keys = falling_keys(scores, kept)
    ranked = jax.lax.sort(keys, is_stable=False)
    of_positives = jax.lax.sort(jnp.where(positive, keys, jnp.iinfo(keys.dtype).max), is_stable=False)
    found = jnp.searchsorted(of_positives, ranked, side="right").astype(jnp.int32)
    true_positive = jnp.minimum(found, positive.sum(dtype=jnp.int32))
    ends_tie = jnp.concatenate([ranked[1:] != ranked[:-1], jnp.ones(1, bool)])
    places = jnp.arange(ranked.shape[0], dtype=jnp.int32)
    last = jax.lax.cummin(jnp.where(ends_tie, places, ranked.shape[0] - 1), reverse=True)
    chosen = jnp.minimum(last + 1, kept.sum(dtype=jnp.int32))
    spoiled = jnp.where((jnp.isnan(scores) & kept).any(), jnp.nan, 0.0).astype(jnp.float32)
    thresholds = _scores_of_keys(ranked, scores).astype(jnp.float32)
    return RankedCounts(true_positive, chosen - true_positive, thresholds, spoiled)


def roc_from_counts(counts: RankedCounts) -> RocCurve:
    """RocCurve [points + 1] of RankedCounts [points]."""
    start = jnp.zeros(1)
    tpr = counts.true_positive / counts.true_positive[-1]  # 0/0 = nan: undefined without positives
    fpr = counts.false_positive / counts.false_positive[-1]
    return RocCurve(
        jnp.concatenate([start, fpr + counts.spoiled]).astype(jnp.float32),
        jnp.concatenate([start, tpr + counts.spoiled]).astype(jnp.float32),
        jnp.concatenate([start + jnp.inf, counts.thresholds]).astype(jnp.float32),
    )


def precision_recall_from_counts(counts: RankedCounts) -> PrecisionRecallCurve:
    """PrecisionRecallCurve [points + 1] of RankedCounts [points]."""
    chosen, positives = counts.true_positive + counts.false_positive, counts.true_positive[-1]
    precision = jnp.where(chosen > 0, counts.true_positive / jnp.where(chosen > 0, chosen, 1), 1.0)
    without_positives = jnp.where(chosen[-1] > 0, 1.0, jnp.nan)
    recall = jnp.where(positives > 0, counts.true_positive / jnp.where(positives > 0, positives, 1), without_positives)
    one = jnp.ones(1)
    return PrecisionRecallCurve(
        jnp.concatenate([one, precision + counts.spoiled]).astype(jnp.float32),
        jnp.concatenate([one - 1, recall + counts.spoiled]).astype(jnp.float32),
        jnp.concatenate([one * jnp.inf, counts.thresholds]).astype(jnp.float32),
    )


def _area_under_roc(counts: RankedCounts) -> Float[Array, ""]:
    curve = roc_from_counts(counts)
    return jnp.trapezoid(curve.true_positive_rate, curve.false_positive_rate)


def _step_area(counts: RankedCounts) -> Float[Array, ""]:
    curve = precision_recall_from_counts(counts)
    return jnp.sum(jnp.diff(curve.recall) * curve.precision[1:])


def with_every_digit(function: Callable[..., Any], *arrays: Any) -> Any:
    """The function of the arrays [...]; in 64 bits where one is float64, lest scores tie that do not.

    Only outside jit: inside, JAX has rounded them already.
    """
    seen = not any(isinstance(array, Tracer) for array in arrays)
    if seen and any(getattr(array, "dtype", None) == np.float64 for array in arrays):
        with jax.enable_x64(True):
            return function(*arrays)
    return function(*arrays)


def check_binary_ranking(
    labels: Integer[AnyArray, " n"] | Bool[AnyArray, " n"], where: Where, **scores: Float[AnyArray, " n"]
) -> None:
    """Refuses labels [n] other than 0/1 and scores [n] of another shape or not finite, and no rows at all."""
    check_same_length(labels=labels, **scores, where=where)
    for name, values in scores.items():
        if np.ndim(labels) != 1 or np.ndim(values) != 1:
            shapes = f"labels {list(np.shape(labels))} and {name} {list(np.shape(values))}"
            raise UsageError(f"labels and {name} must both be [n], got {shapes}; take one class with {name}[:, k]")
    check_not_empty("labels", labels, where)
    check_classes("labels", labels, 2, where)
    for name, values in scores.items():
        check_finite(name, values, where)


def roc_curve(
    labels: Integer[AnyArray, " n"] | Bool[AnyArray, " n"],
    scores: Float[AnyArray, " n"],
    *,
    where: Bool[AnyArray, " n"] | None = None,
) -> RocCurve:
    """Receiver operating characteristic of a binary score.

    Args:
      labels: 1 for positive, 0 for negative.
      scores: larger means more positive; finite, any scale.
      where: the rows that count; all by default.

    Returns:
      RocCurve of n + 1 points; rates are nan where there are no positives, or no negatives, and inside jit where a
      score is nan.

    Raises:
      UsageError: no examples, shapes that do not match; labels other than 0/1 or scores that are not finite, seen
        outside jit.
    """
    check_binary_ranking(labels, where, scores=scores)
    return with_every_digit(_compiled_roc, labels, scores, where)


_compiled_roc = jax.jit(lambda labels, scores, where: roc_from_counts(ranked_counts(labels, scores, where)))


def precision_recall_curve(
    labels: Integer[AnyArray, " n"] | Bool[AnyArray, " n"],
    scores: Float[AnyArray, " n"],
    *,
    where: Bool[AnyArray, " n"] | None = None,
) -> PrecisionRecallCurve:
    """Precision and recall of a binary score at every threshold; the points of scikit-learn, in rising recall.

    Args:
      labels: 1 for positive, 0 for negative.
      scores: larger means more positive; finite, any scale.
      where: the rows that count; all by default.

    Returns:
      PrecisionRecallCurve of n + 1 points; recall is 1 at every threshold where there are no positives, and everything
      nan inside jit where a score is.

    Raises:
      UsageError: no examples, shapes that do not match; labels other than 0/1 or scores that are not finite, seen
        outside jit.
    """
    check_binary_ranking(labels, where, scores=scores)
    return with_every_digit(_compiled_precision_recall, labels, scores, where)


_compiled_precision_recall = jax.jit(
    lambda labels, scores, where: precision_recall_from_counts(ranked_counts(labels, scores, where))
)


def _columns(labels: AnyArray, num_classes: int) -> Bool[Array, "n classes"]:
    """Labels [n] or [n, classes] as 0/1 of each class against the rest."""
    labels = jnp.asarray(labels)
    return labels.astype(bool) if labels.ndim == 2 else labels[:, None] == jnp.arange(num_classes)[None]


@functools.partial(jax.jit, static_argnames=("area", "average", "skip_undefined"))
def _areas(
    area: Callable[[RankedCounts], Float[Array, ""]],
    average: str | None,
    skip_undefined: bool,
    labels: Integer[AnyArray, "n ..."] | Bool[AnyArray, "n ..."],
    scores: Float[AnyArray, "n *classes"],
    where: Where,
) -> Float[Array, "..."]:
    """The area of a binary score, or of each column against the rest and then averaged."""

    def of_ranking(labels: AnyArray, scores: AnyArray, where: Where) -> Float[Array, ""]:
        counts = ranked_counts(labels, scores, where)
        value = area(counts).astype(jnp.float32)
        return jnp.where(counts.true_positive[-1] > 0, value, jnp.nan) if skip_undefined else value

    if scores.ndim == 1:
        return of_ranking(labels, scores, where)
    positive, scores, kept = _columns(labels, scores.shape[1]), jnp.asarray(scores), where_or_all(where, labels)
    if average == "micro":
        return of_ranking(positive.ravel(), scores.ravel(), jnp.repeat(kept, scores.shape[1]))
    if average == "samples":
        values = jax.vmap(lambda y, s: of_ranking(y, s, None))(positive, scores)
        weights = kept.astype(jnp.float32)
    else:
        values = jax.vmap(lambda y, s: of_ranking(y, s, kept), in_axes=1)(positive, scores)
        support = (positive & kept[:, None]).sum(axis=0).astype(jnp.float32)
        weights = support if average == "weighted" else jnp.ones_like(values)
    if average is None:
        return values
    used = kept if average == "samples" else jnp.ones_like(values, bool)
    if skip_undefined:
        used &= ~jnp.isnan(values)
        weights = jnp.where(used, weights, 0.0)
    weights = jnp.where(weights.sum() > 0, weights, used)
    return jnp.sum(jnp.where(used, values * weights, 0.0)) / weights.sum()


def _check_and_area(
    area: Callable[[RankedCounts], Float[Array, ""]],
    labels: Integer[AnyArray, "n ..."] | Bool[AnyArray, "n ..."],
    scores: Float[AnyArray, "n *classes"],
    average: str | None,
    skip_undefined: bool,
    where: Where,
) -> Float[Array, "..."]:
    if average is not None and average not in AVERAGES:
        raise unknown_name("average", average, AVERAGES)
    if np.ndim(scores) == 1:
        check_binary_ranking(labels, where, scores=scores)
    else:
        _check_columns(labels, scores, where)
        check_not_empty("labels", labels, where)
        check_finite("scores", scores, where)
        if average == "samples" and np.ndim(labels) != 2:
            raise UsageError('average="samples" is for 0/1 labels [n, classes], got classes [n]')
    return with_every_digit(functools.partial(_areas, area, average, skip_undefined), labels, scores, where)


def _check_columns(labels: AnyArray, scores: AnyArray, where: Where) -> None:
    check_same_length(labels=labels, scores=scores, where=where)
    if np.ndim(scores) != 2 or np.shape(labels) not in (np.shape(scores), np.shape(scores)[:1]):
        shapes = f"labels {list(np.shape(labels))} and scores {list(np.shape(scores))}"
        raise UsageError(f"scores must be [n, classes], and labels classes [n] or 0/1 [n, classes], got {shapes}")
    check_classes("labels", labels, 2 if np.ndim(labels) == 2 else np.shape(scores)[1], where)


def auroc(
    labels: Integer[AnyArray, "n ..."] | Bool[AnyArray, "n ..."],
    scores: Float[AnyArray, "n *classes"],
    *,
    average: str | None = "macro",
    skip_undefined: bool = False,
    where: Bool[AnyArray, " n"] | None = None,
) -> Float[Array, "..."]:
    """Area under the ROC curve: the chance that a positive scores above a negative, ties counting one half.

    Args:
      labels: 0/1 [n] for scores [n]; true classes [n] or 0/1 [n, classes] for scores [n, classes].
      scores: larger means more positive; finite, any scale. Columns are taken one against the rest.
      average: of the columns: "macro", "weighted" (by positives), "micro" (all decisions pooled), "samples" (mean over
        the examples of multi-label data of the area over its columns), or None.
      skip_undefined: leave classes (examples, for "samples") whose area is nan out of the average.
      where: the rows that count; all by default.

    Returns:
      A scalar in [0, 1], or [classes] when average is None. Without positives or without negatives it is nan, as in
      scikit-learn; so is, inside jit, the area of scores that hold a nan.

    Raises:
      UsageError: an unknown average, no examples, shapes that do not match; labels outside the range or scores that are
        not finite, seen outside jit.
    """
    return _check_and_area(_area_under_roc, labels, scores, average, skip_undefined, where)


def average_precision(
    labels: Integer[AnyArray, "n ..."] | Bool[AnyArray, "n ..."],
    scores: Float[AnyArray, "n *classes"],
    *,
    average: str | None = "macro",
    skip_undefined: bool = False,
    where: Bool[AnyArray, " n"] | None = None,
) -> Float[Array, "..."]:
    """Area under the precision-recall curve by steps, Σ (R_i - R_{i-1}) P_i; its macro average is the mAP.

    Args and errors as in `auroc`.

    Returns:
      A scalar in [0, 1], or [classes] when average is None. Without positives it is 0, as in scikit-learn, or nan and
      left out of averages with skip_undefined.
    """
    return _check_and_area(_step_area, labels, scores, average, skip_undefined, where)


class BinnedCurves(NamedTuple):
    """Per class, one against the rest: areas [classes], their bounds, and curves [classes, num_bins + 1].

    The exact AUROC lies in auroc ± auroc_error, the exact average precision in [average_precision_low,
    average_precision_high], whatever the scores were.
    """

    auroc: Float[Array, " classes"]
    average_precision: Float[Array, " classes"]
    roc: RocCurve
    precision_recall: PrecisionRecallCurve
    auroc_error: Float[Array, " classes"]
    average_precision_low: Float[Array, " classes"]
    average_precision_high: Float[Array, " classes"]


@jax.jit
@jax.vmap
def _of_bins(negatives: Int[Array, " bins"], positives: Int[Array, " bins"]) -> BinnedCurves:
    """The curves of one class from its counts in rising bins, and what the order within the bins can change.

    AUROC: a pair of one bin counts 1/2 here and between 0 and 1 in truth. Average precision: with T positives and F
    negatives in the bins above, the j-th of the p positives of a bin of q negatives has, in truth, a precision between
    (T + j) / (T + j + F + q) and (T + p) / (T + p + F). The sum of the former over j is at least
    p - (F + q) ln(1 + p / (T + F + q + 1/2)), since 1 / x is convex.
    """
    num_bins, p, q = negatives.shape[0], positives[::-1], negatives[::-1]
    true_positive, false_positive = jnp.cumsum(p), jnp.cumsum(q)
    thresholds = jnp.arange(num_bins)[::-1] / num_bins
    counts = RankedCounts(true_positive, false_positive, thresholds, jnp.float32(0))
    total = true_positive[-1]
    auroc_error = jnp.sum((p / total) * (q / false_positive[-1])) / 2
    above = (true_positive - p).astype(jnp.float32)
    low = p - false_positive * jnp.log1p(p / (above + false_positive + 0.5))
    high = p * true_positive / jnp.maximum(true_positive + false_positive - q, 1)
    share = lambda of_bin: jnp.where(total > 0, jnp.sum(of_bin) / jnp.where(total > 0, total, 1), 0.0)
    return BinnedCurves(
        _area_under_roc(counts),
        _step_area(counts),
        roc_from_counts(counts),
        precision_recall_from_counts(counts),
        auroc_error,
        share(low),
        share(high),
    )


def binned_curve_metric(
    num_classes: int, num_bins: int = 256, compute: Callable[[BinnedCurves], Any] = lambda curves: curves
) -> Metric:
    """Accumulator of the curves in constant memory: counts of probabilities in equal bins of [0, 1].

    Scores in one bin count as ties. The error that this makes is part of the result (see BinnedCurves): the AUROC is
    off by at most half the share of pairs, a positive and a negative, that fall into one bin.

    Args:
      num_classes: columns of the scores; 1 for a binary score, with labels [n, 1].
      num_bins: >= 1.
      compute: BinnedCurves -> the metric; all of them by default.

    Returns:
      A Metric: `update(state, labels int [n] or 0/1 [n, num_classes], scores float [n, num_classes] in [0, 1],
      where=None)`; inside jit a score outside [0, 1] counts in the nearest bin, nan in the lowest. Its state: int32
      [2, num_classes, num_bins], negatives and positives. A class that does not occur is as in `auroc` and
      `average_precision`.

    Raises:
      UsageError: num_classes or num_bins < 1; from `update`, shapes that do not match, and outside jit labels outside
        the range and scores outside [0, 1].
    """
    for name, given in (("num_classes", num_classes), ("num_bins", num_bins)):
        if given < 1:
            raise UsageError(f"{name} must be at least 1, got {given}")

    def zeros() -> Int[Array, "2 classes bins"]:
        return jnp.zeros((2, num_classes, num_bins), jnp.int32)

    def sums(
        labels: Integer[AnyArray, "n ..."] | Bool[AnyArray, "n ..."],
        scores: Float[AnyArray, "n classes"],
        *,
        where: Bool[AnyArray, " n"] | None,
    ) -> Int[Array, "2 classes bins"]:
        _check_columns(labels, scores, where)
        if scores.shape[1] != num_classes:
            raise UsageError(f"scores must have num_classes = {num_classes} columns, got {scores.shape[1]}")
        check_probabilities("scores", scores, where)
        kept = where_or_all(where, labels).astype(jnp.int32)[:, None]
        bins = jnp.clip((jnp.nan_to_num(jnp.asarray(scores)) * num_bins).astype(jnp.int32), 0, num_bins - 1)
        positive = _columns(labels, num_classes).astype(jnp.int32)
        return zeros().at[positive, jnp.arange(num_classes)[None], bins].add(jnp.broadcast_to(kept, bins.shape))

    return metric_from_sums(zeros, sums, lambda state: compute(_of_bins(state[0], state[1])))
