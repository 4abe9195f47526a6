"""Several members of an ensemble trained at once: the pure train step under `vmap` over seeds."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dl_core.data import Dataset, batch_order
from train import transfer
from train.hardening import make_step, updates_per_step
from train.run import Run, make_optimizer, prepare
from train.state import TrainState, create_state


def train_members(config: Any, seeds: Sequence[int], *, dataset: Dataset | None = None) -> tuple[Run, Any]:
    """Trains one model for each seed, all on the same training split, each in an order of its own.

    Member k starts from and ends with the parameters of a run with `config.seed` = seeds[k] on this split. Everything
    lies in the memory of one device, and the last weights are kept: no checkpoints, early stopping or averaging.

    Args:
      config: resolved and validated; its own seed decides the split.
      seeds: one for each member, >= 0.
      dataset: instead of the one that the config names.

    Returns:
      The run (task, data, compiled evaluation of one member) and the stacked variables [members, …], which
      `dl_core.ensembles.ensemble(run.task.apply_fn)` takes.
    """
    run, _ = prepare(config, dataset=dataset)
    updates = updates_per_step(config.hardening)
    chain, schedule, plateau = make_optimizer(config, run.steps_per_epoch * updates, run.total_steps * updates)
    chain = transfer.adapt_optimizer(chain, config.transfer, run.task.init, run.steps_per_epoch * updates)

    def create(seed: jax.Array) -> TrainState:
        key = jax.random.fold_in(jax.random.key(seed), 2**31 - 1)  # as in `prepare`
        return create_state(run.task.init, chain, plateau, key)

    def step(seed: jax.Array, state: TrainState, batch: Any) -> TrainState:
        options = {"seed": seed, "schedule": schedule, "steps_per_epoch": run.steps_per_epoch}
        return make_step(config.hardening, run.task.loss_fn, chain, **options)(state, batch)[0]

    numbers = jnp.asarray(seeds, jnp.uint32)

    @jax.jit
    def step_all(states: TrainState, data: Any, rows: jax.Array) -> TrainState:
        return jax.vmap(step)(numbers, states, {name: array[rows] for name, array in data.items()})

    states = jax.jit(jax.vmap(create))(numbers)
    images, labels = run.dataset.train.arrays()
    data = {"image": jnp.asarray(images), "label": jnp.asarray(labels), "index": jnp.arange(len(labels))}
    for number in range(run.total_steps):
        epoch, place = divmod(number, run.steps_per_epoch)
        if place == 0:
            orders = [batch_order(len(labels), run.batch_size, seed=seed, epoch=epoch) for seed in seeds]
            order = jnp.asarray(np.stack(orders, axis=1))  # [steps, members, batch]
        states = step_all(states, data, order[place])
    return run, states.variables
