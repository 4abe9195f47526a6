"""Guided backpropagation and deconvnet: the gradient with a gate at every activation, for any function.

Springenberg, Dosovitskiy, Brox, Riedmiller (2015), "Striving for Simplicity: The All Convolutional Net",
https://arxiv.org/abs/1412.6806; Zeiler, Fergus (2014), "Visualizing and Understanding Convolutional Networks",
https://arxiv.org/abs/1311.2901. With z the input of an activation f and g the signal that arrives from above:

    gradient  f'(z) g        guided  f'(z) g [z > 0] [g > 0]        deconvnet  g [g > 0]

Max-pooling sends the signal to where the maximum was, in all three.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float

from dl_core.explain.program import Operation, cotangents, evaluate_all, evaluate_part, read
from dl_core.explain.structure import Structure, activations
from dl_core.explain.target import ApplyFn, Target, check_target, select_target


def guided_backprop(
    apply_fn: ApplyFn, params: Any, inputs: Float[Array, "batch ..."], target: Target
) -> Float[Array, "batch ..."]:
    """The gradient that passes an activation only where its input and the arriving gradient are positive.

    Activations are the elementwise functions of one value that bend: ReLU in any spelling, leaky ReLU, ELU, GELU, SiLU,
    tanh, sigmoid, … (also where they gate another value). Their own derivative is multiplied (course notes). The
    exponentials of softmax and the root of a normalisation are none, nor what goes into that root. For a model without
    activations this is the gradient.

    Args:
      apply_fn: (params, inputs) -> logits, as in inference.
      params: pytree of everything that apply_fn needs; never changed.
      inputs: the examples to explain.
      target: a class, one class for each example, or a function of the logits; see `explained_output`.

    Returns:
      Same shape as the inputs, in logits per unit of input. It says what excites the units along the way more than what
      tells classes apart: the randomisation test of Adebayo et al. (2018) shows it.

    Raises:
      UsageError: see `check_target`.
    """
    target = check_target(apply_fn, params, inputs, target)
    return _gated_gradient(Partial(apply_fn), params, inputs, target, gate=_guided)


def deconvnet(
    apply_fn: ApplyFn, params: Any, inputs: Float[Array, "batch ..."], target: Target
) -> Float[Array, "batch ..."]:
    """The gradient in which each activation passes what is positive of the arriving signal, whatever its own input.

    Args:
      apply_fn: (params, inputs) -> logits, as in inference.
      params: pytree of everything that apply_fn needs; never changed.
      inputs: the examples to explain.
      target: a class, one class for each example, or a function of the logits; see `explained_output`.

    Returns:
      Same shape as the inputs. Activations are those of `guided_backprop`.

    Raises:
      UsageError: see `check_target`.
    """
    target = check_target(apply_fn, params, inputs, target)
    return _gated_gradient(Partial(apply_fn), params, inputs, target, gate=_deconvnet)


def _guided(z: Array, signal: Array, derivative: Callable[[Array], Array]) -> Array:
    return jnp.where(z > 0, derivative(jnp.maximum(signal, 0)), 0)


def _deconvnet(z: Array, signal: Array, derivative: Callable[[Array], Array]) -> Array:
    del z, derivative
    return jnp.maximum(signal, 0)


def _through_gates(
    apply_fn: ApplyFn, params: Any, inputs: Array, target: Target, *, gate: Callable[..., Array]
) -> Array:
    program = read(apply_fn, params, inputs)
    structure = Structure(program)
    gated = activations(structure)
    values = evaluate_all(program, params, inputs)
    logits = values[program.outputs[0]]
    signals = {program.outputs[0]: jax.grad(lambda outputs: select_target(outputs, target).sum())(logits)}

    def add(number: int, signal: Array) -> None:
        signals[number] = signals[number] + signal if number in signals else signal

    def part(operations: Sequence[Operation], start: Sequence[int], end: Sequence[int]) -> Callable[..., list[Array]]:
        def run(*xs: Array) -> list[Array]:
            found = evaluate_part(operations, dict(zip(start, xs, strict=True)), values)
            return [found[number] for number in end]

        return run

    for operation in reversed(program.operations):
        arriving = [signals.pop(number, None) for number in operation.results]
        carriers = structure.carriers(operation)
        if all(signal is None for signal in arriving) or not carriers:
            continue
        if operation.results[0] in gated:
            start, inside = gated[operation.results[0]]
            _, back = jax.vjp(part(inside, [start], operation.results), values[start])
            add(start, gate(values[start], arriving[0], lambda signal, back=back: back([signal])[0]))
            continue
        outputs, back = jax.vjp(part([operation], carriers, operation.results), *map(values.get, carriers))
        for number, signal in zip(carriers, back(cotangents(outputs, arriving)), strict=True):
            add(number, signal)
    return signals.get(program.arguments[-1], jnp.zeros_like(inputs))


_gated_gradient = jax.jit(_through_gates, static_argnames="gate")
