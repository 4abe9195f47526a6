"""Over- or underfitting: what the losses on the training and the validation split say about a run.

Overfitting shows as a training loss that goes down while the validation loss stays high; underfitting as two losses
that are close to each other, and both bad (course notes, "Overfitting" and "Underfitting"). "High" and "bad" are
measured against the loss of guessing: ln(classes) where the number of classes is known, else the first training loss.

The loss of the training steps is not the loss of validation: it is taken under augmentation and dropout, and may
carry label smoothing and penalties. Levels and the gap are therefore judged by losses of both splits that were
measured alike, where the run has them; the history then only tells which way each loss was going.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

# Shares of the loss of guessing, except where said.
BAD_LOSS = 0.5  # a training loss above it has learned less than half of what there is to learn
LARGE_GAP = 0.15  # validation - training
CLEAR_RISE = 0.05  # of the validation loss above its lowest ...
CLEAR_RISE_RELATIVE = 0.10  # ... and this share of the lowest itself
STILL_FALLING = 0.10  # share of its value that the validation loss lost over the last quarter of the run ...
STILL_FALLING_LEAST = 0.01  # ... and at least this
FEWEST_VALIDATIONS = 4


class Verdict(NamedTuple):
    """What became of a run.

    label: "good fit", "overfitting", "underfitting", "still improving", "diverged" or "too short to tell".
    text: the reason in plain words, with the figures.
    gap: validation loss - training loss at the end; nan where one is missing.
    """

    label: str
    text: str
    gap: float


def _curve(history: Sequence[Mapping[str, Any]], split: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of one quantity on one split, in the order of the steps."""
    lines = [
        (line["step"], line[name]) for line in history if line.get("split") == split and line.get(name) is not None
    ]
    steps, values = np.array(sorted(lines, key=lambda line: line[0]), float).reshape(-1, 2).T
    return steps, values


def _mean_between(steps: np.ndarray, values: np.ndarray, after: float, until: float) -> float:
    """Mean of the values at after < step <= until; the last one before that where there is none."""
    chosen = values[(steps > after) & (steps <= until)]
    return float(chosen.mean() if chosen.size else values[max(np.searchsorted(steps, until, "right") - 1, 0)])


def _median_of_three(values: np.ndarray) -> np.ndarray:
    padded = np.concatenate([values[:1], values, values[-1:]])
    return np.median(np.stack([padded[:-2], padded[1:-1], padded[2:]]), axis=0)


def diagnose(
    history: Sequence[Mapping[str, Any]],
    *,
    num_classes: int | None = None,
    measured_alike: Mapping[str, Any] | None = None,
) -> Verdict:
    """The over-/underfitting verdict on a run.

    Args:
      history: lines with "split" ("train" or "validation"), "step", "loss" and, if known, "accuracy".
      num_classes: sets the loss of guessing, ln(num_classes); without it, the first training loss stands for that.
      measured_alike: "train_loss" and "validation_loss" of the finished model, each as in evaluation, and if known
        "train_accuracy" and "validation_accuracy"; summary.json has them. Without them the history's last values are
        compared, and the text says that they may not be comparable.

    Returns:
      Verdict.
    """
    train_steps, train = _curve(history, "train", "loss")
    steps, validation = _curve(history, "validation", "loss")
    for split, at, values in (("training", train_steps, train), ("validation", steps, validation)):
        bad = np.flatnonzero(~np.isfinite(values))
        if bad.size:
            return Verdict("diverged", f"The {split} loss was {values[bad[0]]} at step {at[bad[0]]:.0f}.", math.nan)
    if not train.size or not validation.size:
        return Verdict("too short to tell", "There is no training loss or no validation loss to compare.", math.nan)

    guessing = math.log(num_classes) if num_classes and num_classes > 1 else float(train[0])
    since = float(steps[-2]) if len(steps) > 1 else math.inf  # compare over the last stretch between validations
    step_loss = _mean_between(train_steps, train, since, math.inf)
    alike = measured_alike or {}
    comparable = all(math.isfinite(alike.get(name) or math.nan) for name in ("train_loss", "validation_loss"))
    train_end, end = (
        (alike["train_loss"], alike["validation_loss"]) if comparable else (step_loss, float(validation[-1]))
    )
    gap = end - train_end
    how = "Measured alike after training" if comparable else "As measured during training"
    figures = f"{how}, the training loss is {train_end:.3g} and the validation loss {end:.3g}, a gap of {gap:.2g}"
    figures += f"{_accuracies(history, since, alike if comparable else {})}; guessing would lose {guessing:.3g}."
    if not comparable:
        figures += " The former may contain label smoothing, penalties, augmentation and dropout, the latter does not."

    if step_loss > 1.2 * guessing and step_loss > 1.2 * float(_median_of_three(train).min()):
        return Verdict("diverged", f"{figures} The training loss ended above guessing: try a lower learning rate.", gap)
    if len(validation) < FEWEST_VALIDATIONS:
        few = (
            f"There were only {len(validation)} validations, and at least {FEWEST_VALIDATIONS} are needed for a trend."
        )
        return Verdict("too short to tell", f"{figures} {few}", gap)

    smooth = _median_of_three(validation)
    lowest = int(smooth.argmin())
    rise = float(smooth[-1] - smooth[lowest])
    train_then = _mean_between(train_steps, train, steps[lowest - 1] if lowest else -math.inf, steps[lowest])
    if rise > max(CLEAR_RISE * guessing, CLEAR_RISE_RELATIVE * smooth[lowest]) and gap > 0 and step_loss < train_then:
        reason = (
            f"The validation loss was lowest, {validation[lowest]:.3g}, at step {steps[lowest]:.0f} and has risen "
            "since, while the training loss went on falling: stop there, regularise more, or get more data."
        )
        return Verdict("overfitting", f"{figures} {reason}", gap)

    quarter = smooth[-1 - max(1, len(smooth) // 4)]
    fall = float(quarter - smooth[-1])
    if fall > max(STILL_FALLING * quarter, STILL_FALLING_LEAST * guessing):
        reason = f"The validation loss fell from {quarter:.3g} over the last quarter of the run: train for longer."
        return Verdict("still improving", f"{figures} {reason}", gap)
    if gap > LARGE_GAP * guessing:
        reason = (
            "The validation loss has stopped falling far above the training loss: regularise more, augment, or get "
            "more data."
        )
        return Verdict("overfitting", f"{figures} {reason}", gap)
    if train_end > BAD_LOSS * guessing:
        reason = (
            "The two are close and both high: a larger model, less regularisation or a better learning rate may fit."
        )
        return Verdict("underfitting", f"{figures} {reason}", gap)
    reason = "The validation loss has settled close to the training loss and far below guessing."
    return Verdict("good fit", f"{figures} {reason}", gap)


def _accuracies(history: Sequence[Mapping[str, Any]], since: float, alike: Mapping[str, Any]) -> str:
    ends = []
    for split, name in (("train", "training"), ("validation", "validation")):
        steps, values = _curve(history, split, "accuracy")
        if alike.get(f"{split}_accuracy") is not None:
            ends.append((name, alike[f"{split}_accuracy"]))
        elif not alike and values.size:
            ends.append((name, _mean_between(steps, values, since, math.inf)))
    return "".join(f", {name} accuracy {100 * value:.1f} %" for name, value in ends)
