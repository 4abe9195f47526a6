"""Pooling with torch's arithmetic: ceiled sizes, adaptive bins, and the simple forms under one roof.

Windows overlap where the stride is smaller than the window, as in AlexNet; `strided` and the global forms are the
cheapest two. Max-pooling that remembers where its maxima were is in resampling.py, beside its inverse.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def max_pool(
    x: Float[Array, "batch height width channels"], window: int, stride: int, padding: int = 0, *, ceil: bool = False
) -> Float[Array, "batch out_height out_width channels"]:
    """Largest value of each window; what is padded never wins.

    Args:
      x: maps [batch, height, width, channels].
      window, stride: in pixels, the same for height and width.
      padding: pixels added on every side, at most window / 2.
      ceil: also take the last window where it reaches over the edge (Caffe's sizes, torch's `ceil_mode`).

    Returns:
      Maps whose sides are (n + 2 padding - window) / stride + 1, rounded down, or up with `ceil`.
    """
    beyond = [_beyond(n, window, stride, padding) if ceil else 0 for n in x.shape[1:3]]
    padded = tuple((padding, padding + extra) for extra in beyond)
    return nn.max_pool(x, (window, window), strides=(stride, stride), padding=padded)


def average_pool(
    x: Float[Array, "batch height width channels"],
    window: int,
    stride: int,
    padding: int = 0,
    *,
    ceil: bool = False,
    count_padding: bool = True,
) -> Float[Array, "batch out_height out_width channels"]:
    """Mean of each window: torch's `avg_pool2d`.

    Args:
      x, window, stride, padding, ceil: as for `max_pool`.
      count_padding: the zeros of the padding count in the mean (torch's `count_include_pad`); the pixels that a ceiled
        window needs past the padding never do.

    Returns:
      Maps of the size that `max_pool` gives.
    """
    beyond = [_beyond(n, window, stride, padding) if ceil else 0 for n in x.shape[1:3]]
    padded = tuple((padding, padding + extra) for extra in beyond)
    pooled = nn.avg_pool(x, (window, window), strides=(stride, stride), padding=padded) * window**2
    counts = [
        _counts(n, window, stride, padding, extra, count_padding) for n, extra in zip(x.shape[1:3], beyond, strict=True)
    ]
    return pooled / jnp.asarray(np.outer(*counts), x.dtype)[None, :, :, None]


def _counts(size: int, window: int, stride: int, padding: int, extra: int, count_padding: bool) -> np.ndarray:
    """How many pixels each window along one side has."""
    starts = np.arange(0, size + 2 * padding + extra - window + 1, stride) - padding
    low, high = (-padding, size + padding) if count_padding else (0, size)
    return np.minimum(starts + window, high) - np.maximum(starts, low)


def strided(
    x: Float[Array, "batch height width channels"], stride: int
) -> Float[Array, "batch out_height out_width channels"]:
    """Every stride-th pixel along height and width, from the first; no filter before it, so fine detail aliases."""
    return x[:, ::stride, ::stride]


def global_average_pool(x: Float[Array, "batch height width channels"]) -> Float[Array, "batch channels"]:
    """Mean over the whole map (Lin, Chen, Yan, 2014, "Network in network", section 3.2), at least in float32."""
    return x.mean(axis=(1, 2), dtype=jnp.promote_types(x.dtype, jnp.float32))


def global_max_pool(x: Float[Array, "batch height width channels"]) -> Float[Array, "batch channels"]:
    """Largest value of the whole map."""
    return x.max(axis=(1, 2))


def _beyond(size: int, window: int, stride: int, padding: int) -> int:
    """Pixels that the last ceiled window needs past the padding; it has to start inside the image or left of it."""
    steps = -(-(size + 2 * padding - window) // stride)
    if steps * stride >= size + padding:
        steps -= 1
    return max(steps * stride + window - (size + 2 * padding), 0)


def adaptive_average_pool(
    x: Float[Array, "batch height width channels"], size: int | tuple[int, int]
) -> Float[Array, "batch rows columns channels"]:
    """Mean over bins that cover the map, whatever its sides: torch's `AdaptiveAvgPool2d`.

    Bin i of n pixels spans floor(i n / size) … ceil((i + 1) n / size); bins overlap where size does not divide n.

    Args:
      x: maps [batch, height, width, channels].
      size: bins along height and width, >= 1; one number for both.

    Returns:
      [batch, *size, channels].
    """
    height, width = x.shape[1:3]
    rows, columns = (size, size) if isinstance(size, int) else size
    if (height, width) == (rows, columns):
        return x
    if height % rows == 0 and width % columns == 0:
        window = (height // rows, width // columns)
        return nn.avg_pool(x, window, strides=window)
    weights = (jnp.asarray(_bins(n, bins), x.dtype) for n, bins in ((height, rows), (width, columns)))
    return jnp.einsum("bhwc,ih,jw->bijc", x, *weights, precision=jax.lax.Precision.HIGHEST)


def adaptive_max_pool(
    x: Float[Array, "batch height width channels"], size: int | tuple[int, int]
) -> Float[Array, "batch rows columns channels"]:
    """Largest value of each bin: torch's `AdaptiveMaxPool2d`; arguments as for `adaptive_average_pool`."""
    for axis, bins in zip((1, 2), (size, size) if isinstance(size, int) else size, strict=True):
        n = x.shape[axis]
        spans = [slice(*_span(i, n, bins)) for i in range(bins)]
        x = jnp.stack([x[(slice(None),) * axis + (span,)].max(axis=axis) for span in spans], axis=axis)
    return x


def _span(i: int, pixels: int, bins: int) -> tuple[int, int]:
    return i * pixels // bins, -(-(i + 1) * pixels // bins)


def _bins(pixels: int, size: int) -> np.ndarray:
    """Averaging matrix [size, pixels]."""
    weights = np.zeros((size, pixels))
    for i in range(size):
        start, stop = _span(i, pixels, size)
        weights[i, start:stop] = 1 / (stop - start)
    return weights
