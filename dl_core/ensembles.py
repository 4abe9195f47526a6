"""Ensembles: several models of one architecture as one more axis of their parameters.

members = stack([params_0, params_1, params_2])
apply_all = ensemble(model.apply)              # (members, inputs) -> logits

`apply_all` is an apply_fn like any other: explanations, attacks and metrics take the ensemble as they take a single
model, and one `vmap` runs all members at once. Lakshminarayanan, Pritzel, Blundell (2017), "Simple and scalable
predictive uncertainty estimation using deep ensembles", https://arxiv.org/abs/1612.01474.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dl_core.errors import UsageError, unknown_name

AVERAGES = ("probabilities", "logits", "directions")


def stack(members: Sequence[Any]) -> Any:
    """Pytrees of equal structure and shapes -> one pytree with a leading axis [members] on every leaf.

    Args:
      members: at least one; parameters, all collections of a model, or whole training states.

    Returns:
      The same structure.

    Raises:
      UsageError: no members, or members of different structures or shapes.
    """
    if not members:
        raise UsageError("an ensemble needs at least one member, got none")
    shapes = [jax.tree.map(jnp.shape, member) for member in members]
    for place, other in enumerate(shapes):
        if other != shapes[0]:
            raise UsageError(f"the members of an ensemble must have the same arrays; member {place} differs from 0")
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)


def unstack(stacked: Any) -> list[Any]:
    """The members of a stacked pytree, whose leaves all have a leading axis of the same length [members]."""
    count = len(jax.tree.leaves(stacked)[0])
    return [jax.tree.map(lambda leaf, k=k: leaf[k], stacked) for k in range(count)]


def average_outputs(
    outputs: Float[Array | np.ndarray, "members *batch outputs"], average: str = "probabilities"
) -> Float[Array, "*batch outputs"]:
    """One output from those of all members.

    Args:
      outputs: of each member.
      average: "probabilities" averages the softmax and returns its logarithm, which is a logit vector too; "logits"
        averages the outputs as they are (of classes a normalised geometric mean; of values their mean); "directions"
        averages vectors of length one, for angles.

    Returns:
      What a single model would return.

    Raises:
      UsageError: an unknown average.
    """
    outputs = jnp.asarray(outputs)
    if average == "probabilities":
        return jax.nn.logsumexp(jax.nn.log_softmax(outputs), axis=0) - jnp.log(len(outputs))
    if average == "logits":
        return outputs.mean(axis=0)
    if average == "directions":
        length = jnp.linalg.norm(outputs, axis=-1, keepdims=True)
        return (outputs / jnp.where(length > 0, length, 1)).mean(axis=0)
    raise unknown_name("average", average, AVERAGES)


def ensemble(apply_fn: Callable[..., Any], *, average: str = "probabilities") -> Callable[[Any, Any], Array]:
    """The apply_fn of an ensemble.

    Args:
      apply_fn: (params, inputs [batch, …]) -> outputs [batch, outputs], of one member.
      average: see `average_outputs`.

    Returns:
      (stacked params, inputs) -> outputs; the members run in one `vmap`.

    Raises:
      UsageError: an unknown average.
    """
    if average not in AVERAGES:
        raise unknown_name("average", average, AVERAGES)

    def apply_all(stacked: Any, inputs: Any) -> Array:
        return average_outputs(jax.vmap(apply_fn, in_axes=(0, None))(stacked, inputs), average)

    return apply_all
