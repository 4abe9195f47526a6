"""The house style: little ink, labels beside the lines, and no meaning carried by colour alone.

Colours are those that colour-blind readers can tell apart (Okabe, Ito 2008, "Color Universal Design"); every line also
has its own dash pattern, so that a grey print can be read.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec

import matplotlib
from jaxtyping import Array
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy import ndarray

AnyArray = Array | ndarray

BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILION, PURPLE = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7",
)  # fmt: skip
GREY, PALE = "#767676", "#D9D9D9"
COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK)  # yellow is too light for a line on white
DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1)), (0, (6, 1.5, 1.5, 1.5)), (0, (3, 1, 1, 1, 1, 1)), (0, (8, 3)), (0, (1, 2)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")

WIDTH = 5.4  # inches: on a phone's screen the letters are still 9 px high

_SETTINGS: dict[Any, Any] = {
    "figure.facecolor": "white",
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.labelsize": 10,
    "axes.edgecolor": GREY,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": "black",
    "ytick.labelcolor": "black",
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
    "image.cmap": "Greys",
}

Parameters = ParamSpec("Parameters")


def in_house_style(draw: Callable[Parameters, Figure]) -> Callable[Parameters, Figure]:
    """Makes a function that returns a Figure draw it in the house style; matplotlib's own settings stay untouched.

    Args:
      draw: a function of arrays of any shape [...] that returns a Figure.

    Returns:
      The same function.
    """

    @wraps(draw)
    def styled(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Figure:
        with matplotlib.rc_context({**matplotlib.rcParamsDefault, **_SETTINGS}):
            return draw(*args, **kwargs)

    return styled


def label_line_ends(axes: Axes, labels: list[tuple[float, float, str, str]], gap: float = 12.0) -> None:
    """Writes each label to the right of its line's end, moved apart where they would overlap.

    Args:
      axes: where; its limits must be final.
      labels: x and y [data units] of each end, its text and its colour.
      gap: least distance between two labels, in points.
    """
    to_pixels, points = axes.transData.transform, 72 / axes.figure.dpi
    ends = sorted(labels, key=lambda label: to_pixels(label[:2])[1])
    height = -float("inf")
    for x, y, text, colour in ends:
        own = to_pixels((x, y))[1] * points
        height = max(own, height + gap)
        axes.annotate(
            text, (x, y), xytext=(6, height - own), textcoords="offset points", va="center", color=colour, fontsize=9,
            annotation_clip=False,
        )  # fmt: skip
