"""One pass through a jaxpr, from the image to every result. Nothing is computed but what depends on constants alone."""

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from jax.extend import core

from dl_core.dependence.bounds import LARGEST_CONSTANT, Value, constant, hull, independent
from dl_core.dependence.rules import RULES, STRIDED, multiply_adds
from dl_core.errors import UsageError, unknown_name

_CALLS = {"jit", "pjit", "closed_call", "core_call", "checkpoint", "remat2", "custom_jvp_call", "custom_vjp_call"}
_INNER = ("jaxpr", "call_jaxpr", "fun_jaxpr")  # where a call keeps what it calls


class Walk:
    """Interprets jaxprs with a `Value` in place of each array [...].

    theoretical: padding continues the image beyond its edges, so that fields have their full size everywhere; otherwise
      nothing reaches what is padded, and bounds are what an experiment finds.
    unknown: what to do about a primitive that has no rule: "error", or "whole": its results depend on all that reaches
      its operands.
    multiply_adds: filled by `run`: name stack of the operation -> multiplications that the image reaches.
    """

    def __init__(self, *, theoretical: bool = False, unknown: str = "error"):
        if unknown not in ("error", "whole"):
            raise unknown_name("treatment of unknown primitives", unknown, ("error", "whole"))
        self.theoretical = theoretical
        self.unknown = unknown
        self.multiply_adds: Counter[str] = Counter()

    def run(self, jaxpr: core.Jaxpr, constants: Sequence[Any], inputs: Sequence[Value], scope: str = "") -> list[Value]:
        """Follows the image [...] through a jaxpr.

        Args:
          jaxpr: the program.
          constants: arrays for its constant variables.
          inputs: one value for each of its input variables.
          scope: name stack of the call.

        Returns:
          One value for each result.

        Raises:
          UsageError: a primitive without a rule stands between image and result.
        """
        values = dict(zip(jaxpr.invars, inputs, strict=True))
        values.update({name: constant(array) for name, array in zip(jaxpr.constvars, constants, strict=True)})

        def read(atom: Any) -> Value:
            return constant(atom.val) if isinstance(atom, core.Literal) else values[atom]

        for equation in jaxpr.eqns:
            operands = [read(atom) for atom in equation.invars]
            results = self._equation(equation, operands, f"{scope}/{equation.source_info.name_stack}")
            values.update(zip(equation.outvars, results, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _equation(self, equation: core.JaxprEqn, operands: list[Value], scope: str) -> list[Value]:
        name, params = equation.primitive.name, equation.params
        shapes = [getattr(variable.aval, "shape", ()) for variable in equation.outvars]
        if name in _CALLS:
            inner = next(params[key] for key in _INNER if key in params)
            closed = isinstance(inner, core.ClosedJaxpr)
            return self.run(inner.jaxpr if closed else inner, inner.consts if closed else (), operands, scope)
        small = sum(map(math.prod, shapes)) <= LARGEST_CONSTANT
        if small and all(operand.known is not None for operand in operands):
            results = equation.primitive.bind(*[operand.known for operand in operands], **params)
            return [constant(result) for result in (results if equation.primitive.multiple_results else [results])]
        if name in RULES:
            results = RULES[name](params, operands, shapes, self.theoretical)
        elif not any(operand.depends for operand in operands):
            results = [independent(shape) for shape in shapes]
        elif self.unknown == "whole":
            results = [hull(operands, shape) for shape in shapes]
        else:
            raise UsageError(
                f"the primitive {name!r} lies between image and output, and how it passes pixels on is not known here; "
                'unknown="whole" takes its results to depend on all that reaches its operands'
            )
        self.multiply_adds[scope] += multiply_adds(name, params, operands, shapes[0]) if shapes else 0
        if name in STRIDED:
            return results
        steps = tuple(max([operand.steps[i] for operand in operands if operand.depends] or [1]) for i in (0, 1))
        return [dataclasses.replace(result, steps=steps) for result in results]
