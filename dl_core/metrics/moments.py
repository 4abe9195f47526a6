"""Mean and covariance of features, in one pass: sums of x - c and of (x - c)(x - c)ᵀ around a fixed point c.

The sums of two sets of examples add up, in any order and grouping and over devices (`jax.lax.psum`). What float32
leaves of them depends on c: an entry of the covariance is wrong by about 1e-7 |mean - c|², so c should lie as near the
mean as the features spread. The mean of a first batch does, and 0 does for features such as those behind a ReLU.

    metric = feature_moments_metric(512, centre=first_features.mean(axis=0))
    for images, valid in batches:
        state = update(state, models.features(model, variables, images)["penultimate"], where=valid)  # inside one jit
    metric.compute(state)
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dl_core.errors import UsageError
from dl_core.metrics.accumulator import AnyArray, CompensatedSum, Metric, compensated, metric_from_sums
from dl_core.metrics.checks import Where
from dl_core.metrics.feature_sets import check_features, kept_rows
from dl_core.metrics.float64 import in_float64

Centre = Float[AnyArray, " d"] | float


class Moments(NamedTuple):
    """Mean [d], covariance [d, d] (the sum divided by n - 1), and the number n of examples."""

    mean: Float[AnyArray, " d"]
    covariance: Float[AnyArray, "d d"]
    num_examples: Int[AnyArray, ""] | int


class MomentSums(NamedTuple):
    """Over examples: their number, the sum of x - c [d] and that of (x - c)(x - c)ᵀ [d, d]."""

    num_examples: Int[Array, ""]
    first: CompensatedSum
    second: CompensatedSum


def zero_moment_sums(num_features: int) -> MomentSums:
    """The sums [d] and [d, d] over no examples."""
    return MomentSums(
        jnp.int32(0), compensated(jnp.zeros(num_features)), compensated(jnp.zeros((num_features, num_features)))
    )


def moment_sums(features: Float[AnyArray, "n d"], centre: Float[AnyArray, "1 d"], where: Where) -> MomentSums:
    """The sums over the rows of features [n, d] that `where` [n] keeps."""
    features, kept = kept_rows(features, where)
    off = jnp.where(kept[:, None], features - centre, 0)
    second = jnp.matmul(off.T, off, precision="highest")
    return MomentSums(kept.sum(dtype=jnp.int32), compensated(off.sum(axis=0)), compensated(second))


@in_float64
def moments_of_sums(sums: MomentSums, centre: Float[AnyArray, "1 d"]) -> Moments:
    """Moments from sums around the centre [d]; the covariance of fewer than two examples is nan."""
    first, second = (total.high + total.low for total in (sums.first, sums.second))
    mean = first / sums.num_examples
    covariance = (second - sums.num_examples * mean[:, None] * mean[None]) / (sums.num_examples - 1)
    return Moments(centre[0] + mean, covariance, sums.num_examples)


def centre_row(centre: Centre, num_features: int) -> Float[Array, "1 d"]:
    """The centre [d], or one number for all d features, as a row [1, d].

    Raises:
      UsageError: num_features < 1, or a centre of another length.
    """
    if num_features < 1:
        raise UsageError(f"num_features must be at least 1, got {num_features}")
    if jnp.shape(centre) not in ((), (num_features,)):
        raise UsageError(f"centre must be one number or have shape [{num_features}], got {list(jnp.shape(centre))}")
    return jnp.broadcast_to(jnp.asarray(centre, float), (1, num_features))


def feature_moments_metric(num_features: int, centre: Centre = 0.0) -> Metric:
    """Accumulator of `feature_moments`.

    Args:
      num_features: d.
      centre: a point near the mean; see above for what it is worth.

    Returns:
      A Metric: `update(state, features float [n, d], where=None)`. Its `compute` gives float64 outside jit.

    Raises:
      UsageError: num_features < 1, or a centre of another length.
    """
    row = centre_row(centre, num_features)
    return metric_from_sums(
        lambda: zero_moment_sums(num_features),
        lambda features, where: moment_sums(features, row, where),
        lambda sums: moments_of_sums(sums, row),
    )


@in_float64
@jax.jit
def _moments(features: Float[AnyArray, "n d"], where: Where) -> Moments:
    features, kept = kept_rows(features, where)
    centre = features.sum(axis=0, keepdims=True) / jnp.maximum(kept.sum(), 1)
    return moments_of_sums(moment_sums(features, centre, where), centre)


def feature_moments(features: Float[AnyArray, "n d"], *, where: Where = None) -> Moments:
    """Mean and covariance of feature vectors, around their own mean: no digits are lost to its distance from 0.

    Args:
      features: one vector for each example.
      where: the rows that count; all by default.

    Returns:
      Moments: float64 NumPy arrays; inside jit in the features' precision, at least float32.

    Raises:
      UsageError: not [n, d], not finite, or fewer than two examples.
    """
    check_features("features", features, where, at_least=2)
    return _moments(features, where)
