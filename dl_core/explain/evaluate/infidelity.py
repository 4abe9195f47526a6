"""Infidelity: how badly the attributions predict what perturbations of the input do to the output.

Yeh, Hsieh, Suggala, Inouye, Ravikumar (2019), "On the (In)fidelity and Sensitivity of Explanations",
https://arxiv.org/abs/1901.09392, definition 2.1.

    infidelity = E_I [ (Iᵀ Φ − (f_t(x) − f_t(x − I)))² ]

For attributions Φ that contain the factor input − baseline (gradient × input, integrated gradients, relevance, Shapley
values), I is measured in units of that factor: 1 where a value goes to its baseline.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float, Key

from dl_core.errors import UsageError
from dl_core.explain.evaluate.features import Attributions, Baselines, as_baselines, check_attributions
from dl_core.explain.pieces import Progress, map_over, variants_at_once
from dl_core.explain.target import ApplyFn, Target, check_target, explained_output

Perturb = Callable[[Key[Array, ""], Float[Array, "batch ..."]], Float[Array, "batch ..."]]


def gaussian_noise(stdev: float = 0.1) -> Partial:
    """A perturbation (key, inputs) -> inputs + normal noise of a standard deviation in the units of the inputs."""
    if not stdev > 0:
        raise UsageError(f"stdev must be positive, got {stdev}")
    return Partial(_add_noise, jnp.float32(stdev))


def square_removal(size: int, baselines: Float[Array | np.ndarray, "..."] | float = 0.0) -> Partial:
    """A perturbation (key, inputs) -> images with one square at a random place set to the baseline (paper, section 3).

    Args:
      size: side in pixels, >= 1; every place where the square fits is equally likely.
      baselines: a number, one example or one for each, in the units of the inputs.

    Raises:
      UsageError: size below 1.
    """
    if size < 1:
        raise UsageError(f"size must be at least 1 pixel, got {size}")
    return Partial(_remove_square, jnp.int32(size), jnp.asarray(baselines, jnp.float32))


def infidelity(
    apply_fn: ApplyFn,
    params: Any,
    inputs: Float[Array, "batch ..."],
    target: Target,
    attributions: Attributions,
    *,
    key: Key[Array, ""],
    perturb: Perturb | None = None,
    n_perturb_samples: int = 10,
    multiply_by_inputs: bool = True,
    baselines: Baselines = 0.0,
    normalize: bool = False,
    internal_batch_size: int | None = None,
    loop: str = "auto",
    progress: Progress | None = None,
) -> Float[Array, " batch"]:
    """Mean squared error of the change of the output as the attributions predict it; Captum's definition.

    Args:
      apply_fn: (params, inputs) -> logits, as in inference.
      params: pytree of everything that apply_fn needs.
      inputs: the examples that were explained.
      target: what was explained; see `explained_output`.
      attributions: of the shape of the inputs.
      key: for the perturbations; each sample has its own.
      perturb: (key, inputs) -> perturbed inputs; `gaussian_noise(0.1)` by default, `square_removal`, or a function of
        your own, which is compiled once if the same function is given again.
      n_perturb_samples: how many perturbations, >= 1.
      multiply_by_inputs: the attributions contain the factor inputs − baselines, so I is (inputs − perturbed) /
        (inputs − baselines), and inputs − perturbed where that is a division by 0. False for gradients.
      baselines: of that factor.
      normalize: the attributions are first scaled by β = E[IᵀΦ · change] / E[(IᵀΦ)²], the best factor for each example,
        so that their unit does not count; 0 where they predict no change at all.
      internal_batch_size: most rows (examples × samples) that apply_fn is given at once.
      loop: how the pieces are driven; see `dl_core.loops`.
      progress: called with (pieces done, pieces in all).

    Returns:
      One number >= 0 for each example, in squared logits; 0 is best.

    Raises:
      UsageError: n_perturb_samples below 1; a perturbation that changes the shape; attributions of another shape;
        baselines that do not fit; see `check_target`.
    """
    target = check_target(apply_fn, params, inputs, target, differentiable=False)
    attributions = check_attributions(inputs, attributions)
    if n_perturb_samples < 1:
        raise UsageError(f"n_perturb_samples must be at least 1, got {n_perturb_samples}")
    perturb = checked_perturbation(perturb if perturb is not None else gaussian_noise(), inputs)
    factor = inputs - as_baselines(baselines, inputs) if multiply_by_inputs else jnp.ones_like(inputs)
    output = _explained_output(Partial(apply_fn), params, inputs, target)
    sample = Partial(_sample, Partial(apply_fn), params, inputs, target, attributions, perturb, factor, output)
    keys = jax.random.split(key, n_perturb_samples)
    at_once = variants_at_once(internal_batch_size, inputs, n_perturb_samples)
    predicted, change = map_over(sample, keys, at_once=at_once, loop=loop, progress=progress)
    if normalize:
        predicted = _best_scale(predicted, change) * predicted
    return jnp.square(predicted - change).mean(axis=0)


def checked_perturbation(perturb: Perturb, inputs: Float[Array, "batch ..."]) -> Partial:
    """The perturbation as an argument for compiled functions, if it keeps the shape [batch, ...] of the inputs.

    Raises:
      UsageError: it does not.
    """
    made = jax.eval_shape(perturb, jax.random.key(0), inputs)
    if getattr(made, "shape", None) != inputs.shape:
        raise UsageError(
            f"perturb must return perturbed inputs {list(inputs.shape)}, got "
            f"{list(made.shape) if hasattr(made, 'shape') else type(made).__name__}"
        )
    return perturb if isinstance(perturb, Partial) else Partial(perturb)


_explained_output = jax.jit(explained_output)


def _sample(
    apply_fn: ApplyFn,
    params: Any,
    inputs: Array,
    target: Any,
    attributions: Array,
    perturb: Partial,
    factor: Array,
    output: Float[Array, " batch"],
    key: Key[Array, ""],
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
    """What the attributions predict for one perturbation of each example, and what happens."""
    perturbed = perturb(key, inputs).astype(inputs.dtype)
    step = (inputs - perturbed) / jnp.where(factor == 0, 1, factor)
    wide = lambda values: values.astype(jnp.promote_types(values.dtype, jnp.float32))
    predicted = (wide(step) * wide(attributions)).reshape(len(inputs), -1).sum(axis=1)
    return predicted, wide(output) - wide(explained_output(apply_fn, params, perturbed, target))


@jax.jit
def _best_scale(predicted: Float[Array, "samples batch"], change: Float[Array, "samples batch"]) -> Float[Array, "1 _"]:
    power = jnp.square(predicted).sum(axis=0, keepdims=True)
    return jnp.where(power == 0, 0, (predicted * change).sum(axis=0, keepdims=True) / jnp.where(power == 0, 1, power))


def _add_noise(stdev: Float[Array, ""], key: Key[Array, ""], inputs: Float[Array, "batch ..."]) -> Array:
    return inputs + stdev.astype(inputs.dtype) * jax.random.normal(key, inputs.shape, inputs.dtype)


def _remove_square(
    size: Array, baselines: Array, key: Key[Array, ""], inputs: Float[Array, "batch height width channels"]
) -> Array:
    places = jnp.maximum(jnp.asarray(inputs.shape[1:3])[None] - size + 1, 1)
    corners = jax.random.randint(key, (len(inputs), 2), 0, places)
    within = lambda axis: _between(jnp.arange(inputs.shape[axis + 1])[None], corners[:, axis, None], size)
    square = within(0)[:, :, None, None] & within(1)[:, None, :, None]
    return jnp.where(square, as_baselines(baselines, inputs), inputs)


def _between(places: Array, corner: Array, size: Array) -> Array:
    return (places >= corner) & (places < corner + size)
