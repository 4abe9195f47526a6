"""Losses for classification: cross-entropy over classes or over independent labels, focal, likelihood, KL, hinge.

Values and gradients stay finite for logits up to ±1e4 and beyond, because no probability is ever formed.
What Optax has goes by Optax's name:

    softmax_cross_entropy(logits, labels)                       -Σ_c y_c log softmax(z)_c, labels are distributions
    softmax_cross_entropy_with_integer_labels(logits, labels)   -log softmax(z)_y
    sigmoid_binary_cross_entropy(logits, labels)                -y log σ(z) - (1 - y) log σ(-z), per element
    smooth_labels(labels, alpha)                                (1 - α) y + α / classes
    hinge_loss(predictor_outputs, targets)                      max(0, 1 - y z), y in {-1, 1}; course notes, eq. 16
    multiclass_hinge_loss(scores, labels)                       max(0, 1 + max_{c≠y} z_c - z_y); Crammer, Singer (2001)
    sigmoid_focal_loss(logits, labels, alpha, gamma)            -α_t (1 - p_t)^γ log p_t, one per element; see `focal`
    kl_divergence(log_predictions, targets)                     Σ_c t_c (log t_c - log p_c), per distribution
    kl_divergence_with_log_targets(log_predictions, log_targets)
    ctc_loss(logits, logit_paddings, labels, label_paddings)    labels without alignment; Graves et al. (2006)

`kl_divergence` has no gradient with respect to a target of 0. `ctc_loss` takes -log_epsilon, 1e5, for infinity: give a
larger one where the logits are so large, or the sequences so long, that a true loss may come near it.
"""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int
from optax.losses import (
    ctc_loss,
    hinge_loss,
    kl_divergence,
    kl_divergence_with_log_targets,
    multiclass_hinge_loss,
    sigmoid_binary_cross_entropy,
    sigmoid_focal_loss,
    smooth_labels,
    softmax_cross_entropy,
    softmax_cross_entropy_with_integer_labels,
)

from dl_core.errors import UsageError
from dl_core.optim.options import Number, in_interval

__all__ = [
    "cross_entropy",
    "ctc_loss",
    "focal",
    "hinge_loss",
    "kl_divergence",
    "kl_divergence_with_log_targets",
    "multiclass_hinge_loss",
    "negative_log_likelihood",
    "sigmoid_binary_cross_entropy",
    "sigmoid_focal_loss",
    "smooth_labels",
    "softmax_cross_entropy",
    "softmax_cross_entropy_with_integer_labels",
]


def cross_entropy(
    logits: Float[Array, "*batch classes"],
    labels: Int[Array, "*batch"] | Float[Array, "*batch classes"],
    *,
    label_smoothing: float = 0.0,
    class_weights: Float[Array, " classes"] | None = None,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    """Softmax cross-entropy, -Σ_c w_c t_c log softmax(z)_c with t = (1 - α) y + α / classes.

    Szegedy et al. (2016), https://arxiv.org/abs/1512.00567, section 7, for the smoothing. PyTorch's weighted mean is
    the sum of this divided by the sum of class_weights[labels].

    Args:
      logits: unnormalised log-probabilities; computed with in float32 at least. -inf rules a class out.
      labels: the class, in [0, classes); or a distribution over classes, e.g. after mix-up. A class that does not exist
        gives NaN rather than a wrong number.
      label_smoothing: α, in [0, 1).
      class_weights: w, >= 0; 1 by default.
      where: examples that count, e.g. not padding; the others get 0, and a gradient of 0 whatever their logits are.

    Returns:
      One loss per example, >= 0.

    Raises:
      UsageError: α out of range, or shapes of labels and logits that do not belong together.
    """
    if not 0 <= label_smoothing < 1:
        raise UsageError(f"label_smoothing must lie in [0, 1), got {label_smoothing}")
    num_classes = logits.shape[-1]
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    if where is not None:
        logits = jnp.where(where[..., None], logits, 0.0)
    targets, exists = class_distribution(labels, logits)
    if label_smoothing:
        targets = smooth_labels(targets, label_smoothing)
    if class_weights is not None:
        targets = targets * class_weights.astype(logits.dtype).reshape((1,) * (logits.ndim - 1) + (num_classes,))
    loss = jnp.where(exists, optax.safe_softmax_cross_entropy(logits, targets), jnp.nan)
    return loss if where is None else jnp.where(where, loss, 0.0)


def focal(
    logits: Float[Array, "*batch classes"],
    labels: Int[Array, "*batch"],
    *,
    gamma: Number = 2.0,
    class_weights: Float[Array, " classes"] | None = None,
) -> Float[Array, "*batch"]:
    """-w_y (1 - p_y)^γ log p_y with p = softmax(z): cross-entropy that passes over what is already easy.

    Lin et al. (2017), https://arxiv.org/abs/1708.02002, eq. 5, over classes that exclude one another; for independent
    labels, as in RetinaNet, `sigmoid_focal_loss`.

    Args:
      logits: computed with in float32 at least.
      labels: the class, in [0, classes). A class that does not exist gives NaN.
      gamma: γ >= 0; 0 is cross-entropy.
      class_weights: w, the paper's α, >= 0; 1 by default.

    Returns:
      One loss per example, >= 0.

    Raises:
      UsageError: a negative γ, or shapes that do not belong together.
    """
    in_interval("gamma", gamma, "[0, inf)")
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    one_hot, _ = class_distribution(labels, logits)
    nothing = -1e30  # its exp is 0 as that of -inf, which would spoil the gradient where all others are ruled out
    others = jax.nn.logsumexp(jnp.where(one_hot > 0, nothing, jnp.maximum(logits, nothing)), axis=-1)
    log_wrong = others - jax.nn.logsumexp(logits, axis=-1)  # log(1 - p_y), to full precision where p_y is near 1
    return jnp.exp(gamma * log_wrong) * cross_entropy(logits, labels, class_weights=class_weights)


def negative_log_likelihood(
    log_probabilities: Float[Array, "*batch classes"],
    labels: Int[Array, "*batch"],
) -> Float[Array, "*batch"]:
    """-log p_y, for a model that returns log-probabilities (log-softmax, or an ensemble's averaged probabilities).

    Args:
      log_probabilities: <= 0, normalised over the last axis.
      labels: the class, in [0, classes). A class that does not exist gives NaN.

    Returns:
      One loss per example.

    Raises:
      UsageError: shapes that do not belong together.
    """
    one_hot, exists = class_distribution(labels, log_probabilities)
    return jnp.where(exists, -jnp.sum(jnp.where(one_hot > 0, log_probabilities, 0.0), axis=-1), jnp.nan)


def class_distribution(
    labels: Int[Array, "*batch"] | Float[Array, "*batch classes"], logits: Float[Array, "*batch classes"]
) -> tuple[Float[Array, "*batch classes"], Bool[Array, "..."]]:
    """Labels as distributions over the classes, and whether each names a class that exists.

    Args:
      labels: the class, in [0, classes), or a distribution.
      logits: for the number of classes and the dtype.

    Returns:
      The distributions, all 0 for a class that does not exist; and bool [*batch].

    Raises:
      UsageError: shapes of labels and logits that do not belong together.
    """
    by_class = jnp.issubdtype(labels.dtype, jnp.integer)
    expected = logits.shape[:-1] if by_class else logits.shape
    if labels.shape != expected:
        raise UsageError(
            f"logits of shape {logits.shape} need {'integer' if by_class else 'float'} labels of shape {expected}, "
            f"got {labels.shape}"
        )
    if not by_class:
        return labels.astype(logits.dtype), jnp.ones(logits.shape[:-1], bool)
    num_classes = logits.shape[-1]
    return jax.nn.one_hot(labels, num_classes, dtype=logits.dtype), (labels >= 0) & (labels < num_classes)
