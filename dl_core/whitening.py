"""A first layer that needs no training: convolution kernels that whiten the patches of the training images.

The responses of such a layer are uncorrelated and of equal variance, so that what follows learns faster. As the stem of
the fastest training runs on small images: Jordan (2024), "94% on CIFAR-10 in 3.29 seconds on a single GPU",
https://arxiv.org/abs/2404.00498, section 3.2.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dl_core.errors import UsageError


def patch_whitening(
    images: Float[Array | np.ndarray, "batch height width channels"], size: int = 2, *, eps: float = 5e-4
) -> Float[Array, "size size channels filters"]:
    """Kernels whose responses to the patches of these images have covariance 1 (PCA whitening), and their negatives.

    Args:
      images: [batch, height, width, channels], normalised as the network will see them; a few thousand are enough.
      size: height and width of a patch, in pixels.
      eps: added to each variance, so that directions in which patches hardly vary are not blown up.

    Returns:
      [size, size, channels, filters] with filters = 2 size² channels: the directions of most variance first, then all
      of them with the opposite sign, since an activation such as GELU keeps one side.

    Raises:
      UsageError: images smaller than a patch.
    """
    _, height, width, channels = images.shape
    if not 1 <= size <= min(height, width):
        raise UsageError(f"size must lie between 1 and the sides of the images, {height}×{width}; got {size}")
    patches = jax.lax.conv_general_dilated_patches(
        jnp.asarray(images), (size, size), (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    patches = patches.reshape(-1, channels * size * size)  # channels vary slowest
    variances, directions = jnp.linalg.eigh(patches.T @ patches / len(patches))
    kernels = (directions / jnp.sqrt(variances + eps)[None])[:, ::-1]
    kernels = kernels.reshape(channels, size, size, -1).transpose(1, 2, 0, 3)
    return jnp.concatenate([kernels, -kernels], axis=-1)
