"""Activations against their closed forms, and the guard against heads that answer "yes" to everything."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from scipy.special import erf

from dl_core import activations
from dl_core.activations import ACTIVATIONS, activation, check_binary_head, leaky_relu, maxout, prelu
from dl_core.errors import UsageError

X = np.random.default_rng(0).normal(0, 3, 400).astype(np.float32)


def sigma(x):
    return 1 / (1 + np.exp(-x))


DERIVATIVES = {
    "identity": lambda x: np.ones_like(x),
    "sigmoid": lambda x: sigma(x) * (1 - sigma(x)),
    "relu": lambda x: (x > 0).astype(x.dtype),
    "leaky_relu": lambda x: np.where(x > 0, 1.0, 0.1),
    "prelu": lambda x: np.where(x > 0, 1.0, 0.25),
    "tanh": lambda x: 1 - np.tanh(x) ** 2,
    "sinusoid": np.cos,
    "elu": lambda x: np.where(x > 0, 1.0, np.exp(x)),
    "gelu": lambda x: (1 + erf(x / np.sqrt(2))) / 2 + x * np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi),
    "silu": lambda x: sigma(x) * (1 + x * (1 - sigma(x))),
}


@pytest.mark.parametrize("name", DERIVATIVES)
def test_derivative_is_the_closed_form(name):
    derivative = jax.vmap(jax.grad(activation(name)))(X)
    np.testing.assert_allclose(derivative, DERIVATIVES[name](X.astype(np.float64)), rtol=1e-4, atol=1e-6)  # float32


@pytest.mark.parametrize("name", DERIVATIVES)
def test_value_is_the_integral_of_the_derivative(name):
    """Simpson's rule in 4001 points from 0 to x; it fixes what a derivative leaves open."""
    ends = X[:40].astype(np.float64)
    steps = np.linspace(0, 1, 4001)[:, None] * ends[None]
    weights = np.r_[1, np.tile([4, 2], 2000)[:-1], 1] / 12000
    integral = ends * (weights[:, None] * DERIVATIVES[name](steps)).sum(axis=0)
    at_0 = 0.5 if name == "sigmoid" else 0.0
    np.testing.assert_allclose(activation(name)(jnp.asarray(X[:40])), integral + at_0, rtol=1e-3, atol=1e-3)


def test_softmax_has_the_derivative_p_delta_minus_p_p():
    x = X[:6]
    p = np.exp(x.astype(np.float64)) / np.exp(x.astype(np.float64)).sum()
    jacobian = np.diag(p) - np.outer(p, p)
    np.testing.assert_allclose(jax.jacobian(activation("softmax"))(x), jacobian, rtol=1e-4, atol=1e-6)
    expected = np.eye(6) - p[None]  # of the logarithm
    np.testing.assert_allclose(jax.jacobian(activation("log_softmax"))(x), expected, rtol=1e-4, atol=1e-6)


def test_maxout_is_the_largest_of_its_pieces_and_its_gradient_goes_there():
    x = X[:24].reshape(2, 12)
    np.testing.assert_array_equal(maxout(x, 3), x.reshape(2, 4, 3).max(axis=2))
    gradient = jax.grad(lambda x: activation("maxout", pieces=3)(x).sum())(jnp.asarray(x)).reshape(2, 4, 3)
    np.testing.assert_array_equal(gradient, x.reshape(2, 4, 3) == x.reshape(2, 4, 3).max(axis=2, keepdims=True))
    np.testing.assert_array_equal(maxout(np.stack([X, -X], axis=1))[:, 0], np.abs(X))  # two pieces make |x|
    with pytest.raises(UsageError, match="pieces must divide the number of channels, 12, got 5"):
        maxout(x, 5)


def test_prelu_learns_a_slope_for_each_channel():
    x, slope = X.reshape(-1, 4), jnp.array([0.0, 0.1, 0.5, 1.0])
    np.testing.assert_allclose(prelu(x, slope), np.where(x > 0, x, np.asarray(slope)[None] * x), rtol=1e-6)
    np.testing.assert_allclose(prelu(x, 0.1), leaky_relu(x), rtol=1e-6)
    gradient = jax.grad(lambda slope: prelu(x, slope).sum())(slope)
    np.testing.assert_allclose(gradient, np.minimum(x, 0).sum(axis=0), rtol=1e-5)


def test_names_and_fields():
    assert set(ACTIVATIONS) <= set(activations.__all__)
    np.testing.assert_allclose(activation("leaky_relu", negative_slope=0.3)(X), np.where(X > 0, X, 0.3 * X), rtol=1e-6)
    with pytest.raises(UsageError, match="unknown activation 'rleu'; did you mean 'relu'"):
        activation("rleu")


class Head(nn.Module):
    last: str
    probability: bool = False

    @nn.compact
    def __call__(self, x):
        z = nn.Dense(1)(nn.relu(nn.Dense(8)(x)))
        z = {"linear": lambda z: z, "relu": nn.relu, "square": jnp.square, "scaled": lambda z: 2 * nn.relu(z) - 1}[
            self.last
        ](z)
        z = jnp.squeeze(z, axis=1)
        return nn.sigmoid(z) if self.probability else z


@pytest.mark.parametrize("probability", [False, True])
def test_a_binary_head_that_ends_in_a_relu_is_refused(probability):
    """W31: sigmoid(relu(z)) >= 0.5 for every z, so that everything is a car."""
    x = jax.ShapeDtypeStruct((4, 3), jnp.float32)
    for last, words in [("relu", "comes out of a ReLU"), ("square", "comes out of a square")]:
        head = Head(last, probability)
        params = jax.eval_shape(head.init, jax.random.key(0), x)
        with pytest.raises(UsageError, match=words):
            check_binary_head(head.apply, params, x)
        with pytest.raises(UsageError, match=words):
            check_binary_head(jax.jit(head.apply), params, x)
    for last in ("linear", "scaled"):
        head = Head(last, probability)
        check_binary_head(head.apply, jax.eval_shape(head.init, jax.random.key(0), x), x)
    z = jnp.asarray(X)
    assert activations.sigmoid(activations.relu(z)).min() == 0.5
