"""Guided backpropagation and deconvnet: their formulas, and which operations count as activations."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from explanation_contract import assert_keeps_the_contract, small_images, small_network, small_params

from dl_core.errors import UsageError
from dl_core.explain.gradients import input_gradient
from dl_core.explain.guided import deconvnet, guided_backprop
from dl_core.explain.program import read
from dl_core.explain.structure import Structure, activations

METHODS = (guided_backprop, deconvnet)


def by_hand(method, f, params, x, target):
    """Two dense layers with an activation after each: the formulas of the module's docstring."""
    w1, w2, w3 = params
    z1 = x @ w1
    z2 = f(z1) @ w2
    slope = lambda z: jax.vmap(jax.vmap(jax.grad(f)))(z)
    signal = jnp.broadcast_to(w3[:, target], z2.shape)
    for z, w in ((z2, w2), (z1, w1)):
        gate = slope(z) * (z > 0) if method is guided_backprop else 1.0
        signal = (gate * jnp.maximum(signal, 0)) @ w.T
    return signal


@pytest.fixture
def problem():
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    return (draw(4, 6), draw(6, 5), draw(5, 3)), draw(7, 4)


ACTIVATIONS = {
    "relu": jax.nn.relu,
    "maximum": lambda x: jnp.maximum(x, 0),
    "where": lambda x: jnp.where(x > 0, x, 0),
    "product": lambda x: x * (x > 0),
    "relu6": jax.nn.relu6,
    "leaky": jax.nn.leaky_relu,
    "elu": jax.nn.elu,
    "gelu": jax.nn.gelu,
    "exact gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "silu": jax.nn.silu,
    "written out": lambda x: x / (1 + jnp.exp(-x)),
    "softplus": jax.nn.softplus,
    "softplus written out": lambda x: jnp.log1p(jnp.exp(x)),
    "mish": jax.nn.mish,
    "hard swish": jax.nn.hard_swish,
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
    "soft sign": jax.nn.soft_sign,
    "clip": lambda x: jnp.clip(x, -1, 1),
}


@pytest.mark.parametrize("activation", ["relu", "product", "exact gelu", "softplus written out"])
def test_guided_backprop_is_its_formula(activation, problem):
    params, x = problem
    f = ACTIVATIONS[activation]
    apply_fn = lambda params, x: f(f(x @ params[0]) @ params[1]) @ params[2]
    expected = jax.jit(lambda params, x: by_hand(guided_backprop, f, params, x, 1))(params, x)
    np.testing.assert_allclose(guided_backprop(apply_fn, params, x, 1), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("open_rules", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_of_any_make_are_found(activation, open_rules, problem):
    """From what the layer before computes to what the layer after is given, with nothing left out."""
    (w1, w2, _), x = problem
    apply_fn = lambda params, x: ACTIVATIONS[activation](x @ params[0]) @ params[1]
    structure = Structure(read(apply_fn, (w1, w2), x, open_rules=open_rules))
    before, after = (o for o in structure.program.operations if o.name == "dot_general")
    value, gated = after.operands[0], activations(structure)
    if structure.producer[value].name == "copy":
        value = structure.producer[value].operands[0]
    while value in gated:  # relu6 is a minimum of a maximum
        value = gated[value][0]
    assert value == before.results[0]


@pytest.mark.parametrize("activation", ["relu6", "exact gelu"])
def test_deconvnet_looks_at_the_signal_alone(activation, problem):
    params, x = problem
    f = ACTIVATIONS[activation]
    apply_fn = lambda params, x: f(f(x @ params[0]) @ params[1]) @ params[2]
    expected = jax.jit(lambda params, x: by_hand(deconvnet, f, params, x, 1))(params, x)
    np.testing.assert_allclose(deconvnet(apply_fn, params, x, 1), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(deconvnet(apply_fn, params, -x, 1), expected, rtol=1e-4, atol=1e-5)  # of no input


@pytest.mark.parametrize("method", METHODS)
def test_of_a_linear_model_it_is_the_gradient(method, problem):
    """Also with pooling, the largest of several, and what is taken of a variance or a softmax."""
    params, x = problem

    def apply_fn(params, x):
        x = nn.LayerNorm(use_bias=False, use_scale=False).apply({}, x @ params[0])
        x = x / jnp.sqrt(jnp.maximum(jnp.var(x, axis=1, keepdims=True), 1e-6))
        return jnp.max((x @ params[1]).reshape(len(x), 5, 1), axis=2) @ params[2] * jax.nn.softmax(x[:, :3])

    expected = jax.jit(lambda params, x: input_gradient(apply_fn, params, x, 2))(params, x)
    np.testing.assert_allclose(method(apply_fn, params, x, 2), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_max_pooling_sends_the_signal_to_the_maximum(method):
    apply_fn = lambda params, x: nn.max_pool(x, (2, 2), (2, 2)).reshape(len(x), -1) @ params
    x = jnp.array([[[1.0, 5.0], [2.0, 3.0]], [[-1.0, -2.0], [-0.5, -4.0]]])[..., None]
    expected = [[[0, 2], [0, 0]], [[0, 0], [2, 0]]]
    np.testing.assert_array_equal(method(apply_fn, jnp.array([[2.0]]), x, 0)[..., 0], expected)


@pytest.mark.parametrize("method", METHODS)
def test_methods_keep_the_contract(method):
    assert_keeps_the_contract(method)


def test_skips_add_up(problem):
    """x -> relu(x W + x) V: the signal goes both ways after one gate."""
    _, x = problem
    w = jnp.eye(4)[:, ::-1]
    signals = guided_backprop(lambda w, x: jax.nn.relu(x @ w + x), w, x, lambda z: z[:, 0] - z[:, 1])
    gate = (x[:, 3] + x[:, 0] > 0).astype(jnp.float32)
    np.testing.assert_allclose(signals, gate[:, None] * jnp.array([[1.0, 0, 0, 1.0]]))


def test_the_derivative_of_one_s_own_stays(problem):
    """A `custom_vjp` is an activation as a whole, with the derivative that it was given."""
    steep = jax.custom_vjp(lambda x: jnp.maximum(x, 0))
    steep.defvjp(lambda x: (jnp.maximum(x, 0), None), lambda _, g: (10 * g,))
    w, x = jnp.array([[1.0, -1.0]]), jnp.array([[2.0], [-2.0]])
    signals = guided_backprop(lambda w, x: steep(x @ w) @ jnp.array([[1.0], [1.0]]), w, x, 0)
    np.testing.assert_array_equal(signals, [[10.0], [-10.0]])


@pytest.mark.parametrize("open_rules", [False, True])
def test_activations_of_a_model_are_found_once(open_rules):
    structure = Structure(read(small_network, small_params(), small_images(2), open_rules=open_rules))
    starts = [structure.producer[start].name for start, _ in activations(structure).values()]
    assert starts == ["add", "conv_general_dilated"]  # from the output to the inputs: after the skip, after conv1


def test_targets_are_checked():
    for method in METHODS:
        with pytest.raises(UsageError, match=r"\[0, 5\)"):
            method(small_network, small_params(), small_images(2), 7)
