"""The computational graph of a small model as a picture: boxes in rows by their longest path from the image."""

import itertools
import math
from typing import Any

import flax.linen as nn
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.path import Path

from dl_core.errors import UsageError, unknown_name
from dl_core.plots.style import BLUE, GREEN, GREY, VERMILION, WIDTH, in_house_style
from models.graph import Node, graph
from models.summary import resolve, summary

_LEVELS = ("layers", "operations", "units")
_MOST_NODES, _MOST_UNITS = 80, 24
_BOX, _ROW, _COLUMN = (1.9, 0.36), 0.6, 2.1  # inches: size of a box, distance of rows, distance of columns


@in_house_style
def draw(
    name_or_model: str | nn.Module,
    input_shape: tuple[int, ...] = (32, 32, 3),
    *,
    level: str = "layers",
    num_classes: int = 10,
) -> Figure:
    """Draws what feeds what, from the image at the top to the output at the bottom.

    Args:
      name_or_model: a name of the registry, or any Linen module of images.
      input_shape: (height, width, channels) of one image; any shape for "units".
      level: "layers": modules, activations, pooling and joins; "operations": every operation on the image; "units":
        each unit of a small multi-layer perceptron as a circle, with its connections.
      num_classes: for a model by name.

    Returns:
      A Figure.

    Raises:
      UsageError: unknown name or level, or a model too large to be read from a picture.
    """
    if level not in _LEVELS:
        raise unknown_name("level", level, _LEVELS)
    model, title = resolve(name_or_model, num_classes)
    if level == "units":
        return _draw_units(model, title, input_shape)
    nodes = graph(model, input_shape, level)
    if len(nodes) > _MOST_NODES:
        advice = 'level="layers", ' if level == "operations" else ""
        raise UsageError(
            f"a picture of {title} would have {len(nodes)} boxes, more than the {_MOST_NODES} that can be read; use "
            f"{advice}fewer layers (for a residual network, e.g. stage_sizes=(1, 1)) or models.summary"
        )
    return _draw_graph(nodes, title)


def _draw_graph(nodes: list[Node], title: str) -> Figure:
    rows, columns = _placed(nodes)
    bows = _bows(nodes, rows, columns)
    left = min(columns) * _COLUMN - _BOX[0] / 2 - 0.1
    right = max(max(columns) * _COLUMN + _BOX[0] / 2 + 0.1, *(bow for bow in bows.values()), 0)
    height = (max(rows) + 1) * _ROW + 0.4
    figure = Figure(figsize=(max(right - left, 3.2), height))
    figure.set_layout_engine("none")
    axes = figure.add_axes((0, 0, 1, 1))
    spare = max(3.2 - (right - left), 0) / 2
    axes.set_xlim(left - spare, right + spare)
    axes.set_ylim(-height + 0.3 + _ROW / 2, 0.1 + _ROW / 2 + 0.2)
    axes.set_axis_off()
    axes.set_title(title, loc="left", x=0.02, y=1.0, pad=-12, fontsize=10)
    position = lambda i: (columns[i] * _COLUMN, -rows[i] * _ROW)
    for target, node in enumerate(nodes):
        for source in node.sources:
            _arrow(axes, position(source), position(target), bows.get((source, target)))
    for i, node in enumerate(nodes):
        _box(axes, node, *position(i))
    return figure


def _placed(nodes: list[Node]) -> tuple[list[int], list[int]]:
    """Row and column of each node: the longest path runs down column 0, side branches beside it."""
    users: list[list[int]] = [[] for _ in nodes]
    rows = [0] * len(nodes)
    for i, node in enumerate(nodes):
        rows[i] = 1 + max((rows[source] for source in node.sources), default=-1)
        for source in node.sources:
            users[source].append(i)
    main, at = set(), len(nodes) - 1
    while at is not None:
        main.add(at)
        at = next((source for source in sorted(nodes[at].sources) if rows[source] == rows[at] - 1), None)
    columns = [0] * len(nodes)
    taken = {(rows[i], 0) for i in main}
    for i in sorted(set(range(len(nodes))) - main, key=lambda i: (rows[i], i)):
        # A branch keeps its column as far down as the edge to its user reaches.
        reach = max((rows[user] for user in users[i]), default=rows[i] + 1)
        span = range(rows[i], max(reach, rows[i] + 1))
        wanted = [columns[source] for source in sorted(nodes[i].sources) if columns[source] != 0]
        choices = [*wanted, *[sign * n for n in range(1, len(nodes) + 1) for sign in (1, -1)]]
        columns[i] = next(column for column in choices if all((row, column) not in taken for row in span))
        taken |= {(row, columns[i]) for row in span}
    return rows, columns


def _bows(nodes: list[Node], rows: list[int], columns: list[int]) -> dict[tuple[int, int], float]:
    """For each edge that would run through boxes of its own column: how far right of the column it bows out."""
    found: dict[tuple[int, int], float] = {}
    edges = [(source, target) for target, node in enumerate(nodes) for source in node.sources]
    for source, target in sorted(edges, key=lambda edge: rows[edge[1]] - rows[edge[0]]):
        span = range(rows[source] + 1, rows[target])
        if columns[source] != columns[target] or not span:
            continue
        beside = [columns[i] for i in range(len(nodes)) if rows[i] in range(rows[source], rows[target] + 1)]
        widest = max([column for column in beside if column >= columns[source]])
        inner = [bow for (a, b), bow in found.items() if rows[a] < rows[target] and rows[b] > rows[source]]
        edge = widest * _COLUMN + _BOX[0] / 2
        found[source, target] = max([edge + 0.3, *[bow + 0.18 for bow in inner]])
    return found


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], bow: float | None) -> None:
    (x, y), (to_x, to_y), (half_width, half_height) = start, end, (_BOX[0] / 2, _BOX[1] / 2)
    if bow is not None:
        y, to_y = y - 0.07, to_y + 0.07  # so that an arrow that ends at a box and one that starts there stay apart
        bend = min(0.3, (y - to_y) / 2)
        points = [(x + half_width, y), (bow, y), (bow, y - bend), (bow, to_y + bend), (bow, to_y)]
        points.append((to_x + half_width, to_y))
        codes = [Path.MOVETO, Path.CURVE3, Path.CURVE3, Path.LINETO, Path.CURVE3, Path.CURVE3]
    else:
        top, bottom = y - half_height, to_y + half_height
        turn = top - (_ROW - _BOX[1]) if abs(x) < abs(to_x) else bottom + (_ROW - _BOX[1])  # the straight part is
        line_x = to_x if abs(x) < abs(to_x) else x  # in the outer of the two columns
        points = [(x, top), (x, (top + turn) / 2), (line_x, (top + turn) / 2), (line_x, turn)]
        codes = [Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4]
        if line_x == x:
            points, codes = [(x, top), (x, turn)], [Path.MOVETO, Path.LINETO]
            points += [(x, (turn + bottom) / 2), (to_x, (turn + bottom) / 2), (to_x, bottom)]
            codes += [Path.CURVE4, Path.CURVE4, Path.CURVE4]
        else:
            points.append((to_x, bottom))
            codes.append(Path.LINETO)
    style: dict[str, Any] = {"arrowstyle": "-|>", "mutation_scale": 8, "linewidth": 1.0, "shrinkA": 0, "shrinkB": 0}
    axes.add_patch(FancyArrowPatch(path=Path(points, codes), color=GREY if bow is None else VERMILION, **style))


def _box(axes: Axes, node: Node, x: float, y: float) -> None:
    colour = GREEN if not node.sources else VERMILION if len(node.sources) > 1 else BLUE if node.is_module else GREY
    width, height = _BOX
    rounding = 0.05 if node.is_module or not node.sources else height / 2
    axes.add_patch(
        FancyBboxPatch(
            (x - width / 2, y - height / 2), width, height, boxstyle=f"round,pad=0,rounding_size={rounding}",
            facecolor="white", edgecolor=colour, linewidth=1.2,
        )
    )  # fmt: skip
    shape = "×".join(map(str, node.shape))
    first = node.name if len(node.name) <= 30 else "…" + node.name[-29:]
    second = f"{node.detail} → {shape}" if node.detail else shape
    axes.text(x, y + 0.075, first, ha="center", va="center", fontsize=8)
    axes.text(x, y - 0.085, second, ha="center", va="center", fontsize=6.5, color=GREY)


def _draw_units(model: nn.Module, title: str, input_shape: tuple[int, ...]) -> Figure:
    table = summary(model, input_shape)
    if any(row.type != "Dense" for row in table.rows):
        kinds = sorted({row.type for row in table.rows} - {"Dense"})
        raise UsageError(f'level="units" is for multi-layer perceptrons; {title} also has {", ".join(kinds)}')
    sizes = [math.prod(input_shape), *[row.output_shape[-1] for row in table.rows]]
    if max(sizes) > _MOST_UNITS:
        raise UsageError(
            f"{title} has layers of {', '.join(map(str, sizes))} units, and {_MOST_UNITS} can be drawn; use "
            'level="layers"'
        )
    tall = max(max(sizes) * 0.42 + 0.9, 2.0)
    figure = Figure(figsize=(min(1.6 * len(sizes), 2 * WIDTH), tall))
    figure.set_layout_engine("none")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(-0.7, len(sizes) - 0.3)
    axes.set_ylim(-tall / 0.84 + 0.55, tall / 0.84 - 0.55)
    axes.set_axis_off()
    places = [[(i, (n - 1) / 2 - k) for k in range(n)] for i, n in enumerate(sizes)]
    for before, after in itertools.pairwise(places):
        for start in before:
            for end in after:
                axes.plot(*zip(start, end, strict=True), color=GREY, linewidth=0.5, zorder=1)
    names = ["input", *[row.path for row in table.rows]]
    for i, (column, name) in enumerate(zip(places, names, strict=True)):
        colour = GREEN if i == 0 else VERMILION if i == len(places) - 1 else BLUE
        axes.plot(
            *zip(*column, strict=True), linestyle="none", marker="o", markersize=14, color="white",
            markeredgecolor=colour, markeredgewidth=1.4, zorder=2,
        )  # fmt: skip
        axes.annotate(
            f"{name}\n{len(column)}", (i, column[-1][1]), xytext=(0, -14), textcoords="offset points", ha="center",
            va="top", fontsize=8,
        )  # fmt: skip
    axes.set_title(f"{title}: {table.parameters} parameters", loc="left", x=0.02, y=1.0, pad=-14, fontsize=10)
    return figure
