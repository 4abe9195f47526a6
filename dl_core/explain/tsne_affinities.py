"""t-SNE's picture of the high-dimensional space: how likely each point would pick each other one as its neighbour.

    p_j|i = exp(-β_i d_ij²) / Σ_k exp(-β_i d_ik²),    p_ij = (p_j|i + p_i|j) / 2n

with the precision β_i of point i such that it has as many neighbours as asked for, exp(-Σ_j p_j|i log p_j|i) =
perplexity. Van der Maaten, Hinton (2008), "Visualizing Data using t-SNE", JMLR 9, equations 1 to 3; all pairs, or the
3 × perplexity nearest neighbours: van der Maaten (2014), "Accelerating t-SNE using Tree-Based Algorithms", JMLR 15.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from scipy import sparse

from dl_core.explain.neighbours import comparable, nearest
from dl_core.metrics.float64 import in_float64
from dl_core.metrics.nearest import by_blocks, squared_distances

TOLERANCE = 1e-6  # of the logarithm of the perplexity
SLICE = 32  # edges in one slice of a point's list

_MOST_STEPS = 100
_MOST_LOG_PRECISION = 60.0  # in units of the point's own distances: where nothing reaches the perplexity, stop here


class Precisions(NamedTuple):
    """Enough to compute any row of the matrix of probabilities again.

    points: the features, comparable and centred.
    is_cosine: whether d is 1 - cos, half the squared distance of the points.
    precision: β_i.
    nearest: the least d_ij² of point i, taken off before the exponential.
    normaliser: Σ_j exp(-β_i (d_ij² - nearest_i)).
    """

    points: Float[Array, "n d"]
    is_cosine: Bool[Array, ""]
    precision: Float[Array, " n"]
    nearest: Float[Array, " n"]
    normaliser: Float[Array, " n"]


class Edges(NamedTuple):
    """A sparse symmetric matrix of probabilities, each row cut into slices of equal length.

    start: the row of each slice, rising.
    end: the columns of its entries; padded.
    probability: p_ij, 0 in the padding.
    """

    start: Int[Array, " slices"]
    end: Int[Array, "slices width"]
    probability: Float[Array, "slices width"]


def search_precision(
    squared: Float[Array, " m"], allowed: Bool[Array, " m"], perplexity: Float[Array, ""]
) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, " m"]]:
    """β of one point by Newton's method on log β, and by bisection wherever that would leave the bracket.

    Args:
      squared: d² to the other points.
      allowed: the other points; the point itself is none of them.
      perplexity: in (1, number of allowed).

    Returns:
      β; the least allowed d²; p_j|i. Where no β reaches the perplexity, because more points than that are equally near
      (copies, say), the greatest β that is tried: all weight on the nearest.
    """
    least = jnp.where(allowed, squared, jnp.inf).min()
    above = jnp.where(allowed, squared - least, 0)
    scale = above.sum() / allowed.sum()
    scale = jnp.where(scale > 0, scale, 1)
    above = above / scale
    wanted = jnp.log(perplexity)

    def at(log_precision: Array) -> tuple[Array, Array, Array]:
        """Entropy, its derivative, probabilities."""
        energy = jnp.minimum(jnp.exp(log_precision) * above, 500.0)  # exp(-500) is 0; inf × 0 would not be
        weights = jnp.where(allowed, jnp.exp(-energy), 0)
        total = weights.sum()
        p = weights / total
        mean = (p * energy).sum()
        return jnp.log(total) + mean, -(p * (energy - mean) ** 2).sum(), p

    def unfinished(state: tuple[Array, ...]) -> Array:
        _, low, high, error, steps = state
        return (jnp.abs(error) > TOLERANCE) & (steps < _MOST_STEPS) & (high - low > 1e-12)

    def improve(state: tuple[Array, ...]) -> tuple[Array, ...]:
        place, low, high, _, steps = state
        entropy, slope, _ = at(place)
        error = entropy - wanted
        low, high = jnp.where(error > 0, place, low), jnp.where(error > 0, high, place)
        newton = place - error / jnp.where(slope == 0, -1e-30, slope)
        inside = (newton > low) & (newton < high)
        step = jnp.where(inside, newton, (low + high) / 2)
        return jnp.where(jnp.abs(error) > TOLERANCE, step, place), low, high, error, steps + 1

    zero, bound = jnp.zeros_like(wanted), jnp.full_like(wanted, _MOST_LOG_PRECISION)
    place, *_ = jax.lax.while_loop(unfinished, improve, (zero, -bound, bound, zero + jnp.inf, jnp.int32(0)))
    return jnp.exp(place) / scale, least, at(place)[2]


def joint_probabilities(
    features: Float[Array | np.ndarray, "n d"], perplexity: float, metric: str = "euclidean"
) -> Float[Array, "n n"]:
    """The full symmetric matrix p_ij; computed in float64 outside of `jit`.

    Args:
      features: of the points.
      perplexity: in (1, n - 1).
      metric: "euclidean" or "cosine".

    Returns:
      Float32; sums to 1, 0 on the diagonal.
    """
    return jnp.asarray(_joint_probabilities(features, perplexity, metric=metric, block_size=_block_size(len(features))))


def precisions(features: Float[Array | np.ndarray, "n d"], perplexity: float, metric: str = "euclidean") -> Precisions:
    """What makes any row of `joint_probabilities` again, without the n × n of them; see there for the arguments."""
    found = _precisions(features, perplexity, metric=metric, block_size=_block_size(len(features)))
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, None if leaf.dtype == bool else jnp.float32), found)


def nearest_probabilities(
    features: Float[Array | np.ndarray, "n d"], perplexity: float, metric: str = "euclidean"
) -> Edges:
    """p_ij among the 3 × perplexity nearest neighbours of each point; on concrete arrays only.

    Args:
      features: of the points.
      perplexity: in (1, n - 1).
      metric: "euclidean" or "cosine".

    Returns:
      Edges, whose probabilities sum to 1.
    """
    n = len(features)
    k = min(n - 1, int(3 * perplexity + 1))
    conditional, neighbours = _nearest_probabilities(
        features, perplexity, k=k, metric=metric, block_size=_block_size(n)
    )
    rows = np.repeat(np.arange(n), k)
    directed = sparse.csr_array((np.ravel(conditional), (rows, np.ravel(neighbours))), shape=(n, n))
    joint = (directed + directed.T).tocsr()
    return _in_slices(joint.indptr, joint.indices, joint.data / joint.data.sum())


def row_of(
    table: Precisions, point: Float[Array, " d"], place: Int[Array, ""], own: tuple[Array, Array, Array]
) -> Float[Array, " n"]:
    """p_ij of one point [d] with all others, from its own (precision, nearest, normaliser)."""
    squared = squared_distances(point, table.points)
    squared = jnp.where(table.is_cosine, (squared / 2) ** 2, squared)
    conditional = lambda beta, least, total: jnp.exp(-beta * jnp.maximum(squared - least, 0)) / total
    both = conditional(*own) + conditional(table.precision, table.nearest, table.normaliser)
    return jnp.where(jnp.arange(len(squared)) == place, 0, both / (2 * len(squared)))


@in_float64
@functools.partial(jax.jit, static_argnames=("metric", "block_size"))
def _joint_probabilities(features: Array, perplexity: Array, *, metric: str, block_size: int) -> Array:
    points, n = _centred(features, metric), len(features)

    def of_row(point: Array, place: Array) -> Array:
        return search_precision(_squared(point, points, metric), jnp.arange(n) != place, perplexity)[2].astype(
            jnp.float32
        )

    conditional = by_blocks(of_row, points, jnp.arange(n), batch_size=block_size)
    return (conditional + conditional.T) / (2 * n)


@in_float64
@functools.partial(jax.jit, static_argnames=("metric", "block_size"))
def _precisions(features: Array, perplexity: Array, *, metric: str, block_size: int) -> Precisions:
    points, n = _centred(features, metric), len(features)

    def of_row(point: Array, place: Array) -> tuple[Array, Array, Array]:
        squared, others = _squared(point, points, metric), jnp.arange(n) != place
        beta, least, _ = search_precision(squared, others, perplexity)
        return beta, least, jnp.where(others, jnp.exp(-beta * (squared - least)), 0).sum()

    return Precisions(
        points, jnp.asarray(metric == "cosine"), *by_blocks(of_row, points, jnp.arange(n), batch_size=block_size)
    )


@in_float64
@functools.partial(jax.jit, static_argnames=("k", "metric", "block_size"))
def _nearest_probabilities(
    features: Array, perplexity: Array, *, k: int, metric: str, block_size: int
) -> tuple[Array, Array]:
    points = _centred(features, metric)
    squared, neighbours = nearest(points, points, k, block_size=block_size, leave_out_self=True)
    if metric == "cosine":
        squared = (squared / 2) ** 2
    every = jnp.ones(k, bool)
    of_row = lambda row: search_precision(row, every, perplexity)[2]
    return by_blocks(of_row, squared, batch_size=max(1, 2**20 // k)), neighbours


def _centred(features: Array, metric: str) -> Array:
    points = comparable(features, metric)
    return points - points.mean(axis=0, keepdims=True)


def _squared(point: Array, points: Array, metric: str) -> Array:
    """The square of the metric's distance; half the squared distance of two vectors of length 1 is 1 - cos."""
    squared = squared_distances(point, points)
    return (squared / 2) ** 2 if metric == "cosine" else squared


def _block_size(n: int) -> int:
    return max(1, 2**20 // n)


def _in_slices(row_starts: np.ndarray, columns: np.ndarray, values: np.ndarray) -> Edges:
    lengths = np.diff(row_starts)
    slices = -(-lengths // SLICE)
    first = np.concatenate([[0], np.cumsum(slices)])  # slice at which each row begins
    rows = np.repeat(np.arange(len(lengths)), lengths)
    within = np.arange(len(columns)) - row_starts[rows]
    at = (first[rows] + within // SLICE, within % SLICE)
    room = -(-first[-1] // 1024) * 1024  # so that other features of the same shape mostly need no new program
    end, probability = np.zeros((room, SLICE), np.int32), np.zeros((room, SLICE), np.float32)
    end[at], probability[at] = columns, values
    start = np.full(room, len(lengths) - 1, np.int32)
    start[: first[-1]] = np.repeat(np.arange(len(lengths)), slices)
    return Edges(jnp.asarray(start), jnp.asarray(end), jnp.asarray(probability))
