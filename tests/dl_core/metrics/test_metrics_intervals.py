"""Intervals agree with SciPy and cover what they promise."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from dl_core.errors import UsageError
from dl_core.metrics.classification import accuracy, f1
from dl_core.metrics.intervals import bootstrap_interval, clopper_pearson_interval, wilson_interval

SHARES = [(0, 10), (1, 10), (7, 10), (10, 10), (37, 41), (360, 360), (1, 1000), (0, 1)]


@pytest.mark.parametrize(("successes", "n"), SHARES)
@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.99])
@pytest.mark.parametrize(("ours", "method"), [(wilson_interval, "wilson"), (clopper_pearson_interval, "exact")])
def test_intervals_of_a_share_agree_with_scipy(successes, n, confidence, ours, method):
    expected = scipy.stats.binomtest(successes, n).proportion_ci(confidence, method)
    result = ours(successes, n, confidence)
    assert all(type(end) is float for end in result)
    np.testing.assert_allclose(result, expected, rtol=1e-9, atol=1e-12)  # both in float64
    arrays = ours(np.array([successes]), np.array([n]), confidence)
    np.testing.assert_allclose(np.ravel(arrays), expected, rtol=1e-9, atol=1e-12)


def test_wilson_works_inside_jit_and_of_no_trials_is_the_whole_range():
    successes, n = np.array([0, 3, 5, 0]), np.array([4, 4, 5, 0])
    low, high = jax.jit(wilson_interval)(jnp.asarray(successes), jnp.asarray(n))
    expected = wilson_interval(successes, n)
    np.testing.assert_allclose(low, expected.low, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(high, expected.high, rtol=1e-5)
    assert (float(low[-1]), float(high[-1])) == (0, 1) == (expected.low[-1], expected.high[-1])
    assert clopper_pearson_interval(0, 0) == (0, 1)


def coverage(interval, share, n):
    """Exact: the probability, under the binomial, of the outcomes whose interval holds the true share."""
    outcomes = np.arange(n + 1)
    low, high = interval(outcomes, np.full(n + 1, n))
    return scipy.stats.binom.pmf(outcomes, n, share)[(low <= share) & (share <= high)].sum()


@pytest.mark.parametrize("n", [20, 100, 270])
def test_intervals_of_a_share_cover_what_they_promise(n):
    shares = np.linspace(0.05, 0.95, 181)
    wilson = [coverage(wilson_interval, share, n) for share in shares]
    exact = [coverage(clopper_pearson_interval, share, n) for share in shares]
    assert min(exact) >= 0.95
    assert 0.945 < np.mean(wilson) < 0.96
    assert min(wilson) > 0.88  # Brown et al. 2001, figure 5: dips, no collapse


@pytest.mark.parametrize(("method", "name"), [("bca", "BCa"), ("percentile", "percentile")])
def test_bootstrap_agrees_with_scipy(method, name):
    """Other draws, same law: the ends agree to the Monte Carlo error of a 2.5 % quantile of 4000 draws (1/40 sd)."""
    data = np.random.default_rng(0).exponential(size=60).astype(np.float32)
    statistic = lambda x, axis=-1: np.std(x, axis=axis)
    reference = scipy.stats.bootstrap((data,), statistic, n_resamples=4000, method=name, rng=np.random.default_rng(1))
    result = bootstrap_interval(jnp.std, data, key=jax.random.key(0), n_resamples=4000, method=method)
    np.testing.assert_allclose(result, reference.confidence_interval, atol=5 * reference.standard_error / 25)


@pytest.mark.parametrize(("method", "least"), [("bca", 0.91), ("percentile", 0.88)])
def test_bootstrap_covers_the_mean_of_a_skew_distribution(method, least):
    """400 data sets of 40: standard error 0.011. Percentile intervals of a skew mean are known to cover too little."""
    datasets = jax.random.exponential(jax.random.key(0), (400, 40))
    keys = jax.random.split(jax.random.key(1), 400)
    one = functools.partial(bootstrap_interval, jnp.mean, n_resamples=400, method=method)
    low, high = jax.jit(jax.vmap(lambda data, key: one(data, key=key)))(datasets, keys)
    covered = float(((low <= 1) & (high >= 1)).mean())
    assert least < covered < 0.98


def test_bootstrap_of_a_metric_of_labels_and_predictions():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 200).astype(np.int32)
    predictions = np.where(rng.random(200) < 0.8, labels, 0).astype(np.int32)
    low, high = bootstrap_interval(accuracy, labels, predictions, key=jax.random.key(0), n_resamples=2000)
    wilson = wilson_interval(int((labels == predictions).sum()), 200)
    np.testing.assert_allclose((low, high), wilson, atol=0.015)  # an accuracy of 200 has steps of 0.005
    score = functools.partial(f1, num_classes=3)
    low, high = bootstrap_interval(score, labels, predictions, key=jax.random.key(0))
    assert low < score(labels, predictions) < high


def test_the_chunk_size_does_not_change_the_draws_and_a_constant_has_no_width():
    data = np.random.default_rng(0).normal(size=30).astype(np.float32)
    interval = functools.partial(bootstrap_interval, jnp.mean, data, key=jax.random.key(0), n_resamples=100)
    a, b = interval(batch_size=10), interval(batch_size=100)
    np.testing.assert_allclose(a, b, rtol=1e-6)
    labels = np.arange(9)
    assert bootstrap_interval(accuracy, labels, labels, key=jax.random.key(0), n_resamples=100) == (1, 1)


def test_nonsense_is_refused():
    data = np.ones(3, np.float32)
    with pytest.raises(UsageError, match="strictly between 0 and 1, got 95"):
        wilson_interval(1, 2, 95.0)
    with pytest.raises(UsageError, match="did you mean 'percentile'"):
        bootstrap_interval(jnp.mean, data, key=jax.random.key(0), method="percentiles")
    with pytest.raises(UsageError, match="at least two examples, got 1"):
        bootstrap_interval(jnp.mean, data[:1], key=jax.random.key(0))
