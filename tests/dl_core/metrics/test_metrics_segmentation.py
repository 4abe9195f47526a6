"""Scores of class maps: what they count, what they leave out, and that the two mean IoUs are told apart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics as sk
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import config as annotations
from partitions import assert_any_partition_gives_the_whole
from PIL import Image
from scipy import ndimage

from dl_core.errors import UsageError
from dl_core.metrics.segmentation import (
    dice,
    dice_metric,
    iou,
    iou_metric,
    mean_pixel_accuracy,
    mean_pixel_accuracy_metric,
    pixel_accuracy,
    pixel_accuracy_metric,
)
from dl_core.metrics.segmentation_boundary import boundary_iou, boundary_iou_metric, boundary_width

# Ratios of whole numbers in float32, and means of a few of them.
RTOL = 2e-6
CLASSES = 5
SCORES = [iou, dice, mean_pixel_accuracy, boundary_iou]
METRICS = [iou_metric, dice_metric, mean_pixel_accuracy_metric, boundary_iou_metric]


def maps(seed=0, n=6, size=(9, 12)):
    """Class 4 never occurs, class 3 only among the predictions of the last image."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, (n, *size)).repeat(2, axis=1).repeat(2, axis=2)[:, : size[0], : size[1]]
    predictions = np.where(rng.random(labels.shape) < 0.3, rng.integers(0, 3, labels.shape), labels)
    predictions[-1, :2] = 3
    return labels.astype(np.int32), predictions.astype(np.int32)


def eroded(mask, distance):
    """As the authors of boundary IoU: zeros around the image, then that many erosions by a square of 3."""
    return ndimage.binary_erosion(np.pad(mask, 1), np.ones((3, 3)), distance, border_value=1)[1:-1, 1:-1]


def boundary(mask, distance):
    return mask & ~eroded(mask, distance)


@pytest.mark.parametrize("average", ["macro", "micro", "weighted", None])
@pytest.mark.parametrize(
    ("score", "reference"), [(iou, sk.jaccard_score), (dice, sk.f1_score), (mean_pixel_accuracy, sk.recall_score)]
)
def test_scores_of_a_data_set_are_those_of_all_its_pixels_in_scikit_learn(score, reference, average):
    labels, predictions = maps()
    present = np.arange(4 if score is not mean_pixel_accuracy else 3)  # the classes that have a score
    expected = reference(labels.ravel(), predictions.ravel(), average=average, labels=present)
    result = score(labels, predictions, num_classes=CLASSES, average=average)
    if average is None:
        assert np.isnan(result[len(present) :]).all()
        result = result[: len(present)]
    if average == "micro" and score is mean_pixel_accuracy:  # scikit-learn counts the chosen classes alone
        expected = pixel_accuracy(labels, predictions)
    np.testing.assert_allclose(result, expected, rtol=RTOL)


def test_pixel_accuracy_is_the_share_of_right_pixels():
    labels, predictions = maps()
    np.testing.assert_allclose(pixel_accuracy(labels, predictions), (labels == predictions).mean(), rtol=RTOL)


def test_the_mean_over_images_is_not_the_figure_of_the_data_set():
    """One image all right with 2 foreground pixels, one with 1 of 6 found: 3/8 by pixels, (1 + 1/6) / 2 by images."""
    labels, predictions = np.zeros((2, 2, 4, 4), bool)
    labels[0, 0, :2] = predictions[0, 0, :2] = True
    labels[1, :2, :3], predictions[1, 0, 0] = True, True
    assert iou(labels, predictions) == 3 / 8
    np.testing.assert_allclose(iou(labels, predictions, aggregate="images"), (1 + 1 / 6) / 2, rtol=RTOL)


@pytest.mark.parametrize("score", SCORES)
def test_the_mean_over_images_is_the_mean_of_their_scores(score):
    labels, predictions = maps()
    each = [score(labels[[k]], predictions[[k]], num_classes=CLASSES) for k in range(len(labels))]
    result = score(labels, predictions, num_classes=CLASSES, aggregate="images")
    np.testing.assert_allclose(result, np.mean(each), rtol=RTOL)


def test_a_class_is_averaged_over_the_images_where_it_occurs():
    labels, predictions = maps()
    per_class = iou(labels, predictions, num_classes=CLASSES, aggregate="images", average=None)
    assert per_class[3] == 0  # predicted in one image, true in none
    assert np.isnan(per_class[4])
    first = [iou(labels[[k]] == 1, predictions[[k]] == 1) for k in range(len(labels))]
    np.testing.assert_allclose(per_class[1], np.mean(first), rtol=RTOL)


@pytest.mark.parametrize("score", [iou, dice, boundary_iou])
def test_the_score_of_a_binary_mask_is_that_of_its_foreground(score):
    labels, predictions = (classes == 1 for classes in maps())
    expected = score(labels.astype(np.int32), predictions.astype(np.int32), num_classes=2, average=None)[1]
    assert score(labels, predictions) == expected
    assert score(labels.astype(np.uint8), predictions.astype(np.uint8)) == expected


def test_dice_and_iou_rank_alike():
    """Dice = 2 IoU / (1 + IoU) for each class."""
    labels, predictions = maps()
    overlap = iou(labels, predictions, num_classes=CLASSES, average=None)
    expected = 2 * overlap / (1 + overlap)
    np.testing.assert_allclose(dice(labels, predictions, num_classes=CLASSES, average=None), expected, rtol=RTOL)


@pytest.mark.parametrize("score", [*SCORES, pixel_accuracy])
@pytest.mark.parametrize("aggregate", ["dataset", "images"])
def test_pixels_that_do_not_count_may_hold_anything(score, aggregate):
    labels, predictions = maps(1)
    ignored = np.zeros(labels.shape, bool)
    ignored[:, 3:6, 4:] = True
    options = {"aggregate": aggregate} | ({} if score is pixel_accuracy else {"num_classes": CLASSES})
    expected = score(labels, np.where(ignored, labels, predictions), where=~ignored, **options)
    marked = np.where(ignored, 255, labels).astype(np.int32)
    spoiled = np.where(ignored, 99, predictions).astype(np.int32)
    np.testing.assert_allclose(score(marked, spoiled, ignore_label=255, **options), expected, rtol=RTOL)
    np.testing.assert_allclose(score(marked, spoiled, where=~ignored, **options), expected, rtol=RTOL)
    compiled = jax.jit(lambda y, p: score(y, p, ignore_label=255, **options))
    np.testing.assert_allclose(compiled(marked, spoiled), expected, rtol=RTOL)


@pytest.mark.parametrize("score", SCORES)
def test_masked_images_are_not_there(score):
    labels, predictions = maps(2)
    where = np.array([1, 0, 1, 1, 0, 0], bool)
    expected = score(labels[where], predictions[where], num_classes=CLASSES)
    np.testing.assert_allclose(score(labels, predictions, num_classes=CLASSES, where=where), expected, rtol=RTOL)


@pytest.mark.parametrize("make", METRICS)
@pytest.mark.parametrize("aggregate", ["dataset", "images"])
def test_any_partition_gives_the_whole(make, aggregate):
    labels, predictions = maps(3, n=21, size=(7, 6))
    metric = make(num_classes=CLASSES, average=None, aggregate=aggregate)
    expected = metric.compute(metric.update(metric.init(), labels, predictions))
    # The same counts; means over images add float32 in another order.
    assert_any_partition_gives_the_whole(metric, (labels, predictions), expected, seeds=1, rtol=RTOL)


def test_any_partition_gives_the_pixel_accuracy_of_the_whole():
    labels, predictions = maps(3, n=21, size=(7, 6))
    expected = pixel_accuracy(labels, predictions)
    assert_any_partition_gives_the_whole(pixel_accuracy_metric(), (labels, predictions), expected, seeds=1, rtol=0)


def test_more_pixels_than_int32_can_count_are_counted():
    """Twenty doublings of 4099 pixels, 1 wrong among them: 4 billion pixels, exact to the last one."""
    labels = np.zeros((1, 4099), bool)
    predictions = labels.copy()
    predictions[0, 0] = True
    metric = pixel_accuracy_metric()
    state = metric.update(metric.init(), labels, predictions)
    for _ in range(20):
        state = metric.merge(state, state)
    total = lambda count: float(count.high[0]) + float(count.low[0])
    assert total(state.true_positive) == 4098 * 2**20
    odd = metric.update(state, labels, predictions)
    assert total(odd.true_positive) == 4098 * (2**20 + 1)
    np.testing.assert_allclose(metric.compute(odd), 4098 / 4099, rtol=RTOL)


@pytest.mark.parametrize("size", [(20, 31), (60, 80), (150, 160)])
def test_boundary_iou_is_that_of_the_authors_definition(size):
    rng = np.random.default_rng(0)
    blobs = ndimage.gaussian_filter(rng.normal(size=(2, 2, *size)), (0, 0, 4, 4))
    labels, predictions = blobs[0] > 0, blobs[0] + 0.3 * blobs[1] > 0
    distance = max(1, round(0.02 * np.hypot(*size)))
    assert boundary_width(*size) == distance
    true, predicted = (np.stack([boundary(mask, distance) for mask in masks]) for masks in (labels, predictions))
    expected = (true & predicted).sum() / (true | predicted).sum()
    np.testing.assert_allclose(boundary_iou(labels, predictions), expected, rtol=RTOL)
    if size == (20, 31):
        both = boundary_iou(labels.astype(np.int32), predictions.astype(np.int32), num_classes=2, average=None)
        outer = [np.stack([boundary(~mask, distance) for mask in masks]) for masks in (labels, predictions)]
        np.testing.assert_allclose(both, [(outer[0] & outer[1]).sum() / (outer[0] | outer[1]).sum(), expected], RTOL)


def test_boundary_iou_tells_a_rough_contour_of_a_large_object():
    """IoU hardly notices a square that is one pixel too wide on each side; its boundary does."""
    labels, predictions = np.zeros((2, 1, 50, 50), bool)
    labels[0, 5:45, 5:45], predictions[0, 4:46, 4:46] = True, True
    np.testing.assert_allclose(iou(labels, predictions), 40**2 / 42**2, rtol=RTOL)
    assert boundary_iou(labels, predictions) == 0  # boundaries one pixel thick, one beside the other


def test_a_wider_boundary_ends_as_the_whole_mask():
    labels, predictions = (classes == 1 for classes in maps(4))
    np.testing.assert_allclose(boundary_iou(labels, predictions, dilation_ratio=1.0), iou(labels, predictions), RTOL)


def test_scores_of_real_nuclei_are_those_of_numpy(data_dir):
    folder = data_dir / "dsb2018_nuclei" / "labels"
    files = sorted(folder.glob("*.png"))[:6]
    if not files:
        pytest.skip("dsb2018_nuclei is not there")
    labels = np.stack([np.asarray(Image.open(file))[:256, :256] > 0 for file in files])
    predictions = np.stack([ndimage.binary_opening(np.roll(mask, 2, axis=1), np.ones((5, 5))) for mask in labels])
    both, either = (labels & predictions).sum((1, 2)), (labels | predictions).sum((1, 2))
    np.testing.assert_allclose(iou(labels, predictions), both.sum() / either.sum(), rtol=RTOL)
    np.testing.assert_allclose(iou(labels, predictions, aggregate="images"), (both / either).mean(), rtol=RTOL)
    true, predicted = (np.stack([boundary(mask, 7) for mask in masks]) for masks in (labels, predictions))
    expected = ((true & predicted).sum((1, 2)) / (true | predicted).sum((1, 2))).mean()
    np.testing.assert_allclose(boundary_iou(labels, predictions, aggregate="images"), expected, rtol=RTOL)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda y: iou(y, y[:, 1:], num_classes=3), "of one shape"),
        (lambda y: iou(y[0, 0], y[0, 0], num_classes=3), "must be class maps"),
        (lambda y: iou(y, y), r"predictions must lie in \[0, 2\)|labels must lie in \[0, 2\)"),
        (lambda y: iou(y, y.astype(np.float32), num_classes=3), "must be integers or booleans, got float32"),
        (lambda y: iou(y, y, num_classes=0), "at least 1, got 0"),
        (lambda y: iou(y, y, num_classes=3, average="marco"), "did you mean 'macro'"),
        (lambda y: dice(y, y, num_classes=3, aggregate="image"), "did you mean 'images'"),
        (lambda y: dice(y, y, num_classes=3, where=np.ones(5, bool)), r"\[n\] or of the labels' shape"),
        (lambda y: boundary_iou(y, y, num_classes=3, dilation_ratio=0.0), "must lie in .0, 1., got 0.0"),
        (lambda y: boundary_iou(y[:, 0], y[:, 0], num_classes=3), r"\[n, height, width\]"),
        (lambda y: mean_pixel_accuracy(y, y + 1, num_classes=3), r"predictions must lie in \[0, 3\)"),
    ],
)
def test_nonsense_is_refused_with_the_value_given(call, words, annotations_off):
    with pytest.raises(UsageError, match=words):
        call(np.arange(24, dtype=np.int32).reshape(2, 3, 4) % 3)


@jax.jit
def every_score(labels, predictions, where):
    """Per class; of the labels against the predictions and against themselves."""
    options = {"num_classes": 3, "average": None, "ignore_label": 9, "where": where}
    return {
        (score.__name__, aggregate): jnp.stack(
            [score(labels, other, aggregate=aggregate, **options) for other in (predictions, labels)]
        )
        for score in SCORES
        for aggregate in ("dataset", "images")
    }


@settings(max_examples=1000, deadline=None, derandomize=True, database=None)
@given(seed=st.integers(0, 2**32 - 1), right=st.floats(0, 1), kept=st.sampled_from([0.1, 0.8, 1.0]))
def test_any_maps_score_within_the_range_and_the_truth_scores_1(seed, right, kept):
    rng = np.random.default_rng(seed)
    labels = rng.choice(np.array([0, 1, 2, 9], np.int32), (3, 5, 6), p=rng.dirichlet(np.ones(4)))
    predictions = np.where(rng.random(labels.shape) < right, labels, rng.integers(0, 3, labels.shape)).astype(np.int32)
    where = rng.random(labels.shape) < kept
    occurs = np.array([(labels[where] == k).any() for k in range(3)])
    scores = jax.tree.map(np.asarray, every_score(labels, predictions, where))
    for (name, _), (of_predictions, of_truth) in scores.items():
        # A mean over images may round up.
        assert ((of_predictions >= 0) & (of_predictions <= 1 + 1e-6) | np.isnan(of_predictions)).all()
        assert np.isnan(of_truth[~occurs]).all()
        whole = of_truth[occurs]  # a class that touches nothing but ignored pixels has no boundary
        np.testing.assert_allclose(whole[~np.isnan(whole)] if name == "boundary_iou" else whole, 1, rtol=1e-6)
    y, p = labels[where & (labels != 9)], predictions[where & (labels != 9)]
    either = np.array([((y == k) | (p == k)).sum() for k in range(3)])
    both = np.array([((y == k) & (p == k)).sum() for k in range(3)])
    expected = np.where(either > 0, both / np.maximum(either, 1), np.nan)
    np.testing.assert_allclose(scores["iou", "dataset"][0], expected, rtol=RTOL)


SPOIL = {
    "predictions of another shape": lambda y, p, rng: {"predictions": p[..., :-1]},
    "no image axis": lambda y, p, rng: {"labels": y.reshape(-1), "predictions": p.reshape(-1)},
    "scores instead of classes": lambda y, p, rng: {"predictions": rng.random(y.shape).astype(np.float32)},
    "nan": lambda y, p, rng: {"labels": np.full(y.shape, np.nan, np.float32)},
    "a label out of range": lambda y, p, rng: {"labels": _put(y, rng, int(rng.integers(3, 2**20)))},
    "a negative label": lambda y, p, rng: {"labels": _put(y, rng, -int(rng.integers(1, 2**20)))},
    "a prediction out of range": lambda y, p, rng: {"predictions": _put(p, rng, int(rng.integers(3, 2**20)))},
    "a negative prediction": lambda y, p, rng: {"predictions": _put(p, rng, -1)},
    "a mask of another shape": lambda y, p, rng: {"where": np.ones(len(y) + 1, bool)},
    "no classes": lambda y, p, rng: {"num_classes": -int(rng.integers(0, 9))},
    "an unknown average": lambda y, p, rng: {"average": "mean"},
    "an unknown aggregate": lambda y, p, rng: {"aggregate": "pixels"},
}


def _put(array, rng, value):
    array = array.copy()
    array[tuple(int(rng.integers(0, size)) for size in array.shape)] = value
    return array


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(
    seed=st.integers(0, 2**32 - 1), shape=st.sampled_from([(1, 4, 4), (3, 5, 6)]), spoil=st.sampled_from([*SPOIL]),
    score=st.sampled_from(SCORES),
)  # fmt: skip
def test_every_malformed_input_is_refused(seed, shape, spoil, score):
    rng = np.random.default_rng(seed)
    labels, predictions = rng.integers(0, 3, (2, *shape)).astype(np.int32)
    arguments = {"labels": labels, "predictions": predictions, "num_classes": 3}
    arguments |= SPOIL[spoil](labels, predictions, rng)
    annotations.update("jaxtyping_disable", True)
    try:
        with pytest.raises(UsageError):
            score(**arguments)
    finally:
        annotations.update("jaxtyping_disable", False)


def test_nothing_to_score_is_nan():
    labels = jnp.full((2, 4, 4), 255, jnp.int32)
    assert np.isnan(iou(labels, labels * 0, num_classes=2, ignore_label=255))
    assert np.isnan(dice(labels, labels * 0, num_classes=2, ignore_label=255, aggregate="images"))
    assert np.isnan(pixel_accuracy(labels, labels, ignore_label=255))
