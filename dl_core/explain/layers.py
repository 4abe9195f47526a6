"""Layers of any model by name: their values, and the model with a change at one of them or at several.

A layer is a value inside `apply_fn` that depends on the inputs and has a name:

* a named feature map of the project's models ("stage4", "penultimate"), or whatever a function of your own passes
  through `jax.ad_checkpoint.checkpoint_name(x, "name")`;
* the result of a Flax module or of a `jax.named_scope`, by its path ("layer4_1/conv2"), or by the end of its path where
  that is enough to tell it from others.

A module that is called several times has several values: "conv#1", "conv#2" in the order of the calls. (Of calls that
follow each other directly, those are told apart that use the same parameters in the same way.)
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core
from jaxtyping import Array, Float

from dl_core.errors import UsageError, unknown_name
from dl_core.explain.program import Operation, Program, compute, evaluate, read
from dl_core.explain.target import ApplyFn, once_for_shapes

Change = Callable[[Float[Array, "batch ..."]], Float[Array, "batch ..."]]


def list_layers(apply_fn: ApplyFn, params: Any, inputs: Float[Array, "batch ..."]) -> dict[str, tuple[int, ...]]:
    """Every layer that has a name, in the order of computation; nothing is computed.

    Args:
      apply_fn: (params, inputs) -> logits.
      params: pytree of everything that apply_fn needs.
      inputs: the examples.

    Returns:
      name -> shape, the batch first, e.g. {"layer1_0/conv1": (8, 32, 32, 64), …}.
    """
    numbers, shapes, _ = _known_layers(apply_fn, params, inputs)
    return {name: shapes[number].shape for name, number in numbers.items()}


def check_layer(
    apply_fn: ApplyFn, params: Any, inputs: Float[Array, "batch ..."], layer: str
) -> tuple[str, jax.ShapeDtypeStruct]:
    """Refuses a layer that does not exist, before anything is compiled; nothing is computed.

    Args:
      apply_fn: (params, inputs) -> logits.
      params: pytree of everything that apply_fn needs.
      inputs: the examples.
      layer: its name, or the end of it.

    Returns:
      Its whole name, and its shape and dtype.

    Raises:
      UsageError: see `find_layer`.
    """
    numbers, shapes, hidden = _known_layers(apply_fn, params, inputs)
    number = _resolve(layer, numbers, hidden)
    whole = layer if layer in numbers else next(name for name, value in numbers.items() if value == number)
    return whole, shapes[number]


def run_with_layer(
    apply_fn: ApplyFn,
    params: Any,
    inputs: Float[Array, "batch ..."],
    layer: str,
    change: Change = lambda activation: activation,
) -> tuple[Float[Array, "batch classes"], Float[Array, "batch ..."]]:
    """The output with a change at one layer, and what the layer computed.

    The gradient of the output with respect to a layer is that of `change = lambda activation: activation + delta` with
    respect to delta at 0; what an ablated unit does shows `change = lambda activation: activation.at[..., 7].set(0)`.

    Args:
      apply_fn: (params, inputs) -> logits.
      params: pytree of everything that apply_fn needs.
      inputs: the examples.
      layer: its name, see `list_layers`.
      change: what goes on from the layer in place of its value; same shape and dtype.

    Returns:
      Output of apply_fn, and the layer's own value, before the change.

    Raises:
      UsageError: see `find_layer`; a change to another shape or dtype.
    """
    output, found = run_with_layers(apply_fn, params, inputs, {layer: change})
    return output, found[layer]


def run_with_layers(
    apply_fn: ApplyFn, params: Any, inputs: Float[Array, "batch ..."], changes: Mapping[str, Change]
) -> tuple[Float[Array, "batch classes"], dict[str, Float[Array, "batch ..."]]]:
    """The output with a change at each of several layers, and what these layers computed, all in one run.

    Args:
      apply_fn: (params, inputs) -> logits.
      params: pytree of everything that apply_fn needs.
      inputs: the examples.
      changes: name of a layer -> what goes on from it in place of its value; same shape and dtype. Changes under two
        names of one value are made in this order.

    Returns:
      Output of apply_fn, and name -> the layer's own value before its change; a later layer has seen the changes of the
      earlier ones.

    Raises:
      UsageError: see `find_layer`; a change to another shape or dtype.
    """
    program = read(apply_fn, params, inputs)
    numbers, hidden = named_values(program), _hidden_layers(program)
    names: dict[int, list[str]] = {}
    for name in changes:
        names.setdefault(_resolve(name, numbers, hidden), []).append(name)
    found: dict[str, Array] = {}

    def replace(operation: Operation, operands: Any) -> Any:
        if names.keys().isdisjoint(operation.results):
            return None
        results = compute(operation, operands)
        for at, number in enumerate(operation.results):
            value = results[at]
            for name in names.get(number, ()):
                found[name] = value
                results[at] = _changed(changes[name], name, results[at])
        return results

    output = evaluate(program, params, inputs, replace)
    return output, {name: found[name] for name in changes}


def find_layer(program: Program, layer: str) -> int:
    """The value of a program that a layer's name stands for.

    Args:
      program: of `read` (shapes are those of the program).
      layer: its name, or the end of it.

    Returns:
      Number of the value.

    Raises:
      UsageError: no such layer (the nearest names are said), several, or one inside of a loop or of a function with a
        derivative of its own, which cannot be looked into.
    """
    return _resolve(layer, named_values(program), _hidden_layers(program))


def named_values(program: Program) -> dict[str, int]:
    """The layers of a program: name -> number of the value, in the order of computation (no arrays).

    The outermost scope is left out where all of the program lies in it: the whole model.
    """
    operations = program.operations
    last_use = {number: i for i, operation in enumerate(operations) for number in operation.operands}
    last_use.update(dict.fromkeys(program.outputs, len(operations)))
    paths = [_path(operation.scope) for operation in operations]
    found: dict[str, list[int]] = {}
    for depth in range(1, max(map(len, paths), default=0) + 1):
        for start, stop in _runs([path[:depth] if len(path) >= depth else () for path in paths]):
            for first, end in _calls(program, paths, start, stop, depth):
                handed_on = [
                    number
                    for operation in operations[first:end]
                    for number in operation.results
                    if number in program.dependent and last_use.get(number, -1) >= end
                ]
                if handed_on:
                    found.setdefault("/".join(paths[start][:depth]), []).append(handed_on[-1])
    roots = {scope.split("/")[0] for scope in found}
    names: dict[str, int] = {}
    for scope, values in found.items():
        name = scope.partition("/")[2] if len(roots) == 1 else scope
        if not name and not set(values).isdisjoint(program.outputs):
            continue  # the whole model
        names.update(_numbered(name or scope, values))
    given: dict[str, list[int]] = {}
    for operation in operations:
        if operation.name == "name" and operation.results[0] in program.dependent:
            given.setdefault(operation.equation.params["name"], []).append(operation.results[0])
    for name, values in given.items():
        names.update(_numbered(name, values))
    return dict(sorted(names.items(), key=lambda item: item[1]))


@once_for_shapes
def _known_layers(
    apply_fn: ApplyFn, params: Any, inputs: Any
) -> tuple[dict[str, int], dict[int, jax.ShapeDtypeStruct], dict[str, str]]:
    """Name -> value, value -> shape, and the names that are hidden; not the program, which may hold large constants."""
    program = read(apply_fn, params, inputs)
    numbers = named_values(program)
    return numbers, {number: program.shapes[number] for number in numbers.values()}, _hidden_layers(program)


def _resolve(layer: str, numbers: Mapping[str, int], hidden: Mapping[str, str]) -> int:
    if layer in numbers:
        return numbers[layer]
    matches = {name: value for name, value in numbers.items() if name.endswith(f"/{layer}")}
    if len(set(matches.values())) == 1:
        return next(iter(matches.values()))
    if matches:
        raise UsageError(f"several layers are called {layer!r}: {', '.join(matches)}; give more of the path")
    calls = [name for name in numbers if name.split("#")[0] == layer or name.split("#")[0].endswith(f"/{layer}")]
    if calls:
        raise UsageError(f"the layer {layer!r} is computed several times; choose one of {', '.join(calls)}")
    inside = next((name for name in hidden if name == layer or name.endswith(f"/{layer}")), None)
    if inside is not None:
        raise UsageError(
            f"the layer {layer!r} lies inside of {hidden[inside]}, which cannot be looked into; write it as a Python "
            f"loop or an ordinary function, or choose another layer{_known(numbers)}"
        )
    if not numbers:
        raise UsageError(
            f"unknown layer {layer!r}: apply_fn names none of its values; pass the one that you mean through "
            f'jax.ad_checkpoint.checkpoint_name(x, "{layer}"), or compute it inside of jax.named_scope("{layer}")'
        )
    raise unknown_name("layer", layer, numbers)


def _known(numbers: Mapping[str, int]) -> str:
    return f" ({', '.join(list(numbers)[-5:])}, …)" if numbers else ""


def _changed(change: Change, name: str, value: Array) -> Array:
    new = change(value)
    describe = lambda x: f"{jnp.result_type(x)} {list(jnp.shape(x))}"
    if describe(new) != describe(value):
        raise UsageError(
            f"the change at {name!r} must keep shape and dtype: it was given {describe(value)} and made {describe(new)}"
        )
    return new


def _numbered(name: str, values: list[int]) -> dict[str, int]:
    return {name if len(values) == 1 else f"{name}#{i}": value for i, value in enumerate(values, start=1)}


def _path(scope: str) -> tuple[str, ...]:
    """The scopes around an operation, without einsum's own ("bqhd,bkhd->bhqk") and a Flax module's own methods
    ("Net/Net._embed")."""
    parts = [part for part in scope.split("/") if part and "->" not in part]
    owner = lambda part: part.split(".")[0]
    return tuple(
        part for i, part in enumerate(parts) if not (i and owner(part) != part and owner(part) == owner(parts[i - 1]))
    )


def _runs(scopes: list[tuple[str, ...]]) -> Iterator[tuple[int, int]]:
    """Where the same scope (not empty) lasts: [start, stop)."""
    start = 0
    for i in range(1, len(scopes) + 1):
        if i == len(scopes) or scopes[i] != scopes[start]:
            if scopes[start]:
                yield start, i
            start = i


def _calls(
    program: Program, paths: list[tuple[str, ...]], start: int, stop: int, depth: int
) -> Iterator[tuple[int, int]]:
    """Parts of a run that do the same with the same parameters: calls that follow each other directly.

    Where all of the run lies in one inner scope, it is that one that was called several times.
    """
    arrays = (number for number in program.constants if program.shapes[number].shape)
    shared = {*program.arguments, *arrays} - program.dependent
    works = [
        (operation.name, paths[start + i][depth:], tuple(n if n in shared else -1 for n in operation.operands))
        for i, operation in enumerate(program.operations[start:stop])
    ]
    length = stop - start
    period = length
    if len({path[:1] for _, path, _ in works}) > 1 or not works[0][1]:
        for candidate in range(1, length // 2 + 1):
            if (
                length % candidate == 0
                and works[candidate] == works[0]
                and works[candidate:] == works[:-candidate]
                and any(max(used, default=-1) >= 0 for _, _, used in works[:candidate])
            ):
                period = candidate
                break
    for first in range(start, stop, period):
        yield first, first + period


def _hidden_layers(program: Program) -> dict[str, str]:
    """Names inside of operations that stay whole -> what they are in."""
    hidden: dict[str, str] = {}

    def search(jaxpr: core.Jaxpr, scope: str, kind: str) -> None:
        for equation in jaxpr.eqns:
            inside = "/".join(part for part in (scope, str(equation.source_info.name_stack)) if part)
            path = _path(inside)
            for depth in range(len(path)):
                hidden.setdefault("/".join(path[: depth + 1]), kind)
            if equation.primitive.name == "name":
                hidden.setdefault(equation.params["name"], kind)
            for inner in _inner(equation):
                search(inner, inside, kind)

    for operation in program.operations:
        own = operation.name.startswith("custom_")
        kind = f"a function with a derivative of its own ({operation.name})" if own else f"a {operation.name!r} loop"
        if operation.name == "cond":
            kind = "a branch of 'cond'"
        for inner in _inner(operation.equation):
            search(inner, operation.scope, kind)
    return hidden


def _inner(equation: core.JaxprEqn) -> Iterator[core.Jaxpr]:
    for value in equation.params.values():
        for inner in value if isinstance(value, tuple | list) else (value,):
            if isinstance(inner, core.ClosedJaxpr):
                yield inner.jaxpr
            elif isinstance(inner, core.Jaxpr):
                yield inner
