"""Inception v3: published counts, the sizes of the paper's table 1, and how small an image may be."""

import jax
import jax.numpy as jnp
import pytest

import models
from dl_core.errors import UsageError
from models import inception  # noqa: F401


@pytest.mark.parametrize(("heads", "published"), [(False, 23_834_568), (True, 27_161_264)])
def test_parameters_and_maps_are_the_published_ones(heads, published):
    images = jnp.zeros((1, 299, 299, 3))
    model = models.create("inception_v3", num_classes=1000, aux_logits=heads)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == published
    maps = jax.eval_shape(lambda v: models.features(model, v, images), variables)
    assert {key: value.shape[1:] for key, value in maps.items()} == {
        "stem": (147, 147, 64),
        "stage1": (71, 71, 192),
        "stage2": (35, 35, 288),
        "stage3": (17, 17, 768),
        "stage4": (8, 8, 2048),
        "penultimate": (2048,),
    }


def test_auxiliary_logits_are_recorded_in_training_only():
    images = jnp.zeros((2, 299, 299, 3))
    model = models.create("inception_v3", num_classes=3, width=0.05)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    rngs = {"dropout": jax.random.key(0)}
    for train, recorded in [(True, {"aux_logits": (2, 3)}), (False, {})]:
        apply = lambda v, train=train: model.apply(
            v, images, train=train, mutable=["batch_stats", "auxiliary"], rngs=rngs
        )
        logits, updated = jax.eval_shape(apply, variables)
        assert logits.shape == (2, 3)
        assert {name: value.shape for name, value in updated.get("auxiliary", {}).items()} == recorded


@pytest.mark.parametrize(("heads", "smallest"), [(True, 299), (False, 75)])
def test_the_smallest_image_passes_and_a_smaller_one_is_refused(heads, smallest):
    model = models.create("inception_v3", num_classes=3, width=0.05, aux_logits=heads)
    init = lambda size: jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.zeros((1, size, 300, 3)))
    assert init(smallest)[0].shape == (1, 3)
    with pytest.raises(UsageError, match=f"at least {smallest}×{smallest}, got {smallest - 1}×300"):
        init(smallest - 1)


def test_a_width_that_is_not_positive_is_refused():
    with pytest.raises(UsageError, match="width must be positive, got -1"):
        models.create("inception_v3", num_classes=3, width=-1.0)
