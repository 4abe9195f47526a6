"""Several targets for each image, one run after another: the likeliest wrong classes."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dl_core.attacks.checks import Problem, check_at_least
from dl_core.errors import UsageError


def check_num_targets(num_targets: int | None, target: Any) -> None:
    """Refuses two ways to say where to go, and less than one target.

    Args:
      num_targets: as given by the caller.
      target: likewise.

    Raises:
      UsageError: see above.
    """
    if num_targets is None:
        return
    check_at_least(1, num_targets=num_targets)
    if target is not None:
        raise UsageError(
            f"num_targets={num_targets} chooses the targets and is content with any wrong class; give it or target, "
            "not both"
        )


def run_targets(
    logits: Float[Array, "batch classes"], problem: Problem, num_targets: int | None
) -> Int[Array, "batch targets"] | None:
    """The classes at which an attack aims, one run after another.

    Args:
      logits: of the images as they are.
      problem: what is attacked.
      num_targets: how many of the likeliest wrong classes; cut to the number there are. None: the problem's target.

    Returns:
      Likeliest first; None where any wrong class is the aim.
    """
    if num_targets is None:
        return None if problem.target is None else problem.target[:, None]
    classes = logits.shape[1]
    wrong = jnp.where(jax.nn.one_hot(problem.labels, classes, dtype=bool), -jnp.inf, logits)
    return jax.lax.top_k(wrong, min(num_targets, classes - 1))[1].astype(jnp.int32)
