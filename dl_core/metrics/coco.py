"""COCO's evaluation of detections: average precision and recall over IoU thresholds, areas and numbers of detections.

Lin et al. (2014), "Microsoft COCO: Common Objects in Context", https://arxiv.org/abs/1405.0312, and
https://cocodataset.org/#detection-eval. The average precision is the mean of the precision at 101 recalls (the best
precision at that recall or a higher one), over IoU thresholds 0.50, 0.55, …, 0.95 and over classes; the average recall
is the recall of the most certain 1, 10 or 100 detections of a class in an image, over the same thresholds and classes.

Every rule is that of pycocotools, and so are the figures: see `coco_evaluate`. Outside jit, all of it is computed in
float64. The id of an annotation does not enter (in pycocotools an object with id 0 counts as never found).
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int8, Integer

from dl_core.boxes import pairwise_iou
from dl_core.errors import UsageError
from dl_core.metrics.accumulator import AnyArray, Metric
from dl_core.metrics.detection import (
    Detections,
    GroundTruth,
    check_detections,
    gather_images,
    is_traced,
    prepare_images,
)
from dl_core.metrics.detection_curves import curve, precision_at_recalls, rank_by_class
from dl_core.metrics.detection_matching import (
    MATCHED,
    MATCHED_IGNORED,
    greedy_match,
    group_by_size,
    rank_in_groups,
)

IOU_THRESHOLDS = tuple(np.linspace(0.5, 0.95, 10).tolist())
RECALLS = np.linspace(0.0, 1.0, 101)
# all, small, medium, large: least and greatest area in square pixels, both included
AREA_RANGES = ((0.0, 1e10), (0.0, 32.0**2), (32.0**2, 96.0**2), (96.0**2, 1e10))


class CocoFigures(NamedTuple):
    """COCO's twelve figures in [0, 1], and what they are means of. -1 where there is no object to find.

    ap, ap50, ap75: average precision over all IoU thresholds, at 0.5 and at 0.75 (-1 if that is not among them).
    ap_small, ap_medium, ap_large: of objects in the second, third and fourth area range.
    ar1, ar10, ar100: average recall at the first, second and last of `max_detections`.
    ar_small, ar_medium, ar_large: of objects in an area range, at the last of `max_detections`.
    ap_per_class: average precision [classes] over all IoU thresholds and areas.
    precision: [thresholds, recalls, classes, areas], at the last of `max_detections`.
    recall: [thresholds, classes, areas, max_detections].
    """

    ap: Float[AnyArray, ""]
    ap50: Float[AnyArray, ""]
    ap75: Float[AnyArray, ""]
    ap_small: Float[AnyArray, ""]
    ap_medium: Float[AnyArray, ""]
    ap_large: Float[AnyArray, ""]
    ar1: Float[AnyArray, ""]
    ar10: Float[AnyArray, ""]
    ar100: Float[AnyArray, ""]
    ar_small: Float[AnyArray, ""]
    ar_medium: Float[AnyArray, ""]
    ar_large: Float[AnyArray, ""]
    ap_per_class: Float[AnyArray, " classes"]
    precision: Float[AnyArray, "thresholds recalls classes areas"]
    recall: Float[AnyArray, "thresholds classes areas max_detections"]


class _Options(NamedTuple):
    """What is static in a compiled evaluation."""

    num_classes: int
    iou_thresholds: tuple[float, ...]
    max_detections: tuple[int, int, int]
    area_ranges: tuple[tuple[float, float], ...]


def coco_evaluate(
    ground_truth: GroundTruth,
    detections: Detections,
    ious: Float[AnyArray, "images found objects"] | None = None,
    *,
    num_classes: int,
    classes: Sequence[int] | None = None,
    iou_thresholds: Sequence[float | int] = IOU_THRESHOLDS,
    max_detections: Sequence[int] = (1, 10, 100),
    area_ranges: Sequence[Sequence[float | int]] = AREA_RANGES,
    box_format: str = "xyxy",
    image_ids: Integer[AnyArray, " images"] | None = None,
    where: Bool[AnyArray, " images"] | None = None,
) -> CocoFigures:
    """COCO's twelve figures and their tables, equal to those of pycocotools.

        figures = coco_evaluate(GroundTruth(true_boxes, true_labels, true_valid),
                                Detections(boxes, scores, labels, valid), num_classes=80)

    The rules: detections take objects of their class in falling order of score, each the free one with the highest IoU;
    objects that are crowd regions or outside the area range are ignored, and so are detections matched to them and
    unmatched detections outside the area range; of each class and image the best `max_detections` count. Detections of
    equal score keep the order of the arrays; across images, of `image_ids`. Labels set to 0 throughout (and num_classes
    1) give the evaluation that does not look at classes.

    Outside jit the computation is float64, whatever the inputs are, and groups of detections are packed by size. Inside
    jit it is in the precision of the context, by default float32: an IoU within 1e-7 of a threshold may then fall on
    the other side, and bad values, which cannot be seen there, give meaningless figures.

    Args:
      ground_truth: the objects; see GroundTruth.
      detections: what was found; see Detections.
      ious: what to compare in place of the IoU of boxes, in [0, 1]: the IoU of masks, from
        `dl_core.masks.pairwise_mask_iou` or `pack_detections(…, masks=True)`, with the rule for crowds applied. Areas
        must then be given for both sides, and boxes are not looked at.
      num_classes: labels lie in [0, num_classes).
      classes: those that are evaluated; the others become -1 in the tables and do not enter means. All by default.
      iou_thresholds: in [0, 1].
      max_detections: three rising numbers of detections of a class in an image.
      area_ranges: four pairs (least, greatest) in square pixels, both included: all, small, medium, large.
      box_format: "xyxy", "xywh" or "cxcywh". With "xywh", as in COCO's files, even the rounding is that of pycocotools.
      image_ids: different numbers by which images are put in order; the order of the arrays by default.
      where: the images that count; all by default.

    Returns:
      CocoFigures.

    Raises:
      UsageError: shapes that do not belong together, values that are not finite, boxes with negative sides (are they
        xywh?), labels out of range, image ids that occur twice, or options out of range.
    """
    check_detections(ground_truth, detections, num_classes=num_classes, box_format=box_format, image_ids=image_ids,
                     where=where)  # fmt: skip
    options = _checked_options(num_classes, iou_thresholds, max_detections, area_ranges)
    _check_ious(ious, ground_truth, detections)
    arrays = (ground_truth, detections, ious, image_ids, where, _counted_classes(num_classes, classes))
    if is_traced(arrays):
        truth, found, ious = prepare_images(*arrays, box_format=box_format)
        rank, _ = _ranks(found, num_classes)
        matches = _match_images(truth, found, ious, rank, options)
        return _figures(truth, found, rank, matches, options)
    with jax.enable_x64(True):
        truth, found, ious = prepare_images(*arrays, box_format=box_format)
        rank, order = _ranks(found, num_classes)
        on_host = lambda tree: jax.tree.map(np.asarray, tree)
        matches = _match_groups(on_host(truth), on_host(found), on_host(ious), *on_host((rank, order)), options=options)
        return on_host(_figures(truth, found, rank, jnp.asarray(matches), options))


def _checked_options(
    num_classes: int,
    iou_thresholds: Sequence[float | int],
    max_detections: Sequence[int],
    area_ranges: Sequence[Sequence[float | int]],
) -> _Options:
    if not len(iou_thresholds) or not all(0 <= threshold <= 1 for threshold in iou_thresholds):
        raise UsageError(f"iou_thresholds must be one or more numbers in [0, 1], got {list(iou_thresholds)}")
    most = tuple(int(number) for number in max_detections)
    if len(most) != 3 or most[0] < 1 or list(most) != sorted(set(most)):
        raise UsageError(f"max_detections must be three rising numbers ≥ 1, such as (1, 10, 100), got {list(most)}")
    ranges = tuple((float(least), float(greatest)) for least, greatest in area_ranges)
    if len(ranges) != 4 or not all(least <= greatest for least, greatest in ranges):
        raise UsageError("area_ranges must be four pairs (least, greatest) for all, small, medium and large objects, "
                         f"got {list(area_ranges)}")  # fmt: skip
    return _Options(num_classes, tuple(float(threshold) for threshold in iou_thresholds), most, ranges)


def _check_ious(ious: Any, ground_truth: GroundTruth, detections: Detections) -> None:
    if ious is None:
        return
    if ground_truth.area is None or detections.area is None:
        raise UsageError("with ious, the area of ground truth and detections must be given, too: that of their masks")
    shape = (*np.shape(detections.valid), np.shape(ground_truth.valid)[1])
    if np.shape(ious) != shape:
        raise UsageError(f"ious must be [images, found, objects], here {list(shape)}, got {list(np.shape(ious))}")
    if not is_traced(ious, ground_truth, detections):
        pairs = np.asarray(detections.valid)[:, :, None] & np.asarray(ground_truth.valid)[:, None]
        if not ((np.asarray(ious) >= 0) & (np.asarray(ious) <= 1) | ~pairs).all():
            raise UsageError("ious must lie in [0, 1], got values outside or NaN")


def _counted_classes(num_classes: int, classes: Sequence[int] | None) -> Bool[np.ndarray, " classes"]:
    if classes is None:
        return np.ones(num_classes, bool)
    if not len(classes) or not all(0 <= label < num_classes for label in classes):
        raise UsageError(f"classes must be one or more labels in [0, {num_classes}), got {list(classes)}")
    return np.isin(np.arange(num_classes), np.asarray(classes))


@functools.partial(jax.jit, static_argnames="num_classes")
def _ranks(found: Any, num_classes: int) -> tuple[Integer[Array, "images found"], Integer[Array, " rows"]]:
    """The place of each detection among those of its class and image, and all rows by image, class and place."""
    images = found.valid.shape[0]
    groups = jnp.arange(images)[:, None] * num_classes + found.labels
    groups = jnp.where(found.valid, groups, images * num_classes)
    order, rank = rank_in_groups(groups.ravel(), jnp.where(found.valid, found.scores, 0).ravel())
    return rank.reshape(found.valid.shape), order


@functools.partial(jax.jit, static_argnames="options")
def _match(
    found_boxes: Any, true_boxes: Any, ious: Any, possible: Any, crowd: Any, area: Any, options: _Options
) -> Int8[Array, "groups found thresholds areas"]:
    if ious is None:
        ious = pairwise_iou(found_boxes, true_boxes, crowd=crowd, box_format="xywh")
    ignored = crowd[None] | _outside(area, options)
    return greedy_match(ious, possible, crowd, ignored, jnp.asarray(options.iou_thresholds))


def _outside(area: Float[AnyArray, "*shape"], options: _Options) -> Bool[Array, "areas *shape"]:
    ranges = jnp.asarray(options.area_ranges).reshape(-1, 2, *[1] * area.ndim)
    return jnp.asarray((area[None] < ranges[:, 0]) | (area[None] > ranges[:, 1]))


def _match_images(
    truth: Any, found: Any, ious: Any, rank: Integer[Array, "images found"], options: _Options
) -> Int8[Array, "rows thresholds areas"]:
    """Each image as one group: static shapes, more work."""
    order = jnp.argsort(jnp.where(found.valid, rank, rank.size), axis=1, stable=True)
    in_order = lambda array: jnp.take_along_axis(array, order.reshape(*order.shape, *[1] * (array.ndim - 2)), axis=1)
    kept = in_order(found.valid & (rank < options.max_detections[-1]))
    possible = kept[:, :, None] & truth.valid[:, None] & (in_order(found.labels)[:, :, None] == truth.labels[:, None])
    matches = _match(in_order(found.boxes), truth.boxes, None if ious is None else in_order(ious), possible,
                     truth.crowd, truth.area, options)  # fmt: skip
    back = jnp.argsort(order, axis=1)[:, :, None, None]
    return jnp.take_along_axis(matches, back, axis=1).reshape(-1, *matches.shape[2:])


def _match_groups(
    truth: Any, found: Any, ious: Any, rank: Any, order: Any, *, options: _Options
) -> Int8[np.ndarray, "rows thresholds areas"]:
    """Each class of an image as one group, those of similar size together: values decide about shapes."""
    (images, num_found), num_true = found.valid.shape, truth.valid.shape[1]
    matches = np.zeros((images * num_found, len(options.iou_thresholds), len(options.area_ranges)), np.int8)
    group_of = lambda part: (np.arange(images)[:, None] * options.num_classes + part.labels).ravel()
    found_groups, true_groups = group_of(found), group_of(truth)
    found_rows = order[(found.valid & (rank < options.max_detections[-1])).ravel()[order]]
    true_rows = np.flatnonzero(truth.valid)
    true_rows = true_rows[np.argsort(true_groups[true_rows], kind="stable")]
    flat = lambda array: array.reshape(-1, *array.shape[2:])
    groups = group_by_size(found_rows, found_groups[found_rows], true_rows, true_groups[true_rows])
    pending = []
    for a, b in groups:
        shared = None if ious is None else ious[a[:, :1, None] // num_found, a[:, :, None] % num_found,
                                                b[:, None] % num_true]  # fmt: skip
        possible = (a >= 0)[:, :, None] & (b >= 0)[:, None]
        boxes = (None, None) if ious is not None else (flat(found.boxes)[a], flat(truth.boxes)[b])
        pending.append((a, _match(*boxes, shared, possible, flat(truth.crowd)[b], flat(truth.area)[b], options)))
    for a, result in pending:
        matches[a[a >= 0]] = np.asarray(result)[a >= 0]
    return matches


@functools.partial(jax.jit, static_argnames="options")
def _figures(
    truth: Any,
    found: Any,
    rank: Integer[Array, "images found"],
    matches: Int8[Array, "rows thresholds areas"],
    options: _Options,
) -> CocoFigures:
    num_classes, most = options.num_classes, jnp.asarray(options.max_detections)
    labels = jnp.where(truth.valid, truth.labels, num_classes)
    to_find = ~(truth.crowd[None] | _outside(truth.area, options))  # [areas, images, objects]
    add = lambda flags: jnp.zeros(num_classes + 1, jnp.int32).at[labels].add(flags)[:num_classes]
    positives = jax.vmap(add)(to_find.astype(jnp.int32))  # [areas, classes]

    kept = (found.valid & (rank < most[-1])).ravel()
    ranked = rank_by_class(found.labels.ravel(), found.scores.ravel(), kept, num_classes)
    fate = matches[ranked.order].transpose(1, 2, 0)  # [thresholds, areas, rows]
    outside = _outside(found.area.ravel()[ranked.order], options)
    ignored = (fate == MATCHED_IGNORED) | ((fate != MATCHED) & outside[None])
    within = jnp.searchsorted(most, rank.ravel()[ranked.order], side="right")  # of which numbers of detections it is

    def of_one(
        hits: Bool[Array, " rows"], ignored: Bool[Array, " rows"], positives: Integer[Array, " classes"]
    ) -> tuple[Float[Array, "classes recalls"], Float[Array, "classes max_detections"]]:
        precision = precision_at_recalls(ranked, curve(ranked, hits, ~hits & ~ignored), positives, RECALLS)
        table = jnp.zeros((num_classes + 1, len(options.max_detections)), jnp.int32)
        found = table.at[ranked.labels, within].add(hits.astype(jnp.int32))[:num_classes].cumsum(axis=1)
        none = positives[:, None] == 0
        recall = found.astype(precision.dtype) / jnp.maximum(positives, 1)[:, None]
        return jnp.where(none, -1, precision), jnp.where(none, -1, recall)

    of_areas = lambda flags: jax.vmap(of_one)(flags[0], flags[1], positives)
    precision, recall = jax.lax.map(of_areas, (fate == MATCHED, ignored))  # in turns: then it fits the cache
    precision = precision.transpose(0, 3, 2, 1)  # [thresholds, recalls, classes, areas]
    recall = recall.transpose(0, 2, 1, 3)
    at = lambda threshold: np.flatnonzero(np.asarray(options.iou_thresholds) == threshold).tolist()
    of_threshold = lambda one: _mean(precision[at(one), ..., 0]) if at(one) else -jnp.ones((), precision.dtype)
    return CocoFigures(
        ap=_mean(precision[..., 0]),
        ap50=of_threshold(0.5),
        ap75=of_threshold(0.75),
        ap_small=_mean(precision[..., 1]),
        ap_medium=_mean(precision[..., 2]),
        ap_large=_mean(precision[..., 3]),
        ar1=_mean(recall[:, :, 0, 0]),
        ar10=_mean(recall[:, :, 0, 1]),
        ar100=_mean(recall[:, :, 0, 2]),
        ar_small=_mean(recall[:, :, 1, 2]),
        ar_medium=_mean(recall[:, :, 2, 2]),
        ar_large=_mean(recall[:, :, 3, 2]),
        ap_per_class=jnp.where(positives[0] > 0, precision[..., 0].mean(axis=(0, 1)), -1),
        precision=precision,
        recall=recall,
    )


def _mean(values: Float[Array, "..."]) -> Float[Array, ""]:
    """Over the classes that have objects to find; -1 if none has."""
    defined = values > -1
    return jnp.where(defined.any(), jnp.where(defined, values, 0).sum() / jnp.maximum(defined.sum(), 1), -1)


def coco_metric(
    capacity: int,
    ground_truth: GroundTruth,
    detections: Detections,
    ious: Float[AnyArray, "images found objects"] | None = None,
    **options: Any,
) -> Metric:
    """The accumulator of `coco_evaluate`: images are kept as they are (`gathering_metric`) until it is computed.

    Images may come in any order and grouping; their ids put them in order. Floats are kept in the precision of the
    context in which the accumulator is updated: float32 unless x64 is enabled.

    Args:
      capacity: most images in all.
      ground_truth, detections, ious: a batch as `update` will be given it, for shapes, dtypes and which fields are
        None; its number of images and its values do not matter.
      options: those of `coco_evaluate`, num_classes among them.

    Returns:
      A Metric; `update(state, image_ids int [batch], ground_truth, detections, ious=None, where=None)`; `compute` gives
      CocoFigures.

    Raises:
      UsageError: capacity < 1; from `update`, a batch of other shapes; from `compute`, as `coco_evaluate` does.
    """
    return gather_images(functools.partial(coco_evaluate, **options), capacity, ground_truth, detections, ious)
