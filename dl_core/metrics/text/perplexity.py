"""Perplexity: between how many equally likely tokens a language model hesitates, exp(mean negative log-likelihood)."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from dl_core.errors import UsageError
from dl_core.metrics.accumulator import AnyArray, CompensatedSum, Metric, compensated, metric_from_sums
from dl_core.metrics.checks import check_finite


def perplexity_metric() -> Metric:
    """Accumulator of `perplexity`.

    Returns:
      A Metric; `update(state, negative_log_likelihoods [n, ...], valid [n, ...], where=None)`.
    """

    def sums(
        negative_log_likelihoods: Float[AnyArray, "n *tokens"],
        valid: Bool[AnyArray, "n *tokens"],
        *,
        where: Bool[AnyArray, " n"] | None = None,
    ) -> tuple[CompensatedSum, Array]:
        losses, kept = jnp.asarray(negative_log_likelihoods, jnp.float32), jnp.asarray(valid)
        if losses.shape != kept.shape:
            raise UsageError(
                f"valid must have the shape of negative_log_likelihoods, {list(losses.shape)}, got {list(kept.shape)}"
            )
        kept = kept if where is None else kept & jnp.asarray(where).reshape(-1, *(1,) * (kept.ndim - 1))
        return compensated(jnp.where(kept, losses, 0).sum()), kept.sum(dtype=jnp.int32)

    def compute(state: tuple[CompensatedSum, Array]) -> Float[Array, ""]:
        total, tokens = state
        return jnp.exp((total.high + total.low) / tokens)

    return metric_from_sums(lambda: (compensated(jnp.float32(0)), jnp.int32(0)), sums, compute)


def perplexity(
    negative_log_likelihoods: Float[AnyArray, "n *tokens"], *, valid: Bool[AnyArray, "n *tokens"] | None = None
) -> Float[Array, ""]:
    """Perplexity of tokens; not the perceptual path length, which is called PPL as well.

    Args:
      negative_log_likelihoods: of each token given those before it, in nats, e.g. Optax's
        `softmax_cross_entropy_with_integer_labels`.
      valid: the tokens that count, as opposed to padding; all by default.

    Returns:
      A scalar >= 1 for probabilities; nan without tokens.

    Raises:
      UsageError: a mask of another shape; outside jit, a valid token whose value is not finite.
    """
    metric = perplexity_metric()
    valid = jnp.ones(negative_log_likelihoods.shape, bool) if valid is None else valid
    if np.shape(valid) == np.shape(negative_log_likelihoods):
        check_finite("negative_log_likelihoods", negative_log_likelihoods.reshape(-1), valid.reshape(-1))
    return metric.compute(metric.update(metric.init(), negative_log_likelihoods, valid))
