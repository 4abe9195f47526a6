"""What an attack changed and achieved: images beside perturbations, accuracy, queries, the loss around an image."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Real
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from dl_core.errors import UsageError
from dl_core.plots.images import _displayable
from dl_core.plots.style import (
    COLOURS,
    DASHES,
    GREY,
    MARKERS,
    PALE,
    VERMILION,
    WIDTH,
    AnyArray,
    in_house_style,
    label_line_ends,
)

Curve = Sequence[Real[AnyArray, " points"]]
LINE = 0.155  # inches of a line of text


@in_house_style
def adversarial_grid(
    images: Float[AnyArray, "n height width channels"],
    adversarial: Float[AnyArray, "n height width channels"],
    captions: Sequence[str] = (),
    adversarial_captions: Sequence[str] = (),
    *,
    magnify: float | int | None = None,
    bounds: tuple[float, float] = (0.0, 1.0),
    per_row: int = 2,
) -> Figure:
    """Clean image | perturbation | adversarial image, one example after the other.

    The perturbation is drawn around mid-grey, which is zero: lighter was added, darker taken away, in each channel. One
    factor magnifies all of them, and is written above; what still leaves the range has its last colour.

    Args:
      images: clean, inside the bounds; 1 (grey) or 3 channels.
      adversarial: the same images after an attack.
      captions: below each clean image, e.g. its label and the confidence, of one or more lines; or none.
      adversarial_captions: below each adversarial image; or none.
      magnify: the factor; by default the largest of 1, 2, 5, 10, 20, … at which no perturbation leaves the range.
      bounds: smallest and largest value of an image, drawn black and white.
      per_row: examples beside each other.

    Returns:
      A Figure.

    Raises:
      UsageError: no images, shapes that differ, another number of channels or of captions, a factor that is not
        positive.
    """
    clean, changed = np.asarray(images, np.float32), np.asarray(adversarial, np.float32)
    if clean.shape != changed.shape or clean.ndim != 4 or clean.shape[3] not in (1, 3) or not len(clean):
        raise UsageError(
            "images and adversarial must both be [n, height, width, 1 or 3] with at least one image, got "
            f"{list(clean.shape)} and {list(changed.shape)}"
        )
    for name, words in (("captions", captions), ("adversarial_captions", adversarial_captions)):
        if len(words) not in (0, len(clean)):
            raise UsageError(f"give one of {name} for each of the {len(clean)} images or none, got {len(words)}")
    if per_row < 1 or (magnify is not None and not magnify > 0):
        raise UsageError(f"per_row must be at least 1 and magnify positive, got {per_row} and {magnify}")
    low, high = bounds
    clean, changed = (clean - low) / (high - low), (changed - low) / (high - low)
    factor = _round_factor(changed - clean) if magnify is None else magnify
    columns = (
        ("clean", clean, captions),
        (f"change × {factor:g}", 0.5 + factor * (changed - clean), ()),
        ("adversarial", changed, adversarial_captions),
    )
    across = min(per_row, len(clean))
    rows = -(-len(clean) // across)
    cell = (WIDTH - 0.15 * (across - 1)) / (3 * across)
    font = min(9.0, 8.5 * cell)
    lines = max((caption.count("\n") + 1 for caption in (*captions, *adversarial_captions)), default=0)
    wide = cell - 0.05
    tall = wide * clean.shape[1] / clean.shape[2]
    pitch = tall + lines * 1.25 * font / 72 + 0.1
    height = 1.8 * LINE + rows * pitch
    figure = Figure(figsize=(WIDTH, height))
    figure.set_layout_engine("none")
    for place, (title, pictures, words) in enumerate(columns):
        for index, picture in enumerate(_displayable(pictures)):
            row, column = divmod(index, across)
            left = column * (3 * cell + 0.15) + place * cell
            bottom = height - 1.8 * LINE - row * pitch - tall
            axes = figure.add_axes((left / WIDTH, bottom / height, wide / WIDTH, tall / height))
            axes.imshow(picture, interpolation="nearest", aspect="auto")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set(visible=True, color=PALE)
            if row == 0:
                axes.set_title(title, fontsize=font, pad=2)
            if words:
                axes.annotate(
                    words[index], (0, 0), xycoords="axes fraction", xytext=(0, -2), textcoords="offset points",
                    va="top", fontsize=font, color=GREY, linespacing=1.15, annotation_clip=False,
                )  # fmt: skip
    return figure


@in_house_style
def accuracy_curves(
    curves: Mapping[str, Curve],
    *,
    chance: float | None = None,
    x_label: str = "eps",
    y_label: str = "accuracy",
) -> Figure:
    """Accuracy against the radius of the attack, a line an attack or a network, its interval as a band.

    With radii that are certified, x_label="certified radius" and y_label="certified accuracy" it is the curve of
    randomised smoothing.

    Args:
      curves: name -> (eps, accuracy), or (eps, accuracy, low, high) with the ends of an interval; each [points], eps
        rising. nan is left out.
      chance: accuracy of guessing, e.g. 1 / classes, as a thin line; none by default.
      x_label: what the radius is, with its norm and units.
      y_label: what is shown.

    Returns:
      A Figure.

    Raises:
      UsageError: no curves, or arrays of a curve whose lengths differ.
    """
    _check_curves(curves, lengths=(2, 4), parts="(eps, accuracy) or (eps, accuracy, low, high)")
    figure = Figure(figsize=(WIDTH, 3.3))
    axes = figure.add_subplot()
    if chance is not None:
        axes.axhline(chance, color=GREY, linewidth=0.8)
        axes.annotate(
            "chance", (0, chance), xycoords=("axes fraction", "data"), xytext=(2, 2), textcoords="offset points",
            color=GREY, fontsize=9,
        )  # fmt: skip
    _draw_curves(axes, curves)
    axes.set_ylim(0, 1)
    axes.set_xlim(0, max(float(np.max(curve[0])) for curve in curves.values()) or 1.0)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    _label_ends(figure, axes, curves)
    return figure


@in_house_style
def attack_path(
    paths: Mapping[str, tuple[Real[AnyArray, " points"], Real[AnyArray, "images points"]]],
    *,
    norm: str = "l2",
) -> Figure:
    """How near black-box attacks come with the queries they make: median over the images, quartiles as a band.

    Args:
      paths: name of the method -> (queries so far [points], rising, and the distance of the nearest adversarial image
        so far [images, points]); inf or nan where there is none yet.
      norm: of the distance, for the axis.

    Returns:
      A Figure, logarithmic on both axes. A line begins where half of the images have an adversarial one.

    Raises:
      UsageError: no paths, or distances that are not [images, points].
    """
    if not paths:
        raise UsageError("paths must hold at least one method: name -> (queries, distances)")
    curves = {}
    for name, (queries, distances) in paths.items():
        if np.ndim(distances) != 2 or np.shape(distances)[1] != np.size(queries) or not np.size(distances):
            raise UsageError(
                f"distances of {name!r} must be [images, {np.size(queries)}], got {list(np.shape(distances))}"
            )
        known = np.asarray(distances, float)
        known = np.where(np.isnan(known), np.inf, known)
        # order statistics, not interpolated ones: between a distance and none yet there is nothing
        low, median, high = (np.quantile(known, share, axis=0, method="higher") for share in (0.25, 0.5, 0.75))
        top = np.where(np.isfinite(high), high, known.max(axis=0, where=np.isfinite(known), initial=0))
        half = np.isfinite(median)
        curves[name] = (np.asarray(queries, float)[half], median[half], low[half], np.maximum(top, median)[half])
    figure = Figure(figsize=(WIDTH, 3.3))
    axes = figure.add_subplot()
    _draw_curves(axes, curves)
    if any((curve[0] > 0).any() and (curve[1] > 0).any() for curve in curves.values()):
        axes.set_xscale("log")
        axes.set_yscale("log")
        for axis in (axes.xaxis, axes.yaxis):  # plain numbers, and as few of them as do not touch
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("queries")
    axes.set_ylabel(f"{norm} distance")
    _label_ends(figure, axes, curves)
    return figure


@in_house_style
def loss_surface(
    loss: Float[AnyArray, "random gradient"],
    along_gradient: Real[AnyArray, " gradient"],
    along_random: Real[AnyArray, " random"],
    *,
    margin: Float[AnyArray, "random gradient"] | None = None,
    loss_name: str = "loss",
) -> Figure:
    """The loss around an image, along its gradient and along a random direction.

    Smooth, and rising to the right, is what an attack by gradients needs. A surface that is flat at the image or jagged
    beside it has its gradient masked: such an attack then fails for want of a direction, not for want of a mistake.

    Args:
      loss: at each pair of steps.
      along_gradient: steps along the gradient (or its sign), rising, in the units of the images; 0 is the image.
      along_random: steps along the random direction, likewise.
      margin: of the attack at the same places, positive where the prediction is wrong; its zero is drawn.
      loss_name: for the scale.

    Returns:
      A Figure.

    Raises:
      UsageError: fewer than two steps in a direction, or shapes that do not fit.
    """
    values, right, up = (np.asarray(given, float) for given in (loss, along_gradient, along_random))
    shape = (up.size, right.size)
    shapes = [values.shape] + ([] if margin is None else [np.shape(margin)])
    if min(shape) < 2 or any(given != shape for given in shapes):
        raise UsageError(
            f"loss and margin must be [random steps, gradient steps] = {list(shape)}, at least 2 of each; got "
            f"{' and '.join(str(list(given)) for given in shapes)}"
        )
    figure = Figure(figsize=(WIDTH, 4.0))
    axes = figure.add_subplot()
    half_x, half_y = (right[1] - right[0]) / 2, (up[1] - up[0]) / 2
    extent = (right[0] - half_x, right[-1] + half_x, up[0] - half_y, up[-1] + half_y)
    picture = axes.imshow(np.ma.masked_invalid(values), origin="lower", extent=extent, aspect="auto", cmap="Greys")
    if margin is not None and np.nanmin(margin) < 0 < np.nanmax(margin):
        axes.contour(right, up, np.asarray(margin, float), levels=[0.0], colors=[VERMILION], linewidths=1.6)
        axes.plot([], [], color=VERMILION, label="the prediction changes")
    axes.plot(0, 0, "o", color="white", markeredgecolor="black", markersize=7, label="the image", linestyle="none")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderpad=0, handletextpad=0.5)
    axes.set_xlim(extent[:2])
    axes.set_ylim(extent[2:])
    axes.set_xlabel("step along the gradient")
    axes.set_ylabel("step in a random direction")
    bar = figure.colorbar(picture, ax=axes, shrink=0.8)
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    bar.set_label(loss_name)
    return figure


def _round_factor(change: Float[np.ndarray, "n height width channels"]) -> float:
    """The largest of 1, 2, 5, 10, … that keeps 0.5 + factor · change in [0, 1]; 1 where nothing changed."""
    largest = float(np.nanmax(np.abs(change), initial=0.0))
    if not (np.isfinite(largest) and largest > 0):
        return 1.0
    room = min(0.5 / largest * (1 + 1e-5), 1e6)  # a radius of 0.1 is a little more in float32
    power = 10.0 ** np.floor(np.log10(room)) if room >= 1 else 1.0
    return float(power * max(step for step in (1, 2, 5) if step * power <= max(room, power)))


def _check_curves(curves: Mapping[str, Curve], *, lengths: tuple[int, ...], parts: str) -> None:
    if not curves:
        raise UsageError(f"curves must hold at least one: name -> {parts}")
    for name, curve in curves.items():
        sizes = [np.shape(part) for part in curve]
        if len(curve) not in lengths or len(set(sizes)) != 1 or len(sizes[0]) != 1 or not sizes[0][0]:
            raise UsageError(
                f"curve {name!r} must be {parts}, arrays of one length; got shapes {list(map(list, sizes))}"
            )


def _draw_curves(axes: Axes, curves: Mapping[str, Curve]) -> None:
    for place, curve in enumerate(curves.values()):
        x, y, *ends = (np.asarray(part, float) for part in curve)
        colour = COLOURS[place % len(COLOURS)]
        if ends:
            axes.fill_between(x, ends[0], ends[1], color=colour, alpha=0.2, linewidth=0)
        axes.plot(
            x, y, color=colour, linestyle=DASHES[place % len(DASHES)], marker=MARKERS[place % len(MARKERS)],
            markersize=4, markevery=max(1, len(x) // 10),
        )  # fmt: skip


def _label_ends(figure: Figure, axes: Axes, curves: Mapping[str, Curve]) -> None:
    figure.draw_without_rendering()  # fixes the limits and the layout, on which the labels' distance depends
    labels = []
    for place, (name, (x, y, *_)) in enumerate(curves.items()):
        known = np.flatnonzero(np.isfinite(np.asarray(y, float)))
        if known.size:
            last = known[-1]
            labels.append((float(x[last]), float(y[last]), name, COLOURS[place % len(COLOURS)]))
    label_line_ends(axes, labels)
