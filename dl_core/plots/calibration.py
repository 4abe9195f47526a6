"""The reliability diagram: how often a forecast of a given confidence is right, and how many such forecasts."""

import numpy as np
from jaxtyping import Float, Integer
from matplotlib.figure import Figure

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
    total, correct, confidence = np.asarray(total), np.asarray(correct), np.asarray(confidence, float)
    filled = total > 0
    share = correct[filled] / total[filled]
    low, high = wilson_interval(correct[filled], total[filled])
    figure = Figure(figsize=(4.6, 5.5))
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3.4, 1))

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
    return figure
