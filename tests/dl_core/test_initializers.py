"""Initialisers have the variance that they promise and keep a signal's through twenty layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dl_core import initializers
from dl_core.activations import activation
from dl_core.errors import UsageError
from dl_core.initializers import fan_in_normal, fan_in_uniform

SHAPES = [(200, 500), (3, 3, 20, 560)]  # 1e5 weights each; fan-in 200 and 180


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("gain", [1.0, 2.0])
def test_standard_deviation_is_the_root_of_gain_over_fan_in(shape, gain):
    """W33: within 1 %, four standard errors of 1e5 normal draws."""
    for initializer in (fan_in_normal(gain), fan_in_uniform(gain)):
        weights = initializer(jax.random.key(0), shape, jnp.float32)
        assert weights.std() == pytest.approx(np.sqrt(gain / np.prod(shape[:-1])), rel=0.01)


def test_uniform_weights_reach_the_root_of_three_over_fan_in():
    """W32. (The hand-written √(1/n) is a slip: U(-α, α) has variance α²/3.)"""
    n = 100
    weights = fan_in_uniform()(jax.random.key(0), (n, 1000), jnp.float32)
    alpha = np.sqrt(3 / n)
    assert jnp.abs(weights).max() <= alpha
    assert jnp.abs(weights).max() == pytest.approx(alpha, rel=1e-3)
    signal = jax.random.normal(jax.random.key(1), (1000, n))
    assert (signal @ weights).var() == pytest.approx(float(signal.var()), rel=0.02)  # 1e6 sums of 100 shared inputs


@pytest.mark.parametrize(
    ("name", "initializer", "kept"),
    [
        ("relu", fan_in_normal(2.0), True),
        ("relu", fan_in_uniform(2.0), True),
        ("relu", initializers.he_normal(), True),
        ("relu", fan_in_normal(1.0), False),
        ("identity", fan_in_normal(1.0), True),
        ("identity", initializers.orthogonal(), True),
        ("identity", initializers.xavier_uniform(), True),
        ("identity", fan_in_normal(2.0), False),
    ],
)
def test_twenty_layers_keep_the_mean_square_with_the_right_gain_only(name, initializer, kept):
    """W33, at the units' inputs: within a factor 2 of the first layer's in every later one."""
    squares = _squares(name, initializer)
    assert (squares / squares[0] > 0.5).all() == kept or (squares / squares[0] > 2).any()
    assert ((squares / squares[0] > 0.5) & (squares / squares[0] < 2)).all() == kept


def test_tanh_keeps_its_variance_with_the_gain_of_the_course_where_it_is_linear():
    """W33. tanh shrinks large signals (0.4 of the variance at 1), so the promise holds for small ones."""
    squares = _squares("tanh", fan_in_normal(1.0), scale=0.1)
    assert ((squares / squares[0] > 0.5) & (squares / squares[0] < 2)).all()
    squares = _squares("tanh", fan_in_normal(0.5), scale=0.1)
    assert squares[-1] < 1e-4 * squares[0]


def _squares(name, initializer, scale=1.0, width=512):
    """Mean square of the inputs to the units of each of 20 layers."""
    act = activation(name)

    def layer(x, key):
        z = x @ initializer(key, (width, width), jnp.float32)
        return act(z), jnp.mean(z**2)

    x = scale * jax.random.normal(jax.random.key(0), (256, width))
    return np.asarray(jax.lax.scan(layer, x, jax.random.split(jax.random.key(1), 20))[1])


def test_orthogonal_columns_and_wrong_gains():
    weights = initializers.orthogonal()(jax.random.key(0), (40, 20), jnp.float32)
    np.testing.assert_allclose(weights.T @ weights, np.eye(20), atol=1e-5)
    with pytest.raises(UsageError, match="gain must be positive"):
        fan_in_normal(0.0)
