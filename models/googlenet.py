"""GoogLeNet: Szegedy et al. (2015), "Going deeper with convolutions", https://arxiv.org/abs/1409.4842, table 1.

Two forms. `googlenet` is torchvision's: BatchNorm (ε = 1e-3, decay 0.9) and no biases, 3×3 kernels where the paper has
5×5 (https://github.com/pytorch/vision/issues/906), 2×2 windows in the last pooling, no response normalisation.
`googlenet_2014` is the paper's: all four as printed. Submodules bear torchvision's names (`inception3a/branch2_1/conv`,
`aux1/fc1`, …); pooling takes the last window that reaches over the edge, as in Caffe.

Deviations from the paper: weights start with He's variance, and the auxiliary heads average to 4×4 bins of any map (the
paper: 5×5 windows with stride 3, which gives 4×4 from 14×14), so that images of any size from 15×15 will do.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dl_core.errors import UsageError
from models.auxiliary import record_auxiliary_logits
from models.feature_maps import name_feature_map
from models.layers.conv_norm import CONV_INIT, HEAD_INIT, ConvNorm
from models.layers.dropout import Dropout
from models.layers.pooling import adaptive_average_pool, max_pool
from models.layers.response_norm import local_response_norm
from models.registry import register

_SMALLEST = 15  # pixels, as torchvision states it
# 1×1; 1×1 then 3×3; 1×1 then "5×5"; 1×1 after pooling: the columns of table 1.
_BLOCKS = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}


class Inception(nn.Module):
    """Four branches side by side, their channels joined.

    channels: a row of table 1.
    size: of the third branch's kernel.
    options: batch_norm, precision and axis of ConvNorm.
    """

    channels: tuple[int, int, int, int, int, int]
    size: int
    options: dict[str, Any]

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], train: bool
    ) -> Float[Array, "batch height width out_channels"]:
        """[batch, height, width, channels] -> [batch, height, width, sum of the branches' channels]."""
        one, reduce3, three, reduce5, five, pooled = self.channels

        def conv(channels: int, size: int, name: str) -> ConvNorm:
            return ConvNorm(channels, (size, size), padding=(size // 2, size // 2), name=name, **self.options)

        branch1 = conv(one, 1, "branch1")(x, train)
        branch2 = conv(three, 3, "branch2_1")(conv(reduce3, 1, "branch2_0")(x, train), train)
        branch3 = conv(five, self.size, "branch3_1")(conv(reduce5, 1, "branch3_0")(x, train), train)
        branch4 = conv(pooled, 1, "branch4_1")(max_pool(x, 3, 1, 1), train)
        return jnp.concatenate([branch1, branch2, branch3, branch4], axis=-1)


class AuxiliaryHead(nn.Module):
    """4×4 averages, 1×1 convolution, two dense layers with dropout between. options: of ConvNorm."""

    num_classes: int
    channels: int
    hidden: int
    dropout: float
    options: dict[str, Any]

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], train: bool
    ) -> Float[Array, "batch num_classes"]:
        """[batch, height, width, channels] -> logits [batch, num_classes], float32."""
        x = ConvNorm(self.channels, (1, 1), name="conv", **self.options)(adaptive_average_pool(x, 4), train)
        precision = {"dtype": self.options["dtype"], "param_dtype": self.options["param_dtype"]}
        x = nn.relu(nn.Dense(self.hidden, kernel_init=CONV_INIT, name="fc1", **precision)(x.reshape(len(x), -1)))
        x = Dropout(self.dropout, axis_name=self.options["axis_name"])(x, train)
        precision["dtype"] = jnp.promote_types(precision["dtype"], jnp.float32)
        return nn.Dense(self.num_classes, kernel_init=HEAD_INIT, name="fc2", **precision)(x)


@register("googlenet")
@register("googlenet_2014", batch_norm=False, branch5x5=5, last_pool=3, response_norm=True, dropout=0.4)
class GoogLeNet(nn.Module):
    """Nine inception blocks with two auxiliary heads; at 1000 classes 13,004,888 parameters, 6,624,904 without heads.

    As printed in 2014: 13,378,280 and 6,998,552.

    width: every layer but the last has this multiple of its channels, > 0.
    batch_norm: BatchNorm after each convolution; without it the convolutions have biases.
    branch5x5: kernel size of the branch that the paper calls 5×5: 3 or 5.
    last_pool: window of the last max-pooling (stride 2).
    response_norm: local response normalisation around the second and third convolution.
    dropout, aux_dropout: rates before the last layer of the network and of each auxiliary head.
    aux_logits: with auxiliary heads after 4a and 4d, recorded in training as "aux1_logits" and "aux2_logits"
      (see models/auxiliary.py).
    auxiliary_weight: of their losses.
    transform_input: takes images normalised with ImageNet's mean and deviation, as torchvision's weights from the
      original network need it; 3 channels only.
    axis_name: the pmap axis over which BatchNorm averages its statistics; None under jit, where they are global.

    Feature maps (224×224 input): "stem" [batch, 112, 112, 64], "stage1" [batch, 56, 56, 192] (third convolution),
    "stage2" [batch, 28, 28, 480] (3b), "stage3" [batch, 14, 14, 832] (4e), "stage4" [batch, 7, 7, 1024] (5b),
    "penultimate" [batch, 1024].
    """

    num_classes: int
    width: float = 1.0
    batch_norm: bool = True
    branch5x5: int = 3
    last_pool: int = 2
    response_norm: bool = False
    dropout: float = 0.2
    aux_dropout: float = 0.7
    aux_logits: bool = True
    auxiliary_weight: float = 0.3
    transform_input: bool = False
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    axis_name: str | None = None

    def __post_init__(self):
        if self.branch5x5 not in (3, 5) or self.last_pool not in (2, 3):
            raise UsageError(f"branch5x5 is 3 or 5 and last_pool 2 or 3, got {self.branch5x5} and {self.last_pool}")
        if not self.width > 0:
            raise UsageError(f"width must be positive, got {self.width}")
        super().__post_init__()

    @nn.compact
    def __call__(
        self, x: Float[Array | np.ndarray, "batch height width channels"], train: bool = False
    ) -> Float[Array, "batch classes"]:
        """[batch, height, width, channels] -> logits [batch, num_classes]; train: dropout and batch statistics."""
        if min(x.shape[1:3]) < _SMALLEST:
            raise UsageError(
                f"googlenet needs images of at least {_SMALLEST}×{_SMALLEST}, got {x.shape[1]}×{x.shape[2]}"
            )
        precision = {"dtype": self.dtype, "param_dtype": self.param_dtype, "axis_name": self.axis_name}
        options = {"batch_norm": self.batch_norm, **precision}
        scaled = lambda channels: max(1, round(self.width * channels))
        norm = local_response_norm if self.response_norm else lambda x: x

        x = jnp.asarray(x, self.dtype)
        if self.transform_input:
            x = imagenet_to_unit_range(x)
        x = ConvNorm(scaled(64), (7, 7), 2, (3, 3), name="conv1", **options)(x, train)
        x = norm(max_pool(name_feature_map(self, "stem", x), 3, 2, ceil=True))
        x = ConvNorm(scaled(64), (1, 1), name="conv2", **options)(x, train)
        x = ConvNorm(scaled(192), (3, 3), 1, (1, 1), name="conv3", **options)(x, train)
        x = max_pool(norm(name_feature_map(self, "stage1", x)), 3, 2, ceil=True)

        for block, row in _BLOCKS.items():
            inception = Inception(tuple(map(scaled, row)), self.branch5x5, options, name=f"inception{block}")
            x = inception(x, train)
            if block in ("4a", "4d") and self.aux_logits and (train or self.is_initializing()):
                name = "aux1" if block == "4a" else "aux2"
                head = (self.num_classes, scaled(128), scaled(1024), self.aux_dropout, options)
                record_auxiliary_logits(self, f"{name}_logits", AuxiliaryHead(*head, name=name)(x, train))
            if block in ("3b", "4e", "5b"):
                x = name_feature_map(self, {"3b": "stage2", "4e": "stage3", "5b": "stage4"}[block], x)
            if block in ("3b", "4e"):
                x = max_pool(x, 3 if block == "3b" else self.last_pool, 2, ceil=True)

        dtype = jnp.promote_types(self.dtype, jnp.float32)
        x = name_feature_map(self, "penultimate", x.mean(axis=(1, 2), dtype=dtype))
        x = Dropout(self.dropout, axis_name=self.axis_name)(x, train)
        head = {"kernel_init": HEAD_INIT, "dtype": dtype, "param_dtype": self.param_dtype, "name": "fc"}
        return nn.Dense(self.num_classes, **head)(x)


def imagenet_to_unit_range(
    x: Float[Array, "batch height width channels"],
) -> Float[Array, "batch height width channels"]:
    """Images normalised with ImageNet's mean and standard deviation -> the same normalised with 0.5 and 0.5.

    Raises:
      UsageError: the images have other than 3 channels.
    """
    if x.shape[-1] != 3:
        raise UsageError(f"transform_input is for images of 3 channels, got {x.shape[-1]}")
    mean, deviation = jnp.array([0.485, 0.456, 0.406], x.dtype), jnp.array([0.229, 0.224, 0.225], x.dtype)
    scale, shift = deviation / 0.5, (mean - 0.5) / 0.5
    return x * scale[None, None, None] + shift[None, None, None]
