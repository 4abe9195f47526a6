"""Temperature scaling: the minimum itself, what it never changes, its limits, and what it refuses."""

import functools

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from dl_core.calibration import fit_temperature, scale
from dl_core.errors import UsageError
from dl_core.metrics.calibration import calibration_error, negative_log_likelihood


@functools.cache
def honest(n=2000, classes=5, seed=0):
    """Logits whose softmax is the chance of each class, and labels drawn from it."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(n, classes)).astype(np.float32)
    shares = np.asarray(jax.nn.softmax(logits)).cumsum(axis=1)
    return logits, (shares > rng.random((n, 1)) * shares[:, -1:]).argmax(axis=1).astype(np.int32)


def loss_in_float64(logits, labels, log_temperature):
    scaled = logits.astype(float) / np.exp(log_temperature)
    scaled -= scaled.max(axis=1, keepdims=True)
    return (np.log(np.exp(scaled).sum(axis=1)) - scaled[np.arange(len(labels)), labels]).mean()


@pytest.mark.parametrize("factor", [0.05, 1.0, 3.0, 500.0])
def test_the_temperature_is_the_minimum_that_scipy_finds_in_float64(factor):
    logits, labels = honest()
    loss = lambda u: loss_in_float64(factor * logits, labels, u)
    best = minimize_scalar(loss, bounds=(-6, 6.9), method="bounded", options={"xatol": 1e-9}).x
    # The slope is a float32 mean of 2,000 terms: 1e-6 of it moves the root by about as much.
    np.testing.assert_allclose(fit_temperature(factor * logits, labels), np.exp(best), rtol=2e-5)


def test_scaling_undoes_overconfidence_and_changes_no_answer():
    logits, labels = honest()
    sure = 3 * logits
    temperature = fit_temperature(sure[:1000], labels[:1000])
    scaled = scale(sure, temperature)
    np.testing.assert_array_equal(scaled.argmax(axis=1), sure.argmax(axis=1))
    assert abs(temperature - 3) < 0.3  # its standard error over draws of 1,000 honest examples is about 0.1
    error = lambda z: calibration_error(labels[1000:], jax.nn.softmax(z[1000:]))
    assert error(scaled) < 0.05 < 0.15 < error(sure)
    assert negative_log_likelihood(labels[1000:], scaled[1000:]) < negative_log_likelihood(labels[1000:], sure[1000:])


@pytest.mark.parametrize("margin", [1e-3, 1.0, 1e4])
def test_separable_data_gives_the_lower_bound_and_always_wrong_data_the_upper(margin):
    logits, _ = honest(50)
    logits = margin * logits
    np.testing.assert_allclose(fit_temperature(logits, logits.argmax(1), bounds=(0.01, 50.0)), 0.01, rtol=1e-5)
    np.testing.assert_allclose(fit_temperature(logits, logits.argmin(1), bounds=(0.01, 50.0)), 50, rtol=1e-5)


def test_log_odds_are_logits_of_two_classes():
    rng = np.random.default_rng(0)
    odds = rng.normal(size=300).astype(np.float32)
    labels = rng.random(300) < 1 / (1 + np.exp(-odds / 2))
    two = np.stack([np.zeros_like(odds), odds], axis=1)
    np.testing.assert_allclose(fit_temperature(odds, labels), fit_temperature(two, labels.astype(int)), rtol=1e-6)


def test_masked_rows_do_not_count_and_an_ensemble_is_one_more_axis():
    logits, labels = honest()
    where = np.arange(len(labels)) % 3 > 0
    spoiled = np.where(where[:, None], logits, np.nan).astype(np.float32)
    expected = fit_temperature(logits[where], labels[where])
    np.testing.assert_allclose(jax.jit(fit_temperature)(spoiled, labels, where=where), expected, rtol=1e-5)
    both = jax.vmap(fit_temperature, in_axes=(0, None))(jnp.stack([logits, 4 * logits]), labels)
    np.testing.assert_allclose(both[1], 4 * both[0], rtol=1e-5)


def test_the_derivative_is_that_of_the_implicit_function():
    logits, labels = honest()
    direction = np.random.default_rng(1).normal(size=logits.shape).astype(np.float32)
    along = lambda step: fit_temperature(logits + step * direction, labels)
    slope = jax.grad(along)(0.0)
    np.testing.assert_allclose(slope, (along(0.02) - along(-0.02)) / 0.04, rtol=0.02)  # of second order in the step


def test_inside_jit_a_nan_is_passed_on():
    assert np.isnan(jax.jit(fit_temperature)(np.array([[np.nan, 0.0]], np.float32), np.array([0])))


@settings(max_examples=1000, deadline=None, derandomize=True, database=None)
@given(st.sampled_from([1, 2, 7, 16]), st.floats(-4, 4), st.integers(0, 2**20))
def test_any_logits_have_a_temperature_within_the_bounds_that_is_no_worse_than_none(n, log_scale, seed):
    rng = np.random.default_rng(seed)
    logits = (10**log_scale * rng.normal(size=(n, 3))).astype(np.float32)
    labels = rng.integers(0, 3, n)
    temperature = float(fit_temperature(logits, labels))
    assert 0.999e-3 <= temperature <= 1.001e3
    loss = lambda t: loss_in_float64(logits, labels, np.log(t))
    others = np.clip([1.0, 0.999 * temperature, 1.001 * temperature], 1e-3, 1e3)
    assert loss(temperature) <= min(map(loss, others)) + 1e-5 * (1 + loss(1.0))  # float32


FAULTS = {
    "more labels than logits": lambda z, y: (z, np.append(y, 0), {}),
    "labels as a column": lambda z, y: (z, y[:, None], {}),
    "logits of three axes": lambda z, y: (z[:, None], y, {}),
    "a class too many": lambda z, y: (z, np.where(np.arange(len(y)) == 0, 3, y), {}),
    "a negative class": lambda z, y: (z, np.where(np.arange(len(y)) == 0, -1, y), {}),
    "nan": lambda z, y: (z * np.nan, y, {}),
    "infinity": lambda z, y: (z + np.inf, y, {}),
    "empty": lambda z, y: (z[:0], y[:0], {}),
    "all masked": lambda z, y: (z, y, {"where": np.zeros(len(y), bool)}),
    "bounds the wrong way": lambda z, y: (z, y, {"bounds": (2.0, 1.0)}),
    "bound of zero": lambda z, y: (z, y, {"bounds": (0.0, 1.0)}),
}


@settings(max_examples=1000, deadline=None, derandomize=True, database=None)
@given(st.sampled_from([1, 2, 7, 16]), st.sampled_from(sorted(FAULTS)), st.integers(0, 2**20))
def test_malformed_input_is_refused(n, fault, seed):
    rng = np.random.default_rng(seed)
    logits, labels, options = FAULTS[fault](rng.normal(size=(n, 3)).astype(np.float32), rng.integers(0, 3, n))
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        with pytest.raises(UsageError):
            fit_temperature(logits, labels, **options)
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_logits_are_not_divided_by_nonsense(temperature):
    with pytest.raises(UsageError, match="temperature must be positive"):
        scale(np.ones(3, np.float32), temperature)
