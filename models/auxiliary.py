"""Auxiliary classifiers: logits from the middle of a network, whose losses help its lower half to learn.

Szegedy et al. (2015), "Going deeper with convolutions", https://arxiv.org/abs/1409.4842, section 5.

A model with such heads still returns its own logits alone. In training mode it also records those of the heads, which
cost nothing until asked for:

    logits, updated = model.apply(variables, x, train=True, mutable=["batch_stats", "auxiliary"], rngs=…)
    loss = criterion(logits, labels).mean() + auxiliary_loss(model, updated.pop("auxiliary", {}), criterion, labels)

The weight of their losses is the model's field `auxiliary_weight`. In evaluation the heads are not computed.
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float


def record_auxiliary_logits(module: nn.Module, name: str, logits: Float[Array, "batch classes"]) -> None:
    """Records the logits of one head in the collection "auxiliary", inside a compact method.

    Args:
      module: the module that owns the head (`self`).
      name: of the logits, e.g. "aux1_logits"; no submodule may have the same.
      logits: [batch, classes].
    """
    if not module.is_initializing():  # `init` would store the logits among the variables
        module.sow("auxiliary", name, logits, init_fn=lambda: None, reduce_fn=lambda _, last: last)


def auxiliary_loss(
    model: nn.Module,
    recorded: Mapping[str, Float[Array, "batch classes"]],
    criterion: Callable[[Float[Array, "batch classes"], Any], Float[Array, " batch"]],
    labels: Any,
) -> Float[Array, ""]:
    """`auxiliary_weight` times the sum of the heads' mean losses; 0 for a model without heads.

    Args:
      model: gives the weight, its field `auxiliary_weight`.
      recorded: the collection "auxiliary" of one training pass: head -> logits [batch, classes].
      criterion: (logits, labels) -> one loss per example [batch].
      labels: whatever the criterion takes, e.g. [batch].

    Returns:
      A scalar to add to the loss.
    """
    losses = [criterion(logits, labels).mean() for logits in recorded.values()]
    return getattr(model, "auxiliary_weight", 0.0) * sum(losses, start=jnp.zeros(()))
