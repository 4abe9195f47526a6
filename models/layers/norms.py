"""Normalisation layers, and one of them by name.

    batch      mean and variance of a channel over the batch and its pixels   Ioffe, Szegedy (2015), 1502.03167
    group      … of a group of channels over the pixels of one example        Wu, He (2018), 1803.08494
    layer      … of one example (Linen's: of the last axis alone)             Ba, Kiros, Hinton (2016), 1607.06450
    instance   … of a channel over the pixels of one example                  Ulyanov et al. (2016), 1607.08022
    adaptive   the same, with scale and shift from elsewhere                  Huang, Belongie (2017), 1703.06868
    local      the energy of neighbouring channels                            Krizhevsky et al. (2012), section 3.3

All but the adaptive and the local one are Flax Linen's, whose default ε is 1e-6 (torch: 1e-5). What normalises
weights instead of activations is in weight_standardization.py.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen import GroupNorm, InstanceNorm, LayerNorm
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dl_core.errors import unknown_name
from models.layers.response_norm import local_response_norm

__all__ = [
    "NORMS",
    "BatchNorm",
    "GroupNorm",
    "InstanceNorm",
    "LayerNorm",
    "adaptive_instance_norm",
    "channel_statistics",
    "local_response_norm",
    "norm_layer",
]

NORMS = ("batch", "batch_unbiased", "group", "none")  # names for norm_layer
_EPSILON = 1e-5  # torch's
Maps = Float[Array | np.ndarray, "batch height width channels"]
Vectors = Float[Array | np.ndarray, "batch channels"]


class BatchNorm(nn.BatchNorm):
    """Linen's BatchNorm, with torch's running variance if wanted.

    Activations are divided by the root of the batch's own biased variance, Σ(x - μ)²/n, in either case.

    unbiased: let the running average take n/(n - 1) times that variance, as torch does, where n is the number of values
      per channel over all devices; Linen, the paper's text and TensorFlow's plain layer average the biased one.
    """

    unbiased: bool = False

    def __call__(
        self,
        x: Float[Array | np.ndarray, "batch *axes channels"],
        use_running_average: bool | None = None,
        *,
        mask: Array | None = None,
    ) -> Float[Array, "batch *axes channels"]:
        """[batch, ..., channels] -> the same shape. mask: which of the values count, alike for all channels."""
        frozen = nn.merge_param("use_running_average", self.use_running_average, use_running_average)
        if not self.unbiased or frozen or self.is_initializing():
            return super().__call__(x, use_running_average, mask=mask)
        before = self.get_variable("batch_stats", "var")
        y = super().__call__(x, use_running_average, mask=mask)
        after = self.get_variable("batch_stats", "var")
        n = (x.size if mask is None else jnp.broadcast_to(mask, x.shape).sum()) / after.size
        if self.axis_name is not None:
            n = jax.lax.psum(n, self.axis_name)
        correction = (after - self.momentum * before) / jnp.maximum(n - 1, 1)  # one value has no variance to correct
        self.put_variable("batch_stats", "var", after + correction.astype(after.dtype))
        return y


def channel_statistics(maps: Maps, *, epsilon: float = _EPSILON) -> tuple[Vectors, Vectors]:
    """The style of an image in the sense of Huang and Belongie: standard deviation and mean of every channel.

    Args:
      maps: [batch, height, width, channels].
      epsilon: added to the variance under the root, > 0 (the gradient of the root at 0 is infinite).

    Returns:
      (deviation, mean), each [batch, channels]; variances are biased (eq. 6 and 3 of the paper).
    """
    return jnp.sqrt(jnp.var(maps, axis=(1, 2)) + epsilon), jnp.mean(maps, axis=(1, 2))


def adaptive_instance_norm(content: Maps, scale: Vectors, shift: Vectors, *, epsilon: float = _EPSILON) -> Maps:
    """σ_s (x - μ(x)) / σ(x) + μ_s: instance normalisation with given statistics (Huang, Belongie, 2017, eq. 8).

    For the style of another image: `adaptive_instance_norm(content, *channel_statistics(style))`; a conditional
    generator computes scale and shift from its code instead.

    Args:
      content: x, [batch, height, width, channels].
      scale: σ_s, [batch, channels], the standard deviation that every channel gets.
      shift: μ_s, [batch, channels], its mean.
      epsilon: added to the variance of x under the root, > 0.

    Returns:
      Maps of the shape of content.
    """
    deviation, mean = channel_statistics(content, epsilon=epsilon)
    spread = lambda vectors: vectors[:, None, None, :]
    return (content - spread(mean)) * spread(scale / deviation) + spread(shift)


def norm_layer(
    name: str,
    train: bool,
    *,
    groups: int = 32,
    axis_name: str | None = None,
    dtype: DTypeLike = jnp.float32,
    param_dtype: DTypeLike = jnp.float32,
) -> Callable[..., Any]:
    """The normalisation of a whole network, by name, with torch's ε = 1e-5.

    Args:
      name: "batch" (decay 0.9), "batch_unbiased" (the same with torch's running variance), "group" or "none".
      train: normalise with the statistics of the batch; "group" and "none" know no difference.
      groups: of "group"; where they do not divide the channels of a layer, their greatest common divisor.
      axis_name: the pmap axis over which "batch" averages its statistics, or None.
      dtype, param_dtype: of the computation and of the parameters.

    Returns:
      norm(name=…, scale_init=…) -> layer, and layer(x) -> normalised x; to be called in a compact method.

    Raises:
      UsageError: unknown name.
    """
    options = {"epsilon": _EPSILON, "dtype": dtype, "param_dtype": param_dtype}
    match name:
        case "batch" | "batch_unbiased":
            kind = {"unbiased": name == "batch_unbiased", "momentum": 0.9, "axis_name": axis_name}
            return partial(BatchNorm, not train, **kind, **options)
        case "group":
            return lambda **more: lambda x: GroupNorm(math.gcd(groups, x.shape[-1]), **options, **more)(x)
        case "none":
            return lambda **_: lambda x: x
    raise unknown_name("normalization", name, NORMS)
