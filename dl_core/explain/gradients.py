"""Explanations by one gradient: how the explained output changes with every input value.

Simonyan, Vedaldi, Zisserman (2014), "Deep Inside Convolutional Networks", https://arxiv.org/abs/1312.6034 (saliency);
Shrikumar, Greenside, Kundaje (2017), "Learning Important Features Through Propagating Activation Differences",
https://arxiv.org/abs/1704.02685, section 2 (gradient × input).

    saliency_i = |∂f_t / ∂x_i|        gradient × input_i = x_i ∂f_t / ∂x_i
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float

from dl_core.errors import unknown_name
from dl_core.explain.target import ApplyFn, Target, check_target, explained_output

_REDUCTIONS = {
    "sum": lambda attributions: attributions.sum(axis=-1),
    "max": lambda attributions: jnp.abs(attributions).max(axis=-1),
    "norm": lambda attributions: jnp.linalg.norm(attributions, axis=-1),
}


def input_gradient(
    apply_fn: ApplyFn, params: Any, inputs: Float[Array, "batch ..."], target: Target
) -> Float[Array, "batch ..."]:
    """∂ explained output / ∂ input for each example; no example influences the gradient of another.

    Args:
      apply_fn: (params, inputs) -> logits, as in inference: in training, batch normalisation mixes the examples.
      params: pytree of everything that apply_fn needs; never changed.
      inputs: the examples to explain, e.g. [batch, height, width, channels].
      target: a class, one class for each example, or a function of the logits; see `explained_output`.

    Returns:
      Same shape as the inputs, in logits per unit of input.
    """
    return jax.grad(lambda x: explained_output(apply_fn, params, x, target).sum())(inputs)


def saliency(
    apply_fn: ApplyFn,
    params: Any,
    inputs: Float[Array, "batch ..."],
    target: Target,
    *,
    absolute: bool = True,
) -> Float[Array, "batch ..."]:
    """The size of the gradient: which input values the output is most sensitive to.

    Args:
      apply_fn: (params, inputs) -> logits, as in inference.
      params: pytree of everything that apply_fn needs; never changed.
      inputs: the examples to explain.
      target: a class, one class for each example, or a function of the logits; see `explained_output`.
      absolute: False keeps the sign of the gradient.

    Returns:
      Same shape as the inputs; the paper's map is `reduce_channels(…, reduce="max")` of it.

    Raises:
      UsageError: see `check_target`.
    """
    gradient = _input_gradient(Partial(apply_fn), params, inputs, check_target(apply_fn, params, inputs, target))
    return jnp.abs(gradient) if absolute else gradient


def gradient_x_input(
    apply_fn: ApplyFn, params: Any, inputs: Float[Array, "batch ..."], target: Target
) -> Float[Array, "batch ..."]:
    """Gradient times input: the share of each input value in the linearised output.

    For a piecewise-linear network without biases, the shares of one example sum to the explained logit.

    Args:
      apply_fn: (params, inputs) -> logits, as in inference. Inputs are what it is given: put a normalisation inside of
        it to explain pixels, outside of it to explain normalised values.
      params: pytree of everything that apply_fn needs; never changed.
      inputs: the examples to explain.
      target: a class, one class for each example, or a function of the logits; see `explained_output`.

    Returns:
      Same shape as the inputs, in logits.

    Raises:
      UsageError: see `check_target`.
    """
    target = check_target(apply_fn, params, inputs, target)
    return inputs * _input_gradient(Partial(apply_fn), params, inputs, target)


def reduce_channels(attributions: Float[Array, "*axes channels"], *, reduce: str = "sum") -> Float[Array, "*axes"]:
    """One number for each pixel: what an attribution map shows.

    Args:
      attributions: of any method, the channels last, e.g. [batch, height, width, channels].
      reduce: "sum" keeps signs, and what the attributions add up to; "max" is the largest size (saliency maps as in
        the paper); "norm" the Euclidean length.

    Returns:
      The same without the last axis, e.g. [batch, height, width].

    Raises:
      UsageError: an unknown reduction.
    """
    if reduce not in _REDUCTIONS:
        raise unknown_name("reduce", reduce, _REDUCTIONS)
    return _REDUCTIONS[reduce](attributions)


_input_gradient = jax.jit(input_gradient)  # compiled once for each apply_fn, which arrives as a `Partial`
