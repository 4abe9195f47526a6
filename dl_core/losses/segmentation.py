"""Losses for segmentation that measure overlap, one value per image; for one per pixel use `cross_entropy` or `focal`.

With TP, FP, FN the true positives, false positives and false negatives of a class, summed over the pixels of one image
with probabilities in place of decisions, all but the last are one formula:

    tversky             1 - (TP + s) / (TP + α FP + β FN + s)
    dice                α = β = 1/2
    jaccard             α = β = 1
    generalized_dice    dice of all classes together, each weighted by 1 / (its pixels)²

The loss is the mean over the classes. s (`smooth`) is counted in pixels, as in Optax: it gives an empty class a loss,
with a gradient, for what is predicted of it. Definitions of Dice as 1 - (2 TP + s) / (2 TP + FP + FN + s) have twice
this s. `optax.losses.dice_loss` agrees with `tversky`, but cannot leave out pixels without a label.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from dl_core.errors import UsageError
from dl_core.losses.classification import class_distribution
from dl_core.optim.options import Number, in_interval

Logits = Float[Array, "batch *pixels classes"]
Labels = Int[Array, "batch *pixels"] | Shaped[Array, "batch *pixels classes"]
PerClass = Float[Array, "batch classes"]


def tversky(
    logits: Logits,
    labels: Labels,
    *,
    alpha: Number = 0.5,
    beta: Number = 0.5,
    smooth: Number = 1.0,
    independent: bool = False,
    class_weights: Float[Array, " classes"] | None = None,
    where: Bool[Array, "batch *pixels"] | None = None,
) -> Float[Array, " batch"]:
    """1 - (TP + s) / (TP + α FP + β FN + s), the mean over the classes.

    Salehi, Erdogmus, Gholipour (2017), https://arxiv.org/abs/1706.05721, eq. 4. α < β asks for recall.

    Args:
      logits: one for each class, any number of pixel axes; the probabilities are computed in float32 at least.
      labels: the class of each pixel, in [0, classes); or a distribution over the classes. A class that does not exist
        gives NaN rather than a wrong number.
      alpha: α >= 0, what a false positive costs.
      beta: β >= 0, what a false negative costs.
      smooth: s >= 0, in pixels. With 0, a class that is neither there nor predicted costs 0.
      independent: classes that overlap, or a single one: probabilities by the sigmoid instead of the softmax, and
        labels of the shape of the logits, 1 where the pixel belongs to the class.
      class_weights: of the mean over the classes, >= 0; (0, 1, 1) leaves the background out.
      where: the pixels that count; those without a label get no gradient, whatever they hold.

    Returns:
      One loss per image, in [0, 1].

    Raises:
      UsageError: shapes that do not belong together, a negative option, or one class under a softmax.
    """
    in_interval("alpha", alpha, "[0, inf)")
    in_interval("beta", beta, "[0, inf)")
    in_interval("smooth", smooth, "[0, inf)")
    both, predicted, actual, exists = _overlap(logits, labels, independent, where)
    loss = 1 - _ratio(both + smooth, both + alpha * (predicted - both) + beta * (actual - both) + smooth)
    if class_weights is None:
        return jnp.where(exists, loss.mean(axis=-1), jnp.nan)
    return jnp.where(exists, loss @ (class_weights / class_weights.sum()).astype(loss.dtype), jnp.nan)


def dice(
    logits: Logits,
    labels: Labels,
    *,
    smooth: Number = 1.0,
    independent: bool = False,
    class_weights: Float[Array, " classes"] | None = None,
    where: Bool[Array, "batch *pixels"] | None = None,
) -> Float[Array, " batch"]:
    """Soft Dice loss, 1 - (2 TP + 2 s) / (2 TP + FP + FN + 2 s); everything else as in `tversky`.

    Milletari, Navab, Ahmadi (2016), "V-Net", https://arxiv.org/abs/1606.04797, section 3, without their squares.
    """
    return tversky(
        logits, labels, smooth=smooth, independent=independent, class_weights=class_weights, where=where
    )  # α = β = 1/2


def jaccard(
    logits: Logits,
    labels: Labels,
    *,
    smooth: Number = 1.0,
    independent: bool = False,
    class_weights: Float[Array, " classes"] | None = None,
    where: Bool[Array, "batch *pixels"] | None = None,
) -> Float[Array, " batch"]:
    """Soft Jaccard (IoU) loss, 1 - (TP + s) / (TP + FP + FN + s); everything else as in `tversky`.

    Rahman, Wang (2016), "Optimizing intersection-over-union in deep neural networks for image segmentation".
    """
    return tversky(
        logits,
        labels,
        alpha=1.0,
        beta=1.0,
        smooth=smooth,
        independent=independent,
        class_weights=class_weights,
        where=where,
    )


def generalized_dice(
    logits: Logits,
    labels: Labels,
    *,
    smooth: Number = 1.0,
    independent: bool = False,
    where: Bool[Array, "batch *pixels"] | None = None,
) -> Float[Array, " batch"]:
    """1 - (2 Σ_c w_c TP_c + s) / (Σ_c w_c (2 TP_c + FP_c + FN_c) + s): rare classes count as much as common ones.

    Sudre et al. (2017), https://arxiv.org/abs/1707.03237, section 2: w_c is the inverse of the squared number of pixels
    of class c in the image. Here it is relative to the rarest class that is present, which has w = 1, so that s is
    counted in its pixels; a class that is absent, for which the paper's weight is infinite, has w = 1, too.

    Args:
      logits: as in `tversky`.
      labels: as in `tversky`.
      smooth: s >= 0; 0 is the paper's.
      independent: as in `tversky`.
      where: as in `tversky`.

    Returns:
      One loss per image, in [0, 1].

    Raises:
      UsageError: as in `tversky`.
    """
    in_interval("smooth", smooth, "[0, inf)")
    both, predicted, actual, exists = _overlap(logits, labels, independent, where)
    present = actual > 0
    rarest = jnp.min(actual, axis=-1, keepdims=True, where=present, initial=jnp.inf)
    weights = jnp.where(present, (rarest / jnp.where(present, actual, jnp.inf)) ** 2, 1.0)
    overlap, total = (weights * both).sum(axis=-1), (weights * (predicted + actual)).sum(axis=-1)
    return jnp.where(exists, 1 - _ratio(2 * overlap + smooth, total + smooth), jnp.nan)


def _overlap(
    logits: Logits, labels: Labels, independent: bool, where: Bool[Array, "batch *pixels"] | None
) -> tuple[PerClass, PerClass, PerClass, Bool[Array, " batch"]]:
    """Σ p y, Σ p and Σ y over the pixels that count, and whether all their labels exist."""
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    if independent:
        if labels.shape != logits.shape:
            raise UsageError(
                f"independent classes need labels of the shape of the logits, {logits.shape}, got {labels.shape}; "
                "make them 0 or 1 for each class, e.g. by jax.nn.one_hot or labels[..., None]"
            )
        targets, exists = labels.astype(logits.dtype), jnp.ones(logits.shape[:-1], bool)
    else:
        if logits.shape[-1] == 1:
            raise UsageError("the softmax of one class is always 1; give independent=True, or a logit for background")
        targets, exists = class_distribution(labels, logits)
    kept = jnp.ones(exists.shape, bool) if where is None else where
    if kept.shape != exists.shape:
        raise UsageError(f"where must have the axes of the pixels, {exists.shape}, got {kept.shape}")
    # before the softmax and after it: a NaN must not reach it, and what it makes of the stand-in must not count
    logits, targets = (jnp.where(kept[..., None], array, 0) for array in (logits, targets))
    probabilities = jax.nn.sigmoid(logits) if independent else jax.nn.softmax(logits, axis=-1)
    probabilities = jnp.where(kept[..., None], probabilities, 0)
    pixels = tuple(range(1, logits.ndim - 1))
    both, predicted, actual = (x.sum(axis=pixels) for x in (probabilities * targets, probabilities, targets))
    return both, predicted, actual, (exists | ~kept).all(axis=pixels)


def _ratio(part: Float[Array, "..."], whole: Float[Array, "..."]) -> Float[Array, "..."]:
    """part / whole, and 1 where there is nothing of either."""
    return jnp.where(whole > 0, part / jnp.where(whole > 0, whole, 1), 1.0)
