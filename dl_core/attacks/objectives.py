"""What an attack raises: cross-entropy, the margin, or the difference of logits ratio, of a label or towards a target.

Carlini, Wagner (2017), https://arxiv.org/abs/1608.04644 (the margin); Croce, Hein (2020),
https://arxiv.org/abs/2003.01690 (the difference of logits ratio, equations 6 and 7). With logits z, label y, target t
and the sorted logits z₍₁₎ ≥ z₍₂₎ ≥ …:

    name            without a target                                 with a target
    cross_entropy   −log softmax(z)_y                                log softmax(z)_t
    margin          max_{i≠y} z_i − z_y                              z_t − max_{i≠t} z_i
    dlr             (max_{i≠y} z_i − z_y) / (z₍₁₎ − z₍₃₎)               (z_t − z_y) / (z₍₁₎ − (z₍₃₎ + z₍₄₎) / 2)

The margin is positive where the attack has succeeded. The ratio does not change when the logits are scaled or shifted,
so a network cannot hide its gradient by large logits.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

OBJECTIVES = ("cross_entropy", "margin", "dlr")
LossFn = Callable[[Float[Array, "batch classes"], Int[Array, " batch"]], Float[Array, " batch"]]


def objective(
    logits: Float[Array, "batch classes"],
    labels: Int[Array, " batch"],
    target: Int[Array, " batch"] | None,
    loss: str | LossFn = "cross_entropy",
) -> Float[Array, " batch"]:
    """The number that the attack raises, for each image.

    Args:
      logits: of the changed images.
      labels: the true classes.
      target: the classes to be predicted, or None.
      loss: a name of OBJECTIVES, or a function (logits, classes) -> [batch]: of the labels, raised; with a target of
        the target, lowered.

    Returns:
      Larger is better for the attack.
    """
    if callable(loss):
        return loss(logits, labels) if target is None else -loss(logits, target)
    return {"cross_entropy": _cross_entropy, "margin": margin, "dlr": _dlr}[loss](logits, labels, target)


def margin(
    logits: Float[Array, "batch classes"], labels: Int[Array, " batch"], target: Int[Array, " batch"] | None = None
) -> Float[Array, " batch"]:
    """By how much the attack has succeeded, in logits; negative: what is missing.

    Args:
      logits: of the changed images.
      labels: the true classes.
      target: the classes to be predicted, or None.

    Returns:
      One number for each image.
    """
    goal = labels if target is None else target
    own = _of_class(logits, goal)
    others = jnp.where(jax.nn.one_hot(goal, logits.shape[1], dtype=bool), -jnp.inf, logits).max(axis=1)
    return others - own if target is None else own - others


def _cross_entropy(
    logits: Float[Array, "batch classes"], labels: Int[Array, " batch"], target: Int[Array, " batch"] | None
) -> Float[Array, " batch"]:
    loss = optax.softmax_cross_entropy_with_integer_labels
    return loss(logits, labels) if target is None else -loss(logits, target)


def _dlr(
    logits: Float[Array, "batch classes"], labels: Int[Array, " batch"], target: Int[Array, " batch"] | None
) -> Float[Array, " batch"]:
    largest, _ = jax.lax.top_k(logits, 3 if target is None else 4)
    if target is None:
        gain, scale = margin(logits, labels), largest[:, 0] - largest[:, 2]
    else:
        gain = _of_class(logits, target) - _of_class(logits, labels)
        scale = largest[:, 0] - (largest[:, 2] + largest[:, 3]) / 2
    return gain / (scale + 1e-12)  # as the authors' program; equal logits give 0


def _of_class(logits: Float[Array, "batch classes"], classes: Int[Array, " batch"]) -> Float[Array, " batch"]:
    return jnp.take_along_axis(logits, classes[:, None], axis=1)[:, 0]
