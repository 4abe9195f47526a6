"""The map that t-SNE, PCA or Isomap makes of features, and beside it how far it can be believed."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Integer
from matplotlib.figure import Figure

from dl_core.plots.style import COLOURS, GREY, MARKERS, WIDTH, AnyArray, in_house_style


@in_house_style
def embedding(
    points: Float[AnyArray, "n c"],
    labels: Integer[AnyArray, " n"] | None = None,
    *,
    trustworthiness: Float[AnyArray, ""] | float,
    class_names: Sequence[str] | None = None,
    neighbours_kept: Float[AnyArray, " n"] | None = None,
    chance_of_neighbours_kept: Float[AnyArray, ""] | float | None = None,
    least_kept: float = 0.2,
    name: str = "",
) -> Figure:
    """Points by colour and shape of their class; hollow where few of a point's neighbours are those of the features.

    An `explain.Embedding` has all of it:

        plots.embedding(e.points, labels, trustworthiness=e.trustworthiness, neighbours_kept=e.neighbours_kept)

    Args:
      points: coordinates, of which the first two are drawn, c >= 2. The axes have equal scales and no numbers: only
        what is near what means anything.
      labels: the class of each point; without them all are alike.
      trustworthiness: of the map, in [0, 1]; always said above it.
      class_names: one for each class; numbers by default.
      neighbours_kept: per point, the share of its neighbours in the features that the map keeps; said in the mean.
      chance_of_neighbours_kept: the same of a random map, said beside it.
      least_kept: points whose share is below it are hollow.
      name: what the map is, e.g. "t-SNE, perplexity 30".

    Returns:
      A Figure.
    """
    points = np.asarray(points)
    classes = np.zeros(len(points), int) if labels is None else np.asarray(labels)
    kept = np.ones(len(points)) if neighbours_kept is None else np.asarray(neighbours_kept)
    hollow = kept < least_kept
    num_classes = max(classes.max(initial=-1) + 1, len(class_names or []))
    names = class_names or [str(k) for k in range(num_classes)]
    figure = Figure(figsize=(WIDTH, 4.4))
    axes = figure.add_subplot()
    size = float(np.clip(60 / max(len(points), 1) ** 0.4, 1.8, 5))
    for k in range(num_classes):
        colour, marker = COLOURS[k % len(COLOURS)], MARKERS[(k + k // len(COLOURS)) % len(MARKERS)]
        style = {"linestyle": "none", "marker": marker, "markersize": size, "color": colour, "markeredgewidth": 0.5}
        for rows, face in ((hollow, "none"), (~hollow, colour)):
            chosen = points[(classes == k) & rows]
            axes.plot(chosen[:, 0], chosen[:, 1], markerfacecolor=face, **style)
        if labels is not None:
            axes.plot([], [], **{**style, "markersize": 5}, label=names[k])
    if hollow.any():
        axes.plot(
            [], [], linestyle="none", marker="o", markersize=5, markerfacecolor="none", color=GREY,
            label=f"under {least_kept:.0%} of its\nneighbours kept",
        )  # fmt: skip
    axes.set_aspect("equal", adjustable="datalim")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title("\n".join(_caption(name, trustworthiness, neighbours_kept, chance_of_neighbours_kept)))
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), handletextpad=0.2)
    return figure


def _caption(
    name: str,
    trustworthiness: Float[AnyArray, ""] | float,
    neighbours_kept: Float[AnyArray, " n"] | None,
    chance: Float[AnyArray, ""] | float | None,
) -> list[str]:
    lines = [f"{name}: " if name else ""]
    lines[0] += f"trustworthiness {float(trustworthiness):.3f}"
    if neighbours_kept is not None and np.size(neighbours_kept):
        lines.append(f"{np.mean(np.asarray(neighbours_kept)):.0%} of nearest neighbours kept")
        lines[-1] += "" if chance is None else f" (by chance {float(chance):.1%})"
    return lines
