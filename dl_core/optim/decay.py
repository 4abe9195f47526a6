"""Shrinking the weights: which of them, and by how much.

    coupled (ridge, L2)   g ← g + λ w, the gradient of λ/2 ‖w‖², before the optimiser sees it
    decoupled             w ← (1 - η λ) w beside the optimiser's own step (course notes, eq. 21 and 23)
    lasso (L1)            g ← g + λ sign(w), the subgradient of λ ‖w‖₁ (course notes, eq. 28)

For plain gradient descent the first two are the same. For an optimiser that rescales its gradient they are not: a
coupled decay is rescaled with it. Loshchilov, Hutter (2019), "Decoupled Weight Decay Regularization",
https://arxiv.org/abs/1711.05101. Biases and the scales and offsets of normalisation layers are spared by default.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from dl_core.errors import unknown_name
from dl_core.optim.options import Number, in_interval

Which = str | Callable[[str, Any], bool]


def _is_kernel(path: str, leaf: Any) -> bool:
    """Whether a parameter multiplies activations: at least a matrix, no bias, no part of a normalisation layer."""
    *parents, name = path.split("/")
    in_norm = bool(parents) and "norm" in parents[-1].lower()
    return jnp.ndim(leaf) >= 2 and name not in ("bias", "scale") and (name == "kernel" or not in_norm)


_WHICH: dict[str, Callable[[str, Any], bool]] = {"kernels": _is_kernel, "all": lambda path, leaf: True}


def decay_mask(params: PyTree, which: Which = "kernels") -> PyTree[bool]:
    """Which parameters a penalty or decay applies to.

    Args:
      params: pytree of parameters, any shapes.
      which: "kernels": those with two or more axes, except what is called bias or scale and what lies directly in a
        module with "norm" in its name; "all"; or a function (path, leaf) -> bool, with a path like "Conv_0/kernel".

    Returns:
      The same pytree with a bool for every leaf.

    Raises:
      UsageError: `which` is another string.
    """
    if isinstance(which, str) and which not in _WHICH:
        raise unknown_name("decay_mask", which, _WHICH)
    chosen = _WHICH[which] if isinstance(which, str) else which
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: bool(chosen(jax.tree_util.keystr(path, simple=True, separator="/"), leaf)), params
    )


def add_lasso(strength: Number, which: Which = "kernels") -> optax.GradientTransformation:
    """Adds λ sign(w) to the gradient, so that the loss gains λ ‖w‖₁ (course notes, eq. 28).

    Args:
      strength: λ, >= 0.
      which: see `decay_mask`.

    Returns:
      An Optax transformation (no state); its update needs the parameters.

    Raises:
      UsageError: a negative strength, or an unknown `which`.
    """
    in_interval("l1", strength, "[0, inf)")

    def add(updates: Any, params: Any) -> Any:
        return jax.tree.map(lambda g, w: g + strength * jnp.sign(w), updates, params)

    return optax.masked(optax.stateless(add), lambda params: decay_mask(params, which))
