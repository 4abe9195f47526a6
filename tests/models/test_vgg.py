"""VGG: strides 1 to 32, dropout and statistics where they belong."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from dl_core.errors import UsageError
from models import vgg  # noqa: F401

TINY = {"channels": (4, 4, 8, 8, 8), "hidden": 8}


def test_stage_i_has_stride_2_to_the_i_minus_1_and_its_pooling_twice_that():
    images = jnp.zeros((1, 224, 224, 3))
    model = models.create("vgg16", num_classes=5)
    maps = jax.eval_shape(lambda: models.features(model, model.init(jax.random.key(0), images), images))
    for i, channels in enumerate((64, 128, 256, 512, 512), start=1):
        assert maps[f"stage{i}"].shape == (1, 224 // 2 ** (i - 1), 224 // 2 ** (i - 1), channels)
        assert maps[f"pool{i}"].shape == (1, 224 // 2**i, 224 // 2**i, channels)
    assert maps["fc6"].shape == maps["penultimate"].shape == (1, 4096)


def test_dropout_acts_in_training_only():
    images = jax.random.normal(jax.random.key(1), (2, 32, 32, 3))
    model = models.create("vgg11", num_classes=5, **TINY)
    variables = model.init(jax.random.key(0), images)
    apply = lambda seed, train: model.apply(variables, images, train=train, rngs={"dropout": jax.random.key(seed)})
    assert not np.allclose(apply(0, True), apply(1, True))
    np.testing.assert_array_equal(apply(0, False), apply(1, False))


def test_wrong_sizes_are_refused_with_the_values_given():
    with pytest.raises(UsageError, match=r"one entry a stage, got \(1, 1\)"):
        models.create("vgg11", num_classes=5, stage_sizes=(1, 1))
    with pytest.raises(UsageError, match="at least 32×32, got 31×64"):
        models.create("vgg11", num_classes=5, **TINY).init(jax.random.key(0), jnp.zeros((1, 31, 64, 3)))
