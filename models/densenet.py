"""DenseNet: Huang, Liu, van der Maaten, Weinberger (2017), "Densely connected convolutional networks", 1608.06993.

Submodules bear torchvision's names below its `features` (`conv0`, `norm0`, `denseblock1/denselayer1/conv1`, …,
`transition1/norm`, `norm5`, `classifier`); BatchNorm has ε = 1e-5 and decay 0.9. The CIFAR forms have a 3×3 stem
without BatchNorm, as in the authors' code; their names continue torchvision's pattern.
"""

from collections.abc import Callable
from functools import partial
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
from models.layers.dropout import Dropout
from models.layers.pooling import max_pool
from models.registry import register

Map = Float[Array, "batch height width channels"]
Layer = Callable[..., Any]


class DenseLayer(nn.Module):
    """BatchNorm, ReLU, [1×1 convolution, BatchNorm, ReLU,] 3×3 convolution: `growth_rate` new channels.

    bottleneck: channels of the 1×1 convolution as a multiple of growth_rate; 0 leaves it out.
    dropout: rate of single units after each convolution.
    conv, norm: the two layers, with precision and mode already set.
    """

    growth_rate: int
    bottleneck: int
    dropout: float
    axis_name: str | None
    conv: Layer
    norm: Layer

    @nn.compact
    def __call__(self, x: Map, train: bool) -> Float[Array, "batch height width new_channels"]:
        """[batch, height, width, channels] -> [batch, height, width, growth_rate]."""
        sizes = [(self.bottleneck * self.growth_rate, 1)] if self.bottleneck else []
        for i, (channels, size) in enumerate([*sizes, (self.growth_rate, 3)], start=1):
            x = nn.relu(self.norm(name=f"norm{i}")(x))
            x = self.conv(channels, size, 1, name=f"conv{i}")(x)
            x = Dropout(self.dropout, axis_name=self.axis_name)(x, train)
        return x


class DenseBlock(nn.Module):
    """Each layer sees the maps of all layers before it. size: layers; layer: DenseLayer with its fields set."""

    size: int
    layer: Layer

    @nn.compact
    def __call__(self, x: Map, train: bool) -> Float[Array, "batch height width more_channels"]:
        """[batch, height, width, channels] -> [batch, height, width, channels + size * growth_rate]."""
        for j in range(1, self.size + 1):
            x = jnp.concatenate([x, self.layer(name=f"denselayer{j}")(x, train)], axis=-1)
        return x


class Transition(nn.Module):
    """BatchNorm, ReLU, 1×1 convolution to `channels`, 2×2 average pooling."""

    channels: int
    conv: Layer
    norm: Layer

    @nn.compact
    def __call__(self, x: Map) -> Float[Array, "batch half_height half_width out_channels"]:
        """[batch, height, width, channels] -> [batch, height / 2, width / 2, channels]."""
        x = self.conv(self.channels, 1, 1, name="conv")(nn.relu(self.norm(name="norm")(x)))
        return nn.avg_pool(x, (2, 2), strides=(2, 2))


class DenseNet(nn.Module):
    """A densely connected network; the defaults are DenseNet-121.

    Parameters at 1000 classes: DenseNet-121 7,978,856; -161 28,681,000; -169 14,149,480; -201 20,013,928. At 10
    classes, CIFAR form: DenseNet-BC-100-12 769,162; DenseNet-40-12 1,019,722.

    growth_rate: channels that each layer adds.
    block_sizes: layers in each block.
    stem_channels: of the first convolution.
    bottleneck: channels of a layer's 1×1 convolution as a multiple of growth_rate; 0 leaves it out ("B" if > 0).
    compression: channels after a transition as a fraction of those before ("C" if < 1).
    stem: "imagenet" (7×7 with stride 2, BatchNorm, ReLU, max-pool with stride 2) or "cifar" (3×3 with stride 1).
    dropout: rate after each convolution of a layer; the paper uses 0.2 on small data without augmentation.
    axis_name: the pmap axis over which BatchNorm averages its statistics; None under jit, where they are global.

    Feature maps (224×224 input): "stem" [batch, 112, 112, 64] (after its ReLU), then the output of each block:
    "stage1" [batch, 56, 56, ·], …, "stage4" [batch, 7, 7, ·] (after the final BatchNorm and ReLU), "penultimate"
    [batch, channels].
    """

    num_classes: int
    growth_rate: int = 32
    block_sizes: tuple[int, ...] = (6, 12, 24, 16)
    stem_channels: int = 64
    bottleneck: int = 4
    compression: float = 0.5
    stem: str = "imagenet"
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    axis_name: str | None = None

    def __post_init__(self):
        if self.stem not in ("imagenet", "cifar"):
            raise unknown_name("stem", self.stem, ("imagenet", "cifar"))
        if not 0 < self.compression <= 1:
            raise UsageError(f"compression must lie in (0, 1], got {self.compression}")
        super().__post_init__()

    @nn.compact
    def __call__(
        self, x: Float[Array | np.ndarray, "batch height width channels"], train: bool = False
    ) -> Float[Array, "batch classes"]:
        """[batch, height, width, channels] -> logits [batch, num_classes], float32; train: statistics of the batch."""
        imagenet = self.stem == "imagenet"
        smallest = 2 ** (len(self.block_sizes) + (1 if imagenet else -1)) - (3 if imagenet else 0)
        if min(x.shape[1:3]) < smallest:
            raise UsageError(f"densenet needs images of at least {smallest}×{smallest}, got {x.shape[1]}×{x.shape[2]}")
        conv, norm = self._layers(train)
        x = conv(self.stem_channels, 7 if imagenet else 3, 2 if imagenet else 1, name="conv0")(
            jnp.asarray(x, self.dtype)
        )
        if imagenet:
            x = nn.relu(norm(name="norm0")(x))
        x = name_feature_map(self, "stem", x)
        if imagenet:
            x = max_pool(x, 3, 2, 1)

        kind = {"growth_rate": self.growth_rate, "bottleneck": self.bottleneck, "dropout": self.dropout}
        layer = partial(DenseLayer, **kind, axis_name=self.axis_name, conv=conv, norm=norm)
        for i, size in enumerate(self.block_sizes, start=1):
            x = DenseBlock(size, layer, name=f"denseblock{i}")(x, train)
            if i == len(self.block_sizes):
                x = nn.relu(norm(name="norm5")(x))
            x = name_feature_map(self, f"stage{i}", x)
            if i < len(self.block_sizes):
                x = Transition(int(self.compression * x.shape[-1]), conv, norm, name=f"transition{i}")(x)

        dtype = jnp.promote_types(self.dtype, jnp.float32)
        x = name_feature_map(self, "penultimate", x.mean(axis=(1, 2), dtype=dtype))
        head = {"kernel_init": HEAD_INIT, "dtype": dtype, "param_dtype": self.param_dtype}
        return nn.Dense(self.num_classes, name="classifier", **head)(x)

    def _layers(self, train: bool) -> tuple[Layer, Layer]:
        """conv(channels, kernel size, stride) with torch's padding, and norm(), in the precision of the network."""
        options = {"dtype": self.dtype, "param_dtype": self.param_dtype}

        def conv(channels: int, size: int, stride: int, name: str) -> nn.Module:
            settings = {"use_bias": False, "kernel_init": CONV_INIT, "conv_general_dilated": convolution, **options}
            return nn.Conv(
                channels, (size, size), (stride, stride), padding=((size // 2,) * 2,) * 2, name=name, **settings
            )

        norm = partial(nn.BatchNorm, not train, momentum=0.9, epsilon=1e-5, axis_name=self.axis_name, **options)
        return conv, norm


register("densenet121")(DenseNet)
register("densenet161", growth_rate=48, block_sizes=(6, 12, 36, 24), stem_channels=96)(DenseNet)
register("densenet169", block_sizes=(6, 12, 32, 32))(DenseNet)
register("densenet201", block_sizes=(6, 12, 48, 32))(DenseNet)
_CIFAR = {"stem": "cifar", "growth_rate": 12}
register("densenet100_cifar", block_sizes=(16, 16, 16), stem_channels=24, **_CIFAR)(DenseNet)
register("densenet40_cifar", block_sizes=(12, 12, 12), stem_channels=16, bottleneck=0, compression=1.0, **_CIFAR)(
    DenseNet
)
