"""How relevance runs through a model: its operations grouped into steps, each with the way it hands relevance back.

A program (`dl_core.explain.program`) is a list of primitives; what explanations speak of are layers: a convolution with
the BatchNorm after it, an activation, a skip, an attention. `relevance_steps` finds these by structure, from the output
back to the inputs, whatever library or hand wrote the model:

* a linear operation with weights (`conv_general_dilated`, `dot_general`) with the affine operations after it (biases,
  BatchNorm at inference) folded in, and with what moves or scales its input (padding, patches, flattening, the
  normalisation of the inputs) before it;
* an elementwise function of one value, however many primitives it takes (GELU, SiLU, `where(x > 0, x, 0.1 x)`): the
  operations between a value and its nearest elementwise ancestor that all paths go through;
* sums of two values, pooling, concatenation, moves, the largest of several;
* products of two values, of which one is a gate: a bounded function (softmax, sigmoid) or a normaliser (1/σ).
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import jax
import numpy as np

from dl_core.errors import UsageError
from dl_core.explain.program import Operation
from dl_core.explain.structure import BIJECTIVE, ELEMENTWISE, LARGEST, MOVES, POOLING, Structure

_BILINEAR = frozenset(["conv_general_dilated", "dot_general"])
_GATES = {"logistic": 2, "rsqrt": 2, "exp": 2, "exp2": 2, "tanh": 1, "erf": 1, "erfc": 1, "clamp": 1, "min": 1}


class Linear(NamedTuple):
    """A linear operation with weights and what is folded into it, in the order of computation.

    before: moves and affine operations between the step's input and the operation.
    core: the operation.
    position: of its operand that depends on the inputs; the other is the weight.
    after: affine operations and bijective moves between the operation and the step's output.
    weight_axes: axis of the operation's result -> axis of the weight, for the axes that both have.
    source: the operations that lay out the weight, from the parameter that holds it.
    parameter: that value.
    convolution: a convolution, even where it is computed as a product of matrices.
    """

    before: tuple[Operation, ...]
    core: Operation
    position: int
    after: tuple[Operation, ...]
    weight_axes: dict[int, int]
    source: tuple[Operation, ...]
    parameter: int
    convolution: bool


class Step(NamedTuple):
    """One hop of relevance, from the outputs of an operation or a group of them to its inputs.

    kind: "linear" (by a rule); "pass" (unchanged: elementwise functions of one value, scales); "vjp" (as the gradient:
      moves, and the largest of several, where the winner takes all); "share" (in proportion to the contributions:
      sums, pooling, shifts that follow no linear operation, products with a gate); "unknown".
    inputs, outputs: values.
    operations: from the inputs to the outputs, but for "pass" and "linear".
    scope: where in the model.
    factor: of what each input gets: 1/2 where two factors share a product equally.
    linear: of kind "linear".
    """

    kind: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    operations: tuple[Operation, ...]
    scope: str
    factor: float = 1.0
    linear: Linear | None = None


def relevance_steps(structure: Structure, *, unknown: str = "error") -> list[Step]:
    """The steps that relevance takes, from the output to the inputs.

    Args:
      structure: of a program that was read with `open_rules=True`.
      unknown: "error", or anything else to make steps of kind "unknown" of primitives that are not known.

    Returns:
      In the order of the backward pass: a step comes before those that compute its inputs.

    Raises:
      UsageError: a primitive between the inputs and the output that no step covers, with its scope.
    """
    steps: dict[int, Step] = {}
    wanted = [number for number in structure.program.outputs if number in structure.reached]
    while wanted:
        number = wanted.pop()
        if number in steps or number not in structure.producer:
            continue
        step = _step(structure, number)
        place = f"{structure.producer[number].name!r}{f' in {step.scope}' if step.scope else ''}"
        if any(np.issubdtype(structure.program.shapes[n].dtype, np.complexfloating) for n in step.inputs):
            raise UsageError(f"relevance has no meaning for complex numbers, as {place} takes")
        if step.kind == "unknown" and unknown == "error":
            raise UsageError(
                f"lrp has no rule for the primitive {place}; write that part with known operations, or pass "
                'unknown="gradient_x_input"'
            )
        steps.update(dict.fromkeys(step.outputs, step))
        wanted += step.inputs
    distinct = {id(step): step for step in steps.values()}
    return sorted(distinct.values(), key=lambda step: max(step.outputs), reverse=True)


def _step(structure: Structure, value: int) -> Step:
    operation = structure.producer[value]
    carriers = structure.carriers(operation)
    name = operation.name
    make = lambda kind, inputs=carriers, factor=1.0: Step(
        kind, tuple(inputs), operation.results, (operation,), operation.scope, factor
    )
    if structure.is_affine(operation):
        folded = _folded(structure, value)
        return folded if folded is not None else _affine(structure, value)
    if name in MOVES or name in LARGEST:
        return make("vjp")
    if name in POOLING:
        return make("share")
    if name in _BILINEAR:
        if sum(n in structure.reached for n in operation.operands) == 1:
            linear = _linear(structure, operation, ())
            return make("share") if linear is None else linear
        return _product(structure, operation, make)
    if name == "select_n" and operation.operands[0] not in structure.reached:
        return make("vjp")  # a mask that is the same for all inputs
    ancestor = structure.elementwise[value]
    if ancestor in structure.carrying:
        return make("pass", (ancestor,))
    if name in ("add", "add_any", "sub"):
        return make("share")
    if name in ("max", "min", "select_n"):
        return make("vjp")
    if name == "mul":
        return _product(structure, operation, make)
    if name == "div" and operation.operands[0] in structure.carrying:
        return make("pass", operation.operands[:1])
    if name in ELEMENTWISE and len(carriers) == 1 and name not in ("pow", "atan2", "rem", "nextafter"):
        return make("pass")  # its operand is broadcast
    return make("unknown")


def _affine(structure: Structure, value: int) -> Step:
    """A chain of affine operations that is part of no linear operation, e.g. BatchNorm before ReLU."""
    top = value
    while top in structure.producer and structure.is_affine(structure.producer[top]):
        top = structure.dependent(structure.producer[top])[0]
    chain = structure.between(top, value)
    shifts = any(operation.name in ("add", "add_any", "sub") for operation in chain)
    return Step("share" if shifts else "pass", (top,), (value,), chain, chain[-1].scope)


def _product(structure: Structure, operation: Operation, make: Callable[..., Step]) -> Step:
    """Of two dependent values: one gates the other, or both share equally."""
    one, other = operation.operands[0], operation.operands[1]
    if not {one, other} <= structure.carrying:
        return make("share")  # with a mask or a choice, say
    if one == other:
        return make("share", factor=1 / 2)
    ranks = [_gate(structure, number) for number in (one, other)]
    if ranks[0] == ranks[1] > 0:  # the one that holds for many values of the other
        sizes = [_own_size(structure, number) for number in (one, other)]
        ranks = [sizes[1], sizes[0]]
    if ranks[0] == ranks[1]:
        return make("share", factor=1 / 2)
    gated = other if ranks[0] > ranks[1] else one
    return make("pass" if operation.name == "mul" else "share", (gated,))


def _gate(structure: Structure, value: int) -> int:
    """How surely a value is a gate: 2 for sigmoids, softmax weights and 1/σ, 1 for other bounded functions, 0 else."""
    while value in structure.producer and value in structure.reached:
        operation = structure.producer[value]
        dependent = structure.dependent(operation)
        if operation.name in _GATES:
            return _GATES[operation.name]
        if operation.name == "integer_pow":
            return 2 if operation.equation.params["y"] < 0 else 0
        if operation.name == "div" and operation.operands[0] not in structure.reached:
            return 2  # a reciprocal
        if operation.name == "div" and len(dependent) == 2:
            return max(_gate(structure, operation.operands[0]), 2 * _is_root(structure, operation.operands[1]))
        if operation.name == "mul" and len(dependent) == 2:
            return min(_gate(structure, number) for number in dependent)
        if len(dependent) != 1 or operation.name not in MOVES | {"add", "sub", "mul", "div", "neg"}:
            return 0
        value = dependent[0]
    return 0


def _is_root(structure: Structure, value: int) -> bool:
    """A square root, as of a variance, is divided by."""
    while value in structure.producer:
        operation = structure.producer[value]
        dependent = structure.dependent(operation)
        if operation.name == "sqrt":
            return True
        if len(dependent) != 1 or operation.name not in MOVES | {"add", "sub", "mul", "div", "neg"}:
            return False
        value = dependent[0]
    return False


def _own_size(structure: Structure, value: int) -> int:
    """How many numbers a value holds before it was broadcast."""
    while value in structure.producer and structure.producer[value].name in BIJECTIVE | {"broadcast_in_dim"}:
        value = structure.producer[value].operands[0]
    return int(np.prod(structure.program.shapes[value].shape))


def _folded(structure: Structure, value: int) -> Step | None:
    """The linear operation that an affine operation follows, with everything in between; None where it follows none."""
    after: list[Operation] = []
    while value in structure.producer:
        operation = structure.producer[value]
        dependent = structure.dependent(operation)
        if len(dependent) != 1:
            return None
        if operation.name in _BILINEAR:
            return _linear(structure, operation, tuple(reversed(after)))
        if not structure.is_affine(operation) and operation.name not in BIJECTIVE:
            return None
        after.append(operation)
        value = dependent[0]
    return None


def _linear(structure: Structure, core: Operation, after: tuple[Operation, ...]) -> Step | None:
    """The step of a linear operation; None where it has no weights, or a scale after it is not one of them."""
    position = 0 if core.operands[0] in structure.reached else 1
    weight = core.operands[1 - position]
    axes = _weight_axes(core, position, structure.program.shapes)
    if not _scales_are_of(structure, after, set(axes)):
        return None
    parameter, source = _source(structure, weight)
    if parameter is None or weight in structure.program.dependent:
        return None
    value = core.operands[position]
    top, root = value, value
    while (above := structure.thin[root]) is not None:
        root = above
    follows = root in structure.producer and structure.producer[root].name in _BILINEAR | POOLING
    while (above := structure.thin[top]) is not None:
        if follows and structure.is_affine(structure.producer[top]):
            break  # part of the linear operation before, or the 1/n of a mean
        top = above
    rank = len(structure.program.shapes[parameter].shape)
    convolution = core.name == "conv_general_dilated" or rank == 4
    before = structure.between(top, value)
    linear = Linear(before, core, position, after, axes, source, parameter, convolution)
    last = after[-1] if after else core
    return Step("linear", (top,), last.results, (), core.scope, 1.0, linear)


def _weight_axes(core: Operation, position: int, shapes: dict[int, jax.ShapeDtypeStruct]) -> dict[int, int]:
    numbers = core.equation.params["dimension_numbers"]
    if core.name == "conv_general_dilated":
        return {numbers.out_spec[1]: numbers.rhs_spec[0]} if position == 0 else {}
    contracting, batch = numbers
    ranks = [len(shapes[number].shape) for number in core.operands]
    free = [
        [axis for axis in range(ranks[side]) if axis not in contracting[side] and axis not in batch[side]]
        for side in (0, 1)
    ]
    mine = 1 - position
    first = len(batch[0]) + (len(free[0]) if mine == 1 else 0)
    axes = dict(enumerate(batch[mine]))
    axes.update({first + i: axis for i, axis in enumerate(free[mine])})
    return axes


def _scales_are_of(structure: Structure, after: Sequence[Operation], axes: set[int]) -> bool:
    """Every factor after a linear operation varies along the given axes of its result alone."""
    shapes = structure.program.shapes
    for i, operation in enumerate(after):
        if operation.name not in ("mul", "div"):
            continue
        scale = next(number for number in operation.operands if number not in structure.reached)
        if scale in structure.program.dependent:
            return False  # it depends on the inputs through `stop_gradient`
        varying = _varying(structure, scale)
        for move in reversed(after[:i]):
            varying = _moved_back(move, varying, shapes[move.operands[0]].shape, shapes[move.results[0]].shape)
        if not varying <= axes:
            return False
    return True


def _varying(structure: Structure, number: int) -> set[int]:
    """The axes along which a value that does not depend on the inputs may vary."""
    shapes, operation = structure.program.shapes, structure.producer.get(number)
    if operation is not None and operation.name == "broadcast_in_dim":
        inner = shapes[operation.operands[0]].shape
        placed = operation.equation.params["broadcast_dimensions"]
        return {axis for axis, size in zip(placed, inner, strict=True) if size > 1}
    return {axis for axis, size in enumerate(shapes[number].shape) if size > 1}


def _moved_back(move: Operation, axes: set[int], before: tuple[int, ...], after: tuple[int, ...]) -> set[int]:
    """Axes of the result of a bijective move -> the axes of its operand that they were."""
    if move.name == "transpose":
        return {move.equation.params["permutation"][axis] for axis in axes}
    if before == after:
        return axes
    found: set[int] = set()
    for old, new in _regrouped(before, after):
        if axes.intersection(new):
            found.update(axis for axis in old if before[axis] > 1)
    return found


def _regrouped(before: tuple[int, ...], after: tuple[int, ...]) -> Iterator[tuple[list[int], list[int]]]:
    """Groups of axes of two shapes that a reshape takes into each other."""
    ends = [list(np.cumprod([1, *shape], dtype=np.int64)) for shape in (before, after)]
    cuts = sorted(set(ends[0]).intersection(ends[1]))
    for low, high in pairwise(cuts):
        yield tuple(  # pyright: ignore[reportReturnType]
            [axis for axis, end in enumerate(side[1:]) if low < end <= high] for side in ends
        )


def _source(structure: Structure, weight: int) -> tuple[int | None, tuple[Operation, ...]]:
    """The value that holds the weights, and how they are laid out from it; None where the program made them up."""
    if weight not in structure.arrays:
        return None, ()
    known = structure.given if weight in structure.given else structure.arrays
    path: list[Operation] = []
    value = weight
    while value in structure.producer:
        operation = structure.producer[value]
        held = [number for number in operation.operands if number in known]
        if operation.name not in MOVES | {"dot_general", "mul"} or len(held) != 1:
            break  # weights standardised, say: from here on they are what they are
        path.append(operation)
        value = held[0]
    return value, tuple(reversed(path))
