"""The computational graph of a model: which layer or operation feeds which, read off its jaxpr."""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
from jax.extend import core

from models.summary import Call, call_of, trace

_NAMED = {"relu", "relu6", "silu", "swish", "gelu", "elu", "leaky_relu", "softmax", "log_softmax", "selu", "softplus"}
_FUNCTIONS = {"tanh": "tanh", "logistic": "sigmoid", "sin": "sin", "erf": "erf"}
_JOINING = {"add": "add", "mul": "multiply", "concatenate": "concatenate", "dot_general": "product", "sub": "subtract"}
_POOLING = {"reduce_window_max": "max pool", "reduce_window_sum": "average pool", "reduce_window": "pool"}
_REDUCING = {"reduce_sum": "global average pool", "reduce_max": "global max pool"}
_INNER = ("jaxpr", "call_jaxpr", "fun_jaxpr")


@dataclasses.dataclass
class Node:
    """A box: its name, what it does, the shape it hands on (without the batch), and the nodes that feed it."""

    name: str
    detail: str
    shape: tuple[int, ...]
    sources: set[int]
    is_module: bool = False


def graph(model: nn.Module, input_shape: tuple[int, ...], level: str) -> list[Node]:
    """The nodes of a model in evaluation, in an order in which sources come first; node 0 is the image.

    Args:
      model: a Linen module.
      input_shape: (height, width, channels) of one image.
      level: "layers": modules, and between them activations, pooling and what joins branches; "operations": everything
        that is computed from the image.

    Returns:
      The nodes.
    """
    variables, closed, calls, _ = trace(model, input_shape)
    reader = _Reader(calls, level)
    start = reader.node("image", "", tuple(input_shape), frozenset())
    parameters = len(jax.tree.leaves(variables))
    made = reader.read(closed.jaxpr, [frozenset()] * parameters + [start], "")
    return _leading_to(made[0], reader.nodes)


class _Reader:
    """Follows the image through a jaxpr; each variable has the set of nodes that made it, empty if no image did."""

    def __init__(self, calls: list[Call], level: str):
        self.calls = calls
        self.level = level
        self.nodes: list[Node] = []
        self.of_call: dict[int, int] = {}
        self.pools: dict[int, frozenset[int]] = {}  # node of a pooling by maxima -> what it pools
        parents = {call.parent for call in calls}
        self.leaves = {index for index in range(len(calls)) if index not in parents}

    def node(self, name: str, detail: str, shape: tuple[int, ...], sources: frozenset[int]) -> frozenset[int]:
        self.nodes.append(Node(name, detail, shape, set(sources)))
        return frozenset([len(self.nodes) - 1])

    def read(self, jaxpr: core.Jaxpr, inputs: list[frozenset[int]], scope: str) -> list[frozenset[int]]:
        made: dict[Any, frozenset[int]] = dict(zip(jaxpr.invars, inputs, strict=True))

        def makers(atom: Any) -> frozenset[int]:
            return frozenset() if isinstance(atom, core.Literal) else made.get(atom, frozenset())

        for equation in jaxpr.eqns:
            operands = [makers(atom) for atom in equation.invars]
            if any(operands):
                results = self._equation(equation, operands, f"{scope}/{equation.source_info.name_stack}")
                made.update(zip(equation.outvars, results, strict=True))
        return [makers(atom) for atom in jaxpr.outvars]

    def _equation(self, equation: core.JaxprEqn, operands: list[frozenset[int]], scope: str) -> list[frozenset[int]]:
        name, params = equation.primitive.name, equation.params
        shape, call = equation.outvars[0].aval.shape[1:], call_of(scope)
        sources = frozenset().union(*operands)
        in_layer = self.level == "layers" and call in self.leaves
        if in_layer and self.calls[call].path:
            result = self._in_layer(call, sources, shape)
        elif params.get("name") in _NAMED:
            result = self.node(params["name"], "", shape, sources)
        elif inner := next((params[key] for key in _INNER if key in params), None):
            return self.read(getattr(inner, "jaxpr", inner), operands, scope)
        elif self.level == "operations":
            same = name in ("convert_element_type", "copy", "name", "stop_gradient", "squeeze", "broadcast_in_dim")
            result = sources if same else self.node(name, "", shape, sources)
        else:
            result = self._between_layers(equation, [operand for operand in operands if operand], shape)
        return [result] * len(equation.outvars)

    def _in_layer(self, call: int, sources: frozenset[int], shape: tuple[int, ...]) -> frozenset[int]:
        if call not in self.of_call:
            path, module, _ = self.calls[call]
            kernel = getattr(module, "kernel_size", None)
            kernel = (kernel, kernel) if isinstance(kernel, int) else kernel
            detail = type(module).__name__ + (f" {'×'.join(map(str, kernel))}" if kernel else "")
            (self.of_call[call],) = self.node("/".join(path), detail, shape, frozenset())
            self.nodes[self.of_call[call]].is_module = True
        index = self.of_call[call]
        self.nodes[index].sources |= sources - {index}
        self.nodes[index].shape = shape
        return frozenset([index])

    def _between_layers(
        self, equation: core.JaxprEqn, operands: list[frozenset[int]], shape: tuple[int, ...]
    ) -> frozenset[int]:
        name, params = equation.primitive.name, equation.params
        sources = frozenset().union(*operands)
        before = equation.invars[0].aval.shape[1:]
        if name in _FUNCTIONS:
            return self.node(_FUNCTIONS[name], "", shape, sources)
        if name in _POOLING:
            window = [str(n) for n in params["window_dimensions"][1:-1]]
            return self.node(_POOLING[name], "×".join(window), shape, sources)
        if name in _REDUCING and math.prod(shape) < math.prod(before) and len(before) == 3:
            return self.node(_REDUCING[name], "", shape, sources)
        if name == "reshape" and len(shape) == 1 < len(before):
            return self.node("flatten", "", shape, sources)
        if name == "max" and len(operands) == 2:  # of several slices: pooling over windows that do not overlap
            for index in sources & self.pools.keys():
                if sources - {index} == self.pools[index]:
                    return frozenset([index])
            result = self.node("max pool" if operands[0] == operands[1] else "max", "", shape, sources)
            self.pools[next(iter(result))] = sources
            return result
        if name in _JOINING and len(operands) > 1 and (len(set(operands)) > 1 or name == "dot_general"):
            return self.node(_JOINING[name], "", shape, sources)
        if name == "dot_general":
            return self.node("linear", "", shape, sources)
        if name == "conv_general_dilated":
            return self.node("convolution", "", shape, sources)
        return sources


def _leading_to(result: frozenset[int], nodes: list[Node]) -> list[Node]:
    """The nodes from which a path leads to the result, numbered anew with sources first."""
    needed, waiting = set(), list(result)
    while waiting:
        index = waiting.pop()
        if index not in needed:
            needed.add(index)
            waiting += nodes[index].sources
    order = {index: place for place, index in enumerate(sorted(needed))}
    return [
        dataclasses.replace(nodes[index], sources={order[source] for source in nodes[index].sources}) for index in order
    ]
