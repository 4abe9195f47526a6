"""How uncertain an estimate is: confidence intervals for a share of n, and for anything by the bootstrap.

A share (an accuracy, a recall) takes the Wilson interval: its coverage stays near the nominal level for small n and
shares near 0 or 1, where the textbook ± 1.96 standard errors fails. Clopper-Pearson never covers less than the nominal
level and is therefore wider. Brown, Cai, DasGupta (2001), "Interval Estimation for a Binomial Proportion".
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from jax.core import Tracer
from jax.scipy.special import ndtr, ndtri
from jaxtyping import Array, Float, Int, Integer, PRNGKeyArray, Real, Shaped

from dl_core.errors import UsageError, unknown_name
from dl_core.metrics.accumulator import AnyArray
from dl_core.metrics.checks import check_not_empty, check_same_length


class Interval(NamedTuple):
    """Ends of a confidence interval, each of the estimate's shape [...]."""

    low: Float[AnyArray, "..."] | float
    high: Float[AnyArray, "..."] | float


def check_confidence(confidence: float) -> None:
    """Refuses a nominal coverage (no array, no shape) outside (0, 1), such as 95."""
    if not 0 < confidence < 1:
        raise UsageError(f"confidence must lie strictly between 0 and 1, got {confidence}")


def _check_share(successes: Any, n: Any) -> None:
    """Looks only at values that are there to be seen, not at traced ones."""
    if isinstance(successes, Tracer) or isinstance(n, Tracer):
        return
    s, trials = np.asarray(successes, float), np.asarray(n, float)
    if s.shape != trials.shape and s.ndim and trials.ndim:
        raise UsageError(f"successes and n must have one shape, got {list(s.shape)} and {list(trials.shape)}")
    bad = ~((s >= 0) & (s <= trials) & np.isfinite(trials))
    if bad.any():
        first = tuple(float(values[bad][0]) for values in np.broadcast_arrays(s, trials))
        raise UsageError(f"successes must lie in [0, n] and n be finite, got {first[0]:g} of {first[1]:g}")


def wilson_interval(
    successes: Real[AnyArray, "*shape"] | int | float,
    n: Real[AnyArray, "*shape"] | int | float,
    confidence: float = 0.95,
) -> Interval:
    """Wilson's score interval for a share; works on numbers, NumPy arrays (in float64) and inside jit.

        (p + z²/2n ± z √(p(1 - p)/n + z²/4n²)) / (1 + z²/n)

    Wilson (1927), "Probable Inference, the Law of Succession, and Statistical Inference".

    Args:
      successes: in [0, n]; any shape [...].
      n: number of trials, >= 0; the interval of no trials is [0, 1].
      confidence: nominal coverage, in (0, 1).

    Returns:
      Interval in [0, 1].

    Raises:
      UsageError: confidence outside (0, 1); successes outside [0, n], seen outside jit.
    """
    check_confidence(confidence)
    _check_share(successes, n)
    xp = jnp if isinstance(successes, jax.Array) or isinstance(n, jax.Array) else np
    z = float(scipy.special.ndtri((1 + confidence) / 2))
    trials = xp.where(xp.asarray(n) > 0, n, 1)
    share = successes / trials
    centre = share + z**2 / (2 * trials)
    half = z * xp.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2))
    scale = 1 + z**2 / trials
    nothing, everything = xp.asarray(successes) <= 0, xp.asarray(successes) >= xp.asarray(n)
    # The ends are exactly 0 and 1 there; rounding would miss them.
    low = xp.where(nothing, 0.0, xp.clip((centre - half) / scale, 0.0, 1.0))
    high = xp.where(everything, 1.0, xp.clip((centre + half) / scale, 0.0, 1.0))
    return Interval(low, high) if xp is jnp or np.ndim(low) else Interval(float(low), float(high))


def clopper_pearson_interval(
    successes: Real[np.ndarray, "*shape"] | int | float,
    n: Real[np.ndarray, "*shape"] | int | float,
    confidence: float = 0.95,
) -> Interval:
    """The exact binomial interval: quantiles of Beta(s, n - s + 1) and Beta(s + 1, n - s). On the host only.

    Clopper, Pearson (1934), "The Use of Confidence or Fiducial Limits Illustrated in the Case of the Binomial".

    Args:
      successes: in [0, n]; any shape [...].
      n: number of trials, >= 0.
      confidence: least coverage, in (0, 1).

    Returns:
      Interval in [0, 1].

    Raises:
      UsageError: confidence outside (0, 1); successes outside [0, n], seen outside jit.
    """
    check_confidence(confidence)
    _check_share(successes, n)
    tail = (1 - confidence) / 2
    s, trials = np.asarray(successes, float), np.asarray(n, float)
    low = np.where(s > 0, scipy.special.betaincinv(np.maximum(s, 1), trials - s + 1, tail), 0.0)
    high = np.where(s < trials, scipy.special.betaincinv(s + 1, np.maximum(trials - s, 1), 1 - tail), 1.0)
    return Interval(low, high) if np.ndim(low) else Interval(float(low), float(high))


def stratified_rows(
    strata: Integer[AnyArray, " n"],
) -> tuple[Int[Array, " n"], Int[Array, " n"], Int[Array, " n"]]:
    """What a draw within strata needs.

    Args:
      strata: the stratum of each row, any integers.

    Returns:
      The rows sorted by stratum, and for each place in that order where its stratum begins and where it ends; each [n].
    """
    strata = jnp.asarray(strata)
    order = jnp.argsort(strata)
    ranked = strata[order]
    begin, end = (jnp.searchsorted(ranked, ranked, side=side) for side in ("left", "right"))
    return order, begin, end


def draw_rows(key: PRNGKeyArray, begin: Int[Array, " n"], end: Int[Array, " n"]) -> Int[Array, " n"]:
    """For each place [n] a whole number in [begin, end), each as likely as the others but for (end - begin) / 2³²."""
    size = jnp.maximum(end - begin, 1).astype(jnp.uint32)  # a stratum is never empty; padding may be
    return begin + (jax.random.bits(key, begin.shape, jnp.uint32) % size).astype(begin.dtype)


def bootstrap_interval(
    statistic: Callable[..., Float[Array, "..."]],
    *arrays: Shaped[AnyArray, "n ..."],
    key: PRNGKeyArray,
    confidence: float = 0.95,
    n_resamples: int = 1000,
    method: str = "bca",
    strata: Integer[AnyArray, " n"] | None = None,
    batch_size: int = 100,
) -> Interval:
    """Interval of any statistic of n examples, from its values on examples drawn with replacement.

    "percentile" takes the quantiles of those values; "bca" shifts them for bias and skewness (Efron 1987, "Better
    Bootstrap Confidence Intervals"), which also needs the n values that leave one example out.

        bootstrap_interval(functools.partial(f1, num_classes=10), labels, predictions, key=key)

    Two models on the same examples: give both predictions, and the pairs stay together.

        gain = lambda labels, a, b: accuracy(labels, b) - accuracy(labels, a)
        bootstrap_interval(gain, labels, predictions_a, predictions_b, key=key)

    Args:
      statistic: (*arrays) -> scalar, or an array of any shape; must work under vmap.
      arrays: the examples along the first axis, all of length n >= 2.
      key: drives the resampling.
      confidence: nominal coverage of each interval, in (0, 1).
      n_resamples: draws of n examples, >= 1.
      method: "bca" or "percentile".
      strata: draw as many examples of each stratum as there are, such as strata=labels to keep every class (Davison,
        Hinkley 1997, *Bootstrap Methods and their Application*, §3.2 and 5.4); by default all are one stratum.
      batch_size: resamples evaluated at once; bounds the memory, does not change the draws.

    Returns:
      Interval, each end of the statistic's shape; both ends are the estimate where every resample agrees. Resamples
      whose statistic is nan, such as an AUROC without positives, are left out; nan where all are.

    Raises:
      UsageError: an unknown method, confidence outside (0, 1), n_resamples or batch_size < 1, fewer than two examples,
        arrays whose lengths differ.
    """
    check_confidence(confidence)
    if method not in ("bca", "percentile"):
        raise unknown_name("bootstrap method", method, ("bca", "percentile"))
    for name, given in (
        ("n_resamples", n_resamples),
        ("batch_size", batch_size),
        ("the number of arrays", len(arrays)),
    ):
        if given < 1:
            raise UsageError(f"{name} must be at least 1, got {given}")
    check_same_length(**{f"arrays[{i}]": array for i, array in enumerate(arrays)}, strata=strata)
    check_not_empty("arrays[0]", arrays[0])
    n = arrays[0].shape[0]
    if n < 2:
        raise UsageError(f"a bootstrap needs at least two examples, got {n}")
    arrays = tuple(jnp.asarray(array) for array in arrays)
    of_rows = lambda rows: jnp.ravel(statistic(*(array[rows] for array in arrays)))
    if strata is None:
        order, begin, end = jnp.arange(n), jnp.zeros(n, jnp.int32), jnp.full(n, n, jnp.int32)
    else:
        order, begin, end = stratified_rows(strata)
    resample = lambda k: of_rows(order[draw_rows(k, begin, end)])
    values = jax.lax.map(resample, jax.random.split(key, n_resamples), batch_size=batch_size)

    estimate = jnp.asarray(statistic(*arrays))
    tails = jnp.array([(1 - confidence) / 2, (1 + confidence) / 2])
    if method == "bca":
        others = jnp.arange(n - 1)
        leave_out = lambda place: of_rows(order[others + (others >= place)])
        left_out = jax.lax.map(leave_out, jnp.arange(n), batch_size=batch_size)
        tails = _bca_tails(values, estimate.ravel(), left_out, begin, end, tails)
    else:
        tails = jnp.broadcast_to(tails[:, None], (2, values.shape[1]))
    low, high = jax.vmap(jnp.nanquantile, in_axes=1, out_axes=1)(values, tails)
    return Interval(low.reshape(estimate.shape), high.reshape(estimate.shape))


@jax.jit
@functools.partial(jax.vmap, in_axes=(1, 0, 1, None, None, None), out_axes=1)
def _bca_tails(
    values: Float[Array, " resamples"],
    estimate: Float[Array, ""],
    left_out: Float[Array, " n"],
    begin: Int[Array, " n"],
    end: Int[Array, " n"],
    tails: Float[Array, "2"],
) -> Float[Array, "2"]:
    """The quantiles to take instead of `tails`, from the bias of the resamples and the skewness of the influences."""
    # Ties count one half, as a statistic such as an accuracy takes few values.
    least = 0.5 / values.shape[0]
    below = jnp.nanmean(jnp.where(jnp.isnan(values), jnp.nan, (jnp.sign(estimate - values) + 1) / 2))
    bias = ndtri(jnp.clip(below, least, 1 - least))
    known = ~jnp.isnan(left_out)
    per_stratum = lambda of_row: jnp.zeros_like(left_out).at[begin].add(jnp.where(known, of_row, 0.0))[begin]
    centre = per_stratum(left_out) / per_stratum(jnp.ones_like(left_out))
    # The influence of a row of a stratum of size m is m - 1 times this pull, and counts 1 / m.
    pull = jnp.where(known, (centre - left_out) * (1 - 1 / (end - begin)), 0.0)
    # Scaled by the largest: cubes of the small changes that one row makes would vanish in float32.
    pull = pull / jnp.maximum(jnp.abs(pull).max(), jnp.finfo(pull.dtype).tiny)
    spread = jnp.sum(pull**2)
    skewness = jnp.where(spread > 0, jnp.sum(pull**3) / (6 * jnp.where(spread > 0, spread, 1.0) ** 1.5), 0.0)
    shifted = bias + ndtri(tails)
    return ndtr(bias + shifted / (1 - skewness * shifted))
