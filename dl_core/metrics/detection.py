"""What detection metrics are given: padded arrays of ground truth and of detections, and the checks of both.

Images differ in their numbers of objects, so arrays are padded to a static number for each image and carry a mask
`valid`; what padded places hold does not matter. `detection_packing.pack_detections` makes such arrays from lists.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Integer, Num

from dl_core.boxes import BOX_FORMATS, box_area, convert_boxes
from dl_core.errors import UsageError, unknown_name
from dl_core.metrics.accumulator import AnyArray, Metric, gathering_metric
from dl_core.metrics.checks import check_classes, check_finite


class GroundTruth(NamedTuple):
    """What is in the images. Arrays are padded to one number of objects for each image.

    boxes: in pixels, [x_min, y_min, x_max, y_max] unless the metric is told otherwise.
    labels: classes, from 0.
    valid: which places hold an object.
    crowd: regions that stand for many objects: COCO neither rewards nor punishes what is found there; none by default.
    area: in square pixels, by which COCO tells small from large: of the mask in COCO's files, of the box by default.
    difficult: objects that Pascal VOC neither rewards nor punishes; none by default.
    """

    boxes: Num[AnyArray, "images objects 4"]
    labels: Integer[AnyArray, "images objects"]
    valid: Bool[AnyArray, "images objects"]
    crowd: Bool[AnyArray, "images objects"] | None = None
    area: Num[AnyArray, "images objects"] | None = None
    difficult: Bool[AnyArray, "images objects"] | None = None


class Detections(NamedTuple):
    """What was found. Arrays are padded to one number of detections for each image.

    boxes, labels, valid: as in GroundTruth.
    scores: larger is surer; any scale.
    area: in square pixels; of the boxes by default.
    """

    boxes: Num[AnyArray, "images found 4"]
    scores: Float[AnyArray, "images found"]
    labels: Integer[AnyArray, "images found"]
    valid: Bool[AnyArray, "images found"]
    area: Num[AnyArray, "images found"] | None = None


def is_traced(*trees: Any) -> bool:
    """Whether any array of the pytrees is a tracer: inside jit, vmap or grad, where values cannot be looked at."""
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(trees))


@functools.partial(jax.jit, static_argnames="box_format")
def prepare_images(
    ground_truth: GroundTruth,
    detections: Detections,
    ious: Float[AnyArray, "images found objects"] | None,
    image_ids: Integer[AnyArray, " images"] | None,
    where: Bool[AnyArray, " images"] | None,
    classes: Bool[AnyArray, " classes"],
    *,
    box_format: str,
) -> tuple[Any, Any, Any]:
    """GroundTruth, Detections and IoU without None: boxes as "xywh", images in the order of their ids.

    pycocotools computes with a corner and sides, and so must whoever wants its last bit. Floats are in the precision of
    the context; what does not count (images outside `where`, classes outside `classes`) is no longer valid. Arrays
    without any place for an object get one.
    """
    truth, found = _with_room(ground_truth), _with_room(detections)
    real = lambda array: jnp.asarray(array, jnp.result_type(float))
    labels = lambda part: jnp.asarray(part.labels, jnp.int32)
    boxes = lambda part: convert_boxes(real(part.boxes), box_format, "xywh")
    area = lambda part: box_area(boxes(part), box_format="xywh") if part.area is None else real(part.area)
    flags = lambda array: jnp.zeros(truth.valid.shape, bool) if array is None else array

    def counted(part: GroundTruth | Detections) -> Bool[Array, "images objects"]:
        known = jnp.asarray(classes)[jnp.clip(part.labels, 0, len(classes) - 1)]
        return jnp.asarray(part.valid) & known & (True if where is None else jnp.asarray(where)[:, None])

    arrays = (
        GroundTruth(
            boxes(truth), labels(truth), counted(truth), flags(truth.crowd), area(truth), flags(truth.difficult)
        ),
        Detections(boxes(found), real(found.scores), labels(found), counted(found), area(found)),
        None if ious is None or not np.size(ious) else real(ious),  # without pairs it does not matter
    )
    if image_ids is None:
        return arrays
    order = jnp.argsort(jnp.asarray(image_ids), stable=True)
    return jax.tree.map(lambda array: array[order], arrays)


def _with_room(part: Any) -> Any:
    part = jax.tree.map(jnp.asarray, part)
    if part.valid.shape[1]:
        return part
    return jax.tree.map(lambda array: jnp.zeros((array.shape[0], 1, *array.shape[2:]), array.dtype), part)


def check_detections(
    ground_truth: GroundTruth,
    detections: Detections,
    *,
    num_classes: int,
    box_format: str = "xyxy",
    image_ids: Integer[AnyArray, " images"] | None = None,
    where: Bool[AnyArray, " images"] | None = None,
) -> None:
    """Refuses arrays whose shapes do not belong together and, where they can be seen, values that make no sense.

    Args:
      ground_truth, detections: as in `coco_evaluate`.
      num_classes: labels lie in [0, num_classes).
      box_format: "xyxy", "xywh" or "cxcywh".
      image_ids: different numbers of the images.
      where: the images that count.

    Raises:
      UsageError: saying which array, and what is wrong with it.
    """
    if num_classes < 1:
        raise UsageError(f"num_classes must be at least 1, got {num_classes}")
    if box_format not in BOX_FORMATS:
        raise unknown_name("box format", box_format, BOX_FORMATS)
    images = np.shape(ground_truth.valid)[:1]
    if images in ((), (0,)):
        raise UsageError(f"valid must be [images, objects] with at least one image, got {list(images)}")
    if where is not None and np.shape(where) != images:
        raise UsageError(f"where must have one value for each of {images[0]} images, got shape {list(np.shape(where))}")
    _check_image_ids(image_ids, images, where)
    for kind, part in (("ground truth", ground_truth), ("detections", detections)):
        _check_shapes(kind, part, images)
        if is_traced(part, where):
            continue
        kept = np.asarray(part.valid) & (True if where is None else np.asarray(where)[:, None])
        check_classes(f"labels of the {kind}", np.asarray(part.labels)[kept], num_classes)
        _check_boxes(kind, np.asarray(part.boxes)[kept], box_format)
        if isinstance(part, Detections):
            check_finite("scores", np.asarray(part.scores)[kept])
        if part.area is not None:
            check_finite(f"area of the {kind}", np.asarray(part.area)[kept])


def _check_image_ids(image_ids: Any, images: tuple[int, ...], where: Any) -> None:
    if image_ids is None:
        return
    if np.shape(image_ids) != images:
        raise UsageError(f"image_ids must have one number for each of {images[0]} images, "
                         f"got shape {list(np.shape(image_ids))}")  # fmt: skip
    if not is_traced(image_ids, where):
        kept = np.asarray(image_ids) if where is None else np.asarray(image_ids)[np.asarray(where)]
        ids, times = np.unique(kept, return_counts=True)
        if len(ids) < len(kept):
            raise UsageError(f"image_ids must differ, got {ids[times > 1].tolist()[:5]} more than once; mask repeated "
                             "images of a padded batch out with where=")  # fmt: skip


def _check_shapes(kind: str, part: GroundTruth | Detections, images: tuple[int, ...]) -> None:
    shape = np.shape(part.valid)
    if len(shape) != 2 or shape[:1] != images:
        raise UsageError(f"valid of the {kind} must be [images, objects] with {list(images)} images, as in the ground "
                         f"truth, got {list(shape)}")  # fmt: skip
    for name, array in part._asdict().items():
        expected = (*shape, 4) if name == "boxes" else shape
        if array is not None and np.shape(array) != expected:
            raise UsageError(f"{name} of the {kind} must have shape {list(expected)}, as valid says, "
                             f"got {list(np.shape(array))}")  # fmt: skip
        if name in ("valid", "crowd", "difficult") and array is not None and array.dtype != bool:
            raise UsageError(f"{name} of the {kind} must be booleans, got {array.dtype}")


def _check_boxes(kind: str, boxes: Num[np.ndarray, "n 4"], box_format: str) -> None:
    check_finite(f"boxes of the {kind}", boxes)
    sides = boxes[:, 2:] - boxes[:, :2] if box_format == "xyxy" else boxes[:, 2:]
    if wrong := np.flatnonzero((sides < 0).any(axis=1)).tolist():
        hint = "; are they [x, y, width, height]? Then give box_format='xywh'" if box_format == "xyxy" else ""
        raise UsageError(f"boxes of the {kind} must have sides ≥ 0 in the format {box_format!r}, got {len(wrong)} that "
                         f"do not, first {boxes[wrong[0]].tolist()}{hint}")  # fmt: skip


def gather_images(
    evaluate: Callable[..., Any],
    capacity: int,
    ground_truth: GroundTruth,
    detections: Detections,
    ious: Float[AnyArray, "images found objects"] | None = None,
) -> Metric:
    """The accumulator of a detection metric: whole images are kept as rows until it is computed.

    Args:
      evaluate: (ground_truth, detections, ious, image_ids=, where=) -> the metric.
      capacity: most images in all.
      ground_truth, detections, ious: a batch, for shapes, dtypes and which fields are None.

    Returns:
      A Metric; `update(state, image_ids, ground_truth, detections, ious=None, where=None)`.

    Raises:
      UsageError: capacity < 1; from `update`, a batch of other shapes.
    """
    row = lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf)[1:], jax.dtypes.canonicalize_dtype(leaf.dtype))
    example = jax.tree.map(row, (ground_truth, detections, ious))
    rows, structure = jax.tree.flatten(example)

    def function(image_ids: AnyArray, *leaves: AnyArray, where: AnyArray) -> Any:
        return evaluate(*jax.tree.unflatten(structure, leaves), image_ids=image_ids, where=where)

    gathering = gathering_metric(function, capacity, jax.ShapeDtypeStruct((), jnp.int32), *rows)

    def update(
        state: Any,
        image_ids: Integer[AnyArray, " batch"],
        ground_truth: GroundTruth,
        detections: Detections,
        ious: Float[AnyArray, "batch found objects"] | None = None,
        *,
        where: Bool[AnyArray, " batch"] | None = None,
    ) -> Any:
        batch = (ground_truth, detections, ious)
        leaves, given = jax.tree.flatten(batch)
        if given != structure or any(np.shape(leaf)[1:] != row.shape for leaf, row in zip(leaves, rows, strict=True)):
            shapes = lambda tree: jax.tree.map(lambda leaf: list(leaf.shape), tree)
            raise UsageError(f"a batch must have the fields and padded sizes of the one the metric was made with: for "
                             f"each image {shapes(example)}, got {shapes(jax.tree.map(row, batch))}")  # fmt: skip
        return gathering.update(state, image_ids, *leaves, where=where)

    return gathering._replace(update=update)
