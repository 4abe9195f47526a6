"""Noise: Gaussian, salt and pepper, and that of few photons. Row i depends on (key, i) only."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from dl_core.augment.photometric import Strength, check_images, per_image
from dl_core.augment.policies import per_image_keys

Images = Float[Array, "batch height width channels"]
Keys = Key[Array, ""] | Key[Array, " batch"]


def gaussian_noise(key: Keys, images: Images, *, std: Strength) -> Images:
    """White noise: each value plus a normal number of its own. torchvision's GaussianNoise.

    Args:
      key: one key, or one for each image.
      images: in [0, 1].
      std: standard deviation, >= 0; one number, or one for each image. 0 is neutral.

    Returns:
      Images, clipped to [0, 1].

    Raises:
      UsageError: no images in [0, 1], or a deviation out of its range.
    """
    check_images(images)
    spread = per_image("std", std, images, "[0, inf)")
    draw = lambda one: jax.random.normal(one, images.shape[1:], images.dtype)
    return jnp.clip(images + spread * jax.vmap(draw)(per_image_keys(key, len(images))), 0, 1)


def salt_and_pepper(key: Keys, images: Images, *, amount: Strength, salt: Strength = 0.5) -> Images:
    """Pixels that became white or black, all channels together. (scikit-image's "s&p" draws each channel by itself.)

    Args:
      key: one key, or one for each image.
      images: in [0, 1].
      amount: probability of a pixel to be replaced, in [0, 1]; one number, or one for each image. 0 is neutral.
      salt: share of white among the replaced, in [0, 1].

    Returns:
      Images in [0, 1].

    Raises:
      UsageError: no images in [0, 1], or a probability out of its range.
    """
    check_images(images)
    replaced, white = (per_image(name, value, images, "[0, 1]") for name, value in (("amount", amount), ("salt", salt)))
    draw = lambda one: jax.random.uniform(one, (*images.shape[1:3], 1), images.dtype)
    drawn = jax.vmap(draw)(per_image_keys(key, len(images)))  # one number decides both: whether, and which
    return jnp.where(drawn < replaced, (drawn < replaced * white).astype(images.dtype), images)


def shot_noise(key: Keys, images: Images, *, photons: Strength) -> Images:
    """Counted light: Poisson(photons · x) / photons, so that the variance is x / photons.

    Hendrycks, Dietterich (2019), "Benchmarking Neural Network Robustness", https://arxiv.org/abs/1903.12261, where
    photons are 60, 25, 12, 5, 3. scikit-image's "poisson" noise has as many photons as there are levels.

    Args:
      key: one key, or one for each image.
      images: in [0, 1].
      photons: expected for white, > 0; one number, or one for each image. The fewer, the noisier.

    Returns:
      Images, clipped to [0, 1]; black stays black.

    Raises:
      UsageError: no images in [0, 1], or a number of photons out of its range.
    """
    check_images(images)
    light = per_image("photons", photons, images, "(0, inf)")
    expected = light * jnp.maximum(images, 0)
    draw = lambda one, mean: jax.random.poisson(one, mean.astype(jnp.float32))
    counts = jax.vmap(draw)(per_image_keys(key, len(images)), expected)
    return jnp.clip(counts.astype(images.dtype) / light, 0, 1)
