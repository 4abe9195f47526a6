"""Residual blocks with normalisation: what ResNet, ResNeXt and Wide ResNet consist of.

v1: He, Zhang, Ren, Sun (2016), https://arxiv.org/abs/1512.03385. v2: the same, https://arxiv.org/abs/1603.05027.
A block is described by the list of its convolutions, so that basic, bottleneck and grouped forms are one module.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from models.layers.convolution import convolution
from models.layers.dropout import Dropout
from models.layers.weight_standardization import standardized_convolution

Map = Float[Array, "batch height width channels"]
OutMap = Float[Array, "batch out_height out_width out_channels"]
Layer = Callable[..., Any]

CONV_INIT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")  # He et al. (2015), eq. 14, as in torchvision
FC_INIT = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # U(-1/√n, 1/√n), as in torchvision


class Step(NamedTuple):
    """One convolution of a block: output channels, side of the kernel, stride, and groups of channels."""

    channels: int
    size: int
    stride: int = 1
    groups: int = 1


Plan = tuple[Step, ...]


def conv_layer(
    *, standardized: bool = False, dtype: DTypeLike = jnp.float32, param_dtype: DTypeLike = jnp.float32
) -> Layer:
    """conv(channels, size, stride, groups, name=…): a convolution without bias and with torch's padding.

    Args:
      standardized: with weight standardisation.
      dtype, param_dtype: of the computation and of the parameters.

    Returns:
      The function; it makes a Linen module, to be called in a compact method.
    """

    def conv(channels: int, size: int, stride: int, groups: int = 1, **more: Any) -> nn.Module:
        settings = {
            "use_bias": False,
            "kernel_init": CONV_INIT,
            "conv_general_dilated": standardized_convolution if standardized else convolution,
            "feature_group_count": groups,
            "dtype": dtype,
            "param_dtype": param_dtype,
            **more,
        }
        return nn.Conv(channels, (size, size), (stride, stride), padding=((size // 2, size // 2),) * 2, **settings)

    return conv


class ResidualBlock(nn.Module):
    """v1: y = relu(F(x) + shortcut(x)); F is convolution, norm, ReLU, …, convolution, norm.

    plan: the convolutions of F.
    shortcut: where shapes differ, "projection" (1×1 convolution, option B) or "pad" (option A).
    zero_init: the last norm starts with γ = 0, so that the block starts as its shortcut.
    conv, norm: the two layers, with precision and mode already set.
    """

    plan: Plan
    shortcut: str
    zero_init: bool
    conv: Layer
    norm: Layer

    @nn.compact
    def __call__(self, x: Map) -> OutMap:
        """[batch, height, width, channels] -> [batch, height / stride, width / stride, channels of the last layer]."""
        y = x
        for i, step in enumerate(self.plan, start=1):
            y = self.conv(*step, name=f"conv{i}")(y)
            last = i == len(self.plan)
            scale_init = nn.initializers.zeros if last and self.zero_init else nn.initializers.ones
            y = self.norm(scale_init=scale_init, name=f"bn{i}")(y)
            y = y if last else nn.relu(y)
        if x.shape == y.shape:
            return nn.relu(y + x)
        stride = math.prod(step.stride for step in self.plan)
        if self.shortcut == "pad":
            return nn.relu(y + _subsample_and_pad(x, stride, y.shape[-1]))
        x = self.conv(y.shape[-1], 1, stride, name="downsample_conv")(x)
        return nn.relu(y + self.norm(name="downsample_bn")(x))


class PreActivationBlock(nn.Module):
    """v2: y = F(x) + shortcut(x); F is norm, ReLU, convolution, …, norm, ReLU, convolution.

    Fields as in ResidualBlock; with `zero_init` the last convolution starts at 0. A projection, and the shortcut of the
    network's `first` block, start from the first activation (section 4.1 and appendix of the paper).

    dropout: rate of single units before the last convolution (Zagoruyko, Komodakis, 2016, section 2.4).
    axis_name: the pmap axis over which the batch is divided, or None; for dropout.
    """

    plan: Plan
    shortcut: str
    zero_init: bool
    conv: Layer
    norm: Layer
    first: bool
    dropout: float = 0.0
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Map, train: bool = False) -> OutMap:
        """[batch, height, width, channels] -> [batch, height / stride, width / stride, channels of the last layer]."""
        y = activated = nn.relu(self.norm(name="bn1")(x))
        for i, step in enumerate(self.plan, start=1):
            last = i == len(self.plan)
            if i > 1:
                y = nn.relu(self.norm(name=f"bn{i}")(y))
            if last:
                y = Dropout(self.dropout, axis_name=self.axis_name)(y, train)
            more = {"kernel_init": nn.initializers.zeros} if last and self.zero_init else {}
            y = self.conv(*step, name=f"conv{i}", **more)(y)
        if x.shape == y.shape:
            return y + (activated if self.first else x)
        stride = math.prod(step.stride for step in self.plan)
        if self.shortcut == "pad":
            return y + _subsample_and_pad(x, stride, y.shape[-1])
        return y + self.conv(y.shape[-1], 1, stride, name="downsample_conv")(activated)


def _subsample_and_pad(x: Map, stride: int, channels: int) -> OutMap:
    """Option A: every stride-th pixel, and zeros for the channels that are new; no parameters."""
    return jnp.pad(x[:, ::stride, ::stride], ((0, 0), (0, 0), (0, 0), (0, channels - x.shape[-1])))
