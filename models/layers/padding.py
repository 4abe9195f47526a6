"""What lies beyond the edge of an image: padding modes for maps, and for any `flax.linen.Conv`."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from dl_core.errors import unknown_name
from models.layers.convolution import convolution

# Names of the literature -> those of numpy.pad, which are understood too.
_MODES = {"zero": "constant", "nearest": "edge", "mean": "mean", "mirror": "reflect", "circular": "wrap"}
_ALL = {**_MODES, **{mode: mode for mode in (*_MODES.values(), "symmetric")}}


def pad(
    x: Float[Array | np.ndarray, "batch height width channels"],
    widths: tuple[tuple[int, int], tuple[int, int]],
    mode: str = "zero",
) -> Float[Array, "batch out_height out_width channels"]:
    """Extends maps beyond their edges.

    Args:
      x: maps.
      widths: ((top, bottom), (left, right)) in pixels, >= 0.
      mode: "zero" (numpy's "constant"); "nearest" ("edge"), the pixel at the edge; "mean", of each column, then of each
        row; "mirror" ("reflect"), without repeating the pixel at the edge; "symmetric", repeating it; or "circular"
        ("wrap"), the other end of the image.

    Returns:
      [batch, top + height + bottom, left + width + right, channels].

    Raises:
      UsageError: unknown mode.
    """
    if mode not in _ALL:
        raise unknown_name("padding mode", mode, _ALL)
    return jnp.pad(jnp.asarray(x), ((0, 0), *widths, (0, 0)), mode=_ALL[mode])


def padded_convolution(mode: str) -> Callable[..., Array]:
    """A convolution whose padding has a mode: `flax.linen.Conv(…, conv_general_dilated=padded_convolution("mirror"))`.

    Args:
      mode: as for `pad`.

    Returns:
      A function with the arguments of `lax.conv_general_dilated`, for maps [batch, height, width, channels] and kernels
      [height, width, in, out]; "SAME" and explicit paddings are filled as the mode says.

    Raises:
      UsageError: unknown mode.
    """
    if mode not in _ALL:
        raise unknown_name("padding mode", mode, _ALL)

    def convolve(x: Array, kernel: Array, strides: tuple[int, int], padding: Any, **options: Any) -> Array:
        if isinstance(padding, str):
            dilation = options.get("rhs_dilation") or (1, 1)
            reach = [(side - 1) * rate + 1 for side, rate in zip(kernel.shape[:2], dilation, strict=True)]
            padding = lax.padtype_to_pads(x.shape[1:3], reach, strides, padding)
        x = pad(x, tuple(tuple(pair) for pair in padding), mode)
        return convolution(x, kernel, strides, ((0, 0), (0, 0)), **options)

    return convolve
