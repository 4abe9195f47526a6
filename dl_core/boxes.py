"""Boxes: formats, areas and how far boxes overlap, for every pair at once.

A box is four numbers in pixels, in one of three formats: "xyxy" [x_min, y_min, x_max, y_max] (wherever nothing else is
said), "xywh" [x_min, y_min, width, height] (COCO's files), "cxcywh" [x_centre, y_centre, width, height] (the heads of
many detectors). Coordinates are of the continuous plane: a box from 2 to 5 is 3 pixels wide. Pascal VOC's boxes name
the last pixel that belongs to them; add 1 to their x_max and y_max.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Num

from dl_core.errors import unknown_name

AnyArray = Array | np.ndarray
BOX_FORMATS = ("xyxy", "xywh", "cxcywh")


class _Sides(NamedTuple):
    """Lower and upper corner and size, each [..., 2] in the order x, y."""

    low: Float[Array, "*batch 2"]
    high: Float[Array, "*batch 2"]
    size: Float[Array, "*batch 2"]

    @property
    def area(self) -> Float[Array, "*batch"]:
        return _product(self.size)


def _product(sides: Float[Array, "*batch 2"]) -> Float[Array, "*batch"]:
    """Width times height, rounded before anything is added to it.

    The absolute value (sides are not negative) keeps the compiler from fusing the product with a later sum, which would
    round differently from one processor to the next and move an IoU that lies exactly on a threshold.
    """
    return jnp.abs(sides[..., 0] * sides[..., 1])


def _sides(boxes: Num[AnyArray, "*batch 4"], box_format: str) -> _Sides:
    boxes = jnp.asarray(boxes)
    if not jnp.issubdtype(boxes.dtype, jnp.floating):
        boxes = boxes.astype(jnp.result_type(float))
    first, second = boxes[..., :2], boxes[..., 2:]
    if box_format == "xyxy":
        return _Sides(first, second, second - first)
    if box_format == "xywh":
        return _Sides(first, first + second, second)
    if box_format == "cxcywh":
        return _Sides(first - second / 2, first + second / 2, second)
    raise unknown_name("box format", box_format, BOX_FORMATS)


def convert_boxes(boxes: Num[AnyArray, "*batch 4"], source: str, target: str) -> Float[Array, "*batch 4"]:
    """The same boxes in another format.

    Args:
      boxes: in the format `source`.
      source, target: "xyxy", "xywh" or "cxcywh".

    Returns:
      Boxes in the format `target`.

    Raises:
      UsageError: an unknown format.
    """
    sides = _sides(boxes, source)
    if target not in BOX_FORMATS:
        raise unknown_name("box format", target, BOX_FORMATS)
    if source == target:  # nothing is rounded
        return jnp.asarray(boxes, sides.low.dtype)
    first = sides.low + sides.size / 2 if target == "cxcywh" else sides.low
    return jnp.concatenate([first, sides.high if target == "xyxy" else sides.size], axis=-1)


def box_area(boxes: Num[AnyArray, "*batch 4"], *, box_format: str = "xyxy") -> Float[Array, "*batch"]:
    """Width times height, in square pixels.

    Args:
      boxes: with sides that are not negative.
      box_format: "xyxy", "xywh" or "cxcywh".

    Returns:
      One area for each box.

    Raises:
      UsageError: an unknown format.
    """
    return _sides(boxes, box_format).area


def _intersection(a: _Sides, b: _Sides) -> Float[Array, "*batch a b"]:
    """The area that each a [..., a] shares with each b [..., b]."""
    high = jnp.minimum(a.high[..., :, None, :], b.high[..., None, :, :])
    low = jnp.maximum(a.low[..., :, None, :], b.low[..., None, :, :])
    return _product(jnp.maximum(high - low, 0))


def _ratio(part: Float[Array, "..."], whole: Float[Array, "..."]) -> Float[Array, "..."]:
    return part / jnp.where(whole > 0, whole, 1)


@functools.partial(jax.jit, static_argnames="box_format")
def pairwise_iou(
    boxes_a: Num[AnyArray, "*batch a 4"],
    boxes_b: Num[AnyArray, "*batch b 4"],
    *,
    crowd: Bool[AnyArray, "*batch b"] | None = None,
    box_format: str = "xyxy",
) -> Float[Array, "*batch a b"]:
    """Intersection over union of every box of `boxes_a` with every box of `boxes_b`.

    Where b is a crowd region, the union is replaced by the area of a: |a ∩ b| / |a|, so that a box inside the crowd
    has 1 (COCO's rule for regions that stand for many objects).

    Args:
      boxes_a, boxes_b: with sides that are not negative.
      crowd: which b are crowd regions; none by default.
      box_format: "xyxy", "xywh" or "cxcywh", of both. Corners and sides of "xywh" are computed as pycocotools does.

    Returns:
      Values in [0, 1]; boxes without a common area have 0, two equal boxes of area zero, too.

    Raises:
      UsageError: an unknown format.
    """
    a, b = _sides(boxes_a, box_format), _sides(boxes_b, box_format)
    shared, area_a = _intersection(a, b), a.area[..., :, None]
    whole = area_a + b.area[..., None, :] - shared
    if crowd is not None:
        whole = jnp.where(jnp.asarray(crowd)[..., None, :], area_a, whole)
    return _ratio(shared, whole)


@functools.partial(jax.jit, static_argnames="box_format")
def pairwise_generalized_iou(
    boxes_a: Num[AnyArray, "*batch a 4"], boxes_b: Num[AnyArray, "*batch b 4"], *, box_format: str = "xyxy"
) -> Float[Array, "*batch a b"]:
    """Generalised IoU of every pair: IoU - (|C| - |a ∪ b|) / |C|, with C the smallest box around both.

    Unlike the IoU it also falls with distance where boxes do not meet (Rezatofighi et al. 2019, "Generalized
    Intersection over Union", https://arxiv.org/abs/1902.09630, algorithm 1).

    Args:
      boxes_a, boxes_b: with sides that are not negative.
      box_format: "xyxy", "xywh" or "cxcywh", of both.

    Returns:
      Values in [-1, 1]; -1 only for boxes without an area.

    Raises:
      UsageError: an unknown format.
    """
    a, b = _sides(boxes_a, box_format), _sides(boxes_b, box_format)
    shared = _intersection(a, b)
    union = a.area[..., :, None] + b.area[..., None, :] - shared
    high = jnp.maximum(a.high[..., :, None, :], b.high[..., None, :, :])
    hull = _product(high - jnp.minimum(a.low[..., :, None, :], b.low[..., None, :, :]))
    return _ratio(shared, union) - _ratio(hull - union, hull)
