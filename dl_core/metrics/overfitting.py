"""How far a discriminator has learnt its training images by heart, and the augmentation that holds it back.

    r_v = (E[D_train] - E[D_validation]) / (E[D_train] - E[D_generated])        r_t = E[sign D_train]

Both are 0 without overfitting and 1 at its worst: validation images are then scored as generated ones are, and every
training image is called real. Karras et al. (2020), "Training Generative Adversarial Networks with Limited Data",
https://arxiv.org/abs/2006.06676, eq. 1; course notes, eq. 84 and 85 (which leave out a bracket).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Integer

from dl_core.errors import UsageError
from dl_core.metrics.accumulator import (
    AnyArray,
    CompensatedSum,
    Metric,
    compensated,
    metric_from_sums,
    where_or_all,
)
from dl_core.metrics.checks import Where, check_finite, check_not_empty, check_same_length

Scores = Float[AnyArray, " n"]
Scalar = Float[Array, ""]
TRAIN, VALIDATION, GENERATED = range(3)


def _sums(
    scores: Scores, source: Integer[AnyArray, " n"], where: Where
) -> tuple[Integer[Array, " 3"], CompensatedSum, Integer[Array, ""]]:
    """Of each source the number of images and the sum of scores; the sum of the signs of training scores."""
    scores, source, kept = jnp.asarray(scores), jnp.asarray(source), where_or_all(where, scores)
    of = kept[:, None] & (source[:, None] == jnp.arange(3)[None])
    totals = jnp.where(of, scores.astype(jnp.float32)[:, None], 0).sum(axis=0)
    signs = jnp.where(of[:, TRAIN], jnp.sign(scores), 0).astype(jnp.int32)
    return of.sum(axis=0, dtype=jnp.int32), compensated(totals), signs.sum()


def _r_v(count: Integer[Array, " 3"], totals: CompensatedSum) -> Scalar:
    means = (totals.high + totals.low) / count
    return (means[TRAIN] - means[VALIDATION]) / (means[TRAIN] - means[GENERATED])


class Overfitting(NamedTuple):
    """r_v, nan without scores of all three sources, and r_t in [-1, 1], nan without training scores."""

    r_v: Scalar
    r_t: Scalar


def overfitting_metric() -> Metric:
    """Accumulator of r_v and r_t.

    Returns:
      A Metric: `update(state, scores float [n], source int [n], where=None)`, scores of the discriminator, positive for
      real, of images whose source is TRAIN = 0, VALIDATION = 1 or GENERATED = 2. `compute` gives Overfitting.
    """
    zeros = lambda: (jnp.zeros(3, jnp.int32), compensated(jnp.zeros(3)), jnp.int32(0))

    def compute(state: tuple[Array, CompensatedSum, Array]) -> Overfitting:
        count, totals, signs = state
        return Overfitting(_r_v(count, totals), signs / count[TRAIN])

    return metric_from_sums(zeros, lambda scores, source, where: _sums(scores, source, where), compute)


@jax.jit
def _of_sources(sets: list[tuple[AnyArray, Where]]) -> Overfitting:
    metric = overfitting_metric()
    state = metric.init()
    for source, (scores, where) in enumerate(sets):
        state = metric.update(state, scores, jnp.full(np.shape(scores), source), where=where)
    return metric.compute(state)


def _of_all(**sets: tuple[AnyArray, Where]) -> Overfitting:
    """The metric of the scores [n] of each source, in the order of their numbers, with masks [n]."""
    for name, (scores, where) in sets.items():
        if np.ndim(scores) != 1:
            raise UsageError(f"{name} must have shape [n], one score for each image, got {list(np.shape(scores))}")
        check_same_length(**{name: scores, f"where_{name}": where})
        check_not_empty(name, scores, where)
        check_finite(name, scores, where)
    return _of_sources(list(sets.values()))


def overfitting_r_v(
    train: Float[AnyArray, " n"],
    validation: Float[AnyArray, " v"],
    generated: Float[AnyArray, " g"],
    *,
    where_train: Where = None,
    where_validation: Bool[AnyArray, " v"] | None = None,
    where_generated: Bool[AnyArray, " g"] | None = None,
) -> Scalar:
    """(E[D_train] - E[D_validation]) / (E[D_train] - E[D_generated]): where held-out images lie between the other two.

    Args:
      train: the discriminator's scores of training images, larger for real.
      validation: of real images that it never saw.
      generated: of generated images.
      where_train, where_validation, where_generated: the rows that count; all by default.

    Returns:
      0 where validation images score as training images, 1 where they score as generated ones; outside [0, 1] where
      they do neither. nan or infinite for a discriminator that cannot tell training from generated images.

    Raises:
      UsageError: no scores, NaN, not one axis.
    """
    return _of_all(
        train=(train, where_train), validation=(validation, where_validation), generated=(generated, where_generated)
    ).r_v


def overfitting_r_t(train: Float[AnyArray, " n"], *, where: Where = None) -> Scalar:
    """E[sign D_train]: the share of training images called real, less the share called generated. Needs no others.

    Args:
      train: the discriminator's scores (logits) of training images, positive for real.
      where: the rows that count; all by default.

    Returns:
      A scalar in [-1, 1].

    Raises:
      UsageError: no scores, NaN, not one axis.
    """
    return _of_all(train=(train, where)).r_t


def adjust_augmentation(
    p: Float[AnyArray, ""] | float,
    r_t: Float[AnyArray, ""] | float,
    *,
    num_images: int,
    target: float = 0.6,
    ramp_images: int = 500_000,
    limit: float = 0.8,
) -> Scalar:
    """The next probability of augmentation: one step up where r_t is above its target, one down where it is below.

        p ← clip(p + sign(r_t - target) num_images / ramp_images, 0, limit)

    To be called every 4 mini-batches, with r_t over their training images, from p = 0.

    Args:
      p: the probability so far, in [0, 1].
      r_t: from `overfitting_r_t`, in [-1, 1].
      num_images: training images shown since the last call: 4 times the batch size.
      target: of r_t.
      ramp_images: after how many images p could have gone from 0 to 1.
      limit: the largest p. Above 0.8 augmentations begin to leak into the generated images (ibid., §2.2).

    Returns:
      p, a scalar in [0, limit].

    Raises:
      UsageError: p or limit outside [0, 1], r_t or target outside [-1, 1], a number of images < 1.
    """
    for name, value, low in (("p", p, 0), ("limit", limit, 0), ("r_t", r_t, -1), ("target", target, -1)):
        if not isinstance(value, Tracer) and not low <= float(value) <= 1:
            raise UsageError(f"{name} must lie in [{low}, 1], got {float(value):g}")
    if num_images < 1 or ramp_images < 1:
        raise UsageError(f"num_images and ramp_images must be at least 1, got {num_images} and {ramp_images}")
    step = jnp.sign(jnp.asarray(r_t) - target) * (num_images / ramp_images)
    return jnp.clip(p + step, 0, limit)
