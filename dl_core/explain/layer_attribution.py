"""Explanations of a layer inside of a model, and of a single neuron, by the methods for whole models.

The model behind a layer is a model of its own, whose input is the layer; the model up to a neuron is one with a single
output. `from_layer` and `to_neuron` make these, for any method; the five functions are the forms with a name:

    method(*from_layer(apply_fn, params, inputs, "layer3"), target)           # attributions shaped as the layer
    method(to_neuron(apply_fn, "layer3", (2, 2, 7)), params, inputs, 0)       # attributions shaped as the inputs

Dhamdhere, Sundararajan, Yan (2019), "How Important Is a Neuron?", https://arxiv.org/abs/1805.12233 (conductance):

    conductance_j = ∫₀¹ ∂f_t / ∂y_j · dy_j / dα dα      y(α): the layer on the straight way from baseline to input
"""

import functools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float

from dl_core.errors import UsageError
from dl_core.explain.gradients import gradient_x_input, input_gradient, saliency
from dl_core.explain.layers import run_with_layer
from dl_core.explain.path_integration import (
    PathAttribution,
    accumulated,
    integrated_gradients,
    path_attribution,
    quadrature,
    spread_baselines,
    straight_path,
)
from dl_core.explain.pieces import Progress, sum_over, variants_at_once
from dl_core.explain.target import ApplyFn, Target, check_target, explained_output

Baselines = Float[Array | np.ndarray, "..."] | float


class FromLayer(NamedTuple):
    """The rest of a model, to be given to a method in place of (apply_fn, params, inputs).

    apply_fn: (params, activation) -> logits; what does not pass through the layer is computed from the inputs.
    params: the model's, and its inputs.
    inputs: the activation of the layer.
    """

    apply_fn: ApplyFn
    params: Any
    inputs: Float[Array, "batch ..."]


def from_layer(apply_fn: ApplyFn, params: Any, inputs: Float[Array, "batch ..."], layer: str) -> FromLayer:
    """The rest of a model behind a layer, which any method explains: `smooth_grad(*from_layer(…), target, key=key)`.

    Args:
      apply_fn: (params, inputs) -> logits, as in inference.
      params: pytree of everything that apply_fn needs.
      inputs: the examples.
      layer: its name; see `list_layers`.

    Returns:
      FromLayer.

    Raises:
      UsageError: no such layer, or one that holds no floating numbers for each example.
    """
    return FromLayer(_rest(apply_fn, layer), (params, inputs), _activation(Partial(apply_fn), params, inputs, layer))


def to_neuron(apply_fn: ApplyFn, layer: str, neuron: int | tuple[int, ...]) -> ApplyFn:
    """A model whose only logit is one neuron, which any method explains as class 0.

    Args:
      apply_fn: (params, inputs) -> logits, as in inference.
      layer: its name; see `list_layers`.
      neuron: index into each axis of the layer after the batch, e.g. (row, column, channel); negative ones count from
        the end.

    Returns:
      (params, inputs) -> [batch, 1]; the same function for the same arguments. It raises `UsageError` where there is
      no such layer or neuron.
    """
    indices = neuron if isinstance(neuron, tuple | list) else (neuron,)
    try:
        return _neuron(apply_fn, layer, tuple(map(operator.index, indices)))
    except TypeError:
        raise UsageError(f"neuron must be an index or a tuple of indices, got {neuron!r}") from None


def layer_gradient_x_activation(
    apply_fn: ApplyFn, params: Any, inputs: Float[Array, "batch ..."], target: Target, *, layer: str
) -> Float[Array, "batch ..."]:
    """Gradient times activation: the share of each unit of a layer in the linearised output.

    Args:
      apply_fn: (params, inputs) -> logits, as in inference.
      params: pytree of everything that apply_fn needs; never changed.
      inputs: the examples to explain.
      target: a class, one class for each example, or a function of the logits; see `explained_output`.
      layer: its name; see `list_layers`.

    Returns:
      Same shape as the layer, in logits.

    Raises:
      UsageError: see `check_target`; no such layer.
    """
    target = check_target(apply_fn, params, inputs, target)
    return gradient_x_input(*from_layer(apply_fn, params, inputs, layer), target)


def layer_integrated_gradients(
    apply_fn: ApplyFn,
    params: Any,
    inputs: Float[Array, "batch ..."],
    target: Target,
    *,
    layer: str,
    baselines: Baselines = 0.0,
    n_steps: int = 50,
    method: str = "gausslegendre",
    internal_batch_size: int | None = None,
    loop: str = "auto",
    progress: Progress | None = None,
) -> PathAttribution:
    """Integrated gradients in the space of a layer: straight from its value at the baseline to that at the input.

    Args:
      apply_fn: (params, inputs) -> logits, as in inference.
      params: pytree of everything that apply_fn needs; never changed.
      inputs: the examples to explain.
      target: a class, one class for each example, or a function of the logits; see `explained_output`.
      layer: its name; see `list_layers`.
      baselines: in the units of the inputs; see `integrated_gradients`.
      n_steps: quadrature nodes, >= 1.
      method: the quadrature; see `integrated_gradients`.
      internal_batch_size: most rows (examples × nodes) that are evaluated at once; None bounds their size instead.
      loop: how the pieces are driven; see `dl_core.loops`.
      progress: called with (pieces done, pieces in all); not inside `jit`.

    Returns:
      PathAttribution, shaped as the layer. What goes around the layer (a skip connection) stays as the input makes it,
      so the gap compares with the change that the layer alone brings about, and is an error of the quadrature only.

    Raises:
      UsageError: see `integrated_gradients`; no such layer.
    """
    target = check_target(apply_fn, params, inputs, target)
    start = spread_baselines(baselines, inputs)
    return integrated_gradients(
        *from_layer(apply_fn, params, inputs, layer),
        target,
        baselines=_activation(Partial(apply_fn), params, start, layer),
        n_steps=n_steps,
        method=method,
        internal_batch_size=internal_batch_size,
        loop=loop,
        progress=progress,
    )


def layer_conductance(
    apply_fn: ApplyFn,
    params: Any,
    inputs: Float[Array, "batch ..."],
    target: Target,
    *,
    layer: str,
    baselines: Baselines = 0.0,
    n_steps: int = 50,
    method: str = "gausslegendre",
    internal_batch_size: int | None = None,
    loop: str = "auto",
    progress: Progress | None = None,
) -> PathAttribution:
    """How much of integrated gradients flows through each unit of a layer, on the path of the inputs.

    The derivative of the layer along the path is exact at every node (Captum takes the difference of neighbouring
    nodes), so any quadrature can be used.

    Args:
      apply_fn: (params, inputs) -> logits, as in inference; needs forward-mode derivatives (no `custom_vjp` before the
        layer).
      params: pytree of everything that apply_fn needs; never changed.
      inputs: the examples to explain.
      target: a class, one class for each example, or a function of the logits; see `explained_output`.
      layer: its name; see `list_layers`.
      baselines: in the units of the inputs; see `integrated_gradients`.
      n_steps: quadrature nodes, >= 1.
      method: the quadrature; see `integrated_gradients`.
      internal_batch_size: most rows (examples × nodes) that apply_fn is given at once; None bounds their size instead.
      loop: how the pieces are driven; see `dl_core.loops`.
      progress: called with (pieces done, pieces in all); not inside `jit`.

    Returns:
      PathAttribution, shaped as the layer. The gap compares with the change in the explained output from baseline to
      input: where something goes around the layer, its share is in the gap.

    Raises:
      UsageError: see `integrated_gradients`; no such layer.
    """
    target = check_target(apply_fn, params, inputs, target)
    start = spread_baselines(baselines, inputs)
    nodes_and_weights = quadrature(method, n_steps, accumulated(inputs))
    at_once = variants_at_once(internal_batch_size, inputs, n_steps)
    model = Partial(apply_fn)
    at_node = Partial(_conductance_at(layer), model, params, inputs, target, start)
    total = sum_over(at_node, nodes_and_weights, at_once=at_once, loop=loop, progress=progress)
    return _finish_conductance(model, params, inputs, target, start, total)


def neuron_gradient(
    apply_fn: ApplyFn,
    params: Any,
    inputs: Float[Array, "batch ..."],
    *,
    layer: str,
    neuron: int | tuple[int, ...],
) -> Float[Array, "batch ..."]:
    """∂ neuron / ∂ input: what raises the activation of one unit. The neuron stands in the place of a target.

    Args:
      apply_fn: (params, inputs) -> logits, as in inference.
      params: pytree of everything that apply_fn needs; never changed.
      inputs: the examples to explain.
      layer: its name; see `list_layers`.
      neuron: index into each axis of the layer after the batch, e.g. (row, column, channel).

    Returns:
      Same shape as the inputs, signed.

    Raises:
      UsageError: see `check_target`; no such layer or neuron.
    """
    return saliency(to_neuron(apply_fn, layer, neuron), params, inputs, 0, absolute=False)


def neuron_integrated_gradients(
    apply_fn: ApplyFn,
    params: Any,
    inputs: Float[Array, "batch ..."],
    *,
    layer: str,
    neuron: int | tuple[int, ...],
    baselines: Baselines = 0.0,
    n_steps: int = 50,
    method: str = "gausslegendre",
    internal_batch_size: int | None = None,
    loop: str = "auto",
    progress: Progress | None = None,
) -> PathAttribution:
    """Integrated gradients of one unit's activation. The neuron stands in the place of a target.

    Args:
      apply_fn: (params, inputs) -> logits, as in inference.
      params: pytree of everything that apply_fn needs; never changed.
      inputs: the examples to explain.
      layer: its name; see `list_layers`.
      neuron: index into each axis of the layer after the batch, e.g. (row, column, channel).
      baselines: see `integrated_gradients`, as for all that follow.
      n_steps: quadrature nodes, >= 1.
      method: the quadrature.
      internal_batch_size: most rows (examples × nodes) that are evaluated at once.
      loop: how the pieces are driven; see `dl_core.loops`.
      progress: called with (pieces done, pieces in all); not inside `jit`.

    Returns:
      PathAttribution, shaped as the inputs; the gap compares with the change of the neuron.

    Raises:
      UsageError: see `integrated_gradients`; no such layer or neuron.
    """
    return integrated_gradients(
        to_neuron(apply_fn, layer, neuron),
        params,
        inputs,
        0,
        baselines=baselines,
        n_steps=n_steps,
        method=method,
        internal_batch_size=internal_batch_size,
        loop=loop,
        progress=progress,
    )


def _layer_value(
    apply_fn: ApplyFn, params: Any, inputs: Float[Array, "batch ..."], layer: str
) -> Float[Array, "batch ..."]:
    _, activation = run_with_layer(apply_fn, params, inputs, layer)
    if not jnp.issubdtype(activation.dtype, jnp.floating) or activation.shape[:1] != inputs.shape[:1]:
        raise UsageError(
            f"the layer {layer!r} must hold floating numbers [batch, ...] = [{len(inputs)}, …] to be explained; it "
            f"holds {activation.dtype} of shape {list(activation.shape)}"
        )
    return activation


_activation = jax.jit(_layer_value, static_argnames="layer")


# The same arguments give the same function, so that what was compiled for it is found again.
@functools.lru_cache(maxsize=64)
def _rest(apply_fn: ApplyFn, layer: str) -> ApplyFn:
    def rest(
        params_and_inputs: tuple[Any, Float[Array, "batch ..."]], activation: Float[Array, "_ ..."]
    ) -> Float[Array, "batch ..."]:
        params, inputs = params_and_inputs  # a baseline comes alone, and stands in for every example
        whole = jnp.broadcast_to(activation, (len(inputs), *activation.shape[1:]))
        return run_with_layer(apply_fn, params, inputs, layer, lambda _: whole)[0]

    return rest


@functools.lru_cache(maxsize=64)
def _neuron(apply_fn: ApplyFn, layer: str, neuron: tuple[int, ...]) -> ApplyFn:
    def value(params: Any, inputs: Float[Array, "batch ..."]) -> Float[Array, "batch 1"]:
        activation = _layer_value(apply_fn, params, inputs, layer)
        sides = activation.shape[1:]
        if len(neuron) != len(sides) or any(not -side <= at < side for at, side in zip(neuron, sides, strict=True)):
            raise UsageError(
                f"neuron must have {len(sides)} indices, within the axes {list(sides)} of {layer!r}; got {neuron}"
            )
        return activation[(slice(None), *neuron)][:, None]

    return value


@functools.lru_cache(maxsize=64)
def _conductance_at(layer: str) -> Callable[..., Float[Array, "batch ..."]]:
    def at_node(
        apply_fn: ApplyFn,
        params: Any,
        inputs: Float[Array, "batch ..."],
        target: Target,
        start: Float[Array, "batch ..."],
        node_and_weight: tuple[Float[Array, ""], Float[Array, ""]],
    ) -> Float[Array, "batch ..."]:
        node, weight = node_and_weight
        point, difference = straight_path(start, inputs, node)
        value = lambda x: _layer_value(apply_fn, params, x, layer)
        activation, speed = jax.jvp(value, (point,), (difference.astype(point.dtype),))
        return weight * speed * input_gradient(_rest(apply_fn, layer), (params, point), activation, target)

    return at_node


@jax.jit
def _finish_conductance(
    apply_fn: ApplyFn,
    params: Any,
    inputs: Float[Array, "batch ..."],
    target: Target,
    start: Float[Array, "batch ..."],
    total: Float[Array, "batch ..."],
) -> PathAttribution:
    before, after = (explained_output(apply_fn, params, end, target) for end in (start, inputs))
    return path_attribution(total, before, after, inputs.dtype)
