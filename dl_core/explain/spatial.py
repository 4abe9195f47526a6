"""Layers as maps of the image: tokens on their grid of patches, maps brought to the size of the image, the best layer.

A map is [batch, rows, columns, channels]. The tokens of a transformer, [batch, tokens, width], are one too where they
are patches in rows from the top left, in the proportions of the image (n² of a square image), with or without one class
token in front.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dl_core.errors import UsageError, unknown_name
from dl_core.explain.layers import check_layer, list_layers, named_values
from dl_core.explain.program import read
from dl_core.explain.reach import reached_regions
from dl_core.explain.target import ApplyFn, once_for_shapes

INTERPOLATIONS = ("bilinear", "nearest")


class Grid(NamedTuple):
    """Where the patches of a sequence of tokens lie.

    first: tokens before the patches, 0 or 1.
    rows, columns: of patches.
    """

    first: int
    rows: int
    columns: int


def token_grid(tokens: int, height: int, width: int) -> Grid | None:
    """The grid of patches that a number of tokens makes of an image, or None where there is none.

    Args:
      tokens: of a sequence, >= 1.
      height, width: of the image in pixels; the grid has its proportions.

    Returns:
      Grid of at least two patches.
    """
    for first in (0, 1):
        rows = math.isqrt((tokens - first) * height // width)
        if rows and (tokens - first) % rows == 0:
            columns = (tokens - first) // rows
            if rows * columns > 1 and rows * width == columns * height:
                return Grid(first, rows, columns)
    return None


def as_map(
    activation: Float[Array, "batch rows columns channels"] | Float[Array, "batch tokens channels"],
    height: int,
    width: int,
) -> Float[Array, "batch _ _ channels"]:
    """A layer as a map, in at least float32; a class token is left out.

    Args:
      activation: of a layer that `check_spatial_layer` has accepted.
      height, width: of the image.

    Returns:
      [batch, rows, columns, channels].
    """
    activation = activation.astype(jnp.promote_types(activation.dtype, jnp.float32))
    if activation.ndim == 4:
        return activation
    grid = token_grid(activation.shape[1], height, width)
    assert grid is not None, "accepted by check_spatial_layer"
    return activation[:, grid.first :].reshape(len(activation), grid.rows, grid.columns, -1)


def upsample_maps(
    maps: Float[Array, "batch rows columns"], size: tuple[int, ...], interpolation: str
) -> Float[Array, "batch height width"]:
    """Maps at the size of the image; the centres of pixels are at ½, ³⁄₂, … (align_corners=False in PyTorch).

    Args:
      maps: one for each example.
      size: height and width of the image.
      interpolation: "bilinear" or "nearest"; the values at the border go on outwards.

    Returns:
      [batch, height, width].
    """
    return jax.image.resize(maps, (len(maps), *size), interpolation, antialias=False)


def check_images(inputs: Float[Array, "batch ..."], interpolation: str) -> None:
    """Refuses inputs that are no images and an unknown interpolation.

    Args:
      inputs: floats [batch, height, width, channels].
      interpolation: see `upsample_maps`.

    Raises:
      UsageError: either.
    """
    if interpolation not in INTERPOLATIONS:
        raise unknown_name("interpolation", interpolation, INTERPOLATIONS)
    floating = jnp.issubdtype(getattr(inputs, "dtype", bool), jnp.floating)
    if not floating or jnp.ndim(inputs) != 4:
        raise UsageError(
            "inputs must be images, floats [batch, height, width, channels], as the map is one of their rows and "
            f"columns; got {getattr(inputs, 'dtype', type(inputs).__name__)} of shape {list(jnp.shape(inputs))}"
        )


def default_cam_layer(apply_fn: ApplyFn, params: Any, inputs: Float[Array, "batch height width channels"]) -> str:
    """The layer that a class activation map is made of where none is named; nothing is computed.

    The last layer in the order of computation that is a map in the proportions of the image, of more than one position,
    all of whose positions the output depends on. In a convolutional network that is the map before the global pooling.
    In a vision transformer that reads the class token alone, no patch matters after the last attention: it is what
    enters that, the normalised tokens of the last block ("encoder_layer_11/ln_1"). Among tokens, those of another width
    than the last (queries, keys and values side by side, the hidden units of an MLP) are passed over.

    Args:
      apply_fn: (params, inputs) -> logits, as in inference.
      params: pytree of everything that apply_fn needs.
      inputs: the images.

    Returns:
      Its name, see `list_layers`.

    Raises:
      UsageError: there is none.
    """
    check_images(inputs, "bilinear")
    found = _default_layer(apply_fn, params, inputs)
    if found is None:
        raise UsageError(
            "no layer of apply_fn is a map of the image: [batch, height, width, channels] of more than one position, "
            f"or tokens on a grid of patches. Its layers: {_listed(apply_fn, params, inputs)}; name a map inside of it "
            'by jax.ad_checkpoint.checkpoint_name(x, "my_map") and give layer="my_map"'
        )
    return found


def check_spatial_layer(
    apply_fn: ApplyFn,
    params: Any,
    inputs: Float[Array, "batch height width channels"],
    layer: str | None,
    *,
    differentiable: bool,
) -> str:
    """Refuses a layer that no map can be made of, before anything is compiled.

    Args:
      apply_fn: (params, inputs) -> logits.
      params: pytree of everything that apply_fn needs.
      inputs: the images.
      layer: its name, or None for `default_cam_layer`.
      differentiable: the gradient with respect to the map is needed.

    Returns:
      The whole name of the layer.

    Raises:
      UsageError: no such layer; one without rows and columns; one whose positions the output does not depend on.
    """
    if layer is None:
        return default_cam_layer(apply_fn, params, inputs)
    name, described = check_layer(apply_fn, params, inputs, layer)
    shape, (height, width) = described.shape, inputs.shape[1:3]
    trouble = ""
    if not jnp.issubdtype(described.dtype, jnp.floating) or shape[:1] != inputs.shape[:1]:
        trouble = f"holds no floating numbers for each of the {len(inputs)} examples ({described.dtype})"
    elif len(shape) == 3 and token_grid(shape[1], height, width) is None:
        trouble = (
            f"has {shape[1]} tokens, which are no grid of patches of a {height}×{width} image, with or without one "
            "class token in front; if they are patches all the same, lay them out as a map [batch, rows, columns, "
            "channels] under a name of its own (jax.ad_checkpoint.checkpoint_name)"
        )
    elif _is_attention(shape, height, width):
        trouble = "looks like attention weights [batch, heads, queries, keys]; see attention_rollout"
    elif len(shape) not in (3, 4) or math.prod(shape[1:3]) < 2:
        trouble = "has no rows and columns of more than one position"
    elif differentiable and name not in _reached_maps(apply_fn, params, inputs):
        trouble = "has no way to the output from its patches: what comes after it reads other tokens, or nothing of it"
    if trouble:
        default = _default_layer(apply_fn, params, inputs)
        hint = f"; {default!r} has, and is taken for layer=None" if default else ""
        raise UsageError(f"the layer {name!r} of shape {list(shape)} {trouble}{hint}")
    return name


@once_for_shapes
def _default_layer(apply_fn: ApplyFn, params: Any, inputs: Any) -> str | None:
    program = read(apply_fn, params, inputs, open_rules=True)
    layers = list_layers(apply_fn, params, inputs)
    regions, numbers, (height, width) = reached_regions(program), named_values(program), inputs.shape[1:3]
    tokens = [shape for shape in layers.values() if len(shape) == 3 and token_grid(shape[1], height, width)]
    found = None
    for name, shape in layers.items():
        proportionate = (
            shape[2:] == tokens[-1][2:]
            if shape in tokens
            else len(shape) == 4 and math.prod(shape[1:3]) > 1 and _proportionate(shape, height, width)
        )
        region = regions.get(numbers.get(name, -1), ())
        wholly = region[1 : len(shape) - 1] == tuple((0, size) for size in shape[1 : len(shape) - 1])
        floating = name in numbers and jnp.issubdtype(program.shapes[numbers[name]].dtype, jnp.floating)
        if proportionate and wholly and floating and shape[0] == len(inputs):
            found = name
    return found


@once_for_shapes
def _reached_maps(apply_fn: ApplyFn, params: Any, inputs: Any) -> frozenset[str]:
    """Names of layers of which the output depends on more than the first token."""
    program = read(apply_fn, params, inputs, open_rules=True)
    regions, reached = reached_regions(program), set()
    for name, number in named_values(program).items():
        shape = program.shapes[number].shape
        grid = token_grid(shape[1], *inputs.shape[1:3]) if len(shape) == 3 else None
        if number in regions and (grid is None or regions[number][1][1] > grid.first):
            reached.add(name)
    return frozenset(reached)


def _proportionate(shape: tuple[int, ...], height: int, width: int) -> bool:
    """Whether rows and columns have the proportions of the image, to one of them."""
    return abs(shape[1] * width - shape[2] * height) <= max(height, width)


def _is_attention(shape: tuple[int, ...], height: int, width: int) -> bool:
    return len(shape) == 4 and shape[2] == shape[3] and not _proportionate(shape, height, width)


def _listed(apply_fn: ApplyFn, params: Any, inputs: Any) -> str:
    layers = [f"{name} {list(shape)}" for name, shape in list_layers(apply_fn, params, inputs).items()]
    return ", ".join(layers[:8]) + (", …" if len(layers) > 8 else "") if layers else "none has a name"
