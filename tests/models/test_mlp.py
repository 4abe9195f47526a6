"""The multi-layer perceptron and the linear models against the course's networks and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from dl_core.errors import UsageError
from dl_core.initializers import before_activation

SKETCH = {"num_classes": 1, "hidden": (4,), "activation": "sigmoid"}  # y = Σ_k w_k σ(Σ_j v_jk x_j + b_k) + c


def test_the_network_with_four_hidden_units_has_21_parameters_and_computes_its_formula():
    """W1, first part."""
    x = jax.random.normal(jax.random.key(1), (5, 3))
    model = models.create("mlp", **SKETCH)
    variables = model.init(jax.random.key(0), x)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == 3 * 4 + 4 + 4 + 1 == 21
    hidden, head = variables["params"]["fc1"], variables["params"]["head"]
    sigmoid = lambda z: 1 / (1 + np.exp(-z))
    expected = sigmoid(np.asarray(x) @ hidden["kernel"] + hidden["bias"][None]) @ head["kernel"] + head["bias"][None]
    np.testing.assert_allclose(model.apply(variables, x), expected, rtol=1e-5, atol=1e-6)


def test_a_sigmoid_around_the_output_adds_no_parameter_and_keeps_it_between_0_and_1():
    """W1, second part."""
    x = 3 * jax.random.normal(jax.random.key(1), (50, 3))
    model = models.create("mlp", **SKETCH, output_activation="sigmoid")
    variables = model.init(jax.random.key(0), x)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == 21
    output = model.apply(variables, x)
    assert ((output > 0) & (output < 1)).all()
    np.testing.assert_allclose(output, jax.nn.sigmoid(models.create("mlp", **SKETCH).apply(variables, x)), rtol=1e-6)


def test_an_rgb_image_of_512_pixels_has_786432_inputs():
    """W35."""
    model = models.create("mlp", num_classes=10, hidden=(3,))
    shapes = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 512, 512, 3), jnp.float32))
    assert shapes["params"]["fc1"]["kernel"].shape == (786_432, 3)


def test_no_hidden_layer_is_the_linear_classifier():
    x = jax.random.normal(jax.random.key(1), (4, 6))
    model, linear = models.create("mlp", num_classes=3, hidden=()), models.create("linear", num_classes=3)
    variables = model.init(jax.random.key(0), x)
    np.testing.assert_array_equal(
        model.apply(variables, x), linear.apply({"params": {"fc": variables["params"]["head"]}}, x)
    )


def test_dropout_acts_in_training_only():
    x = jax.random.normal(jax.random.key(1), (4, 6))
    model = models.create("mlp", num_classes=3, hidden=(64,), dropout=0.5)
    variables = model.init(jax.random.key(0), x)
    apply = lambda seed, train: model.apply(variables, x, train=train, rngs={"dropout": jax.random.key(seed)})
    assert not np.allclose(apply(0, True), apply(1, True))
    np.testing.assert_array_equal(apply(0, False), apply(1, False))


def test_logistic_regression_is_the_sigmoid_of_one_linear_function():
    x = jax.random.normal(jax.random.key(1), (4, 6))
    model = models.create("logistic_regression", num_classes=2)
    variables = model.init(jax.random.key(0), x)
    z = models.create("linear", num_classes=1).apply(variables, x)
    np.testing.assert_allclose(jax.nn.softmax(model.apply(variables, x))[:, 1:], jax.nn.sigmoid(z), rtol=1e-6)


@pytest.mark.parametrize(("act", "energy"), [("relu", 2.0), ("tanh", 1.0)])
def test_the_initial_weights_have_the_variance_of_he_or_of_xavier(act, energy):
    """W33: σ = √(2/n) before ReLU, √(1/n) else; 1e6 draws give σ to 0.07 %."""
    weights = before_activation(act)(jax.random.key(0), (1000, 1000), jnp.float32)
    np.testing.assert_allclose(weights.std(), np.sqrt(energy / 1000), rtol=0.01)


def test_an_unknown_activation_is_named():
    with pytest.raises(UsageError, match=r"unknown activation 'rellu'; did you mean .*'relu'"):
        models.create("mlp", num_classes=2, activation="rellu").init(jax.random.key(0), jnp.ones((1, 4)))
