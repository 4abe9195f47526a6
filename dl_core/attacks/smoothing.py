"""Randomised smoothing: what a network says of most noisy copies of an image, and how far nothing can change that.

Cohen, Rosenfeld, Kolter (2019), "Certified Adversarial Robustness via Randomized Smoothing",
https://arxiv.org/abs/1902.02918. The smoothed classifier answers with the class that the network f gives most often
to the image under normal noise:

    g(x) = argmax_c P(f(x + ε) = c),   ε ~ N(0, σ² I)

If its class has at least the probability p > 1/2, then g says the same of every x + δ with

    ‖δ‖₂ < σ Φ⁻¹(p)                    (theorem 1 with the runner-up at 1 − p; exact for a linear f)

The probability is not known but counted, so every statement holds with probability 1 − α over the drawn noise, for
each image by itself: of a thousand certificates, a thousand α may be wrong.

What this does not protect against: changes longer than the radius or measured otherwise (a rotation, a patch; in d
values, the guarantee for the maximum norm is radius / √d), and a prediction that was wrong to begin with. The radius
belongs to the smoothed classifier, not to the network asked once, and a network that was not trained under noise of
this σ mostly abstains.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int, Key

from dl_core.attacks.balls import image_keys
from dl_core.attacks.checks import Problem, check_attack
from dl_core.attacks.result import ApplyFn
from dl_core.errors import UsageError
from dl_core.explain.pieces import Progress, sum_over, variants_at_once
from dl_core.explain.smooth_grad import deviations, noise_like
from dl_core.metrics.intervals import clopper_pearson_interval
from dl_core.optim.options import in_interval

ABSTAIN = -1
MOST_SAMPLES = 2**24  # up to which float32 counts exactly
Sigma = float | Float[Array, ""] | Float[Array, " batch"]
ArrayLike = Array | np.ndarray


class SmoothedPrediction(NamedTuple):
    """What the smoothed classifier says of each image.

    prediction: the class, or -1 where the votes do not decide.
    votes: how many noisy copies were given to each class.
    """

    prediction: Int[Array, " batch"]
    votes: Int[Array, "batch classes"]


class Certificate(NamedTuple):
    """What the smoothed classifier says of each image, and how far that is certain.

    prediction: the class, or -1 (abstained).
    radius: no change shorter than this in the Euclidean norm alters the class; 0 where abstained.
    probability: what the class has at least under noise, the Clopper–Pearson bound.
    """

    prediction: Int[Array, " batch"]
    radius: Float[Array, " batch"]
    probability: Float[Array, " batch"]


def smoothed_predict(
    apply_fn: ApplyFn,
    params: Any,
    images: Float[Array, "batch ..."],
    *,
    key: Key[Array, "*batch"],
    sigma: Sigma,
    samples: int = 1000,
    alpha: float = 0.001,
    bounds: tuple[float, float] = (0.0, 1.0),
    internal_batch_size: int | None = None,
    loop: str = "auto",
    progress: Progress | None = None,
) -> SmoothedPrediction:
    """The class with most votes under noise, or none where chance could have put the runner-up behind it.

    A class is returned where a binomial test refuses, at level alpha, that the two leading classes are equally likely
    (algorithm PREDICT). With probability 1 - alpha it is that of the smoothed classifier.

    Args:
      apply_fn: (params, images) -> logits, normalisation included. It sees noise outside the bounds as well: clipping
        is its own affair, and the guarantee holds either way.
      params: pytree of everything that apply_fn needs; never changed.
      images: inside the bounds.
      key: one, or one for each image: the noise of an image depends on its key and the number of the sample only.
      sigma: standard deviation of the noise in the units of the images, >= 0; one number, or one for each image.
      samples: noisy copies of each image, in [1, 2²⁴].
      alpha: probability of a wrong answer, in (0, 1/2).
      bounds: smallest and largest value of an image.
      internal_batch_size: most rows (images × samples) that apply_fn is given at once; None bounds their size instead.
        The votes are the same for any.
      loop: how the pieces are driven; see `dl_core.loops`.
      progress: called with (pieces done, pieces in all); not inside `jit`.

    Returns:
      SmoothedPrediction.

    Raises:
      UsageError: see `dl_core.attacks.checks.check_attack`; sigma, samples or alpha out of range.
    """
    problem, keys, spread = _checked(apply_fn, params, images, key, sigma, alpha, bounds, samples=samples)
    pieces = {"internal_batch_size": internal_batch_size, "loop": loop, "progress": progress}
    votes = _count(problem, _stage_keys(keys, 0), spread, samples, **pieces)
    return _decide(votes, jnp.asarray(_most_of_runner_up(samples, float(alpha))))


def certify(
    apply_fn: ApplyFn,
    params: Any,
    images: Float[Array, "batch ..."],
    *,
    key: Key[Array, "*batch"],
    sigma: Sigma,
    selection_samples: int = 100,
    samples: int = 10_000,
    alpha: float = 0.001,
    bounds: tuple[float, float] = (0.0, 1.0),
    internal_batch_size: int | None = None,
    loop: str = "auto",
    progress: Progress | None = None,
) -> Certificate:
    """A class for each image and the Euclidean radius in which the smoothed classifier keeps it (algorithm CERTIFY).

    The class is chosen with one set of samples and its probability bounded with another, of which k of n agree:

        radius = σ Φ⁻¹(p),   p the α-quantile of Beta(k, n − k + 1)

    However sure the network is, the radius ends at σ Φ⁻¹(α^(1/n)): 3.2 σ for 10,000 samples, 3.8 σ for 100,000.

    Args:
      apply_fn: (params, images) -> logits; see `smoothed_predict`.
      params: pytree of everything that apply_fn needs; never changed.
      images: inside the bounds.
      key: one, or one for each image.
      sigma: standard deviation of the noise in the units of the images, >= 0; one number, or one for each image.
      selection_samples: noisy copies by which the class is chosen, in [1, 2²⁴].
      samples: others by which its probability is bounded, in [1, 2²⁴].
      alpha: probability that a certificate is wrong, in (0, 1/2).
      bounds: smallest and largest value of an image.
      internal_batch_size: most rows at once; see `smoothed_predict`.
      loop: how the pieces are driven; see `dl_core.loops`.
      progress: called with (pieces done, pieces in all) while the probability is counted; not inside `jit`.

    Returns:
      Certificate; it abstains where p <= 1/2.

    Raises:
      UsageError: see `dl_core.attacks.checks.check_attack`; sigma, samples or alpha out of range.
    """
    counts = {"selection_samples": selection_samples, "samples": samples}
    problem, keys, spread = _checked(apply_fn, params, images, key, sigma, alpha, bounds, **counts)
    pieces = {"internal_batch_size": internal_batch_size, "loop": loop}
    selection = _count(problem, _stage_keys(keys, 0), spread, selection_samples, **pieces)
    votes = _count(problem, _stage_keys(keys, 1), spread, samples, **pieces, progress=progress)
    tables = map(jnp.asarray, _bounds_of_counts(samples, float(alpha)))
    return _certificate(selection, votes, spread.reshape(-1), *tables)


def certified_accuracy(
    radii: Float[ArrayLike, " n"],
    predictions: Int[ArrayLike, " n"],
    labels: Int[ArrayLike, " n"],
    radii_grid: Float[ArrayLike, " points"],
) -> Float[Array, " points"]:
    """The share of images that are classified rightly and certified to at least a radius.

    Args:
      radii: certified, of each image.
      predictions: its class, -1 for an abstention.
      labels: the true classes.
      radii_grid: where the curve is wanted, >= 0. At 0 it is the accuracy of the smoothed classifier, abstentions
        counted as wrong.

    Returns:
      Shares in [0, 1], falling along a rising grid.

    Raises:
      UsageError: lengths that differ, or no images.
    """
    if not len(radii) == len(predictions) == len(labels) or not len(labels):
        raise UsageError(
            f"radii, predictions and labels must have one entry for each image, got {len(radii)}, {len(predictions)} "
            f"and {len(labels)}"
        )
    right = jnp.asarray(predictions) == jnp.asarray(labels)
    reached = jnp.asarray(radii)[None] >= jnp.asarray(radii_grid)[:, None]
    return (reached & right[None]).mean(axis=1)


def _checked(
    apply_fn: ApplyFn,
    params: Any,
    images: Float[Array, "batch ..."],
    key: Key[Array, "*batch"],
    sigma: Sigma,
    alpha: float,
    bounds: tuple[float, float],
    **samples: int,
) -> tuple[Problem, Key[Array, " batch"], Float[Array, "batch ..."]]:
    labels = jnp.zeros(len(images) if hasattr(images, "__len__") else 0, jnp.int32)  # nothing here asks for them
    problem = check_attack(apply_fn, params, images, labels, bounds=bounds, key=key, needs_key="the noise is drawn")
    for name, count in samples.items():
        in_interval(name, count, f"[1, {MOST_SAMPLES}]", integer=True)
    if isinstance(alpha, Array):
        raise UsageError(f"alpha must be a number known before compiling, such as 0.001; got an array {alpha}")
    in_interval("alpha", alpha, "(0, 0.5)")
    return problem, image_keys(key, len(images)), deviations("sigma", sigma, images)


@functools.partial(jax.jit, static_argnums=1)
def _stage_keys(keys: Key[Array, " batch"], stage: int) -> Key[Array, " batch"]:
    return jax.vmap(jax.random.fold_in, (0, None))(keys, stage)


def _count(
    problem: Problem,
    keys: Key[Array, " batch"],
    spread: Float[Array, "batch ..."],
    samples: int,
    *,
    internal_batch_size: int | None,
    loop: str,
    progress: Progress | None = None,
) -> Float[Array, "batch classes"]:
    at_once = variants_at_once(internal_batch_size, problem.images, samples)
    vote = Partial(_vote, problem, keys, spread)
    return sum_over(vote, np.arange(samples, dtype=np.int32), at_once=at_once, loop=loop, progress=progress)


def _vote(
    problem: Problem, keys: Key[Array, " batch"], spread: Float[Array, "batch ..."], sample: Int[Array, ""]
) -> Float[Array, "batch classes"]:
    images = problem.images
    noisy = (images.astype(spread.dtype) + spread * noise_like(keys, sample, images)).astype(images.dtype)
    logits = problem.logits(noisy)
    return jax.nn.one_hot(logits.argmax(axis=1), logits.shape[1])


@jax.jit
def _decide(votes: Float[Array, "batch classes"], most_of_runner_up: Int[Array, " trials"]) -> SmoothedPrediction:
    votes = votes.astype(jnp.int32)
    (first, second), leader = jax.lax.top_k(votes, 2)[0].T, votes.argmax(axis=1)
    decided = second <= most_of_runner_up[first + second]
    return SmoothedPrediction(jnp.where(decided, leader, ABSTAIN), votes)


@jax.jit
def _certificate(
    selection: Float[Array, "batch classes"],
    votes: Float[Array, "batch classes"],
    sigma: Float[Array, " batch"],
    probabilities: Float[Array, " trials"],
    quantiles: Float[Array, " trials"],
) -> Certificate:
    chosen = selection.argmax(axis=1)
    agreeing = jnp.take_along_axis(votes, chosen[:, None], axis=1)[:, 0].astype(jnp.int32)
    quantile = quantiles[agreeing]
    return Certificate(
        prediction=jnp.where(quantile > 0, chosen, ABSTAIN),
        radius=sigma * jnp.maximum(quantile, 0),
        probability=probabilities[agreeing],
    )


# Both bounds are tables over every possible count: float64 from SciPy, where float32 would not do, and yet usable
# inside a compiled function.


@functools.lru_cache(maxsize=16)
def _bounds_of_counts(samples: int, alpha: float) -> tuple[Float[np.ndarray, " trials"], Float[np.ndarray, " trials"]]:
    """For each count in [0, samples], the lower bound of the probability and its normal quantile, rounded down."""
    # of an interval with α in either tail
    low = np.asarray(clopper_pearson_interval(np.arange(samples + 1.0), samples, 1 - 2 * alpha).low)
    with np.errstate(divide="ignore"):
        return _rounded_down(low), _rounded_down(scipy.special.ndtri(low))


def _rounded_down(values: Float[np.ndarray, " trials"]) -> Float[np.ndarray, " trials"]:
    nearest = values.astype(np.float32)
    return np.where(nearest > values, np.nextafter(nearest, np.float32(-np.inf)), nearest)


@functools.lru_cache(maxsize=16)
def _most_of_runner_up(samples: int, alpha: float) -> Int[np.ndarray, " trials"]:
    """For each number of votes for two classes, the largest j with P(Bin(votes, 1/2) <= j) <= α/2; -1: none."""
    trials = np.arange(samples + 1)

    def chance(fewer: Int[np.ndarray, " trials"]) -> Float[np.ndarray, " trials"]:
        inside = scipy.special.betainc(np.maximum(trials - fewer, 1), np.maximum(fewer, 0) + 1, 0.5)
        return np.where(fewer < 0, 0.0, np.where(fewer >= trials, 1.0, inside))

    low, high = np.full_like(trials, -1), trials.copy()  # bisection: low is rare enough, high is not
    for _ in range(int(samples).bit_length() + 1):
        middle = (low + high) // 2
        fits = chance(middle) <= alpha / 2
        low, high = np.where(fits, np.maximum(middle, low), low), np.where(fits, high, middle)
    return low.astype(np.int32)
