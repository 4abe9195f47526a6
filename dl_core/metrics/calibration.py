"""Whether a probability of 0.8 is right eight times in ten: calibration error, Brier score, negative log-likelihood.

Guo, Pleiss, Sun, Weinberger (2017), "On Calibration of Modern Neural Networks", https://arxiv.org/abs/1706.04599.
Examples are put in bins by confidence (the largest probability); in bin b, acc(b) is the share that is right:

    ECE = Σ_b (n_b / n) |acc(b) - conf(b)|        MCE = max_b |acc(b) - conf(b)|

Bins of equal width on (0, 1], or of equal mass (as many examples in each; Nixon et al. 2019, "Measuring Calibration in
Deep Learning"), which a network that is nearly always sure needs, since it would leave most of the former empty.

Probabilities [n, classes] are of exclusive classes. Probabilities [n] are of class 1 of a binary problem with labels 0
and 1; they are the confidence themselves, and acc(b) is the share of ones.

Each figure is also an accumulator. Bins of equal mass need every example at once:
`gathering_metric(functools.partial(calibration_error, strategy="equal_mass"), capacity, label, probabilities)`.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Integer

from dl_core.errors import UsageError, unknown_name
from dl_core.metrics.accumulator import (
    AnyArray,
    CompensatedSum,
    Metric,
    compensated,
    mean_metric,
    metric_from_sums,
    where_or_all,
)
from dl_core.metrics.checks import (
    check_classes,
    check_finite,
    check_not_empty,
    check_probabilities,
    check_same_length,
)

STRATEGIES = ("equal_width", "equal_mass")
NORMS = ("l1", "max")
_LANES = 512

Labels = Integer[AnyArray, " n"] | Bool[AnyArray, " n"]
Where = Bool[AnyArray, " n"] | None


class ReliabilityBins(NamedTuple):
    """Per bin: how many examples fell in it, how many of them were right, and their mean confidence (nan if none)."""

    total: Int[Array, "... bins"]
    correct: Int[Array, "... bins"]
    confidence: Float[Array, "... bins"]


_BinSums = tuple[Int[Array, "... bins"], Int[Array, "... bins"], CompensatedSum]


def equal_width_bins(confidence: Float[Array, "..."], num_bins: int) -> Int[Array, "..."]:
    """The number of the bin of equal width on (0, 1] that each confidence [...] lies in; 0 lies in the first."""
    return jnp.clip(jnp.ceil(confidence * num_bins).astype(jnp.int32) - 1, 0, num_bins - 1)


def _equal_mass_bins(confidence: Float[Array, " n"], num_bins: int, kept: Bool[Array, " n"]) -> Int[Array, " n"]:
    """By rank; equal confidences share the lowest rank, so the order of the examples does not matter."""
    ranked = jnp.sort(jnp.where(kept, confidence, jnp.inf))
    rank = jnp.searchsorted(ranked, confidence, side="left")
    fraction = rank / jnp.maximum(kept.sum(), 1)  # not rank * num_bins, which overflows int32 for many examples
    return jnp.clip((fraction * num_bins).astype(jnp.int32), 0, num_bins - 1)


def sum_per_bin(values: Float[Array, " n"], bins: Int[Array, " n"], num_bins: int) -> Float[Array, " bins"]:
    """The sum of the values in each bin, in lanes: added to one float32, a million shares of 0.9 make 892,000."""
    lanes = jnp.arange(values.shape[0]) % _LANES
    return jnp.zeros((num_bins, _LANES), jnp.float32).at[bins, lanes].add(values.astype(jnp.float32)).sum(axis=1)


def _bin_sums(
    confidence: Float[Array, " n"], right: Bool[Array, " n"], num_bins: int, strategy: str, kept: Bool[Array, " n"]
) -> _BinSums:
    """Counts, counts of right answers, and summed confidence per bin."""
    if strategy == "equal_width":
        bins = equal_width_bins(confidence, num_bins)
    else:
        bins = _equal_mass_bins(confidence, num_bins, kept)
    count = lambda rows: jnp.zeros(num_bins, jnp.int32).at[bins].add(rows.astype(jnp.int32))
    total = sum_per_bin(jnp.where(kept, confidence, 0.0), bins, num_bins)
    return count(kept), count(right & kept), compensated(total)


@functools.partial(jax.jit, static_argnames=("num_bins", "strategy"))
def _sums(labels: Labels, probabilities: Float[AnyArray, "n *classes"], num_bins: int, strategy: str, where: Where):
    """Of the predicted class; of class 1 for probabilities [n]."""
    labels, probabilities = jnp.asarray(labels), jnp.asarray(probabilities)
    kept = where_or_all(where, labels)
    if probabilities.ndim == 1:
        return _bin_sums(probabilities, labels == 1, num_bins, strategy, kept)
    right = probabilities.argmax(axis=1) == labels
    return _bin_sums(probabilities.max(axis=1), right, num_bins, strategy, kept)


@functools.partial(jax.jit, static_argnames=("num_bins", "strategy"))
def _classwise_sums(
    labels: Labels, probabilities: Float[AnyArray, "n classes"], num_bins: int, strategy: str, where: Where
):
    """Each class against the rest, by its own probability."""
    labels, probabilities = jnp.asarray(labels), jnp.asarray(probabilities)
    kept, is_class = where_or_all(where, labels), labels[:, None] == jnp.arange(probabilities.shape[1])[None]
    of_class = lambda p, y: _bin_sums(p, y, num_bins, strategy, kept)
    return jax.vmap(of_class, in_axes=1)(probabilities, is_class)


def _bins_from_sums(sums: _BinSums) -> ReliabilityBins:
    total, correct, confidence = sums
    return ReliabilityBins(total, correct, (confidence.high + confidence.low) / total)


def _check_options(num_bins: int, strategy: str = "equal_width", norm: str = "l1") -> None:
    if num_bins < 1:
        raise UsageError(f"num_bins must be at least 1, got {num_bins}")
    if strategy not in STRATEGIES:
        raise unknown_name("binning strategy", strategy, STRATEGIES)
    if norm not in NORMS:
        raise unknown_name("norm", norm, NORMS)


def _check_rows(labels: Labels, where: Where, *, binary: bool, **scores: Float[AnyArray, "n *classes"]) -> None:
    """Shapes and labels; the one argument of scores [n, classes], or [n] where binary ones are allowed, by its name."""
    ((name, values),) = scores.items()
    check_same_length(labels=labels, **scores, where=where)
    dimensions, shapes = ((1, 2), "[n] or [n, classes]") if binary else ((2,), "[n, classes]")
    if np.ndim(labels) != 1 or np.ndim(values) not in dimensions or 0 in np.shape(values)[1:]:
        given = f"labels {list(np.shape(labels))} and {name} {list(np.shape(values))}"
        raise UsageError(f"labels must have shape [n] and {name} {shapes}, got {given}")
    check_classes("labels", labels, 2 if np.ndim(values) == 1 else np.shape(values)[1], where)


def check_forecasts(
    labels: Integer[AnyArray, " n"] | Bool[AnyArray, " n"],
    probabilities: Float[AnyArray, "n *classes"],
    where: Bool[AnyArray, " n"] | None,
    *,
    binary: bool = True,
) -> None:
    """Refuses labels and probabilities that do not fit together, or lie outside their ranges where they can be seen.

    Args:
      labels: in [0, classes), or 0 and 1.
      probabilities: in [0, 1]; [n, classes], or [n] of class 1.
      where: the rows that count.
      binary: whether probabilities [n] are allowed.

    Raises:
      UsageError: saying which argument, what was given and what is allowed.
    """
    _check_rows(labels, where, binary=binary, probabilities=probabilities)
    check_probabilities("probabilities", probabilities, where)


def reliability_bins(
    labels: Integer[AnyArray, " n"] | Bool[AnyArray, " n"],
    probabilities: Float[AnyArray, "n *classes"],
    *,
    num_bins: int = 15,
    strategy: str = "equal_width",
    where: Bool[AnyArray, " n"] | None = None,
) -> ReliabilityBins:
    """Confidence and share of right answers per bin of confidence: what a reliability diagram shows.

    Args:
      labels: true classes.
      probabilities: in [0, 1]; [n, classes] with rows summing to 1, or [n] of class 1.
      num_bins: number of bins.
      strategy: "equal_width" or "equal_mass" (examples of equal confidence stay in one bin).
      where: the rows that count; all by default.

    Returns:
      ReliabilityBins, each field [bins].

    Raises:
      UsageError: an unknown strategy, num_bins < 1, no examples, shapes that do not match; seen outside jit, a label
        outside [0, classes) or a probability outside [0, 1].
    """
    _check_options(num_bins, strategy)
    check_forecasts(labels, probabilities, where)
    check_not_empty("labels", labels, where)
    return _bins_from_sums(_sums(labels, probabilities, num_bins, strategy, where))


def calibration_error_from_bins(bins: ReliabilityBins, norm: str = "l1") -> Float[Array, "..."]:
    """The calibration error, from ReliabilityBins [..., bins]; `norm` as in `calibration_error`."""
    total = jnp.asarray(bins.total)
    filled = total > 0
    gap = jnp.where(filled, jnp.abs(bins.correct / jnp.where(filled, total, 1) - bins.confidence), 0.0)
    return gap.max(axis=-1) if norm == "max" else jnp.sum(gap * total, axis=-1) / total.sum(axis=-1)


def calibration_error(
    labels: Integer[AnyArray, " n"] | Bool[AnyArray, " n"],
    probabilities: Float[AnyArray, "n *classes"],
    *,
    num_bins: int = 15,
    norm: str = "l1",
    strategy: str = "equal_width",
    where: Bool[AnyArray, " n"] | None = None,
) -> Float[Array, ""]:
    """Expected ("l1") or maximum ("max") calibration error of the predicted class.

    Args:
      labels: true classes.
      probabilities: in [0, 1]; [n, classes] with rows summing to 1, or [n] of class 1.
      num_bins: number of bins.
      norm: "l1" for the ECE, "max" for the MCE.
      strategy: "equal_width" or "equal_mass".
      where: the rows that count; all by default.

    Returns:
      A scalar in [0, 1]. Of few examples it is too large: about √(bins / n) for a perfectly calibrated forecast.

    Raises:
      UsageError: an unknown norm or strategy, and as `reliability_bins`.
    """
    _check_options(num_bins, strategy, norm)
    check_forecasts(labels, probabilities, where)
    check_not_empty("labels", labels, where)
    sums = _sums(labels, probabilities, num_bins, strategy, where)
    return calibration_error_from_bins(_bins_from_sums(sums), norm)


def _zero_sums(num_bins: int, *classes: int) -> _BinSums:
    shape = (*classes, num_bins)
    return jnp.zeros(shape, jnp.int32), jnp.zeros(shape, jnp.int32), compensated(jnp.zeros(shape, jnp.float32))


def calibration_metric(
    num_bins: int = 15, compute: Callable[[ReliabilityBins], Any] = calibration_error_from_bins
) -> Metric:
    """Accumulator of `calibration_error` with bins of equal width.

    Args:
      num_bins: number of bins.
      compute: ReliabilityBins -> the metric; the ECE by default.

    Returns:
      A Metric: `update(state, labels int [n], probabilities float [n, classes] or [n], where=None)`; nan without
      examples.

    Raises:
      UsageError: num_bins < 1.
    """
    _check_options(num_bins)

    def sums(labels: Labels, probabilities: Float[AnyArray, "n *classes"], *, where: Where) -> _BinSums:
        check_forecasts(labels, probabilities, where)
        return _sums(labels, probabilities, num_bins, "equal_width", where)

    return metric_from_sums(lambda: _zero_sums(num_bins), sums, lambda state: compute(_bins_from_sums(state)))


def classwise_calibration_error(
    labels: Integer[AnyArray, " n"] | Bool[AnyArray, " n"],
    probabilities: Float[AnyArray, "n classes"],
    *,
    num_bins: int = 15,
    norm: str = "l1",
    strategy: str = "equal_width",
    where: Bool[AnyArray, " n"] | None = None,
) -> Float[Array, " classes"]:
    """The calibration error of each class's own probability against the rest; its mean is the static calibration error.

    Nixon et al. (2019), "Measuring Calibration in Deep Learning", eq. 3, before the mean over classes.

    Args:
      labels: true classes.
      probabilities: in [0, 1], rows summing to 1.
      num_bins: number of bins.
      norm: "l1" for the expected, "max" for the largest error of each class.
      strategy: "equal_width" or "equal_mass".
      where: the rows that count; all by default.

    Returns:
      One value in [0, 1] for each class.

    Raises:
      UsageError: as `calibration_error`.
    """
    _check_options(num_bins, strategy, norm)
    check_forecasts(labels, probabilities, where, binary=False)
    check_not_empty("labels", labels, where)
    sums = _classwise_sums(labels, probabilities, num_bins, strategy, where)
    return calibration_error_from_bins(_bins_from_sums(sums), norm)


def classwise_calibration_metric(
    num_classes: int,
    num_bins: int = 15,
    compute: Callable[[ReliabilityBins], Any] = calibration_error_from_bins,
) -> Metric:
    """Accumulator of `classwise_calibration_error` with bins of equal width.

    Args:
      num_classes: columns of the probabilities.
      num_bins: number of bins.
      compute: ReliabilityBins [classes, bins] -> the metric; the expected error of each class by default.

    Returns:
      A Metric: `update(state, labels int [n], probabilities float [n, classes], where=None)`; nan without examples.

    Raises:
      UsageError: num_bins < 1.
    """
    _check_options(num_bins)

    def sums(labels: Labels, probabilities: Float[AnyArray, "n classes"], *, where: Where) -> _BinSums:
        check_forecasts(labels, probabilities, where, binary=False)
        return _classwise_sums(labels, probabilities, num_bins, "equal_width", where)

    return metric_from_sums(
        lambda: _zero_sums(num_bins, num_classes), sums, lambda state: compute(_bins_from_sums(state))
    )


def brier_score(
    labels: Integer[AnyArray, " n"] | Bool[AnyArray, " n"],
    probabilities: Float[AnyArray, "n *classes"],
    *,
    where: Bool[AnyArray, " n"] | None = None,
) -> Float[Array, ""]:
    """Mean of Σ_k (p_k - [y = k])² (Brier 1950, "Verification of Forecasts Expressed in Terms of Probability").

    Of probabilities [n] the mean of (p - y)², which is half of that; both as in scikit-learn. What it is made of:
    `brier_decomposition`.

    Args:
      labels: true classes, in [0, classes).
      probabilities: in [0, 1]; [n, classes] with rows summing to 1, or [n] of class 1.
      where: the rows that count; all by default.

    Returns:
      A scalar in [0, 2]: 0 for sure and right, 2 for sure and wrong (1 for probabilities [n]).

    Raises:
      UsageError: as `reliability_bins`.
    """
    check_forecasts(labels, probabilities, where)
    check_not_empty("labels", labels, where)
    return _mean(_brier_terms(labels, probabilities), where)


def brier_score_metric() -> Metric:
    """Accumulator of `brier_score`.

    Returns:
      A Metric: `update(state, labels int [n], probabilities float [n, classes] or [n], where=None)`; nan without
      examples.
    """
    return _mean_of(_brier_terms, check_forecasts)


@jax.jit
def _brier_terms(labels: Labels, probabilities: Float[AnyArray, "n *classes"]) -> Float[Array, " n"]:
    labels, probabilities = jnp.asarray(labels), jnp.asarray(probabilities)
    if probabilities.ndim == 1:
        return (probabilities - labels) ** 2
    return jnp.sum((probabilities - jax.nn.one_hot(labels, probabilities.shape[1])) ** 2, axis=1)


def negative_log_likelihood(
    labels: Integer[AnyArray, " n"] | Bool[AnyArray, " n"],
    logits: Float[AnyArray, "n *classes"],
    *,
    where: Bool[AnyArray, " n"] | None = None,
) -> Float[Array, ""]:
    """Mean of -log softmax(logits)[label]; from logits, so that it stays finite where a probability rounds to 0.

    Args:
      labels: true classes, in [0, classes).
      logits: unnormalised log-probabilities [n, classes], or log-odds of class 1 [n]; finite.
      where: the rows that count; all by default.

    Returns:
      A scalar >= 0, in nats. Inside jit, a label outside the range makes it nan or that of another class.

    Raises:
      UsageError: no examples, shapes that do not match; seen outside jit, a label outside [0, classes), or a logit
        that is not finite.
    """
    _check_logits(labels, logits, where)
    check_not_empty("labels", labels, where)
    return _mean(_log_losses(labels, logits), where)


def negative_log_likelihood_metric() -> Metric:
    """Accumulator of `negative_log_likelihood`.

    Returns:
      A Metric: `update(state, labels int [n], logits float [n, classes] or [n], where=None)`; nan without examples.
    """
    return _mean_of(_log_losses, _check_logits)


def _check_logits(labels: Labels, logits: Float[AnyArray, "n *classes"], where: Where) -> None:
    _check_rows(labels, where, binary=True, logits=logits)
    check_finite("logits", logits, where)


@jax.jit
def _log_losses(labels: Labels, logits: Float[AnyArray, "n *classes"]) -> Float[Array, " n"]:
    labels, logits = jnp.asarray(labels), jnp.asarray(logits)
    if logits.ndim == 1:
        return jax.nn.softplus(jnp.where(labels == 1, -logits, logits))
    chosen = jnp.take_along_axis(logits, labels.astype(jnp.int32)[:, None], axis=1)[:, 0]
    return jax.nn.logsumexp(logits, axis=1) - chosen


def _mean_of(terms: Callable[..., Float[Array, " n"]], check: Callable[..., None]) -> Metric:
    mean = mean_metric()

    def update(state: Any, labels: Labels, scores: Float[AnyArray, "n *classes"], where: Where = None) -> Any:
        check(labels, scores, where)
        return mean.update(state, terms(labels, scores), where=where)

    return mean._replace(update=update)


def _mean(values: Float[Array, " n"], where: Where) -> Float[Array, ""]:
    mean = mean_metric()
    return mean.compute(mean.update(mean.init(), values, where=where))
