"""Agreement beyond chance of two lists of classes: Matthews' correlation and Cohen's kappa, from the confusion matrix.

With C the matrix, n its sum, t and p the shares of the true (rows) and the predicted classes (columns):

    MCC = (Σ_k C_kk / n - Σ_k t_k p_k) / √((1 - Σ t_k²)(1 - Σ p_k²))
    κ   = 1 - Σ_ij w_ij C_ij / (n Σ_ij w_ij t_i p_j)      w_ij = [i ≠ j], |i - j| or (i - j)²

Gorodkin (2004), "Comparing two K-category assignments by a K-category correlation coefficient"; Cohen (1960), "A
Coefficient of Agreement for Nominal Scales"; Cohen (1968), "Weighted Kappa". Values are scikit-learn's: where one of
the lists holds a single class the MCC is 0; κ is nan where both hold the same single class. The accumulators are
`confusion_metric(num_classes, matthews_from_confusion)` and `confusion_metric(num_classes, kappa_from_confusion)`.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Integer

from dl_core.errors import unknown_name
from dl_core.metrics.accumulator import AnyArray
from dl_core.metrics.class_counts import counts_from_confusion
from dl_core.metrics.classification import confusion_matrix

WEIGHTS = ("linear", "quadratic")


def matthews_from_confusion(matrix: Int[AnyArray, "classes classes"]) -> Float[Array, ""]:
    """Matthews' correlation coefficient in [-1, 1], from a confusion matrix [classes, classes]."""
    matrix = jnp.asarray(matrix)
    n = jnp.maximum(matrix.sum(), 1).astype(jnp.float32)
    tp, fp, fn, tn = (count / n for count in counts_from_confusion(matrix))
    # C_kk n - t_k p_k is TP TN - FP FN of class k, and 1 - Σ t² is Σ t (1 - t): nothing close to 1 is subtracted.
    covariance = jnp.sum(tp * tn - fp * fn)
    spread = jnp.sqrt(jnp.sum((tp + fn) * (tn + fp)) * jnp.sum((tp + fp) * (tn + fn)))
    return jnp.clip(jnp.where(spread > 0, covariance / jnp.where(spread > 0, spread, 1.0), 0.0), -1.0, 1.0)


def matthews_correlation(
    labels: Integer[AnyArray, " n"],
    predictions: Integer[AnyArray, " n"],
    *,
    num_classes: int,
    where: Bool[AnyArray, " n"] | None = None,
) -> Float[Array, ""]:
    """Correlation of the true and the predicted class; two classes: of two 0/1 variables.

    Args:
      labels: true classes, in [0, num_classes).
      predictions: predicted classes, in [0, num_classes).
      num_classes: number of classes.
      where: the rows that count; all by default.

    Returns:
      A scalar in [-1, 1]: 1 for all right, 0 for chance, or where the labels or the predictions are all of one class.

    Raises:
      UsageError: no examples, shapes that do not match; a class outside the range, seen outside jit.
    """
    return matthews_from_confusion(confusion_matrix(labels, predictions, num_classes=num_classes, where=where))


def kappa_from_confusion(matrix: Int[AnyArray, "classes classes"], *, weights: str | None = None) -> Float[Array, ""]:
    """Cohen's kappa, from a confusion matrix [classes, classes]; `weights` as in `cohen_kappa`."""
    if weights not in (None, *WEIGHTS):
        raise unknown_name("weights", str(weights), WEIGHTS)
    matrix = jnp.asarray(matrix).astype(jnp.float32)
    places = jnp.arange(matrix.shape[0])
    apart = jnp.abs(places[:, None] - places[None])
    cost = {None: apart > 0, "linear": apart, "quadratic": apart**2}[weights].astype(jnp.float32)
    chance = jnp.outer(matrix.sum(axis=1) / matrix.sum(), matrix.sum(axis=0))
    return 1 - jnp.sum(cost * matrix) / jnp.sum(cost * chance)


def cohen_kappa(
    labels: Integer[AnyArray, " n"],
    predictions: Integer[AnyArray, " n"],
    *,
    num_classes: int,
    weights: str | None = None,
    where: Bool[AnyArray, " n"] | None = None,
) -> Float[Array, ""]:
    """Agreement beyond what two raters with these shares of classes would reach by chance.

    Args:
      labels: classes by one rater, in [0, num_classes).
      predictions: classes by the other.
      num_classes: number of classes.
      weights: how much a confusion of classes i and j costs: None (all the same), "linear" or "quadratic" in i - j.
      where: the rows that count; all by default.

    Returns:
      A scalar <= 1: 1 for agreement, 0 for chance; nan where both lists hold the same single class.

    Raises:
      UsageError: unknown weights, no examples, shapes that do not match; a class outside the range, seen outside jit.
    """
    matrix = confusion_matrix(labels, predictions, num_classes=num_classes, where=where)
    return kappa_from_confusion(matrix, weights=weights)
