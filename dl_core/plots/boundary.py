"""What a classifier of the plane decides where, with the examples on top."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Integer, Real
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from dl_core.plots.style import COLOURS, GREY, MARKERS, WIDTH, AnyArray, in_house_style


@in_house_style
def decision_boundary(
    grid_x: Real[AnyArray, " columns"],
    grid_y: Real[AnyArray, " rows"],
    probabilities: Float[AnyArray, "rows columns classes"],
    points: Real[AnyArray, "n 2"],
    labels: Integer[AnyArray, " n"],
    *,
    class_names: Sequence[str] | None = None,
) -> Figure:
    """Regions tinted by their class, more strongly the surer; examples by colour and shape of marker.

    Args:
      grid_x: x of the columns, evenly spaced.
      grid_y: y of the rows, evenly spaced, rising.
      probabilities: of the classes at each grid point, in [0, 1].
      points: the examples.
      labels: their true classes; an example on the wrong side is circled.
      class_names: one for each class; numbers by default.

    Returns:
      A Figure.
    """
    grid_x, grid_y, probabilities, points, labels = map(np.asarray, (grid_x, grid_y, probabilities, points, labels))
    num_classes = probabilities.shape[-1]
    names = class_names or [str(k) for k in range(num_classes)]
    palette = np.array([to_rgb(COLOURS[k % len(COLOURS)]) for k in range(num_classes)])
    winner, surety = probabilities.argmax(-1), probabilities.max(-1)
    strength = 0.5 * np.clip((surety - 1 / num_classes) / (1 - 1 / num_classes), 0, 1)[..., None]
    figure = Figure(figsize=(WIDTH, 4.4))
    axes = figure.add_subplot()
    half_x, half_y = (grid_x[1] - grid_x[0]) / 2, (grid_y[1] - grid_y[0]) / 2
    extent = (grid_x[0] - half_x, grid_x[-1] + half_x, grid_y[0] - half_y, grid_y[-1] + half_y)
    axes.imshow(1 - strength * (1 - palette[winner]), origin="lower", extent=extent, aspect="auto")
    for k in range(num_classes):
        lead = probabilities[..., k] - np.delete(probabilities, k, axis=-1).max(axis=-1, initial=0.0)
        if lead.min() < 0 < lead.max():
            axes.contour(grid_x, grid_y, lead, levels=[0.0], colors="black", linewidths=0.8)
        own = points[labels == k]
        axes.plot(
            own[:, 0], own[:, 1], linestyle="none", marker=MARKERS[k % len(MARKERS)], markersize=5, color=palette[k],
            markeredgecolor="white", markeredgewidth=0.5, label=names[k],
        )  # fmt: skip
    column = np.abs(points[:, :1] - grid_x[None]).argmin(axis=1)
    row = np.abs(points[:, 1:] - grid_y[None]).argmin(axis=1)
    wrong = points[winner[row, column] != labels]
    if len(wrong):
        axes.plot(
            wrong[:, 0], wrong[:, 1], linestyle="none", marker="o", markersize=10, markerfacecolor="none",
            markeredgecolor="black", markeredgewidth=0.9, label="misclassified",
        )  # fmt: skip
    axes.set_xlim(extent[:2])
    axes.set_ylim(extent[2:])
    axes.tick_params(color=GREY)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), handletextpad=0.2)
    return figure
