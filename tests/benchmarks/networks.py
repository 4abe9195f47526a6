"""Networks for benchmarks, with the same weights in Flax and in PyTorch."""

import pathlib
import sys
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

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
    params = variables["params"]
    tensor = lambda array: torch.nn.Parameter(torch.tensor(np.asarray(array)))
    for layer, name in [(layers[0], "Conv_0"), (layers[3], "Conv_1")]:
        layer.weight, layer.bias = tensor(params[name]["kernel"].transpose(3, 2, 0, 1)), tensor(params[name]["bias"])
    # our flattening runs over height, width, channels; theirs over channels first
    first = params["Dense_0"]["kernel"].reshape(7, 7, 32, 100).transpose(3, 2, 0, 1).reshape(100, -1)
    layers[7].weight, layers[7].bias = tensor(first), tensor(params["Dense_0"]["bias"])
    layers[9].weight, layers[9].bias = tensor(params["Dense_1"]["kernel"].T), tensor(params["Dense_1"]["bias"])
    return Network(model.apply, variables, torch.nn.Sequential(*layers).eval(), (28, 28, 1))


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
