"""The confusion matrix as a picture: colour by share of the true class, numbers where there is room for them."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Integer
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from dl_core.errors import UsageError
from dl_core.plots.style import PALE, WIDTH, AnyArray, in_house_style

MOST_WITH_NUMBERS = 20
MOST_WITH_SHARES = 10
WHITE_TO_BLUE = LinearSegmentedColormap.from_list("white_to_blue", ["white", "#4A90C4", "#0A3A66"])


@in_house_style
def confusion_matrix(matrix: Integer[AnyArray, "classes classes"], class_names: Sequence[str]) -> Figure:
    """Counts as numbers, shares of each row as depth of colour; right answers lie on the diagonal.

    Args:
      matrix: counts, rows true, columns predicted.
      class_names: one for each class.

    Returns:
      A Figure; up to 10 classes each count has its share of the row below it, beyond that each row has on its right the
      share that is right; beyond 20 the counts are left out and the picture grows.

    Raises:
      UsageError: the matrix is not square, or has not as many rows as there are names.
    """
    matrix = np.asarray(matrix)
    n = len(matrix)
    if matrix.shape != (n, n) or len(class_names) != n or not n:
        shape = list(matrix.shape)
        raise UsageError(f"matrix must be [classes, classes] with a name for each, got {shape} and {len(class_names)}")
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    longest = max(map(len, class_names), default=1)
    numbers = n <= MOST_WITH_NUMBERS
    side = min(WIDTH, 2.4 + 0.7 * n) if numbers else min(WIDTH + 0.06 * (n - MOST_WITH_NUMBERS), 11.0)
    cell = 72 * (side - 1.2) / n  # points
    figure = Figure(figsize=(side, side))
    axes = figure.add_subplot()
    # A square root brings out the rare confusions; white is exactly zero.
    axes.imshow(np.sqrt(share), cmap=WHITE_TO_BLUE, vmin=0, vmax=1, interpolation="nearest")
    font = float(np.clip(0.75 * cell, 3.5, 9))
    upright = longest * 0.65 * font > cell
    axes.set_xticks(range(n), class_names, rotation=90 if upright else 0, fontsize=font)
    axes.set_yticks(range(n), class_names, fontsize=font)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    if n <= 40:
        axes.set_xticks(np.arange(n + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(n + 1) - 0.5, minor=True)
        axes.grid(which="minor", color=PALE, linewidth=0.5)
        axes.tick_params(which="minor", length=0)
    if n > MOST_WITH_SHARES:
        right = [f"{100 * share[k, k]:.0f} %" if matrix[k].any() else "—" for k in range(n)]
        margin = axes.secondary_yaxis("right")
        margin.set_yticks(range(n), right, fontsize=font)
        margin.tick_params(length=0)
        margin.spines[:].set_visible(False)
        margin.set_ylabel("of which right")
    if numbers:
        digits = len(str(matrix.max())) if matrix.size else 1
        size = float(np.clip(1.4 * cell / max(digits, 2), 5, 10))
        for row, column in zip(*np.nonzero(matrix), strict=True):
            colour = "white" if share[row, column] > 0.3 else "black"
            below = n <= MOST_WITH_SHARES
            axes.text(
                column, row - 0.02 * below, str(matrix[row, column]), ha="center", va="bottom" if below else "center",
                fontsize=size, color=colour, fontweight="normal" if row == column else "bold",
            )  # fmt: skip
            if below:
                percent = 100 * share[row, column]
                text = f"{percent:.0f} %" if percent >= 1 else "<1 %"
                small = min(size - 2, 8.0)
                axes.text(column, row + 0.05, text, ha="center", va="top", fontsize=small, color=colour)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    return figure
