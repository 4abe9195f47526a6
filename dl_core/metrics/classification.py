"""Scores of class decisions: from the confusion matrix to accuracy, precision, recall, specificity and F1.

Integer labels and predictions [n] are a multi-class problem (one class each); 0/1 arrays [n, classes] are a multi-label
problem (every column its own yes or no). A binary problem is a multi-class problem of two classes; `average="binary"`
then gives the figure of class 1.

    precision = TP / (TP + FP)    recall = TP / (TP + FN)    specificity = TN / (TN + FP)    F1 = 2TP / (2TP + FP + FN)

Course notes, eq. 34-36. Averages follow scikit-learn: "macro" is the plain mean over the classes that occur in the
labels or the predictions, "weighted" weighs each class by how often it is the true one, "micro" pools the counts.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, Integer

from dl_core.errors import UsageError, unknown_name
from dl_core.metrics.accumulator import AnyArray, Metric, metric_from_sums, where_or_all

AVERAGES = ("macro", "micro", "weighted", "binary")

Decisions = Integer[AnyArray, "n *classes"] | Bool[AnyArray, "n *classes"]
Where = Bool[AnyArray, " n"] | None


class ClassCounts(NamedTuple):
    """Per class, each against the rest: how many decisions were right and wrong, int32 [classes]."""

    true_positive: Int[Array, " classes"]
    false_positive: Int[Array, " classes"]
    false_negative: Int[Array, " classes"]
    true_negative: Int[Array, " classes"]


def _check_range(name: str, values: AnyArray, num_classes: int, where: Where) -> None:
    """Refuses classes outside [0, num_classes) in the rows that count; a traced array is not looked at."""
    if isinstance(values, Tracer) or isinstance(where, Tracer):
        return
    kept = np.asarray(values) if where is None else np.asarray(values)[np.asarray(where)]
    if kept.size and (kept.min() < 0 or kept.max() >= num_classes):
        raise UsageError(
            f"{name} must lie in [0, {num_classes}), got values in [{kept.min()}, {kept.max()}]; "
            "give the right num_classes, or mask the rows out with where="
        )


def confusion_matrix(
    labels: Integer[AnyArray, " n"],
    predictions: Integer[AnyArray, " n"],
    *,
    num_classes: int,
    where: Bool[AnyArray, " n"] | None = None,
) -> Int[Array, "classes classes"]:
    """How often each true class (row) was given each predicted class (column).

    Args:
      labels: true classes, in [0, num_classes).
      predictions: predicted classes, in [0, num_classes).
      num_classes: rows and columns of the matrix.
      where: the rows that count; all by default.

    Returns:
      Counts, int32 [classes, classes]. Inside jit, rows with a class outside the range are left out.

    Raises:
      UsageError: a class outside [0, num_classes), seen outside jit.
    """
    _check_range("labels", labels, num_classes, where)
    _check_range("predictions", predictions, num_classes, where)
    rows, columns = (jnp.asarray(classes).astype(jnp.int32) for classes in (labels, predictions))
    inside = (rows >= 0) & (rows < num_classes) & (columns >= 0) & (columns < num_classes)
    kept = where_or_all(where, labels) & inside
    rows, columns = jnp.where(kept, rows, 0), jnp.where(kept, columns, 0)
    return jnp.zeros((num_classes, num_classes), jnp.int32).at[rows, columns].add(kept.astype(jnp.int32))


def counts_from_confusion(matrix: Int[AnyArray, "classes classes"]) -> ClassCounts:
    """Each class against the rest, from a confusion matrix [classes, classes] (rows true, columns predicted)."""
    matrix = jnp.asarray(matrix)
    hits = jnp.diagonal(matrix)
    predicted, actual = matrix.sum(axis=0), matrix.sum(axis=1)
    return ClassCounts(hits, predicted - hits, actual - hits, matrix.sum() - predicted - actual + hits)


def class_counts(
    labels: Integer[AnyArray, "n *classes"] | Bool[AnyArray, "n *classes"],
    predictions: Integer[AnyArray, "n *classes"] | Bool[AnyArray, "n *classes"],
    *,
    num_classes: int | None = None,
    where: Bool[AnyArray, " n"] | None = None,
) -> ClassCounts:
    """True and false positives and negatives of each class against the rest.

    Args:
      labels: true classes [n] in [0, num_classes), or 0/1 [n, classes] for multi-label.
      predictions: as labels.
      num_classes: needed for labels [n]; the number of columns otherwise.
      where: the rows that count; all by default.

    Returns:
      ClassCounts.

    Raises:
      UsageError: labels [n] without num_classes; a class outside the range, seen outside jit.
    """
    if labels.ndim == 1:
        if num_classes is None:
            raise UsageError("num_classes must be given for labels of shape [n]")
        matrix = confusion_matrix(labels, predictions, num_classes=num_classes, where=where)
        return counts_from_confusion(matrix)
    _check_range("multi-label labels", labels, 2, where)
    _check_range("multi-label predictions", predictions, 2, where)
    kept = where_or_all(where, labels)[:, None]
    actual, predicted = jnp.asarray(labels, bool), jnp.asarray(predictions, bool)
    count = lambda hits: (hits & kept).sum(axis=0, dtype=jnp.int32)
    return ClassCounts(
        count(actual & predicted), count(~actual & predicted), count(actual & ~predicted), count(~actual & ~predicted)
    )


def _reduce(
    counts: ClassCounts,
    numerator: Int[Array, " classes"],
    denominator: Int[Array, " classes"],
    average: str | None,
    zero_division: float,
) -> Float[Array, "..."]:
    """Numerator / denominator per class, then averaged; 0/0 becomes zero_division, and nan is left out of averages."""
    if average == "micro":
        numerator, denominator = numerator.sum(), denominator.sum()
    defined = denominator > 0
    ratio = jnp.where(defined, numerator / jnp.where(defined, denominator, 1), zero_division)
    if average is None or average == "micro":
        return ratio
    if average == "binary":
        return ratio[1]
    support = counts.true_positive + counts.false_negative
    if average == "macro":
        weight = (support + counts.false_positive > 0).astype(ratio.dtype)
    elif average == "weighted":
        weight = support.astype(ratio.dtype)
    else:
        raise unknown_name("average", average, AVERAGES)
    weight = jnp.where(jnp.isnan(ratio), 0.0, weight)
    total = weight.sum()
    mean = jnp.where(weight > 0, ratio * weight, 0.0).sum() / jnp.where(total > 0, total, 1.0)
    return jnp.where(total > 0, mean, zero_division)


def precision_from_counts(
    counts: ClassCounts, *, average: str | None = "macro", zero_division: float = 0.0
) -> Float[Array, "..."]:
    """TP / (TP + FP): see `precision`; takes ClassCounts of int32 [classes]."""
    return _reduce(counts, counts.true_positive, counts.true_positive + counts.false_positive, average, zero_division)


def recall_from_counts(
    counts: ClassCounts, *, average: str | None = "macro", zero_division: float = 0.0
) -> Float[Array, "..."]:
    """TP / (TP + FN): see `recall`; takes ClassCounts of int32 [classes]."""
    return _reduce(counts, counts.true_positive, counts.true_positive + counts.false_negative, average, zero_division)


def specificity_from_counts(
    counts: ClassCounts, *, average: str | None = "macro", zero_division: float = 0.0
) -> Float[Array, "..."]:
    """TN / (TN + FP): see `specificity`; takes ClassCounts of int32 [classes]."""
    return _reduce(counts, counts.true_negative, counts.true_negative + counts.false_positive, average, zero_division)


def f1_from_counts(
    counts: ClassCounts, *, average: str | None = "macro", zero_division: float = 0.0
) -> Float[Array, "..."]:
    """2TP / (2TP + FP + FN): see `f1`; takes ClassCounts of int32 [classes]."""
    hits = 2 * counts.true_positive
    return _reduce(counts, hits, hits + counts.false_positive + counts.false_negative, average, zero_division)


def precision(
    labels: Integer[AnyArray, "n *classes"] | Bool[AnyArray, "n *classes"],
    predictions: Integer[AnyArray, "n *classes"] | Bool[AnyArray, "n *classes"],
    *,
    num_classes: int | None = None,
    average: str | None = "macro",
    zero_division: float = 0.0,
    where: Bool[AnyArray, " n"] | None = None,
) -> Float[Array, "..."]:
    """Share of the decisions for a class that are right: TP / (TP + FP).

    Args:
      labels: true classes [n] in [0, num_classes), or 0/1 [n, classes] for multi-label.
      predictions: as labels.
      num_classes: needed for labels [n]; the number of columns otherwise.
      average: "macro", "micro", "weighted", "binary" (class 1), or None for one value per class.
      zero_division: the value of 0/0; nan leaves such classes out of the average.
      where: the rows that count; all by default.

    Returns:
      A scalar in [0, 1], or [classes] when average is None.

    Raises:
      UsageError: an unknown average; labels [n] without num_classes; a class outside the range, seen outside jit.
    """
    counts = class_counts(labels, predictions, num_classes=num_classes, where=where)
    return precision_from_counts(counts, average=average, zero_division=zero_division)


def recall(
    labels: Integer[AnyArray, "n *classes"] | Bool[AnyArray, "n *classes"],
    predictions: Integer[AnyArray, "n *classes"] | Bool[AnyArray, "n *classes"],
    *,
    num_classes: int | None = None,
    average: str | None = "macro",
    zero_division: float = 0.0,
    where: Bool[AnyArray, " n"] | None = None,
) -> Float[Array, "..."]:
    """Share of the examples of a class that are found, the sensitivity: TP / (TP + FN). As `precision` otherwise."""
    counts = class_counts(labels, predictions, num_classes=num_classes, where=where)
    return recall_from_counts(counts, average=average, zero_division=zero_division)


def specificity(
    labels: Integer[AnyArray, "n *classes"] | Bool[AnyArray, "n *classes"],
    predictions: Integer[AnyArray, "n *classes"] | Bool[AnyArray, "n *classes"],
    *,
    num_classes: int | None = None,
    average: str | None = "macro",
    zero_division: float = 0.0,
    where: Bool[AnyArray, " n"] | None = None,
) -> Float[Array, "..."]:
    """Share of the other classes' examples that are left alone: TN / (TN + FP). As `precision` otherwise."""
    counts = class_counts(labels, predictions, num_classes=num_classes, where=where)
    return specificity_from_counts(counts, average=average, zero_division=zero_division)


def f1(
    labels: Integer[AnyArray, "n *classes"] | Bool[AnyArray, "n *classes"],
    predictions: Integer[AnyArray, "n *classes"] | Bool[AnyArray, "n *classes"],
    *,
    num_classes: int | None = None,
    average: str | None = "macro",
    zero_division: float = 0.0,
    where: Bool[AnyArray, " n"] | None = None,
) -> Float[Array, "..."]:
    """Harmonic mean of precision and recall: 2TP / (2TP + FP + FN). As `precision` otherwise."""
    counts = class_counts(labels, predictions, num_classes=num_classes, where=where)
    return f1_from_counts(counts, average=average, zero_division=zero_division)


def accuracy(
    labels: Integer[AnyArray, "n *classes"] | Bool[AnyArray, "n *classes"],
    predictions: Integer[AnyArray, "n *classes"] | Bool[AnyArray, "n *classes"],
    *,
    where: Bool[AnyArray, " n"] | None = None,
) -> Float[Array, ""]:
    """Share of examples that are right; for multi-label, right in every column.

    Args:
      labels: true classes [n], or 0/1 [n, classes].
      predictions: as labels.
      where: the rows that count; all by default.

    Returns:
      A scalar in [0, 1]; nan without examples.
    """
    metric = accuracy_metric()
    return metric.compute(metric.update(metric.init(), labels, predictions, where=where))


def balanced_accuracy(
    labels: Integer[AnyArray, " n"],
    predictions: Integer[AnyArray, " n"],
    *,
    num_classes: int,
    where: Bool[AnyArray, " n"] | None = None,
) -> Float[Array, ""]:
    """Mean recall over the classes that occur in the labels.

    Args:
      labels: true classes, in [0, num_classes).
      predictions: predicted classes, in [0, num_classes).
      num_classes: number of classes.
      where: the rows that count; all by default.

    Returns:
      A scalar in [0, 1]; nan without examples.

    Raises:
      UsageError: a class outside the range, seen outside jit.
    """
    counts = class_counts(labels, predictions, num_classes=num_classes, where=where)
    return recall_from_counts(counts, average="macro", zero_division=jnp.nan)


def accuracy_metric() -> Metric:
    """Accumulator of `accuracy`: state (right int32 [], seen int32 []), updated with (labels [n], predictions [n])."""

    def sums(labels: Decisions, predictions: Decisions, *, where: Where = None):
        kept = where_or_all(where, labels)
        right = jnp.asarray(labels) == jnp.asarray(predictions)
        right = right.reshape(right.shape[0], -1).all(axis=1) & kept
        return right.sum(dtype=jnp.int32), kept.sum(dtype=jnp.int32)

    return metric_from_sums(lambda: (jnp.int32(0), jnp.int32(0)), sums, lambda state: state[0] / state[1])


def confusion_metric(num_classes: int) -> Metric:
    """Accumulator of `confusion_matrix`: state int32 [classes, classes], updated with (labels [n], predictions [n])."""

    def sums(labels: Integer[AnyArray, " n"], predictions: Integer[AnyArray, " n"], *, where: Where = None):
        return confusion_matrix(labels, predictions, num_classes=num_classes, where=where)

    return metric_from_sums(lambda: jnp.zeros((num_classes, num_classes), jnp.int32), sums, lambda state: state)


def counts_metric(num_classes: int, compute: Callable[[ClassCounts], Any] = lambda counts: counts) -> Metric:
    """Accumulator of anything that depends on ClassCounts, for multi-class [n] and multi-label [n, classes] alike.

        counts_metric(10, functools.partial(f1_from_counts, average="macro"))

    Args:
      num_classes: number of classes.
      compute: ClassCounts -> the metric; the counts themselves by default.

    Returns:
      A Metric, updated with (labels, predictions, where=None).
    """

    def sums(labels: Decisions, predictions: Decisions, *, where: Where = None) -> ClassCounts:
        return class_counts(labels, predictions, num_classes=num_classes, where=where)

    return metric_from_sums(lambda: ClassCounts(*jnp.zeros((4, num_classes), jnp.int32)), sums, compute)
