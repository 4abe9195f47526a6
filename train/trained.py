"""A finished run as something to use: its weights, and the function that applies them."""

import json
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dl_core.errors import UsageError
from train import configuration, tasks
from train.checkpoint import load_weights
from train.tasks import DatasetInfo, Task

WEIGHTS = ("best", "last", "average")
CONFIG_FILE, DATASET_FILE, SUMMARY_FILE = "config.json", "dataset.json", "summary.json"


class Trained(NamedTuple):
    """A trained model.

    config: of the run that trained it.
    info: class names, image shape and normalisation of its data.
    task: the pure functions of its task; `task.apply_fn(variables, images in [0, 1])` normalises by itself.
    variables: the weights and statistics.
    """

    config: Any
    info: DatasetInfo
    task: Task
    variables: Any

    def apply_fn(self, variables: Any, images: Any) -> jax.Array:
        """Images float32 [batch, height, width, channels] in [0, 1] -> logits."""
        return self.task.apply_fn(variables, jnp.asarray(images))


def read_info(workdir: pathlib.Path) -> DatasetInfo:
    """The class names, shapes and statistics that a run left."""
    stored = json.loads((workdir / DATASET_FILE).read_text(encoding="utf-8"))
    return DatasetInfo(*(tuple(stored.get(name, ())) for name in DatasetInfo._fields))


def restore(workdir: str | pathlib.Path, *, weights: str = "best") -> Trained:
    """The trained model of a finished run.

    Args:
      workdir: of the run.
      weights: "best" of validation, "last", or "average" (EMA or SWA, where the run kept one).

    Raises:
      UsageError: no run there, one that has not finished, or one without these weights.
    """
    workdir = pathlib.Path(workdir)
    if not (workdir / CONFIG_FILE).exists():
        raise UsageError(f"{str(workdir)!r} holds no run (no {CONFIG_FILE}); give the --workdir of python -m train")
    if weights not in WEIGHTS:
        raise UsageError(f"weights must be one of {', '.join(WEIGHTS)}, got {weights!r}")
    folder = workdir / "weights" / weights
    if not (workdir / SUMMARY_FILE).exists() or not (workdir / DATASET_FILE).exists():
        raise UsageError(
            f"the run in {str(workdir)!r} is not finished; finish it with: python -m train --resume --workdir={workdir}"
        )
    if not folder.exists():
        present = sorted(path.name for path in (workdir / "weights").glob("*"))
        raise UsageError(
            f"the run in {str(workdir)!r} has no {weights!r} weights, only {', '.join(present) or 'those of its folds'}"
        )
    config = configuration.from_json((workdir / CONFIG_FILE).read_text(encoding="utf-8"))
    info = read_info(workdir)
    # trained on many devices or under pmap, used on one
    config.parallel.mode = "jit"
    task = tasks.make_task(config, info)
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    variables = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here),
        model_variables(jax.eval_shape(task.init, jax.random.key(0))),
    )
    return Trained(config, info, task, load_weights(folder, variables))


def model_variables(variables: Any) -> Any:
    """The variables without what a forward pass leaves behind for looking at."""
    return {name: value for name, value in variables.items() if name not in ("features", "intermediates")}
