"""Superpixels: an image divided into about as many connected segments of like colour as asked for.

Achanta, Shaji, Smith, Lucchi, Fua, Süsstrunk (2012), "SLIC Superpixels Compared to State-of-the-Art Superpixel
Methods", https://doi.org/10.1109/TPAMI.2012.120. k-means in (lightness, a, b, x, y) from a grid of centres, where a
pixel is compared with the centres of its own cell of the grid and of the eight around it. (The paper searches 2 S × 2 S
pixels around each centre, which is the same but for centres that have moved far; a fixed neighbourhood has fixed
shapes, as in gSLIC, Ren, Reid (2011).)

    D² = d_colour² + (compactness / S)² d_xy²        S: side of a cell in pixels
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from dl_core.errors import UsageError

# sRGB (IEC 61966-2-1) to CIE XYZ under D65, each row divided by the white point: white becomes (1, 1, 1).
_XYZ = np.array([[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]])
_WHITE = np.array([0.95047, 1.0, 1.08883])
_LEAST_SHARE = 0.25  # of a cell: smaller pieces join a neighbour, as in the authors' program


def lab(images: Float[Array | np.ndarray, "*batch 3"]) -> Float[Array, "*batch 3"]:
    """CIE L*a*b* of sRGB colours, under D65.

    Args:
      images: sRGB in [0, 1].

    Returns:
      Lightness in [0, 100], and two colour axes of about [-128, 127].

    Raises:
      UsageError: other than 3 channels.
    """
    if jnp.shape(images)[-1] != 3:
        raise UsageError(f"L*a*b* is of images with 3 channels (sRGB), got shape {list(jnp.shape(images))}")
    images = jnp.asarray(images)
    linear = jnp.where(images > 0.04045, ((jnp.maximum(images, 0.04045) + 0.055) / 1.055) ** 2.4, images / 12.92)
    relative = jnp.matmul(linear, jnp.asarray((_XYZ / _WHITE[:, None]).T, linear.dtype), precision="highest")
    root = jnp.cbrt(jnp.maximum(relative, 0.008856))  # of zero it has no gradient
    x, y, z = jnp.moveaxis(jnp.where(relative > 0.008856, root, 7.787 * relative + 16 / 116), -1, 0)
    return jnp.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def slic(
    images: Float[Array | np.ndarray, "batch height width channels"],
    n_segments: int = 100,
    *,
    compactness: float = 10.0,
    iterations: int = 10,
    enforce_connectivity: bool = True,
) -> Int[Array, "batch height width"]:
    """Segments of like colour (SLIC), of each image by itself.

    The centres start as the means of the cells of a grid. In the end every segment is one connected piece: of each
    label the largest piece is kept, and what is left, like pieces smaller than a quarter of a cell, joins the adjacent
    segment of the nearest centre, layer by layer.

    Args:
      images: in [0, 1]. With 3 channels they are taken for sRGB and compared in L*a*b*; of any other number, 100 times
        their values are compared (a lightness). Under `jit` and `vmap` too.
      n_segments: about how many are wanted. The grid has round(height / S) · round(width / S) cells, of side S =
        √(height · width / n_segments); there may be fewer segments in the end, never more.
      compactness: > 0; what a distance of one cell counts against a difference in colour. Large: squares; small:
        segments that follow the colours.
      iterations: of k-means, >= 1.
      enforce_connectivity: False leaves the labels of k-means: segments may lie in several pieces.

    Returns:
      The segment of every pixel, numbered 0 … (segments of this image - 1) by the cell of the grid where it began.

    Raises:
      UsageError: images that are not [batch, height, width, channels] of floats; n_segments that is not in [1, pixels];
        compactness or iterations out of range.
    """
    shape = jnp.shape(images)
    if len(shape) != 4 or not jnp.issubdtype(jnp.result_type(images), jnp.floating):
        raise UsageError(
            "images must be floats in [0, 1] of shape [batch, height, width, channels], got "
            f"{jnp.result_type(images)} {list(shape)}; one image is image[None], bytes are divided by 255"
        )
    height, width = shape[1:3]
    if not 1 <= n_segments <= height * width:
        raise UsageError(f"n_segments must be in [1, {height * width}], the number of pixels; got {n_segments}")
    if compactness <= 0 or iterations < 1:
        raise UsageError(f"compactness must be above 0 and iterations at least 1, got {compactness} and {iterations}")
    images = jnp.asarray(images, jnp.promote_types(jnp.result_type(images), jnp.float32))
    return _slic(images, n_segments, compactness, iterations, enforce_connectivity)


@functools.partial(jax.jit, static_argnums=(1, 3, 4))
def _slic(
    images: Float[Array, "batch height width channels"],
    n_segments: int,
    compactness: Float[Array, ""],
    iterations: int,
    enforce_connectivity: bool,
) -> Int[Array, "batch height width"]:
    height, width, channels = images.shape[1:]
    side = math.sqrt(height * width / n_segments)
    rows, columns = (max(1, round(length / side)) for length in (height, width))
    row, column = np.arange(height) * rows // height, np.arange(width) * columns // width
    cell, around = row[:, None] * columns + column[None], _around(row, column, rows, columns)
    side = math.sqrt(height * width / (rows * columns))
    colours = lab(images) if channels == 3 else 100 * images
    places = jnp.stack(jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij"), axis=-1)
    of_one = functools.partial(
        _segments, cell=cell, around=around, iterations=iterations, least=_LEAST_SHARE * side**2 * enforce_connectivity
    )
    return jax.vmap(lambda image: of_one(jnp.concatenate([image, places * (compactness / side)], axis=-1)))(colours)


def _around(
    row: Int[np.ndarray, " height"], column: Int[np.ndarray, " width"], rows: int, columns: int
) -> Int[np.ndarray, "height width 9"]:
    """The cells that a pixel is compared with; -1 for those beyond the edge."""
    step = np.arange(-1, 2)
    near_rows, near_columns = row[:, None] + step[None], column[:, None] + step[None]
    inside = lambda near, count: (near >= 0) & (near < count)
    cells = near_rows[:, None, :, None] * columns + near_columns[None, :, None, :]
    legal = inside(near_rows, rows)[:, None, :, None] & inside(near_columns, columns)[None, :, None, :]
    return np.where(legal, cells, -1).reshape(len(row), len(column), 9)


def _segments(
    features: Float[Array, "height width features"],
    *,
    cell: Int[np.ndarray, "height width"],
    around: Int[np.ndarray, "height width 9"],
    iterations: int,
    least: float,
) -> Int[Array, "height width"]:
    segments = int(cell.max()) + 1
    flat = features.reshape(-1, features.shape[-1])

    def means(labels: Int[Array, "height width"], centres: Float[Array, "segments features"]) -> jax.Array:
        sums = jax.ops.segment_sum(flat, labels.ravel(), segments)
        counts = jax.ops.segment_sum(jnp.ones(len(flat), flat.dtype), labels.ravel(), segments)[:, None]
        return jnp.where(counts > 0, sums / jnp.maximum(counts, 1), centres)  # an empty segment stays where it was

    def iterate(_: Int[Array, ""], state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        labels, centres = state
        centres = means(labels, centres)
        return _nearest(features, centres, jnp.asarray(around)), centres

    start = jnp.asarray(cell, jnp.int32), jnp.zeros((segments, features.shape[-1]), features.dtype)
    labels, centres = jax.lax.fori_loop(0, iterations, iterate, start)
    if least:
        labels = _joined(features, labels, means(labels, centres), least)
    used = jnp.zeros(segments, jnp.int32).at[labels.ravel()].set(1)
    return (jnp.cumsum(used) - 1)[labels]


def _nearest(
    features: Float[Array, "height width features"],
    centres: Float[Array, "segments features"],
    candidates: Int[Array, "height width candidates"],
) -> Int[Array, "height width"]:
    """Of the candidates of each pixel, that with the nearest centre; -1 where there is none."""
    distances = ((features[:, :, None] - centres[candidates]) ** 2).sum(axis=-1)
    best = jnp.argmin(jnp.where(candidates >= 0, distances, jnp.inf), axis=-1)
    return jnp.take_along_axis(candidates, best[:, :, None], axis=-1)[:, :, 0]


def _joined(
    features: Float[Array, "height width features"],
    labels: Int[Array, "height width"],
    centres: Float[Array, "segments features"],
    least: float,
) -> Int[Array, "height width"]:
    """Every label one connected piece: the others are taken over by their neighbours from the edge inwards."""
    pieces = _pieces(labels)
    size = jnp.zeros(labels.size, jnp.int32).at[pieces.ravel()].add(1)
    label_of = labels.ravel()
    largest = jax.ops.segment_max(size, label_of, len(centres))  # a piece's size stands at its first pixel
    first = jax.ops.segment_min(
        jnp.where(size == largest[label_of], jnp.arange(labels.size), labels.size), label_of, len(centres)
    )
    kept = (pieces == first[labels]) & ((size[pieces] >= least) | (size[pieces] == size.max()))

    def take_over(labels: Int[Array, "height width"]) -> Int[Array, "height width"]:
        adjacent = jnp.stack(_neighbours(labels, -1), axis=-1)
        return jnp.where(labels < 0, _nearest(features, centres, adjacent), labels)

    return jax.lax.while_loop(lambda labels: (labels < 0).any(), take_over, jnp.where(kept, labels, -1))


def _pieces(labels: Int[Array, "height width"]) -> Int[Array, "height width"]:
    """The connected piece of every pixel, named after its first pixel."""
    same: list[Bool[Array, "height width"]] = [labels == neighbour for neighbour in _neighbours(labels, -1)]

    def spread(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        names, _ = state
        lower = names
        for like, neighbour in zip(same, _neighbours(names, 0), strict=True):
            lower = jnp.minimum(lower, jnp.where(like, neighbour, names))
        lower = lower.ravel()[lower]  # the name of one's name: long pieces need few rounds
        return lower, (lower != names).any()

    names = jnp.arange(labels.size).reshape(labels.shape)
    return jax.lax.while_loop(lambda state: state[1], spread, (names, jnp.array(True)))[0]


def _neighbours(values: Int[Array, "height width"], beyond: int) -> list[Int[Array, "height width"]]:
    """Of every pixel the one above, below, left and right."""
    padded = jnp.pad(values, 1, constant_values=beyond)
    return [padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]]
