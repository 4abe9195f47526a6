"""What a task supplies; everything else in `train` is shared by all tasks.

A new task is one module here with `make_task(config, info) -> Task` and `load_data(config, fold=0) -> Dataset`, and its
name in `TASKS`.
"""

import importlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array

from dl_core.data import Dataset
from dl_core.ensembles import average_outputs
from dl_core.errors import unknown_name
from train.report.pages import Page, RunRecord

Batch = Mapping[str, Array]
Sums = Mapping[str, tuple[Array, Array]]  # a name -> (sum over the valid examples, their number)


class DatasetInfo(NamedTuple):
    """What a trained model needs to know of its data, kept beside the weights.

    class_names: one name a class, or a value.
    image_shape: (height, width, channels) of the images as the pipeline delivers them.
    mean, std: per channel over the training split, images in [0, 1].
    label_mean, label_std: of each value over the training split; empty for classes.
    """

    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    label_mean: tuple[float, ...] = ()
    label_std: tuple[float, ...] = ()


def class_answer(class_names: tuple[str, ...], output: np.ndarray, top: int) -> tuple[dict[str, Any], str]:
    """What `train.predict` says of one image: the most probable classes.

    Args:
      class_names: one name a class.
      output: the logits [classes].
      top: how many classes to name.

    Returns:
      Entries of the JSON record, and the text.
    """
    probabilities = np.exp(output - np.logaddexp.reduce(output))
    best = np.argsort(-probabilities, kind="stable")[:top]
    entries = [{"class": class_names[i], "probability": float(probabilities[i])} for i in best]
    return {"top": entries}, ", ".join(f"{entry['class']} {entry['probability']:.2%}" for entry in entries)


def no_baselines(dataset: Dataset) -> dict[str, Any]:
    """For a task without figures to stand beside those of its network."""
    del dataset
    return {}


class Task(NamedTuple):
    """The pure functions of a task.

    init: key -> variables, {"params": …, other collections}.
    loss_fn: (params, model_state, batch, key) -> (loss, (model_state, metrics)). The batch carries "row", the place of
        each example in the global batch, so that randomness per example does not depend on the device that holds it;
        "index", its place in the training split; and "epoch".
    evaluate_fn: (variables, batch) -> (outputs, sums) without randomness; the batch carries "valid".
    batch_stats_fn: (variables, batch) -> new "batch_stats" in training mode, without augmentation or dropout.
    apply_fn: (variables, images in [0, 1]) -> outputs, normalisation included: what explanations and attacks take.
    rank: validation metrics -> a tuple that is larger for a better model.
    summarise: (labels, outputs of the test split) -> entries of `summary.json`.
    pages: record of the finished run -> pages of its report.
    metric: the figure that matters most: a name among the sums, and after "test_" among the entries of the summary.
    combine: outputs of an ensemble's members [members, batch, …] -> outputs [batch, …].
    answer: (class_names, output of one image, how many classes to name) -> entries of its record, and its text.
    baselines: data set -> entries of `summary.json` on what does not need the network.
    """

    init: Callable[[jax.Array], Any]
    loss_fn: Callable[..., Any]
    evaluate_fn: Callable[[Any, Batch], tuple[Array, Sums]]
    batch_stats_fn: Callable[[Any, Batch], Any]
    apply_fn: Callable[[Any, Array], Array]
    rank: Callable[[Mapping[str, float]], tuple[float, ...]]
    summarise: Callable[[np.ndarray, np.ndarray], dict[str, Any]]
    pages: Callable[[RunRecord], list[Page]]
    metric: str = "accuracy"
    combine: Callable[[Any], Array] = average_outputs
    answer: Callable[[tuple[str, ...], np.ndarray, int], tuple[dict[str, Any], str]] = class_answer
    baselines: Callable[[Dataset], dict[str, Any]] = no_baselines


TASKS = ("classification", "distillation", "multi_task", "regression")


def _module(config: Any) -> Any:
    if config.task not in TASKS:
        raise unknown_name("task", config.task, TASKS)
    return importlib.import_module(f"train.tasks.{config.task}")


def make_task(config: Any, info: DatasetInfo) -> Task:
    """The task named by `config.task`, for data described by `info`."""
    return _module(config).make_task(config, info)


def load_data(config: Any, *, fold: int = 0) -> Dataset:
    """The data of the task named by `config.task`; with `config.folds` > 1, those of one fold."""
    return _module(config).load_data(config, fold=fold)
