"""What a unit of a network sees of the image, and what it costs to compute: for lists of layers and for any function.

The theoretical field is every pixel that could change the unit; it is read off the function's jaxpr without running
it. The effective field is how much each pixel does change it, by gradients. `Layer` and the functions of lists of
layers, which are only described, come from `dl_core.convolution_arithmetic`.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from dl_core.convolution_arithmetic import (
    Field,
    Layer,
    input_sizes,
    output_size,
    parameter_count,
    stack_receptive_fields,
)
from dl_core.dependence import NOTHING, Value, Walk, image_value, independent
from dl_core.errors import UsageError, unknown_name

__all__ = [
    "Field",
    "Layer",
    "ReceptiveField",
    "effective_extent",
    "effective_receptive_field",
    "input_sizes",
    "multiply_adds",
    "output_size",
    "parameter_count",
    "receptive_field",
    "stack_receptive_fields",
]


class ReceptiveField(NamedTuple):
    """What the units of one output see, in pixels of the image, as (height, width).

    size: the largest field of a unit of a map [1, rows, columns, channels], where no edge cuts it: it may exceed the
      image. Of any other output: the part of the image that it sees altogether.
    stride, start: from a unit's field to its neighbour's, and the first row and column of the first unit's (negative
      inside the padding); (0, 0) where the output is no map.
    rows, columns: first and last row (column) of the image that can change each row (column) of the map, or the whole
      output; (0, -1) where none can.
    """

    size: tuple[int, int]
    stride: tuple[int, int]
    start: tuple[int, int]
    rows: Int[np.ndarray, "rows 2"]
    columns: Int[np.ndarray, "columns 2"]


def receptive_field(
    apply_fn: Callable[[Any, Float[Array, "1 height width channels"]], Any],
    params: Any,
    input_shape: tuple[int, int, int],
    *,
    output: str | None = None,
    unknown: str = "error",
) -> Any:
    """The theoretical receptive field of every output of a function of images; nothing is computed.

    All paths from the image count: residual additions, concatenations, attention. Weights are taken to be different
    from zero, constants in the function as they are.

    Args:
      apply_fn: (params, images) -> an array or a pytree of arrays, e.g. named feature maps
        `lambda variables, x: models.features(model, variables, x)`; as in inference: in training, batch normalisation
        makes every unit see everything.
      params: pytree of arrays, or of their shapes (`jax.eval_shape`).
      input_shape: (height, width, channels) of one image.
      output: one name, where apply_fn returns a dictionary.
      unknown: "error", or "whole": an operation that is not known here passes everything on to every element.

    Returns:
      A ReceptiveField in the place of each array.

    Raises:
      UsageError: unknown operation, or no output of that name.
    """
    closed, shapes = jax.make_jaxpr(apply_fn, return_shape=True)(params, _image(input_shape))
    inputs = _inputs(params, input_shape)
    exact = Walk(unknown=unknown).run(closed.jaxpr, closed.consts, inputs)
    ideal = Walk(unknown=unknown, theoretical=True).run(closed.jaxpr, closed.consts, inputs)
    fields = [field_of(*pair, input_shape) for pair in zip(exact, ideal, strict=True)]
    tree = jax.tree.unflatten(jax.tree.structure(shapes), fields)
    if output is None:
        return tree
    if not isinstance(tree, Mapping) or output not in tree:
        raise unknown_name("output", output, tree if isinstance(tree, Mapping) else [])
    return tree[output]


def multiply_adds(
    apply_fn: Callable[[Any, Float[Array, "1 height width channels"]], Any],
    params: Any,
    x: Any,
    *,
    unknown: str = "whole",
) -> int:
    """Multiplications, each with its addition, in convolutions and matrix products that depend on the input.

    One image of ResNet-50 takes 4.09e9. What is prepared from parameters alone does not count, nor does what a
    convolution written as a matrix product multiplies by zeros. The padding of a convolution counts, as usual; that of
    the matrix product, which the first layers of small networks are on the CPU, does not.

    Args:
      apply_fn: (params, images) -> any pytree.
      params: pytree of arrays, or of their shapes.
      x: images [batch, height, width, channels] or their shape (`jax.ShapeDtypeStruct`); the count is for all of them.
      unknown: as for `receptive_field`.

    Returns:
      The number; twice as many floating-point operations.

    Raises:
      UsageError: an unknown operation, with unknown="error".
    """
    closed = jax.make_jaxpr(apply_fn)(params, jax.ShapeDtypeStruct(x.shape, x.dtype))
    walk = Walk(unknown=unknown)
    walk.run(closed.jaxpr, closed.consts, _inputs(params, x.shape[1:], x.shape[0]))
    return walk.multiply_adds.total()


def field_of(exact: Value, ideal: Value, input_shape: tuple[int, ...]) -> ReceptiveField:
    """Summary of what is known of one output [...] in both readings of a `Walk`; see `receptive_field`."""
    seen = [_ends(exact, i, i + 1 if len(exact.shape) == 4 else None) for i in (0, 1)]
    full = [_ends(ideal, i, i + 1 if len(ideal.shape) == 4 else None) for i in (0, 1)]
    whole = [(ends[:, 1].max(), ends[ends[:, 1] >= 0, 0].min(initial=input_shape[i])) for i, ends in enumerate(seen)]
    if len(exact.shape) != 4:
        size = [max(int(last - first + 1), 0) for last, first in whole]
        return ReceptiveField((size[0], size[1]), (0, 0), (0, 0), *seen)
    size = [int((ends[:, 1] - ends[:, 0] + 1).max()) for ends in full]
    stride = [int(np.diff(ends[:, 0]).max()) if len(ends) > 1 else ideal.steps[i] for i, ends in enumerate(full)]
    start = [int(ends[0, 0]) for ends in full]
    return ReceptiveField((size[0], size[1]), (stride[0], stride[1]), (start[0], start[1]), *seen)


def effective_receptive_field(
    apply_fn: Callable[[Any, Float[Array, "batch height width channels"]], Any],
    params: Any,
    input_shape: tuple[int, int, int],
    *,
    key: Key[Array, ""],
    num_samples: int = 16,
    unit: tuple[int, int] | None = None,
    output: str | None = None,
) -> Float[Array, "height width"]:
    """How much each pixel changes one unit: the mean size of the gradient over random images, with sum 1.

    Luo, Li, Urtasun, Zemel (2016), "Understanding the effective receptive field in deep convolutional neural networks",
    https://arxiv.org/abs/1701.04128: all channels of the unit get gradient 1, all else 0.

    Args:
      apply_fn: (params, images) -> a map [batch, rows, columns, channels], a vector [batch, channels], or a dictionary
        of them; as in inference.
      params: pytree of arrays.
      input_shape: (height, width, channels) of one image.
      key: the images' pixels are drawn from the standard normal distribution.
      num_samples: images, >= 1; all are in memory at once.
      unit: row and column in the map; the central one by default.
      output: one name, where apply_fn returns a dictionary.

    Returns:
      Shares >= 0 with sum 1; zeros where the unit depends on nothing.

    Raises:
      UsageError: num_samples < 1.
    """
    if num_samples < 1:
        raise UsageError(f"num_samples must be at least 1, got {num_samples}")

    def total(images: Float[Array, "batch height width channels"]) -> Float[Array, ""]:
        result = apply_fn(params, images)
        result = result if output is None else result[output]
        if result.ndim == 4:
            row, column = (result.shape[1] // 2, result.shape[2] // 2) if unit is None else unit
            result = result[:, row, column]
        return result.sum()

    images = jax.random.normal(key, (num_samples, *input_shape))
    size = jnp.abs(jax.jit(jax.grad(total))(images)).sum(axis=(0, 3))
    return size / jnp.maximum(size.sum(), jnp.finfo(size.dtype).tiny)


def effective_extent(field: Float[Array | np.ndarray, "height width"], share: float = 0.9545) -> tuple[int, int]:
    """Height and width of the effective field: the fewest rows, and columns, in a row that hold a share of it.

    Of a Gaussian field, 0.9545 gives 4 σ.

    Args:
      field: shares >= 0, as from `effective_receptive_field`.
      share: in (0, 1].

    Returns:
      (rows, columns), in pixels.

    Raises:
      UsageError: share out of its range.
    """
    if not 0 < share <= 1:
        raise UsageError(f"share must lie in (0, 1], got {share}")
    field = np.asarray(field, float)
    height, width = (_shortest(field.sum(axis=axis), share) for axis in (1, 0))
    return height, width


def _shortest(weights: Float[np.ndarray, " n"], share: float) -> int:
    before = np.concatenate([[0.0], np.cumsum(weights)])
    target = share * before[-1] * (1 - 1e-9)  # the sum of all shares is rounded too
    return next(n for n in range(len(weights) + 1) if (before[n:] - before[: len(before) - n]).max() >= target)


def _ends(value: Value, image_axis: int, axis: int | None) -> Int[np.ndarray, "n 2"]:
    """First and last index along an axis of the image, for each index along an axis of the value or for all of it."""
    both = value.bounds[1 + 2 * image_axis :][:2]
    first, last = (np.moveaxis(bound, axis, -1) if axis else bound.reshape(-1, 1) for bound in both)
    n = value.shape[axis] if axis else 1
    first, last = (np.broadcast_to(b.reshape(-1, b.shape[-1]).min(axis=0), n) for b in (first, last))
    none = first >= NOTHING
    return np.stack([np.where(none, 0, first), np.where(none, -1, -last)], axis=1)


def _image(input_shape: tuple[int, ...], batch: int = 1) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((batch, *input_shape), jnp.float32)


def _inputs(params: Any, input_shape: tuple[int, ...], batch: int = 1) -> list[Value]:
    leaves = [independent(np.shape(leaf)) for leaf in jax.tree.leaves(params)]
    return [*leaves, image_value((batch, *input_shape))]
