"""Brightness, contrast, saturation, hue, gamma, and what else is done to the values of pixels one by one.

Definitions are those of torchvision (and, apart from its rounding to bytes, of Pillow), since these are what published
recipes mean by a strength; results are clipped to [0, 1] as theirs are. dm-pix, like TensorFlow, means something else
by three of the names: it adds to the brightness, turns the contrast about the mean of each channel, and multiplies
the saturation in HSV. Its hue, gamma and solarisation are the same and are used here.

Every operation leaves an image exactly as it is at the strength that its docstring calls neutral.
"""

import dm_pix
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from dl_core.augment.photometric import Strength, check_images, per_image
from dl_core.augment.policies import per_image_keys, sequence

Images = Float[Array, "batch height width channels"]
Keys = Key[Array, ""] | Key[Array, " batch"]

LUMA = (0.2989, 0.587, 0.114)  # ITU-R BT.601, rounded as torchvision rounds it


def grayscale(images: Images) -> Images:
    """The luma 0.2989 R + 0.587 G + 0.114 B in all channels.

    The weights add up to 0.9999, as torchvision's do: white becomes 0.9999. scikit-image's rgb2gray has other weights
    (ITU-R BT.709).

    Args:
      images: in [0, 1], with 3 channels; 1 channel passes unchanged.

    Returns:
      Images of the same shape, all channels alike.

    Raises:
      UsageError: no images in [0, 1], or another number of channels.
    """
    check_images(images, channels=(1, 3))
    return jnp.broadcast_to(_luma(images), images.shape)


def invert(images: Images) -> Images:
    """1 - x.

    Args:
      images: in [0, 1].

    Returns:
      The negative.

    Raises:
      UsageError: no images in [0, 1].
    """
    check_images(images)
    return jnp.subtract(1, images)


def adjust_brightness(images: Images, factor: Strength) -> Images:
    """factor · x, a blend with black. (dm-pix and TensorFlow add instead.)

    Args:
      images: in [0, 1].
      factor: >= 0; one number, or one for each image. 0 is black, 1 neutral.

    Returns:
      Images, clipped to [0, 1].

    Raises:
      UsageError: no images in [0, 1], or a factor out of its range.
    """
    check_images(images)
    return jnp.clip(images * per_image("factor", factor, images, "[0, inf)"), 0, 1)


def adjust_contrast(images: Images, factor: Strength) -> Images:
    """A blend with the mean luma m of each image: factor · x + (1 - factor) · m.

    Pillow rounds m to a byte. (dm-pix and TensorFlow blend each channel with its own mean.)

    Args:
      images: in [0, 1], with 1 or 3 channels.
      factor: >= 0; one number, or one for each image. 0 is a grey area, 1 neutral.

    Returns:
      Images, clipped to [0, 1].

    Raises:
      UsageError: no images in [0, 1], another number of channels, or a factor out of its range.
    """
    check_images(images, channels=(1, 3))
    mean = _luma(images).mean(axis=(1, 2, 3), keepdims=True)
    return _blend(images, mean, per_image("factor", factor, images, "[0, inf)"))


def adjust_saturation(images: Images, factor: Strength) -> Images:
    """A blend with the grey image: factor · x + (1 - factor) · luma. (dm-pix and TensorFlow scale the S of HSV.)

    Args:
      images: in [0, 1], with 3 channels; 1 channel passes unchanged.
      factor: >= 0; one number, or one for each image. 0 is grey, 1 neutral.

    Returns:
      Images, clipped to [0, 1].

    Raises:
      UsageError: no images in [0, 1], another number of channels, or a factor out of its range.
    """
    check_images(images, channels=(1, 3))
    blended = _blend(images, _luma(images), per_image("factor", factor, images, "[0, inf)"))
    return images if images.shape[3] == 1 else blended


def adjust_hue(images: Images, shift: Strength) -> Images:
    """Turns the hue of HSV by a part of the colour circle (dm-pix).

    Args:
      images: in [0, 1], with 3 channels; 1 channel passes unchanged.
      shift: in turns, [-0.5, 0.5]; one number, or one for each image. 0 is neutral, ±0.5 the complementary colour.

    Returns:
      Images in [0, 1].

    Raises:
      UsageError: no images in [0, 1], another number of channels, or a shift out of its range.
    """
    check_images(images, channels=(1, 3))
    turns = per_image("shift", shift, images, "[-0.5, 0.5]")
    if images.shape[3] == 1:
        return images
    turned = jax.vmap(dm_pix.adjust_hue)(images, jnp.broadcast_to(turns.reshape(-1), len(images)))
    return jnp.where(turns == 0, images, jnp.clip(turned, 0, 1))  # to HSV and back is not exact


def adjust_gamma(images: Images, gamma: Strength) -> Images:
    """x ^ gamma (dm-pix).

    Args:
      images: in [0, 1].
      gamma: >= 0; one number, or one for each image. Below 1 shadows are lifted, above 1 deepened; 1 is neutral.

    Returns:
      Images in [0, 1].

    Raises:
      UsageError: no images in [0, 1], or a gamma out of its range.
    """
    check_images(images)
    exponent = per_image("gamma", gamma, images, "[0, inf)")
    powers = jax.vmap(dm_pix.adjust_gamma)(images, jnp.broadcast_to(exponent.reshape(-1), len(images)))
    return jnp.where(exponent == 1, images, powers)  # a power by logarithms is not exact


def solarize(images: Images, threshold: Strength) -> Images:
    """Inverts what is at least as bright as a threshold (dm-pix).

    Args:
      images: in [0, 1].
      threshold: >= 0; one number, or one for each image. At 1 white alone becomes black, as in torchvision; anything
        above 1 is neutral (torchvision refuses it, Pillow's counterpart is 256).

    Returns:
      Images in [0, 1].

    Raises:
      UsageError: no images in [0, 1], or a threshold out of its range.
    """
    check_images(images)
    return jnp.asarray(dm_pix.solarize(images, per_image("threshold", threshold, images, "[0, inf)")))


def posterize(images: Images, bits: Int[Array, " batch"] | Strength) -> Images:
    """Keeps the leading bits of each value, seen as a byte.

    Pillow's and torchvision's result for bytes. For floats torchvision rounds down to multiples of 2^-bits instead,
    which darkens white to 1 - 2^-bits and leaves no strength neutral.

    Args:
      images: in [0, 1].
      bits: how many to keep, in [0, 8]; one number, or one for each image. 8 is neutral, 0 black.

    Returns:
      Images of multiples of 1/255; unchanged, not even rounded to bytes, where bits is 8.

    Raises:
      UsageError: no images in [0, 1], or bits out of their range.
    """
    check_images(images)
    kept = per_image("bits", bits, images, "[0, 8]")
    dropped = 8 - kept.astype(jnp.int32)
    coarse = (_bytes(images) >> dropped) << dropped
    return jnp.where(kept >= 8, images, _from_bytes(coarse, images))


def autocontrast(images: Images) -> Images:
    """Stretches each channel of each image to the whole of [0, 1]; a channel of one value stays as it is.

    Args:
      images: in [0, 1].

    Returns:
      Images in [0, 1].

    Raises:
      UsageError: no images in [0, 1].
    """
    check_images(images)
    low, high = images.min(axis=(1, 2), keepdims=True), images.max(axis=(1, 2), keepdims=True)
    flat = low == high
    return jnp.clip(jnp.where(flat, images, (images - low) / jnp.where(flat, 1, high - low)), 0, 1)


def equalize(images: Images) -> Images:
    """Makes the 256 levels of each channel of each image about equally frequent.

    Values are taken as bytes, and the table is Pillow's, with its integer divisions; channels with fewer than 255
    pixels besides their brightest level stay as they are. scikit-image's equalize_hist has another table.

    Args:
      images: in [0, 1].

    Returns:
      Images of multiples of 1/255, apart from channels that stay.

    Raises:
      UsageError: no images in [0, 1].
    """
    check_images(images)
    batch, height, width, channels = images.shape
    # Channel by channel, and all histograms in one row, 256 bins each: one index a pixel makes XLA's scatter on a CPU
    # three times faster than an index for each axis.
    rows = _bytes(images).transpose(0, 3, 1, 2).reshape(batch * channels, height * width)
    bins = rows + 256 * jnp.arange(batch * channels)[:, None]
    counts = jnp.zeros(batch * channels * 256, jnp.int32).at[bins].add(1, mode="promise_in_bounds").reshape(-1, 256)
    brightest = jnp.take_along_axis(counts, rows.max(axis=1, keepdims=True), axis=1)
    step = (height * width - brightest) // 255
    darker = jnp.cumsum(counts, axis=1) - counts
    # (darker + step // 2) // step in floats, ten times faster; the half keeps quotients away from whole numbers.
    quotient = (darker + step // 2 + 0.5).astype(jnp.float32) / jnp.maximum(step, 1).astype(jnp.float32)
    table = jnp.clip(jnp.floor(quotient), 0, 255)
    levels = jnp.take_along_axis(table, rows, axis=1, mode="promise_in_bounds")
    equalized = levels.reshape(batch, channels, height, width).transpose(0, 2, 3, 1)
    return jnp.where((step == 0).reshape(batch, 1, 1, channels), images, _from_bytes(equalized, images))


def random_brightness(key: Keys, images: Images, *, strength: Strength) -> Images:
    """`adjust_brightness` by a factor of its own for each image, uniform in [1 - strength, 1 + strength], not below 0.

    Args:
      key: one key, or one for each image.
      images: in [0, 1].
      strength: >= 0; 0 changes nothing. torchvision's ColorJitter(brightness=strength).

    Returns:
      Images in [0, 1].

    Raises:
      UsageError: no images in [0, 1], or a strength out of its range.
    """
    return adjust_brightness(images, _factors(key, images, strength))


def random_contrast(key: Keys, images: Images, *, strength: Strength) -> Images:
    """`adjust_contrast` by a factor of its own for each image, uniform in [1 - strength, 1 + strength], not below 0.

    Args:
      key: one key, or one for each image.
      images: in [0, 1], with 1 or 3 channels.
      strength: >= 0; 0 changes nothing. torchvision's ColorJitter(contrast=strength).

    Returns:
      Images in [0, 1].

    Raises:
      UsageError: no images in [0, 1], another number of channels, or a strength out of its range.
    """
    return adjust_contrast(images, _factors(key, images, strength))


def random_saturation(key: Keys, images: Images, *, strength: Strength) -> Images:
    """`adjust_saturation` by a factor of its own for each image, uniform in [1 - strength, 1 + strength], not below 0.

    Args:
      key: one key, or one for each image.
      images: in [0, 1], with 1 or 3 channels.
      strength: >= 0; 0 changes nothing. torchvision's ColorJitter(saturation=strength).

    Returns:
      Images in [0, 1].

    Raises:
      UsageError: no images in [0, 1], another number of channels, or a strength out of its range.
    """
    return adjust_saturation(images, _factors(key, images, strength))


def random_hue(key: Keys, images: Images, *, strength: Strength) -> Images:
    """`adjust_hue` by a shift of its own for each image, uniform in [-strength, strength].

    Args:
      key: one key, or one for each image.
      images: in [0, 1], with 1 or 3 channels.
      strength: in turns, [0, 0.5]; 0 changes nothing. torchvision's ColorJitter(hue=strength).

    Returns:
      Images in [0, 1].

    Raises:
      UsageError: no images in [0, 1], another number of channels, or a strength out of its range.
    """
    most = per_image("strength", strength, images, "[0, 0.5]").reshape(-1)
    return adjust_hue(images, most * _uniform(key, images, -1.0, 1.0))


def random_gamma(key: Keys, images: Images, *, strength: Strength) -> Images:
    """`adjust_gamma` by an exponent of its own for each image, log-uniform from 1 / (1 + strength) to 1 + strength.

    Args:
      key: one key, or one for each image.
      images: in [0, 1].
      strength: >= 0; 0 changes nothing.

    Returns:
      Images in [0, 1].

    Raises:
      UsageError: no images in [0, 1], or a strength out of its range.
    """
    most = jnp.log1p(per_image("strength", strength, images, "[0, inf)").reshape(-1))
    return adjust_gamma(images, jnp.exp(most * _uniform(key, images, -1.0, 1.0)))


def color_jitter(
    key: Keys,
    images: Images,
    *,
    brightness: float = 0.0,
    contrast: float = 0.0,
    saturation: float = 0.0,
    hue: float = 0.0,
) -> Images:
    """Random brightness, contrast, saturation and hue, in this order. (torchvision's ColorJitter draws the order, too.)

    Args:
      key: one key, or one for each image.
      images: in [0, 1], with 1 or 3 channels.
      brightness: strength of `random_brightness`, >= 0.
      contrast: strength of `random_contrast`, >= 0.
      saturation: strength of `random_saturation`, >= 0.
      hue: strength of `random_hue`, in [0, 0.5].

    Returns:
      Images in [0, 1].

    Raises:
      UsageError: no images in [0, 1], another number of channels, or a strength out of its range.
    """
    return sequence(
        lambda keys, x: random_brightness(keys, x, strength=brightness),
        lambda keys, x: random_contrast(keys, x, strength=contrast),
        lambda keys, x: random_saturation(keys, x, strength=saturation),
        lambda keys, x: random_hue(keys, x, strength=hue),
    )(key, images)


def _uniform(key: Keys, images: Images, low: float, high: float) -> Float[Array, " batch"]:
    keys = per_image_keys(key, len(images))
    return jax.vmap(lambda one: jax.random.uniform(one, (), images.dtype, low, high))(keys)


def _factors(key: Keys, images: Images, strength: Strength) -> Float[Array, " batch"]:
    most = per_image("strength", strength, images, "[0, inf)").reshape(-1)
    low = jnp.maximum(1 - most, 0)
    return low + (1 + most - low) * _uniform(key, images, 0.0, 1.0)


def _luma(images: Images) -> Float[Array, "batch height width 1"]:
    if images.shape[3] == 1:
        return images
    # A sum, not dm-pix's product of matrices: on some accelerators that is rounded to 10 bits.
    red, green, blue = LUMA
    return red * images[..., 0:1] + green * images[..., 1:2] + blue * images[..., 2:3]


def _blend(images: Images, other: Float[Array, "batch _ _ _"], share: Float[Array, "_ 1 1 1"]) -> Images:
    return jnp.clip(share * images + (1 - share) * other, 0, 1)


def _bytes(images: Images) -> Int[Array, "batch height width channels"]:
    """0 to 255, equal parts of [0, 1] each; k / 255 is k. As torchvision converts floats."""
    return jnp.floor(images.astype(jnp.float32) * 255.999).astype(jnp.int32)


def _from_bytes(
    levels: Int[Array, "batch height width channels"] | Float[Array, "batch height width channels"], images: Images
) -> Images:
    return (levels.astype(jnp.float32) / 255).astype(images.dtype)
