"""ResNet and LeNet-5 against independent PyTorch networks: same weights, same images, same logits."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models

torch = pytest.importorskip("torch")
from torch_networks import LeNet5, ResNet  # noqa: E402

NETWORKS = {
    "resnet18": {"sizes": (2, 2, 2, 2)},
    "resnet50": {"sizes": (3, 4, 6, 3), "bottleneck": True},
    "resnet18_v2": {"sizes": (2, 2, 2, 2), "preactivation": True},
    "resnet50_v2": {"sizes": (3, 4, 6, 3), "bottleneck": True, "preactivation": True},
    "resnet20_cifar": {"sizes": (3, 3, 3), "width": 16, "cifar": True, "option_a": True},
    "resnet20_cifar_v2": {"sizes": (3, 3, 3), "width": 16, "cifar": True, "option_a": True, "preactivation": True},
}


def randomise(network):
    """Random weights of He's scale and random BatchNorm parameters and statistics, so that no slip can hide."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda like, low, high: torch.rand(like.shape, generator=generator, dtype=like.dtype) * (high - low) + low
    for name, value in network.state_dict().items():
        if name.endswith("running_var"):
            value.copy_(draw(value, 0.5, 2.0))
        elif value.ndim == 1:
            value.copy_(draw(value, 0.5, 1.5) if name.endswith("weight") else draw(value, -0.3, 0.3))
        elif value.ndim > 1:
            value.copy_(draw(value, -1, 1) * (6 / value[0].numel()) ** 0.5)
    return network.eval()


def flax_variables(network):
    """torch's state dict as Flax variables: names split at dots, kernels from OIHW to HWIO."""
    variables = {"params": {}, "batch_stats": {}}
    leaves = {"running_mean": "mean", "running_var": "var", "bias": "bias"}
    for name, value in network.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        name = re.sub(r"^(layer\d)\.(\d+)\.", r"\1_\2.", name)
        name = name.replace("downsample.0", "downsample_conv").replace("downsample.1", "downsample_bn")
        *path, leaf = name.split(".")
        node = variables["batch_stats" if leaf.startswith("running") else "params"]
        for part in path:
            node = node.setdefault(part, {})
        if leaf == "weight":
            leaf = "kernel" if value.ndim > 1 else "scale"
            value = value.permute({4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}[value.ndim])
        node[leaves.get(leaf, leaf)] = jnp.array(value.numpy())  # a copy: torch changes statistics in place
    return {collection: tree for collection, tree in variables.items() if tree}


def relative_error(ours, theirs):
    theirs = theirs.detach().numpy()
    return np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max()


def pair(name, dtype, **fields):
    """Our model, its variables, the torch network with the same weights."""
    network = randomise(ResNet(num_classes=7, **NETWORKS[name]).to(getattr(torch, dtype)))
    return (
        models.create(name, num_classes=7, dtype=dtype, param_dtype=dtype, **fields),
        flax_variables(network),
        network,
    )


def images_of(size, dtype):
    return np.random.default_rng(1).standard_normal((2, size, size, 3)).astype(dtype)


# float64 leaves rounding at 1e-15, so any slip in structure shows; float32 allows for sums of some thousand terms.
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 1e-5)])
@pytest.mark.parametrize("name", NETWORKS)
def test_logits_equal_those_of_the_torch_network(name, dtype, tolerance):
    images = images_of(32 if "cifar" in name else 65, dtype)  # 65: the maps have odd and even sizes on the way down
    with jax.enable_x64(dtype == "float64"):
        model, variables, network = pair(name, dtype)
        logits = jax.jit(model.apply)(variables, images)
        assert logits.dtype == dtype
        assert relative_error(logits, network(torch.from_numpy(images).permute(0, 3, 1, 2))) < tolerance


@pytest.mark.parametrize("name", ["resnet18", "resnet20_cifar_v2"])
def test_training_mode_and_its_gradients_equal_those_of_the_torch_network(name):
    """The running variance differs by design: torch keeps the unbiased n/(n - 1) of the batch, Flax the biased one."""
    images = images_of(32 if "cifar" in name else 64, "float64")
    with jax.enable_x64(True):
        model, variables, network = pair(name, "float64")
        weights = np.random.default_rng(2).standard_normal((2, 7))

        def loss(params):
            logits, updated = model.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"])
            return (weights * logits).sum(), (logits, updated["batch_stats"])

        gradients, (logits, statistics) = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
        theirs = network.train()(torch.from_numpy(images).permute(0, 3, 1, 2))
        assert relative_error(logits, theirs) < 1e-10  # BatchNorm over 2·2·2 values amplifies rounding
        (torch.from_numpy(weights) * theirs).sum().backward()
        assert relative_error(gradients["fc"]["kernel"], network.fc.weight.grad.T) < 1e-9
        assert relative_error(gradients["conv1"]["kernel"], network.conv1.weight.grad.permute(2, 3, 1, 0)) < 1e-9
        norm = network.layer1[0].bn1
        ours = statistics["layer1_0"]["bn1"]
        n = images.size // 3 // (1 if "cifar" in name else 16)  # values per channel of the first stage
        assert relative_error(ours["mean"], norm.running_mean) < 1e-10
        before = np.asarray(variables["batch_stats"]["layer1_0"]["bn1"]["var"])
        unbiased = 0.9 * before + (np.asarray(ours["var"]) - 0.9 * before) * n / (n - 1)
        assert relative_error(unbiased, norm.running_var) < 1e-10


def test_the_two_positions_of_the_stride_differ():
    """`stride_in_1x1` is the paper's form; with torchvision's weights it must give other logits, or it does nothing."""
    model, variables, network = pair("resnet50", "float32", stride_in_1x1=True)
    images = images_of(64, "float32")
    logits = jax.jit(model.apply)(variables, images)
    assert relative_error(logits, network(torch.from_numpy(images).permute(0, 3, 1, 2))) > 1e-3
    for stage in ("layer2", "layer3", "layer4"):
        block = getattr(network, stage)[0]
        block.conv1.stride, block.conv2.stride = (2, 2), (1, 1)
    assert relative_error(logits, network(torch.from_numpy(images).permute(0, 3, 1, 2))) < 1e-5


@pytest.mark.parametrize("modern", [True, False])
def test_lenet_equals_the_torch_network(modern):
    """Our flattened maps are in the order height, width, channel; torch's are channel, height, width."""
    images = np.random.default_rng(1).standard_normal((3, 28, 28, 1))
    with jax.enable_x64(True):
        network = randomise(LeNet5(7, modern=modern).double())
        variables = flax_variables(network)
        kernel = variables["params"]["fc1"]["kernel"]
        variables["params"]["fc1"]["kernel"] = kernel.reshape(16, 5, 5, 120).transpose(1, 2, 0, 3).reshape(400, 120)
        form = {"activation": "relu", "pooling": "max"} if modern else {}
        options = {"padding": "SAME", "dtype": "float64", "param_dtype": "float64"}
        logits = models.create("lenet5", num_classes=7, **form, **options).apply(variables, images)
        assert relative_error(logits, network(torch.from_numpy(images).permute(0, 3, 1, 2))) < 1e-12
