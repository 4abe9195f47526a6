"""Occlusion from coarse to fine: large regions first, and inside of the most important ones smaller windows.

The windows are those of `occlusion` on its grid. Blocks of 2 × 2 neighbouring windows (2 along every axis that has
several) are one region of the next level, which is covered as a whole, blocks of blocks the next, and so on: a tree
with the grid's windows as its leaves. From the coarsest level down, the regions of the largest r_S are divided.

What it cannot see is interaction: a region is divided only if covering it *as a whole* costs output. Where a window
matters but its region does not (the rest of the region speaks against the class as much as the window speaks for it; or
the output asks for *either* of two objects and the region holds one of them), the exhaustive search finds it and this
one does not. A larger `keep` makes that rarer, and `keep=1.0` is exhaustive.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int

from dl_core.errors import UsageError
from dl_core.explain.occlusion import Grid, as_batch, mean_of_covering, output_without, rows_at_once, window_grid
from dl_core.explain.pieces import Progress, map_over, variants_at_once
from dl_core.explain.target import ApplyFn, Target, check_target

Cells = Int[Array, "cells batch axes"]  # indices on the grid of one level
OtherCells = Int[Array, "_ batch axes"]  # of another number of them


class HierarchicalOcclusion(NamedTuple):
    """What was found, and at which cost.

    attributions: same shape as the inputs; of `scores`, as `occlusion` makes them of its own.
    scores: r_S of the windows, [batch, windows along each axis]; for a window that was not evaluated, the share of the
      smallest evaluated region around it that is due to its size.
    evaluated: which windows were.
    top_region: of the evaluated window of largest r_S, where it starts and where it stops (excluded) on each axis.
    passes: inputs that apply_fn was given for each example; `occlusion` takes one more than there are windows.
    """

    attributions: Float[Array, "batch ..."]
    scores: Float[Array, "batch ..."]
    evaluated: Bool[Array, "batch ..."]
    top_region: Int[Array, "batch 2 axes"]
    passes: int


def hierarchical_occlusion(
    apply_fn: ApplyFn,
    params: Any,
    inputs: Float[Array, "batch ..."],
    target: Target,
    *,
    sliding_window_shapes: Sequence[int],
    strides: int | Sequence[int] | None = None,
    levels: int = 2,
    keep: float = 0.25,
    baselines: Float[Array | np.ndarray, "..."] | float = 0.0,
    internal_batch_size: int | None = None,
    loop: str = "auto",
    progress: Progress | None = None,
) -> HierarchicalOcclusion:
    """The most important windows of `occlusion` in a fraction of its forward passes.

    With keep = 1/4 of the regions of an image, each of which has 4 parts, every level costs as much as the coarsest:
    28 × 28 pixels, windows 8 × 8 at stride 1 and 3 levels take 46 passes instead of 442.

    Args:
      apply_fn: (params, inputs) -> logits, as in inference. It need not be differentiable.
      params: pytree of everything that apply_fn needs; never changed.
      inputs: the examples to explain, of any rank.
      target: a class, one class for each example, or a function of the logits; see `explained_output`.
      sliding_window_shapes, strides: the finest windows; see `occlusion`.
      levels: of regions above the windows, >= 0; each is twice as coarse as the one below. A coarsest region that is
        much larger than the object tells little.
      keep: share of a level's evaluated regions that are divided, in (0, 1], rounded up; the same number for every
        example.
      baselines: what covers; see `occlusion`.
      internal_batch_size: most rows (examples × windows) that apply_fn is given at once; None bounds memory by itself.
      loop: how the pieces are driven; see `dl_core.loops`.
      progress: called with (pieces done, pieces in all); not inside `jit`.

    Returns:
      HierarchicalOcclusion.

    Raises:
      UsageError: see `occlusion`; levels or keep out of range.
    """
    if isinstance(levels, bool) or not isinstance(levels, int) or not 0 <= levels <= 16:
        raise UsageError(f"levels must be a whole number in [0, 16], got {levels}; 0 is the exhaustive search")
    if not 0 < keep <= 1:
        raise UsageError(f"keep must lie in (0, 1], got {keep}; it is the share of regions that are divided")
    grid = window_grid(inputs, sliding_window_shapes, strides)
    target = check_target(apply_fn, params, inputs, target, differentiable=False)
    evaluate = Partial(output_without, Partial(apply_fn), params, inputs, as_batch(baselines, inputs), target)
    counts = _counts(grid, levels)
    divided, amounts = _plan(counts, keep)
    at_once = variants_at_once(rows_at_once(internal_batch_size, inputs), inputs, max(amounts))
    pieces = [-(-amount // at_once) for amount in amounts]

    coarsest = np.stack(np.unravel_index(np.arange(math.prod(counts[-1])), counts[-1]), axis=1)
    cells = jnp.asarray(np.repeat(coarsest[:, None], len(inputs), axis=1), jnp.int32)
    windows = _windows(cells, grid, counts[-1], levels, True)
    density = jnp.zeros((len(inputs), *counts[-1]))

    def outputs_of(windows: Any, i: int) -> Float[Array, "windows batch"]:
        report = None if progress is None else functools.partial(_report, progress, sum(pieces[:i]), sum(pieces))
        return map_over(evaluate, windows, at_once=at_once, loop=loop, progress=report)

    outputs = outputs_of(windows, 0)
    whole, outputs = outputs[:1], outputs[1:]
    for i, level in enumerate(range(levels, 0, -1)):
        density, cells, windows = _descend(density, whole, outputs, cells, grid, counts, level, divided[i])
        outputs = outputs_of(windows, i + 1)
    found = _summary(density, whole, outputs, cells, grid, inputs.dtype)
    return HierarchicalOcclusion(*found, passes=sum(amounts))


def _counts(grid: Grid, levels: int) -> tuple[tuple[int, ...], ...]:
    """Regions along each axis, the windows themselves first."""
    counts = [grid.counts]
    for _ in range(levels):
        counts.append(tuple(-(-count // 2) for count in counts[-1]))
    return tuple(counts)


def _plan(counts: tuple[tuple[int, ...], ...], keep: float) -> tuple[list[int], list[int]]:
    """From the coarsest level down: regions to be divided, and inputs to be evaluated (first the bare one as well)."""
    divided, amounts, cells = [], [1 + math.prod(counts[-1])], math.prod(counts[-1])
    for level in range(len(counts) - 1, 0, -1):
        divided.append(min(max(1, math.ceil(keep * cells - 1e-9)), math.prod(counts[level])))
        cells = divided[-1] * len(_children(counts[level - 1]))
        amounts.append(cells)
    return divided, amounts


def _children(counts: tuple[int, ...]) -> Int[np.ndarray, "children axes"]:
    """Where the parts of a region are, from the first of them."""
    parts = [np.arange(2 if count > 1 else 1) for count in counts]
    return np.stack([axis.ravel() for axis in np.meshgrid(*parts, indexing="ij")], axis=1).astype(np.int32)


def _report(progress: Progress, before: int, total: int, done: int, _: int) -> None:
    progress(before + done, total)


def _ends(cells: Cells, grid: Grid, level: int) -> tuple[Cells, Cells]:
    """Where regions start and stop, cut off at the end of the axis."""
    counts, strides, window, sizes = (
        jnp.asarray(numbers, jnp.int32)[None, None] for numbers in (grid.counts, grid.strides, grid.window, grid.sizes)
    )
    last = jnp.minimum((cells + 1) * 2**level, counts) - 1
    return cells * 2**level * strides, jnp.minimum(last * strides + window, sizes)


def _exists(cells: Cells, counts: tuple[int, ...]) -> Bool[Array, "cells batch"]:
    return (cells < jnp.asarray(counts, jnp.int32)[None, None]).all(axis=2)


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4))
def _windows(
    cells: Cells, grid: Grid, counts: tuple[int, ...], level: int, bare: bool
) -> tuple[OtherCells, OtherCells]:
    """Ends of the regions; of what lies outside of the grid, and of the bare input in front, those of nothing."""
    starts, stops = _ends(cells, grid, level)
    nothing = jnp.broadcast_to(jnp.asarray(grid.sizes, jnp.int32)[None, None], cells.shape)
    starts = jnp.where(_exists(cells, counts)[..., None], starts, nothing)
    if not bare:
        return starts, stops
    return jnp.concatenate([nothing[:1], starts]), jnp.concatenate([nothing[:1], stops])


@functools.partial(jax.jit, static_argnums=(4, 5, 6, 7))
def _descend(
    density: Float[Array, "batch ..."],
    whole: Float[Array, "1 batch"],
    outputs: Float[Array, "cells batch"],
    cells: Cells,
    grid: Grid,
    counts: tuple[tuple[int, ...], ...],
    level: int,
    amount: int,
) -> tuple[Array, OtherCells, tuple[OtherCells, OtherCells]]:
    """The map of scores, the cells and the windows of the next finer level; one program for each level."""
    density = _entered(density, whole - outputs, cells, grid, counts[level], level)
    cells = _divide(whole - outputs, cells, counts[level], counts[level - 1], amount)
    windows = _windows(cells, grid, counts[level - 1], level - 1, False)
    return _spread(density, counts[level - 1]), cells, windows


def _entered(
    density: Float[Array, "batch ..."],
    scores: Float[Array, "cells batch"],
    cells: Cells,
    grid: Grid,
    counts: tuple[int, ...],
    level: int,
) -> Float[Array, "batch ..."]:
    """The map of scores per value of the input, with the new ones written into it."""
    starts, stops = _ends(cells, grid, level)
    area = jnp.prod((stops - starts).astype(scores.dtype), axis=2)
    outside = jnp.asarray(counts, jnp.int32)[None, None]
    cells = jnp.where(_exists(cells, counts)[..., None], cells, outside)
    rows = jnp.broadcast_to(jnp.arange(cells.shape[1])[None], cells.shape[:2])
    at = (rows, *jnp.moveaxis(cells, 2, 0))
    return density.astype(scores.dtype).at[at].set(scores / jnp.maximum(area, 1), mode="drop")


def _divide(
    scores: Float[Array, "cells batch"],
    cells: Cells,
    counts: tuple[int, ...],
    finer: tuple[int, ...],
    amount: int,
) -> OtherCells:
    """The parts of the regions of the largest scores, those of each example."""
    scores = jnp.where(_exists(cells, counts), scores, -jnp.inf)
    chosen = jax.lax.top_k(scores.T, amount)[1].T
    kept = jnp.take_along_axis(cells, chosen[..., None], axis=0)
    parts = jnp.asarray(_children(finer))
    return (2 * kept[:, None] + parts[None, :, None]).reshape(-1, *kept.shape[1:])


def _spread(density: Float[Array, "batch ..."], finer: tuple[int, ...]) -> Array:
    """Every part inherits from its region."""
    for axis, count in enumerate(finer, start=1):
        density = jax.lax.slice_in_dim(jnp.repeat(density, 2, axis=axis), 0, count, axis=axis)
    return density


@functools.partial(jax.jit, static_argnums=(4, 5))
def _summary(
    density: Float[Array, "batch ..."],
    whole: Float[Array, "1 batch"],
    outputs: Float[Array, "cells batch"],
    cells: Cells,
    grid: Grid,
    dtype: Any,
) -> tuple[Array, ...]:
    """Attributions, scores, evaluated and top_region, from the windows themselves."""
    density = _entered(density, whole - outputs, cells, grid, grid.counts, 0)
    batch, axes = density.shape[0], len(grid.counts)
    every = jnp.asarray(np.stack(np.unravel_index(np.arange(math.prod(grid.counts)), grid.counts), axis=1), jnp.int32)
    starts, stops = (ends[:, 0] for ends in _ends(every[:, None], grid, 0))
    area = jnp.prod((stops - starts).astype(density.dtype), axis=1).reshape(1, *grid.counts)
    rows = jnp.broadcast_to(jnp.arange(batch)[None], cells.shape[:2])
    at = (rows, *jnp.moveaxis(cells, 2, 0))
    evaluated = jnp.zeros(density.shape, bool).at[at].set(True, mode="drop")
    scores = density * area
    top = jnp.where(evaluated, scores, -jnp.inf).reshape(batch, -1).argmax(axis=1)
    top_region = jnp.stack([starts[top], stops[top]], axis=1).reshape(batch, 2, axes)
    return mean_of_covering(scores, grid).astype(dtype), scores, evaluated, top_region
