"""Relevance of the patches of a vision transformer, from its attention weights A [batch, heads, queries, keys].

The weights of every block are found by name ("attention1", … in the project's models; in a function of your own,
whatever passes through `jax.ad_checkpoint.checkpoint_name`), and multiplied from the first block to the last:

    rollout             R ← rows(Ā + I) R                with Ā = mean over heads of A
    gradient rollout    R ← rows(Ā + I) R                with Ā = mean over heads of relu(∂f/∂A ∘ A)
    relevance           R ← R + Ā R                      with that Ā

Abnar, Zuidema (2020), "Quantifying Attention Flow in Transformers", https://arxiv.org/abs/2005.00928 (rollout); Chefer,
Gur, Wolf (2021), "Generic Attention-model Explainability", https://arxiv.org/abs/2103.15679, eq. 5–6 (relevance). R
starts as the identity I, and rows(·) makes every row sum to one. R[query, key] says how much of the token `key` of the
image is in the last token `query`: read for the class token, or averaged over the queries of a model that has none.
"""

import fnmatch
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float

from dl_core.errors import UsageError, unknown_name
from dl_core.explain.layers import check_layer, list_layers, run_with_layers
from dl_core.explain.spatial import check_images, token_grid, upsample_maps
from dl_core.explain.target import ApplyFn, Target, check_target, select_target

HEAD_FUSIONS = ("mean", "max", "min")

Images = Float[Array, "batch height width channels"]
Fused = Float[Array, "batch tokens tokens"]


def attention_rollout(
    apply_fn: ApplyFn,
    params: Any,
    inputs: Images,
    *,
    layers: str | Sequence[str] = "attention*",
    residual: bool = True,
    head_fusion: str = "mean",
    discard_ratio: float = 0.0,
    upsample: bool = True,
    interpolation: str = "bilinear",
) -> Float[Array, "batch _ _"]:
    """Attention rollout: how much of each patch attention carries to the class token, whatever the class.

    Args:
      apply_fn: (params, inputs) -> logits, as in inference.
      params: pytree of everything that apply_fn needs; never changed.
      inputs: the images to explain.
      layers: pattern of the names of the attention weights [batch, heads, tokens, tokens], with * and ?, or the names
        themselves; see `list_layers`. They are multiplied in the order of computation.
      residual: count the skip connection around each attention as attention of a token to itself, with half the weight.
      head_fusion: "mean" (the paper), "max" or "min" over the heads.
      discard_ratio: share in [0, 1) of the lowest fused weights of each block and example that count as 0.
      upsample: False returns the patches' own map.
      interpolation: "bilinear" or "nearest".

    Returns:
      One map for each example, not negative: [batch, height, width] of the inputs or [batch, rows, columns] of the
      patches. Over the patches and the class token together it sums to 1.

    Raises:
      UsageError: no attention weights of these names, or not of patches; an option out of range.
    """
    names = _checked(apply_fn, params, inputs, layers, head_fusion, discard_ratio, interpolation)
    size = inputs.shape[1:3] if upsample else None
    options = {"residual": residual, "discard_ratio": discard_ratio, "size": size, "interpolation": interpolation}
    return _rollout(Partial(apply_fn), params, inputs, names=names, head_fusion=head_fusion, **options)


def gradient_rollout(
    apply_fn: ApplyFn,
    params: Any,
    inputs: Images,
    target: Target,
    *,
    layers: str | Sequence[str] = "attention*",
    residual: bool = True,
    discard_ratio: float = 0.0,
    upsample: bool = True,
    interpolation: str = "bilinear",
) -> Float[Array, "batch _ _"]:
    """Attention rollout of the weights that speak for the target: heads fused to the mean of relu(∂f/∂A ∘ A).

    The weights times their gradients are small beside the residual's 1, so that a row of the product says most of the
    token itself; the map of the patches is as fine as that of `attention_relevance`, on another scale.

    Args:
      apply_fn: (params, inputs) -> logits, as in inference.
      params: pytree of everything that apply_fn needs; never changed.
      inputs: the images to explain.
      target: a class, one class for each example, or a function of the logits; see `explained_output`.
      layers, residual, discard_ratio, upsample, interpolation: see `attention_rollout`.

    Returns:
      See `attention_rollout`.

    Raises:
      UsageError: see `check_target` and `attention_rollout`.
    """
    names = _checked(apply_fn, params, inputs, layers, "mean", discard_ratio, interpolation)
    target = check_target(apply_fn, params, inputs, target)
    size = inputs.shape[1:3] if upsample else None
    options = {"residual": residual, "discard_ratio": discard_ratio, "size": size, "interpolation": interpolation}
    return _gradient_weighted(Partial(apply_fn), params, inputs, target, names=names, rows_sum_to_one=True, **options)


def attention_relevance(
    apply_fn: ApplyFn,
    params: Any,
    inputs: Images,
    target: Target,
    *,
    layers: str | Sequence[str] = "attention*",
    upsample: bool = True,
    interpolation: str = "bilinear",
) -> Float[Array, "batch _ _"]:
    """Gradient-weighted attention: relevance of each patch for the target, by Chefer, Gur and Wolf (2021).

    Args:
      apply_fn: (params, inputs) -> logits, as in inference.
      params: pytree of everything that apply_fn needs; never changed.
      inputs: the images to explain.
      target: a class, one class for each example, or a function of the logits; see `explained_output`.
      layers: of self-attention, see `attention_rollout`.
      upsample, interpolation: see `attention_rollout`.

    Returns:
      One map for each example, not negative, not scaled, at the size of the inputs or of the patches. Without a class
      token it is the mean over the queries, each of which holds itself with a relevance of 1: a floor of 1 / tokens.

    Raises:
      UsageError: see `check_target` and `attention_rollout`.
    """
    names = _checked(apply_fn, params, inputs, layers, "mean", 0.0, interpolation)
    target = check_target(apply_fn, params, inputs, target)
    size = inputs.shape[1:3] if upsample else None
    options = {"residual": True, "discard_ratio": 0.0, "size": size, "interpolation": interpolation}
    return _gradient_weighted(Partial(apply_fn), params, inputs, target, names=names, rows_sum_to_one=False, **options)


@functools.partial(
    jax.jit, static_argnames=("names", "residual", "head_fusion", "discard_ratio", "size", "interpolation")
)
def _rollout(
    apply_fn: ApplyFn,
    params: Any,
    inputs: Images,
    *,
    names: tuple[str, ...],
    residual: bool,
    head_fusion: str,
    discard_ratio: float,
    size: tuple[int, ...] | None,
    interpolation: str,
) -> Float[Array, "batch _ _"]:
    _, weights = run_with_layers(apply_fn, params, inputs, dict.fromkeys(names, lambda weights: weights))
    fuse = {"mean": jnp.mean, "max": jnp.max, "min": jnp.min}[head_fusion]
    fused = [_discard(fuse(_precise(weights[name]), axis=1), discard_ratio) for name in names]
    return _map(_multiplied(fused, residual, True), inputs, size, interpolation)


@functools.partial(
    jax.jit, static_argnames=("names", "residual", "discard_ratio", "rows_sum_to_one", "size", "interpolation")
)
def _gradient_weighted(
    apply_fn: ApplyFn,
    params: Any,
    inputs: Images,
    target: Target,
    *,
    names: tuple[str, ...],
    residual: bool,
    discard_ratio: float,
    rows_sum_to_one: bool,
    size: tuple[int, ...] | None,
    interpolation: str,
) -> Float[Array, "batch _ _"]:
    def explained(deltas: dict[str, Array]) -> tuple[Float[Array, ""], dict[str, Array]]:
        changes = {name: functools.partial(jnp.add, delta) for name, delta in deltas.items()}
        logits, weights = run_with_layers(apply_fn, params, inputs, changes)
        return select_target(logits, target).sum(), weights

    described = {name: check_layer(apply_fn, params, inputs, name)[1] for name in names}
    zeros = {name: jnp.zeros(weights.shape, weights.dtype) for name, weights in described.items()}
    gradients, weights = jax.grad(explained, has_aux=True)(zeros)
    fused = [
        _discard(jax.nn.relu(_precise(gradients[name]) * _precise(weights[name])).mean(axis=1), discard_ratio)
        for name in names
    ]
    return _map(_multiplied(fused, residual, rows_sum_to_one), inputs, size, interpolation)


def _discard(fused: Fused, ratio: float) -> Fused:
    """The lowest weights of each example become 0; of equal ones the first."""
    flat = fused.reshape(len(fused), -1)
    lowest = int(ratio * flat.shape[1])
    if lowest == 0:
        return fused
    ranks = jnp.argsort(jnp.argsort(flat, axis=1), axis=1)
    return jnp.where(ranks < lowest, 0, flat).reshape(fused.shape)


def _multiplied(fused: list[Fused], residual: bool, rows_sum_to_one: bool) -> Fused:
    """R, from the first block to the last."""
    identity = jnp.broadcast_to(jnp.eye(fused[0].shape[-1], dtype=fused[0].dtype), fused[0].shape)
    relevance = identity
    for weights in fused:
        step = weights + identity if residual else weights
        if rows_sum_to_one:
            sums = step.sum(axis=-1, keepdims=True)
            step = jnp.where(sums == 0, 0, step / jnp.where(sums == 0, 1, sums))
        relevance = jnp.matmul(step, relevance, precision="highest")
    return relevance


def _map(
    relevance: Fused, inputs: Images, size: tuple[int, ...] | None, interpolation: str
) -> Float[Array, "batch _ _"]:
    grid = token_grid(relevance.shape[-1], *inputs.shape[1:3])
    assert grid is not None, "checked with the names"
    patches = relevance[:, 0, 1:] if grid.first else relevance.mean(axis=1)
    maps = patches.reshape(len(patches), grid.rows, grid.columns)
    return (maps if size is None else upsample_maps(maps, size, interpolation)).astype(inputs.dtype)


def _precise(x: Float[Array, "..."]) -> Float[Array, "..."]:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _checked(
    apply_fn: ApplyFn,
    params: Any,
    inputs: Images,
    layers: str | Sequence[str],
    head_fusion: str,
    discard_ratio: float,
    interpolation: str,
) -> tuple[str, ...]:
    """The whole names of the attention weights, in the order of computation, each value once."""
    check_images(inputs, interpolation)
    if head_fusion not in HEAD_FUSIONS:
        raise unknown_name("head_fusion", head_fusion, HEAD_FUSIONS)
    if not 0 <= discard_ratio < 1:
        raise UsageError(f"discard_ratio must be in [0, 1), got {discard_ratio}")
    known = list_layers(apply_fn, params, inputs)
    square = {name: shape for name, shape in known.items() if _is_attention(shape, inputs.shape)}
    if not isinstance(layers, str):
        chosen = {check_layer(apply_fn, params, inputs, layer)[0] for layer in layers}
        wrong = [f"{name} {list(known[name])}" for name in known if name in chosen and name not in square]
        if wrong:
            raise UsageError(
                f"attention weights must be [batch, heads, tokens, tokens] = [{len(inputs)}, heads, tokens, tokens], "
                f"tokens being patches of the image and at most one class token; got {', '.join(wrong)}"
            )
    else:
        chosen = set(fnmatch.filter(square, layers))
    names = tuple(name for name in square if name in chosen)
    if not names:
        others = f"; layers of that shape here: {', '.join(square)}" if square else ""
        raise UsageError(
            f"no layer that matches {layers!r} holds attention weights [batch, heads, tokens, tokens] of patches of "
            f"the image (and at most one class token){others}. Pass the softmax of each block through "
            'jax.ad_checkpoint.checkpoint_name(weights, "attention1"), and so on, to give it a name'
        )
    if len({known[name][-1] for name in names}) > 1:
        raise UsageError(
            "the blocks must attend over the same tokens, got "
            + ", ".join(f"{name} of {known[name][-1]}" for name in names)
        )
    return names


def _is_attention(shape: tuple[int, ...], image: tuple[int, ...]) -> bool:
    square = len(shape) == 4 and shape[0] == image[0] and shape[2] == shape[3]
    return square and token_grid(shape[3], *image[1:3]) is not None
