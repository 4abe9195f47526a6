"""Three comparisons of groups: their shares with a population's, their classes, and the means of measured values.

The statistics behind `dl_core.metrics.data_bias`; on the host, in float64.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.special
from jaxtyping import Float, Int

from dl_core.metrics.intervals import wilson_interval


class Representation(NamedTuple):
    """How the groups' shares in a set compare with those in the population.

    total: examples of each group, [groups].
    share: total over all; low and high are the ends of the Wilson intervals.
    population: the shares to compare with, [groups].
    ratio: share over population share, [groups]; inf where the population has none, 1 where neither has any.
    total_variation: ½ Σ |share - population|, the share of examples that would have to be of another group.
    p_value: of Pearson's chi-square test of goodness of fit.
    """

    total: Int[np.ndarray, " groups"]
    share: Float[np.ndarray, " groups"]
    low: Float[np.ndarray, " groups"]
    high: Float[np.ndarray, " groups"]
    population: Float[np.ndarray, " groups"]
    ratio: Float[np.ndarray, " groups"]
    total_variation: float
    p_value: float


class LabelBias(NamedTuple):
    """How the classes of one label are spread over the groups.

    counts: examples, [groups, classes].
    rate: share of each class in each group, [groups, classes]; nan for a group without examples; low and high are the
      ends of the Wilson intervals.
    difference: highest minus lowest rate of each class, [classes]; nan if only one group has examples.
    difference_low, difference_high: ends of Newcombe's interval of the difference of those two groups (Newcombe 1998,
      "Interval estimation for the difference between independent proportions", method 10), [classes].
    highest, lowest: the two groups, [classes].
    cramers_v: √(χ² / (n min(groups - 1, classes - 1))) of the groups and classes that occur; 0 for independence, 1 if
      the group tells the class; nan if only one group or one class occurs. cramers_v_low and cramers_v_high are those
      of the population that invert the non-central χ² distribution (Smithson 2003, "Confidence Intervals"). The value
      of a sample lies too high, by about √(classes / n) for independence, and may lie above them.
    mutual_information: of group and class, in nats.
    p_value: of Pearson's chi-square test of independence; 1 if there is nothing to compare.
    """

    name: str
    class_names: tuple[str, ...]
    counts: Int[np.ndarray, "groups classes"]
    rate: Float[np.ndarray, "groups classes"]
    low: Float[np.ndarray, "groups classes"]
    high: Float[np.ndarray, "groups classes"]
    difference: Float[np.ndarray, " classes"]
    difference_low: Float[np.ndarray, " classes"]
    difference_high: Float[np.ndarray, " classes"]
    highest: Int[np.ndarray, " classes"]
    lowest: Int[np.ndarray, " classes"]
    cramers_v: float
    cramers_v_low: float
    cramers_v_high: float
    mutual_information: float
    p_value: float


class GroupDifferences(NamedTuple):
    """How several measured values differ between the groups; each field [groups, features].

    mean, deviation: of the values that are there; nan where there are too few.
    missing: share of values that are nan.
    standardized: Cohen's d, the mean of the group minus that of all other examples in pooled standard deviations; low
      and high are the ends of its large-sample interval (Hedges, Olkin 1985, "Statistical Methods for Meta-Analysis",
      ch. 5). ±inf where neither varies and they differ, nan where either has no values.
    p_value: of Student's t test of that difference.
    missing_p_value: of the chi-square test that values are missing as often in the group as in the rest.
    """

    names: tuple[str, ...]
    mean: Float[np.ndarray, "groups features"]
    deviation: Float[np.ndarray, "groups features"]
    missing: Float[np.ndarray, "groups features"]
    standardized: Float[np.ndarray, "groups features"]
    low: Float[np.ndarray, "groups features"]
    high: Float[np.ndarray, "groups features"]
    p_value: Float[np.ndarray, "groups features"]
    missing_p_value: Float[np.ndarray, "groups features"]


def _ratio(a: Float[np.ndarray, "..."], b: Float[np.ndarray, "..."], empty: float) -> Float[np.ndarray, "..."]:
    """a / b, and `empty` for 0 / 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where((a == 0) & (b == 0), empty, np.asarray(a) / b)


def representation(
    total: Int[np.ndarray, " groups"], population: Float[np.ndarray, " groups"], *, confidence: float = 0.95
) -> Representation:
    """The groups' shares beside those of a population.

    Args:
      total: examples of each group, not all 0.
      population: shares that add up to 1.
      confidence: of the intervals, in (0, 1).

    Returns:
      Representation.
    """
    n = total.sum()
    share = total / n
    chi_square = n * _ratio((share - population) ** 2, population, 0.0).sum()
    low, high = wilson_interval(total, np.full(len(total), n), confidence)
    return Representation(
        total,
        share,
        np.asarray(low),
        np.asarray(high),
        population,
        _ratio(share, population, 1.0),
        float(np.abs(share - population).sum() / 2),
        float(scipy.special.chdtrc(max((population > 0).sum() - 1, 1), chi_square)),
    )


def label_bias(
    counts: Int[np.ndarray, "groups classes"],
    *,
    name: str = "label",
    class_names: Sequence[str] | None = None,
    confidence: float = 0.95,
) -> LabelBias:
    """How much the group says about the class, from a table of counts.

    Args:
      counts: examples of each class in each group, not all 0.
      name: of the label.
      class_names: one for each class; numbers by default.
      confidence: of the intervals, in (0, 1).

    Returns:
      LabelBias.
    """
    classes = counts.shape[1]
    size = np.broadcast_to(counts.sum(axis=1, keepdims=True), counts.shape)
    rate = _ratio(counts.astype(float), size.astype(float), np.nan)
    low, high = (np.asarray(end) for end in wilson_interval(counts, size, confidence))
    highest, lowest = np.where(size > 0, rate, -1).argmax(axis=0), np.where(size > 0, rate, 2).argmin(axis=0)
    column = np.arange(classes)
    top, bottom = (highest, column), (lowest, column)
    several = (size[:, 0] > 0).sum() > 1
    difference = np.where(several, rate[top] - rate[bottom], np.nan)
    below = np.hypot(rate[top] - low[top], high[bottom] - rate[bottom])
    above = np.hypot(high[top] - rate[top], rate[bottom] - low[bottom])

    table = counts[np.ix_(counts.sum(axis=1) > 0, counts.sum(axis=0) > 0)].astype(float)
    n = table.sum()
    expected = np.outer(table.sum(axis=1), table.sum(axis=0)) / n
    chi_square = float(((table - expected) ** 2 / expected).sum())
    freedom, least = (table.shape[0] - 1) * (table.shape[1] - 1), min(table.shape) - 1
    v = v_low = v_high = np.nan
    if least:
        tail = (1 - confidence) / 2
        v, v_low, v_high = (
            min(1.0, float(np.sqrt(value / (n * least))))
            for value in (
                chi_square,
                _noncentrality(chi_square, freedom, 1 - tail),
                _noncentrality(chi_square, freedom, tail),
            )
        )
    return LabelBias(
        name,
        tuple(map(str, range(classes))) if class_names is None else tuple(class_names),
        counts,
        rate,
        low,
        high,
        difference,
        difference - below,
        difference + above,
        highest,
        lowest,
        v,
        v_low,
        v_high,
        float(max(0.0, scipy.special.xlogy(table, table / expected).sum() / n)),
        float(scipy.special.chdtrc(freedom, chi_square)) if least else 1.0,
    )


def _noncentrality(chi_square: float, freedom: int, probability: float) -> float:
    """The non-centrality with which chi_square is that quantile; 0 where no other has so small a one."""
    if scipy.special.chdtr(freedom, chi_square) <= probability:
        return 0.0
    return float(scipy.special.chndtrinc(chi_square, freedom, probability))


def group_differences(
    values: Float[np.ndarray, "n features"],
    member: Float[np.ndarray, "n groups"],
    *,
    names: Sequence[str] | None = None,
    confidence: float = 0.95,
) -> GroupDifferences:
    """Each group against all other examples, in every measured value.

    Args:
      values: finite, or nan where missing.
      member: 1 in the column of the example's group, else 0.
      names: of the features; numbers by default.
      confidence: of the intervals, in (0, 1).

    Returns:
      GroupDifferences.
    """
    there = ~np.isnan(values)
    n_all = there.sum(axis=0, dtype=float)
    centre = _ratio(np.where(there, values, 0).sum(axis=0), n_all, 0.0)  # or the sums of squares would cancel
    centred = np.where(there, values - centre, 0.0)
    n_in, sum_in, squares_in = (member.T @ array for array in (there.astype(float), centred, centred**2))
    n_out, sum_out, squares_out = (whole.sum(axis=0) - part for whole, part in (
        (there.astype(float), n_in), (centred, sum_in), (centred**2, squares_in)))  # fmt: skip
    mean_in, mean_out = _ratio(sum_in, n_in, np.nan), _ratio(sum_out, n_out, np.nan)
    # Rounding leaves a little of squares that should cancel to 0.
    trace = 1e-12 * (centred**2).sum(axis=0)
    scatter = lambda squares, n, mean: np.where(squares - n * mean**2 > trace, squares - n * mean**2, 0.0)
    within_in, within_out = scatter(squares_in, n_in, mean_in), scatter(squares_out, n_out, mean_out)
    freedom = n_in + n_out - 2
    pooled = np.sqrt(_ratio(within_in + within_out, np.maximum(freedom, 0), np.nan))
    gap = mean_in - mean_out
    gap = np.where(np.abs(gap) > 1e-12 * np.abs(centre), gap, np.where(np.isnan(gap), np.nan, 0.0))
    d = _ratio(gap, pooled, 0.0)
    apart = _ratio(n_in + n_out, n_in * n_out, np.inf)
    error = np.sqrt(apart + np.where(np.isfinite(d), d, 0.0) ** 2 / (2 * np.maximum(n_in + n_out, 1)))
    z = float(scipy.special.ndtri((1 + confidence) / 2))
    with np.errstate(invalid="ignore"):
        t = np.abs(d) / np.sqrt(apart)
        p = np.where(np.isnan(t) | (freedom < 1), 1.0, 2 * scipy.special.stdtr(np.maximum(freedom, 1), -t))

    size, rest = member.sum(axis=0)[:, None], member.sum() - member.sum(axis=0)[:, None]
    missing_in, missing_out = size - n_in, rest - n_out
    overall = (missing_in + missing_out) / member.sum()
    with np.errstate(invalid="ignore"):  # 0 times infinity, of a group without a rest, is undefined
        spread = np.sqrt(overall * (1 - overall) * _ratio(size + rest, size * rest, np.inf))
    share = _ratio(missing_in, np.broadcast_to(size, n_in.shape), np.nan)
    apart_missing = np.nan_to_num(
        _ratio(share - _ratio(missing_out, np.broadcast_to(rest, n_in.shape), np.nan), spread, 0.0)
    )
    return GroupDifferences(
        tuple(map(str, range(values.shape[1]))) if names is None else tuple(names),
        mean_in + centre,
        np.sqrt(_ratio(within_in, np.maximum(n_in - 1, 0), np.nan)),
        share,
        d,
        d - z * error,
        d + z * error,
        p,
        scipy.special.chdtrc(1, apart_missing**2),
    )
