"""Scores of decisions and rankings against torchmetrics, where the two libraries mean the same."""

import functools
import warnings

import jax.numpy as jnp
import numpy as np
import pytest

from dl_core import metrics
from dl_core.metrics import agreement, classification, curves

torch = pytest.importorskip("torch")
from torchvision_on_cpu import import_zoo  # noqa: E402

import_zoo()  # torchmetrics imports torchvision
theirs = pytest.importorskip("torchmetrics.functional.classification")

CLASSES = 4
CLOSE = {"rtol": 1e-5, "atol": 1e-6}  # float32 on both sides
AVERAGES = ["macro", "micro", "weighted", None]


def random_problem(seed, n=70):
    """Every class occurs, and most scores tie."""
    rng = np.random.default_rng(seed)
    labels = np.append(np.arange(CLASSES), rng.integers(0, CLASSES, n - CLASSES)).astype(np.int32)
    scores = (rng.integers(0, 12, (n, CLASSES)) + 3 * np.eye(CLASSES)[labels]) / 16
    return labels, (scores / scores.sum(axis=1, keepdims=True)).astype(np.float32)


def random_columns(seed, n=70):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, (n, CLASSES)).astype(np.int32)
    return labels, ((rng.integers(0, 12, (n, CLASSES)) + 3 * labels) / 16).astype(np.float32)


def tensors(*arrays):
    return tuple(torch.tensor(np.asarray(array)) for array in arrays)


SCORES = {
    "precision": classification.precision,
    "recall": classification.recall,
    "specificity": classification.specificity,
    "f1_score": classification.f1,
    "jaccard_index": classification.jaccard,
}


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("average", AVERAGES)
def test_scores_of_decisions(name, average):
    for seed in range(3):
        labels, scores = random_problem(seed)
        predictions = scores.argmax(axis=1).astype(np.int32)
        ours = SCORES[name](labels, predictions, num_classes=CLASSES, average=average)
        expected = getattr(theirs, f"multiclass_{name}")(
            *tensors(predictions, labels), num_classes=CLASSES, average=average
        )
        np.testing.assert_allclose(ours, expected, **CLOSE)
        labels, scores = random_columns(seed)
        ours = SCORES[name](labels, scores > 0.5, average=average)
        expected = getattr(theirs, f"multilabel_{name}")(
            *tensors(scores > 0.5, labels), num_labels=CLASSES, average=average
        )
        np.testing.assert_allclose(ours, expected, **CLOSE)


@pytest.mark.parametrize("beta", [0.5, 2.0])
def test_f_beta(beta):
    labels, scores = random_problem(0)
    predictions = scores.argmax(axis=1).astype(np.int32)
    expected = theirs.multiclass_fbeta_score(*tensors(predictions, labels), beta=beta, num_classes=CLASSES)
    ours = classification.fbeta(labels, predictions, beta=beta, num_classes=CLASSES)
    np.testing.assert_allclose(ours, expected, **CLOSE)


def test_agreement_and_the_confusion_matrix():
    labels, scores = random_problem(1)
    predictions = scores.argmax(axis=1).astype(np.int32)
    pair, size = tensors(predictions, labels), {"num_classes": CLASSES}
    np.testing.assert_array_equal(
        metrics.confusion_matrix(labels, predictions, **size), theirs.multiclass_confusion_matrix(*pair, **size)
    )
    np.testing.assert_allclose(
        agreement.matthews_correlation(labels, predictions, **size),
        theirs.multiclass_matthews_corrcoef(*pair, **size),
        **CLOSE,
    )
    for weights in (None, "linear", "quadratic"):
        np.testing.assert_allclose(
            agreement.cohen_kappa(labels, predictions, weights=weights, **size),
            theirs.multiclass_cohen_kappa(*pair, weights=weights, **size),
            **CLOSE,
        )


@pytest.mark.parametrize("k", [1, 2, 3])
def test_top_k_accuracy_without_ties(k):
    rng = np.random.default_rng(0)
    labels, scores = rng.integers(0, CLASSES, 70).astype(np.int32), rng.random((70, CLASSES)).astype(np.float32)
    expected = theirs.multiclass_accuracy(*tensors(scores, labels), num_classes=CLASSES, top_k=k, average="micro")
    np.testing.assert_allclose(classification.top_k_accuracy(labels, scores, k=k), expected, **CLOSE)


@pytest.mark.parametrize("name", ["auroc", "average_precision"])
def test_areas(name):
    area = getattr(curves, name)
    for seed in range(3):
        labels, scores = random_problem(seed)
        for average in ("macro", "weighted", None):
            expected = getattr(theirs, f"multiclass_{name}")(
                *tensors(scores, labels), num_classes=CLASSES, average=average
            )
            np.testing.assert_allclose(area(labels, scores, average=average), expected, **CLOSE)
        expected = getattr(theirs, f"binary_{name}")(*tensors(scores[:, 1], (labels == 1).astype(np.int32)))
        np.testing.assert_allclose(area(labels == 1, scores[:, 1]), expected, **CLOSE)
        labels, scores = random_columns(seed)
        for average in AVERAGES:
            expected = getattr(theirs, f"multilabel_{name}")(
                *tensors(scores, labels), num_labels=CLASSES, average=average
            )
            np.testing.assert_allclose(area(labels, scores, average=average), expected, **CLOSE)


def test_a_class_that_does_not_occur_is_left_out_by_skip_undefined_as_torchmetrics_does():
    """In average precision; to its AUROC torchmetrics counts a class without positives as 0."""
    labels, scores = random_problem(0)
    labels = np.where(labels == 2, 1, labels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the class that is left out
        expected = theirs.multiclass_average_precision(*tensors(scores, labels), num_classes=CLASSES)
    ours = functools.partial(curves.average_precision, labels, scores)
    np.testing.assert_allclose(ours(skip_undefined=True), expected, **CLOSE)
    assert not np.allclose(ours(), expected)


def test_curves_have_the_points_of_torchmetrics():
    labels, scores = random_columns(0)
    labels, scores = labels[:, 0], scores[:, 0]
    fpr, tpr, _ = theirs.binary_roc(*tensors(scores, labels))
    ours = curves.roc_curve(labels, scores)
    distinct = np.append(np.diff(ours.thresholds) != 0, True)
    np.testing.assert_allclose(np.asarray(ours.false_positive_rate)[distinct], fpr, **CLOSE)
    np.testing.assert_allclose(np.asarray(ours.true_positive_rate)[distinct], tpr, **CLOSE)


def test_binned_areas_are_near_those_of_torchmetrics_bins():
    """Its thresholds are points and ours are bins between them: the areas agree to the stated error of ours."""
    labels, scores = random_problem(0)
    metric = curves.binned_curve_metric(CLASSES, 50)
    ours = metric.compute(metric.update(metric.init(), labels, jnp.asarray(scores)))
    expected = theirs.multiclass_auroc(
        *tensors(scores, labels.astype(np.int64)), num_classes=CLASSES, thresholds=51, average=None
    )
    assert (np.abs(ours.auroc - expected.numpy()) <= 2 * ours.auroc_error + 1e-5).all()
