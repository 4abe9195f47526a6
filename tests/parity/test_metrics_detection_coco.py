"""COCO's figures against pycocotools: random and adversarial scenes, real annotations, boxes and masks.

All scenes are padded to one shape, so that little is compiled.
"""

import contextlib
import io
import json

import numpy as np
import pytest

from dl_core.boxes import convert_boxes
from dl_core.data.coco_annotations import load_coco
from dl_core.masks import decode_rle, encode_rle, mask_area, mask_boxes, pairwise_mask_iou, polygons_to_mask
from dl_core.metrics.coco import coco_evaluate
from dl_core.metrics.detection import Detections, GroundTruth

pytest.importorskip("pycocotools")
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

# Raised inside pycocotools' compiled part by NumPy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

IMAGES, FOUND, OBJECTS, CLASSES = 5, 130, 12, 3
EXACT = {"rtol": 0, "atol": 1e-12}  # the task is 1e-9; sums of 3,000 float64 values in another order differ by less


def theirs(annotations, results, kind="bbox", **params):
    """pycocotools' evaluation, without what it prints."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = annotations
        truth.createIndex()
        found = COCO()
        found.dataset = {**annotations, "annotations": []}
        found.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results) if results else found, kind)
        for name, value in params.items():
            setattr(evaluation.params, name, value)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def assert_equal(ours, evaluation):
    np.testing.assert_allclose(ours[:12], evaluation.stats, **EXACT)
    np.testing.assert_allclose(ours.precision, evaluation.eval["precision"][..., -1], **EXACT)
    np.testing.assert_allclose(ours.recall, evaluation.eval["recall"], **EXACT)


def as_files(scene):
    """COCO's dictionaries of a scene: (boxes xywh, labels, crowd, area) and (boxes xywh, scores, labels) per image."""
    annotations, results = [], []
    for image, (objects, found) in enumerate(scene):
        for box, label, crowd, area in zip(*objects, strict=True):
            annotations.append({"id": len(annotations) + 1, "image_id": image, "category_id": int(label),
                                "bbox": box.tolist(), "iscrowd": int(crowd), "area": float(area)})  # fmt: skip
        for box, score, label in zip(*found, strict=True):
            results.append({"image_id": image, "category_id": int(label), "bbox": box.tolist(), "score": float(score)})
    images = [{"id": image, "height": 500, "width": 500} for image in range(IMAGES)]
    categories = [{"id": label, "name": str(label)} for label in range(CLASSES)]
    return {"images": images, "categories": categories, "annotations": annotations, "info": {}}, results


def as_arrays(scene):
    """The same, padded."""

    def pad(parts, size):
        padded = np.zeros((IMAGES, size, *parts[0].shape[1:]), parts[0].dtype)
        for row, part in zip(padded, parts, strict=True):
            row[: len(part)] = part
        return padded

    objects, found = ([list(column) for column in zip(*side, strict=True)] for side in zip(*scene, strict=True))
    there = [[np.ones(len(labels), bool) for labels in side[place]] for side, place in ((objects, 1), (found, 2))]
    boxes, labels, crowd, area = (pad(column, OBJECTS) for column in objects)
    truth = GroundTruth(boxes, labels, pad(there[0], OBJECTS), crowd, area)
    return truth, Detections(*(pad(column, FOUND) for column in found), pad(there[1], FOUND))


def image(objects=(), found=()):
    """One image from rows (box, label, crowd, area) and (box, score, label)."""
    columns = lambda rows, empty: [np.array([row[i] for row in rows], kind).reshape(-1, *shape)
                                   for i, (kind, shape) in enumerate(empty)]  # fmt: skip
    return (
        columns(objects, [(float, (4,)), (int, ()), (bool, ()), (float, ())]),
        columns(found, [(float, (4,)), (float, ()), (int, ())]),
    )


def random_scene(seed):
    """Near and far detections; whole or fractional coordinates; ties in score; crowds; up to 130 of them an image."""
    rng = np.random.default_rng(seed)
    digits, most = rng.choice([0, 1, 12]), rng.choice([3, 20, FOUND])
    scene = []
    for _ in range(IMAGES):
        n, m = rng.integers(0, OBJECTS + 1), rng.integers(0, most + 1)
        draw = lambda n: np.concatenate([rng.uniform(0, 300, (n, 2)), rng.choice([5, 40, 150], (n, 2))], axis=1)
        boxes, labels, found, found_labels = draw(n), rng.integers(0, CLASSES, n), draw(m), rng.integers(0, CLASSES, m)
        if n:
            source, near = rng.integers(0, n, m), rng.random(m) < 0.8
            found[near] = (boxes[source] + rng.normal(0, rng.choice([0.01, 3, 10]), (m, 4)))[near]
            found_labels[near] = labels[source][near]
        boxes, found = np.abs(boxes.round(digits)), np.abs(found.round(digits))
        area = boxes[:, 2] * boxes[:, 3] * rng.choice([1, 0.6], n)
        scores = rng.random(m).round(rng.choice([1, 12]))
        scene.append(([boxes, labels, rng.random(n) < 0.15, area], [found, scores, found_labels]))
    return scene


@pytest.mark.parametrize("seed", range(24))
def test_random_scenes(seed):
    scene = random_scene(seed)
    ours = coco_evaluate(*as_arrays(scene), num_classes=CLASSES, box_format="xywh")
    assert_equal(ours, theirs(*as_files(scene)))


def unit(x, width=10.0, height=10.0):
    return [float(x), 0.0, float(width), float(height)]


ADVERSARIAL = {
    # 0.5, 0.55, …, 0.95 exactly, in whole numbers and in decimals that binary fractions only come near
    "IoU exactly at every threshold": [
        image([(unit(100 * i, 100, 100), 0, False, 1e4) for i in range(10)],
              [(unit(100 * i, 50 + 5 * i, 100), 0.9 - 0.01 * i, 0) for i in range(10)]),
        image([(unit(10 * i, 0.1, 0.3), 1, False, 0.03) for i in range(10)],
              [(unit(10 * i, 0.1 * (50 + 5 * i) / 100, 0.3), 0.9, 1) for i in range(10)]),
    ],
    "equal scores": [image([(unit(0), 0, False, 100)], [(unit(50), 0.5, 0), (unit(0), 0.5, 0)]),
                     image([(unit(0), 0, False, 100)], [(unit(0), 0.5, 0), (unit(50), 0.5, 0)])],
    "equal overlaps": [image([(unit(0), 0, False, 100), (unit(0), 0, False, 2000), (unit(0), 0, True, 100)],
                             [(unit(0), 0.9, 0), (unit(0), 0.8, 0), (unit(0), 0.7, 0), (unit(2), 0.6, 0)])],
    "crowds": [image([(unit(0, 300, 300), 0, True, 9e4), (unit(5), 0, False, 100), (unit(0, 300, 300), 0, True, 9e4)],
                     [(unit(5 + i), 0.9 - 0.1 * i, 0) for i in range(9)]),
               image([(unit(0, 300, 300), 1, True, 9e4)], [(unit(290, 20, 10), 0.5, 1)])],
    "more than 100 detections": [image([(unit(5 * i), 0, False, 100) for i in range(12)],
                                       [(unit(0.5 * i), 1 - i / 200, 0) for i in range(FOUND)])],
    "no detections": [image([(unit(0), 0, False, 100), (unit(20), 2, False, 100)])],
    "no objects": [image((), [(unit(0), 0.5, 0), (unit(3), 0.5, 1)])],
    "only crowds": [image([(unit(0), 0, True, 100)], [(unit(0), 0.5, 0)])],
    "boxes without an area": [
        image([(unit(0, 0, 0), 0, False, 0), (unit(5, 0, 10), 0, False, 0), (unit(9), 0, False, 100)],
              [(unit(0, 0, 0), 0.9, 0), (unit(5, 0, 10), 0.9, 0), (unit(9, 0, 10), 0.8, 0)]),
    ],
    "duplicates": [image([(unit(0), 0, False, 100)] * 3, [(unit(0), 0.9, 0)] * 5)],
    "areas at the borders": [
        image([(unit(40 * i), 0, False, area) for i, area in enumerate((0, 1024, 1024.5, 9216, 1e10))],
              [(unit(40 * i, 32, 32), 0.5, 0) for i in range(5)]),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_adversarial_scenes(name):
    scene = ADVERSARIAL[name] + [image()] * (IMAGES - len(ADVERSARIAL[name]))
    ours = coco_evaluate(*as_arrays(scene), num_classes=CLASSES, box_format="xywh")
    assert_equal(ours, theirs(*as_files(scene)))


def test_corners_as_pycocotools_would_see_them():
    """Boxes given as xyxy are what pycocotools computes from [x, y, x_max - x_min, y_max - y_min]."""
    truth, found = as_arrays(random_scene(100))
    corners = lambda part: part._replace(boxes=np.concatenate(
        [part.boxes[..., :2], part.boxes[..., :2] + part.boxes[..., 2:]], axis=-1))  # fmt: skip
    truth, found = corners(truth), corners(found)
    sides = lambda part: np.concatenate([part.boxes[..., :2], part.boxes[..., 2:] - part.boxes[..., :2]], axis=-1)
    scene = [
        ([sides(truth)[i][t], truth.labels[i][t], truth.crowd[i][t], truth.area[i][t]],
         [sides(found)[i][f], found.scores[i][f], found.labels[i][f]])
        for i, (t, f) in enumerate(zip(truth.valid, found.valid, strict=True))
    ]  # fmt: skip
    assert_equal(coco_evaluate(truth, found, num_classes=CLASSES), theirs(*as_files(scene)))


def test_other_options():
    scene = random_scene(4)
    options = {"iou_thresholds": [0.3, 0.5, 0.8], "max_detections": (2, 5, 20),
               "area_ranges": [(0, 1e10), (0, 100), (100, 2000), (2000, 1e10)]}  # fmt: skip
    ours = coco_evaluate(*as_arrays(scene), num_classes=CLASSES, box_format="xywh", **options)
    evaluation = theirs(*as_files(scene), iouThrs=np.array([0.3, 0.5, 0.8]), maxDets=[2, 5, 20],
                        areaRng=[list(pair) for pair in options["area_ranges"]])  # fmt: skip
    np.testing.assert_allclose(ours.precision, evaluation.eval["precision"][..., -1], **EXACT)
    np.testing.assert_allclose(ours.recall, evaluation.eval["recall"], **EXACT)
    assert ours.ap75 == -1  # pycocotools has -1 for the AP, too, if 100 is not among maxDets: here it is the AP at 20
    np.testing.assert_allclose(ours.ap, evaluation.eval["precision"][:, :, :, 0, 2].mean(), **EXACT)


@pytest.mark.parametrize("classes", [[0], [2, 0]])
def test_some_classes(classes):
    scene = random_scene(5)
    ours = coco_evaluate(*as_arrays(scene), num_classes=CLASSES, box_format="xywh", classes=classes)
    np.testing.assert_allclose(ours[:12], theirs(*as_files(scene), catIds=classes).stats, **EXACT)


def test_one_class_for_all():
    truth, found = as_arrays(random_scene(6))
    together = (part._replace(labels=part.labels * 0) for part in (truth, found))
    ours = coco_evaluate(*together, num_classes=1, box_format="xywh")
    files = as_files(random_scene(6))
    for entry in [*files[0]["annotations"], *files[1]]:
        entry["category_id"] = 0
    files[0]["categories"] = files[0]["categories"][:1]
    np.testing.assert_allclose(ours[:12], theirs(*files).stats, **EXACT)


def perturbed(annotations, seed):
    """Results made of the ground truth: boxes moved, some left out, some doubled, some of another class; the last are
    crowds. Segmentations are moved with the box."""
    rng, results = np.random.default_rng(seed), []
    sizes = {image["id"]: (image["height"], image["width"]) for image in annotations["images"]}
    classes = [category["id"] for category in annotations["categories"]]
    for entry in annotations["annotations"]:
        for _ in range(rng.choice([0, 1, 1, 2])):
            shift = rng.normal(0, 0.05, 4) * np.tile(entry["bbox"][2:], 2)
            box = np.array(entry["bbox"]) + shift
            result = {"image_id": entry["image_id"], "score": round(rng.random(), 2),
                      "category_id": entry["category_id"] if rng.random() < 0.9 else int(rng.choice(classes)),
                      "bbox": [*box[:2].tolist(), *np.abs(box[2:]).tolist()]}  # fmt: skip
            if isinstance(entry.get("segmentation"), list):
                polygons = [
                    (np.array(one).reshape(-1, 2) + shift[:2]).ravel().tolist() for one in entry["segmentation"]
                ]
                rle = coco_mask.merge(coco_mask.frPyObjects(polygons, *sizes[entry["image_id"]]))
                result["segmentation"] = {"size": rle["size"], "counts": rle["counts"].decode()}
            results.append(result)
    return results


def test_all_boxes_of_bccd(data_dir, tmp_path):
    annotations = json.loads((data_dir / "bccd" / "annotations_coco.json").read_text())
    for index, entry in enumerate(annotations["annotations"]):
        entry.setdefault("area", entry["bbox"][2] * entry["bbox"][3])
        entry["id"] = index + 1
        entry.setdefault("iscrowd", 0)
    results = perturbed(annotations, 0)
    (tmp_path / "results.json").write_text(json.dumps(results))
    data = load_coco(data_dir / "bccd" / "annotations_coco.json", tmp_path / "results.json", box_format="xywh")
    ours = coco_evaluate(*data.packed, num_classes=3, box_format="xywh")
    assert ours.ap > 0.3
    assert_equal(ours, theirs(annotations, results))


@pytest.fixture(scope="module")
def coco_mini(data_dir):
    content = [json.loads((data_dir / "coco_cc_mini" / "annotations" / f"instances_{part}2017.json").read_text())
               for part in ("train", "val")]  # fmt: skip
    return {"info": {}, "categories": content[0]["categories"],
            "images": content[0]["images"] + content[1]["images"],
            "annotations": content[0]["annotations"] + content[1]["annotations"]}  # fmt: skip


@pytest.mark.parametrize("masks", [False, True])
def test_boxes_and_masks_of_coco(masks, coco_mini):
    results = perturbed(coco_mini, 1)
    if masks:  # with a box in it, pycocotools takes the area of the box
        results = [{key: value for key, value in result.items() if key != "bbox"} for result in results
                   if "segmentation" in result]  # fmt: skip
    data = load_coco(coco_mini, results, masks=masks, box_format="xywh")
    ours = coco_evaluate(*data.packed, num_classes=80, box_format="xywh")
    assert ours.ap > 0.3
    evaluation = theirs(json.loads(json.dumps(coco_mini)), results, "segm" if masks else "bbox")
    np.testing.assert_allclose(ours[:12], evaluation.stats, **EXACT)
    np.testing.assert_allclose(ours.recall, evaluation.eval["recall"], **EXACT)


def test_real_polygons_and_run_lengths(coco_mini):
    sizes = {image["id"]: (image["height"], image["width"]) for image in coco_mini["images"]}
    for entry in coco_mini["annotations"]:
        size = sizes[entry["image_id"]]
        rle = coco_mask.frPyObjects(entry["segmentation"], *size)
        rle = coco_mask.merge(rle) if isinstance(rle, list) else rle
        expected = coco_mask.decode(rle).astype(bool)
        drawn = polygons_to_mask(entry["segmentation"], *size) if isinstance(entry["segmentation"], list) else None
        np.testing.assert_array_equal(decode_rle(entry["segmentation"]) if drawn is None else drawn, expected)
        assert (
            encode_rle(expected)["counts"] == coco_mask.encode(np.asfortranarray(expected, np.uint8))["counts"].decode()
        )
        assert mask_area([rle])[0] == coco_mask.area(rle)
        box = np.asarray(convert_boxes(mask_boxes([rle]), "xyxy", "xywh"))[0]
        np.testing.assert_array_equal(box, coco_mask.toBbox(rle))


def test_random_polygons():
    rng = np.random.default_rng(0)
    for turn in range(1000):
        height, width = (int(side) for side in rng.integers(1, 60, 2))
        polygons = [rng.uniform(-5, 65, 2 * rng.integers(3, 9)).round(turn % 3) for _ in range(rng.integers(1, 4))]
        polygons[0][2:4] = polygons[0][:2]  # a corner twice
        rle = coco_mask.merge(coco_mask.frPyObjects([one.tolist() for one in polygons], height, width))
        np.testing.assert_array_equal(polygons_to_mask(polygons, height, width), coco_mask.decode(rle).astype(bool))


def test_overlaps_of_masks_with_crowds():
    rng = np.random.default_rng(0)
    draw = lambda n: [coco_mask.encode(np.asfortranarray(rng.random((40, 50)) < share, np.uint8))
                      for share in rng.choice([0, 0.2, 0.9], n)]  # fmt: skip
    a, b, crowd = draw(9), draw(7), rng.random(7) < 0.5
    np.testing.assert_array_equal(pairwise_mask_iou(a, b, crowd=crowd), coco_mask.iou(a, b, crowd.astype(int).tolist()))
