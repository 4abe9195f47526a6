"""Precision, recall, density and coverage of a generator: fidelity and variety apart, where the FID mixes them.

Each set of examples spans a region, the union of balls around its members that reach to their k-th nearest fellow.

* precision: the share of generated examples inside the region of the real ones; recall: the converse.
  Kynkäänniemi et al. (2019), https://arxiv.org/abs/1904.06991 (k = 3).
* density: how many balls of real examples hold a generated one, over k; an outlier's big ball weighs little.
* coverage: the share of real examples whose own ball holds a generated one; the generated ones span no region.
  Naeem et al. (2020), https://arxiv.org/abs/2002.09797 (k = 5).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

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
from dl_core.metrics.nearest import around_one, by_blocks, k_nearest, squared_distances


class ManifoldScores(NamedTuple):
    """Precision, recall and coverage in [0, 1]; density >= 0, 1 on average where both distributions are the same."""

    precision: Float[AnyArray, ""]
    recall: Float[AnyArray, ""]
    density: Float[AnyArray, ""]
    coverage: Float[AnyArray, ""]


@in_float64
@functools.partial(jax.jit, static_argnames=("k", "batch_size"))
def _scores(
    reference: Array, generated: Array, where_reference: Where, where_generated: OtherWhere, k: int, batch_size: int
) -> ManifoldScores:
    real, fake = around_one(kept_rows(reference, where_reference), kept_rows(generated, where_generated))
    (x, kept_x), (y, kept_y) = real, fake
    reach_x = k_nearest(real, None, k, batch_size)[0][:, -1]  # squared, as all distances here: a tie stays a tie
    reach_y = k_nearest(fake, None, k, batch_size)[0][:, -1]

    def of_generated(row: Float[Array, " d"]) -> Array:
        return ((squared_distances(row, x) <= reach_x) & kept_x).sum()

    def of_real(row: Float[Array, " d"], reach: Float[Array, ""]) -> tuple[Array, Array]:
        squared = squared_distances(row, y)
        return ((squared <= reach_y) & kept_y).any(), ((squared <= reach) & kept_y).any()

    balls = by_blocks(of_generated, y, batch_size=batch_size)
    recalled, covered = by_blocks(of_real, x, reach_x, batch_size=batch_size)
    share = lambda values, kept: jnp.where(kept, values, 0).sum() / kept.sum()
    return ManifoldScores(
        share(balls > 0, kept_y), share(recalled, kept_x), share(balls, kept_y) / k, share(covered, kept_x)
    )


def manifold_scores(
    reference: Features,
    generated: OtherFeatures,
    *,
    k: int = 3,
    where_reference: Where = None,
    where_generated: OtherWhere = None,
    batch_size: int = 256,
) -> ManifoldScores:
    """Precision, recall, density and coverage of generated examples; `two_set_metric` makes their accumulator.

    Both sets should be of one size: more real examples raise precision, more generated ones recall and coverage.

    Args:
      reference: features of real images.
      generated: features of generated images, from the same network.
      k: which nearest fellow, itself not counted, a ball reaches to; its border belongs to it.
      where_reference, where_generated: the rows that count; all by default.
      batch_size: rows at a time; memory grows with batch_size (n + m).

    Returns:
      ManifoldScores; float64 outside jit.

    Raises:
      UsageError: k < 1, a set of fewer than k + 1 examples, numbers of features that differ, NaN, batch_size < 1.
    """
    if k < 1:
        raise UsageError(f"k must be at least 1, got {k}")
    check_feature_sets(reference, generated, where_reference, where_generated, at_least=k + 1)
    check_batch_size(batch_size)
    return _scores(reference, generated, where_reference, where_generated, k, batch_size)
