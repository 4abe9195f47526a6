"""Completeness: do the attributions add up to what they explain?

Sundararajan, Taly, Yan (2017), "Axiomatic Attribution for Deep Networks", https://arxiv.org/abs/1703.01365, axiom of
completeness (proposition 1).

    gap = Σᵢ attributionᵢ − (f_t(x) − f_t(b))        relative gap = |gap| / |f_t(x) − f_t(b)|
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float

from dl_core.explain.evaluate.features import Attributions, Baselines, as_baselines, check_attributions
from dl_core.explain.target import ApplyFn, Target, check_target, explained_output


class Completeness(NamedTuple):
    """How far the attributions of each example are from adding up.

    change: f_t(x) − f_t(baseline), in logits.
    gap: sum of the attributions minus the change.
    relative_gap: |gap| / |change|; inf where the change is 0 and the gap is not, nan where both are 0.
    """

    change: Float[Array, " batch"]
    gap: Float[Array, " batch"]
    relative_gap: Float[Array, " batch"]


def completeness(
    apply_fn: ApplyFn,
    params: Any,
    inputs: Float[Array, "batch ..."],
    target: Target,
    attributions: Attributions,
    *,
    baselines: Baselines = 0.0,
) -> Completeness:
    """Sum of the attributions minus the change of the explained output from the baseline.

    Args:
      apply_fn: (params, inputs) -> logits, as in inference.
      params: pytree of everything that apply_fn needs.
      inputs: the examples that were explained.
      target: what was explained; see `explained_output`.
      attributions: of the shape of the inputs.
      baselines: what the attributions are measured from; a number, one example, one for each, or "blurred".

    Returns:
      Completeness, one value for each example.

    Raises:
      UsageError: attributions of another shape or not finite; baselines that do not fit; see `check_target`.
    """
    target = check_target(apply_fn, params, inputs, target, differentiable=False)
    attributions = check_attributions(inputs, attributions)
    return _completeness(Partial(apply_fn), params, inputs, target, attributions, as_baselines(baselines, inputs))


@jax.jit
def _completeness(
    apply_fn: ApplyFn, params: Any, inputs: Array, target: Any, attributions: Array, baselines: Array
) -> Completeness:
    wide = lambda values: values.astype(jnp.promote_types(values.dtype, jnp.float32))
    output = lambda x: wide(explained_output(apply_fn, params, x, target))
    change = output(inputs) - output(baselines)
    gap = wide(attributions).reshape(len(inputs), -1).sum(axis=1) - change
    return Completeness(change, gap, jnp.abs(gap) / jnp.abs(change))
