"""Kernel distance, precision and recall of generators, and copies of training examples, against plain NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from partitions import assert_any_partition_gives_the_whole
from sklearn.neighbors import NearestNeighbors

from dl_core.errors import UsageError
from dl_core.metrics.feature_sets import two_set_metric
from dl_core.metrics.kernel_distance import kernel_distance, kernel_distance_of_subsets
from dl_core.metrics.manifold import manifold_scores
from dl_core.metrics.memorization import authenticity, nearest_training_examples

RANDOM = np.random.default_rng(0)
REAL = RANDOM.normal(size=(50, 5)).astype(np.float32)
FAKE = (RANDOM.normal(size=(37, 5)) * 1.2 + 0.3).astype(np.float32)
FUNCTIONS = (kernel_distance, manifold_scores, authenticity)


def cubic_discrepancy(x, y):
    x, y = x.astype(float), y.astype(float)
    kernel = lambda a, b: (a @ b.T / x.shape[1] + 1) ** 3
    within = lambda a: (kernel(a, a).sum() - np.trace(kernel(a, a))) / (len(a) * (len(a) - 1))
    return within(x) + within(y) - 2 * kernel(x, y).mean()


def distances(x, y):
    return np.linalg.norm(x[:, None].astype(float) - y[None].astype(float), axis=-1)


def region_scores(x, y, k):
    """The definitions of Kynkäänniemi et al. and Naeem et al., on whole matrices of distances."""
    reach_x, reach_y = (np.sort(distances(z, z), axis=1)[:, k] for z in (x, y))  # column 0 is the point itself
    between = distances(x, y)
    in_x, in_y = between <= reach_x[:, None], between <= reach_y[None]
    return in_x.any(axis=0).mean(), in_y.any(axis=1).mean(), in_x.sum(axis=0).mean() / k, in_x.any(axis=1).mean()


@pytest.mark.parametrize("batch_size", [7, 256])
def test_the_kernel_distance_is_the_unbiased_discrepancy(batch_size):
    found = kernel_distance(REAL, FAKE, batch_size=batch_size)
    np.testing.assert_allclose(found, cubic_discrepancy(REAL, FAKE), rtol=1e-10)  # float64


def test_the_kernel_distance_of_one_distribution_is_zero_on_average_for_any_number_of_examples():
    for n in (3, 40):
        runs = np.asarray(jax.jit(jax.vmap(kernel_distance))(*RANDOM.normal(size=(2, 2000, n, 3)).astype(np.float32)))
        assert abs(runs.mean()) < 4 * runs.std() / np.sqrt(2000)
        assert runs.min() < 0


def test_subsets_scatter_around_the_kernel_distance_of_all():
    found = kernel_distance_of_subsets(REAL, FAKE, key=jax.random.key(0), num_subsets=400, subset_size=37)
    error = found.std / np.sqrt(400)
    assert abs(found.mean - kernel_distance(REAL, FAKE)) < 4 * error
    np.testing.assert_allclose(found.std, np.std(found.distances), rtol=1e-12)
    where = np.arange(50) < 37  # as many as are asked for
    whole = kernel_distance_of_subsets(
        REAL, FAKE, key=jax.random.key(0), num_subsets=400, subset_size=37, where_reference=where
    )
    np.testing.assert_allclose(whole.distances, [cubic_discrepancy(REAL[:37], FAKE)] * 400, rtol=1e-10)


def test_subsets_are_the_same_inside_jit_and_leave_out_masked_rows():
    draw = lambda x, y, where: kernel_distance_of_subsets(
        x, y, key=jax.random.key(1), num_subsets=5, subset_size=20, where_reference=where
    )
    where = np.arange(50) < 30
    spoilt = np.where(where[:, None], REAL, np.nan).astype(np.float32)
    outside = draw(spoilt, FAKE, where)
    np.testing.assert_allclose(jax.jit(draw)(spoilt, FAKE, where).distances, outside.distances, rtol=1e-3, atol=1e-5)
    assert np.isfinite(outside.distances).all()


@pytest.mark.parametrize(("k", "shift", "batch_size"), [(3, 0, 256), (3, 1000, 256), (1, 0, 16)])
def test_precision_and_recall_are_those_of_the_definitions_even_far_from_the_origin(k, shift, batch_size):
    x, y = REAL + np.float32(shift), FAKE + np.float32(shift)
    found = manifold_scores(x, y, k=k, batch_size=batch_size)
    np.testing.assert_allclose(found, region_scores(x, y, k), rtol=1e-12)


def test_ties_on_a_grid_are_inside():
    """Integers: k-th distances and distances between the sets are equal, and <= has to hold exactly."""
    x, y = (RANDOM.permutation(243)[:n, None] // 3 ** np.arange(5)[None] % 3 * 1.0 for n in (50, 37))
    np.testing.assert_allclose(manifold_scores(x, y + 1), region_scores(x, y + 1, 3), rtol=1e-12)


def test_a_generator_that_drops_modes_loses_recall_and_one_that_adds_them_precision():
    one, two = np.zeros((50, 1)), 20.0 * (np.arange(50) % 2)[:, None]
    dropped = manifold_scores(REAL + two, FAKE * 0.5 + one[:37])  # half of the real modes, and their inner part
    assert dropped.precision > 0.9
    assert max(dropped.recall, dropped.coverage) <= 0.5
    added = manifold_scores(REAL + one, FAKE * 0.5 + two[:37])
    assert added.precision < 0.52  # 19 of 37
    assert added.recall > 0.2  # what an inner part reaches


def test_one_set_against_itself_is_perfect():
    found = manifold_scores(REAL, REAL)
    assert (found.precision, found.recall, found.coverage) == (1, 1, 1)
    assert float(kernel_distance(REAL, REAL[::-1])) < 0  # unbiased, and therefore not 0
    assert authenticity(REAL, REAL) == 0


@pytest.mark.parametrize("batch_size", [16, 256])
def test_nearest_training_examples_are_those_of_scikit_learn(batch_size):
    found = nearest_training_examples(REAL, FAKE, k=4, batch_size=batch_size)
    near, indices = NearestNeighbors(n_neighbors=4, algorithm="brute").fit(REAL.astype(float)).kneighbors(FAKE)
    np.testing.assert_array_equal(found.indices, indices)
    np.testing.assert_allclose(found.distances, near, rtol=1e-6)  # scikit-learn's: float32 queries


def test_a_copy_is_at_distance_zero_even_far_from_the_origin_and_in_float32():
    far = REAL + np.float32(1e4)
    for nearest in (nearest_training_examples, jax.jit(nearest_training_examples)):
        found = nearest(far, far[10:15])
        np.testing.assert_array_equal(found.distances, np.zeros((5, 1)))
        np.testing.assert_array_equal(found.indices[:, 0], np.arange(10, 15))


def test_masked_training_examples_are_nobodys_neighbours():
    where = np.arange(50) >= 25
    found = nearest_training_examples(np.where(where[:, None], REAL, np.nan).astype(np.float32), REAL, k=2, where=where)
    assert found.indices.min() >= 25
    few = jax.jit(lambda where: nearest_training_examples(REAL, FAKE, k=3, where=where))(np.arange(50) < 2)
    assert np.isinf(few.distances[:, 2]).all()
    assert np.isfinite(few.distances[:, :2]).all()


def test_authenticity_is_the_share_that_is_farther_than_training_examples_are_from_each_other():
    between, own = distances(FAKE, REAL), np.sort(distances(REAL, REAL), axis=1)[:, 1]
    expected = (between.min(axis=1) > own[between.argmin(axis=1)]).mean()
    assert authenticity(REAL, FAKE) == pytest.approx(expected)
    noisy_copies = REAL + RANDOM.normal(size=REAL.shape).astype(np.float32) * 0.01
    assert authenticity(REAL, noisy_copies) == 0
    noisy_copies[::2] += 10
    assert authenticity(REAL, noisy_copies) == 0.5


@pytest.mark.parametrize("function", FUNCTIONS)
def test_inside_jit_masked_rows_are_not_there(function):
    expected = function(REAL[:41], FAKE[:30])
    real = np.where(np.arange(50)[:, None] < 41, REAL, np.nan).astype(np.float32)
    fake = np.where(np.arange(37)[:, None] < 30, FAKE, 1e30).astype(np.float32)
    keep = {"where_reference": np.arange(50) < 41, "where_generated": np.arange(37) < 30}
    for form in (function, jax.jit(function)):
        found = form(real, fake, **keep)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), found, expected)  # float32 inside


@pytest.mark.parametrize("function", FUNCTIONS)
def test_any_partition_gives_the_metric_of_the_whole(function):
    rows = np.concatenate([REAL, FAKE]), np.arange(87) >= 50
    metric = two_set_metric(function, 90, 5)
    assert_any_partition_gives_the_whole(metric, rows, function(REAL, FAKE), rtol=1e-9, seeds=1)  # float64 outside jit


def test_inside_jit_the_kernel_distance_keeps_four_digits_of_its_kernel():
    x, y = RANDOM.normal(size=(2, 600, 64)).astype(np.float32) + np.float32(1)
    error = abs(float(jax.jit(kernel_distance)(x, y)) - cubic_discrepancy(x, y))
    assert error < 1e-4  # of kernel values around (1 + 1)³ = 8


@pytest.mark.usefixtures("annotations_off")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kernel_distance(REAL[:1], FAKE), "reference must hold at least 2 examples, got 1"),
        (lambda: kernel_distance(REAL, FAKE[:, :3]), "equally many features, got 5 and 3"),
        (lambda: kernel_distance(REAL, FAKE, batch_size=0), "batch_size must be at least 1, got 0"),
        (lambda: kernel_distance(REAL.reshape(50, 5, 1), FAKE), r"\[n, d\], one feature vector for each example"),
        (lambda: manifold_scores(REAL, FAKE[:3], k=3), "generated must hold at least 4 examples, got 3"),
        (lambda: manifold_scores(REAL, FAKE, k=0), "k must be at least 1, got 0"),
        (lambda: nearest_training_examples(REAL, FAKE, k=51), "training must hold at least 51 examples, got 50"),
        (lambda: nearest_training_examples(REAL, FAKE, k=0), "k must be at least 1, got 0"),
        (lambda: nearest_training_examples(REAL, FAKE * np.nan), "generated must be finite"),
        (lambda: authenticity(REAL[:1], FAKE), "training must hold at least 2 examples"),
        (lambda: kernel_distance_of_subsets(REAL, FAKE, key=jax.random.key(0)), "at least 1000 examples, got 50"),
        (
            lambda: kernel_distance_of_subsets(REAL, FAKE, key=jax.random.key(0), subset_size=1),
            "at least 2 examples, got 100 of 1",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(call, message):
    with pytest.raises(UsageError, match=message):
        call()


def test_bfloat16_features_are_summed_in_float32():
    half = jnp.asarray(REAL, jnp.bfloat16)
    inside = jax.jit(kernel_distance)(half, half[::-1] + 1)
    np.testing.assert_allclose(inside, kernel_distance(half, half[::-1] + 1), rtol=1e-4)
