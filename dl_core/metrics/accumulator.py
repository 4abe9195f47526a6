"""Metrics that are updated batch by batch: a state is a pytree of sums, so states merge in any order and grouping.

    metric = confusion_metric(num_classes=10)
    state = metric.init()
    for labels, predictions, valid in batches:
        state = jax.jit(metric.update)(state, labels, predictions, where=valid)
    matrix = metric.compute(state)

Counts are int32 and merge exactly. Sums of floats are kept as a value and the rounding error it carries (Knuth's
two-sum; Knuth 1997, *The Art of Computer Programming* 2, §4.2.2, theorem B), so that ten thousand small batches give
what one large batch gives. The states of several devices may also be added leaf by leaf (`jax.lax.psum`).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, Shaped

from dl_core.errors import UsageError

AnyArray = Array | np.ndarray


class Metric(NamedTuple):
    """Four pure functions; all but `init` may be jitted.

    init: () -> state of no examples.
    update: (state, *arrays [batch, ...], where=None) -> state; `where` bool [batch] says which rows count.
    merge: (state, state) -> state of both sets of examples.
    compute: (state) -> the metric.
    """

    init: Callable[[], Any]
    update: Callable[..., Any]
    merge: Callable[[Any, Any], Any]
    compute: Callable[[Any], Any]


class CompensatedSum(NamedTuple):
    """A sum of floats, `high + low`: the rounded sum and the rounding error that it left out."""

    high: Float[Array, "..."]
    low: Float[Array, "..."]


def compensated(value: Float[AnyArray, "..."]) -> CompensatedSum:
    """The sum that consists of one term of any shape [...]; rounding error zero."""
    value = jnp.asarray(value)
    return CompensatedSum(value, jnp.zeros_like(value))


def _add(a: Any, b: Any) -> Any:
    if not isinstance(a, CompensatedSum):
        return a + b
    high = a.high + b.high
    b_part = high - a.high
    error = (a.high - (high - b_part)) + (b.high - b_part)
    return CompensatedSum(high, a.low + b.low + error)


def add_sums(a: Any, b: Any) -> Any:
    """The state of two sets of examples together.

    Args:
      a: pytree of counts [...] and CompensatedSums.
      b: the same structure and shapes.

    Returns:
      The same structure: leaf by leaf the sum.
    """
    return jax.tree.map(_add, a, b, is_leaf=lambda node: isinstance(node, CompensatedSum))


def metric_from_sums(zeros: Callable[[], Any], sums: Callable[..., Any], compute: Callable[[Any], Any]) -> Metric:
    """The Metric whose state is a sum over examples.

    Args:
      zeros: () -> the sums over no examples.
      sums: (*arrays [batch, ...], where=bool [batch] | None) -> the sums over one batch.
      compute: (sums) -> the metric.

    Returns:
      A Metric.
    """

    def update(state: Any, *arrays: Shaped[AnyArray, "batch ..."], where: Bool[AnyArray, " batch"] | None = None):
        return add_sums(state, sums(*arrays, where=where))

    return Metric(zeros, update, add_sums, compute)


def where_or_all(where: Bool[AnyArray, " batch"] | None, like: Shaped[AnyArray, "batch ..."]) -> Bool[Array, " batch"]:
    """The mask itself, or one that keeps every row of `like` [batch, ...]."""
    return jnp.ones(like.shape[0], bool) if where is None else jnp.asarray(where)


def mean_metric() -> Metric:
    """The mean of per-example values, such as losses.

    Returns:
      A Metric; `update(state, values float [batch], where=None)`, `compute` gives a scalar (nan without examples).
    """

    def sums(values: Float[AnyArray, " batch"], *, where: Bool[AnyArray, " batch"] | None = None):
        kept = where_or_all(where, values)
        total = jnp.where(kept, jnp.asarray(values, jnp.float32), 0.0).sum()
        return compensated(total), kept.sum(dtype=jnp.int32)

    def compute(state: tuple[CompensatedSum, Array]) -> Float[Array, ""]:
        total, count = state
        return (total.high + total.low) / count

    return metric_from_sums(lambda: (compensated(jnp.float32(0)), jnp.int32(0)), sums, compute)


class GatheredRows(NamedTuple):
    """Rows kept as they are: buffers [capacity, ...], and how many rows were seen, which may be more than fit."""

    buffers: tuple[Shaped[Array, "capacity ..."], ...]
    num_rows: Int[Array, ""]


def gathering_metric(
    function: Callable[..., Any], capacity: int, *rows: Shaped[AnyArray, "..."] | jax.ShapeDtypeStruct
) -> Metric:
    """The accumulator of a metric that needs every example at once, such as an exact AUROC: rows are kept in a buffer.

        metric = gathering_metric(auroc, 10_000, jnp.int32(0), jnp.float32(0))

    Merging states adds the rows of the second behind those of the first. The result is that of the whole arrays; where
    `function` depends on the order of its rows, that of the order in which they came.

    Args:
      function: (*arrays [capacity, ...], where=bool [capacity]) -> the metric.
      capacity: most rows in all; more are an error when the metric is computed, never a wrong number.
      rows: one row of each array that `update` is given, for its shape [...] and dtype.

    Returns:
      A Metric; `update(state, *arrays [batch, ...], where=None)`. Its `compute` gives nan inside jit if rows were lost.

    Raises:
      UsageError: capacity < 1; from `compute` outside jit, more rows than fit.
    """
    if capacity < 1:
        raise UsageError(f"capacity must be at least 1, got {capacity}")

    def init() -> GatheredRows:
        return GatheredRows(tuple(jnp.zeros((capacity, *row.shape), row.dtype) for row in rows), jnp.int32(0))

    def update(
        state: GatheredRows, *arrays: Shaped[AnyArray, "batch ..."], where: Bool[AnyArray, " batch"] | None = None
    ):
        kept = where_or_all(where, arrays[0])
        place = jnp.where(kept, state.num_rows + jnp.cumsum(kept) - 1, capacity)  # beyond the end: dropped
        put = lambda buffer, array: buffer.at[place].set(jnp.asarray(array, buffer.dtype), mode="drop")
        buffers = tuple(put(buffer, array) for buffer, array in zip(state.buffers, arrays, strict=True))
        return GatheredRows(buffers, state.num_rows + kept.sum(dtype=jnp.int32))

    def merge(a: GatheredRows, b: GatheredRows) -> GatheredRows:
        merged = update(a, *b.buffers, where=jnp.arange(capacity) < b.num_rows)
        return GatheredRows(merged.buffers, a.num_rows + b.num_rows)

    def compute(state: GatheredRows) -> Any:
        if not isinstance(state.num_rows, Tracer) and state.num_rows > capacity:
            raise UsageError(
                f"{state.num_rows} rows were given, {capacity} fit; make the metric with a larger capacity"
            )
        value = function(*state.buffers, where=jnp.arange(capacity) < state.num_rows)
        spoil = lambda leaf: jnp.where(state.num_rows > capacity, jnp.nan, leaf)
        return jax.tree.map(spoil, value) if isinstance(state.num_rows, Tracer) else value

    return Metric(init, update, merge, compute)
