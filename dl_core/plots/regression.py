"""Predicted values beside the true ones; angles without the jump from 360 to 0."""

from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator

from dl_core.plots.style import BLUE, GREY, AnyArray, in_house_style

MOST_POINTS = 2000  # drawn; more would only darken the page
SECTORS = 12


@in_house_style
def predicted_against_true(
    labels: Float[AnyArray, " n"],
    predictions: Float[AnyArray, " n"],
    *,
    name: str = "value",
    period: float | None = None,
) -> Figure:
    """One point an example, over the line on which predictions are right.

    Args:
      labels: true values.
      predictions: predicted values.
      name: of the value, for the axes.
      period: of angles, e.g. 360: each prediction is drawn within half a period of its label.

    Returns:
      A Figure; of more than 2,000 examples, that many at even distances.
    """
    labels, predictions = (np.asarray(values, float) for values in (labels, predictions))
    chosen = np.linspace(0, len(labels) - 1, min(len(labels), MOST_POINTS)).astype(int)
    labels, predictions = labels[chosen], predictions[chosen]
    if period is not None:
        predictions = labels + (predictions - labels + period / 2) % period - period / 2
    figure = Figure(figsize=(4.75, 4.6))
    axes = figure.add_subplot()
    ends = (0, period) if period is not None else (labels.min(), labels.max()) if len(labels) else (0, 1)
    axes.plot(ends, ends, color=GREY, linewidth=0.8)
    axes.scatter(labels, predictions, s=6, color=BLUE, alpha=0.5, linewidths=0)
    if period is not None:
        axes.set_xticks(np.linspace(0, period, 5))
        axes.yaxis.set_major_locator(MultipleLocator(period / 4))
        axes.set_xlim(0, period)
    axes.set_xlabel(f"true {name}")
    axes.set_ylabel(f"predicted {name}")
    return figure


@in_house_style
def error_by_angle(labels: Float[AnyArray, " n"], errors: Float[AnyArray, " n"]) -> Figure:
    """Mean error in each of twelve sectors of the true angle, as bars around a circle.

    Args:
      labels: true angles in degrees.
      errors: >= 0.

    Returns:
      A Figure: 0 on the right and angles clockwise, as in an image; a sector without examples has no bar.
    """
    labels, errors = np.asarray(labels, float) % 360, np.asarray(errors, float)
    sector = np.minimum((labels * SECTORS / 360).astype(int), SECTORS - 1)
    count = np.bincount(sector, minlength=SECTORS)
    mean = np.bincount(sector, errors, minlength=SECTORS) / np.maximum(count, 1)
    figure = Figure(figsize=(3.6, 3.6))
    axes: Any = figure.add_subplot(projection="polar")  # more than an Axes
    axes.set_theta_direction(-1)
    middles = (np.arange(SECTORS) + 0.5) * 2 * np.pi / SECTORS
    axes.bar(middles, mean, width=1.9 * np.pi / SECTORS, color=BLUE, alpha=0.45)
    axes.yaxis.set_major_formatter("{x:g}°")
    axes.set_rlabel_position(15)
    axes.tick_params(labelsize=8)
    return figure
