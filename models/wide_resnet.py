"""Wide residual networks for small images: Zagoruyko, Komodakis (2016), "Wide residual networks", 1605.07146.

WRN-d-k has d convolutions and k times the channels of a pre-activation ResNet: a 3×3 stem of 16 channels, three stages
of (d - 4)/6 basic blocks with 16 k, 32 k and 64 k channels, BatchNorm and ReLU, the mean, one dense layer. Submodules
bear the names of models/resnet.py; BatchNorm has ε = 1e-5 and decay 0.9. The wide bottleneck networks for ImageNet,
`wide_resnet50_2` and `wide_resnet101_2`, are fields of ResNet.
"""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dl_core.errors import UsageError
from models.feature_maps import name_feature_map
from models.layers.norms import norm_layer
from models.layers.residual import FC_INIT, PreActivationBlock, Step, conv_layer
from models.registry import register


class WideResNet(nn.Module):
    """A wide residual network; the defaults are WRN-28-10.

    Parameters at 10 classes: WRN-28-10 36,479,194; -40-4 8,949,210; -16-8 10,961,370; -16-4 2,748,890; -22-8
    17,158,106.

    stage_sizes: blocks in each stage; from the second on, a stage halves the map and doubles the channels.
    widen: k, times the channels of every block.
    width: channels of the stem, and of the first stage at k = 1.
    dropout: rate between the two convolutions of every block; the paper has 0 and, on CIFAR, 0.3.
    dtype: of the computation; parameters have param_dtype, statistics and logits at least float32.
    axis_name: the pmap axis over which BatchNorm averages its statistics; None under jit, where they are global.

    Feature maps (32×32 input): "stem" [batch, 32, 32, width], "stage1" [batch, 32, 32, width k], "stage2"
    [batch, 16, 16, 2 width k], "stage3" [batch, 8, 8, 4 width k] (after the final activation), "penultimate"
    [batch, 4 width k].
    """

    num_classes: int
    stage_sizes: tuple[int, ...] = (4, 4, 4)
    widen: int = 10
    width: int = 16
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    axis_name: str | None = None

    def __post_init__(self):
        if not self.stage_sizes or min(self.stage_sizes) < 1 or self.widen < 1:
            raise UsageError(
                f"stage_sizes and widen must be at least 1, got stage_sizes={self.stage_sizes}, widen={self.widen}"
            )
        super().__post_init__()

    @nn.compact
    def __call__(
        self, x: Float[Array | np.ndarray, "batch height width channels"], train: bool = False
    ) -> Float[Array, "batch classes"]:
        """[batch, height, width, channels] -> logits [batch, num_classes]; train: dropout and batch statistics."""
        precision = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        conv, norm = conv_layer(**precision), norm_layer("batch", train, axis_name=self.axis_name, **precision)
        x = conv(self.width, 3, 1, name="conv1")(jnp.asarray(x, self.dtype))
        x = name_feature_map(self, "stem", x)
        options = {"shortcut": "projection", "zero_init": False, "conv": conv, "norm": norm, "first": False}
        for i, size in enumerate(self.stage_sizes, start=1):
            channels = self.width * self.widen * 2 ** (i - 1)
            for j in range(size):
                plan = (Step(channels, 3, 2 if i > 1 and j == 0 else 1), Step(channels, 3))
                block = PreActivationBlock(
                    plan, **options, dropout=self.dropout, axis_name=self.axis_name, name=f"layer{i}_{j}"
                )
                x = block(x, train)
            if i == len(self.stage_sizes):
                x = nn.relu(norm(name="norm")(x))
            x = name_feature_map(self, f"stage{i}", x)
        dtype = jnp.promote_types(self.dtype, jnp.float32)
        x = name_feature_map(self, "penultimate", x.mean(axis=(1, 2), dtype=dtype))
        return nn.Dense(self.num_classes, kernel_init=FC_INIT, dtype=dtype, param_dtype=self.param_dtype, name="fc")(x)


for depth, widen in ((28, 10), (40, 4), (16, 8), (16, 4), (22, 8)):  # 6n + 4 layers
    register(f"wrn_{depth}_{widen}", stage_sizes=((depth - 4) // 6,) * 3, widen=widen)(WideResNet)
