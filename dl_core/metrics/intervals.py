"""How uncertain an estimate is: confidence intervals for a share of n, and for anything by the bootstrap.

A share (an accuracy, a recall) takes the Wilson interval: its coverage stays near the nominal level for small n and
shares near 0 or 1, where the textbook ± 1.96 standard errors fails. Clopper-Pearson never covers less than the nominal
level and is therefore wider. Brown, Cai, DasGupta (2001), "Interval Estimation for a Binomial Proportion".
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from jax.scipy.special import ndtr, ndtri
from jaxtyping import Array, Float, PRNGKeyArray, Real, Shaped

from dl_core.errors import UsageError, unknown_name
from dl_core.metrics.accumulator import AnyArray


class Interval(NamedTuple):
    """Ends of a confidence interval, each of the estimate's shape [...]."""

    low: Float[AnyArray, "..."] | float
    high: Float[AnyArray, "..."] | float


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise UsageError(f"confidence must lie strictly between 0 and 1, got {confidence}")


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
      UsageError: confidence outside (0, 1).
    """
    _check_confidence(confidence)
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
      UsageError: confidence outside (0, 1).
    """
    _check_confidence(confidence)
    tail = (1 - confidence) / 2
    s, trials = np.asarray(successes, float), np.asarray(n, float)
    low = np.where(s > 0, scipy.special.betaincinv(np.maximum(s, 1), trials - s + 1, tail), 0.0)
    high = np.where(s < trials, scipy.special.betaincinv(s + 1, np.maximum(trials - s, 1), 1 - tail), 1.0)
    return Interval(low, high) if np.ndim(low) else Interval(float(low), float(high))


def bootstrap_interval(
    statistic: Callable[..., Float[Array, ""]],
    *arrays: Shaped[AnyArray, "n ..."],
    key: PRNGKeyArray,
    confidence: float = 0.95,
    n_resamples: int = 1000,
    method: str = "bca",
    batch_size: int = 100,
) -> Interval:
    """Interval of any statistic of n examples, from its values on examples drawn with replacement.

    "percentile" takes the quantiles of those values; "bca" shifts them for bias and skewness (Efron 1987, "Better
    Bootstrap Confidence Intervals"), which also needs the n values that leave one example out.

        bootstrap_interval(functools.partial(f1, num_classes=10), labels, predictions, key=key)

    Args:
      statistic: (*arrays) -> scalar; must work under vmap.
      arrays: the examples along the first axis, all of length n >= 2.
      key: drives the resampling.
      confidence: nominal coverage, in (0, 1).
      n_resamples: draws of n examples.
      method: "bca" or "percentile".
      batch_size: resamples evaluated at once; bounds the memory, does not change the draws.

    Returns:
      Interval of scalars; both ends are the estimate where every resample agrees.

    Raises:
      UsageError: an unknown method, confidence outside (0, 1), or fewer than two examples.
    """
    _check_confidence(confidence)
    if method not in ("bca", "percentile"):
        raise unknown_name("bootstrap method", method, ("bca", "percentile"))
    n = arrays[0].shape[0]
    if n < 2:
        raise UsageError(f"a bootstrap needs at least two examples, got {n}")
    arrays = tuple(jnp.asarray(array) for array in arrays)
    of_rows = lambda rows: statistic(*(array[rows] for array in arrays))
    resample = lambda k: of_rows(jax.random.randint(k, (n,), 0, n))
    values = jax.lax.map(resample, jax.random.split(key, n_resamples), batch_size=batch_size)

    tails = jnp.array([(1 - confidence) / 2, (1 + confidence) / 2])
    if method == "bca":
        estimate = statistic(*arrays)
        # Ties count one half, as a statistic such as an accuracy takes few values.
        below = jnp.mean(values < estimate) / 2 + jnp.mean(values <= estimate) / 2
        bias = ndtri(jnp.clip(below, 0.5 / n_resamples, 1 - 0.5 / n_resamples))
        others = jnp.arange(n - 1)
        leave_out = lambda i: of_rows(others + (others >= i))
        left_out = jax.lax.map(leave_out, jnp.arange(n), batch_size=batch_size)
        pull = left_out.mean() - left_out
        spread = jnp.sum(pull**2)
        skewness = jnp.where(spread > 0, jnp.sum(pull**3) / (6 * jnp.where(spread > 0, spread, 1.0) ** 1.5), 0.0)
        shifted = bias + ndtri(tails)
        tails = ndtr(bias + shifted / (1 - skewness * shifted))
    low, high = jnp.quantile(values, tails)
    return Interval(low, high)
