"""Max-pooling over windows that do not overlap, with a gradient that is elementwise."""

import functools

import jax.numpy as jnp
from jaxtyping import Array, Float


def disjoint_max_pool(
    x: Float[Array, "batch height width channels"], size: int
) -> Float[Array, "batch out_height out_width channels"]:
    """Max over windows of size × size pixels with the same stride; incomplete windows at the far edges are dropped.

    The elementwise maximum of strided slices: the values of `flax.linen.max_pool`, with an elementwise gradient where
    that of a reduce-window is XLA's select-and-scatter. Where a window attains its maximum several times, the gradient
    is shared instead of going to the first.

    Args:
      x: maps.
      size: of the window, in pixels, >= 1.

    Returns:
      Maps of height // size by width // size.
    """
    height, width = (side // size * size for side in x.shape[1:3])
    slices = [x[:, i:height:size, j:width:size] for i in range(size) for j in range(size)]
    return functools.reduce(jnp.maximum, slices)
