"""Residual networks without normalisation: Brock, De, Smith (2021), "Characterizing signal propagation to close the
performance gap in unnormalized ResNets", https://arxiv.org/abs/2101.08692.

A block computes h ← shortcut(h) + α f(h / β). Its branch f keeps the variance, because its convolutions have scaled
weight standardisation (models/layers/weight_standardization.py) and each nonlinearity is multiplied by γ, which gives
it unit variance under a standard normal input. So the variance after a block is that before it plus α², or 1 + α² after
the first block of a stage, whose shortcut convolution starts from h / β too; β, its square root, is known in advance.
α is 0.2; a learned gain on every branch, 0 at the start (SkipInit), opens it during training. Large batches want
adaptive clipping as well (Brock et al., 2021, https://arxiv.org/abs/2102.06171): `config.optimizer.clip_adaptive`.

The fields' defaults are the paper's; `nf_resnet26`, -50 and -101 are timm's (`form="timm"`), whose weights they take.
timm multiplies weights, the stem's too, by γ instead of activations (the last of which then has none), halves the
shortcut's map by averaging 2×2 pixels before its 1×1 convolution instead of striding, and has no SkipInit: the gains of
a branch's last convolution start at 0. Its γ = 1.71396 for ReLU is an estimate; the exact one is √(2π/(π - 1)) =
1.71286.
"""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dl_core.activations import Activation, activation
from dl_core.errors import UsageError, unknown_name
from models.feature_maps import name_feature_map
from models.layers.dropout import Dropout
from models.layers.pooling import max_pool
from models.layers.residual import FC_INIT, Layer, Map, OutMap, Plan, Step
from models.layers.weight_standardization import ScaledStandardizedConv
from models.registry import register


@functools.cache
def nonlinearity_gain(name: str) -> float:
    """γ = 1/√Var[g(z)] with z standard normal: makes the variance of γ g(z) 1 (section 4.2 of the paper; no arrays).

    Args:
      name: of an activation, e.g. "relu".

    Returns:
      γ, by the trapezoidal rule on [-10, 10], to about six digits.

    Raises:
      UsageError: unknown name.
    """
    z = np.linspace(-10, 10, 20_001)  # 0, where ReLU bends, is one of the points
    density = np.exp(-(z**2) / 2)
    density /= density.sum()
    with jax.ensure_compile_time_eval():
        values = np.asarray(activation(name)(jnp.asarray(z)), np.float64)
    return float((density @ (values - density @ values) ** 2) ** -0.5)


class NFBlock(nn.Module):
    """h ← shortcut(h) + α gain f(h / β), f being activation, convolution, …, activation, convolution.

    plan: the convolutions of f.
    alpha: α.
    beta: β, the standard deviation expected of h.
    conv, act: the layers, with precision and γ already set.
    skip_gain: start of the branch's gain: a scalar (SkipInit), or all gains of the last convolution in timm's form.
    timm: timm's form, see above.
    drop: probability that the branch is left out for an example in training (stochastic depth).
    axis_name: the pmap axis over which the batch is divided, or None; for stochastic depth.
    """

    plan: Plan
    alpha: float
    beta: float
    conv: Layer
    act: Activation
    skip_gain: float
    timm: bool
    drop: float
    axis_name: str | None
    param_dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Map, train: bool) -> OutMap:
        """[batch, height, width, channels] -> [batch, height / stride, width / stride, channels of the last layer]."""
        gain_init = nn.initializers.constant(self.skip_gain)
        y = scaled = self.act(x) / self.beta
        for i, step in enumerate(self.plan, start=1):
            more = {"gain_init": gain_init} if self.timm and i == len(self.plan) else {}
            y = self.conv(*step, name=f"conv{i}", **more)(y if i == 1 else self.act(y))
        if x.shape != y.shape:
            stride = math.prod(step.stride for step in self.plan)
            if self.timm and stride > 1:
                beyond = ((0, x.shape[1] % 2), (0, x.shape[2] % 2))
                scaled = nn.avg_pool(scaled, (2, 2), strides=(2, 2), padding=beyond, count_include_pad=False)
            x = self.conv(y.shape[-1], 1, 1 if self.timm else stride, name="downsample_conv")(scaled)
        if not self.timm:
            y = y * self.param("skipinit_gain", gain_init, (), self.param_dtype).astype(y.dtype)
        kept = Dropout(self.drop, axis_name=self.axis_name)(jnp.ones((len(y), 1, 1, 1), y.dtype), train)
        return x + self.alpha * y * kept


class NFResNet(nn.Module):
    """A residual network without normalisation; the defaults are the paper's NF-ResNet-50.

    Parameters at 1000 classes: 50 25,557,048 (ResNet-50's, and 16 gains of branches); in timm's form -26 15,995,176;
    -50 25,557,032; -101 44,549,160. At 10 classes, CIFAR form: 20 272,483; 56 855,797; 110 1,730,768.

    stage_sizes: blocks in each stage; from the second on, a stage halves the map and doubles the channels.
    block: "basic" (two 3×3 convolutions) or "bottleneck" (1×1, 3×3, 1×1 with four times the channels).
    width: channels of the first stage's 3×3 convolutions.
    stem: "imagenet" (7×7 with stride 2, max-pool with stride 2) or "cifar" (3×3 with stride 1).
    activation: a key of dl_core.activations.ACTIVATIONS.
    alpha: α, the standard deviation that a block adds.
    gamma: γ of the activation; None computes it.
    skip_gain: start of the gain of every branch. With 0 a convolution in a branch has no gradient at the first step,
      and adaptive clipping, which allows a step of a fraction of the weight's norm, opens the branch slowly.
    stochastic_depth: probability, at the last block, that a branch is left out for an example in training; it rises
      linearly from 0 at the first block (Huang et al., 2016, https://arxiv.org/abs/1603.09382).
    form: "paper" or "timm".
    epsilon: added to the variance of a convolution's weights; 1e-5 in timm's networks.
    dtype: of the computation; parameters have param_dtype, logits are at least float32.
    axis_name: the pmap axis over which the batch is divided, or None; for stochastic depth.

    Feature maps (224×224 input): "stem" [batch, 112, 112, width], "stage1" [batch, 56, 56, ·], …, "stage4"
    [batch, 7, 7, ·] (after the final activation), "penultimate" [batch, channels].
    """

    num_classes: int
    stage_sizes: tuple[int, ...] = (3, 4, 6, 3)
    block: str = "bottleneck"
    width: int = 64
    stem: str = "imagenet"
    activation: str = "relu"
    alpha: float = 0.2
    gamma: float | None = None
    skip_gain: float = 0.0
    stochastic_depth: float = 0.0
    form: str = "paper"
    epsilon: float = 1e-6
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    axis_name: str | None = None

    def __post_init__(self):
        for field, allowed in _CHOICES.items():
            if getattr(self, field) not in allowed:
                raise unknown_name(field, getattr(self, field), allowed)
        if not self.stage_sizes or min(self.stage_sizes) < 1:
            raise UsageError(f"stage_sizes needs at least one block in every stage, got {self.stage_sizes}")
        if not 0 <= self.stochastic_depth < 1:
            raise UsageError(f"stochastic_depth must lie in [0, 1), got {self.stochastic_depth}")
        super().__post_init__()

    @nn.compact
    def __call__(
        self, x: Float[Array | np.ndarray, "batch height width channels"], train: bool = False
    ) -> Float[Array, "batch classes"]:
        """[batch, height, width, channels] -> logits [batch, num_classes], float32; train: stochastic depth."""
        conv, act = self._layers()
        imagenet, depth = self.stem == "imagenet", sum(self.stage_sizes)
        x = conv(self.width, 7 if imagenet else 3, 2 if imagenet else 1, name="conv1")(jnp.asarray(x, self.dtype))
        x = name_feature_map(self, "stem", x)
        if imagenet:
            x = max_pool(x, 3, 2, 1)
        variance, index = 1.0, 0
        for i, size in enumerate(self.stage_sizes, start=1):
            for j in range(size):
                index += 1
                x = NFBlock(
                    self._plan(self.width * 2 ** (i - 1), stride=2 if i > 1 and j == 0 else 1),
                    alpha=self.alpha,
                    beta=variance**0.5,
                    conv=conv,
                    act=act,
                    skip_gain=self.skip_gain,
                    timm=self.form == "timm",
                    drop=self.stochastic_depth * (index - 1) / max(depth - 1, 1),
                    axis_name=self.axis_name,
                    param_dtype=self.param_dtype,
                    name=f"layer{i}_{j}",
                )(x, train)
                variance = (1.0 if j == 0 else variance) + self.alpha**2
            if i == len(self.stage_sizes):
                x = activation(self.activation)(x) if self.form == "timm" else act(x)
            x = name_feature_map(self, f"stage{i}", x)
        dtype = jnp.promote_types(self.dtype, jnp.float32)
        x = name_feature_map(self, "penultimate", x.mean(axis=(1, 2), dtype=dtype))
        return nn.Dense(self.num_classes, kernel_init=FC_INIT, dtype=dtype, param_dtype=self.param_dtype, name="fc")(x)

    def _layers(self) -> tuple[Layer, Activation]:
        """conv(channels, size, stride, groups) with torch's padding, and the activation; one of them has γ."""
        gamma = nonlinearity_gain(self.activation) if self.gamma is None else self.gamma
        in_weights = self.form == "timm"

        def conv(channels: int, size: int, stride: int, groups: int = 1, **more: Any) -> nn.Module:
            settings = {
                "padding": ((size // 2, size // 2),) * 2,
                "groups": groups,
                "gamma": gamma if in_weights else 1.0,
                "epsilon": self.epsilon,
                "dtype": self.dtype,
                "param_dtype": self.param_dtype,
            }
            return ScaledStandardizedConv(channels, (size, size), (stride, stride), **settings, **more)

        function = activation(self.activation)
        return conv, function if in_weights else lambda x: gamma * function(x)

    def _plan(self, channels: int, stride: int) -> Plan:
        if self.block == "basic":
            return (Step(channels, 3, stride), Step(channels, 3))
        return (Step(channels, 1), Step(channels, 3, stride), Step(4 * channels, 1))


_CHOICES = {"block": ("basic", "bottleneck"), "stem": ("imagenet", "cifar"), "form": ("paper", "timm")}

_TIMM = {"form": "timm", "gamma": 1.7139588594436646, "epsilon": 1e-5}
for depth, sizes in {26: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}.items():
    register(f"nf_resnet{depth}", stage_sizes=sizes, **_TIMM)(NFResNet)
_CIFAR = {"block": "basic", "stem": "cifar", "width": 16}
for depth in (20, 56, 110):  # 6n + 2 layers
    register(f"nf_resnet{depth}_cifar", stage_sizes=((depth - 2) // 6,) * 3, **_CIFAR)(NFResNet)
