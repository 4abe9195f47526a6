"""LeNet-5: the maps of the paper's table, from either image size."""

import jax
import jax.numpy as jnp
import pytest

import models
from dl_core.errors import UsageError


@pytest.mark.parametrize(("size", "padding"), [(32, "VALID"), (28, "SAME")])
def test_maps_have_the_sizes_of_the_paper(size, padding):
    images = jnp.zeros((2, size, size, 1))
    model = models.create("lenet5", num_classes=10, padding=padding)
    maps = models.features(model, model.init(jax.random.key(0), images), images)
    assert {name: value.shape[1:] for name, value in maps.items()} == {
        "stage1": (14, 14, 6),
        "stage2": (5, 5, 16),
        "penultimate": (84,),
    }


def test_the_1998_form_saturates_and_the_modern_form_rectifies():
    images = 20 * jax.random.normal(jax.random.key(1), (2, 32, 32, 1))
    for fields, low, high in [({}, -1, 1), ({"activation": "relu", "pooling": "max"}, 0, jnp.inf)]:
        model = models.create("lenet5", num_classes=10, **fields)
        for value in models.features(model, model.init(jax.random.key(0), images), images).values():
            assert value.min() >= low
            assert value.max() <= high


@pytest.mark.parametrize(("padding", "smallest"), [("VALID", 16), ("SAME", 12)])
def test_an_image_that_is_too_small_is_refused_with_its_size(padding, smallest):
    model = models.create("lenet5", num_classes=10, padding=padding)
    model.init(jax.random.key(0), jnp.zeros((1, smallest, smallest, 1)))
    with pytest.raises(UsageError, match=f"at least {smallest}×{smallest} pixels, got {smallest - 1}×40"):
        model.init(jax.random.key(0), jnp.zeros((1, smallest - 1, 40, 1)))


def test_an_unknown_pooling_is_named():
    with pytest.raises(UsageError, match=r"unknown pooling 'mean'; .*(average|max)"):
        models.create("lenet5", num_classes=2, pooling="mean").init(jax.random.key(0), jnp.zeros((1, 32, 32, 1)))
