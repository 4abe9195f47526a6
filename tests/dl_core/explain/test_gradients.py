"""Saliency and gradient × input: their closed forms, their axioms, and what `target` may be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dl_core.explain.gradients import gradient_x_input, input_gradient, saliency

METHODS = (saliency, gradient_x_input)


def relu_net(params, x):
    """Piecewise linear, without biases."""
    hidden = jax.nn.relu(x.reshape(len(x), -1) @ params["w1"])
    return jax.nn.relu(hidden @ params["w2"]) @ params["w3"]


@pytest.fixture
def problem():
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = {"w1": (12, 16), "w2": (16, 8), "w3": (8, 3)}
    params = {name: jax.random.normal(key, shape) for key, (name, shape) in zip(keys, shapes.items(), strict=False)}
    return params, jax.random.normal(keys[3], (5, 2, 2, 3))


def predicted(logits):
    return logits.max(axis=1)


def test_gradient_x_input_of_the_predicted_logit(problem):
    """W12: gradient · input of the arg-max logit, which sums to the logit without biases."""
    params, images = problem
    scores = gradient_x_input(relu_net, params, images, predicted)
    gradient = jax.vmap(jax.grad(lambda x: relu_net(params, x[None])[0].max()))(images)  # one example at a time
    np.testing.assert_allclose(scores, gradient * images, rtol=1e-5, atol=1e-5)
    logits = relu_net(params, images).max(axis=1)
    np.testing.assert_allclose(scores.sum(axis=(1, 2, 3)), logits, rtol=1e-4)  # sums of 12 float32 products


def test_a_class_for_each_example_is_what_a_function_of_the_logits_picks(problem):
    params, images = problem
    target = relu_net(params, images).argmax(axis=1)
    for method in METHODS:
        np.testing.assert_array_equal(
            method(relu_net, params, images, target), method(relu_net, params, images, predicted)
        )


def test_of_a_linear_model_the_saliency_is_the_weights():
    weights = jax.random.normal(jax.random.key(1), (6, 3))
    inputs, target = jax.random.normal(jax.random.key(2), (4, 6)), jnp.array([0, 1, 2, 1])
    linear = lambda params, x: x @ params
    np.testing.assert_allclose(saliency(linear, weights, inputs, target), np.abs(weights.T[target]), rtol=1e-6)
    signed = saliency(linear, weights, inputs, target, absolute=False)
    np.testing.assert_allclose(signed, weights.T[target], rtol=1e-6)
    np.testing.assert_allclose(gradient_x_input(linear, weights, inputs, target), weights.T[target] * inputs, rtol=1e-6)


def test_the_gradient_is_the_slope_of_the_logit(problem):
    """Against central differences of a smooth network."""
    params, images = problem
    smooth = lambda params, x: jnp.tanh(0.1 * x.reshape(len(x), -1) @ params["w1"]) @ params["w2"]
    target, step = jnp.array([0, 1, 2, 3, 4]), 1e-2
    gradient = input_gradient(smooth, params, images, target)
    direction = jax.random.normal(jax.random.key(5), images.shape)
    ahead, behind = (smooth(params, images + sign * step * direction)[jnp.arange(5), target] for sign in (1, -1))
    slope = (gradient * direction).sum(axis=(1, 2, 3))
    np.testing.assert_allclose((ahead - behind) / (2 * step), slope, rtol=1e-2, atol=1e-3)  # O(step²) and cancellation


@pytest.mark.parametrize("method", METHODS)
def test_an_example_is_explained_as_if_it_were_alone(problem, method):
    params, images = problem
    together = method(relu_net, params, images, predicted)
    alone = [method(relu_net, params, images[i : i + 1], predicted)[0] for i in range(5)]
    np.testing.assert_allclose(together, jnp.stack(alone), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_methods_work_under_jit_and_over_classes_and_stacked_params(problem, method):
    params, images = problem
    explain = lambda params, target: method(relu_net, params, images, target)
    every_class = jnp.broadcast_to(jnp.arange(3)[:, None], (3, 5))
    over_classes = jax.jit(jax.vmap(explain, in_axes=(None, 0)))(params, every_class)
    np.testing.assert_allclose(over_classes[2], explain(params, every_class[2]), rtol=1e-5, atol=1e-5)
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, -leaf]), params)
    ensemble = jax.vmap(explain, in_axes=(0, None))(stacked, every_class[1])
    np.testing.assert_allclose(ensemble[0], explain(params, every_class[1]), rtol=1e-5, atol=1e-5)
