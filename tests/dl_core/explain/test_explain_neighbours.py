"""Nearest examples: the ones that scikit-learn finds, in fixed memory, of any layer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from dl_core.errors import UsageError
from dl_core.explain.neighbours import features_of, nearest_examples

RNG = np.random.default_rng(0)
EXAMPLES = RNG.normal(size=(50, 4, 3)).astype(np.float32)
INPUTS = RNG.normal(size=(7, 4, 3)).astype(np.float32)
PARAMS = RNG.normal(size=(12, 6)).astype(np.float32)


def network(params, x):
    with jax.named_scope("net"):
        with jax.named_scope("hidden"):
            hidden = jnp.tanh(x.reshape(len(x), -1) @ params)
        return hidden[:, :3] * 2


def identity(params, x):
    return x.reshape(len(x), -1)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_the_nearest_examples_are_those_of_scikit_learn(metric):
    found = nearest_examples(identity, None, INPUTS, EXAMPLES, k=5, metric=metric)
    search = NearestNeighbors(n_neighbors=5, metric=metric, algorithm="brute").fit(EXAMPLES.reshape(50, -1))
    distances, indices = search.kneighbors(INPUTS.reshape(7, -1))
    np.testing.assert_array_equal(found.indices, indices)
    np.testing.assert_allclose(found.distances, distances, rtol=1e-5)  # theirs, and the result here, are float32


def test_an_example_finds_itself_at_distance_zero_and_its_copies_by_their_index():
    examples = np.concatenate([EXAMPLES, EXAMPLES[3:5], EXAMPLES[3:4]]) + 1000  # far from 0, where digits are lost
    found = nearest_examples(identity, None, examples[:10], examples, k=3)
    np.testing.assert_array_equal(found.indices[:, 0], np.arange(10))
    np.testing.assert_array_equal(found.distances[:, 0], 0)
    np.testing.assert_array_equal(found.indices[3], [3, 50, 52])
    np.testing.assert_array_equal(found.indices[4, :2], [4, 51])


def test_clusters_far_apart_keep_their_own_neighbours():
    """Within a cluster the distances are 1e-4 of those to the other, 1e-8 when squared: no digit in float32."""
    clusters = RNG.normal(size=(40, 5)) * 1e-2
    clusters[20:, 0] += 100
    clusters = clusters.astype(np.float32)
    found = nearest_examples(identity, None, clusters, clusters, k=4)
    indices = NearestNeighbors(n_neighbors=4, algorithm="brute").fit(clusters.astype(float)).kneighbors()[1]
    np.testing.assert_array_equal(found.indices[:, 1:], indices[:, :3])


def test_the_features_are_those_of_the_named_layer():
    hidden = np.tanh(EXAMPLES.reshape(50, -1) @ PARAMS)
    np.testing.assert_allclose(features_of(network, PARAMS, EXAMPLES, layer="hidden"), hidden, rtol=1e-4, atol=1e-5)
    found = nearest_examples(network, PARAMS, EXAMPLES[:7], EXAMPLES, layer="hidden", k=2)
    distances, indices = NearestNeighbors(n_neighbors=2).fit(hidden).kneighbors(hidden[:7])
    np.testing.assert_array_equal(found.indices, indices)
    np.testing.assert_allclose(found.distances, distances, atol=1e-4)  # tanh of two libraries


@pytest.mark.parametrize("options", [{"block_size": 3}, {"internal_batch_size": 8}, {"loop": "compiled"}])
def test_pieces_do_not_change_the_result(options):
    whole = nearest_examples(network, PARAMS, INPUTS, EXAMPLES, k=3)
    pieces = nearest_examples(network, PARAMS, INPUTS, EXAMPLES, k=3, **options)
    np.testing.assert_array_equal(pieces.indices, whole.indices)
    np.testing.assert_allclose(pieces.distances, whole.distances, rtol=1e-4)  # products of other shapes


def test_features_computed_once_serve_many_searches():
    done = []
    table = features_of(network, PARAMS, EXAMPLES, internal_batch_size=20, progress=lambda *at: done.append(at))
    assert done == [(1, 3), (2, 3), (3, 3)]
    given = nearest_examples(network, PARAMS, INPUTS, None, example_features=table)
    computed = nearest_examples(network, PARAMS, INPUTS, EXAMPLES)
    np.testing.assert_array_equal(given.indices, computed.indices)


def test_the_search_can_be_compiled():
    search = lambda params, inputs: nearest_examples(network, params, inputs, jnp.asarray(EXAMPLES), k=3)
    compiled = jax.jit(search)(PARAMS, jnp.asarray(INPUTS))
    eager = nearest_examples(network, PARAMS, INPUTS, EXAMPLES, k=3)
    np.testing.assert_array_equal(compiled.indices, eager.indices)
    np.testing.assert_allclose(compiled.distances, eager.distances, rtol=1e-4)  # float32 inside, float64 outside


def test_half_precision_features_are_compared_in_full():
    images = jnp.asarray(EXAMPLES, jnp.bfloat16)
    found = nearest_examples(identity, None, images[:4], images, k=2)
    exact = np.asarray(images, np.float64).reshape(50, -1)
    np.testing.assert_allclose(
        found.distances, NearestNeighbors(n_neighbors=2).fit(exact).kneighbors(exact[:4])[0], rtol=1e-6
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"k": 0}, r"k must be in \[1, 50\], the number of examples, got 0"),
        ({"k": 51}, r"k must be in \[1, 50\]"),
        ({"metric": "euclid"}, "unknown metric 'euclid'; did you mean 'euclidean'"),
        ({"block_size": 0}, "block_size must be at least 1, got 0"),
        ({"internal_batch_size": 0}, "internal_batch_size must be at least 1, got 0"),
        ({"layer": "hiden"}, "unknown layer 'hiden'; did you mean 'hidden'"),
        ({"examples": None}, "give the examples or their example_features, got neither"),
        ({"example_features": EXAMPLES[:, 0]}, "got both"),
        ({"examples": None, "example_features": EXAMPLES[:, 0, :2]}, "must be of the same layer"),
        ({"examples": EXAMPLES[:, :2]}, r"of the shape of the inputs, \[n, …\] = \[n, 4, 3\], got \[50, 2, 3\]"),
        ({"examples": EXAMPLES * np.nan}, "must be finite"),
        ({"inputs": INPUTS[:0]}, "inputs must hold at least one example"),
        ({"inputs": INPUTS.astype(int)}, "inputs must be an array of floating numbers"),
        ({"apply_fn": lambda params, x: x.sum()}, r"features must be one array \[batch, ...\]"),
        ({"apply_fn": lambda params, x: {"a": x}}, "features must be one array .* got dict"),
        ({"apply_fn": identity, "examples": EXAMPLES * 0, "metric": "cosine"}, "must not be all zeros with the metric"),
    ],
)
@pytest.mark.usefixtures("annotations_off")
def test_nonsense_is_refused(changes, words):
    given = {"apply_fn": network, "params": PARAMS, "inputs": INPUTS, "examples": EXAMPLES, **changes}
    with pytest.raises(UsageError, match=words):
        nearest_examples(**given)
