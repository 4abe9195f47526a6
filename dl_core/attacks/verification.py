"""Runs an attack and looks at what it gave back.

An attack's word is never taken: the model is asked again, and a result counts where it is wrongly classified *and* lies
in the ball and the bounds. So an attack that minimises its distance can stand where a radius is given.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int, Key

from dl_core.attacks.balls import distance
from dl_core.attacks.checks import Problem, check_at_least, check_attack
from dl_core.attacks.objectives import margin
from dl_core.attacks.result import ApplyFn, AttackResult, succeeded
from dl_core.errors import UsageError

# attack(apply_fn, params, images, labels, *, key, eps, norm, bounds, loop); more options by functools.partial
Attack = Callable[..., AttackResult]


class Attacked(NamedTuple):
    """What an attack did to each image, looked at again.

    adversarial: the attack's result.
    success: not classified as its label, within eps and inside the bounds.
    margin: largest logit of another class minus that of the label; -inf where the result lies outside.
    queries: as counted by the attack.
    """

    adversarial: Float[Array, "batch ..."]
    success: Bool[Array, " batch"]
    margin: Float[Array, " batch"]
    queries: Int[Array, " batch"]


def attack_once(
    attack: Attack,
    apply_fn: ApplyFn,
    params: Any,
    images: Float[Array, "batch ..."],
    labels: Int[Array, " batch"],
    keys: Key[Array, " batch"],
    *,
    eps: Float[Array, " batch"],
    norm: str,
    bounds: tuple[float, float],
    loop: str,
    originals: Float[Array, "batch ..."] | None = None,
) -> Attacked:
    """Runs an attack, and looks at its result.

    Args:
      attack: see `accuracy_curve`.
      apply_fn: (params, images) -> logits.
      params: pytree of everything that apply_fn needs.
      images: where the attack starts.
      labels: the true classes.
      keys: one for each image.
      eps: radius for each image.
      norm: of the ball.
      bounds: smallest and largest value of an image.
      loop: see `dl_core.loops`.
      originals: the centres of the balls where those are not `images`.

    Returns:
      Attacked.
    """
    result = attack(apply_fn, params, images, labels, key=keys, eps=eps, norm=norm, bounds=bounds, loop=loop)
    wrapped = apply_fn if isinstance(apply_fn, Partial) else Partial(apply_fn)
    problem = Problem(wrapped, params, images if originals is None else originals, labels, None)
    adversarial = result.adversarial.astype(images.dtype)
    success, gain = _judge(problem, adversarial, eps, norm, (float(bounds[0]), float(bounds[1])))
    return Attacked(adversarial, success, gain, result.queries)


@functools.partial(jax.jit, static_argnums=(3, 4))
def _judge(
    problem: Problem,
    adversarial: Float[Array, "batch ..."],
    eps: Float[Array, " batch"],
    norm: str,
    bounds: tuple[float, float],
) -> tuple[Bool[Array, " batch"], Float[Array, " batch"]]:
    """Whether each result is legal and wrong, and its margin."""
    logits = problem.logits(adversarial)
    flat = adversarial.reshape(len(adversarial), -1).astype(jnp.float32)
    moved = distance(flat - problem.images.reshape(flat.shape).astype(jnp.float32), norm)
    # a value x + δ is rounded to the images' type, and the norm adds up the errors of all values
    values = {"linf": 1.0, "l2": flat.shape[1] ** 0.5, "l1": float(flat.shape[1])}[norm]
    rounding = 4 * float(jnp.finfo(adversarial.dtype).eps) * max(map(abs, bounds)) * values
    inside = (flat.min(axis=1) >= bounds[0] - 1e-6) & (flat.max(axis=1) <= bounds[1] + 1e-6)
    legal = inside & (moved <= eps.astype(jnp.float32) * (1 + 1e-5) + rounding)
    gain = jnp.where(legal, margin(logits, problem.labels), -jnp.inf)
    return legal & succeeded(logits, problem.labels, None), gain


def check_evaluated(
    apply_fn: ApplyFn,
    params: Any,
    images: Float[Array, "batch ..."],
    labels: Int[Array, " batch"],
    *,
    bounds: tuple[float, float],
    eps: float | Float[Array, "*radii"],
    norm: str,
    key: Key[Array, "*keys"],
    batch_size: int | None,
) -> Problem:
    """`check_attack`, and what an evaluation asks beyond that.

    Args:
      apply_fn: (params, images) -> logits.
      params: pytree of everything that apply_fn needs.
      images: [batch, ...], inside the bounds.
      labels: classes in [0, classes).
      bounds: smallest and largest value of an image.
      eps: radius.
      norm: of the ball.
      key: as given.
      batch_size: most images at once, >= 1, or None.

    Returns:
      Problem.

    Raises:
      UsageError: no images, no key, batch_size < 1; see `check_attack`.
    """
    if not len(images):
        raise UsageError("images must hold at least one image, got none: there is no accuracy of nothing")
    problem = check_attack(
        apply_fn,
        params,
        images,
        labels,
        bounds=bounds,
        eps=eps,
        norm=norm,
        key=key,
        needs_key="the attacks draw random numbers",
    )
    if batch_size is not None:
        check_at_least(1, batch_size=batch_size)
    return problem
