"""What can be measured of an image without knowing what it shows: how bright, how rich in contrast, how sharp it is.

Differences in these between groups of images are differences between cameras, rooms and compressions rather than
between what was photographed, and a network can learn them all the same.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Shaped

from dl_core.errors import UsageError
from dl_core.metrics.accumulator import AnyArray

_LUMA = (0.299, 0.587, 0.114)  # of red, green and blue: Rec. ITU-R BT.601


class ImageStatistics(NamedTuple):
    """One value for each image, each [n], of grey levels in [0, 1].

    brightness: mean.
    contrast: standard deviation, which is root-mean-square contrast (Peli 1990, "Contrast in complex images").
    sharpness: standard deviation of the Laplacian (the root of the measure of Pech-Pacheco et al. 2000, "Diatom
      autofocusing in brightfield microscopy"); nan of images below 3×3 pixels.
    """

    brightness: Float[AnyArray, " n"]
    contrast: Float[AnyArray, " n"]
    sharpness: Float[AnyArray, " n"]


def image_statistics(images: Shaped[AnyArray, "n height width channels"]) -> ImageStatistics:
    """Brightness, contrast and sharpness of each image; of NumPy arrays with NumPy, of JAX arrays inside jit.

    Args:
      images: uint8 in [0, 255] or float in [0, 1]; 3 channels are red, green and blue, of any other number the mean is
        taken.

    Returns:
      ImageStatistics.

    Raises:
      UsageError: not four axes, or an empty one of height, width or channels.
    """
    if images.ndim != 4 or 0 in images.shape[1:]:
        raise UsageError(f"images must have shape [n, height, width, channels], got {list(images.shape)}")
    xp = np if isinstance(images, np.ndarray) else jnp
    pixels = images.astype(xp.float32) / (255 if xp.issubdtype(images.dtype, xp.integer) else 1)
    weights = _LUMA if images.shape[-1] == 3 else (1 / images.shape[-1],) * images.shape[-1]
    grey = pixels @ xp.asarray(weights, xp.float32)
    laplacian = (
        grey[:, :-2, 1:-1] + grey[:, 2:, 1:-1] + grey[:, 1:-1, :-2] + grey[:, 1:-1, 2:] - 4 * grey[:, 1:-1, 1:-1]
    )
    sharpness = laplacian.std(axis=(1, 2)) if min(grey.shape[1:]) > 2 else xp.full(len(grey), xp.nan, xp.float32)
    return ImageStatistics(grey.mean(axis=(1, 2)), grey.std(axis=(1, 2)), sharpness)
