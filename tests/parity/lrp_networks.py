"""Small networks written twice, in PyTorch for Zennit and Captum and as JAX functions or Flax modules, of one weight.

The torch networks consist of modules only, each used once, so that Zennit's hooks and canonizers see everything,
additions too. The JAX side is written as a user would write it, with no thought of any explanation.

BatchNorm's ε: Zennit folds a BatchNorm into the layer before it and leaves in its place one of mean 0 and variance 1
that still divides by √(1 + ε), by which its relevance is wrong from the sixth digit on. The torch networks therefore
have ε = 0 and the variance v + ε where the JAX networks have ε and v, which is the same function.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import nn

SIDE, CHANNELS, CLASSES = 8, 4, 3
BATCH_NORM_EPSILON = 1e-5


class Add(nn.Module):
    """The sum over the last axis: Zennit's `Sum`, without an import of Zennit."""

    def forward(self, x):
        return x.sum(dim=-1)


class ChannelsLast(nn.Module):
    """Flattened in the order height, width, channel."""

    def forward(self, x):
        return x.permute(0, 2, 3, 1).flatten(1)


class Plain(nn.Module):
    """Convolution, ReLU, max-pooling, strided convolution, two dense layers, all with biases."""

    def __init__(self):
        super().__init__()
        self.conv1, self.relu1, self.pool = nn.Conv2d(CHANNELS, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)
        self.conv2, self.relu2, self.flat = nn.Conv2d(6, 5, 3, 2, 1), nn.ReLU(), ChannelsLast()
        self.fc1, self.relu3, self.fc2 = nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, CLASSES)

    def forward(self, x):
        x = self.relu2(self.conv2(self.pool(self.relu1(self.conv1(x)))))
        return self.fc2(self.relu3(self.fc1(self.flat(x))))


def plain(variables, x):
    """As `Plain`, in plain JAX."""
    weights = variables["params"]
    with jax.named_scope("conv1"):
        x = jnp.maximum(_convolve(weights["conv1"], x, padding=1), 0)
    x = jax.lax.reduce_window(x, -np.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    with jax.named_scope("conv2"):
        x = jnp.maximum(_convolve(weights["conv2"], x, stride=2, padding=1), 0)
    x = x.reshape(len(x), -1)
    with jax.named_scope("fc1"):
        x = jnp.maximum(jnp.dot(x, weights["fc1"]["kernel"]) + weights["fc1"]["bias"][None], 0)
    with jax.named_scope("fc2"):
        return jnp.einsum("bi,ic->bc", x, weights["fc2"]["kernel"]) + weights["fc2"]["bias"][None]


class Normalised(nn.Module):
    """Convolution without and with bias, each before BatchNorm; overlapping max-pooling with padding; mean pooling."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(CHANNELS, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.relu1, self.pool1 = nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        self.conv2, self.bn2 = nn.Conv2d(6, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.relu2, self.pool2, self.flat = nn.ReLU(), nn.AvgPool2d(2), ChannelsLast()
        self.fc1, self.bn3, self.relu3, self.fc2 = nn.Linear(32, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, CLASSES)

    def forward(self, x):
        x = self.pool1(self.relu1(self.bn1(self.conv1(x))))
        x = self.flat(self.pool2(self.relu2(self.bn2(self.conv2(x)))))
        return self.fc2(self.relu3(self.bn3(self.fc1(x))))


class NormalisedFlax(linen.Module):
    """As `Normalised`."""

    @linen.compact
    def __call__(self, x):
        norm = lambda name: linen.BatchNorm(use_running_average=True, epsilon=BATCH_NORM_EPSILON, name=name)
        x = linen.Conv(6, (3, 3), padding=1, use_bias=False, name="conv1")(x)
        x = linen.relu(norm("bn1")(x))
        x = linen.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        x = linen.relu(norm("bn2")(linen.Conv(8, (3, 3), padding=1, name="conv2")(x)))
        x = linen.avg_pool(x, (2, 2), strides=(2, 2))
        x = x.reshape(len(x), -1)
        x = linen.relu(norm("bn3")(linen.Dense(9, name="fc1")(x)))
        return linen.Dense(CLASSES, name="fc2")(x)


class Residual(nn.Module):
    """A block that adds its input and one that adds a projection of it, BatchNorm throughout; the mean of the map."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1, self.relu1 = (
            nn.Conv2d(CHANNELS, 6, 3, padding=1, bias=False),
            nn.BatchNorm2d(6),
            nn.ReLU(),
        )
        self.conv2, self.bn2, self.relu2 = nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU()
        self.conv3, self.bn3 = nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.add1, self.relu3 = Add(), nn.ReLU()
        self.conv4, self.bn4, self.relu4 = nn.Conv2d(6, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU()
        self.conv5, self.bn5 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.project, self.bn6 = nn.Conv2d(6, 8, 1, 2, bias=False), nn.BatchNorm2d(8)
        self.add2, self.relu5 = Add(), nn.ReLU()
        self.mean, self.flat, self.fc = nn.AdaptiveAvgPool2d(1), ChannelsLast(), nn.Linear(8, CLASSES)

    def forward(self, x):
        x = self.relu1(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(self.relu2(self.bn2(self.conv2(x)))))
        x = self.relu3(self.add1(torch.stack([x, y], dim=-1)))
        y = self.bn5(self.conv5(self.relu4(self.bn4(self.conv4(x)))))
        x = self.relu5(self.add2(torch.stack([self.bn6(self.project(x)), y], dim=-1)))
        return self.fc(self.flat(self.mean(x)))


class ResidualFlax(linen.Module):
    """As `Residual`."""

    @linen.compact
    def __call__(self, x):
        def conv_norm(x, i, channels, stride=1, size=3, name=None):
            options = {"padding": size // 2, "use_bias": False, "name": name or f"conv{i}"}
            x = linen.Conv(channels, (size, size), (stride, stride), **options)(x)
            return linen.BatchNorm(use_running_average=True, epsilon=BATCH_NORM_EPSILON, name=f"bn{i}")(x)

        x = linen.relu(conv_norm(x, 1, 6))
        x = linen.relu(x + conv_norm(linen.relu(conv_norm(x, 2, 6)), 3, 6))
        y = conv_norm(linen.relu(conv_norm(x, 4, 8, 2)), 5, 8)
        x = linen.relu(y + conv_norm(x, 6, 8, 2, 1, "project"))
        return linen.Dense(CLASSES, name="fc")(x.mean(axis=(1, 2)))


class Branches(nn.Module):
    """Two branches and what they come from are concatenated, as in inception and dense blocks."""

    def __init__(self):
        super().__init__()
        self.conv1, self.relu1 = nn.Conv2d(CHANNELS, 4, 3), nn.ReLU()
        self.conv2, self.relu2 = nn.Conv2d(4, 3, 1), nn.ReLU()
        self.conv3, self.relu3 = nn.Conv2d(4, 5, 3, padding=1), nn.ReLU()
        self.conv4, self.relu4 = nn.Conv2d(12, 6, 3, padding=1), nn.ReLU()
        self.pool, self.flat, self.fc = nn.AvgPool2d(3, 3), ChannelsLast(), nn.Linear(24, CLASSES)

    def forward(self, x):
        x = self.relu1(self.conv1(x))
        x = torch.cat([x, self.relu2(self.conv2(x)), self.relu3(self.conv3(x))], dim=1)
        return self.fc(self.flat(self.pool(self.relu4(self.conv4(x)))))


def branches(variables, x):
    """As `Branches`, in plain JAX."""
    weights = variables["params"]
    layer = lambda name, x, **options: jax.nn.relu(_convolve(weights[name], x, **options))
    x = layer("conv1", x)
    x = jnp.concatenate([x, layer("conv2", x), layer("conv3", x, padding=1)], axis=-1)
    x = layer("conv4", x, padding=1)
    x = x.reshape(len(x), 2, 3, 2, 3, -1).mean(axis=(2, 4))
    return x.reshape(len(x), -1) @ weights["fc"]["kernel"] + weights["fc"]["bias"][None]


class Grouped(nn.Module):
    """Two groups, one channel a group (depthwise), dilation, a kernel that is not square, unequal strides."""

    def __init__(self):
        super().__init__()
        self.conv1, self.relu1 = nn.Conv2d(CHANNELS, 8, 3, padding=1, groups=2), nn.ReLU()
        self.conv2, self.relu2 = nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=8, bias=False), nn.ReLU()
        self.conv3, self.relu3 = nn.Conv2d(8, 6, (3, 2), (1, 2), dilation=(2, 1)), nn.ReLU()
        self.flat, self.fc = ChannelsLast(), nn.Linear(96, CLASSES)

    def forward(self, x):
        x = self.relu2(self.conv2(self.relu1(self.conv1(x))))
        return self.fc(self.flat(self.relu3(self.conv3(x))))


class GroupedFlax(linen.Module):
    """As `Grouped`."""

    @linen.compact
    def __call__(self, x):
        x = linen.relu(linen.Conv(8, (3, 3), padding=1, feature_group_count=2, name="conv1")(x))
        depthwise = {"kernel_dilation": 2, "feature_group_count": 8, "use_bias": False}
        x = linen.relu(linen.Conv(8, (3, 3), padding=2, name="conv2", **depthwise)(x))
        x = linen.relu(linen.Conv(6, (3, 2), (1, 2), padding="VALID", kernel_dilation=(2, 1), name="conv3")(x))
        return linen.Dense(CLASSES, name="fc")(x.reshape(len(x), -1))


class Case(NamedTuple):
    """One network, twice, in float64: the torch network, (variables, images) -> logits, and the variables."""

    network: nn.Module
    apply_fn: Callable[[Any, Any], jax.Array]
    variables: Any


_CASES = {
    "plain": (Plain, plain),
    "batch_norm": (Normalised, NormalisedFlax().apply),
    "residual": (Residual, ResidualFlax().apply),
    "concatenation": (Branches, branches),
    "grouped": (Grouped, GroupedFlax().apply),
}
NAMES = tuple(_CASES)
POOLED = {"plain": 1, "batch_norm": 4, "residual": 16, "concatenation": 9, "grouped": 1}  # values in a mean


def case(name: str, *, biases: bool = True, seed: int = 0) -> Case:
    """A network with random weights, biases and BatchNorm statistics; call it where float64 is enabled.

    biases: False sets every bias, BatchNorm's shifts and its running means to zero, so that no layer absorbs relevance.
    """
    network_of, apply_fn = _CASES[name]
    network = network_of().double().eval()
    generator = torch.Generator().manual_seed(seed)
    uniform = lambda like, low, high: torch.empty_like(like).uniform_(low, high, generator=generator)
    with torch.no_grad():
        for key, value in network.state_dict().items():
            if key.endswith("running_var") or (key.endswith("weight") and value.ndim == 1):
                value.copy_(uniform(value, 0.5, 1.5))
            elif key.endswith("weight"):  # He's variance
                value.copy_(uniform(value, -1, 1) * (6 / value[0].numel()) ** 0.5)
            elif not key.endswith("num_batches_tracked"):
                value.copy_(uniform(value, -0.3, 0.3) * biases)
    without_epsilon(network)
    return Case(network, apply_fn, variables_of(network))


def without_epsilon(network: nn.Module) -> None:
    """Moves BatchNorm's ε into its variances, see above."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_var += module.eps
            module.eps = 0.0


def variables_of(network: nn.Module) -> dict[str, Any]:
    """Flax's variables from a flat torch network: {"params": {layer: {"kernel", "bias"}}, "batch_stats": …}."""
    params, statistics = {}, {}
    for name, module in network.named_children():
        if isinstance(module, nn.Conv2d | nn.Linear):
            order = (2, 3, 1, 0) if isinstance(module, nn.Conv2d) else (1, 0)
            params[name] = {"kernel": module.weight.detach().permute(order)}
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            params[name] = {"scale": module.weight.detach()}
            statistics[name] = {"mean": module.running_mean, "var": module.running_var - BATCH_NORM_EPSILON}
        if name in params and module.bias is not None:
            params[name]["bias"] = module.bias.detach()
    return jax.tree.map(lambda tensor: jnp.asarray(tensor.numpy()), {"params": params, "batch_stats": statistics})


def images(batch: int = 4, seed: int = 1) -> np.ndarray:
    """float64 [batch, 8, 8, 4], of either sign, as normalised images are."""
    return np.random.default_rng(seed).uniform(-1, 1.5, (batch, SIDE, SIDE, CHANNELS))


TARGETS = np.array([0, 2, 1, 2])


def to_torch(array: np.ndarray) -> torch.Tensor:
    """NHWC array -> NCHW tensor."""
    return torch.from_numpy(np.ascontiguousarray(array.transpose(0, 3, 1, 2)))


def from_torch(tensor: torch.Tensor) -> np.ndarray:
    """NCHW tensor -> NHWC array."""
    return tensor.detach().permute(0, 2, 3, 1).numpy()


def _convolve(layer, x, *, stride=1, padding=0):
    numbers = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
    maps = jax.lax.conv_general_dilated(x, layer["kernel"], (stride, stride), ((padding, padding),) * 2, **numbers)
    return maps + layer["bias"][None, None, None]
