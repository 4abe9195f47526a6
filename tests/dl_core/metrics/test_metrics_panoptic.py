"""Panoptic quality: the paper's definition segment by segment, void and crowd as COCO has them."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import config as annotations
from partitions import assert_any_partition_gives_the_whole
from PIL import Image
from scipy import ndimage

from dl_core.errors import UsageError
from dl_core.metrics.panoptic import panoptic_quality, panoptic_quality_metric

RTOL = 2e-6  # sums and ratios of a few float32
CLASSES = 4


def by_the_book(labels, categories, predictions, own_categories, crowd=None, num_classes=CLASSES):
    """Loops over images and pairs of segments; returns pq, sq, rq [classes]."""
    iou_sum, hits, wrong = np.zeros((3, num_classes))
    for image in range(len(labels)):
        category = lambda table, k, image=image: table[image][k] if k >= 0 else -1
        truth = {int(k): labels[image] == k for k in np.unique(labels[image]) if category(categories, k) >= 0}
        guess = {
            int(k): predictions[image] == k for k in np.unique(predictions[image]) if category(own_categories, k) >= 0
        }
        void = ~np.logical_or.reduce([*truth.values(), np.zeros(labels[image].shape, bool)])
        is_crowd = lambda k, image=image: crowd is not None and crowd[image][k]
        matched, used = set(), set()
        for t, true_mask in truth.items():
            for g, mask in guess.items():
                if is_crowd(t) or category(categories, t) != category(own_categories, g):
                    continue
                iou = (true_mask & mask).sum() / (true_mask | (mask & ~void)).sum()
                if iou > 0.5:
                    iou_sum[category(categories, t)] += iou
                    hits[category(categories, t)] += 1
                    matched.add(t)
                    used.add(g)
        for t in truth.keys() - matched:
            wrong[category(categories, t)] += not is_crowd(t)
        for g in guess.keys() - used:
            own = category(own_categories, g)
            excused = void | np.logical_or.reduce(
                [void, *(truth[t] for t in truth if is_crowd(t) and category(categories, t) == own)]
            )
            wrong[own] += (guess[g] & excused).sum() / guess[g].sum() <= 0.5
    with np.errstate(invalid="ignore"):
        absent = np.where(hits + wrong > 0, 0.0, np.nan)
        sq, rq = iou_sum / np.maximum(hits, 1), hits / np.maximum(hits + wrong / 2, 0.5)
    return sq * rq + absent, sq + absent, rq + absent


def scenes(seed, n=5, size=(12, 14), segments=6, right=0.7):
    """Blocky segments of random classes, -1 among ids and classes; predictions are shifted, relabelled truth."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(-1, segments, (n, -(-size[0] // 4), -(-size[1] // 4)))
    labels = blocks.repeat(4, axis=1).repeat(4, axis=2)[:, : size[0], : size[1]].astype(np.int32)
    categories = rng.integers(-1, CLASSES - 1, (n, segments)).astype(np.int32)  # the last class never occurs
    predictions = np.roll(labels, rng.integers(0, 2), axis=2)
    predictions = np.where(rng.random(labels.shape) < 0.9, predictions, -1).astype(np.int32)
    own = np.where(rng.random((n, segments)) < right, categories, rng.integers(-1, CLASSES - 1, (n, segments)))
    own_categories = np.concatenate([own, np.full((n, 2), -1)], axis=1).astype(np.int32)
    return labels, categories, predictions, own_categories, rng.random((n, segments)) < 0.2


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("with_crowd", [False, True])
def test_quality_is_that_of_the_definition(seed, with_crowd):
    *arrays, crowd = scenes(seed)
    crowd = crowd if with_crowd else None
    result = panoptic_quality(*arrays, num_classes=CLASSES, crowd=crowd)
    for ours, expected in zip(result, by_the_book(*arrays, crowd), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=RTOL)


def by_hand(labels, categories, predictions, own_categories, crowd=(False,)):
    """The quality of one small image, padded so that all tests share one compilation; classes 0, 1 and 2."""
    ids = np.full((2, 1, 3, 6), -1, np.int32)
    where = np.zeros(ids.shape[1:], bool)
    for padded, given_ids in zip(ids, (labels, predictions), strict=True):
        padded[0, : len(given_ids), : len(given_ids[0])] = given_ids
    where[0, : len(labels), : len(labels[0])] = True
    pad = lambda values, filler: np.array([[*values, *[filler] * (3 - len(values))]])
    return panoptic_quality(
        ids[0],
        pad(categories, -1),
        ids[1],
        pad(own_categories, -1),
        num_classes=3,
        crowd=pad(crowd, False),
        where=where,
    )


def test_a_case_by_hand():
    """Class 0: one match of IoU 6/8, one missed; class 1: one false positive. PQ₀ = 6/8 / 1.5, PQ₁ = 0."""
    labels = [[0, 0, 0, 0], [0, 0, 0, 0], [1, 1, -1, -1]]
    predictions = [[0, 0, 0, 1], [0, 0, 0, 1], [-1, -1, -1, -1]]
    quality = by_hand(labels, [0, 0], predictions, [0, 1])
    np.testing.assert_allclose(quality.sq, [0.75, 0, np.nan])
    np.testing.assert_allclose(quality.rq, [1 / 1.5, 0, np.nan], rtol=RTOL)
    np.testing.assert_allclose(quality.pq, [0.5, 0, np.nan], rtol=RTOL)
    np.testing.assert_allclose(quality.mean().pq, 0.25, rtol=RTOL)
    np.testing.assert_allclose(quality.mean(np.array([True, False, True])).pq, 0.5, rtol=RTOL)
    assert np.isnan(quality.mean(np.array([False, False, True])).sq)


def test_an_overlap_of_exactly_half_is_no_match():
    np.testing.assert_array_equal(by_hand([[0, 0, 0, 0]], [0], [[0, 0, 1, 1]], [0, 1]).rq, [0, 0, np.nan])


def test_void_does_not_count_against_a_segment_nor_make_a_false_positive():
    quality = by_hand([[0, 0, -1, -1, -1, -1]], [0], [[0, 0, 0, 1, 1, 1]], [0, 0])
    np.testing.assert_array_equal(quality.pq, [1, np.nan, np.nan])


def test_a_crowd_is_neither_missed_nor_matched_and_excuses_its_own_class_only():
    score = lambda own: by_hand([[0, 0, 0, 0, 1, 1]], [0, 1], [[0, 0, 1, 1, 2, 2]], own, crowd=[True, False]).pq
    np.testing.assert_array_equal(score([0, 0, 1]), [np.nan, 1, np.nan])
    np.testing.assert_allclose(score([0, 1, 1]), [np.nan, 1 / 1.5, np.nan], rtol=RTOL)


def test_pixels_and_images_that_do_not_count_are_not_there():
    labels, categories, predictions, own, _ = scenes(7)
    where = np.ones(labels.shape, bool)
    where[:, :, 10:] = False
    cut = panoptic_quality(labels[..., :10], categories, predictions[..., :10], own, num_classes=CLASSES)
    masked = panoptic_quality(labels, categories, predictions, own, num_classes=CLASSES, where=where)
    np.testing.assert_array_equal(masked.pq, cut.pq)
    rows = np.array([1, 0, 1, 0, 0], bool)
    spoiled = np.where(rows[:, None, None], labels, 77)
    some = panoptic_quality(labels[rows], categories[rows], predictions[rows], own[rows], num_classes=CLASSES)
    masked = panoptic_quality(spoiled, categories, predictions, own, num_classes=CLASSES, where=rows)
    np.testing.assert_array_equal(masked.pq, some.pq)


def test_any_partition_gives_the_whole():
    arrays = scenes(3, n=23)
    expected = panoptic_quality(*arrays[:4], num_classes=CLASSES, crowd=arrays[4])
    assert_any_partition_gives_the_whole(panoptic_quality_metric(num_classes=CLASSES), arrays, expected, rtol=RTOL)


def test_real_nuclei_found_again_after_erosion(data_dir):
    """Nuclei are things beside one stuff class, the background; the prediction erodes them and loses the small ones."""
    files = sorted((data_dir / "dsb2018_nuclei" / "labels").glob("*.png"))[:3]
    if not files:
        pytest.skip("dsb2018_nuclei is not there")
    labels = np.stack([np.asarray(Image.open(file)).astype(np.int32)[:256, :256] for file in files])
    predictions = np.stack([np.where(ndimage.binary_erosion(ids > 0, iterations=2), ids, 0) for ids in labels])
    categories = np.full((len(labels), 100), -1, np.int32)
    categories[:, 1 : labels.max() + 1], categories[:, 0] = 1, 0
    arrays = (labels, categories, predictions, categories)
    quality = panoptic_quality(*arrays, num_classes=2)
    for ours, expected in zip(quality, by_the_book(*arrays, num_classes=2), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=RTOL)
    assert 0.3 < quality.pq[1] < 0.9 < quality.pq[0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"predictions": np.zeros((2, 3, 4), np.int32)}, "of one shape"),
        ({"labels": np.full((2, 3, 3), 5)}, r"labels must lie in \[0, 2\), or be -1 for void"),
        ({"label_categories": np.full((2, 2), 3)}, r"label_categories must lie in \[0, 3\), or be -1 for padding"),
        ({"prediction_categories": np.zeros((3, 2), np.int32)}, r"\[n, segments\] with n = 2"),
        ({"predictions": np.zeros((2, 3, 3), np.float32)}, "predictions must be integers, got float32"),
        ({"crowd": np.zeros((2, 3), bool)}, "crowd must have the shape"),
        ({"where": np.zeros((2, 3), bool)}, r"where must be \[n\]"),
        ({"num_classes": 0}, "at least 1, got 0"),
    ],
)
def test_nonsense_is_refused_with_the_value_given(change, words, annotations_off):
    good = {name: np.zeros((2, 3, 3), np.int32) for name in ("labels", "predictions")}
    good |= {f"{name}_categories": np.zeros((2, 2), np.int32) for name in ("label", "prediction")}
    with pytest.raises(UsageError, match=words):
        panoptic_quality(**(good | {"num_classes": 3} | change))


compiled = jax.jit(lambda *arrays: panoptic_quality(*arrays[:4], num_classes=CLASSES, crowd=arrays[4]))


@settings(max_examples=1000, deadline=None, derandomize=True, database=None)
@given(seed=st.integers(0, 2**32 - 1), n=st.sampled_from([1, 2]), right=st.floats(0, 1))
def test_any_scene_scores_what_the_definition_says(seed, n, right):
    arrays = scenes(seed, n=n, size=(8, 9), segments=4, right=right)
    quality = compiled(*arrays)
    for ours, expected in zip(quality, by_the_book(*arrays), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=RTOL)
    assert np.nanmax(np.append(quality.pq, 0)) <= 1


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(
    seed=st.integers(0, 2**32 - 1), name=st.sampled_from(["labels", "predictions", "label", "prediction"]),
    fault=st.sampled_from(["too large", "too small", "float", "shape", "empty", "nan"]),
)  # fmt: skip
def test_every_malformed_scene_is_refused(seed, name, fault):
    rng = np.random.default_rng(seed)
    names = ("labels", "label_categories", "predictions", "prediction_categories")
    arrays = dict(zip(names, scenes(seed, n=2)[:4], strict=True))
    name = name if name.endswith("s") else f"{name}_categories"
    array = arrays[name].copy()
    if fault == "shape":
        array = array[:, 0] if rng.random() < 0.5 else array[:1]
    elif fault == "empty":
        array = array[:, :0]
    elif fault in ("float", "nan"):
        array = np.full(array.shape, np.nan if fault == "nan" else 0.5, np.float32)
    else:
        index = tuple(int(rng.integers(0, size)) for size in array.shape)
        array[index] = rng.integers(8, 2**30) if fault == "too large" else -rng.integers(2, 2**30)
    annotations.update("jaxtyping_disable", True)
    try:
        with pytest.raises(UsageError):
            panoptic_quality(**(arrays | {name: array}), num_classes=CLASSES)
    finally:
        annotations.update("jaxtyping_disable", False)
