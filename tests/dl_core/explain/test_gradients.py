"""Saliency and gradient × input: their closed forms, their axioms, and what `target` may be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from explanation_contract import assert_keeps_the_contract

from dl_core.errors import UsageError
from dl_core.explain.gradients import gradient_x_input, input_gradient, reduce_channels, saliency

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


@pytest.mark.parametrize("method", METHODS)
def test_the_contract_is_kept(method):
    assert_keeps_the_contract(method)


@pytest.mark.parametrize("method", METHODS)
def test_two_networks_that_compute_the_same_are_explained_the_same(problem, method):
    """Implementation invariance: hidden units in another order, and relu(x) = (x + |x|) / 2."""
    params, images = problem
    order = jax.random.permutation(jax.random.key(7), 16)
    other = {"w1": params["w1"][:, order], "w2": params["w2"][order], "w3": params["w3"]}

    def rewritten(params, x):
        hidden = x.reshape(len(x), -1) @ params["w1"]
        hidden = (hidden + jnp.abs(hidden)) / 2 @ params["w2"]
        return (hidden + jnp.abs(hidden)) / 2 @ params["w3"]

    # sums of 16 float32 products in another order
    np.testing.assert_allclose(
        method(rewritten, other, images, 1), method(relu_net, params, images, 1), rtol=1e-4, atol=1e-4
    )


def test_the_explanation_of_a_sum_is_the_sum_of_the_explanations(problem):
    params, images = problem
    mixed = gradient_x_input(relu_net, params, images, lambda logits: 2 * logits[:, 0] - 3 * logits[:, 2])
    parts = [gradient_x_input(relu_net, params, images, target) for target in (0, 2)]
    np.testing.assert_allclose(mixed, 2 * parts[0] - 3 * parts[1], rtol=1e-4, atol=1e-4)  # another order of summation


@pytest.mark.parametrize(("reduce", "expected"), [("sum", [0, 1]), ("max", [3, 4]), ("norm", [14**0.5, 5])])
def test_channels_become_one_number_for_each_pixel(reduce, expected):
    attributions = jnp.array([[[[-3.0, 2.0, 1.0], [4.0, -3.0, 0.0]]]])  # one image, one row of two pixels
    np.testing.assert_allclose(reduce_channels(attributions, reduce=reduce), [[expected]], rtol=1e-6)


def test_channels_are_summed_by_default_so_that_the_total_stays(problem):
    params, images = problem
    scores = gradient_x_input(relu_net, params, images, predicted)
    assert reduce_channels(scores).shape == (5, 2, 2)
    np.testing.assert_allclose(reduce_channels(scores).sum((1, 2)), scores.sum((1, 2, 3)), rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("annotations_off")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"target": 3}, r"target must be in \[0, 3\), got 3"),
        ({"target": np.array([0, 1])}, "one class for each of the 5 examples"),
        ({"target": 0.5}, "target must be a class"),
        ({"inputs": np.zeros((5, 2, 2, 3), np.uint8)}, "inputs must be floating numbers"),
        ({"apply_fn": lambda params, x: relu_net(params, x).argmax(axis=1)[:, None]}, "no gradient"),
        ({"apply_fn": lambda params, x: x}, "a class as target needs logits"),
    ],
)
def test_what_cannot_be_explained_is_refused(problem, method, change, words):
    arguments = {"apply_fn": relu_net, "params": problem[0], "inputs": problem[1], "target": 0} | change
    with pytest.raises(UsageError, match=words):
        method(**arguments)


def test_an_unknown_reduction_is_refused():
    with pytest.raises(UsageError, match="did you mean 'sum'"):
        reduce_channels(jnp.zeros((1, 2, 2, 3)), reduce="summ")
