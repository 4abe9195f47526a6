"""Scores of decisions and of rankings on a thousand random inputs: values in range, malformed input refused."""

import functools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import config as jaxtyping_config

from dl_core.errors import UsageError
from dl_core.metrics import agreement, classification, curves

SIZES, CLASSES = [1, 2, 16], 3
thousand = settings(max_examples=1000, deadline=None, derandomize=True, database=None)
# Added to the thousand of the same scores: each refusal is one of a dozen calls.
hundreds = settings(max_examples=300, deadline=None, derandomize=True, database=None)
seeds = st.integers(0, 2**32 - 1)


def assert_refused(call, *arguments, **options):
    jaxtyping_config.update("jaxtyping_disable", True)
    try:
        with pytest.raises(UsageError):
            call(*arguments, **options)
    finally:
        jaxtyping_config.update("jaxtyping_disable", False)


COUNTED = [
    classification.precision,
    classification.recall,
    classification.specificity,
    classification.f1,
    functools.partial(classification.fbeta, beta=2.0),
    classification.jaccard,
]
MULTI_CLASS_ONLY = [
    classification.balanced_accuracy,
    classification.confusion_matrix,
    agreement.matthews_correlation,
    agreement.cohen_kappa,
]


@jax.jit
def decision_scores(labels, predictions, where):
    """Everything at once, as one compilation for each size."""
    given = {"num_classes": CLASSES, "where": where}
    one_hot = [values[:, None] == np.arange(CLASSES)[None] for values in (labels, predictions)]
    return {
        "share": [score(labels, predictions, average=None, **given) for score in COUNTED]
        + [score(*one_hot, average="macro", where=where) for score in COUNTED],
        "accuracy": classification.accuracy(labels, predictions, where=where),
        "multi-label accuracy": classification.accuracy(*one_hot, where=where),
        "balanced": classification.balanced_accuracy(labels, predictions, **given),
        "matrix": classification.confusion_matrix(labels, predictions, **given),
        "matthews": agreement.matthews_correlation(labels, predictions, **given),
        "kappa": agreement.cohen_kappa(labels, predictions, **given),
        "micro f1": classification.f1(labels, predictions, average="micro", **given),
    }


@thousand
@given(st.sampled_from(SIZES), seeds)
def test_scores_of_decisions_lie_in_their_ranges(n, seed):
    rng = np.random.default_rng(seed)
    labels, predictions = rng.integers(0, rng.integers(1, CLASSES + 1), (2, n)).astype(np.int32)
    where = rng.random(n) < 0.8
    where[rng.integers(n)] = True
    scores = decision_scores(labels, predictions, where)
    for share in scores["share"]:
        assert ((np.asarray(share) >= 0) & (np.asarray(share) <= 1)).all()
    right = np.mean(labels[where] == predictions[where])
    np.testing.assert_allclose(scores["accuracy"], right, rtol=1e-6)
    # With one class an example, right in every column is right, and pooled counts have one wrong of each kind.
    np.testing.assert_allclose([scores["multi-label accuracy"], scores["micro f1"]], right, rtol=1e-6)
    assert 0 <= scores["balanced"] <= 1
    assert scores["matrix"].sum() == where.sum()
    assert -1 <= scores["matthews"] <= 1
    assert scores["kappa"] <= 1 + 1e-6 or np.isnan(scores["kappa"])
    if right == 1:
        assert scores["balanced"] == 1
        assert np.isnan(scores["kappa"]) or scores["kappa"] == 1


DECISION_FAULTS = ("range", "negative", "length", "shape", "empty", "float", "masked", "where")


def spoiled_decisions(fault, labels, predictions):
    where = None
    if fault in ("range", "negative"):
        labels = np.where(np.arange(len(labels)) == 0, CLASSES if fault == "range" else -1, labels)
    elif fault == "length":
        predictions = np.append(predictions, 0)
    elif fault == "shape":
        predictions = np.zeros((len(labels), CLASSES), np.int32)
    elif fault == "empty":
        labels, predictions = labels[:0], predictions[:0]
    elif fault == "float":
        labels = labels + 0.5
    elif fault == "masked":
        where = np.zeros(len(labels), bool)
    else:
        where = np.ones(len(labels) + 1, bool)
    return labels, predictions, where


@hundreds
@given(st.sampled_from(SIZES), seeds, st.sampled_from(DECISION_FAULTS))
def test_malformed_decisions_are_refused_by_every_score(n, seed, fault):
    labels, predictions = np.random.default_rng(seed).integers(0, CLASSES, (2, n)).astype(np.int32)
    labels, predictions, where = spoiled_decisions(fault, labels, predictions)
    for score in [*COUNTED, *MULTI_CLASS_ONLY, classification.class_counts]:
        assert_refused(score, labels, predictions, num_classes=CLASSES, where=where)
    if fault != "range":  # an accuracy does not know how many classes there are
        assert_refused(classification.accuracy, labels, predictions, where=where)
    if fault in ("range", "negative", "length", "shape", "float", "where"):  # a batch may be empty
        for metric in (classification.counts_metric(CLASSES), classification.confusion_metric(CLASSES)):
            assert_refused(metric.update, metric.init(), labels, predictions, where=where)


BINNED = curves.binned_curve_metric(CLASSES, 8)


@jax.jit
def ranking_scores(labels, scores, where):
    each = functools.partial(curves.auroc, average=None, where=where)
    return {
        "auroc": each(labels, scores),
        "reversed": each(labels, -scores),
        "precision": curves.average_precision(labels, scores, average=None, where=where),
        "roc": curves.roc_curve(labels == 0, scores[:, 0], where=where),
        "precision-recall": curves.precision_recall_curve(labels == 0, scores[:, 0], where=where),
        "top": [classification.top_k_accuracy(labels, scores, k=k, where=where) for k in (1, 2, 3)],
        "binned": BINNED.compute(BINNED.update(BINNED.init(), labels, scores, where=where)),
    }


@thousand
@given(st.sampled_from(SIZES), seeds, st.sampled_from([2, 5, 2**20]))
def test_rankings_have_rising_curves_and_areas_that_their_reverse_completes(n, seed, levels):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, n).astype(np.int32)
    scores = (rng.integers(0, levels + 1, (n, CLASSES)) / levels).astype(np.float32)
    where = rng.random(n) < 0.8
    where[rng.integers(n)] = True
    found = jax.tree.map(np.asarray, ranking_scores(labels, scores, where))
    present = np.array([(labels[where] == k).any() for k in range(CLASSES)])
    others = np.array([(labels[where] != k).any() for k in range(CLASSES)])
    np.testing.assert_array_equal(np.isnan(found["auroc"]), ~(present & others))
    both = present & others
    np.testing.assert_allclose((found["auroc"] + found["reversed"])[both], 1, atol=1e-5)
    assert ((found["precision"] >= 0) & (found["precision"] <= 1 + 1e-6)).all()
    np.testing.assert_array_equal(found["precision"] > 0, present)
    if both[0]:
        for part in found["roc"][:2]:
            np.testing.assert_allclose(part[[0, -1]], [0, 1], rtol=1e-6)
            assert (np.diff(part) >= 0).all()
    assert (np.diff(found["precision-recall"].recall) >= 0).all()
    assert ((found["precision-recall"].precision >= 0) & (found["precision-recall"].precision <= 1)).all()
    assert found["top"][0] <= found["top"][1] <= found["top"][2] == 1
    binned = found["binned"]
    assert (np.abs(binned.auroc - found["auroc"]) <= binned.auroc_error + 1e-5)[both].all()
    assert (binned.average_precision_low - 1e-5 <= found["precision"]).all()
    assert (found["precision"] <= binned.average_precision_high + 1e-5).all()


RANKING_FAULTS = ("range", "negative", "length", "shape", "empty", "float", "masked", "nan", "infinite")


@hundreds
@given(st.sampled_from(SIZES), seeds, st.sampled_from(RANKING_FAULTS))
def test_malformed_rankings_are_refused_by_every_score(n, seed, fault):
    rng = np.random.default_rng(seed)
    labels, scores = rng.integers(0, CLASSES, n).astype(np.int32), rng.random((n, CLASSES)).astype(np.float32)
    if fault in ("nan", "infinite"):
        scores[rng.integers(n), rng.integers(CLASSES)] = np.nan if fault == "nan" else -np.inf
        where = None
    elif fault == "shape":
        scores, where = scores[..., None], None
    elif fault == "length":
        scores, where = scores[1:], None
    else:
        labels, _, where = spoiled_decisions(fault, labels, labels)
        scores = scores[: len(labels)]
    for score in (curves.auroc, curves.average_precision, functools.partial(classification.top_k_accuracy, k=2)):
        assert_refused(score, labels, scores, where=where)
    if fault in ("range", "negative", "length", "shape", "float", "nan", "infinite"):
        assert_refused(BINNED.update, BINNED.init(), labels, scores, where=where)
    binary = np.where(labels == 0, 0, labels + 1) if fault in ("range", "negative") else labels
    binary_scores = scores if fault == "shape" else np.where(np.isfinite(scores), 0, scores).sum(axis=1)
    for score in (curves.roc_curve, curves.precision_recall_curve, curves.auroc, curves.average_precision):
        if fault not in ("range", "negative") or (binary > 1).any() or (binary < 0).any():
            assert_refused(score, binary, binary_scores.astype(np.float32), where=where)
