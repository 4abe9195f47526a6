"""What a unit answers to among real images: the patches of a data set that excite it the most.

Zeiler, Fergus (2014), "Visualizing and Understanding Convolutional Networks", https://arxiv.org/abs/1311.2901, figure 2
(the nine strongest patches of each feature map); the patch of a unit is its receptive field.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int

from dl_core.errors import UsageError
from dl_core.explain.activation_maximization import activation_of
from dl_core.explain.pieces import Progress, variants_at_once
from dl_core.explain.target import ApplyFn
from dl_core.receptive_field import ReceptiveField, receptive_field


class TopPatches(NamedTuple):
    """The strongest activations of each channel, in falling order; of equal ones, the earlier in the data set is first.

    patches: what the unit sees there; outside of the image it holds `padding_value`.
    values: the activations; -inf where there are fewer positions than patches asked for (its patch is padding).
    images: index in the data set; -1 where there is none.
    positions: row and column in the layer's map; (0, 0) in a layer without positions, (token, 0) of tokens.
    corners: row and column of the patch's first pixel in the image, negative in the padding.
    """

    patches: Float[Array | np.ndarray, "units k patch_height patch_width colors"]
    values: Float[Array, "units k"]
    images: Int[Array, "units k"]
    positions: Int[Array, "units k 2"]
    corners: Int[Array, "units k 2"]


class _Best(NamedTuple):
    """The running best: activations, and where they were found (image, row, column)."""

    values: Float[Array, "units k"]
    places: Int[Array, "units k 3"]


def top_patches(
    apply_fn: ApplyFn,
    params: Any,
    images: Float[Array | np.ndarray, "n height width colors"],
    layer: str,
    *,
    channels: Int[Array | np.ndarray, " units"] | list[int] | tuple[int, ...] | int | None = None,
    k: int = 9,
    one_per_image: bool = True,
    patch_size: tuple[int, int] | None = None,
    padding_value: float = 0.0,
    unknown: str = "error",
    internal_batch_size: int | None = None,
    progress: Progress | None = None,
) -> TopPatches:
    """The k patches of a data set that excite each channel of a layer the most.

    The images pass through in blocks, of which a running best is kept: memory does not grow with their number. A NumPy
    array (or memory map) stays on the host, and blocks of it go to the device.

    Args:
      apply_fn: (params, images) -> logits, as in inference.
      params: pytree of everything that apply_fn needs; never changed.
      images: the data set.
      layer: its name, see `list_layers`; [n, rows, columns, channels], or [n, channels] or [n, tokens, channels], of
        which every unit is taken to see what the layer sees altogether.
      channels: which; all by default.
      k: patches of each, >= 1.
      one_per_image: only the strongest position of an image counts, so that the patches come from k images.
      patch_size: (height, width) to be cut around the middle of the receptive field, in place of all of it: the field
        of a late layer exceeds the image, and units weigh its middle most (`effective_receptive_field`).
      padding_value: what lies outside of the images.
      unknown: for operations that `receptive_field` does not know: "error", or "whole" (they see everything).
      internal_batch_size: images in a block; None bounds memory by itself.
      progress: called with (blocks done, blocks in all); not inside `jit`.

    Returns:
      TopPatches; patches are NumPy where the images are.

    Raises:
      UsageError: no such layer or channel, a layer without channels, no images, k or a size below 1.
    """
    if jnp.ndim(images) != 4 or not len(images) or not jnp.issubdtype(images.dtype, jnp.floating):
        raise UsageError(
            f"images must be floating numbers [n, height, width, channels] with n >= 1, got {images.dtype} of shape "
            f"{list(jnp.shape(images))}"
        )
    if k < 1:
        raise UsageError(f"k must be at least 1, got {k}")
    if patch_size is not None and (len(patch_size) != 2 or min(patch_size) < 1):
        raise UsageError(f"patch_size must be (height, width), each at least 1; got {patch_size}")
    layer_of = activation_of(apply_fn, layer)
    block = variants_at_once(internal_batch_size, jnp.asarray(images[:1]), len(images))
    found = jax.eval_shape(layer_of, params, jax.ShapeDtypeStruct((block, *images.shape[1:]), images.dtype))
    if not 2 <= len(found.shape) <= 4 or found.shape[0] != block:
        raise UsageError(
            f"layer {layer!r} has shape {list(found.shape)}; its units need [n, channels], [n, tokens, channels] or "
            "[n, rows, columns, channels]"
        )
    chosen = _chosen(channels, found.shape[-1], layer)
    field = receptive_field(layer_of, params, _size(images), unknown=unknown)

    best = _Best(jnp.full((len(chosen), k), -jnp.inf), jnp.full((len(chosen), k, 3), -1, jnp.int32))
    starts = range(0, len(images), block)
    for i, start in enumerate(starts):
        part = images[np.minimum(np.arange(start, start + block), len(images) - 1)]  # of one size, compiled once
        last = len(images) - start
        best = _merge(best, layer_of, params, part, chosen, np.int32(start), np.int32(last), one_per_image)
        if progress is not None:
            progress(i + 1, len(starts))
    places = jnp.maximum(best.places[..., 1:], 0)
    size, corners = _corners(field, places, patch_size)
    numbers = best.places[..., 0]
    if isinstance(images, np.ndarray):
        patches = _cut(np, images, np.asarray(numbers), np.asarray(corners), padding_value, size)
    else:
        patches = _cut_on_device(images, numbers, corners, padding_value, size=size)
    return TopPatches(patches, best.values, numbers, places, corners)


def _size(images: Any) -> tuple[int, int, int]:
    height, width, colors = images.shape[1:]
    return height, width, colors


def _chosen(channels: Any, there: int, layer: str) -> Int[np.ndarray, " units"]:
    chosen = np.arange(there) if channels is None else np.atleast_1d(np.asarray(channels))
    if (
        chosen.ndim != 1
        or chosen.dtype.kind not in "iu"
        or not chosen.size
        or not ((chosen >= 0) & (chosen < there)).all()
    ):
        raise UsageError(f"channels must be whole numbers in [0, {there}), those of layer {layer!r}; got {channels}")
    return chosen.astype(np.int32)


@functools.partial(jax.jit, static_argnums=7)
def _merge(
    best: _Best,
    layer_of: Partial,
    params: Any,
    images: Float[Array, "block height width colors"],
    chosen: Int[Array | np.ndarray, " units"],
    first: Any,
    valid: Any,
    one_per_image: bool,
) -> _Best:
    """The running best after one block, of which the first `valid` images count."""
    activation = layer_of(params, images)[..., chosen].astype(best.values.dtype)
    block, columns = len(images), activation.shape[2] if activation.ndim == 4 else 1
    values = jnp.moveaxis(activation.reshape(block, -1, len(chosen)), 2, 0)  # [units, block, positions]
    values = jnp.where((jnp.arange(block) < valid)[None, :, None], values, -jnp.inf)
    positions = jnp.broadcast_to(jnp.arange(values.shape[2])[None, None], values.shape)
    if one_per_image:
        positions = values.argmax(axis=2)[..., None]
        values = values.max(axis=2, keepdims=True)
    amount = min(best.values.shape[1], values.shape[1] * values.shape[2])
    strongest, at = jax.lax.top_k(values.reshape(len(chosen), -1), amount)
    where = jnp.take_along_axis(positions.reshape(len(chosen), -1), at, axis=1)
    places = jnp.stack([first + at // values.shape[2], where // columns, where % columns], axis=2).astype(jnp.int32)
    places = jnp.where(jnp.isneginf(strongest)[..., None], -1, places)
    together, order = jax.lax.top_k(jnp.concatenate([best.values, strongest], axis=1), best.values.shape[1])
    places = jnp.take_along_axis(jnp.concatenate([best.places, places], axis=1), order[..., None], axis=1)
    return _Best(together, places)


def _corners(
    field: ReceptiveField, places: Int[Array, "units k 2"], patch_size: tuple[int, int] | None
) -> tuple[tuple[int, int], Int[Array, "units k 2"]]:
    """Size of the patches, and where in the image each begins."""
    size = (max(field.size[0], 1), max(field.size[1], 1)) if patch_size is None else patch_size
    if field.stride == (0, 0):  # no map: what it sees altogether
        start = np.array([max(int(ends[:, 0].min()), 0) for ends in (field.rows, field.columns)])
    else:
        start = np.array(field.start)
    start = start + (np.array(field.size) - np.array(size)) // 2
    return size, jnp.asarray(start, jnp.int32)[None, None] + places * jnp.asarray(field.stride, jnp.int32)[None, None]


def _cut(
    library: Any,
    images: Any,
    numbers: Int[Array | np.ndarray, "units k"],
    corners: Int[Array | np.ndarray, "units k 2"],
    padding_value: Any,
    size: tuple[int, int],
) -> Any:
    """The patches; by indices, so that no whole images are copied."""
    rows = corners[..., :1] + library.arange(size[0])[None, None]
    columns = corners[..., 1:] + library.arange(size[1])[None, None]
    height, width = images.shape[1:3]
    inside = ((rows >= 0) & (rows < height))[..., :, None] & ((columns >= 0) & (columns < width))[..., None, :]
    inside = inside & (numbers >= 0)[..., None, None]
    patches = images[
        library.maximum(numbers, 0)[..., None, None],
        library.clip(rows, 0, height - 1)[..., :, None],
        library.clip(columns, 0, width - 1)[..., None, :],
    ]
    return library.where(inside[..., None], patches, library.asarray(padding_value, patches.dtype))


_cut_on_device = jax.jit(functools.partial(_cut, jnp), static_argnames="size")
