"""One run: what stays the same from its first step to its report, made from a config in one place."""

from typing import Any, NamedTuple

import jax
import numpy as np

from dl_core import optim
from dl_core.data import Dataset, Examples, channel_statistics, evaluation_batches
from dl_core.errors import UsageError
from dl_core.loops import choose_driver
from train import parallel as parallelism
from train import tasks, transfer
from train.feed import DeviceFeed, Feed, StreamFeed
from train.hardening import make_step, updates_per_step
from train.parallel import CompiledTraining, Parallel
from train.state import TrainState, create_state
from train.tasks import DatasetInfo, Task


class Run(NamedTuple):
    """Everything that stays the same during a run."""

    config: Any
    dataset: Dataset
    info: DatasetInfo
    task: Task
    parallel: Parallel
    plateau: Any
    compiled: CompiledTraining
    evaluate: Any
    steps_per_epoch: int
    total_steps: int
    batch_size: int

    @property
    def period(self) -> int:
        """Steps between validations, which are also checkpoints."""
        return max(1, round(self.config.checkpoint.every_epochs * self.steps_per_epoch))


def describe_data(dataset: Dataset) -> DatasetInfo:
    """What the model needs to know of a data set; the statistics come from its training split alone."""
    images = (tuple(map(float, values)) for values in channel_statistics(dataset.train))
    values = dataset.train.labels if np.issubdtype(dataset.train.labels.dtype, np.floating) else np.zeros((1, 0))
    values = values.reshape(len(values), -1).astype(np.float64)
    labels = (tuple(map(float, statistic(values, axis=0))) for statistic in (np.mean, np.std))
    return DatasetInfo(tuple(dataset.class_names), tuple(dataset.image_shape), *images, *labels)


def make_optimizer(config: Any, steps_per_epoch: int, total_steps: int) -> tuple[Any, Any, Any]:
    """(Optax chain, schedule, plateau) from `config.optimizer`, `config.schedule` and `config.plateau`."""
    options = config.optimizer
    schedule = optim.schedule(
        config.schedule.name,
        learning_rate=options.learning_rate,
        total_steps=total_steps,
        warmup_steps=round(config.schedule.warmup_epochs * steps_per_epoch),
        **config.schedule.options,
    )
    names = ("weight_decay", "decay", "decay_mask", "l1", "clip_value", "clip_norm", "clip_adaptive")
    chain = optim.optimizer(options.name, schedule, **{name: options[name] for name in names}, **options.options)
    plateau_options = dict(config.plateau)
    if plateau_options["factor"] == 1:  # off: the state is there, but is never updated
        plateau_options["factor"] = 0.5
    return chain, schedule, optim.reduce_on_plateau(**plateau_options)


def prepare(config: Any, *, fold: int = 0, dataset: Dataset | None = None) -> tuple[Run, TrainState]:
    """Loads the data, builds and compiles what the config names, and makes the first state.

    Args:
      config: resolved and validated.
      fold: which fold is the validation split, with `config.folds` > 1.
      dataset: instead of the one that the config names.

    Returns:
      The run, and its state before the first step.
    """
    options = config.parallel
    parallelism.initialize(options.coordinator, options.num_processes, options.process_id)
    parallel = parallelism.make_parallel(
        options.mode, devices=options.devices, fsdp=options.fsdp, model=options.model,
        min_shard_size=options.min_shard_size,
    )  # fmt: skip
    dataset = dataset if dataset is not None else tasks.load_data(config, fold=fold)
    batch_size = min(config.batch_size, len(dataset.train) // parallel.batch_shards * parallel.batch_shards)
    if batch_size == 0 or batch_size % (parallel.batch_shards * config.accumulate):
        raise UsageError(
            f"batch_size must be a multiple of {parallel.batch_shards} devices × accumulate = {config.accumulate}, "
            f"and at most the {len(dataset.train)} training examples; got {config.batch_size}"
        )
    steps_per_epoch = len(dataset.train) // batch_size
    total_steps = config.epochs * steps_per_epoch
    total_steps = min(total_steps, config.max_steps) if config.max_steps else total_steps

    info = describe_data(dataset)
    task = transfer.freeze_task(tasks.make_task(config, info), config.transfer.freeze)
    updates = updates_per_step(config.hardening)
    chain, schedule, plateau = make_optimizer(config, steps_per_epoch * updates, total_steps * updates)
    chain = transfer.adapt_optimizer(chain, config.transfer, task.init, steps_per_epoch * updates)
    average = config.average
    train_step = make_step(
        config.hardening, task.loss_fn, chain, seed=config.seed, schedule=schedule, steps_per_epoch=steps_per_epoch,
        accumulate=config.accumulate,
        ema_decay=average.decay if average.name == "ema" else None,
        ema_start=round(average.start_epoch * steps_per_epoch), axis_name=parallel.axis_name,
    )  # fmt: skip

    def create(key: jax.Array) -> TrainState:
        return create_state(task.init, chain, plateau, key, averaged=average.name != "none")

    key = jax.random.fold_in(jax.random.key(config.seed), 2**31 - 1)  # apart from the keys of the steps
    state = parallel.create_state(create, key)
    compiled = parallel.compile(train_step, jax.eval_shape(create, key))
    run = Run(
        config=config, dataset=dataset, info=info, task=task, parallel=parallel, plateau=plateau, compiled=compiled,
        evaluate=parallel.compile_evaluation(task.evaluate_fn), steps_per_epoch=steps_per_epoch,
        total_steps=total_steps, batch_size=batch_size,
    )  # fmt: skip
    return run, state


def make_feed(run: Run, start_step: int) -> Feed:
    """The on-device feed where the data fits, else Grain; `config.data.placement` can say which."""
    options, train = run.config.data, run.dataset.train
    placement = options.placement
    if placement == "auto":
        placement = "device" if train.nbytes <= options.max_device_bytes else "grain"
    common = (train, run.batch_size, run.config.seed, run.parallel, run.compiled)
    if placement == "device":
        return DeviceFeed(*common, scanned=choose_driver(run.config.loop) == "compiled")
    return StreamFeed(*common, start_step, run.total_steps, options.workers)


def evaluate(run: Run, variables: Any, examples: Examples, *, outputs: bool = False) -> tuple[dict[str, float], Any]:
    """Means of the task's sums over a split, and on request its outputs in order.

    Args:
      run: from `prepare`.
      variables: global arrays, as the model takes them.
      examples: any split with the same shapes.
      outputs: whether to return (labels, outputs) of every example too.
    """
    shards = run.parallel.batch_shards
    batch_size = -(-min(run.config.eval_batch_size, len(examples)) // shards) * shards
    totals: Any = None
    labels, collected = [], []
    for batch in evaluation_batches(examples, batch_size):
        out, sums = run.evaluate(variables, run.parallel.place_evaluation_batch(batch))
        sums = jax.tree.map(lambda x: np.asarray(x, np.float64), jax.device_get(sums))
        totals = sums if totals is None else jax.tree.map(np.add, totals, sums)
        if outputs:
            labels.append(batch["label"][batch["valid"]])
            collected.append(np.asarray(out)[batch["valid"]])
    means = {name: float(total / max(count, 1)) for name, (total, count) in totals.items()}
    return means, (np.concatenate(labels), np.concatenate(collected)) if outputs else None


def validation_variables(run: Run, state: TrainState) -> Any:
    """What is validated during training: the exponential average where there is one, else the last parameters."""
    if run.config.average.name == "ema":
        return {**state.variables, "params": state.average}
    return state.variables
