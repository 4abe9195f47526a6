"""A contact sheet: every augmentation at five strengths, on one image.

The picture of the documentation (280 kB; at more dots an inch, or of a larger image, the rows of noise outgrow 300 kB):

    images, _ = dl_core.data.scenes.scene_examples(0, 1, size=40, max_objects=4, first=37)
    contact_sheet(to_float(images)[0]).savefig("augmentations.png", dpi=90)

An image of 40 pixels is what the strengths that are given in pixels suit.
"""

import functools
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from matplotlib.figure import Figure

from dl_core.augment import adaptive, affine, automatic, color, filters, mixing, noise
from dl_core.errors import UsageError
from dl_core.plots.style import GREY, PALE, WIDTH, AnyArray, in_house_style

Images = Float[Array, "strengths height width channels"]
Strengths = Float[Array, " strengths"]
Operation = tuple[Callable[[Images, Strengths], Array], Sequence[float | int]]  # (images, strengths) -> images

_key = functools.partial(jax.random.key, 0)  # made when it is used: an import must not start a device
LABEL = 1.2  # inches to the left of the images for the names


def _warped(matrices: Callable[[Strengths, tuple[int, int]], Array]) -> Callable[[Images, Strengths], Array]:
    return lambda images, at: affine.warp(images, matrices(at, (images.shape[1], images.shape[2])))


def _one_after_another(operation: Callable[[Images, float], Array]) -> Callable[[Images, Strengths], Array]:
    """For strengths that decide about shapes and must be Python numbers."""
    return lambda images, at: jnp.concatenate(
        [operation(image[None], float(strength)) for image, strength in zip(images, np.asarray(at), strict=True)]
    )


def _each(operation: Callable[[Images, Float[Array, ""]], Array]) -> Callable[[Images, Strengths], Array]:
    """For operations that draw for each row: all five are given what is drawn for the first."""
    return jax.vmap(lambda image, strength: operation(image[None], strength)[0])


def _with_mirror_image(mix: Callable[[Images, Array, float], Array]) -> Callable[[Images, float], Array]:
    """Mixes an image with its mirror image, which stands for another one."""
    return lambda image, at: mix(jnp.concatenate([image, image[:, :, ::-1]]), jnp.eye(2), at)[:1]


def _pasted(images: Images, at: float) -> Array:
    height, width = images.shape[1:3]
    tall, wide = (jnp.array([round(side * at**0.5)]) for side in (height, width))
    mask = mixing.box_mask(images, jnp.array([0]), width - wide, tall, jnp.array([width]))
    return jnp.where(mask, jnp.roll(images, 1, axis=0), images)


OPERATIONS: Mapping[str, Operation] = {
    "rotation\n(degrees)": (_warped(affine.rotation), (-60, -20, 0, 20, 60)),
    "shear": (_warped(lambda at, size: affine.shear(at, jnp.zeros_like(at), size)), (-0.5, -0.2, 0, 0.2, 0.5)),
    "scaling": (_warped(affine.scaling), (0.5, 0.8, 1, 1.3, 2)),
    "translation\n(width)": (
        _warped(lambda at, size: affine.translation(at * size[1], jnp.zeros_like(at))),
        (-0.4, -0.2, 0, 0.2, 0.4),
    ),
    "brightness": (color.adjust_brightness, (0.2, 0.6, 1, 1.5, 2.5)),
    "contrast": (color.adjust_contrast, (0, 0.5, 1, 2, 4)),
    "saturation": (color.adjust_saturation, (0, 0.5, 1, 2, 4)),
    "hue\n(turns)": (color.adjust_hue, (-0.4, -0.2, 0, 0.2, 0.4)),
    "gamma": (color.adjust_gamma, (0.3, 0.6, 1, 1.7, 3)),
    "posterize\n(bits)": (color.posterize, (1, 2, 3, 4, 8)),
    "solarize\n(threshold)": (color.solarize, (0.1, 0.3, 0.5, 0.7, 1.1)),
    "sharpness": (filters.adjust_sharpness, (0, 0.5, 1, 4, 10)),
    "blur\n(σ, pixels)": (lambda x, at: filters.gaussian_blur(x, at, kernel_size=19), (0, 0.5, 1, 2, 3)),
    "median\n(size)": (_one_after_another(lambda x, at: filters.median_filter(x, size=int(at))), (1, 3, 5, 7, 9)),
    "Gaussian noise\n(deviation)": (lambda x, at: noise.gaussian_noise(_key(), x, std=at), (0, 0.05, 0.1, 0.2, 0.4)),
    "salt, pepper\n(share)": (lambda x, at: noise.salt_and_pepper(_key(), x, amount=at), (0, 0.02, 0.05, 0.2, 0.5)),
    "shot noise\n(photons)": (lambda x, at: noise.shot_noise(_key(), x, photons=at), (1000, 100, 30, 10, 3)),
    "cut-out\n(pixels)": (
        _one_after_another(lambda x, at: mixing.cut_out(_key(), x, size=int(at))),
        (0, 8, 16, 24, 32),
    ),
    "erasing\n(area)": (
        _one_after_another(lambda x, at: mixing.random_erasing(_key(), x, probability=1.0, area=(at, at), fill=0.5)),
        (0.02, 0.05, 0.1, 0.2, 0.33),
    ),
    "mix-up\n(own share)": (
        _one_after_another(_with_mirror_image(lambda x, y, at: mixing.mix(x, y, at).images)),
        (1, 0.9, 0.7, 0.5, 0.3),
    ),
    "cut-mix\n(other's share)": (
        _one_after_another(_with_mirror_image(lambda x, y, at: _pasted(x, at))),
        (0, 0.1, 0.25, 0.4, 0.6),
    ),
    "RandAugment\n(magnitude)": (
        _each(lambda x, at: automatic.rand_augment(jax.random.key(3), x, magnitude=at.astype(jnp.int32))),
        (0, 5, 9, 15, 30),
    ),
    "TrivialAugment\n(seed)": (
        lambda x, at: automatic.trivial_augment(jax.vmap(jax.random.key)(at.astype(jnp.int32)), x),
        (0, 7, 12, 18, 24),
    ),
    "ADA (p)": (
        _each(lambda x, at: adaptive.adaptive_augment(jax.random.key(3), x, p=at, clip=True)),
        (0, 0.2, 0.4, 0.6, 0.8),
    ),
}
WITHOUT_STRENGTH: Mapping[str, Callable[[Images], Array]] = {
    "none": lambda images: images,
    "grayscale": color.grayscale,
    "invert": color.invert,
    "autocontrast": color.autocontrast,
    "equalize": color.equalize,
}


@in_house_style
def contact_sheet(
    image: Float[AnyArray, "height width channels"], operations: Mapping[str, Operation] | None = None
) -> Figure:
    """One row for each operation, the strengths below the images.

    Args:
      image: in [0, 1], with 1 or 3 channels.
      operations: name -> (function of images [5, height, width, channels] and strengths [5], its five strengths); by
        default OPERATIONS, and a last row of those that have no strength.

    Returns:
      A Figure.

    Raises:
      UsageError: no operation, or one that has not five strengths.
    """
    rows = OPERATIONS if operations is None else operations
    for name, (_, strengths) in rows.items():
        if len(strengths) != 5:
            raise UsageError(f"give five strengths for each operation, got {len(strengths)} for {name!r}")
    if not rows:
        raise UsageError("give at least one operation: name -> (function, five strengths)")
    one = jnp.asarray(image, jnp.float32)
    five = jnp.broadcast_to(one[None], (5, *one.shape))
    sheet = [
        (name, np.asarray(function(five, jnp.asarray(strengths, jnp.float32))), [f"{value:g}" for value in strengths])
        for name, (function, strengths) in rows.items()
    ]
    if operations is None:
        plain = np.concatenate([function(one[None]) for function in WITHOUT_STRENGTH.values()])
        sheet.append(("no strength", plain, list(WITHOUT_STRENGTH)))

    cell = (WIDTH - LABEL) / 5
    tall = (cell - 0.08) * one.shape[0] / one.shape[1]
    pitch = tall + 0.24
    figure = Figure(figsize=(WIDTH, pitch * len(sheet)))
    figure.set_layout_engine("none")
    for row, (name, images, captions) in enumerate(sheet):
        bottom = 1 - (row * pitch + tall + 0.04) / (pitch * len(sheet))
        height = tall / (pitch * len(sheet))
        figure.text(0.01, bottom + height / 2, name, va="center", fontsize=9, linespacing=1.15)
        shown = np.broadcast_to(np.clip(images, 0, 1), (*images.shape[:3], 3))
        for column, caption in enumerate(captions):
            axes = figure.add_axes(((LABEL + column * cell) / WIDTH, bottom, (cell - 0.08) / WIDTH, height))
            axes.imshow(shown[column], interpolation="nearest", aspect="auto")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set(visible=True, color=PALE)
            axes.set_xlabel(caption, fontsize=8, color=GREY, labelpad=2)
    return figure
