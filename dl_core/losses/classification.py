"""Losses for classification: cross-entropy over classes or over independent labels, log-likelihood, hinge.

Values and gradients stay finite for logits up to ±1e4 and beyond, because no probability is ever formed.
What Optax has goes by Optax's name:

    softmax_cross_entropy(logits, labels)                       -Σ_c y_c log softmax(z)_c, labels are distributions
    softmax_cross_entropy_with_integer_labels(logits, labels)   -log softmax(z)_y
    sigmoid_binary_cross_entropy(logits, labels)                -y log σ(z) - (1 - y) log σ(-z), per element
    smooth_labels(labels, alpha)                                (1 - α) y + α / classes
    hinge_loss(predictor_outputs, targets)                      max(0, 1 - y z), y in {-1, 1}; course notes, eq. 16
    multiclass_hinge_loss(scores, labels)                       max(0, 1 + max_{c≠y} z_c - z_y); Crammer, Singer (2001)
"""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int
from optax.losses import (
    hinge_loss,
    multiclass_hinge_loss,
    sigmoid_binary_cross_entropy,
    smooth_labels,
    softmax_cross_entropy,
    softmax_cross_entropy_with_integer_labels,
)

from dl_core.errors import UsageError

__all__ = [
    "cross_entropy",
    "hinge_loss",
    "multiclass_hinge_loss",
    "negative_log_likelihood",
    "sigmoid_binary_cross_entropy",
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
    targets, exists = _distribution(labels, logits)
    if label_smoothing:
        targets = smooth_labels(targets, label_smoothing)
    if class_weights is not None:
        targets = targets * class_weights.astype(logits.dtype).reshape((1,) * (logits.ndim - 1) + (num_classes,))
    loss = jnp.where(exists, optax.safe_softmax_cross_entropy(logits, targets), jnp.nan)
    return loss if where is None else jnp.where(where, loss, 0.0)


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
    one_hot, exists = _distribution(labels, log_probabilities)
    return jnp.where(exists, -jnp.sum(jnp.where(one_hot > 0, log_probabilities, 0.0), axis=-1), jnp.nan)


def _distribution(
    labels: Int[Array, "*batch"] | Float[Array, "*batch classes"], logits: Float[Array, "*batch classes"]
) -> tuple[Float[Array, "*batch classes"], Bool[Array, "..."]]:
    """Labels as distributions over the classes, and whether each names a class that exists."""
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
