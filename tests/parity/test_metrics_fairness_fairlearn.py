"""Group fairness beside fairlearn, digit by digit, and the two places where it differs on purpose."""

import functools

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, precision_score

from dl_core.metrics import fairness as ours
from dl_core.metrics.group_table import group_table

fairlearn = pytest.importorskip("fairlearn.metrics")

THEIRS = {
    "demographic_parity": ours.demographic_parity,
    "equal_opportunity": ours.equal_opportunity,
    "equalized_odds": ours.equalized_odds,
}


def decided(seed, n=500, num_groups=4):
    rng = np.random.default_rng(seed)
    groups = rng.choice(num_groups, n, p=rng.dirichlet(np.full(num_groups, 5.0)))
    labels = rng.random(n) < rng.random(num_groups)[groups]
    return labels.astype(int), (rng.random(n) < rng.random(num_groups)[groups]).astype(int), groups


@pytest.mark.parametrize("comparison", ["between_groups", "to_overall"])
@pytest.mark.parametrize("method", ["difference", "ratio"])
@pytest.mark.parametrize("name", THEIRS)
@pytest.mark.parametrize("seed", range(5))
def test_criteria_agree_to_the_last_digits(name, method, comparison, seed):
    labels, decisions, groups = decided(seed)
    theirs = getattr(fairlearn, f"{name}_{method}")(labels, decisions, sensitive_features=groups, method=comparison)
    value = THEIRS[name](labels, decisions, groups, method=method, comparison=comparison)
    np.testing.assert_allclose(value, theirs, rtol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_rates_of_groups_and_gaps_agree_with_its_metric_frame(seed):
    labels, decisions, groups = decided(seed)
    frame = fairlearn.MetricFrame(
        metrics={
            "accuracy": accuracy_score,
            "selection_rate": fairlearn.selection_rate,
            "true_positive_rate": fairlearn.true_positive_rate,
            "false_positive_rate": fairlearn.false_positive_rate,
            "precision": functools.partial(precision_score, zero_division=np.nan),
        },
        y_true=labels, y_pred=decisions, sensitive_features=groups,
    )  # fmt: skip
    table = group_table(labels, decisions, groups)
    for name in frame.by_group.columns:
        np.testing.assert_allclose(getattr(table.rates, name), frame.by_group[name], rtol=1e-12)
        np.testing.assert_allclose(getattr(table.overall, name), frame.overall[name], rtol=1e-12)
        np.testing.assert_allclose(getattr(table.difference, name), frame.difference()[name], rtol=1e-12)
        np.testing.assert_allclose(getattr(table.ratio, name), frame.ratio()[name], rtol=1e-12)


def test_a_group_without_positives_is_a_rate_of_zero_there_and_left_out_here():
    labels, decisions, groups = decided(0)
    labels[groups == 1] = 0
    theirs = fairlearn.equal_opportunity_difference(labels, decisions, sensitive_features=groups)
    np.testing.assert_allclose(ours.equal_opportunity(labels, decisions, groups, zero_division=0.0), theirs, rtol=1e-12)
    rest = groups != 1
    without = fairlearn.equal_opportunity_difference(labels[rest], decisions[rest], sensitive_features=groups[rest])
    np.testing.assert_allclose(ours.equal_opportunity(labels, decisions, groups), without, rtol=1e-12)
    assert theirs > without


def test_the_ratio_of_rates_that_are_all_zero_is_nan_there_and_one_here():
    labels, decisions, groups = decided(0)
    nobody = np.zeros_like(decisions)
    assert np.isnan(fairlearn.demographic_parity_ratio(labels, nobody, sensitive_features=groups))
    assert ours.demographic_parity(labels, nobody, groups, method="ratio") == 1
