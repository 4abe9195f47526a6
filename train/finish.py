"""The end of a run: the weights to keep, the figures of the test split, the summary and the report."""

import json
import pathlib
from typing import Any

import jax
import numpy as np

from dl_core.data import class_balance, evaluation_batches
from train import configuration
from train.batch_statistics import recompute_batch_stats
from train.checkpoint import Checkpoints, abstract_like, save_weights
from train.report.html import write_html
from train.report.pages import RunRecord
from train.run import Run, evaluate, validation_variables
from train.state import TrainState, parameter_count
from train.stopping import Stopping
from train.trained import SUMMARY_FILE
from train.versions import versions
from train.writers import read_history

TRAIN_SAMPLE = 10_000  # so many training examples are evaluated at the end, for the gap to validation and test


def final_weights(run: Run, state: TrainState, checkpoints: Checkpoints) -> dict[str, Any]:
    """The variables by name: "last", "best" of validation, and "average" where one was kept.

    Args:
      run: from `prepare`.
      state: the last state, global arrays.
      checkpoints: of the run; the best is read from there.
    """
    best_step = checkpoints.best_step()
    best = state
    if best_step is not None and best_step != int(state.step):
        restored = checkpoints.restore(abstract_like(state), step=best_step)
        best = restored[0] if restored is not None else state
    weights = {"best": validation_variables(run, best), "last": state.variables}
    if state.average is not None:
        weights["average"] = {**state.variables, "params": state.average}
    config = run.config
    return {
        name: _with_statistics(run, variables)
        # the running averages of training are not those of weights averaged afterwards
        if config.recompute_batch_stats or (name == "average" and config.average.name == "swa")
        else variables
        for name, variables in weights.items()
    }


def _with_statistics(run: Run, variables: Any) -> Any:
    def batches() -> Any:
        for batch in evaluation_batches(run.dataset.train, run.batch_size):
            count = int(batch["valid"].sum())
            if count == run.batch_size:  # a padded batch would count its padding
                yield run.parallel.place_evaluation_batch(batch), count

    return recompute_batch_stats(run.task.batch_stats_fn, variables, batches())


def finish(
    run: Run,
    state: TrainState,
    checkpoints: Checkpoints,
    workdir: pathlib.Path,
    *,
    stopped: Stopping,
    seconds: float,
) -> dict[str, Any]:
    """Evaluates the chosen weights and writes weights, `summary.json` and `report.html`.

    Args:
      run: from `prepare`.
      state: the last state, global arrays.
      checkpoints: of the run.
      workdir: where to write.
      stopped: why training ended.
      seconds: of training, over all restarts.

    Returns:
      The summary.
    """
    config, dataset = run.config, run.dataset
    weights = final_weights(run, state, checkpoints)
    for name, variables in weights.items():
        save_weights(workdir / "weights" / name, variables)
    variables = weights[config.evaluate_with]
    sample = dataset.train.take(
        np.linspace(0, len(dataset.train) - 1, min(len(dataset.train), TRAIN_SAMPLE)).astype(int)
    )
    train, _ = evaluate(run, variables, sample)
    validation, _ = evaluate(run, variables, dataset.validation)
    test, (labels, outputs) = evaluate(run, variables, dataset.test, outputs=True)
    summary = {
        "config": json.loads(configuration.to_json(config)),
        **{f"test_{name}": value for name, value in test.items()},
        **run.task.summarise(labels, outputs),
        **run.task.baselines(dataset),
        **{f"validation_{name}": value for name, value in validation.items()},
        **{f"train_{name}": value for name, value in train.items()},
        "weights": config.evaluate_with,
        "best_step": checkpoints.best_step(),
        "stopped": stopped.reason,
        "seconds": seconds,
        "steps": int(state.step),
        "parameters": parameter_count(state.params),
        "versions": versions(),
        "workdir": str(workdir),
    }
    if jax.process_index() == 0:
        splits = {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}
        record = RunRecord(
            config=summary["config"], versions=summary["versions"], history=read_history(workdir), summary=summary,
            class_names=tuple(dataset.class_names), labels=labels, logits=outputs, images=dataset.test.arrays()[0],
            variables=jax.device_get(variables),
            class_balance={
                name: class_balance(split.labels, dataset.class_names) for name, split in splits.items()
            },
            unreadable=tuple(dataset.unreadable),
        )  # fmt: skip
        write_html(workdir / "report.html", f"{config.model.name} on {dataset.name}", run.task.pages(record))
        # last: a workdir with a summary is a finished one
        (workdir / SUMMARY_FILE).write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    return summary
