"""Several losses as one, with weights that are learned.

Kendall, Gal, Cipolla (2018), "Multi-task learning using uncertainty to weigh losses for scene geometry and semantics",
https://arxiv.org/abs/1705.07115. A task's noise σ² is a parameter: the larger it is, the less the task's loss counts,
and log σ is what keeps it from growing without end. With s = log σ², which is what is trained:

    classification, eq. 10:     exp(-s) L + s / 2       L is the cross-entropy, the logits' temperature is σ²
    regression, eq. 5:          exp(-s) L / 2 + s / 2   L is the squared error, σ² the variance of a Gaussian

For a fixed L the best weights are exp(-s) = 1 / (2 L) and 1 / L: every task then weighs by the inverse of its loss.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dl_core.errors import UsageError


def uncertainty_weighting(
    losses: Float[Array, "*batch tasks"], log_variances: Float[Array, " variances"], *, regression: Sequence[bool] = ()
) -> Float[Array, "*batch"]:
    """The sum of the tasks' losses weighted by learned uncertainty; see the top of this file.

    Args:
      losses: of each task: cross-entropy, or squared error.
      log_variances: s, any real numbers; start at 0, and train them with the network.
      regression: which tasks are regressions; none by default.

    Returns:
      One loss per example; it can be negative, as s can.

    Raises:
      UsageError: another number of losses, of variances or of kinds.
    """
    tasks = losses.shape[-1]
    if log_variances.shape != (tasks,) or len(regression) not in (0, tasks):
        raise UsageError(
            f"{tasks} losses need as many log_variances and kinds, got {log_variances.shape} and {len(regression)}"
        )
    precision = jnp.exp(-log_variances) * np.where(regression, 0.5, 1.0) if regression else jnp.exp(-log_variances)
    return losses @ precision.astype(losses.dtype) + 0.5 * log_variances.sum().astype(losses.dtype)
