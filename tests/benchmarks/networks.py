"""Networks for benchmarks, with the same weights in Flax and in PyTorch."""

import pathlib
import sys
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dl_core.initializers import before_activation
from models.layers.convolution import convolution
from models.layers.disjoint_pooling import disjoint_max_pool

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "parity"))


class SmallCNN(nn.Module):
    """Two convolutions of 5×5 with max-pooling and two dense layers, of the project's own layers."""

    @nn.compact
    def __call__(self, x):
        """[batch, 28, 28, 1] -> logits [batch, 10]."""
        for width in (16, 32):
            x = disjoint_max_pool(nn.relu(nn.Conv(width, (5, 5), conv_general_dilated=convolution)(x)), 2)
        x = nn.relu(nn.Dense(100)(x.reshape(len(x), -1)))
        return nn.Dense(10)(x)


class Network(NamedTuple):
    """One network on both sides.

    apply_fn, variables: ours.
    torch_module: theirs, or None where torch is not installed.
    shape: of an image, (height, width, channels).
    """

    apply_fn: Callable
    variables: dict
    torch_module: object
    shape: tuple[int, int, int]


def small_cnn(variables: dict | None = None) -> Network:
    """The small CNN with these weights, or with random ones."""
    model = SmallCNN()
    variables = variables or model.init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
    try:
        import torch
    except ModuleNotFoundError:
        return Network(model.apply, variables, None, (28, 28, 1))
    layers = [torch.nn.Conv2d(1, 16, 5, padding=2), torch.nn.ReLU(), torch.nn.MaxPool2d(2)]
    layers += [torch.nn.Conv2d(16, 32, 5, padding=2), torch.nn.ReLU(), torch.nn.MaxPool2d(2), torch.nn.Flatten()]
    layers += [torch.nn.Linear(7 * 7 * 32, 100), torch.nn.ReLU(), torch.nn.Linear(100, 10)]
    _fill(layers, variables["params"], convolutions=(0, 3), dense=(7, 9))
    return Network(model.apply, variables, torch.nn.Sequential(*layers).eval(), (28, 28, 1))


class StridedCNN(nn.Module):
    """The small network of Wong et al. (2020): two strided convolutions of 4×4 and 100 units."""

    num_classes: int = 10

    @nn.compact
    def __call__(self, x, train=False):
        """[batch, height, width, channels] -> logits [batch, num_classes]."""
        del train
        init = before_activation("relu")
        for maps in (16, 32):
            x = nn.relu(nn.Conv(maps, (4, 4), (2, 2), padding=1, kernel_init=init)(x))
        x = nn.relu(nn.Dense(100, kernel_init=init)(x.reshape(len(x), -1)))
        return nn.Dense(self.num_classes)(x)


def strided_cnn(variables: dict | None = None) -> Network:
    """The strided CNN with these weights, or with random ones, on 28×28×1."""
    model = StridedCNN()
    variables = variables or model.init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
    try:
        import torch
    except ModuleNotFoundError:
        return Network(model.apply, variables, None, (28, 28, 1))
    layers = [torch.nn.Conv2d(1, 16, 4, 2, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(16, 32, 4, 2, padding=1)]
    layers += [torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(7 * 7 * 32, 100), torch.nn.ReLU()]
    layers += [torch.nn.Linear(100, 10)]
    _fill(layers, variables["params"], convolutions=(0, 2), dense=(5, 7))
    return Network(model.apply, variables, torch.nn.Sequential(*layers).eval(), (28, 28, 1))


def _fill(layers: list, params: dict, *, convolutions: tuple[int, int], dense: tuple[int, int]) -> None:
    """The weights of Flax's Conv_0, Conv_1, Dense_0 and Dense_1 in these layers; the last maps are 7×7×32."""
    import torch

    tensor = lambda array: torch.nn.Parameter(torch.tensor(np.asarray(array)))
    for place, name in zip(convolutions, ("Conv_0", "Conv_1"), strict=True):
        layers[place].weight = tensor(params[name]["kernel"].transpose(3, 2, 0, 1))
        layers[place].bias = tensor(params[name]["bias"])
    # our flattening runs over height, width, channels; theirs over channels first
    first = params["Dense_0"]["kernel"].reshape(7, 7, 32, 100).transpose(3, 2, 0, 1).reshape(100, -1)
    for place, kernel, name in zip(dense, (first, params["Dense_1"]["kernel"].T), ("Dense_0", "Dense_1"), strict=True):
        layers[place].weight, layers[place].bias = tensor(kernel), tensor(params[name]["bias"])


def zoo(name: str, size: int) -> Network:
    """A network of torchvision with random weights, and ours with the same."""
    import torch
    import torchvision_on_cpu
    from zoo_comparison import CLASSES, fill_at_random, our_model

    networks, _ = torchvision_on_cpu.import_zoo()
    with torch.device("meta"):
        network = getattr(networks, name)(num_classes=CLASSES)
    network = fill_at_random(network, "float32")
    model, variables = our_model(name, network, "float32")
    return Network(model.apply, jax.tree.map(jnp.asarray, variables), network, (size, size, 3))
