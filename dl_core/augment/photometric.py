"""Values of pixels: from bytes to [0, 1], and from there to the mean and standard deviation of the training set."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8


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


def _per_channel(
    images: Float[Array, "*batch channels"], statistic: Float[Array | np.ndarray, " channels"]
) -> Float[Array, "*ones channels"]:
    """The statistic in the dtype of the images, with an axis for each of theirs."""
    return jnp.asarray(statistic, images.dtype).reshape((1,) * (images.ndim - 1) + (-1,))
