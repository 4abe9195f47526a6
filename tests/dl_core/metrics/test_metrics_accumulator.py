"""Accumulators: any partition of the data gives the same metric, masked rows are not there, and jit changes nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dl_core.metrics.accumulator import CompensatedSum, add_sums, compensated, mean_metric
from dl_core.metrics.calibration import calibration_error, calibration_metric
from dl_core.metrics.classification import (
    accuracy,
    accuracy_metric,
    confusion_matrix,
    confusion_metric,
    counts_metric,
    f1,
    f1_from_counts,
)
from dl_core.metrics.curves import auroc, average_precision, binned_curve_metric

N, CLASSES = 203, 4


def examples(seed=0):
    """Labels, predictions and probabilities on a grid of 1/64, so that 64 bins lose nothing."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, N).astype(np.int32)
    probabilities = (rng.integers(0, 64, (N, CLASSES)) / 64).astype(np.float32)
    return labels, probabilities.argmax(1).astype(np.int32), probabilities


def loss_of(labels, predictions, probabilities):
    return (probabilities[:, 0] * 1e3,)


def decisions_of(labels, predictions, probabilities):
    return labels, predictions


def scores_of(labels, predictions, probabilities):
    return labels, probabilities


METRICS = {
    "mean": (mean_metric, loss_of, lambda x: x.mean()),
    "accuracy": (accuracy_metric, decisions_of, accuracy),
    "confusion": (
        functools.partial(confusion_metric, CLASSES),
        decisions_of,
        functools.partial(confusion_matrix, num_classes=CLASSES),
    ),
    "f1": (
        functools.partial(counts_metric, CLASSES, functools.partial(f1_from_counts, average="weighted")),
        decisions_of,
        functools.partial(f1, num_classes=CLASSES, average="weighted"),
    ),
    "calibration": (calibration_metric, scores_of, calibration_error),
    "auroc": (
        functools.partial(binned_curve_metric, CLASSES, 64, lambda curves: curves.auroc),
        scores_of,
        functools.partial(auroc, average=None),
    ),
    "average_precision": (
        functools.partial(binned_curve_metric, CLASSES, 64, lambda curves: curves.average_precision),
        scores_of,
        functools.partial(average_precision, average=None),
    ),
}


@pytest.mark.parametrize("name", METRICS)
def test_any_partition_into_padded_batches_gives_the_metric_of_the_whole(name):
    build, select, whole = METRICS[name]
    metric, arrays = build(), select(*examples())
    update = jax.jit(metric.update)
    rng = np.random.default_rng(1)
    order, batch = rng.permutation(N), 64
    expected = np.asarray(whole(*arrays))
    states = []
    for size in (64, 17):
        state = metric.init()
        for rows in np.split(order, range(size, N, size)):
            padded = [np.concatenate([a[rows], np.ones((batch - len(rows), *a.shape[1:]), a.dtype)]) for a in arrays]
            state = update(state, *padded, where=np.arange(batch) < len(rows))
        states.append(state)
        # float32 sums of about 200 terms in another order: 1e-6 relative.
        np.testing.assert_allclose(metric.compute(state), expected, rtol=2e-6)
    both = jax.jit(metric.merge)(*states)
    twice = [np.concatenate([a, a]) for a in arrays]
    np.testing.assert_allclose(metric.compute(both), np.asarray(whole(*twice)), rtol=2e-6)


@pytest.mark.parametrize("name", METRICS)
def test_states_of_devices_may_be_summed_leaf_by_leaf(name):
    build, select, whole = METRICS[name]
    metric, arrays = build(), select(*examples())
    arrays = [a[:200] for a in arrays]
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec

    @jax.jit
    @functools.partial(jax.shard_map, mesh=mesh, in_specs=spec("data"), out_specs=spec())
    def summed(*shards):
        state = metric.update(metric.init(), *shards)
        return jax.lax.psum(state, "data")

    np.testing.assert_allclose(metric.compute(summed(*arrays)), np.asarray(whole(*arrays)), rtol=2e-6)


def test_counts_merge_exactly():
    labels, predictions, _ = examples()
    metric = confusion_metric(CLASSES)
    a = metric.update(metric.init(), labels[:50], predictions[:50])
    b = metric.update(metric.init(), labels[50:], predictions[50:])
    merged = metric.compute(metric.merge(a, b))
    assert merged.dtype == jnp.int32
    assert (merged == confusion_matrix(labels, predictions, num_classes=CLASSES)).all()


def test_a_long_sum_of_small_terms_keeps_its_digits():
    """2^24 ones and then ten thousand more: plain float32 would stay at 2^24."""
    one = compensated(jnp.float32(1))
    add_many = jax.jit(lambda total: jax.lax.fori_loop(0, 10_000, lambda _, t: add_sums(t, one), total))
    total = add_many(compensated(jnp.float32(2**24)))
    assert float(total.high) + float(total.low) == 2**24 + 10_000
    rest = jax.jit(add_sums)(total, CompensatedSum(jnp.float32(-(2**24)), jnp.float32(0)))
    assert float(rest.high) + float(rest.low) == 10_000


def test_the_mean_of_no_examples_is_nan():
    metric = mean_metric()
    state = metric.update(metric.init(), jnp.ones(3), where=jnp.zeros(3, bool))
    assert np.isnan(metric.compute(state))
