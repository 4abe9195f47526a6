"""Long sums in fixed memory: integration nodes, noise samples, occluded positions, coalitions, some at a time."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.tree_util import Partial
from jaxtyping import Array, Float

from dl_core.errors import UsageError
from dl_core.loops import scan

# of the rows that a model is given at once, where the caller sets no limit; small pieces stay in a processor's cache
MOST_VALUES, MOST_VALUES_ON_CPU = 2**23, 2**16

Progress = Callable[[int, int], None]  # (pieces done, pieces in all)


def variants_at_once(internal_batch_size: int | None, inputs: Float[Array, "batch ..."], variants: int) -> int:
    """How many changed copies of the whole batch a model is given at once.

    Args:
      internal_batch_size: most rows (examples × variants) at once, >= 1; None bounds the number of values instead.
      inputs: the examples.
      variants: how many copies of the batch there are to be evaluated.

    Returns:
      In [1, variants]: one variant of every example is the least that is taken.

    Raises:
      UsageError: internal_batch_size below 1.
    """
    if internal_batch_size is not None and internal_batch_size < 1:
        raise UsageError(f"internal_batch_size must be at least 1, got {internal_batch_size}")
    known = isinstance(inputs, jax.Array) and not isinstance(inputs, Tracer)
    platform = next(iter(inputs.devices())).platform if known else jax.default_backend()
    most_values = MOST_VALUES_ON_CPU if platform == "cpu" else MOST_VALUES
    most = internal_batch_size or most_values // max(1, math.prod(inputs.shape[1:]))
    at_once = min(max(1, most // max(1, len(inputs))), variants)
    return -(-variants // -(-variants // at_once))  # pieces of equal size


def sum_over(
    function: Partial,
    xs: Any,
    *,
    at_once: int,
    loop: str = "auto",
    progress: Progress | None = None,
) -> Any:
    """Sum of function(x) over the first axis of xs, `at_once` of them mapped by `vmap`, the pieces one after another.

    Args:
      function: x -> pytree of arrays, as a `Partial` of a function that stays (see `dl_core.loops`).
      xs: pytree of arrays [variants, ...].
      at_once: how many x in one piece, see `variants_at_once`. The result is the same for any.
      loop: how the pieces are driven; see `dl_core.loops`.
      progress: called with (pieces done, pieces in all); the host then drives. Not inside `jit`.

    Returns:
      The sum, in at least float32.
    """
    variants = len(jax.tree.leaves(xs)[0])
    pieces = -(-variants // at_once)
    surplus = pieces * at_once - variants  # copies of the last that count for nothing
    weights = np.pad(np.ones(variants, np.float32), (0, surplus)).reshape(pieces, at_once)
    one = _call.eval_shape(function, jax.tree.map(lambda leaf: leaf[0], xs))  # jit remembers: traced once only
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.promote_types(leaf.dtype, jnp.float32)), one)
    step = Partial(_add_piece, function)
    return scan(step, zeros, (_in_pieces(xs, pieces, surplus), weights), loop=loop, progress=progress)[0]


def map_over(
    function: Partial,
    xs: Any,
    *,
    at_once: int,
    loop: str = "auto",
    progress: Progress | None = None,
) -> Any:
    """function(x) for every x along the first axis of xs; see `sum_over`.

    Returns:
      Pytree of arrays [variants, ...].
    """
    variants = len(jax.tree.leaves(xs)[0])
    pieces = -(-variants // at_once)
    xs = _in_pieces(xs, pieces, pieces * at_once - variants)
    _, ys = scan(Partial(_map_piece, function), jnp.zeros(()), xs, loop=loop, progress=progress)
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:variants], ys)


@jax.jit
def _call(function: Partial, x: Any) -> Any:
    return function(x)


def _in_pieces(xs: Any, pieces: int, surplus: int) -> Any:
    def divide(leaf: Any) -> Any:
        library = jnp if isinstance(leaf, jax.Array) else np
        filled = library.concatenate([leaf, library.repeat(leaf[-1:], surplus, axis=0)]) if surplus else leaf
        return filled.reshape(pieces, -1, *leaf.shape[1:])

    return jax.tree.map(divide, xs)


def _add_piece(function: Partial, total: Any, piece: tuple[Any, Float[Array, " at_once"]]) -> tuple[Any, None]:
    xs, weights = piece
    weighted = lambda sums, values: sums + jnp.tensordot(weights.astype(sums.dtype), values.astype(sums.dtype), axes=1)
    return jax.tree.map(weighted, total, jax.vmap(function)(xs)), None


def _map_piece(function: Partial, carry: Float[Array, ""], xs: Any) -> tuple[Float[Array, ""], Any]:
    return carry, jax.vmap(function)(xs)
