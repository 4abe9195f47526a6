"""t-SNE: scikit-learn's probabilities, the gradient of its own loss, and as good a loss in the end."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.distance import pdist, squareform
from scipy.special import xlogy
from sklearn import manifold
from sklearn.datasets import load_digits
from sklearn.manifold._t_sne import _joint_probabilities, _joint_probabilities_nn
from sklearn.neighbors import NearestNeighbors

from dl_core.errors import UsageError
from dl_core.explain import tsne_affinities, tsne_forces
from dl_core.explain.tsne import tsne
from dl_core.explain.tsne_affinities import Edges, joint_probabilities, nearest_probabilities, precisions
from dl_core.explain.tsne_forces import exact_repulsion, gradient, interpolated_repulsion, kl_divergence

RNG = np.random.default_rng(0)
# digits are whole numbers, and noise keeps their distances from being equal
DIGITS = (load_digits().data[:300] + 0.1 * RNG.normal(size=(300, 64))).astype(np.float32)
POINTS = (RNG.normal(size=(300, 2)) * 5).astype(np.float32)
FEW = DIGITS[:120]  # of one shape in all maps here, and of one perplexity, so that they share their programs

loss, slope_of_loss, repulsion = map(jax.jit, (kl_divergence, gradient, exact_repulsion))


def dense(edges: Edges, n: int) -> np.ndarray:
    matrix = np.zeros((n, n))
    np.add.at(matrix, (np.asarray(edges.start)[:, None], np.asarray(edges.end)), np.asarray(edges.probability))
    return matrix


def test_probabilities_are_those_of_scikit_learn():
    """It stops at 1e-5 in the entropy and computes in float32: 3e-5 of a probability, and less of the largest."""
    expected = squareform(_joint_probabilities(squareform(pdist(DIGITS)) ** 2, 30.0, 0))
    np.testing.assert_allclose(joint_probabilities(DIGITS, 30.0), expected, atol=3e-5 * expected.max())


def test_probabilities_of_neighbours_are_those_of_scikit_learn():
    graph = NearestNeighbors(n_neighbors=31).fit(DIGITS.astype(float)).kneighbors_graph(mode="distance")
    graph.data **= 2
    expected = _joint_probabilities_nn(graph, 10.0, 0).toarray()
    found = dense(nearest_probabilities(DIGITS, 10.0), 300)
    np.testing.assert_array_equal(found > 0, expected > 0)
    np.testing.assert_allclose(found, expected, atol=1e-4 * expected.max())  # it stops at 1e-5 in the entropy
    np.testing.assert_allclose(found, found.T)
    np.testing.assert_allclose(found.sum(), 1, rtol=1e-5)


@pytest.mark.parametrize("perplexity", [1.5, 30.0, 250.0])
@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_the_perplexity_is_reached(perplexity, scale):
    features = (DIGITS * scale).astype(np.float32)
    table = precisions(features, perplexity)
    squared = squareform(pdist(features.astype(float))) ** 2
    np.fill_diagonal(squared, np.inf)
    weights = np.exp(-np.asarray(table.precision, float)[:, None] * (squared - squared.min(axis=1)[:, None]))
    p = weights / weights.sum(axis=1)[:, None]
    reached = np.exp(-xlogy(p, p).sum(axis=1))
    np.testing.assert_allclose(reached, perplexity, rtol=1e-5)


def test_the_gradient_is_that_of_the_loss():
    features, points = DIGITS[:60], jnp.asarray(POINTS[:60])
    for affinities in (joint_probabilities(features, 9.0), precisions(features, 9.0)):
        expected = jax.jit(jax.grad(kl_divergence, argnums=1))(affinities, points)
        # sums of terms that are ten times larger, in float32
        np.testing.assert_allclose(slope_of_loss(affinities, points), expected, atol=1e-4 * np.abs(expected).max())


def test_the_loss_is_the_divergence_of_the_two_matrices():
    p = np.asarray(joint_probabilities(DIGITS, 20.0), float)
    w = 1 / (1 + squareform(pdist(POINTS.astype(float))) ** 2)
    np.fill_diagonal(w, 0)
    expected = (xlogy(p, p) - xlogy(p, w / w.sum())).sum()
    np.testing.assert_allclose(loss(jnp.asarray(p, jnp.float32), jnp.asarray(POINTS)), expected, rtol=1e-5)
    np.testing.assert_allclose(loss(precisions(DIGITS, 20.0), jnp.asarray(POINTS)), expected, rtol=1e-5)
    edges = nearest_probabilities(DIGITS, 20.0)
    p = dense(edges, 300)
    expected = (xlogy(p, p) - xlogy(p, w / w.sum())).sum()
    np.testing.assert_allclose(loss(edges, jnp.asarray(POINTS)), expected, rtol=1e-5)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_probabilities_computed_again_in_every_step_give_the_same_gradient(metric):
    points = jnp.asarray(POINTS)
    kept = slope_of_loss(joint_probabilities(DIGITS, 20.0, metric), points, 12.0)
    again = slope_of_loss(precisions(DIGITS, 20.0, metric), points, 12.0)
    np.testing.assert_allclose(again, kept, atol=1e-4 * np.abs(kept).max())  # float32 distances


@pytest.mark.parametrize(
    ("extent", "tolerance"),
    # the spline is exact where the kernel is a polynomial, and off by 1 % of the forces where its width is 2.5 nodes;
    # beyond 404 the spacing grows with the extent
    [(1e-4, 1e-5), (1.0, 1e-5), (15.0, 2e-3), (60.0, 0.02), (150.0, 0.02), (400.0, 0.02), (800.0, 0.25)],
)
def test_interpolated_forces_are_close_to_exact_ones(extent, tolerance):
    points = jnp.asarray(extent * np.random.default_rng(1).uniform(-0.5, 0.5, size=(1000, 2)), jnp.float32)
    exact, normaliser = repulsion(points)
    near, near_normaliser = jax.jit(interpolated_repulsion)(points)
    assert np.linalg.norm(near - exact) < tolerance * np.linalg.norm(exact)
    # both forces of a pair are on the grid, of opposite sign
    np.testing.assert_allclose(near.sum(axis=0), 0, atol=1e-4 * np.abs(exact).sum())
    assert abs(near_normaliser / normaliser - 1) < max(tolerance, 1e-4)


def test_a_point_far_outside_leaves_the_forces_of_the_others_as_they_were():
    points = np.concatenate([POINTS, [[350.0, -200.0]]]).astype(np.float32)
    exact, near = repulsion(jnp.asarray(points))[0], jax.jit(interpolated_repulsion)(jnp.asarray(points))[0]
    assert np.linalg.norm(near - exact) < 0.02 * np.linalg.norm(exact)


def test_the_loss_in_the_end_is_as_low_as_scikit_learn_s():
    """Roundings grow until single points lie elsewhere, so that one run says less than the mean."""
    losses, trust = [], []
    for seed in range(3):
        start = np.random.default_rng(seed).normal(size=(300, 2), scale=1e-4).astype(np.float32)
        ours = tsne(DIGITS, init=start, method="exact", n_iter=500)
        theirs = manifold.TSNE(init=start.copy(), method="exact", max_iter=500).fit(DIGITS)
        losses.append((float(ours.kl_divergence), theirs.kl_divergence_))
        kept = manifold.trustworthiness(DIGITS, theirs.embedding_, n_neighbors=10)
        trust.append((float(ours.trustworthiness), kept))
    ours, theirs = np.transpose(losses)
    assert (ours < 1.1 * theirs).all()
    assert ours.mean() < 1.08 * theirs.mean()
    np.testing.assert_allclose(*np.transpose(trust), atol=0.02)


def test_both_methods_keep_clusters_apart_and_their_neighbours_together():
    """Roundings decide whether a single point stays behind in another cluster; of 24 maps, one had such a point."""
    centres = np.random.default_rng(2).normal(size=(4, 64)) * 4
    labels = np.arange(120) % 4
    features = (centres[labels] + np.random.default_rng(3).normal(size=(120, 64))).astype(np.float32)
    for method in ("exact", "fft"):
        result = tsne(features, perplexity=10.0, method=method, n_iter=400)
        distances = squareform(pdist(result.points)) + np.diag(np.full(120, np.inf))
        assert (labels[distances.argmin(axis=1)] == labels).mean() > 0.98
        to_others = np.where(labels[:, None] == labels[None], np.inf, distances).min(axis=1)
        assert np.quantile(to_others, 0.05) > 2 * np.median(distances.min(axis=1))
        assert result.trustworthiness > 0.8 > 0.6 > result.chance_of_trustworthiness
        assert result.neighbours_kept.mean() > 2 * result.chance_of_neighbours_kept


@pytest.mark.parametrize("method", ["exact", "fft"])
def test_copies_and_equal_points_are_no_trouble(method):
    features = np.repeat(DIGITS[:8], 15, axis=0)  # more copies than the perplexity: none reaches it
    result = tsne(features, perplexity=10.0, method=method, n_iter=100)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(result))
    same = tsne(np.ones_like(FEW), perplexity=10.0, method=method, n_iter=10)
    np.testing.assert_allclose(same.points, 0, atol=1e-20)  # the transforms' roundings
    assert np.isfinite(same.kl_divergence)


def test_features_moved_turned_and_scaled_have_the_same_probabilities():
    turn = np.linalg.qr(RNG.normal(size=(64, 64)))[0]
    moved = (DIGITS.astype(float) @ turn * 7 + 3).astype(np.float32)
    plain = np.asarray(joint_probabilities(DIGITS, 20.0))
    # the moved features are rounded to float32, by 1e-7 of their size
    np.testing.assert_allclose(joint_probabilities(moved, 20.0), plain, atol=1e-5 * plain.max())


def test_drivers_pieces_and_jit_agree():
    seen = []
    options = {"init": POINTS[:120], "perplexity": 10.0, "n_iter": 60, "exaggeration_iter": 20, "learning_rate": 1.0}
    host = tsne(FEW, progress=lambda *at: seen.append(at), **options)
    assert seen == [(1, 2), (2, 2)]
    compiled = tsne(FEW, loop="compiled", **options)
    np.testing.assert_allclose(compiled.points, host.points, atol=1e-4)
    traced = jax.jit(lambda x: tsne(x, **options))(jnp.asarray(FEW))
    np.testing.assert_allclose(
        traced.points, host.points, atol=1e-2
    )  # probabilities in float32 inside, float64 outside
    np.testing.assert_allclose(traced.kl_divergence, host.kl_divergence, rtol=1e-3)


def test_memory_of_many_points_is_fixed(monkeypatch):
    options = {"init": POINTS[:120], "perplexity": 10.0, "n_iter": 5, "learning_rate": 1.0}
    kept = tsne(FEW, **options)
    module = importlib.import_module("dl_core.explain.tsne")  # the package has the function under this name
    monkeypatch.setattr(module, "_MOST_PAIRS", 100)
    monkeypatch.setattr(module, "joint_probabilities", None)
    again = tsne(FEW, **options)
    np.testing.assert_allclose(again.points, kept.points, atol=1e-3)


def test_maps_of_three_components_are_made_of_all_pairs():
    result = tsne(FEW, num_components=3, perplexity=10.0, n_iter=600, metric="cosine")
    assert result.points.shape == (120, 3)
    assert result.trustworthiness > 0.85


def test_the_number_of_steps_is_exact_and_a_random_start_is_its_key_s():
    run = lambda key, n_iter=1: tsne(FEW, key=jax.random.key(key), init="random", perplexity=10.0, n_iter=n_iter)
    np.testing.assert_array_equal(run(0).points, run(0).points)
    assert np.abs(run(0).points - run(1).points).max() > 1e-5
    start = 1e-4 * jax.random.normal(jax.random.key(0), (120, 2))
    slope = slope_of_loss(joint_probabilities(FEW, 10.0), start, 12.0)
    expected = start - 50.0 * 0.8 * slope  # the first step: the least learning rate, and gains of 0.8
    np.testing.assert_allclose(run(0).points, expected - expected.mean(axis=0)[None], rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"perplexity": 39.0}, r"perplexity must be in \(1, n - 1\) = \(1, 39\).* got 39.0"),
        ({"perplexity": 1.0}, "perplexity must be in"),
        ({"perplexity": float("nan")}, "perplexity must be in"),
        ({"features": DIGITS[:1]}, "features must hold at least 5 examples, got 1"),
        ({"features": DIGITS[:40] * np.nan}, "features must be finite"),
        ({"features": DIGITS[:40].astype(int)}, "features must be floating numbers"),
        ({"num_neighbors": 20}, r"num_neighbors must be in \[1, n / 2\) = \[1, 20\), got 20"),
        ({"metric": "manhattan"}, "unknown metric 'manhattan'; known: cosine, euclidean"),
        ({"method": "barnes_hut"}, "unknown method 'barnes_hut'; known: auto, exact, fft"),
        ({"method": "fft", "num_components": 3}, "method='fft' makes maps of 2 components, got 3"),
        ({"init": "Random"}, "unknown init 'Random'; did you mean 'random'"),
        ({"init": "random"}, "init='random' needs a key"),
        ({"init": POINTS}, r"init must be points \[40, 2\], got \[300, 2\]"),
        ({"init": POINTS[:40] * np.nan}, "init must be finite"),
        ({"learning_rate": "fast"}, "unknown learning_rate 'fast'"),
        ({"learning_rate": 0.0}, "learning_rate must lie in"),
        ({"early_exaggeration": 0.5}, r"early_exaggeration must lie in \[1, inf\), got 0.5"),
        ({"n_iter": 0}, r"n_iter must lie in \[1, inf\), got 0"),
        ({"exaggeration_iter": -1}, "exaggeration_iter must lie in"),
        ({"loop": "fast"}, "unknown loop 'fast'"),
    ],
)
@pytest.mark.usefixtures("annotations_off")
def test_nonsense_is_refused(changes, words):
    with pytest.raises(UsageError, match=words):
        tsne(**{"features": DIGITS[:40], "perplexity": 5.0, **changes})


def test_the_list_of_neighbours_is_not_made_inside_jit():
    with pytest.raises(UsageError, match="cannot be inside of jit"):
        jax.jit(lambda x: tsne(x, perplexity=5.0, method="fft"))(DIGITS[:40])


def test_rows_are_cut_into_slices_without_loss():
    matrix = np.triu(np.random.default_rng(4).uniform(size=(100, 100)), 1)
    matrix[3, 4:] = 0
    starts = np.concatenate([[0], np.cumsum((matrix > 0).sum(axis=1))])
    rows, columns = np.nonzero(matrix)
    edges = tsne_affinities._in_slices(starts, columns, matrix[rows, columns])
    np.testing.assert_allclose(dense(edges, 100), matrix, rtol=1e-6)
    assert edges.end.shape[1] == tsne_affinities.SLICE
    assert sorted(tsne_forces.NODES) == list(tsne_forces.NODES)
