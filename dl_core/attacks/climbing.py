"""The bookkeeping of attacks that climb a gradient: what is tried next, the best so far, who is done, what it cost."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int

from dl_core.attacks.balls import distance
from dl_core.attacks.result import AttackResult, choose
from dl_core.errors import UsageError


class Search(NamedTuple):
    """Where an attack stands that climbs, for each image.

    perturbed: what is tried next.
    adversarial: what the attack will return: a success, else the highest gain so far.
    gain: of it, the number that is climbed.
    success: the goal is reached.
    active: still under attack.
    queries: forward passes and gradients so far.
    steps: taken so far.
    """

    perturbed: Float[Array, "batch ..."]
    adversarial: Float[Array, "batch ..."]
    gain: Float[Array, " batch"]
    success: Bool[Array, " batch"]
    active: Bool[Array, " batch"]
    queries: Int[Array, " batch"]
    steps: Int[Array, " batch"]


def begin(images: Float[Array, "batch ..."], gain: Float[Array, " batch"], success: Bool[Array, " batch"]) -> Search:
    """A search that has asked the model for its opinion of the images, and nothing else.

    Args:
      images: unchanged.
      gain: of them.
      success: there is nothing to do.

    Returns:
      Search.
    """
    start, count = images.astype(working_dtype(images)), jnp.zeros(len(images), jnp.int32)
    return Search(start, start, gain, success, ~success, queries=count + 1, steps=count)


def record(
    search: Search,
    gain: Float[Array, " batch"],
    reached: Bool[Array, " batch"],
    *,
    anyway: bool | Bool[Array, ""] = False,
) -> Search:
    """What the model said of the perturbed images: the best are kept, and those that reached the goal are done.

    Args:
      search: before.
      gain: of the perturbed images.
      reached: the goal.
      anyway: keep them even where they are no better.

    Returns:
      Search.
    """
    kept = search.active & (reached | (gain > search.gain) | anyway)
    return search._replace(
        adversarial=choose(kept, search.perturbed, search.adversarial),
        gain=jnp.where(kept, gain, search.gain),
        success=search.success | (search.active & reached),
        active=search.active & ~reached,
        queries=search.queries + search.active,
    )


def any_active(search: Search) -> Bool[Array, ""]:
    """Whether an image is still under attack.

    Args:
      search: of any number of images.

    Returns:
      One answer.
    """
    return search.active.any()


def result_of(search: Search, images: Float[Array, "batch ..."], norm: str) -> AttackResult:
    """What the search has found.

    Args:
      search: at its end.
      images: the originals, whose dtype the result takes.
      norm: of the reported distance.

    Returns:
      AttackResult.
    """
    adversarial = search.adversarial.astype(images.dtype)
    return AttackResult(adversarial, search.success, distance(adversarial - images, norm), search.queries, search.steps)


def working_dtype(images: Float[Array, "batch ..."]) -> Any:
    """At least float32: a step of an attack is often less than a bfloat16 near 1 can be changed by.

    Args:
      images: of any floating dtype.

    Returns:
      A dtype.
    """
    return jnp.promote_types(images.dtype, jnp.float32)


def check_step_size(step_size: float | Float[Array, "*batch"], batch: int) -> None:
    """Refuses steps that lead back.

    Args:
      step_size: of an attack.
      batch: number of images.

    Raises:
      UsageError: negative, or neither one number nor one for each image.
    """
    if jnp.shape(step_size) not in ((), (batch,)):
        raise UsageError(
            f"step_size must be one number, or one for each of the {batch} images, got shape "
            f"{list(jnp.shape(step_size))}"
        )
    known = not isinstance(step_size, Tracer) and getattr(step_size, "is_fully_addressable", True)
    if known and np.size(step_size) and not np.min(np.asarray(step_size)) >= 0:
        raise UsageError(f"step_size must not be negative, got {step_size}; a target is approached with positive ones")
