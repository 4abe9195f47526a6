"""ROC and precision-recall curves of many classes: all of them thin, the worst by name, their mean bold.

Confidence bands are light, with a hatch of their own for each class, so that they can be told apart in a grey print.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Real
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dl_core.errors import UsageError
from dl_core.plots.style import COLOURS, DASHES, GREY, PALE, AnyArray, in_house_style

Curve = tuple[Real[AnyArray, " points"], Real[AnyArray, " points"]]
Band = tuple[Real[AnyArray, " grid"], Real[AnyArray, " grid"], Real[AnyArray, " grid"]]
Ends = tuple[Real[AnyArray, " classes"], Real[AnyArray, " classes"]]
HATCHES = ("////", "\\\\\\\\", "....", "||||")
MOST_BY_NAME = 3
ENLARGE_ABOVE = 0.985


def _mean_curve(
    curves: Sequence[tuple[np.ndarray, np.ndarray]], *, steps: bool
) -> tuple[Float[np.ndarray, " grid"], Float[np.ndarray, " grid"]]:
    """The mean of y over the curves at equal x: linear between points, or (steps) the value at the next point."""
    grid = np.unique(np.concatenate([np.linspace(0, 1, 201), np.logspace(-4, -2, 50)]))
    if steps:
        values = [y[np.searchsorted(x, grid, side="left").clip(max=len(y) - 1)] for x, y in curves]
    else:
        # Where a curve rises at one x, its value there is the upper end of the rise.
        values = [np.interp(grid, x + np.arange(len(x)) * 1e-12, y) for x, y in curves]
    return grid, np.mean(values, axis=0)


def _draw(
    axes: Axes, curves: list, bands: list, shown: list[int], mean: tuple | None, *, steps: bool, scale: float = 1.0
) -> list:
    style = "steps-pre" if steps else "default"
    for index, (x, y) in enumerate(curves):
        if index not in shown:
            axes.plot(x, y, color=GREY, linewidth=0.6 * scale, alpha=0.7, drawstyle=style)
    for place, index in enumerate(shown):
        if bands[index] is not None:
            grid, low, high = (np.asarray(part) for part in bands[index])
            colour, hatch = COLOURS[place % len(COLOURS)], HATCHES[place % len(HATCHES)]
            axes.fill_between(
                grid, low, high, facecolor=(colour, 0.12), edgecolor=(colour, 0.3), hatch=hatch, linewidth=0.5
            )
    handles = []
    for place, index in enumerate(shown):
        x, y = curves[index]
        colour, dash = COLOURS[place % len(COLOURS)], DASHES[(place + (mean is not None)) % len(DASHES)]
        handles += axes.plot(x, y, color=colour, linestyle=dash, linewidth=1.2 * scale, drawstyle=style)
    if mean is not None:
        handles += axes.plot(*mean, color="black", linewidth=2.2 * scale)
    return handles


def _curves(
    curves: Sequence[Curve],
    class_names: Sequence[str],
    areas: Real[AnyArray, " classes"],
    *,
    bands: Sequence[Band | None] | None,
    intervals: Ends | None,
    axis_labels: tuple[str, str],
    area_name: str,
    steps: bool,
    corner: tuple[float, float],
) -> Figure:
    given = {"curves": curves, "class_names": class_names, "areas": areas, "bands": bands}
    given |= {} if intervals is None else {"intervals[0]": intervals[0], "intervals[1]": intervals[1]}
    lengths = {name: len(value) for name, value in given.items() if value is not None}
    if len(set(lengths.values())) > 1:
        raise UsageError(f"{', '.join(lengths)} must have one entry for each class, got {list(lengths.values())}")
    areas = np.asarray(areas, float)
    defined = [i for i in range(len(curves)) if np.isfinite(areas[i])]
    arrays = [(np.asarray(x, float), np.asarray(y, float)) for x, y in (curves[i] for i in defined)]
    of_defined = [bands[i] if bands is not None else None for i in defined]
    order = sorted(range(len(defined)), key=lambda i: areas[defined[i]])
    shown = order[: MOST_BY_NAME if len(defined) > 4 else len(defined)]
    mean = _mean_curve(arrays, steps=steps) if len(defined) > 1 else None

    figure = Figure(figsize=(4.75, 4.6))
    axes = figure.add_subplot()
    if not steps:
        axes.plot([0, 1], [0, 1], color=PALE, linewidth=0.8)
    handles = _draw(axes, arrays, of_defined, shown, mean, steps=steps)

    def entry(index: int) -> str:
        name, area = class_names[index], areas[index]
        if intervals is None or not np.isfinite([ends[index] for ends in intervals]).all():
            return f"{name}  {area:.4f}"
        return f"{name}  {area:.3f} ({intervals[0][index]:.3f} – {intervals[1][index]:.3f})"

    names = [entry(defined[i]) for i in shown]
    if mean is not None:
        names.append(f"mean of {len(defined)} classes  {np.mean(areas[defined]):.4f}")
    axes.set_xlim(-0.01, 1.01)
    axes.set_ylim(-0.01, 1.01)
    axes.set_aspect("equal")
    axes.set_xlabel(axis_labels[0])
    axes.set_ylabel(axis_labels[1])
    lowest_first = "" if len(shown) == len(defined) else ", the lowest by name"
    if len(defined):
        # Good classifiers crowd into one corner: it is shown again, ten times as large.
        if areas[defined].mean() > ENLARGE_ABOVE:
            x, y = corner
            inset = axes.inset_axes((0.36, 0.35, 0.54, 0.5))
            _draw(inset, arrays, of_defined, shown, mean, steps=steps)
            inset.set_xlim(x - 0.002, x + 0.102)
            inset.set_ylim(y - 0.002, y + 0.102)
            inset.tick_params(labelsize=8)
            inset.spines[:].set(visible=True, color=PALE)
            zoom = axes.indicate_inset_zoom(inset, edgecolor=GREY)
            for line in zoom.connectors or ():
                line.set_visible(False)
            inset.set_title("the framed corner", fontsize=8, color=GREY, pad=3)
        axes.legend(
            handles,
            names,
            title=f"{area_name}{lowest_first}",
            loc="lower left" if steps else "lower right",
            alignment="left",
            frameon=True,  # over bands, on which letters would be hard to read
            framealpha=0.85,
            edgecolor="none",
        )
    return figure


@in_house_style
def roc_curves(
    curves: Sequence[Curve],
    class_names: Sequence[str],
    areas: Real[AnyArray, " classes"],
    *,
    bands: Sequence[Band | None] | None = None,
    intervals: Ends | None = None,
) -> Figure:
    """True against false positive rate, each class against the rest; the three with the least area by name.

    Args:
      curves: for each class, false and true positive rates [points], rising from 0 to 1.
      class_names: one for each class.
      areas: AUROC of each class; a class whose area is nan is left out.
      bands: for each class None or a grid of false positive rates [grid] and the least and largest true positive rate
        there, as `dl_core.metrics.roc_band` returns them; drawn for the classes that are named.
      intervals: low and high ends of the areas [classes], such as those of `delong_interval`; written beside them.

    Returns:
      A Figure; where the mean area is above 0.985, with the upper left corner enlarged.

    Raises:
      UsageError: curves, names, areas, bands and intervals are not as many.
    """
    return _curves(
        curves, class_names, areas, bands=bands, intervals=intervals,
        axis_labels=("false positive rate", "true positive rate (recall)"),
        area_name="area under the curve", steps=False, corner=(0.0, 0.9),
    )  # fmt: skip


@in_house_style
def precision_recall_curves(
    curves: Sequence[Curve],
    class_names: Sequence[str],
    areas: Real[AnyArray, " classes"],
    *,
    bands: Sequence[Band | None] | None = None,
    intervals: Ends | None = None,
) -> Figure:
    """Precision against recall, each class against the rest; the three with the least average precision by name.

    Args:
      curves: for each class, recall and precision [points], recall rising from 0 to 1.
      class_names: one for each class.
      areas: average precision of each class; a class for which it is nan is left out.
      bands: for each class None or a grid of recalls [grid] and the least and largest precision there, as
        `dl_core.metrics.precision_recall_band` returns them; drawn for the classes that are named.
      intervals: low and high ends of the areas [classes], such as those of `bootstrap_interval`; written beside them.

    Returns:
      A Figure; where the mean is above 0.985, with the upper right corner enlarged.

    Raises:
      UsageError: curves, names, areas, bands and intervals are not as many.
    """
    return _curves(
        curves, class_names, areas, bands=bands, intervals=intervals, axis_labels=("recall", "precision"),
        area_name="average precision", steps=True, corner=(0.9, 0.9),
    )  # fmt: skip
