"""Other sizes: whole images, random windows brought to one size, predictions averaged over several sizes.

An image that shrinks must be smoothed, or what is finer than the new pixels comes back as a pattern that was not there
(aliasing). With `antialias` the kernel is widened by the factor of shrinking, as in Pillow; enlarging is the same with
and without.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from dl_core.augment.affine import Matrices, Size, compose, scaling, translation
from dl_core.augment.policies import ApplyFn, per_image_keys
from dl_core.errors import UsageError, unknown_name

METHODS = ("nearest", "bilinear", "bicubic", "lanczos3")
TRIES = 10  # windows drawn before the middle of the image is taken, as in torchvision


def resize(
    images: Float[Array, "batch height width channels"],
    *,
    size: int | Size,
    method: str = "bilinear",
    antialias: bool = True,
) -> Float[Array, "batch _ _ channels"]:
    """Bring images to another height and width.

    Args:
      images: [batch, height, width, channels].
      size: height and width; one number for both.
      method: "nearest", "bilinear", "bicubic" (a = -0.5, as in Pillow) or "lanczos3".
      antialias: smooth where the image shrinks.

    Returns:
      Images [batch, *size, channels].

    Raises:
      UsageError: an unknown method, or a size below one.
    """
    _check(method, size)
    shape = (images.shape[0], *_pair(size), images.shape[3])
    return jax.image.resize(images, shape, method=method, antialias=antialias)


def random_resized_crop(
    key: Key[Array, ""] | Key[Array, " batch"],
    images: Float[Array, "batch height width channels"],
    *,
    size: int | Size,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    method: str = "bilinear",
    antialias: bool = True,
) -> Float[Array, "batch _ _ channels"]:
    """A window of random area, shape and place of every image, brought to one size.

    Szegedy et al. (2015), "Going deeper with convolutions", https://arxiv.org/abs/1409.4842, section 6. The windows are
    drawn as in torchvision's RandomResizedCrop, but not rounded to whole pixels; and a kernel that reaches beyond the
    window sees what is there, where torchvision cuts first and so repeats the window's border.

    Args:
      key: one key, or one for each image.
      images: [batch, height, width, channels].
      size: height and width of the output; one number for both.
      scale: smallest and largest share of the image's area, 0 < smallest <= largest <= 1; uniform between.
      ratio: smallest and largest width / height of the window; uniform between in the logarithm.
      method: see `resize`, without "nearest".
      antialias: smooth where the window shrinks.

    Returns:
      Images [batch, *size, channels].

    Raises:
      UsageError: a range out of order, an unknown method, or a size below one.
    """
    frame = images.shape[1], images.shape[2]
    matrices = random_resized_crop_matrices(key, len(images), frame, size=size, scale=scale, ratio=ratio)
    return scale_and_translate(images, matrices, size=size, method=method, antialias=antialias)


def random_resized_crop_matrices(
    key: Key[Array, ""] | Key[Array, " batch"],
    batch: int,
    frame: Size,
    *,
    size: int | Size,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Matrices:
    """Where `random_resized_crop` of the same key moves the points of each image.

    Args:
      key: one key, or one for each image.
      batch: how many images.
      frame: height and width of the images before the crop.
      size: height and width of the output; one number for both.
      scale: as given to `random_resized_crop`.
      ratio: as given to `random_resized_crop`.

    Returns:
      Matrices [batch, 3, 3], of scaling and translation only, for `warp_sample(…, size=size)`; the images that this
      returns are not smoothed, those of `random_resized_crop` are.

    Raises:
      UsageError: see `random_resized_crop`.
    """
    if not (0 < scale[0] <= scale[1] <= 1 and 0 < ratio[0] <= ratio[1]):
        raise UsageError(f"needed: 0 < scale <= 1 and 0 < ratio, smallest first; got scale={scale} and ratio={ratio}")
    _check("bilinear", size)
    (height, width), (out_height, out_width) = frame, _pair(size)

    def window(one: Key[Array, ""]) -> Float[Array, "4"]:
        area_key, shape_key, place_key = jax.random.split(one, 3)
        area = jax.random.uniform(area_key, (TRIES,), minval=scale[0], maxval=scale[1]) * height * width
        shape = jnp.exp(jax.random.uniform(shape_key, (TRIES,), minval=math.log(ratio[0]), maxval=math.log(ratio[1])))
        sides = jnp.stack([jnp.sqrt(area * shape), jnp.sqrt(area / shape)], axis=1)  # along x and along y
        fits = (sides <= jnp.array([[width, height]])).all(axis=1)
        widest = min(width, height * ratio[1]), min(height, width / ratio[0])  # the largest of the allowed shapes
        side = jnp.where(fits.any(), sides[fits.argmax()], jnp.array(widest))
        free = jnp.array([width, height]) - side
        share = jnp.where(fits.any(), jax.random.uniform(place_key, (2,)), 0.5)
        return jnp.concatenate([free * share, side])

    left, top, across, down = jnp.moveaxis(jax.vmap(window)(per_image_keys(key, batch)), 1, 0)
    factors = jnp.stack([out_width / across, out_height / down], axis=1)
    return compose(translation(-left, -top), scaling(factors, (0, 0)))


def scale_and_translate(
    images: Float[Array, "batch height width channels"],
    matrices: Matrices,
    *,
    size: int | Size,
    method: str = "bilinear",
    antialias: bool = True,
) -> Float[Array, "batch _ _ channels"]:
    """`warp` for matrices that only scale and shift, smoothed where the image shrinks; zeros outside the image
    (whose border is repeated over half a pixel, where `warp` blends it with what is outside).

    Args:
      images: [batch, height, width, channels].
      matrices: [batch, 3, 3] of scaling by positive factors and translation; other entries are not looked at.
      size: height and width of the output; one number for both.
      method: "bilinear", "bicubic" or "lanczos3".
      antialias: smooth where the image shrinks.

    Returns:
      Images [batch, *size, channels].

    Raises:
      UsageError: an unknown method, or a size below one.
    """
    if method == "nearest":
        raise UsageError('method="nearest" takes values unchanged: use `warp`')
    _check(method, size)
    resample = functools.partial(
        jax.image.scale_and_translate,
        shape=(*_pair(size), images.shape[3]),
        spatial_dims=(0, 1),
        method=method,
        antialias=antialias,
    )
    # rows come before columns in images, y after x in matrices
    factors = jnp.stack([matrices[:, 1, 1], matrices[:, 0, 0]], axis=1)
    shifts = jnp.stack([matrices[:, 1, 2], matrices[:, 0, 2]], axis=1)
    return jax.vmap(lambda image, factor, shift: resample(image, scale=factor, translation=shift))(
        images, factors, shifts
    )


def resize_matrices(batch: int, frame: Size, *, size: int | Size) -> Matrices:
    """Where `resize` moves the points of each image.

    Args:
      batch: how many images.
      frame: height and width of the images before.
      size: height and width after; one number for both.

    Returns:
      Matrices [batch, 3, 3] for `warp_sample(…, size=size)`.
    """
    height, width = _pair(size)
    return scaling(jnp.broadcast_to(jnp.array([[width / frame[1], height / frame[0]]]), (batch, 2)), (0, 0))


def average_over_sizes(
    apply_fn: ApplyFn, sizes: Sequence[int | Size], *, method: str = "bilinear", antialias: bool = True
) -> ApplyFn:
    """Test-time augmentation: a classifier whose probabilities are the mean over several sizes of each image.

    For a classifier that takes images of any size, such as one with global pooling. Views of one size are averaged by
    `average_over_views`, and the two can be nested.

    Args:
      apply_fn: (params, images) -> logits [batch, classes].
      sizes: heights and widths; one number for both.
      method: see `resize`.
      antialias: see `resize`.

    Returns:
      (params, images) -> log of the mean probabilities [batch, classes], which serve as logits.

    Raises:
      UsageError: no sizes, one below one, or an unknown method.
    """
    if not sizes:
        raise UsageError("sizes must hold at least one size, got none")
    for size in sizes:
        _check(method, size)

    def averaged(params: Any, images: Float[Array, "batch height width channels"]) -> Float[Array, "batch classes"]:
        seen = [resize(images, size=size, method=method, antialias=antialias) for size in sizes]
        log_probabilities = jnp.stack([jax.nn.log_softmax(apply_fn(params, view)) for view in seen])
        return jax.nn.logsumexp(log_probabilities, axis=0) - math.log(len(sizes))

    return averaged


def _pair(size: int | Size) -> Size:
    return (size, size) if isinstance(size, int) else size


def _check(method: str, size: int | Size) -> None:
    if method not in METHODS:
        raise unknown_name("method", method, METHODS)
    if min(_pair(size)) < 1:
        raise UsageError(f"size must be at least 1 × 1, got {size}")
