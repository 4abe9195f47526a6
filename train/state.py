"""The training state: everything that changes from step to step, as one pytree."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct


class TrainState(struct.PyTreeNode):
    """What a checkpoint holds.

    step: number of optimiser steps taken.
    params: the trained parameters, float32.
    model_state: the model's other collections (BatchNorm's running statistics), float32.
    opt_state: of the Optax chain.
    plateau: of `reduce_on_plateau`; its `scale` multiplies every update.
    average: running average of the params (EMA or SWA), or None.
    average_count: how many params are in the average.
    """

    step: Any  # int32 scalar; a shape where the state is abstract
    params: Any
    model_state: Any
    opt_state: Any
    plateau: Any
    average: Any
    average_count: Any

    @property
    def variables(self) -> Any:
        """What `model.apply` takes, with the last parameters."""
        return {"params": self.params, **self.model_state}


def create_state(
    init: Callable[[jax.Array], Any],
    optimizer: optax.GradientTransformation,
    plateau: optax.GradientTransformationExtraArgs,
    key: jax.Array,
    *,
    averaged: bool = False,
) -> TrainState:
    """The state before the first step. Pure: `jax.eval_shape` gives its shapes, `jit` with shardings places it.

    Args:
      init: key -> variables of the model.
      optimizer: chain whose state is made for the params.
      plateau: transformation with a `scale` in its state.
      key: for the initialisation.
      averaged: whether to keep an average of the params.
    """
    variables = init(key)
    params = variables["params"]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        model_state={name: value for name, value in variables.items() if name not in ("params", "features")},
        opt_state=optimizer.init(params),
        plateau=plateau.init(jnp.zeros(())),
        average=jax.tree.map(jnp.copy, params) if averaged else None,
        average_count=jnp.zeros((), jnp.int32),
    )


def parameter_count(params: Any) -> int:
    """The number of trained scalars."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
