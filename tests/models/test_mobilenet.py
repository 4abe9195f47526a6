"""MobileNet v1: published count, the paper's table 1, width multiplier, and what is separable about it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from dl_core.errors import UsageError
from models import mobilenet  # noqa: F401


def shapes_of(size=224, **fields):
    images = jnp.zeros((1, size, size, 3))
    model = models.create("mobilenet_v1", **{"num_classes": 1000, **fields})
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    return variables, jax.eval_shape(lambda v: models.features(model, v, images), variables)


# Table 6 of the paper: 4.2, 2.6, 1.3 and 0.5 million.
@pytest.mark.parametrize(("width", "millions"), [(1.0, 4.2), (0.75, 2.6), (0.5, 1.3), (0.25, 0.5)])
def test_parameter_count_is_the_published_one(width, millions):
    variables, _ = shapes_of(width_multiplier=width)
    count = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert round(count / 1e6, 1) == millions
    assert width < 1 or count == 4_231_976  # timm


def test_maps_have_the_sizes_of_table_1():
    _, maps = shapes_of()
    sizes = {key: value.shape[1:] for key, value in maps.items()}
    assert sizes.pop("penultimate") == (1024,)
    assert sizes.pop("stem") == (112, 112, 32)
    assert sizes == {f"stage{i}": (224 // 2**i, 224 // 2**i, 32 * 2**i) for i in range(1, 6)}


def test_the_depthwise_convolution_keeps_channels_apart():
    images = jax.random.normal(jax.random.key(1), (1, 8, 8, 3))
    model = models.create("mobilenet_v1", num_classes=3, width_multiplier=0.125, block_sizes=(1, 1))
    variables = model.init(jax.random.key(0), images)
    assert variables["params"]["blocks_1_0"]["conv_dw"]["kernel"].shape == (3, 3, 1, 8)
    assert variables["params"]["blocks_1_0"]["conv_pw"]["kernel"].shape == (1, 1, 8, 16)


def test_relu6_stops_at_six():
    images = 100 * jax.random.normal(jax.random.key(1), (1, 16, 16, 3))
    for name, bounded in [("mobilenet_v1", False), ("mobilenetv1_100", True)]:
        model = models.create(name, num_classes=3, width_multiplier=0.25, block_sizes=(1, 1))
        maps = models.features(model, model.init(jax.random.key(0), images), images)
        assert (np.max(maps["stem"]) <= 6) == bounded


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"width_multiplier": 0.0}, "width_multiplier must be positive, got 0.0"),
        ({"activation": "relu7"}, "unknown activation 'relu7'; did you mean .*'relu6'"),
    ],
)
def test_nonsense_is_refused_with_the_value_given(fields, words):
    with pytest.raises(UsageError, match=words):
        models.create("mobilenet_v1", num_classes=3, **fields)
