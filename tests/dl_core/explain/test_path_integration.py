"""Integrated gradients: its axioms, its closed forms, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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
    assert len(traces) - first == 2  # the two evaluations at the ends of the path; the step was compiled before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"n_steps": 0}, "at least 1, got 0"),
        ({"internal_batch_size": 0}, "at least 1, got 0"),
        ({"method": "riemann"}, "did you mean 'riemann_"),
        ({"method": "riemann_trapezoid", "n_steps": 1}, "at least 2"),
    ],
)
def test_nonsense_is_refused_with_the_value_given(problem, options, words):
    with pytest.raises(UsageError, match=words):
        integrated_gradients(smooth_net, *problem, **options)
