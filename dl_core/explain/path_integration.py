"""Attribution by integrating gradients along a path from a baseline to the input.

Sundararajan, Taly, Yan (2017), "Axiomatic Attribution for Deep Networks", https://arxiv.org/abs/1703.01365.

    attribution_i = (x_i - b_i) * ∫₀¹ ∂f_t / ∂x_i (b + α (x - b)) dα

The attributions of one example sum to f_t(x) - f_t(b) (completeness); what the quadrature misses is returned beside
them, so that a reader can tell a coarse answer from a fine one.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float

from dl_core.errors import UsageError, unknown_name
from dl_core.explain.gradients import input_gradient
from dl_core.explain.pieces import Progress, sum_over, variants_at_once
from dl_core.explain.target import ApplyFn, Target, check_target, explained_output
from dl_core.optim.options import in_interval

METHODS = ("gausslegendre", "riemann_left", "riemann_middle", "riemann_right", "riemann_trapezoid")


class PathAttribution(NamedTuple):
    """Attributions and how far they are from adding up.

    attributions: same shape as the inputs.
    completeness_gap: per example, sum of attributions minus the change in the explained output; at least float32.
    """

    attributions: Float[Array, "batch ..."]
    completeness_gap: Float[Array, " batch"]


def integrated_gradients(
    apply_fn: ApplyFn,
    params: Any,
    inputs: Float[Array, "batch ..."],
    target: Target,
    *,
    baselines: Float[Array | np.ndarray, "..."] | float = 0.0,
    n_steps: int = 50,
    method: str = "gausslegendre",
    internal_batch_size: int | None = None,
    loop: str = "auto",
    progress: Progress | None = None,
) -> PathAttribution:
    """Integrated gradients of the explained output along the straight path from the baseline to the input.

    Args:
      apply_fn: (params, inputs) -> logits, as in inference.
      params: pytree of everything that apply_fn needs; never changed.
      inputs: the examples to explain, e.g. [batch, height, width, channels].
      target: a class, one class for each example, or a function of the logits; see `explained_output`.
      baselines: where the path starts, in the units of the inputs: one number, one example, or an example for each
        input, e.g. `blurred(inputs, 8.0)`. Several for each input: `expected_gradients`.
      n_steps: quadrature nodes, >= 1. The gap falls as 1 / n_steps on piecewise-linear networks.
      method: the quadrature: "gausslegendre", or "riemann_" with "left", "middle", "right" or "trapezoid".
      internal_batch_size: most rows (examples × nodes) that apply_fn is given at once; None bounds their size instead.
        Smaller needs less memory and gives the same result. One node of every example is the least that is taken.
      loop: how the pieces are driven; see `dl_core.loops`.
      progress: called with (pieces done, pieces in all); not inside `jit`.

    Returns:
      PathAttribution.

    Raises:
      UsageError: see `check_target`; baselines of another shape, n_steps or internal_batch_size below 1, an unknown
        method, or one node for the trapezoid.
    """
    target = check_target(apply_fn, params, inputs, target)
    start = spread_baselines(baselines, inputs)
    nodes_and_weights = quadrature(method, n_steps, accumulated(inputs))
    at_once = variants_at_once(internal_batch_size, inputs, n_steps)
    model = Partial(apply_fn)
    at_node = Partial(_weighted_gradient, model, params, inputs, target, start)
    mean_gradient = sum_over(at_node, nodes_and_weights, at_once=at_once, loop=loop, progress=progress)
    return _finish(model, params, inputs, target, start, mean_gradient)


def straight_path(
    start: Float[Array, "batch ..."], end: Float[Array, "batch ..."], node: Float[Array, "..."]
) -> tuple[Float[Array, "batch ..."], Float[Array, "batch ..."]]:
    """A point on the way from start to end, in their dtype, and the derivative of the way, in at least float32.

    Args:
      start: where node = 0.
      end: where node = 1.
      node: one number, or one for each example as [batch, 1, ...].

    Returns:
      Point and derivative.
    """
    wide_start = start.astype(accumulated(end))
    difference = end.astype(wide_start.dtype) - wide_start
    return (wide_start + node * difference).astype(end.dtype), difference


def path_attribution(
    attributions: Float[Array, "batch ..."],
    before: Float[Array, " batch"],
    after: Float[Array, " batch"],
    dtype: Any,
) -> PathAttribution:
    """Attributions with their gap, which is taken before they are rounded.

    Args:
      attributions: in at least float32.
      before: the explained output where the path starts.
      after: where it ends.
      dtype: of the attributions that are returned.

    Returns:
      PathAttribution.
    """
    change = after.astype(attributions.dtype) - before.astype(attributions.dtype)
    gap = attributions.reshape(len(attributions), -1).sum(axis=1) - change
    return PathAttribution(attributions.astype(dtype), gap)


def accumulated(inputs: Float[Array | np.ndarray, "..."]) -> jnp.dtype:
    """The dtype of sums over explanations of these inputs: theirs, and at least float32."""
    return jnp.promote_types(inputs.dtype, jnp.float32)


def spread_baselines(
    baselines: Float[Array | np.ndarray, "..."] | float, inputs: Float[Array | np.ndarray, "batch ..."]
) -> Float[Array, "batch ..."]:
    """A baseline for each input.

    Args:
      baselines: one number, one example (or what broadcasts to one, e.g. a value for each channel), or one for each.
      inputs: the examples.

    Returns:
      Of the shape and dtype of the inputs.

    Raises:
      UsageError: another shape.
    """
    given, example = jnp.shape(baselines), inputs.shape[1:]
    filled = (1,) * (inputs.ndim - len(given)) + given
    fits = len(given) <= len(example) and all(a in (1, b) for a, b in zip(filled[1:], example, strict=True))
    if not fits and given not in (inputs.shape, (1, *example)):
        hint = "; for several baselines use expected_gradients" if given[1:] == example else ""
        raise UsageError(
            f"baselines must be one number, one example {list(example)} or one for each input {list(inputs.shape)}; "
            f"got shape {list(given)}{hint}"
        )
    return jnp.broadcast_to(jnp.asarray(baselines, inputs.dtype).reshape(filled), inputs.shape)


def quadrature(method: str, n_steps: int, dtype: Any) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """The rule by which an integral over [0, 1] becomes a sum.

    Args:
      method: one of `METHODS`.
      n_steps: how many nodes.
      dtype: of the result.

    Returns:
      Nodes in [0, 1], and weights that sum to 1.

    Raises:
      UsageError: n_steps below 1, an unknown method, or one node for the trapezoid.
    """
    in_interval("n_steps", n_steps, "[1, inf)", integer=True)
    if method not in METHODS:
        raise unknown_name("method", method, METHODS)
    if method == "gausslegendre":
        nodes, weights = np.polynomial.legendre.leggauss(n_steps)  # on [-1, 1]
        nodes, weights = (nodes + 1) / 2, weights / 2
    elif method == "riemann_trapezoid":
        if n_steps < 2:
            raise UsageError("riemann_trapezoid needs n_steps of at least 2, for the two ends; got 1")
        nodes, weights = np.linspace(0, 1, n_steps), np.full(n_steps, 1 / (n_steps - 1))
        weights[[0, -1]] /= 2
    else:
        offset = {"riemann_left": 0, "riemann_middle": 0.5, "riemann_right": 1}[method]
        nodes, weights = (np.arange(n_steps) + offset) / n_steps, np.full(n_steps, 1 / n_steps)
    return nodes.astype(dtype), weights.astype(dtype)


def _weighted_gradient(
    apply_fn: ApplyFn,
    params: Any,
    inputs: Float[Array, "batch ..."],
    target: Target,
    start: Float[Array, "batch ..."],
    node_and_weight: tuple[Float[Array, ""], Float[Array, ""]],
) -> Float[Array, "batch ..."]:
    node, weight = node_and_weight
    point, _ = straight_path(start, inputs, node)
    return weight * input_gradient(apply_fn, params, point, target)


@jax.jit
def _finish(
    apply_fn: ApplyFn,
    params: Any,
    inputs: Float[Array, "batch ..."],
    target: Target,
    start: Float[Array, "batch ..."],
    mean_gradient: Float[Array, "batch ..."],
) -> PathAttribution:
    _, difference = straight_path(start, inputs, jnp.zeros((), mean_gradient.dtype))
    before, after = (explained_output(apply_fn, params, end, target) for end in (start, inputs))
    return path_attribution(difference * mean_gradient, before, after, inputs.dtype)
