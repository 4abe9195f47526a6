"""Everything that one looks at first after training a classifier, from its logits on a test set."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Integer

from dl_core.errors import UsageError
from dl_core.metrics.accumulator import AnyArray
from dl_core.metrics.calibration import brier_score, calibration_error, negative_log_likelihood
from dl_core.metrics.checks import check_classes, check_finite, check_not_empty, check_same_length
from dl_core.metrics.classification import (
    confusion_matrix,
    counts_from_confusion,
    f1_from_counts,
    precision_from_counts,
    recall_from_counts,
)
from dl_core.metrics.intervals import wilson_interval


@functools.partial(jax.jit, static_argnames="num_classes")
def _scores(
    labels: Int[Array, " n"], logits: Float[Array, "n classes"], num_classes: int
) -> dict[str, Float[Array, ""] | Int[Array, ""]]:
    matrix = confusion_matrix(labels, logits.argmax(axis=1), num_classes=num_classes)
    counts = counts_from_confusion(matrix)
    probabilities = jax.nn.softmax(logits, axis=1)
    return {
        "correct": jnp.trace(matrix),
        "commonest": matrix.sum(axis=1).max(),
        "precision_macro": precision_from_counts(counts),
        "recall_macro": recall_from_counts(counts),
        "f1_macro": f1_from_counts(counts),
        "calibration_error": calibration_error(labels, probabilities),
        "negative_log_likelihood": negative_log_likelihood(labels, logits),
        "brier_score": brier_score(labels, probabilities),
    }


def classification_summary(
    labels: Integer[AnyArray, " n"], logits: Float[AnyArray, "n classes"]
) -> dict[str, float | tuple[float, float]]:
    """The scores of a classifier on a test set.

    Args:
      labels: true classes, in [0, classes).
      logits: the classifier's output.

    Returns:
      accuracy and its 95 % Wilson interval (low, high); precision_macro, recall_macro, f1_macro; calibration_error (15
      bins of equal width), negative_log_likelihood (nats), brier_score; majority_baseline, the accuracy of always
      answering the commonest class. Python floats.

    Raises:
      UsageError: no examples, shapes that do not match, a label outside [0, classes), or a logit that is not finite.
    """
    labels, logits = np.asarray(labels), np.asarray(logits, np.float32)
    if labels.ndim != 1 or logits.ndim != 2:
        raise UsageError(f"labels must be [n] and logits [n, classes], got {list(labels.shape)}, {list(logits.shape)}")
    check_same_length(labels=labels, logits=logits)
    check_not_empty("labels", labels)
    n, num_classes = logits.shape
    check_classes("labels", labels, num_classes)
    check_finite("logits", logits)
    scores = {
        name: value.item() for name, value in _scores(jnp.asarray(labels), jnp.asarray(logits), num_classes).items()
    }
    correct, commonest = scores.pop("correct"), scores.pop("commonest")
    low, high = wilson_interval(correct, n)
    return {
        "accuracy": correct / n,
        "accuracy_interval": (float(low), float(high)),
        **scores,
        "majority_baseline": commonest / n,
    }
