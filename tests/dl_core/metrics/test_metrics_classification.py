"""Scores of decisions agree with scikit-learn, and refuse what cannot be scored."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics as sk
from partitions import assert_any_partition_gives_the_whole

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
F_BETA = [
    (functools.partial(ours.fbeta, beta=beta), functools.partial(sk.fbeta_score, beta=beta)) for beta in (0.5, 2.0)
]
JACCARD = (ours.jaccard, sk.jaccard_score)


# scikit-learn's Jaccard does not leave nan out.
UNDEFINED = [(*pair, value) for pair in [*SCORES, F_BETA[1]] for value in (0.0, 1.0, np.nan)]
UNDEFINED += [(*JACCARD, value) for value in (0.0, 1.0)]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("average", ["macro", "micro", "weighted", None])
@pytest.mark.parametrize(("score", "reference", "zero_division"), UNDEFINED)
def test_multi_class_scores_agree_with_scikit_learn(seed, score, reference, average, zero_division):
    labels, predictions = decisions(seed)
    classes = {"labels": np.arange(CLASSES)} if average is None else {}
    expected = reference(labels, predictions, average=average, zero_division=zero_division, **classes)
    result = score(labels, predictions, num_classes=CLASSES, average=average, zero_division=zero_division)
    np.testing.assert_allclose(result, expected, rtol=RTOL)


@pytest.mark.parametrize(("score", "reference"), [*SCORES, *F_BETA, JACCARD])
@pytest.mark.parametrize("average", ["macro", "micro", "weighted", "samples", None])
def test_multi_label_scores_agree_with_scikit_learn(score, reference, average):
    """Column 4 never occurs, 3 only in the predictions, 2 only in the labels; a third of the rows hold nothing."""
    labels, predictions = np.random.default_rng(0).integers(0, 2, (2, 50, 5)).astype(np.int32)
    labels[:, 3:], predictions[:, 2], predictions[:, 4] = 0, 0, 0
    labels[:15], predictions[:20] = 0, 0
    for zero_division in (0.0, 1.0) if reference is sk.jaccard_score else (0.0, 1.0, np.nan):
        expected = reference(labels, predictions, average=average, zero_division=zero_division)
        result = score(labels == 1, predictions == 1, average=average, zero_division=zero_division)
        np.testing.assert_allclose(result, expected, rtol=RTOL)
    np.testing.assert_allclose(score(labels, predictions, average=average, zero_division=zero_division), result)


@pytest.mark.parametrize(("score", "reference"), [*SCORES, JACCARD])
def test_labels_that_hold_nothing_follow_scikit_learn(score, reference):
    """No weight is left for "weighted", and nothing at all to divide by."""
    nothing, something = np.zeros((4, 3), np.int32), np.eye(4, 3, dtype=np.int32)
    for labels, predictions in ((nothing, something), (something, nothing), (nothing, nothing)):
        for average in ("macro", "weighted", "micro", "samples"):
            for zero_division in (0.0, 1.0):
                expected = reference(labels, predictions, average=average, zero_division=zero_division)
                result = score(labels, predictions, average=average, zero_division=zero_division)
                np.testing.assert_allclose(result, expected, rtol=RTOL)


@pytest.mark.parametrize(("score", "reference"), [*SCORES, JACCARD])
@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize("prediction", [0, 1])
def test_data_of_a_single_class_follow_scikit_learn(score, reference, label, prediction):
    labels, predictions = np.full(5, label, np.int32), np.full(5, prediction, np.int32)
    for average in ("binary", "macro", "micro", "weighted"):
        expected = reference(labels, predictions, average=average, zero_division=0)
        np.testing.assert_allclose(score(labels, predictions, num_classes=2, average=average), expected, rtol=RTOL)


def test_f_beta_reaches_from_precision_to_recall():
    labels, predictions = decisions(0)
    f = functools.partial(ours.fbeta, labels, predictions, num_classes=CLASSES, average=None)
    options = {"num_classes": CLASSES, "average": None}
    np.testing.assert_allclose(f(beta=0.0), ours.precision(labels, predictions, **options), rtol=RTOL)
    np.testing.assert_allclose(f(beta=np.inf), ours.recall(labels, predictions, **options), rtol=RTOL)
    np.testing.assert_allclose(f(beta=1.0), ours.f1(labels, predictions, **options), rtol=RTOL)


@pytest.mark.parametrize("k", [1, 2, 3, 7])
@pytest.mark.parametrize("levels", [3, 1000])
def test_top_k_accuracy_agrees_with_scikit_learn_ties_included(k, levels):
    rng = np.random.default_rng(0)
    labels, scores = rng.integers(0, 4, 90).astype(np.int32), rng.integers(0, levels, (90, 4)).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of k beyond the classes, with which everything is right
        expected = sk.top_k_accuracy_score(labels, scores, k=k, labels=np.arange(4))
    np.testing.assert_allclose(ours.top_k_accuracy(labels, scores, k=k), expected, rtol=RTOL)
    assert_any_partition_gives_the_whole(ours.top_k_accuracy_metric(k), (labels, scores), expected, seeds=1)


def test_the_mean_of_the_examples_own_scores_is_that_of_the_whole():
    labels, predictions = np.random.default_rng(0).integers(0, 2, (2, 50, 3)).astype(np.int32)
    expected = sk.f1_score(labels, predictions, average="samples", zero_division=0)
    assert_any_partition_gives_the_whole(ours.samples_metric(), (labels, predictions), expected, seeds=1)


@pytest.mark.parametrize("average", ["macro", "weighted"])
def test_counts_of_multi_label_columns_merge_to_the_score_of_the_whole(average):
    labels, predictions = np.random.default_rng(1).integers(0, 2, (2, 50, 3)).astype(np.int32)
    labels[:, 2] = predictions[:, 2] = 0
    compute = functools.partial(ours.jaccard_from_counts, average=average, zero_division=1.0, multi_label=True)
    expected = sk.jaccard_score(labels, predictions, average=average, zero_division=1)
    assert_any_partition_gives_the_whole(ours.counts_metric(3, compute), (labels, predictions), expected, seeds=1)


def test_states_without_examples_say_what_the_docstring_says():
    empty = lambda metric: metric.compute(metric.init())
    assert np.isnan(empty(ours.accuracy_metric()))
    assert np.isnan(empty(ours.samples_metric()))
    for average in ("macro", "micro", "weighted"):
        compute = functools.partial(ours.f1_from_counts, average=average, zero_division=0.25)
        assert empty(ours.counts_metric(3, compute)) == 0.25


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


@pytest.mark.parametrize("score", [ours.f1, ours.specificity, ours.balanced_accuracy])
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
        (lambda y: ours.f1(y, y, num_classes=4, average="binary"), "for two classes, got 4"),
        (lambda y: ours.f1(y, y, num_classes=4, average="samples"), r"not for classes \[n\]"),
        (lambda y: ours.f1(y, y[:2], num_classes=4), r"one row for each example, got shapes labels \[3\]"),
        (lambda y: ours.f1(y, np.ones((3, 4), np.int32), num_classes=4), "become classes with argmax"),
        (lambda y: ours.f1(y[:, None] > 0, y[:, None] > 0, num_classes=4), "number of columns, 1, got 4"),
        (lambda y: ours.f1(y[:0], y[:0], num_classes=4), "at least one example"),
        (lambda y: ours.confusion_matrix(y[:0], y[:0], num_classes=4), "at least one example"),
        (lambda y: ours.confusion_matrix(y, y, num_classes=0), "num_classes must be at least 1"),
        (lambda y: ours.confusion_matrix(y, y * 1.0, num_classes=4), "predictions must be integers or booleans"),
        (lambda y: ours.accuracy(y, y, where=np.zeros(3, bool)), "where must keep at least one"),
        (lambda y: ours.accuracy(y - 1, y), "labels must lie"),
        (lambda y: ours.fbeta(y, y, beta=-1.0, num_classes=4), "beta must be at least 0"),
        (lambda y: ours.top_k_accuracy(y, np.ones((3, 4), np.float32), k=0), "k must be at least 1"),
        (lambda y: ours.top_k_accuracy(y, np.ones((3, 3), np.float32), k=1), r"\[0, 3\)"),
        (lambda y: ours.top_k_accuracy(y, np.full((3, 4), np.nan, np.float32), k=1), "scores must be finite"),
        (lambda y: ours.top_k_accuracy(y, np.ones(3, np.float32), k=1), r"scores \[n, classes\]"),
    ],
)
def test_nonsense_is_refused_with_the_value_given(call, words, annotations_off):
    with pytest.raises(UsageError, match=words):
        call(np.array([0, 3, 1]))
