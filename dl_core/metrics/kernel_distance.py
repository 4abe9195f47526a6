"""Kernel distance of two sets of features (KID): the squared maximum mean discrepancy, estimated without bias.

    MMD² = E k(x, x') + E k(y, y') - 2 E k(x, y),   k(x, y) = (xᵀy / d + 1)³

with x ≠ x' and y ≠ y' among the examples, so that two samples of one distribution are at distance 0 on average, however
few they are; a single estimate may be negative. Bińkowski et al. (2018), "Demystifying MMD GANs",
https://arxiv.org/abs/1801.01401.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from dl_core.errors import UsageError
from dl_core.metrics.accumulator import AnyArray
from dl_core.metrics.checks import Where
from dl_core.metrics.feature_sets import (
    Features,
    OtherFeatures,
    OtherWhere,
    check_batch_size,
    check_feature_sets,
    kept_rows,
)
from dl_core.metrics.float64 import in_float64
from dl_core.metrics.nearest import by_blocks


class SubsetKernelDistance(NamedTuple):
    """Mean and standard deviation (divided by their number) of the kernel distances of subsets, and all of them."""

    mean: Float[AnyArray, ""]
    std: Float[AnyArray, ""]
    distances: Float[AnyArray, " subsets"]


def _kernel(products: Float[Array, "*shape"], num_features: int) -> Float[Array, "*shape"]:
    return (products / num_features + 1) ** 3


def _kernel_sum(x: Array, kept_x: Array, y: Array, kept_y: Array, batch_size: int) -> Float[Array, ""]:
    """Σ k over all pairs of a kept row of x [n, d] and one of y [m, d], `batch_size` rows of x at a time."""

    def of_row(row: Float[Array, " d"]) -> Float[Array, ""]:
        return jnp.where(kept_y, _kernel(y @ row, x.shape[1]), 0).sum()

    sums = by_blocks(of_row, x, batch_size=batch_size)
    return jnp.where(kept_x, sums, 0).sum()


def _mean_within(x: Array, kept: Array, batch_size: int) -> Float[Array, ""]:
    count = kept.sum().astype(x.dtype)
    with_themselves = jnp.where(kept, _kernel((x**2).sum(axis=1), x.shape[1]), 0).sum()
    return (_kernel_sum(x, kept, x, kept, batch_size) - with_themselves) / (count * (count - 1))


def _discrepancy(x: Array, kept_x: Array, y: Array, kept_y: Array, batch_size: int) -> Float[Array, ""]:
    pairs = kept_x.sum().astype(x.dtype) * kept_y.sum().astype(x.dtype)
    between = _kernel_sum(x, kept_x, y, kept_y, batch_size) / pairs
    return _mean_within(x, kept_x, batch_size) + _mean_within(y, kept_y, batch_size) - 2 * between


@in_float64
@functools.partial(jax.jit, static_argnames="batch_size")
def _kernel_distance(reference: Array, generated: Array, where: Where, where_generated: OtherWhere, batch_size: int):
    return _discrepancy(*kept_rows(reference, where), *kept_rows(generated, where_generated), batch_size)


def kernel_distance(
    reference: Features,
    generated: OtherFeatures,
    *,
    where_reference: Where = None,
    where_generated: OtherWhere = None,
    batch_size: int = 256,
) -> Float[AnyArray, ""]:
    """Unbiased squared maximum mean discrepancy of all examples (KID); `two_set_metric` makes its accumulator.

    Args:
      reference: features of real images [n, d], n >= 2.
      generated: features of generated images [m, d], m >= 2.
      where_reference, where_generated: the rows that count; all by default.
      batch_size: rows at a time; memory grows with batch_size (n + m).

    Returns:
      A scalar, 0 on average where both come from one distribution, sometimes below. float64 outside jit.

    Raises:
      UsageError: fewer than two examples, numbers of features that differ, NaN, batch_size < 1.
    """
    check_feature_sets(reference, generated, where_reference, where_generated, at_least=2)
    check_batch_size(batch_size)
    return _kernel_distance(reference, generated, where_reference, where_generated, batch_size)


@in_float64
@functools.partial(jax.jit, static_argnames=("num_subsets", "subset_size", "batch_size"))
def _of_subsets(
    reference: Array,
    generated: Array,
    where_reference: Where,
    where_generated: OtherWhere,
    key: PRNGKeyArray,
    num_subsets: int,
    subset_size: int,
    batch_size: int,
) -> SubsetKernelDistance:
    sets = kept_rows(reference, where_reference), kept_rows(generated, where_generated)

    def drawn(key: PRNGKeyArray, features: Array, kept: Bool[Array, " n"]) -> tuple[Array, Array]:
        order = jax.random.uniform(key, kept.shape, jnp.float32)
        chosen = jnp.argsort(jnp.where(kept, order, 2))[:subset_size]
        return features[chosen], kept[chosen]

    def of_subset(key: PRNGKeyArray) -> Float[Array, ""]:
        x, y = (drawn(own, *one_set) for own, one_set in zip(jax.random.split(key), sets, strict=True))
        return _discrepancy(*x, *y, batch_size)

    distances = jax.lax.map(of_subset, jax.random.split(key, num_subsets))
    return SubsetKernelDistance(distances.mean(), distances.std(), distances)


def kernel_distance_of_subsets(
    reference: Features,
    generated: OtherFeatures,
    *,
    key: PRNGKeyArray,
    num_subsets: int = 100,
    subset_size: int = 1000,
    where_reference: Where = None,
    where_generated: OtherWhere = None,
    batch_size: int = 256,
) -> SubsetKernelDistance:
    """Kernel distances of random subsets, as the literature reports them: mean ± standard deviation.

    The deviation is that between subsets of this size, which share examples; it is no standard error of the mean.

    Args:
      reference: features of real images [n, d].
      generated: features of generated images [m, d].
      key: draws the subsets, each without replacement.
      num_subsets: how many.
      subset_size: examples of each set in a subset, from 2 to the smaller of n and m.
      where_reference, where_generated: the rows that count; all by default.
      batch_size: rows at a time.

    Returns:
      SubsetKernelDistance. Inside jit a subset of which masks leave fewer rows takes all that are left.

    Raises:
      UsageError: sets with fewer examples than a subset, numbers of features that differ, NaN, a number < 1.
    """
    if subset_size < 2 or num_subsets < 1:
        raise UsageError(f"subsets must be at least 1 of at least 2 examples, got {num_subsets} of {subset_size}")
    check_feature_sets(reference, generated, where_reference, where_generated, at_least=subset_size)
    check_batch_size(batch_size)
    arguments = (reference, generated, where_reference, where_generated, key)
    return _of_subsets(*arguments, num_subsets, subset_size, batch_size)
