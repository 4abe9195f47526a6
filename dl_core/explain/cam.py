"""Class activation maps: where in the image the channels of a layer lie that speak for the explained output.

A map is one number for each position, [batch, height, width], made of the activations A [batch, rows, columns,
channels] of one layer, and the gradient G of the explained output with respect to them:

    Grad-CAM    Σ_k mean(G_k) A_k                     Selvaraju et al. (2017), https://arxiv.org/abs/1610.02391, eq. 1–2
    Grad-CAM++  Σ_k Σ relu(G_k) / (2 + G_k ΣA_k) A_k  Chattopadhay et al. (2018), https://arxiv.org/abs/1710.11063
    LayerCAM    Σ_k relu(G_k) A_k                     Jiang et al. (2021), https://doi.org/10.1109/TIP.2021.3089943
    Score-CAM   Σ_k softmax_k(f(x ∘ mask_k)) A_k      Wang et al. (2020), https://arxiv.org/abs/1910.01279

where means and inner sums go over the positions of an example. The layer is found by name in any function, see
`dl_core.explain.layers`; tokens of a vision transformer are laid out as patches, see `dl_core.explain.spatial`.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float

from dl_core.explain.guided import guided_backprop
from dl_core.explain.layers import check_layer, run_with_layer
from dl_core.explain.pieces import Progress, map_over, variants_at_once
from dl_core.explain.spatial import (
    INTERPOLATIONS,
    as_map,
    check_images,
    check_spatial_layer,
    default_cam_layer,
    upsample_maps,
)
from dl_core.explain.target import ApplyFn, Target, check_target, explained_output, select_target

__all__ = ["default_cam_layer", "grad_cam", "grad_cam_plus_plus", "guided_grad_cam", "layer_cam", "score_cam"]

Images = Float[Array, "batch height width channels"]
Maps = Float[Array, "batch rows columns filters"]  # of a layer; "channels" are those of the images
Combine = Callable[[Maps, Maps], Float[Array, "batch rows columns"]]


def grad_cam(
    apply_fn: ApplyFn,
    params: Any,
    inputs: Images,
    target: Target,
    *,
    layer: str | None = None,
    relu: bool = True,
    upsample: bool = True,
    interpolation: str = "bilinear",
) -> Float[Array, "batch _ _"]:
    """Grad-CAM: the channels of a layer, each weighted by the mean of its gradient.

    Args:
      apply_fn: (params, inputs) -> logits, as in inference.
      params: pytree of everything that apply_fn needs; never changed.
      inputs: the images to explain.
      target: a class, one class for each example, or a function of the logits; see `explained_output`.
      layer: its name, see `list_layers`; [batch, rows, columns, channels], or tokens [batch, tokens, width]. None takes
        `default_cam_layer`: the last map that all of the output's knowledge of places goes through.
      relu: keep what speaks for the output; False also shows what speaks against it, as negative numbers.
      upsample: False returns the map at the layer's own resolution.
      interpolation: "bilinear" or "nearest".

    Returns:
      One map for each example, [batch, height, width] of the inputs or [batch, rows, columns] of the layer, not scaled:
      maps of several examples and classes can be compared.

    Raises:
      UsageError: see `check_target`; no such layer (the nearest names are said), or one without rows and columns, or
        one whose places the output does not depend on; an unknown interpolation.
    """
    options = {"layer": layer, "relu": relu, "upsample": upsample, "interpolation": interpolation}
    return _gradient_cam(_mean_gradient, apply_fn, params, inputs, target, **options)


def grad_cam_plus_plus(
    apply_fn: ApplyFn,
    params: Any,
    inputs: Images,
    target: Target,
    *,
    layer: str | None = None,
    relu: bool = True,
    upsample: bool = True,
    interpolation: str = "bilinear",
) -> Float[Array, "batch _ _"]:
    """Grad-CAM++: positive gradients only, shared out so that each of several objects of a class counts.

    The paper explains exp(f), whose second and third derivatives by A_k at one place are exp(f) G² and exp(f) G³ where
    the network behind the layer is piecewise linear. Its weights are then exp(f) Σ relu(G) / (2 + G ΣA), without the
    powers of G, which would vanish in float32; the factor exp(f), the same for a whole map, is left out.

    Args:
      apply_fn: (params, inputs) -> logits, as in inference.
      params: pytree of everything that apply_fn needs; never changed.
      inputs: the images to explain.
      target: a class, one class for each example, or a function of the logits; see `explained_output`.
      layer: see `grad_cam`. The paper's activations come from a ReLU. Negative ones of other layers are left out of
        ΣA: with them the denominator could vanish, and the map would be noise.
      relu, upsample, interpolation: see `grad_cam`.

    Returns:
      See `grad_cam`.

    Raises:
      UsageError: see `grad_cam`.
    """
    options = {"layer": layer, "relu": relu, "upsample": upsample, "interpolation": interpolation}
    return _gradient_cam(_plus_plus, apply_fn, params, inputs, target, **options)


def layer_cam(
    apply_fn: ApplyFn,
    params: Any,
    inputs: Images,
    target: Target,
    *,
    layer: str | None = None,
    relu: bool = True,
    upsample: bool = True,
    interpolation: str = "bilinear",
) -> Float[Array, "batch _ _"]:
    """LayerCAM: every place of every channel weighted by its own positive gradient; good at early, fine layers too.

    Args:
      apply_fn: (params, inputs) -> logits, as in inference.
      params: pytree of everything that apply_fn needs; never changed.
      inputs: the images to explain.
      target: a class, one class for each example, or a function of the logits; see `explained_output`.
      layer, relu, upsample, interpolation: see `grad_cam`.

    Returns:
      See `grad_cam`.

    Raises:
      UsageError: see `grad_cam`.
    """
    options = {"layer": layer, "relu": relu, "upsample": upsample, "interpolation": interpolation}
    return _gradient_cam(_positive_gradient, apply_fn, params, inputs, target, **options)


def guided_grad_cam(
    apply_fn: ApplyFn,
    params: Any,
    inputs: Images,
    target: Target,
    *,
    layer: str | None = None,
    interpolation: str = "bilinear",
) -> Images:
    """Guided backpropagation times the upsampled Grad-CAM: fine structure, and only where the class is.

    Args:
      apply_fn: (params, inputs) -> logits, as in inference.
      params: pytree of everything that apply_fn needs; never changed.
      inputs: the images to explain.
      target: a class, one class for each example, or a function of the logits; see `explained_output`.
      layer: of the Grad-CAM, see `grad_cam`.
      interpolation: of its map: "bilinear" as in the paper, or "nearest" as in Captum.

    Returns:
      Same shape as the inputs.

    Raises:
      UsageError: see `grad_cam` and `guided_backprop`.
    """
    maps = grad_cam(apply_fn, params, inputs, target, layer=layer, interpolation=interpolation)
    return guided_backprop(apply_fn, params, inputs, target) * maps[..., None]


def score_cam(
    apply_fn: ApplyFn,
    params: Any,
    inputs: Images,
    target: Target,
    *,
    layer: str | None = None,
    relu: bool = True,
    upsample: bool = True,
    interpolation: str = "bilinear",
    internal_batch_size: int | None = None,
    loop: str = "auto",
    progress: Progress | None = None,
) -> Float[Array, "batch _ _"]:
    """Score-CAM: every channel weighted by the output for the image seen through that channel alone; no gradient.

    A channel, upsampled and stretched to [0, 1], multiplies the image. The weights are the softmax over the channels of
    the explained output, in which the output for a baseline, which the paper subtracts, cancels. A channel that is the
    same everywhere masks nothing: it has no weight, and an example without any other has the map 0.

    Args:
      apply_fn: (params, inputs) -> logits, as in inference. What it is given for a hidden pixel is 0: put a
        normalisation inside of it to make that black, outside of it to make it the mean colour.
      params: pytree of everything that apply_fn needs; never changed.
      inputs: the images to explain.
      target: a class, one class for each example, or a function of the logits; see `explained_output`. Logits that
        differ by much make the softmax choose one channel: `lambda logits: jax.nn.softmax(logits)[:, 3]` is milder.
      layer, relu, upsample: see `grad_cam`; the layer may also be one without a gradient.
      interpolation: of the masks and of the map.
      internal_batch_size: most rows (examples × channels) that apply_fn is given at once; None bounds their size
        instead. Smaller needs less memory and gives the same result.
      loop: how the pieces are driven; see `dl_core.loops`.
      progress: called with (pieces done, pieces in all); not inside `jit`.

    Returns:
      See `grad_cam`.

    Raises:
      UsageError: see `grad_cam`; internal_batch_size below 1.
    """
    check_images(inputs, interpolation)
    target = check_target(apply_fn, params, inputs, target, differentiable=False)
    layer = check_spatial_layer(apply_fn, params, inputs, layer, differentiable=False)
    filters = check_layer(apply_fn, params, inputs, layer)[1].shape[-1]
    at_once = variants_at_once(internal_batch_size, inputs, filters)
    maps = _layer_map(Partial(apply_fn), params, inputs, layer=layer)
    score = Partial(_MASKED_OUTPUT[interpolation], Partial(apply_fn), params, inputs, target)
    scores = map_over(score, jnp.moveaxis(maps, -1, 0), at_once=at_once, loop=loop, progress=progress)
    size = inputs.shape[1:3] if upsample else None
    return _weighted(maps, scores, relu=relu, size=size, interpolation=interpolation).astype(inputs.dtype)


def _gradient_cam(
    combine: Combine,
    apply_fn: ApplyFn,
    params: Any,
    inputs: Images,
    target: Target,
    *,
    layer: str | None,
    relu: bool,
    upsample: bool,
    interpolation: str,
) -> Float[Array, "batch _ _"]:
    check_images(inputs, interpolation)
    target = check_target(apply_fn, params, inputs, target)
    return _cam(
        Partial(apply_fn),
        params,
        inputs,
        target,
        combine=combine,
        layer=check_spatial_layer(apply_fn, params, inputs, layer, differentiable=True),
        relu=relu,
        size=inputs.shape[1:3] if upsample else None,
        interpolation=interpolation,
    )


@functools.partial(jax.jit, static_argnames=("combine", "layer", "relu", "size", "interpolation"))
def _cam(
    apply_fn: ApplyFn,
    params: Any,
    inputs: Images,
    target: Target,
    *,
    combine: Combine,
    layer: str,
    relu: bool,
    size: tuple[int, ...] | None,
    interpolation: str,
) -> Float[Array, "batch _ _"]:
    def explained(delta: Float[Array, "batch ..."]) -> tuple[Float[Array, ""], Float[Array, "batch ..."]]:
        logits, activation = run_with_layer(apply_fn, params, inputs, layer, lambda activation: activation + delta)
        return select_target(logits, target).sum(), activation

    _, described = check_layer(apply_fn, params, inputs, layer)
    gradient, activation = jax.grad(explained, has_aux=True)(jnp.zeros(described.shape, described.dtype))
    image = inputs.shape[1:3]
    maps = combine(as_map(activation, *image), as_map(gradient, *image))
    return _finished(maps, relu, size, interpolation).astype(inputs.dtype)


def _mean_gradient(maps: Maps, gradient: Maps) -> Float[Array, "batch rows columns"]:
    return (maps * gradient.mean(axis=(1, 2), keepdims=True)).sum(axis=-1)


def _plus_plus(maps: Maps, gradient: Maps) -> Float[Array, "batch rows columns"]:
    evidence = jax.nn.relu(maps).sum(axis=(1, 2), keepdims=True)
    shares = jax.nn.relu(gradient) / (2 + jax.nn.relu(gradient) * evidence)
    return (maps * shares.sum(axis=(1, 2), keepdims=True)).sum(axis=-1)


def _positive_gradient(maps: Maps, gradient: Maps) -> Float[Array, "batch rows columns"]:
    return (maps * jax.nn.relu(gradient)).sum(axis=-1)


def _finished(
    maps: Float[Array, "batch rows columns"], relu: bool, size: tuple[int, ...] | None, interpolation: str
) -> Float[Array, "batch _ _"]:
    maps = jax.nn.relu(maps) if relu else maps
    return maps if size is None else upsample_maps(maps, size, interpolation)


@functools.partial(jax.jit, static_argnames="layer")
def _layer_map(apply_fn: ApplyFn, params: Any, inputs: Images, *, layer: str) -> Maps:
    return as_map(run_with_layer(apply_fn, params, inputs, layer)[1], *inputs.shape[1:3])


def _masked_output(
    apply_fn: ApplyFn,
    params: Any,
    inputs: Images,
    target: Target,
    channel: Float[Array, "batch rows columns"],
    *,
    interpolation: str,
) -> Float[Array, " batch"]:
    """The explained output for the images seen through one channel."""
    mask = upsample_maps(channel, inputs.shape[1:3], interpolation)
    low, high = mask.min(axis=(1, 2), keepdims=True), mask.max(axis=(1, 2), keepdims=True)
    mask = (mask - low) / jnp.where(high > low, high - low, 1)
    return explained_output(apply_fn, params, inputs * mask[..., None].astype(inputs.dtype), target)


# one function for each, made once: what a compiled piece is remembered by
_MASKED_OUTPUT = {name: functools.partial(_masked_output, interpolation=name) for name in INTERPOLATIONS}


@functools.partial(jax.jit, static_argnames=("relu", "size", "interpolation"))
def _weighted(
    maps: Maps,
    scores: Float[Array, "filters batch"],
    *,
    relu: bool,
    size: tuple[int, ...] | None,
    interpolation: str,
) -> Float[Array, "batch _ _"]:
    masks = maps.max(axis=(1, 2)) > maps.min(axis=(1, 2))  # [batch, channels]
    scores = jnp.where(masks, scores.T.astype(maps.dtype), -jnp.inf)
    highest = jnp.where(masks.any(axis=1), scores.max(axis=1), 0)
    weights = jnp.exp(scores - highest[:, None])
    weights = weights / jnp.maximum(weights.sum(axis=1), 1)[:, None]  # the highest alone makes 1
    return _finished((maps * weights[:, None, None, :]).sum(axis=-1), relu, size, interpolation)
