"""Inception score: whether each generated image is clearly of one class, and all of them together of many.

    IS = exp(E_x KL(p(y|x) ‖ p(y))),   p(y) = E_x p(y|x),   KL in nats

The exponent is the mutual information of image and class. It sees neither the real images nor variety within a class.
Salimans et al. (2016), "Improved Techniques for Training GANs", https://arxiv.org/abs/1606.03498; course notes, GANs.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.scipy.special import entr
from jaxtyping import Array, Float, Integer

from dl_core.errors import UsageError
from dl_core.metrics.accumulator import AnyArray, CompensatedSum, Metric, compensated, metric_from_sums
from dl_core.metrics.checks import Where, check_not_empty, check_probabilities, check_same_length
from dl_core.metrics.feature_sets import kept_rows
from dl_core.metrics.float64 import in_float64

Probabilities = Float[AnyArray, "n classes"]


class InceptionScore(NamedTuple):
    """Mean and standard deviation (divided by their number) of the scores of the splits; each in [1, classes]."""

    mean: Float[AnyArray, ""]
    std: Float[AnyArray, ""]


class _Sums(NamedTuple):
    """For each split: examples, Σ p(y|x) [splits, classes], and the sum of the entropies of p(y|x)."""

    num_examples: Integer[Array, " splits"]
    classes: CompensatedSum
    entropy: CompensatedSum


def _zeros(num_classes: int, num_splits: int) -> _Sums:
    return _Sums(
        jnp.zeros(num_splits, jnp.int32),
        compensated(jnp.zeros((num_splits, num_classes))),
        compensated(jnp.zeros(num_splits)),
    )


def _sums(probabilities: Probabilities, splits: Integer[AnyArray, " n"], num_splits: int, where: Where) -> _Sums:
    probabilities, kept = kept_rows(probabilities, where)
    per_split = lambda rows: jnp.zeros((num_splits, *rows.shape[1:]), rows.dtype).at[jnp.asarray(splits)].add(rows)
    entropy = entr(probabilities).sum(axis=1)
    return _Sums(
        per_split(kept.astype(jnp.int32)), compensated(per_split(probabilities)), compensated(per_split(entropy))
    )


@in_float64
def _score(sums: _Sums) -> InceptionScore:
    classes, entropy = (total.high + total.low for total in (sums.classes, sums.entropy))
    information = entr(classes / sums.num_examples[:, None]).sum(axis=1) - entropy / sums.num_examples
    scores = jnp.exp(jnp.maximum(information, 0))  # rounding
    return InceptionScore(scores.mean(), scores.std())


@in_float64
@functools.partial(jax.jit, static_argnames="num_splits")
def _of_all(probabilities: Probabilities, num_splits: int, where: Where) -> InceptionScore:
    _, kept = kept_rows(probabilities, where)
    rank = jnp.maximum(jnp.cumsum(kept) - 1, 0)
    splits = rank * num_splits // jnp.maximum(kept.sum(), 1)
    return _score(_sums(probabilities, splits, num_splits, where))


def _check_splits(num_splits: int) -> None:
    if num_splits < 1:
        raise UsageError(f"num_splits must be at least 1, got {num_splits}")


def inception_score_metric(num_classes: int, num_splits: int = 1) -> Metric:
    """Accumulator of `inception_score`; which split an example belongs to is given with it.

    Args:
      num_classes: columns of the probabilities.
      num_splits: how many groups are scored apart.

    Returns:
      A Metric: `update(state, probabilities float [n, num_classes], splits int [n] in [0, num_splits), where=None)`.

    Raises:
      UsageError: a number < 1; from `compute` outside jit, a split without examples.
    """
    _check_splits(num_splits)
    if num_classes < 1:
        raise UsageError(f"num_classes must be at least 1, got {num_classes}")

    def compute(state: _Sums) -> InceptionScore:
        if not isinstance(state.num_examples, Tracer) and (np.asarray(state.num_examples) == 0).any():
            raise UsageError(
                f"every split must hold at least one example, got {np.asarray(state.num_examples).tolist()}"
            )
        return _score(state)

    return metric_from_sums(
        lambda: _zeros(num_classes, num_splits),
        lambda probabilities, splits, where: _sums(probabilities, splits, num_splits, where),
        compute,
    )


def inception_score(probabilities: Probabilities, *, num_splits: int = 10, where: Where = None) -> InceptionScore:
    """Inception score of the class probabilities of generated images, as mean ± standard deviation over splits.

    The splits are runs of neighbouring rows, as in the paper's program: rows must come in random order.

    Args:
      probabilities: p(y|x) of a classifier, in [0, 1], rows summing to 1.
      num_splits: how many equal parts are scored, each with its own p(y); a part of few examples scores lower.
      where: the rows that count; all by default.

    Returns:
      InceptionScore in [1, classes]: 1 where all rows agree, `classes` where all classes occur equally and surely.
      float64 outside jit.

    Raises:
      UsageError: not [n, classes], values that are no probabilities, fewer examples than splits.
    """
    _check_splits(num_splits)
    if np.ndim(probabilities) != 2 or np.shape(probabilities)[1] == 0:
        raise UsageError(f"probabilities must have shape [n, classes], got {list(np.shape(probabilities))}")
    check_same_length(probabilities=probabilities, where=where)
    check_not_empty("probabilities", probabilities, where)
    check_probabilities("probabilities", probabilities, where, distributions=True)
    visible = where is not None and not isinstance(where, Tracer)
    kept = int(np.sum(np.asarray(where))) if visible else np.shape(probabilities)[0]
    if kept < num_splits:
        raise UsageError(f"num_splits must be at most the number of examples, {kept}; got {num_splits}")
    return _of_all(probabilities, num_splits, where)
