"""Worked problems of the course notes that belong to no single file; the others stand beside what they test.

Each is answered by public functions of the project, or of Flax where the project has none of its own (recurrent cells).
"""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from dl_core.explain.gradients import input_gradient
from dl_core.receptive_field import Layer, output_size, parameter_count
from models.layers.convolution import convolution
from models.layers.residual import PreActivationBlock, Step

# W2: which nodes feed which; every neuron is n(bias + Σ weight · input) with a smooth n.
FEEDS = {
    "a": ["x1"],
    "b": ["x1"],
    "c": ["a", "x1"],
    "d": ["a", "b"],
    "f": ["d", "x2"],
    "g": ["d", "x2"],
    "e": ["c", "d", "f"],
    "y": ["e", "f", "g"],
}


def neurons(weights, x):
    """All neurons of the exam's network for inputs [batch, 2]."""
    values = {"x1": x[:, 0], "x2": x[:, 1]}
    for name, sources in FEEDS.items():
        total = weights[name][0] + sum(w * values[source] for w, source in zip(weights[name][1:], sources, strict=True))
        values[name] = jnp.tanh(total)
    return values


@pytest.mark.parametrize("seed", range(3))
def test_total_derivative_is_the_sum_over_all_paths_of_products_of_partial_derivatives(seed):
    """W2."""
    rng = np.random.default_rng(seed)
    weights = {name: rng.normal(size=1 + len(sources)) for name, sources in FEEDS.items()}
    x = jnp.asarray(rng.normal(size=(1, 2)))
    values = {name: float(value[0]) for name, value in neurons(weights, x).items()}
    partial = {
        (name, source): (1 - values[name] ** 2) * w
        for name, sources in FEEDS.items()
        for w, source in zip(weights[name][1:], sources, strict=True)
    }

    def over_paths(name, to):
        if name == to:
            return 1.0
        return sum(partial[name, source] * over_paths(source, to) for source in FEEDS.get(name, []))

    gradient = input_gradient(lambda w, x: neurons(w, x)["y"][:, None], weights, x, jnp.array([0]))
    expected = [over_paths("y", "x1"), over_paths("y", "x2")]
    np.testing.assert_allclose(gradient[0], expected, rtol=1e-4, atol=1e-6)  # float32


class ExamNetwork(nn.Module):
    """1→16→16→pool→32→32→pool→10 with 3×3 kernels, no padding, and BatchNorm after the last convolution, as solved."""

    @nn.compact
    def __call__(self, x, train=False):
        for i, channels in enumerate([16, 16, 32, 32]):
            x = nn.Conv(channels, (3, 3), padding="VALID", conv_general_dilated=convolution)(x)
            x = nn.relu(nn.BatchNorm(not train)(x) if i == 3 else x)
            x = nn.max_pool(x, (2, 2), (2, 2)) if i % 2 else x
        return nn.Dense(10)(x.reshape(len(x), -1))


def test_the_printed_network_flattens_to_32_4_4_and_changes_its_statistics_in_training_only():
    """W7. (For every model of the registry: tests/models/test_registry.py.)"""
    table = models.summary(ExamNetwork(), (28, 28, 1))
    assert table.rows[-1][1:4] == ("Dense", (10,), 32 * 4 * 4 * 10 + 10)
    model, x = ExamNetwork(), jax.random.normal(jax.random.key(1), (2, 28, 28, 1))
    variables = model.init(jax.random.key(0), x)
    apply = lambda train: model.apply(variables, x, train=train, mutable=["batch_stats"])[1]["batch_stats"]
    changed = lambda new: jax.tree.leaves(
        jax.tree.map(lambda a, b: bool((a != b).any()), new, variables["batch_stats"])
    )
    assert all(changed(apply(True)))
    assert not any(changed(apply(False)))


@pytest.mark.parametrize("hidden", [5, 8])
def test_weights_of_recurrent_cells(hidden):
    """W21, with Flax's cells: LSTM 4 · 2H · H, GRU 3 · 2H · H, and biases."""
    x = jnp.zeros((1, hidden))
    for cell, gates in [(nn.LSTMCell(hidden), 4), (nn.GRUCell(hidden), 3)]:
        params = cell.init(jax.random.key(0), cell.initialize_carry(jax.random.key(0), x.shape), x)["params"]
        kernels = sum(leaf.size for leaf in jax.tree.leaves(params) if leaf.ndim == 2)
        assert kernels == gates * 2 * hidden * hidden
        assert sum(leaf.size for leaf in jax.tree.leaves(params) if leaf.ndim == 1) == 4 * hidden


def test_scores_of_two_linear_classifiers():
    """W22."""
    kernel = jnp.array([[0.05, 1.0], [0.025, 0.5], [-0.03, 1.5]])
    model = models.create("linear", num_classes=2)
    scores = model.apply({"params": {"fc": {"kernel": kernel, "bias": jnp.zeros(2)}}}, jnp.array([[2.0, -4.0, 1.0]]))
    np.testing.assert_allclose(scores, [[-0.03, 1.5]], rtol=1e-5)


def filtered(image, kernel):
    """One image and one kernel of one channel through the project's convolution."""
    images, kernels = jnp.asarray(image)[None, :, :, None], jnp.asarray(kernel)[:, :, None, None]
    return np.asarray(convolution(images, kernels, (1, 1), "VALID"))[0, :, :, 0]


def test_a_mean_filter_and_an_edge_filter():
    """W23."""
    mean, edge = np.full((3, 3), 1 / 9, np.float32), np.array([[1, -1], [1, -1]], np.float32)
    constant = np.full((6, 6), 5, np.float32)
    step = np.repeat(np.array([[0, 0, 0, 1, 1, 1]], np.float32), 6, axis=0)  # a vertical edge
    np.testing.assert_allclose(filtered(constant, mean), np.full((4, 4), 5), rtol=1e-6)
    np.testing.assert_array_equal(filtered(constant, edge), np.zeros((5, 5)))
    np.testing.assert_array_equal(filtered(step, edge), np.tile([0, 0, -2, 0, 0], (5, 1)))
    np.testing.assert_array_equal(filtered(step.T, edge), np.zeros((5, 5)))


def test_a_convolution_of_rgb_images_has_kernels_of_depth_3():
    """W25, height × width × in × out."""
    layer = nn.Conv(4, (5, 5), padding="VALID", conv_general_dilated=convolution)
    params = jax.eval_shape(layer.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 26, 26, 3), jnp.float32))["params"]
    assert params["kernel"].shape == (5, 5, 3, 4)
    described = Layer(5, in_channels=3, out_channels=4)
    assert parameter_count(described) == sum(leaf.size for leaf in jax.tree.leaves(params)) == 304
    assert output_size(described, 26) == (22, 22)


def test_a_residual_block_adds_one_to_the_derivative_of_its_branch():
    """W27: H(x) = R(x) + x. With one 1×1 convolution of weight w, R(x) = w relu(x), r = w for x > 0 and 0 below."""
    conv = lambda channels, size, stride, groups, name: nn.Conv(channels, (size, size), use_bias=False, name=name)
    norm = lambda name: nn.BatchNorm(True, epsilon=0.0, name=name)
    block = PreActivationBlock((Step(1, 1),), "projection", False, conv, norm, False)
    x = jnp.array([0.7, -0.4]).reshape(2, 1, 1, 1)
    variables = block.init(jax.random.key(0), x)
    w = float(variables["params"]["conv1"]["kernel"][0, 0, 0, 0])
    gradient = jax.grad(lambda x: block.apply(variables, x).sum())(x)
    np.testing.assert_allclose(gradient.ravel(), [w + 1, 1], rtol=1e-6)


def relu_cell(v, w):
    """Flax's vanilla cell h = relu(V h + W x) of one unit, without bias, and its parameters."""
    cell = nn.SimpleCell(1, activation_fn=nn.relu)
    return cell, {"i": {"kernel": jnp.full((1, 1), w), "bias": jnp.zeros(1)}, "h": {"kernel": jnp.full((1, 1), v)}}


def states(params, cell, start, inputs):
    h, found = jnp.full((1, 1), start), []
    for x in inputs:
        h, _ = cell.apply({"params": params}, h, jnp.reshape(x, (1, 1)))
        found.append(h[0, 0])
    return jnp.stack(found)


def test_parameters_of_a_vanilla_recurrent_cell():
    """W28. (The hand-written 40 forgets the bias.)"""
    cell = nn.SimpleCell(5)
    params = cell.init(jax.random.key(0), jnp.zeros((1, 5)), jnp.zeros((1, 3)))["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 15 + 25 + 5 == 45


def test_states_of_a_relu_cell():
    """W29."""
    cell, params = relu_cell(-3.0, 3.0)
    np.testing.assert_allclose(states(params, cell, 0.0, [2.0, 3.0, 1.0]), [6, 0, 3])


def test_derivatives_through_a_relu_cell():
    """W30. (The printed h_2 = 2/3 is a slip for 3/2.)"""
    cell, params = relu_cell(-2.0, 1.0)
    inputs = jnp.array([2.0, 1.5, 4.0])
    np.testing.assert_allclose(states(params, cell, 2.0, inputs), [0, 1.5, 1])
    last = lambda params, inputs: states(params, cell, 2.0, inputs)[-1]
    by_params, by_inputs = jax.grad(last, argnums=(0, 1))(params, inputs)
    assert by_params["h"]["kernel"] == 1.5
    assert by_params["i"]["kernel"] == 1
    assert by_inputs[0] == 0


@pytest.mark.parametrize(("x", "y"), list(itertools.permutations([3.0, -2.0, 0.5], 2)))
def test_gradient_flow_through_sum_product_and_maximum(x, y):
    """W41: distributed equally; switched inputs; routed to the larger."""
    flow = lambda f: np.asarray(
        input_gradient(lambda _, z: f(z[:, 0], z[:, 1])[:, None], {}, jnp.array([[x, y]]), jnp.array([0]))
    )[0]
    np.testing.assert_array_equal(flow(lambda a, b: a + b), [1, 1])
    np.testing.assert_array_equal(flow(lambda a, b: a * b), [y, x])
    np.testing.assert_array_equal(flow(jnp.maximum), [x > y, y > x])
