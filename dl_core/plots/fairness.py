"""Rates of groups beside each other: what a table of fairness says at a glance."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Real
from matplotlib.figure import Figure

from dl_core.errors import UsageError
from dl_core.plots.style import BLACK, BLUE, GREY, AnyArray, in_house_style

_COLUMNS = 3


@in_house_style
def group_rates(
    rates: Real[AnyArray, "rates groups"],
    low: Real[AnyArray, "rates groups"],
    high: Real[AnyArray, "rates groups"],
    *,
    rate_names: Sequence[str],
    group_names: Sequence[str],
    overall: Real[AnyArray, " rates"] | None = None,
) -> Figure:
    """A panel for each rate, in it a bar with its interval for each group.

        table = group_table(labels, decisions, groups)
        stack = lambda rates: np.stack([rates.selection_rate, rates.true_positive_rate])
        group_rates(*map(stack, (table.rates, table.low, table.high)), rate_names=("selection rate", "recall"),
                    group_names=table.names, overall=stack(table.overall))

    Args:
      rates: in [0, 1]; nan where a group does not have the rate, which is written in the bar's place.
      low: lower ends of the intervals; nan for none.
      high: upper ends.
      rate_names: one for each panel.
      group_names: one for each bar.
      overall: rates of all groups together, drawn as a dashed line through each panel.

    Returns:
      A Figure, up to three panels in a row.

    Raises:
      UsageError: arrays of different shapes, nothing to draw, or names that are not as many as what they name.
    """
    rates, low, high = (np.asarray(values, float) for values in (rates, low, high))
    if rates.ndim != 2 or not rates.size or rates.shape != low.shape or rates.shape != high.shape:
        shapes = ", ".join(str(list(values.shape)) for values in (rates, low, high))
        raise UsageError(f"rates, low and high must have one shape [rates, groups], got {shapes}")
    if rates.shape != (len(rate_names), len(group_names)):
        raise UsageError(
            f"rate_names and group_names must name {rates.shape[0]} rates and {rates.shape[1]} groups, "
            f"got {len(rate_names)} and {len(group_names)}"
        )
    lines = None if overall is None else np.asarray(overall, float)
    if lines is not None and lines.shape != (len(rates),):
        raise UsageError(f"overall must have shape [{len(rates)}], one for each rate, got {list(lines.shape)}")
    columns = min(len(rates), _COLUMNS)
    rows, places = -(-len(rates) // columns), np.arange(rates.shape[1])
    figure = Figure(figsize=(1.2 + 2.5 * columns, rows * (0.85 + 0.34 * len(places))))
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for axes, name, rate, bottom, top in zip(grid, rate_names, rates, low, high, strict=False):
        there = ~np.isnan(rate)
        axes.barh(places[there], rate[there], height=0.62, color=BLUE, alpha=0.45)
        ends = np.nan_to_num(np.maximum(np.stack([rate - bottom, top - rate]), 0))
        axes.errorbar(
            rate[there], places[there], xerr=ends[:, there], fmt="none", color=BLACK, elinewidth=1.2, capsize=2.5
        )
        for place in places[~there]:
            axes.text(0.02, place, "undefined", va="center", color=GREY, fontsize=9)
        axes.set_title(name)
        axes.tick_params(axis="y", length=0)
    if lines is not None:
        for axes, line in zip(grid, lines, strict=False):
            axes.axvline(line, color=BLACK, linewidth=1.0, linestyle=(0, (4, 2)))
            axes.annotate("all", (line, -0.72), xytext=(2, 0), textcoords="offset points", va="center", fontsize=9)
    grid[0].set_yticks(places, list(group_names))
    grid[0].set_ylim(len(places) - 0.4, -0.6 if lines is None else -1.0)
    grid[0].set_xlim(0, 1)
    grid[0].set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    for axes in grid[len(rates) :]:
        axes.set_visible(False)
    for axes in grid[max(len(rates) - columns, 0) : len(rates)]:
        axes.tick_params(labelbottom=True)
    return figure
