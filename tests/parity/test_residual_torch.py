"""Wide ResNet, ResNeXt, GroupNorm and normaliser-free ResNets against torchvision and timm: the same numbers.

Random weights and BatchNorm statistics. Full networks are slow to compile, so the fast tests cut the stages short.
"""

import jax
import numpy as np
import optax
import pytest

from models import nf_resnet, resnet  # noqa: F401
from models.weights import export_torch

torch = pytest.importorskip("torch")
from torchvision_on_cpu import import_zoo  # noqa: E402

zoo, timm = import_zoo()
from zoo_comparison import CLASSES, fill_at_random, images_of, our_model, relative_error, to_torch  # noqa: E402

SIZE = 65  # such that maps on the way down have odd and even sides
SHORT = (1, 2, 1, 1)
WIDTHS = {"wide_resnet50_2": {"width_per_group": 128}, "resnext50_32x4d": {"groups": 32, "width_per_group": 4}}
NAMES = [*WIDTHS, "resnet50_gn", "nf_resnet50"]
DEEP = ["wide_resnet101_2", "resnext101_32x8d", "resnext101_64x4d", "resnext101_32x4d", "nf_resnet26", "nf_resnet101"]


def torch_network(name, dtype, stage_sizes=None, **options):
    """torchvision's or timm's network with random contents, in evaluation mode."""
    with torch.device("meta"):  # no time is spent on initial weights
        if name in WIDTHS and stage_sizes:
            bottleneck = zoo.resnet.Bottleneck
            network = zoo.resnet.ResNet(bottleneck, list(stage_sizes), num_classes=CLASSES, **WIDTHS[name])
        elif hasattr(zoo, name):
            network = getattr(zoo, name)(weights=None, num_classes=CLASSES)
        else:
            if stage_sizes:
                options["depths" if name.startswith("nf") else "layers"] = stage_sizes
            network = timm.create_model(name, num_classes=CLASSES, **options)
    return fill_at_random(network, dtype)


def assert_same_logits(name, dtype, tolerance, **fields):
    images = images_of(SIZE, dtype)
    with jax.enable_x64(dtype == "float64"):
        network = torch_network(name, dtype, **fields)
        model, variables = our_model(name, network, dtype, **fields)
        logits = jax.jit(model.apply)(variables, images)
        assert logits.dtype == dtype
        with torch.no_grad():
            assert relative_error(logits, network(to_torch(images))) < tolerance


# float64 leaves rounding at 1e-15, so any slip in structure shows; float32 allows for sums of some thousand terms.
PRECISIONS = pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 1e-5)])


@PRECISIONS
@pytest.mark.parametrize("name", NAMES)
def test_logits_of_short_networks_are_those_of_the_torch_network(name, dtype, tolerance):
    assert_same_logits(name, dtype, tolerance, stage_sizes=SHORT)


@pytest.mark.slow
@PRECISIONS
@pytest.mark.parametrize("name", [*NAMES, *DEEP])
def test_logits_are_those_of_the_torch_network(name, dtype, tolerance):
    """A hundred layers without normalisation add up more rounding: twice the float32 bound was measured."""
    tolerance = max(tolerance, 5e-5) if (name, dtype) == ("nf_resnet101", "float32") else tolerance
    assert_same_logits(name, dtype, tolerance)


def assert_same_gradients(name, **fields):
    """Of the loss by every parameter, with BatchNorm in evaluation mode."""
    images, labels = images_of(SIZE, "float64"), np.array([2, 5])
    with jax.enable_x64(True):
        network = torch_network(name, "float64", **fields)
        model, variables = our_model(name, network, "float64", **fields)

        def loss(params):
            logits = model.apply({**variables, "params": params}, images)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        gradients = export_torch(name, {"params": jax.jit(jax.grad(loss))(variables["params"])}, **fields)
    torch.nn.functional.cross_entropy(network(to_torch(images)), torch.from_numpy(labels)).backward()
    for key, parameter in network.named_parameters():
        assert gradients[key].shape == parameter.shape, key
        assert relative_error(gradients[key], parameter.grad) < 1e-10, key


@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_short_networks_are_those_of_the_torch_network(name):
    assert_same_gradients(name, stage_sizes=(1, 1, 1, 1))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_of_the_torch_network(name):
    assert_same_gradients(name)


@pytest.mark.parametrize("name", WIDTHS)
def test_training_stores_torchs_running_statistics_if_asked_for(name):
    """BatchNorm over the values of two images amplifies rounding: 1e-9 instead of 1e-12."""
    fields = {"stage_sizes": (1, 1, 1, 1)}
    images = images_of(SIZE, "float64")
    with jax.enable_x64(True):
        network = torch_network(name, "float64", **fields)
        model, variables = our_model(name, network, "float64", normalization="batch_unbiased", **fields)
        apply = jax.jit(lambda x: model.apply(variables, x, train=True, mutable=["batch_stats"]))
        logits, updated = apply(images)
        with torch.no_grad():
            assert relative_error(logits, network.train()(to_torch(images))) < 1e-9
        ours = export_torch(name, updated, **fields)
    for key, value in network.state_dict().items():
        if key.endswith(("running_mean", "running_var")):
            assert relative_error(ours[key], value) < 1e-9, key


def test_the_papers_form_of_a_normaliser_free_network_is_timms_with_three_things_changed():
    """γ behind the activations, SkipInit, and shortcuts that stride instead of averaging.

    Values only: torch cannot differentiate timm's activation, which multiplies its result by γ in place.
    """
    images, fields = images_of(SIZE, "float64"), {"stage_sizes": SHORT}
    with jax.enable_x64(True):
        network = torch_network("nf_resnet50", "float64", **fields, gamma_in_act=True, skipinit=True)
        for module in network.modules():
            if isinstance(module, torch.nn.AvgPool2d):
                module.forward = lambda x: x[:, :, ::2, ::2]
        model, variables = our_model("nf_resnet50", network, "float64", form="paper", **fields)
        with torch.no_grad():
            theirs = network(to_torch(images))
        assert relative_error(jax.jit(model.apply)(variables, images), theirs) < 1e-12
        other = model.clone(gamma=nf_resnet.nonlinearity_gain("relu"))  # exact instead of timm's estimate: 0.06 % less
        assert relative_error(jax.jit(other.apply)(variables, images), theirs) > 1e-5


def test_an_export_is_accepted_by_timm_with_no_key_missing():
    fields = {"stage_sizes": (1, 1, 1, 1)}
    network = torch_network("nf_resnet50", "float32", **fields)
    _, variables = our_model("nf_resnet50", network, "float32", **fields)
    exported = export_torch("nf_resnet50", variables, **fields)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    network.load_state_dict({key: torch.from_numpy(value) for key, value in exported.items()}, strict=True)
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key]), key
