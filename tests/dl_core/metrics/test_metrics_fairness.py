"""Group fairness: hand-made groups, planted gaps, missing rates, intervals that cover, and what is refused."""

import functools
import math

import jax
import jaxtyping
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from partitions import assert_any_partition_gives_the_whole

from dl_core.errors import UsageError
from dl_core.metrics import fairness as ours
from dl_core.metrics.group_counts import (
    GroupCounts,
    Rates,
    gaps_from_counts,
    group_counts,
    group_counts_metric,
    rates_from_counts,
)
from dl_core.metrics.group_table import group_table


def rows(*cells):
    """Labels, decisions and groups from (tp, fp, fn, tn) of each group."""
    kinds = np.array([[1, 1], [0, 1], [1, 0], [0, 0]])
    labels, decisions = np.concatenate([np.repeat(kinds, cell, axis=0) for cell in cells]).T
    groups = np.repeat(np.arange(len(cells)), [sum(cell) for cell in cells])
    order = np.random.default_rng(0).permutation(len(groups))
    return labels[order], decisions[order], groups[order]


# selection rate 7/10, 4/10; true positive rate 5/6, 2/4; false positive rate 2/4, 2/6; precision 5/7, 2/4
RESAMPLES = 4000
TWO = rows((5, 2, 1, 2), (2, 2, 2, 4))


@pytest.mark.parametrize(
    ("criterion", "difference", "ratio"),
    [
        (ours.demographic_parity, 0.3, 4 / 7),
        (ours.equal_opportunity, 1 / 3, 3 / 5),
        (ours.equalized_odds, 1 / 3, 3 / 5),
        (functools.partial(ours.equalized_odds, aggregate="mean"), 0.25, (3 / 5 + 2 / 3) / 2),
        (ours.predictive_parity, 5 / 7 - 0.5, 0.7),
    ],
)
def test_two_groups_by_hand(criterion, difference, ratio):
    np.testing.assert_allclose(criterion(*TWO), difference, rtol=1e-12)
    np.testing.assert_allclose(criterion(*TWO, method="ratio"), ratio, rtol=1e-12)
    swapped = (*TWO[:2], 1 - TWO[2])
    assert criterion(*swapped) == criterion(*TWO)
    with jax.numpy_rank_promotion("raise"):
        compiled = jax.jit(lambda *arrays: criterion(*arrays, num_groups=3, method="ratio"))(*TWO)
    np.testing.assert_allclose(compiled, ratio, rtol=1e-6)  # an empty third group changes nothing


def test_distance_to_all_groups_together():
    """Selected: 7 of 10, 4 of 10, 11 of 20."""
    np.testing.assert_allclose(ours.demographic_parity(*TWO, comparison="to_overall"), 0.15, rtol=1e-12)
    ratio = ours.demographic_parity(*TWO, comparison="to_overall", method="ratio")
    np.testing.assert_allclose(ratio, 0.4 / 0.55, rtol=1e-12)


@pytest.mark.parametrize(("yes", "of", "passes"), [(8, 30, True), (4, 15, True), (79, 300, False), (10, 30, True)])
def test_four_fifths_of_the_highest_rate_pass_exactly(yes, of, passes):
    """10 of 30 in the other group; 8 of 30 is four fifths of that."""
    labels, decisions, groups = rows((yes, 0, 0, of - yes), (10, 0, 0, 20))
    impact = ours.disparate_impact(labels, decisions, groups)
    np.testing.assert_allclose(impact.ratio, yes / of * 3, rtol=1e-12)
    assert bool(impact.passes) is passes
    compiled = jax.jit(functools.partial(ours.disparate_impact, num_groups=2))(labels, decisions, groups)
    assert bool(compiled.passes) is passes


def test_a_group_without_positives_is_left_out_unless_its_rate_is_set():
    cells = (5, 2, 1, 2), (2, 2, 2, 4), (0, 3, 0, 7)
    assert np.isnan(rates_from_counts(group_counts(*rows(*cells))).true_positive_rate[2])
    assert ours.equal_opportunity(*rows(*cells)) == ours.equal_opportunity(*TWO)
    np.testing.assert_allclose(ours.equal_opportunity(*rows(*cells), zero_division=0.0), 5 / 6)
    with pytest.raises(UsageError, match="two groups with positive labels"):
        ours.equal_opportunity(*rows(cells[0], cells[2]))
    with pytest.raises(UsageError, match="two groups with a selection rate"):
        ours.disparate_impact(*rows(cells[0]))
    assert np.isnan(gaps_from_counts(group_counts(*rows(cells[0], cells[2]))).true_positive_rate)


def test_equal_rates_have_ratio_one_even_where_nobody_is_selected():
    nobody = rows((0, 0, 2, 3), (0, 0, 4, 1))
    assert ours.demographic_parity(*nobody, method="ratio") == 1
    assert ours.demographic_parity(*nobody) == 0
    assert ours.disparate_impact(*nobody).passes


def test_a_planted_gap_is_found_and_lies_in_its_interval():
    """Selection rates of 0.6 and 0.4 by design; 20,000 examples make the standard error 0.007."""
    rng = np.random.default_rng(0)
    groups, labels = rng.integers(0, 2, 20_000), rng.integers(0, 2, 20_000)
    decisions = rng.random(20_000) < np.where(groups == 0, 0.6, 0.4)
    table = group_table(labels, decisions, groups, key=jax.random.key(0), n_resamples=RESAMPLES)
    np.testing.assert_allclose(table.difference.selection_rate, 0.2, atol=0.03)
    assert table.difference_low.selection_rate < 0.2 < table.difference_high.selection_rate
    assert table.ratio_low.selection_rate < 2 / 3 < table.ratio_high.selection_rate
    assert table.difference.base_rate < 0.03
    assert not ours.disparate_impact(labels, decisions, groups).passes


def test_bootstrap_intervals_are_those_of_resampled_rows():
    labels, decisions, groups = rows((30, 12, 6, 12), (12, 12, 12, 24))
    table = group_table(labels, decisions, groups, key=jax.random.key(1), n_resamples=RESAMPLES)
    rng = np.random.default_rng(0)
    gaps = []
    for _ in range(RESAMPLES):
        drawn = rng.integers(0, len(labels), len(labels))
        size = np.bincount(groups[drawn], minlength=2)
        rate = np.bincount(groups[drawn], decisions[drawn], minlength=2) / size
        gaps.append(rate.max() - rate.min())
    low, high = np.quantile(gaps, [0.025, 0.975])
    # Such quantiles of 4,000 draws, of standard deviation 0.09, have standard errors of 0.004.
    np.testing.assert_allclose(table.difference_low.selection_rate, low, atol=0.02)
    np.testing.assert_allclose(table.difference_high.selection_rate, high, atol=0.02)


def test_the_table_holds_every_rate_with_wilson_intervals_and_prints_as_markdown():
    table = group_table(*rows((5, 2, 1, 2), (2, 2, 2, 4), (0, 3, 0, 7)), names=["a", "b", "c"])
    np.testing.assert_allclose(table.rates.accuracy, [0.7, 0.6, 0.7])
    np.testing.assert_allclose(table.rates.base_rate, [0.6, 0.4, 0.0])
    np.testing.assert_allclose(table.rates.precision, [5 / 7, 0.5, 0.0])
    np.testing.assert_allclose(table.overall.false_positive_rate, 7 / 20)
    # Wilson, 7 of 10: scipy.stats.binomtest(7, 10).proportion_ci(method="wilson")
    np.testing.assert_allclose([table.low.accuracy[0], table.high.accuracy[0]], [0.396778, 0.892209], atol=1e-6)
    assert np.isnan(table.rates.true_positive_rate[2])
    assert np.isnan(table.difference_low.accuracy)
    lines = str(table).splitlines()
    assert lines[0].startswith("| group | n | accuracy | base rate | selection rate |")
    assert lines[2].startswith("| a | 10 | 0.700 (0.397 – 0.892) |")
    assert lines[4].split("|")[6].strip() == "—"
    assert lines[-2].startswith("| highest - lowest |")
    assert len({line.count("|") for line in lines}) == 1


def test_the_table_is_the_same_inside_jit():
    table = group_table(*TWO)
    compiled = jax.jit(lambda *arrays: group_table(*arrays, num_groups=2)[:-1])(*TWO)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), compiled, tuple(table)[:-1])


def drawn(n, num_groups, seed):
    rng = np.random.default_rng(seed)
    return *(rng.random((2, n)) < rng.random((2, 1))).astype(np.int32), rng.integers(0, num_groups, n)


GAPS = lambda counts: gaps_from_counts(counts, method="ratio").precision
COMPUTED = {
    "counts": (lambda counts: counts, functools.partial(group_counts, num_groups=4)),
    "gap": (GAPS, functools.partial(ours.predictive_parity, num_groups=4, method="ratio")),
    "odds": (ours.equalized_odds_from_counts, functools.partial(ours.equalized_odds, num_groups=4)),
    "impact": (ours.disparate_impact_from_counts, functools.partial(ours.disparate_impact, num_groups=4)),
}


@pytest.mark.parametrize("name", COMPUTED)
def test_counts_of_any_partition_give_the_whole(name):
    compute, whole = COMPUTED[name]
    arrays = drawn(200, 4, 0)
    assert_any_partition_gives_the_whole(group_counts_metric(4, compute), arrays, whole(*arrays), batch=64, rtol=0)


@settings(max_examples=1000, deadline=None, derandomize=True, database=None)
@given(st.sampled_from([1, 2, 7, 16]), st.integers(2, 4), st.integers(0, 2**20))
def test_any_groups_have_rates_and_gaps_in_their_ranges(n, num_groups, seed):
    labels, decisions, groups = drawn(n, num_groups, seed)
    cell = lambda y, d: np.bincount(groups[(labels == y) & (decisions == d)], minlength=num_groups)
    counts = GroupCounts(cell(1, 1), cell(0, 1), cell(1, 0), cell(0, 0))
    rates = rates_from_counts(counts)
    for rate, difference, ratio, to_all in zip(
        rates, gaps_from_counts(counts), gaps_from_counts(counts, method="ratio"),
        gaps_from_counts(counts, comparison="to_overall"), strict=True,
    ):  # fmt: skip
        there = rate[~np.isnan(rate)]
        assert ((there >= 0) & (there <= 1)).all()
        if len(there) < 2:
            assert np.isnan([difference, ratio, to_all]).all()
            continue
        assert math.isclose(difference, there.max() - there.min())
        assert math.isclose(ratio, there.min() / there.max() if there.max() else 1)
        assert difference / 2 - 1e-12 <= to_all <= difference + 1e-12


@settings(max_examples=1000, deadline=None, derandomize=True, database=None)
@given(st.integers(1, 16), st.integers(0, 2**20))
def test_counting_agrees_with_a_loop_and_masked_rows_may_hold_anything(n, seed):
    labels, decisions, groups = drawn(16, 4, seed)
    where = np.arange(16) < n
    expected = np.zeros((4, 4), int)
    for y, d, g in zip(labels[:n], decisions[:n], groups[:n], strict=True):
        expected[{(1, 1): 0, (0, 1): 1, (1, 0): 2, (0, 0): 3}[y, d], g] += 1
    spoiled = [np.where(where, array, 99) for array in (labels, decisions, groups)]
    np.testing.assert_array_equal(group_counts(*spoiled, num_groups=4, where=where), expected)


FAULTS = {
    "more labels": lambda y, d, g: (np.append(y, 0), d, g),
    "more groups": lambda y, d, g: (y, d, np.append(g, 0)),
    "two axes": lambda y, d, g: (y[:, None], d, g),
    "a label of 2": lambda y, d, g: (y + 2, d, g),
    "scores for decisions": lambda y, d, g: (y, d * 0.7, g),
    "nan": lambda y, d, g: (y * np.nan, d, g),
    "a negative group": lambda y, d, g: (y, d, g - 9),
    "a group too many": lambda y, d, g: (y, d, g + 9),
    "groups by name": lambda y, d, g: (y, d, np.array(["a"] * len(g))),
    "empty": lambda y, d, g: (y[:0], d[:0], g[:0]),
}
CRITERIA = (
    ours.demographic_parity, ours.equal_opportunity, ours.equalized_odds, ours.predictive_parity,
    ours.disparate_impact, group_counts, group_table,
)  # fmt: skip


@settings(max_examples=1000, deadline=None, derandomize=True, database=None)
@given(
    st.sampled_from(CRITERIA), st.sampled_from([1, 2, 7, 16]), st.sampled_from(sorted(FAULTS)), st.integers(0, 2**20)
)
def test_malformed_groups_are_refused(criterion, n, fault, seed):
    arrays = FAULTS[fault](*drawn(n, 4, seed))
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        with pytest.raises(UsageError, match=r"labels|predictions|groups"):
            criterion(*arrays, num_groups=4)
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ours.demographic_parity(*TWO, method="diffrence"), "did you mean 'difference'"),
        (lambda: ours.demographic_parity(*TWO, comparison="overall"), "to_overall"),
        (lambda: ours.equalized_odds(*TWO, aggregate="max"), "unknown aggregate 'max'"),
        (lambda: ours.disparate_impact(*TWO, threshold=80.0), r"\(0, 1\], got 80"),
        (lambda: group_counts(*TWO, num_groups=0), "at least 1, got 0"),
        (lambda: group_counts_metric(0), "at least 1, got 0"),
        (lambda: jax.jit(group_counts)(*TWO), "num_groups must be given inside jit"),
        (lambda: group_table(*TWO, names=["a"]), "2 groups, got 1"),
        (lambda: group_table(*TWO, confidence=95.0), "got 95"),
        (lambda: group_table(*TWO, key=jax.random.key(0), n_resamples=1), "at least 2, got 1"),
    ],
)
def test_nonsense_is_refused_with_the_value_given(call, words):
    with pytest.raises(UsageError, match=words):
        call()


def test_rates_are_named_as_in_the_literature():
    assert Rates._fields == (
        "accuracy", "base_rate", "selection_rate", "true_positive_rate", "false_positive_rate", "precision",
    )  # fmt: skip
