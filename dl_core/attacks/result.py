"""What every attack gives back, and what it calls a success."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

ApplyFn = Callable[[Any, Float[Array, "batch ..."]], Float[Array, "batch classes"]]


class AttackResult(NamedTuple):
    """What an attack found and what it cost, for each image.

    adversarial: the changed images, inside the bounds and within eps of the originals where the attack has an eps.
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


def succeeded(
    logits: Float[Array, "batch classes"], labels: Int[Array, " batch"], target: Int[Array, " batch"] | None
) -> Bool[Array, " batch"]:
    """Whether the attack has its way: the target is predicted, or without a target anything but the label.

    Args:
      logits: of the changed images.
      labels: the true classes.
      target: the classes to be predicted, or None.

    Returns:
      One answer for each image.
    """
    predicted = logits.argmax(axis=1)
    return predicted != labels if target is None else predicted == target


def choose(chosen: Bool[Array, " batch"], first: Any, second: Any) -> Any:
    """For each image, its part of one pytree or of another.

    Args:
      chosen: take the first.
      first: pytree of arrays [batch, ...].
      second: likewise, of the same structure.

    Returns:
      Likewise.
    """

    def leaf(one: Any, other: Any) -> Any:
        return jnp.where(chosen.reshape((-1,) + (1,) * (jnp.ndim(one) - 1)), one, other)

    return jax.tree.map(leaf, first, second)


def better(first: AttackResult, second: AttackResult) -> AttackResult:
    """For each image the more dangerous of two results: a success before a failure, then the nearer one.

    Args:
      first: of one attack; kept where neither is better.
      second: of another attack on the same images, its distance in the same norm.

    Returns:
      AttackResult whose queries and steps are those of both together.
    """
    nearer = second.distance < first.distance
    won = (second.success & ~first.success) | (second.success & first.success & nearer)
    chosen = choose(won, second, first)
    return chosen._replace(queries=first.queries + second.queries, steps=first.steps + second.steps)
