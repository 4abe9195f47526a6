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
from dl_core.explain.target import ApplyFn, Target, explained_output
from dl_core.loops import scan

METHODS = ("gausslegendre", "riemann_left", "riemann_middle", "riemann_right", "riemann_trapezoid")


class PathAttribution(NamedTuple):
    """Attributions and how far they are from adding up.

    attributions: same shape as the inputs.
    completeness_gap: per example, sum of attributions minus the change in the explained output.
    """

    attributions: Float[Array, "batch ..."]
    completeness_gap: Float[Array, " batch"]


def integrated_gradients(
    apply_fn: ApplyFn,
    params: Any,
    inputs: Float[Array, "batch ..."],
    target: Target,
    *,
    baselines: Float[Array, "..."] | float = 0.0,
    n_steps: int = 50,
    method: str = "gausslegendre",
    internal_batch_size: int | None = None,
    loop: str = "auto",
) -> PathAttribution:
    """Integrated gradients of the explained output along the straight path from the baseline to the input.

    Args:
      apply_fn: (params, inputs) -> logits, as in inference.
      params: pytree of everything that apply_fn needs; never changed.
      inputs: the examples to explain, e.g. [batch, height, width, channels].
      target: a class for each example, or a function of the logits; see `explained_output`.
      baselines: where the path starts, in the units of the inputs; of their shape, of one example's, or one number.
      n_steps: quadrature nodes, >= 1. The gap falls as 1 / n_steps on piecewise-linear networks.
      method: the quadrature: "gausslegendre", or "riemann_" with "left", "middle", "right" or "trapezoid".
      internal_batch_size: most rows (examples × nodes) that apply_fn is given at once; all of them by default.
        Smaller needs less memory and gives the same result. One node of every example is the least that is taken.
      loop: how the pieces are driven; see `dl_core.loops`.

    Returns:
      PathAttribution.

    Raises:
      UsageError: n_steps or internal_batch_size below 1, an unknown method, or one node for the trapezoid.
    """
    nodes, weights = _quadrature(method, n_steps)
    if internal_batch_size is not None and internal_batch_size < 1:
        raise UsageError(f"internal_batch_size must be at least 1, got {internal_batch_size}")
    most = n_steps if internal_batch_size is None else max(1, internal_batch_size // len(inputs))
    pieces = -(-n_steps // most)
    each = -(-n_steps // pieces)
    surplus = (0, pieces * each - n_steps)  # nodes of no weight that fill the last piece
    nodes, weights = (
        jnp.asarray(np.pad(values, surplus).reshape(pieces, each), inputs.dtype) for values in (nodes, weights)
    )

    baselines = jnp.asarray(baselines, inputs.dtype)
    baselines = jnp.broadcast_to(
        baselines.reshape((1,) * (inputs.ndim - baselines.ndim) + baselines.shape), inputs.shape
    )
    difference = inputs - baselines
    explained = Partial(target) if callable(target) else target  # functions are compared, arrays are arguments
    step = Partial(_add_piece, Partial(apply_fn), params, explained, baselines, difference)
    mean_gradient, _ = scan(step, jnp.zeros_like(inputs), (nodes, weights), loop=loop)
    attributions = difference * mean_gradient
    change = explained_output(apply_fn, params, inputs, target) - explained_output(apply_fn, params, baselines, target)
    return PathAttribution(attributions, attributions.reshape(len(inputs), -1).sum(axis=1) - change)


def _add_piece(
    apply_fn: ApplyFn,
    params: Any,
    target: Target,
    baselines: Float[Array, "batch ..."],
    difference: Float[Array, "batch ..."],
    total: Float[Array, "batch ..."],
    nodes_and_weights: tuple[Float[Array, " nodes"], Float[Array, " nodes"]],
) -> tuple[Float[Array, "batch ..."], None]:
    nodes, weights = nodes_and_weights
    gradient_at = lambda alpha: input_gradient(apply_fn, params, baselines + alpha * difference, target)
    return total + jnp.tensordot(weights, jax.vmap(gradient_at)(nodes), axes=1), None


def _quadrature(method: str, n: int) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Nodes in [0, 1], and weights that sum to 1."""
    if n < 1:
        raise UsageError(f"n_steps must be at least 1, got {n}")
    if method not in METHODS:
        raise unknown_name("method", method, METHODS)
    if method == "gausslegendre":
        nodes, weights = np.polynomial.legendre.leggauss(n)  # on [-1, 1]
        return (nodes + 1) / 2, weights / 2
    if method == "riemann_trapezoid":
        if n < 2:
            raise UsageError("riemann_trapezoid needs n_steps of at least 2, for the two ends; got 1")
        weights = np.full(n, 1 / (n - 1))
        weights[[0, -1]] /= 2
        return np.linspace(0, 1, n), weights
    offset = {"riemann_left": 0, "riemann_middle": 0.5, "riemann_right": 1}[method]
    return (np.arange(n) + offset) / n, np.full(n, 1 / n)
