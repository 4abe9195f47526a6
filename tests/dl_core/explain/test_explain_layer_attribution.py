"""Layer and neuron forms: closed forms, what a skip connection does to them, and any method at any layer."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from explanation_contract import (
    assert_keeps_the_contract,
    small_images,
    small_network,
    small_params,
)

from dl_core.errors import UsageError
from dl_core.explain.expected_gradients import expected_gradients
from dl_core.explain.gradients import saliency
from dl_core.explain.layer_attribution import (
    from_layer,
    layer_conductance,
    layer_gradient_x_activation,
    layer_integrated_gradients,
    neuron_gradient,
    neuron_integrated_gradients,
    to_neuron,
)
from dl_core.explain.layers import run_with_layer
from dl_core.explain.path_integration import METHODS, integrated_gradients
from dl_core.explain.smooth_grad import smooth_grad

INPUTS = jnp.array([[1.0, -0.5, 0.8], [0.3, 1.2, -1.0]])
WEIGHTS = jnp.array([2.0, -1.0, 0.5])
OPTIONS = {"layer": "squares", "baselines": 0.5, "n_steps": 20}


def chain(weights, x):
    """Two logits, sum w sin y and sum y, of the layer y = x²."""
    with jax.named_scope("squares"):
        squares = x**2
    return jnp.stack([(weights[None] * jnp.sin(squares)).sum(axis=1), squares.sum(axis=1)], axis=1)


def with_skip(weights, x):
    """The same, and 3 sum x that goes around the layer."""
    return chain(weights, x) + 3 * x.sum(axis=1, keepdims=True)


def test_gradient_times_activation_has_its_closed_form():
    squares = INPUTS**2
    given = layer_gradient_x_activation(chain, WEIGHTS, INPUTS, 0, layer="squares")
    np.testing.assert_allclose(given, WEIGHTS[None] * jnp.cos(squares) * squares, rtol=1e-5)


def test_conductance_is_the_change_that_flows_through_each_unit():
    """Each unit's share w (sin x² - sin b²); a path that is straight in the inputs is curved there."""
    result = layer_conductance(chain, WEIGHTS, INPUTS, 0, **OPTIONS)
    expected = WEIGHTS[None] * (jnp.sin(INPUTS**2) - jnp.sin(0.25))
    np.testing.assert_allclose(result.attributions, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(result.completeness_gap, 0, atol=1e-5)


@pytest.mark.parametrize("apply_fn", [chain, with_skip])
def test_layer_integrated_gradients_are_complete_for_the_layer_alone(apply_fn):
    result = layer_integrated_gradients(apply_fn, WEIGHTS, INPUTS, 0, **OPTIONS)
    expected = WEIGHTS[None] * (jnp.sin(INPUTS**2) - jnp.sin(0.25))  # a function of one unit has one path
    np.testing.assert_allclose(result.attributions, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(result.completeness_gap, 0, atol=1e-5)


def test_what_goes_around_the_layer_is_in_the_gap_of_conductance():
    result = layer_conductance(with_skip, WEIGHTS, INPUTS, 0, **OPTIONS)
    np.testing.assert_allclose(result.completeness_gap, -3 * (INPUTS - 0.5).sum(axis=1), rtol=1e-4)


def test_conductance_sums_to_integrated_gradients():
    """Of a network in which the second convolution has a way around it, at the first one, which has none."""
    arguments = small_network, small_params(), small_images(3), 1
    options = {"n_steps": 6, "baselines": 0.2}
    through = layer_conductance(*arguments, layer="conv1", **options)
    whole = integrated_gradients(*arguments, **options)
    assert through.attributions.shape == (3, 8, 8, 6)
    # the same quadrature of the same integrand, summed in another order
    np.testing.assert_allclose(through.attributions.sum((1, 2, 3)), whole.attributions.sum((1, 2, 3)), rtol=1e-4)
    np.testing.assert_allclose(through.completeness_gap, whole.completeness_gap, atol=1e-5)


def test_the_gap_of_a_layer_with_a_way_around_it_is_an_error_of_the_quadrature_only():
    params, images = small_params(), small_images(3)
    result = layer_integrated_gradients(small_network, params, images, 1, layer="conv2", baselines=0.2, n_steps=40)
    _, start = run_with_layer(small_network, params, jnp.full_like(images, 0.2), "conv2")
    without, _ = run_with_layer(small_network, params, images, "conv2", lambda _: start)
    change = (small_network(params, images) - without)[:, 1]
    np.testing.assert_allclose(result.attributions.sum((1, 2, 3)), change, atol=0.01)  # 1 / n, of changes up to 1
    np.testing.assert_allclose(result.completeness_gap, result.attributions.sum((1, 2, 3)) - change, atol=1e-5)


def test_a_neuron_is_explained_by_its_gradient():
    given = neuron_gradient(chain, WEIGHTS, INPUTS, layer="squares", neuron=1)
    np.testing.assert_allclose(given, 2 * INPUTS * jnp.array([[0.0, 1.0, 0.0]]), rtol=1e-6)
    np.testing.assert_array_equal(neuron_gradient(chain, WEIGHTS, INPUTS, layer="squares", neuron=(-2,)), given)


@pytest.mark.parametrize("method", METHODS)
def test_integrated_gradients_of_a_neuron_sum_to_its_change(method):
    params, images = small_params(), small_images(2)
    explain = functools.partial(
        neuron_integrated_gradients, small_network, params, images, layer="conv2", neuron=(3, 4, 5), method=method
    )
    result = explain(baselines=0.1, n_steps=100)
    values = [run_with_layer(small_network, params, x, "conv2")[1][:, 3, 4, 5] for x in (images, 0 * images + 0.1)]
    np.testing.assert_allclose(result.attributions.sum((1, 2, 3)), values[0] - values[1], atol=0.02)  # 1 / n
    total = result.attributions.sum((1, 2, 3)) - (values[0] - values[1])
    np.testing.assert_allclose(result.completeness_gap, total, atol=1e-5)
    outside = np.ones((8, 8), bool)
    outside[1:6, 2:7] = False  # two 3×3 convolutions see no further
    np.testing.assert_array_equal(result.attributions[:, outside], 0)


def test_any_method_explains_a_layer_or_a_neuron():
    key = jax.random.key(0)
    rest = from_layer(chain, WEIGHTS, INPUTS, "squares")
    np.testing.assert_allclose(rest.apply_fn(rest.params, rest.inputs), chain(WEIGHTS, INPUTS), rtol=1e-6)
    smooth = smooth_grad(*rest, 1, key=key, n_samples=3)  # the second logit is linear in the layer
    np.testing.assert_allclose(smooth, 1, rtol=1e-6)
    background = from_layer(chain, WEIGHTS, INPUTS[:1], "squares").inputs
    expected = expected_gradients(*rest, 1, baselines=background, n_steps=2).attributions
    np.testing.assert_allclose(expected, INPUTS**2 - INPUTS[:1] ** 2, atol=1e-6)
    neuron = saliency(to_neuron(chain, "squares", 2), WEIGHTS, INPUTS, 0)
    np.testing.assert_allclose(neuron, 2 * jnp.abs(INPUTS) * jnp.array([[0.0, 0.0, 1.0]]), rtol=1e-6)


def test_the_same_layer_and_neuron_are_compiled_once():
    assert to_neuron(chain, "squares", 1) is to_neuron(chain, "squares", (1,))
    parts = [from_layer(chain, WEIGHTS, inputs, "squares") for inputs in (INPUTS, INPUTS + 1)]
    assert parts[0].apply_fn is parts[1].apply_fn


@pytest.mark.parametrize("method", [layer_integrated_gradients, layer_conductance])
def test_memory_pieces_do_not_change_the_result(method):
    whole = method(with_skip, WEIGHTS, INPUTS, 0, layer="squares", n_steps=5)
    pieces = method(with_skip, WEIGHTS, INPUTS, 0, layer="squares", n_steps=5, internal_batch_size=4)
    np.testing.assert_allclose(pieces.attributions, whole.attributions, rtol=1e-5, atol=1e-6)


def test_the_contract_is_kept_by_layers():
    """The three forms in one array."""

    def explain(*arguments):
        options = {"layer": "conv1", "n_steps": 4}
        paths = [method(*arguments, **options) for method in (layer_integrated_gradients, layer_conductance)]
        product = layer_gradient_x_activation(*arguments, layer="conv1")
        return jnp.stack([product, *(path.attributions for path in paths)], axis=1)

    assert_keeps_the_contract(explain, bfloat16_atol=0.3)  # a ReLU near its kink may fall on the other side


def test_the_contract_is_kept_by_neurons():
    """Both forms in one array; the neuron stands in the place of the target."""

    def explain(apply_fn, params, images, _):
        options = {"layer": "conv2", "neuron": (3, 4, 5)}
        gradient = neuron_gradient(apply_fn, params, images, **options)
        path = neuron_integrated_gradients(apply_fn, params, images, n_steps=4, **options)
        return jnp.stack([gradient, path.attributions], axis=1)

    assert_keeps_the_contract(explain, bfloat16_atol=0.3)  # a ReLU near its kink may fall on the other side


@pytest.mark.usefixtures("annotations_off")
@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: layer_gradient_x_activation(chain, WEIGHTS, INPUTS, 0, layer="square"), "did you mean 'squares'"),
        (lambda: layer_conductance(chain, WEIGHTS, INPUTS, 0, layer="fc"), "unknown layer 'fc'"),
        (lambda: layer_integrated_gradients(chain, WEIGHTS, INPUTS, 2, layer="squares"), "target must be in"),
        (lambda: layer_conductance(chain, WEIGHTS, INPUTS, 0, layer="squares", n_steps=0), "n_steps must lie in"),
        (
            lambda: layer_integrated_gradients(chain, WEIGHTS, INPUTS, 0, layer="squares", method="midpoint"),
            "unknown method 'midpoint'",
        ),
        (
            lambda: layer_conductance(chain, WEIGHTS, INPUTS, 0, layer="squares", baselines=np.zeros((5, 3))),
            "several baselines",
        ),
        (lambda: neuron_gradient(chain, WEIGHTS, INPUTS, layer="nothing", neuron=0), "unknown layer 'nothing'"),
        (lambda: neuron_gradient(chain, WEIGHTS, INPUTS, layer="squares", neuron=3), r"axes \[3\] of 'squares'; got"),
        (lambda: neuron_gradient(chain, WEIGHTS, INPUTS, layer="squares", neuron=(0, 1)), "must have 1 indices"),
        (lambda: neuron_gradient(chain, WEIGHTS, INPUTS, layer="squares", neuron=0.5), "an index or a tuple"),
        (lambda: from_layer(counts, WEIGHTS, INPUTS, "signs"), "must hold floating numbers"),
        (lambda: from_layer(counts, WEIGHTS, INPUTS, "total"), r"\[batch, ...\] = \[2, …\]"),
    ],
)
def test_nonsense_is_refused_with_the_value_given(call, words):
    with pytest.raises(UsageError, match=words):
        call()


def counts(_, x):
    with jax.named_scope("signs"):
        signs = (x > 0).astype(jnp.int32)
    with jax.named_scope("total"):
        total = x.sum(axis=0)
    return x * signs + total[None]
