"""How far predicted values and angles are from the true ones.

The mean of directions is the direction of the mean vector; that vector's length R, from 0 (all around) to 1 (all the
same), says how much they agree. Mardia, Jupp (2000), *Directional Statistics*, §2.2. All angles are in degrees.

What all of them refuse is said at `mean_absolute_error`.
"""

import functools
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from dl_core.errors import UsageError
from dl_core.losses.regression import angle_of, circular_distance, unit_vector
from dl_core.metrics.accumulator import (
    AnyArray,
    CompensatedSum,
    Metric,
    compensated,
    metric_from_sums,
    where_or_all,
)
from dl_core.metrics.checks import check_finite, check_not_empty, check_same_length

Values = Float[AnyArray, " n"]
Where = Bool[AnyArray, " n"] | None
Scalar = Float[Array, ""]


def _total(terms: Float[Array, "n ..."], where: Where) -> CompensatedSum:
    kept = where_or_all(where, terms).reshape(-1, *(1,) * (terms.ndim - 1))
    return compensated(jnp.where(kept, terms, 0).sum(axis=0))


def _value(total: CompensatedSum) -> Float[Array, "..."]:
    return total.high + total.low


def _means_metric(
    terms: Callable[..., Array], compute: Callable[[Array], Array], shape: tuple[int, ...] = ()
) -> Metric:
    """The Metric `compute(mean over the examples of terms(*arrays))`."""

    def sums(*arrays: Values, where: Where = None) -> tuple[CompensatedSum, Array]:
        return _total(terms(*arrays), where), where_or_all(where, arrays[0]).sum(dtype=jnp.int32)

    zeros = lambda: (compensated(jnp.zeros(shape, jnp.float32)), jnp.int32(0))
    return metric_from_sums(zeros, sums, lambda state: compute(_value(state[0]) / state[1]))


def _check(where: Where, **arrays: Values) -> None:
    check_same_length(**arrays, where=where)
    for name, array in arrays.items():
        if np.ndim(array) != 1:  # [n] and [n, 1] would be compared each with each
            raise UsageError(f"{name} must have shape [n], got {list(np.shape(array))}; give one column, array[:, 0]")
        check_not_empty(name, array, where)
        check_finite(name, array, where)


def _of_all(metric: Metric, *, where: Where, **arrays: Values) -> Array:
    _check(where, **arrays)
    return metric.compute(metric.update(metric.init(), *map(jnp.asarray, arrays.values()), where=where))


def mean_absolute_error_metric() -> Metric:
    """Accumulator of `mean_absolute_error`: `update(state, labels [n], predictions [n], where=None)`."""
    return _means_metric(lambda labels, predictions: jnp.abs(predictions - labels), lambda mean: mean)


def mean_absolute_error(labels: Values, predictions: Values, *, where: Where = None) -> Scalar:
    """Mean of |p - t|.

    Args:
      labels: true values t.
      predictions: p.
      where: the rows that count; all by default.

    Returns:
      A scalar >= 0; nan inside jit without examples.

    Raises:
      UsageError: shapes that do not match, no examples; outside jit also values that are not finite.
    """
    return _of_all(mean_absolute_error_metric(), labels=labels, predictions=predictions, where=where)


def root_mean_squared_error_metric() -> Metric:
    """Accumulator of `root_mean_squared_error`: `update(state, labels [n], predictions [n], where=None)`."""
    return _means_metric(lambda labels, predictions: (predictions - labels) ** 2, jnp.sqrt)


def root_mean_squared_error(labels: Values, predictions: Values, *, where: Where = None) -> Scalar:
    """Root of the mean of (p - t)²; arguments and result as in `mean_absolute_error`."""
    return _of_all(root_mean_squared_error_metric(), labels=labels, predictions=predictions, where=where)


def r2_score_metric(centre: float | Scalar = 0.0) -> Metric:
    """Accumulator of `r2_score`.

    Args:
      centre: any value near the labels' mean; the closer, the fewer digits are lost.

    Returns:
      A Metric: `update(state, labels [n], predictions [n], where=None)`.
    """

    def terms(labels: Values, predictions: Values) -> Float[Array, "n 3"]:
        off = labels - centre
        return jnp.stack([off, off**2, (predictions - labels) ** 2], axis=1)

    def compute(means: Float[Array, "3"]) -> Scalar:
        return 1 - means[2] / (means[1] - means[0] ** 2)

    return _means_metric(terms, compute, (3,))


def r2_score(labels: Values, predictions: Values, *, where: Where = None) -> Scalar:
    """The share of the labels' variance that is explained: 1 - Σ(p - t)² / Σ(t - mean t)².

    Args:
      labels: true values t.
      predictions: p.
      where: the rows that count; all by default.

    Returns:
      A scalar <= 1: 0 for always answering the mean, below 0 for worse; nan or -inf where all labels agree.
    """
    _check(where, labels=labels, predictions=predictions)  # before the mean of the labels is taken
    centre = jnp.mean(jnp.asarray(labels), where=where)
    return _of_all(r2_score_metric(centre), labels=labels, predictions=predictions, where=where)


def circular_mean_absolute_error_metric() -> Metric:
    """Accumulator of `circular_mean_absolute_error`: `update(state, labels [n], predictions [n], where=None)`."""
    return _means_metric(circular_distance, lambda mean: mean)


def circular_mean_absolute_error(labels: Values, predictions: Values, *, where: Where = None) -> Scalar:
    """Mean of the shorter way around between angles.

    Args:
      labels: true angles, degrees.
      predictions: degrees.
      where: the rows that count; all by default.

    Returns:
      Degrees in [0, 180]: 90 for any constant answer to directions that are uniform.
    """
    return _of_all(circular_mean_absolute_error_metric(), labels=labels, predictions=predictions, where=where)


def circular_mean_metric() -> Metric:
    """Accumulator of `circular_mean`: `update(state, degrees [n], where=None)`."""
    return _means_metric(unit_vector, angle_of, (2,))


def circular_mean(degrees: Values, *, where: Where = None) -> Scalar:
    """The direction of the mean vector: 0 for 350 and 10, whose arithmetic mean is 180.

    Args:
      degrees: angles.
      where: the rows that count; all by default.

    Returns:
      Degrees in [0, 360); without meaning where `resultant_length` is near 0.
    """
    return _of_all(circular_mean_metric(), degrees=degrees, where=where)


def resultant_length_metric() -> Metric:
    """Accumulator of `resultant_length`: `update(state, degrees [n], where=None)`."""
    return _means_metric(unit_vector, functools.partial(jnp.linalg.norm, axis=-1), (2,))


def resultant_length(degrees: Values, *, where: Where = None) -> Scalar:
    """The length R of the mean vector of directions.

    Args:
      degrees: angles; of errors, 1 - R is their circular variance.
      where: the rows that count; all by default.

    Returns:
      In [0, 1]: 1 where all agree.
    """
    return _of_all(resultant_length_metric(), degrees=degrees, where=where)
