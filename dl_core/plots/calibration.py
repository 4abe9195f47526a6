"""The reliability diagram: how often a forecast of a given confidence is right, and how many such forecasts."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Integer
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dl_core.errors import UsageError
from dl_core.metrics.calibration import ReliabilityBins, calibration_error_from_bins
from dl_core.metrics.intervals import wilson_interval
from dl_core.plots.style import BLUE, GREY, VERMILION, AnyArray, in_house_style


@in_house_style
def reliability_diagram(
    total: Integer[AnyArray, " bins"], correct: Integer[AnyArray, " bins"], confidence: Float[AnyArray, " bins"]
) -> Figure:
    """Share of right answers against mean confidence per bin, over the histogram of confidences.

    Takes the fields of `dl_core.metrics.reliability_bins` with bins of equal width.

    Args:
      total: examples in each of the bins, which divide [0, 1] equally.
      correct: how many of them were right.
      confidence: their mean confidence; ignored where a bin is empty.

    Returns:
      A Figure; the bars are 95 % Wilson intervals.
    """
    figure = Figure(figsize=(4.6, 5.5))
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3.4, 1))
    _draw(upper, lower, total, correct, confidence)
    return figure


@in_house_style
def reliability_diagrams(bins: Mapping[str, ReliabilityBins]) -> Figure:
    """Reliability diagrams side by side on the same axes, each under its name and calibration error.

        reliability_diagrams({"before": reliability_bins(labels, p), "after": reliability_bins(labels, scaled_p)})

    Args:
      bins: name to bins of equal width, the same number of them in each; at least one.

    Returns:
      A Figure; the bars are 95 % Wilson intervals, ECE is the expected calibration error.

    Raises:
      UsageError: nothing to draw, or another number of bins in one than in another.
    """
    if not bins or len({len(part.total) for part in bins.values()}) > 1:
        sizes = [len(part.total) for part in bins.values()]
        raise UsageError(f"bins must be of one diagram or more, with as many bins in each, got {sizes}")
    figure = Figure(figsize=(0.8 + 3.3 * len(bins), 4.8))
    grid = figure.subplots(2, len(bins), sharex=True, sharey="row", height_ratios=(3.4, 1), squeeze=False)
    for column, (name, part) in enumerate(bins.items()):
        upper, lower = grid[:, column]
        _draw(upper, lower, part.total, part.correct, part.confidence)
        total = np.asarray(part.total)
        error = calibration_error_from_bins(part) if total.sum() else np.nan
        upper.set_title(f"{name}\nECE {float(error):.3f}")
        for axes in (upper, lower) if column else ():
            axes.set_ylabel("")
    most = max(float(np.max(part.total)) for part in bins.values())
    grid[1, 0].set_ylim(top=1.25 * max(most, 1))
    return figure


def _draw(
    upper: Axes,
    lower: Axes,
    total: Integer[AnyArray, " bins"],
    correct: Integer[AnyArray, " bins"],
    confidence: Float[AnyArray, " bins"],
) -> None:
    total, correct, confidence = np.asarray(total), np.asarray(correct), np.asarray(confidence, float)
    filled = total > 0
    share = correct[filled] / total[filled]
    low, high = wilson_interval(correct[filled], total[filled])

    upper.plot([0, 1], [0, 1], color=GREY, linewidth=0.8)
    upper.text(0.02, 0.98, "underconfident", va="top", color=GREY, fontsize=9)
    upper.text(0.98, 0.02, "overconfident", ha="right", color=GREY, fontsize=9)
    upper.vlines(confidence[filled], share, confidence[filled], color=VERMILION, linewidth=5, alpha=0.4)
    errors = np.maximum(np.stack([share - low, high - share]), 0)
    upper.errorbar(confidence[filled], share, errors, fmt="o", color=BLUE, markersize=4, elinewidth=0.8)
    upper.set_xlim(-0.01, 1.01)
    upper.set_ylim(-0.02, 1.02)
    upper.set_ylabel("share of right answers")
    upper.tick_params(labelbottom=True)

    edges = np.linspace(0, 1, len(total) + 1)
    lower.bar(edges[:-1], total, np.diff(edges), align="edge", color=BLUE, edgecolor="white", linewidth=0.6)
    most = int(np.argmax(total))
    right_half = edges[most] >= 0.5
    lower.annotate(
        f"{total[most]:,} of {total.sum():,}", (edges[most + right_half], total[most]), xytext=(0, 2),
        textcoords="offset points", ha="right" if right_half else "left", va="bottom", fontsize=9,
    )  # fmt: skip
    lower.set_ylim(top=1.25 * max(total.max(), 1))
    lower.set_ylabel("examples")
    lower.set_xlabel("confidence (largest probability)")
