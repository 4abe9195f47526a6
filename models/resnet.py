"""Residual networks, also with wider and grouped bottlenecks and with other normalisations than BatchNorm.

v1: He, Zhang, Ren, Sun (2016), "Deep residual learning for image recognition", https://arxiv.org/abs/1512.03385.
v2 (pre-activation): the same (2016), "Identity mappings in deep residual networks", https://arxiv.org/abs/1603.05027.
Wide bottlenecks: Zagoruyko, Komodakis (2016), "Wide residual networks", https://arxiv.org/abs/1605.07146, section 3.4.
ResNeXt: Xie et al. (2017), "Aggregated residual transformations", https://arxiv.org/abs/1611.05431, form (c).
GroupNorm and weight standardisation: Wu, He (2018), https://arxiv.org/abs/1803.08494; Qiao et al. (2019),
https://arxiv.org/abs/1903.10520: no statistic involves another example, so batches may be of any size.

Submodules bear torchvision's names (`conv1`, `bn1`, `layer1_0/conv1`, …, `layer2_0/downsample_conv`, `fc`), strided
layers pad explicitly as torch does, and norms have torch's ε = 1e-5 and decay 0.9 (torch: momentum 0.1), so that
weights carry over one to one. Deviations: stride 2 sits in the 3×3 convolution of a bottleneck ("v1.5", as in
torchvision; `stride_in_1x1` gives the paper's form); BatchNorm's running variance is the biased one, torch's is
n/(n - 1) larger (`normalization="batch_unbiased"`); v2 pools before the first BatchNorm, as timm does.
"""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dl_core.errors import UsageError, unknown_name
from models.feature_maps import name_feature_map
from models.layers.norms import NORMS, norm_layer
from models.layers.residual import FC_INIT, Plan, PreActivationBlock, ResidualBlock, Step, conv_layer
from models.registry import register


class ResNet(nn.Module):
    """A residual network of either version; the defaults are ResNet-50 v1.5.

    Parameters at 1000 classes: ResNet-18 11,689,512; -34 21,797,672; -50 25,557,032; -101 44,549,160; -152 60,192,808;
    50 v2 25,549,352; Wide ResNet-50-2 68,883,240; -101-2 126,886,696; ResNeXt-50 32×4d 25,028,904; -101 32×4d
    44,177,704; -101 32×8d 88,791,336; -101 64×4d 83,455,272. At 10 classes, CIFAR form with option A: ResNet-20
    269,722; -32 464,154; -44 658,586; -56 853,018; -110 1,727,962; -1202 19,421,274; pre-activation -164 1,703,258,
    -1001 10,327,706; with option B: ResNeXt-29 8×64d 34,426,698; 16×64d 68,155,210.

    stage_sizes: blocks in each stage; from the second on, a stage halves the map and doubles the channels.
    block: "basic" (two 3×3 convolutions) or "bottleneck" (1×1, 3×3, 1×1 with four times the channels).
    width: channels of the first stage's 3×3 convolutions.
    preactivation: v2.
    stem: "imagenet" (7×7 with stride 2, max-pool with stride 2) or "cifar" (3×3 with stride 1).
    shortcut: where shapes differ, "projection" (option B) or "pad" (option A).
    groups: of channels in the 3×3 convolution of a bottleneck (ResNeXt's cardinality).
    width_per_group: channels of each group in the first stage, at width 64 (as in torchvision). The 3×3 convolution has
      groups * width_per_group channels there, and its block's output 4 * width; 64 with one group is the plain form.
    stride_in_1x1: bottlenecks stride in their first 1×1 convolution (the 2015 paper) instead of the 3×3.
    zero_init_residual: every block starts as its shortcut (Goyal et al., 2017, https://arxiv.org/abs/1706.02677).
    normalization: "batch", "batch_unbiased" (torch's running variance), "group" or "none".
    norm_groups: groups of "group"; their greatest common divisor with the channels where they do not divide these.
    weight_standardization: of every convolution.
    dtype: of the computation; parameters have param_dtype, statistics and logits at least float32.
    axis_name: the pmap axis over which BatchNorm averages its statistics; None under jit, where they are global.

    Feature maps (224×224 input): "stem" [batch, 112, 112, width], "stage1" [batch, 56, 56, ·], …, "stage4"
    [batch, 7, 7, ·] (v2: the last stage after the final activation), "penultimate" [batch, channels].
    """

    num_classes: int
    stage_sizes: tuple[int, ...] = (3, 4, 6, 3)
    block: str = "bottleneck"
    width: int = 64
    preactivation: bool = False
    stem: str = "imagenet"
    shortcut: str = "projection"
    groups: int = 1
    width_per_group: int = 64
    stride_in_1x1: bool = False
    zero_init_residual: bool = False
    normalization: str = "batch"
    norm_groups: int = 32
    weight_standardization: bool = False
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    axis_name: str | None = None

    def __post_init__(self):
        for field, allowed in _CHOICES.items():
            if getattr(self, field) not in allowed:
                raise unknown_name(field, getattr(self, field), allowed)
        if not self.stage_sizes or min(self.stage_sizes) < 1:
            raise UsageError(f"stage_sizes needs at least one block in every stage, got {self.stage_sizes}")
        if self.block == "basic" and (self.groups, self.width_per_group) != (1, 64):
            raise UsageError(
                "groups and width_per_group belong to block='bottleneck', got "
                f"groups={self.groups}, width_per_group={self.width_per_group} with block='basic'"
            )
        super().__post_init__()

    @nn.compact
    def __call__(
        self, x: Float[Array | np.ndarray, "batch height width channels"], train: bool = False
    ) -> Float[Array, "batch classes"]:
        """[batch, height, width, channels] -> logits [batch, num_classes], float32; train: statistics of the batch."""
        precision = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        conv = conv_layer(standardized=self.weight_standardization, **precision)
        norm = norm_layer(self.normalization, train, groups=self.norm_groups, axis_name=self.axis_name, **precision)
        imagenet = self.stem == "imagenet"
        x = conv(self.width, 7 if imagenet else 3, 2 if imagenet else 1, name="conv1")(jnp.asarray(x, self.dtype))
        if not self.preactivation:
            x = nn.relu(norm(name="bn1")(x))
        x = name_feature_map(self, "stem", x)
        if imagenet:
            x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))

        block = PreActivationBlock if self.preactivation else ResidualBlock
        options = {"shortcut": self.shortcut, "zero_init": self.zero_init_residual, "conv": conv, "norm": norm}
        for i, size in enumerate(self.stage_sizes, start=1):
            for j in range(size):
                plan = self._plan(self.width * 2 ** (i - 1), stride=2 if i > 1 and j == 0 else 1)
                first = {"first": (i, j) == (1, 0)} if self.preactivation else {}
                x = block(plan, name=f"layer{i}_{j}", **options, **first)(x)
            if self.preactivation and i == len(self.stage_sizes):
                x = nn.relu(norm(name="norm")(x))
            x = name_feature_map(self, f"stage{i}", x)

        dtype = jnp.promote_types(self.dtype, jnp.float32)
        x = name_feature_map(self, "penultimate", x.mean(axis=(1, 2), dtype=dtype))
        return nn.Dense(self.num_classes, kernel_init=FC_INIT, dtype=dtype, param_dtype=self.param_dtype, name="fc")(x)

    def _plan(self, channels: int, stride: int) -> Plan:
        if self.block == "basic":
            return (Step(channels, 3, stride), Step(channels, 3))
        inner = self.groups * max(channels * self.width_per_group // 64, 1)
        strides = (stride, 1) if self.stride_in_1x1 else (1, stride)
        return (Step(inner, 1, strides[0]), Step(inner, 3, strides[1], self.groups), Step(4 * channels, 1))


_CHOICES = {
    "block": ("basic", "bottleneck"),
    "stem": ("imagenet", "cifar"),
    "shortcut": ("projection", "pad"),
    "normalization": NORMS,
}

for depth, sizes in {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}.items():
    kind = {"stage_sizes": sizes, "block": "basic" if depth < 50 else "bottleneck"}
    register(f"resnet{depth}", **kind)(ResNet)
    register(f"resnet{depth}_v2", **kind, preactivation=True)(ResNet)

_CIFAR = {"width": 16, "stem": "cifar"}
for depth in (20, 32, 44, 56, 110, 1202):  # 6n + 2 layers
    kind = {"stage_sizes": ((depth - 2) // 6,) * 3, "block": "basic", "shortcut": "pad", **_CIFAR}
    register(f"resnet{depth}_cifar", **kind)(ResNet)
    if depth < 1202:
        register(f"resnet{depth}_cifar_v2", **kind, preactivation=True)(ResNet)
for depth in (164, 1001):  # 9n + 2 layers
    sizes = ((depth - 2) // 9,) * 3
    register(f"resnet{depth}_cifar_v2", stage_sizes=sizes, preactivation=True, **_CIFAR)(ResNet)

_101 = (3, 4, 23, 3)
register("wide_resnet50_2", width_per_group=128)(ResNet)
register("wide_resnet101_2", stage_sizes=_101, width_per_group=128)(ResNet)
register("resnext50_32x4d", groups=32, width_per_group=4)(ResNet)
for groups, width in ((32, 4), (32, 8), (64, 4)):
    register(f"resnext101_{groups}x{width}d", stage_sizes=_101, groups=groups, width_per_group=width)(ResNet)
for groups in (8, 16):
    register(f"resnext29_{groups}x64d_cifar", stage_sizes=(3, 3, 3), stem="cifar", groups=groups)(ResNet)

register("resnet50_gn", normalization="group")(ResNet)
register("resnet50_gn_ws", normalization="group", weight_standardization=True)(ResNet)
_GN_WS = {"normalization": "group", "norm_groups": 8, "weight_standardization": True}
register("resnet20_cifar_gn_ws", stage_sizes=(3, 3, 3), block="basic", shortcut="pad", **_CIFAR, **_GN_WS)(ResNet)
