"""Padding: any loss of this package, or of Optax, on rows of which only some are real."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

from dl_core.errors import UsageError


def masked(
    loss: Callable[..., Float[Array, "..."]],
    *arrays: Shaped[Array, "..."],  # each begins with the axes of where, checked below
    where: Bool[Array, "*batch"],
    **options: Any,
) -> Float[Array, "..."]:
    """loss(*arrays, **options) with 0 for the rows left out, and a gradient of 0 whatever they hold.

        masked(losses.huber_loss, predictions, targets, where=valid, delta=2.0)

    Multiplying by the mask afterwards is not enough: a NaN in a padded row comes back as 0 · NaN, and in the gradient
    even where `jnp.where` hides it in the value. Here the loss never sees those rows; it is given numbers in their
    place at which no logarithm, root or quotient breaks.

    Args:
      loss: a function of arrays in which row i of the result depends on row i of the arrays alone.
      arrays: predictions and targets, [*batch, ...] each.
      where: the rows that count.
      options: passed on as they are.

    Returns:
      What the loss returns, [*batch, ...]: one value per row or per element.

    Raises:
      UsageError: an array that does not begin with the axes of `where`.
    """
    for array in arrays:
        if array.shape[: where.ndim] != where.shape:
            raise UsageError(
                f"every array must begin with the axes of where, {list(where.shape)}, got {list(array.shape)}"
            )
    values = loss(*(_filled(array, where, 1 / (2 + place)) for place, array in enumerate(arrays)), **options)
    return jnp.where(_over_rows(where, values), values, 0)


def _filled(array: Shaped[Array, "..."], where: Bool[Array, "*batch"], stand_in: float) -> Shaped[Array, "..."]:
    """Integers become 0, the first class; floats differ from array to array, for the norms of differences."""
    inexact = jnp.issubdtype(array.dtype, jnp.inexact)
    return jnp.where(_over_rows(where, array), array, jnp.asarray(stand_in if inexact else 0, array.dtype))


def _over_rows(where: Bool[Array, "*batch"], array: Shaped[Array, "..."]) -> Bool[Array, "..."]:
    return jax.lax.broadcast_in_dim(where, array.shape, tuple(range(where.ndim)))
