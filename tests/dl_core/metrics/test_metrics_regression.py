"""Errors of values against scikit-learn and of angles against scipy; accumulators give what whole arrays give."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics as sk
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import config as annotations
from scipy import stats

from dl_core import metrics
from dl_core.errors import UsageError

RANDOM = np.random.default_rng(0)
LABELS = RANDOM.normal(50, 5, 203).astype(np.float32)
PREDICTIONS = (LABELS + RANDOM.normal(0, 2, 203)).astype(np.float32)
ANGLES = RANDOM.vonmises(3.0, 2.0, 203).astype(np.float32) * np.float32(180 / np.pi)  # around 172 degrees, wrapping
OFF = (ANGLES + RANDOM.normal(0, 20, 203)).astype(np.float32)
CLOSE = {"rtol": 2e-5}  # float32 sums of two hundred terms; R² takes a difference

VALUES = ("mean_absolute_error", "root_mean_squared_error", "r2_score")


@pytest.mark.parametrize("name", VALUES)
def test_errors_of_values_are_those_of_scikit_learn(name):
    expected = getattr(sk, name)(LABELS.astype(float), PREDICTIONS.astype(float))
    np.testing.assert_allclose(getattr(metrics, name)(LABELS, PREDICTIONS), expected, **CLOSE)
    where = np.arange(203) % 3 > 0
    expected = getattr(sk, name)(LABELS[where].astype(float), PREDICTIONS[where].astype(float))
    masked = np.where(where, PREDICTIONS, np.nan).astype(np.float32)
    np.testing.assert_allclose(getattr(metrics, name)(LABELS, masked, where=where), expected, **CLOSE)


def test_r2_keeps_its_digits_far_from_zero():
    """A deviation of 1 around 10,000: squares of labels in float32 would be wrong by several units."""
    labels = RANDOM.normal(1e4, 1, 500).astype(np.float32)
    predictions = labels + RANDOM.normal(0, 0.5, 500).astype(np.float32)
    expected = sk.r2_score(labels.astype(float), predictions.astype(float))
    np.testing.assert_allclose(metrics.r2_score(labels, predictions), expected, rtol=1e-3)


def test_the_mean_of_directions_is_that_of_scipy():
    expected = np.rad2deg(stats.circmean(np.deg2rad(ANGLES.astype(float))))
    np.testing.assert_allclose(metrics.circular_mean(ANGLES), expected % 360, rtol=1e-5)
    variance = stats.circvar(np.deg2rad(ANGLES.astype(float)))
    np.testing.assert_allclose(1 - metrics.resultant_length(ANGLES), variance, rtol=1e-4)


def test_the_mean_of_350_and_10_degrees_is_0_and_not_180():
    mean = float(metrics.circular_mean(np.array([350.0, 10.0])))
    assert min(mean, 360 - mean) < 1e-3
    assert float(metrics.circular_mean_absolute_error(np.array([359.0, 1.0]), np.array([1.0, 359.0]))) == 2


def test_any_constant_is_90_degrees_wrong_on_uniform_directions():
    around = np.arange(0, 360, 0.5)
    for constant in (0.0, 77.0, 200.0):
        assert float(metrics.circular_mean_absolute_error(around, np.full_like(around, constant))) == pytest.approx(90)
    assert float(metrics.resultant_length(around)) < 1e-5


METRICS = {
    "mean_absolute_error": (LABELS, PREDICTIONS),
    "root_mean_squared_error": (LABELS, PREDICTIONS),
    "r2_score": (LABELS, PREDICTIONS),
    "circular_mean_absolute_error": (ANGLES, OFF),
    "circular_mean": (ANGLES,),
    "resultant_length": (ANGLES,),
}


@pytest.mark.parametrize("name", METRICS)
def test_batches_in_any_order_give_the_metric_of_the_whole(name):
    arrays = METRICS[name]
    build = getattr(metrics, f"{name}_metric")
    metric = build(jnp.float32(50)) if name == "r2_score" else build()
    update, states = jax.jit(metric.update), []
    for rows in np.split(RANDOM.permutation(203), [64, 128, 192]):
        padded = [np.concatenate([a[rows], np.full(64 - len(rows), 7e3, a.dtype)]) for a in arrays]
        states.append(update(metric.init(), *padded, where=np.arange(64) < len(rows)))
    left = metric.merge(metric.merge(states[0], states[1]), metric.merge(states[2], states[3]))
    right = metric.merge(states[3], metric.merge(states[0], metric.merge(states[2], states[1])))
    whole = getattr(metrics, name)(*arrays)
    np.testing.assert_allclose(metric.compute(left), whole, **CLOSE)
    np.testing.assert_allclose(metric.compute(right), whole, **CLOSE)


MOST = {
    "mean_absolute_error": np.inf,
    "root_mean_squared_error": np.inf,
    "r2_score": 1,
    "circular_mean_absolute_error": 180,
}


def refused(score, labels, predictions, where):
    """Whether it says so, with the annotations off, as users have them."""
    annotations.update("jaxtyping_disable", True)
    try:
        score(labels, predictions, where=where)
    except UsageError:
        return True
    finally:
        annotations.update("jaxtyping_disable", False)
    return False


@settings(max_examples=1000, deadline=None, derandomize=True, database=None)
@given(
    name=st.sampled_from(sorted(MOST)),
    n=st.sampled_from([2, 7]),
    seed=st.integers(0, 2**32 - 1),
    fault=st.sampled_from(["none", "none", "nan", "shorter", "column", "empty", "nothing kept"]),
)
def test_errors_lie_in_their_range_and_bad_input_is_refused(name, n, seed, fault):
    rng, score = np.random.default_rng(seed), getattr(metrics, name)
    labels, predictions = rng.normal(0, 100, (2, n)).astype(np.float32)
    where = None
    if fault == "none":
        value = float(score(labels, predictions))
        assert value <= MOST[name] + 1e-3  # float32
        assert value >= 0 or name == "r2_score"
        return
    if fault == "nan":
        predictions[rng.integers(n)] = rng.choice([np.nan, np.inf])
    elif fault == "shorter":
        predictions = predictions[1:]
    elif fault == "column":
        predictions = predictions[:, None]
    elif fault == "empty":
        labels, predictions = labels[:0], predictions[:0]
    else:
        where = np.zeros(n, bool)
    assert refused(score, labels, predictions, where)
