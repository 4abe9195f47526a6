"""Losses of generative adversarial networks. `real` and `fake` are the discriminator's logits, or the critic's scores.

    discriminator                   -log σ(real) - log σ(-fake)           Goodfellow et al. (2014), eq. 1
    saturating_generator            log σ(-fake)                          the same game; no gradient where D is sure
    non_saturating_generator        -log σ(fake)                          Goodfellow et al. (2014), section 3
    wasserstein_critic              fake - real                           Arjovsky et al. (2017), eq. 2
    wasserstein_generator           -fake
    gradient_penalty                (‖∇ critic‖ - 1)²                     Gulrajani et al. (2017), eq. 3
    r1_penalty                      ‖∇ discriminator(real)‖² / 2          Mescheder et al. (2018), eq. 9
    least_squares_discriminator     ((real - 1)² + fake²) / 2             Mao et al. (2017), eq. 2
    least_squares_generator         (fake - 1)² / 2
    hinge_discriminator             max(0, 1 - real) + max(0, 1 + fake)   Lim, Ye (2017)
    hinge_generator                 -fake                                 is wasserstein_generator
    reconstruction_l1               mean of |output - image|              CycleGAN's cycle and identity, pix2pix's L1

All are minimised. They work element by element, so logits of shape [batch] give one loss per example and those of a
patch discriminator [batch, height, width] one per patch. A discriminator's loss takes real and fake in pairs; batches
of two sizes, or labels that are smoothed, are `sigmoid_binary_cross_entropy` of each, with labels 0, 1 or 0.9.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from dl_core.errors import UsageError
from dl_core.optim.options import Number, in_interval

ApplyFn = Callable[[Any, Float[Array, "batch ..."]], Float[Array, "batch ..."]]


def discriminator(real: Float[Array, "*batch"], fake: Float[Array, "..."]) -> Float[Array, "*batch"]:
    """-log σ(real) - log σ(-fake): cross-entropy with real as 1 and generated as 0. Goodfellow et al. (2014), eq. 1.

    https://arxiv.org/abs/1406.2661

    Args:
      real: logits of real images.
      fake: logits of generated ones, the same shape.

    Returns:
      >= 0; 2 log 2 where the discriminator cannot tell.

    Raises:
      UsageError: two shapes.
    """
    _check_pairs(real, fake)
    return jax.nn.softplus(-real) + jax.nn.softplus(fake)


def saturating_generator(fake: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """log σ(-fake), the generator's side of the minimax game; <= 0. Its gradient vanishes where D is sure of a fake.

    Goodfellow et al. (2014), eq. 1. `fake`: logits of generated images.
    """
    return -jax.nn.softplus(fake)


def non_saturating_generator(fake: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """-log σ(fake), with the same fixed point as the saturating loss, and a gradient of -1 where D is sure of a fake.

    Goodfellow et al. (2014), section 3; the form in use. `fake`: logits of generated images.
    """
    return jax.nn.softplus(-fake)


def wasserstein_critic(real: Float[Array, "*batch"], fake: Float[Array, "..."]) -> Float[Array, "*batch"]:
    """fake - real: minus its mean is the critic's estimate of the 1-Wasserstein distance, if it is 1-Lipschitz.

    Arjovsky, Chintala, Bottou (2017), https://arxiv.org/abs/1701.07875, eq. 2. Keep the critic Lipschitz with
    `gradient_penalty`, or by clipping its weights. The distance itself: `dl_core.metrics.wasserstein`.

    Args:
      real: scores of real images, any real numbers.
      fake: scores of generated ones, the same shape.

    Returns:
      Any real numbers.

    Raises:
      UsageError: two shapes.
    """
    _check_pairs(real, fake)
    return fake - real


def wasserstein_generator(fake: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """-fake, for a Wasserstein critic's scores or a hinge discriminator's logits of generated images."""
    return -fake


def least_squares_discriminator(real: Float[Array, "*batch"], fake: Float[Array, "..."]) -> Float[Array, "*batch"]:
    """((real - 1)² + fake²) / 2. Mao et al. (2017), https://arxiv.org/abs/1611.04076, eq. 2 with a = 0, b = c = 1.

    Args:
      real: outputs for real images.
      fake: outputs for generated ones, the same shape.

    Returns:
      >= 0.

    Raises:
      UsageError: two shapes.
    """
    _check_pairs(real, fake)
    return 0.5 * ((real - 1) ** 2 + fake**2)


def least_squares_generator(fake: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """(fake - 1)² / 2, the generator's side of `least_squares_discriminator`."""
    return 0.5 * (fake - 1) ** 2


def hinge_discriminator(real: Float[Array, "*batch"], fake: Float[Array, "..."]) -> Float[Array, "*batch"]:
    """max(0, 1 - real) + max(0, 1 + fake). Lim, Ye (2017), https://arxiv.org/abs/1705.02894; SAGAN, BigGAN.

    Args:
      real: logits of real images.
      fake: logits of generated ones, the same shape.

    Returns:
      >= 0.

    Raises:
      UsageError: two shapes.
    """
    _check_pairs(real, fake)
    return jax.nn.relu(1 - real) + jax.nn.relu(1 + fake)


hinge_generator = wasserstein_generator


def gradient_penalty(
    apply_fn: ApplyFn,
    params: Any,
    real: Float[Array, "batch ..."],
    fake: Float[Array, "..."],
    *,
    key: PRNGKeyArray,
    target: Number = 1.0,
) -> Float[Array, " batch"]:
    """(‖∇_x critic(x)‖₂ - 1)² at a random point x on the line between each real image and a generated one.

    Gulrajani et al. (2017), https://arxiv.org/abs/1704.00028, eq. 3; their weight on it is 10. The gradient is that of
    one example alone only if the critic looks at one example at a time: no batch normalisation in it.

    Args:
      apply_fn: (params, images) -> scores [batch] or [batch, ...]; those of one image are summed.
      params: pytree of everything that apply_fn needs.
      real: images.
      fake: generated images, the same shape.
      key: for the points.
      target: the norm that costs nothing, >= 0.

    Returns:
      One penalty per pair, >= 0.

    Raises:
      UsageError: two shapes, or a negative target.
    """
    in_interval("target", target, "[0, inf)")
    _check_pairs(real, fake)
    share = jax.random.uniform(key, (real.shape[0], *(1,) * (real.ndim - 1)), real.dtype)
    squares = _squared_gradient(apply_fn, params, share * real + (1 - share) * fake)
    flat = squares == 0  # the root has no gradient there
    norms = jnp.where(flat, 0, jnp.sqrt(jnp.where(flat, 1, squares)))
    return (norms - target) ** 2


def r1_penalty(apply_fn: ApplyFn, params: Any, real: Float[Array, "batch ..."]) -> Float[Array, " batch"]:
    """‖∇_x discriminator(x)‖² / 2 at real images, to be multiplied by γ (StyleGAN: 10).

    Mescheder, Geiger, Nowozin (2018), https://arxiv.org/abs/1801.04406, eq. 9.

    Args:
      apply_fn: (params, images) -> logits [batch] or [batch, ...]; those of one image are summed.
      params: pytree of everything that apply_fn needs.
      real: images.

    Returns:
      One penalty per image, >= 0.
    """
    return 0.5 * _squared_gradient(apply_fn, params, real)


def reconstruction_l1(outputs: Float[Array, "batch ..."], images: Float[Array, "..."]) -> Float[Array, " batch"]:
    """The mean of |output - image| over all pixels and channels: the part of a translation loss that compares images.

    Cycle consistency, |F(G(x)) - x|, and identity, |G(y) - y|, of CycleGAN (Zhu et al. 2017,
    https://arxiv.org/abs/1703.10593, eq. 2 and section 5.2; weights 10 and 5), and the L1 term |G(x) - y| of pix2pix
    (Isola et al. 2017, https://arxiv.org/abs/1611.07004, eq. 3; weight 100).

    Args:
      outputs: what the generator made.
      images: what it should be, the same shape.

    Returns:
      One loss per image, >= 0.

    Raises:
      UsageError: two shapes.
    """
    if outputs.shape != images.shape:
        raise UsageError(f"outputs and images must have one shape, got {outputs.shape} and {images.shape}")
    return jnp.abs(outputs - images).mean(axis=tuple(range(1, outputs.ndim)))


def _squared_gradient(apply_fn: ApplyFn, params: Any, images: Float[Array, "batch ..."]) -> Float[Array, " batch"]:
    gradient = jax.grad(lambda x: apply_fn(params, x).sum())(images)
    return jnp.sum(gradient**2, axis=tuple(range(1, images.ndim)))


def _check_pairs(real: Float[Array, "..."], fake: Float[Array, "..."]) -> None:
    if real.shape != fake.shape:
        raise UsageError(f"real and fake come in pairs of one shape, got {real.shape} and {fake.shape}")
