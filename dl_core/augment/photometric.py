"""Values of pixels: from bytes to [0, 1], and from there to the mean and standard deviation of the training set.

And what every operation on them asks of its arguments: images that are numbers in [0, 1], and a strength that is one
number for all images or one for each. What is traced by `jit` has no values yet and passes unseen.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Num, UInt8

from dl_core.errors import UsageError

# How far an operation goes: one number for all images, or one for each.
Strength = Float[Array | np.ndarray, " batch"] | Num[Array | np.ndarray, ""] | float | int

ROUNDING = 1e-5  # interpolation may leave [0, 1] by a rounding error


def to_float(
    images: UInt8[Array | np.ndarray, "*batch height width channels"],
) -> Float[Array, "*batch height width channels"]:
    """Bytes as numbers in [0, 1].

    Args:
      images: 0 to 255.

    Returns:
      float32.
    """
    return jnp.asarray(images, jnp.float32) / 255


def normalize(
    images: Float[Array, "*batch height width channels"],
    mean: Float[Array | np.ndarray, " channels"],
    std: Float[Array | np.ndarray, " channels"],
) -> Float[Array, "*batch height width channels"]:
    """(images - mean) / std for each channel (course notes, eq. 25).

    Args:
      images: in [0, 1].
      mean: of the training set, in the same units.
      std: of the training set, > 0.

    Returns:
      Images with mean 0 and standard deviation 1 over a set with these statistics.
    """
    return (images - _per_channel(images, mean)) / _per_channel(images, std)


def denormalize(
    images: Float[Array, "*batch height width channels"],
    mean: Float[Array | np.ndarray, " channels"],
    std: Float[Array | np.ndarray, " channels"],
) -> Float[Array, "*batch height width channels"]:
    """The inverse of `normalize`, for showing what a model was given.

    Args:
      images: normalised.
      mean: that was subtracted.
      std: that was divided by.

    Returns:
      images * std + mean.
    """
    return images * _per_channel(images, std) + _per_channel(images, mean)


def check_images(images: Num[Array | np.ndarray, "..."], *, channels: tuple[int, ...] | None = None) -> None:
    """Refuses what is not a batch of images in [0, 1].

    Args:
      images: [batch, height, width, channels]; values are looked at only outside `jit`.
      channels: how many there may be; any number by default.

    Raises:
      UsageError: not four axes, not floating point, values outside [0, 1] or NaN, another number of channels.
    """
    if images.ndim != 4:
        raise UsageError(f"images must be [batch, height, width, channels], got shape {list(images.shape)}")
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise UsageError(f"images must be floats in [0, 1], got {images.dtype}; to_float(images) converts bytes")
    if channels is not None and images.shape[3] not in channels:
        raise UsageError(f"images must have {' or '.join(map(str, channels))} channels, got {images.shape[3]}")
    if not isinstance(images, Tracer) and images.size:
        with jax.ensure_compile_time_eval():  # images that a compiled function has closed over are there to be seen
            if ((images >= -ROUNDING) & (images <= 1 + ROUNDING)).all():
                return
            if jnp.isnan(images).any():
                raise UsageError(f"images must lie in [0, 1], got {int(jnp.isnan(images).sum())} values that are NaN")
            low, high = float(images.min()), float(images.max())
            hint = "divide by 255, or undo a normalisation with denormalize"
            raise UsageError(f"images must lie in [0, 1], got values in [{low:.4g}, {high:.4g}]; {hint}")


def per_image(
    name: str, strength: Strength, images: Num[Array, "batch height width channels"], interval: str
) -> Float[Array, "_ 1 1 1"]:
    """A strength as an array that multiplies a batch of images.

    Args:
      name: of the argument, for the message.
      strength: one number, or one for each image.
      images: what it is for.
      interval: where it must lie, in the usual notation, e.g. "[0, inf)"; looked at only outside `jit`.

    Returns:
      [batch, 1, 1, 1], or [1, 1, 1, 1] if it is the same for all, in the dtype of the images.

    Raises:
      UsageError: another shape, or a number outside the interval or NaN.
    """
    if np.shape(strength) not in ((), (len(images),)):
        given = f"got shape {list(np.shape(strength))}"
        raise UsageError(f"{name} must be one number or one for each of {len(images)} images, {given}")
    if not isinstance(strength, Tracer):
        numbers = np.asarray(strength, np.float64)
        low, high = map(float, interval[1:-1].split(","))
        above = numbers >= low if interval[0] == "[" else numbers > low
        below = numbers <= high if interval[-1] == "]" else numbers < high
        if not (above & below).all():
            raise UsageError(f"{name} must lie in {interval}, got {numbers[~(above & below)].flat[0]:g}")
    return jnp.asarray(strength, images.dtype).reshape(-1, 1, 1, 1)


def _per_channel(
    images: Float[Array, "*batch channels"], statistic: Float[Array | np.ndarray, " channels"]
) -> Float[Array, "*ones channels"]:
    """The statistic in the dtype of the images, with an axis for each of theirs."""
    return jnp.asarray(statistic, images.dtype).reshape((1,) * (images.ndim - 1) + (-1,))
