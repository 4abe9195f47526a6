"""Exact nearest neighbours between tables of features, a block of rows at a time.

Squared distances are |x|² + |y|² - 2 xᵀy around one of the points, so that features far from 0 lose no digits; those of
the neighbours found are computed again from the differences, so that a copy is at distance 0.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

Rows = tuple[Float[Array, "n d"], Bool[Array, " n"]]  # the features, and which of them count
OtherRows = tuple[Float[Array, "m d"], Bool[Array, " m"]]


def around_one(points: Rows, others: OtherRows) -> tuple[Rows, OtherRows]:
    """Points [n, d] and others [m, d] relative to the first point that counts."""
    origin = points[0][jnp.argmax(points[1])][None]
    return (points[0] - origin, points[1]), (others[0] - origin, others[1])


def squared_distances(row: Float[Array, " d"], points: Float[Array, "n d"]) -> Float[Array, " n"]:
    """From one row [d] to every point [n, d]."""
    return jnp.maximum((points**2).sum(axis=1) - 2 * (points @ row) + row @ row, 0)


def by_blocks(function: Callable[..., Any], *rows: Shaped[Array, "n ..."], batch_size: int) -> Any:
    """The function of one row, over the rows of arrays [n, ...], `batch_size` at a time."""
    if len(rows[0]) <= batch_size:
        return jax.vmap(function)(*rows)
    return jax.lax.map(lambda row: function(*row), rows, batch_size=batch_size)


def k_nearest(
    queries: OtherRows, points: Rows | None, k: int, batch_size: int
) -> tuple[Float[Array, "m k"], Int[Array, "m k"]]:
    """Squared distances, rising, and indices of the k nearest points of each query; inf where there are fewer.

    Args:
      queries: [m, d].
      points: [n, d]; None: the queries themselves, of which none is its own neighbour.
      k: how many.
      batch_size: queries at a time.

    Returns:
      Each [m, k].
    """
    (features, kept), among_themselves = points or queries, points is None
    places = jnp.arange(len(features))

    def of_row(row: Float[Array, " d"], place: Int[Array, ""]) -> tuple[Array, Array]:
        allowed = kept & (places != place) if among_themselves else kept
        found, chosen = jax.lax.top_k(-jnp.where(allowed, squared_distances(row, features), jnp.inf), k)
        exact = ((features[chosen] - row[None]) ** 2).sum(axis=1)
        exact = jnp.where(jnp.isinf(found), jnp.inf, exact)
        exact, chosen = jax.lax.sort((exact, chosen), num_keys=1)
        return exact, chosen

    return by_blocks(of_row, queries[0], jnp.arange(len(queries[0])), batch_size=batch_size)
