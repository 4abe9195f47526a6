"""Activation functions with their derivatives, and where these are so small that hardly any gradient passes."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from dl_core.activations import ACTIVATIONS
from dl_core.errors import UsageError
from dl_core.plots.style import BLUE, GREY, PALE, VERMILION, WIDTH, in_house_style

_VECTORS = ("maxout", "softmax", "log_softmax")  # of several numbers; drawn as functions of the first, the others 0


@in_house_style
def activation_functions(
    functions: Mapping[str, Callable] | None = None, *, limit: float = 5.0, threshold: float = 0.05
) -> Figure:
    """Each function (line) with its derivative (dashes); shaded where the derivative is smaller than a threshold.

    Args:
      functions: name -> function of an array [n]; by default all of `dl_core.activations.ACTIVATIONS`, those of several
        numbers with the first one along the axis and the other at 0.
      limit: the axis goes from -limit to limit, > 0.
      threshold: |derivative| below it counts as saturated, > 0.

    Returns:
      A Figure.

    Raises:
      UsageError: limit or threshold out of range.
    """
    if not (limit > 0 and threshold > 0):
        raise UsageError(f"limit and threshold must be positive, got {limit} and {threshold}")
    functions = functions or {name: _of_first(name) for name in ACTIVATIONS}
    x = np.linspace(-limit, limit, 1001)
    columns = min(3, len(functions))
    rows = -(-len(functions) // columns)
    figure = Figure(figsize=(WIDTH, 1.55 * rows + 0.35))
    grid = list(figure.subplots(rows, columns, sharex=True, squeeze=False).flat)
    for axes, (name, function) in zip(grid, functions.items(), strict=False):
        value = np.asarray(jax.vmap(function)(jnp.asarray(x, jnp.float32)))
        slope = np.asarray(jax.vmap(jax.grad(function))(jnp.asarray(x, jnp.float32)))
        low, high = max(min(value.min(), slope.min()), -2.4), min(max(value.max(), slope.max()), 2.4)
        room = 0.08 * (high - low)
        axes.set_ylim(low - room, high + room)
        axes.fill_between(
            x, 0, 1, where=np.abs(slope) < threshold, transform=axes.get_xaxis_transform(), color=PALE, linewidth=0
        )
        axes.axhline(0, color=GREY, linewidth=0.5)
        axes.plot(x, slope, color=VERMILION, linestyle=(0, (4, 1.5)), linewidth=1.2)
        axes.plot(x, value, color=BLUE)
        axes.set_title(name, fontsize=9)
        axes.set_xlim(-limit, limit)
    for axes in grid[len(functions) :]:
        axes.set_axis_off()
    figure.supxlabel(
        f"value (solid), derivative (dashed), |derivative| < {threshold:g} (shaded)", fontsize=9, color=GREY
    )
    return figure


def _of_first(name: str) -> Callable:
    if name not in _VECTORS:
        return ACTIVATIONS[name]
    return lambda x: ACTIVATIONS[name](jnp.stack([x, jnp.zeros_like(x)]))[0]
