"""The classification zoo against torchvision and timm: random weights and BatchNorm statistics, the same numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from models import alexnet, densenet, googlenet, inception, mobilenet, vgg  # noqa: F401
from models.weights import export_torch, load_torch

torch = pytest.importorskip("torch")
from torchvision_on_cpu import import_zoo  # noqa: E402

zoo, timm = import_zoo()
import zoo_comparison  # noqa: E402
from zoo_comparison import CLASSES, fill_at_random, images_of, relative_error, to_torch  # noqa: E402

slow = lambda *values: pytest.param(*values, marks=pytest.mark.slow)
# Image sizes: small, and such that maps on the way down have odd and even sides.
FAMILIES = [("alexnet", 95), ("vgg11_bn", 67), ("densenet121", 65), ("mobilenetv1_100", 65), ("resnet18", 65)]
FAMILIES += [("resnet50_v2", 65), ("googlenet", 65), ("inception_v3", 75)]
OTHERS = [("vgg11", 67), ("vgg13", 67), ("vgg16", 67), ("vgg19_bn", 67), ("densenet161", 65), ("densenet169", 65)]
OTHERS += [("densenet201", 65), ("resnet34", 65), ("resnet50", 65), ("resnet101", 65), ("resnet152", 65)]
# Depth adds nothing to the gradient's structure, but minutes to its compilation.
SHALLOW = {"densenet121": ({"block_config": (2, 2, 2, 2)}, {"block_sizes": (2, 2, 2, 2)})}


def torch_network(name, dtype, **options):
    """torchvision's or timm's network with random contents, in evaluation mode."""
    with torch.device("meta"):  # no time is spent on initial weights
        if name in ("mobilenetv1_100", "resnet50_v2"):
            network = timm.create_model({"resnet50_v2": "resnetv2_50"}.get(name, name), num_classes=CLASSES)
        elif name in ("googlenet", "inception_v3"):
            network = getattr(zoo, name)(weights=None, num_classes=CLASSES, init_weights=False, aux_logits=True)
        elif options:
            network = zoo.DenseNet(num_classes=CLASSES, **options)
        else:
            network = getattr(zoo, name)(weights=None, num_classes=CLASSES)
        if name.startswith(("vgg", "alexnet")):  # 4096 hidden units take seconds and prove no more than 32
            first, second, last = (i for i, layer in enumerate(network.classifier) if hasattr(layer, "in_features"))
            network.classifier[first] = torch.nn.Linear(network.classifier[first].in_features, 32)
            network.classifier[second] = torch.nn.Linear(32, 32)
            network.classifier[last] = torch.nn.Linear(32, CLASSES)
    return fill_at_random(network, dtype)


def our_model(name, network, dtype, **fields):
    if name.startswith(("vgg", "alexnet")):
        fields["hidden"] = 32
    return zoo_comparison.our_model(name, network, dtype, **fields)


# float64 leaves rounding at 1e-15, so any slip in structure shows; float32 allows for sums of some thousand terms.
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 1e-5)])
@pytest.mark.parametrize(("name", "size"), [*FAMILIES, *(slow(*other) for other in OTHERS)])
def test_logits_are_those_of_the_torch_network(name, size, dtype, tolerance):
    images = images_of(size, dtype)
    with jax.enable_x64(dtype == "float64"):
        network = torch_network(name, dtype)
        model, variables = our_model(name, network, dtype)
        logits = jax.jit(model.apply)(variables, images)
        assert logits.dtype == dtype
        with torch.no_grad():
            assert relative_error(logits, network(to_torch(images))) < tolerance


@pytest.mark.parametrize(
    ("name", "size"),
    [slow(*row) if row[0] in ("googlenet", "inception_v3", "resnet50_v2") else row for row in FAMILIES],
)
def test_gradients_of_the_loss_are_those_of_the_torch_network(name, size):
    """Every parameter's, with BatchNorm in evaluation mode.

    In float64: in float32 two libraries now and then disagree about which of two nearly equal pixels a pooling window
    takes, and the gradient jumps (AlexNet: 1e-6 for most images, 3e-2 for some). The promise is 1e-4.
    """
    theirs_options, ours_options = SHALLOW.get(name, ({}, {}))
    images, labels = images_of(size, "float64"), np.array([2, 5])
    with jax.enable_x64(True):
        network = torch_network(name, "float64", **theirs_options)
        model, variables = our_model(name, network, "float64", **ours_options)

        def loss(params):
            logits = model.apply({**variables, "params": params}, images)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        gradients = export_torch(name, {"params": jax.jit(jax.grad(loss))(variables["params"])}, **ours_options)
    torch.nn.functional.cross_entropy(network(to_torch(images)), torch.from_numpy(labels)).backward()
    for key, parameter in network.named_parameters():
        if parameter.grad is None:  # auxiliary heads, which evaluation does not use
            assert key.startswith(("aux", "AuxLogits"))
            assert not gradients[key].any()
        else:
            assert relative_error(gradients[key], parameter.grad) < 1e-10, key


@pytest.mark.parametrize(
    ("name", "size", "heads"),
    [("googlenet", 65, ("aux1_logits", "aux2_logits")), slow("inception_v3", 299, ("aux_logits",))],
)
def test_auxiliary_logits_and_batch_statistics_in_training_are_those_of_torchvision(name, size, heads):
    """Without dropout, whose noise differs. BatchNorm over few values amplifies rounding: 1e-9 instead of 1e-12."""
    with jax.enable_x64(True):
        network = torch_network(name, "float64").train()
        for module in network.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        fields = {"dropout": 0.0, **({"aux_dropout": 0.0} if name == "googlenet" else {})}
        model, variables = our_model(name, network, "float64", **fields)
        images = images_of(size, "float64")
        apply = jax.jit(lambda x: model.apply(variables, x, train=True, mutable=["batch_stats", "auxiliary"]))
        logits, updated = apply(images)
        with torch.no_grad():
            theirs = network(to_torch(images))
        auxiliary = (theirs.aux_logits1, theirs.aux_logits2) if name == "googlenet" else (theirs.aux_logits,)
        assert relative_error(logits, theirs.logits) < 1e-9
        assert tuple(sorted(updated["auxiliary"])) == heads
        for head, expected in zip(heads, auxiliary, strict=True):
            assert relative_error(updated["auxiliary"][head], expected) < 1e-9
        means = export_torch(name, {"batch_stats": updated["batch_stats"]})
        for key, value in network.state_dict().items():
            if key.endswith("running_mean"):
                assert relative_error(means[key], value) < 1e-9, key


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_images_with_imagenets_statistics_are_transformed_as_in_torchvision(name):
    with torch.device("meta"):
        network = getattr(zoo, name)(weights=None, init_weights=False, transform_input=True)
    images = images_of(4, "float32")
    ours = googlenet.imagenet_to_unit_range(jnp.asarray(images))
    theirs = network._transform_input(to_torch(images)).permute(0, 2, 3, 1)
    assert relative_error(ours, theirs) < 1e-6


@pytest.mark.parametrize("name", ["densenet121", "resnet50_v2"])
def test_an_export_is_accepted_by_the_torch_network_with_no_key_missing(name):
    network = torch_network(name, "float32")
    _, variables = our_model(name, network, "float32")
    exported = export_torch(name, variables)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    network.load_state_dict({key: torch.from_numpy(value) for key, value in exported.items()}, strict=True)
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_a_pth_file_is_read_and_one_with_code_in_it_is_not(tmp_path):
    network = torch_network("densenet121", "float32", block_config=(1, 1))
    torch.save({"state_dict": network.state_dict()}, tmp_path / "network.pth")
    _, report = load_torch("densenet121", tmp_path / "network.pth", block_sizes=(1, 1))
    assert len(report.loaded) == sum("num_batches" not in key for key in network.state_dict())
    torch.save({"state_dict": network}, tmp_path / "module.pth")
    with pytest.raises(Exception, match=r"[Ww]eights.only"):
        load_torch("densenet121", tmp_path / "module.pth", block_sizes=(1, 1))
