"""Whether a generator repeats its training examples: the nearest of them, and how near is too near."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

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
from dl_core.metrics.nearest import around_one, k_nearest


class Neighbours(NamedTuple):
    """For each generated example, distances and indices of its nearest training examples, the nearest first."""

    distances: Float[AnyArray, "m k"]
    indices: Int[AnyArray, "m k"]


@in_float64
@functools.partial(jax.jit, static_argnames=("k", "batch_size"))
def _nearest(training: Array, generated: Array, where: Where, k: int, batch_size: int) -> Neighbours:
    points, queries = around_one(kept_rows(training, where), kept_rows(generated, None))
    squared, indices = k_nearest(queries, points, k, batch_size)
    return Neighbours(jnp.sqrt(squared), indices)


def nearest_training_examples(
    training: Features,
    generated: OtherFeatures,
    *,
    k: int = 1,
    where: Where = None,
    batch_size: int = 256,
) -> Neighbours:
    """The k training examples nearest to each generated one: exact, by Euclidean distance of their features.

    Args:
      training: features of the training images.
      generated: features of generated images, from the same network.
      k: how many, at most n.
      where: bool [n], the training examples that count; all by default.
      batch_size: generated rows at a time; memory grows with batch_size n.

    Returns:
      Neighbours; float64 outside jit. A copy of a training example is at distance 0. Inside jit, where fewer than k
      count, the rest are at distance inf.

    Raises:
      UsageError: k < 1 or more than there are training examples, numbers of features that differ, NaN, batch_size < 1.
    """
    if k < 1:
        raise UsageError(f"k must be at least 1, got {k}")
    check_feature_sets(
        training, generated, where, None, at_least=k, at_least_generated=1, names=("training", "generated")
    )
    check_batch_size(batch_size)
    return _nearest(training, generated, where, k, batch_size)


@in_float64
@functools.partial(jax.jit, static_argnames="batch_size")
def _authenticity(training: Array, generated: Array, where_t: Where, where_g: OtherWhere, batch_size: int) -> Array:
    points, queries = around_one(kept_rows(training, where_t), kept_rows(generated, where_g))
    nearest, indices = k_nearest(queries, points, 1, batch_size)
    among_training = k_nearest(points, None, 1, batch_size)[0]
    authentic = nearest[:, 0] > among_training[indices[:, 0], 0]
    kept = queries[1]
    return jnp.where(kept, authentic, 0).sum() / kept.sum()


def authenticity(
    training: Features,
    generated: OtherFeatures,
    *,
    where_reference: Where = None,
    where_generated: OtherWhere = None,
    batch_size: int = 256,
) -> Float[AnyArray, ""]:
    """The share of generated examples that are no copies of a training example; `two_set_metric` accumulates it.

    A generated example counts as a copy if it is as near to its nearest training example as that one's own nearest
    fellow is, or nearer. Copies score 0. What fresh samples of the training distribution score depends on the number of
    features (normal ones: 0.5 with 6 features, 0.8 with 64), so the number to compare with is that of held-out images.
    Alaa et al. (2022), "How Faithful is your Synthetic Data?", https://arxiv.org/abs/2102.08921.

    Args:
      training: features of the training images, n >= 2.
      generated: features of generated images, from the same network.
      where_reference, where_generated: the training and generated rows that count; all by default.
      batch_size: rows at a time; memory grows with batch_size n.

    Returns:
      A scalar in [0, 1]; float64 outside jit.

    Raises:
      UsageError: fewer than two training examples, numbers of features that differ, NaN, batch_size < 1.
    """
    names = ("training", "generated")
    check_feature_sets(
        training, generated, where_reference, where_generated, at_least=2, at_least_generated=1, names=names
    )
    check_batch_size(batch_size)
    return _authenticity(training, generated, where_reference, where_generated, batch_size)
