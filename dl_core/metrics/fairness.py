"""Whether a yes-or-no decision treats groups of people alike: group fairness, from counts of each group.

Hardt, Price, Srebro (2016), "Equality of Opportunity in Supervised Learning", https://arxiv.org/abs/1610.02413;
Barocas, Hardt, Narayanan, "Fairness and Machine Learning", ch. 3. Each criterion asks that a rate be the same for every
group:

    demographic parity   selection rate       share that is given a yes
    equal opportunity    true positive rate   share of yes among those who deserve it
    equalized odds       true and false positive rates
    predictive parity    precision            share that deserves it among those given a yes
    disparate impact     selection rate, as the ratio of the lowest to the highest: at least four fifths

Groups are numbers from 0; `names, groups = np.unique(attribute, return_inverse=True)` makes them of anything. Figures
are those of fairlearn but for two: a rate that a group does not have (a true positive rate without positives) is left
out, where fairlearn takes it for 0 and so reports the largest gap there can be (`zero_division=0` does that); and the
ratio of rates that are all 0 is 1, where fairlearn has nan.

Everything follows from the counts of `group_counts`, which `group_counts_metric` accumulates:

    group_counts_metric(4, lambda counts: gaps_from_counts(counts).true_positive_rate)  # equal opportunity
    group_counts_metric(4, equalized_odds_from_counts)
    group_counts_metric(4, disparate_impact_from_counts)
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Bool, Float, Integer

from dl_core.errors import UsageError, unknown_name
from dl_core.metrics.accumulator import AnyArray
from dl_core.metrics.group_counts import GroupCounts, gaps_from_counts, group_counts

AGGREGATES = ("worst_case", "mean")
FOUR_FIFTHS = 0.8

Scalar = Float[AnyArray, ""] | float


class DisparateImpact(NamedTuple):
    """The lowest selection rate over the highest, in [0, 1], and whether that is at least the threshold."""

    ratio: Scalar
    passes: Bool[AnyArray, ""] | bool


def equalized_odds_from_counts(
    counts: GroupCounts,
    *,
    method: str = "difference",
    comparison: str = "between_groups",
    aggregate: str = "worst_case",
    zero_division: float = float("nan"),
) -> Scalar:
    """`equalized_odds` from counts [..., groups]; nan where fewer than two groups have both rates.

    Raises:
      UsageError: an unknown method, comparison or aggregate.
    """
    if aggregate not in AGGREGATES:
        raise unknown_name("aggregate", aggregate, AGGREGATES)
    gaps = gaps_from_counts(counts, method=method, comparison=comparison, zero_division=zero_division)
    a, b = gaps.true_positive_rate, gaps.false_positive_rate
    if aggregate == "mean":
        return (a + b) / 2
    xp = jnp if isinstance(a, Tracer) else np
    return (xp.maximum if method == "difference" else xp.minimum)(a, b)


def disparate_impact_from_counts(counts: GroupCounts, *, threshold: float = FOUR_FIFTHS) -> DisparateImpact:
    """`disparate_impact` from counts [..., groups]; nan, which does not pass, of fewer than two groups.

    Raises:
      UsageError: a threshold outside (0, 1].
    """
    if not 0 < threshold <= 1:
        raise UsageError(f"threshold must lie in (0, 1], got {threshold}")
    ratio = gaps_from_counts(counts, method="ratio").selection_rate
    # Exactly four fifths passes, whatever the last bits of two rounded divisions are.
    return DisparateImpact(ratio, ratio >= threshold * (1 - 4 * float(jnp.finfo(ratio.dtype).eps)))


def demographic_parity(
    labels: Integer[AnyArray, " n"] | Bool[AnyArray, " n"],
    predictions: Integer[AnyArray, " n"] | Bool[AnyArray, " n"],
    groups: Integer[AnyArray, " n"],
    *,
    num_groups: int | None = None,
    method: str = "difference",
    comparison: str = "between_groups",
    where: Bool[AnyArray, " n"] | None = None,
) -> Scalar:
    """How far apart the groups' selection rates are.

    Args:
      labels: 0 or 1; they do not matter here, and predictions may be given in their place.
      predictions: decisions, 0 or 1.
      groups: the group of each, in [0, num_groups).
      num_groups: by default one more than the largest group; must be given inside jit.
      method: "difference", highest minus lowest (0 is parity); "ratio", lowest over highest (1 is parity).
      comparison: "between_groups"; or "to_overall", the greatest distance of a group from all groups together.
      where: the rows that count; all by default.

    Returns:
      A scalar in [0, 1]. Inside jit, nan where fewer than two groups can be compared.

    Raises:
      UsageError: an unknown method or comparison, fewer than two groups, and as `group_counts`.
    """
    counts = group_counts(labels, predictions, groups, num_groups=num_groups, where=where)
    return _comparable(
        "a selection rate", gaps_from_counts(counts, method=method, comparison=comparison).selection_rate
    )


def equal_opportunity(
    labels: Integer[AnyArray, " n"] | Bool[AnyArray, " n"],
    predictions: Integer[AnyArray, " n"] | Bool[AnyArray, " n"],
    groups: Integer[AnyArray, " n"],
    *,
    num_groups: int | None = None,
    method: str = "difference",
    comparison: str = "between_groups",
    zero_division: float = float("nan"),
    where: Bool[AnyArray, " n"] | None = None,
) -> Scalar:
    """How far apart the groups' true positive rates are (Hardt et al. 2016, definition 2.2).

    Args:
      labels: 0 or 1.
      predictions: decisions, 0 or 1.
      groups: the group of each, in [0, num_groups).
      num_groups: by default one more than the largest group; must be given inside jit.
      method: "difference" (0 is parity) or "ratio" (1 is parity).
      comparison: "between_groups" or "to_overall".
      zero_division: the rate of a group without positive labels; nan leaves the group out, 0 is what fairlearn does.
      where: the rows that count; all by default.

    Returns:
      A scalar in [0, 1]. Inside jit, nan where fewer than two groups can be compared.

    Raises:
      UsageError: an unknown method or comparison, fewer than two groups with positive labels, and as `group_counts`.
    """
    counts = group_counts(labels, predictions, groups, num_groups=num_groups, where=where)
    gaps = gaps_from_counts(counts, method=method, comparison=comparison, zero_division=zero_division)
    return _comparable("positive labels", gaps.true_positive_rate)


def equalized_odds(
    labels: Integer[AnyArray, " n"] | Bool[AnyArray, " n"],
    predictions: Integer[AnyArray, " n"] | Bool[AnyArray, " n"],
    groups: Integer[AnyArray, " n"],
    *,
    num_groups: int | None = None,
    method: str = "difference",
    comparison: str = "between_groups",
    aggregate: str = "worst_case",
    zero_division: float = float("nan"),
    where: Bool[AnyArray, " n"] | None = None,
) -> Scalar:
    """How far apart the groups' true and false positive rates are (Hardt et al. 2016, definition 2.1).

    Args:
      labels: 0 or 1.
      predictions: decisions, 0 or 1.
      groups: the group of each, in [0, num_groups).
      num_groups: by default one more than the largest group; must be given inside jit.
      method: "difference" (0 is parity) or "ratio" (1 is parity).
      comparison: "between_groups" or "to_overall".
      aggregate: "worst_case" of the two rates, or their "mean".
      zero_division: the rate of a group without positive, or without negative, labels; nan leaves the group out of the
        gap of that rate, 0 is what fairlearn does.
      where: the rows that count; all by default.

    Returns:
      A scalar in [0, 1]. Inside jit, nan where fewer than two groups can be compared.

    Raises:
      UsageError: an unknown method, comparison or aggregate, fewer than two groups with positive or with negative
        labels, and as `group_counts`.
    """
    counts = group_counts(labels, predictions, groups, num_groups=num_groups, where=where)
    value = equalized_odds_from_counts(
        counts, method=method, comparison=comparison, aggregate=aggregate, zero_division=zero_division
    )
    return _comparable("positive and negative labels", value)


def predictive_parity(
    labels: Integer[AnyArray, " n"] | Bool[AnyArray, " n"],
    predictions: Integer[AnyArray, " n"] | Bool[AnyArray, " n"],
    groups: Integer[AnyArray, " n"],
    *,
    num_groups: int | None = None,
    method: str = "difference",
    comparison: str = "between_groups",
    zero_division: float = float("nan"),
    where: Bool[AnyArray, " n"] | None = None,
) -> Scalar:
    """How far apart the groups' precisions are (Chouldechova 2017, "Fair Prediction with Disparate Impact", eq. 2.2).

    Args:
      labels: 0 or 1.
      predictions: decisions, 0 or 1.
      groups: the group of each, in [0, num_groups).
      num_groups: by default one more than the largest group; must be given inside jit.
      method: "difference" (0 is parity) or "ratio" (1 is parity).
      comparison: "between_groups" or "to_overall".
      zero_division: the precision of a group without positive decisions; nan leaves the group out.
      where: the rows that count; all by default.

    Returns:
      A scalar in [0, 1]. Inside jit, nan where fewer than two groups can be compared.

    Raises:
      UsageError: an unknown method or comparison, fewer than two groups with positive decisions, and as `group_counts`.
    """
    counts = group_counts(labels, predictions, groups, num_groups=num_groups, where=where)
    gaps = gaps_from_counts(counts, method=method, comparison=comparison, zero_division=zero_division)
    return _comparable("positive predictions", gaps.precision)


def disparate_impact(
    labels: Integer[AnyArray, " n"] | Bool[AnyArray, " n"],
    predictions: Integer[AnyArray, " n"] | Bool[AnyArray, " n"],
    groups: Integer[AnyArray, " n"],
    *,
    num_groups: int | None = None,
    threshold: float = FOUR_FIFTHS,
    where: Bool[AnyArray, " n"] | None = None,
) -> DisparateImpact:
    """The lowest selection rate over the highest, and whether it passes the 80 % rule.

    Uniform Guidelines on Employee Selection Procedures (1978), 29 CFR § 1607.4 D.

    Args:
      labels: 0 or 1; they do not matter here, and predictions may be given in their place.
      predictions: decisions, 0 or 1.
      groups: the group of each, in [0, num_groups).
      num_groups: by default one more than the largest group; must be given inside jit.
      threshold: least ratio that passes, in (0, 1].
      where: the rows that count; all by default.

    Returns:
      DisparateImpact. Inside jit, of fewer than two groups, nan and no pass.

    Raises:
      UsageError: a threshold outside (0, 1], fewer than two groups, and as `group_counts`.
    """
    counts = group_counts(labels, predictions, groups, num_groups=num_groups, where=where)
    impact = disparate_impact_from_counts(counts, threshold=threshold)
    _comparable("a selection rate", impact.ratio)
    return impact


def _comparable(what: str, value: Any) -> Any:
    if not isinstance(value, Tracer) and np.isnan(value):
        raise UsageError(f"groups must hold at least two groups with {what}, or there is nothing to compare; got fewer")
    return value
