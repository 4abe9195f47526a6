"""What a Brier score is made of: how wrong the probabilities are, how much they tell apart, how hard the data is.

Murphy (1973), "A New Vector Partition of the Probability Score", for forecasts that take few values. Probabilities put
in bins vary within a bin; Stephenson, Coelho, Jolliffe (2008), "Two Extra Components in the Brier Score Decomposition",
add the two terms with which the sum is exact. With n_b examples in bin b, their mean probability p_b, the share y_b of
ones among them and the share ȳ of ones of all:

    reliability             Σ_b n_b (p_b - y_b)² / n          0 where every bin is calibrated
    resolution              Σ_b n_b (y_b - ȳ)² / n            how far the bins differ from the base rate
    uncertainty             ȳ (1 - ȳ)                         the score of always answering the base rate
    within_bin_variance     Σ_b Σ_i (p_i - p_b)² / n
    within_bin_covariance   2 Σ_b Σ_i (p_i - p_b)(y_i - y_b) / n

    Brier score = reliability - resolution + uncertainty + within_bin_variance - within_bin_covariance

Probabilities [n, classes] are decomposed class by class, each against the rest and in bins of its own probability; the
terms are sums over the classes, as the score is.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Integer

from dl_core.errors import UsageError
from dl_core.metrics.accumulator import AnyArray, CompensatedSum, Metric, compensated, metric_from_sums, where_or_all
from dl_core.metrics.calibration import check_forecasts, equal_width_bins, sum_per_bin
from dl_core.metrics.checks import check_not_empty


class BrierDecomposition(NamedTuple):
    """The five terms; all but the covariance are >= 0 (nan without examples)."""

    reliability: Float[AnyArray, ""]
    resolution: Float[AnyArray, ""]
    uncertainty: Float[AnyArray, ""]
    within_bin_variance: Float[AnyArray, ""]
    within_bin_covariance: Float[AnyArray, ""]

    @property
    def score(self) -> Any:
        """The Brier score, a scalar: what the terms add up to."""
        return (
            self.reliability - self.resolution + self.uncertainty
            + self.within_bin_variance - self.within_bin_covariance
        )  # fmt: skip


class _Moments(NamedTuple):
    """Per class and bin. Probabilities count from the middle of their bin, or their squares would cancel."""

    total: Int[Array, "classes bins"]
    ones: Int[Array, "classes bins"]
    p: CompensatedSum
    p_squared: CompensatedSum
    p_of_ones: CompensatedSum


def brier_decomposition(
    labels: Integer[AnyArray, " n"] | Bool[AnyArray, " n"],
    probabilities: Float[AnyArray, "n *classes"],
    *,
    num_bins: int = 15,
    where: Bool[AnyArray, " n"] | None = None,
) -> BrierDecomposition:
    """The Brier score as a sum of five terms (Murphy 1973; Stephenson et al. 2008), over bins of equal width.

    Args:
      labels: true classes, in [0, classes).
      probabilities: in [0, 1]; [n, classes] with rows summing to 1, or [n] of class 1.
      num_bins: number of bins of (0, 1].
      where: the rows that count; all by default.

    Returns:
      BrierDecomposition; its `score` is `brier_score` of the same arguments.

    Raises:
      UsageError: num_bins < 1, no examples, shapes that do not match; seen outside jit, a label outside [0, classes)
        or a probability outside [0, 1].
    """
    _check_bins(num_bins)
    check_forecasts(labels, probabilities, where)
    check_not_empty("labels", labels, where)
    return _decompose(_moments(labels, probabilities, num_bins, where), num_bins)


def brier_decomposition_metric(num_classes: int, num_bins: int = 15) -> Metric:
    """Accumulator of `brier_decomposition`.

    Args:
      num_classes: columns of the probabilities; 1 for probabilities [n] of class 1.
      num_bins: number of bins.

    Returns:
      A Metric: `update(state, labels int [n], probabilities float [n, classes] or [n], where=None)`.

    Raises:
      UsageError: num_bins < 1; from `update`, as `brier_decomposition`.
    """
    _check_bins(num_bins)
    zeros = jnp.zeros((num_classes, num_bins), jnp.int32)
    nothing = compensated(jnp.zeros((num_classes, num_bins), jnp.float32))

    def sums(
        labels: Integer[AnyArray, " n"] | Bool[AnyArray, " n"],
        probabilities: Float[AnyArray, "n *classes"],
        *,
        where: Bool[AnyArray, " n"] | None,
    ) -> _Moments:
        check_forecasts(labels, probabilities, where)
        if (columns := (*probabilities.shape, 1)[1]) != num_classes:
            raise UsageError(f"probabilities must have num_classes = {num_classes} columns, got {columns}")
        return _moments(labels, probabilities, num_bins, where)

    state = lambda: _Moments(zeros, zeros, nothing, nothing, nothing)
    return metric_from_sums(state, sums, lambda moments: _decompose(moments, num_bins))


def _check_bins(num_bins: int) -> None:
    if num_bins < 1:
        raise UsageError(f"num_bins must be at least 1, got {num_bins}")


@functools.partial(jax.jit, static_argnames="num_bins")
def _moments(
    labels: Integer[AnyArray, " n"] | Bool[AnyArray, " n"],
    probabilities: Float[AnyArray, "n *classes"],
    num_bins: int,
    where: Bool[AnyArray, " n"] | None,
) -> _Moments:
    labels, probabilities = jnp.asarray(labels), jnp.asarray(probabilities)
    kept = where_or_all(where, labels)
    columns, first = (probabilities, 0) if probabilities.ndim == 2 else (probabilities[:, None], 1)
    ones = (labels[:, None] == jnp.arange(columns.shape[1])[None] + first) & kept[:, None]
    columns = jnp.where(kept[:, None], columns, 0.0)
    bins = equal_width_bins(columns, num_bins)
    p = jnp.where(kept[:, None], columns - (bins + 0.5) / num_bins, 0.0)

    def of_class(
        p: Float[Array, " n"], ones: Bool[Array, " n"], bins: Int[Array, " n"]
    ) -> tuple[Array, Array, Array, Array, Array]:
        count = lambda rows: jnp.zeros(num_bins, jnp.int32).at[bins].add(rows.astype(jnp.int32))
        add = lambda values: sum_per_bin(values, bins, num_bins)
        return count(kept), count(ones), add(p), add(p**2), add(jnp.where(ones, p, 0.0))

    total, ones, *sums = jax.vmap(of_class, in_axes=1)(p, ones, bins)
    return _Moments(total, ones, *(compensated(values) for values in sums))


def _decompose(moments: _Moments, num_bins: int) -> BrierDecomposition:
    total, ones = moments.total, moments.ones
    p, p_squared, p_of_ones = (part.high + part.low for part in moments[2:])
    n, size = total[0].sum(), jnp.maximum(total, 1)
    middles = (jnp.arange(num_bins) + 0.5)[None] / num_bins
    rate, base_rate = ones / size, ones.sum(axis=1) / n
    over_bins = lambda terms: terms.sum() / n
    return BrierDecomposition(
        over_bins(total * (middles + p / size - rate) ** 2),
        over_bins(total * (rate - base_rate[:, None]) ** 2),
        jnp.sum(base_rate * (1 - base_rate)),
        over_bins(jnp.maximum(p_squared - p**2 / size, 0.0)),
        2 * over_bins(p_of_ones - p * rate),
    )
