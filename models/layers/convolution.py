"""Convolution as the families use it: XLA's, except where a matrix product is faster on the CPU.

XLA's CPU convolution is slow on three shapes that matter: the weight gradient of 1×1 kernels (bottlenecks), images of
a few channels (the first layers of small networks), and maps smaller than the kernel (the last layers of networks for
large images on small ones); figures in tests/benchmarks/results/README.md. The forms below are plain array code, so
every derivative, `vmap` and sharding of them works as usual. On other devices XLA chooses.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

Images = Float[Array, "batch height width in_channels"]
Kernel = Float[Array, "kernel_height kernel_width in_channels_per_group out_channels"]
Maps = Float[Array, "batch out_height out_width out_channels"]


def convolution(x: Images, kernel: Kernel, strides: tuple[int, int], padding: Any, **options: Any) -> Maps:
    """`lax.conv_general_dilated` of NHWC images with HWIO kernels, in its fastest form.

    For `flax.linen.Conv(…, conv_general_dilated=convolution)`.

    Args:
      x: images.
      kernel: weights.
      strides: along height and width.
      padding: "SAME", "VALID" or ((top, bottom), (left, right)) in pixels.
      **options: dimension_numbers, dilations, groups and precision, as Linen passes them on.

    Returns:
      What lax.conv_general_dilated returns, up to rounding.
    """
    dilations = (*(options.get("lhs_dilation") or ()), *(options.get("rhs_dilation") or ()))
    plain = options.get("feature_group_count", 1) == 1 and all(rate == 1 for rate in dilations)
    if plain and jax.default_backend() == "cpu":
        height, width, channels, _ = kernel.shape
        named = isinstance(padding, str)
        pads = lax.padtype_to_pads(x.shape[1:3], (height, width), strides, padding) if named else padding
        if (height, width) == (1, 1) and np.sum(pads) == 0:
            pixels = x[:, :: strides[0], :: strides[1]]
            return jnp.tensordot(pixels, kernel[0, 0], axes=1, precision=options.get("precision"))
        if channels <= 8 and x.shape[2] + sum(pads[1]) <= 7 * width:
            return _banded_product(x, kernel, strides, pads, options.get("precision"))
        if x.shape[1] < height or x.shape[2] < width:
            return _gathered_product(x, kernel, strides, pads, options.get("precision"))
    return lax.conv_general_dilated(x, kernel, strides, padding, **options)


def _banded_product(x: Images, kernel: Kernel, strides: tuple[int, int], pads: Any, precision: Any) -> Maps:
    """One product of whole image rows with a matrix that holds the kernel along a band.

    Row y of the output is (rows y … y + kernel_height of the image, end to end) times a matrix [those pixels, output
    row]; it does image width / kernel width times the arithmetic, for narrow images at many times the speed.
    """
    height, width, channels, out_channels = kernel.shape
    x = jnp.pad(x, ((0, 0), *(tuple(pair) for pair in pads), (0, 0)))
    rows = (x.shape[1] - height) // strides[0] + 1
    columns = (x.shape[2] - width) // strides[1] + 1
    strips = [x[:, i : i + strides[0] * (rows - 1) + 1 : strides[0]] for i in range(height)]
    strips = jnp.stack(strips, axis=2).reshape(len(x), rows, -1)
    band = np.zeros((width, x.shape[2], columns), kernel.dtype)  # 1 where weight j of output column c meets pixel v
    for j in range(width):
        band[j, j + strides[1] * np.arange(columns), np.arange(columns)] = 1
    matrix = jnp.einsum("jvc,hjio->hvico", band, kernel, precision=lax.Precision.HIGHEST)
    matrix = matrix.reshape(height * x.shape[2] * channels, columns * out_channels)
    return jnp.tensordot(strips, matrix, axes=1, precision=precision).reshape(len(x), rows, columns, out_channels)


def _gathered_product(x: Images, kernel: Kernel, strides: tuple[int, int], pads: Any, precision: Any) -> Maps:
    """One product of what each kernel position sees, side by side along the channels, with all of the kernel."""
    height, width, _, out_channels = kernel.shape
    x = jnp.pad(x, ((0, 0), *(tuple(pair) for pair in pads), (0, 0)))
    rows, columns = ((n - k) // s + 1 for n, k, s in zip(x.shape[1:3], (height, width), strides, strict=True))
    down, right = strides[0] * (rows - 1) + 1, strides[1] * (columns - 1) + 1
    seen = [x[:, i : i + down : strides[0], j : j + right : strides[1]] for i in range(height) for j in range(width)]
    matrix = kernel.reshape(-1, out_channels)
    return jnp.tensordot(jnp.concatenate(seen, axis=-1), matrix, axes=1, precision=precision)
