"""Wide residual networks: sizes of the maps, and dropout between the convolutions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

import models
from dl_core.errors import UsageError

TINY = {"stage_sizes": (1, 2), "width": 4, "widen": 2}
IMAGES = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))


def tiny(**fields):
    model = models.create("wrn_28_10", num_classes=5, **TINY, **fields)
    return model, model.init(jax.random.key(0), IMAGES)


def training_logits(model, variables, key):
    rngs = {"dropout": jax.random.key(key)}
    return model.apply(variables, IMAGES, train=True, rngs=rngs, mutable=["batch_stats"])[0]


def test_maps_have_the_sizes_of_the_paper():
    """Zagoruyko and Komodakis (2016), table 1, at k = 4."""
    images = jnp.zeros((1, 32, 32, 3))
    model = models.create("wrn_16_4", num_classes=10)
    maps = jax.eval_shape(lambda: models.features(model, model.init(jax.random.key(0), images), images))
    shapes = {name: value.shape[1:] for name, value in maps.items()}
    assert shapes == {
        "stem": (32, 32, 16), "stage1": (32, 32, 64), "stage2": (16, 16, 128), "stage3": (8, 8, 256),
        "penultimate": (256,),
    }  # fmt: skip


def test_depth_counts_convolutions_on_the_way_through():
    """28 = the stem, 12 blocks of two, and the three projections that widen."""
    model = models.create("wrn_28_10", num_classes=10)
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
    kernels = [path for path in traverse_util.flatten_dict(params) if path[-1] == "kernel" and path[0] != "fc"]
    assert len(kernels) == 28
    assert sum(path[-2] == "downsample_conv" for path in kernels) == 3


def test_dropout_acts_in_training_only_and_only_between_the_convolutions():
    model, variables = tiny(dropout=0.5)
    plain = model.clone(dropout=0.0)
    np.testing.assert_array_equal(model.apply(variables, IMAGES), plain.apply(variables, IMAGES))
    assert np.abs(training_logits(model, variables, 1) - training_logits(model, variables, 2)).max() > 1e-3
    np.testing.assert_array_equal(training_logits(plain, variables, 1), training_logits(plain, variables, 2))
    flat = traverse_util.flatten_dict(variables)
    closed = {path: 0 * leaf if "conv2" in path else leaf for path, leaf in flat.items()}
    closed = traverse_util.unflatten_dict(closed)  # no second convolution hands the noise on
    np.testing.assert_array_equal(training_logits(model, closed, 1), training_logits(model, closed, 2))


def test_blocks_without_residual_are_shortcuts():
    """In stage 2 the second block hands on what the projection of the first gave it."""
    model, variables = tiny()
    flat = traverse_util.flatten_dict(variables)
    closed = {path: 0 * leaf if "conv2" in path else leaf for path, leaf in flat.items()}
    both = models.features(model, traverse_util.unflatten_dict(closed), IMAGES)["stage2"]
    short = model.clone(stage_sizes=(1, 1))
    one = models.features(short, traverse_util.unflatten_dict(closed), IMAGES)["stage2"]
    np.testing.assert_array_equal(both, one)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"widen": 0}, "at least 1, got .*widen=0"),
        ({"stage_sizes": (1, 0)}, r"got stage_sizes=\(1, 0\)"),
    ],
)
def test_nonsense_is_refused_with_the_value_given(fields, words):
    with pytest.raises(UsageError, match=words):
        models.create("wrn_28_10", num_classes=5, **fields)
