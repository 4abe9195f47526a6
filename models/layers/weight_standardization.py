"""Convolutions whose weights, not activations, are normalised.

    weight standardisation          Ŵ = (W - μ) / √(σ² + ε)                Qiao et al. (2019), 1903.10520, eq. 5
    scaled weight standardisation   Ŵ = g γ (W - μ) / √(N (σ² + ε))        Brock, De, Smith (2021), 2101.08692, eq. 6

μ and σ² are taken over the N = height × width × in_channels weights of one output channel. With unit variance and zero
mean at its input, the first gives outputs of variance N (a normalisation has to follow), the second of variance (g γ)².
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from models.layers.convolution import Images, Kernel, Maps, convolution

Weights = Float[Array | np.ndarray, "*inputs out_channels"]
Padding = str | tuple[tuple[int, int], tuple[int, int]]


def standardize(kernel: Weights, *, epsilon: float = 1e-6) -> Weights:
    """Weights with mean 0 and variance 1 in every output channel.

    Args:
      kernel: [..., in_channels, out_channels].
      epsilon: added to the variance under the root, >= 0.

    Returns:
      The same shape and dtype; statistics are computed in at least float32.
    """
    weights = jnp.asarray(kernel, jnp.promote_types(kernel.dtype, jnp.float32))
    axes = tuple(range(kernel.ndim - 1))
    centred = weights - weights.mean(axes, keepdims=True)
    return (centred / jnp.sqrt(jnp.square(centred).mean(axes, keepdims=True) + epsilon)).astype(kernel.dtype)


def scaled_standardize(
    kernel: Weights,
    gain: Float[Array | np.ndarray, " out_channels"],
    *,
    gamma: float | Float[Array, ""] = 1.0,
    epsilon: float = 1e-6,
) -> Weights:
    """Weights with mean 0 and sum of squares (gain γ)² in every output channel, so that variance passes unchanged.

    Args:
      kernel: [..., in_channels, out_channels].
      gain: g, one learned factor for each output channel.
      gamma: γ, one constant for the layer, e.g. the gain of the nonlinearity before it.
      epsilon: added to the variance under the root, >= 0.

    Returns:
      The same shape.
    """
    fan_in = kernel.size // kernel.shape[-1]
    factor = jnp.expand_dims(gamma / fan_in**0.5 * gain, tuple(range(kernel.ndim - 1)))
    return standardize(kernel, epsilon=epsilon) * factor


def standardized_convolution(x: Images, kernel: Kernel, strides: tuple[int, int], padding: Any, **options: Any) -> Maps:
    """`convolution` with a standardised kernel, for `flax.linen.Conv(…, conv_general_dilated=…)`.

    Args and returns as for `models.layers.convolution.convolution`.
    """
    return convolution(x, standardize(kernel), strides, padding, **options)


class ScaledStandardizedConv(nn.Module):
    """Convolution with scaled weight standardisation; parameters kernel, gain and bias.

    features, kernel_size, strides: output channels; height and width of the kernel; step along each.
    padding: "SAME", "VALID" or ((top, bottom), (left, right)) in pixels.
    groups: of channels that do not see each other.
    gamma, epsilon: as in `scaled_standardize`.
    gain_init: start of the gain; 1 keeps the variance, 0 closes the layer.
    """

    features: int
    kernel_size: tuple[int, int]
    strides: tuple[int, int] = (1, 1)
    padding: Padding = "SAME"
    groups: int = 1
    gamma: float = 1.0
    epsilon: float = 1e-6
    gain_init: nn.initializers.Initializer = nn.initializers.ones
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch out_height out_width out_channels"]:
        """[batch, height, width, channels] -> [batch, height / stride, width / stride, features], as padding allows."""
        shape = (*self.kernel_size, x.shape[-1] // self.groups, self.features)
        init = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
        kernel = self.param("kernel", init, shape, self.param_dtype)
        gain = self.param("gain", self.gain_init, (self.features,), self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), self.param_dtype)
        weights = scaled_standardize(kernel, gain, gamma=self.gamma, epsilon=self.epsilon)
        options = {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), "feature_group_count": self.groups}
        x, weights, bias = (array.astype(self.dtype) for array in (x, weights, bias))
        return convolution(x, weights, self.strides, self.padding, **options) + bias[None, None, None]
