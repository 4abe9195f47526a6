"""Normaliser-free residual networks: signals keep their size through any depth, so that they train (W8)."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util
from sklearn.datasets import load_digits

import models
from dl_core.errors import UsageError
from dl_core.optim import optimizer
from models.nf_resnet import nonlinearity_gain

CIFAR = {"block": "basic", "stem": "cifar"}
TINY = {**CIFAR, "stage_sizes": (1, 2), "width": 4}
IMAGES = jax.random.normal(jax.random.key(1), (4, 8, 8, 3))


def tiny(**fields):
    model = models.create("nf_resnet20_cifar", num_classes=5, **{**TINY, **fields})
    return model, model.init(jax.random.key(0), IMAGES)


@pytest.mark.parametrize(
    ("name", "gain", "tolerance"),
    [
        ("identity", 1.0, 1e-6),
        ("relu", (2 * np.pi / (np.pi - 1)) ** 0.5, 1e-5),  # section 4.2 of the paper
        ("leaky_relu", ((1 + 0.1**2) / 2 - (1 - 0.1) ** 2 / (2 * np.pi)) ** -0.5, 1e-5),
        ("elu", 1.2716, 5e-3),  # the others: estimates in the authors' code
        ("gelu", 1.7015, 5e-3),
        ("sigmoid", 4.8038, 5e-3),
        ("tanh", 1.5939, 5e-3),
    ],
)
def test_the_gain_of_a_nonlinearity_makes_its_variance_1(name, gain, tolerance):
    np.testing.assert_allclose(nonlinearity_gain(name), gain, rtol=tolerance)


@pytest.mark.parametrize("form", ["paper", "timm"])
def test_at_the_start_every_block_is_its_shortcut(form):
    model, variables = tiny(form=form)
    loss = lambda params: (model.apply({"params": params}, IMAGES) ** 2).sum()
    for path, gradient in traverse_util.flatten_dict(jax.grad(loss)(variables["params"])).items():
        if path[-1] == "kernel" and path[-2] in ("conv1", "conv2") and len(path) == 3:
            assert not np.asarray(gradient).any(), path
        if path[-1] == "skipinit_gain" or (form == "timm" and path[-2:] == ("conv2", "gain")):
            assert np.asarray(gradient).any(), path  # what opens the branch


def mean_square(maps):
    return float(jnp.square(maps).mean())


def test_variance_grows_as_predicted_where_it_would_double_in_every_block():
    """W8: before training. The 9 blocks of stage 1 add α² each; the projection of stage 2 starts again from 1.

    Channels correlate through the images, so the mean of 32 channels' squares may miss by a fifth. Not compiled as a
    whole, for the blocks are alike.
    """
    images = jax.random.normal(jax.random.key(1), (4, 16, 16, 3))
    fields = {"stage_sizes": (9, 3, 1), "width": 32}
    model = models.create("nf_resnet56_cifar", num_classes=5, skip_gain=1.0, **fields)
    maps = models.features(model, model.init(jax.random.key(0), images), images)
    for stage, blocks in (("stage1", 9), ("stage2", 3)):
        expected = 1 + blocks * 0.2**2
        assert 0.8 * expected < mean_square(maps[stage]) < 1.2 * expected
    plain = models.create("resnet56_cifar_v2", num_classes=5, normalization="none", shortcut="projection", **fields)
    maps = models.features(plain, plain.init(jax.random.key(0), images), images)
    assert mean_square(maps["stage1"]) > 2**8 * mean_square(maps["stem"])


def train_on_digits(name, optimizer, *, steps, **fields):
    """Losses of every step, and accuracy on the 397 digits that were left out, of a network of 56 layers."""
    digits = load_digits()
    images, labels = jnp.asarray(digits.images[..., None] / 8 - 1, jnp.float32), jnp.asarray(digits.target)
    model = models.create(name, num_classes=10, width=8, **fields)
    variables = jax.jit(model.init)(jax.random.key(0), images[:1])

    @jax.jit
    def step(params, velocity, index):
        def loss(params):
            logits = model.apply({"params": params}, images[index], train=True)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels[index]).mean()

        value, gradients = jax.value_and_grad(loss)(params)
        updates, velocity = optimizer.update(gradients, velocity, params)
        return optax.apply_updates(params, updates), velocity, value

    params, velocity, losses = variables["params"], optimizer.init(variables["params"]), []
    for index in np.random.default_rng(0).integers(0, 1400, (steps, 32)):
        params, velocity, value = step(params, velocity, index)
        losses.append(value)
    accuracy = (jax.jit(model.apply)({"params": params}, images[1400:]).argmax(axis=-1) == labels[1400:]).mean()
    return np.array(losses), float(accuracy)


@pytest.mark.slow
def test_a_deep_network_trains_with_all_three_and_stalls_with_none():
    """W8. After 150 steps the loss is 0.09 and 2.31, the accuracy 88 % and 10 % (the commonest digit: 10 %)."""
    losses, accuracy = train_on_digits(
        "nf_resnet56_cifar", optimizer("momentum", 0.03, clip_adaptive=0.2), steps=150, skip_gain=1.0
    )
    assert losses[-20:].mean() < 0.3
    assert accuracy > 0.8
    plain = {"normalization": "none", "shortcut": "projection"}
    losses, accuracy = train_on_digits("resnet56_cifar_v2", optimizer("momentum", 0.03), steps=150, **plain)
    assert not losses[-20:].mean() < 2.2  # chance is log 10 = 2.3; not-a-number counts
    assert accuracy < 0.2


def test_stochastic_depth_leaves_out_branches_of_single_examples_in_training_only():
    """The first block is never left out; at a rate of nearly 1 the last one always is."""
    model, variables = tiny(skip_gain=1.0, stage_sizes=(1, 1))
    dropping = model.clone(stochastic_depth=0.999)
    np.testing.assert_array_equal(dropping.apply(variables, IMAGES), model.apply(variables, IMAGES))
    flat = traverse_util.flatten_dict(variables)
    path = ("params", "layer2_0", "skipinit_gain")
    closed = traverse_util.unflatten_dict({**flat, path: 0 * flat[path]})
    training = lambda model, key: model.apply(variables, IMAGES, train=True, rngs={"dropout": jax.random.key(key)})
    np.testing.assert_allclose(training(dropping, 0), model.apply(closed, IMAGES), atol=1e-6)
    half = model.clone(stochastic_depth=0.5)
    kept = np.stack(
        [jnp.abs(training(half, key) - model.apply(closed, IMAGES)).max(axis=-1) > 1e-6 for key in range(8)]
    )
    assert 6 < kept.sum() < 26  # of 32 draws with p = 1/2: 3.5 standard deviations
    assert not (kept == kept[:, :1]).all()  # each example for itself


def test_only_a_change_of_shape_has_a_projection():
    params = tiny(stage_sizes=(2, 2))[1]["params"]
    assert [name for name in params if "downsample_conv" in params[name]] == ["layer2_0"]
    params = models.create("nf_resnet50", num_classes=5, stage_sizes=(2, 1), width=8, form="paper")
    params = jax.eval_shape(params.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
    assert [name for name in params if "downsample_conv" in params[name]] == ["layer1_0", "layer2_0"]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"form": "tim"}, "unknown form 'tim'; did you mean 'timm'"),
        ({"block": "basics"}, "unknown block 'basics'; did you mean 'basic'"),
        ({"stochastic_depth": 1.0}, r"stochastic_depth must lie in \[0, 1\), got 1.0"),
        ({"stage_sizes": ()}, "at least one block"),
    ],
)
def test_nonsense_is_refused_with_the_value_given(fields, words):
    with pytest.raises(UsageError, match=words):
        models.create("nf_resnet50", num_classes=5, **fields)
