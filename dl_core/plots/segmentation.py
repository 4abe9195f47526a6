"""Class maps over the images they belong to, and a bar for each class's score."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Integer, UInt8
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from dl_core.errors import UsageError
from dl_core.plots.images import _displayable
from dl_core.plots.style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PALE,
    PURPLE,
    SKY,
    VERMILION,
    WIDTH,
    YELLOW,
    AnyArray,
    in_house_style,
)

# Neighbours in the list differ in lightness, too; the first class is most often the background, and stays clear.
PALETTE = (VERMILION, SKY, YELLOW, BLUE, ORANGE, GREEN, PURPLE)


def class_colours(num_classes: int) -> Float[np.ndarray, "classes 3"]:
    """RGB colours in [0, 1], the first grey; beyond eight classes the seven others return, darker each time."""
    rounds = [
        np.array(to_rgb(PALETTE[index % len(PALETTE)])) * 0.62 ** (index // len(PALETTE))
        for index in range(num_classes - 1)
    ]
    return np.stack([np.array(to_rgb(PALE)), *rounds])


@in_house_style
def segmentation_maps(
    images: UInt8[AnyArray, "n height width channels"] | Float[AnyArray, "n height width channels"],
    labels: Integer[AnyArray, "n height width"],
    predictions: Integer[AnyArray, "n height width"],
    class_names: Sequence[str],
    *,
    ignore_label: int | None = None,
    strength: float = 0.6,
) -> Figure:
    """One row an image: the image, the true classes over it, the predicted classes over it.

    Class 0, as a rule the background, is left uncoloured. Pixels that do not count are hatched in grey, in the truth.

    Args:
      images: uint8 in [0, 255] or float in [0, 1] (clipped); 1 (grey) or 3 channels.
      labels: true class of each pixel, in [0, classes) or ignore_label.
      predictions: predicted class of each pixel, in [0, classes).
      class_names: one for each class.
      ignore_label: true label of pixels that do not count.
      strength: how opaque the colours are, in [0, 1].

    Returns:
      A Figure; its legend has the classes that occur.

    Raises:
      UsageError: shapes that do not fit; a class outside the range.
    """
    shown = _displayable(images) / 255.0
    maps = {"true": np.asarray(labels), "predicted": np.asarray(predictions)}
    ignored = np.zeros(maps["true"].shape, bool) if ignore_label is None else maps["true"] == ignore_label
    for name, classes in maps.items():
        if classes.shape != shown.shape[:3]:
            raise UsageError(f"{name} classes must be {list(shown.shape[:3])} as the images, got {list(classes.shape)}")
        seen = classes[~ignored]
        if seen.size and (seen.min() < 0 or seen.max() >= len(class_names)):
            raise UsageError(
                f"{name} classes must lie in [0, {len(class_names)}), one for each of class_names, got values in "
                f"[{seen.min()}, {seen.max()}]"
            )
    colours = class_colours(len(class_names))
    stripes = np.add.outer(np.arange(shown.shape[1]), np.arange(shown.shape[2])) // 3 % 2

    n, height, width = shown.shape[:3]
    cell = (WIDTH - 0.2) / 3 * height / width
    occurring = sorted({int(index) for classes in maps.values() for index in np.unique(classes[~ignored])} - {0})
    legend = 0.25 * -(-len(occurring) // 3) if occurring else 0.0
    figure = Figure(figsize=(WIDTH, n * (cell + 0.05) + 0.3 + legend))
    grid = figure.subplots(n, 3, squeeze=False)
    for row in range(n):
        grid[row, 0].imshow(shown[row], interpolation="nearest")
        for column, (name, classes) in enumerate(maps.items(), start=1):
            own, left_out = np.where(ignored[row], 0, classes[row]), ignored[row] & (name == "true")
            opacity = strength * (own > 0)[..., None]
            overlay = (1 - opacity) * shown[row] + opacity * colours[own]
            overlay = np.where(left_out[..., None], 0.55 + 0.3 * stripes[..., None], overlay)
            grid[row, column].imshow(overlay, interpolation="nearest")
    for axes, title in zip(grid[0], ("image", *maps), strict=True):
        axes.set_title(title)
    for axes in grid.flat:
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set(visible=True, color=PALE)
    if occurring:
        patches = [Patch(color=colours[index], label=class_names[index]) for index in occurring]
        figure.legend(handles=patches, loc="outside lower left", ncols=3, handlelength=1.0)
    return figure


@in_house_style
def class_scores(
    scores: Float[AnyArray, " classes"], class_names: Sequence[str], *, score_name: str = "IoU"
) -> Figure:  # fmt: skip
    """One bar a class, the best on top, and their mean; classes without a score (nan) are named below, without a bar.

    Args:
      scores: in [0, 1] or nan, e.g. `iou(..., average=None)`.
      class_names: one for each class.
      score_name: of the axis.

    Returns:
      A Figure.

    Raises:
      UsageError: another number of names.
    """
    scores = np.asarray(scores, float)
    if len(class_names) != len(scores):
        raise UsageError(f"give one name for each of the {len(scores)} classes, got {len(class_names)}")
    order = np.argsort(np.nan_to_num(scores, nan=-1.0), kind="stable")
    figure = Figure(figsize=(WIDTH, 0.8 + 0.24 * max(len(scores), 1)))
    axes = figure.subplots()
    axes.barh(np.arange(len(scores)), np.nan_to_num(scores[order]), color=BLUE, height=0.7)
    for place, score in enumerate(scores[order]):
        absent = np.isnan(score)
        text = "does not occur" if absent else f"{score:.3f}"
        axes.annotate(
            text, (0 if absent else score, place), xytext=(3, 0), textcoords="offset points", va="center", fontsize=9,
            color=GREY if absent else "black", bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},
        )  # fmt: skip
    if not np.isnan(scores).all():
        mean = float(np.nanmean(scores))
        axes.axvline(mean, color=VERMILION, linewidth=1.2, linestyle="--")
        axes.set_title(f"mean {mean:.3f}", color=VERMILION)
    axes.set_yticks(range(len(scores)), [str(class_names[index]) for index in order])
    axes.set_xlim(0, 1.12)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
    axes.set_ylim(-0.6, max(len(scores), 1) - 0.4)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(score_name)
    return figure
