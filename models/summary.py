"""The table of a model: its layers with output shapes, parameters, multiply-adds and receptive fields.

Everything is read off abstract values: no array is made, nothing is compiled.
"""

import re
from collections import Counter
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from dl_core.dependence import Walk, image_value, independent
from dl_core.receptive_field import field_of
from models.registry import create

_CALL = re.compile(r"call:(\d+)")


class Row(NamedTuple):
    """One layer: its path in the variables, type, output without the batch, own parameters, cost, receptive field.

    receptive_field: (height, width) in pixels of the image, as in `dl_core.receptive_field.ReceptiveField.size`; None
      where the layer does not run in evaluation or the input is no image.
    """

    path: str
    type: str
    output_shape: tuple[int, ...]
    parameters: int
    multiply_adds: int
    receptive_field: tuple[int, int] | None


class Summary(NamedTuple):
    """The table; `str` of it is aligned text."""

    title: str
    input_shape: tuple[int, ...]
    rows: list[Row]

    @property
    def parameters(self) -> int:
        """Trainable numbers of the whole model."""
        return sum(row.parameters for row in self.rows)

    @property
    def multiply_adds(self) -> int:
        """Of one image in evaluation, in convolutions and products; twice as many floating-point operations."""
        return sum(row.multiply_adds for row in self.rows)

    def __str__(self) -> str:
        head = ("layer", "type", "output", "parameters", "multiply-adds", "receptive field")
        lines = [
            (path, kind, _times(shape), f"{parameters:,}", f"{cost:,}", "" if field is None else _times(field))
            for path, kind, shape, parameters, cost, field in self.rows
        ]
        total = ("total", "", "", f"{self.parameters:,}", f"{self.multiply_adds:,}", "")
        widths = [max(map(len, column)) for column in zip(head, *lines, total, strict=True)]

        def text(line: tuple[str, ...]) -> str:
            aligned = [f"{cell:<{n}}" for cell, n in zip(line[:2], widths[:2], strict=True)]
            aligned += [f"{cell:>{n}}" for cell, n in zip(line[2:], widths[2:], strict=True)]
            return "  ".join(aligned).rstrip()

        rule = "─" * (sum(widths) + 2 * (len(widths) - 1))
        title = f"{self.title} on {_times(self.input_shape)}: {self.parameters:,} parameters, "
        title += f"{self.multiply_adds / 1e9:.3g} G multiply-adds an image"
        return "\n".join([title, rule, text(head), rule, *map(text, lines), rule, text(total)])


class Call(NamedTuple):
    """One call of a submodule, in the order of execution."""

    path: tuple[str, ...]
    module: nn.Module
    parent: int | None  # the call within which it happened


def summary(
    name_or_model: str | nn.Module, input_shape: tuple[int, ...] = (224, 224, 3), num_classes: int = 1000
) -> Summary:
    """The table of a model's layers, as it runs in evaluation; `print` it.

    Layers that have neither parameters nor a cost, such as dropout, are left out; what stands outside of any layer
    (pooling, activations) shows in the next one's shape and receptive field.

    Args:
      name_or_model: a name of the registry, or any Linen module.
      input_shape: (height, width, channels) of one image, or the shape of one input of another kind.
      num_classes: for a model by name.

    Returns:
      Rows in the order of execution; then parameters that only training uses, such as auxiliary heads.

    Raises:
      UsageError: unknown name, or an image that the model does not take.
    """
    model, title = resolve(name_or_model, num_classes)
    variables, jaxpr, calls, outputs = trace(model, input_shape)
    walks = [Walk(unknown="whole"), Walk(unknown="whole", theoretical=True)]
    inputs = [independent(leaf.shape) for leaf in jax.tree.leaves(variables)] + [image_value((1, *input_shape))]
    exact, ideal = (walk.run(jaxpr.jaxpr, jaxpr.consts, inputs) for walk in walks)
    cost: Counter[int] = Counter()
    for scope, number in walks[0].multiply_adds.items():
        cost[call_of(scope)] += number
    parameters = _parameters_by_module(variables.get("params", {}))
    rows = []
    for index, call in enumerate(calls):
        own = parameters.pop(call.path, 0)  # a module that is called again has no new ones
        if own or cost[index]:
            place = outputs.get(index)
            shape = () if place is None else exact[place].shape[1:]
            unseen = place is None or len(input_shape) != 3
            field = None if unseen else field_of(exact[place], ideal[place], input_shape).size
            path = "/".join(call.path) or "(the model itself)"
            rows.append(Row(path, type(call.module).__name__, shape, own, cost[index], field))
    rows += [Row("/".join(path), "(in training)", (), number, 0, None) for path, number in parameters.items()]
    return Summary(title, tuple(input_shape), rows)


def resolve(name_or_model: str | nn.Module, num_classes: int) -> tuple[nn.Module, str]:
    """A model and its title, from a name or the model itself (no arrays).

    Raises:
      UsageError: unknown name.
    """
    if isinstance(name_or_model, str):
        return create(name_or_model, num_classes=num_classes), name_or_model
    return name_or_model, type(name_or_model).__name__


def trace(
    model: nn.Module, input_shape: tuple[int, ...]
) -> tuple[Any, jax.extend.core.ClosedJaxpr, list[Call], dict[int, int]]:
    """One evaluation of one image [height, width, channels], without arrays.

    Returns:
      The shapes of the variables; the jaxpr of (variables, image) -> results; the calls of submodules; and for each
      call whose result is one array, which of the jaxpr's results it is. Operations bear "call:<index>" in their name
      stack.
    """
    calls: list[Call] = []
    running: list[int] = []
    results: dict[int, Any] = {}

    def record(call_next: Any, args: tuple[Any, ...], kwargs: dict[str, Any], context: Any) -> Any:
        if context.method_name != "__call__":
            return call_next(*args, **kwargs)
        index = len(calls)
        calls.append(Call(context.module.path, context.module, running[-1] if running else None))
        running.append(index)
        with jax.named_scope(f"call:{index}"):
            result = call_next(*args, **kwargs)
        running.pop()
        if isinstance(result, jax.Array) and result.ndim:
            results[index] = result
        return result

    def apply(variables: Any, image: Any) -> tuple[Any, list[Any]]:
        with nn.intercept_methods(record):
            logits = model.apply(variables, image)
        return logits, list(results.values())

    image = jax.ShapeDtypeStruct((1, *input_shape), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    jaxpr, shapes = jax.make_jaxpr(apply, return_shape=True)(variables, image)
    first = len(jax.tree.leaves(shapes[0]))
    return variables, jaxpr, calls, {index: first + i for i, index in enumerate(results)}


def call_of(scope: str) -> int:
    """The innermost call of a name stack (no arrays)."""
    found = _CALL.findall(scope)
    return int(found[-1]) if found else 0


def _parameters_by_module(params: Any) -> dict[tuple[str, ...], int]:
    totals: dict[tuple[str, ...], int] = {}
    for path, leaf in jax.tree.leaves_with_path(params):
        module = tuple(entry.key for entry in path[:-1])
        totals[module] = totals.get(module, 0) + leaf.size
    return totals


def _times(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))
