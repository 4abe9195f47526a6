"""The page on how training went, for any task whose history has losses."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from dl_core import plots
from train.report.diagnosis import Verdict
from train.report.pages import Page, Section

# What the shaded gap of this figure is, and is not: the verdict's gap is measured alike on both splits.
STEP_VALUES = (
    "Training values are those of the training steps, with whatever augmentation and dropout the run had; "
    "the gap to validation is shaded."
)
CURVES = {"loss": "Loss", "accuracy": "Accuracy", "mae": "Mean absolute error"}  # quantity: heading
WIDE_RANGE = 30  # losses that differ by more than this factor are drawn on a logarithmic axis


def _series(history: Sequence[Mapping[str, Any]], split: str, name: str, against: str) -> tuple[np.ndarray, np.ndarray]:
    lines = [line for line in history if line.get("split") == split and None not in (line.get(name), line.get(against))]
    x, y = (np.array([line[key] for line in lines], float) for key in (against, name))
    return x, y


def training_page(history: Sequence[Mapping[str, Any]], verdict: Verdict) -> Page:
    """Curves of loss and accuracy or error with their gap, of the learning rate, and of gradient and update norms.

    Args:
      history: the lines of metrics.jsonl; a curve without values is left out.
      verdict: what `diagnose` says of them.

    Returns:
      A Page.
    """
    sections = []
    for name, title in CURVES.items():
        train, validation = (_series(history, split, name, "epoch") for split in ("train", "validation"))
        if train[0].size or validation[0].size:
            text = f"{verdict.label.capitalize()}. {STEP_VALUES}" if name == "loss" else ""
            sections.append(Section(title, text, _learning_curves(name, train, validation)))
    steps, rates = _series(history, "train", "learning_rate", "step")
    if steps.size:
        sections.append(Section("Learning rate", figure=plots.learning_rate_curve(steps, rates)))
    steps, gradient = _series(history, "train", "gradient_norm", "step")
    update_steps, update = _series(history, "train", "update_norm", "step")
    if steps.size and np.array_equal(steps, update_steps):
        sections.append(Section("Gradient and update norms", figure=plots.norms(steps, gradient, update)))
    return Page("Training", sections or [Section("No history", "The run left no measurements.")])


def _learning_curves(
    name: str, train: tuple[np.ndarray, np.ndarray], validation: tuple[np.ndarray, np.ndarray]
) -> Figure:
    mark = None
    if name == "loss" and np.isfinite(validation[1]).any():
        best = float(validation[0][np.nanargmin(validation[1])])
        mark = (best, f"lowest, epoch {best:.3g}")
    values = np.concatenate([train[1], validation[1]])
    values = values[np.isfinite(values)]
    log_scale = name == "loss" and values.size > 0 and values.min() > 0 and values.max() > WIDE_RANGE * values.min()
    return plots.learning_curves(*train, *validation, quantity=name, log_scale=bool(log_scale), mark=mark)
