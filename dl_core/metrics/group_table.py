"""One table of a yes-or-no decision: every rate of every group with its interval, and the gaps between groups.

The rates of a group have Wilson intervals, the gaps percentile intervals of the bootstrap. Every rate is a function of
the counts of right and wrong decisions of each group, so to draw n examples with replacement is to draw these counts
from a multinomial distribution, whatever n is: a thousand resamples take milliseconds.

A gap is the distance of two extremes and therefore never negative: the gap of groups that are treated alike is above
zero, the more so the smaller the groups, and so is its interval. That an interval lies above zero is no evidence.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Integer, PRNGKeyArray

from dl_core.errors import UsageError
from dl_core.metrics.accumulator import AnyArray
from dl_core.metrics.group_counts import GroupCounts, Rates, gaps_from_counts, group_counts, rates_from_counts, shares
from dl_core.metrics.intervals import wilson_interval


class GroupTable(NamedTuple):
    """The rates of each group, and how far apart they are. Printed, a table in Markdown.

    counts: right and wrong decisions of each group, [groups].
    rates: of each group, [groups]; nan where a group does not have the rate.
    low, high: ends of the Wilson intervals of the rates, [groups]; [0, 1] where there is no rate.
    overall: the rates of all groups together, scalars.
    difference, ratio: highest minus and lowest over highest rate, scalars; groups without the rate are left out; nan
      where fewer than two are left.
    difference_low, difference_high, ratio_low, ratio_high: ends of their bootstrap intervals, scalars; nan without key.
    names: of the groups.
    """

    counts: GroupCounts
    rates: Rates
    low: Rates
    high: Rates
    overall: Rates
    difference: Rates
    ratio: Rates
    difference_low: Rates
    difference_high: Rates
    ratio_low: Rates
    ratio_high: Rates
    names: tuple[str, ...]

    def __str__(self) -> str:
        """A table in Markdown: one row for each group, then all together, differences and ratios."""
        n = np.asarray(shares(self.counts)[1].accuracy)
        rows = [
            ("group", "n", *(name.replace("_", " ") for name in Rates._fields)),
            ("---",) * (len(Rates._fields) + 2),
        ]
        for k, name in enumerate(self.names):
            cells = (
                _cell(*(part[k] for part in column)) for column in zip(self.rates, self.low, self.high, strict=True)
            )
            rows.append((name, str(n[k]), *cells))
        rows.append(("all", str(n.sum()), *(_cell(rate) for rate in self.overall)))
        gaps = (
            ("highest - lowest", self.difference, self.difference_low, self.difference_high),
            ("lowest / highest", self.ratio, self.ratio_low, self.ratio_high),
        )
        for name, *columns in gaps:
            rows.append((name, "", *(_cell(*column) for column in zip(*columns, strict=True))))
        return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cell(value: Any, low: Any = np.nan, high: Any = np.nan) -> str:
    if np.isnan(value):
        return "—"
    return f"{value:.3f}" if np.isnan(low) else f"{value:.3f} ({low:.3f} – {high:.3f})"


def group_table(
    labels: Integer[AnyArray, " n"] | Bool[AnyArray, " n"],
    predictions: Integer[AnyArray, " n"] | Bool[AnyArray, " n"],
    groups: Integer[AnyArray, " n"],
    *,
    num_groups: int | None = None,
    names: Sequence[str] | None = None,
    confidence: float = 0.95,
    key: PRNGKeyArray | None = None,
    n_resamples: int = 1000,
    where: Bool[AnyArray, " n"] | None = None,
) -> GroupTable:
    """Every rate of every group with its interval, and the gaps between the groups with theirs.

    Args:
      labels: 1 for those who deserve a yes, else 0.
      predictions: decisions, 0 or 1.
      groups: the group of each, in [0, num_groups).
      num_groups: by default one more than the largest group; must be given inside jit.
      names: of the groups; their numbers by default.
      confidence: nominal coverage of all intervals, in (0, 1).
      key: drives the bootstrap of the gaps; without one, the gaps have no intervals.
      n_resamples: draws of n examples.
      where: the rows that count; all by default.

    Returns:
      GroupTable.

    Raises:
      UsageError: names that are not one for each group, and as `group_table_from_counts` and `group_counts`.
    """
    counts = group_counts(labels, predictions, groups, num_groups=num_groups, where=where)
    return group_table_from_counts(counts, names=names, confidence=confidence, key=key, n_resamples=n_resamples)


def group_table_from_counts(
    counts: GroupCounts,
    *,
    names: Sequence[str] | None = None,
    confidence: float = 0.95,
    key: PRNGKeyArray | None = None,
    n_resamples: int = 1000,
) -> GroupTable:
    """`group_table` from the counts of each group [groups], such as those of `group_counts_metric`.

    Raises:
      UsageError: confidence outside (0, 1), n_resamples < 2, or names that are not one for each group.
    """
    if not any(isinstance(part, Tracer) for part in counts):
        counts = GroupCounts(*(np.asarray(part) for part in counts))
    num_groups = counts[0].shape[0]
    names = tuple(map(str, range(num_groups))) if names is None else tuple(names)
    if len(names) != num_groups:
        raise UsageError(f"names must be one for each of the {num_groups} groups, got {len(names)}")
    intervals = [wilson_interval(part, whole, confidence) for part, whole in zip(*shares(counts), strict=True)]
    overall = rates_from_counts(GroupCounts(*(part.sum(keepdims=True) for part in counts)))
    unknown = Rates(*[np.nan] * len(Rates._fields))
    bounds = [unknown] * 4
    if key is not None:
        if n_resamples < 2:
            raise UsageError(f"n_resamples must be at least 2, got {n_resamples}")
        bounds = _bootstrap(GroupCounts(*map(jnp.asarray, counts)), key, jnp.float32(confidence), n_resamples)
        if isinstance(counts[0], np.ndarray):
            bounds = jax.tree.map(np.asarray, bounds)
    return GroupTable(
        counts,
        rates_from_counts(counts),
        Rates(*(interval.low for interval in intervals)),
        Rates(*(interval.high for interval in intervals)),
        Rates(*(rate[0] for rate in overall)),
        gaps_from_counts(counts),
        gaps_from_counts(counts, method="ratio"),
        *(bounds[0], bounds[1], bounds[2], bounds[3]),
        names,
    )


@functools.partial(jax.jit, static_argnames="n_resamples")
def _bootstrap(counts: GroupCounts, key: PRNGKeyArray, confidence: Float[Array, ""], n_resamples: int) -> list[Rates]:
    """Quantiles of the gaps of resampled counts; where a resample has no gap, of the others."""
    cells = jnp.stack(counts).reshape(-1).astype(jnp.float32)
    n = cells.sum()
    # What `shape` means differs between JAX 0.10 and 0.12, so the shape is that of the probabilities.
    drawn = jax.random.multinomial(key, n, jnp.broadcast_to(cells / n, (n_resamples, cells.shape[0])))
    resampled = GroupCounts(*jnp.moveaxis(drawn.reshape(n_resamples, 4, -1), 1, 0).astype(jnp.int32))
    tails = jnp.stack([(1 - confidence) / 2, (1 + confidence) / 2])
    bounds = []
    for method in ("difference", "ratio"):
        gaps = gaps_from_counts(resampled, method=method)
        ends = [jnp.nanquantile(gap, tails) for gap in gaps]
        bounds += [Rates(*(end[i] for end in ends)) for i in range(2)]
    return bounds
