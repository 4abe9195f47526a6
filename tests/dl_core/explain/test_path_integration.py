"""Integrated gradients: its axioms, its closed forms, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from explanation_contract import assert_keeps_the_contract
from hypothesis import given, settings
from hypothesis import strategies as st

from dl_core.errors import UsageError
from dl_core.explain.path_integration import METHODS, integrated_gradients


def smooth_net(params, x):
    hidden = jnp.tanh(x.reshape(len(x), -1) @ params["w1"])
    return hidden @ params["w2"]


@pytest.fixture
def problem():
    keys = jax.random.split(jax.random.key(0), 3)
    params = {"w1": jax.random.normal(keys[0], (12, 8)), "w2": jax.random.normal(keys[1], (8, 3))}
    return params, jax.random.normal(keys[2], (4, 2, 2, 3)), jnp.array([0, 2, 1, 2])


def test_attributions_sum_to_the_change_in_the_target_logit(problem):
    params, images, target = problem
    result = integrated_gradients(smooth_net, params, images, target, n_steps=32)
    logits = smooth_net(params, images)[jnp.arange(4), target]  # smooth_net(0) = 0
    np.testing.assert_allclose(result.attributions.sum((1, 2, 3)), logits, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(result.completeness_gap, 0, atol=1e-4)


def test_a_polynomial_is_integrated_exactly():
    """f(x) = x0² x1: along a straight path from 0 the attributions are (2/3, 1/3) of f."""
    apply_fn = lambda _, x: (x[:, :1] ** 2) * x[:, 1:]
    result = integrated_gradients(apply_fn, None, jnp.array([[3.0, 5.0]]), jnp.array([0]), n_steps=2)
    np.testing.assert_allclose(result.attributions, [[30.0, 15.0]], rtol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_a_linear_function_is_integrated_exactly_by_every_method(method):
    apply_fn = lambda weights, x: x @ weights
    weights = jax.random.normal(jax.random.key(1), (5, 2))
    inputs, baseline = jnp.arange(10.0).reshape(2, 5), jnp.full(5, -1.0)
    result = integrated_gradients(
        apply_fn, weights, inputs, jnp.array([0, 1]), baselines=baseline, n_steps=3, method=method
    )
    np.testing.assert_allclose(result.attributions, (inputs + 1) * weights.T, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(result.completeness_gap, 0, atol=1e-5)


@pytest.mark.parametrize(
    ("method", "nodes"),
    [("left", [0, 1 / 2]), ("middle", [1 / 4, 3 / 4]), ("right", [1 / 2, 1]), ("trapezoid", [0, 1])],
)
def test_riemann_sums_take_the_nodes_that_they_name(method, nodes):
    """f(x) = x³, whose gradient along the path is 3 (αx)²: two nodes give x times its mean over them."""
    cube = lambda _, x: x**3
    result = integrated_gradients(cube, None, jnp.array([[2.0]]), jnp.array([0]), n_steps=2, method=f"riemann_{method}")
    expected = 2 * np.mean([3 * (2 * alpha) ** 2 for alpha in nodes])
    np.testing.assert_allclose(result.attributions, [[expected]], rtol=1e-6)
    np.testing.assert_allclose(result.completeness_gap, [expected - 8], rtol=1e-5)


@pytest.mark.parametrize("loop", ["host", "compiled"])
@pytest.mark.parametrize("internal_batch_size", [1, 4, 12, 20, 1000])
def test_memory_pieces_do_not_change_the_result(problem, internal_batch_size, loop):
    """Four examples and seven nodes: pieces of one node, of three (with surplus), of four, of all."""
    whole = integrated_gradients(smooth_net, *problem, n_steps=7)
    pieces = integrated_gradients(smooth_net, *problem, n_steps=7, internal_batch_size=internal_batch_size, loop=loop)
    np.testing.assert_allclose(pieces.attributions, whole.attributions, rtol=1e-4, atol=1e-5)


def test_apply_fn_is_given_no_more_rows_than_asked_for(problem):
    """The forward pass is replaced by one that reports how many rows a piece holds, nodes included."""
    params, images, target = problem
    rows = []

    @jax.custom_batching.custom_vmap
    def watched(x):
        return x

    @watched.def_vmap
    def rule(axis_size, in_batched, x):
        rows.append(axis_size * x.shape[1])
        return x, True

    apply_fn = lambda params, x: smooth_net(params, x + jax.lax.stop_gradient(watched(jax.lax.stop_gradient(x)) - x))
    integrated_gradients(apply_fn, params, images, target, n_steps=7, internal_batch_size=15)
    assert rows
    assert max(rows) <= 15


def test_an_ensemble_is_one_more_axis(problem):
    params, images, target = problem
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), params)
    explain = lambda p: integrated_gradients(smooth_net, p, images, target, n_steps=4).attributions
    doubled = explain(jax.tree.map(lambda leaf: 2 * leaf, params))
    np.testing.assert_allclose(jax.vmap(explain)(stacked)[1], doubled, rtol=1e-4, atol=1e-5)


def test_a_function_of_the_logits_can_be_explained(problem):
    params, images, target = problem
    picked = lambda logits: jnp.take_along_axis(logits, target[:, None], axis=1)[:, 0]
    by_function = integrated_gradients(smooth_net, params, images, picked, n_steps=4)
    by_class = integrated_gradients(smooth_net, params, images, target, n_steps=4)
    np.testing.assert_allclose(by_function.attributions, by_class.attributions, rtol=1e-5, atol=1e-6)


def test_a_second_call_compiles_nothing_new(problem):
    traces = []

    def counted(params, x):
        traces.append(None)
        return smooth_net(params, x)

    params, images, target = problem
    explain = lambda images: integrated_gradients(counted, params, images, target, n_steps=8, internal_batch_size=8)
    explain(images)
    first = len(traces)
    explain(images + 1)
    assert len(traces) == first


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"n_steps": 0}, r"n_steps must lie in \[1, inf\), got 0"),
        ({"n_steps": 2.5}, "n_steps must be an integer"),
        ({"baselines": np.zeros((3, 2, 2, 3))}, r"got shape \[3, 2, 2, 3\]; for several baselines use expected_grad"),
        ({"baselines": np.zeros((2, 3, 2))}, r"one example \[2, 2, 3\]"),
        ({"baselines": np.zeros(4)}, "baselines must be one number"),
        ({"loop": "eager"}, "unknown loop 'eager'"),
        ({"internal_batch_size": 0}, "at least 1, got 0"),
        ({"method": "riemann"}, "did you mean 'riemann_"),
        ({"method": "riemann_trapezoid", "n_steps": 1}, "at least 2"),
    ],
)
@pytest.mark.usefixtures("annotations_off")
def test_nonsense_is_refused_with_the_value_given(problem, options, words):
    with pytest.raises(UsageError, match=words):
        integrated_gradients(smooth_net, *problem, **options)


def test_the_contract_is_kept():
    explain = lambda *arguments: integrated_gradients(*arguments, n_steps=8)
    # in bfloat16 a ReLU near its kink may fall on the other side
    assert_keeps_the_contract(lambda *arguments: explain(*arguments).attributions, bfloat16_atol=0.2)


def separable(_, x):
    """5x + y² + sin z: what each variable contributes is known."""
    return (5 * x[:, 0] + x[:, 1] ** 2 + jnp.sin(x[:, 2]))[:, None]


@settings(max_examples=20, deadline=None, derandomize=True, database=None)
@given(st.lists(st.floats(-2, 2, width=32), min_size=6, max_size=6))
def test_of_a_separable_function_each_variable_gets_its_own_change(values):
    x, baseline = np.float32(values[:3]), np.float32(values[3:])
    result = integrated_gradients(separable, None, jnp.asarray(x)[None], 0, baselines=baseline, n_steps=12)
    expected = [5 * (x[0] - baseline[0]), x[1] ** 2 - baseline[1] ** 2, np.sin(x[2]) - np.sin(baseline[2])]
    np.testing.assert_allclose(result.attributions[0], expected, atol=1e-5)  # float32; 12 nodes are exact to 1e-15
    np.testing.assert_allclose(result.completeness_gap, 0, atol=1e-5)


@settings(max_examples=10, deadline=None, derandomize=True, database=None)
@given(st.integers(0, 2**31 - 1))
def test_the_axioms_hold_for_random_networks(seed):
    """Completeness, linearity, a dummy variable, symmetry, and another implementation of the same function."""
    keys = jax.random.split(jax.random.key(seed), 4)
    params = {"w1": jax.random.normal(keys[0], (12, 8)) / 4, "w2": jax.random.normal(keys[1], (8, 3))}
    params["w1"] = params["w1"].at[5].set(0).at[1].set(params["w1"][0])
    inputs, baselines = jax.random.normal(keys[2], (2, 4, 2, 2, 3))
    inputs, baselines = (x.at[:, 0, 0, 1].set(x[:, 0, 0, 0]) for x in (inputs, baselines))
    explain = lambda target, net=smooth_net, p=params: integrated_gradients(
        net, p, inputs, target, baselines=baselines, n_steps=24
    )
    first, second = explain(0), explain(1)
    close = lambda given, expected: np.testing.assert_allclose(given, expected, rtol=1e-4, atol=1e-5)  # float32
    change = smooth_net(params, inputs) - smooth_net(params, baselines)
    close(first.attributions.sum((1, 2, 3)), change[:, 0])
    close(first.completeness_gap, 0)
    close(explain(mixed).attributions, 2 * first.attributions - second.attributions)
    np.testing.assert_array_equal(first.attributions[:, 0, 1, 2], 0)  # the sixth of twelve inputs is not used
    close(first.attributions[:, 0, 0, 1], first.attributions[:, 0, 0, 0])  # used alike, and equal
    other = {"w1": -params["w1"][:, ::-1], "w2": -params["w2"][::-1]}
    close(explain(0, rewritten, other).attributions, first.attributions)


def mixed(logits):
    return 2 * logits[:, 0] - logits[:, 1]


def rewritten(params, x):
    """tanh x = 2 sigmoid(2x) - 1."""
    hidden = 2 * jax.nn.sigmoid(2 * (x.reshape(len(x), -1) @ params["w1"])) - 1
    return hidden @ params["w2"]


def test_a_saturated_output_is_still_explained():
    """Sensitivity: f = 1 - relu(1 - x) at 2 has no gradient, but it rose by 1 on the way."""
    apply_fn = lambda _, x: 1 - jax.nn.relu(1 - x)
    result = integrated_gradients(apply_fn, None, jnp.array([[2.0]]), 0, n_steps=50)
    assert jax.grad(lambda x: apply_fn(None, x).sum())(jnp.array([[2.0]]))[0, 0] == 0
    np.testing.assert_allclose(result.attributions, [[1.0]], atol=1e-5)  # the kink lies between two nodes, at 1/2


@pytest.mark.parametrize("shape", [(), (3,), (1, 1, 3), (2, 2, 3), (1, 2, 2, 3), (4, 2, 2, 3)])
def test_a_baseline_is_a_number_an_example_or_one_for_each(problem, shape):
    params, images, target = problem
    baselines = jax.random.normal(jax.random.key(3), shape)
    explain = lambda given: integrated_gradients(smooth_net, params, images, target, baselines=given, n_steps=6)
    spread = jnp.broadcast_to(baselines.reshape((1,) * (4 - len(shape)) + shape), images.shape)
    np.testing.assert_array_equal(explain(baselines).attributions, explain(spread).attributions)


@pytest.mark.parametrize("given", ["class", "classes", "scalar array", "scalar under vmap", "function"])
def test_a_target_may_be_given_in_any_form(problem, given):
    params, images, _ = problem
    explain = lambda target: integrated_gradients(smooth_net, params, images, target, n_steps=6).attributions
    result = {
        "class": lambda: explain(2),
        "classes": lambda: explain(np.full(4, 2)),
        "scalar array": lambda: jax.jit(explain)(jnp.array(2)),
        "scalar under vmap": lambda: jax.jit(jax.vmap(explain))(jnp.arange(3))[2],
        "function": lambda: explain(lambda logits: logits[:, 2]),
    }[given]()
    np.testing.assert_allclose(result, explain(jnp.array([2, 2, 2, 2])), rtol=1e-5, atol=1e-6)


def test_sums_of_few_bits_are_kept_in_more():
    """In bfloat16 a sum of 1000 parts of 1/1000 would stop growing at a quarter."""
    inputs = jnp.full((2, 4), 1.5, jnp.bfloat16)
    result = integrated_gradients(lambda _, x: x, None, inputs, 0, n_steps=1000, method="riemann_middle")
    assert result.attributions.dtype == jnp.bfloat16
    assert result.completeness_gap.dtype == jnp.float32
    np.testing.assert_allclose(result.attributions.astype(jnp.float32)[:, 0], 1.5)
    np.testing.assert_allclose(result.completeness_gap, 0, atol=1e-4)  # 1000 float32 sums


def test_progress_is_told_after_each_piece(problem):
    told = []
    integrated_gradients(
        smooth_net, *problem, n_steps=7, internal_batch_size=8, progress=lambda done, all_: told.append((done, all_))
    )
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]  # two nodes of four examples at once


def test_an_explanation_can_be_differentiated(problem):
    """So that it can be part of a loss: d/dx of 3x² · x / 3 = x³."""
    total = lambda x: integrated_gradients(lambda _, x: x**3, None, x, 0, n_steps=4, loop="compiled").attributions.sum()
    np.testing.assert_allclose(jax.grad(total)(jnp.array([[2.0]])), [[12.0]], rtol=1e-5)
