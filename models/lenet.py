"""LeNet-5: LeCun, Bottou, Bengio, Haffner (1998), "Gradient-based learning applied to document recognition".

Deviations from the paper, all usual today: every map of C3 sees every map of S2, subsampling has no trainable
coefficients, tanh is unscaled, and the output layer is linear (for softmax cross-entropy) instead of radial basis
functions. With the paper's connection table, coefficients and fixed outputs the count would be 60,000.
"""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dl_core.activations import activation
from dl_core.errors import UsageError, unknown_name
from dl_core.initializers import before_activation
from models.feature_maps import name_feature_map
from models.layers.convolution import convolution
from models.layers.disjoint_pooling import disjoint_max_pool
from models.registry import register

_POOLING = {"average": lambda x: nn.avg_pool(x, (2, 2), strides=(2, 2)), "max": lambda x: disjoint_max_pool(x, 2)}


@register("lenet5")
class LeNet5(nn.Module):
    """Two 5×5 convolutions with 2×2 pooling, then 120-84-num_classes units; 61,706 parameters on 32×32×1, 10 classes.

    padding: of the first convolution; "VALID" for the paper's 32×32 images, "SAME" gives the same maps from 28×28.
    activation, pooling: "tanh" and "average" as in 1998; "relu" and "max" is the modern form.

    Feature maps (32×32 input): "stage1" [batch, 14, 14, 6] and "stage2" [batch, 5, 5, 16], each after its pooling,
    "penultimate" [batch, 84].
    """

    num_classes: int
    activation: str = "tanh"
    pooling: str = "average"
    padding: str = "VALID"
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array | np.ndarray, "batch height width channels"], train: bool = False
    ) -> Float[Array, "batch classes"]:
        """[batch, height, width, channels] -> logits [batch, num_classes], float32."""
        del train
        smallest = 12 if self.padding == "SAME" else 16
        if min(x.shape[1:3]) < smallest:
            raise UsageError(
                f"lenet5 needs images of at least {smallest}×{smallest} pixels, got {x.shape[1]}×{x.shape[2]}"
            )
        if self.pooling not in _POOLING:
            raise unknown_name("pooling", self.pooling, _POOLING)
        act, pool, init = activation(self.activation), _POOLING[self.pooling], before_activation(self.activation)
        options = {"dtype": self.dtype, "param_dtype": self.param_dtype}

        x = jnp.asarray(x, self.dtype)
        for i, (channels, padding) in enumerate([(6, self.padding), (16, "VALID")], start=1):
            conv = {"padding": padding, "kernel_init": init, "conv_general_dilated": convolution, **options}
            x = act(nn.Conv(channels, (5, 5), **conv, name=f"conv{i}")(x))
            x = name_feature_map(self, f"stage{i}", pool(x))
        x = x.reshape(len(x), -1)
        for i, units in enumerate([120, 84], start=1):
            x = act(nn.Dense(units, kernel_init=init, **options, name=f"fc{i}")(x))
        x = name_feature_map(self, "penultimate", x)
        dtype = jnp.promote_types(self.dtype, jnp.float32)
        return nn.Dense(self.num_classes, dtype=dtype, param_dtype=self.param_dtype, name="fc3")(x)
