"""Attributions as pictures: signed, zero in the middle of the colours, and the scale written below each."""

from collections.abc import Mapping
from textwrap import fill

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from dl_core.errors import UsageError
from dl_core.plots.images import _displayable
from dl_core.plots.style import BLUE, GREY, PALE, VERMILION, WIDTH, AnyArray, in_house_style

SIGNED = LinearSegmentedColormap.from_list("signed", [BLUE, "#FFFFFF", VERMILION])
LINE = 0.17  # inches of a line of text


def _channel_sum(attributions: Float[AnyArray, "n ..."]) -> Float[np.ndarray, "n height width"]:
    attributions = np.asarray(attributions, np.float32)
    if attributions.ndim not in (3, 4):
        raise UsageError(
            f"attributions must be [n, height, width] or [n, height, width, channels], got {list(attributions.shape)}"
        )
    return attributions.sum(axis=3) if attributions.ndim == 4 else attributions


@in_house_style
def attribution_maps(
    images: UInt8[AnyArray, "n height width channels"] | Float[AnyArray, "n height width channels"],
    attributions: Mapping[str, Float[AnyArray, "n ..."]],
    captions: tuple[str, ...] | list[str] = (),
    *,
    columns: int = 6,
    percentile: float = 99.5,
) -> Figure:
    """Every method side by side, for one image after the other.

    Orange speaks for what is explained, blue against it, white is zero. Each map has its own scale, which is symmetric
    and written below it: methods differ in their units. Values beyond the scale have its last colour.

    Args:
      images: uint8 in [0, 255] or float in [0, 1] (clipped); 1 (grey) or 3 channels.
      attributions: method -> [n, height, width] or [n, height, width, channels], which are summed over the channels.
      captions: what to say about each image, of one or more lines; or none.
      columns: cells in a row, the image first.
      percentile: of the absolute values of a map, where its scale ends; 100 is the largest.

    Returns:
      A Figure.

    Raises:
      UsageError: no method, shapes that do not fit the images, another number of captions, or one column only.
    """
    shown = _displayable(images)
    maps = {name: _channel_sum(values) for name, values in attributions.items()}
    if not maps:
        raise UsageError("give at least one method: name -> attributions")
    if columns < 2:
        raise UsageError(f"columns must be at least 2, the image and a map; got {columns}")
    for name, values in maps.items():
        if values.shape != shown.shape[:3]:
            raise UsageError(
                f"attributions of {name!r} are {list(values.shape)} and the images {list(shown.shape[:3])}; "
                "maps of a layer must be upsampled first"
            )
    if len(captions) not in (0, len(shown)):
        raise UsageError(f"give one caption for each of the {len(shown)} images or none, got {len(captions)}")
    per_row = min(columns, 1 + len(maps))
    rows = -(-len(maps) // (per_row - 1))  # the first column is the image's
    lines = max((caption.count("\n") + 1 for caption in captions), default=0)
    cell = WIDTH / per_row
    font = min(8.0, 7.6 * cell)
    titles = {name: fill(name.replace("_", " "), max(8, int(cell * 72 / (0.56 * font)))) for name in maps}
    above = LINE * (0.25 + max(title.count("\n") + 1 for title in titles.values()))
    tall = (cell - 0.06) * shown.shape[1] / shown.shape[2]
    pitch = above + tall + 1.15 * LINE
    block = max(rows * pitch, above + tall + LINE * (0.2 + lines))
    figure = Figure(figsize=(WIDTH, block * len(shown)))
    figure.set_layout_engine("none")
    total = block * len(shown)

    def place(index: int, row: int, column: int, title: str, below: str, picture: np.ndarray, **options: object):
        top = index * block + row * pitch + above
        axes = figure.add_axes((column * cell / WIDTH, 1 - (top + tall) / total, (cell - 0.06) / WIDTH, tall / total))
        axes.imshow(picture, interpolation="nearest", aspect="auto", **options)  # pyright: ignore[reportArgumentType]
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set(visible=True, color=PALE)
        axes.set_title(title, fontsize=font, pad=2, linespacing=1.0)
        axes.annotate(
            below, (0, 0), xycoords="axes fraction", xytext=(0, -2), textcoords="offset points", va="top",
            fontsize=font, color=GREY, linespacing=1.15, annotation_clip=False,
        )  # fmt: skip

    for index, image in enumerate(shown):
        place(index, 0, 0, "", captions[index] if captions else "", image)
        for number, (name, values) in enumerate(maps.items()):
            row, column = divmod(number, per_row - 1)
            scale = float(np.percentile(np.abs(values[index]), percentile)) or float(np.abs(values[index]).max())
            limit = scale if scale > 0 and np.isfinite(scale) else 1.0
            below = f"± {scale:.2g}" if np.isfinite(values[index]).all() else "not finite"
            place(index, row, column + 1, titles[name], below, values[index], cmap=SIGNED, vmin=-limit, vmax=limit)
    return figure
