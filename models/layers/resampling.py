"""Maps of another size, with torch's arithmetic: interpolation, transposed convolution, sub-pixel shuffle, unpooling.

Interpolation is a product with a small matrix along each side (Keys, 1981, "Cubic convolution interpolation for digital
image processing", for the bicubic one). `jax.image.resize` differs from torch in three ways: it antialiases by default,
has a = -1/2 in the cubic kernel instead of -3/4, and knows no align_corners.
"""

import math
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from dl_core.errors import UsageError, unknown_name

Maps = Float[Array | np.ndarray, "batch height width channels"]
NewMaps = Float[Array, "batch out_height out_width out_channels"]

_METHODS = ("nearest", "nearest-exact", "bilinear", "bicubic")


def resize(
    x: Maps, size: tuple[int, int], method: str = "bilinear", *, align_corners: bool = False, antialias: bool = False
) -> Float[Array, "batch out_height out_width channels"]:
    """Interpolation to another size: `torch.nn.functional.interpolate`.

    Args:
      x: maps.
      size: height and width of the result, >= 1.
      method: "nearest" (pixel floor(i n / m): half a pixel off, as torch keeps it for old weights), "nearest-exact",
        "bilinear" or "bicubic".
      align_corners: the centres of the corner pixels stay where they are, instead of the corners of the image; for the
        last two methods.
      antialias: average over all pixels that a smaller result covers, as PIL does; for the last two methods.

    Returns:
      [batch, *size, channels] in the dtype of x.

    Raises:
      UsageError: unknown method, or an option that the method does not have.
    """
    if method not in _METHODS:
        raise unknown_name("method", method, _METHODS)
    if min(size) < 1:
        raise UsageError(f"size must be at least 1×1, got {size[0]}×{size[1]}")
    smooth = not method.startswith("nearest")
    if (align_corners or antialias) and not smooth:
        raise UsageError(f"align_corners and antialias are for bilinear and bicubic, got {method}")
    if align_corners and antialias:
        raise UsageError("align_corners and antialias exclude each other")
    x = jnp.asarray(x)
    if not smooth:
        rows, columns = (_nearest(old, new, method) for old, new in zip(x.shape[1:3], size, strict=True))
        return x[:, rows][:, :, columns]
    weights = _antialiased if antialias else partial(_interpolation, align_corners=align_corners)
    rows, columns = (
        jnp.asarray(weights(old, new, method), x.dtype) for old, new in zip(x.shape[1:3], size, strict=True)
    )
    return jnp.einsum("bhwc,ih,jw->bijc", x, rows, columns, precision=lax.Precision.HIGHEST)


def _nearest(old: int, new: int, method: str) -> np.ndarray:
    """Pixels to copy [new]; in float32, as torch computes them, since its rounding decides between two pixels."""
    scale = np.float32(old) / np.float32(new)
    places = np.arange(new, dtype=np.float32) + np.float32(0.5 if method == "nearest-exact" else 0)
    return np.minimum(np.floor(places * scale).astype(int), old - 1)


def _interpolation(old: int, new: int, method: str, align_corners: bool) -> np.ndarray:
    """Weights [new, old] of the 2 or 4 pixels around each place; beyond the edge counts the pixel at the edge."""
    if align_corners:
        places = np.arange(new) * ((old - 1) / (new - 1) if new > 1 else 0.0)
    else:
        places = (np.arange(new) + 0.5) * (old / new) - 0.5
    radius, kernel = (1, _triangle) if method == "bilinear" else (2, partial(_cubic, a=-0.75))
    first = np.floor(places).astype(int)
    weights = np.zeros((new, old))
    for offset in range(1 - radius, radius + 1):
        pixels = np.clip(first + offset, 0, old - 1)
        weights[np.arange(new), pixels] += kernel(places - (first + offset))
    return weights


def _antialiased(old: int, new: int, method: str) -> np.ndarray:
    """Weights [new, old] of all pixels under a kernel as wide as a pixel of the result; they sum to 1."""
    stretch = max(old / new, 1.0)
    radius, kernel = (1, _triangle) if method == "bilinear" else (2, partial(_cubic, a=-0.5))
    centres = (np.arange(new)[:, None] + 0.5) * (old / new)
    distances = np.arange(old)[None] + 0.5 - centres
    weights = np.where(np.abs(distances) < radius * stretch, kernel(distances / stretch), 0.0)
    return weights / weights.sum(axis=1, keepdims=True)


def _triangle(distance: np.ndarray) -> np.ndarray:
    return np.maximum(1 - np.abs(distance), 0.0)


def _cubic(distance: np.ndarray, a: float) -> np.ndarray:
    """Keys (1981), eq. 12, with a free slope a at distance 1."""
    d = np.abs(distance)
    near = (a + 2) * d**3 - (a + 3) * d**2 + 1
    return np.where(d <= 1, near, np.where(d < 2, a * (d**3 - 5 * d**2 + 8 * d - 4), 0.0))


def transposed_convolution(
    x: Maps,
    kernel: Float[Array | np.ndarray, "kernel_height kernel_width channels out_channels_per_group"],
    *,
    stride: int = 1,
    padding: int = 0,
    output_padding: int = 0,
    dilation: int = 1,
    groups: int = 1,
) -> NewMaps:
    """The gradient of a convolution with respect to its input: `torch.nn.functional.conv_transpose2d`.

    Args:
      x: maps.
      kernel: torch's weight [channels, out channels / groups, height, width] with the axes (2, 3, 0, 1).
      stride: pixels of the result between two of x.
      padding: pixels that are cut from every side of the result.
      output_padding: pixels by which the result is larger at its far sides, below stride or dilation.
      dilation: pixels of the result between two weights.
      groups: of channels that do not mix.

    Returns:
      Maps of (n - 1) stride - 2 padding + dilation (k - 1) + output_padding + 1 pixels along each side.

    Raises:
      UsageError: output_padding is too large.
    """
    if output_padding >= max(stride, dilation):
        raise UsageError(f"output_padding must be below stride or dilation, got {output_padding}")
    height, width, channels, out_channels = kernel.shape
    kernel = jnp.asarray(kernel)[::-1, ::-1].reshape(height, width, groups, channels // groups, out_channels)
    kernel = jnp.moveaxis(kernel, 2, 3).reshape(height, width, channels // groups, groups * out_channels)
    reach = [dilation * (side - 1) - padding for side in (height, width)]
    return lax.conv_general_dilated(
        jnp.asarray(x), kernel, (1, 1), [(side, side + output_padding) for side in reach],
        lhs_dilation=(stride, stride), rhs_dilation=(dilation, dilation), feature_group_count=groups,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip


class TransposedConv(nn.Module):
    """`transposed_convolution` with its weights "kernel" and "bias"; weights start as those of `flax.linen.Conv`.

    features: channels of the result.
    kernel_size: height and width of the kernel.
    stride, padding, output_padding, dilation, groups: as for `transposed_convolution`.
    """

    features: int
    kernel_size: tuple[int, int]
    stride: int = 1
    padding: int = 0
    output_padding: int = 0
    dilation: int = 1
    groups: int = 1
    use_bias: bool = True
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Maps) -> NewMaps:
        """[batch, height, width, channels] -> [batch, out_height, out_width, features]."""
        shape = (*self.kernel_size, x.shape[-1], self.features // self.groups)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        geometry = {"stride": self.stride, "padding": self.padding, "output_padding": self.output_padding}
        geometry |= {"dilation": self.dilation, "groups": self.groups}
        y = transposed_convolution(jnp.asarray(x, self.dtype), jnp.asarray(kernel, self.dtype), **geometry)
        if not self.use_bias:
            return y
        bias = self.param("bias", nn.initializers.zeros, (self.features,), self.param_dtype)
        return y + jnp.asarray(bias, self.dtype)[None, None, None]


def pixel_shuffle(x: Maps, factor: int) -> Float[Array, "batch out_height out_width out_channels"]:
    """Sub-pixel shuffle: channels become pixels, `torch.nn.functional.pixel_shuffle`.

    Shi et al. (2016), "Real-time single image and video super-resolution using an efficient sub-pixel convolutional
    neural network", eq. 4.

    Args:
      x: maps; channel c · factor² + i · factor + j goes to row i and column j of channel c.
      factor: by which height and width grow, >= 1.

    Returns:
      [batch, height · factor, width · factor, channels / factor²].

    Raises:
      UsageError: factor² does not divide the channels.
    """
    batch, height, width, channels = x.shape
    if channels % factor**2:
        raise UsageError(f"channels must be a multiple of {factor**2} for a factor of {factor}, got {channels}")
    x = jnp.asarray(x).reshape(batch, height, width, channels // factor**2, factor, factor)
    return x.transpose(0, 1, 4, 2, 5, 3).reshape(batch, height * factor, width * factor, -1)


def pixel_unshuffle(x: Maps, factor: int) -> Float[Array, "batch out_height out_width out_channels"]:
    """The inverse of `pixel_shuffle`: [batch, height / factor, width / factor, channels · factor²].

    Raises:
      UsageError: factor does not divide height and width.
    """
    batch, height, width, channels = x.shape
    if height % factor or width % factor:
        raise UsageError(f"height and width must be multiples of {factor}, got {height}×{width}")
    x = jnp.asarray(x).reshape(batch, height // factor, factor, width // factor, factor, channels)
    return x.transpose(0, 1, 3, 5, 2, 4).reshape(batch, height // factor, width // factor, -1)


def max_pool_with_indices(
    x: Maps, window: int, stride: int | None = None, padding: int = 0
) -> tuple[
    Float[Array, "batch out_height out_width channels"], Int[Array, "batch out_height out_width channels"]
]:  # fmt: skip
    """Max-pooling that also tells where each maximum was, for `max_unpool`.

    Args:
      x: maps.
      window: in pixels.
      stride: in pixels, by default the window.
      padding: pixels on every side, at most window / 2; they never win.

    Returns:
      The maxima, and their places row · width + column in x; the first one of equals.
    """
    stride = stride or window
    height, width = x.shape[1:3]
    border = (padding, padding)
    padded = jnp.pad(jnp.asarray(x), ((0, 0), border, border, (0, 0)), constant_values=-jnp.inf)
    rows, columns = (np.arange((side + 2 * padding - window) // stride + 1) * stride for side in (height, width))
    inside = np.arange(window)
    patches = padded[:, (rows[:, None] + inside)[:, None, :, None], (columns[:, None] + inside)[None, :, None]]
    patches = patches.reshape(*patches.shape[:3], window**2, -1)
    winner = patches.argmax(axis=3)
    values = jnp.take_along_axis(patches, winner[:, :, :, None], axis=3)[:, :, :, 0]
    row = winner // window + (rows - padding)[None, :, None, None]
    column = winner % window + (columns - padding)[None, None, :, None]
    return values, row * width + column


def max_unpool(
    values: Maps, indices: Int[Array | np.ndarray, "batch height width channels"], size: tuple[int, int]
) -> Float[Array, "batch out_height out_width channels"]:
    """Puts each maximum back where it was, and 0 elsewhere: `torch.nn.functional.max_unpool2d`.

    Zeiler, Fergus (2014), "Visualizing and understanding convolutional networks", section 2.1.

    Args:
      values, indices: from `max_pool_with_indices`; of values that go to the same place one wins.
      size: height and width of the result.

    Returns:
      [batch, *size, channels].
    """
    batch, *_, channels = values.shape
    values, indices = (jnp.asarray(a).reshape(batch, -1, channels) for a in (values, indices))
    place = lambda empty, at, value: empty.at[at].set(value)
    empty = jnp.zeros((batch, math.prod(size), channels), values.dtype)
    per_channel = jax.vmap(place, in_axes=1, out_axes=1)
    return jax.vmap(per_channel)(empty, indices, values).reshape(batch, *size, channels)
