"""Precision and recall of detections, class by class, from what became of each detection.

Rows are the detections of all images. They are sorted once by class and score; every curve is then a running sum within
a class. A detection that is ignored is neither a hit nor a false alarm and leaves the curve where it is.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Integer


class RankedRows(NamedTuple):
    """Rows by class and falling score; those that do not count are behind the last class.

    `labels` is the class of each row in this order, `first` where each class begins and where the last one ends.
    """

    order: Int[Array, " rows"]
    labels: Int[Array, " rows"]
    first: Int[Array, " classes_and_end"]


class Curve(NamedTuple):
    """Of all classes one behind the other: hits up to and with each row, best precision of the class from there on."""

    hits: Int[Array, " rows"]
    envelope: Float[Array, " rows"]


def rank_by_class(
    labels: Integer[Array, " rows"], scores: Float[Array, " rows"], kept: Bool[Array, " rows"], num_classes: int
) -> RankedRows:
    """The order in which detections enter the curves; rows of equal score keep theirs.

    Args:
      labels: classes in [0, num_classes).
      scores: finite where `kept`.
      kept: which rows are detections.
      num_classes: number of curves.

    Returns:
      RankedRows; `labels` is num_classes where a row does not count.
    """
    operands = (jnp.where(kept, labels, num_classes), -jnp.where(kept, scores, 0), jnp.arange(labels.shape[0]))
    labels, _, order = jax.lax.sort(operands, num_keys=2)
    return RankedRows(order, labels, jnp.searchsorted(labels, jnp.arange(num_classes + 1)))


def _before(ranked: RankedRows, running: Int[Array, " rows"]) -> Int[Array, " classes_and_end"]:
    """The running sum before each class."""
    return jnp.concatenate([jnp.zeros(1, running.dtype), running])[ranked.first]


def curve(ranked: RankedRows, hits: Bool[Array, " rows"], false_alarms: Bool[Array, " rows"]) -> Curve:
    """Hits and the envelope of precision, the maximum over all lower scores of hits / (hits + false alarms).

    Args:
      ranked: from `rank_by_class`.
      hits, false_alarms: what became of each row, in the ranked order.

    Returns:
      Curve.
    """
    running, alarms = jnp.cumsum(jnp.stack([hits, false_alarms]), axis=1, dtype=jnp.int32)
    true_positive = running - _before(ranked, running)[ranked.labels]
    false_positive = alarms - _before(ranked, alarms)[ranked.labels]
    real = lambda count: count.astype(jnp.result_type(float))
    # COCO's own guard against 0 / 0, too small to change any other quotient
    precision = real(true_positive) / (real(false_positive + true_positive) + np.spacing(1.0))
    return Curve(running, _best_of_rest(precision, jnp.append(ranked.first, hits.shape[0])[1:][ranked.labels]))


def _best_of_rest(values: Float[Array, " rows"], end: Int[Array, " rows"]) -> Float[Array, " rows"]:
    """The maximum of values[i : end[i]] for each i: windows of 1, 2, 4, … rows, cut off at the end of the class."""
    position, size = jnp.arange(values.shape[0]), values.shape[0]

    def double(times: Int[Array, ""], best: Float[Array, " rows"]) -> Float[Array, " rows"]:
        width = 1 << times
        ahead = jax.lax.dynamic_slice(jnp.concatenate([best, best]), (width,), (size,))
        return jnp.where(position + width < end, jnp.maximum(best, ahead), best)

    return jax.lax.fori_loop(0, max(size - 1, 1).bit_length(), double, values)


def precision_at_recalls(
    ranked: RankedRows, points: Curve, positives: Integer[Array, " classes"], recalls: Float[np.ndarray, " recalls"]
) -> Float[Array, "classes recalls"]:
    """The best precision at a recall of at least r, for each class and each r; 0 where r is never reached.

    Args:
      ranked, points: from `rank_by_class` and `curve`.
      positives: how many objects there are to find.
      recalls: r in [0, 1].

    Returns:
      Values in [0, 1]; 0 for classes without objects.
    """
    # The least number of hits with hits / positives ≥ r, the quotient rounded: that of r · positives or the next. The
    # barrier keeps the compiler from dividing once for each class and multiplying for each r, which rounds otherwise.
    levels = jnp.asarray(recalls, jnp.result_type(float))[None]
    total = jnp.broadcast_to(jnp.maximum(positives, 1)[:, None], (positives.shape[0], recalls.shape[0]))
    total = jax.lax.optimization_barrier(total.astype(levels.dtype))
    guess = jnp.floor(levels * total)
    short = lambda hits: (hits / total < levels).astype(jnp.int32)
    needed = jnp.maximum(guess.astype(jnp.int32) - 1 + short(guess - 1) + short(guess), 1)
    before = _before(ranked, points.hits)[:, None]
    row = jnp.searchsorted(points.hits, before[:-1] + needed)
    reached = before[:-1] + needed <= before[1:]
    return jnp.where(reached, points.envelope[jnp.where(reached, row, 0)], 0)
