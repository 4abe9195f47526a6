"""K-fold cross-validation: one run a fold, and the ensemble of their models on the test split.

The test split is held out first; fold k of the rest is the validation split of run k. The ensemble averages as its task
says, probabilities for classes. Its members saw different folds, so its score has no counterpart on the validation
splits: only the test split is scored.
"""

import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dl_core.data import class_balance, evaluation_batches
from dl_core.errors import UsageError
from train import configuration, tasks
from train.loop import train_and_evaluate
from train.report.html import write_html
from train.report.pages import Page, RunRecord, Section
from train.report.summary import SCORES, number
from train.trained import CONFIG_FILE, DATASET_FILE, SUMMARY_FILE, Trained, restore
from train.versions import versions


def train_folds(
    config: Any, workdir: str | pathlib.Path, *, resume: bool = False, stream: Any = None
) -> dict[str, Any]:
    """Trains `config.folds` models in fold_0, fold_1, … of the workdir and scores their ensemble.

    Args:
      config: with `folds` > 1.
      workdir: gets a folder for each fold, and summary.json and report.html of the ensemble.
      resume: go on with the fold that was interrupted.
      stream: where progress is printed; standard output by default.

    Returns:
      What `summary.json` holds: the ensemble's figures, and under "folds" those of its members.
    """
    workdir = pathlib.Path(workdir)
    if config.parallel.num_processes > 1:
        raise UsageError("folds are trained by one process: set parallel.num_processes=1, or folds=1")
    if (workdir / CONFIG_FILE).exists() and not resume:
        raise UsageError(f"{str(workdir)!r} holds a run already; go on with --resume, or choose another --workdir")
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / CONFIG_FILE).write_text(configuration.to_json(config), encoding="utf-8")
    summaries, members = [], []
    for fold in range(config.folds):
        folder = workdir / f"fold_{fold}"
        if stream is not None:
            print(f"fold {fold + 1} of {config.folds}", file=stream, flush=True)
        if (folder / SUMMARY_FILE).exists():
            summaries.append(json.loads((folder / SUMMARY_FILE).read_text(encoding="utf-8")))
        else:
            summaries.append(train_and_evaluate(config, folder, resume=folder.exists(), fold=fold, stream=stream))
        members.append(restore(folder, weights=config.evaluate_with))

    dataset = tasks.load_data(config)
    labels, outputs = ensemble_outputs(members, dataset.test, config.eval_batch_size)
    task = members[0].task
    scores = (f"validation_{task.metric}", f"test_{task.metric}")
    summary = {
        "config": json.loads(configuration.to_json(config)),
        **task.summarise(labels, outputs),
        **task.baselines(dataset),
        "folds": [{name: s[name] for name in (*scores, "validation_loss", "steps", "seconds")} for s in summaries],
        "seconds": sum(s["seconds"] for s in summaries),
        "steps": sum(s["steps"] for s in summaries),
        "parameters": sum(s["parameters"] for s in summaries),
        "versions": versions(),
        "workdir": str(workdir),
    }
    (workdir / DATASET_FILE).write_text(json.dumps(members[0].info._asdict(), indent=2) + "\n", encoding="utf-8")
    record = RunRecord(
        config=summary["config"], versions=summary["versions"], history=[], summary=summary,
        class_names=tuple(dataset.class_names), labels=labels, logits=outputs,
        images=dataset.test.arrays()[0], variables=members[0].variables,
        class_balance={"test": class_balance(dataset.test.labels, dataset.class_names)},
        unreadable=tuple(dataset.unreadable),
    )  # fmt: skip
    title = f"{config.folds} folds of {config.model.name} on {dataset.name}"
    write_html(workdir / "report.html", title, [_fold_page(summary, task.metric), *task.pages(record)])
    (workdir / SUMMARY_FILE).write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    return summary


def ensemble_outputs(members: list[Trained], examples: Any, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels [n], and what the task makes of the members' outputs [n, …]: of classes the log of the mean probability.

    Each member normalises by the statistics of its own training split.
    """

    def combined(variables: list[Any], images: jax.Array) -> jax.Array:
        each = jnp.stack([m.apply_fn(v, images) for m, v in zip(members, variables, strict=True)])
        return members[0].task.combine(each)

    combined = jax.jit(combined)
    labels, outputs = [], []
    for batch in evaluation_batches(examples, min(batch_size, len(examples))):
        out = combined([m.variables for m in members], jnp.asarray(batch["image"], jnp.float32) / 255)
        labels.append(batch["label"][batch["valid"]])
        outputs.append(np.asarray(out)[batch["valid"]])
    return np.concatenate(labels), np.concatenate(outputs)


def _fold_page(summary: dict[str, Any], metric: str) -> Page:
    write = SCORES[metric][1] if metric in SCORES else number
    splits = ("validation", "test")
    scores = np.array([[fold[f"{split}_{metric}"] for split in splits] for fold in summary["folds"]])
    rows = [(str(k), *map(write, fold)) for k, fold in enumerate(scores)]
    spread = zip(scores.mean(axis=0), scores.std(axis=0, ddof=1), strict=True)
    rows.append(("mean ± s.d.", *(f"{write(mean)} ± {write(deviation)}" for mean, deviation in spread)))
    rows.append(("ensemble", "", write(summary[f"test_{metric}"])))
    table = [("fold", *(f"{split} {metric}" for split in splits)), *rows]
    return Page("Folds", [Section("Every fold and the ensemble", table=table)])
