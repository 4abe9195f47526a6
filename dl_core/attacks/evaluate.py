"""What an attack achieved: success rates, distances, the score of the course notes, accuracy over the radius."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int, Key

from dl_core.attacks.balls import distance, image_keys
from dl_core.attacks.checks import Problem, check_eps
from dl_core.attacks.pieces import in_pieces, take, traced
from dl_core.attacks.result import ApplyFn, AttackResult
from dl_core.attacks.verification import Attack, attack_once, check_evaluated
from dl_core.errors import UsageError
from dl_core.loops import choose_driver
from dl_core.metrics.intervals import check_confidence, wilson_interval


class SuccessRate(NamedTuple):
    """Share of the attacked images on which the attack succeeded, the ends of its interval, and their number."""

    rate: Float[Array, ""]
    low: Float[Array, ""]
    high: Float[Array, ""]
    attacked: Int[Array, ""]


class DistanceSummary(NamedTuple):
    """Distances of the attacked images, in the norm of the attack.

    mean, median, largest: over the successes; nan where there is none.
    median_of_all: with failures infinitely far; it falls with both a higher success rate and shorter distances.
    """

    mean: Float[Array, ""]
    median: Float[Array, ""]
    largest: Float[Array, ""]
    median_of_all: Float[Array, ""]


class AccuracyCurve(NamedTuple):
    """Accuracy under attack for each radius.

    eps: as given.
    accuracy: share of the images that are classified as their label.
    low, high: ends of the Wilson interval of each point by itself.
    broken: which images are not.
    """

    eps: Float[Array, " radii"]
    accuracy: Float[Array, " radii"]
    low: Float[Array, " radii"]
    high: Float[Array, " radii"]
    broken: Bool[Array, "radii batch"]


def success_rate(
    result: AttackResult, *, attacked: Bool[Array, " batch"] | None = None, confidence: float = 0.95
) -> SuccessRate:
    """The share of images on which an attack succeeded, with its Wilson interval.

    Args:
      result: of any attack.
      attacked: the images that count, e.g. those that were classified correctly before; by default all, also those
        that were wrong from the start (success at distance 0).
      confidence: nominal coverage of the interval, in (0, 1).

    Returns:
      SuccessRate; its rate is nan where no image counts.

    Raises:
      UsageError: confidence outside (0, 1).
    """
    counts = jnp.ones_like(result.success) if attacked is None else attacked
    of, won = counts.sum(), (result.success & counts).sum()
    low, high = map(jnp.asarray, wilson_interval(won, of, confidence))
    return SuccessRate(jnp.where(of > 0, won / jnp.maximum(of, 1), jnp.nan), low, high, of)


def distance_summary(result: AttackResult, *, attacked: Bool[Array, " batch"] | None = None) -> DistanceSummary:
    """How far an attack had to go.

    Args:
      result: of any attack.
      attacked: the images that count, see `success_rate`. An image that was wrong from the start has distance 0.

    Returns:
      DistanceSummary, in the units of the images.
    """
    counts = jnp.ones_like(result.success) if attacked is None else attacked
    won, lengths = result.success & counts, result.distance.astype(jnp.float32)
    of_successes = jnp.where(won, lengths, jnp.nan)
    ranked = jnp.sort(jnp.where(counts, jnp.where(won, lengths, jnp.inf), jnp.nan))  # those that do not count come last
    middle = ranked[jnp.maximum(counts.sum() - 1, 0) // 2]  # the lower of two: no mean with an infinite distance
    largest = jnp.where(won.any(), jnp.max(jnp.where(won, lengths, 0)), jnp.nan)
    return DistanceSummary(jnp.nanmean(of_successes), jnp.nanmedian(of_successes), largest, middle)


def attack_score(
    apply_fn: ApplyFn, params: Any, images: Float[Array, "batch ..."], adversarial: Float[Array, "batch ..."]
) -> Float[Array, " batch"]:
    """How much the logits move for how much the image moved (course notes, a question on metrics of attacks).

        ‖f(x) − f(x*)‖² / ‖x − x*‖²

    Larger is a better attack. It says nothing of whether the prediction changed.

    Args:
      apply_fn: (params, images) -> logits.
      params: pytree of everything that apply_fn needs.
      images: the originals x.
      adversarial: the changed images x*.

    Returns:
      One score for each image, >= 0; 0 where the image or its logits did not change.

    Raises:
      UsageError: the shapes of images and adversarial differ.
    """
    if images.shape != adversarial.shape:
        raise UsageError(
            f"adversarial must have the shape of images, {list(images.shape)}, got {list(adversarial.shape)}"
        )
    wrapped = apply_fn if isinstance(apply_fn, Partial) else Partial(apply_fn)
    return _score(Problem(wrapped, params, images, jnp.zeros(len(images), jnp.int32), None), adversarial)


def accuracy_curve(
    attack: Attack,
    apply_fn: ApplyFn,
    params: Any,
    images: Float[Array, "batch ..."],
    labels: Int[Array, " batch"],
    epsilons: Sequence[float] | Float[Array | np.ndarray, " radii"],
    *,
    key: Key[Array, "*batch"],
    norm: str = "linf",
    bounds: tuple[float, float] = (0.0, 1.0),
    batch_size: int | None = None,
    worst_case: bool = True,
    confidence: float = 0.95,
    loop: str = "auto",
    progress: Callable[[int, int], None] | None = None,
) -> AccuracyCurve:
    """Accuracy under an attack of fixed radius, for many radii in one compiled program.

    Radii × images are one long batch in which every image has its own radius, cut into pieces of fixed memory. For
    attacks that minimise the distance, one run says it all: see `curve_from_distances`.

    Args:
      attack: (apply_fn, params, images, labels, *, key, eps, norm, bounds, loop) -> AttackResult, whose eps may be one
        for each image.
      apply_fn: (params, images) -> logits, as in inference, normalisation included.
      params: pytree of everything that apply_fn needs.
      images: inside the bounds.
      labels: the true classes.
      epsilons: radii >= 0 in the units of the images, in any order.
      key: one key, or one for each image; an image draws the same numbers for every radius and every batch_size.
      norm: "linf", "l2" or "l1".
      bounds: smallest and largest value of an image.
      batch_size: most images at once; None takes all radii of all images at once, on the CPU one radius after another.
      worst_case: an image broken at a smaller radius is in the ball of every larger one, so it counts as broken there
        too: the curve never rises. False reports each run of the attack by itself.
      confidence: nominal coverage of each point's interval, in (0, 1).
      loop: see `dl_core.loops`.
      progress: called after each piece with (attacks on one image done, in all); not inside `jit`.

    Returns:
      AccuracyCurve.

    Raises:
      UsageError: epsilons that are no list of radii, batch_size < 1, confidence outside (0, 1), no images; see
        `dl_core.attacks.checks.check_attack`.
    """
    radii = _check_radii(epsilons)
    check_confidence(confidence)
    problem = check_evaluated(
        apply_fn, params, images, labels, bounds=bounds, eps=0.0, norm=norm, key=key, batch_size=batch_size
    )
    batch, keys = len(images), image_keys(key, len(images))
    rows = np.tile(np.arange(batch), len(radii))

    def broken(part: Int[np.ndarray, " part"]) -> Bool[Array, " part"]:
        which = rows[part]
        chosen = take((images, problem.labels, keys), which)
        eps = take(radii, part // batch)
        return attack_once(attack, apply_fn, params, *chosen, eps=eps, norm=norm, bounds=bounds, loop=loop).success

    at_once = batch_size
    if traced(images, labels, params, radii, key):
        at_once = None
    elif at_once is None and choose_driver(loop, images, params) == "host":
        at_once = batch  # a processor gains nothing from larger batches, and its cache is lost
    of_all = in_pieces(broken, np.arange(len(rows)), at_once, images, progress=progress)
    table = of_all.reshape(len(radii), batch)
    if worst_case:
        within = radii[None] <= radii[:, None]
        table = (within[:, :, None] & table[None]).any(axis=1)
    return _curve(radii, table, confidence)


def curve_from_distances(
    result: AttackResult,
    epsilons: Sequence[float] | Float[Array | np.ndarray, " radii"],
    *,
    confidence: float = 0.95,
) -> AccuracyCurve:
    """Accuracy over the radius from one run of an attack that minimises the distance, such as DeepFool.

    An image is broken at eps where the attack succeeded within that distance (in its norm); the curve never rises.

    Args:
      result: of the attack.
      epsilons: radii >= 0 in the units of the images, in any order.
      confidence: nominal coverage of each point's interval, in (0, 1).

    Returns:
      AccuracyCurve; at radius 0 the accuracy without an attack.

    Raises:
      UsageError: epsilons that are no list of radii, confidence outside (0, 1).
    """
    radii = _check_radii(epsilons)
    check_confidence(confidence)
    # the rounding of a distance does not decide about a radius that is equal to it
    near = result.distance.astype(jnp.float32)[None] <= radii[:, None] * (1 + 1e-6)
    return _curve(radii, near & result.success[None], confidence)


@jax.jit
def _score(problem: Problem, adversarial: Float[Array, "batch ..."]) -> Float[Array, " batch"]:
    moved = distance(adversarial.astype(jnp.float32) - problem.images.astype(jnp.float32), "l2")
    answered = distance(problem.logits(adversarial) - problem.logits(problem.images), "l2")
    return jnp.where(moved > 0, (answered / jnp.where(moved > 0, moved, 1)) ** 2, 0)


def _check_radii(epsilons: Any) -> Float[Array, " radii"]:
    shape = np.shape(epsilons)
    if len(shape) != 1 or not shape[0]:
        raise UsageError(f"epsilons must be a list of one radius or more, got shape {list(shape)}")
    radii = jnp.asarray(epsilons, jnp.float32)
    check_eps(radii, shape[0])
    return radii


def _curve(radii: Float[Array, " radii"], broken: Bool[Array, "radii batch"], confidence: float) -> AccuracyCurve:
    right = (~broken).sum(axis=1)
    low, high = map(jnp.asarray, wilson_interval(right, jnp.full_like(right, broken.shape[1]), confidence))
    return AccuracyCurve(radii, right / broken.shape[1], low, high, broken)
