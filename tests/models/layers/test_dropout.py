"""Dropout: rate, expectation, evaluation, and noise that does not depend on how a batch is divided."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dl_core.errors import UsageError
from models.layers.dropout import Dropout

KEY = jax.random.key(7)


def drop(x, key=KEY, **fields):
    return Dropout(**fields).apply({}, x, True, rngs={"dropout": key})


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.8])
def test_p_is_dropped_at_rate_p_and_the_expectation_is_preserved(rate):
    """W36. (The course notes' "(1 - p) of the neurons are set to zero" is a slip.)"""
    x = jnp.ones((400, 500))
    y = drop(x, rate=rate)
    error = np.sqrt(rate * (1 - rate) / x.size)  # of the fraction of 2e5 independent draws
    assert abs(float((y == 0).mean()) - rate) < 5 * error
    assert abs(float(y.mean()) - 1) < 5 * error / (1 - rate)
    np.testing.assert_allclose(y[y != 0], 1 / (1 - rate), rtol=1e-6)


@pytest.mark.parametrize("train", [False, True])
def test_evaluation_and_rate_0_are_the_identity(train):
    x = jax.random.normal(KEY, (3, 4))
    layer = Dropout(rate=0.0 if train else 0.5)
    np.testing.assert_array_equal(layer.apply({}, x, train), x)


def test_the_noise_of_a_row_does_not_depend_on_the_rows_after_it():
    x = jax.random.normal(KEY, (8, 5, 5, 3))
    np.testing.assert_array_equal(drop(x, rate=0.5)[:3], drop(x[:3], rate=0.5))


def test_rows_keys_and_layers_draw_different_noise():
    x = jnp.ones((2, 1000))
    y = drop(x, rate=0.5)
    assert 0.4 < (y[0] == y[1]).mean() < 0.6
    assert 0.4 < (y == drop(x, key=jax.random.key(8), rate=0.5)).mean() < 0.6


@pytest.mark.parametrize("spatial", [False, True])
def test_eight_devices_draw_the_noise_of_one_under_jit_and_under_pmap(spatial):
    x = jax.random.normal(KEY, (16, 3, 3, 4))
    alone = drop(x, rate=0.5, spatial=spatial)
    sharding = NamedSharding(Mesh(np.array(jax.devices()), ("data",)), PartitionSpec("data"))
    under_jit = jax.jit(lambda x: drop(x, rate=0.5, spatial=spatial))(jax.device_put(x, sharding))
    np.testing.assert_array_equal(under_jit, alone)
    under_pmap = jax.pmap(lambda x: drop(x, rate=0.5, spatial=spatial, axis_name="data"), axis_name="data")
    np.testing.assert_array_equal(under_pmap(x.reshape(8, 2, 3, 3, 4)).reshape(x.shape), alone)


def test_the_spatial_form_drops_whole_channels():
    y = drop(jnp.ones((50, 4, 4, 20)), rate=0.5, spatial=True)
    per_channel = (y == 0).mean(axis=(1, 2))
    assert set(np.unique(per_channel)) == {0.0, 1.0}
    assert abs(float(per_channel.mean()) - 0.5) < 5 * np.sqrt(0.25 / 1000)


def test_gradients_flow_through_the_units_that_stay():
    x = jax.random.normal(KEY, (4, 50))
    np.testing.assert_array_equal(jax.grad(lambda x: drop(x, rate=0.5).sum())(x), 2.0 * (drop(x, rate=0.5) != 0))


@pytest.mark.parametrize("rate", [-0.1, 1.0, 50.0])
def test_a_rate_outside_its_range_is_refused(rate):
    with pytest.raises(UsageError, match=rf"must lie in \[0, 1\), got {rate}"):
        Dropout(rate=rate)
