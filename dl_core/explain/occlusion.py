"""Occlusion: what the output loses when a window of the input is covered.

Zeiler, Fergus (2014), "Visualizing and Understanding Convolutional Networks", https://arxiv.org/abs/1311.2901, section
4.2; the averaging is Captum's.

    r_S = f_t(x) - f_t(x with the window S at its baseline)        attribution_i = mean of r_S over the windows S ∋ i

The windows lie on a grid: the first starts at index 0 of every axis, the next ones a stride further, until the axis is
covered; what of the last window would lie outside is cut off. `hierarchical_occlusion` looks for the window of the
largest r_S with few evaluations.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int

from dl_core.errors import UsageError
from dl_core.explain.pieces import Progress, map_over, variants_at_once
from dl_core.explain.target import ApplyFn, Target, check_target, explained_output

_FAST_VALUES_ON_CPU = 2**17  # in one piece; twice or half as many cost a few percent


class Grid(NamedTuple):
    """Windows over one example; every field has a number for each axis of it.

    sizes: of the example.
    window, strides: of a window, and from one to the next.
    counts: how many windows.
    """

    sizes: tuple[int, ...]
    window: tuple[int, ...]
    strides: tuple[int, ...]
    counts: tuple[int, ...]


def occlusion(
    apply_fn: ApplyFn,
    params: Any,
    inputs: Float[Array, "batch ..."],
    target: Target,
    *,
    sliding_window_shapes: Sequence[int],
    strides: int | Sequence[int] | None = None,
    baselines: Float[Array | np.ndarray, "..."] | float = 0.0,
    internal_batch_size: int | None = None,
    loop: str = "auto",
    progress: Progress | None = None,
) -> Float[Array, "batch ..."]:
    """For each input value, the mean loss of the explained output over the windows that cover it.

    Args:
      apply_fn: (params, inputs) -> logits, as in inference. It need not be differentiable.
      params: pytree of everything that apply_fn needs; never changed.
      inputs: the examples to explain, e.g. [batch, height, width, channels]; of any rank.
      target: a class, one class for each example, or a function of the logits; see `explained_output`.
      sliding_window_shapes: size of a window along the first axes of an example; it spans the rest of them wholly. Of
        images, (h, w) covers all channels at once, (h, w, 1) one at a time, (h, w, g) groups of g.
      strides: from a window to the next along these axes, or one number for all of them; None means 1. At most the
        size of the window, so that every value is covered. (h, w, 3) with strides (·, ·, 3): groups of 3 channels.
      baselines: what covers: one number, one example, or an example for each of the batch, in the units of the inputs.
      internal_batch_size: most rows (examples × windows) that apply_fn is given at once; None bounds memory by itself.
      loop: how the pieces are driven; see `dl_core.loops`.
      progress: called with (pieces done, pieces in all); not inside `jit`.

    Returns:
      Same shape as the inputs, in logits.

    Raises:
      UsageError: see `check_target`; windows or strides that do not fit the inputs; baselines of another shape.
    """
    grid = window_grid(inputs, sliding_window_shapes, strides)
    scores = occlusion_scores(
        apply_fn,
        params,
        inputs,
        target,
        sliding_window_shapes=sliding_window_shapes,
        strides=strides,
        baselines=baselines,
        internal_batch_size=internal_batch_size,
        loop=loop,
        progress=progress,
    )
    return mean_of_covering(scores, grid).astype(inputs.dtype)


def occlusion_scores(
    apply_fn: ApplyFn,
    params: Any,
    inputs: Float[Array, "batch ..."],
    target: Target,
    *,
    sliding_window_shapes: Sequence[int],
    strides: int | Sequence[int] | None = None,
    baselines: Float[Array | np.ndarray, "..."] | float = 0.0,
    internal_batch_size: int | None = None,
    loop: str = "auto",
    progress: Progress | None = None,
) -> Float[Array, "batch ..."]:
    """r_S for every window: what the explained output loses when it is covered.

    Args and Raises: see `occlusion`.

    Returns:
      [batch, windows along each axis of an example], in at least float32: of images and a window (h, w),
      [batch, rows, columns, 1]. Window i of an axis starts at i · stride.
    """
    grid = window_grid(inputs, sliding_window_shapes, strides)
    target = check_target(apply_fn, params, inputs, target, differentiable=False)
    evaluate = Partial(output_without, Partial(apply_fn), params, inputs, as_batch(baselines, inputs), target)
    indices = np.stack(np.unravel_index(np.arange(math.prod(grid.counts)), grid.counts), axis=1)
    starts = np.concatenate([[grid.sizes], indices * grid.strides]).astype(np.int32)  # the first covers nothing
    windows = (starts, starts + np.asarray(grid.window, np.int32))
    at_once = variants_at_once(rows_at_once(internal_batch_size, inputs), inputs, len(starts))
    outputs = map_over(evaluate, windows, at_once=at_once, loop=loop, progress=progress)
    return (outputs[:1] - outputs[1:]).T.reshape(len(inputs), *grid.counts)


def window_grid(
    inputs: Float[Array, "batch ..."], sliding_window_shapes: Sequence[int], strides: int | Sequence[int] | None
) -> Grid:
    """The windows that `occlusion` takes.

    Args:
      inputs: the examples.
      sliding_window_shapes, strides: see `occlusion`.

    Returns:
      Grid.

    Raises:
      UsageError: a window of more axes than an example, larger than it or empty; strides of another length, below 1,
        or above the window, which would leave values uncovered.
    """
    sizes, given = jnp.shape(inputs)[1:], np.asarray(sliding_window_shapes)
    whole = all(isinstance(number, int | np.integer) for number in np.atleast_1d(given))
    if given.ndim != 1 or not whole or not 1 <= len(given) <= len(sizes):
        raise UsageError(
            f"sliding_window_shapes must be whole numbers, one for each of the first axes of an example {list(sizes)}, "
            f"the batch left out, e.g. ({', '.join('8' * min(2, len(sizes)))},); got {sliding_window_shapes}"
        )
    window = (*map(int, given), *sizes[len(given) :])
    if any(not 1 <= extent <= size for extent, size in zip(window, sizes, strict=True)):
        raise UsageError(
            f"a window must have at least 1 value along every axis, and at most as many as an example {list(sizes)}; "
            f"got sliding_window_shapes={sliding_window_shapes}"
        )
    steps = np.asarray(1 if strides is None else strides)
    if steps.dtype.kind not in "iu" or steps.shape not in ((), given.shape) or (steps < 1).any():
        raise UsageError(
            f"strides must be at least 1: one whole number, or {len(given)} as in sliding_window_shapes; got {strides}"
        )
    steps = (*map(int, np.broadcast_to(steps, given.shape)), *sizes[len(given) :])
    for step, extent, size in zip(steps, window, sizes, strict=True):
        if step > extent and extent < size:
            raise UsageError(
                f"a stride above the window leaves gaps that no window covers: strides={strides}, "
                f"sliding_window_shapes={sliding_window_shapes}; take strides of at most the window"
            )
    counts = (-(-(size - extent) // step) + 1 for size, extent, step in zip(sizes, window, steps, strict=True))
    return Grid(tuple(sizes), window, steps, tuple(counts))


def as_batch(
    baselines: Float[Array | np.ndarray, "..."] | float, inputs: Float[Array, "batch ..."]
) -> Float[Array, "batch ..."]:
    """One baseline for each example.

    Args:
      baselines: a number, one example, or a batch of 1 or of as many as there are inputs.
      inputs: the examples.

    Returns:
      Shape and dtype of the inputs.

    Raises:
      UsageError: another shape.
    """
    baselines = jnp.asarray(baselines, inputs.dtype)
    if baselines.shape not in ((), inputs.shape[1:], (1, *inputs.shape[1:]), inputs.shape):
        raise UsageError(
            f"baselines must be one number, one example {list(inputs.shape[1:])}, or one for each, "
            f"{list(inputs.shape)}; got shape {list(baselines.shape)}"
        )
    missing = (1,) * (inputs.ndim - baselines.ndim)
    return jnp.broadcast_to(baselines.reshape(missing + baselines.shape), inputs.shape)


def mean_of_covering(scores: Float[Array, "batch ..."], grid: Grid) -> Float[Array, "batch ..."]:
    """For each value of an example, the mean score of the windows that cover it.

    Args:
      scores: [batch, windows along each axis].
      grid: the windows.

    Returns:
      [batch, size of each axis].
    """
    for axis, (size, extent, stride, count) in enumerate(zip(*grid, strict=True), start=1):
        first = np.arange(count)[:, None] * stride
        covers = (np.arange(size) >= first) & (np.arange(size) < first + extent)
        shares = jnp.asarray(covers / covers.sum(axis=0), scores.dtype)  # a mean over a box is one mean after another
        scores = jnp.moveaxis(jnp.tensordot(scores, shares, axes=(axis, 0), precision="highest"), -1, axis)
    return scores


def rows_at_once(internal_batch_size: int | None, inputs: Float[Array, "batch ..."]) -> int | None:
    """The limit of rows as given, or on the CPU a small one, at which forward passes are fastest (they fit its caches).

    Args:
      internal_batch_size: the caller's limit or None.
      inputs: the examples.

    Returns:
      A limit for `variants_at_once`; None on accelerators, which want large pieces.
    """
    if internal_batch_size is not None or jax.default_backend() != "cpu":
        return internal_batch_size
    return max(64, _FAST_VALUES_ON_CPU // max(1, math.prod(inputs.shape[1:])))


def output_without(
    apply_fn: ApplyFn,
    params: Any,
    inputs: Float[Array, "batch ..."],
    baselines: Float[Array, "batch ..."],
    target: Target,
    window: tuple[Int[Array, "*examples axes"], Int[Array, "*examples axes"]],
) -> Float[Array, " batch"]:
    """The explained output with a window at the baseline.

    Args:
      apply_fn: (params, inputs) -> logits.
      params: pytree of everything that apply_fn needs.
      inputs: the examples.
      baselines: one for each example.
      target: as `check_target` returns it.
      window: where it starts and where it stops, the end excluded, on each axis of an example; one window for all
        examples or one for each.

    Returns:
      One number for each example, in at least float32.
    """
    starts, stops = (jnp.atleast_2d(ends) for ends in window)
    covered = jnp.ones((1,) * inputs.ndim, bool)
    for axis in range(1, inputs.ndim):  # comparisons, which fuse, where a gather would not
        place = jax.lax.broadcasted_iota(jnp.int32, (1, *inputs.shape[1:]), axis)
        first, end = (ends[:, axis - 1].reshape(-1, *(1,) * (inputs.ndim - 1)) for ends in (starts, stops))
        covered = covered & (place >= first) & (place < end)
    output = explained_output(apply_fn, params, jnp.where(covered, baselines, inputs), target)
    return output.astype(jnp.promote_types(output.dtype, jnp.float32))
