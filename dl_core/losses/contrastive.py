"""Losses for metric learning: the same together, others apart. Embeddings are [batch, features].

What Optax has goes by Optax's name:

    triplet_margin_loss(anchors, positives, negatives)   max(0, d(a, p) - d(a, n) + margin), one per triplet
    ntxent(embeddings, labels, temperature)              NT-Xent of SimCLR: one scalar, the mean over the positive pairs
    cosine_distance(predictions, targets)                1 - cos of the angle between; at a zero vector give epsilon > 0

`ntxent` is NaN for a batch in which no label occurs twice, and takes no mask; `info_nce` has a value for each row, and
masks. `triplet_margin_loss` adds its eps under the root, PyTorch to every difference; its norm_degree must be even.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
from optax.losses import cosine_distance, ntxent, triplet_margin_loss

from dl_core.errors import UsageError
from dl_core.losses.classification import cross_entropy
from dl_core.optim.options import Number, in_interval

__all__ = ["contrastive", "cosine_distance", "info_nce", "ntxent", "triplet_margin_loss"]


def contrastive(
    first: Float[Array, "*batch features"],
    second: Float[Array, "..."],  # of the shape of the first, checked below
    same: Bool[Array, "*batch"] | Int[Array, "*batch"],
    *,
    margin: Number = 1.0,
) -> Float[Array, "*batch"]:
    """d² / 2 for a pair of the same kind, max(0, margin - d)² / 2 for one of two kinds; d the Euclidean distance.

    Hadsell, Chopra, LeCun (2006), "Dimensionality reduction by learning an invariant mapping", eq. 4.

    Args:
      first: embeddings.
      second: embeddings, the same shape.
      same: whether the pair is of one kind.
      margin: how far apart others are to be, > 0.

    Returns:
      One loss per pair, >= 0. At d = 0 the gradient is 0.

    Raises:
      UsageError: two shapes, or a margin that is not positive.
    """
    in_interval("margin", margin, "(0, inf)")
    _check_pairs(first, second)
    squares = jnp.sum((first - second) ** 2, axis=-1)
    equal = squares == 0  # the root has no gradient there
    distances = jnp.where(equal, 0, jnp.sqrt(jnp.where(equal, 1, squares)))
    return 0.5 * jnp.where(same != 0, squares, jnp.maximum(0, margin - distances) ** 2)


def info_nce(
    queries: Float[Array, "batch features"],
    keys: Float[Array, "..."],  # of the shape of the queries, checked below
    *,
    temperature: Number = 0.07,
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    """Which of the batch's keys belongs to query i? Cross-entropy of cosine similarities / T, with key i as the class.

    van den Oord, Li, Vinyals (2018), https://arxiv.org/abs/1807.03748, eq. 4. The loss of CLIP is the mean of this and
    of the same with queries and keys exchanged.

    Args:
      queries: embeddings of any length.
      keys: embeddings, row i that of the other view (or the caption) of query i.
      temperature: T > 0.
      where: the rows that count: others have loss 0, and are nobody's negatives.

    Returns:
      One loss per query, >= 0; log(batch) where all keys are the same.

    Raises:
      UsageError: two shapes, or a temperature that is not positive.
    """
    in_interval("temperature", temperature, "(0, inf)")
    _check_pairs(queries, keys)
    kept = jnp.ones(queries.shape[0], bool) if where is None else where
    queries, keys = (_unit(jnp.where(kept[:, None], rows, 1)) for rows in (queries, keys))
    similarities = jnp.where(kept[None, :], queries @ keys.T / temperature, -jnp.inf)
    return cross_entropy(similarities, jnp.arange(len(kept)), where=where)


def _unit(rows: Float[Array, "batch features"]) -> Float[Array, "batch features"]:
    rows = rows.astype(jnp.promote_types(rows.dtype, jnp.float32))
    squares = jnp.sum(rows**2, axis=-1, keepdims=True)
    return rows / jnp.sqrt(jnp.maximum(squares, 1e-12))  # finite at the origin


def _check_pairs(first: Float[Array, "..."], second: Float[Array, "..."]) -> None:
    if first.shape != second.shape:
        raise UsageError(f"embeddings come in pairs of one shape, got {first.shape} and {second.shape}")
