"""t-SNE: a map in which neighbours of the high-dimensional space stay neighbours.

Van der Maaten, Hinton (2008), "Visualizing Data using t-SNE", JMLR 9. Distances between clusters, their sizes and their
densities in the map mean little, and noise can look like clusters (Wattenberg, Viégas, Johnson 2016, "How to Use t-SNE
Effectively", https://distill.pub/2016/misread-tsne): read the checks that come with the map.

    embedding = tsne(features_of(apply_fn, params, images, layer="penultimate"), perplexity=30.0)
    embedding.trustworthiness, embedding.neighbours_kept, embedding.kl_divergence
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float, Key

from dl_core.errors import UsageError, unknown_name
from dl_core.explain.embedding import Embedding, check_embedding, checked, principal_components
from dl_core.explain.neighbours import Table
from dl_core.explain.pieces import Progress
from dl_core.explain.tsne_affinities import joint_probabilities, nearest_probabilities, precisions
from dl_core.explain.tsne_forces import Affinities, Kernels, gradient, kl_divergence, repulsion_kernels
from dl_core.loops import choose_driver, scan
from dl_core.metrics.checks import check_finite
from dl_core.metrics.float64 import is_traced
from dl_core.optim.options import in_interval

METHODS = ("auto", "exact", "fft")
INITS = ("pca", "random")

STEPS_AT_ONCE = 50  # one piece of the loop is so long; a compiled loop inside, as there are no convolutions

_MOST_EXACT = 2000  # points for which all pairs cost less than the grid, on a CPU
_MOST_PAIRS = 2**26  # probabilities that are kept; more are computed again in every step
_SPREAD = 1e-4  # standard deviation of the first coordinate at the start
_MOMENTUM, _LEAST_GAIN = (0.5, 0.8), 0.01  # during early exaggeration, and after it


def tsne(
    features: Table,
    *,
    key: Key[Array, ""] | None = None,
    num_components: int = 2,
    perplexity: float = 30.0,
    early_exaggeration: float = 12.0,
    exaggeration_iter: int = 250,
    learning_rate: float | str = "auto",
    n_iter: int = 1000,
    init: str | Float[Array | np.ndarray, "n c"] = "pca",
    metric: str = "euclidean",
    method: str = "auto",
    num_neighbors: int | None = None,
    loop: str = "auto",
    progress: Progress | None = None,
) -> Embedding:
    """The t-SNE map of a table of features; same schedule, momentum, gains and defaults as scikit-learn.

    Two forms. "exact" has all pairs in the probabilities and in the forces, on the device; from 8193 points on, the
    probabilities are computed again in every step, so that memory stays fixed. "fft" has the 3 × perplexity nearest
    neighbours in the probabilities, and repulsion interpolated on a grid: its forces differ from the exact ones by
    about 1 % of their size on maps up to 400 wide. A step takes time as n, but the list of neighbours takes n² once.
    Unlike in scikit-learn, all n_iter steps are taken, and the kernel is Student's with one degree of freedom for any
    num_components, as in the paper.

    Args:
      features: one row for each example, n >= 5, from `features_of`, or the pixels. Not for many thousands of features:
        reduce them by `pca` to 50 first.
      key: of the random start; not needed for others.
      num_components: dimensions of the map.
      perplexity: number of neighbours that a point has, in effect; in (1, n - 1), typically 5 to 50.
      early_exaggeration: factor of the attraction in the first steps, >= 1.
      exaggeration_iter: how many steps these are.
      learning_rate: step size > 0, or "auto": max(50, n / (4 early_exaggeration)), Belkina et al. (2019).
      n_iter: steps, >= 1.
      init: "pca": principal components, scaled to a standard deviation of 1e-4; "random": a normal distribution of the
        same width; or the points [n, num_components] at the start, taken as they are.
      metric: "euclidean", or "cosine": 1 - cos of the angle between the features.
      method: "exact", "fft" (two components, outside of `jit`), or "auto": "exact" up to 2000 points.
      num_neighbors: k of the neighbourhood check, in [1, n / 2); at most 10 by default.
      loop: how the pieces of 50 steps are driven; see `dl_core.loops`. The steps of a piece are always compiled into a
        loop, which is the faster form on a CPU too, as there are no convolutions.
      progress: called with (pieces done, pieces in all).

    Returns:
      Embedding, with the KL divergence of the method's own probabilities.

    Raises:
      UsageError: features that are no finite table, an option out of range, an unknown name, init="random" without a
        key, "fft" with other than two components or inside of `jit`.
    """
    check_embedding(features, num_components, metric, num_neighbors)
    n = len(features)
    method = _checked_method(method, n, num_components, is_traced(features, init))
    choose_driver(loop)
    _check_options(n, perplexity, early_exaggeration, exaggeration_iter, learning_rate, n_iter)
    points = _start(features, init, key, num_components)
    if method == "fft":
        affinities = nearest_probabilities(features, float(perplexity), metric)
    elif n * n <= _MOST_PAIRS:
        affinities = joint_probabilities(features, float(perplexity), metric)
    else:
        affinities = precisions(features, float(perplexity), metric)
    rate = max(50.0, n / (4 * early_exaggeration)) if isinstance(learning_rate, str) else learning_rate
    schedule = tuple(map(jnp.float32, (early_exaggeration, rate))) + tuple(map(jnp.int32, (exaggeration_iter, n_iter)))
    state = (points, jnp.zeros_like(points), jnp.ones_like(points))
    starts = jnp.arange(0, n_iter, STEPS_AT_ONCE, dtype=jnp.int32)
    kernels = _kernels() if method == "fft" else None
    step = Partial(_take_steps, affinities, kernels, schedule)
    (points, *_), _ = scan(step, state, starts, loop=loop, progress=progress)
    points = points - points.mean(axis=0, keepdims=True)
    return checked(features, points, metric, num_neighbors)._replace(kl_divergence=_divergence(affinities, points))


def _take_steps(
    affinities: Affinities,
    kernels: Kernels | None,
    schedule: tuple[Array, Array, Array, Array],
    state: tuple[Array, Array, Array],
    start: Array,
) -> tuple[tuple[Array, Array, Array], None]:
    exaggeration, rate, exaggerated, n_iter = schedule

    def step(i: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        points, update, gains = state
        early = i < exaggerated
        slope = gradient(affinities, points, jnp.where(early, exaggeration, 1.0), kernels=kernels)
        turned = update * slope < 0
        gains = jnp.maximum(jnp.where(turned, gains + 0.2, gains * 0.8), _LEAST_GAIN)
        update = jnp.where(early, *_MOMENTUM) * update - rate * gains * slope
        points = points + update
        return points - points.mean(axis=0, keepdims=True), update, gains

    return jax.lax.fori_loop(start, jnp.minimum(start + STEPS_AT_ONCE, n_iter), step, state), None


_divergence = jax.jit(kl_divergence)
_kernels = jax.jit(repulsion_kernels)


def _start(
    features: Table, init: str | Float[Array | np.ndarray, "n c"], key: Array | None, num_components: int
) -> Float[Array, "n c"]:
    n = len(features)
    if not isinstance(init, str):
        if np.shape(init) != (n, num_components):
            raise UsageError(f"init must be points [{n}, {num_components}], got {list(np.shape(init))}")
        check_finite("init", init)
        return jnp.asarray(init, jnp.float32)
    if init == "random":
        if key is None:
            raise UsageError("init='random' needs a key, e.g. key=jax.random.key(0)")
        return _SPREAD * jax.random.normal(key, (n, num_components))
    if init != "pca":
        raise unknown_name("init", init, INITS)
    scores = jnp.asarray(principal_components(features, num_components)[0], jnp.float32)
    spread = scores[:, 0].std()
    return scores * (_SPREAD / jnp.where(spread > 0, spread, 1))


def _checked_method(method: str, n: int, num_components: int, traced: bool) -> str:
    if method not in METHODS:
        raise unknown_name("method", method, METHODS)
    if method == "auto":
        return "exact" if n <= _MOST_EXACT or num_components != 2 or traced else "fft"
    if method == "fft" and num_components != 2:
        raise UsageError(f"method='fft' makes maps of 2 components, got {num_components}; take method='exact'")
    if method == "fft" and traced:
        raise UsageError("method='fft' needs the values of the features, and cannot be inside of jit; take 'exact'")
    return method


def _check_options(
    n: int, perplexity: float, early_exaggeration: float, exaggeration_iter: int, learning_rate: Any, n_iter: int
) -> None:
    if not 1 < perplexity < n - 1:
        raise UsageError(
            f"perplexity must be in (1, n - 1) = (1, {n - 1}), as a point has no more neighbours, got {perplexity}"
        )
    in_interval("early_exaggeration", early_exaggeration, "[1, inf)")
    in_interval("exaggeration_iter", exaggeration_iter, "[0, inf)", integer=True)
    in_interval("n_iter", n_iter, "[1, inf)", integer=True)
    if isinstance(learning_rate, str):
        if learning_rate != "auto":
            raise unknown_name("learning_rate", learning_rate, ("auto",))
    else:
        in_interval("learning_rate", learning_rate, "(0, inf)")
