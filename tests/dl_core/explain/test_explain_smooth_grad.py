"""SmoothGrad, its square and its variance: closed forms, whose noise it is, and what is averaged."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from explanation_contract import assert_keeps_the_contract

from dl_core.errors import UsageError
from dl_core.explain.gradients import gradient_x_input, input_gradient
from dl_core.explain.path_integration import integrated_gradients
from dl_core.explain.smooth_grad import KINDS, smooth_grad

KEY = jax.random.key(0)
TARGET = np.array([0, 2, 1])


def half_square(_, x):
    """Its gradient is the noisy input itself."""
    return (x.reshape(len(x), -1) ** 2).sum(axis=1, keepdims=True) / 2


def smooth_net(params, x):
    return jnp.tanh(x.reshape(len(x), -1) @ params["w1"]) @ params["w2"]


@pytest.fixture(scope="module")
def problem():
    keys = jax.random.split(jax.random.key(1), 3)
    params = {"w1": jax.random.normal(keys[0], (12, 8)), "w2": jax.random.normal(keys[1], (8, 3))}
    return params, jax.random.normal(keys[2], (3, 2, 2, 3))


def test_noise_does_not_change_the_gradient_of_a_linear_model():
    weights, inputs = jax.random.normal(KEY, (6, 3)), jnp.arange(18.0).reshape(3, 6)
    explain = lambda kind: smooth_grad(lambda w, x: x @ w, weights, inputs, TARGET, key=KEY, n_samples=9, kind=kind)
    np.testing.assert_allclose(explain("smooth"), weights.T[TARGET], rtol=1e-5)
    np.testing.assert_allclose(explain("squared"), weights.T[TARGET] ** 2, rtol=1e-5)
    np.testing.assert_array_equal(explain("variance"), 0)


def test_the_noise_is_a_share_of_the_range_of_each_example():
    """The gradient of x²/2 varies as the noise does: by 0.2 · 1, 0.2 · 10 and 0.2 · 4."""
    inputs = jnp.array([[0.0, 1.0, 0.5, 0.5], [-5.0, 5.0, 0.0, 0.0], [2.0, 2.0, 6.0, 2.0]])
    explain = functools.partial(smooth_grad, half_square, None, inputs, 0, key=KEY, n_samples=4000, noise_level=0.2)
    deviation = np.array([0.2, 2.0, 0.8])
    variance = explain(kind="variance")
    np.testing.assert_allclose(np.sqrt(variance), np.tile(deviation, (4, 1)).T, rtol=0.06)  # 5 standard errors
    error = 5 * deviation[:, None] / 4000**0.5
    assert (np.abs(explain() - inputs) < error).all()
    np.testing.assert_allclose(explain(kind="squared"), variance + explain() ** 2, rtol=1e-4)


@pytest.mark.parametrize("stdevs", [0.5, np.array([0.1, 1.0, 3.0])])
def test_a_deviation_in_units_of_the_inputs_takes_its_place(stdevs):
    inputs = jnp.zeros((3, 4))  # which have no range
    variance = smooth_grad(half_square, None, inputs, 0, key=KEY, n_samples=4000, stdevs=stdevs, kind="variance")
    expected = np.broadcast_to(stdevs, 3)
    np.testing.assert_allclose(np.sqrt(variance), np.tile(expected, (4, 1)).T, rtol=0.06)  # 5 standard errors


@pytest.mark.parametrize("kind", KINDS)
def test_without_noise_it_is_the_explanation_itself(problem, kind):
    params, images = problem
    once = input_gradient(smooth_net, params, images, TARGET)
    given = smooth_grad(smooth_net, params, images, TARGET, key=KEY, n_samples=4, noise_level=0.0, kind=kind)
    expected = {"smooth": once, "squared": once**2, "variance": 0 * once}[kind]
    np.testing.assert_allclose(given, expected, rtol=1e-5, atol=1e-6)


def test_a_small_variance_of_a_large_gradient_is_not_lost():
    """100 x + x² / 20: the mean of squares, 10⁴, leaves a variance of 10⁻² no digits in float32."""
    large = lambda _, x: (100 * x + x**2 / 20).sum(axis=1, keepdims=True)
    explain = lambda apply_fn: smooth_grad(
        apply_fn, None, jnp.zeros((1, 4)), 0, key=KEY, n_samples=60, stdevs=1.0, kind="variance"
    )
    np.testing.assert_allclose(explain(large), 0.01 * explain(half_square), rtol=1e-3)  # 100 has steps of 8e-6


def test_the_samples_of_a_longer_run_begin_with_those_of_a_shorter_one():
    inputs = jnp.zeros((2, 3))
    sums = [n * smooth_grad(half_square, None, inputs, 0, key=KEY, n_samples=n, stdevs=1.0) for n in (1, 2, 3)]
    samples = np.stack([sums[0], sums[1] - sums[0], sums[2] - sums[1]])
    assert len(np.unique(samples.round(4))) == samples.size  # no two are the same, of no example or sample
    alone = smooth_grad(half_square, None, inputs, 0, key=KEY, n_samples=3, stdevs=1.0, internal_batch_size=2)
    np.testing.assert_allclose(alone, samples.mean(axis=0), atol=1e-6)


def test_the_noise_of_an_example_does_not_depend_on_the_others(problem):
    params, images = problem
    explain = lambda images, target, key: smooth_grad(smooth_net, params, images, target, key=key, n_samples=5)
    whole = explain(images, TARGET, KEY)
    np.testing.assert_allclose(explain(images[:2], TARGET[:2], KEY), whole[:2], rtol=1e-5, atol=1e-6)
    changed = explain(images.at[0].set(7.0), TARGET, KEY)
    np.testing.assert_allclose(changed[1:], whole[1:], rtol=1e-5, atol=1e-6)


def test_with_keys_of_their_own_examples_can_be_divided_into_any_batches(problem):
    params, images = problem
    keys = jax.random.split(KEY, 3)
    explain = lambda rows: smooth_grad(smooth_net, params, images[rows], TARGET[rows], key=keys[rows], n_samples=5)
    whole = explain(slice(None))
    np.testing.assert_allclose(explain(slice(2, 3)), whole[2:], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(explain(slice(0, 2)), whole[:2], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("internal_batch_size", [1, 6, 13])
def test_memory_pieces_do_not_change_the_result(problem, internal_batch_size):
    """Three examples and seven samples: one at once, two (with a surplus), four."""
    explain = functools.partial(smooth_grad, smooth_net, *problem, TARGET, key=KEY, n_samples=7, kind="variance")
    pieces = explain(internal_batch_size=internal_batch_size)
    np.testing.assert_allclose(pieces, explain(), rtol=1e-4, atol=1e-6)  # sums of 7 in another order


@pytest.mark.parametrize("method", [gradient_x_input, functools.partial(integrated_gradients, n_steps=8)])
def test_any_explanation_can_be_averaged(problem, method):
    """Of x²/2, gradient × input is the squared noisy input, and integrated gradients a half of it."""
    inputs = jnp.array([[1.0, -2.0, 3.0]])
    explain = functools.partial(smooth_grad, half_square, None, inputs, 0, key=KEY, n_samples=5, stdevs=0.3)
    factor = 1 if method is gradient_x_input else 0.5
    np.testing.assert_allclose(explain(method=method), factor * explain(kind="squared"), rtol=1e-5)


def test_progress_is_told_after_each_piece():
    told = []
    inputs, tell = jnp.ones((2, 3)), lambda done, all_: told.append((done, all_))
    smooth_grad(half_square, None, inputs, 0, key=KEY, n_samples=6, internal_batch_size=5, progress=tell)
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_the_contract_is_kept():
    assert_keeps_the_contract(functools.partial(smooth_grad, key=KEY, n_samples=6))


@pytest.mark.usefixtures("annotations_off")
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"key": 0}, r"key must be a key, e.g. jax.random.key\(0\)"),
        ({"key": jnp.zeros(2, jnp.uint32)}, r"got uint32 of shape \[2\]"),
        ({"key": jax.random.split(KEY, 2)}, "one for each of the 3 examples"),
        ({"kind": "squares"}, "did you mean 'squared'"),
        ({"kind": "variance", "n_samples": 1}, r"n_samples must lie in \[2, inf\), got 1"),
        ({"n_samples": 0}, r"n_samples must lie in \[1, inf\), got 0"),
        ({"n_samples": 1.5}, "n_samples must be an integer"),
        ({"noise_level": -0.1}, r"noise_level must lie in \[0, inf\), got -0.1"),
        ({"stdevs": np.array([1.0, -2.0, 1.0])}, r"stdevs must lie in \[0, inf\), got -2.0"),
        ({"stdevs": np.ones(2)}, "one for each of the 3 examples"),
        ({"stdevs": float("nan")}, "got nan"),
        ({"method": "gradient"}, "method must be a function"),
        ({"internal_batch_size": 0}, "at least 1, got 0"),
        ({"target": 9}, r"target must be in \[0, 3\), got 9"),
    ],
)
def test_nonsense_is_refused_with_the_value_given(problem, options, words):
    with pytest.raises(UsageError, match=words):
        smooth_grad(smooth_net, *problem, **({"target": 0, "key": KEY} | options))
