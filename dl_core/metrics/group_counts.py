"""Right and wrong decisions of each group, the rates that follow from them, and how far apart those are.

Groups are numbers from 0; `names, groups = np.unique(attribute, return_inverse=True)` makes them of anything.

Counts that can be seen are turned into rates in float64; inside jit, in float32.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Bool, Int, Integer

from dl_core.errors import UsageError, unknown_name
from dl_core.metrics.accumulator import AnyArray, Metric, metric_from_sums, where_or_all
from dl_core.metrics.checks import check_classes, check_not_empty, check_same_length

METHODS = ("difference", "ratio")
COMPARISONS = ("between_groups", "to_overall")

Decisions = Integer[AnyArray, " n"] | Bool[AnyArray, " n"]
Where = Bool[AnyArray, " n"] | None


class GroupCounts(NamedTuple):
    """Right and wrong decisions of each group, int32 [..., groups]."""

    true_positive: Int[AnyArray, "... groups"]
    false_positive: Int[AnyArray, "... groups"]
    false_negative: Int[AnyArray, "... groups"]
    true_negative: Int[AnyArray, "... groups"]


class Rates(NamedTuple):
    """The rates in [0, 1] that criteria of fairness compare; each of the same shape [...], such as [groups].

    accuracy: share of right decisions.
    base_rate: share of positive labels.
    selection_rate: share of positive decisions.
    true_positive_rate: of the positive labels; also recall.
    false_positive_rate: of the negative labels.
    precision: share of positive labels among the positive decisions.
    """

    accuracy: Any
    base_rate: Any
    selection_rate: Any
    true_positive_rate: Any
    false_positive_rate: Any
    precision: Any


def group_counts(
    labels: Integer[AnyArray, " n"] | Bool[AnyArray, " n"],
    predictions: Integer[AnyArray, " n"] | Bool[AnyArray, " n"],
    groups: Integer[AnyArray, " n"],
    *,
    num_groups: int | None = None,
    where: Bool[AnyArray, " n"] | None = None,
) -> GroupCounts:
    """How many decisions of each group were right and wrong: what every figure here is made of.

    Args:
      labels: 1 for those who deserve a yes, else 0.
      predictions: the decisions, 1 for yes, else 0.
      groups: the group of each, in [0, num_groups).
      num_groups: by default one more than the largest group; must be given inside jit.
      where: the rows that count; all by default.

    Returns:
      GroupCounts; a group may be empty. Inside jit, rows with a value out of its range are left out.

    Raises:
      UsageError: no examples, shapes that do not match, num_groups missing inside jit; seen outside jit, labels or
        predictions other than 0 and 1 or a group outside [0, num_groups).
    """
    _check(labels, predictions, groups, num_groups, where)
    check_not_empty("labels", labels, where)
    if num_groups is None:
        if isinstance(groups, Tracer) or isinstance(where, Tracer):
            raise UsageError("num_groups must be given inside jit, where the largest group cannot be seen")
        num_groups = int(np.asarray(groups)[slice(None) if where is None else np.asarray(where)].max()) + 1
    return _count(labels, predictions, groups, num_groups, where)


def group_counts_metric(num_groups: int, compute: Callable[[GroupCounts], Any] = lambda counts: counts) -> Metric:
    """Accumulator of `group_counts`, and of everything that is computed from them.

        group_counts_metric(4, lambda counts: gaps_from_counts(counts, method="ratio").selection_rate)

    Args:
      num_groups: how many groups there are.
      compute: GroupCounts -> the metric; the counts themselves by default.

    Returns:
      A Metric: `update(state, labels [n], predictions [n], groups [n], where=None)`.

    Raises:
      UsageError: num_groups < 1; from `update`, as `group_counts`.
    """
    if num_groups < 1:
        raise UsageError(f"num_groups must be at least 1, got {num_groups}")

    def sums(labels: Decisions, predictions: Decisions, groups: Integer[AnyArray, " n"], *, where: Where):
        _check(labels, predictions, groups, num_groups, where)
        return _count(labels, predictions, groups, num_groups, where)

    return metric_from_sums(lambda: GroupCounts(*(jnp.zeros(num_groups, jnp.int32),) * 4), sums, compute)


def _check(labels: Any, predictions: Any, groups: Any, num_groups: int | None, where: Where) -> None:
    check_same_length(labels=labels, predictions=predictions, groups=groups, where=where)
    for name, values in (("labels", labels), ("predictions", predictions), ("groups", groups)):
        if np.ndim(values) != 1:
            raise UsageError(f"{name} must have shape [n], got {list(np.shape(values))}")
    check_classes("labels", labels, 2, where)
    check_classes("predictions", predictions, 2, where)
    if num_groups is not None and num_groups < 1:
        raise UsageError(f"num_groups must be at least 1, got {num_groups}")
    check_groups(groups, num_groups, where)


def check_groups(
    groups: Integer[AnyArray, " n"], num_groups: int | None, where: Bool[AnyArray, " n"] | None = None
) -> None:
    """Refuses groups that are not whole numbers in [0, num_groups), or from 0 where num_groups is None.

    Raises:
      UsageError: saying what was given, and how names become numbers.
    """
    if not isinstance(groups, Tracer) and np.asarray(groups).dtype.kind not in "iu":
        given = np.asarray(groups).dtype
        raise UsageError(
            f"groups must be integers from 0, got {given}; "
            "names, groups = np.unique(groups, return_inverse=True) makes them of anything"
        )
    check_classes("groups", groups, np.iinfo(np.int32).max if num_groups is None else num_groups, where)


@functools.partial(jax.jit, static_argnames="num_groups")
def _count(
    labels: Decisions, predictions: Decisions, groups: Integer[AnyArray, " n"], num_groups: int, where: Where
) -> GroupCounts:
    y, decision, group = (jnp.asarray(values).astype(jnp.int32) for values in (labels, predictions, groups))
    inside = (y >= 0) & (y < 2) & (decision >= 0) & (decision < 2) & (group >= 0) & (group < num_groups)
    kept = where_or_all(where, labels) & inside
    cell = jnp.where(kept, (1 - y) * 2 + (1 - decision), 0)  # 0 TP, 1 FN, 2 FP, 3 TN
    counts = jnp.zeros((4, num_groups), jnp.int32).at[cell, jnp.where(kept, group, 0)].add(kept.astype(jnp.int32))
    return GroupCounts(counts[0], counts[2], counts[1], counts[3])


def shares(counts: GroupCounts) -> tuple[Rates, Rates]:
    """Numerators and denominators of the rates, counts of the shape [...] of each field of the counts."""
    tp, fp, fn, tn = counts
    everyone = tp + fp + fn + tn
    numerators = Rates(tp + tn, tp + fn, tp + fp, tp, fp, tp)
    return numerators, Rates(everyone, everyone, everyone, tp + fn, fp + tn, tp + fp)


def rates_from_counts(counts: GroupCounts, *, zero_division: float = float("nan")) -> Rates:
    """Each group's rates.

    Args:
      counts: of each group, [..., groups].
      zero_division: the value of a rate that a group does not have, such as a true positive rate without positives.

    Returns:
      Rates [..., groups].
    """
    counts, xp = _seen(counts)
    ratio = lambda part, whole: xp.where(whole > 0, part / xp.where(whole > 0, whole, 1), zero_division)
    return Rates(*(ratio(part, whole) for part, whole in zip(*shares(counts), strict=True)))


def _seen(counts: GroupCounts) -> tuple[GroupCounts, Any]:
    """Counts as NumPy arrays where they have values, for float64; and the module that computes with them."""
    if any(isinstance(part, Tracer) for part in counts):
        return counts, jnp
    return GroupCounts(*(np.asarray(part) for part in counts)), np


def _overall(counts: GroupCounts) -> GroupCounts:
    return GroupCounts(*(part.sum(axis=-1, keepdims=True) for part in counts))


def gaps_from_counts(
    counts: GroupCounts,
    *,
    method: str = "difference",
    comparison: str = "between_groups",
    zero_division: float = float("nan"),
) -> Rates:
    """How far apart the groups are in every rate.

    Args:
      counts: of each group, [..., groups].
      method: "difference", of the highest and the lowest rate; "ratio", of the lowest to the highest.
      comparison: "between_groups"; or "to_overall", the greatest distance of a group from all groups together.
      zero_division: the value of a rate that a group does not have; nan leaves the group out.

    Returns:
      Rates [...], in [0, 1]: differences (0 is parity) or ratios (1 is parity); nan where fewer than two groups have
      the rate, and so nothing can be compared.

    Raises:
      UsageError: an unknown method or comparison.
    """
    if method not in METHODS:
        raise unknown_name("method", method, METHODS)
    if comparison not in COMPARISONS:
        raise unknown_name("comparison", comparison, COMPARISONS)
    counts, xp = _seen(counts)
    present = shares(counts)[1].accuracy > 0

    def gap(rate: Any, overall: Any) -> Any:
        has = present & ~xp.isnan(rate)
        if comparison == "to_overall":
            low = xp.where(has, xp.minimum(rate, overall), overall)
            high = xp.where(has, xp.maximum(rate, overall), overall)
        else:
            low = xp.where(has, rate, xp.inf).min(axis=-1, keepdims=True)
            high = xp.where(has, rate, -xp.inf).max(axis=-1, keepdims=True)
        if method == "difference":
            value = (high - low).max(axis=-1)
        else:
            value = xp.where(high > 0, low / xp.where(high > 0, high, 1.0), 1.0).min(axis=-1)
        return xp.where(has.sum(axis=-1) >= 2, value, xp.nan)

    together = GroupCounts(*(part.sum(axis=-1, keepdims=True) for part in counts))
    rates, overall = (rates_from_counts(part, zero_division=zero_division) for part in (counts, together))
    return Rates(*map(gap, rates, overall))
