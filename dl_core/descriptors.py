"""Hand-made descriptors of images: what was learned from before networks learned their own features.

Histograms of oriented gradients (Dalal, Triggs 2005, "Histograms of oriented gradients for human detection") describe
shape, histograms of colours (Swain, Ballard 1991, "Color indexing") colour. With PCA and a linear support vector
machine or nearest neighbours they are the baseline that stands beside every network.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dl_core.errors import UsageError, unknown_name

BLOCK_NORMS = ("L2-Hys", "L2", "L1", "L1-sqrt")
COLOUR_SPACES = ("rgb", "hsv")
HYSTERESIS = 0.2  # largest share of a normalised block's length that one bin may have
EPS = 1e-5  # keeps flat blocks finite

Images = Float[Array | np.ndarray, "batch height width channels"]


def hog(
    images: Images,
    *,
    orientations: int = 9,
    pixels_per_cell: tuple[int, int] = (8, 8),
    cells_per_block: tuple[int, int] = (3, 3),
    block_norm: str = "L2-Hys",
    transform_sqrt: bool = False,
) -> Float[Array, "batch features"]:
    """Histograms of oriented gradients, as scikit-image computes them (its names and defaults; no interpolation).

    Central differences, of the channel that has the steepest; in each cell the magnitudes are averaged by orientation,
    up to sign; overlapping blocks of cells are normalised together.

    Args:
      images: values >= 0, usually in [0, 1]; pixels beyond the last whole cell count for nothing but gradients.
      orientations: bins over 180 degrees.
      pixels_per_cell: height and width of a cell.
      cells_per_block: height and width of a block, in cells.
      block_norm: "L2-Hys" (L2, no bin above 0.2, L2 again), "L2", "L1" or "L1-sqrt".
      transform_sqrt: takes the square root of the image first.

    Returns:
      Features by block (rows, columns), cell within the block (rows, columns) and orientation.

    Raises:
      UsageError: an unknown norm, or an image smaller than a block.
    """
    if block_norm not in BLOCK_NORMS:
        raise unknown_name("block norm", block_norm, BLOCK_NORMS)
    cells = [side // cell for side, cell in zip(images.shape[1:3], pixels_per_cell, strict=True)]
    if any(have < need for have, need in zip(cells, cells_per_block, strict=True)):
        raise UsageError(
            f"images of {images.shape[1]}×{images.shape[2]} pixels have {cells[0]}×{cells[1]} cells, fewer than one "
            f"block of {cells_per_block[0]}×{cells_per_block[1]}; make pixels_per_cell or cells_per_block smaller"
        )
    images = jnp.sqrt(jnp.asarray(images)) if transform_sqrt else jnp.asarray(images)
    down, across, magnitude = _gradients(images)
    degrees = jnp.rad2deg(jnp.arctan2(down, across)) % 180
    bins = (degrees * orientations / 180).astype(jnp.int32) % orientations
    histograms = jnp.stack(
        [_cell_means(jnp.where(bins == k, magnitude, 0), pixels_per_cell) for k in range(orientations)], axis=-1
    )
    rows, columns = (have - need + 1 for have, need in zip(cells, cells_per_block, strict=True))
    blocks = jnp.stack(
        [
            jnp.stack([histograms[:, i : i + rows, j : j + columns] for j in range(cells_per_block[1])], axis=3)
            for i in range(cells_per_block[0])
        ],
        axis=3,
    )  # [batch, block rows, block columns, cell rows, cell columns, orientations]
    return _normalised(blocks.reshape(*blocks.shape[:3], -1), block_norm).reshape(len(images), -1)


def _gradients(images: Images) -> tuple[Array, Array, Array]:
    """Down and across, and their length, of the channel where it is greatest; 0 at the borders of the image."""
    down = jnp.pad(images[:, 2:] - images[:, :-2], [(0, 0), (1, 1), (0, 0), (0, 0)])
    across = jnp.pad(images[:, :, 2:] - images[:, :, :-2], [(0, 0), (0, 0), (1, 1), (0, 0)])
    flat = (down == 0) & (across == 0)  # where the length has no derivative: give it that of a constant
    magnitude = jnp.where(flat, 0, jnp.hypot(jnp.where(flat, 1, down), across))
    steepest = magnitude.argmax(axis=-1, keepdims=True)
    pick = lambda values: jnp.take_along_axis(values, steepest, axis=-1)[..., 0]
    return pick(down), pick(across), pick(magnitude)


def _cell_means(values: Float[Array, "batch height width"], cell: tuple[int, int]) -> Float[Array, "batch r c"]:
    rows, columns = values.shape[1] // cell[0], values.shape[2] // cell[1]
    whole = values[:, : rows * cell[0], : columns * cell[1]]
    return whole.reshape(-1, rows, cell[0], columns, cell[1]).mean(axis=(2, 4))


def _normalised(blocks: Float[Array, "*batch bins"], norm: str) -> Float[Array, "*batch bins"]:
    if norm.startswith("L1"):
        shares = blocks / (jnp.abs(blocks).sum(axis=-1, keepdims=True) + EPS)
        return jnp.sqrt(shares) if norm == "L1-sqrt" else shares
    unit = lambda x: x / jnp.sqrt(jnp.sum(x**2, axis=-1, keepdims=True) + EPS**2)
    return unit(jnp.minimum(unit(blocks), HYSTERESIS)) if norm == "L2-Hys" else unit(blocks)


def rgb_to_hsv(images: Float[Array | np.ndarray, "*batch 3"]) -> Float[Array, "*batch 3"]:
    """Hue, saturation and value, all in [0, 1], of colours in [0, 1] (Smith 1978); the hue of a grey is 0."""
    images = jnp.asarray(images)
    red, green, blue = images[..., 0], images[..., 1], images[..., 2]
    value, spread = images.max(axis=-1), images.max(axis=-1) - images.min(axis=-1)
    safe = jnp.where(spread > 0, spread, 1)
    sector = jnp.select(
        [red == value, green == value], [(green - blue) / safe, 2 + (blue - red) / safe], 4 + (red - green) / safe
    )
    hue = jnp.where(spread > 0, sector / 6 % 1, 0)
    return jnp.stack([hue, spread / jnp.where(value > 0, value, 1), value], axis=-1)


def color_histogram(
    images: Images, *, bins: int = 8, space: str = "rgb", joint: bool = False
) -> Float[Array, "batch features"]:
    """The share of an image's pixels in each bin of colour, whatever their place.

    Args:
      images: in [0, 1].
      bins: equal parts of [0, 1], per channel; the last includes 1.
      space: "rgb" (any number of channels, as they are) or "hsv" (of three channels).
      joint: one histogram over all combinations, bins to the power of the channels, rather than one each.

    Returns:
      Shares; each histogram adds up to 1.

    Raises:
      UsageError: an unknown space, bins < 1, or "hsv" of other than three channels.
    """
    if space not in COLOUR_SPACES:
        raise unknown_name("colour space", space, COLOUR_SPACES)
    if bins < 1:
        raise UsageError(f"bins must be at least 1, got {bins}")
    channels = images.shape[-1]
    if space == "hsv" and channels != 3:
        raise UsageError(f"hue and saturation need images of 3 channels, got {channels}; use space='rgb'")
    values = rgb_to_hsv(images) if space == "hsv" else jnp.asarray(images)
    places = jnp.clip((values * bins).astype(jnp.int32), 0, bins - 1).reshape(len(images), -1, channels)
    if joint:
        weights = bins ** jnp.arange(channels - 1, -1, -1)
        return _shares((places * weights[None, None]).sum(axis=-1, keepdims=True), bins**channels)
    return _shares(places, bins)


def _shares(places: Int[Array, "batch pixels channels"], bins: int) -> Float[Array, "batch features"]:
    batch, pixels, channels = places.shape
    offset = (jnp.arange(batch)[:, None, None] * channels + jnp.arange(channels)[None, None]) * bins
    counts = jnp.zeros(batch * channels * bins).at[(places + offset).reshape(-1)].add(1)
    return counts.reshape(batch, channels * bins) / pixels
