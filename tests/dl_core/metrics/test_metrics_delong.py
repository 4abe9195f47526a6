"""DeLong's intervals and test: the variance of all pairs, the coverage that is promised, and bad input refused."""

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
from dl_core.metrics.delong import delong_interval, delong_test
from dl_core.metrics.intervals import wilson_interval

Z = scipy.stats.norm.ppf(0.975)


def two_models(seed=0, n=80):
    """Scores on a grid of tenths, so that many tie; the models share half of their noise."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < 0.4).astype(np.int32)
    shared = rng.normal(size=n) + labels
    scores = [np.round(shared + rng.normal(size=n) + gain * labels, 1).astype(np.float32) for gain in (0.0, 0.5)]
    return labels, *scores


def by_all_pairs(labels, *scores):
    """Areas and their covariance from the m × n kernel of every model, in float64 (DeLong et al. 1988, eq. 4-7)."""
    kernels = [(np.sign(np.subtract.outer(s[labels == 1], s[labels == 0]).astype(float)) + 1) / 2 for s in scores]
    of_positives, of_negatives = (np.array([kernel.mean(axis) for kernel in kernels]) for axis in (1, 0))
    covariance = np.cov(of_positives) / of_positives.shape[1] + np.cov(of_negatives) / of_negatives.shape[1]
    return of_positives.mean(axis=1), np.atleast_2d(covariance)


@pytest.mark.parametrize("seed", range(3))
def test_the_interval_is_that_of_all_pairs(seed):
    labels, scores, _ = two_models(seed)
    (area,), variance = by_all_pairs(labels, scores)
    half = Z * variance.item() ** 0.5
    # float32 means of 80 shares: 1e-6.
    plain = delong_interval(labels, scores, transform="none")
    np.testing.assert_allclose(plain, (area - half, min(area + half, 1)), atol=2e-6)
    logit = scipy.special.logit(area) + np.array([-1, 1]) * half / (area * (1 - area))
    np.testing.assert_allclose(delong_interval(labels, scores), scipy.special.expit(logit), atol=2e-6)


@pytest.mark.parametrize("seed", range(3))
def test_the_difference_is_that_of_all_pairs(seed):
    labels, *scores = two_models(seed)
    areas, covariance = by_all_pairs(labels, *scores)
    difference, deviation = areas[1] - areas[0], np.sqrt([1, -1] @ covariance @ [1, -1])
    result = delong_test(labels, *scores)
    np.testing.assert_allclose(result.difference, difference, atol=2e-6)
    np.testing.assert_allclose((result.low, result.high), difference + np.array([-Z, Z]) * deviation, atol=5e-6)
    np.testing.assert_allclose(result.p_value, 2 * scipy.stats.norm.sf(abs(difference) / deviation), rtol=1e-3)


def test_the_p_value_is_near_that_of_exchanging_the_models():
    """If there is no difference, each example's two ranks may be exchanged (Venkatraman, Begg 1996)."""
    labels, *scores = two_models(3, n=300)
    ranks = np.stack([scipy.stats.rankdata(s) for s in scores])
    # The areas differ as the mean ranks of the positives, less those of the negatives, do.
    weights = np.where(labels == 1, 1 / (labels == 1).sum(), -1 / (labels == 0).sum())
    signs = np.random.default_rng(0).choice([-1, 1], (4000, 300))
    exchanged = np.abs((signs * (ranks[1] - ranks[0])[None]) @ weights)
    p_value = (exchanged >= abs((ranks[1] - ranks[0]) @ weights)).mean()
    # 4000 exchanges: standard error at most 0.008; the rest is what two different tests may differ by.
    np.testing.assert_allclose(delong_test(labels, *scores).p_value, p_value, atol=0.05)


COVERAGE = [(10, 10, 1.0), (20, 40, 2.0), (20, 40, 3.0), (50, 50, 1.0)]
DATA_SETS = 2000


@pytest.mark.parametrize(("positives", "negatives", "gap"), COVERAGE)
def test_the_logit_interval_covers_what_it_promises(positives, negatives, gap):
    """2000 data sets: standard error 0.005. Normal scores whose areas are 0.76, 0.92 and 0.98."""
    area = scipy.stats.norm.cdf(gap / 2**0.5)
    labels = jnp.arange(positives + negatives) < positives

    def covers(key):
        interval = delong_interval(labels, jax.random.normal(key, labels.shape) + gap * labels)
        return (interval.low <= area) & (area <= interval.high)

    covered = jax.jit(jax.vmap(covers))(jax.random.split(jax.random.key(1), DATA_SETS)).mean()
    assert 0.935 < covered < 0.985  # above 0.95 only where ten of a kind leave it little to say


def test_under_no_difference_the_test_rejects_as_often_as_it_says():
    """2000 data sets: 5 % ± 3 standard errors of 0.005, and a little for 40 of a kind being few."""
    labels = jnp.arange(80) < 40

    def p_value(key):
        shared, first, second = jax.random.normal(key, (3, 80))
        return delong_test(labels, shared + first + labels, shared + second + labels).p_value

    p_values = jax.jit(jax.vmap(p_value))(jax.random.split(jax.random.key(0), DATA_SETS))
    assert 0.03 < (p_values < 0.05).mean() < 0.07


def test_a_perfect_ranking_is_not_certain():
    labels, scores = np.array([0, 0, 0, 1, 1]), np.arange(5.0, dtype=np.float32)
    np.testing.assert_allclose(delong_interval(labels, scores), wilson_interval(2, 2), rtol=1e-5)
    np.testing.assert_allclose(delong_interval(labels, -scores), wilson_interval(0, 2), rtol=1e-5)
    same = delong_test(labels, scores, 3 * scores + 1)
    assert (same.difference, same.low, same.high, same.p_value) == (0, 0, 0, 1)


def test_masked_rows_are_not_there_and_jit_changes_nothing():
    labels, *scores = two_models()
    where = np.random.default_rng(1).random(80) < 0.6
    spoiled = [np.where(where, s, np.nan) for s in scores]
    kept = [labels[where], *(s[where] for s in scores)]
    masked = jax.jit(lambda *arrays: delong_test(*arrays, where=where))(labels, *spoiled)
    np.testing.assert_allclose(masked, delong_test(*kept), rtol=1e-5, atol=1e-6)  # a difference near 0
    interval = jax.jit(lambda w: delong_interval(labels, jnp.asarray(spoiled[0]), where=w))
    np.testing.assert_allclose(interval(where), delong_interval(*kept[:2]), rtol=1e-5)
    assert np.isnan(interval(np.arange(80) == np.flatnonzero(labels)[0])).all()


FAULTS = ("nan", "infinite", "label", "length", "shape", "empty", "one positive", "confidence", "transform")


def spoil(fault, labels, scores):
    """Arguments of delong_interval with one thing wrong."""
    options, scores = {}, scores.copy()
    if fault in ("nan", "infinite"):
        scores[-1] = np.nan if fault == "nan" else np.inf
    elif fault == "label":
        labels = np.where(np.arange(len(labels)) == 1, 2, labels)
    elif fault == "length":
        scores = scores[1:]
    elif fault == "shape":
        scores = scores[:, None]
    elif fault == "empty":
        labels, scores = labels[:0], scores[:0]
    elif fault == "one positive":
        labels = (np.arange(len(labels)) == 0).astype(np.int32)
    else:
        options = {"confidence": 95.0} if fault == "confidence" else {"transform": "log"}
    return (labels, scores), options


@settings(max_examples=1000, deadline=None, derandomize=True, database=None)
@given(
    st.sampled_from([4, 16]),
    st.integers(0, 2**32 - 1),
    st.sampled_from([None, None, *FAULTS]),
    st.sampled_from([2, 5, 10**6]),
)
def test_an_interval_lies_in_the_unit_interval_around_the_area_and_malformed_input_is_refused(n, seed, fault, levels):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % 2).astype(np.int32)
    scores = rng.integers(0, levels, n).astype(np.float32) * 10.0 ** rng.integers(-20, 20)
    if fault is None:
        low, high = delong_interval(labels, scores)
        difference = delong_test(labels, scores, -scores)
        area = by_all_pairs(labels, scores)[0][0]
        assert 0 <= low <= area + 1e-6
        assert area - 1e-6 <= high <= 1
        assert abs(difference.difference - (1 - 2 * area)) < 1e-6  # the reversed ranking has the other area
        assert 0 <= difference.p_value <= 1
        return
    arrays, options = spoil(fault, labels, scores)
    jaxtyping_config.update("jaxtyping_disable", True)
    try:
        with pytest.raises(UsageError):
            delong_interval(*arrays, **options)
    finally:
        jaxtyping_config.update("jaxtyping_disable", False)


def test_complaints_say_what_was_given():
    labels, scores = np.array([0, 0, 1]), np.ones(3, np.float32)
    with pytest.raises(UsageError, match=r"two positives and two negatives, .* got 1 and 2"):
        delong_interval(labels, scores)
    with pytest.raises(UsageError, match="other_scores must be finite"):
        delong_test(np.array([0, 0, 1, 1]), np.ones(4, np.float32), np.full(4, np.nan, np.float32))
    with pytest.raises(UsageError, match="did you mean 'logit'"):
        functools.partial(delong_interval, transform="logits")(labels, scores)
