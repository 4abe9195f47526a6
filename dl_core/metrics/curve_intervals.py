"""Confidence bands of ROC and precision-recall curves, by the bootstrap on a fixed grid.

The scores are sorted once; a resample is a weight for each example, and its curve two cumulative sums. Positives and
negatives are drawn separately, so that no resample lacks one of them. Bands are pointwise: at each place of the grid
the true curve lies inside with the nominal probability, the whole curve less often.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Integer, PRNGKeyArray

from dl_core.errors import UsageError
from dl_core.metrics.accumulator import AnyArray, where_or_all
from dl_core.metrics.checks import check_probabilities
from dl_core.metrics.curves import (
    RankedCounts,
    as_scores,
    check_binary_ranking,
    falling_keys,
    precision_recall_from_counts,
    roc_from_counts,
    with_every_digit,
)
from dl_core.metrics.intervals import check_confidence, draw_rows, stratified_rows

ROUNDING = 1e-6  # of a rate in float32: a place of the grid that is meant to be a rate shall find it
EVERY_PERCENT = tuple(place / 100 for place in range(101))


class CurveBand(NamedTuple):
    """Where a curve may lie: at each place of the grid (the horizontal axis) the ends of an interval; each [grid]."""

    grid: Float[Array, " grid"]
    low: Float[Array, " grid"]
    high: Float[Array, " grid"]


def _roc_at(counts: RankedCounts, grid: Float[Array, " grid"]) -> Float[Array, " grid"]:
    """The true positive rate at false positive rates: straight between points, and the upper end of a rise."""
    curve = roc_from_counts(counts)
    x, y = curve.false_positive_rate, curve.true_positive_rate
    here = jnp.searchsorted(x, grid + ROUNDING, side="right") - 1
    there = jnp.minimum(here + 1, x.shape[0] - 1)
    width = x[there] - x[here]
    part = jnp.clip(jnp.where(width > 0, (grid - x[here]) / jnp.where(width > 0, width, 1.0), 0.0), 0.0, 1.0)
    return y[here] + part * (y[there] - y[here])


def _precision_at(counts: RankedCounts, grid: Float[Array, " grid"]) -> Float[Array, " grid"]:
    """The precision where each recall is first reached, as average precision counts it."""
    curve = precision_recall_from_counts(counts)
    place = jnp.searchsorted(curve.recall, grid - ROUNDING, side="left")
    return curve.precision[jnp.minimum(place, curve.recall.shape[0] - 1)]


@functools.partial(jax.jit, static_argnames=("at", "confidence", "n_resamples", "batch_size"))
def _band(
    at: Callable[[RankedCounts, Float[Array, " grid"]], Float[Array, " grid"]],
    confidence: float,
    n_resamples: int,
    batch_size: int,
    labels: Integer[AnyArray, " n"] | Bool[AnyArray, " n"],
    scores: Float[AnyArray, " n"],
    where: Bool[AnyArray, " n"] | None,
    grid: Float[AnyArray, " grid"],
    key: PRNGKeyArray,
) -> CurveBand:
    kept, n = where_or_all(where, labels), labels.shape[0]
    rankable = as_scores(scores)
    missing = (jnp.isnan(rankable) & kept).any()
    keys = falling_keys(rankable, kept)
    order = jnp.argsort(keys)
    ranked, kept = keys[order], kept[order]
    positive = jnp.asarray(labels, bool)[order] & kept
    missing |= ~(positive.any() & (kept & ~positive).any())
    end_of_tie = jnp.searchsorted(ranked, ranked, side="right") - 1
    drawn, begin, end = stratified_rows(jnp.where(kept, positive.astype(jnp.int32), 2))
    slots = kept[drawn].astype(jnp.int32)  # the places of rows that do not count draw nothing

    def resample(k: PRNGKeyArray) -> Float[Array, " grid"]:
        rows = drawn[draw_rows(k, begin, end)]
        weights = jnp.zeros(n, jnp.int32).at[rows].add(slots)
        reached = lambda of_kind: jnp.cumsum(jnp.where(of_kind, weights, 0))[end_of_tie]
        return at(RankedCounts(reached(positive), reached(~positive), jnp.zeros(n), jnp.float32(0)), places)

    places = jnp.asarray(grid, jnp.float32)
    values = jax.lax.map(resample, jax.random.split(key, n_resamples), batch_size=batch_size)
    tails = jnp.array([(1 - confidence) / 2, (1 + confidence) / 2])
    low, high = jnp.where(missing, jnp.nan, jnp.quantile(values, tails, axis=0)).astype(jnp.float32)
    return CurveBand(places, low, high)


def _check_and_band(
    at: Callable[..., Any],
    labels: Integer[AnyArray, " n"] | Bool[AnyArray, " n"],
    scores: Float[AnyArray, " n"],
    key: PRNGKeyArray,
    confidence: float,
    n_resamples: int,
    grid: Float[AnyArray, " grid"] | None,
    where: Bool[AnyArray, " n"] | None,
    batch_size: int,
) -> CurveBand:
    check_confidence(confidence)
    for name, given in (("n_resamples", n_resamples), ("batch_size", batch_size)):
        if given < 1:
            raise UsageError(f"{name} must be at least 1, got {given}")
    check_binary_ranking(labels, where, scores=scores)
    grid = np.array(EVERY_PERCENT, np.float32) if grid is None else grid
    check_probabilities("grid", grid)
    whole = functools.partial(_band, at, confidence, n_resamples, batch_size)
    return with_every_digit(whole, labels, scores, where, grid, key)


def roc_band(
    labels: Integer[AnyArray, " n"] | Bool[AnyArray, " n"],
    scores: Float[AnyArray, " n"],
    *,
    key: PRNGKeyArray,
    confidence: float = 0.95,
    n_resamples: int = 1000,
    grid: Float[AnyArray, " grid"] | None = None,
    where: Bool[AnyArray, " n"] | None = None,
    batch_size: int = 100,
) -> CurveBand:
    """Pointwise percentile band of the true positive rate at given false positive rates.

    Args:
      labels: 1 for positive, 0 for negative.
      scores: larger means more positive; finite, any scale.
      key: drives the resampling.
      confidence: nominal coverage at each place, in (0, 1).
      n_resamples: resamples, >= 1.
      grid: false positive rates in [0, 1]; every hundredth by default.
      where: the rows that count; all by default.
      batch_size: resamples evaluated at once; bounds the memory, does not change the draws.

    Returns:
      CurveBand, for `dl_core.plots.roc_curves`. Nan without positives or without negatives.

    Raises:
      UsageError: confidence outside (0, 1), n_resamples or batch_size < 1, no examples, shapes that do not match;
        outside jit also labels other than 0/1, scores that are not finite, a grid outside [0, 1].
    """
    return _check_and_band(_roc_at, labels, scores, key, confidence, n_resamples, grid, where, batch_size)


def precision_recall_band(
    labels: Integer[AnyArray, " n"] | Bool[AnyArray, " n"],
    scores: Float[AnyArray, " n"],
    *,
    key: PRNGKeyArray,
    confidence: float = 0.95,
    n_resamples: int = 1000,
    grid: Float[AnyArray, " grid"] | None = None,
    where: Bool[AnyArray, " n"] | None = None,
    batch_size: int = 100,
) -> CurveBand:
    """Pointwise percentile band of the precision at given recalls, where each recall is first reached.

    Args and errors as in `roc_band`; `grid` holds recalls, and the share of positives is that of the data.

    Returns:
      CurveBand, for `dl_core.plots.precision_recall_curves`. Nan without positives or without negatives.
    """
    return _check_and_band(_precision_at, labels, scores, key, confidence, n_resamples, grid, where, batch_size)
