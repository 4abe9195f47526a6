"""Expected gradients: closed forms over a background, by every baseline and by random ones."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from explanation_contract import SHAPE, assert_keeps_the_contract

from dl_core.errors import UsageError
from dl_core.explain.expected_gradients import expected_gradients
from dl_core.explain.path_integration import METHODS, integrated_gradients

KEY = jax.random.key(0)


def separable(_, x):
    """5x + y² + sin z: what each variable contributes is known."""
    return jnp.stack([5 * x[:, 0] + x[:, 1] ** 2 + jnp.sin(x[:, 2]), -x.sum(axis=1)], axis=1)


BACKGROUND = np.random.default_rng(0).uniform(-2, 2, (7, 3)).astype(np.float32)
INPUTS = jnp.array([[1.0, 2.0, 0.5], [-0.5, 1.5, -1.0]])
EVERY = functools.partial(expected_gradients, separable, None, INPUTS, baselines=BACKGROUND, n_steps=10)


def contributions(x):
    return np.stack([5 * x[:, 0], x[:, 1] ** 2, np.sin(x[:, 2])], axis=1)


def test_each_variable_gets_its_change_from_the_mean_over_the_background():
    result = EVERY(0)
    expected = contributions(np.asarray(INPUTS)) - contributions(BACKGROUND).mean(axis=0)
    np.testing.assert_allclose(result.attributions, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(result.completeness_gap, 0, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_it_is_the_mean_of_integrated_gradients_from_each_baseline(method):
    options = {"n_steps": 5, "method": method}
    every = expected_gradients(separable, None, INPUTS, 0, baselines=BACKGROUND[:3], **options)
    each = [integrated_gradients(separable, None, INPUTS, 0, baselines=b, **options) for b in BACKGROUND[:3]]
    for field in ("attributions", "completeness_gap"):
        mean = np.mean([getattr(result, field) for result in each], axis=0)
        np.testing.assert_allclose(getattr(every, field), mean, rtol=1e-4, atol=1e-5)


def test_random_draws_tend_to_the_same():
    """Over 100 keys, the mean of 20 draws each lies within 5 standard errors, for each value."""
    explain = lambda key: expected_gradients(separable, None, INPUTS, 0, baselines=BACKGROUND, key=key, n_samples=20)
    runs = jax.jit(jax.vmap(explain))(jax.random.split(KEY, 100))
    error = np.std(runs.attributions, axis=0) / 10
    assert (np.abs(np.mean(runs.attributions, axis=0) - EVERY(0).attributions) < 5 * error).all()
    change = separable(None, INPUTS)[:, 0] - separable(None, BACKGROUND)[:, 0].mean()
    np.testing.assert_allclose(
        runs.completeness_gap, runs.attributions.sum(axis=2) - change[None], rtol=1e-4, atol=1e-4
    )
    assert np.abs(runs.completeness_gap).mean() > 0.1  # twenty draws say too little, and the gap says so


def test_of_a_linear_function_one_draw_is_the_difference_from_one_baseline():
    weights = jnp.array([[1.0], [-2.0], [3.0]])
    draw = expected_gradients(
        lambda w, x: x @ w, weights, INPUTS, 0, baselines=BACKGROUND, key=KEY, n_samples=1
    ).attributions
    baselines = INPUTS - draw / weights.T
    distances = np.abs(np.asarray(baselines)[:, None] - BACKGROUND[None]).max(axis=2)
    np.testing.assert_allclose(distances.min(axis=1), 0, atol=1e-5)


def test_noise_is_added_to_the_inputs():
    """Of a linear function with a background of zeros, the attributions of one draw are the noisy inputs."""
    explain = lambda n, stdevs: (
        expected_gradients(
            lambda _, x: x.sum(axis=1, keepdims=True),
            None,
            INPUTS,
            0,
            baselines=np.zeros((1, 3), np.float32),
            key=KEY,
            n_samples=n,
            stdevs=stdevs,
        ).attributions
    )
    np.testing.assert_allclose(explain(3, 0.0), INPUTS, rtol=1e-5)
    noise = explain(1, 1.0) - INPUTS
    assert len(np.unique(noise.round(4))) == 6
    np.testing.assert_allclose(explain(1, np.array([2.0, 0.5])) - INPUTS, noise * np.array([[2.0], [0.5]]), rtol=1e-4)
    np.testing.assert_allclose(explain(4000, 1.0), INPUTS, atol=5 / 4000**0.5)  # 5 standard errors


def test_draws_belong_to_the_example_and_its_key():
    keys = jax.random.split(KEY, 2)
    explain = lambda rows: expected_gradients(
        separable, None, INPUTS[rows], 0, baselines=BACKGROUND, key=keys[rows], n_samples=5
    )
    whole, second = explain(slice(None)), explain(slice(1, 2))
    np.testing.assert_allclose(second.attributions, whole.attributions[1:], rtol=1e-5)
    np.testing.assert_allclose(second.completeness_gap, whole.completeness_gap[1:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{"key": KEY, "n_samples": 9}, {"n_steps": 4}])
@pytest.mark.parametrize("internal_batch_size", [1, 5, 8, 1000])
def test_memory_pieces_do_not_change_the_result(options, internal_batch_size):
    explain = functools.partial(expected_gradients, separable, None, INPUTS, 0, baselines=BACKGROUND, **options)
    for piece, whole in zip(explain(internal_batch_size=internal_batch_size), explain(), strict=True):
        np.testing.assert_allclose(piece, whole, rtol=1e-4, atol=1e-5)


def test_a_function_that_picks_for_each_example_is_compared_with_its_own_mean():
    chosen = jnp.array([1, 0])
    by_function = EVERY(lambda logits: jnp.take_along_axis(logits, chosen[:, None], axis=1)[:, 0])
    by_class = EVERY(chosen)
    np.testing.assert_allclose(by_function.attributions, by_class.attributions, rtol=1e-5)
    np.testing.assert_allclose(by_function.completeness_gap, by_class.completeness_gap, atol=1e-5)
    np.testing.assert_allclose(by_class.completeness_gap, 0, atol=1e-5)


def test_progress_is_told_after_each_piece():
    told = []
    EVERY(0, internal_batch_size=50, progress=lambda done, all_: told.append((done, all_)))
    assert told == [(1, 3), (2, 3), (3, 3)]  # 7 baselines of 10 nodes, at most 25 at once for two examples


def test_the_contract_is_kept():
    background = jax.random.uniform(jax.random.key(4), (3, *SHAPE))

    def explain(apply_fn, params, images, target):
        given = background.astype(images.dtype)
        return expected_gradients(apply_fn, params, images, target, baselines=given, key=KEY, n_samples=6).attributions

    assert_keeps_the_contract(explain)


@pytest.mark.usefixtures("annotations_off")
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "got neither"),
        ({"key": KEY, "n_steps": 5}, "got both"),
        ({"key": 3}, "key must be a key"),
        ({"key": KEY, "baselines": 0.0}, "one baseline is for integrated_gradients"),
        ({"key": KEY, "baselines": np.zeros(3)}, "one baseline is for integrated_gradients"),
        ({"key": KEY, "baselines": np.zeros((0, 3))}, r"got shape \[0, 3\]"),
        ({"key": KEY, "baselines": np.zeros((5, 4))}, r"\[any number, 3\], got shape \[5, 4\]"),
        ({"key": KEY, "n_samples": 0}, r"n_samples must lie in \[1, inf\), got 0"),
        ({"key": KEY, "stdevs": -1.0}, r"stdevs must lie in \[0, inf\), got -1.0"),
        ({"n_steps": 5, "stdevs": 0.1}, "stdevs is noise"),
        ({"n_steps": 0}, r"n_steps must lie in \[1, inf\), got 0"),
        ({"n_steps": 5, "method": "gauss"}, "did you mean 'gausslegendre'"),
        ({"n_steps": 5, "internal_batch_size": 0}, "at least 1, got 0"),
        ({"n_steps": 5, "target": 2}, r"target must be in \[0, 2\), got 2"),
    ],
)
def test_nonsense_is_refused_with_the_value_given(options, words):
    with pytest.raises(UsageError, match=words):
        expected_gradients(separable, None, INPUTS, **({"target": 0, "baselines": BACKGROUND} | options))
