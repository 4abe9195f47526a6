"""Distances between distributions: over classes, of samples on a line, and with a cost of moving from point to point.

    kl_divergence       Σ p log(p / q), in nats; this and the next two [..., classes] -> [...], inside jit, masked
    jensen_shannon      √(½ KL(p ‖ m) + ½ KL(q ‖ m)), m = (p + q) / 2
    total_variation     ½ Σ |p - q|
    wasserstein         ∫ |F - G|, exact for samples on a line; batched, inside jit
    optimal_transport   min Σ R C over plans R from p to q, exact for any cost, by linear programming on the host
    sinkhorn            the same with an entropy term: batched, on the device, differentiable

p is the true distribution and q the model's, as with labels and predictions. Arrays that are traced by jit are not
looked at: one that holds no distribution then gives a number without a meaning. Over batches, average the first three
with `mean_metric`; `wasserstein` needs all samples at once, so gather them:

    gathering_metric(lambda a, b, where: wasserstein(a, b, weights_a=where, weights_b=where), capacity, ...)
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int, Shaped
from scipy import optimize, sparse

from dl_core import loops
from dl_core.errors import UsageError
from dl_core.metrics.accumulator import AnyArray
from dl_core.metrics.checks import check_finite, check_probabilities
from dl_core.optim.options import Number, in_interval

Distributions = Float[AnyArray, "*batch classes"]
Rows = Bool[AnyArray, "*batch"] | None
Weights = Shaped[AnyArray, "..."] | None


class Transport(NamedTuple):
    """How to move one distribution to another, and what it costs.

    cost: Σ R C, the mean cost of moving.
    plan: R >= 0, how much goes from each point of p to each point of q.
    marginal_error: Σ |row sums of R - p| + Σ |column sums of R - q|: 0 for a plan that does all of the moving.
    """

    cost: Float[AnyArray, "*batch"]
    plan: Float[AnyArray, "*batch n m"]
    marginal_error: Float[AnyArray, "*batch"]


def kl_divergence(p: Distributions, q: Distributions, *, where: Rows = None) -> Float[Array, "*batch"]:
    """Σ_c p_c log(p_c / q_c) in nats, with 0 log 0 = 0; infinite where q rules out what p allows.

    The loss of the same name, `dl_core.losses.kl_divergence`, takes (log q, p). Kullback, Leibler (1951).

    Args:
      p: the true distributions, over the last axis.
      q: the model's, the same shape.
      where: the rows that count; the others give 0, whatever they hold.

    Returns:
      One value for each row, in [0, inf].

    Raises:
      UsageError: two shapes, no classes, or rows that are no distributions.
    """
    return _relative_entropy(*_distributions(p, q, where))


@jax.jit
def _relative_entropy(p: Array, q: Array) -> Array:
    both = (p > 0) & (q > 0)
    ratio = jnp.where(both, p, 1) / jnp.where(both, q, 1)  # a difference of logarithms would not be 0 where p = q
    terms = jnp.where(both, p * jnp.log(ratio), jnp.where(p > 0, jnp.inf, 0))
    return jnp.maximum(terms.sum(axis=-1), 0)  # rounding can leave -1e-8 where p is nearly q


def jensen_shannon(
    p: Distributions, q: Distributions, *, base: float | int = np.e, where: Rows = None
) -> Float[Array, "*batch"]:
    """The Jensen-Shannon distance √(½ KL(p ‖ m) + ½ KL(q ‖ m)), m = (p + q) / 2; its square is the divergence.

    A metric, as `scipy.spatial.distance.jensenshannon`. Lin (1991); Endres, Schindelin (2003), for the root.

    Args:
      p: distributions, over the last axis.
      q: distributions, the same shape.
      base: of the logarithm, > 1. With 2 the distance is at most 1, otherwise √log 2 / log base.
      where: the rows that count; the others give 0, whatever they hold.

    Returns:
      One value for each row. Its gradient at p = q, where the root has none, is 0.

    Raises:
      UsageError: two shapes, no classes, rows that are no distributions, or a base that is not above 1.
    """
    in_interval("base", base, "(1, inf)")
    p, q = _distributions(p, q, where)
    divergence = _to_the_middle(p, q) / np.log(base)
    apart = divergence > 0
    return jnp.where(apart, jnp.sqrt(jnp.where(apart, divergence, 1)), 0)


@jax.jit
def _to_the_middle(p: Array, q: Array) -> Array:
    """½ KL(p ‖ m) + ½ KL(q ‖ m), to full relative precision where p is nearly q: the root magnifies what is lost."""

    def terms(p: Array, q: Array) -> Array:
        q, p = jnp.where(p > 0, q, 1), jnp.where(p > 0, p, 1)
        apart = (p - q) / (p + q)
        near = apart > -0.5  # elsewhere 1 + apart would lose what is small in p
        return jnp.where(near, jnp.log1p(jnp.where(near, apart, 0)), jnp.log(2 * p / (p + q)))

    return 0.5 * (p * terms(p, q) + q * terms(q, p)).sum(axis=-1)


def total_variation(p: Distributions, q: Distributions, *, where: Rows = None) -> Float[Array, "*batch"]:
    """½ Σ_c |p_c - q_c|: the largest difference that p and q can have on any event.

    Args:
      p: distributions, over the last axis.
      q: distributions, the same shape.
      where: the rows that count; the others give 0, whatever they hold.

    Returns:
      One value for each row, in [0, 1].

    Raises:
      UsageError: two shapes, no classes, or rows that are no distributions.
    """
    p, q = _distributions(p, q, where)
    return 0.5 * jnp.abs(p - q).sum(axis=-1)


def wasserstein(
    samples_a: Float[AnyArray, "*batch n"],
    samples_b: Float[AnyArray, "*batch m"],
    *,
    weights_a: Weights = None,
    weights_b: Weights = None,
) -> Float[Array, "*batch"]:
    """The 1-Wasserstein (earth mover's) distance of samples on a line: ∫ |F_a - F_b|, exact.

    As `scipy.stats.wasserstein_distance`. For histograms over the same bins the samples are the bins' places, and the
    weights the histograms. Vallender (1974), "Calculation of the Wasserstein distance between probability distributions
    on the line"; course notes.

    Args:
      samples_a: in any order.
      samples_b: as many as you like.
      weights_a: >= 0, the shape of samples_a, of any sum above 0; equal by default. 0 or False leaves a sample out,
        whatever it holds, so a mask of padding will do.
      weights_b: likewise for samples_b.

    Returns:
      One distance for each row, in the units of the samples; nan inside jit if a row has no weight.

    Raises:
      UsageError: no samples, a NaN or an infinity among them, negative weights, or shapes that do not belong together.
    """
    _check_samples("samples_a", samples_a, "weights_a", weights_a)
    _check_samples("samples_b", samples_b, "weights_b", weights_b)
    if np.shape(samples_a)[:-1] != np.shape(samples_b)[:-1]:
        shapes = f"{list(np.shape(samples_a))} and {list(np.shape(samples_b))}"
        raise UsageError(f"samples_a and samples_b must agree in all axes but the last, got shapes {shapes}")
    samples_a, samples_b = _arrays(samples_a, samples_b)
    return _between_samples(samples_a, samples_b, _weights(samples_a, weights_a), _weights(samples_b, weights_b))


@jax.jit
def _between_samples(samples_a: Array, samples_b: Array, weights_a: Array, weights_b: Array) -> Array:
    samples = jnp.concatenate([samples_a, samples_b], axis=-1)
    kept = jnp.concatenate([weights_a > 0, weights_b > 0], axis=-1)
    # where there is no mass yet, F and G are 0 exactly, so that is where samples without weight go
    lowest = jnp.min(samples, axis=-1, keepdims=True, where=kept, initial=jnp.inf)
    samples = jnp.where(kept, samples, lowest)
    order = jnp.argsort(samples, axis=-1)
    samples = jnp.take_along_axis(samples, order, axis=-1)
    reached = lambda weights, before, after: _cumulated(weights, before, after, order).astype(samples.dtype)
    share_a = reached(weights_a, 0, weights_b.shape[-1])
    share_b = reached(weights_b, weights_a.shape[-1], 0)
    apart = jnp.abs(share_a / share_a[..., -1:] - share_b / share_b[..., -1:])
    return jnp.sum(apart[..., :-1] * jnp.diff(samples, axis=-1), axis=-1)


def optimal_transport(p: Float[AnyArray, " n"], q: Float[AnyArray, " m"], cost: Float[AnyArray, "n m"]) -> Transport:
    """The cheapest plan that moves p to q: min Σ R C with R >= 0, row sums p and column sums q. Exact, on the host.

    By linear programming (HiGHS, through `scipy.optimize.linprog`), in float64. With a distance as cost this is the
    1-Wasserstein distance in any space (Kantorovich 1942; course notes). 100 points to 100 take about 0.1 s, 700 to 700
    a quarter of a minute; for more, for batches and for gradients there is `sinkhorn`.

    Args:
      p: a distribution over n points.
      q: a distribution over m points.
      cost: C, of moving a unit from each point of p to each of q; finite.

    Returns:
      Transport of NumPy arrays.

    Raises:
      UsageError: shapes that do not belong together, p or q no distribution, or a cost that is not finite.
      RuntimeError: the solver gave up.
    """
    _check_transport(p, q, cost)
    p, q, cost = (np.asarray(array, np.float64) for array in (p, q, cost))
    p, q = p / p.sum(), q / q.sum()  # to the last bit, or there would be no plan
    n, m = cost.shape
    sums = sparse.vstack([sparse.kron(sparse.eye(n), np.ones((1, m))), sparse.kron(np.ones((1, n)), sparse.eye(m))])
    # the last column's sum follows from the others'
    solved = optimize.linprog(cost.ravel(), A_eq=sums.tocsr()[:-1], b_eq=np.append(p, q)[:-1], method="highs")
    if not solved.success:
        raise RuntimeError(f"the linear program was not solved: {solved.message}")
    plan = solved.x.reshape(n, m)
    error = np.abs(plan.sum(axis=1) - p).sum() + np.abs(plan.sum(axis=0) - q).sum()
    return Transport(np.sum(plan * cost), plan, error)


def sinkhorn(
    p: Float[AnyArray, "*batch n"],
    q: Float[AnyArray, "*batch m"],
    cost: Float[AnyArray, "... n m"],
    *,
    epsilon: Number,
    n_steps: int = 500,
    loop: str = "compiled",
) -> Transport:
    """Optimal transport with an entropy term, min Σ R C + ε Σ R log R, by Sinkhorn's iteration in the log domain.

    Cuturi (2013), https://arxiv.org/abs/1306.0895; Peyré, Cuturi (2019), *Computational Optimal Transport*, §4.4. As
    epsilon falls, the plan's cost falls to that of `optimal_transport`, and the iteration takes more steps, a few times
    max C / ε. In the first half of them ε comes down from max C, which saves many (Schmitzer 2019, "Stabilized sparse
    scaling algorithms for entropy regularized transport problems").

    Args:
      p: distributions over n points.
      q: distributions over m points.
      cost: C; one for all rows, or one for each: [*batch, n, m].
      epsilon: ε > 0, in the units of the cost; 1% of a typical cost is small.
      n_steps: iterations, >= 1. All are taken, so that the result can be differentiated; look at marginal_error.
      loop: the driver, see `dl_core.loops`; compiled by default, as there is no convolution to be slow on the CPU.

    Returns:
      Transport: the cost without the entropy term. The column sums are q; how far the rows are off is marginal_error.

    Raises:
      UsageError: shapes that do not belong together, rows that are no distributions, a cost that is not finite, or an
        option out of range.
    """
    in_interval("epsilon", epsilon, "(0, inf)")
    in_interval("n_steps", n_steps, "[1, inf)", integer=True)
    _check_transport(p, q, cost)
    p, q, cost = _arrays(p, q, cost)
    p, q = (array / array.sum(axis=-1, keepdims=True) for array in (p, q))
    cost = jnp.broadcast_to(cost, (*p.shape[:-1], p.shape[-1], q.shape[-1]))
    log_p, log_q = (_log(array)[..., None] for array in (p, q))
    step = Partial(_sinkhorn_step, log_p, log_q, cost)
    potentials = (jnp.zeros_like(log_p), jnp.zeros_like(log_q))
    (f, g), _ = loops.scan(step, potentials, _falling(cost, epsilon, n_steps), loop=loop)
    plan = jnp.exp((f + jnp.matrix_transpose(g) - cost) / epsilon + log_p + jnp.matrix_transpose(log_q))
    rows, columns = jnp.abs(plan.sum(axis=-1) - p), jnp.abs(plan.sum(axis=-2) - q)
    return Transport((plan * cost).sum(axis=(-1, -2)), plan, rows.sum(axis=-1) + columns.sum(axis=-1))


def _sinkhorn_step(
    log_p: Array, log_q: Array, cost: Array, potentials: tuple[Array, Array], epsilon: Array
) -> tuple[tuple[Array, Array], None]:
    """f [..., n, 1] that makes the rows right, then g [..., m, 1] that makes the columns right."""

    def best(other: Array, log_mass: Array, cost: Array) -> Array:
        exponents = (jnp.matrix_transpose(other) - cost) / epsilon + jnp.matrix_transpose(log_mass)
        return -epsilon * jax.nn.logsumexp(exponents, axis=-1, keepdims=True)

    f = best(potentials[1], log_q, cost)
    return (f, best(f, log_p, jnp.matrix_transpose(cost))), None


def _falling(cost: Float[Array, "*batch n m"], epsilon: Number, n_steps: int) -> Float[Array, "steps *batch 1 1"]:
    """ε of every step: from the largest cost down to epsilon over the first half, by a constant factor."""
    epsilon = jnp.asarray(epsilon, cost.dtype)
    start = jnp.maximum(jax.lax.stop_gradient(jnp.abs(cost).max(axis=(-1, -2), keepdims=True)), epsilon)
    done = jnp.minimum(jnp.arange(1, n_steps + 1) / ((n_steps + 1) // 2), 1.0).astype(cost.dtype)
    return start[None] * (epsilon / start)[None] ** done.reshape(-1, *(1,) * cost.ndim)


def _arrays(*arrays: Any) -> list[Array]:
    """As JAX arrays of one dtype, float32 at least."""
    given = [jnp.asarray(array) for array in arrays]
    return [array.astype(jnp.result_type(jnp.float32, *given)) for array in given]


def _log(p: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
    """log p, with -inf, and no gradient, at 0."""
    return jnp.where(p > 0, jnp.log(jnp.where(p > 0, p, 1)), -jnp.inf)


def _distributions(p: Any, q: Any, where: Any) -> tuple[Array, Array]:
    """Both as arrays, checked; rows left out become one and the same distribution."""
    if np.shape(p) != np.shape(q):
        raise UsageError(f"p and q must have one shape, got {list(np.shape(p))} and {list(np.shape(q))}")
    _check_has_points(p=p)
    if where is not None and np.shape(where) != np.shape(p)[:-1]:
        raise UsageError(f"where must have one value a row, {list(np.shape(p)[:-1])}, got {list(np.shape(where))}")
    check_probabilities("p", p, where, distributions=True)
    check_probabilities("q", q, where, distributions=True)
    p, q = _arrays(p, q)
    if where is None:
        return p, q
    kept = jnp.asarray(where)[..., None]
    return jnp.where(kept, p, 1 / p.shape[-1]), jnp.where(kept, q, 1 / p.shape[-1])


def _check_has_points(**arrays: Any) -> None:
    for name, array in arrays.items():
        if np.ndim(array) == 0 or np.shape(array)[-1] == 0:
            raise UsageError(f"{name} must have at least one class or point on its last axis, got {np.shape(array)}")


def _check_transport(p: Any, q: Any, cost: Any) -> None:
    _check_has_points(p=p, q=q)
    shape, batch = np.shape(cost), np.shape(p)[:-1]
    points = (np.shape(p)[-1], np.shape(q)[-1])
    if np.shape(q)[:-1] != batch or shape not in (points, (*batch, *points)):
        raise UsageError(
            f"p [..., n] and q [..., m] need a cost [n, m] or [..., n, m], got shapes {list(np.shape(p))}, "
            f"{list(np.shape(q))} and {list(shape)}"
        )
    check_probabilities("p", p, distributions=True)
    check_probabilities("q", q, distributions=True)
    check_finite("cost", cost)


def _check_samples(name: str, samples: Any, weights_name: str, weights: Any) -> None:
    if np.ndim(samples) == 0:
        raise UsageError(f"{name} must be an array of samples, got a single number")
    if np.shape(samples)[-1] == 0:
        raise UsageError(f"{name} must hold at least one sample, got shape {list(np.shape(samples))}")
    if weights is None:
        return check_finite(name, samples)
    if np.shape(weights) != np.shape(samples):
        shapes = f"{list(np.shape(weights))} and {list(np.shape(samples))}"
        raise UsageError(f"{weights_name} and {name} must have one shape, got {shapes}")
    if isinstance(weights, Tracer):
        return None
    seen = np.asarray(weights)
    check_finite(weights_name, seen)
    if (seen < 0).any() or not (seen > 0).any(axis=-1).all():
        least = f"got a least of {seen.min()}, and rows that sum to {np.unique(seen.sum(axis=-1))[:3]}"
        raise UsageError(f"{weights_name} must be >= 0, and above 0 somewhere in every row, {least}")
    return check_finite(name, samples, seen > 0)


def _weights(samples: Float[Array, "*batch n"], weights: Weights) -> Shaped[Array, "*batch n"]:
    """Ones and masks are counted in integers, which add exactly however many there are."""
    weights = jnp.ones(samples.shape, jnp.int32) if weights is None else jnp.asarray(weights)
    return weights.astype(jnp.int32) if weights.dtype == bool else weights


def _cumulated(
    weights: Shaped[Array, "*batch n"], before: int, after: int, order: Int[Array, "*batch total"]
) -> Shaped[Array, "*batch total"]:
    """The weight up to each of the sorted samples; the other distribution's have none."""
    padded = jnp.pad(weights, [(0, 0)] * (weights.ndim - 1) + [(before, after)])
    return jnp.cumsum(jnp.take_along_axis(padded, order, axis=-1), axis=-1)
