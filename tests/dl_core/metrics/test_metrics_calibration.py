"""Calibration: hand-made cases, a naive loop, scikit-learn, and what a calibrated predictor must score."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics as sk

from dl_core.errors import UsageError
from dl_core.metrics import calibration as ours
from dl_core.metrics.classification_report import classification_summary

CLASSES = 4


def forecasts(seed=0, n=500, sharpness=1.0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, CLASSES)).astype(np.float32) * 2
    probabilities = np.asarray(jax.nn.softmax(logits * sharpness))
    truth = np.asarray(jax.nn.softmax(logits))
    labels = np.array([rng.choice(CLASSES, p=p / p.sum()) for p in truth.astype(float)], np.int32)
    return labels, logits * sharpness, probabilities


def gaps_by_loop(labels, probabilities, edges):
    """Per bin (low, high]: number of examples and |accuracy - confidence|, one bin at a time."""
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    gaps = []
    for low, high in itertools.pairwise(edges):
        rows = (confidence > low) & (confidence <= high)
        if rows.any():
            gaps.append((rows.sum(), abs(right[rows].mean() - confidence[rows].mean())))
    return np.array(gaps)


@pytest.mark.parametrize("num_bins", [1, 10, 15])
def test_errors_of_equal_width_bins_agree_with_a_loop_over_bins(num_bins):
    labels, _, probabilities = forecasts()
    count, gap = gaps_by_loop(labels, probabilities, np.linspace(0, 1, num_bins + 1)).T
    ece = ours.calibration_error(labels, probabilities, num_bins=num_bins)
    np.testing.assert_allclose(ece, (count * gap).sum() / len(labels), rtol=1e-4)
    mce = ours.calibration_error(labels, probabilities, num_bins=num_bins, norm="max")
    np.testing.assert_allclose(mce, gap.max(), rtol=1e-4)


def test_errors_of_equal_mass_bins_agree_with_splitting_the_ranks():
    labels, _, probabilities = forecasts()
    order = np.argsort(probabilities.max(1))
    confidence, right = probabilities.max(1)[order], (probabilities.argmax(1) == labels)[order]
    gaps = [abs(a.mean() - b.mean()) for a, b in zip(np.split(right, 10), np.split(confidence, 10), strict=True)]
    result = ours.calibration_error(labels, probabilities, num_bins=10, strategy="equal_mass")
    np.testing.assert_allclose(result, np.mean(gaps), rtol=1e-4)
    bins = ours.reliability_bins(labels, probabilities, num_bins=10, strategy="equal_mass")
    np.testing.assert_array_equal(bins.total, 50)


@pytest.mark.parametrize("strategy", ours.STRATEGIES)
def test_the_order_of_the_examples_does_not_matter_even_where_confidences_tie(strategy):
    labels, _, probabilities = forecasts()
    probabilities = np.round(probabilities, 1).astype(np.float32)
    order = np.random.default_rng(1).permutation(len(labels))
    score = lambda y, p: ours.calibration_error(y, p, strategy=strategy)
    np.testing.assert_allclose(score(labels, probabilities), score(labels[order], probabilities[order]), rtol=1e-5)


def test_always_sure_and_half_right_is_off_by_one_half():
    probabilities = jax.nn.one_hot(jnp.zeros(10, int), 2)
    labels = jnp.arange(10) % 2
    assert ours.calibration_error(labels, probabilities) == 0.5
    assert ours.brier_score(labels, probabilities) == 1.0


def test_a_calibrated_forecast_scores_near_zero_and_a_sharpened_one_does_not():
    """ECE is biased upwards by about sqrt(bins / n): 0.03 here."""
    assert ours.calibration_error(*forecasts(n=4000)[::2]) < 0.03
    assert ours.calibration_error(*forecasts(n=4000, sharpness=3.0)[::2]) > 0.1


def test_brier_score_and_likelihood_agree_with_scikit_learn():
    labels, logits, probabilities = forecasts()
    exact = probabilities.astype(float) / probabilities.astype(float).sum(1, keepdims=True)
    brier = sk.brier_score_loss(labels, exact, labels=np.arange(CLASSES), scale_by_half=False)
    np.testing.assert_allclose(ours.brier_score(labels, probabilities), brier, rtol=1e-5)
    np.testing.assert_allclose(ours.negative_log_likelihood(labels, logits), sk.log_loss(labels, exact), rtol=1e-5)


def test_likelihood_stays_finite_where_probabilities_round_to_zero():
    logits = np.array([[1e4, 0.0]], np.float32)
    np.testing.assert_allclose(ours.negative_log_likelihood(np.array([1]), logits), 1e4)


@pytest.mark.parametrize("strategy", ours.STRATEGIES)
def test_masked_rows_are_not_there_and_jit_changes_nothing(strategy):
    labels, _, probabilities = forecasts()
    where = np.random.default_rng(1).random(len(labels)) < 0.5
    spoiled = np.where(where[:, None], probabilities, np.nan).astype(np.float32)
    masked = jax.jit(lambda y, p, w: ours.reliability_bins(y, p, strategy=strategy, where=w))(labels, spoiled, where)
    expected = ours.reliability_bins(labels[where], probabilities[where], strategy=strategy)
    for ours_part, expected_part in zip(masked, expected, strict=True):
        np.testing.assert_allclose(ours_part, expected_part, rtol=1e-5)
    for score, values in ((ours.brier_score, spoiled), (ours.negative_log_likelihood, np.log(spoiled))):
        np.testing.assert_allclose(
            jax.jit(score)(labels, values, where=where), score(labels[where], values[where]), rtol=1e-5
        )


def test_summary_of_a_classifier_agrees_with_scikit_learn():
    labels, logits, probabilities = forecasts()
    summary = classification_summary(labels, logits)
    predictions = logits.argmax(1)
    macro = sk.precision_recall_fscore_support(labels, predictions, average="macro")[:3]
    np.testing.assert_allclose([summary[f"{s}_macro"] for s in ("precision", "recall", "f1")], macro, rtol=1e-6)
    assert summary["accuracy"] == sk.accuracy_score(labels, predictions)
    low, high = summary["accuracy_interval"]
    assert low < summary["accuracy"] < high
    assert summary["majority_baseline"] == np.bincount(labels).max() / len(labels)
    np.testing.assert_allclose(summary["negative_log_likelihood"], sk.log_loss(labels, probabilities), rtol=1e-5)
    np.testing.assert_allclose(summary["calibration_error"], ours.calibration_error(labels, probabilities), rtol=1e-4)
    flat = [end for value in summary.values() for end in (value if isinstance(value, tuple) else (value,))]
    assert all(type(value) is float for value in flat)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda y, p: ours.calibration_error(y, p, num_bins=0), "at least 1, got 0"),
        (lambda y, p: ours.calibration_error(y, p, norm="l3"), "unknown norm 'l3'"),
        (lambda y, p: ours.reliability_bins(y, p, strategy="equal_with"), "did you mean 'equal_width'"),
        (lambda y, p: classification_summary(y + 9, p), r"\[0, 4\), got values in \[9"),
        (lambda y, p: classification_summary(y[:0], p[:0]), "at least one example"),
    ],
)
def test_nonsense_is_refused_with_the_value_given(call, words):
    labels, _, probabilities = forecasts(n=5)
    with pytest.raises(UsageError, match=words):
        call(np.sort(labels), probabilities)
