"""Torch weights without torch: round trips, partial loads for transfer, and what is refused."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from dl_core.errors import UsageError
from models.weights import export_torch, load_torch

TINY = {
    "resnet18": {"width": 4, "stage_sizes": (1, 1)},
    "resnet50_v2": {"width": 4, "stage_sizes": (1, 2)},
    "alexnet": {"channels": (4, 8, 8, 8, 4), "hidden": 8},
    "alexnet_2012": {"channels": (4, 8, 8, 8, 4), "hidden": 8},
    "vgg11_bn": {"channels": (4, 4, 8, 8, 8), "hidden": 8},
    "googlenet": {"width": 0.05},
    "googlenet_2014": {"width": 0.05},
    "inception_v3": {"width": 0.05},
    "densenet121": {"growth_rate": 4, "block_sizes": (2, 2), "stem_channels": 8},
    "mobilenetv1_100": {"width_multiplier": 0.1},
}


def random_variables(name, num_classes=5):
    """Variables of a tiny model, every leaf different."""
    model = models.create(name, num_classes=num_classes, **TINY[name])
    size = 299 if name == "inception_v3" else 64
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, size, size, 3)))
    generator = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(generator.standard_normal(leaf.shape), leaf.dtype), shapes)


def assert_equal_trees(ours, expected):
    assert jax.tree.structure(ours) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, ours, expected)


@pytest.fixture
def resnet():
    return random_variables("resnet18"), export_torch("resnet18", random_variables("resnet18"))


@pytest.mark.parametrize("name", TINY)
def test_export_and_load_give_every_bit_back(name):
    variables = random_variables(name)
    state = export_torch(name, variables)
    loaded, report = load_torch(name, state, **TINY[name])
    assert_equal_trees(loaded, variables)
    assert len(report.loaded) == len(jax.tree.leaves(variables))
    assert (report.adapted, report.missing, report.unexpected) == ((), (), ())
    again = export_torch(name, loaded)
    assert set(again) == set(state)
    for key, value in state.items():
        np.testing.assert_array_equal(again[key], value)


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("resnet18", {"conv1.weight": (4, 3, 7, 7), "layer2.0.downsample.1.running_var": (8,), "fc.weight": (5, 8)}),
        ("resnet50_v2", {"stem.conv.weight": (4, 3, 7, 7), "stages.1.blocks.0.norm3.weight": (8,)}),
        ("resnet50_v2", {"stages.0.blocks.0.downsample.conv.weight": (16, 4, 1, 1), "head.fc.weight": (5, 32, 1, 1)}),
        ("alexnet", {"features.0.weight": (4, 3, 11, 11), "classifier.1.weight": (8, 144), "classifier.6.bias": (5,)}),
        ("alexnet_2012", {"features.3.weight": (8, 2, 5, 5)}),
        ("vgg11_bn", {"features.1.running_mean": (4,), "classifier.0.weight": (8, 392)}),
        ("googlenet", {"inception3a.branch2.0.conv.weight": (5, 10, 1, 1), "aux1.fc2.bias": (5,)}),
        ("inception_v3", {"Conv2d_1a_3x3.bn.running_mean": (2,), "Mixed_7b.branch3x3_2b.conv.weight": (19, 19, 3, 1)}),
        ("densenet121", {"features.denseblock1.denselayer2.norm1.weight": (12,), "classifier.weight": (5, 16)}),
        ("mobilenetv1_100", {"conv_stem.weight": (3, 3, 3, 3), "blocks.1.0.conv_dw.weight": (6, 1, 3, 3)}),
    ],
)  # fmt: skip
def test_names_and_shapes_are_those_of_torch(name, keys):
    state = export_torch(name, random_variables(name))
    assert {key: state[key].shape for key in keys} == keys


def test_a_flattened_map_is_permuted_from_channels_first_to_channels_last():
    """Row (c, h, w) of torch's first dense layer is row (h, w, c) of ours."""
    variables = random_variables("vgg11_bn")
    theirs = export_torch("vgg11_bn", variables)["classifier.0.weight"]
    ours = np.asarray(variables["params"]["classifier_0"]["kernel"])
    for c, h, w in [(0, 0, 1), (3, 6, 2), (7, 5, 5)]:
        np.testing.assert_array_equal(theirs[:, c * 49 + h * 7 + w], ours[h * 56 + w * 8 + c])


def test_a_head_for_other_classes_starts_fresh_and_is_reported(resnet):
    variables, state = resnet
    loaded, report = load_torch("resnet18", state, num_classes=3, key=jax.random.key(7), **TINY["resnet18"])
    assert report.missing == ("fc.bias", "fc.weight") or report.missing == ("fc.weight", "fc.bias")
    assert set(report.unexpected) == {"fc.bias", "fc.weight"}
    model = models.create("resnet18", num_classes=3, **TINY["resnet18"])
    expected = model.init(jax.random.key(7), jnp.zeros((1, 32, 32, 3)))["params"].pop("fc")
    assert_equal_trees(loaded["params"].pop("fc"), expected)
    variables["params"].pop("fc")
    assert_equal_trees(loaded, variables)


@pytest.mark.parametrize(("old", "new"), [(3, 1), (1, 3), (3, 4)])
def test_the_stem_is_adapted_so_that_a_grey_image_gives_the_same(old, new):
    model = models.create("resnet18", num_classes=5, **TINY["resnet18"])
    grey = jax.random.normal(jax.random.key(1), (2, 32, 32, 1))
    images = lambda channels: jnp.broadcast_to(grey, (2, 32, 32, channels))
    variables = model.init(jax.random.key(0), images(old))
    state = export_torch("resnet18", variables)
    loaded, report = load_torch("resnet18", state, image_shape=(32, 32, new), **TINY["resnet18"])
    assert report.adapted == ("conv1.weight",)
    assert loaded["params"]["conv1"]["kernel"].shape[2] == new
    np.testing.assert_allclose(
        model.apply(loaded, images(new)), model.apply(variables, images(old)), rtol=1e-4, atol=1e-5
    )  # float32 sums in another order


def test_auxiliary_heads_may_be_left_out_or_be_missing():
    state = export_torch("googlenet", random_variables("googlenet"))
    loaded, report = load_torch("googlenet", state, aux_logits=False, **TINY["googlenet"])
    assert "aux1" not in loaded["params"]
    assert all(key.startswith(("aux1.", "aux2.")) for key in report.unexpected)
    headless = {key: value for key, value in state.items() if not key.startswith("aux")}
    loaded, report = load_torch("googlenet", headless, **TINY["googlenet"])
    assert "aux1.fc2.weight" in report.missing
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(loaded["params"]["aux1"]))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"layer1.0.conv9.weight": np.zeros((4, 4, 3, 3))}, r"layer1\.0\.conv9\.weight is unknown"),
        ({"layer1.0.conv1.weight": None}, r"layer1\.0\.conv1\.weight is missing, needed \(4, 4, 3, 3\)"),
        ({"bn1.bias": np.zeros(5)}, r"bn1\.bias has shape \(5,\), needed \(4,\)"),
        ({"conv1.weight": np.zeros((4, 3, 3, 3))}, r"conv1\.weight has shape \(4, 3, 3, 3\), needed \(4, 3, 7, 7\)"),
        ({"fc.bias": None}, r"no 'fc\.bias' whose classes could be counted: give num_classes"),
    ],
)
def test_weights_that_do_not_fit_are_refused_with_the_keys(resnet, change, words):
    state = {key: value for key, value in {**resnet[1], **change}.items() if value is not None}
    with pytest.raises(UsageError, match=words):
        load_torch("resnet18", state, **TINY["resnet18"])


def test_keys_of_old_densenet_files_are_understood():
    variables = random_variables("densenet121")
    state = export_torch("densenet121", variables)
    old = {re.sub(r"(denselayer\d\.\w+)(\d)\.", r"\1.\2.", key): value for key, value in state.items()}
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    assert_equal_trees(load_torch("densenet121", old, **TINY["densenet121"])[0], variables)


def test_a_safetensors_file_is_read(resnet, tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    safetensors.save_file(resnet[1], tmp_path / "resnet.safetensors")
    assert_equal_trees(load_torch("resnet18", tmp_path / "resnet.safetensors", **TINY["resnet18"])[0], resnet[0])


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"there is no file .*nothing\.pth"):
        load_torch("resnet18", tmp_path / "nothing.pth")
    (tmp_path / "weights.npz").touch()
    with pytest.raises(UsageError, match=r"from \.safetensors, \.pth or \.pt, got 'weights.npz'"):
        load_torch("resnet18", str(tmp_path / "weights.npz"))


def test_a_family_that_torch_libraries_lack_is_named():
    with pytest.raises(UsageError, match="no layout of torch weights is known for LeNet5"):
        load_torch("lenet5", {})
