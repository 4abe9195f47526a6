"""Bands around ROC and precision-recall curves: where the curve is, and as often as they say."""

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
from dl_core.metrics.curve_intervals import precision_recall_band, roc_band

BANDS = [roc_band, precision_recall_band]
# One size throughout, with a mask of eight rows: one compilation of each band.
SMALL = {"key": jax.random.key(0), "n_resamples": 10, "grid": np.linspace(0, 1, 5, dtype=np.float32)}


@pytest.mark.parametrize("band", BANDS)
def test_masked_rows_are_not_there(band):
    """Rows that would spoil a perfect ranking; they are drawn neither as positives nor as negatives."""
    labels, scores = np.array([0, 0, 0, 1, 1, 1, 0, 1], np.int32), np.arange(8, dtype=np.float32)
    scores[-1] = np.nan
    _, low, high = band(labels, scores, where=np.arange(8) < 6, **SMALL)
    np.testing.assert_allclose((low, high), 1, rtol=1e-6)
    _, low, high = band(labels, np.nan_to_num(scores, nan=-1.0), where=np.arange(8) < 9, **SMALL)
    assert low[2] < 1


@pytest.mark.parametrize("band", BANDS)
def test_a_band_of_a_single_class_is_nan(band):
    _, low, high = band(np.ones(8, np.int32), np.arange(8, dtype=np.float32), where=np.ones(8, bool), **SMALL)
    assert np.isnan(low).all()
    assert np.isnan(high).all()


def test_the_chunk_size_does_not_change_the_draws():
    labels, scores = np.arange(8) % 2, np.arange(8, dtype=np.float32)
    one = functools.partial(roc_band, labels.astype(np.int32), scores, where=np.ones(8, bool), **SMALL)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), one(batch_size=3), one())


def test_a_roc_band_covers_the_true_curve_as_often_as_it_says():
    """300 data sets of 60 + 60 normal scores: standard error 0.013; percentile bands of a rate cover a little less."""
    rates = jnp.array([0.1, 0.3, 0.5])
    true = scipy.stats.norm.cdf(1 + scipy.stats.norm.ppf(rates))
    labels = jnp.arange(120) < 60

    def covers(key):
        scores = jax.random.normal(key, (120,)) + labels
        _, low, high = roc_band(labels, scores, key=jax.random.fold_in(key, 1), n_resamples=200, grid=rates)
        return (low <= true) & (true <= high)

    covered = jax.jit(jax.vmap(covers))(jax.random.split(jax.random.key(2), 300)).mean(axis=0)
    assert (covered > 0.90).all()
    assert (covered < 0.99).all()


def test_a_precision_recall_band_covers_the_true_curve_as_often_as_it_says():
    """As above, with as many positives as negatives: precision r / (r + f) where recall r is reached at rate f."""
    recalls = jnp.array([0.3, 0.5, 0.7])
    rates = scipy.stats.norm.sf(1 + scipy.stats.norm.isf(recalls))
    true, labels = np.asarray(recalls) / (recalls + rates), jnp.arange(120) < 60

    def covers(key):
        scores = jax.random.normal(key, (120,)) + labels
        band = precision_recall_band(labels, scores, key=jax.random.fold_in(key, 1), n_resamples=200, grid=recalls)
        return (band.low <= true) & (true <= band.high)

    covered = jax.jit(jax.vmap(covers))(jax.random.split(jax.random.key(3), 300)).mean(axis=0)
    assert (covered > 0.90).all()
    assert (covered < 0.99).all()


FAULTS = ("nan", "label", "length", "empty", "confidence", "n_resamples", "grid")


@settings(max_examples=1000, deadline=None, derandomize=True, database=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([None, None, *FAULTS]), st.sampled_from(BANDS))
def test_bands_are_ordered_rates_and_malformed_input_is_refused(seed, fault, band):
    rng = np.random.default_rng(seed)
    labels, scores = (np.arange(8) % 2).astype(np.int32), rng.integers(0, 5, 8).astype(np.float32)
    where = (rng.random(8) < 0.5) | (np.arange(8) // 2 == rng.integers(4))  # at least one of each kind
    options = SMALL | {"key": jax.random.key(seed), "where": where}
    if fault is None:
        _, low, high = (np.asarray(part) for part in band(labels, scores, **options))
        assert ((low >= 0) & (low <= high) & (high <= 1 + 1e-6)).all()
        return
    if fault == "nan":
        scores[where] = np.nan
    elif fault == "label":
        labels = labels + 1
    elif fault == "length":
        labels = labels[1:]
    elif fault == "empty":
        labels, scores, options["where"] = labels[:0], scores[:0], None
    else:
        options[fault] = {"confidence": 0.0, "n_resamples": 0, "grid": np.array([0, 1.5], np.float32)}[fault]
    jaxtyping_config.update("jaxtyping_disable", True)
    try:
        with pytest.raises(UsageError):
            band(labels, scores, **options)
    finally:
        jaxtyping_config.update("jaxtyping_disable", False)
