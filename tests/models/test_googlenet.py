"""GoogLeNet: both forms' counts, the maps of table 1, and auxiliary heads that exist in training only."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import models
from dl_core.errors import UsageError
from models import googlenet  # noqa: F401
from models.auxiliary import auxiliary_loss

LOSS = optax.softmax_cross_entropy_with_integer_labels
LABELS = jnp.array([0, 2, 1, 2])


@pytest.fixture(scope="module")
def tiny():
    """GoogLeNet with an eighth of the channels, without dropout, variables of He's scale and four images."""
    images = jax.random.normal(jax.random.key(1), (4, 32, 32, 3))
    model = models.create("googlenet", num_classes=3, width=0.125, dropout=0.0, aux_dropout=0.0)
    generator = np.random.default_rng(0)  # compiling the initialisers of sixty layers takes half a minute

    def fill(leaf):
        noise = generator.standard_normal(leaf.shape) * (2 / max(1, leaf.size // leaf.shape[-1])) ** 0.5
        return jnp.asarray(noise if leaf.ndim > 1 else np.ones(leaf.shape), leaf.dtype)

    return model, jax.tree.map(fill, jax.eval_shape(model.init, jax.random.key(0), images)), images


@pytest.mark.parametrize(
    ("name", "heads", "published"),
    [
        ("googlenet", False, 6_624_904),  # torchvision
        ("googlenet", True, 13_004_888),
        ("googlenet_2014", False, 6_998_552),  # table 1
        ("googlenet_2014", True, 13_378_280),
    ],
)
def test_parameter_count_is_the_published_one(name, heads, published):
    model = models.create(name, num_classes=1000, aux_logits=heads)
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == published
    assert ("batch_stats" in variables) == (name == "googlenet")


@pytest.mark.parametrize("name", ["googlenet", "googlenet_2014"])
def test_maps_have_the_sizes_of_table_1(name):
    images = jnp.zeros((1, 224, 224, 3))
    model = models.create(name, num_classes=5)
    maps = jax.eval_shape(lambda: models.features(model, model.init(jax.random.key(0), images), images))
    assert {key: value.shape[1:] for key, value in maps.items()} == {
        "stem": (112, 112, 64),
        "stage1": (56, 56, 192),
        "stage2": (28, 28, 480),
        "stage3": (14, 14, 832),
        "stage4": (7, 7, 1024),
        "penultimate": (1024,),
    }


def test_auxiliary_logits_are_recorded_in_training_and_absent_in_evaluation(tiny):
    model, variables, images = tiny
    apply = jax.jit(
        lambda train: model.apply(variables, images, train=train, mutable=["batch_stats", "auxiliary"]),
        static_argnums=0,
    )
    logits, updated = apply(True)
    assert {name: value.shape for name, value in updated["auxiliary"].items()} == {
        "aux1_logits": (4, 3),
        "aux2_logits": (4, 3),
    }
    expected = 0.3 * sum(LOSS(value, LABELS).mean() for value in updated["auxiliary"].values())
    np.testing.assert_allclose(auxiliary_loss(model, updated["auxiliary"], LOSS, LABELS), expected, rtol=1e-6)
    assert logits.shape == (4, 3)
    assert not apply(False)[1].get("auxiliary")
    assert auxiliary_loss(model, {}, LOSS, LABELS) == 0


def test_the_auxiliary_loss_reaches_every_parameter_of_the_heads_and_the_lower_half(tiny):
    model, variables, images = tiny

    def loss(params):
        _, updated = model.apply(
            {**variables, "params": params}, images, train=True, mutable=["batch_stats", "auxiliary"]
        )
        return auxiliary_loss(model, updated["auxiliary"], LOSS, LABELS)

    gradients = jax.jit(jax.grad(loss))(variables["params"])
    for name in ("conv1", "inception4a", "aux1", "inception4d", "aux2"):
        for path, leaf in jax.tree.leaves_with_path(gradients[name]):
            assert np.isfinite(leaf).all(), path
            assert np.abs(leaf).max() > 0, path
    assert not any(leaf.any() for leaf in jax.tree.leaves(gradients["inception5b"]))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"branch5x5": 4}, "branch5x5 is 3 or 5 and last_pool 2 or 3, got 4 and 2"),
        ({"width": 0.0}, "width must be positive, got 0.0"),
        ({"transform_input": True, "aux_logits": False}, "images of 3 channels, got 1"),
    ],
)
def test_nonsense_is_refused_with_the_value_given(fields, words):
    with pytest.raises(UsageError, match=words):
        models.create("googlenet", num_classes=3, **fields).init(jax.random.key(0), jnp.zeros((1, 32, 32, 1)))


def test_the_smallest_image_passes_and_a_smaller_one_is_refused():
    model = models.create("googlenet", num_classes=5, width=0.1)
    logits, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.zeros((1, 15, 15, 3)))
    assert logits.shape == (1, 5)
    with pytest.raises(UsageError, match="at least 15×15, got 14×20"):
        model.init(jax.random.key(0), jnp.zeros((1, 14, 20, 3)))
