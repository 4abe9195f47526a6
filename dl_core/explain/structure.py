"""The graph of a model's operations: what makes a value, and what stands between two values.

Whether some operations are an activation, a BatchNorm or an attention can be seen from how they depend on each other,
whatever library or hand wrote them. Two forests say it: of each value the nearest other value of which it is an
elementwise function, and the nearest that it is only moved and scaled from.
"""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from dl_core.explain.program import Operation, Program, primitives_inside

_ELEMENTWISE = """
abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt ceil clamp convert_element_type
copy cos cosh digamma div eq erf erf_inv erfc exp exp2 expm1 floor ge gt integer_pow is_finite le lgamma log log1p log2
logistic lt max min mul ne neg nextafter not one_minus_square or pow reduce_precision rem round rsqrt select_n sign sin
sinh sqrt square sub tan tanh xor
"""
ELEMENTWISE = frozenset(_ELEMENTWISE.split())
_SAME = "convert_element_type copy device_put name optimization_barrier reduce_precision"
SAME = frozenset(_SAME.split())  # the value itself, at most in another type or place
_BIJECTIVE = "expand_dims layout_constraint reshape rev sharding_constraint squeeze transpose"
BIJECTIVE = SAME | frozenset(_BIJECTIVE.split())  # every element goes to one place, and none is left out
_MOVES = """
all_gather broadcast_in_dim concatenate dynamic_slice dynamic_update_slice gather pad pvary reshard scatter slice split
stack tile unstack
"""
MOVES = BIJECTIVE | frozenset(_MOVES.split())  # every element of the result is one of the operands'
_LARGEST = "cummax cummin reduce_max reduce_min reduce_window_max reduce_window_min sort top_k"
LARGEST = frozenset(_LARGEST.split())
_POOLING = "cumsum reduce_sum reduce_window_sum scatter-add scatter_add select_and_scatter_add"
POOLING = frozenset(_POOLING.split())  # sums of elements of the operands


class Structure:
    """The graph of a program: which operation makes a value, and what stands between two values.

    producer: value -> the operation that computes it.
    reached: the values that depend on the inputs, not through `stop_gradient`.
    carrying: those of them that do so not through masks and indices alone.
    elementwise, thin: value -> the nearest value of which it is an elementwise function, or an affine function that
      only moves and scales; None where there is none.
    nonnegative: values that are certainly >= 0.
    given: values computed from params or inputs.
    arrays: values computed from these or from arrays of one axis or more that the function holds.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self.producer = {result: operation for operation in program.operations for result in operation.results}
        self.reached = set(program.dependent.intersection(program.arguments))
        self.carrying = set(self.reached)
        for operation in program.operations:
            if operation.name != "stop_gradient" and self.reached.intersection(operation.operands):
                self.reached.update(operation.results)
                if self.carrying.intersection(operation.operands):
                    self.carrying.update(filter(self._has_gradients, operation.results))
        self.elementwise = self._ancestors(lambda operation: self.is_elementwise(operation))
        self.thin = self._ancestors(lambda operation: operation.name in MOVES or self.is_affine(operation))
        self.nonnegative = self._nonnegative()
        self.given = self._computed_from(set(program.arguments))
        held = {number for number, array in program.constants.items() if np.ndim(array) > 0}
        self.arrays = self._computed_from(held | self.given)

    def dependent(self, operation: Operation) -> list[int]:
        """The operands that depend on the inputs, each once."""
        return [number for number in dict.fromkeys(operation.operands) if number in self.reached]

    def carriers(self, operation: Operation) -> tuple[int, ...]:
        """The operands that a gradient or relevance can go to."""
        return tuple(number for number in self.dependent(operation) if number in self.carrying)

    def is_elementwise(self, operation: Operation) -> bool:
        """An elementwise primitive whose dependent operands have the shape of the result."""
        if len(operation.results) != 1 or not primitives_inside(operation) <= ELEMENTWISE | SAME:
            return False
        shapes = self.program.shapes
        return all(shapes[n].shape == shapes[operation.results[0]].shape for n in self.dependent(operation))

    def is_affine(self, operation: Operation) -> bool:
        """scale · x + offset, with values that do not depend on the inputs."""
        dependent = self.dependent(operation)
        if len(dependent) != 1 or not self.is_elementwise(operation) or operation.operands.count(dependent[0]) > 1:
            return False
        if operation.name == "div":
            return operation.operands[0] == dependent[0]
        return operation.name in ("add", "add_any", "sub", "mul", "neg")

    def between(self, ancestor: int, value: int) -> tuple[Operation, ...]:
        """The operations from a value to another that depends on the inputs only through it."""
        found: dict[int, Operation] = {}
        open_values = [value]
        while open_values:
            number = open_values.pop()
            if number == ancestor:
                continue
            operation = self.producer[number]
            if id(operation) not in found:
                found[id(operation)] = operation
                open_values += self.dependent(operation)
        return tuple(sorted(found.values(), key=lambda operation: operation.results[0]))

    def _ancestors(self, joins: Callable[[Operation], bool]) -> dict[int, int | None]:
        """Immediate dominators, in the graph of the operations that join."""
        above: dict[int, int | None] = {}
        depth: dict[int, int] = {}

        def meet(a: int, b: int) -> int | None:
            one: int | None = a
            other: int | None = b
            while one != other:
                if one is None or other is None:
                    return None
                if depth[one] >= depth[other]:
                    one = above[one]
                else:
                    other = above[other]
            return one

        for number in self.program.arguments:
            above[number], depth[number] = None, 0
        for operation in self.program.operations:
            dependent = self.dependent(operation)
            ancestor: int | None = None
            if dependent and operation.name != "stop_gradient" and joins(operation):
                ancestor = dependent[0]
                for number in dependent[1:]:
                    ancestor = None if ancestor is None else meet(ancestor, number)
            for result in operation.results:
                above[result] = ancestor
                depth[result] = 0 if ancestor is None else depth[ancestor] + 1
        return above

    def _has_gradients(self, number: int) -> bool:
        return jnp.issubdtype(self.program.shapes[number].dtype, jnp.inexact)

    def _computed_from(self, values: set[int]) -> set[int]:
        found = set(values)
        for operation in self.program.operations:
            if found.intersection(operation.operands):
                found.update(operation.results)
        return found

    def _nonnegative(self) -> set[int]:
        found = {n for n, array in self.program.constants.items() if np.ndim(array) == 0 and _is_nonnegative(array)}
        for operation in self.program.operations:
            known = [number in found for number in operation.operands]
            always = operation.name in ("exp", "exp2", "logistic", "square", "abs", "erfc", "sqrt", "rsqrt")
            even = operation.name == "integer_pow" and operation.equation.params["y"] % 2 == 0
            largest = operation.name == "max" and any(known)
            keeps = MOVES | LARGEST | POOLING | {"add", "add_any", "mul", "div", "min"}
            if always or even or largest or (operation.name in keeps and all(known)):
                found.update(operation.results)
        return found


def _is_nonnegative(array: object) -> bool:
    return isinstance(array, np.ndarray | np.generic | float | int) and bool(np.all(np.asarray(array) >= 0))


_BENDS = frozenset(["clamp", "erf", "erfc", "log1p", "logistic", "max", "min", "select_n", "tanh"])
# in products of a value with a function of it: x (x > 0), x / (1 + exp(-x)), x / (1 + |x|)
_BENDS_IN_PRODUCTS = _BENDS | frozenset(["abs", "exp", "exp2", "ge", "gt", "le", "lt", "sqrt"])


def activations(structure: Structure) -> dict[int, tuple[int, tuple[Operation, ...]]]:
    """The activations of a model: elementwise functions of one value that bend.

    Args:
      structure: of a program, read with or without opening functions that have a derivative of their own.

    Returns:
      Value that an activation computes -> (its input, the operations in between). Those of normalisations (the root of
      a variance and what it is taken of) and the exponentials of softmax are left out.
    """
    normalising: set[int] = set()
    for operation in reversed(structure.program.operations):
        inside = operation.name in ("rsqrt", "sqrt") or normalising.intersection(operation.results)
        if inside and (operation.name in MOVES or structure.is_elementwise(operation)):
            normalising.update(operation.operands)
    found: dict[int, tuple[int, tuple[Operation, ...]]] = {}
    covered: set[int] = set()
    for operation in reversed(structure.program.operations):
        value = operation.results[0]
        ancestor = structure.elementwise[value]
        if ancestor is None or value in covered or value in normalising or structure.is_affine(operation):
            continue
        while ancestor in structure.producer and structure.producer[ancestor].name == "exp":  # log(1 + exp(x))
            above = structure.elementwise[ancestor]
            if above is None:
                break
            ancestor = above
        inside = structure.between(ancestor, value)
        names = frozenset[str]().union(*map(primitives_inside, inside))
        if names & (_BENDS_IN_PRODUCTS if len(structure.dependent(operation)) > 1 else _BENDS):
            found[value] = (ancestor, inside)
            covered.update(result for part in inside for result in part.results)
    return found
