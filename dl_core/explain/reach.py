"""Which part of a value inside a model its output depends on: the class token alone, say, after the last attention.

Followed back from the output through the program, as one range of indices along each axis. What is not known to keep
positions apart is taken to mix them, so that the ranges are never too small.
"""

from typing import Any

from dl_core.explain.program import Operation, Program

Region = tuple[tuple[int, int], ...]  # [start, stop) along each axis

# fmt: off
_ELEMENTWISE = frozenset({
    "abs", "acos", "acosh", "add", "add_any", "asin", "asinh", "atan", "atan2", "atanh", "cbrt", "clamp",
    "convert_element_type", "copy", "copy_p", "cos", "cosh", "div", "erf", "erf_inv", "erfc", "exp", "exp2", "expm1",
    "integer_pow", "is_finite", "lgamma", "log", "log1p", "logistic", "max", "min", "mul", "name", "neg", "pow",
    "reduce_precision", "rem", "round", "rsqrt", "select_n", "sign", "sin", "sinh", "sqrt", "square", "sub", "tan",
    "tanh",
})
_REDUCTIONS = frozenset({
    "argmax", "argmin", "reduce_and", "reduce_max", "reduce_min", "reduce_or", "reduce_prod", "reduce_sum",
})
# fmt: on


def reached_regions(program: Program) -> dict[int, Region]:
    """The part of every value that the output can depend on with a gradient.

    Args:
      program: of `read` with open_rules=True, so that functions with a derivative of their own are followed too.

    Returns:
      Number of the value -> its region. Values from which no way leads to the output are left out.
    """
    regions = {number: _whole(program.shapes[number].shape) for number in program.outputs}
    for operation in reversed(program.operations):
        if operation.name == "stop_gradient":
            continue
        for result in operation.results:
            if result not in regions:
                continue
            shapes = [program.shapes[number].shape for number in operation.operands]
            parts = _operand_regions(operation, regions[result], program.shapes[result].shape, result, shapes)
            for number, part in zip(operation.operands, parts, strict=True):
                if all(low < high for low, high in part):
                    regions[number] = _union(regions[number], part) if number in regions else part
    return regions


def _operand_regions(
    operation: Operation, region: Region, shape: tuple[int, ...], result: int, operands: list[tuple[int, ...]]
) -> list[Region]:
    """What of each operand a region of one result is computed from."""
    name, given = operation.name, operation.equation.params
    whole = [_whole(operand) for operand in operands]
    if name in _ELEMENTWISE:
        return [_elementwise(region, shape, operand) for operand in operands]
    if name == "slice":
        steps = given["strides"] or (1,) * len(shape)
        return [
            tuple(
                (start + low * step, start + (high - 1) * step + 1)
                for (low, high), start, step in zip(region, given["start_indices"], steps, strict=True)
            )
        ]
    if name == "split":
        offset = sum(map(int, given["sizes"][: operation.results.index(result)]))
        return [_shifted(region, given["axis"], offset)]
    if name == "concatenate":
        return _concatenated(region, given["dimension"], operands)
    if name == "transpose":
        return [tuple(region[given["permutation"].index(axis)] for axis in range(len(shape)))]
    if name == "broadcast_in_dim":
        axes = given["broadcast_dimensions"]
        part = tuple(
            region[axis] if size == shape[axis] else (0, size) for size, axis in zip(operands[0], axes, strict=True)
        )
        return [part, *whole[1:]]
    if name in ("reshape", "squeeze", "expand_dims"):
        return [_reshaped(region, shape, operands[0]), *whole[1:]]
    if name in _REDUCTIONS:
        kept = iter(region)
        return [tuple((0, size) if axis in given["axes"] else next(kept) for axis, size in enumerate(operands[0]))]
    if name == "dot_general":
        return _factors(region, given["dimension_numbers"], operands)
    return whole


def _elementwise(region: Region, shape: tuple[int, ...], operand: tuple[int, ...]) -> Region:
    """Axes of one position are spread over the result, as are scalars."""
    if len(operand) != len(shape):
        return _whole(operand)
    return tuple(part if size == full else (0, size) for part, size, full in zip(region, operand, shape, strict=True))


def _concatenated(region: Region, axis: int, operands: list[tuple[int, ...]]) -> list[Region]:
    parts, offset = [], 0
    for operand in operands:
        low, high = region[axis][0] - offset, region[axis][1] - offset
        parts.append((*region[:axis], (max(low, 0), min(high, operand[axis])), *region[axis + 1 :]))
        offset += operand[axis]
    return parts


def _reshaped(region: Region, shape: tuple[int, ...], operand: tuple[int, ...]) -> Region:
    """Axes before the first and after the last difference stay; axes of one position do not count as a difference."""
    sizes = [(size, part) for size, part in zip(shape, region, strict=True) if size != 1]
    wanted = [(axis, size) for axis, size in enumerate(operand) if size != 1]
    parts = [(0, size) for size in operand]
    for order in (1, -1):
        for (axis, size), (other, part) in zip(wanted[::order], sizes[::order], strict=False):
            if size != other:
                break
            parts[axis] = part
    return tuple(parts)


def _factors(region: Region, dimension_numbers: Any, operands: list[tuple[int, ...]]) -> list[Region]:
    """Result axes: batch, then the free axes of the left, then those of the right factor."""
    contracted, batch = dimension_numbers
    after_batch = iter(region[len(batch[0]) :])
    parts = []
    for operand, summed, shared in zip(operands, contracted, batch, strict=True):
        parts.append(
            tuple(
                region[list(shared).index(axis)]
                if axis in shared
                else (0, size)
                if axis in summed
                else next(after_batch)
                for axis, size in enumerate(operand)
            )
        )
    return parts


def _shifted(region: Region, axis: int, offset: int) -> Region:
    low, high = region[axis]
    return (*region[:axis], (low + offset, high + offset), *region[axis + 1 :])


def _whole(shape: tuple[int, ...]) -> Region:
    return tuple((0, size) for size in shape)


def _union(first: Region, second: Region) -> Region:
    return tuple(
        (min(low, other_low), max(high, other_high))
        for (low, high), (other_low, other_high) in zip(first, second, strict=True)
    )
