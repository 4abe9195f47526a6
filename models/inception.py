"""Inception v3: Szegedy et al. (2016), "Rethinking the inception architecture for computer vision", arXiv 1512.00567.

Submodules bear torchvision's names (`Conv2d_1a_3x3/conv`, `Mixed_5b/branch5x5_1/bn`, `AuxLogits/fc`, …); BatchNorm has
ε = 1e-3 and decay 0.9. As in torchvision and the authors' later code, not the paper: the auxiliary head pools 5×5 with
stride 3 before its convolutions. Deviation: weights start with He's variance.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dl_core.errors import UsageError
from models.auxiliary import record_auxiliary_logits
from models.feature_maps import name_feature_map
from models.googlenet import imagenet_to_unit_range
from models.layers.conv_norm import HEAD_INIT, ConvNorm
from models.layers.dropout import Dropout
from models.layers.pooling import max_pool
from models.registry import register

_SMALLEST, _SMALLEST_WITH_HEAD = 75, 299  # pixels: the head's 5×5 kernel needs a map of 17×17
Step = tuple[int, tuple[int, int], int, bool]  # channels, kernel, stride, padded to the same size


def _step(channels: int, height: int, width: int, stride: int = 1, same: bool = True) -> Step:
    return channels, (height, width), stride, same


class Mixed(nn.Module):
    """Branches of convolutions side by side, their channels joined.

    branches: name -> convolutions, one after another. A single one bears the branch's name, several "name_1", ….
      A last entry that is a pair of convolutions stands for both side by side, "name_2a" and "name_2b".
    pool: channels after 3×3 average pooling ("branch_pool"), or 0 for 3×3 max-pooling with stride 2 alone.
    conv: ConvNorm with its precision set.
    """

    branches: dict[str, tuple[Any, ...]]
    pool: int
    conv: Any

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], train: bool
    ) -> Float[Array, "batch out_height out_width out_channels"]:
        """[batch, height, width, channels] -> the same size, or half of it less one, with more channels."""

        def apply(step: Step, name: str, y: Array) -> Array:
            channels, kernel, stride, same = step
            padding = (kernel[0] // 2, kernel[1] // 2) if same else (0, 0)
            return self.conv(channels, kernel, stride, padding, name=name)(y, train)

        outputs = []
        for branch, steps in self.branches.items():
            y = x
            for i, step in enumerate(steps, start=1):
                if isinstance(step[0], tuple):
                    pair = [apply(part, f"{branch}_{i}{letter}", y) for part, letter in zip(step, "ab", strict=True)]
                    y = jnp.concatenate(pair, axis=-1)
                else:
                    y = apply(step, branch if len(steps) == 1 else f"{branch}_{i}", y)
            outputs.append(y)
        if self.pool:
            average = nn.avg_pool(x, (3, 3), strides=(1, 1), padding=((1, 1), (1, 1)))
            outputs.append(apply(_step(self.pool, 1, 1), "branch_pool", average))
        else:
            outputs.append(max_pool(x, 3, 2))
        return jnp.concatenate(outputs, axis=-1)


def _blocks() -> dict[str, tuple[dict[str, tuple[Any, ...]], int]]:
    """Name -> branches and channels after pooling, figures 5 to 7 and 10 of the paper."""
    step = _step

    def a(pool):
        double = (step(64, 1, 1), step(96, 3, 3), step(96, 3, 3))
        return {
            "branch1x1": (step(64, 1, 1),),
            "branch5x5": (step(48, 1, 1), step(64, 5, 5)),
            "branch3x3dbl": double,
        }, pool

    def c(n):
        double = (step(n, 1, 1), step(n, 7, 1), step(n, 1, 7), step(n, 7, 1), step(192, 1, 7))
        single = (step(n, 1, 1), step(n, 1, 7), step(192, 7, 1))
        return {"branch1x1": (step(192, 1, 1),), "branch7x7": single, "branch7x7dbl": double}, 192

    both = (step(384, 1, 3), step(384, 3, 1))
    e = {
        "branch1x1": (step(320, 1, 1),),
        "branch3x3": (step(384, 1, 1), both),
        "branch3x3dbl": (step(448, 1, 1), step(384, 3, 3), both),
    }
    halve = partial(step, height=3, width=3, stride=2, same=False)
    b = {"branch3x3": (halve(384),), "branch3x3dbl": (step(64, 1, 1), step(96, 3, 3), halve(96))}
    sevens = (step(192, 1, 1), step(192, 1, 7), step(192, 7, 1), halve(192))
    d = {"branch3x3": (step(192, 1, 1), halve(320)), "branch7x7x3": sevens}
    blocks = {"5b": a(32), "5c": a(64), "5d": a(64), "6a": (b, 0)}
    blocks |= {"6b": c(128), "6c": c(160), "6d": c(160), "6e": c(192)}
    return blocks | {"7a": (d, 0), "7b": (e, 192), "7c": (e, 192)}


@register("inception_v3")
class InceptionV3(nn.Module):
    """Inception v3; at 1000 classes 27,161,264 parameters, 23,834,568 without the auxiliary head. Images: 299×299.

    width: every layer but the last has this multiple of its channels, > 0.
    dropout: rate before the last layer.
    aux_logits: with the auxiliary head after 6e, recorded in training as "aux_logits" (see models/auxiliary.py);
      it needs images of at least 299×299. Without it 75×75 will do.
    auxiliary_weight: of its loss; 0.4 as in the authors' later code.
    transform_input: takes images normalised with ImageNet's mean and deviation, as torchvision's weights from the
      original network need it; 3 channels only.
    axis_name: the pmap axis over which BatchNorm averages its statistics; None under jit, where they are global.

    Feature maps (299×299 input): "stem" [batch, 147, 147, 64], "stage1" [batch, 71, 71, 192], "stage2"
    [batch, 35, 35, 288] (5d), "stage3" [batch, 17, 17, 768] (6e), "stage4" [batch, 8, 8, 2048] (7c), "penultimate"
    [batch, 2048].
    """

    num_classes: int
    width: float = 1.0
    dropout: float = 0.5
    aux_logits: bool = True
    auxiliary_weight: float = 0.4
    transform_input: bool = False
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    axis_name: str | None = None

    def __post_init__(self):
        if not self.width > 0:
            raise UsageError(f"width must be positive, got {self.width}")
        super().__post_init__()

    @nn.compact
    def __call__(
        self, x: Float[Array | np.ndarray, "batch height width channels"], train: bool = False
    ) -> Float[Array, "batch classes"]:
        """[batch, height, width, channels] -> logits [batch, num_classes]; train: dropout and batch statistics."""
        with_head = self.aux_logits and (train or self.is_initializing())
        smallest = _SMALLEST_WITH_HEAD if with_head else _SMALLEST
        if min(x.shape[1:3]) < smallest:
            hint = "; with aux_logits=False 75×75 will do" if with_head else ""
            raise UsageError(
                f"inception_v3 needs images of at least {smallest}×{smallest}, got {x.shape[1]}×{x.shape[2]}{hint}"
            )
        precision = {"dtype": self.dtype, "param_dtype": self.param_dtype}

        def conv(channels: int, *geometry: Any, name: str) -> ConvNorm:
            channels = max(1, round(self.width * channels))
            return ConvNorm(channels, *geometry, name=name, axis_name=self.axis_name, **precision)

        x = jnp.asarray(x, self.dtype)
        if self.transform_input:
            x = imagenet_to_unit_range(x)
        x = conv(32, (3, 3), 2, name="Conv2d_1a_3x3")(x, train)
        x = conv(32, (3, 3), name="Conv2d_2a_3x3")(x, train)
        x = conv(64, (3, 3), 1, (1, 1), name="Conv2d_2b_3x3")(x, train)
        x = max_pool(name_feature_map(self, "stem", x), 3, 2)
        x = conv(80, (1, 1), name="Conv2d_3b_1x1")(x, train)
        x = conv(192, (3, 3), name="Conv2d_4a_3x3")(x, train)
        x = max_pool(name_feature_map(self, "stage1", x), 3, 2)
        for block, (branches, pool) in _blocks().items():
            x = Mixed(branches, pool, conv, name=f"Mixed_{block}")(x, train)
            if block in ("5d", "6e", "7c"):
                x = name_feature_map(self, {"5d": "stage2", "6e": "stage3", "7c": "stage4"}[block], x)
            if block == "6e" and with_head:
                record_auxiliary_logits(
                    self, "aux_logits", AuxiliaryHead(self.num_classes, conv, name="AuxLogits")(x, train)
                )

        dtype = jnp.promote_types(self.dtype, jnp.float32)
        x = name_feature_map(self, "penultimate", x.mean(axis=(1, 2), dtype=dtype))
        x = Dropout(self.dropout, axis_name=self.axis_name)(x, train)
        head = {"kernel_init": HEAD_INIT, "dtype": dtype, "param_dtype": self.param_dtype, "name": "fc"}
        return nn.Dense(self.num_classes, **head)(x)


class AuxiliaryHead(nn.Module):
    """5×5 average pooling with stride 3, 1×1 and 5×5 convolutions, mean, dense. conv: ConvNorm with its precision."""

    num_classes: int
    conv: Any

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], train: bool
    ) -> Float[Array, "batch num_classes"]:
        """[batch, height, width, channels] -> logits [batch, num_classes], float32."""
        x = nn.avg_pool(x, (5, 5), strides=(3, 3))
        x = self.conv(128, (1, 1), name="conv0")(x, train)
        x = self.conv(768, (5, 5), name="conv1")(x, train)
        dtype = jnp.promote_types(x.dtype, jnp.float32)
        return nn.Dense(
            self.num_classes, kernel_init=HEAD_INIT, dtype=dtype, param_dtype=self.parent.param_dtype, name="fc"
        )(x.mean(axis=(1, 2), dtype=dtype))
