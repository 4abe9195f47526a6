"""Kernel SHAP: exact with all coalitions, and in between as near as its standard errors say."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from explanation_contract import assert_keeps_the_contract

from dl_core.errors import UsageError
from dl_core.explain.kernel_shap import _design, kernel_shap
from dl_core.explain.players import patches
from dl_core.explain.shapley import shapley_exact

KEY = jax.random.key(0)


def network(params, inputs):
    hidden = jnp.tanh(inputs @ params[0])
    return hidden @ params[1] + (hidden[:, :3] * hidden[:, 3:6])


def problem(n, batch=3):
    keys = jax.random.split(jax.random.key(n), 3)
    params = jax.random.normal(keys[0], (n, 8)), jax.random.normal(keys[1], (8, 3))
    return params, jax.random.normal(keys[2], (batch, n))


@pytest.mark.parametrize("n", [1, 5])
def test_all_coalitions_give_the_exact_values(n):
    params, inputs = problem(n)
    expected = shapley_exact(network, params, inputs, 1)
    given = kernel_shap(network, params, inputs, 1, key=KEY)
    np.testing.assert_allclose(given.values, expected.values, rtol=1e-4, atol=2e-5)  # float32, and the ridge of 1e-6
    np.testing.assert_array_equal(given.standard_errors, 0)
    np.testing.assert_allclose(given.attributions, expected.attributions, rtol=1e-4, atol=2e-5)


def test_a_large_constant_in_the_output_does_not_disturb_float32():
    """Coalition minus complement: of a logit of 1000 there is left what its own rounding (6e-5) leaves."""
    params, inputs = problem(6)
    lifted = lambda params, x: network(params, x) + 1000
    given = kernel_shap(lifted, params, inputs, 0, key=KEY)
    np.testing.assert_allclose(given.values, shapley_exact(network, params, inputs, 0).values, atol=2e-4)


def test_an_additive_model_is_found_from_any_sample_and_without_error():
    weights, inputs, baselines = (jax.random.normal(jax.random.key(seed), (2, 30)) for seed in range(3))
    given = kernel_shap(
        lambda w, x: x @ w.T, weights, inputs, jnp.arange(2), key=KEY, baselines=baselines, n_samples=121
    )
    np.testing.assert_allclose(given.values, weights * (inputs - baselines), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(given.standard_errors, 0, atol=1e-4)


def test_a_model_whose_players_interact_in_pairs_is_found_too():
    """A coalition and its complement see an interaction of two as half of each: no error in the paired regression."""
    matrix = np.random.default_rng(0).normal(size=(9, 9)).astype(np.float32)
    quadratic = lambda a, x: ((x @ a) * x).sum(axis=1, keepdims=True)
    inputs = jax.random.normal(KEY, (2, 9))
    given = kernel_shap(quadratic, matrix, inputs, 0, key=KEY, n_samples=60)
    np.testing.assert_allclose(given.values, shapley_exact(quadratic, matrix, inputs, 0).values, rtol=1e-3, atol=1e-3)


def test_efficiency_holds_for_any_sample():
    params, inputs = problem(10)
    change = (network(params, inputs) - network(params, 0 * inputs))[:, 2]
    values = kernel_shap(network, params, inputs, 2, key=KEY, n_samples=40).values
    np.testing.assert_allclose(values.sum(axis=1), change, rtol=1e-4, atol=1e-5)


# Two standard errors cover less where there are hardly more pairs (18) than players (9): Student's t with 10 degrees.
@pytest.mark.parametrize(("n_samples", "least_coverage"), [pytest.param(36, 0.83, marks=pytest.mark.slow), (200, 0.91)])
def test_the_standard_errors_are_those_that_are_made(n_samples, least_coverage):
    """Over 300 seeds, with all coalitions sampled (36), and with the sizes 1 and n - 1 complete (200)."""
    params, inputs = problem(9, batch=2)
    truth = shapley_exact(network, params, inputs, 0).values
    explain = lambda key: kernel_shap(network, params, inputs, 0, key=key, n_samples=n_samples, loop="compiled")
    estimates = jax.jit(jax.vmap(explain))(jax.random.split(jax.random.key(7), 300))
    errors = estimates.values - truth[None]
    spread = errors.std(axis=0)
    # a ratio of two estimates, biased by less than its error; the mean of 300 is known to 0.06 of it
    assert np.abs(errors.mean(axis=0) / spread).max() < 0.4
    ratio = np.sqrt((estimates.standard_errors**2).mean(axis=0)) / spread
    np.testing.assert_allclose(ratio, 1, atol=0.25)  # of 18 numbers, each with the error of a standard deviation: 4 %
    assert least_coverage < (jnp.abs(errors) < 2 * estimates.standard_errors).mean() < 0.98


@pytest.mark.parametrize("n", [2, 3, 4, 5, 8, 9])
def test_sizes_are_complete_from_the_outside_in_and_the_weights_are_those_of_the_kernel(n):
    kernel = np.array([1 / (math.comb(n, s) * s * (n - s)) for s in range(1, n)])
    kernel = 2 * kernel / sum(k * math.comb(n, s) for s, k in enumerate(kernel, start=1))  # of a pair
    complete = 0
    for n_samples in range(min(4 * n, 2**n - 2), 2**n - 1):
        design = _design(n, n_samples)
        size = design.listed.sum(axis=1)
        np.testing.assert_allclose(design.listed_weights, kernel[size - 1], rtol=1e-5)
        np.testing.assert_allclose(design.listed_weights.sum() + design.drawn * design.drawn_weight, 1, rtol=1e-5)
        assert len(design.listed) + design.drawn == n_samples // 2
        assert design.drawn != 1  # one alone would have no standard error
        assert len(np.unique(np.concatenate([design.listed, ~design.listed]), axis=0)) == 2 * len(design.listed)
        assert len(design.listed) >= complete
        complete = len(design.listed)
    assert design.drawn == 0


def test_results_do_not_depend_on_blocks_and_progress_is_told():
    params, inputs = problem(6)
    explain = lambda **options: kernel_shap(network, params, inputs, 2, key=KEY, n_samples=30, **options)
    whole, told = explain(), []
    blocks = explain(internal_batch_size=21, progress=lambda done, total: told.append((done, total)))
    for given, expected in zip(blocks, whole, strict=True):
        np.testing.assert_allclose(given, expected, rtol=1e-4, atol=1e-5)
    assert told == [(i + 1, 5) for i in range(5)]  # 32 coalitions of 3 examples, 7 coalitions at once


def test_kernel_shap_keeps_the_contract():
    mask = patches((8, 8), (4, 3))
    assert_keeps_the_contract(
        lambda *args: kernel_shap(*args, key=jax.random.key(0), feature_mask=mask, n_samples=40).attributions
    )


def test_bad_input():
    apply_fn = lambda _, x: x.sum(axis=(1, 2))
    with pytest.raises(UsageError, match=r"at least 256 for 64 players .* got 255"):
        kernel_shap(apply_fn, None, jnp.ones((1, 8, 8, 3)), 0, key=KEY, n_samples=255)
    with pytest.raises(UsageError, match=r"at least 14 for 4 players"):
        kernel_shap(apply_fn, None, jnp.ones((1, 2, 2, 3)), 0, key=KEY, n_samples=13)
