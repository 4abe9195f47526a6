"""First weights of a network: JAX's initialisers under their own names, and the forms of the course notes.

All have JAX's signature, (key, shape, dtype) -> array, the last axis of the shape being the outputs and the one before
it the inputs, so that they serve as `kernel_init=` of any Flax layer. n is the fan-in: inputs of one unit.

    fan_in_normal(1)   N(0, 1/n)             Xavier of the course notes, eq. 26 (LeCun's form): tanh
    fan_in_normal(2)   N(0, 2/n)             He, eq. 27: ReLU
    fan_in_uniform(g)  U(-√(3g/n), √(3g/n))  the same variances
    xavier_*           variance 2/(n + m)    Glorot and Bengio (2010), m the fan-out
    he_*, lecun_*      variance 2/n, 1/n; the normal ones are JAX's, cut off at two standard deviations
    orthogonal         rows or columns orthonormal; Saxe, McClelland, Ganguli (2014)
"""

from jax.nn.initializers import (
    Initializer,
    he_normal,
    he_uniform,
    lecun_normal,
    lecun_uniform,
    orthogonal,
    variance_scaling,
)
from jax.nn.initializers import glorot_normal as xavier_normal
from jax.nn.initializers import glorot_uniform as xavier_uniform

from dl_core.errors import UsageError

__all__ = [
    "before_activation",
    "fan_in_normal",
    "fan_in_uniform",
    "he_normal",
    "he_uniform",
    "lecun_normal",
    "lecun_uniform",
    "orthogonal",
    "variance_scaling",
    "xavier_normal",
    "xavier_uniform",
]


def fan_in_normal(gain: float = 1.0) -> Initializer:
    """Weights from N(0, gain / n), not cut off (course notes, eq. 26 and 27).

    Var(s) = n · σ² · E[x²], so that with gain 1 a linear layer keeps the mean square of its input; ReLU lets half of it
    through, which gain 2 makes up for (He et al., 2015, https://arxiv.org/abs/1502.01852, eq. 10).

    Args:
      gain: > 0; 1 for linear, tanh and sigmoid units, 2 for rectifiers.

    Returns:
      (key, shape [..., in, out], dtype) -> array.

    Raises:
      UsageError: gain out of its range.
    """
    return variance_scaling(_positive(gain), "fan_in", "normal")


def fan_in_uniform(gain: float = 1.0) -> Initializer:
    """Weights from U(-α, α), α = √(3 gain / n), the uniform distribution of variance gain / n.

    Args:
      gain: > 0, as for `fan_in_normal`.

    Returns:
      (key, shape [..., in, out], dtype) -> array.

    Raises:
      UsageError: gain out of its range.
    """
    return variance_scaling(_positive(gain), "fan_in", "uniform")


_RECTIFIERS = ("relu", "leaky_relu", "prelu", "elu", "gelu", "silu")  # pass about half of the signal's energy


def before_activation(name: str) -> Initializer:
    """Weights for a layer that an activation follows, so that the signal keeps its variance through many layers.

    Args:
      name: of the activation, a key of `dl_core.activations.ACTIVATIONS`.

    Returns:
      (key, shape [..., in, out], dtype) -> array: `fan_in_normal(2)` before rectifiers, `fan_in_normal(1)` else.
    """
    return fan_in_normal(2.0 if name in _RECTIFIERS else 1.0)


def _positive(gain: float) -> float:
    if not gain > 0:
        raise UsageError(f"gain must be positive, got {gain}")
    return gain
