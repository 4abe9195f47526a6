"""PCA and Isomap are scikit-learn's; the checks that come with every embedding count neighbours rightly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import manifold
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA

from dl_core.errors import UsageError
from dl_core.explain.embedding import isomap, neighbour_check, pca

RNG = np.random.default_rng(0)
FEATURES = (RNG.normal(size=(60, 7)) @ np.diag([5, 3, 2, 1, 1, 0.5, 0.1])).astype(np.float32)
DIGITS = load_digits().data[:200].astype(np.float32)


def test_principal_components_are_those_of_scikit_learn():
    found, expected = pca(FEATURES + 100, 3), PCA(3).fit(FEATURES.astype(float) + 100)
    # float32 of the features at 100: 7 digits of which 2 are the offset
    np.testing.assert_allclose(found.points, expected.transform(FEATURES.astype(float) + 100), atol=1e-4)
    np.testing.assert_allclose(found.explained_variance_ratio, expected.explained_variance_ratio_, rtol=1e-5)
    assert found.kl_divergence is None


def test_more_features_than_examples_and_constant_ones_are_no_trouble():
    wide = RNG.normal(size=(8, 30)).astype(np.float32)
    np.testing.assert_allclose(pca(wide, 2).points, PCA(2).fit_transform(wide.astype(float)), atol=1e-5)
    flat = pca(np.ones((8, 3), np.float32))
    np.testing.assert_array_equal(flat.points, 0)
    np.testing.assert_array_equal(flat.explained_variance_ratio, 0)


def test_all_components_keep_every_neighbour():
    whole = pca(FEATURES, 7)
    assert whole.trustworthiness == whole.continuity == 1
    np.testing.assert_array_equal(whole.neighbours_kept, 1)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_isomap_is_that_of_scikit_learn(metric):
    found = isomap(DIGITS, num_neighbors_graph=10, metric=metric)
    expected = manifold.Isomap(n_neighbors=10, metric=metric).fit_transform(DIGITS.astype(float))
    np.testing.assert_allclose(found.points, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())  # float32 result
    assert found.explained_variance_ratio is None


@pytest.mark.parametrize(("k", "metric"), [(1, "euclidean"), (5, "euclidean"), (12, "cosine")])
def test_trustworthiness_is_that_of_scikit_learn_and_continuity_its_converse(k, metric):
    points = RNG.normal(size=(200, 2)).astype(np.float32) + DIGITS[:, 20:22]  # distances to digits differ: no ties
    features = DIGITS + RNG.normal(size=DIGITS.shape).astype(np.float32)
    check = neighbour_check(features, points, num_neighbors=k, metric=metric)
    expected = manifold.trustworthiness(features.astype(float), points.astype(float), n_neighbors=k, metric=metric)
    np.testing.assert_allclose(check.trustworthiness, expected, atol=1e-6)  # float32 result
    if metric == "euclidean":
        converse = manifold.trustworthiness(points.astype(float), features.astype(float), n_neighbors=k)
        np.testing.assert_allclose(check.continuity, converse, atol=1e-6)


def test_neighbours_kept_are_counted_point_by_point():
    line = np.arange(12, dtype=np.float32)[:, None] ** 1.1  # growing gaps: two nearest without ties
    swapped = line.copy()
    swapped[[0, 11]] = swapped[[11, 0]]
    near = lambda table: [set(np.argsort(np.abs(table[:, 0] - own), kind="stable")[1:3]) for own in table[:, 0]]
    expected = [len(a & b) / 2 for a, b in zip(near(line), near(swapped), strict=True)]
    check = neighbour_check(line, swapped, num_neighbors=2)
    np.testing.assert_allclose(check.neighbours_kept, expected)
    assert check.neighbours_kept[0] == check.neighbours_kept[11] == 0
    assert check.neighbours_kept[6] == 1


def test_chance_is_what_random_embeddings_get():
    checks = [neighbour_check(FEATURES, RNG.normal(size=(60, 2)), num_neighbors=6) for _ in range(40)]
    # means of 40; one embedding varies by 0.02 in trustworthiness and 0.013 in the share
    mean = lambda values: np.mean([np.mean(value) for value in values])
    np.testing.assert_allclose(mean(c.trustworthiness for c in checks), checks[0].chance_of_trustworthiness, atol=0.012)
    np.testing.assert_allclose(mean(c.continuity for c in checks), checks[0].chance_of_trustworthiness, atol=0.012)
    np.testing.assert_allclose(mean(c.neighbours_kept for c in checks), 6 / 59, atol=0.008)
    np.testing.assert_allclose(checks[0].chance_of_neighbours_kept, 6 / 59, rtol=1e-6)


def test_the_check_is_the_same_in_a_space_moved_turned_and_scaled():
    turn = np.linalg.qr(RNG.normal(size=(7, 7)))[0]
    points = FEATURES[:, :2]
    plain = neighbour_check(FEATURES, points)
    moved = neighbour_check(FEATURES @ turn * 3 + 50, -2 * points + 9)
    np.testing.assert_allclose(moved.trustworthiness, plain.trustworthiness, atol=1e-6)
    np.testing.assert_array_equal(moved.neighbours_kept, plain.neighbours_kept)


def test_it_can_be_compiled():
    compiled = jax.jit(lambda features: pca(features, 2))(jnp.asarray(FEATURES))
    eager = pca(FEATURES, 2)
    np.testing.assert_allclose(compiled.points, eager.points, atol=1e-4)  # float32 inside, float64 outside
    np.testing.assert_allclose(compiled.trustworthiness, eager.trustworthiness, atol=1e-3)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: pca(FEATURES * np.nan), "features must be finite"),
        (lambda: pca(FEATURES[:1]), "features must hold at least 5 examples, got 1"),
        (lambda: pca(FEATURES[:, 0]), r"features must be a table \[n, d\], got \[60\]"),
        (lambda: pca(FEATURES.astype(int)), "features must be floating numbers, got int64"),
        (lambda: pca(FEATURES, 0), r"num_components must be in \[1, 7\].* got 0"),
        (lambda: pca(FEATURES, 8), r"num_components must be in \[1, 7\]"),
        (lambda: pca(FEATURES, num_neighbors=30), r"num_neighbors must be in \[1, n / 2\) = \[1, 30\), got 30"),
        (lambda: isomap(FEATURES, metric="cosin"), "unknown metric 'cosin'; did you mean 'cosine'"),
        (lambda: isomap(FEATURES, num_neighbors_graph=60), r"num_neighbors_graph must be in \[1, 59\], got 60"),
        (lambda: jax.jit(isomap)(FEATURES), "cannot be inside of jit"),
        (lambda: neighbour_check(FEATURES, FEATURES[:5]), r"one row for each of the 60 examples, got \[5, 7\]"),
        (lambda: neighbour_check(FEATURES, FEATURES / 0), "points must be finite"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero", "ignore:invalid value")
@pytest.mark.usefixtures("annotations_off")
def test_nonsense_is_refused(call, words):
    with pytest.raises(UsageError, match=words):
        call()
