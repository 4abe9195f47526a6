"""A network for the shortest training: Jordan (2024), "94% on CIFAR-10 in 3.29 seconds on a single GPU".

https://arxiv.org/abs/2404.00498. A 2×2 convolution that whitens patches, then three groups of two 3×3 convolutions.
What makes it learn in a few epochs: the first layer is set from the data and stays
(`dl_core.whitening.patch_whitening`, `config.model.whiten`), convolutions start as the identity on as many channels as
they can, BatchNorm has no scale, and the logits are divided by 9.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dl_core.errors import UsageError
from models.feature_maps import name_feature_map
from models.registry import register

_KERNEL_INIT = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # torch's default, U(-1/√n, 1/√n)


def dirac_init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """Kernels [height, width, inputs, outputs] whose first outputs repeat the inputs; the rest as torch starts them."""
    height, width, inputs, outputs = shape
    same = min(inputs, outputs)
    identity = jnp.zeros((height, width, inputs, same), dtype).at[height // 2, width // 2, :same].set(jnp.eye(same))
    return _KERNEL_INIT(key, shape, dtype).at[..., :same].set(identity)


@register("airbench94")
class AirBench(nn.Module):
    """The network of 94 % in the paper; 1,971,640 parameters on 32×32×3 images, 10 classes.

    channels: of the two convolutions of each group, each followed by BatchNorm and GELU; 2×2 max-pooling lies after the
      first one.
    whiten_size: of the first kernels.
    decay: of BatchNorm's running statistics; short runs need short memories.
    scale: of the logits.
    axis_name: the pmap axis over which BatchNorm averages its statistics; None under jit, where they are global.

    Feature maps (32×32 input): "stem" [batch, 31, 31, 24], "stage1" [batch, 15, 15, 64], "stage2" [batch, 7, 7, 256],
    "stage3" [batch, 3, 3, 256], "penultimate" [batch, 256].
    """

    num_classes: int
    channels: tuple[int, ...] = (64, 256, 256)
    whiten_size: int = 2
    decay: float = 0.6
    scale: float = 1 / 9
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array | np.ndarray, "batch height width channels"], train: bool = False
    ) -> Float[Array, "batch classes"]:
        """[batch, height, width, channels] -> logits [batch, num_classes], float32; train: statistics of the batch."""
        smallest = 2 ** len(self.channels) + self.whiten_size - 1
        if min(x.shape[1:3]) < smallest:
            raise UsageError(f"airbench needs images of at least {smallest}×{smallest}, got {x.shape[1]}×{x.shape[2]}")
        precision = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        norm = {"use_scale": False, "momentum": self.decay, "epsilon": 1e-5, "axis_name": self.axis_name, **precision}
        conv = {"use_bias": False, "kernel_init": dirac_init, **precision}

        size = (self.whiten_size, self.whiten_size)
        filters = 2 * self.whiten_size**2 * x.shape[-1]
        x = nn.Conv(filters, size, padding="VALID", name="whiten", **precision)(jnp.asarray(x, self.dtype))
        x = name_feature_map(self, "stem", nn.gelu(x, approximate=False))
        for i, channels in enumerate(self.channels, start=1):
            x = nn.Conv(channels, (3, 3), name=f"group{i}_conv1", **conv)(x)
            x = nn.max_pool(x, (2, 2), strides=(2, 2))
            x = nn.gelu(nn.BatchNorm(not train, name=f"group{i}_norm1", **norm)(x), approximate=False)
            x = nn.Conv(channels, (3, 3), name=f"group{i}_conv2", **conv)(x)
            x = nn.gelu(nn.BatchNorm(not train, name=f"group{i}_norm2", **norm)(x), approximate=False)
            x = name_feature_map(self, f"stage{i}", x)
        dtype = jnp.promote_types(self.dtype, jnp.float32)
        x = name_feature_map(self, "penultimate", x.max(axis=(1, 2)).astype(dtype))
        head = {"use_bias": False, "kernel_init": _KERNEL_INIT, "dtype": dtype, "param_dtype": self.param_dtype}
        return self.scale * nn.Dense(self.num_classes, name="fc", **head)(x)
