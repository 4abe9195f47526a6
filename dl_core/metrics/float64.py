"""float64 for values that are there to be seen; inside jit, vmap and grad the caller's own precision.

Distances between sets of features are small differences of large sums, and float32 leaves few of their digits. JAX
computes in float64 only where it is switched on, which this does around one function and nowhere else.
"""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def is_traced(*trees: Any) -> bool:
    """Whether arrays [...] in these pytrees, or what would be computed from them, have no values yet."""
    leaves = [*jax.tree.leaves(trees), jnp.zeros(())]  # inside jit a new array is a tracer, even where all else is not
    return any(isinstance(leaf, Tracer) for leaf in leaves)


def in_float64(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Makes a function compute in float64 and return NumPy arrays, unless it is being traced.

    Args:
      function: of pytrees with arrays of any shape [...]; floating ones become float64, all others stay.

    Returns:
      The same function. Matrix products take the full precision of their dtype, traced or not.
    """

    @functools.wraps(function)
    def run(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        with jax.default_matmul_precision("highest"):
            if is_traced(args, kwargs):
                return function(*args, **kwargs)
            with jax.enable_x64(True):
                args, kwargs = jax.tree.map(_widened, (args, kwargs))
                return jax.tree.map(np.asarray, function(*args, **kwargs))

    return run


def _widened(leaf: Any) -> Any:
    floating = isinstance(leaf, jax.Array | np.ndarray) and jnp.issubdtype(leaf.dtype, jnp.floating)
    return jnp.asarray(leaf, jnp.float64) if floating else leaf
