"""Activation functions: JAX's under its own names, and those of the course notes (section 1.6) that it does not have.

`activation(name, **fields)` finds one by name. Which of them saturate, that is pass hardly any gradient, shows
`dl_core.plots.activation_functions`.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jax.nn import elu, gelu, identity, log_softmax, relu, sigmoid, silu, softmax, tanh
from jaxtyping import Array, Float

from dl_core.errors import UsageError, unknown_name

__all__ = [
    "ACTIVATIONS",
    "Activation",
    "activation",
    "check_binary_head",
    "elu",
    "gelu",
    "identity",
    "leaky_relu",
    "log_softmax",
    "maxout",
    "prelu",
    "relu",
    "sigmoid",
    "silu",
    "sinusoid",
    "softmax",
    "tanh",
]


def leaky_relu(x: Float[Array | np.ndarray, "..."], negative_slope: float = 0.1) -> Float[Array, "..."]:
    """x where x >= 0, else negative_slope · x (course notes, eq. 6, whose slope is 0.1; JAX's default is 0.01).

    Maas, Hannun, Ng (2013), "Rectifier nonlinearities improve neural network acoustic models".

    Args:
      x: any shape.
      negative_slope: of the left half.

    Returns:
      Same shape and dtype.
    """
    return jax.nn.leaky_relu(x, negative_slope)


def prelu(
    x: Float[Array | np.ndarray, "..."], slope: Float[Array | np.ndarray, "..."] | float = 0.25
) -> Float[Array, "..."]:
    """x where x >= 0, else slope · x with a learned slope for all channels or for each.

    He, Zhang, Ren, Sun (2015), "Delving deep into rectifiers", https://arxiv.org/abs/1502.01852, eq. 1; as a layer with
    one slope: `flax.linen.PReLU`.

    Args:
      x: [..., channels].
      slope: a scalar or [channels]; the paper starts from 0.25.

    Returns:
      Same shape as x.
    """
    slope = jnp.asarray(slope, x.dtype)
    return jnp.where(x >= 0, x, slope.reshape((1,) * (x.ndim - slope.ndim) + slope.shape) * x)


def sinusoid(x: Float[Array | np.ndarray, "..."]) -> Float[Array, "..."]:
    """sin(x), of any shape (course notes, eq. 8)."""
    return jnp.sin(x)


def maxout(x: Float[Array | np.ndarray, "... channels"], pieces: int = 2) -> Float[Array, "... units"]:
    """The largest of each `pieces` consecutive channels.

    Goodfellow et al. (2013), "Maxout networks", https://arxiv.org/abs/1302.4389: a linear layer with `pieces` times as
    many outputs goes before it, max(w₁ᵀx + b₁, w₂ᵀx + b₂) for 2.

    Args:
      x: [..., units · pieces].
      pieces: >= 1.

    Returns:
      [..., units].

    Raises:
      UsageError: pieces does not divide the number of channels.
    """
    if pieces < 1 or x.shape[-1] % pieces:
        raise UsageError(f"pieces must divide the number of channels, {x.shape[-1]}, got {pieces}")
    return jnp.asarray(x).reshape(*x.shape[:-1], -1, pieces).max(axis=-1)


Activation = Callable[[Float[Array, "..."]], Float[Array, "..."]]

ACTIVATIONS: dict[str, Callable[..., Array]] = {
    "identity": identity,
    "sigmoid": sigmoid,
    "relu": relu,
    "leaky_relu": leaky_relu,
    "prelu": prelu,
    "tanh": tanh,
    "sinusoid": sinusoid,
    "elu": elu,
    "gelu": functools.partial(gelu, approximate=False),  # the paper's form; JAX's default approximates it by tanh
    "silu": silu,
    "maxout": maxout,
    "softmax": softmax,
    "log_softmax": log_softmax,
}


def activation(name: str, **fields: Any) -> Activation:
    """An activation by name, [...] -> [...].

    Args:
      name: one of `ACTIVATIONS`.
      **fields: its own arguments, e.g. `negative_slope=0.2`.

    Returns:
      A function of one array.

    Raises:
      UsageError: unknown name.
    """
    if name not in ACTIVATIONS:
        raise unknown_name("activation", name, ACTIVATIONS)
    return functools.partial(ACTIVATIONS[name], **fields) if fields else ACTIVATIONS[name]


_PASSED_THROUGH = ("reshape", "squeeze", "slice", "broadcast_in_dim", "convert_element_type", "transpose", "logistic")
_NEVER_NEGATIVE = {"abs": "an absolute value", "exp": "an exponential", "square": "a square", "sqrt": "a root"}


def check_binary_head(apply_fn: Callable[[Any, Any], Any], params: Any, inputs: Any) -> None:
    """Refuses a binary classifier whose logit cannot be negative: σ(relu(z)) >= 0.5 for every z, so all are positives.

    Looks at the last operation before the sigmoid, if there is one, or before the output; nothing is computed.

    Args:
      apply_fn: (params, inputs) -> one logit, or one probability σ(logit), per example.
      params: pytree of arrays, or of their shapes.
      inputs: a batch [batch, ...], or its shape (`jax.ShapeDtypeStruct`).

    Raises:
      UsageError: the logit is a ReLU or another function without negative values.
    """
    jaxpr = jax.make_jaxpr(apply_fn)(params, inputs).jaxpr
    maker = _maker(jaxpr, jaxpr.outvars[0])
    if not isinstance(maker, core.JaxprEqn):
        return
    name = maker.primitive.name
    if name == "max" and any(_is_zero(atom) for atom in maker.invars):
        what = "a ReLU"
    elif name == "integer_pow" and maker.params["y"] % 2 == 0:
        what = "an even power"
    elif name in _NEVER_NEGATIVE:
        what = _NEVER_NEGATIVE[name]
    else:
        return
    raise UsageError(
        f"the logit of this binary classifier comes out of {what} and is never negative, so that its sigmoid is at "
        "least 0.5 and every example counts as positive; let the last layer be linear"
    )


def _maker(jaxpr: core.Jaxpr, result: Any) -> core.JaxprEqn | int | None:
    """The operation that made a result, seen through calls, sigmoid and changes of shape; or which input it is."""
    equation = next((equation for equation in jaxpr.eqns if any(out is result for out in equation.outvars)), None)
    if equation is None:
        return next((i for i, variable in enumerate(jaxpr.invars) if variable is result), None)
    inner = next((equation.params[key] for key in ("jaxpr", "call_jaxpr") if key in equation.params), None)
    if inner is not None:
        inner = getattr(inner, "jaxpr", inner)
        place = next(i for i, out in enumerate(equation.outvars) if out is result)
        found = _maker(inner, inner.outvars[place])
        return _maker(jaxpr, equation.invars[found]) if isinstance(found, int) else found
    if equation.primitive.name in _PASSED_THROUGH:
        return _maker(jaxpr, equation.invars[0])
    return equation


def _is_zero(atom: Any) -> bool:
    return isinstance(atom, core.Literal) and math.prod(np.shape(atom.val)) == 1 and float(atom.val) == 0
