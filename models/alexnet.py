"""AlexNet, in both of its forms.

Two groups: Krizhevsky, Sutskever, Hinton (2012), "ImageNet classification with deep convolutional neural networks".
One tower: Krizhevsky (2014), "One weird trick for parallelizing CNNs", https://arxiv.org/abs/1404.5997; torchvision's.

Submodules bear torchvision's names (`features_0`, …, `classifier_6`). Maps are flattened in the order height, width,
channel, torch's in the order channel, height, width: `models.load_torch` permutes the first dense kernel. Deviations
from the 2012 paper: weights start with He's variance and biases at 0 (the paper: σ = 0.01, some biases 1), response
normalisation sums over the neighbours in the whole map, not in one half, and the map before the dense layers is
averaged to 6×6 bins, so that images of any size from 63×63 will do; from 224×224 it has 6×6 pixels already.
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


@register("alexnet")
@register("alexnet_2012", channels=(96, 256, 384, 384, 256), groups=2, response_norm=True)
class AlexNet(nn.Module):
    """Five convolutions and three dense layers; 61,100,840 parameters at 1000 classes, two groups 60,965,224.

    channels: of the five convolutions (11×11 with stride 4, 5×5, then 3×3).
    hidden: units of each of the two dense layers before the last.
    groups: of convolutions 2, 4 and 5; 2 was one for each GPU of 2012.
    response_norm: local response normalisation after the first two convolutions.
    dropout: rate before each of the two hidden dense layers.

    Feature maps (224×224 input): "stage1" [batch, 55, 55, 64], "stage2" [batch, 27, 27, 192], "stage3" to "stage5"
    [batch, 13, 13, ·], each after its ReLU; "pool1" [batch, 27, 27, 64], "pool2" [batch, 13, 13, 192], "pool5"
    [batch, 6, 6, 256]; "fc6" [batch, 4096] and "penultimate" [batch, 4096] (fc7).
    """

    num_classes: int
    channels: tuple[int, int, int, int, int] = (64, 192, 384, 256, 256)
    hidden: int = 4096
    groups: int = 1
    response_norm: bool = False
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
            raise UsageError(f"alexnet needs images of at least {_SMALLEST}×{_SMALLEST}, got {x.shape[1]}×{x.shape[2]}")
        options = {"kernel_init": CONV_INIT, "dtype": self.dtype, "param_dtype": self.param_dtype}
        x = jnp.asarray(x, self.dtype)
        # torchvision's index, kernel, stride, padding, groups
        plan = [(0, 11, 4, 2, 1), (3, 5, 1, 2, self.groups), (6, 3, 1, 1, 1)]
        plan += [(8, 3, 1, 1, self.groups), (10, 3, 1, 1, self.groups)]
        for i, (channels, (index, size, stride, pad, groups)) in enumerate(zip(self.channels, plan, strict=True), 1):
            settings = {"padding": ((pad, pad),) * 2, "feature_group_count": groups, "name": f"features_{index}"}
            x = nn.relu(nn.Conv(channels, (size, size), (stride, stride), **settings, **options)(x))
            x = name_feature_map(self, f"stage{i}", x)
            if self.response_norm and i <= 2:
                x = local_response_norm(x)
            if i in (1, 2, 5):
                x = name_feature_map(self, f"pool{i}", max_pool(x, 3, 2))
        x = adaptive_average_pool(x, 6)
        x = x.reshape(len(x), -1)
        for name, index in [("fc6", 1), ("penultimate", 4)]:
            x = Dropout(self.dropout, axis_name=self.axis_name)(x, train)
            x = nn.relu(nn.Dense(self.hidden, name=f"classifier_{index}", **options)(x))
            x = name_feature_map(self, name, x)
        head = {"kernel_init": HEAD_INIT, "dtype": jnp.promote_types(self.dtype, jnp.float32)}
        return nn.Dense(self.num_classes, param_dtype=self.param_dtype, name="classifier_6", **head)(x)
