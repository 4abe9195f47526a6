"""AlexNet: the maps of the papers, two groups that do not see each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from dl_core.errors import UsageError
from models import alexnet  # noqa: F401
from models.layers.response_norm import local_response_norm

TINY = {"channels": (4, 8, 8, 8, 4), "hidden": 8}


@pytest.mark.parametrize("name", ["alexnet", "alexnet_2012"])
def test_maps_have_the_sizes_of_the_paper(name):
    images = jnp.zeros((1, 224, 224, 3))
    model = models.create(name, num_classes=5)
    maps = jax.eval_shape(lambda: models.features(model, model.init(jax.random.key(0), images), images))
    sides = {key: value.shape[1] for key, value in maps.items()}
    assert {key: sides[key] for key in ("stage1", "pool1", "stage2", "pool2", "stage3", "stage5", "pool5")} == {
        "stage1": 55, "pool1": 27, "stage2": 27, "pool2": 13, "stage3": 13, "stage5": 13, "pool5": 6
    }  # fmt: skip
    assert maps["fc6"].shape == maps["penultimate"].shape == (1, 4096)


def test_two_groups_do_not_see_each_other_before_the_third_convolution():
    images = jax.random.normal(jax.random.key(1), (1, 63, 63, 3))
    model = models.create("alexnet_2012", num_classes=5, response_norm=False, **TINY)
    variables = model.init(jax.random.key(0), images)
    change = {"pool1": jnp.zeros((1, 7, 7, 4)).at[..., :2].set(1.0)}
    before = models.features(model, variables, images)
    after = models.features(model, {**variables, "perturbations": change}, images)
    moved = np.abs(after["stage2"] - before["stage2"]).max(axis=(0, 1, 2)) > 0
    assert moved[:4].any()
    assert not moved[4:].any()
    assert (np.abs(after["stage3"] - before["stage3"]).max(axis=(0, 1, 2)) > 0)[4:].any()


def test_response_norm_divides_by_the_energy_of_five_neighbours():
    """The paper's formula, written as its sum over channels."""
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 9)).astype(np.float32)
    expected = np.empty_like(x)
    for i in range(9):
        energy = (x[..., max(0, i - 2) : i + 3] ** 2).sum(axis=-1)
        expected[..., i] = x[..., i] / (2 + 0.1 * energy) ** 0.75
    np.testing.assert_allclose(local_response_norm(jnp.asarray(x), alpha=0.1), expected, rtol=1e-5)  # float32


def test_an_image_that_is_too_small_is_refused_with_its_size():
    model = models.create("alexnet", num_classes=5, **TINY)
    jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 63, 63, 3)))
    with pytest.raises(UsageError, match="at least 63×63, got 62×80"):
        model.init(jax.random.key(0), jnp.zeros((1, 62, 80, 3)))
