"""BatchNorm's statistics over the whole training set, instead of the running averages of training.

With n_b examples a batch of mean m_b and variance v_b, the set has mean m = Σ n_b m_b / n and variance
Σ n_b (v_b + (m_b - m)²) / n. Ioffe & Szegedy (2015), algorithm 2; course notes, §8.4.
"""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

BATCH_STATS = "batch_stats"


def recompute_batch_stats(
    forward: Callable[[Any, Any], Any], variables: Any, batches: Iterable[tuple[Any, int]]
) -> Any:
    """Variables whose "batch_stats" are those of all batches together.

    A running average r ← μ r + (1 - μ) b tells the batch's own statistic b when it is run from r = 0 and μ when it is
    also run from r = 1, so this needs to know nothing of the model's layers.

    Args:
      forward: (variables, batch) -> new batch_stats, in training mode. Layers after a BatchNorm see inputs normalised
        by the batch, as in training.
      variables: of the model; returned as they are if there is nothing to recompute.
      batches: (batch, number of examples) over the training split.

    Returns:
      The variables with new "batch_stats".
    """
    if not variables.get(BATCH_STATS):
        return variables
    forward = jax.jit(forward)
    start = variables[BATCH_STATS]

    def run(value: float, batch: Any) -> Any:
        return forward({**variables, BATCH_STATS: jax.tree.map(lambda x: jnp.full_like(x, value), start)}, batch)

    momentum, seen, mean, second = None, 0, None, None
    for batch, count in batches:
        from_zero = run(0.0, batch)
        if momentum is None:
            momentum = jax.tree.map(lambda one, zero: (one - zero).mean(), run(1.0, batch), from_zero)
        own = jax.tree.map(lambda r, m: r / (1 - m), from_zero, momentum)
        weight = count / (seen + count)
        if mean is None:
            mean, second = own, jax.tree.map(jnp.zeros_like, own)
        else:
            # running mean of the batch means, and of their squared deviations
            delta = jax.tree.map(jnp.subtract, own, mean)
            mean = jax.tree.map(lambda m, d, w=weight: m + w * d, mean, delta)
            second = jax.tree.map(lambda s, d, w=weight: (1 - w) * s + w * (1 - w) * d**2, second, delta)
        seen += count
    if mean is None:
        return variables

    def combine(path: Any, within: jax.Array) -> jax.Array:
        if path[-1].key != "var":
            return within
        spread = second
        for part in path[:-1]:
            spread = spread[part.key]
        return within + spread["mean"]

    return {**variables, BATCH_STATS: jax.tree_util.tree_map_with_path(combine, mean)}
