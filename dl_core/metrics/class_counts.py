"""Scores from counts: precision, recall, specificity, F-beta and Jaccard of each class, and their averages.

The counts of two sets of examples add up, so a score that depends on them alone is an accumulator:
`counts_metric(num_classes, f1_from_counts)`. How averages and 0/0 are taken is said in `classification`.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dl_core.errors import UsageError, unknown_name
from dl_core.metrics.accumulator import AnyArray

AVERAGES = ("macro", "micro", "weighted", "binary", "samples")

Scalar = float | Float[AnyArray, ""]


class ClassCounts(NamedTuple):
    """Per class, each against the rest: how many decisions were right and wrong, int32 [classes]."""

    true_positive: Int[Array, " classes"]
    false_positive: Int[Array, " classes"]
    false_negative: Int[Array, " classes"]
    true_negative: Int[Array, " classes"]


def counts_from_confusion(matrix: Int[AnyArray, "classes classes"]) -> ClassCounts:
    """Each class against the rest, from a confusion matrix [classes, classes] (rows true, columns predicted)."""
    matrix = jnp.asarray(matrix)
    hits = jnp.diagonal(matrix)
    predicted, actual = matrix.sum(axis=0), matrix.sum(axis=1)
    return ClassCounts(hits, predicted - hits, actual - hits, matrix.sum() - predicted - actual + hits)


def check_average(average: str | None, num_classes: int, *, samples: bool = False) -> None:
    """Refuses an average (no array, no shape) that does not exist or that such decisions do not have."""
    if average is not None and average not in AVERAGES:
        raise unknown_name("average", average, AVERAGES)
    if average == "binary" and num_classes != 2:
        raise UsageError(f'average="binary" is for two classes, got {num_classes}; take "macro", "micro" or None')
    if average == "samples" and not samples:
        raise UsageError(
            'average="samples" is for 0/1 labels and predictions [n, classes], not for classes [n] and not for counts, '
            'in which the examples are pooled; take "macro" or "micro", or samples_metric'
        )


def _reduce(
    counts: ClassCounts,
    numerator: Int[Array, " classes"],
    denominator: Int[Array, " classes"] | Float[Array, " classes"],
    average: str | None,
    zero_division: Scalar,
    multi_label: bool,
) -> Float[Array, "..."]:
    """Numerator / denominator per class, then averaged as the head of `classification` says."""
    check_average(average, counts.true_positive.shape[0])
    if average == "micro":
        numerator, denominator = numerator.sum(), denominator.sum()
    defined = denominator > 0
    ratio = jnp.where(defined, numerator / jnp.where(defined, denominator, 1), zero_division)
    if average is None or average == "micro":
        return ratio
    if average == "binary":
        return ratio[1]
    support = counts.true_positive + counts.false_negative
    occurs = support + counts.false_positive > 0
    # Without any example, or of multi-label columns, every class counts.
    included = (occurs | ~occurs.any() | multi_label) & ~jnp.isnan(ratio)
    weight = jnp.where(included, support if average == "weighted" else 1, 0).astype(ratio.dtype)
    weight = jnp.where(weight.sum() > 0, weight, included)
    return jnp.where(included, ratio * weight, 0.0).sum() / weight.sum()  # 0/0 = nan where every class is left out


def precision_from_counts(
    counts: ClassCounts, *, average: str | None = "macro", zero_division: Scalar = 0.0, multi_label: bool = False
) -> Float[Array, "..."]:
    """TP / (TP + FP), from ClassCounts of int32 [classes].

    Args:
      counts: of each class.
      average: as in `precision`, "samples" excepted.
      zero_division: the value of 0/0.
      multi_label: whether the counts are of multi-label columns, all of which belong to the macro average.

    Returns:
      A scalar in [0, 1], or [classes] when average is None.

    Raises:
      UsageError: an unknown average, or "binary" for other than two classes.
    """
    denominator = counts.true_positive + counts.false_positive
    return _reduce(counts, counts.true_positive, denominator, average, zero_division, multi_label)


def recall_from_counts(
    counts: ClassCounts, *, average: str | None = "macro", zero_division: Scalar = 0.0, multi_label: bool = False
) -> Float[Array, "..."]:
    """TP / (TP + FN), from ClassCounts of int32 [classes]: as `precision_from_counts`."""
    denominator = counts.true_positive + counts.false_negative
    return _reduce(counts, counts.true_positive, denominator, average, zero_division, multi_label)


def specificity_from_counts(
    counts: ClassCounts, *, average: str | None = "macro", zero_division: Scalar = 0.0, multi_label: bool = False
) -> Float[Array, "..."]:
    """TN / (TN + FP), from ClassCounts of int32 [classes]: as `precision_from_counts`."""
    denominator = counts.true_negative + counts.false_positive
    return _reduce(counts, counts.true_negative, denominator, average, zero_division, multi_label)


def jaccard_from_counts(
    counts: ClassCounts, *, average: str | None = "macro", zero_division: Scalar = 0.0, multi_label: bool = False
) -> Float[Array, "..."]:
    """TP / (TP + FP + FN), from ClassCounts of int32 [classes]: as `precision_from_counts`."""
    denominator = counts.true_positive + counts.false_positive + counts.false_negative
    return _reduce(counts, counts.true_positive, denominator, average, zero_division, multi_label)


def fbeta_from_counts(
    counts: ClassCounts,
    *,
    beta: float = 1.0,
    average: str | None = "macro",
    zero_division: Scalar = 0.0,
    multi_label: bool = False,
) -> Float[Array, "..."]:
    """F_β, from ClassCounts of int32 [classes]: `beta` as in `fbeta`, the rest as in `precision_from_counts`."""
    if not beta >= 0:
        raise UsageError(f"beta must be at least 0 (0 is precision, inf is recall), got {beta}")
    # Divided by 1 + β², so that β = inf is no special case.
    of_precision = 1 / (1 + beta**2)
    of_recall = 1 / (1 + beta**-2) if beta > 0 else 0.0
    missed = of_precision * counts.false_positive + of_recall * counts.false_negative
    return _reduce(counts, counts.true_positive, counts.true_positive + missed, average, zero_division, multi_label)


def f1_from_counts(
    counts: ClassCounts, *, average: str | None = "macro", zero_division: Scalar = 0.0, multi_label: bool = False
) -> Float[Array, "..."]:
    """2TP / (2TP + FP + FN), from ClassCounts of int32 [classes]: as `precision_from_counts`."""
    return fbeta_from_counts(counts, average=average, zero_division=zero_division, multi_label=multi_label)
