"""Padded arrays from one dict for each image, the form that torchvision's detectors and torchmetrics use."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Shaped

from dl_core.boxes import AnyArray
from dl_core.errors import UsageError
from dl_core.masks import Rle, encode_rle, mask_area, mask_iou_of_pairs
from dl_core.metrics.detection import Detections, GroundTruth


class PackedDetections(NamedTuple):
    """The first arguments of `coco_evaluate`, in its order; `ious` is None unless masks are compared."""

    ground_truth: GroundTruth
    detections: Detections
    ious: Float[AnyArray, "images found objects"] | None


class _Rows:
    """The objects of all images one behind the other, and the places [images, objects] to which they are padded."""

    def __init__(self, kind: str, dicts: Sequence[Mapping[str, Any]]):
        self.kind, self.dicts = kind, dicts
        for image, one in enumerate(dicts):
            if "labels" not in one:
                raise UsageError(f"{kind}[{image}] has no 'labels'; it has {sorted(one)}")
        self.lengths = np.array([len(one["labels"]) for one in dicts], np.int64)
        self.first = np.cumsum(self.lengths) - self.lengths
        self.valid = np.arange(max(1, self.lengths.max(initial=0)))[None] < self.lengths[:, None]

    def lists(self, key: str) -> list[Any] | None:
        """The entries of all images under a key, or None if no image has it."""
        lacking = [image for image, one in enumerate(self.dicts) if one.get(key) is None]
        if len(lacking) == len(self.dicts):
            return None
        if lacking:
            raise UsageError(f"{self.kind}[{lacking[0]}] has no {key!r}, but others have; give it for all or none")
        entries = [one[key] for one in self.dicts]
        for image, (entry, length) in enumerate(zip(entries, self.lengths, strict=True)):
            if len(entry) != length:
                raise UsageError(f"{self.kind}[{image}] has {length} labels but {len(entry)} of {key!r}")
        return entries

    def pad(self, rows: Shaped[np.ndarray, "rows ..."]) -> Shaped[np.ndarray, "images objects ..."]:
        padded = np.zeros((*self.valid.shape, *rows.shape[1:]), rows.dtype)
        padded[self.valid] = rows
        return padded

    def optional(self, key: str, dtype: type, *shape: int) -> Shaped[np.ndarray, "images objects ..."] | None:
        entries = self.lists(key)
        if entries is None:
            return None
        arrays = [np.asarray(entry, dtype) for entry in entries]
        for image, array in enumerate(arrays):
            if len(array) and array.shape[1:] != shape:
                raise UsageError(f"{key!r} of {self.kind}[{image}] must have shape {[len(array), *shape]}, "
                                 f"got {list(array.shape)}")  # fmt: skip
        return self.pad(np.concatenate([array.reshape(-1, *shape) for array in arrays]))

    def required(self, key: str, dtype: type, *shape: int) -> Shaped[np.ndarray, "images objects ..."]:
        array = self.optional(key, dtype, *shape)
        if array is None:
            raise UsageError(f"{self.kind} have no {key!r}")
        return array

    def masks(self) -> list[Rle]:
        entries = self.lists("masks")
        if entries is None:
            raise UsageError(f"{self.kind} have no 'masks'")
        as_rle = lambda mask: mask if isinstance(mask, Mapping) else encode_rle(np.asarray(mask, bool))
        return [as_rle(mask) for entry in entries for mask in entry]


def pack_detections(
    targets: Sequence[Mapping[str, Any]], predictions: Sequence[Mapping[str, Any]], *, masks: bool = False
) -> PackedDetections:
    """Padded arrays from one dict for each image: `coco_evaluate(*pack_detections(targets, predictions), …)`.

    Args:
      targets: "boxes" [n, 4], "labels" [n] and, for all images or none, "iscrowd", "area" and "difficult" [n].
      predictions: "boxes" [n, 4], "scores" [n] and "labels" [n]. Other keys are passed over.
      masks: compare "masks" (dense bool [n, height, width], or n RLEs) in place of boxes, which may then be missing.
        The IoU is computed here, exactly, of pairs of one class; detections have the area of their mask, and so has the
        ground truth where no "area" is given.

    Returns:
      PackedDetections in NumPy arrays, floats as float64, boxes in the format in which they came.

    Raises:
      UsageError: no images, lists of different length, a missing key, or arrays of different length in one image.
    """
    if not len(targets) or len(targets) != len(predictions):
        raise UsageError("targets and predictions must have one dict for each image, "
                         f"got {len(targets)} and {len(predictions)}")  # fmt: skip
    true, found = _Rows("targets", targets), _Rows("predictions", predictions)
    true_area = true.optional("area", np.float64)
    true_boxes, found_boxes, found_area, true_masks, found_masks = None, None, None, [], []
    if masks:
        true_masks, found_masks = true.masks(), found.masks()
        true_boxes, found_boxes = (np.zeros((*rows.valid.shape, 4)) for rows in (true, found))
        found_area = found.pad(mask_area(found_masks).astype(np.float64))
        true_area = true.pad(mask_area(true_masks).astype(np.float64)) if true_area is None else true_area
    else:
        true_boxes, found_boxes = (rows.required("boxes", np.float64, 4) for rows in (true, found))
    ground_truth = GroundTruth(
        true_boxes,
        true.required("labels", np.int32),
        true.valid,
        true.optional("iscrowd", bool),
        true_area,
        true.optional("difficult", bool),
    )
    detections = Detections(
        found_boxes, found.required("scores", np.float64), found.required("labels", np.int32), found.valid, found_area
    )
    if not masks:
        return PackedDetections(ground_truth, detections, None)
    pairs = np.asarray(detections.labels)[:, :, None] == np.asarray(ground_truth.labels)[:, None]
    pairs &= found.valid[:, :, None] & true.valid[:, None]
    image, one, other = np.nonzero(pairs)
    crowd = None if ground_truth.crowd is None else np.asarray(ground_truth.crowd)[true.valid]
    ious = np.zeros(pairs.shape)
    index_a, index_b = found.first[image] + one, true.first[image] + other
    ious[pairs] = mask_iou_of_pairs(found_masks, true_masks, index_a, index_b, crowd=crowd)
    return PackedDetections(ground_truth, detections, ious)
