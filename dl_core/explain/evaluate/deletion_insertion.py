"""Deletion and insertion: what becomes of the output when the most important features go first, or come first.

Petsiuk, Das, Saenko (2018), "RISE: Randomized Input Sampling for Explanation of Black-box Models",
https://arxiv.org/abs/1806.07421, section 4.2; Samek, Binder, Montavon, Lapuschkin, Müller (2017), "Evaluating the
Visualization of What a Deep Neural Network Has Learned", https://arxiv.org/abs/1509.06321 (region perturbation, pixel
flipping: deletion of patches or pixels, scored by the area over the curve).

A low curve of deletion and a high one of insertion speak for an explanation, but only beside the curve of features in
random order (`random_order_curve`): removal itself leads away from the data that the network knows.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int, Key

from dl_core.errors import UsageError, unknown_name
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
from dl_core.explain.target import ApplyFn, Target, check_target, select_target

MODES = ("deletion", "insertion")
ORDERS = ("most_first", "least_first")
OUTPUTS = ("probability", "logit")


class PerturbationCurve(NamedTuple):
    """The output while features are exchanged one after another.

    fractions: share of the features that were exchanged, from 0 to 1, in steps of a whole number of features.
    scores: the output of each example at these shares.
    auc: area under each curve by the trapezoidal rule over the fractions, in units of the output.
    """

    fractions: Float[np.ndarray, " points"]
    scores: Float[Array, "batch points"]
    auc: Float[Array, " batch"]


def perturbation_curve(
    apply_fn: ApplyFn,
    params: Any,
    inputs: Float[Array, "batch ..."],
    target: Target,
    attributions: Attributions,
    *,
    mode: str = "deletion",
    order: str = "most_first",
    n_steps: int | None = None,
    patch_size: PatchSize = 1,
    feature_mask: FeatureMask = None,
    baselines: Baselines = 0.0,
    output: str = "probability",
    normalize: bool = False,
    internal_batch_size: int | None = None,
    loop: str = "auto",
    progress: Progress | None = None,
) -> PerturbationCurve:
    """The output as features are deleted from the inputs, or inserted into the baseline, in the order of attributions.

    Features of equal attribution go in the order of their numbers (pixels: by rows), so that a curve never depends on
    chance; an attribution map with many equal values is better compared by patches.

    Args:
      apply_fn: (params, inputs) -> logits, as in inference.
      params: pytree of everything that apply_fn needs.
      inputs: the examples that were explained.
      target: what was explained; see `explained_output`. Where output is "probability", a function is given
        log-probabilities, and the score is the exponential of its result.
      attributions: of the shape of the inputs. A feature's is the sum over its values and channels.
      mode: "deletion" starts from the inputs and puts the baseline in place of features; "insertion" the other way.
      order: "most_first" exchanges the features of the largest attribution first, "least_first" the smallest.
      n_steps: points of the curve after the first, in [1, features]; by default 50, or one for each feature if fewer.
      patch_size: side of square patches, or one for each spatial axis; 1 exchanges pixels.
      feature_mask: numbers of features in place of patches; see `number_features`.
      baselines: what stands for absence: a number, one example, one for each, or "blurred" (RISE's for insertion).
      output: "probability" of the target, or "logit", its output as it is.
      normalize: (score − score of the baseline) / (score of the input − score of the baseline): 1 is the whole input,
        0 the baseline, so that examples weigh alike; not finite where the two are equal.
      internal_batch_size: most rows (examples × points) that apply_fn is given at once.
      loop: how the pieces are driven; see `dl_core.loops`.
      progress: called with (pieces done, pieces in all).

    Returns:
      PerturbationCurve.

    Raises:
      UsageError: an unknown mode, order or output; n_steps out of range; attributions of another shape; features or
        baselines that do not fit; see `check_target`.
    """
    for name, given, allowed in (("mode", mode, MODES), ("order", order, ORDERS), ("output", output, OUTPUTS)):
        if given not in allowed:
            raise unknown_name(name, given, allowed)
    target = check_target(apply_fn, params, inputs, target, differentiable=False)
    attributions = check_attributions(inputs, attributions)
    numbers, num_features = number_features(inputs, patch_size, feature_mask)
    counts = _counts(n_steps, num_features)
    ranks = _ranks(attributions, numbers, num_features=num_features, largest_first=order == "most_first")
    absent = as_baselines(baselines, inputs)
    kept, removed = (inputs, absent) if mode == "deletion" else (absent, inputs)
    score = Partial(_score, Partial(_OUTPUT[output], Partial(apply_fn)), params, kept, removed, ranks, target)
    at_once = variants_at_once(internal_batch_size, inputs, len(counts))
    scores = map_over(score, counts, at_once=at_once, loop=loop, progress=progress)
    fractions = (counts / num_features).astype(np.float32)
    scores, auc = _finish(scores, fractions, normalize=normalize, from_baseline=mode == "insertion")
    return PerturbationCurve(fractions, scores, auc)


def random_order_curve(
    apply_fn: ApplyFn,
    params: Any,
    inputs: Float[Array, "batch ..."],
    target: Target,
    *,
    key: Key[Array, ""],
    n_orders: int = 5,
    **options: Any,
) -> PerturbationCurve:
    """The trivial baseline of `perturbation_curve`: features in random order, the mean over several orders.

    Args:
      apply_fn, params, inputs, target: as there.
      key: decides the orders; each example has its own.
      n_orders: how many are averaged, >= 1.
      options: of `perturbation_curve`.

    Returns:
      PerturbationCurve.

    Raises:
      UsageError: n_orders below 1; see `perturbation_curve`.
    """
    if n_orders < 1:
        raise UsageError(f"n_orders must be at least 1, got {n_orders}")
    numbers, num_features = number_features(inputs, options.get("patch_size", 1), options.get("feature_mask"))
    curves = []
    for key_of_order in jax.random.split(key, n_orders):
        attributions = _random_attributions(key_of_order, inputs, numbers, num_features=num_features)
        curves.append(perturbation_curve(apply_fn, params, inputs, target, attributions, **options))
    mean = lambda arrays: jnp.stack(arrays).mean(axis=0)
    return PerturbationCurve(
        curves[0].fractions, mean([curve.scores for curve in curves]), mean([curve.auc for curve in curves])
    )


def area_over_curve(scores: Float[Array, "batch points"]) -> Float[Array, " batch"]:
    """Samek's AOPC: the mean over the points, the first included, of how far the output has fallen since the first.

    Args:
      scores: of a deletion; cut to the first L + 1 points for the paper's first L regions.

    Returns:
      One number for each example, in units of the output; larger is better for an explanation.
    """
    return (scores[:, :1] - scores).mean(axis=1)


def _counts(n_steps: int | None, num_features: int) -> Int[np.ndarray, " points"]:
    if n_steps is None:
        n_steps = min(50, num_features)
    if not 1 <= n_steps <= num_features:
        raise UsageError(f"n_steps must be in [1, {num_features}], the number of features; got {n_steps}")
    return np.round(np.linspace(0, num_features, n_steps + 1)).astype(np.int32)


@functools.partial(jax.jit, static_argnames=("num_features", "largest_first"))
def _ranks(
    attributions: Float[Array, "batch ..."], numbers: Array, *, num_features: int, largest_first: bool
) -> Int[Array, "batch ..."]:
    """At which place, from 0, each input value is exchanged."""
    totals = sum_by_feature(attributions, numbers, num_features)
    order = jnp.argsort(-totals if largest_first else totals, axis=1, stable=True)
    ranks = jnp.argsort(order, axis=1).astype(jnp.int32)
    return spread_over_inputs(ranks, numbers)


@functools.partial(jax.jit, static_argnames="num_features")
def _random_attributions(
    key: Key[Array, ""], inputs: Float[Array, "batch ..."], numbers: Array, *, num_features: int
) -> Float[Array, "batch ..."]:
    """Attributions whose features come in random order: a permutation, shared out among the values of each feature."""
    values = jax.random.uniform(key, (len(inputs), num_features))
    sizes = sum_by_feature(jnp.ones(inputs.shape, jnp.float32), numbers, num_features)
    return jnp.broadcast_to(spread_over_inputs(values / jnp.maximum(sizes, 1), numbers), inputs.shape)


def _probability(apply_fn: ApplyFn, params: Any, inputs: Array, target: Any) -> Float[Array, " batch"]:
    logits = apply_fn(params, inputs)
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    return jnp.exp(select_target(jax.nn.log_softmax(logits, axis=-1), target))


def _logit(apply_fn: ApplyFn, params: Any, inputs: Array, target: Any) -> Float[Array, " batch"]:
    logits = select_target(apply_fn(params, inputs), target)
    return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))


_OUTPUT = {"probability": _probability, "logit": _logit}


def _score(
    output: Any, params: Any, kept: Array, removed: Array, ranks: Array, target: Any, count: Int[Array, ""]
) -> Float[Array, " batch"]:
    return output(params, jnp.where(ranks < count, removed, kept), target)


@functools.partial(jax.jit, static_argnames=("normalize", "from_baseline"))
def _finish(
    scores: Float[Array, "points batch"], fractions: Float[Array, " points"], *, normalize: bool, from_baseline: bool
) -> tuple[Float[Array, "batch points"], Float[Array, " batch"]]:
    scores = scores.T
    if normalize:
        first, last = scores[:, :1], scores[:, -1:]
        baseline, whole = (first, last) if from_baseline else (last, first)
        scores = (scores - baseline) / (whole - baseline)
    widths = jnp.diff(fractions)[None]
    return scores, (widths * (scores[:, 1:] + scores[:, :-1]) / 2).sum(axis=1)
