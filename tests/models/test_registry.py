"""Every model of the registry: shapes, precision, gradients, and what training and evaluation may change.

Names of a family differ in a few fields only: here run the forms of `TINY`. Every name is traced where its parameters
are counted, in test_parameter_counts.py and test_residual_parameter_counts.py.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

import models
from dl_core.errors import UsageError
from models.resnet import ResNet

# A new family needs a row here: a name of it, fields that make it small and switch noise off, and the side of the
# images of its tests. A second row for a form with code of its own.
TINY = {
    "linear": ({}, 8),
    "logistic_regression": ({}, 8),
    "mlp": ({"hidden": (12, 12)}, 8),
    "lenet5": ({"padding": "SAME"}, 16),
    "resnet50": ({"width": 4, "stage_sizes": (1, 2)}, 16),
    "resnet20_cifar_v2": ({"width": 4, "stage_sizes": (1, 2)}, 16),
    "alexnet": ({"channels": (4, 8, 8, 8, 8), "hidden": 16, "dropout": 0.0}, 64),
    "zfnet": ({"channels": (4, 8, 8, 8, 8), "hidden": 16, "dropout": 0.0}, 64),
    "vgg11_bn": ({"stage_sizes": (1, 2), "channels": (4, 8), "hidden": 16, "dropout": 0.0}, 16),
    "googlenet": ({"width": 0.1, "aux_logits": False, "dropout": 0.0}, 32),
    "inception_v3": ({"width": 0.05, "aux_logits": False, "dropout": 0.0}, 75),
    "densenet121": ({"growth_rate": 4, "block_sizes": (2, 2), "stem_channels": 8}, 16),
    "mobilenetv1_100": ({"width_multiplier": 0.125, "block_sizes": (1, 2)}, 16),
    "vit_b_16": ({"patch_size": 4, "width": 16, "depth": 2, "heads": 2, "hidden": 24}, 12),
    "airbench94": ({"channels": (4, 8), "scale": 1.0}, 16),
    "wrn_28_10": ({"stage_sizes": (1, 1, 1), "widen": 2, "width": 4}, 16),
    "resnext50_32x4d": ({"width": 4, "stage_sizes": (1, 2)}, 16),
    "resnet20_cifar_gn_ws": ({"width": 8, "stage_sizes": (1, 2)}, 16),
    "nf_resnet20_cifar": ({"width": 8, "stage_sizes": (1, 2), "skip_gain": 1.0}, 16),
    "nf_resnet50": ({"stage_sizes": (1, 2), "width": 8, "skip_gain": 1.0}, 16),  # at 0 the branches have no gradient
}
NAMES = models.list_models()


def classes(name):
    return 2 if name == "logistic_regression" else 5


@functools.cache
def small_model(name):
    """The small form of a name, its variables, random images and labels."""
    fields, side = TINY[name]
    model = models.create(name, num_classes=classes(name), **fields)
    images = jax.random.uniform(jax.random.key(1), (6, side, side, 3))
    return model, jax.jit(model.init)(jax.random.key(0), images), images, jnp.arange(6) % classes(name)


@functools.cache
def evaluation(name):
    """(variables, images) -> logits, all collections afterwards with the named feature maps among them, and the
    gradient of the sum of logits with respect to the last vector. Compiled once for the tests below."""
    model, *example, _ = small_model(name)

    def total(delta, variables, images):
        variables = {**variables, "perturbations": {"penultimate": delta}}
        logits, collections = model.apply(variables, images, mutable=True)
        return logits.sum(), (logits, collections)

    vector = jax.eval_shape(lambda variables, x: models.features(model, variables, x), *example)["penultimate"]
    derivative = jax.jit(jax.value_and_grad(total, has_aux=True))

    def evaluate(variables, images):
        (_, (logits, collections)), gradient = derivative(jnp.zeros(vector.shape, vector.dtype), variables, images)
        return logits, collections, gradient

    return evaluate


@functools.cache
def training(name):
    """params -> (loss, all collections afterwards), gradient: mean cross-entropy in training mode, compiled once."""
    model, variables, images, labels = small_model(name)

    def loss(params):
        options = {"train": True, "mutable": True, "rngs": {"dropout": jax.random.key(3)}}
        logits, collections = model.apply({**variables, "params": params}, images, **options)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), collections

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def test_every_family_has_a_tiny_form():
    family = lambda name: type(models.create(name, num_classes=classes(name)))
    covered = {family(name) for name in TINY}
    missing = {family(name).__name__: name for name in NAMES if family(name) not in covered}
    assert not missing, f"add a row to TINY in {__file__}, with fields that make it small, for one name of: {missing}"


@pytest.mark.parametrize("side", [128, 224])
@pytest.mark.parametrize("name", [name for name in TINY if name != "lenet5"])
def test_images_of_128_and_224_pixels_give_float32_logits_in_every_precision(name, side):
    """Not LeNet-5, whose dense layer belongs to 32 pixels."""
    model, *_ = small_model(name)
    if "patch_size" in TINY[name][0]:
        model = model.clone(patch_size=32)
    images = jax.ShapeDtypeStruct((2, side, side, 3), jnp.float32)
    rough = model.clone(dtype="bfloat16" if side == 128 else "float32")
    logits, variables = jax.eval_shape(rough.init_with_output, jax.random.key(0), images)
    assert (logits.shape, logits.dtype) == ((2, classes(name)), jnp.float32)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    assert set(variables) <= {"params", "batch_stats"}


@pytest.mark.parametrize("name", TINY)
def test_every_parameter_receives_a_finite_gradient_that_is_not_zero(name):
    _, gradients = training(name)(small_model(name)[1]["params"])
    for path, leaf in jax.tree.leaves_with_path(gradients):
        assert np.isfinite(leaf).all(), path
        assert np.abs(leaf).max() > 0, path


slow = lambda name: pytest.param(name, marks=pytest.mark.slow)


# Without jit every operation is compiled by itself, once for each of the many shapes in these two.
@pytest.mark.parametrize("name", [slow(name) if name in ("googlenet", "inception_v3") else name for name in TINY])
def test_jit_changes_nothing(name):
    model, variables, images, _ = small_model(name)
    with jax.disable_jit():
        plain = model.apply(variables, images)
    np.testing.assert_allclose(evaluation(name)(variables, images)[0], plain, rtol=1e-5, atol=1e-5)  # float32 sums


@pytest.mark.parametrize("name", TINY)
def test_bfloat16_agrees_with_float32_to_its_own_precision(name):
    model, variables, images, _ = small_model(name)
    exact = evaluation(name)(variables, images)[0]
    rough = jax.jit(model.clone(dtype=jnp.bfloat16).apply)(variables, images)
    assert rough.dtype == jnp.float32
    assert 0 < np.abs(rough - exact).max() < 0.05 * np.abs(exact).max()  # bfloat16 has 8 bits: 0.4 % per operation


@pytest.mark.parametrize("name", TINY)
def test_evaluation_of_an_image_does_not_depend_on_its_batch(name):
    _, variables, images, _ = small_model(name)
    others = images.at[:2].set(0.0).at[3:].multiply(5.0)
    alone, together = (evaluation(name)(variables, batch)[0][2] for batch in (others, images))
    np.testing.assert_allclose(alone, together, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", TINY)
def test_running_statistics_change_in_training_and_nothing_changes_in_evaluation(name):
    """W7."""
    _, variables, images, _ = small_model(name)
    same = lambda a, b: jax.tree.map(np.array_equal, a, b)
    (_, trained), _ = training(name)(variables["params"])
    _, evaluated, _ = evaluation(name)(variables, images)
    assert all(jax.tree.leaves(same(trained["params"], variables["params"])))
    assert not any(jax.tree.leaves(same(trained.get("batch_stats", {}), variables.get("batch_stats", {}))))
    assert all(jax.tree.leaves(same({key: evaluated[key] for key in variables}, variables)))
    assert set(trained) <= {"params", "batch_stats", "features"}  # the maps are recorded because all is mutable here


@pytest.mark.parametrize("name", TINY)
def test_a_small_step_down_the_gradient_lowers_the_loss(name):
    params = small_model(name)[1]["params"]
    (before, _), gradients = training(name)(params)
    params, gradients = jax.device_get((params, gradients))  # numpy compiles nothing
    step = np.float32(1e-2) / np.sqrt(sum((slope**2).sum() for slope in jax.tree.leaves(gradients)))
    (after, _), _ = training(name)(jax.tree.map(lambda leaf, slope: leaf - step * slope, params, gradients))
    assert after < before


@pytest.mark.parametrize("name", TINY)
def test_feature_maps_are_named_and_end_in_the_vector_before_the_last_layer(name):
    _, variables, images, _ = small_model(name)
    maps = evaluation(name)(variables, images)[1]["features"]
    assert maps["penultimate"].ndim == 2
    assert all(len(value) == len(images) for value in maps.values())
    if any(value.ndim == 4 for value in maps.values()):
        assert {"stage1", "stage2"} < set(maps)


@pytest.mark.parametrize("name", TINY)
def test_a_perturbation_of_the_penultimate_vector_gives_the_gradient_of_the_head(name):
    """The head is linear, so d(sum of logits)/d(vector) is the row sum of its kernel, for every example."""
    _, variables, images, _ = small_model(name)
    *_, gradient = evaluation(name)(variables, images)
    params = variables["params"]
    heads = [layer for layer in params if layer.startswith(("head", "fc", "classifier"))]
    kernel = params[max(heads)]["kernel"]
    np.testing.assert_allclose(gradient, np.broadcast_to(kernel.sum(axis=1), gradient.shape), rtol=1e-5, atol=1e-6)


def test_the_names_are_those_of_torchvision_and_timm_in_order():
    assert models.list_models("resnet??") == ["resnet18", "resnet34", "resnet50"]
    assert models.list_models("resnet*_cifar")[:5] == [f"resnet{depth}_cifar" for depth in (20, 32, 44, 56, 110)]
    assert {"linear", "logistic_regression", "mlp", "lenet5", "resnet152_v2"} < set(models.list_models())
    assert models.list_models("no_such*") == []


@pytest.mark.parametrize(
    ("name", "fields", "words"),
    [
        ("resnet51", {}, "unknown model 'resnet51'; did you mean .*'resnet50'"),
        ("resnet18", {"widht": 8}, "'resnet18' has no field 'widht'; did you mean 'width'.*stage_sizes, block"),
        ("resnet18", {"name": "x"}, "has no field 'name'"),
        ("resnet18", {"block": "botleneck"}, "unknown block 'botleneck'; did you mean 'bottleneck'"),
        ("resnet18", {"stage_sizes": (2, 0)}, r"at least one block in every stage, got \(2, 0\)"),
        ("mlp", {"num_classes": 0}, "num_classes must be at least 1, got 0"),
        ("logistic_regression", {"num_classes": 3}, "for 2 classes, got 3; use the model 'linear'"),
    ],
)
def test_a_wrong_name_or_field_is_answered_with_the_nearest(name, fields, words):
    with pytest.raises(UsageError, match=words):
        models.create(name, **{"num_classes": 4, **fields})


def test_a_family_outside_the_package_registers_itself():
    @models.register("all_zeros")
    class AllZeros(nn.Module):
        num_classes: int

        def __call__(self, x, train=False):
            return jnp.zeros((len(x), self.num_classes))

    assert models.create("all_zeros", num_classes=3).apply({}, jnp.ones((2, 1))).shape == (2, 3)
    with pytest.raises(UsageError, match=r"'all_zeros' belongs to .*AllZeros"):
        models.register("all_zeros")(ResNet)


def test_lists_from_a_configuration_file_become_tuples():
    assert models.create("mlp", num_classes=2, hidden=[8]) == models.create("mlp", num_classes=2, hidden=(8,))
