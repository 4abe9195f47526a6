"""Layers of any model by name: their values, and the model with a change at one of them.

A layer is a value inside `apply_fn` that has a name:

* a named feature map of the project's models ("stage4", "penultimate"), or whatever a function of your own passes
  through `jax.ad_checkpoint.checkpoint_name(x, "name")`;
* the result of a Flax module or of a `jax.named_scope`, by its path ("layer4_1/conv2"), or by the end of its path where
  that is enough to tell it from others.

A module that is called several times has several values: "conv#1", "conv#2" in the order of the calls.
"""

from collections.abc import Callable
from typing import Any

from jaxtyping import Array, Float

from dl_core.errors import UsageError, unknown_name
from dl_core.explain.program import Program, compute, evaluate, read
from dl_core.explain.target import ApplyFn


def list_layers(apply_fn: ApplyFn, params: Any, inputs: Float[Array, "batch ..."]) -> dict[str, tuple[int, ...]]:
    """Every layer that has a name, in the order of computation; nothing is computed.

    Args:
      apply_fn: (params, inputs) -> logits.
      params: pytree of everything that apply_fn needs.
      inputs: the examples.

    Returns:
      name -> shape, the batch first, e.g. {"layer1_0/conv1": (8, 32, 32, 64), …}.
    """
    program = read(apply_fn, params, inputs)
    return {name: program.shapes[value].shape for name, value in _layers(program).items()}


def run_with_layer(
    apply_fn: ApplyFn,
    params: Any,
    inputs: Float[Array, "batch ..."],
    layer: str,
    change: Callable[[Float[Array, "batch ..."]], Float[Array, "batch ..."]] = lambda activation: activation,
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
      UsageError: no such layer (the nearest names are said), or several.
    """
    program = read(apply_fn, params, inputs)
    value = find_layer(program, layer)
    found = {}

    def replace(operation: Any, operands: Any) -> Any:
        if value not in operation.results:
            return None
        results = compute(operation, operands)
        at = operation.results.index(value)
        found["activation"] = results[at]
        results[at] = change(results[at])
        return results

    output = evaluate(program, params, inputs, replace)
    return output, found["activation"]


def find_layer(program: Program, layer: str) -> int:
    """The value of a program that a layer's name stands for.

    Raises:
      UsageError: no such layer, or several.
    """
    layers = _layers(program)
    if layer in layers:
        return layers[layer]
    matches = {name: value for name, value in layers.items() if name.endswith(f"/{layer}")}
    if len(set(matches.values())) == 1:
        return next(iter(matches.values()))
    if matches:
        raise UsageError(f"several layers are called {layer!r}: {', '.join(matches)}; give more of the path")
    calls = [name for name in layers if name.split("#")[0] == layer or name.split("#")[0].endswith(f"/{layer}")]
    if calls:
        raise UsageError(f"the layer {layer!r} is computed several times; choose one of {', '.join(calls)}")
    raise unknown_name("layer", layer, layers)


def _layers(program: Program) -> dict[str, int]:
    """Name -> value, in the order of computation; the outermost scope, the whole model, is left out."""
    uses: dict[int, list[str]] = {}
    for operation in program.operations:
        for number in operation.operands:
            uses.setdefault(number, []).append(operation.scope)
    ends = set(program.outputs)
    found: dict[str, list[int]] = {}
    runs: dict[str, int] = {}  # scope that is being computed -> the last value that it hands on
    previous: list[str] = []
    for operation in [*program.operations, None]:
        scopes = [] if operation is None else _prefixes(operation.scope)
        for scope in [scope for scope in previous if scope not in scopes]:
            if scope in runs:
                found.setdefault(scope, []).append(runs.pop(scope))
        previous = scopes
        if operation is None:
            break
        if operation.name == "name":
            found.setdefault(f"={operation.equation.params['name']}", []).append(operation.results[0])
        for number in program.dependent.intersection(operation.results):
            for scope in scopes:
                if number in ends or any(scope not in _prefixes(use) for use in uses.get(number, [])):
                    runs[scope] = number
    names: dict[str, int] = {}
    roots = {scope.split("/")[0] for scope in found if not scope.startswith("=")}
    for scope, values in found.items():
        name = scope[1:] if scope.startswith("=") else _without_root(scope, roots)
        for i, value in enumerate(values):
            names[name if len(values) == 1 else f"{name}#{i + 1}"] = value
    names.pop("", None)
    return dict(sorted(names.items(), key=lambda item: item[1]))


def _without_root(scope: str, roots: set[str]) -> str:
    """The path inside the model, whose own name is in front of all paths."""
    return scope.partition("/")[2] if len(roots) == 1 else scope


def _prefixes(scope: str) -> list[str]:
    parts = [part for part in scope.split("/") if part]
    return ["/".join(parts[: i + 1]) for i in range(len(parts))]
