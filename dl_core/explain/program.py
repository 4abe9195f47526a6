"""The operations of a model, read from its jaxpr: what lets a method look inside of any function without changing it.

`read` traces `apply_fn` and lays the nested calls out as one list of operations; `evaluate` runs that list, and may
replace what single operations compute. Everything in it stays an ordinary JAX computation, to be compiled, mapped and
differentiated.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jaxtyping import Array, Float

from dl_core.explain.target import ApplyFn

_CALLS = {"jit", "pjit", "closed_call", "core_call", "checkpoint", "remat2"}
_RULED = {"custom_jvp_call", "custom_vjp_call"}  # calls with a derivative of their own, which laying out would lose
_INNER = ("jaxpr", "call_jaxpr", "fun_jaxpr")  # where a call keeps what it calls


class Operation(NamedTuple):
    """One primitive applied to values.

    name: of the primitive, e.g. "conv_general_dilated".
    operands, results: numbers of values of the program.
    scope: where in the model, e.g. "ResNet/layer1_0/conv1" (Flax modules and `jax.named_scope`).
    equation: of the jaxpr; its `params` are those of the primitive.
    """

    name: str
    operands: tuple[int, ...]
    results: tuple[int, ...]
    scope: str
    equation: core.JaxprEqn


class Program(NamedTuple):
    """What a model computes.

    operations: in the order of computation.
    arguments: the values that hold params and inputs, flattened in this order.
    outputs: the values returned.
    constants: value -> array.
    shapes: value -> shape and dtype.
    dependent: the values that depend on the inputs (not on params alone).
    """

    operations: tuple[Operation, ...]
    arguments: tuple[int, ...]
    outputs: tuple[int, ...]
    constants: dict[int, Any]
    shapes: dict[int, jax.ShapeDtypeStruct]
    dependent: frozenset[int]


def read(apply_fn: ApplyFn, params: Any, inputs: Float[Array, "batch ..."], *, open_rules: bool = False) -> Program:
    """The program of a model at given shapes; nothing is computed.

    Args:
      apply_fn: (params, inputs) -> output.
      params: pytree of everything that apply_fn needs.
      inputs: the examples.
      open_rules: also lay out functions that have a derivative of their own (`custom_jvp`, `custom_vjp`, e.g.
        `jax.nn.relu`); otherwise each is one operation.

    Returns:
      Program.
    """
    closed = jax.make_jaxpr(apply_fn)(params, inputs)
    opened = _CALLS | _RULED if open_rules else _CALLS
    operations: list[Operation] = []
    constants: dict[int, Any] = {}
    shapes: dict[int, jax.ShapeDtypeStruct] = {}

    def new(aval: Any) -> int:
        shapes[len(shapes)] = jax.ShapeDtypeStruct(aval.shape, aval.dtype)
        return len(shapes) - 1

    def hold(array: Any, aval: Any) -> int:
        number = new(aval)
        constants[number] = array
        return number

    def lay_out(jaxpr: core.Jaxpr, consts: Sequence[Any], arguments: Sequence[int], scope: str) -> list[int]:
        numbers = dict(zip(jaxpr.invars, arguments, strict=True))
        for variable, array in zip(jaxpr.constvars, consts, strict=True):
            numbers[variable] = hold(array, variable.aval)

        def of(atom: Any) -> int:
            aval = atom.aval
            return hold(np.asarray(atom.val, aval.dtype), aval) if isinstance(atom, core.Literal) else numbers[atom]

        for equation in jaxpr.eqns:
            operands = tuple(of(atom) for atom in equation.invars)
            inside = "/".join(part for part in (scope, str(equation.source_info.name_stack)) if part)
            name = equation.primitive.name
            inner = next((equation.params[key] for key in _INNER if key in equation.params), None)
            if name in opened and inner is not None:
                closed_inner = isinstance(inner, core.ClosedJaxpr)
                consts_inner = inner.consts if closed_inner else ()
                results = tuple(lay_out(inner.jaxpr if closed_inner else inner, consts_inner, operands, inside))
            else:
                results = tuple(new(variable.aval) for variable in equation.outvars)
                operations.append(Operation(name, operands, results, inside, equation))
            numbers.update(zip(equation.outvars, results, strict=True))
        return [of(atom) for atom in jaxpr.outvars]

    arguments = tuple(new(variable.aval) for variable in closed.jaxpr.invars)
    outputs = tuple(lay_out(closed.jaxpr, closed.consts, arguments, ""))
    dependent = set(arguments[len(jax.tree.leaves(params)) :])
    for operation in operations:
        if dependent.intersection(operation.operands):
            dependent.update(operation.results)
    return Program(tuple(operations), arguments, outputs, constants, shapes, frozenset(dependent))


Replace = Callable[[Operation, Sequence[Any]], Sequence[Any] | None]


def evaluate(
    program: Program, params: Any, inputs: Float[Array, "batch ..."], replace: Replace | None = None
) -> Float[Array, "batch ..."]:
    """Runs a program.

    Args:
      program: of `read`, at these shapes.
      params: as given to `read`.
      inputs: likewise.
      replace: (operation, its operands) -> its results, or None to compute them as they are.

    Returns:
      What apply_fn returns: its one array.
    """
    return evaluate_all(program, params, inputs, replace)[program.outputs[0]]


def evaluate_all(
    program: Program, params: Any, inputs: Float[Array, "batch ..."], replace: Replace | None = None
) -> dict[int, Any]:
    """Runs a program and keeps everything; what is not used afterwards costs nothing once compiled.

    Args:
      program, params, inputs, replace: see `evaluate`.

    Returns:
      value -> array.
    """
    values = dict(program.constants)
    values.update(zip(program.arguments, jax.tree.leaves((params, inputs)), strict=True))
    for operation in program.operations:
        operands = [values[number] for number in operation.operands]
        results = replace(operation, operands) if replace is not None else None
        results = compute(operation, operands) if results is None else results
        values.update(zip(operation.results, results, strict=True))
    return values


def evaluate_part(operations: Sequence[Operation], given: dict[int, Any], values: dict[int, Any]) -> dict[int, Any]:
    """Runs some operations again with other values for some of their operands.

    Args:
      operations: of a program, in its order.
      given: value -> array, the changed ones.
      values: value -> array, all others, of `evaluate_all`.

    Returns:
      The changed ones and everything that the operations computed.
    """
    found = dict(given)
    for operation in operations:
        operands = [found[number] if number in found else values[number] for number in operation.operands]
        found.update(zip(operation.results, compute(operation, operands), strict=True))
    return found


def compute(operation: Operation, operands: Sequence[Any]) -> list[Any]:
    """What an operation makes of operands [...] of the shapes that it was traced with.

    Args:
      operation: of a program.
      operands: arrays [...].

    Returns:
      One array for each result.
    """
    primitive = operation.equation.primitive
    results = primitive.bind(*operands, **primitive.get_bind_params(operation.equation.params))
    return list(results) if primitive.multiple_results else [results]


def cotangents(outputs: Sequence[Array], arriving: Sequence[Array | None]) -> list[Any]:
    """What `jax.vjp` of operations takes for results of any type, of which some get nothing.

    Args:
      outputs: the results.
      arriving: for each of them an array of its shape, or None.

    Returns:
      Of each result's shape and tangent type.
    """

    def one(output: Array, signal: Array | None) -> Any:
        if not jnp.issubdtype(output.dtype, jnp.inexact):
            return np.zeros(output.shape, jax.dtypes.float0)
        return jnp.zeros_like(output) if signal is None else signal.astype(output.dtype)

    return [one(output, signal) for output, signal in zip(outputs, arriving, strict=True)]


def primitives_inside(operation: Operation) -> frozenset[str]:
    """Names of the primitives that a call consists of, at any depth; of the primitive itself where it is no call."""
    return frozenset(_names(operation.equation))


def _names(equation: core.JaxprEqn) -> Iterator[str]:
    inner = next((equation.params[key] for key in _INNER if key in equation.params), None)
    if inner is None:
        yield equation.primitive.name
        return
    for part in (inner.jaxpr if isinstance(inner, core.ClosedJaxpr) else inner).eqns:
        yield from _names(part)
