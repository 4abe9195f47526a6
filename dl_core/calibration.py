"""Temperature scaling: one number that makes a network's probabilities honest without changing a single answer.

Guo, Pleiss, Sun, Weinberger (2017), "On Calibration of Modern Neural Networks", https://arxiv.org/abs/1706.04599, §4.2.
The temperature T divides the logits; it is fitted on validation data that the network was not trained on:

    temperature = fit_temperature(validation_logits, validation_labels)
    probabilities = softmax(scale(test_logits, temperature))

The negative log-likelihood is convex in β = 1 / T, with derivatives mean(E_p[z] - z_y) and mean(Var_p[z]) where p is
softmax(βz). Its minimum is the root of a rising function of one variable. Steps of Newton's and halvings of a bracket
take turns: the former are fast near the root, the latter cannot diverge, nor creep where the likelihood is flat.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Integer

from dl_core.errors import UsageError
from dl_core.metrics.accumulator import AnyArray, where_or_all
from dl_core.metrics.checks import check_classes, check_finite, check_not_empty, check_same_length

_STEPS = 64  # every other one halves the logarithm of the bracket: six decades need 28 to reach float32's last bit


class _Search(NamedTuple):
    """β so far, and an interval that holds the root; each a scalar."""

    beta: Float[Array, ""]
    low: Float[Array, ""]
    high: Float[Array, ""]


def fit_temperature(
    logits: Float[AnyArray, "n *classes"],
    labels: Integer[AnyArray, " n"] | Bool[AnyArray, " n"],
    *,
    bounds: tuple[float, float] = (1e-3, 1e3),
    where: Bool[AnyArray, " n"] | None = None,
) -> Float[Array, ""]:
    """The temperature that minimises the negative log-likelihood of softmax(logits / T).

    Works under jit, under vmap (an ensemble at once), and has a derivative with respect to the logits.

    Args:
      logits: [n, classes], or log-odds of class 1 [n]; finite.
      labels: true classes, in [0, classes).
      bounds: least and largest temperature. Data that the logits separate perfectly has no best temperature, as the
        likelihood still rises while T goes to 0: the answer is then the lower bound. Logits that are no better than
        chance give the upper bound, which makes them say so.
      where: the rows that count; all by default.

    Returns:
      T > 0, a scalar: above 1 for a network that was too sure, below 1 for one that was not sure enough. Inside jit,
      a logit that is nan makes it nan.

    Raises:
      UsageError: no examples, shapes that do not match, bounds that are not 0 < low < high; seen outside jit, a logit
        that is not finite or a label outside [0, classes).
    """
    if not 0 < bounds[0] < bounds[1] < float("inf"):
        raise UsageError(f"bounds must be two finite temperatures, 0 < low < high, got {bounds}")
    check_same_length(logits=logits, labels=labels, where=where)
    if np.ndim(logits) not in (1, 2) or np.ndim(labels) != 1 or 0 in np.shape(logits)[1:]:
        given = f"logits {list(np.shape(logits))} and labels {list(np.shape(labels))}"
        raise UsageError(f"logits must have shape [n, classes] or [n] and labels [n], got {given}")
    check_not_empty("labels", labels, where)
    check_classes("labels", labels, 2 if np.ndim(logits) == 1 else np.shape(logits)[1], where)
    check_finite("logits", logits, where)
    kept = where_or_all(where, labels)
    return _fit(jnp.asarray(logits), jnp.asarray(labels).astype(jnp.int32), kept, *map(jnp.float32, bounds))


@jax.jit
def _fit(
    logits: Float[Array, "n *classes"],
    labels: Integer[Array, " n"],
    kept: Bool[Array, " n"],
    coldest: Float[Array, ""],
    hottest: Float[Array, ""],
) -> Float[Array, ""]:
    if logits.ndim == 1:
        logits = jnp.stack([jnp.zeros_like(logits), logits], axis=1)
    logits = jnp.where(kept[:, None], logits, 0.0).astype(jnp.float32)
    # Only differences count. From the label's logit, a row that is right by a wide margin adds an exact zero.
    margins = logits - jnp.take_along_axis(logits, labels[:, None], axis=1)

    def derivatives(beta: Float[Array, ""]) -> tuple[Float[Array, ""], Float[Array, ""]]:
        p = jax.nn.softmax(beta * margins, axis=1)
        mean = jnp.sum(p * margins, axis=1)
        variance = jnp.sum(p * (margins - mean[:, None]) ** 2, axis=1)
        over_rows = lambda values: jnp.where(kept, values, 0.0).sum() / kept.sum()
        return over_rows(mean), over_rows(variance)

    def step(index: Integer[Array, ""], search: _Search) -> _Search:
        beta, low, high = search
        slope, curvature = derivatives(beta)
        # A slope of zero without curvature is that of a likelihood that has reached 1: on towards colder.
        low, high = jnp.where(slope <= 0, beta, low), jnp.where(slope > 0, beta, high)
        newton = beta - slope / jnp.where(curvature > 0, curvature, 1.0)
        good = (index % 2 == 1) & (curvature > 0) & (newton >= low) & (newton <= high)
        return _Search(jnp.where(good, newton, jnp.sqrt(low * high)), low, high)

    ends = _Search(jnp.sqrt(1 / (coldest * hottest)), 1 / hottest, 1 / coldest)
    beta = jax.lax.stop_gradient(jax.lax.fori_loop(0, _STEPS, step, ends).beta)
    slope, curvature = derivatives(beta)
    # One more step of Newton's, of which only the derivative matters: that of the implicit function.
    root = beta - jnp.where(curvature > 0, slope / jnp.where(curvature > 0, curvature, 1.0), 0.0)
    return jnp.where(jnp.isnan(slope), jnp.nan, 1 / jnp.clip(root, 1 / hottest, 1 / coldest))


def scale(logits: Float[AnyArray, "..."], temperature: Float[AnyArray, ""] | float) -> Float[Array, "..."]:
    """Logits divided by a temperature; which of them is largest never changes.

    Args:
      logits: of any shape.
      temperature: > 0, from `fit_temperature`.

    Returns:
      Logits of the same shape.

    Raises:
      UsageError: a temperature that is not positive and finite, seen outside jit.
    """
    if not isinstance(temperature, Tracer) and not 0 < float(temperature) < float("inf"):
        raise UsageError(f"temperature must be positive and finite, got {float(temperature)}")
    return jnp.asarray(logits) / temperature
