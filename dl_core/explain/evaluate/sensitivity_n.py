"""Sensitivity-n: does the sum of the attributions of n features say what the output loses when they are removed?

Ancona, Ceolini, Öztireli, Gross (2018), "Towards Better Understanding of Gradient-based Attribution Methods for Deep
Neural Networks", https://arxiv.org/abs/1711.06104, definition 1 and section 4.

    correlation over random sets S of n features of   Σ_{i∈S} attributionᵢ   with   f_t(x) − f_t(x without S)
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int, Key

from dl_core.errors import UsageError
from dl_core.explain.evaluate.features import (
    Attributions,
    Baselines,
    FeatureMask,
    PatchSize,
    as_baselines,
    check_attributions,
    number_features,
    spread_over_inputs,
    sum_by_feature,
)
from dl_core.explain.pieces import Progress, map_over, variants_at_once
from dl_core.explain.target import ApplyFn, Target, check_target, explained_output


def sensitivity_n(
    apply_fn: ApplyFn,
    params: Any,
    inputs: Float[Array, "batch ..."],
    target: Target,
    attributions: Attributions,
    *,
    key: Key[Array, ""],
    n: int | Sequence[int],
    n_samples: int = 100,
    baselines: Baselines = 0.0,
    patch_size: PatchSize = 1,
    feature_mask: FeatureMask = None,
    internal_batch_size: int | None = None,
    loop: str = "auto",
    progress: Progress | None = None,
) -> Float[Array, "batch sizes"]:
    """Pearson correlation of summed attributions with the change of the output, over random sets of n features.

    Args:
      apply_fn: (params, inputs) -> logits, as in inference.
      params: pytree of everything that apply_fn needs.
      inputs: the examples that were explained.
      target: what was explained; see `explained_output`.
      attributions: of the shape of the inputs.
      key: decides the sets; each example has its own.
      n: how many features are removed at once, or several such numbers, each in [1, features): there is only one set
        of all features, and no correlation over one set.
      n_samples: sets for each n, >= 2; the paper takes 100. The error of the correlation is of the order 1/√n_samples.
      baselines: what takes the place of removed values: a number, one example, one for each, or "blurred".
      patch_size: side of square patches, or one for each spatial axis; 1 makes every pixel a feature.
      feature_mask: numbers of features in place of patches; see `number_features`.
      internal_batch_size: most rows (examples × sets) that apply_fn is given at once.
      loop: how the pieces are driven; see `dl_core.loops`.
      progress: called with (pieces done, pieces in all).

    Returns:
      One correlation in [−1, 1] for each example and each n; nan where all sums or all changes are equal.

    Raises:
      UsageError: an n out of range, n_samples below 2, attributions of another shape, features or baselines that do
        not fit; see `check_target`.
    """
    target = check_target(apply_fn, params, inputs, target, differentiable=False)
    attributions = check_attributions(inputs, attributions)
    numbers, num_features = number_features(inputs, patch_size, feature_mask)
    sizes = np.atleast_1d(np.asarray(n))
    if not np.issubdtype(sizes.dtype, np.integer) or sizes.ndim != 1 or not sizes.size:
        raise UsageError(f"n must be a number of features or several such numbers, got {n!r}")
    if sizes.min() < 1 or sizes.max() >= num_features:
        raise UsageError(
            f"n must be in [1, {num_features}): there are {num_features} features, and only one set of all of them; "
            f"got {n}"
        )
    if n_samples < 2:
        raise UsageError(f"n_samples must be at least 2 for a correlation, got {n_samples}")
    baselines = as_baselines(baselines, inputs)
    totals, output = _prepare(Partial(apply_fn), params, inputs, target, attributions, numbers, num_features)
    change = Partial(_change, Partial(apply_fn), params, inputs, target, baselines, numbers, totals, output)
    sets = jax.random.split(key, len(sizes) * n_samples), np.repeat(sizes.astype(np.int32), n_samples)
    at_once = variants_at_once(internal_batch_size, inputs, len(sizes) * n_samples)
    sums, changes = map_over(change, sets, at_once=at_once, loop=loop, progress=progress)
    by_size = lambda values: values.reshape(len(sizes), n_samples, len(inputs))
    return _correlation(by_size(sums), by_size(changes)).T


@functools.partial(jax.jit, static_argnames="num_features")
def _prepare(
    apply_fn: ApplyFn,
    params: Any,
    inputs: Array,
    target: Any,
    attributions: Array,
    numbers: Array,
    num_features: int,
) -> tuple[Float[Array, "batch features"], Float[Array, " batch"]]:
    output = explained_output(apply_fn, params, inputs, target)
    return sum_by_feature(attributions, numbers, num_features), output


def _change(
    apply_fn: ApplyFn,
    params: Any,
    inputs: Array,
    target: Any,
    baselines: Array,
    numbers: Array,
    totals: Float[Array, "batch features"],
    output: Float[Array, " batch"],
    key_and_size: tuple[Key[Array, ""], Int[Array, ""]],
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
    """Of one random set for each example: the sum of its attributions, and what its removal takes from the output."""
    key, size = key_and_size
    chosen = jnp.argsort(jax.random.bits(key, totals.shape), axis=1) < size  # a permutation of each row
    changed = jnp.where(spread_over_inputs(chosen, numbers), baselines, inputs)
    difference = output.astype(totals.dtype) - explained_output(apply_fn, params, changed, target).astype(totals.dtype)
    return jnp.where(chosen, totals, 0).sum(axis=1), difference


@jax.jit
def _correlation(
    first: Float[Array, "sizes samples batch"], second: Float[Array, "sizes samples batch"]
) -> Float[Array, "sizes batch"]:
    first, second = (values - values.mean(axis=1, keepdims=True) for values in (first, second))
    squares = lambda values: jnp.square(values).sum(axis=1)
    return (first * second).sum(axis=1) / jnp.sqrt(squares(first) * squares(second))
