"""The attacker who knows that there is a detector: the network and its detector as one network to be attacked.

Carlini, Wagner (2017), "Adversarial Examples Are Not Easily Detected", https://arxiv.org/abs/1705.07263; Tramèr et al.
(2020), "On Adaptive Attacks", https://arxiv.org/abs/2002.08347. Every attack of this package can be pointed at it, and
no score of a detector (`dl_core.attacks.detection`) should be reported without one.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int, Key

from dl_core.attacks.balls import image_keys
from dl_core.attacks.result import ApplyFn
from dl_core.attacks.squeezing import (
    DEFAULT_TRANSFORMS,
    Images,
    Options,
    Transform,
    check_options,
    replace,
    scores_of,
    views_of,
)
from dl_core.errors import UsageError
from dl_core.optim.options import in_interval


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
    options = check_options(transforms, metric, reduce, bounds, key, noise_samples)
    inner = apply_fn if isinstance(apply_fn, Partial) else Partial(apply_fn)
    # what may vary is an argument of the compiled attack: other labels, thresholds and keys compile nothing
    return Partial(_defended, options, inner, jnp.asarray(labels), jnp.asarray(threshold), jnp.asarray(weight), key)


def _defended(
    options: Options,
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
    views = views_of(options, images, None if key is None else image_keys(key, len(images)))
    logits = apply_fn(params, views.reshape(-1, *images.shape[1:]))
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32)).reshape(*views.shape[:2], -1)
    score, own = scores_of(options, logits).score, logits[0]
    top, is_label = own.max(axis=1), jax.nn.one_hot(labels, own.shape[1], dtype=bool)
    spread = jax.lax.stop_gradient(top - own.min(axis=1))
    surplus = weight * spread * (score - threshold)
    # rounding must not leave a refused image with the class that the attacker wants
    above = jnp.maximum(top + surplus, jnp.nextafter(jax.lax.stop_gradient(top), jnp.inf))
    # the gradient goes on raising the margin while it lowers the score: surer mistakes change less
    raised = replace(jnp.where(is_label, own, 0).sum(axis=1) + surplus, above)
    refused = (score > threshold) & (own.argmax(axis=1) != labels)
    return jnp.where(refused[:, None] & is_label, raised[:, None], own)
