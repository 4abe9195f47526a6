"""How each primitive passes on what reaches its operands. A rule takes (params, operands, result shapes, theoretical).

theoretical: padding continues the image beyond its edges; otherwise nothing reaches what is padded.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from dl_core.dependence.bounds import (
    NOTHING,
    Bounds,
    Value,
    Window,
    compact,
    expand,
    hull,
    independent,
    reshape,
    union,
)

Params = dict[str, Any]
Shapes = Sequence[tuple[int, ...]]
Rule = Callable[[Params, Sequence[Value], Shapes, bool], list[Value]]

_KEEPS_ZEROS = {"add", "add_any", "convert_element_type", "copy", "copy_p", "name", "neg", "reduce_precision", "sub"}
_ELEMENTWISE = (
    *("abs", "acos", "acosh", "and", "asin", "asinh", "atan", "atan2", "atanh", "cbrt", "ceil", "clamp", "conj", "cos"),
    *("cosh", "digamma", "div", "eq", "erf", "erf_inv", "erfc", "exp", "exp2", "expm1", "floor", "ge", "gt", "imag"),
    *("integer_pow", "is_finite", "le", "lgamma", "log", "log1p", "logistic", "lt", "max", "min", "mul", "ne", "not"),
    *("nextafter", "optimization_barrier", "or", "pow", "real", "rem", "round", "rsqrt", "select_n", "sign", "sin"),
    *("sharding_constraint", "sinh", "sqrt", "square", "stop_gradient", "tan", "tanh", "xor"),
)
_REDUCTIONS = ["reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or", "argmax", "argmin"]
_POOLINGS = ["reduce_window", "reduce_window_sum", "reduce_window_max", "reduce_window_min"]
_MOST_AT_ONCE = 2**24  # elements of the largest array that a sparse product makes


def elementwise(name: str) -> Rule:
    """The rule of a function of corresponding elements; scalars go with every element."""

    def rule(params: Params, operands: Sequence[Value], shapes: Shapes, theoretical: bool) -> list[Value]:
        del params, theoretical
        lifted = [tuple(_lifted(bound, len(shapes[0])) for bound in operand.bounds) for operand in operands]
        nonzero, *reach = union(lifted)
        if name == "mul":  # a product with zero passes nothing on
            nonzero = lifted[0][0]
            for bounds in lifted[1:]:
                nonzero = np.maximum(nonzero, bounds[0])
            reach = [np.maximum(bound, nonzero) for bound in reach] if nonzero.any() else reach
        elif name not in _KEEPS_ZEROS:
            nonzero = np.zeros((1,) * len(shapes[0]), int)
        return [Value(shape, (nonzero, *reach)) for shape in shapes]

    return rule


def _lifted(bound: np.ndarray, ndim: int) -> np.ndarray:
    return bound.reshape((1,) * (ndim - bound.ndim) + bound.shape)


def _reduction(params: Params, operands: Sequence[Value], shapes: Shapes, theoretical: bool) -> list[Value]:
    del theoretical
    return [operands[0].mapped(lambda bound: bound.min(axis=tuple(params["axes"])), shapes[0])]


def _reshape(params: Params, operands: Sequence[Value], shapes: Shapes, theoretical: bool) -> list[Value]:
    del params, theoretical
    value = operands[0]
    return [value.mapped(lambda bound: reshape(bound, list(value.shape), list(shapes[0])), shapes[0])]


def _transpose(params: Params, operands: Sequence[Value], shapes: Shapes, theoretical: bool) -> list[Value]:
    del theoretical
    return [operands[0].mapped(lambda bound: bound.transpose(params["permutation"]), shapes[0])]


def _broadcast(params: Params, operands: Sequence[Value], shapes: Shapes, theoretical: bool) -> list[Value]:
    del theoretical

    def spread(bound: np.ndarray) -> np.ndarray:
        shape = [1] * len(shapes[0])
        for axis, size in zip(params["broadcast_dimensions"], bound.shape, strict=True):
            shape[axis] = size
        return bound.reshape(shape)

    return [operands[0].mapped(spread, shapes[0])]


def _slice(params: Params, operands: Sequence[Value], shapes: Shapes, theoretical: bool) -> list[Value]:
    del theoretical
    strides = params["strides"] or (1,) * len(shapes[0])
    parts = list(map(slice, params["start_indices"], params["limit_indices"], strides))

    def cut(bound: np.ndarray) -> np.ndarray:
        return bound[tuple(part if n > 1 else slice(None) for part, n in zip(parts, bound.shape, strict=True))]

    return [operands[0].mapped(cut, shapes[0])]


def _split(params: Params, operands: Sequence[Value], shapes: Shapes, theoretical: bool) -> list[Value]:
    del theoretical
    axis, ends = params["axis"], np.cumsum(params["sizes"])

    def part(end: int, size: int) -> Callable[[np.ndarray], np.ndarray]:
        return lambda bound: bound if bound.shape[axis] == 1 else bound.take(np.arange(end - size, end), axis)

    cuts = [part(end, size) for end, size in zip(ends, params["sizes"], strict=True)]
    return [operands[0].mapped(cut, shape) for cut, shape in zip(cuts, shapes, strict=True)]


def _concatenate(params: Params, operands: Sequence[Value], shapes: Shapes, theoretical: bool) -> list[Value]:
    del theoretical
    return [_joined(operands, int(params["dimension"]), shapes[0])]


def _stack(params: Params, operands: Sequence[Value], shapes: Shapes, theoretical: bool) -> list[Value]:
    del theoretical
    axis = int(params["axis"])
    shape = (*shapes[0][:axis], 1, *shapes[0][axis + 1 :])
    return [
        _joined([part.mapped(lambda bound: np.expand_dims(bound, axis), shape) for part in operands], axis, shapes[0])
    ]


def _joined(operands: Sequence[Value], axis: int, shape: tuple[int, ...]) -> Value:
    def join(*arrays: np.ndarray) -> np.ndarray:
        arrays = tuple(expand(array, axis, part.shape[axis]) for array, part in zip(arrays, operands, strict=True))
        others = np.broadcast_shapes(*[(*array.shape[:axis], 1, *array.shape[axis + 1 :]) for array in arrays])
        sized = [np.broadcast_to(a, (*others[:axis], a.shape[axis], *others[axis + 1 :])) for a in arrays]
        return compact(np.concatenate(sized, axis))

    return Value(shape, tuple(map(join, *[operand.bounds for operand in operands])))


def _pad(params: Params, operands: Sequence[Value], shapes: Shapes, theoretical: bool) -> list[Value]:
    value, filling = operands
    if filling.depends:
        return [hull(operands, shapes[0])]
    axes = {}
    for axis, (before, after, interior) in enumerate(params["padding_config"]):
        axes[axis] = Window(base_dilation=int(interior) + 1, before=int(before), after=int(after))
    padded = _windowed(value, axes, {1: 0, 2: 1} if len(value.shape) == 4 else {}, theoretical)
    if filling.known is None or filling.known != 0:
        padded = Value(padded.shape, (np.zeros_like(padded.bounds[0]), *padded.bounds[1:]), padded.steps)
    return [padded]


def _gather(name: str) -> Rule:
    """Indexing: exact where the indices are constants, otherwise all that reaches the array reaches the result."""

    def rule(params: Params, operands: Sequence[Value], shapes: Shapes, theoretical: bool) -> list[Value]:
        del theoretical
        indices = [operand.known for operand in operands[1:]]
        if any(index is None for index in indices):
            return [hull(operands, shapes[0])]
        primitive, value = getattr(lax, f"{name}_p"), operands[0]
        least = NOTHING // 2**20  # fits the integers that JAX has without 64 bits

        def pick(bound: np.ndarray) -> np.ndarray:
            full = np.broadcast_to(np.where(bound >= NOTHING, least, bound), value.shape).astype(np.int32)
            picked = np.asarray(primitive.bind(jnp.asarray(full), *map(jnp.asarray, indices), **params))
            return compact(np.where(picked == least, NOTHING, picked.astype(int)))

        return [value.mapped(pick, shapes[0])]

    return rule


def _windowed(value: Value, axes: dict[int, Window], image_axes: dict[int, int], theoretical: bool) -> Value:
    """Union over windows along some axes. image_axes: axis -> 0 if it runs along rows of the image, 1 if columns."""
    shape, bounds, steps = list(value.shape), list(value.bounds), list(value.steps)
    extrapolate = theoretical and value.depends
    for axis, window in axes.items():
        for i, bound in enumerate(bounds):
            own = i > 0 and image_axes.get(axis) == (i - 1) // 2
            step = value.steps[(i - 1) // 2] * (1 if i % 2 else -1) if own else 0
            bounds[i] = window.union(bound, axis, shape[axis], extrapolate, step)
        if axis in image_axes:
            along = image_axes[axis]
            steps[along] = max(steps[along] * window.stride // window.base_dilation, 1)
        shape[axis] = window.count(shape[axis])
    return Value(tuple(shape), tuple(map(compact, bounds)), tuple(steps))


def _pooling(params: Params, operands: Sequence[Value], shapes: Shapes, theoretical: bool) -> list[Value]:
    columns = zip(
        params["window_dimensions"],
        params["window_strides"],
        params["window_dilation"],
        params["base_dilation"],
        params["padding"],
        strict=True,
    )
    axes = {
        axis: Window(size, stride, dilation, base, *pads)
        for axis, (size, stride, dilation, base, pads) in enumerate(columns)
    }
    image_axes = {1: 0, 2: 1} if len(shapes[0]) == 4 else {}
    pooled = _windowed(operands[0], axes, image_axes, theoretical)
    return [Value(pooled.shape, (np.zeros((1,) * len(shapes[0]), int), *pooled.bounds[1:]), pooled.steps)] * len(shapes)


def _convolution(params: Params, operands: Sequence[Value], shapes: Shapes, theoretical: bool) -> list[Value]:
    value, kernel = operands
    numbers, groups = params["dimension_numbers"], params["feature_group_count"]
    if kernel.depends or params["batch_group_count"] > 1:
        return [hull(operands, shapes[0])]
    order = (numbers.lhs_spec[0], *numbers.lhs_spec[2:], numbers.lhs_spec[1])  # batch, space, channels

    def of_groups(bound: np.ndarray) -> np.ndarray:
        bound = bound.transpose(order)
        return bound if bound.shape[-1] == 1 else bound.reshape(*bound.shape[:-1], groups, -1).min(axis=-1)

    value = value.mapped(of_groups, [*[value.shape[axis] for axis in order[:-1]], groups])
    axes = {}
    for i, axis in enumerate(numbers.rhs_spec[2:]):
        pads, stride = params["padding"][i], params["window_strides"][i]
        axes[i + 1] = Window(kernel.shape[axis], stride, params["rhs_dilation"][i], params["lhs_dilation"][i], *pads)
    value = _windowed(value, axes, {1: 0, 2: 1} if len(axes) == 2 else {}, theoretical)
    channels = shapes[0][numbers.out_spec[1]]

    def in_order(bound: np.ndarray) -> np.ndarray:
        bound = bound if bound.shape[-1] == 1 else np.repeat(bound, channels // groups, axis=-1)
        return bound.transpose(np.argsort((numbers.out_spec[0], *numbers.out_spec[2:], numbers.out_spec[1])))

    result = value.mapped(in_order, shapes[0])
    return [Value(result.shape, (np.zeros((1,) * len(shapes[0]), int), *result.bounds[1:]), value.steps)]


def _matrices(params: Params, operands: Sequence[Value]) -> tuple[list[Bounds], list[int], list[list[int]]]:
    """Both operands of a product as [batch, free, summed], the lengths of these axes, and the result's own."""
    (left_summed, right_summed), (left_batch, right_batch) = params["dimension_numbers"]
    sides, lengths, axes = [], [], []
    for value, summed, batch in [(operands[0], left_summed, left_batch), (operands[1], right_summed, right_batch)]:
        free = [axis for axis in range(len(value.shape)) if axis not in summed and axis not in batch]
        parts = [[value.shape[axis] for axis in group] for group in (batch, free, summed)]
        order, sizes = (*batch, *free, *summed), [math.prod(part) for part in parts]
        sides.append(tuple(_grouped(bound.transpose(order), parts) for bound in value.bounds))
        lengths.append(sizes)
        axes.append(parts)
    sizes = [lengths[0][0], lengths[0][1], lengths[1][1], lengths[0][2]]
    return sides, sizes, [axes[0][0], axes[0][1], axes[1][1]]


def _grouped(bound: np.ndarray, parts: list[list[int]]) -> np.ndarray:
    """Each group of consecutive axes as one axis, which has one element where the bound is constant on the group."""
    wide, sizes, position = [], [], 0
    for part in parts:
        varies = any(n > 1 for n in bound.shape[position : position + len(part)])
        wide += part if varies else [1] * len(part)
        sizes.append(math.prod(part) if varies else 1)
        position += len(part)
    return np.broadcast_to(bound, wide).reshape(sizes)


def _product(params: Params, operands: Sequence[Value], shapes: Shapes, theoretical: bool) -> list[Value]:
    del theoretical
    (left, right), _, axes = _matrices(params, operands)
    zeros = np.maximum(left[0][:, :, None], right[0][:, None])  # [batch, left, right, summed]
    if zeros.size == 1:
        results = [np.minimum(a.min(-1)[:, :, None], b.min(-1)[:, None]) for a, b in zip(left, right, strict=True)]
    else:
        results = [zeros.min(axis=-1)]
        for a, b in zip(left[1:], right[1:], strict=True):
            results.append(_sparse(a[:, :, None], b[:, None], zeros))

    def unfold(bound: np.ndarray) -> np.ndarray:
        shape = []
        for n, part in zip(bound.shape, axes, strict=True):
            shape += part if n > 1 else [1] * len(part)
        return bound.reshape(shape)

    return [Value(shapes[0], tuple(unfold(compact(bound)) for bound in results))]


def _sparse(left: np.ndarray, right: np.ndarray, zeros: np.ndarray) -> np.ndarray:
    """The union over the summed index of what both factors depend on, where neither of them is zero."""
    shape = np.broadcast_shapes(left.shape, right.shape, zeros.shape)
    columns = max(1, _MOST_AT_ONCE * shape[2] // max(math.prod(shape), 1))  # the result's columns, some at a time
    parts = []
    for start in range(0, shape[2], columns):
        some = [a if a.shape[2] == 1 else a[:, :, start : start + columns] for a in (left, right, zeros)]
        parts.append(np.where(some[2] < NOTHING, np.minimum(some[0], some[1]), NOTHING).min(axis=-1))
    return np.concatenate(parts, axis=2)


def multiply_adds(name: str, params: Params, operands: Sequence[Value], shape: tuple[int, ...]) -> int:
    """Multiplications in a convolution or product [...] that the image reaches, but for those with certain zeros."""
    if not any(operand.depends for operand in operands):
        return 0
    if name == "conv_general_dilated":
        kernel = operands[1].shape
        return math.prod(shape) * math.prod(kernel) // kernel[params["dimension_numbers"].rhs_spec[0]]
    if name == "dot_general":
        (left, right), sizes, _ = _matrices(params, operands)
        zeros = np.maximum(left[0][:, :, None], right[0][:, None])
        return int((zeros < NOTHING).sum()) * math.prod(sizes) // zeros.size
    return 0


def _no_operands(params: Params, operands: Sequence[Value], shapes: Shapes, theoretical: bool) -> list[Value]:
    del params, operands, theoretical
    return [independent(shape) for shape in shapes]


RULES: dict[str, Rule] = {
    **{name: elementwise(name) for name in (*_ELEMENTWISE, *_KEEPS_ZEROS)},
    **dict.fromkeys(_REDUCTIONS, _reduction),
    **dict.fromkeys(_POOLINGS, _pooling),
    **{name: _gather(name) for name in ("gather", "dynamic_slice")},
    **dict.fromkeys(("reshape", "squeeze", "expand_dims"), _reshape),
    "broadcast_in_dim": _broadcast,
    "concatenate": _concatenate,
    "conv_general_dilated": _convolution,
    "dot_general": _product,
    "iota": _no_operands,
    "pad": _pad,
    "rev": lambda params, operands, shapes, _: [
        operands[0].mapped(lambda bound: np.flip(bound, params["dimensions"]), shapes[0])
    ],
    "slice": _slice,
    "split": _split,
    "stack": _stack,
    "transpose": _transpose,
}
STRIDED = {"conv_general_dilated", "pad", *_POOLINGS}  # their results have steps of their own
