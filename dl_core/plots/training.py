"""How a training run went: loss and accuracy with the gap between the splits, learning rate, sizes of the updates."""

import numpy as np
from jaxtyping import Float, Real
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dl_core.plots.style import (
    BLUE,
    DASHES,
    GREY,
    PALE,
    VERMILION,
    WIDTH,
    AnyArray,
    in_house_style,
    label_line_ends,
)


def _smooth(values: Float[np.ndarray, " n"], window: int) -> Float[np.ndarray, " n"]:
    """Centred running mean over the finite values; shorter at the ends."""
    finite = np.isfinite(values)
    kernel = np.ones(window)
    total = np.convolve(np.where(finite, values, 0.0), kernel, mode="same")
    count = np.convolve(finite.astype(float), kernel, mode="same")
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _means_between(
    x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"], ends: Float[np.ndarray, " m"]
) -> tuple[Float[np.ndarray, " filled"], Float[np.ndarray, " filled"]]:
    """The mean of y since the end before, at each of the ends that have any."""
    place = np.searchsorted(ends, x, side="left")
    inside = place < len(ends)
    count = np.bincount(place[inside], minlength=len(ends))
    total = np.bincount(place[inside], y[inside], minlength=len(ends))
    return ends[count > 0], total[count > 0] / count[count > 0]


def _use_log_scale(axes: Axes, *curves: Real[np.ndarray, " _"]) -> None:
    """Logarithmic y, unless there is nothing that has a logarithm."""
    if any((np.isfinite(curve) & (curve > 0)).any() for curve in curves):
        axes.set_yscale("log")


def _end_label(
    x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"], name: str, colour: str
) -> list[tuple[float, float, str, str]]:
    """Where the last finite value is, and what to write there; nothing where there is none."""
    finite = np.flatnonzero(np.isfinite(y))
    if not finite.size:
        return []
    end = float(y[finite[-1]])
    return [(float(x[finite[-1]]), end, f"{name} {end:#.3g}", colour)]


@in_house_style
def learning_curves(
    train_x: Real[AnyArray, " n"],
    train_y: Real[AnyArray, " n"],
    validation_x: Real[AnyArray, " m"],
    validation_y: Real[AnyArray, " m"],
    *,
    quantity: str = "loss",
    x_label: str = "epoch",
    log_scale: bool = False,
    mark: tuple[float, str] | None = None,
) -> Figure:
    """One quantity on the training and the validation split, with the gap between them shaded.

    Args:
      train_x: where the training values were taken, rising, e.g. in epochs.
      train_y: the training values; if there are more than validation values, their means since the validation before
        are drawn over them.
      validation_x: where the validation values were taken, rising.
      validation_y: the validation values.
      quantity: what is shown.
      x_label: what x counts.
      log_scale: logarithmic y axis; for positive values.
      mark: an x to mark with a thin line, and its label, e.g. the best checkpoint.

    Returns:
      A Figure.
    """
    train_x, train_y, validation_x, validation_y = (
        np.asarray(values, float) for values in (train_x, train_y, validation_x, validation_y)
    )
    figure = Figure(figsize=(WIDTH, 3.2))
    axes = figure.add_subplot()
    mean_x, mean_y = train_x, train_y
    if len(train_x) > len(validation_x) > 1:
        axes.plot(train_x, train_y, color=BLUE, alpha=0.3, linewidth=0.7)
        mean_x, mean_y = _means_between(train_x, train_y, validation_x)
    axes.plot(mean_x, mean_y, color=BLUE, linestyle=DASHES[0])
    marker = "o" if len(validation_x) <= 60 else None
    axes.plot(validation_x, validation_y, color=VERMILION, linestyle=DASHES[1], marker=marker, markersize=3)
    labels = _end_label(mean_x, mean_y, "training", BLUE)
    labels += _end_label(validation_x, validation_y, "validation", VERMILION)
    if len(mean_x) and len(validation_x):
        axes.fill_between(
            validation_x, np.interp(validation_x, mean_x, mean_y), validation_y, color=PALE, alpha=0.6, linewidth=0
        )
    if log_scale:
        _use_log_scale(axes, train_y, validation_y)
    if mark is not None:
        axes.axvline(mark[0], color=GREY, linewidth=0.8, linestyle=DASHES[2])
        axes.annotate(
            mark[1], (mark[0], 1), xycoords=("data", "axes fraction"), xytext=(-3, 0), textcoords="offset points",
            ha="right", va="top", color=GREY, fontsize=9,
        )  # fmt: skip
    axes.set_xlabel(x_label)
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10]))
    axes.set_title(quantity)
    figure.draw_without_rendering()  # fixes the limits and the layout, on which the labels' distance depends
    label_line_ends(axes, labels)
    return figure


@in_house_style
def learning_rate_curve(
    x: Real[AnyArray, " n"], learning_rate: Real[AnyArray, " n"], *, x_label: str = "step"
) -> Figure:
    """The learning rate as it was used.

    Args:
      x: where, e.g. steps.
      learning_rate: the rates, >= 0.
      x_label: what x counts.

    Returns:
      A Figure.
    """
    figure = Figure(figsize=(WIDTH, 2.2))
    axes = figure.add_subplot()
    axes.plot(np.asarray(x), np.asarray(learning_rate), color=BLUE)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlabel(x_label)
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10]))
    axes.set_title("learning rate")
    return figure


@in_house_style
def norms(
    x: Real[AnyArray, " n"],
    gradient_norm: Real[AnyArray, " n"],
    update_norm: Real[AnyArray, " n"],
    *,
    x_label: str = "step",
) -> Figure:
    """Length of the gradient and of the update that the optimiser made of it, on a logarithmic axis.

    Args:
      x: where, e.g. steps.
      gradient_norm: Euclidean norm over all parameters, >= 0.
      update_norm: the same of the updates.
      x_label: what x counts.

    Returns:
      A Figure.
    """
    x = np.asarray(x, float)
    figure = Figure(figsize=(WIDTH, 2.6))
    axes = figure.add_subplot()
    labels = []
    window = max(1, len(x) // 40)
    for values, name, colour, dash in ((gradient_norm, "gradient", BLUE, 0), (update_norm, "update", VERMILION, 1)):
        values = np.asarray(values, float)
        values = np.where(values > 0, values, np.nan)
        axes.plot(x, values, color=colour, alpha=0.3, linewidth=0.7)
        smooth = _smooth(values, window)
        axes.plot(x, smooth, color=colour, linestyle=DASHES[dash])
        labels += _end_label(x, smooth, name, colour)
    _use_log_scale(axes, np.asarray(gradient_norm), np.asarray(update_norm))
    axes.set_xlabel(x_label)
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10]))
    axes.set_title("Euclidean norm")
    figure.draw_without_rendering()
    label_line_ends(axes, labels)
    return figure
