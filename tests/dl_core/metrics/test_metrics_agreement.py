"""Agreement beyond chance is scikit-learn's, also where it is undefined and where one class is nearly everything."""

import functools
import warnings

import jax
import numpy as np
import pytest
import sklearn.metrics as sk
from partitions import assert_any_partition_gives_the_whole

from dl_core.errors import UsageError
from dl_core.metrics import agreement as ours
from dl_core.metrics.classification import confusion_metric

CLASSES = 4


def ratings(seed, n=60):
    rng = np.random.default_rng(seed)
    labels = rng.choice(CLASSES, n, p=[0.85, 0.1, 0.05, 0]).astype(np.int32)
    return labels, np.where(rng.random(n) < 0.5, labels, rng.integers(0, 3, n)).astype(np.int32)


@pytest.mark.parametrize("seed", range(5))
def test_agreement_is_that_of_scikit_learn(seed):
    labels, predictions = ratings(seed)
    result = ours.matthews_correlation(labels, predictions, num_classes=CLASSES)
    # float32 differences of products of shares: 1e-6 of 1.
    np.testing.assert_allclose(result, sk.matthews_corrcoef(labels, predictions), atol=2e-6)
    for weights in (None, "linear", "quadratic"):
        result = ours.cohen_kappa(labels, predictions, num_classes=CLASSES, weights=weights)
        np.testing.assert_allclose(result, sk.cohen_kappa_score(labels, predictions, weights=weights), atol=2e-6)


@pytest.mark.parametrize(
    ("labels", "predictions"), [([1, 1], [1, 1]), ([1, 1], [0, 0]), ([0, 1], [1, 1]), ([0, 1], [1, 0])]
)
def test_lists_of_a_single_class_follow_scikit_learn(labels, predictions):
    labels, predictions = np.array(labels), np.array(predictions)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # which is all that scikit-learn says of it
        expected = sk.matthews_corrcoef(labels, predictions), sk.cohen_kappa_score(labels, predictions)
    np.testing.assert_allclose(ours.matthews_correlation(labels, predictions, num_classes=2), expected[0])
    np.testing.assert_allclose(ours.cohen_kappa(labels, predictions, num_classes=2), expected[1])


def test_a_class_of_a_few_in_a_million_keeps_its_digits():
    matrix = np.array([[999_990, 4], [2, 4]], np.int32)
    tn, fp, fn, tp = (int(count) for count in matrix.ravel())
    exact = (tp * tn - fp * fn) / ((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)) ** 0.5
    np.testing.assert_allclose(jax.jit(ours.matthews_from_confusion)(matrix), exact, rtol=1e-5)


def test_the_accumulators_give_the_whole():
    labels, predictions = ratings(0)
    for compute in (ours.matthews_from_confusion, functools.partial(ours.kappa_from_confusion, weights="linear")):
        expected = compute(sk.confusion_matrix(labels, predictions, labels=np.arange(CLASSES)).astype(np.int32))
        assert_any_partition_gives_the_whole(
            confusion_metric(CLASSES, compute), (labels, predictions), expected, seeds=1
        )


def test_nonsense_is_refused():
    labels = np.array([0, 1])
    with pytest.raises(UsageError, match="did you mean 'linear'"):
        ours.cohen_kappa(labels, labels, num_classes=2, weights="liner")
    with pytest.raises(UsageError, match=r"\[0, 1\), got values in \[0, 1\]"):
        ours.matthews_correlation(labels, labels, num_classes=1)
