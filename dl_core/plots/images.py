"""Images in rows with what there is to say about each, and convolution kernels as small images."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.figure import Figure

from dl_core.errors import UsageError
from dl_core.plots.style import PALE, WIDTH, AnyArray, in_house_style


def _displayable(images: AnyArray) -> np.ndarray:
    """As uint8 [n, height, width, 3]."""
    images = np.asarray(images)
    if images.dtype != np.uint8:
        images = (np.clip(np.nan_to_num(images.astype(np.float32)), 0, 1) * 255).round().astype(np.uint8)
    return np.broadcast_to(images, (*images.shape[:3], 3))


@in_house_style
def image_grid(
    images: UInt8[AnyArray, "n height width channels"] | Float[AnyArray, "n height width channels"],
    captions: Sequence[str] = (),
    *,
    columns: int | None = None,
) -> Figure:
    """Images in reading order, each with its caption below.

    Args:
      images: uint8 in [0, 255] or float in [0, 1] (clipped); 1 (grey) or 3 channels.
      captions: one for each image, each of one or more lines; or none at all.
      columns: images in a row; by default what suits their number, at most 6.

    Returns:
      A Figure.

    Raises:
      UsageError: another number of channels, or of captions.
    """
    n, height, width, channels = images.shape
    if channels not in (1, 3):
        raise UsageError(f"images must have 1 or 3 channels, got {channels}")
    if len(captions) not in (0, n):
        raise UsageError(f"give one caption for each of the {n} images or none, got {len(captions)}")
    per_row: int = columns or min(max(n, 1), 6 if n > 8 else 4)
    rows = -(-n // per_row)
    cell = WIDTH / per_row  # inches
    font = min(9.0, 8.5 * cell)
    lines = max((caption.count("\n") + 1 for caption in captions), default=0)
    text = lines * 1.2 * font / 72
    tall = (cell - 0.1) * height / width
    pitch = tall + text + 0.1
    figure = Figure(figsize=(WIDTH, max(rows, 1) * pitch))
    figure.set_layout_engine("none")
    high = tall / pitch / max(rows, 1)
    for index, image in enumerate(_displayable(images)):
        row, column = divmod(index, per_row)
        # One axes for each image, placed by hand: a layout engine would need seconds for a hundred of them.
        bottom = 1 - row / rows - high
        axes = figure.add_axes((column / per_row, bottom, (cell - 0.1) / WIDTH, high))
        axes.imshow(image, interpolation="nearest", aspect="auto")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set(visible=True, color=PALE)
        if captions:
            axes.annotate(
                captions[index], (0.5, 0), xycoords="axes fraction", xytext=(0, -3), textcoords="offset points",
                ha="center", va="top", fontsize=font, linespacing=1.15, annotation_clip=False,
            )  # fmt: skip
    return figure


@in_house_style
def filters(kernels: Float[AnyArray, "height width in_channels out_channels"], *, most: int = 64) -> Figure:
    """Convolution kernels as images: zero is mid-grey, one scale for all.

    Args:
      kernels: weights. With 3 input channels each kernel is a colour image; otherwise each input channel has a grey
        one.
      most: at most so many small images, from the first output channel on.

    Returns:
      A Figure.
    """
    kernels = np.asarray(kernels, np.float32)
    height, width, in_channels, _ = kernels.shape
    if in_channels != 3:
        # Consecutive images are the input channels of one output channel.
        kernels = kernels.transpose(0, 1, 3, 2).reshape(height, width, 1, -1)
    tiles = np.moveaxis(kernels[..., :most], -1, 0)
    largest = np.abs(tiles).max(initial=0.0) or 1.0
    tiles = np.broadcast_to(0.5 + tiles / (2 * largest), (*tiles.shape[:3], 3))
    n = len(tiles)
    columns = min(n, 8 if n <= 64 else 16)
    rows = -(-n // columns)
    # One mosaic: much faster to draw than many axes. The seams are white, a sixth of a kernel wide.
    zoom = max(1, 24 // max(height, width))
    seam = max(1, zoom * max(height, width) // 6)
    tall, wide = zoom * height + seam, zoom * width + seam
    mosaic = np.ones((rows * tall - seam, columns * wide - seam, 3), np.float32)
    for index, tile in enumerate(tiles):
        top, left = index // columns * tall, index % columns * wide
        mosaic[top : top + tall - seam, left : left + wide - seam] = tile.repeat(zoom, axis=0).repeat(zoom, axis=1)
    inches = WIDTH * min(1.0, columns / 8)
    figure = Figure(figsize=(inches, inches * mosaic.shape[0] / mosaic.shape[1]))
    figure.set_layout_engine("none")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(mosaic, interpolation="nearest", aspect="auto")
    axes.set_axis_off()
    return figure
