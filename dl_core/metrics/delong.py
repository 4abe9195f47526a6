"""How uncertain an area under the ROC curve is, and whether two models differ in it: DeLong's method.

The AUROC is the mean, over the m positives, of the share of the n negatives that each one outranks (its placement V10),
and over the negatives of the share of positives that outrank each (V01). DeLong, DeLong, Clarke-Pearson (1988),
"Comparing the Areas under Two or More Correlated Receiver Operating Characteristic Curves", eq. 4-7:

    cov(A_r, A_s) = cov(V10_r, V10_s) / m + cov(V01_r, V01_s) / n

for the areas of models r and s on the same examples. Placements come from ranks in O(N log N), N = m + n (Sun, Xu 2014,
"Fast Implementation of DeLong's Algorithm", theorem 2), not from all m n pairs. Everything works inside jit and under
vmap, for instance over classes.
"""

import functools
import statistics
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.scipy.special import ndtr
from jaxtyping import Array, Bool, Float, Integer

from dl_core.errors import UsageError, unknown_name
from dl_core.metrics.accumulator import AnyArray, where_or_all
from dl_core.metrics.curves import as_scores, check_binary_ranking, falling_keys, with_every_digit
from dl_core.metrics.intervals import Interval, check_confidence, wilson_interval

TRANSFORMS = ("logit", "none")

Labels = Integer[AnyArray, " n"] | Bool[AnyArray, " n"]
Where = Bool[AnyArray, " n"] | None


class AurocDifference(NamedTuple):
    """AUROC of the second model minus that of the first: its interval, and the two-sided p-value of no difference."""

    difference: Float[Array, ""]
    low: Float[Array, ""]
    high: Float[Array, ""]
    p_value: Float[Array, ""]


def _placements(
    positive: Bool[Array, " n"], kept: Bool[Array, " n"], scores: Float[AnyArray, " n"]
) -> Float[Array, " n"]:
    """For a positive the share of negatives below it, for a negative the share of positives above it; ties one half."""
    scores = as_scores(scores)
    keys = falling_keys(scores, kept)
    largest = jnp.iinfo(keys.dtype).max  # no key of a kept row is as large, so that padding is never counted

    def above(rows: Bool[Array, " n"]) -> Float[Array, " n"]:
        ranked = jax.lax.sort(jnp.where(rows, keys, largest), is_stable=False)
        higher, not_lower = (jnp.searchsorted(ranked, keys, side=side) for side in ("left", "right"))
        return (higher + not_lower) / 2 / rows.sum()

    values = jnp.where(positive, 1 - above(kept & ~positive), above(positive))
    return jnp.where((jnp.isnan(scores) & kept).any(), jnp.nan, values).astype(jnp.float32)


@jax.jit
def _areas_and_covariance(
    labels: Labels, where: Where, *scores: Float[AnyArray, " n"]
) -> tuple[Float[Array, " models"], Float[Array, "models models"], Float[Array, "2"]]:
    """The area of each model, the covariance matrix of the areas, and how many positives and negatives there are."""
    kept = where_or_all(where, labels)
    positive = jnp.asarray(labels, bool) & kept
    values = jnp.stack([_placements(positive, kept, model) for model in scores])
    areas, covariance = [], 0.0
    for rows in (positive, kept & ~positive):
        count = rows.sum()
        mean = jnp.where(rows[None], values, 0.0).sum(axis=1) / count
        apart = jnp.where(rows[None], values - mean[:, None], 0.0)
        covariance += apart @ apart.T / (count - 1) / count
        areas.append(mean)
    counts = jnp.stack([positive.sum(), (kept & ~positive).sum()])
    return areas[0].astype(jnp.float32), jnp.asarray(covariance, jnp.float32), counts.astype(jnp.float32)


def _check(labels: Labels, where: Where, confidence: float, **scores: Float[AnyArray, " n"]) -> None:
    check_confidence(confidence)
    check_binary_ranking(labels, where, **scores)
    if isinstance(labels, Tracer) or isinstance(where, Tracer):
        return
    positive = np.asarray(labels if where is None else np.asarray(labels)[np.asarray(where)], bool)
    if min(positive.sum(), (~positive).sum()) < 2:
        raise UsageError(
            "labels must hold at least two positives and two negatives, of which a variance can be taken, got "
            f"{positive.sum()} and {(~positive).sum()}"
        )


def _quantile(confidence: float) -> float:
    return statistics.NormalDist().inv_cdf((1 + confidence) / 2)


def delong_interval(
    labels: Integer[AnyArray, " n"] | Bool[AnyArray, " n"],
    scores: Float[AnyArray, " n"],
    confidence: float = 0.95,
    *,
    transform: str = "logit",
    where: Bool[AnyArray, " n"] | None = None,
) -> Interval:
    """Confidence interval of an AUROC by DeLong's variance.

    "logit" takes the interval of log(A / (1 - A)), which stays in [0, 1] and covers better near 1 and for few examples
    (Pepe 2003, *The Statistical Evaluation of Medical Tests*, §5.2.5); "none" is A ± z √var, cut to [0, 1].

    Where the ranking is perfect (A = 1, or A = 0), DeLong's variance is 0 and says nothing. Of min(m, n) disjoint pairs
    of a positive and a negative, which are independent, all are then ranked alike: the interval is Wilson's for that.

    Args:
      labels: 1 for positive, 0 for negative; at least two of each.
      scores: larger means more positive; finite, any scale.
      confidence: nominal coverage, in (0, 1).
      transform: "logit" or "none".
      where: the rows that count; all by default.

    Returns:
      Interval of scalars in [0, 1]; nan inside jit where there are not two positives and two negatives.

    Raises:
      UsageError: an unknown transform, confidence outside (0, 1), no examples, shapes that do not match; outside jit
        also labels other than 0/1, scores that are not finite, fewer than two positives or negatives.
    """
    if transform not in TRANSFORMS:
        raise unknown_name("transform", transform, TRANSFORMS)
    _check(labels, where, confidence, scores=scores)
    areas, covariance, counts = with_every_digit(_areas_and_covariance, labels, where, scores)
    return _interval(areas[0], covariance[0, 0], counts, confidence, transform)


@functools.partial(jax.jit, static_argnames=("confidence", "transform"))
def _interval(
    area: Float[Array, ""], variance: Float[Array, ""], counts: Float[Array, "2"], confidence: float, transform: str
) -> Interval:
    half = _quantile(confidence) * jnp.sqrt(variance)
    if transform == "logit":
        inside = jnp.clip(area, 1e-7, 1 - 1e-7)
        centre, half = jax.scipy.special.logit(inside), half / (inside * (1 - inside))
        low, high = jax.nn.sigmoid(centre - half), jax.nn.sigmoid(centre + half)
    else:
        low, high = jnp.clip(area - half, 0.0, 1.0), jnp.clip(area + half, 0.0, 1.0)
    pairs = counts.min()
    wilson = wilson_interval(area * pairs, pairs, confidence)
    perfect = (area <= 0) | (area >= 1)
    undefined = pairs < 2
    choose = lambda usual, extreme: jnp.where(undefined, jnp.nan, jnp.where(perfect, extreme, usual))
    return Interval(choose(low, wilson.low), choose(high, wilson.high))


def delong_test(
    labels: Integer[AnyArray, " n"] | Bool[AnyArray, " n"],
    scores: Float[AnyArray, " n"],
    other_scores: Float[AnyArray, " n"],
    confidence: float = 0.95,
    *,
    where: Bool[AnyArray, " n"] | None = None,
) -> AurocDifference:
    """Whether two models that scored the same examples differ in AUROC; their areas are correlated, and this is used.

    Args:
      labels: 1 for positive, 0 for negative; at least two of each.
      scores: of the first model; larger means more positive; finite, any scale.
      other_scores: of the second.
      confidence: nominal coverage of the interval, in (0, 1).
      where: the rows that count; all by default.

    Returns:
      AurocDifference: area of `other_scores` minus area of `scores` in [-1, 1], its normal interval, and the p-value of
      z = difference / √var. Scores of one ranking have difference 0, variance 0 and p-value 1.

    Raises:
      UsageError: as `delong_interval`.
    """
    _check(labels, where, confidence, scores=scores, other_scores=other_scores)
    areas, covariance, counts = with_every_digit(_areas_and_covariance, labels, where, scores, other_scores)
    return _difference(areas, covariance, counts, confidence)


@functools.partial(jax.jit, static_argnames="confidence")
def _difference(
    areas: Float[Array, "2"], covariance: Float[Array, "2 2"], counts: Float[Array, "2"], confidence: float
) -> AurocDifference:
    difference = areas[1] - areas[0]
    deviation = jnp.sqrt(jnp.maximum(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1], 0.0))
    z = jnp.where(difference == 0, 0.0, difference / deviation)
    half = _quantile(confidence) * deviation
    spoiled = jnp.where(counts.min() < 2, jnp.nan, 0.0)
    low, high = jnp.clip(difference - half, -1.0, 1.0), jnp.clip(difference + half, -1.0, 1.0)
    return AurocDifference(difference, low + spoiled, high + spoiled, 2 * ndtr(-jnp.abs(z)) + spoiled)
