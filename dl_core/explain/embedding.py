"""Embeddings: many features drawn as a few coordinates, and how far the picture can be believed.

Whatever is seen in an embedding has to be verified in the space of the features, independently of the embedding
("course notes"); so every one comes with a comparison of neighbourhoods in both spaces. With r(i, j) the rank of j
among the neighbours of i in the features, and r'(i, j) in the embedding (Venna, Kaski 2001, "Neighborhood preservation
in nonlinear projection methods: an experimental study"):

    trustworthiness = 1 - 2 / (n k (2n - 3k - 1)) Σ_i Σ_{j near i in the embedding} max(0, r(i, j) - k)
    continuity      = 1 - 2 / (n k (2n - 3k - 1)) Σ_i Σ_{j near i in the features}  max(0, r'(i, j) - k)

Trustworthiness falls where the picture shows neighbours that are none; continuity, where it tears neighbours apart.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from dl_core.errors import UsageError
from dl_core.explain.neighbours import Table, check_metric, check_table, comparable
from dl_core.metrics.float64 import in_float64
from dl_core.metrics.nearest import by_blocks, squared_distances

Coordinates = Float[Array | np.ndarray, "n c"]


class NeighbourCheck(NamedTuple):
    """The neighbourhoods of an embedding against those of the features.

    trustworthiness, continuity: 1 where every neighbourhood is the same; see the module for the formula.
    neighbours_kept: per point, the share of its k nearest in the features that are among its k nearest in the
      embedding; a low one marks a point whose place says little.
    chance_of_trustworthiness: the expectation of trustworthiness, and of continuity, for a random embedding.
    chance_of_neighbours_kept: the same of neighbours_kept, k / (n - 1).
    """

    trustworthiness: Float[Array, ""]
    continuity: Float[Array, ""]
    neighbours_kept: Float[Array, " n"]
    chance_of_trustworthiness: Float[Array, ""]
    chance_of_neighbours_kept: Float[Array, ""]


class Embedding(NamedTuple):
    """Coordinates of each example, and how far they can be believed; the same for every method.

    points: the coordinates.
    trustworthiness, continuity, neighbours_kept, chance_of_trustworthiness, chance_of_neighbours_kept: as in
      NeighbourCheck, which see.
    kl_divergence: of t-SNE, KL(P ‖ Q) in nats, its loss; None for others. Comparable at one perplexity of one data set.
    explained_variance_ratio: of PCA, the share of each component in the variance, falling; None for others.
    """

    points: Float[Array, "n c"]
    trustworthiness: Float[Array, ""]
    continuity: Float[Array, ""]
    neighbours_kept: Float[Array, " n"]
    chance_of_trustworthiness: Float[Array, ""]
    chance_of_neighbours_kept: Float[Array, ""]
    kl_divergence: Float[Array, ""] | None = None
    explained_variance_ratio: Float[Array, " c"] | None = None


def pca(features: Table, num_components: int = 2, *, num_neighbors: int | None = None) -> Embedding:
    """Principal components: the directions of greatest variance, by a singular value decomposition.

    Args:
      features: one row for each example, n >= 5.
      num_components: in [1, min(n, d)].
      num_neighbors: k of the neighbourhood check, in [1, n / 2); at most 10 by default.

    Returns:
      Embedding. The sign of a component is such that its largest entry in size is positive, as in scikit-learn.

    Raises:
      UsageError: features that are no finite table, or num_components or num_neighbors out of range.
    """
    check_embedding(features, num_components, "euclidean", num_neighbors)
    points, ratio = principal_components(features, num_components)
    return checked(features, jnp.asarray(points, jnp.float32), "euclidean", num_neighbors)._replace(
        explained_variance_ratio=jnp.asarray(ratio, jnp.float32)
    )


def isomap(
    features: Table,
    num_components: int = 2,
    *,
    num_neighbors_graph: int = 5,
    metric: str = "euclidean",
    num_neighbors: int | None = None,
) -> Embedding:
    """Distances along the graph of neighbours, laid out by classical scaling (Tenenbaum, de Silva, Langford 2000).

    It is scikit-learn's, on the CPU, outside of `jit`; its time grows as n² log n, for some thousands of points.

    Args:
      features: one row for each example, n >= 5.
      num_components: in [1, min(n, d)].
      num_neighbors_graph: of each point in the graph, in [1, n - 1]. scikit-learn warns where it falls into parts.
      metric: "euclidean" or "cosine".
      num_neighbors: k of the neighbourhood check, in [1, n / 2); at most 10 by default.

    Returns:
      Embedding.

    Raises:
      UsageError: as `pca`; an unknown metric; num_neighbors_graph out of range; features that are being traced.
    """
    check_embedding(features, num_components, metric, num_neighbors)
    n = len(features)
    if not 1 <= num_neighbors_graph <= n - 1:
        raise UsageError(f"num_neighbors_graph must be in [1, {n - 1}], got {num_neighbors_graph}")
    if isinstance(features, Tracer):
        raise UsageError("isomap is computed by scikit-learn and cannot be inside of jit; call it with concrete arrays")
    from sklearn.manifold import Isomap  # slow to import, and needed here only

    method = Isomap(n_components=num_components, n_neighbors=num_neighbors_graph, metric=metric)
    points = np.asarray(method.fit_transform(np.asarray(features, np.float64)))
    return checked(features, jnp.asarray(points, jnp.float32), metric, num_neighbors)


def neighbour_check(
    features: Table, points: Coordinates, *, num_neighbors: int | None = None, metric: str = "euclidean"
) -> NeighbourCheck:
    """Compares the neighbourhoods of any embedding with those of the features; some rows of the distances at a time.

    Args:
      features: one row for each example.
      points: its coordinates in the embedding, compared by their Euclidean distance.
      num_neighbors: k, in [1, n / 2); at most 10 by default.
      metric: of the features, "euclidean" or "cosine".

    Returns:
      NeighbourCheck.

    Raises:
      UsageError: tables that are not finite or differ in length, num_neighbors out of range, an unknown metric.
    """
    check_embedding(features, 1, metric, num_neighbors)
    check_table("points", points, "euclidean")
    n = len(features)
    if len(points) != n:
        raise UsageError(f"points must have one row for each of the {n} examples, got {list(np.shape(points))}")
    k = min(10, (n - 1) // 2) if num_neighbors is None else num_neighbors
    found = _neighbour_check(features, points, k=k, metric=metric, block_size=max(1, 2**20 // n))
    # ranks 1 … n - 1 of k random neighbours: the mean of max(0, r - k) is (n - 1 - k) (n - k) / 2 (n - 1)
    by_chance = 1 - (n - 1 - k) * (n - k) / ((n - 1) * (2 * n - 3 * k - 1))
    return NeighbourCheck(*(jnp.asarray(value, jnp.float32) for value in (*found, by_chance, k / (n - 1))))


def checked(features: Table, points: Float[Array, "n c"], metric: str, num_neighbors: int | None) -> Embedding:
    """The Embedding of these points [n, c]: with its `neighbour_check`, which see for the arguments."""
    return Embedding(points, *neighbour_check(features, points, metric=metric, num_neighbors=num_neighbors))


def check_embedding(features: Any, num_components: int, metric: str, num_neighbors: int | None) -> None:
    """Refuses features [n, d] or options that no method can work with."""
    check_metric(metric)
    check_table("features", features, metric, at_least=5)
    n, d = np.shape(features)
    if not 1 <= num_components <= min(n, d):
        raise UsageError(f"num_components must be in [1, {min(n, d)}], the least of {n} examples and {d} features, "
                         f"got {num_components}")  # fmt: skip
    if num_neighbors is not None and not 1 <= num_neighbors < n / 2:
        raise UsageError(f"num_neighbors must be in [1, n / 2) = [1, {n / 2:g}), got {num_neighbors}")


def principal_components(features: Table, num_components: int) -> tuple[Coordinates, Float[Array | np.ndarray, " c"]]:
    """Scores of the examples on the first components, and the components' shares of the variance; see `pca`."""
    return _principal_components(features, num_components=num_components)


@in_float64
@functools.partial(jax.jit, static_argnames="num_components")
def _principal_components(features: Array, *, num_components: int) -> tuple[Array, Array]:
    features = features.astype(jnp.promote_types(features.dtype, jnp.float32))
    left, sizes, right = jnp.linalg.svd(features - features.mean(axis=0, keepdims=True), full_matrices=False)
    largest = jnp.take_along_axis(right, jnp.abs(right).argmax(axis=1)[:, None], axis=1)[:, 0]
    scores = left * (sizes * jnp.where(largest < 0, -1, 1))[None]
    variance = sizes**2
    total = variance.sum()
    return scores[:, :num_components], (variance / jnp.where(total > 0, total, 1))[:num_components]


@in_float64
@functools.partial(jax.jit, static_argnames=("k", "metric", "block_size"))
def _neighbour_check(
    features: Array, points: Array, *, k: int, metric: str, block_size: int
) -> tuple[Array, Array, Array]:
    n = len(features)
    high, low = comparable(features, metric), comparable(points, "euclidean")
    high, low = high - high.mean(axis=0, keepdims=True), low - low.mean(axis=0, keepdims=True)
    places = jnp.arange(n)

    def of_row(own_high: Array, own_low: Array, place: Int[Array, ""]) -> tuple[Array, Array, Array]:
        # float32 from here on: it orders what float64 has computed, and the search for the largest is made for it
        from_here = lambda own, table: jnp.where(
            places == place, jnp.inf, squared_distances(own, table).astype(jnp.float32)
        )
        in_high, in_low = from_here(own_high, high), from_here(own_low, low)
        near_high, near_low = jax.lax.top_k(-in_high, k)[1], jax.lax.top_k(-in_low, k)[1]
        kept = (near_high[:, None] == near_low[None]).any(axis=1).mean()
        excess = lambda distances, chosen: jnp.maximum(_ranks(distances, chosen) - k, 0).sum()
        return excess(in_high, near_low), excess(in_low, near_high), kept

    false, torn, kept = by_blocks(of_row, high, low, places, batch_size=block_size)
    scale = 2 / (n * k * (2 * n - 3 * k - 1))
    return 1 - scale * false.astype(high.dtype).sum(), 1 - scale * torn.astype(high.dtype).sum(), kept


def _ranks(distances: Float[Array, " n"], chosen: Int[Array, " k"]) -> Int[Array, " k"]:
    """1 for the nearest; equally near ones by index."""
    of_chosen, places = distances[chosen][:, None], jnp.arange(len(distances))[None]
    before = (distances[None] < of_chosen) | ((distances[None] == of_chosen) & (places < chosen[:, None]))
    return before.sum(axis=1) + 1
