"""Metrics of generators under a thousand random inputs each: their ranges and symmetries hold, bad input is refused."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dl_core.errors import UsageError
from dl_core.metrics.frechet import frechet_distance
from dl_core.metrics.inception_score import inception_score
from dl_core.metrics.kernel_distance import kernel_distance
from dl_core.metrics.manifold import manifold_scores
from dl_core.metrics.memorization import authenticity, nearest_training_examples
from dl_core.metrics.overfitting import adjust_augmentation, overfitting_r_t, overfitting_r_v
from dl_core.metrics.path_length import path_length_summary, slerp

pytestmark = pytest.mark.usefixtures("annotations_off")  # bad shapes must reach the functions' own checks
THOUSAND = settings(
    max_examples=1000,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
D = 3
SEEDS, SIZES = st.integers(0, 2**32 - 1), st.sampled_from([4, 7])
SCALES, SHIFTS = st.sampled_from([1e-3, 1.0, 100.0]), st.sampled_from([0.0, 1.0, -50.0])
FAULTS = st.sampled_from(
    [None] * 5 + ["nan", "inf", "empty", "one example", "other features", "one axis", "three axes"]
)


def spoil(array, fault, rng):
    """The array with one fault, in a random place."""
    array = array.copy()
    match fault:
        case "nan" | "inf":
            array.flat[rng.integers(array.size)] = {"nan": np.nan, "inf": -np.inf}[fault]
        case "empty":
            array = array[:0]
        case "one example":
            array = array[:1]
        case "other features":
            array = array[:, :-1]
        case "one axis":
            array = array[:, 0]
        case "three axes":
            array = array[..., None]
    return array


def draw_sets(seed, n, m, scale, shift, fault):
    """Two sets of features, the fault in one of them; some rows are repeated and some features constant."""
    rng = np.random.default_rng(seed)
    sets = [rng.normal(size=(size, D)) * scale + shift for size in (n, m)]
    if rng.random() < 0.3:
        sets[0][1] = sets[0][0]
    if rng.random() < 0.3:
        sets[0][:, 0] = sets[1][:, 0] = shift
    if rng.random() < 0.2:
        sets[1] = sets[0].copy()
    sets = [one_set.astype(np.float32) for one_set in sets]
    faulty = rng.integers(2)
    sets[faulty] = spoil(sets[faulty], fault, rng)
    return sets


def refused_or(call, fault):
    """What the call returns, or None where the input is at fault, which must be a UsageError."""
    if fault is None:
        return call()
    with pytest.raises(UsageError):
        call()
    return None


@THOUSAND
@given(SEEDS, st.just(7), SIZES, SCALES, SHIFTS, FAULTS)
def test_frechet_distance(seed, n, m, scale, shift, fault):
    x, y = draw_sets(seed, n, m, scale, shift, fault)
    found = refused_or(lambda: frechet_distance(x, y), fault)
    if found is None:
        return
    unit = np.trace(np.cov(x.astype(float).T)) + np.trace(np.cov(y.astype(float).T))
    assert found >= 0
    close = {"rtol": 1e-6, "atol": 1e-6 * unit}  # roots of rounding, where covariances are singular
    np.testing.assert_allclose(frechet_distance(y, x), found, **close)
    np.testing.assert_allclose(frechet_distance(x[::-1, ::-1], y[:, ::-1]), found, **close)
    np.testing.assert_allclose(frechet_distance(x, x), 0, atol=1e-6 * unit)


@THOUSAND
@given(SEEDS, st.just(7), SIZES, SCALES, SHIFTS, FAULTS)
def test_kernel_distance(seed, n, m, scale, shift, fault):
    x, y = draw_sets(seed, n, m, scale, shift, fault)
    found = refused_or(lambda: kernel_distance(x, y), fault)
    if found is None:
        return
    kernel = lambda a, b: (a.astype(float) @ b.T.astype(float) / D + 1) ** 3
    largest = max(np.abs(kernel(a, b)).max() for a in (x, y) for b in (x, y))
    np.testing.assert_allclose(kernel_distance(y[::-1], x), found, rtol=1e-9, atol=1e-12 * largest)
    total = sum((k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)) for k in (kernel(x, x), kernel(y, y)))
    np.testing.assert_allclose(found, total - 2 * kernel(x, y).mean(), rtol=1e-9, atol=1e-12 * largest)


@THOUSAND
@given(SEEDS, st.just(7), SIZES, SCALES, SHIFTS, FAULTS)
def test_manifold_scores(seed, n, m, scale, shift, fault):
    x, y = draw_sets(seed, n, m, scale, shift, fault)
    found = refused_or(lambda: manifold_scores(x, y), fault)
    if found is None:
        return
    assert all(0 <= score <= 1 for score in (found.precision, found.recall, found.coverage))
    assert 0 <= found.density <= n / 3
    back = manifold_scores(y, x)
    assert (back.precision, back.recall) == (found.recall, found.precision)


@THOUSAND
@given(SEEDS, st.just(7), SIZES, SCALES, SHIFTS, FAULTS)
def test_nearest_training_examples_and_authenticity(seed, n, m, scale, shift, fault):
    x, y = draw_sets(seed, n, m, scale, shift, fault)
    if fault == "one example":
        x, fault = x[:1], "one example"  # one generated example is enough
    found = refused_or(lambda: authenticity(x, y), fault)
    if found is None:
        return
    assert 0 <= found <= 1
    near = nearest_training_examples(x, y, k=2)
    between = np.sort(np.linalg.norm(x[None].astype(float) - y[:, None], axis=-1), axis=1)[:, :2]
    np.testing.assert_allclose(near.distances, between, rtol=1e-6, atol=1e-6 * scale)
    assert near.indices.min() >= 0
    assert near.indices.max() < n


@THOUSAND
@given(
    SEEDS,
    st.sampled_from([1, 2, 7]),
    st.sampled_from([1, 2]),
    st.sampled_from([None] * 5 + ["nan", "empty", "sum", "negative"]),
)
def test_inception_score(seed, n, num_splits, fault):
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.full(4, 0.2), n).astype(np.float32)
    if fault in ("nan", "empty"):
        p = spoil(p, fault, rng)
    elif fault is not None:
        p = p - 0.5 if fault == "negative" else p * 0.9
    found = refused_or(
        lambda: inception_score(p, num_splits=num_splits), fault or ("splits" if n < num_splits else None)
    )
    if found is None:
        return
    assert 1 <= found.mean <= min(4, n) * (1 + 1e-6)
    assert 0 <= found.std <= 3


@THOUSAND
@given(
    SEEDS,
    st.sampled_from([2, 3]),
    SCALES,
    st.floats(0, 1, width=32),
    st.sampled_from([0.0, 1e-7, 1e-3, 1.0]),
    st.booleans(),
)
def test_slerp(seed, d, scale, t, apart, opposite):
    rng = np.random.default_rng(seed)
    start = (rng.normal(size=d) * scale).astype(np.float32)
    other = rng.normal(size=d) * scale
    end = ((start * (1 - apart) + other * apart) * (-1 if opposite else 1)).astype(np.float32)
    found = np.asarray(slerp(start, end, np.float32(t)), float)
    low, high = sorted(np.linalg.norm([start, end], axis=1))
    assert low * (1 - 1e-5) <= np.linalg.norm(found) <= high * (1 + 1e-5)
    back = np.asarray(slerp(end, start, np.float32(1) - np.float32(t)), float)
    if apart == 1:  # elsewhere the plane of the circle is a matter of rounding
        np.testing.assert_allclose(back, found, atol=2e-3 * high)  # as far as the vectors may be nearly opposite


@THOUSAND
@given(SEEDS, st.sampled_from([1, 2, 7]), st.sampled_from([None] * 5 + ["nan", "empty"]))
def test_path_length_summary(seed, n, fault):
    rng = np.random.default_rng(seed)
    lengths = spoil(rng.exponential(size=n).astype(np.float32), fault, rng)
    found = refused_or(lambda: path_length_summary(lengths), fault)
    if found is None:
        return
    assert lengths.min() * (1 - 1e-6) <= found.mean <= lengths.max() * (1 + 1e-6)
    assert np.asarray(found.kept).sum() >= 1
    assert n == 1 or np.isnan(found.std) or found.std >= 0


@THOUSAND
@given(SEEDS, st.sampled_from([1, 7]), st.sampled_from([None] * 5 + ["nan", "inf", "empty"]))
def test_overfitting(seed, n, fault):
    rng = np.random.default_rng(seed)
    train, validation, generated = (rng.normal(size=(3, n)) + np.array([1, 0, -1])[:, None]).astype(np.float32)
    train = spoil(train, fault, rng)
    r_t = refused_or(lambda: overfitting_r_t(train), fault)
    if r_t is None:
        refused_or(lambda: overfitting_r_v(train, validation, generated), fault)
        return
    assert -1 <= r_t <= 1
    assert 0 <= adjust_augmentation(0.4, r_t, num_images=4, ramp_images=5) <= 0.8
    r_v = float(overfitting_r_v(train, validation, generated))
    means = (x.astype(float).mean() for x in (train, validation, generated))
    one, two, three = means
    np.testing.assert_allclose(r_v * (one - three), one - two, rtol=1e-4, atol=1e-5)  # float32 differences
