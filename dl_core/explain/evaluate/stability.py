"""Stability: how far an explanation moves when the input hardly does.

Yeh, Hsieh, Suggala, Inouye, Ravikumar (2019), "On the (In)fidelity and Sensitivity of Explanations",
https://arxiv.org/abs/1901.09392, definition 3.1 (max-sensitivity); Alvarez-Melis, Jaakkola (2018), "On the
Robustness of Interpretability Methods", https://arxiv.org/abs/1806.08049, equation 3 (local Lipschitz estimate).

    max-sensitivity = max_δ ‖Φ(x + δ) − Φ(x)‖ / ‖Φ(x)‖        Lipschitz = max_δ ‖Φ(x + δ) − Φ(x)‖ / ‖δ‖

An explanation that does not look at the model is as stable as can be: read this beside the tests of faithfulness.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float, Key

from dl_core.errors import UsageError
from dl_core.explain.evaluate.explanation import Explain, explain_with, for_each
from dl_core.explain.evaluate.infidelity import Perturb, checked_perturbation
from dl_core.explain.pieces import Progress
from dl_core.explain.target import ApplyFn, Target, check_target


class Stability(NamedTuple):
    """The largest change of the explanation among the perturbations of each example.

    sensitivity_max: relative to the explanation's own norm; the change itself where that is 0.
    lipschitz: per unit of the change of the input; 0 where the input did not change.
    """

    sensitivity_max: Float[Array, " batch"]
    lipschitz: Float[Array, " batch"]


def stability(
    explain: Explain,
    apply_fn: ApplyFn,
    params: Any,
    inputs: Float[Array, "batch ..."],
    target: Target,
    *,
    key: Key[Array, ""],
    perturb_radius: float = 0.02,
    n_perturb_samples: int = 10,
    perturb: Perturb | None = None,
    loop: str = "auto",
    progress: Progress | None = None,
) -> Stability:
    """Max-sensitivity (Captum's `sensitivity_max`) and the local Lipschitz estimate, by random perturbations.

    Both are lower bounds of the true maximum, which rise with n_perturb_samples. Norms are Euclidean.

    Args:
      explain: (apply_fn, params, inputs, target) -> attributions; see `explain_with`. A random method must be given a
        fixed key, or its noise is taken for instability.
      apply_fn: (params, inputs) -> logits, as in inference.
      params: pytree of everything that apply_fn needs.
      inputs: the examples to explain.
      target: what is explained; the same for the perturbed inputs.
      key: for the perturbations.
      perturb_radius: > 0, in the units of the inputs: each value moves by a uniform number in ± radius.
      n_perturb_samples: perturbations of each example, >= 1, explained one after another.
      perturb: (key, inputs) -> perturbed inputs, in place of perturb_radius.
      loop: how they are driven; see `dl_core.loops`.
      progress: called with (explanations done, explanations in all).

    Returns:
      Stability, one value for each example.

    Raises:
      UsageError: n_perturb_samples below 1, a radius that is not positive, a perturbation or an explanation of another
        shape; see `check_target`.
    """
    check_target(apply_fn, params, inputs, target, differentiable=False)
    if n_perturb_samples < 1:
        raise UsageError(f"n_perturb_samples must be at least 1, got {n_perturb_samples}")
    if not perturb_radius > 0:
        raise UsageError(f"perturb_radius must be positive, got {perturb_radius}")
    perturb = checked_perturbation(perturb or Partial(_uniform, jnp.float32(perturb_radius)), inputs)
    original = explain_with(explain, apply_fn, params, inputs, target)

    def distances(key: Key[Array, ""]) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
        perturbed = _perturb(perturb, key, inputs)
        moved = explain_with(explain, apply_fn, params, perturbed, target)
        return _distance(moved, original), _distance(perturbed, inputs)

    keys = jax.random.split(key, n_perturb_samples)
    of_attributions, of_inputs = for_each(distances, keys, loop=loop, progress=progress, given=(params, inputs, target))
    return _largest(of_attributions, of_inputs, original)


def _uniform(radius: Float[Array, ""], key: Key[Array, ""], inputs: Float[Array, "batch ..."]) -> Array:
    return inputs + radius.astype(inputs.dtype) * jax.random.uniform(key, inputs.shape, inputs.dtype, -1, 1)


@jax.jit
def _perturb(perturb: Partial, key: Key[Array, ""], inputs: Float[Array, "batch ..."]) -> Float[Array, "batch ..."]:
    return perturb(key, inputs).astype(inputs.dtype)


@jax.jit
def _distance(first: Float[Array, "batch ..."], second: Float[Array, "batch ..."]) -> Float[Array, " batch"]:
    difference = first.astype(jnp.promote_types(first.dtype, jnp.float32)) - second
    return jnp.linalg.norm(difference.reshape(len(first), -1), axis=1)


@jax.jit
def _largest(
    of_attributions: Float[Array, "samples batch"],
    of_inputs: Float[Array, "samples batch"],
    original: Float[Array, "batch ..."],
) -> Stability:
    norm = jnp.linalg.norm(original.reshape(len(original), -1), axis=1)
    ratios = jnp.where(of_inputs == 0, 0, of_attributions / jnp.where(of_inputs == 0, 1, of_inputs))
    return Stability(of_attributions.max(axis=0) / jnp.where(norm == 0, 1, norm), ratios.max(axis=0))
