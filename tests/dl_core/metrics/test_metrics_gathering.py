"""Metrics that need every row: kept in a buffer, merged, and never silently cut off."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from partitions import assert_any_partition_gives_the_whole

from dl_core.errors import UsageError
from dl_core.metrics import auroc, average_precision, gathering_metric


@pytest.fixture
def ranking():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 61).astype(np.int32)
    return labels, (rng.integers(0, 9, 61) + labels).astype(np.float32)


@pytest.mark.parametrize("area", [auroc, average_precision])
def test_an_exact_area_is_that_of_the_whole(area, ranking):
    metric = gathering_metric(area, 100, jnp.int32(0), jnp.float32(0))
    assert_any_partition_gives_the_whole(metric, ranking, area(*ranking))


def test_rows_that_do_not_fit_are_an_error_and_nan_inside_jit(ranking):
    metric = gathering_metric(auroc, 60, jnp.int32(0), jnp.float32(0))
    state = metric.update(metric.init(), *ranking)
    with pytest.raises(UsageError, match="61 rows were given, 60 fit"):
        metric.compute(state)
    assert np.isnan(jax.jit(metric.compute)(state))


def test_a_merge_counts_rows_that_were_lost_before(ranking):
    metric = gathering_metric(auroc, 40, jnp.int32(0), jnp.float32(0))
    state = metric.update(metric.init(), *ranking)
    with pytest.raises(UsageError, match="122 rows were given, 40 fit"):
        metric.compute(metric.merge(state, state))


def test_a_buffer_of_nothing_is_refused():
    with pytest.raises(UsageError, match="at least 1, got 0"):
        gathering_metric(auroc, 0, jnp.int32(0))
