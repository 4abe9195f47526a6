"""Two images in one, and images with a part missing: mix-up, cut-mix, cut-out, random erasing.

The partner of an image is its predecessor in the batch (the last one's successor is the first), as in torchvision: a
batch that is shuffled anyway needs no second permutation, and of a batch divided over devices only rows at the seams
travel. With a partner in it, a row depends on its predecessor, too.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, Num

from dl_core.augment.photometric import Strength, check_images, per_image
from dl_core.augment.policies import per_image_keys
from dl_core.errors import UsageError
from dl_core.metrics.checks import check_probabilities
from dl_core.optim.options import Number, in_interval

Images = Float[Array, "batch height width channels"]
Labels = Float[Array, "batch classes"]
Keys = Key[Array, ""] | Key[Array, " batch"]
Pixels = Int[Array, " batch"]


class Mixed(NamedTuple):
    """Images of two each, and what they show.

    images: [batch, height, width, channels].
    labels: distributions over the classes [batch, classes]; each sums to 1 if the labels given did.
    """

    images: Images
    labels: Labels


def mix_up(key: Keys, images: Images, labels: Labels, *, alpha: Number = 1.0, per_row: bool = False) -> Mixed:
    """λ · x + (1 - λ) · x of the partner, and the same for the labels; λ is drawn from Beta(alpha, alpha).

    Zhang, Cisse, Dauphin, Lopez-Paz (2018), "mixup: Beyond Empirical Risk Minimization",
    https://arxiv.org/abs/1710.09412.

    Args:
      key: one key; with per_row also one for each image.
      images: in [0, 1].
      labels: one-hot, or distributions, [batch, classes].
      alpha: > 0. The smaller, the more is λ near 0 or 1; 1 is uniform.
      per_row: a λ for each image rather than one for the batch.

    Returns:
      Mixed images and labels. One-hot labels give weights that sum to 1 without rounding error.

    Raises:
      UsageError: no images in [0, 1], labels that are not one distribution for each image, alpha out of its range.
    """
    share = _beta(key, images, alpha, per_row)
    return mix(images, labels, share if per_row else share[0])


def mix(images: Images, labels: Labels, share: Strength) -> Mixed:
    """share · x + (1 - share) · x of the partner, and the same for the labels.

    Args:
      images: in [0, 1].
      labels: one-hot, or distributions, [batch, classes].
      share: in [0, 1]; one number, or one for each image. 1 is neutral.

    Returns:
      Mixed images and labels.

    Raises:
      UsageError: no images in [0, 1], labels that are not one distribution for each image, a share out of its range.
    """
    check_images(images)
    _check_labels(images, labels)
    weight = per_image("share", share, images, "[0, 1]")
    mixed = weight * images + (1 - weight) * jnp.roll(images, 1, axis=0)
    return Mixed(mixed, _mixed_labels(labels, weight.reshape(-1, 1)))


def cut_mix(key: Keys, images: Images, labels: Labels, *, alpha: Number = 1.0, per_row: bool = False) -> Mixed:
    """A box of the partner is pasted in; labels are mixed by the share of the area that each image has in the end.

    The box has √(1 - λ) of the image's sides, λ from Beta(alpha, alpha), and its centre is any pixel; what would lie
    outside is cut off. Yun et al. (2019), "CutMix", https://arxiv.org/abs/1905.04899.

    Args:
      key: one key; with per_row also one for each image.
      images: in [0, 1].
      labels: one-hot, or distributions, [batch, classes].
      alpha: > 0; 1 makes λ uniform.
      per_row: a box for each image rather than one for the batch.

    Returns:
      Mixed images and labels.

    Raises:
      UsageError: no images in [0, 1], labels that are not one distribution for each image, alpha out of its range.
    """
    check_images(images)
    _check_labels(images, labels)
    share = _beta(key, images, alpha, per_row)
    keys = per_image_keys(key, len(images)) if per_row else key[None]
    half = 0.5 * jnp.sqrt(1 - share)[:, None] * np.array([images.shape[1:3]], np.float32)
    row, column = _any_pixel(keys, images)
    down, across = jnp.moveaxis(half.astype(jnp.int32), 1, 0)  # whole pixels, rounded down as in torchvision
    pasted = box_mask(images, row - down, column - across, row + down, column + across)
    kept = 1 - pasted.mean(axis=(1, 2, 3), dtype=labels.dtype)
    mixed = jnp.where(pasted, jnp.roll(images, 1, axis=0), images)
    return Mixed(mixed, _mixed_labels(labels, kept[:, None]))


def cut_out(
    key: Keys, images: Images, *, size: int, fill: float | Float[Array | np.ndarray, " channels"] = 0.0
) -> Images:
    """Paints over a square; its centre is any pixel, and what would lie outside is cut off.

    DeVries, Taylor (2017), "Improved Regularization of Convolutional Neural Networks with Cutout",
    https://arxiv.org/abs/1708.04552: 16 pixels for CIFAR-10, 8 for CIFAR-100, 20 for SVHN.

    Args:
      key: one key, or one for each image.
      images: in [0, 1].
      size: side of the square in pixels, >= 0; 0 changes nothing.
      fill: value, or one for each channel (the mean of the training set, which normalisation makes 0).

    Returns:
      Images in [0, 1].

    Raises:
      UsageError: no images in [0, 1], or a size out of its range.
    """
    in_interval("size", size, "[0, inf)", integer=True)
    row, column = _any_pixel(per_image_keys(key, len(images)), images)
    top, left = row - size // 2, column - size // 2
    return erase(images, top, left, top + size, left + size, fill=fill)


def random_erasing(
    key: Keys,
    images: Images,
    *,
    probability: Number = 0.5,
    area: tuple[float, float] = (0.02, 0.33),
    aspect: tuple[float, float] = (0.3, 3.3),
    fill: float | Float[Array | np.ndarray, " channels"] = 0.0,
) -> Images:
    """Paints over a rectangle of random area and shape that lies wholly inside, in some of the images.

    Zhong et al. (2017), "Random Erasing Data Augmentation", https://arxiv.org/abs/1708.04896. As in torchvision, the
    first of ten rectangles that fits is taken, and the image stays as it is if none does.

    Args:
      key: one key, or one for each image.
      images: in [0, 1].
      probability: of an image to be changed, in [0, 1].
      area: smallest and largest share of the image's area, within (0, 1].
      aspect: smallest and largest ratio of height to width, > 0; its logarithm is uniform.
      fill: value, or one for each channel.

    Returns:
      Images in [0, 1].

    Raises:
      UsageError: no images in [0, 1], or a probability, area or ratio out of its range.
    """
    check_images(images)
    in_interval("probability", probability, "[0, 1]")
    if not (0 < area[0] <= area[1] <= 1 and 0 < aspect[0] <= aspect[1]):
        raise UsageError(f"area must be within (0, 1] and aspect > 0, smallest first; got {area} and {aspect}")
    height, width = images.shape[1:3]
    limits = np.log(np.asarray(aspect, np.float64))

    def box(one: Key[Array, ""]) -> Int[Array, " 4"]:
        decide, shape, place = jax.random.split(one, 3)
        share, log_ratio = jax.random.uniform(shape, (2, 10))
        pixels = height * width * (area[0] + (area[1] - area[0]) * share)
        ratio = jnp.exp(limits[0] + (limits[1] - limits[0]) * log_ratio)
        tall, wide = (jnp.round(jnp.sqrt(side)).astype(jnp.int32) for side in (pixels * ratio, pixels / ratio))
        fits = (tall < height) & (wide < width) & (tall > 0) & (wide > 0)
        first = jnp.argmax(fits)
        use = fits.any() & jax.random.bernoulli(decide, probability)
        tall, wide = jnp.where(use, tall[first], 0), jnp.where(use, wide[first], 0)
        top, left = jax.random.randint(place, (2,), 0, jnp.stack([height - tall + 1, width - wide + 1]))
        return jnp.stack([top, left, top + tall, left + wide])

    top, left, bottom, right = jnp.moveaxis(jax.vmap(box)(per_image_keys(key, len(images))), 1, 0)
    return erase(images, top, left, bottom, right, fill=fill)


def erase(
    images: Images,
    top: Pixels,
    left: Pixels,
    bottom: Pixels,
    right: Pixels,
    *,
    fill: float | Float[Array | np.ndarray, " channels"] = 0.0,
) -> Images:
    """Paints over a rectangle of each image.

    Args:
      images: in [0, 1].
      top: first row [batch].
      left: first column [batch].
      bottom: the row below [batch]; a rectangle without rows or columns changes nothing.
      right: the column to the right [batch].
      fill: value, or one for each channel.

    Returns:
      Images in [0, 1].

    Raises:
      UsageError: no images in [0, 1], or neither one value nor one for each channel.
    """
    check_images(images)
    if np.shape(fill) not in ((), (images.shape[3],)):
        raise UsageError(f"fill must be one number or one for each of {images.shape[3]} channels, got {fill}")
    colour = jnp.asarray(fill, images.dtype).reshape(1, 1, 1, -1)
    return jnp.where(box_mask(images, top, left, bottom, right), colour, images)


def box_mask(
    images: Num[Array, "batch height width channels"],
    top: Int[Array, " boxes"],
    left: Int[Array, " boxes"],
    bottom: Int[Array, " boxes"],
    right: Int[Array, " boxes"],
) -> Bool[Array, "boxes height width 1"]:
    """Which pixels lie in a box: top <= row < bottom and left <= column < right.

    Args:
      images: for their height and width.
      top: [boxes].
      left: [boxes].
      bottom: [boxes].
      right: [boxes].

    Returns:
      Masks [boxes, height, width, 1].
    """
    row, column = jnp.arange(images.shape[1])[None], jnp.arange(images.shape[2])[None]
    rows = (row >= top[:, None]) & (row < bottom[:, None])
    columns = (column >= left[:, None]) & (column < right[:, None])
    return rows[:, :, None, None] & columns[:, None, :, None]


def _beta(key: Keys, images: Images, alpha: Number, per_row: bool) -> Float[Array, " _"]:
    """λ for each image, or one for all."""
    in_interval("alpha", alpha, "(0, inf)")
    if key.ndim and not per_row:
        raise UsageError(
            f"keys of shape {list(key.shape)} mean a share for each image: say per_row=True or pass one key"
        )
    keys = per_image_keys(key, len(images)) if per_row else key[None]
    return jax.vmap(lambda one: jax.random.beta(jax.random.fold_in(one, 0), alpha, alpha, dtype=images.dtype))(keys)


def _any_pixel(keys: Key[Array, " _"], images: Images) -> tuple[Int[Array, " _"], Int[Array, " _"]]:
    draw = lambda one: jax.random.randint(jax.random.fold_in(one, 1), (2,), 0, jnp.array(images.shape[1:3]))
    row, column = jnp.moveaxis(jax.vmap(draw)(keys), 1, 0)
    return row, column


def _mixed_labels(labels: Labels, share: Float[Array, "_ 1"]) -> Labels:
    # In floating point λ + (1 - λ) is exactly 1 for every λ in [0, 1].
    return share * labels + (1 - share) * jnp.roll(labels, 1, axis=0)


def _check_labels(images: Images, labels: Labels) -> None:
    if labels.ndim != 2 or len(labels) != len(images):
        given = f"got shape {list(labels.shape)} for {len(images)} images"
        raise UsageError(f"labels must be [batch, classes], {given}; jax.nn.one_hot(labels, num_classes) makes them so")
    if not jnp.issubdtype(labels.dtype, jnp.floating):
        raise UsageError(f"labels must be floating point, got {labels.dtype}; jax.nn.one_hot(labels, n) makes them so")
    check_probabilities("labels", labels, distributions=True)
