"""Detection of adversarial images by how much the prediction changes when the image is transformed.

Xu, Evans, Qi (2018), "Feature Squeezing", https://arxiv.org/abs/1704.01155 (course notes, §11.11). A perturbation is
fitted to the exact pixels; a flip, a blur, fewer bits, noise or a median filter takes from it what a natural image can
spare. With the transforms t and p = softmax f,

    score(x) = max_t ‖p(x) − p(t(x))‖₁  in [0, 2]

and an image is refused if its score lies above a threshold that 5 % of the clean images exceed.

What this does not protect against: an attacker who knows that it is there. `dl_core.attacks.evading` is that attacker,
and no score should be reported without it (He et al., 2017, https://arxiv.org/abs/1706.04701; Tramèr et al., 2020,
https://arxiv.org/abs/2002.08347). Nor does it see perturbations
that outlive the transforms (large ones, patches, rotations), or mistakes on clean images; and clean images unlike those
of the threshold may be refused more often than 5 %.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.tree_util import Partial
from jaxtyping import Array, Float, Key

from dl_core.attacks.balls import image_keys
from dl_core.attacks.checks import Problem, check_attack, check_logits
from dl_core.attacks.result import ApplyFn
from dl_core.attacks.squeezing import (
    DEFAULT_TRANSFORMS,
    DetectionScores,
    Images,
    Transform,
    check_options,
    scores_of,
    views_of,
)
from dl_core.errors import UsageError
from dl_core.explain.pieces import map_over, variants_at_once
from dl_core.metrics.curves import auroc
from dl_core.metrics.delong import delong_interval
from dl_core.optim.options import in_interval


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
    options = check_options(transforms, metric, reduce, bounds, key)
    labels = jnp.zeros(len(images) if hasattr(images, "__len__") else 0, jnp.int32)  # nothing here asks for them
    problem = check_attack(apply_fn, params, images, labels, bounds=bounds, key=key)
    views = views_of(options, images, None if key is None else image_keys(key, len(images)))
    at_once = variants_at_once(internal_batch_size, images, len(views))
    logits = map_over(Partial(_logits, problem), views, at_once=at_once, loop=loop)
    check_logits(logits[0])
    return scores_of(options, logits)


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


def _logits(problem: Problem, images: Images) -> Float[Array, "batch classes"]:
    return problem.logits(images)
