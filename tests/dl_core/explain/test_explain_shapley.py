"""Shapley values: the axioms that define them, closed forms, all permutations, and what sampling promises."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from explanation_contract import assert_keeps_the_contract

from dl_core.errors import UsageError
from dl_core.explain.players import patches
from dl_core.explain.shapley import shapley_exact, shapley_sampling

SEEDS = range(5)


def lookup(table, inputs):
    """Any game of n players: the value of the coalition {i: x_i > 1/2} stands in a table of 2ⁿ numbers."""
    number = ((inputs > 0.5) * 2 ** jnp.arange(inputs.shape[1])[None]).sum(axis=1)
    return table[number][:, None]


def network(params, inputs):
    hidden = jnp.tanh(inputs @ params[0])
    return hidden @ params[1] + (hidden[:, :3] * hidden[:, 3:6])


def network_params(n, seed=0):
    keys = jax.random.split(jax.random.key(seed))
    return jax.random.normal(keys[0], (n, 8)), jax.random.normal(keys[1], (8, 3))


def by_all_permutations(table):
    """The definition: the mean over the n! orders of what each player adds when it enters."""
    n = int(np.log2(len(table)))
    orders = list(itertools.permutations(range(n)))
    values = np.zeros(n)
    for order in orders:
        before = np.cumsum([0] + [2**player for player in order])
        values[list(order)] += np.diff(np.asarray(table, np.float64)[before])
    return values / len(orders)


def random_table(n, seed):
    return np.random.default_rng(seed).normal(size=2**n).astype(np.float32)


def exact(table, **options):
    n = int(np.log2(len(table)))
    return shapley_exact(lookup, jnp.asarray(table), jnp.ones((1, n)), 0, **options).values[0]


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
def test_exact_values_are_the_mean_over_all_permutations(n):
    for seed in SEEDS:
        table = random_table(n, seed)
        np.testing.assert_allclose(exact(table), by_all_permutations(table), atol=1e-6)  # float32 sums of 32 numbers


def test_efficiency_the_values_add_up_to_the_change_of_the_output():
    params, inputs = network_params(6), jax.random.normal(jax.random.key(3), (4, 6))
    baselines = jax.random.normal(jax.random.key(4), (6,))
    change = network(params, inputs) - network(params, baselines[None])
    for method, options in ((shapley_exact, {}), (shapley_sampling, {"key": jax.random.key(0), "n_samples": 3})):
        values = method(network, params, inputs, 1, baselines=baselines, **options).values
        np.testing.assert_allclose(values.sum(axis=1), change[:, 1], rtol=1e-4, atol=1e-5)


def test_symmetry_players_that_contribute_alike_get_the_same():
    for seed in SEEDS:
        table = random_table(4, seed).reshape(2, 2, 2, 2)  # axes: players 3, 2, 1, 0
        table = (table + table.swapaxes(1, 3)) / 2
        values = exact(table.ravel())
        np.testing.assert_allclose(values[0], values[2], atol=1e-6)
        assert abs(values[0] - values[1]) > 1e-3


def test_dummy_who_never_changes_anything_gets_nothing():
    for seed in SEEDS:
        table = random_table(4, seed).reshape(2, 2, 2, 2)
        table[:, 1] = table[:, 0]  # player 2
        np.testing.assert_allclose(exact(table.ravel())[2], 0, atol=1e-6)
        table[:, 1] = table[:, 0] + 0.7  # who always adds the same gets just that
        np.testing.assert_allclose(exact(table.ravel())[2], 0.7, atol=1e-6)


def test_linearity_the_values_of_a_sum_of_games_are_the_sum_of_the_values():
    for seed in SEEDS:
        first, second = random_table(4, seed), random_table(4, seed + 100)
        np.testing.assert_allclose(exact(2 * first - 3 * second), 2 * exact(first) - 3 * exact(second), atol=1e-5)


def test_of_a_linear_model_weight_times_what_the_input_is_above_the_baseline():
    weights, inputs, baselines = (jax.random.normal(jax.random.key(seed), (3, 7)) for seed in range(3))
    values = shapley_exact(lambda w, x: x @ w.T, weights, inputs, jnp.arange(3), baselines=baselines).values
    np.testing.assert_allclose(values, weights * (inputs - baselines), rtol=1e-4, atol=1e-5)


def test_two_players_share_their_product():
    values = shapley_exact(lambda _, x: x.prod(axis=1, keepdims=True), None, jnp.array([[3.0, 5.0]]), 0).values
    np.testing.assert_allclose(values, [[7.5, 7.5]], rtol=1e-6)
    above = shapley_exact(
        lambda _, x: x.prod(axis=1, keepdims=True), None, jnp.array([[3.0, 5.0]]), 0, baselines=jnp.array([1.0, 2.0])
    ).values
    np.testing.assert_allclose(above, [[7.0, 6.0]], rtol=1e-6)  # (2·(2+5)/2, 3·(1+3)/2)


def test_a_monomial_is_shared_equally_by_its_variables():
    cubic = lambda _, x: (x[:, 0] * x[:, 1] * x[:, 2] + 2 * x[:, 2] * x[:, 3] + x[:, 4])[:, None]
    x = np.array([[2.0, -1.0, 3.0, 0.5, 7.0]], np.float32)
    np.testing.assert_allclose(shapley_exact(cubic, None, x, 0).values, [[-2.0, -2.0, -2.0 + 1.5, 1.5, 7.0]], rtol=1e-5)


def test_results_do_not_depend_on_blocks_or_driver_and_progress_is_told():
    params, inputs = network_params(5), jax.random.normal(jax.random.key(3), (3, 5))
    told = []
    for method, options in ((shapley_exact, {}), (shapley_sampling, {"key": jax.random.key(0), "n_samples": 4})):
        explain = lambda options=options, method=method, **more: method(network, params, inputs, 2, **options, **more)
        whole = explain()
        for more in ({"internal_batch_size": 1}, {"internal_batch_size": 15, "loop": "compiled"}):
            for given, expected in zip(explain(**more), whole, strict=True):
                np.testing.assert_allclose(given, expected, rtol=1e-4, atol=1e-5)
        explain(internal_batch_size=15, progress=lambda done, total: told.append((done, total)))
    assert told[:7] == [(i + 1, 7) for i in range(7)]  # 32 coalitions, 5 at once
    assert told[7:] == [(i + 1, 7) for i in range(7)]  # 2 + 8 walks of 4 inner prefixes


def test_sampling_every_player_enters_once_in_each_permutation():
    """One player has all of it, whatever the order, and without any error."""
    result = shapley_sampling(lambda _, x: 3 * x[:, :1], None, jnp.ones((2, 6)), 0, key=jax.random.key(1), n_samples=5)
    np.testing.assert_allclose(result.values, np.tile([[3.0, 0, 0, 0, 0, 0]], (2, 1)), atol=1e-6)
    np.testing.assert_allclose(result.standard_errors, 0, atol=1e-6)


def test_antithetic_pairs_are_exact_where_players_interact_in_pairs():
    matrix = np.random.default_rng(0).normal(size=(6, 6)).astype(np.float32)
    quadratic = lambda a, x: ((x @ a) * x).sum(axis=1, keepdims=True)
    inputs = jax.random.normal(jax.random.key(0), (2, 6))
    expected = shapley_exact(quadratic, matrix, inputs, 0).values
    options = {"key": jax.random.key(1), "n_samples": 2}
    paired = shapley_sampling(quadratic, matrix, inputs, 0, **options)
    np.testing.assert_allclose(paired.values, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(paired.standard_errors, 0, atol=1e-5)
    single = shapley_sampling(quadratic, matrix, inputs, 0, antithetic=False, **options)
    assert np.abs(single.values - expected).max() > 0.1


@pytest.mark.parametrize("antithetic", [False, True])
def test_the_standard_errors_are_those_that_are_made(antithetic):
    """Over 200 seeds: no bias, and the true value lies within two standard errors as often as Student's t says."""
    params, inputs = network_params(6), 2 * jax.random.normal(jax.random.key(3), (2, 6))
    truth = shapley_exact(network, params, inputs, 0).values
    explain = lambda key: shapley_sampling(
        network, params, inputs, 0, key=key, n_samples=20, antithetic=antithetic, loop="compiled"
    )
    estimates = jax.jit(jax.vmap(explain))(jax.random.split(jax.random.key(7), 200))
    errors = estimates.values - truth[None]
    spread = errors.std(axis=0)
    assert np.abs(errors.mean(axis=0) / spread).max() < 4 / np.sqrt(200)  # 12 means within four of their own errors
    ratio = np.sqrt((estimates.standard_errors**2).mean(axis=0)) / spread
    np.testing.assert_allclose(ratio, 1, atol=0.2)  # the error of a standard deviation of 200: 5 %, four of them
    coverage = (jnp.abs(errors) < 2.093 * estimates.standard_errors).mean()  # 95 % of Student's t with 19 degrees
    assert 0.92 < coverage < 0.98


def test_exact_values_keep_the_contract():
    mask = patches((8, 8), 4)
    assert_keeps_the_contract(lambda *args: shapley_exact(*args, feature_mask=mask).attributions)


def test_sampling_keeps_the_contract():
    mask = patches((8, 8), 4)
    assert_keeps_the_contract(
        lambda *args: shapley_sampling(*args, key=jax.random.key(0), feature_mask=mask, n_samples=3).attributions
    )


def test_bad_input():
    image = jnp.ones((1, 8, 8, 3))
    apply_fn = lambda _, x: x.sum(axis=(1, 2))
    with pytest.raises(UsageError, match=r"at most 16 players, got 64; .*patches.* shapley_sampling or kernel_shap"):
        shapley_exact(apply_fn, None, image, 0)
    with pytest.raises(UsageError, match="at least 2 permutations, for standard errors; got 1"):
        shapley_sampling(apply_fn, None, image, 0, key=jax.random.key(0), n_samples=1)
    predictions = lambda _, x: (x.sum(axis=(1, 2)) > 96).astype(jnp.float32)
    result = shapley_exact(predictions, None, image, 0, feature_mask=patches((8, 8), 4))  # needs no gradient
    np.testing.assert_allclose(result.values.sum(), 0, atol=1e-6)  # 64 is not above 96
