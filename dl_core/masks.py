"""Masks of objects: COCO's run lengths, polygons, areas, boxes, and how far masks overlap.

COCO writes a mask as run lengths (RLE): down the columns, left to right, how many pixels are 0, then how many are 1,
and so on. In a file it is `{"size": [height, width], "counts": …}` with the counts as a list of integers or as a
string, six bits a character. Everything here takes both kinds; it runs on the host, since run lengths have no fixed
length. Only `pairwise_mask_iou` of dense masks is a function of arrays that may be jitted.

The polygon rasteriser draws the outline on a grid five times finer and gives a pixel to the inside by parity of the
crossings above its centre line, as COCO's own tool does: pixel for pixel the same masks.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Integer

from dl_core.errors import UsageError

AnyArray = Array | np.ndarray
Rle = Mapping[str, Any]
Polygon = Sequence[float | int] | np.ndarray
_FINER = 5  # COCO's upsampling of polygon outlines
_QUERIES = 4_000_000  # run ends that are looked up at once: bounds memory, not results


def run_lengths(rle: Any) -> Int[np.ndarray, " runs"]:
    """How many pixels are 0, then 1, then 0, … down the columns.

    Args:
      rle: {"size": [height, width], "counts": list of ints, str or bytes}.

    Returns:
      int64 run lengths whose sum is height · width.

    Raises:
      UsageError: keys are missing, a negative run, or the runs do not fill the mask.
    """
    if not isinstance(rle, Mapping) or not {"size", "counts"} <= set(rle):
        raise UsageError(f"a mask's RLE must be a dict with 'size' and 'counts', got {type(rle).__name__}: {rle!r:.60}")
    counts, (height, width) = rle["counts"], rle["size"]
    if isinstance(counts, str | bytes):
        runs = _runs_from_string(counts.encode() if isinstance(counts, str) else counts)
    else:
        runs = np.asarray(counts, np.int64)
    if runs.ndim != 1 or (runs < 0).any() or runs.sum() != height * width:
        raise UsageError(f"the runs of a mask must be ≥ 0 and fill {height} × {width} = {height * width} pixels, "
                         f"got runs that sum to {runs.sum()}, least {runs.min(initial=0)}")  # fmt: skip
    return runs


def _runs_from_string(text: bytes) -> Int[np.ndarray, " runs"]:
    """Five bits a character, low ones first; 0x20 says that more follow, 0x10 of the last is the sign.

    From the fourth run on it is the difference to the run two before that is written.
    """
    characters = np.frombuffer(text, np.uint8).astype(np.int64) - 48
    if not len(characters):
        return np.zeros(0, np.int64)
    last = (characters & 0x20) == 0
    if not last[-1] or characters.min() < 0 or characters.max() > 0x3F:
        raise UsageError(f"the counts of a mask are no RLE string: {text[:40]!r}")
    first = np.concatenate([[0], np.flatnonzero(last)[:-1] + 1])
    length = np.diff(np.append(first, len(characters)))
    place = np.arange(len(characters)) - np.repeat(first, length)
    if length.max() > 12:
        raise UsageError(f"the counts of a mask are no RLE string: {text[:40]!r}")
    values = np.add.reduceat((characters & 0x1F) << (5 * place), first)
    values -= np.where(characters[last] & 0x10, np.int64(1) << (5 * length), 0)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values


def _string_from_runs(runs: Int[np.ndarray, " runs"]) -> str:
    values = runs.copy()
    values[3:] -= runs[1:-2]
    characters, more = [], np.ones(len(values), bool)
    while more.any():
        bits = values & 0x1F
        values >>= 5
        following = more & np.where(bits & 0x10, values != -1, values != 0)
        characters.append(np.where(more, (bits | np.where(following, 0x20, 0)) + 48, 0))
        more = following
    columns = np.stack(characters, axis=1).astype(np.uint8)
    return columns[columns > 0].tobytes().decode()


def encode_rle(mask: Bool[AnyArray, "height width"], *, compressed: bool = True) -> dict[str, Any]:
    """The run lengths of a dense mask, as COCO's files have them.

    Args:
      mask: True where the object is.
      compressed: counts as a string; as a list of integers otherwise.

    Returns:
      {"size": [height, width], "counts": str or list of ints}.
    """
    pixels = np.asarray(mask).T.ravel()
    ends = np.flatnonzero(np.diff(pixels, prepend=False))
    return _rle_from_ends(ends, *np.shape(mask), compressed=compressed)


def _rle_from_ends(ends: Int[np.ndarray, " ends"], height: int, width: int, *, compressed: bool) -> dict[str, Any]:
    """From the places at which 0 turns to 1 or 1 to 0, rising, below height · width."""
    runs = np.diff(np.concatenate([[0], ends, [height * width]]))
    counts = _string_from_runs(runs) if compressed else runs.tolist()
    return {"size": [int(height), int(width)], "counts": counts}


def decode_rle(rle: Rle) -> Bool[np.ndarray, "height width"]:
    """The dense mask of an RLE with string or list counts; raises UsageError as `run_lengths` does."""
    runs, (height, width) = run_lengths(rle), rle["size"]
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T


def polygons_to_rle(polygons: Sequence[Polygon], height: int, width: int, *, compressed: bool = True) -> dict[str, Any]:
    """The mask inside one or several polygons, equal to pycocotools' rasteriser.

    Args:
      polygons: each [x_0, y_0, x_1, y_1, …] in pixels, at least three corners; parts of one object.
      height, width: of the image.
      compressed: as in `encode_rle`.

    Returns:
      The RLE of the union.

    Raises:
      UsageError: no polygon, or one that has fewer than three corners, an odd number of values, or NaN.
    """
    if not len(polygons):
        raise UsageError("an object needs at least one polygon, got none")
    edges = [_crossings(polygon, height, width) for polygon in polygons]
    starts, stops = (np.concatenate([part[which::2] for part in edges]) for which in (0, 1))
    places, inverse = np.unique(np.concatenate([starts, stops]), return_inverse=True)
    depth = np.cumsum(np.bincount(inverse, np.repeat([1, -1], [len(starts), len(stops)]), len(places)))
    ends = places[np.diff(depth > 0, prepend=False)]
    return _rle_from_ends(ends[ends < height * width], height, width, compressed=compressed)


def polygons_to_mask(polygons: Sequence[Polygon], height: int, width: int) -> Bool[np.ndarray, "height width"]:
    """The dense mask inside polygons; arguments and errors as in `polygons_to_rle`."""
    return decode_rle(polygons_to_rle(polygons, height, width))


def _crossings(polygon: Polygon, height: int, width: int) -> Int[np.ndarray, " ends"]:
    """Places, counted down the columns, at which the inside of a polygon begins and ends, in turns."""
    corners = np.asarray(polygon, np.float64)
    if corners.ndim != 1 or len(corners) < 6 or len(corners) % 2 or not np.isfinite(corners).all():
        raise UsageError("a polygon must be [x_0, y_0, x_1, y_1, …] with at least three corners and finite values, "
                         f"got {list(polygon)!r:.80}")  # fmt: skip
    points = (corners.reshape(-1, 2) * _FINER + 0.5).astype(np.int64)
    x, y = _outline(points, np.roll(points, -1, axis=0))
    turns = np.flatnonzero(np.diff(x)) + 1
    column = (np.minimum(x[turns], x[turns - 1]) + 0.5) / _FINER - 0.5  # whole on the centre line of a column
    row = np.ceil(np.clip((np.minimum(y[turns], y[turns - 1]) + 0.5) / _FINER - 0.5, 0, height))
    inside = (column == np.floor(column)) & (column >= 0) & (column <= width - 1)
    places, times = np.unique(column[inside].astype(np.int64) * height + row[inside].astype(np.int64),
                              return_counts=True)  # fmt: skip
    odd = places[times % 2 == 1]
    return np.append(odd, height * width) if len(odd) % 2 else odd


def _outline(
    start: Int[np.ndarray, "corners 2"], stop: Int[np.ndarray, "corners 2"]
) -> tuple[Int[np.ndarray, " points"], Int[np.ndarray, " points"]]:
    """Grid points of all edges in turn: one for each step along the longer axis, both ends included."""
    steps = np.abs(stop - start)
    along = (steps[:, 0] < steps[:, 1]).astype(int)  # the longer axis: 0 is x
    edge = np.arange(len(start))
    flipped = start[edge, along] > stop[edge, along]  # rounding must not depend on the direction
    low, high = np.where(flipped[:, None], stop, start), np.where(flipped[:, None], start, stop)
    length = steps[edge, along]
    slope = (high - low)[edge, 1 - along] / np.maximum(length, 1)

    repeat = lambda values: np.repeat(values, length + 1)
    step = np.arange((length + 1).sum()) - repeat(np.cumsum(length + 1) - length - 1)
    step = np.where(repeat(flipped), repeat(length) - step, step)
    major = repeat(low[edge, along]) + step
    minor = (repeat(low[edge, 1 - along]) + repeat(slope) * step + 0.5).astype(np.int64)
    return np.where(repeat(along), minor, major), np.where(repeat(along), major, minor)


class _Intervals:
    """The runs of ones of many masks one behind the other: where each begins and ends, and whose it is."""

    def __init__(self, rles: Sequence[Rle]):
        runs = [run_lengths(rle) for rle in rles]
        ends = [np.cumsum(run)[: len(run) // 2 * 2] for run in runs]
        self.count = np.array([len(end) // 2 for end in ends], np.int64)
        self.first = np.cumsum(self.count) - self.count
        joined = np.concatenate([*ends, np.zeros(0, np.int64)])
        self.start, self.stop = joined[0::2], joined[1::2]
        self.owner = np.repeat(np.arange(len(rles)), self.count)
        self.area = np.bincount(self.owner, self.stop - self.start, len(rles)).astype(np.int64)
        self.before = np.cumsum(self.stop - self.start) - (self.stop - self.start)


def mask_area(masks: Sequence[Rle]) -> Int[np.ndarray, " n"]:
    """How many pixels each RLE mask has; of dense masks [n, h, w] it is their sum."""
    return _Intervals(masks).area


def mask_boxes(masks: Sequence[Rle]) -> Float[np.ndarray, "n 4"]:
    """The smallest box [x_min, y_min, x_max, y_max] around each RLE mask; a mask without pixels has zeros.

    Coordinates are those of the plane: one pixel at column 3 has x from 3 to 4.
    """
    boxes = np.zeros((len(masks), 4))
    for box, rle in zip(boxes, masks, strict=True):
        part, height = _Intervals([rle]), rle["size"][0]
        start, last = part.start[part.stop > part.start], part.stop[part.stop > part.start] - 1
        if len(start):
            spans = start // height != last // height  # a run over the foot of a column touches both borders
            top, foot = np.where(spans, 0, start % height), np.where(spans, height - 1, last % height)
            box[:] = start[0] // height, top.min(), last[-1] // height + 1, foot.max() + 1
    return boxes


def mask_iou_of_pairs(
    masks_a: Sequence[Rle],
    masks_b: Sequence[Rle],
    index_a: Integer[np.ndarray, " pairs"],
    index_b: Integer[np.ndarray, " pairs"],
    *,
    crowd: Bool[np.ndarray, " b"] | None = None,
) -> Float[np.ndarray, " pairs"]:
    """IoU of chosen pairs of RLE masks, of any number of images at once; exact.

    Args:
      masks_a, masks_b: RLEs.
      index_a, index_b: pair i is masks_a[index_a[i]] with masks_b[index_b[i]], of equal size.
      crowd: which b are crowd regions, where the union is replaced by the area of a; none by default.

    Returns:
      float64 values in [0, 1]; 0 for two masks without pixels.

    Raises:
      UsageError: the masks of a pair differ in size.
    """
    sizes_a, sizes_b = (np.array([rle["size"] for rle in masks], np.int64).reshape(-1, 2)
                        for masks in (masks_a, masks_b))  # fmt: skip
    if wrong := np.flatnonzero((sizes_a[index_a] != sizes_b[index_b]).any(axis=1)).tolist():
        pair = sizes_a[index_a[wrong[0]]].tolist(), sizes_b[index_b[wrong[0]]].tolist()
        raise UsageError(f"masks of one image must have one size [height, width], got {pair[0]} and {pair[1]}")
    a, b = _Intervals(masks_a), _Intervals(masks_b)
    stride = int(max(sizes_a.prod(axis=1).max(initial=0), sizes_b.prod(axis=1).max(initial=0))) + 1
    keys = b.owner * stride + b.start

    def pixels_before(place: Int[np.ndarray, " n"], mask: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """How many pixels of masks_b[mask] come before a place."""
        run = np.searchsorted(keys, mask * stride + place, side="right") - 1
        inside = np.minimum(place, b.stop[run]) - b.start[run] + b.before[run] - b.before[b.first[mask]]
        return np.where(run >= b.first[mask], inside, 0)

    shared = np.zeros(len(index_a), np.int64)
    told = np.flatnonzero((a.count[index_a] > 0) & (b.count[index_b] > 0))
    work = np.cumsum(a.count[index_a[told]])
    for pairs in np.split(told, np.searchsorted(work, np.arange(_QUERIES, work[-1] if len(work) else 0, _QUERIES))):
        count = a.count[index_a[pairs]]
        pair = np.repeat(np.arange(len(pairs)), count)
        run = np.arange(len(pair)) - np.repeat(np.cumsum(count) - count, count) + a.first[index_a[pairs]][pair]
        mask = index_b[pairs][pair]
        common = pixels_before(a.stop[run], mask) - pixels_before(a.start[run], mask)
        shared[pairs] = np.bincount(pair, common, len(pairs))
    whole = a.area[index_a] + b.area[index_b] - shared
    if crowd is not None:
        whole = np.where(np.asarray(crowd)[index_b], a.area[index_a], whole)
    return shared / np.maximum(whole, 1)


@jax.jit
def _dense_iou(
    masks_a: Bool[AnyArray, "a height width"], masks_b: Bool[AnyArray, "b height width"], crowd: Bool[AnyArray, " b"]
) -> Float[Array, "a b"]:
    a, b = (jnp.asarray(masks).reshape(masks.shape[0], -1).astype(jnp.float32) for masks in (masks_a, masks_b))
    shared = jnp.matmul(a, b.T, precision="highest")  # whole numbers: exact below 2^24 pixels
    area_a = a.sum(axis=1)[:, None]
    whole = jnp.where(crowd[None], area_a, area_a + b.sum(axis=1)[None] - shared)
    return shared / jnp.maximum(whole, 1)


def pairwise_mask_iou(
    masks_a: Sequence[Rle] | Bool[AnyArray, "a height width"],
    masks_b: Sequence[Rle] | Bool[AnyArray, "b height width"],
    *,
    crowd: Bool[AnyArray, " b"] | None = None,
) -> Float[AnyArray, "a b"]:
    """Intersection over union of every mask of `masks_a` with every mask of `masks_b`.

    Args:
      masks_a, masks_b: both dense [n, height, width] (may be traced; exact below 2^24 pixels), or both lists of RLEs.
      crowd: which b are crowd regions, where the union is replaced by the area of a; none by default.

    Returns:
      Values in [0, 1], float32 for dense masks, float64 for RLEs; 0 for two masks without pixels.

    Raises:
      UsageError: masks of different size.
    """
    if hasattr(masks_a, "ndim") and hasattr(masks_b, "ndim"):
        a, b = jnp.asarray(masks_a), jnp.asarray(masks_b)
        if a.ndim != 3 or b.ndim != 3 or a.shape[1:] != b.shape[1:]:
            raise UsageError(f"masks must be [n, height, width] of one size, got {list(a.shape)} and {list(b.shape)}")
        return _dense_iou(a, b, jnp.zeros(len(b), bool) if crowd is None else jnp.asarray(crowd))
    index_a, index_b = (index.ravel() for index in np.indices((len(masks_a), len(masks_b))))
    crowd = None if crowd is None else np.asarray(crowd)
    return mask_iou_of_pairs(masks_a, masks_b, index_a, index_b, crowd=crowd).reshape(len(masks_a), len(masks_b))  # pyright: ignore[reportArgumentType]
