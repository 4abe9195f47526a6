"""RandAugment and TrivialAugment: each image is given operations of its own out of fourteen.

Cubuk, Zoph, Shlens, Le (2020), "RandAugment", https://arxiv.org/abs/1909.13719; Müller, Hutter (2021),
"TrivialAugment", https://arxiv.org/abs/2103.10158. Operations and magnitudes are those of torchvision.transforms.v2.

The five movements are one branch, a warp by a matrix. On a CPU images are taken one after another, and each pays for
its own operation only; elsewhere all branches are computed for all images at once, and one is kept.

Images stay floating point. torchvision works on bytes and rounds down after every operation, which darkens images by up
to 1/255 each time; here only posterising and equalising see bytes, and only they leave multiples of 1/255.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from dl_core.augment import affine, color, filters
from dl_core.augment.photometric import check_images
from dl_core.augment.policies import per_image_keys
from dl_core.errors import UsageError
from dl_core.optim.options import in_interval

Images = Float[Array, "batch height width channels"]
Keys = Key[Array, ""] | Key[Array, " batch"]

OPERATIONS = (
    "identity", "shear_x", "shear_y", "translate_x", "translate_y", "rotate",
    "brightness", "color", "contrast", "sharpness", "posterize", "solarize", "autocontrast", "equalize",
)  # fmt: skip
_MOVEMENTS, _SIGNED = OPERATIONS[1:6], OPERATIONS[1:10]  # magnitudes of the latter have a random sign


class Plan(NamedTuple):
    """What is to be done to each image.

    operation: index into OPERATIONS [batch].
    magnitude: what the operation is told [batch]: pixels sideways a row (shear), pixels (translate, cut to whole ones),
      degrees counter-clockwise (rotate), factor minus 1 (brightness, color, contrast, sharpness), bits (posterize),
      threshold (solarize); nothing for the rest.
    """

    operation: Int[Array, " batch"]
    magnitude: Float[Array, " batch"]


def rand_augment(
    key: Keys,
    images: Images,
    *,
    num_ops: int = 2,
    magnitude: int | Int[Array, ""] = 9,
    num_magnitude_bins: int = 31,
    method: str = "nearest",
    fill: float = 0.0,
) -> Images:
    """Does num_ops operations to each image in turn, each one of fourteen at random, all of the same magnitude.

    Args:
      key: one key, or one for each image.
      images: in [0, 1], with 1 or 3 channels.
      num_ops: N of the paper, >= 0; an operation may occur twice.
      magnitude: M of the paper, in [0, num_magnitude_bins); may be traced. At 0 only solarisation of pure white,
        autocontrast and equalisation change anything.
      num_magnitude_bins: steps from nothing to the most, >= 2. The paper's scale has 31.
      method: how movements interpolate, see `dl_core.augment.affine.warp`.
      fill: value of what comes in from outside.

    Returns:
      Images in [0, 1].

    Raises:
      UsageError: no images in [0, 1], another number of channels, an unknown method, or a number out of its range.
    """
    check_images(images, channels=(1, 3))
    in_interval("num_ops", num_ops, "[0, inf)", integer=True)
    in_interval("num_magnitude_bins", num_magnitude_bins, "[2, inf)", integer=True)
    in_interval("magnitude", magnitude, f"[0, {num_magnitude_bins})", integer=True)
    table = jnp.asarray(magnitudes(num_magnitude_bins, (images.shape[1], images.shape[2])))[:, magnitude]
    keys = per_image_keys(key, len(images))
    for number in range(num_ops):
        plan = random_plan(jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, number), table[:, None])
        images = apply_plan(images, plan, method=method, fill=fill)
    return images


def trivial_augment(
    key: Keys, images: Images, *, num_magnitude_bins: int = 31, method: str = "nearest", fill: float = 0.0
) -> Images:
    """Does one of fourteen operations to each image, of any magnitude: nothing has to be tuned ("wide" ranges).

    As in the paper, translations go up to 32 pixels whatever the size, which may leave nothing of a small image.

    Args:
      key: one key, or one for each image.
      images: in [0, 1], with 1 or 3 channels.
      num_magnitude_bins: steps from nothing to the most, >= 2, all equally likely.
      method: how movements interpolate, see `dl_core.augment.affine.warp`.
      fill: value of what comes in from outside.

    Returns:
      Images in [0, 1].

    Raises:
      UsageError: no images in [0, 1], another number of channels, an unknown method, or a number out of its range.
    """
    check_images(images, channels=(1, 3))
    in_interval("num_magnitude_bins", num_magnitude_bins, "[2, inf)", integer=True)
    table = magnitudes(num_magnitude_bins, (images.shape[1], images.shape[2]), wide=True)
    plan = random_plan(per_image_keys(key, len(images)), table)
    return apply_plan(images, plan, method=method, fill=fill)


def magnitudes(bins: int, size: tuple[int, int], *, wide: bool = False) -> Float[np.ndarray, "operations bins"]:
    """torchvision's magnitudes, from the weakest to the strongest.

    Args:
      bins: how many, >= 2.
      size: height and width of the images: RandAugment's translations are shares of it.
      wide: those of TrivialAugment instead of RandAugment's.

    Returns:
      [14, bins], in the order of OPERATIONS, without signs; 0 where an operation has none.
    """
    most = dict.fromkeys(OPERATIONS, 0.0)
    if wide:
        most |= {"shear_x": 0.99, "shear_y": 0.99, "translate_x": 32.0, "translate_y": 32.0, "rotate": 135.0}
    else:
        across, down = (150 / 331 * side for side in (size[1], size[0]))
        most |= {"shear_x": 0.3, "shear_y": 0.3, "translate_x": across, "translate_y": down, "rotate": 30.0}
    most |= dict.fromkeys(("brightness", "color", "contrast", "sharpness"), 0.99 if wide else 0.9)
    steps = np.linspace(0, 1, bins)
    table = np.array([most[name] * steps for name in OPERATIONS])
    table[OPERATIONS.index("posterize")] = np.round(8 - np.arange(bins) / ((bins - 1) / (6 if wide else 4)))
    table[OPERATIONS.index("solarize")] = 1 - steps
    return table.astype(np.float32)


def random_plan(keys: Key[Array, " batch"], table: Float[Array | np.ndarray, "operations bins"]) -> Plan:
    """One operation for each image, all equally likely, of any of the magnitudes, with either sign where it has one.

    Args:
      keys: one for each image.
      table: magnitudes [14, bins].

    Returns:
      Plan.
    """
    signed = jnp.asarray([name in _SIGNED for name in OPERATIONS])
    table = jnp.asarray(table)

    def draw(key: Key[Array, ""]) -> Plan:
        which, step, sign = jax.random.split(key, 3)
        operation = jax.random.randint(which, (), 0, len(OPERATIONS))
        magnitude = table[operation, jax.random.randint(step, (), 0, table.shape[1])]
        return Plan(operation, jnp.where(signed[operation] & jax.random.bernoulli(sign), -magnitude, magnitude))

    return jax.vmap(draw)(keys)


def apply_plan(images: Images, plan: Plan, *, method: str = "nearest", fill: float = 0.0) -> Images:
    """Does to each image what the plan says.

    Args:
      images: in [0, 1], with 1 or 3 channels.
      plan: an operation and its magnitude for each image.
      method: how movements interpolate, see `dl_core.augment.affine.warp`.
      fill: value of what comes in from outside.

    Returns:
      Images in [0, 1].

    Raises:
      UsageError: no images in [0, 1], another number of channels, a plan for other images, or an unknown method.
    """
    check_images(images, channels=(1, 3))
    if plan.operation.shape != (len(images),) or plan.magnitude.shape != (len(images),):
        shapes = f"{list(plan.operation.shape)} and {list(plan.magnitude.shape)}"
        raise UsageError(f"the plan must say one thing for each of {len(images)} images, got shapes {shapes}")

    size = (images.shape[1], images.shape[2])
    branches = {
        "identity": lambda image, magnitude, matrix: image,
        "movement": lambda image, magnitude, matrix: affine.warp(image, matrix, method=method, fill=fill),
        "brightness": lambda image, magnitude, matrix: color.adjust_brightness(image, 1 + magnitude),
        "color": lambda image, magnitude, matrix: color.adjust_saturation(image, 1 + magnitude),
        "contrast": lambda image, magnitude, matrix: color.adjust_contrast(image, 1 + magnitude),
        "sharpness": lambda image, magnitude, matrix: filters.adjust_sharpness(image, 1 + magnitude),
        "posterize": lambda image, magnitude, matrix: color.posterize(image, magnitude),
        "solarize": lambda image, magnitude, matrix: color.solarize(image, magnitude),
        "autocontrast": lambda image, magnitude, matrix: color.autocontrast(image),
        "equalize": lambda image, magnitude, matrix: color.equalize(image),
    }
    names = list(branches)
    branch_of = jnp.array([names.index("movement" if name in _MOVEMENTS else name) for name in OPERATIONS])

    def one(
        image_and_plan: tuple[Float[Array, "height width channels"], Plan],
    ) -> Float[Array, "height width channels"]:
        image, plan = jax.tree.map(lambda leaf: leaf[None], image_and_plan)
        choice = branch_of[plan.operation[0]]
        return jax.lax.switch(choice, list(branches.values()), image, plan.magnitude, _matrices(plan, size))[0]

    one_by_one, together = (lambda both: jax.lax.map(one, both)), jax.vmap(one)
    return jax.lax.platform_dependent((images, plan), cpu=one_by_one, default=together)


def _matrices(plan: Plan, size: tuple[int, int]) -> Float[Array, "batch 3 3"]:
    """One movement at most is not neutral, so that the order in which they are composed does not matter."""

    def strength(name: str) -> Float[Array, " batch"]:
        return jnp.where(plan.operation == OPERATIONS.index(name), plan.magnitude, 0)

    across, down, turn = strength("shear_x"), strength("shear_y"), strength("rotate")
    zero, one = jnp.zeros_like(across), jnp.ones_like(across)
    # Not affine.shear: AutoAugment slants about the upper left corner, and torchvision's positive angles to the left.
    slant = jnp.stack([one, -across, zero, -down, one, zero, zero, zero, one], axis=-1).reshape(-1, 3, 3)
    shift = affine.translation(jnp.trunc(strength("translate_x")), jnp.trunc(strength("translate_y")))
    return affine.compose(slant, shift, affine.rotation(-turn, size))
