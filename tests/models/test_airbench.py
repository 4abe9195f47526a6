"""The network of short runs: its count, and how it starts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from dl_core.errors import UsageError
from models.airbench import dirac_init


def test_the_papers_network_has_its_number_of_parameters():
    """Convolutions as below, offsets of BatchNorm 2 · (64 + 256 + 256), head 2560, stem 24 · (12 + 1)."""
    model = models.create("airbench94", num_classes=10)
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
    convolutions = 9 * (24 * 64 + 64 * 64 + 64 * 256 + 3 * 256 * 256)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == convolutions + 1152 + 2560 + 312


@pytest.mark.parametrize("shape", [(3, 3, 4, 6), (3, 3, 6, 4)])
def test_a_convolution_starts_as_the_identity_on_the_channels_that_it_can_keep(shape):
    x = jax.random.normal(jax.random.key(1), (1, 5, 5, shape[2]))
    y = jax.lax.conv_general_dilated(
        x, dirac_init(jax.random.key(0), shape), (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(y[..., :4], x[..., :4], rtol=1e-6)


def test_small_images_are_refused():
    with pytest.raises(UsageError, match="at least 9×9"):
        models.create("airbench94", num_classes=2).init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
