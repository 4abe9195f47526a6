"""VGG: Simonyan, Zisserman (2015), "Very deep convolutional networks for large-scale image recognition", 1409.1556.

Submodules bear torchvision's names (`features_0`, …, `classifier_6`). Maps are flattened in the order height, width,
channel, torch's in the order channel, height, width: `models.load_torch` permutes the first dense kernel. The forms
with BatchNorm are torchvision's (ε = 1e-5, decay 0.9; convolutions keep their bias). Deviations: weights start with
He's variance (the paper: σ = 0.01, deep forms from a trained shallow one), and the map before the dense layers is
averaged to 7×7 bins, so that images of any size from 32×32 will do; from 224×224 it has 7×7 pixels already.
"""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dl_core.errors import UsageError
from models.feature_maps import name_feature_map
from models.layers.conv_norm import CONV_INIT, HEAD_INIT
from models.layers.dropout import Dropout
from models.layers.pooling import adaptive_average_pool, max_pool
from models.registry import register


class VGG(nn.Module):
    """Stages of 3×3 convolutions with 2×2 max-pooling between them, then three dense layers; defaults: VGG-16.

    Parameters at 1000 classes: VGG-11 132,863,336; -13 133,047,848; -16 138,357,544; -19 143,667,240; with BatchNorm
    -16 138,365,992; -19 143,678,248.

    stage_sizes: convolutions in each stage.
    channels: of the convolutions of each stage.
    hidden: units of each of the two dense layers before the last.
    batch_norm: BatchNorm after each convolution.
    dropout: rate after each of the two hidden dense layers.
    axis_name: the pmap axis over which BatchNorm averages its statistics; None under jit, where they are global.

    Feature maps (224×224 input): "stage1" [batch, 224, 224, 64], …, "stage5" [batch, 14, 14, 512], each after the
    last ReLU of its stage (stage5 is conv5_3); "pool1" [batch, 112, 112, 64], …, "pool5" [batch, 7, 7, 512]; "fc6"
    [batch, 4096] and "penultimate" [batch, 4096] (fc7).
    """

    num_classes: int
    stage_sizes: tuple[int, ...] = (2, 2, 3, 3, 3)
    channels: tuple[int, ...] = (64, 128, 256, 512, 512)
    hidden: int = 4096
    batch_norm: bool = False
    dropout: float = 0.5
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    axis_name: str | None = None

    def __post_init__(self):
        if len(self.stage_sizes) != len(self.channels):
            raise UsageError(
                f"stage_sizes and channels need one entry a stage, got {self.stage_sizes}, {self.channels}"
            )
        super().__post_init__()

    @nn.compact
    def __call__(
        self, x: Float[Array | np.ndarray, "batch height width channels"], train: bool = False
    ) -> Float[Array, "batch classes"]:
        """[batch, height, width, channels] -> logits [batch, num_classes]; train: dropout and batch statistics."""
        smallest = 2 ** len(self.stage_sizes)
        if min(x.shape[1:3]) < smallest:
            raise UsageError(f"vgg needs images of at least {smallest}×{smallest}, got {x.shape[1]}×{x.shape[2]}")
        precision = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        options = {"kernel_init": CONV_INIT, **precision}
        norm = {"momentum": 0.9, "epsilon": 1e-5, "axis_name": self.axis_name, **precision}
        x = jnp.asarray(x, self.dtype)
        index = 0  # of torchvision's sequential container, in which ReLU and pooling count too
        for i, (size, channels) in enumerate(zip(self.stage_sizes, self.channels, strict=True), start=1):
            for _ in range(size):
                x = nn.Conv(channels, (3, 3), padding=((1, 1), (1, 1)), name=f"features_{index}", **options)(x)
                if self.batch_norm:
                    index += 1
                    x = nn.BatchNorm(not train, name=f"features_{index}", **norm)(x)
                x = nn.relu(x)
                index += 2
            x = name_feature_map(self, f"stage{i}", x)
            x = name_feature_map(self, f"pool{i}", max_pool(x, 2, 2))
            index += 1
        x = adaptive_average_pool(x, 7)
        x = x.reshape(len(x), -1)
        for name, index in [("fc6", 0), ("penultimate", 3)]:
            x = nn.relu(nn.Dense(self.hidden, name=f"classifier_{index}", **options)(x))
            x = name_feature_map(self, name, x)
            x = Dropout(self.dropout, axis_name=self.axis_name)(x, train)
        head = {"kernel_init": HEAD_INIT, "dtype": jnp.promote_types(self.dtype, jnp.float32)}
        return nn.Dense(self.num_classes, param_dtype=self.param_dtype, name="classifier_6", **head)(x)


for depth, sizes in {
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}.items():
    register(f"vgg{depth}", stage_sizes=sizes)(VGG)
    register(f"vgg{depth}_bn", stage_sizes=sizes, batch_norm=True)(VGG)
