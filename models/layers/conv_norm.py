"""Convolution, BatchNorm and ReLU: the unit of which GoogLeNet, Inception and MobileNet consist."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from models.layers.convolution import convolution

CONV_INIT = nn.initializers.variance_scaling(2.0, "fan_in", "normal")  # He et al. (2015), eq. 10: before ReLU
HEAD_INIT = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # U(-1/√n, 1/√n), torch's for linear layers


class ConvNorm(nn.Module):
    """relu(BatchNorm(convolution(x))), with torchvision's names `conv` and `bn`.

    channels, kernel, stride: of the convolution; kernel is (height, width).
    padding: pixels on each side of (height, width).
    batch_norm: without it the convolution has a bias instead.
    epsilon: of BatchNorm; its decay is 0.9.
    """

    channels: int
    kernel: tuple[int, int]
    stride: int = 1
    padding: tuple[int, int] = (0, 0)
    batch_norm: bool = True
    epsilon: float = 1e-3
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], train: bool
    ) -> Float[Array, "batch out_height out_width out_channels"]:
        """[batch, height, width, channels] -> [batch, height / stride, width / stride, channels], less what is cut."""
        options = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = nn.Conv(
            self.channels,
            self.kernel,
            (self.stride, self.stride),
            padding=tuple((pixels, pixels) for pixels in self.padding),
            use_bias=not self.batch_norm,
            kernel_init=CONV_INIT,
            conv_general_dilated=convolution,
            name="conv",
            **options,
        )(x)
        if self.batch_norm:
            settings = {"momentum": 0.9, "epsilon": self.epsilon, "axis_name": self.axis_name, **options}
            x = nn.BatchNorm(not train, name="bn", **settings)(x)
        return nn.relu(x)
