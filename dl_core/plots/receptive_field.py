"""Receptive fields of several networks side by side: what a unit could see, and what it does see."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from dl_core.errors import UsageError
from dl_core.plots.style import BLUE, GREY, PALE, VERMILION, WIDTH, AnyArray, in_house_style
from dl_core.receptive_field import effective_extent


@in_house_style
def receptive_fields(
    fields: Sequence[Float[AnyArray, "_ _"]],
    theoretical: Sequence[tuple[int, int]],
    names: Sequence[str],
    *,
    share: float = 0.9545,
) -> Figure:
    """Effective field as a heat map, with the box of the theoretical one and that of the effective extent.

    Args:
      fields: one map [height, width] for each network, as from `dl_core.receptive_field.effective_receptive_field`.
      theoretical: (height, width) of each network's theoretical field, e.g. `ReceptiveField.size`; both boxes have
        their centre at the centre of mass.
      names: one for each network.
      share: of the mass that the inner box holds in each direction, in (0, 1].

    Returns:
      A Figure; darker is more, on a scale of its own for each network (square root, so that faint tails show).

    Raises:
      UsageError: as many maps, sizes and names are needed.
    """
    if not len(fields) == len(theoretical) == len(names) > 0:
        raise UsageError(f"one map, size and name each, got {len(fields)}, {len(theoretical)} and {len(names)}")
    side = max(WIDTH / len(fields), 1.8)
    figure = Figure(figsize=(side * len(fields), side + 0.75))
    grid = figure.subplots(1, len(fields), squeeze=False).flat
    for axes, field, size, name in zip(grid, fields, theoretical, names, strict=True):
        field = np.asarray(field, float)
        height, width = field.shape
        axes.imshow(np.sqrt(field / max(field.max(), 1e-30)), interpolation="nearest", vmin=0, vmax=1)
        extent = effective_extent(field, share)
        mass = max(field.sum(), 1e-30)
        centre = ((field.sum(axis=1) @ np.arange(height)) / mass, (field.sum(axis=0) @ np.arange(width)) / mass)
        for (rows, columns), colour, dashes in [(size, BLUE, "-"), (extent, VERMILION, (0, (3, 1.5)))]:
            corner = (centre[1] - columns / 2, centre[0] - rows / 2)
            axes.add_patch(
                Rectangle(corner, columns, rows, fill=False, edgecolor=colour, linewidth=1.4, linestyle=dashes)
            )
        axes.set_xlim(-0.5, width - 0.5)
        axes.set_ylim(height - 0.5, -0.5)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set(visible=True, color=PALE)
        axes.set_title(name, fontsize=9)
        beyond = " (beyond the image)" if size[0] > height or size[1] > width else ""
        axes.set_xlabel(
            f"theoretical {size[0]}×{size[1]}{beyond}\neffective {extent[0]}×{extent[1]}", fontsize=8, color=GREY
        )
    return figure
