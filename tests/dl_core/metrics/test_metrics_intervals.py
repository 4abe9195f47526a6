"""Intervals agree with SciPy and cover what they promise."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import config as jaxtyping_config

from dl_core.errors import UsageError
from dl_core.metrics.classification import accuracy, f1
from dl_core.metrics.curves import auroc
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
    """Other draws, same law. BCa takes a far tail here: an end of 20,000 draws varies by 0.07 standard errors."""
    data = np.random.default_rng(0).exponential(size=60).astype(np.float32)
    statistic = lambda x, axis=-1: np.std(x, axis=axis)
    options = {"n_resamples": 20_000, "method": name, "rng": np.random.default_rng(1)}
    reference = scipy.stats.bootstrap((data,), statistic, **options)
    result = bootstrap_interval(jnp.std, data, key=jax.random.key(0), n_resamples=20_000, method=method)
    # Three times what the difference of two such ends varies by.
    np.testing.assert_allclose(result, reference.confidence_interval, atol=0.3 * reference.standard_error)


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
    low, high = bootstrap_interval(accuracy, labels, predictions, key=jax.random.key(0))
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


def test_an_array_of_statistics_has_the_interval_of_each():
    data = np.random.default_rng(0).exponential(size=(30, 2)).astype(np.float32)
    both = lambda x: jnp.stack([x.mean(axis=0), x.std(axis=0)])
    together = bootstrap_interval(both, data, key=jax.random.key(0))
    assert together.low.shape == (2, 2)
    alone = bootstrap_interval(lambda x: both(x)[1, 0], data, key=jax.random.key(0))
    np.testing.assert_allclose((together.low[1, 0], together.high[1, 0]), alone, rtol=1e-5)


def test_strata_keep_their_sizes():
    """The share of ones does not vary within strata of one label; the mean of what varies in one of them does."""
    labels = np.array([0, 1, 0, 1, 1, 0, 1, 1], np.int32)
    share = lambda y, x: jnp.stack([y.mean(), jnp.where(y == 1, x, 0.0).sum()])
    x = np.arange(8.0, dtype=np.float32)
    low, high = bootstrap_interval(share, labels, x, key=jax.random.key(0), strata=labels)
    np.testing.assert_allclose((low[0], high[0]), 5 / 8, rtol=1e-6)
    assert low[1] < 20 < high[1]


def test_strata_cover_what_they_promise():
    """400 data sets of 15 and 25 of two skew groups with unlike means: standard error 0.011."""
    groups = jnp.repeat(jnp.arange(2), jnp.array([15, 25]), total_repeat_length=40)
    data = jax.random.exponential(jax.random.key(0), (400, 40)) * (1 + 4 * groups)[None]
    interval = functools.partial(bootstrap_interval, jnp.mean, n_resamples=400, strata=groups)
    low, high = jax.jit(jax.vmap(lambda x, key: interval(x, key=key)))(data, jax.random.split(jax.random.key(1), 400))
    true = (15 * 1 + 25 * 5) / 40
    assert 0.90 < float(((low <= true) & (true <= high)).mean()) < 0.98


def test_the_gain_of_one_model_over_another_is_drawn_in_pairs():
    """Both are wrong on the same examples but for ten: paired, the interval of the gain is far narrower than of two."""
    labels = np.arange(200, dtype=np.int32) % 2
    first = np.where(np.arange(200) < 100, labels, 1 - labels).astype(np.int32)
    second = np.where(np.arange(200) < 110, labels, 1 - labels).astype(np.int32)
    gain = lambda y, a, b: accuracy(y, b) - accuracy(y, a)
    low, high = bootstrap_interval(gain, labels, first, second, key=jax.random.key(0))
    # The gain is the share of the ten: Wilson's interval of 10 in 200, within two steps of 0.005.
    np.testing.assert_allclose((low, high), wilson_interval(10, 200), atol=0.012)


def test_resamples_without_a_value_are_left_out():
    labels = np.array([1, 0, 0, 0, 0, 0], np.int32)  # a third of the draws miss the only positive
    scores = np.array([3, 1, 2, 4, 5, 0], np.float32)
    low, high = bootstrap_interval(auroc, labels, scores, key=jax.random.key(0))
    assert 0 <= low < high <= 1


def refused(call):
    """Whether UsageError is raised, with shape annotations switched off as a user has them."""
    jaxtyping_config.update("jaxtyping_disable", True)
    try:
        with pytest.raises(UsageError):
            call()
    finally:
        jaxtyping_config.update("jaxtyping_disable", False)


@settings(max_examples=1000, deadline=None, derandomize=True, database=None)
@given(
    st.sampled_from([wilson_interval, clopper_pearson_interval]),
    st.integers(0, 10**6),
    st.floats(-0.5, 1.5) | st.just(float("nan")),
    st.floats(-0.5, 1.5),
)
def test_intervals_of_a_share_hold_it_and_malformed_input_is_refused(interval, n, share, confidence):
    successes = share * n if np.isnan(share) else round(share * n)
    if 0 <= successes <= n and 0 < confidence < 1:
        low, high = interval(successes, n, confidence)
        assert 0 <= low <= successes / max(n, 1) + 1e-9
        assert min(successes, n) / max(n, 1) - 1e-9 <= high <= 1
    else:
        refused(lambda: interval(successes, n, confidence))
        refused(lambda: interval(np.array([successes]), np.array([n]), confidence))


FAULTS = ("length", "strata", "one", "empty", "confidence", "n_resamples", "method", "batch_size")


@settings(max_examples=1000, deadline=None, derandomize=True, database=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([None, None, *FAULTS]), st.sampled_from(["bca", "percentile"]))
def test_bootstrap_ends_are_ordered_and_within_reach_and_malformed_input_is_refused(seed, fault, method):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(2, 7)).astype(np.float32)
    if fault is None:
        low, high = COMPILED[method](a, b, jax.random.key(seed))
        assert (a - b).min() - 1e-5 <= low <= high <= (a - b).max() + 1e-5
        return
    options = {"method": method, "n_resamples": 10, "strata": None, "confidence": 0.9}
    if fault == "length":
        b = b[1:]
    elif fault == "strata":
        options["strata"] = np.zeros(8, np.int32)
    elif fault in ("one", "empty"):
        a, b = a[: fault == "one"], b[: fault == "one"]
    else:
        options[fault] = {"confidence": 1.0, "n_resamples": 0, "method": "bc", "batch_size": 0}[fault]
    refused(lambda: bootstrap_interval(mean_difference, a, b, key=jax.random.key(0), **options))


def mean_difference(a, b):
    return (a - b).mean()


COMPILED = {
    method: jax.jit(
        functools.partial(
            lambda a, b, key, method: bootstrap_interval(mean_difference, a, b, key=key, method=method, n_resamples=20),
            method=method,
        )
    )
    for method in ("bca", "percentile")
}


def test_nonsense_is_refused(annotations_off):
    data = np.ones(3, np.float32)
    with pytest.raises(UsageError, match=r"in \[0, n\] and n be finite, got 5 of 3"):
        wilson_interval(np.array([1, 5]), np.array([3, 3]))
    with pytest.raises(UsageError, match=r"one row for each example, got shapes arrays\[0\] \[3\], arrays\[1\] \[2\]"):
        bootstrap_interval(mean_difference, data, data[1:], key=jax.random.key(0))
    with pytest.raises(UsageError, match="strictly between 0 and 1, got 95"):
        wilson_interval(1, 2, 95.0)
    with pytest.raises(UsageError, match="did you mean 'percentile'"):
        bootstrap_interval(jnp.mean, data, key=jax.random.key(0), method="percentiles")
    with pytest.raises(UsageError, match="at least two examples, got 1"):
        bootstrap_interval(jnp.mean, data[:1], key=jax.random.key(0))
