"""Attacks that follow the gradient of the loss with respect to the image.

Goodfellow, Shlens, Szegedy (2015), "Explaining and Harnessing Adversarial Examples", https://arxiv.org/abs/1412.6572
(course notes, eq. 48).

    x* = x + eps sign(∇ₓ L(f(x), y))                 in the maximum norm
    x* = x + eps ∇ₓ L(f(x), y) / ‖∇ₓ L(f(x), y)‖₂    in the Euclidean norm
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, Key

from dl_core.errors import UsageError, unknown_name

ApplyFn = Callable[[Any, Float[Array, "batch ..."]], Float[Array, "batch classes"]]
NORMS = ("linf", "l2")


class AttackResult(NamedTuple):
    """What an attack found and what it cost, for each image.

    adversarial: the changed images, inside the bounds and within eps of the originals.
    success: the prediction is the target, or without a target no longer the label.
    distance: how far the image was moved, in the norm of the attack.
    queries: how often the model was asked, forward passes and gradients counted as one each.
    steps: how many steps were taken.
    """

    adversarial: Float[Array, "batch ..."]
    success: Bool[Array, " batch"]
    distance: Float[Array, " batch"]
    queries: Int[Array, " batch"]
    steps: Int[Array, " batch"]


def fgsm(
    apply_fn: ApplyFn,
    params: Any,
    images: Float[Array, "batch ..."],
    labels: Int[Array, " batch"],
    *,
    eps: float | Float[Array, ""] | Float[Array, " batch"],
    bounds: tuple[float, float] = (0.0, 1.0),
    target: Int[Array, " batch"] | None = None,
    norm: str = "linf",
    key: Key[Array, ""] | None = None,
    loop: str = "auto",
) -> AttackResult:
    """Fast gradient sign method: one step of length eps up the loss, or down the loss of a target.

    Args:
      apply_fn: (params, images) -> logits, as in inference, normalisation included.
      params: pytree of everything that apply_fn needs; never changed.
      images: inside the bounds, e.g. [batch, height, width, channels].
      labels: the true classes.
      eps: radius of the ball in the units of the images, >= 0; one number, or one for each image.
      bounds: smallest and largest value of an image.
      target: classes to be predicted instead; None is content with any wrong one.
      norm: "linf" or "l2".
      key: not used, the method is deterministic; taken so that every attack is called alike.
      loop: not used, there is one step; taken likewise.

    Returns:
      AttackResult.

    Raises:
      UsageError: an unknown norm, eps < 0, bounds out of order, or images outside of the bounds.
    """
    del key, loop
    check_budget(images, eps, bounds, norm)
    toward = labels if target is None else target

    def loss(perturbed: Float[Array, "batch ..."]) -> Float[Array, ""]:
        return optax.softmax_cross_entropy_with_integer_labels(apply_fn(params, perturbed), toward).sum()

    ascent = jax.grad(loss)(images) * (1 if target is None else -1)
    step = per_image(jnp.asarray(eps, images.dtype), images) * unit_step(ascent, norm)
    adversarial = jnp.clip(images + step, *bounds)
    predicted = apply_fn(params, adversarial).argmax(axis=1)
    counts = jnp.ones(len(images), jnp.int32)
    return AttackResult(
        adversarial=adversarial,
        success=predicted != labels if target is None else predicted == target,
        distance=distance(adversarial - images, norm),
        queries=2 * counts,
        steps=counts,
    )


def unit_step(gradient: Float[Array, "batch ..."], norm: str) -> Float[Array, "batch ..."]:
    """For each image, the direction of length 1 in the norm along which the linearised loss rises most.

    Args:
      gradient: of the loss, for each image.
      norm: "linf" or "l2".

    Returns:
      Same shape; zero where the gradient is zero.
    """
    if norm == "linf":
        return jnp.sign(gradient)
    # divided by the largest value first: squares of a saturated network's gradients would underflow to zero
    largest = per_image(jnp.abs(gradient).reshape(len(gradient), -1).max(axis=1), gradient)
    scaled = gradient / jnp.where(largest > 0, largest, 1)
    return scaled / jnp.maximum(per_image(distance(scaled, "l2"), gradient), 1)


def distance(perturbation: Float[Array, "batch ..."], norm: str) -> Float[Array, " batch"]:
    """The length of each image's perturbation.

    Args:
      perturbation: adversarial minus original.
      norm: "linf" or "l2".

    Returns:
      In the units of the images.
    """
    flat = perturbation.reshape(len(perturbation), -1)
    return jnp.abs(flat).max(axis=1) if norm == "linf" else jnp.sqrt((flat**2).sum(axis=1))


def per_image(values: Float[Array, "*batch"], images: Float[Array, "batch ..."]) -> Float[Array, "..."]:
    """One number, or one for each image, given the axes of the images to be multiplied with them.

    Args:
      values: shape [] or [batch].
      images: the images.

    Returns:
      Shape [1 or batch, 1, …, 1].
    """
    return values.reshape((-1,) + (1,) * (images.ndim - 1))


def check_budget(
    images: Float[Array, "batch ..."], eps: float | Float[Array, "*batch"], bounds: tuple[float, float], norm: str
) -> None:
    """Refuse what no attack can mean; values that are traced by a compiler are not looked at.

    Args:
      images: [batch, ...].
      eps: radius, >= 0.
      bounds: smallest and largest value of an image.
      norm: "linf" or "l2".

    Raises:
      UsageError: an unknown norm, eps < 0, bounds out of order, or images outside of the bounds.
    """
    known = lambda value: not isinstance(value, Tracer) and getattr(value, "is_fully_addressable", True)
    if norm not in NORMS:
        raise unknown_name("norm", norm, NORMS)
    if not bounds[0] < bounds[1]:
        raise UsageError(f"bounds must be (smallest, largest), got {bounds}")
    if known(eps) and np.min(eps) < 0:
        raise UsageError(f"eps must not be negative, got {eps}")
    if not known(images):
        return
    values = np.asarray(images)  # inside a compiled function, jax.numpy would trace even a constant
    if values.size and not (bounds[0] <= values.min() and values.max() <= bounds[1]):
        raise UsageError(
            f"images must lie in bounds={bounds}, got values from {values.min():.4g} to {values.max():.4g}: "
            "give the bounds of these images, or let apply_fn normalise"
        )
