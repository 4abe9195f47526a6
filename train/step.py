"""The train step: one pure function from (state, batch) to (state, metrics).

The key of step n depends on the seed and n only, so a resumed run draws what the unbroken one would have drawn.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from dl_core.regularization import ema_update
from train.state import TrainState

Metrics = dict[str, Float[Array, ""]]
LossFn = Callable[..., Any]


def gradients(
    loss_fn: LossFn, state: TrainState, batch: Mapping[str, Array], key: Array, accumulate: int
) -> tuple[Any, Any, Metrics]:
    """Gradients of the mean loss of a batch, taken whole or in `accumulate` parts one after the other.

    Args:
      loss_fn: see `make_train_step`.
      state: its params and model_state are used.
      batch: arrays [batch, …]; `accumulate` divides their length.
      key: each part draws from its own key derived from it.
      accumulate: number of parts.

    Returns:
      (gradients like params, the model_state after the last part, metrics averaged over the parts).
    """
    gradient_fn = jax.value_and_grad(loss_fn, has_aux=True)
    if accumulate == 1:
        (_, (model_state, metrics)), grads = gradient_fn(state.params, state.model_state, batch, key)
        return grads, model_state, metrics
    # every accumulate-th example: each part keeps the sharding of the whole batch over devices
    parts = jax.tree.map(
        lambda x: jnp.moveaxis(x.reshape(x.shape[0] // accumulate, accumulate, *x.shape[1:]), 1, 0), batch
    )

    def add_part(carry: Any, part_and_number: Any) -> tuple[Any, None]:
        model_state, total = carry
        part, number = part_and_number
        part_key = jax.random.fold_in(key, number)
        (_, (model_state, metrics)), grads = gradient_fn(state.params, model_state, part, part_key)
        return (model_state, jax.tree.map(jnp.add, total, (grads, metrics))), None

    shapes = jax.eval_shape(gradient_fn, state.params, state.model_state, jax.tree.map(lambda x: x[0], parts), key)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (shapes[1], shapes[0][1][1]))
    (model_state, total), _ = jax.lax.scan(add_part, (state.model_state, zeros), (parts, jnp.arange(accumulate)))
    grads, metrics = jax.tree.map(lambda x: x / accumulate, total)
    return grads, model_state, metrics


def make_train_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    *,
    seed: int | Array,
    schedule: optax.Schedule,
    steps_per_epoch: int = 1,
    accumulate: int = 1,
    ema_decay: float | None = None,
    ema_start: int = 0,
    axis_name: str | None = None,
) -> Callable[[TrainState, Mapping[str, Array]], tuple[TrainState, Metrics]]:
    """Builds `train_step(state, batch)`.

    Args:
      loss_fn: (params, model_state, batch, key) -> (loss, (model_state, metrics)).
      optimizer: Optax chain, its learning rate included.
      seed: of the whole run; a scalar array where runs are mapped over their seeds.
      schedule: step -> learning rate, for the record.
      steps_per_epoch: for the number of the epoch that the loss is told.
      accumulate: the batch is divided into so many parts, whose gradients are averaged, to save memory.
      ema_decay: decay of the exponential average of the params; None keeps none.
      ema_start: the average equals the params up to this step.
      axis_name: name of the mapped axis under `pmap`; None under `jit`, where a batch is global already.

    Returns:
      The pure step. Its metrics are the task's, with gradient_norm, update_norm, parameter_norm and learning_rate.
    """

    def train_step(state: TrainState, batch: Mapping[str, Array]) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        rows = jnp.arange(len(jax.tree.leaves(batch)[0]), dtype=jnp.int32)
        if axis_name is not None:
            rows = rows + jax.lax.axis_index(axis_name) * len(rows)
        epochs = jnp.full_like(rows, state.step // steps_per_epoch)
        batch = {**batch, "row": rows, "epoch": epochs}
        grads, model_state, metrics = gradients(loss_fn, state, batch, key, accumulate)
        if axis_name is not None:
            grads, model_state, metrics = jax.lax.pmean((grads, model_state, metrics), axis_name)

        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        scale = state.plateau.scale
        updates = jax.tree.map(lambda u: u * scale.astype(u.dtype), updates)
        params = optax.apply_updates(state.params, updates)

        average, count = state.average, state.average_count
        if ema_decay is not None:
            started = state.step >= ema_start
            decay = jnp.where(started, ema_decay, 0.0)
            average, count = ema_update(average, params, decay), count + started
        metrics = {
            **metrics,
            "learning_rate": jnp.asarray(schedule(state.step) * scale, jnp.float32),
            "gradient_norm": optax.tree.norm(grads),
            "update_norm": optax.tree.norm(updates),
            "parameter_norm": optax.tree.norm(params),
        }
        state = state.replace(
            step=state.step + 1, params=params, model_state=model_state, opt_state=opt_state,
            average=average, average_count=count,
        )  # fmt: skip
        return state, metrics

    return train_step
