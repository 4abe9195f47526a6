"""Scores of decisions agree with scikit-learn, and refuse what cannot be scored."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics as sk

from dl_core.errors import UsageError
from dl_core.metrics import classification as ours

# Both sides are ratios of small integers: float32 rounding of a mean of a few.
RTOL = 1e-6
CLASSES = 6


def decisions(seed, *, absent=True, n=80):
    """Class 5 never occurs at all, class 4 only among the labels, class 3 only among the predictions."""
    rng = np.random.default_rng(seed)
    labels, predictions = rng.integers(0, 3, (2, n)).astype(np.int32)
    if absent:
        labels[:7], predictions[7:12] = 4, 3
    return labels, predictions


def specificity_by_hand(labels, predictions, **_):
    negative = [labels != k for k in range(CLASSES)]
    return np.array([(predictions[rows] != k).mean() if rows.any() else 0.0 for k, rows in enumerate(negative)])


SCORES = [(ours.precision, sk.precision_score), (ours.recall, sk.recall_score), (ours.f1, sk.f1_score)]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("score", "reference"), SCORES)
@pytest.mark.parametrize("average", ["macro", "micro", "weighted", None])
@pytest.mark.parametrize("zero_division", [0.0, 1.0, np.nan])
def test_multi_class_scores_agree_with_scikit_learn(seed, score, reference, average, zero_division):
    labels, predictions = decisions(seed)
    classes = {"labels": np.arange(CLASSES)} if average is None else {}
    expected = reference(labels, predictions, average=average, zero_division=zero_division, **classes)
    result = score(labels, predictions, num_classes=CLASSES, average=average, zero_division=zero_division)
    np.testing.assert_allclose(result, expected, rtol=RTOL)


@pytest.mark.parametrize(("score", "reference"), SCORES)
@pytest.mark.parametrize("average", ["macro", "micro", "weighted", None])
def test_multi_label_scores_agree_with_scikit_learn(score, reference, average):
    labels, predictions = np.random.default_rng(0).integers(0, 2, (2, 50, 4)).astype(np.int32)
    expected = reference(labels, predictions, average=average, zero_division=0)
    np.testing.assert_allclose(score(labels, predictions, average=average), expected, rtol=RTOL)
    np.testing.assert_allclose(score(labels == 1, predictions == 1, average=average), expected, rtol=RTOL)


@pytest.mark.parametrize(("score", "reference"), SCORES)
def test_binary_scores_agree_with_scikit_learn(score, reference):
    labels, predictions = np.random.default_rng(0).integers(0, 2, (2, 50)).astype(np.uint8)
    result = score(labels, predictions, num_classes=2, average="binary")
    np.testing.assert_allclose(result, reference(labels, predictions), rtol=RTOL)


def test_confusion_matrix_and_accuracies_agree_with_scikit_learn():
    labels, predictions = decisions(0)
    expected = sk.confusion_matrix(labels, predictions, labels=np.arange(CLASSES))
    np.testing.assert_array_equal(ours.confusion_matrix(labels, predictions, num_classes=CLASSES), expected)
    np.testing.assert_allclose(ours.accuracy(labels, predictions), sk.accuracy_score(labels, predictions), rtol=RTOL)
    # scikit-learn warns of the class that is predicted and never true, as ours silently leaves it out.
    known = predictions != 3
    np.testing.assert_allclose(
        ours.balanced_accuracy(labels, predictions, num_classes=CLASSES, where=known),
        sk.balanced_accuracy_score(labels[known], predictions[known]),
        rtol=RTOL,
    )
    multi = np.random.default_rng(0).integers(0, 2, (2, 50, 3)).astype(np.int32)
    np.testing.assert_allclose(ours.accuracy(*multi), sk.accuracy_score(*multi), rtol=RTOL)


def test_specificity_is_recall_of_the_other_classes():
    labels, predictions = decisions(1)
    result = ours.specificity(labels, predictions, num_classes=CLASSES, average=None)
    np.testing.assert_allclose(result, specificity_by_hand(labels, predictions), rtol=RTOL)


@pytest.mark.parametrize("score", [ours.precision, ours.recall, ours.f1, ours.specificity, ours.balanced_accuracy])
def test_masked_rows_are_not_there_and_jit_changes_nothing(score):
    labels, predictions = decisions(2)
    where = np.random.default_rng(0).random(len(labels)) < 0.6
    masked = jax.jit(lambda y, p, w: score(y, p, num_classes=CLASSES, where=w))
    expected = score(labels[where], predictions[where], num_classes=CLASSES)
    spoiled = np.where(where, labels, -1).astype(np.int32)  # what a padded row holds must not matter
    np.testing.assert_allclose(masked(spoiled, predictions, where), expected, rtol=RTOL)
    np.testing.assert_allclose(score(spoiled, predictions, num_classes=CLASSES, where=where), expected, rtol=RTOL)


def test_a_class_outside_the_range_never_lands_in_another_class():
    """In jit nothing can be raised: such rows are left out rather than wrapped around."""
    labels = jnp.array([0, -1, 1, 7])
    matrix = jax.jit(lambda y: ours.confusion_matrix(y, jnp.array([0, 0, 1, 1]), num_classes=2))(labels)
    np.testing.assert_array_equal(matrix, np.eye(2, dtype=int))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda y: ours.f1(y, y, num_classes=2), r"\[0, 2\), got values in \[0, 3\]"),
        (lambda y: ours.f1(y, y), "num_classes must be given"),
        (lambda y: ours.f1(y, y, num_classes=4, average="marco"), "did you mean 'macro'"),
        (lambda y: ours.confusion_matrix(y - 1, y, num_classes=4), "labels must lie"),
        (lambda y: ours.recall(y[:, None], y[:, None]), "multi-label labels must lie"),
    ],
)
def test_nonsense_is_refused_with_the_value_given(call, words):
    with pytest.raises(UsageError, match=words):
        call(np.array([0, 3, 1]))
