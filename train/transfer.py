"""Starting from what another run has learnt: `config.transfer`.

    weights              a finished run's workdir, or a file of torch weights
    freeze               what stays as it is: parameters, and the BatchNorm statistics beside them
    layer_decay          a learning rate for every layer
    unfreeze_every_epochs  the head first, then one group of layers more at a time

Feature extraction (DeCAF: a pretrained network as a fixed function, a linear classifier on top) is `freeze` with
patterns for everything but the head, e.g. ("conv*", "fc1", "fc2") for LeNet-5.
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax
from flax import traverse_util

from dl_core.errors import UsageError
from dl_core.optim import freeze, gradual_unfreezing, layer_groups, layerwise_learning_rates, parameter_order
from dl_core.optim.transfer import group_numbers, matching, path_matches
from models.weights import LoadReport, load_torch
from train import tasks
from train.state import TrainState
from train.tasks import DatasetInfo, Task
from train.trained import CONFIG_FILE, Trained, model_variables, restore

TRANSFER_FILE = "transfer.json"
Leaves = dict[tuple[str, ...], Any]  # ("params", "conv1", "kernel") -> an array, or its shape
_KEY = jax.eval_shape(lambda: jax.random.key(0))


def adapt_optimizer(
    chain: optax.GradientTransformation, options: Any, init: Callable[..., Any], steps_per_epoch: int
) -> optax.GradientTransformation:
    """The optimiser with what `config.transfer` says of layers.

    Args:
      chain: from `train.run.make_optimizer`.
      options: `config.transfer`.
      init: of the task.
      steps_per_epoch: the unit of `unfreeze_every_epochs`.

    Raises:
      UsageError: a pattern that names no parameter, or a parameter that the groups leave out.
    """
    if options.layer_decay < 1 or options.unfreeze_every_epochs:
        paths = [path for path in parameter_order(init, _KEY) if not path_matches(path, options.freeze)]
        groups = options.groups or layer_groups(paths)
        # what is frozen for good takes no turn
        groups = [group for group in groups if any(path_matches(path, [group]) for path in paths)]
        group_numbers(dict.fromkeys(paths, 0), groups)
        if options.layer_decay < 1:
            chain = optax.chain(chain, layerwise_learning_rates(groups, options.layer_decay))
        if options.unfreeze_every_epochs:
            steps = max(1, round(options.unfreeze_every_epochs * steps_per_epoch))
            chain = optax.chain(chain, gradual_unfreezing(groups, steps))
    return freeze(chain, options.freeze) if options.freeze else chain


def freeze_task(task: Task, patterns: tuple[str, ...]) -> Task:
    """The task with some modules as constants of its loss: no gradient, and BatchNorm as in evaluation.

    A frozen BatchNorm normalises by the statistics it came with and keeps them; a frozen dropout still drops.

    Args:
      task: any.
      patterns: see `dl_core.optim.transfer`; statistics are named by their paths like parameters.
    """
    if not patterns:
        return task

    def keep(old: Any, new: Any) -> Any:
        return jax.tree.map(lambda frozen, a, b: a if frozen else b, matching(old, patterns), old, new)

    def frozen_norm(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        norm = context.module
        frozen = path_matches("/".join((*norm.path, "mean")), patterns)
        if not (isinstance(norm, nn.BatchNorm) and context.method_name == "__call__" and frozen):
            return call(*args, **kwargs)
        return norm.clone(parent=None, use_running_average=True).apply(norm.variables, *args)

    def loss_fn(params: Any, model_state: Any, batch: Any, key: jax.Array) -> Any:
        params = keep(jax.lax.stop_gradient(params), params)
        with nn.intercept_methods(frozen_norm):
            loss, (updated, metrics) = task.loss_fn(params, model_state, batch, key)
        return loss, ({name: keep(model_state[name], updated[name]) for name in model_state}, metrics)

    return task._replace(loss_fn=loss_fn)


def load_pretrained(config: Any, info: DatasetInfo, task: Task) -> tuple[Leaves, LoadReport]:
    """The weights that `config.transfer.weights` names, as far as they fit.

    The head starts afresh where the classes are others (of torch files: where their number is), and where
    `config.transfer.new_head` says so. A first layer for another number of channels is adapted: every new channel gets
    the mean of the old ones times old / new channels.

    Args:
      config: of the new run.
      info: of the new data.
      task: of the new run.

    Returns:
      The leaves that are not fresh, by path, and the report, with paths such as "params/conv1/kernel" (torch's names
      for torch files).

    Raises:
      UsageError: no such run or file, or weights that do not fit outside the head (the message lists them).
    """
    source, needed = config.transfer.weights, _shapes(task)
    head = _head(config, info, task)
    if pathlib.Path(source).suffix in (".safetensors", ".pth", ".pt"):
        variables, report = load_torch(
            config.model.name, source, num_classes=needed[min(head)].shape[-1], image_shape=tuple(info.image_shape),
            **config.model.fields,
        )  # fmt: skip
        values = {path: value for path, value in traverse_util.flatten_dict(variables).items() if path in needed}
        if config.transfer.new_head:
            values = {path: value for path, value in values.items() if path not in head}
            report = report._replace(missing=report.missing + tuple("/".join(path) for path in sorted(head)))
        return values, report
    trained = _finished_run(source)
    fresh_head = config.transfer.new_head or tuple(trained.info.class_names) != tuple(info.class_names)
    source_head = _head(trained.config, trained.info, trained.task)
    given = traverse_util.flatten_dict(jax.device_get(trained.variables))
    return _fit(given, needed, head, source_head, _stem(task), fresh_head=fresh_head, source=source)


def start_from_pretrained(run: Any, state: TrainState, workdir: pathlib.Path, say: Callable[[str], None]) -> TrainState:
    """The first state with the pretrained weights in it; leaves a report in the workdir.

    Args:
      run: from `train.run.prepare`.
      state: global arrays.
      workdir: gets transfer.json.
      say: called with what became of the weights.
    """
    config = run.config
    if config.transfer.weights:
        values, report = load_pretrained(config, run.info, run.task)
        say(f"weights of {config.transfer.weights}: {describe_report(report)}")
        if jax.process_index() == 0:
            record = {"weights": config.transfer.weights, **report._asdict()}
            (workdir / TRANSFER_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        state = _with_leaves(state, values)
    if config.transfer.freeze:
        sizes = jax.tree.map(np.size, state.params)
        frozen = jax.tree.map(lambda f, n: n if f else 0, matching(state.params, config.transfer.freeze), sizes)
        totals = [sum(jax.tree.leaves(tree)) for tree in (frozen, sizes)]
        say(f"{totals[0]:,} of {totals[1]:,} parameters are frozen")
    return state


def describe_report(report: LoadReport) -> str:
    """What became of pretrained weights, in one line."""

    def some(names: tuple[str, ...]) -> str:
        return f"{len(names)} ({', '.join(names[:4])}{', …' if len(names) > 4 else ''})" if names else "none"

    return (
        f"{len(report.loaded)} arrays taken over, adapted: {some(report.adapted)}, fresh: {some(report.missing)}, "
        f"not used: {some(report.unexpected)}"
    )


def _finished_run(workdir: str) -> Trained:
    path = pathlib.Path(workdir)
    if not (path / CONFIG_FILE).exists():
        raise UsageError(
            f"config.transfer.weights is {workdir!r}: neither the workdir of a finished run nor a file that ends in "
            ".safetensors, .pth or .pt"
        )
    with_weights = json.loads((path / CONFIG_FILE).read_text(encoding="utf-8")).get("evaluate_with", "best")
    return restore(path, weights=with_weights)


def _shapes(task: Task) -> Leaves:
    return traverse_util.flatten_dict(model_variables(jax.eval_shape(task.init, _KEY)))


def _head(config: Any, info: DatasetInfo, task: Task) -> set[tuple[str, ...]]:
    """The leaves whose shape depends on the number of classes; where none does, those of the last module."""
    one_more = info._replace(class_names=(*info.class_names, f"{info.class_names[-1]}+"))
    here, there = _shapes(task), _shapes(tasks.make_task(config, one_more))
    found = {path for path, leaf in here.items() if there[path].shape != leaf.shape}
    last = [path for path in parameter_order(task.init, _KEY) if "/" in path][-1].split("/")[0]
    return found or {path for path in here if path[1] == last}


def _stem(task: Task) -> tuple[str, ...]:
    """The kernel that sees the images."""
    first = next(path for path in parameter_order(task.init, _KEY) if path.endswith("kernel"))
    return "params", *first.split("/")


def _fit(
    given: Leaves, needed: Leaves, head: set[Any], source_head: set[Any], stem: Any, *, fresh_head: bool, source: str
) -> tuple[Leaves, LoadReport]:
    """Leaves of one model for another; see `load_pretrained`."""
    values: Leaves = {}
    kinds: dict[str, list[str]] = {"loaded": [], "adapted": [], "missing": []}
    wrong = []
    for path, leaf in needed.items():
        name, value = "/".join(path), given.get(path)
        own = len(path) == 2 and value is None  # the task's own parameter, in no module of the network
        if (path in head and (fresh_head or value is None or value.shape != leaf.shape)) or own:
            kinds["missing"].append(name)
        elif value is None:
            wrong.append(f"{name} is missing")
        elif value.shape == leaf.shape:
            kinds["loaded"].append(name)
            values[path] = value
        elif path == stem and value.shape[:-2] + value.shape[-1:] == leaf.shape[:-2] + leaf.shape[-1:]:
            kinds["adapted"].append(name)
            mean = value.mean(axis=-2, keepdims=True) * (value.shape[-2] / leaf.shape[-2])
            values[path] = np.broadcast_to(mean, leaf.shape)
        else:
            wrong.append(f"{name} has shape {value.shape}, needed {leaf.shape}")
    left = [path for path in given if path not in values]
    wrong += [f"{'/'.join(path)} is unknown" for path in left if path not in needed and path not in source_head]
    if wrong:
        raise UsageError(
            f"the weights of {source!r} do not fit: {'; '.join(wrong[:8])}{' …' if len(wrong) > 8 else ''}"
        )
    unexpected = tuple("/".join(path) for path in left)
    return values, LoadReport(**{kind: tuple(names) for kind, names in kinds.items()}, unexpected=unexpected)


def _with_leaves(state: TrainState, values: Leaves) -> TrainState:
    """The state with these values in its params (and their average) and statistics, placed where the old ones lie."""

    def place(collection: str, tree: Any) -> Any:
        def leaf(path: Any, old: jax.Array) -> jax.Array:
            new = values.get((collection, *(part.key for part in path)))
            if new is None:
                return old
            new = np.asarray(new, old.dtype)
            return jax.make_array_from_callback(old.shape, old.sharding, lambda index: new[index])

        return jax.tree_util.tree_map_with_path(leaf, tree)

    return dataclasses.replace(
        state,
        params=place("params", state.params),
        model_state={name: place(name, tree) for name, tree in state.model_state.items()},
        average=None if state.average is None else place("params", state.average),
    )
