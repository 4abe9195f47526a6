"""COCO's evaluation of boxes beside pycocotools and faster-coco-eval, all on the same detections, taking turns.

    python tests/benchmarks/coco.py

1,000 images, 60 detections and 20 objects in each, 80 classes. Writes results/coco_cpu.md beside this file. About two
minutes, most of them pycocotools'.
"""

import argparse
import contextlib
import datetime
import importlib.metadata
import io
import os
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

import faster_coco_eval
import jax
import numpy as np
import pycocotools.coco
import pycocotools.cocoeval
from contest import TURNS, Side, markdown_table, processor, race, versions

from dl_core.metrics.coco import coco_evaluate
from dl_core.metrics.detection_packing import pack_detections

OBJECTS, FOUND, CLASSES = 20, 60, 80


def scene(images, seed=0):
    """Targets and predictions, one dict an image: a third of the detections lie near an object of their class."""
    rng = np.random.default_rng(seed)
    draw = lambda n: np.concatenate([rng.uniform(0, 400, (n, 2)), rng.uniform(5, 200, (n, 2))], axis=1)
    targets, predictions = [], []
    for _ in range(images):
        boxes, labels, found, found_labels = (draw(OBJECTS), rng.integers(0, CLASSES, OBJECTS),
                                              draw(FOUND), rng.integers(0, CLASSES, FOUND))  # fmt: skip
        found[:OBJECTS], found_labels[:OBJECTS] = boxes + rng.normal(0, 6, boxes.shape), labels
        found[:, 2:] = np.abs(found[:, 2:])
        targets.append({"boxes": boxes, "labels": labels, "area": boxes[:, 2] * boxes[:, 3]})
        predictions.append({"boxes": found, "labels": found_labels, "scores": rng.random(FOUND)})
    return targets, predictions


def as_files(targets, predictions):
    """The same as COCO's dictionaries."""
    annotations, results = [], []
    for image, (target, prediction) in enumerate(zip(targets, predictions, strict=True)):
        columns = (target[key].tolist() for key in ("boxes", "labels", "area"))
        for box, label, area in zip(*columns, strict=True):
            annotations.append({"id": len(annotations) + 1, "image_id": image, "category_id": label, "bbox": box,
                                "iscrowd": 0, "area": area})  # fmt: skip
        columns = (prediction[key].tolist() for key in ("boxes", "labels", "scores"))
        for box, label, score in zip(*columns, strict=True):
            results.append({"image_id": image, "category_id": label, "bbox": box, "score": score})
    images = [{"id": image, "height": 600, "width": 600} for image in range(len(targets))]
    categories = [{"id": label, "name": str(label)} for label in range(CLASSES)]
    return {"info": {}, "images": images, "categories": categories, "annotations": annotations}, results


class Silent(contextlib.redirect_stdout):
    """pycocotools prints its figures; that is not what is timed."""

    def __init__(self):
        super().__init__(io.StringIO())


def other_side(coco, evaluation, files, images, *, load):
    """Evaluation by pycocotools' interface; `load` says whether the results are taken in each time."""
    with Silent():
        truth = coco()
        truth.dataset = files[0]
        truth.createIndex()
        found = truth.loadRes([dict(one) for one in files[1]])

    def once():
        results = truth.loadRes([dict(one) for one in files[1]]) if load else found
        one = evaluation(truth, results, "bbox")
        one.evaluate()
        one.accumulate()
        one.summarize()
        return np.array(one.stats[:12])

    def run(n):
        with Silent():
            for _ in range(n):
                once()

    with Silent():
        figures = once()
    return Side(run, images), figures


def our_side(arguments, images, *, pack):
    """coco_evaluate of arrays, or of lists that are packed each time; with the seconds of the first call."""
    packed = pack_detections(*arguments)

    def once():
        arrays = pack_detections(*arguments) if pack else packed
        return np.array(coco_evaluate(*arrays, num_classes=CLASSES, box_format="xywh")[:12])

    def run(n):
        for _ in range(n):
            once()

    start = time.perf_counter()
    figures = once()
    return Side(run, images, compile_seconds=time.perf_counter() - start), figures


def main():
    """Runs the race and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=4, help="for each side, but at least one run a turn")
    args = parser.parse_args()
    lists = scene(args.images)
    files = as_files(*lists)
    load_average = os.getloadavg()[0]
    fast = faster_coco_eval.COCO, faster_coco_eval.COCOeval_faster
    slow = pycocotools.coco.COCO, pycocotools.cocoeval.COCOeval
    contestants = {
        "dl_core, arrays": our_side(lists, args.images, pack=False),
        "dl_core, lists of dicts": our_side(lists, args.images, pack=True),
        "faster-coco-eval, loaded": other_side(*fast, files, args.images, load=False),
        "faster-coco-eval, results loaded each time": other_side(*fast, files, args.images, load=True),
        "pycocotools, loaded": other_side(*slow, files, args.images, load=False),
    }
    expected = contestants["pycocotools, loaded"][1]
    speeds = race({name: side for name, (side, _) in contestants.items()}, args.seconds)
    lines = [
        {
            "": name,
            "seconds": f"{args.images / speeds[name]:.3f}",
            "of faster-coco-eval, loaded": f"{speeds['faster-coco-eval, loaded'] / speeds[name]:.2f}",
            "first call, s": f"{side.compile_seconds:.1f}" if side.compile_seconds else "",
            "largest difference of the twelve figures from pycocotools": f"{np.abs(figures - expected).max():.0e}",
        }
        for name, (side, figures) in contestants.items()
    ]
    packages = {name: importlib.metadata.version(name) for name in ("pycocotools", "faster-coco-eval")}
    page = [
        "# COCO's evaluation of boxes",
        "",
        f"`python tests/benchmarks/coco.py`, {datetime.date.today()}, {jax.devices()[0].platform}, {processor()}, load "
        f"average before {load_average:.1f}, "
        + ", ".join(f"{name} {version}" for name, version in (versions() | packages).items()) + ".",
        "",
        f"{args.images:,} images with {FOUND} detections and {OBJECTS} objects each, {CLASSES} classes. Medians of "
        f"{TURNS} turns, the sides taking turns. The first call of the first row compiles, that of the second finds it "
        "compiled. Data is in memory everywhere; `loaded` means that the results were taken in and indexed before.",
        "",
        markdown_table(lines),
    ]  # fmt: skip
    path = pathlib.Path(__file__).parent / "results" / f"coco_{jax.devices()[0].platform}.md"
    path.write_text("\n".join(page) + "\n", encoding="utf-8")
    print("\n".join(page))


if __name__ == "__main__":
    main()
