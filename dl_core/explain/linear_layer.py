"""A linear operation inside of a model as the rules of relevance propagation see it: weight, inputs, bias, outputs.

What stands before the operation (padding, patches, the normalisation of the inputs) and after it (biases, BatchNorm) is
taken apart into moves, which carry relevance along, and scales and shifts, which become part of inputs, weight, bias.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dl_core.errors import UsageError
from dl_core.explain import lrp_rules
from dl_core.explain.canonical import Linear, Step
from dl_core.explain.program import Operation, compute, evaluate_part
from dl_core.explain.structure import Structure


def through_linear(
    step: Step, values: dict[int, Any], structure: Structure, rule: lrp_rules.Rule, relevance: Float[Array, "..."]
) -> Float[Array, "..."]:
    """The relevance of the input of a linear step from that of its output.

    Args:
      step: of kind "linear".
      values: of `evaluate_all`.
      structure: of the program.
      rule: any.
      relevance: of the step's output.

    Returns:
      Of the shape of the step's input.
    """
    linear = step.linear
    assert linear is not None
    (start,), (end,) = step.inputs, step.outputs
    core, result = linear.core, linear.core.results[0]
    at_input, at_weight = core.operands[linear.position], core.operands[1 - linear.position]
    first, weight = values[start], values[at_weight]

    def apply(weight: Array, x: Array) -> Array:
        return evaluate_part([core], {at_input: x, at_weight: weight}, values)[result]

    def before(x: Array, on_scale: Callable[[Array, Array], Array]) -> Array:
        return _moved(linear.before, {start: x}, values, structure, on_scale)[at_input]

    def after(z: Array) -> Array:
        return _moved(linear.after, {result: z}, values, structure, _unscaled)[end]

    _, undo_after = jax.vjp(after, values[result])  # moves are permutations, which their transposes undo
    undo = lambda value: undo_after(value)[0]
    scaled = lambda z: evaluate_part(linear.after, {result: z}, values)[end]

    shifted = any(structure.is_affine(operation) for operation in linear.before)
    x, without = values[at_input], jnp.zeros_like(values[result])
    if shifted:
        x = before(first, lambda v, scale: v * scale)
        at_zero = evaluate_part(linear.before, {start: jnp.zeros_like(first)}, values)[at_input]
        without = apply(weight, at_zero)
    ones = jnp.ones_like(first)
    layer = lrp_rules.Layer(
        apply=apply,
        weight=weight * _scale_of_weight(linear, scaled, values[result], jnp.ndim(weight)),
        ones=lambda: _ones_of_weight(linear, values, at_weight),
        inputs=x,
        nonnegative=not shifted and at_input in structure.nonnegative,
        bias=undo(scaled(without)),
        outputs=undo(values[end]),
        present=lambda: before(ones, _unscaled),
        present_squared=lambda: before(ones, lambda v, scale: v * scale**2),
        box=lambda low, high: _box(low, high, first, before),
    )
    shares = lrp_rules.share(rule, layer, undo(relevance.astype(values[end].dtype)).astype(relevance.dtype))
    _, back = jax.vjp(lambda x: before(x, _unscaled), first)
    return back(shares.astype(x.dtype))[0].astype(relevance.dtype)


def _unscaled(value: Array, scale: Array) -> Array:
    del scale
    return value


def _moved(
    operations: Sequence[Operation],
    given: dict[int, Any],
    values: dict[int, Any],
    structure: Structure,
    on_scale: Callable[[Array, Array], Array],
) -> dict[int, Any]:
    """The linear part of moves (whatever is constant in them is zero), with the caller's way with each scale."""
    found = dict(given)
    for operation in operations:
        numbers = [number for number in structure.dependent(operation) if number in found]

        def run(*xs: Array, operation: Operation = operation, numbers: Sequence[int] = numbers) -> list[Array]:
            found = dict(zip(numbers, xs, strict=True))
            return compute(operation, [found.get(number, values[number]) for number in operation.operands])

        at = [values[number] for number in numbers]
        if structure.is_affine(operation):
            (scale,) = jax.jvp(run, at, list(map(jnp.ones_like, at)))[1]
            results = [on_scale(found[numbers[0]], scale)]
        else:
            directions = [found[number].astype(value.dtype) for number, value in zip(numbers, at, strict=True)]
            results = jax.jvp(run, at, directions)[1]
        found.update(zip(operation.results, results, strict=True))
    return found


def _scale_of_weight(linear: Linear, scaled: Callable[[Array], Array], z: Array, rank: int) -> Array:
    """What the affine operations after a linear operation multiply it by, in the layout of its weight."""
    if not any(operation.name in ("mul", "div", "neg", "sub") for operation in linear.after):
        return jnp.ones((), z.dtype)
    end, back = jax.vjp(scaled, z)
    (scale,) = back(jnp.ones_like(end))
    kept = sorted(linear.weight_axes)
    scale = scale[tuple(slice(None) if axis in kept else 0 for axis in range(scale.ndim))]
    shape = [1] * rank
    for axis in kept:
        shape[linear.weight_axes[axis]] = z.shape[axis]
    return scale.transpose(sorted(range(len(kept)), key=lambda i: linear.weight_axes[kept[i]])).reshape(shape)


def _ones_of_weight(linear: Linear, values: dict[int, Any], at_weight: int) -> Array:
    """1 where the weight has an entry, 0 in the gaps that its layout leaves."""
    ones = {linear.parameter: jnp.ones_like(values[linear.parameter])}
    return (evaluate_part(linear.source, ones, values)[at_weight] != 0).astype(values[at_weight].dtype)


def _box(low: Any, high: Any, first: Array, before: Callable[..., Array]) -> tuple[Array, Array]:
    """The least and the greatest that the inputs of the operation can be."""
    bounds = [jnp.asarray(bound, first.dtype) for bound in (low, high)]
    try:
        shapes = [(1,) * (first.ndim - bound.ndim) + bound.shape for bound in bounds]
        bounds = [
            jnp.broadcast_to(bound.reshape(shape), first.shape) for bound, shape in zip(bounds, shapes, strict=True)
        ]
    except ValueError:
        raise UsageError(
            f"low and high of z_box must broadcast to the layer's inputs {list(first.shape)}, got "
            f"{list(jnp.shape(low))} and {list(jnp.shape(high))}"
        ) from None
    centre = before((bounds[0] + bounds[1]) / 2, lambda v, scale: v * scale)
    reach = before((bounds[1] - bounds[0]) / 2, lambda v, scale: v * jnp.abs(scale))
    return centre - reach, centre + reach
