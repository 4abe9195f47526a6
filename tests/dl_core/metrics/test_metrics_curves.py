"""Ranking curves and their areas agree with scikit-learn, ties and absent classes included."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics as sk
from partitions import assert_any_partition_gives_the_whole

from dl_core.errors import UsageError
from dl_core.metrics import curves as ours
from dl_core.metrics.accumulator import gathering_metric

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


def test_a_class_that_does_not_occur_is_as_in_scikit_learn_or_left_out_when_asked():
    """Column 3 has no positives, column 4 (of the multi-label data) no negatives; the first rows are alike."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (90, 5)).astype(np.int32)
    labels[:, 3], labels[:, 4] = 0, 1
    labels[:9] = labels[:1]
    scores = rng.random((90, 5)).astype(np.float32)
    for area, reference in ((ours.auroc, sk.roc_auc_score), (ours.average_precision, sk.average_precision_score)):
        for average in ("macro", "weighted", "micro", "samples", None):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # which is all that scikit-learn says of it
                expected = reference(labels, scores, average=average)
            np.testing.assert_allclose(area(labels, scores, average=average), expected, rtol=RTOL)
        defined = [0, 1, 2] if area is ours.auroc else [0, 1, 2, 4]
        for average in ("macro", "weighted"):
            kept = area(labels, scores, average=average, skip_undefined=True)
            np.testing.assert_allclose(kept, area(labels[:, defined], scores[:, defined], average=average), rtol=RTOL)
        each = area(labels, scores, average=None, skip_undefined=True)
        assert np.flatnonzero(np.isfinite(each)).tolist() == defined


@pytest.mark.parametrize("label", [0, 1])
def test_data_of_a_single_class_have_the_areas_and_points_of_scikit_learn(label):
    labels, scores = np.full(6, label, np.int32), np.array([3, 1, 2, 2, 5, 4], np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        np.testing.assert_allclose(ours.auroc(labels, scores), sk.roc_auc_score(labels, scores))
        np.testing.assert_allclose(ours.average_precision(labels, scores), sk.average_precision_score(labels, scores))
        expected = sk.precision_recall_curve(labels, scores)
        rates = sk.roc_curve(labels, scores, drop_intermediate=False)
    precision, recall, _ = distinct(ours.precision_recall_curve(labels, scores))
    np.testing.assert_allclose(precision, expected[0][::-1], rtol=RTOL)
    np.testing.assert_allclose(recall, expected[1][::-1], rtol=RTOL)
    for part, whole in zip(distinct(ours.roc_curve(labels, scores))[:2], rates[:2], strict=True):
        np.testing.assert_allclose(part[1:], whole[1:], rtol=RTOL)  # ours begins at (0, 0) also where it is undefined


def test_scores_of_float64_tie_only_where_they_are_equal():
    labels, scores = np.array([0, 1, 0, 1]), 1 - np.array([1e-12, 1e-13, 0.5, 1e-14])
    assert ours.auroc(labels, scores) == 1 == ours.average_precision(labels, scores)
    assert ours.auroc(labels, scores.astype(np.float32)) == 0.75
    assert ours.roc_curve(labels, scores).true_positive_rate.dtype == np.float32


def test_zeros_of_both_signs_tie_and_infinities_keep_their_place_inside_jit():
    labels = np.array([0, 1, 0, 1])
    assert ours.auroc(labels, np.array([0.0, -0.0, 0.0, 0.0], np.float32)) == 0.5
    assert jax.jit(ours.auroc)(labels, np.array([-np.inf, np.inf, -3e38, 3e38], np.float32)) == 1


@pytest.mark.parametrize("area", [ours.auroc, ours.average_precision])
def test_inside_jit_a_nan_among_the_scores_makes_the_area_nan_unless_it_is_masked(area):
    labels, scores = np.array([0, 1, 1, 0]), np.array([0.1, 0.9, np.nan, 0.2], np.float32)
    compiled = jax.jit(lambda w: area(labels, jnp.asarray(scores), where=w))
    assert np.isnan(compiled(np.ones(4, bool)))
    assert compiled(np.arange(4) != 2) == 1
    assert np.isnan(compiled(np.zeros(4, bool)))


@pytest.mark.parametrize("average", ["macro", "samples"])
def test_the_gathering_accumulator_gives_the_exact_area_of_several_classes(average):
    rng = np.random.default_rng(0)
    labels, scores = rng.integers(0, 2, (50, 3)).astype(np.int32), rng.integers(0, 9, (50, 3)).astype(np.float32)
    area = functools.partial(ours.auroc, average=average, skip_undefined=True)
    metric = gathering_metric(area, 64, jnp.zeros(3, jnp.int32), jnp.zeros(3))
    assert_any_partition_gives_the_whole(metric, (labels, scores), area(labels, scores), seeds=1)


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


@pytest.mark.parametrize("num_bins", [1, 4, 64])
@pytest.mark.parametrize("skew", [0.2, 1.0, 5.0])
def test_the_exact_areas_lie_within_the_stated_error_of_the_binned_ones(num_bins, skew):
    """Whatever the scores: on levels that tie, crowded at an end, or better than the bins can tell."""
    metric = ours.binned_curve_metric(1, num_bins)
    compute = jax.jit(lambda labels, scores: metric.compute(metric.update(metric.init(), labels, scores)))
    slack = 1e-5  # float32 sums of a hundred rates
    for seed in range(20):
        rng = np.random.default_rng(seed)
        labels = (rng.random(150) < rng.uniform(0.02, 0.98)).astype(np.int32)
        labels[:2] = 0, 1
        scores = (rng.random(150) ** skew * 0.8 + labels * rng.choice([-0.01, 0.0, 0.1, 0.2])).clip(0, 1)
        scores = (np.round(scores * 40) / 40 if seed % 2 else scores).astype(np.float32)
        curves = jax.tree.map(lambda leaf: float(leaf[0]), compute(labels[:, None], scores[:, None])._replace(
            roc=np.zeros(1), precision_recall=np.zeros(1)
        ))  # fmt: skip
        off = abs(sk.roc_auc_score(labels, scores) - curves.auroc)
        assert off <= curves.auroc_error + slack
        exact = sk.average_precision_score(labels, scores)
        assert curves.average_precision_low - slack <= exact <= curves.average_precision_high + slack
        inside = (
            curves.average_precision_low - slack <= curves.average_precision <= curves.average_precision_high + slack
        )
        assert inside


def test_the_stated_error_is_reached_and_vanishes_where_no_bin_holds_both_kinds():
    metric = ours.binned_curve_metric(1, 2)
    of = lambda labels, scores: metric.compute(
        metric.update(metric.init(), np.array(labels)[:, None], np.array(scores, np.float32)[:, None])
    )
    worst = of([1, 1, 0, 0], [0.1, 0.2, 0.3, 0.4])  # all in one bin, the wrong way round: exact 0, binned 1/2
    assert (worst.auroc[0], worst.auroc_error[0]) == (0.5, 0.5)
    clean = of([1, 1, 0, 0], [0.6, 0.7, 0.3, 0.4])
    assert (clean.auroc[0], clean.auroc_error[0]) == (1, 0)
    assert (clean.average_precision_low[0], clean.average_precision_high[0]) == (1, 1)


def test_binned_curves_of_multi_label_data_merge_to_the_whole():
    rng = np.random.default_rng(0)
    labels, scores = (
        rng.integers(0, 2, (60, 3)).astype(np.int32),
        (rng.integers(0, 32, (60, 3)) / 32).astype(np.float32),
    )
    metric = ours.binned_curve_metric(3, 32, lambda curves: curves.auroc)
    assert_any_partition_gives_the_whole(metric, (labels, scores), ours.auroc(labels, scores, average=None), seeds=1)


@pytest.mark.parametrize(
    ("labels", "scores", "words"),
    [
        ([0, 1, 2], [[0.2]] * 3, r"labels must lie in \[0, 1\)"),
        ([0, 0, 0], [[1.2]] * 3, "scores must be probabilities"),
        ([0, 0, 0], [[0.2, 0.3]] * 3, "num_classes = 1 columns, got 2"),
        ([0, 0], [[0.2]] * 3, "one row for each example"),
    ],
)
def test_binned_curves_refuse_what_they_cannot_count(labels, scores, words, annotations_off):
    metric = ours.binned_curve_metric(1)
    with pytest.raises(UsageError, match=words):
        metric.update(metric.init(), np.array(labels), np.array(scores, np.float32))
    with pytest.raises(UsageError, match="num_bins must be at least 1, got 0"):
        ours.binned_curve_metric(1, 0)


@pytest.mark.parametrize(
    ("labels", "scores", "words"),
    [
        ([0, 2], [1.0, 2.0], r"labels must lie in \[0, 2\)"),
        ([0, 1], [np.nan, 2.0], "scores must be finite, got 1 of 2"),
        ([0, 1], [np.inf, 2.0], "scores must be finite"),
        ([0, 1], [1.0, 2.0, 3.0], "one row for each example"),
        ([[0, 1]], [0.5], r"must both be \[n\]"),
        ([0.0, 1.0], [1.0, 2.0], "labels must be integers or booleans"),
    ],
)
def test_rankings_that_are_none_are_refused(labels, scores, words, annotations_off):
    for call in (ours.auroc, ours.average_precision, ours.roc_curve, ours.precision_recall_curve):
        with pytest.raises(UsageError, match=words):
            call(np.array(labels), np.array(scores, np.float32))


def test_nonsense_is_refused():
    with pytest.raises(UsageError, match="unknown average 'mean'"):
        ours.auroc(np.array([0, 1]), np.ones((2, 2), np.float32), average="mean")
    with pytest.raises(UsageError, match="at least one example"):
        ours.roc_curve(np.zeros(0, np.int32), np.zeros(0, np.float32))
