"""Detection metrics: small scenes whose figures can be counted, VOC against a loop, and what must not matter.

Equality with pycocotools is in tests/parity. All scenes are padded to one shape, so that little is compiled.
"""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from partitions import assert_any_partition_gives_the_whole

from dl_core.data.coco_annotations import load_coco
from dl_core.errors import UsageError
from dl_core.masks import encode_rle
from dl_core.metrics.accumulator import Metric
from dl_core.metrics.coco import coco_evaluate, coco_metric
from dl_core.metrics.detection import Detections, GroundTruth
from dl_core.metrics.detection_packing import pack_detections
from dl_core.metrics.voc import voc_average_precision, voc_metric

IMAGES, FOUND, OBJECTS, CLASSES = 4, 12, 5, 3
A, B, C = [10.0, 10, 60, 60], [100.0, 10, 150, 60], [10.0, 100, 60, 150]  # three medium boxes that do not meet
FAR = [300.0, 300, 350, 350]


def scene(*images):
    """Padded arrays from rows (box, label, crowd, area, difficult) and (box, score, label) of each image."""
    truth = [np.zeros((IMAGES, OBJECTS, *shape), kind) for shape, kind in
             (((4,), float), ((), np.int32), ((), bool), ((), bool), ((), float), ((), bool))]  # fmt: skip
    found = [np.zeros((IMAGES, FOUND, *shape), kind) for shape, kind in
             (((4,), float), ((), float), ((), np.int32), ((), bool))]  # fmt: skip
    for i, (objects, detections) in enumerate(images):
        for j, (box, label, *rest) in enumerate(objects):
            crowd, area, difficult = (*rest, *(False, 2500.0, False)[len(rest) :])
            for array, value in zip(truth, (box, label, True, crowd, area, difficult), strict=True):
                array[i, j] = value
        for j, (box, score, label) in enumerate(detections):
            for array, value in zip(found, (box, score, label, True), strict=True):
                array[i, j] = value
    return GroundTruth(*truth), Detections(*found)


def evaluate(*images, **options):
    return coco_evaluate(*scene(*images), num_classes=CLASSES, **options)


def random_scene(seed, ties=False):
    """Objects, and detections near and far; scores differ unless ties are asked for."""
    rng = np.random.default_rng(seed)
    images, scores = [], rng.permutation(IMAGES * FOUND) / (IMAGES * FOUND) + 0.01
    for i in range(IMAGES):
        corner, size = rng.integers(0, 60, (OBJECTS, 2)), rng.choice([8, 20, 50, 120], (OBJECTS, 2))
        objects = [([*low, *(low + side)], int(rng.integers(CLASSES)), bool(rng.random() < 0.1), float(side.prod()),
                    bool(rng.random() < 0.2)) for low, side in zip(corner, size, strict=True)]  # fmt: skip
        objects = objects[: rng.integers(OBJECTS + 1)]
        detections = []
        for j in range(rng.integers(FOUND + 1)):
            box, label = np.array([0, 0, *rng.integers(1, 60, 2)]), int(rng.integers(CLASSES))
            if objects and rng.random() < 0.8:
                near, label = objects[rng.integers(len(objects))][:2]
                box = np.array(near) + rng.integers(-3, 4, 4) * (rng.random() < 0.7)
            score = rng.choice([0.2, 0.5]) if ties else scores[i * FOUND + j]
            detections.append((box, score, label))
        images.append((objects, detections))
    return scene(*images)


def twelve(figures):
    return np.array(figures[:12])


def test_perfect_detections_have_the_figures_one():
    figures = evaluate(([(A, 0), (B, 1)], [(A, 0.9, 0), (B, 0.8, 1)]), ([(A, 0)], [(A, 0.3, 0)]))
    expected = {"ap_small": -1, "ap_large": -1, "ar_small": -1, "ar_large": -1}  # there are medium objects only
    for name, value in figures._asdict().items():
        if name not in ("ap_per_class", "precision", "recall"):
            np.testing.assert_allclose(value, expected.get(name, 1), rtol=1e-12, err_msg=name)
    np.testing.assert_allclose(figures.ap_per_class, [1, 1, -1], rtol=1e-12)


def test_one_of_two_objects_is_precision_one_up_to_recall_one_half():
    figures = evaluate(([(A, 0), (B, 0)], [(A, 0.9, 0)]))
    np.testing.assert_allclose(figures.ap, 51 / 101, rtol=1e-12)  # recalls 0, 0.01, …, 0.50
    assert figures.ar100 == 0.5


def test_a_false_alarm_counts_only_above_a_hit():
    objects = [(A, 0)]
    np.testing.assert_allclose(evaluate((objects, [(A, 0.9, 0), (FAR, 0.5, 0)])).ap, 1, rtol=1e-12)
    np.testing.assert_allclose(evaluate((objects, [(A, 0.5, 0), (FAR, 0.9, 0)])).ap, 0.5, rtol=1e-12)


def test_an_object_is_found_once():
    figures = evaluate(([(A, 0), (B, 0)], [(A, 0.9, 0), (A, 0.8, 0), (B, 0.7, 0)]))
    np.testing.assert_allclose(figures.ap, (51 + 50 * 2 / 3) / 101, rtol=1e-12)


def test_an_iou_exactly_at_the_threshold_is_a_match():
    half = [10.0, 10, 60, 35]  # IoU 0.5 with A, in numbers that are exact
    figures = evaluate(([(A, 0)], [(half, 0.9, 0)]))
    np.testing.assert_allclose([figures.ap50, figures.ap75, figures.ap], [1, 0, 0.1], rtol=1e-12)


def test_labels_must_agree():
    assert evaluate(([(A, 0)], [(A, 0.9, 1)])).ap == 0


def test_what_lies_in_a_crowd_neither_helps_nor_hurts():
    crowd = ([0.0, 0, 400, 400], 0, True, 160_000.0)
    inside = [(FAR, 0.9, 0), (B, 0.8, 0), (C, 0.8, 0)]
    figures = evaluate(([(A, 0), crowd], [*inside, (A, 0.1, 0)]))
    np.testing.assert_allclose([figures.ap, figures.ar100], 1, rtol=1e-12)


def test_areas_are_those_given_and_say_who_is_counted():
    figures = evaluate(([(A, 0, False, 1024.0), (B, 0, False, 9217.0)], [(A, 0.9, 0), (B, 0.8, 0)]))
    np.testing.assert_allclose([figures.ap_small, figures.ap_medium, figures.ap_large], 1, rtol=1e-12)  # 32² is both
    figures = evaluate(([(A, 0, False, 1024.0)], [(A, 0.5, 0), (FAR, 0.9, 0)]))
    np.testing.assert_allclose(figures.ap_small, 1, rtol=1e-12)  # FAR has 2500 square pixels: no small false alarm
    np.testing.assert_allclose(figures.ap_medium, 0.5, rtol=1e-12)


def test_recall_at_one_and_ten_detections_an_image():
    objects = [(A, 0), (B, 0)]
    alarms = [([300.0 + i, 300, 350, 350], 0.95, 0) for i in range(9)]
    figures = evaluate((objects, [(A, 0.99, 0), *alarms, (B, 0.5, 0)]))
    assert [figures.ar1, figures.ar10, figures.ar100] == [0.5, 0.5, 1]


def test_ties_keep_the_order_of_the_arrays_and_of_the_ids():
    objects, hit, alarm = [(A, 0)], (A, 0.5, 0), (FAR, 0.5, 0)
    np.testing.assert_allclose(evaluate((objects, [hit, alarm])).ap, 1, rtol=1e-12)
    np.testing.assert_allclose(evaluate((objects, [alarm, hit])).ap, 0.5, rtol=1e-12)
    images = (objects, [hit]), ([], [alarm])
    np.testing.assert_allclose(evaluate(*images, image_ids=np.array([1, 2, 3, 4])).ap, 1, rtol=1e-12)
    np.testing.assert_allclose(evaluate(*images, image_ids=np.array([2, 1, 3, 4])).ap, 0.5, rtol=1e-12)


def test_figures_of_nothing():
    assert (twelve(evaluate(([], [(A, 0.9, 0)]))) == -1).all()  # nothing to find: COCO's convention
    assert (twelve(evaluate(([], []))) == -1).all()
    found_nothing = evaluate(([(A, 0)], []))
    assert found_nothing.ap == found_nothing.ar100 == 0


def test_arrays_without_any_place_for_an_object():
    truth, found = scene(([(A, 0)], []))
    found = jax.tree.map(lambda array: array[:, :0], found)
    assert coco_evaluate(truth, found, num_classes=CLASSES).ap == 0
    assert voc_average_precision(truth, found, num_classes=CLASSES).mean == 0


def test_classes_may_be_chosen():
    images = [([(A, 0), (B, 1)], [(A, 0.9, 0)])]
    figures = evaluate(*images, classes=[0])
    np.testing.assert_allclose([figures.ap, *figures.ap_per_class], [1, 1, -1, -1], rtol=1e-12)
    np.testing.assert_allclose(evaluate(*images).ap, 0.5, rtol=1e-12)


def test_masked_images_and_padding_may_hold_anything():
    truth, found = random_scene(5)
    where = np.array([True, False, True, True])
    expected = coco_evaluate(*(jax.tree.map(np.copy, part) for part in _only(where, truth, found)), num_classes=CLASSES)
    for part in (truth, found):
        off = ~(part.valid & where[:, None])
        part.boxes[off], part.labels[off] = np.nan, 10**6
    found.scores[~(found.valid & where[:, None])] = np.nan
    ours = coco_evaluate(truth, found, num_classes=CLASSES, where=where)
    np.testing.assert_array_equal(twelve(ours), twelve(expected))


def _only(where, truth, found):
    return tuple(part._replace(valid=part.valid & where[:, None]) for part in (truth, found))


@pytest.mark.parametrize("box_format", ["xywh", "cxcywh"])
def test_boxes_in_other_formats(box_format):
    truth, found = random_scene(6)
    convert = lambda boxes: np.concatenate(
        [boxes[..., :2] + (boxes[..., 2:] - boxes[..., :2]) / (2 if box_format == "cxcywh" else np.inf),
         boxes[..., 2:] - boxes[..., :2]], axis=-1)  # fmt: skip
    other = (part._replace(boxes=convert(part.boxes)) for part in (truth, found))
    expected = coco_evaluate(truth, found, num_classes=CLASSES)
    np.testing.assert_array_equal(twelve(coco_evaluate(*other, num_classes=CLASSES, box_format=box_format)),
                                  twelve(expected))  # fmt: skip


coco_in_jit = jax.jit(lambda truth, found: coco_evaluate(truth, found, num_classes=CLASSES))


@pytest.mark.parametrize("ties", [False, True])
def test_inside_jit_the_figures_are_the_same_to_single_precision(ties):
    for seed in range(20):
        truth, found = random_scene(seed, ties)
        expected = coco_evaluate(truth, found, num_classes=CLASSES)
        inside = coco_in_jit(truth, found)
        # sums of at most 10 · 101 · 3 float32 values; coordinates are whole numbers, so no IoU changes sides
        np.testing.assert_allclose(twelve(inside), twelve(expected), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(inside.recall, expected.recall, rtol=1e-6)


def arguments(truth, found):
    """The arrays of `update` for partitions, and a Metric that takes them one by one."""
    arrays = (np.arange(len(truth.valid)) * 7, *truth, *found[:4])
    together = lambda arrays: (arrays[0], GroundTruth(*arrays[1:7]), Detections(*arrays[7:]))

    def flat(metric):
        update = lambda state, *arrays, where=None: metric.update(state, *together(arrays), where=where)
        return Metric(metric.init, update, metric.merge, metric.compute)

    return arrays, flat


def test_any_partition_into_batches_gives_the_figures_of_the_whole_even_with_ties():
    truth, found = random_scene(1, ties=True)
    arrays, flat = arguments(truth, found)
    metric = coco_metric(IMAGES, truth, found, num_classes=CLASSES)
    expected = coco_evaluate(truth, found, num_classes=CLASSES)
    assert_any_partition_gives_the_whole(flat(metric), arrays, expected, batch=3, rtol=1e-12)
    metric = voc_metric(IMAGES, truth, found, num_classes=CLASSES)
    expected = voc_average_precision(truth, found, num_classes=CLASSES)
    assert_any_partition_gives_the_whole(flat(metric), arrays, expected, batch=3, rtol=1e-12)


def test_an_image_that_was_given_twice_and_a_batch_of_another_shape_are_refused():
    truth, found = random_scene(2)
    metric = coco_metric(8, truth, found, num_classes=CLASSES)
    state = metric.update(metric.init(), np.array([1, 2, 3, 3]), truth, found)
    with pytest.raises(UsageError, match=r"\[3\] more than once; mask repeated images"):
        metric.compute(state)
    with pytest.raises(UsageError, match="padded sizes of the one the metric was made with"):
        metric.update(state, np.arange(4), truth, jax.tree.map(lambda array: array[:, :2], found))


def test_overlaps_may_be_those_of_masks():
    """One mask is missed by its box, which has the right corners but the wrong pixels."""
    square, frame = np.zeros((2, 64, 64), bool)
    square[8:40, 8:40] = True
    frame[8:40, 8:40] = True
    frame[10:38, 10:38] = False
    target = {"masks": [encode_rle(square)], "labels": [0]}
    for predicted, expected in ((square, 1), (frame, 0)):
        packed = pack_detections([target], [{"masks": predicted[None], "labels": [0], "scores": [0.5]}], masks=True)
        np.testing.assert_allclose(coco_evaluate(*packed, num_classes=1).ap, expected, rtol=1e-12)
    metric = coco_metric(1, *packed, num_classes=1)
    state = jax.jit(metric.update)(metric.init(), np.array([0]), *packed)
    assert metric.compute(state).ap == 0


def test_lists_of_dicts_are_padded():
    targets = [{"boxes": [A, B], "labels": [0, 1], "iscrowd": [0, 1]}, {"boxes": [], "labels": [], "iscrowd": []}]
    predictions = [{"boxes": np.array([A]), "labels": [0], "scores": [0.5]},
                   {"boxes": np.array([A, FAR, C]), "labels": [2, 0, 1], "scores": [0.1, 0.2, 0.3]}]  # fmt: skip
    truth, found, ious = pack_detections(targets, predictions)
    assert ious is None
    assert truth.area is None
    assert truth.valid.tolist() == [[True, True], [False, False]]
    assert truth.crowd.tolist() == [[False, True], [False, False]]
    assert found.valid.sum(axis=1).tolist() == [1, 3]
    np.testing.assert_array_equal(found.boxes[1], [A, FAR, C])
    np.testing.assert_array_equal(found.scores[1], [0.1, 0.2, 0.3])


def files():
    box = lambda box: [box[0], box[1], box[2] - box[0], box[3] - box[1]]
    annotations = {
        "images": [{"id": 7, "height": 400, "width": 400}, {"id": 3, "height": 400, "width": 400}],
        "categories": [{"id": 18, "name": "dog"}, {"id": 1, "name": "person"}],
        "annotations": [
            {"id": 0, "image_id": 7, "category_id": 18, "bbox": box(A), "area": 2500, "iscrowd": 0,
             "segmentation": [[10, 10, 60, 10, 60, 60, 10, 60]]},
            {"id": 1, "image_id": 3, "category_id": 1, "bbox": box(B),
             "segmentation": {"size": [400, 400], "counts": [160_000]}},
        ],
    }  # fmt: skip
    results = [{"image_id": 7, "category_id": 18, "bbox": box(A), "score": 0.5,
                "segmentation": {"size": [400, 400], "counts": [160_000]}}]  # fmt: skip
    return annotations, results


def test_json_files_of_coco(tmp_path):
    import json

    annotations, results = files()
    (tmp_path / "annotations.json").write_text(json.dumps(annotations))
    (tmp_path / "results.json").write_text(json.dumps(results))
    data = load_coco(tmp_path / "annotations.json", str(tmp_path / "results.json"))
    assert data.class_names == ("person", "dog")
    assert data.image_ids.tolist() == [3, 7]
    truth, found, _ = data.packed
    np.testing.assert_array_equal(truth.boxes[:, 0], [B, A])
    assert truth.labels[:, 0].tolist() == [0, 1]
    assert truth.area[:, 0].tolist() == [2500, 2500]
    assert found.valid[:, 0].tolist() == [False, True]
    # the object with annotation id 0 is found
    np.testing.assert_allclose(coco_evaluate(*data.packed, num_classes=2).ap_per_class, [0, 1], rtol=1e-12)
    masks = load_coco(annotations, results, masks=True).packed
    assert masks.ious.tolist() == [[[0]], [[0]]]  # the detection's mask is empty
    assert masks.detections.area[1, 0] == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a, r: a.pop("images"), "'images'} is missing"),
        (lambda a, r: r[0].update(image_id=8), r"results\[0\].*image 8"),
        (lambda a, r: r[0].update(category_id=2), r"results\[0\].*category 2"),
        (lambda a, r: r[0].pop("score"), r"results\[0\].*'score'"),
        (lambda a, r: a["annotations"][1].pop("bbox"), r"annotations\[1\].*'bbox'"),
    ],
)
def test_files_that_do_not_belong_together_are_refused(change, message):
    annotations, results = files()
    change(annotations, results)
    with pytest.raises(UsageError, match=message):
        load_coco(annotations, results)


def test_a_file_that_is_none_and_files_in_the_wrong_order(tmp_path):
    with pytest.raises(UsageError, match="cannot read"):
        load_coco(tmp_path / "none.json")
    (tmp_path / "results.json").write_text("[]")
    with pytest.raises(UsageError, match="annotations come first"):
        load_coco(tmp_path / "results.json")


@pytest.mark.parametrize(
    ("targets", "predictions", "message"),
    [
        ([], [], "one dict for each image, got 0 and 0"),
        ([{"labels": [], "boxes": []}], [], "one dict for each image, got 1 and 0"),
        ([{"boxes": [A]}], [{"labels": []}], r"targets\[0\] has no 'labels'"),
        ([{"labels": [0], "boxes": [A, B]}], [{"labels": []}], r"targets\[0\] has 1 labels but 2 of 'boxes'"),
        ([{"labels": [0], "boxes": [A]}], [{"labels": [0], "boxes": [A]}], "predictions have no 'scores'"),
        ([{"labels": [0], "boxes": [A[:3]]}], [{"labels": []}], r"must have shape \[1, 4\], got \[1, 3\]"),
    ],
)
def test_lists_that_do_not_belong_together_are_refused(targets, predictions, message):
    with pytest.raises(UsageError, match=message):
        pack_detections(targets, predictions)


def naive_voc(truth, found, threshold, interpolation):
    """The development kit's loop over detections."""
    per_class = []
    for label in range(CLASSES):
        mine = [
            (i, j) for i in range(IMAGES) for j in range(FOUND) if found.valid[i, j] and found.labels[i, j] == label
        ]
        theirs = truth.valid & (truth.labels == label)
        positives, taken, hits, alarms, precision, recall = (theirs & ~truth.difficult).sum(), set(), 0, 0, [], []
        for i, j in sorted(mine, key=lambda place: -found.scores[place]):
            best, chosen = 0, None
            for k in np.flatnonzero(theirs[i]):
                a, b = found.boxes[i, j], truth.boxes[i, k]
                sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
                shared = max(sides[0], 0) * max(sides[1], 0)
                union = (a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - shared
                if shared > 0 and shared / union > best:
                    best, chosen = shared / union, (i, k)
            if best >= threshold and truth.difficult[chosen]:
                continue
            hit = best >= threshold and chosen not in taken
            hits, alarms = hits + hit, alarms + (not hit)
            taken.add(chosen if hit else None)
            precision.append(hits / (hits + alarms))
            recall.append(hits / max(positives, 1))
        precision, recall = np.array([*precision, 0]), np.array([*recall, 1.1])
        if not positives:
            per_class.append(np.nan)
        elif interpolation == "eleven_points":
            best = [max([p for p, r in zip(precision, recall, strict=True) if r >= t / 10]) for t in range(11)]
            per_class.append(np.mean(best))
        else:
            envelope = np.maximum.accumulate(precision[::-1])[::-1][:-1]
            per_class.append(np.sum(np.diff(np.append(0, recall[:-1])) * envelope))
    return np.array(per_class)


@pytest.mark.parametrize("interpolation", ["all_points", "eleven_points"])
@pytest.mark.parametrize("ties", [False, True])
def test_voc_is_the_loop_of_its_development_kit(interpolation, ties):
    for seed in range(60):
        truth, found = random_scene(seed, ties)
        ours = voc_average_precision(truth, found, num_classes=CLASSES, interpolation=interpolation)
        expected = naive_voc(truth, found, 0.5, interpolation)
        np.testing.assert_allclose(ours.per_class, expected, rtol=1e-12)
        mean = np.nan if np.isnan(expected).all() else np.nanmean(expected)
        np.testing.assert_allclose(ours.mean, mean, rtol=1e-12)


def test_voc_does_not_look_at_difficult_objects():
    truth, found = scene(([(A, 0), (B, 0, False, 2500.0, True)], [(B, 0.9, 0), (B, 0.8, 0), (A, 0.7, 0)]))
    np.testing.assert_allclose(voc_average_precision(truth, found, num_classes=CLASSES).mean, 1, rtol=1e-12)


def test_voc_inside_jit():
    inside = jax.jit(lambda truth, found: voc_average_precision(truth, found, num_classes=CLASSES))
    truth, found = random_scene(3)
    expected = voc_average_precision(truth, found, num_classes=CLASSES)
    np.testing.assert_allclose(inside(truth, found).per_class, expected.per_class, rtol=1e-5)  # float32


@jax.jit
def of_variants(truth, found):
    """COCO's and VOC's figures of a scene, of its images in another order, with a false alarm more, and if perfect."""
    turned = jax.tree.map(lambda array: array[::-1], (truth, found))
    last = lambda array, value: array.at[:, -1].set(value)
    alarm = found._replace(boxes=last(found.boxes, jnp.array(FAR)), scores=last(found.scores, -1.0),
                           valid=last(found.valid, True))  # fmt: skip
    pad = lambda array: jnp.pad(array, [(0, 0), (0, FOUND - OBJECTS), *[(0, 0)] * (array.ndim - 2)])
    regular = truth.valid & ~truth.crowd & ~truth.difficult
    perfect = Detections(pad(truth.boxes), pad(jnp.ones(regular.shape)), pad(truth.labels), pad(regular))
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), (truth, found), turned, (truth, alarm),
                           (truth._replace(valid=regular), perfect))  # fmt: skip
    coco = jax.vmap(lambda arrays: coco_evaluate(*arrays, num_classes=CLASSES))(stacked)
    return coco, jax.vmap(lambda arrays: voc_average_precision(*arrays, num_classes=CLASSES))(stacked)


@given(seed=st.integers(0, 2**31))
@settings(max_examples=1000, deadline=None, derandomize=True, database=None)
def test_what_holds_for_every_scene(seed):
    truth, found = scene_arrays(seed)
    coco, voc = of_variants(truth, found)
    figures = np.stack(coco[:12], axis=1)
    assert ((figures == -1) | ((figures >= 0) & (figures <= 1 + 1e-6))).all()  # means of float32 values
    np.testing.assert_allclose(figures[1], figures[0], rtol=1e-5, atol=1e-6)  # the order of images does not matter
    assert (figures[2, :6] <= figures[0, :6] + 1e-6).all()  # a false alarm at the end never helps
    assert np.isin(figures[3, [0, 8]].round(5), (-1, 1)).all()  # perfect detections
    ap = np.array(voc.mean)
    assert (np.isnan(ap) | ((ap >= 0) & (ap <= 1 + 1e-6))).all()
    np.testing.assert_allclose(ap[1], ap[0], rtol=1e-5)
    assert np.isnan(ap[0]) or ap[2] <= ap[0] + 1e-6
    assert np.isnan(ap[3]) or abs(ap[3] - 1) < 1e-5


def scene_arrays(seed):
    """As random_scene, in arrays at once: a thousand are drawn."""
    rng = np.random.default_rng(seed)
    low, size = rng.integers(0, 40, (IMAGES, OBJECTS, 2)), rng.choice([5, 20, 50, 120], (IMAGES, OBJECTS, 2))
    boxes = np.concatenate([low, low + size], axis=-1).astype(np.float32)
    labels = rng.integers(0, CLASSES, (IMAGES, OBJECTS)).astype(np.int32)
    flags = rng.random((3, IMAGES, OBJECTS)) < np.array([rng.random(), 0.1, 0.1])[:, None, None]
    truth = GroundTruth(boxes, labels, flags[0], flags[1], size.prod(axis=-1).astype(np.float32), flags[2])
    source = rng.integers(0, OBJECTS, (IMAGES, FOUND))
    near = np.take_along_axis(boxes, source[..., None], axis=1) + rng.integers(-3, 4, (IMAGES, FOUND, 4))
    scores = (rng.permutation(IMAGES * FOUND).reshape(IMAGES, FOUND) + 1).astype(np.float32)
    valid = rng.random((IMAGES, FOUND)) < rng.random()
    valid[:, -1] = False  # room for the false alarm
    return truth, Detections(near.astype(np.float32), scores, np.take_along_axis(labels, source, axis=1), valid)


BAD = {
    "a box upside down": lambda t, f: (t, f._replace(boxes=f.boxes[..., [2, 3, 0, 1]] - [0, 0, 1, 1])),
    "a box of NaN": lambda t, f: (t._replace(boxes=t.boxes * np.nan), f),
    "an infinite box": lambda t, f: (t, f._replace(boxes=f.boxes + np.inf)),
    "a score of NaN": lambda t, f: (t, f._replace(scores=f.scores * np.nan)),
    "an infinite score": lambda t, f: (t, f._replace(scores=f.scores + np.inf)),
    "a label too large": lambda t, f: (t, f._replace(labels=f.labels + CLASSES)),
    "a label too small": lambda t, f: (t._replace(labels=t.labels - CLASSES), f),
    "labels of floats": lambda t, f: (t, f._replace(labels=f.labels.astype(float))),
    "flags of integers": lambda t, f: (t._replace(valid=t.valid.astype(int)), f),
    "other images": lambda t, f: (t, jax.tree.map(lambda array: array[:-1], f)),
    "no images": lambda t, f: jax.tree.map(lambda array: array[:0], (t, f)),
    "no image axis": lambda t, f: jax.tree.map(lambda array: array[0], (t, f)),
    "other lengths": lambda t, f: (t, f._replace(scores=f.scores[:, :-1])),
    "boxes of three": lambda t, f: (t, f._replace(boxes=f.boxes[..., :3])),
    "an area of NaN": lambda t, f: (t._replace(area=t.area * np.nan), f),
}


@given(seed=st.integers(0, 2**31), kind=st.sampled_from(sorted(BAD)), voc=st.booleans(), where=st.booleans())
@settings(max_examples=1000, deadline=None, derandomize=True, database=None)
def test_what_makes_no_sense_is_refused_before_anything_is_computed(seed, kind, voc, where):
    truth, found = scene_arrays(seed)
    truth.valid[0, 0] = found.valid[0, 0] = True
    bad = BAD[kind](truth, found)
    function = voc_average_precision if voc else coco_evaluate
    jaxtyping.config.update("jaxtyping_disable", True)  # as a user runs it: our own checks are meant
    try:
        with pytest.raises(UsageError):
            function(*bad, num_classes=CLASSES, where=np.ones(len(bad[0].valid), bool) if where else None)
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"box_format": "xyhw"}, "did you mean"),
        ({"num_classes": 0}, "num_classes must be at least 1"),
        ({"iou_thresholds": (1.5,)}, r"in \[0, 1\]"),
        ({"iou_thresholds": ()}, "one or more"),
        ({"max_detections": (100, 10, 1)}, "three rising"),
        ({"max_detections": (100,)}, "three rising"),
        ({"area_ranges": ((0.0, 1.0),)}, "four pairs"),
        ({"classes": [3]}, r"labels in \[0, 3\)"),
        ({"image_ids": np.array([1, 1, 2, 3])}, r"\[1\] more than once"),
        ({"image_ids": np.arange(3)}, "one number for each of 4 images"),
        ({"where": np.ones(3, bool)}, "one value for each of 4 images"),
        ({"ious": np.zeros((IMAGES, FOUND, OBJECTS))}, "area of ground truth and detections"),
    ],
)
def test_options_out_of_range_are_refused(options, message, annotations_off):
    truth, found = scene_arrays(0)
    with pytest.raises(UsageError, match=message):
        coco_evaluate(truth, found, options.pop("ious", None), **{"num_classes": CLASSES, **options})


def test_boxes_upside_down_are_perhaps_of_another_format():
    truth, found = scene(([([100.0, 50, 20, 10], 0)], []))
    with pytest.raises(UsageError, match=r"first \[100.0, 50.0, 20.0, 10.0\]; are they \[x, y, width, height\]\?"):
        coco_evaluate(truth, found, num_classes=CLASSES)


@pytest.mark.parametrize(("options", "message"), [({"interpolation": "11"}, "unknown interpolation"),
                                                  ({"iou_threshold": 0.0}, r"in \(0, 1\]")])  # fmt: skip
def test_voc_options_out_of_range_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        voc_average_precision(*scene_arrays(0), num_classes=CLASSES, **options)
