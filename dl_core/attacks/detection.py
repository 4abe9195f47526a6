"""Detection of adversarial images by how much the prediction changes when the image is transformed.

Xu, Evans, Qi (2018), "Feature Squeezing", https://arxiv.org/abs/1704.01155 (course notes, §11.11). A perturbation is
fitted to the exact pixels; a flip, a blur, fewer bits, noise or a median filter takes from it what a natural image can
spare. With the transforms t and p = softmax f,

    score(x) = max_t ‖p(x) − p(t(x))‖₁  in [0, 2]

and an image is refused if its score lies above a threshold that 5 % of the clean images exceed.

What this does not protect against: an attacker who knows that it is there. `evading` is that attacker, as a network
that every attack of this package can be pointed at, and no score should be reported without it (He et al., 2017,
https://arxiv.org/abs/1706.04701; Tramèr et al., 2020, https://arxiv.org/abs/2002.08347). Nor does it see perturbations
that outlive the transforms (large ones, patches, rotations), or mistakes on clean images; and clean images unlike those
of the threshold may be refused more often than 5 %.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int, Key

from dl_core.attacks.balls import distance, image_keys
from dl_core.attacks.checks import Problem, check_attack, check_logits
from dl_core.attacks.result import ApplyFn
from dl_core.augment.filters import gaussian_blur, median_filter
from dl_core.augment.geometric import flip
from dl_core.augment.noise import gaussian_noise
from dl_core.errors import UsageError, unknown_name
from dl_core.explain.pieces import map_over, variants_at_once
from dl_core.metrics.curves import auroc
from dl_core.metrics.delong import delong_interval
from dl_core.optim.options import in_interval

Images = Float[Array, "batch ..."]
Transform = str | Callable[..., Images]  # a name, images -> images, or (key, images) -> images
DEFAULT_TRANSFORMS = ("flip", "blur", "bit_depth", "noise", "median")
METRICS = ("l1", "l2")
REDUCTIONS = ("max", "mean")
MOST_SPAN = 8.0  # logits further apart have a softmax without a gradient in float32


class DetectionScores(NamedTuple):
    """How far the prediction of each image moved.

    score: over all transforms.
    per_transform: by each, in the order given.
    """

    score: Float[Array, " batch"]
    per_transform: Float[Array, "batch transforms"]


class DetectionQuality(NamedTuple):
    """How well a score tells adversarial images from clean ones.

    auroc: probability that an adversarial image scores above a clean one; 0.5 is chance.
    auroc_low, auroc_high: ends of its interval (DeLong).
    detection_rate: share of adversarial images above the threshold.
    false_alarm_rate: share of clean images above the threshold.
    """

    auroc: Float[Array, ""]
    auroc_low: Float[Array, ""]
    auroc_high: Float[Array, ""]
    detection_rate: Float[Array, ""]
    false_alarm_rate: Float[Array, ""]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Options:
    transforms: tuple[Transform, ...]
    metric: str
    reduce: str
    bounds: tuple[float, float]
    draws: int  # of each random transform, over which its distances are averaged


def detection_scores(
    apply_fn: ApplyFn,
    params: Any,
    images: Float[Array, "batch ..."],
    *,
    transforms: Sequence[Transform] = DEFAULT_TRANSFORMS,
    metric: str = "l1",
    reduce: str = "max",
    key: Key[Array, "*batch"] | None = None,
    bounds: tuple[float, float] = (0.0, 1.0),
    internal_batch_size: int | None = None,
    loop: str = "auto",
) -> DetectionScores:
    """How far the predicted probabilities move when the image is transformed; large for many attacked images.

    The named transforms are

        flip        left and right exchanged: only where the mirror image has the same label (clothes, not digits)
        blur        Gaussian, σ = 1 pixel
        bit_depth   rounded to 4 bits, equation 1 of the paper
        noise       normal, σ = 1/20 of the bounds; needs a key
        median      3 × 3

    and others are functions: `functools.partial(gaussian_blur, sigma=2.0)`, say. Define them once: a new function is
    compiled anew.

    Args:
      apply_fn: (params, images) -> logits, normalisation included.
      params: pytree of everything that apply_fn needs; never changed.
      images: inside the bounds; for the named transforms [batch, height, width, channels].
      transforms: names, or functions images -> images or (key, images) -> images of the same shape; a function of keys
        is given one for each image.
      metric: how far two vectors of probabilities are apart, "l1" (in [0, 2]) or "l2".
      reduce: "max" over the transforms, or their "mean".
      key: one, or one for each image; needed where a transform draws.
      bounds: smallest and largest value of an image.
      internal_batch_size: most rows (images × transforms) that apply_fn is given at once; None bounds their size
        instead. The scores are the same for any.
      loop: how the pieces are driven; see `dl_core.loops`.

    Returns:
      DetectionScores.

    Raises:
      UsageError: see `dl_core.attacks.checks.check_attack`; no transform, an unknown one, one that changes the shape;
        an unknown metric or reduction; no key where one is needed; probabilities in place of logits.
    """
    options = _options(transforms, metric, reduce, bounds, key)
    labels = jnp.zeros(len(images) if hasattr(images, "__len__") else 0, jnp.int32)  # nothing here asks for them
    problem = check_attack(apply_fn, params, images, labels, bounds=bounds, key=key)
    views = _views(options, images, None if key is None else image_keys(key, len(images)))
    at_once = variants_at_once(internal_batch_size, images, len(views))
    logits = map_over(Partial(_logits, problem), views, at_once=at_once, loop=loop)
    check_logits(logits[0])
    return _scores(options, logits)


def detection_threshold(scores: Float[Array, " n"], false_alarm_rate: float = 0.05) -> Float[Array, ""]:
    """The lowest of the clean scores that at most this share of them lies above.

    Args:
      scores: of clean images, other than those on which the detector is tested.
      false_alarm_rate: share of clean images to be refused, in [0, 1). 0 refuses none of these.

    Returns:
      An image is refused if its score is above this number.

    Raises:
      UsageError: no scores, some that are not finite, or a rate outside [0, 1).
    """
    in_interval("false_alarm_rate", false_alarm_rate, "[0, 1)")
    if not len(scores):
        raise UsageError("scores must hold at least one clean image, got none")
    if not isinstance(scores, Tracer) and not np.isfinite(np.asarray(scores)).all():
        raise UsageError("scores must be finite; got nan or inf, which the network's logits must have been")
    refused = int(false_alarm_rate * len(scores) + 1e-9)  # 0.29 · 100 is a little less than 29
    return jnp.sort(jnp.asarray(scores))[len(scores) - 1 - refused]


def detection_quality(
    clean: Float[Array, " clean"],
    adversarial: Float[Array, " adversarial"],
    threshold: float | Float[Array, ""],
    *,
    confidence: float = 0.95,
) -> DetectionQuality:
    """What a detector is worth against one attack.

    Args:
      clean: scores of clean images, not those that the threshold was taken from.
      adversarial: scores of adversarial images; by custom those that fooled the network, which alone do harm.
      threshold: above which an image is refused, see `detection_threshold`.
      confidence: of the interval of the AUROC, in (0, 1).

    Returns:
      DetectionQuality.

    Raises:
      UsageError: fewer than two images of either kind, scores that are not finite, confidence outside (0, 1).
    """
    scores = jnp.concatenate([jnp.asarray(clean), jnp.asarray(adversarial)])
    attacked = (jnp.arange(len(scores)) >= len(clean)).astype(jnp.int32)
    low, high = delong_interval(attacked, scores, confidence)
    return DetectionQuality(
        auroc=auroc(attacked, scores),
        auroc_low=jnp.asarray(low),
        auroc_high=jnp.asarray(high),
        detection_rate=(adversarial > threshold).mean(),
        false_alarm_rate=(clean > threshold).mean(),
    )


def evading(
    apply_fn: ApplyFn,
    labels: Int[Array, " batch"],
    *,
    threshold: float | Float[Array, ""],
    transforms: Sequence[Transform] = DEFAULT_TRANSFORMS,
    metric: str = "l1",
    reduce: str = "max",
    key: Key[Array, "*batch"] | None = None,
    noise_samples: int = 4,
    weight: float | Float[Array, ""] = 1.0,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Partial:
    """The network and its detector as one network, for an attacker who knows both.

    Its logits are those of apply_fn, but an image that fools it and is refused is given back to its label y:

        z_y ← max_i z_i + weight · s · (score − threshold)       where score > threshold and argmax z ≠ y

    with s the spread of the logits. An attack on it succeeds exactly where the image is misclassified and not refused,
    and any attack will do:

        pgd(evading(apply_fn, labels, threshold=threshold, key=key), params, images, labels, eps=0.1, loss="margin", …)

    The attack works on the network until it is fooled, and from there on both (one goal at a time, as in Bryniarski et
    al., 2021, https://arxiv.org/abs/2106.15023, where the two would hinder each other: next to the decision boundary
    every score is high). Gradients go through the transforms, straight through where they have none (Athalye et al.,
    2018, https://arxiv.org/abs/1802.00420), over the mean of several draws where they are random, and through softened
    probabilities where the network is so sure that its softmax is flat.

    For untargeted attacks on the whole batch, which has to come in the order of the labels. An attack that stops at
    its first success is content with a score just below the threshold.

    Args:
      apply_fn: (params, images) -> logits, the network without its detector.
      labels: the true classes [batch].
      threshold: above which an image is refused.
      transforms: those of the detector; see `detection_scores`. One that rounds, quantises or compresses must be
        wrapped in `straight_through`, or the attacker is blind to it.
      metric: of the detector.
      reduce: of the detector.
      key: one, or one for each image; needed where a transform draws. Another one than the detector's, whose draws an
        attacker cannot know.
      noise_samples: draws over which the random transforms are averaged, >= 1.
      weight: of the score against the logits, > 0.
      bounds: smallest and largest value of an image.

    Returns:
      (params, images) -> logits [batch, classes], to be given to an attack as its apply_fn.

    Raises:
      UsageError: no transform or an unknown one; an unknown metric or reduction; no key where one is needed;
        noise_samples below 1, a weight of 0 or below. When called: another number of images than of labels.
    """
    in_interval("noise_samples", noise_samples, "[1, inf)", integer=True)
    in_interval("weight", weight, "(0, inf)")
    options = _options(transforms, metric, reduce, bounds, key, noise_samples)
    inner = apply_fn if isinstance(apply_fn, Partial) else Partial(apply_fn)
    # what may vary is an argument of the compiled attack: other labels, thresholds and keys compile nothing
    return Partial(_defended, options, inner, jnp.asarray(labels), jnp.asarray(threshold), jnp.asarray(weight), key)


def straight_through(transform: Callable[..., Images]) -> Callable[..., Images]:
    """The same transform, with the gradient of doing nothing (Athalye et al., 2018, §4.1.1).

    Args:
      transform: images -> images or (key, images) -> images, of the same shape; one that rounds, say.

    Returns:
      A function for `detection_scores` and for `evading`.
    """

    @functools.wraps(transform)
    def through(*arguments: Any) -> Images:
        images = arguments[-1]
        return _replace(images, jax.lax.stop_gradient(transform(*arguments[:-1], jax.lax.stop_gradient(images))))

    return through


@jax.custom_jvp
def _replace(images: Array, replacement: Array) -> Array:
    """The second, with the gradient of the first."""
    del images
    return replacement


@_replace.defjvp
def _(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    return primals[1], tangents[0]


@straight_through
def _four_bits(images: Images) -> Images:
    # rounded as in the paper; `posterize` cuts bits off, which darkens every image by half a level
    return jnp.round(images * 15) / 15


_NAMED: dict[str, Callable[..., Images]] = {
    "flip": flip,
    "blur": functools.partial(gaussian_blur, sigma=1.0),
    "bit_depth": _four_bits,
    "noise": functools.partial(gaussian_noise, std=0.05),
    "median": median_filter,
}


def _options(
    transforms: Sequence[Transform],
    metric: str,
    reduce: str,
    bounds: tuple[float, float],
    key: Key[Array, "*batch"] | None,
    draws: int = 1,
) -> _Options:
    if isinstance(transforms, str) or not len(transforms):
        raise UsageError(f"transforms must be a sequence of at least one, such as ('blur',); got {transforms!r}")
    for transform in transforms:
        if not callable(transform) and transform not in _NAMED:
            raise unknown_name("transform", str(transform), _NAMED)
        if key is None and _needs_key(transform):
            raise UsageError(f"key is missing: the transform {transform!r} draws; give key=jax.random.key(0), say")
    if metric not in METRICS:
        raise unknown_name("metric", metric, METRICS)
    if reduce not in REDUCTIONS:
        raise unknown_name("reduction", reduce, REDUCTIONS)
    return _Options(tuple(transforms), metric, reduce, bounds, draws)


def _needs_key(transform: Transform) -> bool:
    """Whether it is a function of two arguments, the first of which is a key."""
    parameters = inspect.signature(_NAMED.get(transform, transform)).parameters.values()  # pyright: ignore
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(one.kind in positional and one.default is one.empty for one in parameters) == 2


@functools.partial(jax.jit, static_argnums=0)
def _views(options: _Options, images: Images, keys: Key[Array, " batch"] | None) -> Float[Array, "views batch ..."]:
    """The images, then what each transform makes of them, one after the other; random ones several times."""
    views = [images]
    for index, transform in enumerate(options.transforms):
        if not _needs_key(transform):
            views.append(_transformed(options, transform, images))
            continue
        for draw in range(options.draws):
            own = jax.vmap(lambda key, index=index, draw=draw: jax.random.fold_in(jax.random.fold_in(key, index), draw))
            views.append(_transformed(options, transform, images, own(keys)))
    return jnp.stack(views)


def _transformed(options: _Options, transform: Transform, images: Images, *keys: Key[Array, " batch"]) -> Images:
    if callable(transform):
        view = transform(*keys, images)
        if getattr(view, "shape", None) != images.shape:
            raise UsageError(
                f"a transform must keep the shape of the images, {list(images.shape)}; {transform!r} returned "
                f"{list(view.shape) if hasattr(view, 'shape') else type(view).__name__}"
            )
        return view.astype(images.dtype)
    if images.ndim != 4:
        raise UsageError(
            f"the transform {transform!r} needs images [batch, height, width, channels], got {list(images.shape)}"
        )
    low, high = options.bounds
    return low + (high - low) * _NAMED[transform](*keys, (images - low) / (high - low))


def _logits(problem: Problem, images: Images) -> Float[Array, "batch classes"]:
    return problem.logits(images)


@functools.partial(jax.jit, static_argnums=0)
def _scores(options: _Options, logits: Float[Array, "views batch classes"]) -> DetectionScores:
    views, batch, classes = logits.shape

    def moved(logits: Float[Array, "views batch classes"]) -> Float[Array, "transformed batch"]:
        probabilities = jax.nn.softmax(logits)
        change = (probabilities[1:] - probabilities[:1]).reshape(-1, classes)
        return distance(change, options.metric).reshape(views - 1, batch)

    # the gradient, which the detector does not need but its attacker does, is that of logits within MOST_SPAN
    span = jax.lax.stop_gradient(logits.max(axis=2, keepdims=True) - logits.min(axis=2, keepdims=True))
    by_view = _replace(moved(logits / jnp.maximum(1, span / MOST_SPAN)), moved(logits))
    by_transform, first = [], 0
    for transform in options.transforms:
        count = options.draws if _needs_key(transform) else 1
        by_transform.append(by_view[first : first + count].mean(axis=0))
        first += count
    per_transform = jnp.stack(by_transform, axis=1)
    return DetectionScores(getattr(per_transform, options.reduce)(axis=1), per_transform)


def _defended(
    options: _Options,
    apply_fn: Partial,
    labels: Int[Array, " batch"],
    threshold: Float[Array, ""],
    weight: Float[Array, ""],
    key: Key[Array, "*batch"] | None,
    params: Any,
    images: Images,
) -> Float[Array, "batch classes"]:
    """The logits, of the refused images with the label's on top; see `evading`."""
    if len(images) != len(labels):
        raise UsageError(
            f"evading was given {len(labels)} labels, and is asked about {len(images)} images: attack the whole batch "
            "in its order, or make another one for these"
        )
    views = _views(options, images, None if key is None else image_keys(key, len(images)))
    logits = apply_fn(params, views.reshape(-1, *images.shape[1:]))
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32)).reshape(*views.shape[:2], -1)
    score, own = _scores(options, logits).score, logits[0]
    top, is_label = own.max(axis=1), jax.nn.one_hot(labels, own.shape[1], dtype=bool)
    spread = jax.lax.stop_gradient(top - own.min(axis=1))
    surplus = weight * spread * (score - threshold)
    # rounding must not leave a refused image with the class that the attacker wants
    above = jnp.maximum(top + surplus, jnp.nextafter(jax.lax.stop_gradient(top), jnp.inf))
    # the gradient goes on raising the margin while it lowers the score: surer mistakes change less
    raised = _replace(jnp.where(is_label, own, 0).sum(axis=1) + surplus, above)
    refused = (score > threshold) & (own.argmax(axis=1) != labels)
    return jnp.where(refused[:, None] & is_label, raised[:, None], own)
