"""MobileNet v1: Howard et al. (2017), "MobileNets", https://arxiv.org/abs/1704.04861, table 1.

Submodules bear timm's names (`conv_stem`, `bn1`, `blocks_1_0/conv_dw`, …, `classifier`), strided layers pad explicitly
as torch does, and BatchNorm has ε = 1e-5 and decay 0.9. `mobilenet_v1` has the paper's ReLU, `mobilenetv1_100` timm's
ReLU6. Deviation: the last depthwise convolution has stride 1; the paper's table prints 2 there, but the sizes
beside it, and its implementations, have 1.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dl_core.errors import UsageError, unknown_name
from models.feature_maps import name_feature_map
from models.layers.conv_norm import CONV_INIT, HEAD_INIT
from models.layers.convolution import convolution
from models.registry import register

_ACTIVATIONS = {"relu": nn.relu, "relu6": nn.relu6}


class SeparableBlock(nn.Module):
    """3×3 convolution of each channel alone, then 1×1 across channels, each with BatchNorm and the activation.

    settings: precision and mode of the two kinds of layer: {"conv": …, "norm": …}.
    """

    channels: int
    stride: int
    activation: str
    settings: dict[str, Any]

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch out_height out_width out_channels"]:
        """[batch, height, width, channels] -> [batch, height / stride, width / stride, channels of the block]."""
        act, conv, norm = _ACTIVATIONS[self.activation], self.settings["conv"], self.settings["norm"]
        depthwise = {"strides": self.stride, "padding": ((1, 1), (1, 1)), "feature_group_count": x.shape[-1]}
        x = nn.Conv(x.shape[-1], (3, 3), name="conv_dw", **depthwise, **conv)(x)
        x = act(nn.BatchNorm(name="bn1", **norm)(x))
        x = nn.Conv(self.channels, (1, 1), name="conv_pw", **conv)(x)
        return act(nn.BatchNorm(name="bn2", **norm)(x))


@register("mobilenet_v1")
@register("mobilenetv1_100", activation="relu6")
class MobileNetV1(nn.Module):
    """A 3×3 convolution and 13 depthwise-separable blocks; 4,231,976 parameters at 1000 classes.

    width_multiplier: α of the paper, > 0: every layer has this fraction of its channels (0.25, 0.5, 0.75 and 1 there).
    block_sizes: blocks in each stage; every stage after the first halves the map and, but for the first, doubles the
      channels.
    activation: "relu" (the paper) or "relu6" (timm and the authors' code).
    axis_name: the pmap axis over which BatchNorm averages its statistics; None under jit, where they are global.

    Feature maps (224×224 input): "stem" [batch, 112, 112, 32], "stage1" [batch, 112, 112, 64], "stage2"
    [batch, 56, 56, 128], …, "stage5" [batch, 7, 7, 1024], "penultimate" [batch, 1024].
    """

    num_classes: int
    width_multiplier: float = 1.0
    block_sizes: tuple[int, ...] = (1, 2, 2, 6, 2)
    activation: str = "relu"
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    axis_name: str | None = None

    def __post_init__(self):
        if self.activation not in _ACTIVATIONS:
            raise unknown_name("activation", self.activation, _ACTIVATIONS)
        if not self.width_multiplier > 0:
            raise UsageError(f"width_multiplier must be positive, got {self.width_multiplier}")
        super().__post_init__()

    @nn.compact
    def __call__(
        self, x: Float[Array | np.ndarray, "batch height width channels"], train: bool = False
    ) -> Float[Array, "batch classes"]:
        """[batch, height, width, channels] -> logits [batch, num_classes], float32; train: statistics of the batch."""
        precision = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        conv = {"use_bias": False, "kernel_init": CONV_INIT, "conv_general_dilated": convolution, **precision}
        norm = {"use_running_average": not train, "momentum": 0.9, "epsilon": 1e-5, "axis_name": self.axis_name}
        settings = {"conv": conv, "norm": {**norm, **precision}}
        scaled = lambda channels: max(1, round(self.width_multiplier * channels))

        stem = {"strides": 2, "padding": ((1, 1), (1, 1)), "name": "conv_stem", **conv}
        x = nn.Conv(scaled(32), (3, 3), **stem)(jnp.asarray(x, self.dtype))
        x = _ACTIVATIONS[self.activation](nn.BatchNorm(name="bn1", **settings["norm"])(x))
        x = name_feature_map(self, "stem", x)
        for i, size in enumerate(self.block_sizes):
            for j in range(size):
                stride = 2 if i > 0 and j == 0 else 1
                block = SeparableBlock(scaled(64 * 2**i), stride, self.activation, settings, name=f"blocks_{i}_{j}")
                x = block(x)
            x = name_feature_map(self, f"stage{i + 1}", x)
        dtype = jnp.promote_types(self.dtype, jnp.float32)
        x = name_feature_map(self, "penultimate", x.mean(axis=(1, 2), dtype=dtype))
        head = {"kernel_init": HEAD_INIT, "dtype": dtype, "param_dtype": self.param_dtype, "name": "classifier"}
        return nn.Dense(self.num_classes, **head)(x)
