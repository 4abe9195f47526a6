"""Fréchet distance of two sets of features, each described by its mean and covariance: the FID of any network.

    d² = |μ₁ - μ₂|² + tr(Σ₁ + Σ₂ - 2 (Σ₁ Σ₂)^½)

Heusel et al. (2017), "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium",
https://arxiv.org/abs/1706.08500; Dowson, Landau (1982). With Σ₁ = R Rᵀ, tr (Σ₁ Σ₂)^½ is the sum of the roots of the
eigenvalues of Rᵀ Σ₂ R, which is symmetric and has no negative ones: nothing turns complex, whatever the ranks.

**It is biased.** Two samples of one distribution are never at distance 0: the estimate is too large by about b / n,
where b depends on the distribution and grows with the number of features, so only numbers taken with equally many
examples, many times the number of features, can be compared. `frechet_bias` says how much it is for Gaussian features,
`frechet_distance_at_infinity` extrapolates it away, and `kernel_distance` has none.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from dl_core.errors import UsageError
from dl_core.metrics.accumulator import AnyArray, Metric, metric_from_sums, where_or_all
from dl_core.metrics.checks import Where, check_finite
from dl_core.metrics.feature_sets import Features, OtherFeatures, OtherWhere, check_features, check_same_features
from dl_core.metrics.float64 import is_traced
from dl_core.metrics.moments import (
    Centre,
    Moments,
    MomentSums,
    centre_row,
    feature_moments,
    moment_sums,
    moments_of_sums,
    zero_moment_sums,
)


class FrechetExtrapolation(NamedTuple):
    """The distance at infinitely many examples, and those at finite numbers, [sizes], that it continues."""

    distance: Float[AnyArray, ""]
    sizes: Int[np.ndarray, " sizes"]
    distances: Float[AnyArray, " sizes"]


def _trace_of_root_on_host(a: Float[np.ndarray, "d d"], b: Float[np.ndarray, "d d"]) -> float:
    """Of Rᵀ b R the lower triangle is enough. Cholesky's R is the fastest; where a is singular, its eigenvectors serve,
    without those whose eigenvalues are rounding."""
    noise = len(a) * np.finfo(a.dtype).eps
    try:
        root = np.linalg.cholesky(a)
    except np.linalg.LinAlgError:
        root = np.zeros_like(a)
    if np.diag(root).min() ** 2 > noise * np.diag(a).max():
        (reduce,) = scipy.linalg.get_lapack_funcs(("sygst",), (a,))  # less than half the time of two products
        product = reduce(b, root, itype=2, lower=1)[0]
    else:
        values, vectors = np.linalg.eigh(a)
        kept = values > noise * values[-1]
        root = vectors[:, kept] * np.sqrt(values[kept])[None]
        product = root.T @ b @ root
    return float(np.sqrt(np.maximum(np.linalg.eigvalsh(product, UPLO="L"), 0)).sum())


def _singular_factors(
    a: Float[Array, "d d"], b: Float[Array, "d d"]
) -> tuple[Float[Array, "d d"], Float[Array, " d"], Float[Array, "d d"]]:
    """P, s and Q with a = P Pᵀ, b = Q Qᵀ and Pᵀ Q = diag(s): s sums to tr (a b)^½, without squaring its rounding."""

    def root(covariance: Float[Array, "d d"]) -> Float[Array, "d d"]:
        values, vectors = jnp.linalg.eigh(covariance)
        noise = 10 * jnp.finfo(values.dtype).eps * values[-1]
        return vectors * jnp.sqrt(jnp.where(values > noise, values, 0))[None]

    root_a, root_b = root(a), root(b)
    u, s, vt = jnp.linalg.svd(root_a.T @ root_b)
    return root_a @ u, s, root_b @ vt.T


@jax.custom_jvp
def _trace_of_root(a: Float[Array, "d d"], b: Float[Array, "d d"]) -> Float[Array, ""]:
    return _singular_factors(a, b)[1].sum()


@_trace_of_root.defjvp
def _trace_of_root_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    """The derivative by b is ½ P s⁻¹ Pᵀ, half the optimal transport map from a to b; eigenvectors are not derived,
    which would divide by differences of eigenvalues. Directions without variance contribute nothing."""
    p, s, q = _singular_factors(*primals)
    inverse = jnp.where(s > 10 * jnp.finfo(s.dtype).eps * s[0], 1 / jnp.where(s > 0, s, 1), 0)[None]
    change = ((q * inverse) * (tangents[0] @ q)).sum() + ((p * inverse) * (tangents[1] @ p)).sum()
    return s.sum(), change / 2


def _distance(reference: Moments, generated: Moments) -> Float[AnyArray, ""]:
    if is_traced(reference, generated):
        xp, trace_of_root = jnp, _trace_of_root
    else:
        xp, trace_of_root = np, _trace_of_root_on_host
    dtype = xp.asarray(reference.mean).dtype if xp is jnp else np.float64
    mean_a, cov_a, mean_b, cov_b = (xp.asarray(part, dtype) for part in (*reference[:2], *generated[:2]))
    with jax.default_matmul_precision("highest"):
        traces = xp.trace(cov_a) + xp.trace(cov_b) - 2 * trace_of_root(cov_a, cov_b)
    return xp.asarray(xp.sum((mean_a - mean_b) ** 2) + xp.maximum(traces, 0))


def _as_moments(name: str, given: Features | Moments, where: Where) -> Moments:
    if not isinstance(given, Moments):
        check_features(name, given, where, at_least=2)
        return feature_moments(given, where=where)
    if where is not None:
        raise UsageError(f"where_{name} masks features, and {name} is given as Moments; leave it out")
    d = np.shape(given.mean)
    if len(d) != 1 or np.shape(given.covariance) != d * 2:
        shapes = f"{list(d)} and {list(np.shape(given.covariance))}"
        raise UsageError(f"{name} must have a mean [d] and a covariance [d, d], got {shapes}")
    if not isinstance(given.num_examples, Tracer) and int(given.num_examples) < 2:
        raise UsageError(f"{name} must be the moments of at least 2 examples, got {int(given.num_examples)}")
    check_finite(f"{name}.mean", given.mean)
    check_finite(f"{name}.covariance", given.covariance)
    return given


def frechet_distance(
    reference: Features | Moments,
    generated: OtherFeatures | Moments,
    *,
    where_reference: Where = None,
    where_generated: OtherWhere = None,
) -> Float[AnyArray, ""]:
    """Squared Fréchet distance between Gaussians with the means and covariances of two sets of features (FID).

        embed = jax.jit(lambda images: models.features(model, variables, images)["penultimate"])
        frechet_distance(embed(real), embed(generated))

    Args:
      reference: features of real images [n, d], n >= 2, from any network; or their Moments, kept from an earlier run.
      generated: features of generated images [m, d] from the same network, or their Moments.
      where_reference, where_generated: the rows that count; all by default.

    Returns:
      A scalar >= 0 in the features' squared unit, too large by about 1 / n (see above). float64 outside jit. Inside,
      in the features' precision, with errors of about 1e-6 of the traces in float32, and with derivatives that are
      finite for singular covariances, too.

    Raises:
      UsageError: fewer than two examples, numbers of features that differ, NaN, a mask for Moments.
    """
    a = _as_moments("reference", reference, where_reference)
    b = _as_moments("generated", generated, where_generated)
    check_same_features(("reference", "generated"), len(a.mean), len(b.mean))
    return _distance(a, b)


def frechet_distance_metric(num_features: int, centre: Centre = 0.0) -> Metric:
    """Accumulator of `frechet_distance` with a state of 4 (d² + d) floats, however many examples.

    Args:
      num_features: d.
      centre: a point near the mean of the features; `feature_moments_metric` says what it is worth.

    Returns:
      A Metric: `update(state, features float [n, d], is_generated bool [n], where=None)`.

    Raises:
      UsageError: num_features < 1, a centre of another length; from `compute`, fewer than two examples of a kind.
    """
    row = centre_row(centre, num_features)

    def sums(
        features: Features, is_generated: Bool[AnyArray, " n"], *, where: Where = None
    ) -> tuple[MomentSums, MomentSums]:
        kept, is_generated = where_or_all(where, features), jnp.asarray(is_generated)
        return moment_sums(features, row, kept & ~is_generated), moment_sums(features, row, kept & is_generated)

    def compute(state: tuple[MomentSums, MomentSums]) -> Float[AnyArray, ""]:
        for name, part in zip(("reference", "generated"), state, strict=True):
            if not isinstance(part.num_examples, Tracer) and part.num_examples < 2:
                raise UsageError(f"the {name} set must hold at least 2 examples, got {int(part.num_examples)}")
        return frechet_distance(*(moments_of_sums(part, row) for part in state))

    return metric_from_sums(lambda: (zero_moment_sums(num_features),) * 2, sums, compute)


def frechet_bias(moments: Moments, num_reference: int, num_generated: int) -> float:
    """The Fréchet distance to expect between two samples of one and the same Gaussian: what a perfect generator gets.

        (1/n + 1/m) (Σᵢ λᵢ + ½ Σᵢⱼ (1 + δᵢⱼ) λᵢ λⱼ / (λᵢ + λⱼ)),   λ the eigenvalues of the covariance

    The first sum is the error of the means; the second comes from the distance's second derivative and the variance of
    a sample's covariance. To first order in 1/n: right for n well above the number of features, too large below.

    Args:
      moments: mean [d] and covariance [d, d] of the features, from as many examples as there are.
      num_reference, num_generated: n and m, how many examples the two sets hold.

    Returns:
      The expected distance, >= 0.

    Raises:
      UsageError: moments that `frechet_distance` refuses, or fewer than 2 examples in a set.
    """
    if min(num_reference, num_generated) < 2:
        raise UsageError(f"both sets must hold at least 2 examples, got {num_reference} and {num_generated}")
    covariance = np.asarray(_as_moments("moments", moments, None).covariance, np.float64)
    values = np.maximum(np.linalg.eigvalsh(covariance), 0)
    product, total = values[:, None] * values[None], values[:, None] + values[None]
    curved = np.divide(product, total, out=np.zeros_like(product), where=total > 0)
    second_order = (curved.sum() + np.trace(curved)) / 2
    return float((1 / num_reference + 1 / num_generated) * (values.sum() + second_order))


def frechet_distance_at_infinity(
    reference: Features | Moments, generated: OtherFeatures, *, key: PRNGKeyArray, num_sizes: int = 15
) -> FrechetExtrapolation:
    """The Fréchet distance continued to infinitely many generated examples, where it has no bias from their number.

    The distance of n of them, drawn at random, is a straight line in 1/n; its value at 1/n = 0 is the result. The bias
    from the number of reference examples stays. Chong, Forsyth (2020), "Effectively Unbiased FID and Inception Score
    and Where to Find Them", https://arxiv.org/abs/1911.07023.

    Args:
      reference: features [n, d], or their Moments, of all the real examples there are.
      generated: features [m, d], m several times d.
      key: decides which examples are drawn.
      num_sizes: how many sizes, evenly from m / 10 (and at least 2) to m.

    Returns:
      FrechetExtrapolation; its distance may fall a little below 0.

    Raises:
      UsageError: as `frechet_distance`; num_sizes < 2; or too few examples for that many sizes.
    """
    check_features("generated", generated, at_least=2)
    m = len(generated)
    if num_sizes < 2 or m - max(m // 10, 2) < num_sizes - 1:
        raise UsageError(f"num_sizes must be at least 2, and few enough for {m} generated examples; got {num_sizes}")
    sizes = np.linspace(max(m // 10, 2), m, num_sizes).astype(int)
    reference = _as_moments("reference", reference, None)
    rank = jax.random.permutation(key, m)
    distances = [frechet_distance(reference, generated, where_generated=rank < size) for size in sizes]
    xp = jnp if is_traced(distances) else np
    distances, off = xp.stack(distances), 1 / sizes - np.mean(1 / sizes)
    slope = (off * distances).sum() / (off**2).sum()
    return FrechetExtrapolation(xp.asarray(distances.mean() - slope * np.mean(1 / sizes)), sizes, distances)
