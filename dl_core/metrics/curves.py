"""Ranking curves: ROC, precision against recall, and the areas under them, exact or from binned scores.

A curve has one point for each example (and one end point), so that shapes are static: everything here works inside jit
and under vmap over classes. Examples with equal scores cannot be told apart by a threshold, so all points of a tie are
the same point, the last one. Exact curves need every score at once; `binned_curve_metric` is the constant-memory
accumulator, exact as far as scores in one bin count as ties.

Average precision is scikit-learn's step rule, Σ (R_i - R_{i-1}) P_i, without interpolation (course notes, §10.7-10.9).
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Integer

from dl_core.errors import UsageError, unknown_name
from dl_core.metrics.accumulator import AnyArray, Metric, metric_from_sums, where_or_all

AVERAGES = ("macro", "weighted", "micro")


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


class _Counts(NamedTuple):
    """How many positives and negatives score at least the threshold, thresholds falling; each [points]."""

    true_positive: Int[Array, " points"]
    false_positive: Int[Array, " points"]
    thresholds: Float[Array, " points"]


@jax.jit
def _counts(
    labels: Integer[AnyArray, " n"] | Bool[AnyArray, " n"],
    scores: Float[AnyArray, " n"],
    where: Bool[AnyArray, " n"] | None,
) -> _Counts:
    kept = where_or_all(where, labels)
    positive = jnp.asarray(labels, bool)
    falling = -jnp.where(kept, jnp.asarray(scores), -jnp.inf)
    operands = (falling, (positive & kept).astype(jnp.int32), (~positive & kept).astype(jnp.int32))
    falling, positives, negatives = jax.lax.sort(operands, num_keys=1)
    ends_tie = jnp.concatenate([falling[1:] != falling[:-1], jnp.ones(1, bool)])
    indices = jnp.arange(falling.shape[0])
    last = jax.lax.cummin(jnp.where(ends_tie, indices, falling.shape[0] - 1), reverse=True)
    return _Counts(jnp.cumsum(positives)[last], jnp.cumsum(negatives)[last], -falling)


def _roc(counts: _Counts) -> RocCurve:
    start = jnp.zeros(1)
    tpr = counts.true_positive / counts.true_positive[-1]  # 0/0 = nan: undefined without positives
    fpr = counts.false_positive / counts.false_positive[-1]
    return RocCurve(
        jnp.concatenate([start, fpr]),
        jnp.concatenate([start, tpr]),
        jnp.concatenate([start + jnp.inf, counts.thresholds]),
    )


def _precision_recall(counts: _Counts) -> PrecisionRecallCurve:
    chosen = counts.true_positive + counts.false_positive
    precision = jnp.where(chosen > 0, counts.true_positive / jnp.where(chosen > 0, chosen, 1), 1.0)
    recall = counts.true_positive / counts.true_positive[-1]
    one = jnp.ones(1)
    return PrecisionRecallCurve(
        jnp.concatenate([one, precision]),
        jnp.concatenate([one - 1, recall]),
        jnp.concatenate([one * jnp.inf, counts.thresholds]),
    )


def _area_under_roc(counts: _Counts) -> Float[Array, ""]:
    curve = _roc(counts)
    return jnp.trapezoid(curve.true_positive_rate, curve.false_positive_rate)


def _step_area(counts: _Counts) -> Float[Array, ""]:
    curve = _precision_recall(counts)
    return jnp.sum(jnp.diff(curve.recall) * curve.precision[1:])


def _check_not_empty(scores: AnyArray) -> None:
    if scores.shape[0] == 0:
        raise UsageError("a ranking metric needs at least one example, got none")


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
      RocCurve of n + 1 points; rates are nan where there are no positives, or no negatives.

    Raises:
      UsageError: no examples.
    """
    _check_not_empty(scores)
    return _roc(_counts(labels, scores, where))


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
      PrecisionRecallCurve of n + 1 points; recall is nan where there are no positives.

    Raises:
      UsageError: no examples.
    """
    _check_not_empty(scores)
    return _precision_recall(_counts(labels, scores, where))


@functools.partial(jax.jit, static_argnames=("area", "average"))
def _per_class(
    area: Callable[[_Counts], Float[Array, ""]],
    labels: Integer[AnyArray, "n ..."] | Bool[AnyArray, "n ..."],
    scores: Float[AnyArray, "n *classes"],
    average: str | None,
    where: Bool[AnyArray, " n"] | None,
) -> Float[Array, "..."]:
    """The area of a binary score, or of each column against the rest and then averaged; nan is left out."""
    if scores.ndim == 1:
        return area(_counts(labels, scores, where))
    if labels.ndim == 1:
        labels = jnp.asarray(labels)[:, None] == jnp.arange(scores.shape[1])[None]
    positive = jnp.asarray(labels, bool)
    if average == "micro":
        pooled = None if where is None else jnp.repeat(jnp.asarray(where), scores.shape[1])
        return area(_counts(positive.ravel(), jnp.asarray(scores).ravel(), pooled))
    values = jax.vmap(lambda y, s: area(_counts(y, s, where)), in_axes=1)(positive, jnp.asarray(scores))
    if average is None:
        return values
    if average == "macro":
        return jnp.nanmean(values)
    if average == "weighted":
        support = (positive & where_or_all(where, positive)[:, None]).sum(axis=0)
        support = jnp.where(jnp.isnan(values), 0, support)
        return jnp.nansum(values * support) / support.sum()
    raise unknown_name("average", average, AVERAGES)


def auroc(
    labels: Integer[AnyArray, "n ..."] | Bool[AnyArray, "n ..."],
    scores: Float[AnyArray, "n *classes"],
    *,
    average: str | None = "macro",
    where: Bool[AnyArray, " n"] | None = None,
) -> Float[Array, "..."]:
    """Area under the ROC curve: the chance that a positive scores above a negative, ties counting one half.

    Args:
      labels: 0/1 [n] for scores [n]; true classes [n] or 0/1 [n, classes] for scores [n, classes].
      scores: larger means more positive; finite, any scale. Columns are taken one against the rest.
      average: of the columns: "macro", "weighted" (by positives), "micro" (all decisions pooled), or None.
      where: the rows that count; all by default.

    Returns:
      A scalar in [0, 1], or [classes] when average is None. A class without positives or without negatives is nan, and
      averages leave it out.

    Raises:
      UsageError: an unknown average, or no examples.
    """
    _check_not_empty(scores)
    return _per_class(_area_under_roc, labels, scores, average, where)


def average_precision(
    labels: Integer[AnyArray, "n ..."] | Bool[AnyArray, "n ..."],
    scores: Float[AnyArray, "n *classes"],
    *,
    average: str | None = "macro",
    where: Bool[AnyArray, " n"] | None = None,
) -> Float[Array, "..."]:
    """Area under the precision-recall curve by steps, Σ (R_i - R_{i-1}) P_i; its macro average is the mAP.

    Args and errors as in `auroc`.

    Returns:
      A scalar in [0, 1], or [classes] when average is None. A class without positives is nan; averages leave it out.
    """
    _check_not_empty(scores)
    return _per_class(_step_area, labels, scores, average, where)


class BinnedCurves(NamedTuple):
    """Per class, one against the rest: areas [classes] and curves [classes, num_bins + 1]."""

    auroc: Float[Array, " classes"]
    average_precision: Float[Array, " classes"]
    roc: RocCurve
    precision_recall: PrecisionRecallCurve


def binned_curve_metric(
    num_classes: int, num_bins: int = 256, compute: Callable[[BinnedCurves], Any] = lambda curves: curves
) -> Metric:
    """Accumulator of the curves in constant memory: counts of probabilities in equal bins of [0, 1].

    Args:
      num_classes: columns of the scores.
      num_bins: scores in one bin count as ties.
      compute: BinnedCurves -> the metric; all of them by default.

    Returns:
      A Metric: `update(state, labels int [n], scores float [n, num_classes] in [0, 1], where=None)`.
      Its state: int32 [2, num_classes, num_bins], negatives and positives.
    """

    def zeros() -> Int[Array, "2 classes bins"]:
        return jnp.zeros((2, num_classes, num_bins), jnp.int32)

    def sums(
        labels: Integer[AnyArray, " n"], scores: Float[AnyArray, "n classes"], *, where: Bool[AnyArray, " n"] | None
    ) -> Int[Array, "2 classes bins"]:
        kept = where_or_all(where, labels).astype(jnp.int32)[:, None]
        bins = jnp.clip((jnp.asarray(scores) * num_bins).astype(jnp.int32), 0, num_bins - 1)
        classes = jnp.arange(num_classes)[None]
        positive = (jnp.asarray(labels)[:, None] == classes).astype(jnp.int32)
        return zeros().at[positive, classes, bins].add(jnp.broadcast_to(kept, bins.shape))

    def curves(state: Int[Array, "2 classes bins"]) -> BinnedCurves:
        lower_edges = jnp.arange(num_bins)[::-1] / num_bins
        falling = jnp.cumsum(state[:, :, ::-1], axis=2)

        def of_class(negatives: Int[Array, " bins"], positives: Int[Array, " bins"]) -> BinnedCurves:
            counts = _Counts(positives, negatives, lower_edges)
            return BinnedCurves(_area_under_roc(counts), _step_area(counts), _roc(counts), _precision_recall(counts))

        return jax.vmap(of_class)(falling[0], falling[1])

    return metric_from_sums(zeros, sums, lambda state: compute(curves(state)))
