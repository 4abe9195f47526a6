"""COCO's json files, annotations and results, as the padded arrays that detection metrics take.

Images come in the order of their ids and classes in the order of theirs, numbered from 0 without gaps; the objects of
an image keep the order of the file, by which ties are broken. Format: https://cocodataset.org/#format-data.
"""

import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Int

from dl_core.boxes import convert_boxes
from dl_core.errors import UsageError
from dl_core.masks import Rle, polygons_to_rle
from dl_core.metrics.detection_packing import PackedDetections, pack_detections

Source = str | os.PathLike[str]
_KEYS = {"boxes": "bbox", "scores": "score"}


class CocoData(NamedTuple):
    """Padded arrays and what their indices stand for.

    packed: (ground_truth, detections, ious), the first arguments of `coco_evaluate`.
    image_ids: [images], rising, as in the file.
    class_ids: [classes], rising, as in the file: label i is class_ids[i].
    class_names: in the same order.
    """

    packed: PackedDetections
    image_ids: Int[np.ndarray, " images"]
    class_ids: Int[np.ndarray, " classes"]
    class_names: tuple[str, ...]


def load_coco(
    annotations: Source | Mapping[str, Any],
    results: Source | Sequence[Mapping[str, Any]] = (),
    *,
    masks: bool = False,
    box_format: str = "xyxy",
) -> CocoData:
    """Ground truth and results from COCO's json files.

        data = load_coco("instances_val2017.json", "results.json", box_format="xywh")
        figures = coco_evaluate(*data.packed, num_classes=len(data.class_ids), box_format="xywh")

    Args:
      annotations: a file, or its content: "images", "categories" and "annotations" ("bbox", "category_id", "image_id";
        "area" is that of the box if it is missing, "iscrowd" 0). Annotation ids do not matter.
      results: a file, or its content: a list of "image_id", "category_id", "score" and "bbox" (or "segmentation").
      masks: compare "segmentation" (polygons or RLE) in place of "bbox"; see `pack_detections`.
      box_format: of the arrays. The files have "xywh", which is passed on unrounded; "xyxy" adds.

    Returns:
      CocoData.

    Raises:
      UsageError: no such file, no json, missing keys, an image or category that the annotations do not list.
    """
    content = _read(annotations, dict)
    if missing := {"images", "categories", "annotations"} - set(content):
        raise UsageError(f"COCO annotations must have 'images', 'categories' and 'annotations'; {missing} is missing")
    images = {image["id"]: image for image in content["images"]}
    names = {category["id"]: str(category.get("name", category["id"])) for category in content["categories"]}
    image_ids, class_ids = sorted(images), sorted(names)
    if not image_ids or not class_ids:
        raise UsageError("COCO annotations must list at least one image and one category")
    place = {image_id: index for index, image_id in enumerate(image_ids)}
    labels = {class_id: label for label, class_id in enumerate(class_ids)}

    def by_image(kind: str, entries: Sequence[Mapping[str, Any]], keys: tuple[str, ...]) -> list[dict[str, Any]]:
        objects = [{"labels": [], **{key: [] for key in keys}} for _ in image_ids]
        for index, entry in enumerate(entries):
            try:
                one = objects[place[entry["image_id"]]]
                one["labels"].append(labels[entry["category_id"]])
                for key in keys:
                    one[key].append(_value(key, entry, images[entry["image_id"]]))
            except KeyError as error:
                raise UsageError(f"{kind}[{index}] lacks a key, or its image or category is not listed: {error}; it "
                                 f"has {sorted(entry)}, image {entry.get('image_id')}, "
                                 f"category {entry.get('category_id')}") from None  # fmt: skip
        return objects

    shape = "masks" if masks else "boxes"
    packed = pack_detections(
        by_image("annotations", content["annotations"], (shape, "area", "iscrowd")),
        by_image("results", _read(results, list), (shape, "scores")),
        masks=masks,
    )
    with jax.enable_x64(True):
        convert = lambda boxes: np.asarray(convert_boxes(boxes, "xywh", box_format))
        packed = packed._replace(
            ground_truth=packed.ground_truth._replace(boxes=convert(packed.ground_truth.boxes)),
            detections=packed.detections._replace(boxes=convert(packed.detections.boxes)),
        )
    class_names = tuple(names[class_id] for class_id in class_ids)
    return CocoData(packed, np.array(image_ids, np.int64), np.array(class_ids, np.int64), class_names)


def _value(key: str, entry: Mapping[str, Any], image: Mapping[str, Any]) -> Any:
    """What a column of an image's objects holds, from an entry of the file."""
    if key == "masks":
        return _mask(entry["segmentation"], image)
    if key == "area" and "area" not in entry:
        return entry["bbox"][2] * entry["bbox"][3]
    return entry.get("iscrowd", 0) if key == "iscrowd" else entry[_KEYS.get(key, key)]


def _mask(segmentation: Any, image: Mapping[str, Any]) -> Rle:
    return segmentation if isinstance(segmentation, Mapping) else polygons_to_rle(
        segmentation, image["height"], image["width"]
    )  # fmt: skip


def _read(source: Any, kind: type) -> Any:
    """The content of a json file, or the source itself if it is content."""
    content = source
    if isinstance(source, str | os.PathLike):
        path = pathlib.Path(source).expanduser()
        try:
            content = json.loads(path.read_bytes())
        except (OSError, ValueError) as error:
            raise UsageError(f"cannot read {str(path)!r} as json: {error}") from None
    if not isinstance(content, kind) and not (kind is list and isinstance(content, tuple)):
        raise UsageError(f"expected a json {'object' if kind is dict else 'list'} ({kind.__name__}), "
                         f"got {type(content).__name__}: annotations come first, then results")  # fmt: skip
    return content
