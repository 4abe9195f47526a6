"""ZFNet: Zeiler, Fergus (2014), "Visualizing and understanding convolutional networks", arXiv 1311.2901, figure 3.

AlexNet with a finer first layer (7×7 with stride 2) and no groups. Submodules are called `conv1` … `conv5` and
`classifier_6` … `classifier_8`. Pooling takes the last window that reaches over the edge, which gives the sizes of the
figure: 110, 55, 26, 13, 6. Deviations: weights start with He's variance and biases at 0 (the paper: σ = 0.01), kernels
are not renormalised to a fixed norm, and maps that are not 6×6 at the end are averaged to 6×6 bins, so that images of
other sizes will do.
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
from models.layers.response_norm import local_response_norm
from models.registry import register

_SMALLEST = 63  # pixels: less leaves nothing after the third pooling


@register("zfnet")
class ZFNet(nn.Module):
    """Five convolutions and three dense layers; 62,357,608 parameters at 1000 classes.

    channels: of the five convolutions (7×7 with stride 2, 5×5 with stride 2, then 3×3).
    hidden: units of each of the two dense layers before the last.
    dropout: rate after each of them.

    Feature maps (224×224 input): "stage1" [batch, 110, 110, 96], "stage2" [batch, 26, 26, 256], "stage3" to "stage5"
    [batch, 13, 13, ·], each after its ReLU; "pool1" [batch, 55, 55, 96], "pool2" [batch, 13, 13, 256], "pool5"
    [batch, 6, 6, 256]; "fc6" [batch, 4096] and "penultimate" [batch, 4096] (fc7).
    """

    num_classes: int
    channels: tuple[int, int, int, int, int] = (96, 256, 384, 384, 256)
    hidden: int = 4096
    dropout: float = 0.5
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array | np.ndarray, "batch height width channels"], train: bool = False
    ) -> Float[Array, "batch classes"]:
        """[batch, height, width, channels] -> logits [batch, num_classes], float32; train: dropout is on."""
        if min(x.shape[1:3]) < _SMALLEST:
            raise UsageError(f"zfnet needs images of at least {_SMALLEST}×{_SMALLEST}, got {x.shape[1]}×{x.shape[2]}")
        options = {"kernel_init": CONV_INIT, "dtype": self.dtype, "param_dtype": self.param_dtype}
        x = jnp.asarray(x, self.dtype)
        plan = [(7, 2, 1), (5, 2, 0), (3, 1, 1), (3, 1, 1), (3, 1, 1)]  # kernel, stride, padding
        for i, (channels, (size, stride, pad)) in enumerate(zip(self.channels, plan, strict=True), start=1):
            settings = {"padding": ((pad, pad),) * 2, "name": f"conv{i}"}
            x = nn.relu(nn.Conv(channels, (size, size), (stride, stride), **settings, **options)(x))
            x = name_feature_map(self, f"stage{i}", x)
            if i in (1, 2, 5):
                x = name_feature_map(self, f"pool{i}", max_pool(x, 3, 2, ceil=i < 5))
            if i <= 2:
                x = local_response_norm(x)
        x = adaptive_average_pool(x, 6)
        x = x.reshape(len(x), -1)
        for name, index in [("fc6", 6), ("penultimate", 7)]:
            x = nn.relu(nn.Dense(self.hidden, name=f"classifier_{index}", **options)(x))
            x = name_feature_map(self, name, x)
            x = Dropout(self.dropout, axis_name=self.axis_name)(x, train)
        head = {"kernel_init": HEAD_INIT, "dtype": jnp.promote_types(self.dtype, jnp.float32)}
        return nn.Dense(self.num_classes, param_dtype=self.param_dtype, name="classifier_8", **head)(x)
