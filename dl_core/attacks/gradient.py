"""Attacks that follow the gradient of the loss with respect to the image.

Goodfellow, Shlens, Szegedy (2015), "Explaining and Harnessing Adversarial Examples", https://arxiv.org/abs/1412.6572
(course notes, eq. 48).

    x* = x + eps sign(∇ₓ L(f(x), y))                 in the maximum norm
    x* = x + eps ∇ₓ L(f(x), y) / ‖∇ₓ L(f(x), y)‖₂    in the Euclidean norm
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from dl_core.attacks.balls import distance, per_image, unit_step
from dl_core.attacks.checks import Problem, check_attack, check_logits
from dl_core.attacks.objectives import LossFn, objective
from dl_core.attacks.result import ApplyFn, AttackResult, succeeded


def fgsm(
    apply_fn: ApplyFn,
    params: Any,
    images: Float[Array, "batch ..."],
    labels: Int[Array, " batch"],
    *,
    eps: float | Float[Array, ""] | Float[Array, " batch"],
    bounds: tuple[float, float] = (0.0, 1.0),
    target: int | Int[Array, " batch"] | None = None,
    norm: str = "linf",
    loss: str | LossFn = "cross_entropy",
    key: Key[Array, "*batch"] | None = None,
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
      norm: "linf", "l2" or "l1" (the one value with the largest gradient).
      loss: what is raised, see `dl_core.attacks.objectives`.
      key: not used, the method is deterministic; taken so that every attack is called alike.
      loop: not used, there is one step; taken likewise.

    Returns:
      AttackResult.

    Raises:
      UsageError: see `dl_core.attacks.checks.check_attack`.
    """
    del loop
    problem = check_attack(
        apply_fn, params, images, labels, eps=eps, bounds=bounds, target=target, norm=norm, loss=loss, key=key
    )
    result, logits = _fgsm(problem, jnp.asarray(eps, images.dtype), bounds, norm, loss)
    check_logits(logits)
    return result


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _fgsm(
    problem: Problem, eps: Float[Array, "*batch"], bounds: tuple[float, float], norm: str, loss: str | LossFn
) -> tuple[AttackResult, Float[Array, "batch classes"]]:
    """The result, and the logits of the images as they were."""
    images, labels, target = problem.images, problem.labels, problem.target

    def gain(perturbed: Float[Array, "batch ..."]) -> tuple[Float[Array, ""], Float[Array, "batch classes"]]:
        logits = problem.logits(perturbed)
        return objective(logits, labels, target, loss).sum(), logits

    ascent, before = jax.grad(gain, has_aux=True)(images)
    adversarial = jnp.clip(images + per_image(eps, images) * unit_step(ascent, norm), *bounds)
    counts = jnp.ones_like(labels)
    result = AttackResult(
        adversarial=adversarial,
        success=succeeded(problem.logits(adversarial), labels, target),
        distance=distance(adversarial - images, norm),
        queries=2 * counts,
        steps=counts,
    )
    return result, before
