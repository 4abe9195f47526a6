"""Whether a probability of 0.8 is right eight times in ten: calibration error, Brier score, negative log-likelihood.

Guo, Pleiss, Sun, Weinberger (2017), "On Calibration of Modern Neural Networks", https://arxiv.org/abs/1706.04599.
Examples are put in bins by confidence (the largest probability); in bin b, acc(b) is the share that is right:

    ECE = Σ_b (n_b / n) |acc(b) - conf(b)|        MCE = max_b |acc(b) - conf(b)|

Bins of equal width on (0, 1], or of equal mass (as many examples in each; Nixon et al. 2019, "Measuring Calibration in
Deep Learning"), which a network that is nearly always sure needs, since it would leave most of the former empty.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Integer

from dl_core.errors import UsageError, unknown_name
from dl_core.metrics.accumulator import (
    AnyArray,
    CompensatedSum,
    Metric,
    compensated,
    metric_from_sums,
    where_or_all,
)

STRATEGIES = ("equal_width", "equal_mass")
NORMS = ("l1", "max")


class ReliabilityBins(NamedTuple):
    """Per bin: how many examples fell in it, how many of them were right, and their mean confidence (nan if none)."""

    total: Int[Array, " bins"]
    correct: Int[Array, " bins"]
    confidence: Float[Array, " bins"]


def _equal_width_bins(confidence: Float[Array, " n"], num_bins: int) -> Int[Array, " n"]:
    return jnp.clip(jnp.ceil(confidence * num_bins).astype(jnp.int32) - 1, 0, num_bins - 1)


def _equal_mass_bins(confidence: Float[Array, " n"], num_bins: int, kept: Bool[Array, " n"]) -> Int[Array, " n"]:
    """By rank; equal confidences share the lowest rank, so the order of the examples does not matter."""
    ranked = jnp.sort(jnp.where(kept, confidence, jnp.inf))
    rank = jnp.searchsorted(ranked, confidence, side="left")
    fraction = rank / jnp.maximum(kept.sum(), 1)  # not rank * num_bins, which overflows int32 for many examples
    return jnp.clip((fraction * num_bins).astype(jnp.int32), 0, num_bins - 1)


def _sums(
    labels: Integer[AnyArray, " n"],
    probabilities: Float[AnyArray, "n classes"],
    num_bins: int,
    strategy: str,
    where: Bool[AnyArray, " n"] | None,
) -> tuple[Int[Array, " bins"], Int[Array, " bins"], CompensatedSum]:
    """Counts, counts of right answers, and summed confidence per bin."""
    kept = where_or_all(where, labels)
    probabilities = jnp.asarray(probabilities)
    confidence = probabilities.max(axis=1)
    right = (probabilities.argmax(axis=1) == jnp.asarray(labels)) & kept
    if strategy == "equal_width":
        bins = _equal_width_bins(confidence, num_bins)
    else:
        bins = _equal_mass_bins(confidence, num_bins, kept)
    per_bin = lambda values: jnp.zeros(num_bins, values.dtype).at[bins].add(values)
    total = per_bin(jnp.where(kept, confidence, 0.0).astype(jnp.float32))
    return per_bin(kept.astype(jnp.int32)), per_bin(right.astype(jnp.int32)), compensated(total)


def _bins_from_sums(
    sums: tuple[Int[Array, " bins"], Int[Array, " bins"], CompensatedSum],
) -> ReliabilityBins:
    total, correct, confidence = sums
    return ReliabilityBins(total, correct, (confidence.high + confidence.low) / total)


def _check(num_bins: int, strategy: str, norm: str = "l1") -> None:
    if num_bins < 1:
        raise UsageError(f"num_bins must be at least 1, got {num_bins}")
    if strategy not in STRATEGIES:
        raise unknown_name("binning strategy", strategy, STRATEGIES)
    if norm not in NORMS:
        raise unknown_name("norm", norm, NORMS)


def reliability_bins(
    labels: Integer[AnyArray, " n"],
    probabilities: Float[AnyArray, "n classes"],
    *,
    num_bins: int = 15,
    strategy: str = "equal_width",
    where: Bool[AnyArray, " n"] | None = None,
) -> ReliabilityBins:
    """Confidence and share of right answers per bin of confidence: what a reliability diagram shows.

    Args:
      labels: true classes.
      probabilities: in [0, 1], rows summing to 1.
      num_bins: number of bins.
      strategy: "equal_width" or "equal_mass" (examples of equal confidence stay in one bin).
      where: the rows that count; all by default.

    Returns:
      ReliabilityBins.

    Raises:
      UsageError: an unknown strategy, or num_bins < 1.
    """
    _check(num_bins, strategy)
    return _bins_from_sums(_sums(labels, probabilities, num_bins, strategy, where))


def calibration_error_from_bins(bins: ReliabilityBins, norm: str = "l1") -> Float[Array, ""]:
    """The calibration error, from ReliabilityBins [bins]; `norm` as in `calibration_error`."""
    total = jnp.asarray(bins.total)
    filled = total > 0
    gap = jnp.where(filled, jnp.abs(bins.correct / jnp.where(filled, total, 1) - bins.confidence), 0.0)
    return gap.max() if norm == "max" else jnp.sum(gap * total) / total.sum()


def calibration_error(
    labels: Integer[AnyArray, " n"],
    probabilities: Float[AnyArray, "n classes"],
    *,
    num_bins: int = 15,
    norm: str = "l1",
    strategy: str = "equal_width",
    where: Bool[AnyArray, " n"] | None = None,
) -> Float[Array, ""]:
    """Expected ("l1") or maximum ("max") calibration error.

    Args:
      labels: true classes.
      probabilities: in [0, 1], rows summing to 1.
      num_bins: number of bins.
      norm: "l1" for the ECE, "max" for the MCE.
      strategy: "equal_width" or "equal_mass".
      where: the rows that count; all by default.

    Returns:
      A scalar in [0, 1]; the ECE of no examples is nan.

    Raises:
      UsageError: an unknown norm or strategy, or num_bins < 1.
    """
    _check(num_bins, strategy, norm)
    sums = _sums(labels, probabilities, num_bins, strategy, where)
    return calibration_error_from_bins(_bins_from_sums(sums), norm)


def calibration_metric(
    num_bins: int = 15, compute: Callable[[ReliabilityBins], Any] = calibration_error_from_bins
) -> Metric:
    """Accumulator of `calibration_error` with bins of equal width.

    Args:
      num_bins: number of bins.
      compute: ReliabilityBins -> the metric; the ECE by default.

    Returns:
      A Metric: `update(state, labels int [n], probabilities float [n, classes], where=None)`.

    Raises:
      UsageError: num_bins < 1.
    """
    _check(num_bins, "equal_width")
    zeros = lambda: (
        jnp.zeros(num_bins, jnp.int32),
        jnp.zeros(num_bins, jnp.int32),
        compensated(jnp.zeros(num_bins, jnp.float32)),
    )
    sums = lambda labels, probabilities, *, where: _sums(labels, probabilities, num_bins, "equal_width", where)
    return metric_from_sums(zeros, sums, lambda state: compute(_bins_from_sums(state)))


def brier_score(
    labels: Integer[AnyArray, " n"],
    probabilities: Float[AnyArray, "n classes"],
    *,
    where: Bool[AnyArray, " n"] | None = None,
) -> Float[Array, ""]:
    """Mean of Σ_k (p_k - [y = k])² (Brier 1950, "Verification of Forecasts Expressed in Terms of Probability").

    Args:
      labels: true classes, in [0, classes).
      probabilities: in [0, 1], rows summing to 1.
      where: the rows that count; all by default.

    Returns:
      A scalar in [0, 2]: 0 for sure and right, 2 for sure and wrong.
    """
    truth = jax.nn.one_hot(jnp.asarray(labels), probabilities.shape[1])
    return _mean(jnp.sum((jnp.asarray(probabilities) - truth) ** 2, axis=1), where)


def negative_log_likelihood(
    labels: Integer[AnyArray, " n"],
    logits: Float[AnyArray, "n classes"],
    *,
    where: Bool[AnyArray, " n"] | None = None,
) -> Float[Array, ""]:
    """Mean of -log softmax(logits)[label]; from logits, so that it stays finite where a probability rounds to 0.

    Args:
      labels: true classes, in [0, classes).
      logits: unnormalised log-probabilities.
      where: the rows that count; all by default.

    Returns:
      A scalar >= 0, in nats.
    """
    log_probabilities = jax.nn.log_softmax(jnp.asarray(logits), axis=1)
    chosen = jnp.take_along_axis(log_probabilities, jnp.asarray(labels, jnp.int32)[:, None], axis=1)[:, 0]
    return -_mean(chosen, where)


def _mean(values: Float[Array, " n"], where: Bool[AnyArray, " n"] | None) -> Float[Array, ""]:
    kept = where_or_all(where, values)
    return jnp.where(kept, values, 0.0).sum() / kept.sum()
