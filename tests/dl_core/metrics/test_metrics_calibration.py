"""Calibration: hand-made cases, a naive loop, scikit-learn, and what a calibrated predictor must score."""

import functools
import itertools

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
import sklearn.metrics as sk
from hypothesis import given, settings
from hypothesis import strategies as st
from partitions import assert_any_partition_gives_the_whole

from dl_core.errors import UsageError
from dl_core.metrics import calibration as ours
from dl_core.metrics.accumulator import gathering_metric
from dl_core.metrics.brier_decomposition import brier_decomposition, brier_decomposition_metric
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


def yes_or_no(seed=0, n=300):
    """Labels 0 and 1, and forecasts of them that are honest for half the examples."""
    rng = np.random.default_rng(seed)
    p = rng.random(n).astype(np.float32)
    return (rng.random(n) < np.where(np.arange(n) % 2, p, 0.5)).astype(np.int32), p


def test_a_binary_forecast_is_compared_with_the_share_of_ones():
    labels, p = yes_or_no()
    bins = ours.reliability_bins(labels, p, num_bins=5)
    members = np.ceil(p * 5).astype(int) - 1
    np.testing.assert_array_equal(bins.total, np.bincount(members))
    np.testing.assert_array_equal(bins.correct, np.bincount(members, labels))
    np.testing.assert_allclose(bins.confidence, [p[members == b].mean() for b in range(5)], rtol=1e-5)
    np.testing.assert_allclose(ours.brier_score(labels, p), sk.brier_score_loss(labels, p), rtol=1e-5)
    odds = np.log(p) - np.log1p(-p)
    np.testing.assert_allclose(ours.negative_log_likelihood(labels, odds), sk.log_loss(labels, p), rtol=1e-5)


@pytest.mark.parametrize("strategy", ours.STRATEGIES)
def test_the_classwise_error_is_that_of_each_class_against_the_rest(strategy):
    labels, _, probabilities = forecasts()
    result = ours.classwise_calibration_error(labels, probabilities, strategy=strategy)
    for k in range(CLASSES):
        binary = ours.calibration_error((labels == k).astype(int), probabilities[:, k], strategy=strategy)
        np.testing.assert_allclose(result[k], binary, rtol=1e-5)


def test_the_terms_of_the_brier_score_are_those_of_a_loop_over_bins():
    labels, p = yes_or_no()
    n, y, members = len(p), labels.astype(float), np.ceil(p * 10).astype(int) - 1
    p = p.astype(float)
    expected = np.zeros(5)
    expected[2] = y.mean() * (1 - y.mean())
    for b in np.unique(members):
        pb, yb = p[members == b], y[members == b]
        expected += np.array([
            len(pb) * (pb.mean() - yb.mean()) ** 2, len(pb) * (yb.mean() - y.mean()) ** 2, 0,
            ((pb - pb.mean()) ** 2).sum(), 2 * ((pb - pb.mean()) * (yb - yb.mean())).sum(),
        ]) / n  # fmt: skip
    terms = brier_decomposition(labels, p.astype(np.float32), num_bins=10)
    np.testing.assert_allclose(np.array(terms), expected, rtol=1e-4, atol=1e-7)  # float32


@pytest.mark.parametrize("num_bins", [1, 15])
def test_the_terms_add_up_to_the_brier_score(num_bins):
    labels, _, probabilities = forecasts()
    terms = brier_decomposition(labels, probabilities, num_bins=num_bins)
    np.testing.assert_allclose(terms.score, ours.brier_score(labels, probabilities), rtol=1e-5)
    binary = brier_decomposition(*yes_or_no(), num_bins=num_bins)
    np.testing.assert_allclose(binary.score, ours.brier_score(*yes_or_no()), rtol=1e-5)


def test_forecasts_that_take_one_value_a_bin_have_murphys_three_terms_only():
    labels, p = yes_or_no()
    terms = brier_decomposition(labels, np.round(p * 9).astype(np.float32) / 9, num_bins=10)
    np.testing.assert_allclose(terms.within_bin_variance, 0, atol=1e-9)
    np.testing.assert_allclose(terms.within_bin_covariance, 0, atol=1e-7)
    climate = brier_decomposition(labels, np.full(len(p), labels.mean(), np.float32))
    np.testing.assert_allclose(climate.score, climate.uncertainty, rtol=1e-6)
    np.testing.assert_allclose([climate.reliability, climate.resolution], 0, atol=1e-12)


def test_a_million_examples_in_one_bin_lose_no_digits():
    """A plain float32 sum of a million confidences of 0.9 is off by 0.8 per cent."""
    p = np.full(10**6, 0.9, np.float32)
    bins = ours.reliability_bins(np.ones(len(p), np.int32), p)
    np.testing.assert_allclose(bins.confidence[13], 0.9, rtol=5e-5)  # 512 sums of 2,000 terms
    spread = (0.9 + 0.02 * np.random.default_rng(0).random(10**6)).astype(np.float32)
    terms = brier_decomposition(np.ones(len(p), np.int32), spread)
    np.testing.assert_allclose(terms.within_bin_variance, spread.astype(float).var(), rtol=1e-3)


class_row = (jnp.int32(0), jnp.zeros(CLASSES, jnp.float32))
EQUAL_MASS = functools.partial(ours.calibration_error, strategy="equal_mass")
ACCUMULATORS = {
    "ece": (ours.calibration_metric(), ours.calibration_error),
    "mce": (
        ours.calibration_metric(10, functools.partial(ours.calibration_error_from_bins, norm="max")),
        functools.partial(ours.calibration_error, num_bins=10, norm="max"),
    ),
    "ece of equal mass": (gathering_metric(EQUAL_MASS, 200, *class_row), EQUAL_MASS),
    "classwise": (ours.classwise_calibration_metric(CLASSES), ours.classwise_calibration_error),
    "brier": (ours.brier_score_metric(), ours.brier_score),
    "terms": (brier_decomposition_metric(CLASSES), brier_decomposition),
}


@pytest.mark.parametrize("name", ACCUMULATORS)
def test_accumulators_of_any_partition_give_the_whole(name):
    metric, function = ACCUMULATORS[name]
    labels, _, probabilities = forecasts(n=150)
    expected = function(labels, probabilities)
    assert_any_partition_gives_the_whole(metric, (labels, probabilities), expected, batch=64, atol=1e-7)


def test_accumulators_of_logits_and_of_binary_forecasts_give_the_whole():
    labels, logits, _ = forecasts(n=150)
    metric, function = ours.negative_log_likelihood_metric(), ours.negative_log_likelihood
    assert_any_partition_gives_the_whole(metric, (labels, logits), function(labels, logits), batch=64)
    labels, p = yes_or_no(n=150)
    for metric, function in (
        (ours.brier_score_metric(), ours.brier_score),
        (ours.calibration_metric(), ours.calibration_error),
    ):
        assert_any_partition_gives_the_whole(metric, (labels, p), function(labels, p), batch=64, seeds=1)


def drawn(n, classes, seed):
    """Labels and probabilities, some of them exactly 0, 1 or equal to each other; [n] for one class."""
    rng = np.random.default_rng(seed)
    weights = rng.random((n, max(classes, 2))) ** rng.choice([0.0, 1.0, 30.0])
    weights[rng.random(n) < 0.2] = np.eye(weights.shape[1])[0]
    probabilities = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    labels = rng.integers(0, weights.shape[1], n).astype(np.int32)
    return labels, probabilities if classes > 1 else probabilities[:, 1]


@jax.jit
def every_score(labels, p, where):
    """Of padded rows, compiled once for all the sizes below."""
    bins = [ours.reliability_bins(labels, p, strategy=strategy, where=where) for strategy in ours.STRATEGIES]
    errors = [[ours.calibration_error_from_bins(part, norm) for norm in ours.NORMS] for part in bins]
    terms = brier_decomposition(labels, p, where=where)
    score = ours.brier_score(labels, p, where=where)
    return bins, errors, terms, score, ours.negative_log_likelihood(labels, 50 * p, where=where)


@settings(max_examples=1000, deadline=None, derandomize=True, database=None)
@given(st.sampled_from([1, 3]), st.integers(1, 16), st.integers(0, 2**20))
def test_any_forecasts_score_within_the_ranges_and_the_terms_add_up(classes, n, seed):
    labels, p = drawn(16, classes, seed)
    ours.check_forecasts(labels, p, None)
    where = np.arange(16) < n
    bins, errors, terms, score, loss = jax.tree.map(np.asarray, every_score(labels, p, where))
    for part, (ece, mce) in zip(bins, errors, strict=True):
        assert part.total.sum() == n
        assert (part.correct <= part.total).all()
        assert 0 <= ece <= mce + 1e-6 <= 1 + 2e-6
    assert 0 <= score <= (2 if classes > 1 else 1) + 1e-6
    assert min(terms[:4]) >= 0
    np.testing.assert_allclose(terms.score, score, atol=2e-6)  # float32
    assert 0 <= loss < 60


FAULTS = {
    "more labels": lambda y, p: (np.append(y, 0), p),
    "labels of two axes": lambda y, p: (y[:, None], p),
    "probabilities of three axes": lambda y, p: (y, p[:, None, None]),
    "a class too many": lambda y, p: (np.where(np.arange(len(y)) == 0, 3, y), p),
    "a negative class": lambda y, p: (np.where(np.arange(len(y)) == 0, -1, y), p),
    "labels that are floats": lambda y, p: (y.astype(np.float32), p),
    "nan": lambda y, p: (y, p * np.nan),
    "infinity": lambda y, p: (y, p + np.inf),
    "above 1": lambda y, p: (y, p + 1.01),
    "below 0": lambda y, p: (y, p - 1.01),
    "empty": lambda y, p: (y[:0], p[:0]),
}
PROBABILISTIC = (ours.calibration_error, ours.reliability_bins, ours.brier_score, brier_decomposition)
FUNCTIONS = (*PROBABILISTIC, ours.classwise_calibration_error, ours.negative_log_likelihood)


@settings(max_examples=1000, deadline=None, derandomize=True, database=None)
@given(
    st.sampled_from(FUNCTIONS), st.sampled_from([1, 2, 7, 16]), st.sampled_from([1, 3]),
    st.sampled_from(sorted(FAULTS)), st.integers(0, 2**20),
)  # fmt: skip
def test_malformed_forecasts_are_refused(function, n, classes, fault, seed):
    logits = function is ours.negative_log_likelihood
    if logits and fault in ("above 1", "below 0"):
        fault = "infinity"  # a logit may be any finite number
    labels, p = FAULTS[fault](*drawn(n, classes, seed))
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        with pytest.raises(UsageError, match=r"labels|logits" if logits else r"labels|probabilities"):
            function(labels, p)
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize("fault", sorted(set(FAULTS) - {"empty"}))  # an empty batch adds nothing
def test_accumulators_refuse_what_the_functions_refuse(fault, annotations_off):
    labels, p = FAULTS[fault](*drawn(7, 3, 0))
    for metric in (ours.calibration_metric(), ours.brier_score_metric(), brier_decomposition_metric(3)):
        with pytest.raises(UsageError):
            metric.update(metric.init(), labels, p)


def test_where_must_keep_something_and_columns_must_match():
    labels, _, p = forecasts(n=5)
    with pytest.raises(UsageError, match="keep at least one"):
        ours.brier_score(labels, p, where=np.zeros(5, bool))
    metric = brier_decomposition_metric(3)
    with pytest.raises(UsageError, match="num_classes = 3"):
        metric.update(metric.init(), labels, p)
