"""Ranking curves and their areas agree with scikit-learn, ties and absent classes included."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics as sk

from dl_core.errors import UsageError
from dl_core.metrics import curves as ours

# float32 sums of about a hundred terms of rates that are exact ratios of integers.
RTOL = 1e-5


def ranking(seed, *, n=120, levels=12):
    """Scores on few levels, so that most of them tie."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n).astype(np.int32)
    scores = (rng.integers(0, levels, n) + 2 * labels).astype(np.float32)
    return labels, scores


def distinct(curve):
    """The points of a curve without the repetitions that ties leave: the last index of each threshold."""
    thresholds = np.asarray(curve.thresholds)
    keep = np.append(thresholds[1:] != thresholds[:-1], True)
    return [np.asarray(part)[keep] for part in curve]


@pytest.mark.parametrize("levels", [1, 12, 10_000])
@pytest.mark.parametrize("seed", range(3))
def test_curves_have_the_points_of_scikit_learn(seed, levels):
    labels, scores = ranking(seed, levels=levels)
    for part, expected in zip(
        distinct(ours.roc_curve(labels, scores)), sk.roc_curve(labels, scores, drop_intermediate=False), strict=True
    ):
        np.testing.assert_allclose(part, expected, rtol=RTOL)
    precision, recall, thresholds = distinct(ours.precision_recall_curve(labels, scores))
    expected = sk.precision_recall_curve(labels, scores)
    np.testing.assert_allclose(precision, expected[0][::-1], rtol=RTOL)
    np.testing.assert_allclose(recall, expected[1][::-1], rtol=RTOL)
    np.testing.assert_allclose(thresholds[1:], expected[2][::-1], rtol=RTOL)


@pytest.mark.parametrize("levels", [1, 12, 10_000])
def test_areas_agree_with_scikit_learn(levels):
    labels, scores = ranking(0, levels=levels)
    np.testing.assert_allclose(ours.auroc(labels, scores), sk.roc_auc_score(labels, scores), rtol=RTOL)
    np.testing.assert_allclose(
        ours.average_precision(labels, scores), sk.average_precision_score(labels, scores), rtol=RTOL
    )


@pytest.mark.parametrize("average", ["macro", "weighted", "micro", None])
def test_areas_of_several_classes_agree_with_scikit_learn(average):
    rng = np.random.default_rng(0)
    labels = rng.choice(4, 200, p=[0.5, 0.3, 0.15, 0.05]).astype(np.int32)
    probabilities = rng.dirichlet(np.ones(4), 200).astype(np.float32)
    probabilities[np.arange(200), labels] += 0.2
    truth = np.eye(4, dtype=np.int32)[labels]
    for area, reference in ((ours.auroc, sk.roc_auc_score), (ours.average_precision, sk.average_precision_score)):
        expected = reference(truth, probabilities, average=average)
        np.testing.assert_allclose(area(labels, probabilities, average=average), expected, rtol=RTOL)
        np.testing.assert_allclose(area(truth, probabilities, average=average), expected, rtol=RTOL)


def test_a_class_that_does_not_occur_is_nan_and_left_out_of_the_mean():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 90).astype(np.int32)
    scores = rng.random((90, 4)).astype(np.float32)
    for area in (ours.auroc, ours.average_precision):
        each = area(labels, scores, average=None)
        assert np.isnan(each).tolist() == [False, False, False, True]
        for average in ("macro", "weighted"):
            np.testing.assert_allclose(
                area(labels, scores, average=average), area(labels, scores[:, :3], average=average), rtol=RTOL
            )


@pytest.mark.parametrize("area", [ours.auroc, ours.average_precision])
@pytest.mark.parametrize("average", ["macro", "weighted", "micro"])
def test_masked_rows_are_not_there_and_jit_changes_nothing(area, average):
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 3, 90).astype(np.int32)
    scores = rng.random((90, 3)).astype(np.float32)
    where = rng.random(90) < 0.5
    masked = jax.jit(lambda y, s, w: area(y, s, average=average, where=w))(labels, scores, where)
    np.testing.assert_allclose(masked, area(labels[where], scores[where], average=average), rtol=RTOL)
    binary = jax.jit(lambda y, s, w: area(y, s, where=w))(labels == 1, scores[:, 1], where)
    np.testing.assert_allclose(binary, area(labels[where] == 1, scores[where, 1]), rtol=RTOL)


def test_auroc_is_the_chance_that_a_positive_outranks_a_negative():
    labels, scores = ranking(5)
    pairs = scores[labels == 1][:, None] - scores[labels == 0][None]
    np.testing.assert_allclose(ours.auroc(labels, scores), (np.sign(pairs) / 2 + 0.5).mean(), rtol=RTOL)


def test_monotone_changes_of_the_scores_change_nothing():
    labels, scores = ranking(6)
    for area in (ours.auroc, ours.average_precision):
        np.testing.assert_array_equal(area(labels, scores), area(labels, np.exp(scores / 4) - 7))


def test_binned_curves_end_where_curves_end():
    labels, scores = ranking(7)
    metric = ours.binned_curve_metric(2, num_bins=32)
    state = metric.update(metric.init(), labels, jnp.stack([1 - scores / 20, scores / 20], axis=1))
    curves = metric.compute(state)
    # XLA divides by a broadcast scalar through its reciprocal: 1 to the last bit only.
    np.testing.assert_allclose(curves.roc.false_positive_rate[:, [0, -1]], [[0, 1]] * 2, rtol=1e-6)
    np.testing.assert_allclose(curves.precision_recall.recall[:, [0, -1]], [[0, 1]] * 2, rtol=1e-6)
    np.testing.assert_allclose(curves.auroc, [sk.roc_auc_score(labels, scores)] * 2, rtol=RTOL)


def test_nonsense_is_refused():
    with pytest.raises(UsageError, match="unknown average 'mean'"):
        ours.auroc(np.array([0, 1]), np.ones((2, 2), np.float32), average="mean")
    with pytest.raises(UsageError, match="at least one example"):
        ours.roc_curve(np.zeros(0, np.int32), np.zeros(0, np.float32))
