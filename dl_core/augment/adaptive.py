"""The augmentations in front of the discriminator of a GAN, all of a strength p that may change from step to step.

Karras et al. (2020), "Training Generative Adversarial Networks with Limited Data" (ADA),
https://arxiv.org/abs/2006.06676, appendix B. Each transformation is done to an image with probability p (to a
uniformly drawn extent, which may be none: half of the mirrorings mirror). As long as p stays well below 1 the generator
learns the distribution without augmentations. p may be traced: the rule that moves it is no part of this file.

Movements are collected in one matrix and colours in another for each image. The paper enlarges images twofold by a
sharp filter before the movement, and shrinks them after it; here it is one bilinear warp, which blurs a little more.
What comes in from outside is the mirror image, up to half of the size, and mid-grey beyond.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, Num

from dl_core.augment import affine
from dl_core.augment.mixing import box_mask
from dl_core.augment.photometric import check_images
from dl_core.augment.policies import per_image_keys
from dl_core.errors import unknown_name
from dl_core.optim.options import Number, in_interval

Images = Float[Array, "batch height width channels"]
ImageKeys = Key[Array, " batch"]
Matrices = Float[Array, "batch 3 3"]

MID_GREY = 0.5  # the paper's images are in [-1, 1], and its 0 is this; its spreads are twice those on [0, 1]
HALF_BAND = np.array([-1, 0, 9, 16, 9, 0, -1]) / 32  # sym2 with itself reversed
BAND_POWER = np.array([10, 1, 1, 1]) / 13  # of images, from the lowest octave to the highest


def adaptive_augment(
    key: Key[Array, ""] | Key[Array, " batch"],
    images: Images,
    *,
    p: Number,
    groups: Sequence[str] = ("blit", "geometry", "color"),
    clip: bool = False,
) -> Images:
    """The pipeline of ADA: mirrors, turns, shifts and stretches images, mixes their colours, disturbs them.

    Args:
      key: one key, or one for each image.
      images: in [0, 1], with 1 or 3 channels. Quarter turns are meant for square ones.
      p: strength, in [0, 1]; at 0 the images come back exactly as they are. A number or a scalar array, traced or not.
      groups: which kinds of transformation, of "blit" (mirror, quarter turn, shift by whole pixels), "geometry" (scale,
        turn, stretch, shift), "color" (brightness, contrast, luma flip, hue, saturation), "filter" (four octaves
        amplified), "noise", "cutout". The default did best in the paper's comparison.
      clip: whether values are cut off at 0 and 1. In the paper they are not: where they are, no gradient reaches the
        generator.

    Returns:
      Images of the same shape, in [0, 1] only if clipped.

    Raises:
      UsageError: no images in [0, 1], another number of channels, an unknown group, or a strength out of its range.
    """
    check_images(images, channels=(1, 3))
    in_interval("p", p, "[0, 1]")
    for group in groups:
        if group not in GROUPS:
            raise unknown_name("group", group, GROUPS)
    keys = per_image_keys(key, len(images))
    if "blit" in groups or "geometry" in groups:
        images = _move(images, movements(keys, (images.shape[1], images.shape[2]), p, groups))
    if "color" in groups:
        images = _mix_colors(images, *color_matrices(keys, p))
    if "filter" in groups:
        images = _amplify(images, band_gains(keys, p))
    if "noise" in groups:
        spread = jnp.abs(_sometimes(keys, "noise spread", p, 0.0, lambda one: 0.05 * jax.random.normal(one)))
        white = jax.vmap(lambda one: jax.random.normal(one, images.shape[1:], images.dtype))(_keys(keys, "noise"))
        images = images + spread.reshape(-1, 1, 1, 1).astype(images.dtype) * white
    if "cutout" in groups:
        images = jnp.where(_hole(keys, images, p), jnp.asarray(MID_GREY, images.dtype), images)
    return jnp.clip(images, 0, 1) if clip else images


def movements(keys: ImageKeys, size: affine.Size, p: Number, groups: Sequence[str] = ("blit", "geometry")) -> Matrices:
    """Where the pixels of each image go.

    Args:
      keys: one for each image [batch].
      size: height and width of the images.
      p: strength, in [0, 1].
      groups: "blit", "geometry" or both.

    Returns:
      Matrices [batch, 3, 3] from the input to the output, see `dl_core.augment.affine`.
    """
    height, width = size
    steps: list[Matrices] = []
    if "blit" in groups:
        mirror = _sometimes(keys, "mirror", p, 1.0, lambda one: jax.random.rademacher(one, (), jnp.float32))
        turn = _sometimes(keys, "quarter turn", p, 0, lambda one: jax.random.randint(one, (), 0, 4))
        shift = _sometimes(keys, "whole shift", p, 0.0, lambda one: jax.random.uniform(one, (2,), minval=-1, maxval=1))
        across, down = jnp.round(shift[:, 0] * width / 8), jnp.round(shift[:, 1] * height / 8)
        steps += [affine.scaling(jnp.stack([mirror, jnp.ones_like(mirror)], axis=1), size)]
        steps += [_quarter_turn(turn, size), affine.translation(across, down)]
    if "geometry" in groups:
        log_normal = lambda one: jnp.exp2(0.2 * jax.random.normal(one))
        angle = lambda one: jax.random.uniform(one, minval=-180.0, maxval=180.0)
        either = 1 - jnp.sqrt(1 - p)  # two turns, each with this probability: one at least with probability p
        stretch = _sometimes(keys, "stretch", p, 1.0, log_normal)
        shift = _sometimes(keys, "shift", p, 0.0, lambda one: jax.random.normal(one, (2,)) / 8)
        steps += [affine.scaling(_sometimes(keys, "scale", p, 1.0, log_normal), size)]
        steps += [affine.rotation(_sometimes(keys, "turn before", either, 0.0, angle), size)]
        steps += [affine.scaling(jnp.stack([stretch, 1 / stretch], axis=1), size)]
        steps += [affine.rotation(_sometimes(keys, "turn after", either, 0.0, angle), size)]
        steps += [affine.translation(shift[:, 0] * width, shift[:, 1] * height)]
    return affine.compose(*steps)


def color_matrices(keys: ImageKeys, p: Number) -> tuple[Matrices, Float[Array, " batch"]]:
    """How the colours of each image are mixed: matrix @ (x - mid-grey + offset) + mid-grey.

    Args:
      keys: one for each image [batch].
      p: strength, in [0, 1].

    Returns:
      Matrices [batch, 3, 3] and offsets [batch], the brightness.
    """
    brightness = _sometimes(keys, "brightness", p, 0.0, lambda one: 0.1 * jax.random.normal(one))
    contrast = _sometimes(keys, "contrast", p, 1.0, lambda one: jnp.exp2(0.5 * jax.random.normal(one)))
    flip = _sometimes(keys, "luma flip", p, 0.0, lambda one: jax.random.bernoulli(one).astype(jnp.float32))
    angle = _sometimes(keys, "hue", p, 0.0, lambda one: jax.random.uniform(one, minval=-np.pi, maxval=np.pi))
    saturation = _sometimes(keys, "saturation", p, 1.0, lambda one: jnp.exp2(jax.random.normal(one)))

    # All of them leave the axis of greys in place, and what they do to it and around it commutes.
    grey = np.full((3, 3), 1 / 3)  # projects on the axis
    across = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / np.sqrt(3)  # a quarter turn around it
    one = np.eye(3)

    def matrix(
        contrast: Float[Array, ""], flip: Float[Array, ""], angle: Float[Array, ""], saturation: Float[Array, ""]
    ) -> Float[Array, "3 3"]:
        hue = jnp.cos(angle) * one + (1 - jnp.cos(angle)) * grey + jnp.sin(angle) * across
        around = saturation * hue + (1 - saturation) * grey
        return contrast * (around - 2 * flip * grey)

    return jax.vmap(matrix)(contrast, flip, angle, saturation).astype(jnp.float32), brightness


def band_gains(keys: ImageKeys, p: Number) -> Float[Array, "batch 4"]:
    """How much each of four octaves is amplified, from the lowest to the highest; the power of typical images is kept.

    Args:
      keys: one for each image [batch].
      p: strength, in [0, 1]: the probability of each octave to be drawn.

    Returns:
      Gains [batch, 4], 1 where nothing is drawn.
    """
    gains = jnp.ones((len(keys), 4))
    for band in range(4):
        drawn = _sometimes(keys, f"band {band}", p, 0.0, lambda one: jnp.exp2(jax.random.normal(one)))
        one_raised = jnp.where(jnp.arange(4)[None] == band, drawn[:, None], 1.0)
        power = jnp.sqrt((BAND_POWER[None] * one_raised**2).sum(axis=1, keepdims=True))
        gains = jnp.where(drawn[:, None] > 0, gains * one_raised / power, gains)
    return gains


def _keys(keys: ImageKeys, name: str) -> ImageKeys:
    """Keys for one purpose: the numbers of a transformation do not change when others are added or left out."""
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, _PURPOSES.index(name))


def _sometimes(
    keys: ImageKeys, name: str, p: Number, neutral: float | int, draw: Callable[[Key[Array, ""]], Array]
) -> Num[Array, "batch ..."]:
    """What is drawn for each image, with probability p, and what changes nothing otherwise."""

    def one(key: Key[Array, ""]) -> Array:
        decide, extent = jax.random.split(key)
        return jnp.where(jax.random.uniform(decide) < p, draw(extent), neutral)

    return jax.vmap(one)(_keys(keys, name))


def _quarter_turn(turns: Int[Array, " batch"], size: affine.Size) -> Matrices:
    """As `affine.rotation` by multiples of 90 degrees, with entries of exactly 0 and ±1."""
    cos, sin = (jnp.asarray(np.array(values, np.float32))[turns] for values in (_COS, _SIN))
    x, y = size[1] / 2, size[0] / 2
    zero, one = jnp.zeros_like(cos), jnp.ones_like(cos)
    rows = [cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y, zero, zero, one]
    return jnp.stack(rows, axis=-1).reshape(-1, 3, 3)


_COS, _SIN = (1, 0, -1, 0), (0, 1, 0, -1)


def _move(images: Images, matrices: Matrices) -> Images:
    height, width = images.shape[1:3]
    down, across = height // 2, width // 2
    padded = jnp.pad(images, ((0, 0), (down, down), (across, across), (0, 0)), mode="reflect")
    ones = jnp.ones(len(images))
    from_padded = affine.compose(affine.translation(-across * ones, -down * ones), matrices)
    return affine.warp(padded, from_padded, fill=MID_GREY, size=(height, width))


def _mix_colors(images: Images, matrices: Matrices, offsets: Float[Array, " batch"]) -> Images:
    reach = matrices.sum(axis=2)  # of mid-grey in each channel; exactly 1 for the unit matrix
    constant = MID_GREY * (1 - reach) + offsets[:, None] * reach
    if images.shape[3] == 1:
        matrices, constant = reach[:, :1, None], constant[:, :1]  # a grey pixel as three equal channels
    # Not rounded to ten bits where the hardware would do so with products of matrices.
    mixed = jnp.einsum("bhwc,bdc->bhwd", images, matrices.astype(images.dtype), precision=jax.lax.Precision.HIGHEST)
    return mixed + constant[:, None, None].astype(images.dtype)


def _amplify(images: Images, gains: Float[Array, "batch 4"]) -> Images:
    """Rows and columns times a filter; written so that gains of 1 leave exactly the image."""
    steps = jnp.concatenate([gains[:, :-1] - gains[:, 1:], gains[:, -1:]], axis=1)
    rows, columns = (
        jnp.tensordot(steps, jnp.asarray(_low_passes(n)), axes=1, precision=jax.lax.Precision.HIGHEST)
        for n in images.shape[1:3]
    )
    multiply = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    return multiply("bvw,bhwc->bhvc", columns.astype(images.dtype), multiply("bgh,bhwc->bgwc", rows, images))


@functools.cache
def _low_passes(n: int) -> Float[np.ndarray, "4 n n"]:
    """What keeps the lowest octave, two, three octaves and all, as matrices for n pixels with mirrored borders."""
    passes, kernel = [np.eye(n)], np.ones(1)
    for octave in range(3):
        wide = np.zeros((len(HALF_BAND) - 1) * 2**octave + 1)
        wide[:: 2**octave] = HALF_BAND
        kernel = np.convolve(kernel, wide)
        mirrored = np.pad(np.eye(n), ((len(kernel) // 2,) * 2, (0, 0)), mode="reflect" if n > 1 else "edge")
        passes.append(np.einsum("t,tij->ij", kernel, [mirrored[tap : tap + n] for tap in range(len(kernel))]))
    return np.stack(passes[::-1]).astype(np.float32)


def _hole(keys: ImageKeys, images: Images, p: Number) -> Bool[Array, "batch height width 1"]:
    """A rectangle of half the height and width around any point, or nothing."""
    height, width = images.shape[1:3]
    centre = _sometimes(keys, "cutout", p, -1.0, lambda one: jax.random.uniform(one, (2,)))  # -1: far outside
    top, left = (jnp.ceil((centre[:, axis] - 0.25) * side - 0.5) for axis, side in ((0, height), (1, width)))
    bottom, right = (jnp.ceil((centre[:, axis] + 0.25) * side - 0.5) for axis, side in ((0, height), (1, width)))
    return box_mask(images, *(edge.astype(jnp.int32) for edge in (top, left, bottom, right)))


GROUPS = ("blit", "geometry", "color", "filter", "noise", "cutout")
_PURPOSES = (
    "mirror", "quarter turn", "whole shift", "scale", "turn before", "stretch", "turn after", "shift",
    "brightness", "contrast", "luma flip", "hue", "saturation", "band 0", "band 1", "band 2", "band 3",
    "noise spread", "noise", "cutout",
)  # fmt: skip
