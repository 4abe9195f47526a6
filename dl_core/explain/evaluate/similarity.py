"""How alike two explanations of the same inputs are: rank correlations with and without sign and background; SSIM.

Where an image has a background of zeros, gradient × input and its kin are zero there for any model. The equal ranks of
so many pixels make two unrelated explanations look alike, above all in absolute value; hence the ranks of the
foreground alone.
"""

from typing import NamedTuple

import dm_pix
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from dl_core.errors import UsageError

AnyArray = Array | np.ndarray


class Similarity(NamedTuple):
    """Spearman's rank correlation of two explanations, in [−1, 1]; nan where one of them is constant.

    signed, absolute: of the attributions, and of their absolute values.
    signed_foreground, absolute_foreground: of the values of the foreground alone.
    """

    signed: Float[Array, " batch"]
    absolute: Float[Array, " batch"]
    signed_foreground: Float[Array, " batch"]
    absolute_foreground: Float[Array, " batch"]


def compare_attributions(
    first: Float[AnyArray, "batch ..."], second: Float[AnyArray, "batch ..."], foreground: Bool[AnyArray, "batch ..."]
) -> Similarity:
    """Rank correlations of two explanations of the same inputs.

    Args:
      first, second: attributions of one shape.
      foreground: True where a value counts, e.g. `inputs != 0`; of the same shape.

    Returns:
      Similarity, one value for each example.
    """
    first, second, foreground = (jnp.asarray(array) for array in (first, second, foreground))
    return Similarity(
        spearman(first, second),
        spearman(jnp.abs(first), jnp.abs(second)),
        spearman(first, second, where=foreground),
        spearman(jnp.abs(first), jnp.abs(second), where=foreground),
    )


def spearman(
    first: Float[AnyArray, "batch ..."],
    second: Float[AnyArray, "batch ..."],
    *,
    where: Bool[AnyArray, "batch ..."] | None = None,
) -> Float[Array, " batch"]:
    """Spearman's rank correlation of each example: Pearson's of the ranks, equal values sharing their mean rank.

    Args:
      first, second: of one shape.
      where: the values that count; all by default.

    Returns:
      In [−1, 1]; nan where one of the two is constant, or fewer than two values count.

    Raises:
      UsageError: shapes that differ.
    """
    where = jnp.ones(jnp.shape(first), bool) if where is None else where
    if not jnp.shape(first) == jnp.shape(second) == jnp.shape(where):
        raise UsageError(
            f"both maps and `where` must have one shape, got {list(jnp.shape(first))}, {list(jnp.shape(second))} and "
            f"{list(jnp.shape(where))}"
        )
    return _spearman(*(jnp.reshape(array, (len(first), -1)) for array in (first, second, where)))


def structural_similarity(
    first: Float[AnyArray, "batch height width channels"], second: Float[AnyArray, "batch height width channels"]
) -> Float[Array, " batch"]:
    """SSIM (Wang et al. 2004; windows of 11 pixels) of the absolute maps, each scaled to [0, 1] by its own range.

    Args:
      first, second: attributions of one shape, at least 11 pixels high and wide.

    Returns:
      In [−1, 1] for each example.

    Raises:
      UsageError: maps that are too small, or of shapes that differ.
    """
    if first.shape != second.shape or min(first.shape[1:3]) < 11:
        raise UsageError(
            f"SSIM needs two maps of one shape, at least 11 pixels high and wide; got {list(first.shape)} and "
            f"{list(second.shape)}"
        )
    return jnp.asarray(dm_pix.ssim(_in_unit_range(jnp.asarray(first)), _in_unit_range(jnp.asarray(second))))


def _in_unit_range(maps: Float[Array, "batch height width channels"]) -> Float[Array, "batch height width channels"]:
    maps = jnp.abs(maps)
    low, high = (end(maps, axis=(1, 2, 3), keepdims=True) for end in (jnp.min, jnp.max))
    return (maps - low) / jnp.where(high == low, 1, high - low)


@jax.jit
def _spearman(
    first: Float[Array, "batch values"], second: Float[Array, "batch values"], where: Bool[Array, "batch values"]
) -> Float[Array, " batch"]:
    kept = where.astype(jnp.float32)
    count = kept.sum(axis=1, keepdims=True)

    def centred_ranks(values: Float[Array, "batch values"]) -> Float[Array, "batch values"]:
        ranks = jax.vmap(_mean_ranks)(jnp.where(where, values, jnp.inf)) / jnp.maximum(count, 1)
        return (ranks - (ranks * kept).sum(axis=1, keepdims=True) / count) * kept

    first, second = centred_ranks(first), centred_ranks(second)
    spread = jnp.sqrt(jnp.square(first).sum(axis=1) * jnp.square(second).sum(axis=1))
    constant = spread < 1e-6 * count[:, 0]  # rounding of the mean rank aside
    return jnp.where(constant, jnp.nan, (first * second).sum(axis=1) / jnp.where(constant, 1, spread))


def _mean_ranks(values: Float[Array, " values"]) -> Float[Array, " values"]:
    """Ranks from 0 in rising order; equal values have the mean of the ranks that they take up together."""
    order = jnp.argsort(values)
    rising, places = values[order], jnp.arange(len(values))
    begins = jnp.concatenate([jnp.ones(1, bool), rising[1:] != rising[:-1]])
    ends = jnp.concatenate([begins[1:], jnp.ones(1, bool)])
    first = jax.lax.cummax(jnp.where(begins, places, 0))
    last = jax.lax.cummin(jnp.where(ends, places, len(values)), reverse=True)
    return jnp.zeros(len(values), jnp.float32).at[order].set((first + last).astype(jnp.float32) / 2)
