"""ZFNet: the count and the sizes of the paper's figure 3."""

import jax
import jax.numpy as jnp
import pytest

import models
from dl_core.errors import UsageError
from models import zfnet  # noqa: F401


def test_parameters_and_maps_are_those_of_figure_3():
    images = jnp.zeros((1, 224, 224, 3))
    model = models.create("zfnet", num_classes=1000)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == 62_357_608
    maps = jax.eval_shape(lambda v: models.features(model, v, images), variables)
    assert {key: value.shape[1:] for key, value in maps.items()} == {
        "stage1": (110, 110, 96),
        "pool1": (55, 55, 96),
        "stage2": (26, 26, 256),
        "pool2": (13, 13, 256),
        "stage3": (13, 13, 384),
        "stage4": (13, 13, 384),
        "stage5": (13, 13, 256),
        "pool5": (6, 6, 256),
        "fc6": (4096,),
        "penultimate": (4096,),
    }


def test_an_image_that_is_too_small_is_refused_with_its_size():
    model = models.create("zfnet", num_classes=5, channels=(2, 2, 2, 2, 2), hidden=4)
    for size in (63, 70):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, size, size, 3)))
    with pytest.raises(UsageError, match="at least 63×63, got 62×80"):
        model.init(jax.random.key(0), jnp.zeros((1, 62, 80, 3)))
