"""Blur, sharpness and the median: each pixel from its neighbourhood.

Filters are sums of shifted images. dm-pix's Gaussian blur computes the same sums, but takes black for what lies outside
an image, and a kernel of its own for each image makes it a grouped convolution: on a CPU some twenty times slower.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from dl_core.augment.photometric import Strength, check_images, per_image
from dl_core.augment.policies import per_image_keys
from dl_core.errors import UsageError

Images = Float[Array, "batch height width channels"]
Keys = Key[Array, ""] | Key[Array, " batch"]


def gaussian_blur(images: Images, sigma: Strength, *, kernel_size: int | None = None) -> Images:
    """A mean of the neighbours weighted by exp(-d² / 2σ²); images are mirrored at the border (without its pixel).

    torchvision's gaussian_blur, and with kernel_size = 2 · round(4σ) + 1 SciPy's and scikit-image's in mode "mirror".

    Args:
      images: in [0, 1].
      sigma: in pixels, >= 0; one number, or one for each image. 0 is neutral.
      kernel_size: odd, at most twice the smaller side; by default large enough for 3 sigma, which must then be one
        number known outside `jit`.

    Returns:
      Images in [0, 1].

    Raises:
      UsageError: no images in [0, 1], a sigma out of its range, an even kernel or one too large for the images.
    """
    check_images(images)
    width = per_image("sigma", sigma, images, "[0, inf)")
    radius = _radius(_three_sigma(sigma) if kernel_size is None else kernel_size, images)
    distance = jnp.arange(-radius, radius + 1, dtype=images.dtype)[None]
    spread = jnp.where(width == 0, 1, width).reshape(-1, 1)
    weights = jax.nn.softmax(-0.5 * jnp.square(distance / spread), axis=1)
    weights = jnp.where(width.reshape(-1, 1) == 0, (distance == 0).astype(images.dtype), weights)
    return jnp.clip(separable_filter(images, weights), 0, 1)


def separable_filter(images: Images, weights: Float[Array, "_ taps"], *, mode: str = "reflect") -> Images:
    """Correlates rows and columns of each image with a one-dimensional kernel of its own.

    Args:
      images: any values.
      weights: [batch, taps], or [1, taps] if they are the same for all; an odd number of taps.
      mode: what lies outside the images, a mode of `jnp.pad`.

    Returns:
      Images of the same shape.
    """
    taps, (height, width) = weights.shape[1], images.shape[1:3]
    radius = taps // 2
    padded = jnp.pad(images, ((0, 0), (radius, radius), (radius, radius), (0, 0)), mode=mode)
    weight = [weights[:, tap].reshape(-1, 1, 1, 1) for tap in range(taps)]
    rows = sum((weight[tap] * padded[:, tap : tap + height] for tap in range(taps)), jnp.zeros_like(padded[:, :height]))
    return sum((weight[tap] * rows[:, :, tap : tap + width] for tap in range(taps)), jnp.zeros_like(images))


def adjust_sharpness(images: Images, factor: Strength) -> Images:
    """A blend with a slightly blurred image: x + (1 - factor) · (blurred - x).

    Blurred by [[1, 1, 1], [1, 5, 1], [1, 1, 1]] / 13; pixels on the border stay as they are, as in torchvision and
    Pillow. Images of fewer than three rows or columns are all border.

    Args:
      images: in [0, 1].
      factor: >= 0; one number, or one for each image. 0 is blurred, 1 neutral, 2 sharpened.

    Returns:
      Images, clipped to [0, 1].

    Raises:
      UsageError: no images in [0, 1], or a factor out of its range.
    """
    check_images(images)
    height, width = images.shape[1:3]
    share = per_image("factor", factor, images, "[0, inf)")
    if min(height, width) < 3:
        return images
    rows = images[:, :-2] + images[:, 1:-1] + images[:, 2:]
    nine = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]
    blurred = (jnp.pad(nine, ((0, 0), (1, 1), (1, 1), (0, 0))) + 4 * images) / 13
    inside = np.zeros((1, height, width, 1), bool)
    inside[:, 1:-1, 1:-1] = True
    return jnp.where(inside, jnp.clip(images + (1 - share) * (blurred - images), 0, 1), images)


def median_filter(images: Images, *, size: int = 3) -> Images:
    """The median of the size × size neighbours of each channel; images are mirrored at the border, its pixel included.

    SciPy's median_filter in its mode "reflect".

    Args:
      images: in [0, 1].
      size: odd, >= 1; 1 is neutral. Time and memory grow with its square.

    Returns:
      Images in [0, 1].

    Raises:
      UsageError: no images in [0, 1], an even size or one too large for the images.
    """
    check_images(images)
    radius, (height, width) = _radius(size, images), images.shape[1:3]
    padded = jnp.pad(images, ((0, 0), (radius, radius), (radius, radius), (0, 0)), mode="symmetric")
    neighbours = [
        padded[:, down : down + height, across : across + width] for down in range(size) for across in range(size)
    ]
    return jnp.sort(jnp.stack(neighbours), axis=0)[size**2 // 2]


def random_blur(key: Keys, images: Images, *, strength: Strength, kernel_size: int | None = None) -> Images:
    """`gaussian_blur` with a sigma of its own for each image, uniform in [0, strength].

    Args:
      key: one key, or one for each image.
      images: in [0, 1].
      strength: the largest sigma in pixels, >= 0; 0 changes nothing.
      kernel_size: odd; by default large enough for 3 · strength.

    Returns:
      Images in [0, 1].

    Raises:
      UsageError: see `gaussian_blur`.
    """
    share = jax.vmap(lambda one: jax.random.uniform(one, (), images.dtype))(per_image_keys(key, len(images)))
    most = per_image("strength", strength, images, "[0, inf)").reshape(-1)
    if kernel_size is None:
        kernel_size = _three_sigma(strength)
    return gaussian_blur(images, most * share, kernel_size=kernel_size)


def random_sharpness(key: Keys, images: Images, *, strength: Strength) -> Images:
    """`adjust_sharpness` by a factor of its own for each image, uniform in [1 - strength, 1 + strength], not below 0.

    Args:
      key: one key, or one for each image.
      images: in [0, 1].
      strength: >= 0; 0 changes nothing.

    Returns:
      Images in [0, 1].

    Raises:
      UsageError: no images in [0, 1], or a strength out of its range.
    """
    most = per_image("strength", strength, images, "[0, inf)").reshape(-1)
    low = jnp.maximum(1 - most, 0)
    share = jax.vmap(lambda one: jax.random.uniform(one, (), images.dtype))(per_image_keys(key, len(images)))
    return adjust_sharpness(images, low + (1 + most - low) * share)


def _three_sigma(sigma: Strength) -> int:
    if not isinstance(sigma, float | int):
        raise UsageError("the blur is an array: say how wide the kernel is, e.g. kernel_size=5")
    return 2 * int(np.ceil(3 * sigma)) + 1


def _radius(kernel_size: int, images: Images) -> int:
    most = 2 * min(images.shape[1:3]) - 1
    if not (1 <= kernel_size <= most and kernel_size % 2):
        raise UsageError(f"the kernel must be odd and in [1, {most}] for these images, got {kernel_size}")
    return kernel_size // 2
