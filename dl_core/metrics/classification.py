"""Scores of class decisions: from the confusion matrix to accuracy, precision, recall, specificity, F-beta and Jaccard.

Integer labels and predictions [n] are a multi-class problem (one class each); 0/1 arrays [n, classes] are a multi-label
problem (every column its own yes or no). A binary problem is a multi-class problem of two classes; `average="binary"`
then gives the figure of class 1.

    precision = TP / (TP + FP)    recall = TP / (TP + FN)    specificity = TN / (TN + FP)
    F_β = (1 + β²) TP / ((1 + β²) TP + FP + β² FN)           Jaccard = TP / (TP + FP + FN)

Course notes, eq. 34-36. Values are scikit-learn's, averages and 0/0 included:

* "macro" is the plain mean over the classes that occur in the labels or the predictions (multi-label: all columns);
* "weighted" weighs each class by how often it is the true one; where no weight is left, every class weighs the same;
* "micro" pools the counts; "samples" (multi-label) is the mean over examples of each example's own score;
* 0/0 is `zero_division`, 0 by default; nan leaves such a class out of the average.

Where scikit-learn warns, nothing is said; where it raises (no examples at all, shapes that do not match), UsageError is
raised. A state without examples has no complaint to make: its accuracy is nan, its other scores `zero_division`.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Integer

from dl_core.errors import UsageError
from dl_core.metrics.accumulator import AnyArray, Metric, mean_metric, metric_from_sums, where_or_all
from dl_core.metrics.checks import check_classes, check_finite, check_not_empty, check_same_length
from dl_core.metrics.class_counts import (
    ClassCounts,
    Scalar,
    check_average,
    counts_from_confusion,
    f1_from_counts,
    fbeta_from_counts,
    jaccard_from_counts,
    precision_from_counts,
    recall_from_counts,
    specificity_from_counts,
)

ANY_CLASS = 2**31 - 1  # where the number of classes does not matter: every int32 that is not negative

Decisions = Integer[AnyArray, "n *classes"] | Bool[AnyArray, "n *classes"]
Where = Bool[AnyArray, " n"] | None


def _check_decisions(labels: Decisions, predictions: Decisions, num_classes: int | None, where: Where) -> None:
    check_same_length(labels=labels, predictions=predictions, where=where)
    if np.shape(labels) != np.shape(predictions) or np.ndim(labels) > 2:
        raise UsageError(
            "labels and predictions must both be classes [n] or both be 0/1 [n, classes], got shapes "
            f"{list(np.shape(labels))} and {list(np.shape(predictions))}; scores become classes with argmax(axis=1)"
        )
    multi_label = np.ndim(labels) == 2
    values = 2 if multi_label else num_classes
    if values is None:
        raise UsageError("num_classes must be given for labels of shape [n]")
    if num_classes is not None and num_classes < 1:
        raise UsageError(f"num_classes must be at least 1, got {num_classes}")
    if multi_label and num_classes not in (None, ANY_CLASS, np.shape(labels)[1]):
        raise UsageError(f"num_classes must be the number of columns, {np.shape(labels)[1]}, got {num_classes}")
    for name, given in (("labels", labels), ("predictions", predictions)):
        check_classes(f"multi-label {name}" if multi_label else name, given, values, where)


def _confusion(
    labels: Integer[AnyArray, " n"], predictions: Integer[AnyArray, " n"], num_classes: int, where: Where
) -> Int[Array, "classes classes"]:
    rows, columns = (jnp.asarray(classes).astype(jnp.int32) for classes in (labels, predictions))
    inside = (rows >= 0) & (rows < num_classes) & (columns >= 0) & (columns < num_classes)
    kept = where_or_all(where, labels) & inside
    rows, columns = jnp.where(kept, rows, 0), jnp.where(kept, columns, 0)
    return jnp.zeros((num_classes, num_classes), jnp.int32).at[rows, columns].add(kept.astype(jnp.int32))


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
      UsageError: no examples, shapes that do not match; a class outside [0, num_classes), seen outside jit.
    """
    _check_decisions(labels, predictions, num_classes, where)
    check_not_empty("labels", labels, where)
    return _confusion(labels, predictions, num_classes, where)


def _counts_along(
    axis: int,
    labels: Integer[AnyArray, "n classes"] | Bool[AnyArray, "n classes"],
    predictions: Integer[AnyArray, "n classes"] | Bool[AnyArray, "n classes"],
    where: Where,
) -> ClassCounts:
    """Of multi-label decisions: axis 0 counts for each column, axis 1 for each example."""
    kept = where_or_all(where, labels)[:, None]
    actual, predicted = jnp.asarray(labels, bool), jnp.asarray(predictions, bool)
    count = lambda hits: (hits & kept).sum(axis=axis, dtype=jnp.int32)
    return ClassCounts(
        count(actual & predicted), count(~actual & predicted), count(actual & ~predicted), count(~actual & ~predicted)
    )


def _class_counts(labels: Decisions, predictions: Decisions, num_classes: int | None, where: Where) -> ClassCounts:
    if labels.ndim == 2:
        return _counts_along(0, labels, predictions, where)
    assert num_classes is not None, "checked where the arguments enter"
    return counts_from_confusion(_confusion(labels, predictions, num_classes, where))


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
      ClassCounts. Inside jit, rows with a class outside the range are left out.

    Raises:
      UsageError: no examples, shapes that do not match, labels [n] without num_classes; a class outside the range, seen
        outside jit.
    """
    _check_decisions(labels, predictions, num_classes, where)
    check_not_empty("labels", labels, where)
    return _class_counts(labels, predictions, num_classes, where)


def _score(
    from_counts: Callable[..., Float[Array, "..."]],
    labels: Decisions,
    predictions: Decisions,
    num_classes: int | None,
    average: str | None,
    zero_division: float,
    where: Where,
    **options: float,
) -> Float[Array, "..."]:
    _check_decisions(labels, predictions, num_classes, where)
    check_not_empty("labels", labels, where)
    multi_label = labels.ndim == 2
    check_average(average, labels.shape[1] if multi_label else num_classes or 0, samples=multi_label)
    static = tuple(options.items())
    return _compiled_score(from_counts, labels, predictions, num_classes, average, zero_division, where, static)


@functools.partial(jax.jit, static_argnames=("from_counts", "num_classes", "average", "options"))
def _compiled_score(
    from_counts: Callable[..., Float[Array, "..."]],
    labels: Decisions,
    predictions: Decisions,
    num_classes: int | None,
    average: str | None,
    zero_division: Scalar,
    where: Where,
    options: tuple[tuple[str, float], ...],
) -> Float[Array, "..."]:
    from_counts = functools.partial(from_counts, zero_division=zero_division, **dict(options))
    if average == "samples":
        metric = samples_metric(from_counts)
        return metric.compute(metric.update(metric.init(), labels, predictions, where=where))
    counts = _class_counts(labels, predictions, num_classes, where)
    return from_counts(counts, average=average, multi_label=labels.ndim == 2)


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
      average: "macro", "micro", "weighted", "binary" (class 1 of two), "samples" (multi-label), or None for one value
        per class.
      zero_division: the value of 0/0; nan leaves such classes out of the average.
      where: the rows that count; all by default.

    Returns:
      A scalar in [0, 1], or [classes] when average is None.

    Raises:
      UsageError: no examples, shapes that do not match, an average that is unknown or not for such labels, labels [n]
        without num_classes; a class outside the range, seen outside jit.
    """
    return _score(precision_from_counts, labels, predictions, num_classes, average, zero_division, where)


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
    return _score(recall_from_counts, labels, predictions, num_classes, average, zero_division, where)


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
    return _score(specificity_from_counts, labels, predictions, num_classes, average, zero_division, where)


def fbeta(
    labels: Integer[AnyArray, "n *classes"] | Bool[AnyArray, "n *classes"],
    predictions: Integer[AnyArray, "n *classes"] | Bool[AnyArray, "n *classes"],
    *,
    beta: float,
    num_classes: int | None = None,
    average: str | None = "macro",
    zero_division: float = 0.0,
    where: Bool[AnyArray, " n"] | None = None,
) -> Float[Array, "..."]:
    """Harmonic mean of precision and recall, in which recall weighs β² times as much. As `precision` otherwise.

    van Rijsbergen (1979), *Information Retrieval*, chapter 7. `beta` is a number >= 0: 0 gives precision, inf recall.
    """
    return _score(fbeta_from_counts, labels, predictions, num_classes, average, zero_division, where, beta=beta)


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
    return _score(f1_from_counts, labels, predictions, num_classes, average, zero_division, where)


def jaccard(
    labels: Integer[AnyArray, "n *classes"] | Bool[AnyArray, "n *classes"],
    predictions: Integer[AnyArray, "n *classes"] | Bool[AnyArray, "n *classes"],
    *,
    num_classes: int | None = None,
    average: str | None = "macro",
    zero_division: float = 0.0,
    where: Bool[AnyArray, " n"] | None = None,
) -> Float[Array, "..."]:
    """Intersection over union of the true and the predicted examples: TP / (TP + FP + FN). As `precision` otherwise."""
    return _score(jaccard_from_counts, labels, predictions, num_classes, average, zero_division, where)


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
      A scalar in [0, 1].

    Raises:
      UsageError: no examples, shapes that do not match; a class outside the range, seen outside jit.
    """
    return _score(recall_from_counts, labels, predictions, num_classes, "macro", float("nan"), where)


def accuracy(
    labels: Integer[AnyArray, "n *classes"] | Bool[AnyArray, "n *classes"],
    predictions: Integer[AnyArray, "n *classes"] | Bool[AnyArray, "n *classes"],
    *,
    where: Bool[AnyArray, " n"] | None = None,
) -> Float[Array, ""]:
    """Share of examples that are right; for multi-label, right in every column.

    Args:
      labels: true classes [n], >= 0, or 0/1 [n, classes].
      predictions: as labels.
      where: the rows that count; all by default.

    Returns:
      A scalar in [0, 1]; nan inside jit where no row counts.

    Raises:
      UsageError: no examples, shapes that do not match; a negative class, seen outside jit.
    """
    check_same_length(labels=labels, predictions=predictions, where=where)
    check_not_empty("labels", labels, where)
    metric = accuracy_metric()
    return metric.compute(metric.update(metric.init(), labels, predictions, where=where))


def top_k_accuracy(
    labels: Integer[AnyArray, " n"],
    scores: Float[AnyArray, "n classes"],
    *,
    k: int,
    where: Bool[AnyArray, " n"] | None = None,
) -> Float[Array, ""]:
    """Share of examples whose true class is among the k of highest score.

    Of equal scores the later class ranks higher, as in scikit-learn.

    Args:
      labels: true classes, in [0, classes).
      scores: larger means more likely; finite, any scale.
      k: >= 1; from `classes` on, every example is right.
      where: the rows that count; all by default.

    Returns:
      A scalar in [0, 1]; nan inside jit where no row counts.

    Raises:
      UsageError: k < 1, no examples, shapes that do not match; a class outside the range or a score that is not
        finite, seen outside jit.
    """
    check_same_length(labels=labels, scores=scores, where=where)
    check_not_empty("labels", labels, where)
    metric = top_k_accuracy_metric(k)
    return metric.compute(metric.update(metric.init(), labels, scores, where=where))


def _share_of_right(right: Callable[..., Bool[Array, " n"]]) -> Metric:
    """State (right int32 [], seen int32 []) of `right`: (labels, answers [n, ...], where) -> which were right."""

    def sums(labels: AnyArray, answers: AnyArray, *, where: Where = None) -> tuple[Int[Array, ""], Int[Array, ""]]:
        hits, kept = right(labels, answers, where), where_or_all(where, labels)
        return (hits & kept).sum(dtype=jnp.int32), kept.sum(dtype=jnp.int32)

    return metric_from_sums(lambda: (jnp.int32(0), jnp.int32(0)), sums, lambda state: state[0] / state[1])


def accuracy_metric() -> Metric:
    """Accumulator of `accuracy`: state (right int32 [], seen int32 []), updated with (labels [n], predictions [n])."""

    def right(labels: Decisions, predictions: Decisions, where: Where) -> Bool[Array, " n"]:
        _check_decisions(labels, predictions, ANY_CLASS, where)
        same = jnp.asarray(labels) == jnp.asarray(predictions)
        return same if same.ndim == 1 else same.all(axis=1)

    return _share_of_right(right)


def top_k_accuracy_metric(k: int) -> Metric:
    """Accumulator of `top_k_accuracy`, updated with (labels [n], scores [n, classes]). Raises UsageError for k < 1."""
    if k < 1:
        raise UsageError(f"k must be at least 1, got {k}")

    def right(labels: Integer[AnyArray, " n"], scores: Float[AnyArray, "n classes"], where: Where) -> Bool[Array, " n"]:
        check_same_length(labels=labels, scores=scores, where=where)
        if np.ndim(labels) != 1 or np.ndim(scores) != 2:
            shapes = f"{list(np.shape(labels))} and {list(np.shape(scores))}"
            raise UsageError(f"labels must be classes [n] and scores [n, classes], got shapes {shapes}")
        check_classes("labels", labels, scores.shape[1], where)
        check_finite("scores", scores, where)
        scores, of_label = jnp.asarray(scores), jnp.asarray(labels).astype(jnp.int32)[:, None]
        own = jnp.take_along_axis(scores, of_label, axis=1)
        later = jnp.arange(scores.shape[1])[None] > of_label
        return ((scores > own) | ((scores == own) & later)).sum(axis=1) < k

    return _share_of_right(right)


def confusion_metric(
    num_classes: int, compute: Callable[[Int[Array, "classes classes"]], Any] = lambda matrix: matrix
) -> Metric:
    """Accumulator of `confusion_matrix` and of what depends on it.

        confusion_metric(10, matthews_from_confusion)

    Args:
      num_classes: number of classes.
      compute: the matrix, int32 [classes, classes], -> the metric; the matrix itself by default.

    Returns:
      A Metric, updated with (labels [n], predictions [n], where=None).
    """

    def sums(labels: Integer[AnyArray, " n"], predictions: Integer[AnyArray, " n"], *, where: Where = None):
        _check_decisions(labels, predictions, num_classes, where)
        return _confusion(labels, predictions, num_classes, where)

    return metric_from_sums(lambda: jnp.zeros((num_classes, num_classes), jnp.int32), sums, compute)


def counts_metric(num_classes: int, compute: Callable[[ClassCounts], Any] = lambda counts: counts) -> Metric:
    """Accumulator of anything that depends on ClassCounts, for multi-class [n] and multi-label [n, classes] alike.

        counts_metric(10, functools.partial(f1_from_counts, average="macro"))
        counts_metric(10, functools.partial(f1_from_counts, average="macro", multi_label=True))

    Args:
      num_classes: number of classes.
      compute: ClassCounts -> the metric; the counts themselves by default.

    Returns:
      A Metric, updated with (labels, predictions, where=None).
    """

    def sums(labels: Decisions, predictions: Decisions, *, where: Where = None) -> ClassCounts:
        _check_decisions(labels, predictions, num_classes, where)
        return _class_counts(labels, predictions, num_classes, where)

    return metric_from_sums(lambda: ClassCounts(*jnp.zeros((4, num_classes), jnp.int32)), sums, compute)


def samples_metric(from_counts: Callable[..., Float[Array, " n"]] = f1_from_counts) -> Metric:
    """Accumulator of `average="samples"`: the mean over examples of a score of each example's own 0/1 decisions.

    Args:
      from_counts: (ClassCounts of int32 [n], average=None) -> scores [n]; an example whose score is nan is left out.

    Returns:
      A Metric, updated with (labels [n, classes], predictions [n, classes], where=None); nan without examples.
    """
    mean = mean_metric()

    def update(state: Any, labels: Decisions, predictions: Decisions, *, where: Where = None) -> Any:
        _check_decisions(labels, predictions, None, where)
        values = from_counts(_counts_along(1, labels, predictions, None), average=None)
        kept = where_or_all(where, labels) & ~jnp.isnan(values)
        return mean.update(state, values, where=kept)

    return Metric(mean.init, update, mean.merge, mean.compute)
