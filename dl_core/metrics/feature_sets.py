"""Two sets of feature vectors, one of real and one of generated images: what the metrics of generators compare.

Features may come from any network; numbers taken with different networks, layers or preprocessing cannot be compared.

    embed = jax.jit(lambda variables, images: models.features(model, variables, images)["penultimate"])
    kernel_distance(embed(variables, real), embed(variables, generated))
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Shaped

from dl_core.errors import UsageError
from dl_core.metrics.accumulator import AnyArray, Metric, gathering_metric, where_or_all
from dl_core.metrics.checks import Where, check_finite, check_not_empty, check_same_length

Features = Float[AnyArray, "n d"]
OtherFeatures = Float[AnyArray, "m d"]
OtherWhere = Bool[AnyArray, " m"] | None


def check_features(name: str, features: Shaped[AnyArray, "..."], where: Where = None, *, at_least: int = 1) -> None:
    """Refuses features that are not a finite table [n, d], or of which `where` [n] keeps fewer rows than `at_least`."""
    shape = np.shape(features)
    if len(shape) != 2 or shape[1] == 0:
        raise UsageError(
            f"{name} must have shape [n, d], one feature vector for each example, got {list(shape)}; "
            "average feature maps over space, or flatten them with reshape(n, -1)"
        )
    check_same_length(**{name: features, "its where": where})
    check_not_empty(name, features, where)
    visible = not isinstance(where, Tracer)
    kept = int(np.sum(np.asarray(where))) if where is not None and visible else shape[0]
    if kept < at_least:
        raise UsageError(f"{name} must hold at least {at_least} examples, got {kept}")
    check_finite(name, features, where)


def check_feature_sets(
    reference: Shaped[AnyArray, "..."],
    generated: Shaped[AnyArray, "..."],
    where_reference: Where,
    where_generated: OtherWhere,
    *,
    at_least: int = 1,
    at_least_generated: int | None = None,
    names: tuple[str, str] = ("reference", "generated"),
) -> None:
    """Refuses two tables [n, d] and [m, d] that `check_features` refuses, or whose d differ."""
    check_features(names[0], reference, where_reference, at_least=at_least)
    check_features(names[1], generated, where_generated, at_least=at_least_generated or at_least)
    check_same_features(names, np.shape(reference)[1], np.shape(generated)[1])


def check_same_features(names: tuple[str, str], *numbers: int) -> None:
    """Refuses two numbers of features that differ (no arrays)."""
    if numbers[0] != numbers[1]:
        raise UsageError(
            f"{' and '.join(names)} must have equally many features, got {numbers[0]} and {numbers[1]}; "
            "take both from one layer of one network"
        )


def check_batch_size(batch_size: int) -> None:
    """Refuses blocks of less than one row (no arrays)."""
    if batch_size < 1:
        raise UsageError(f"batch_size must be at least 1, got {batch_size}")


def kept_rows(features: Features, where: Where) -> tuple[Float[Array, "n d"], Bool[Array, " n"]]:
    """Features of which the rows that do not count are 0, whatever they held, and which rows count."""
    kept = where_or_all(where, features)
    features = jnp.asarray(features)
    dtype = jnp.promote_types(features.dtype, jnp.float32)  # sums of bfloat16 would be worth nothing
    return jnp.where(kept[:, None], features.astype(dtype), 0), kept


def two_set_metric(function: Callable[..., Any], capacity: int, num_features: int) -> Metric:
    """The accumulator of a metric of two sets of features that needs all of them, such as `kernel_distance`.

        metric = two_set_metric(kernel_distance, capacity=20_000, num_features=512)
        state = metric.update(state, features, is_generated, where=valid)

    Args:
      function: (reference [n, d], generated [n, d], *, where_reference [n], where_generated [n]) -> the metric.
      capacity: most rows in all, of both sets together.
      num_features: d.

    Returns:
      A Metric: `update(state, features [n, d], is_generated bool [n], where=None)`.

    Raises:
      UsageError: as `gathering_metric`.
    """

    def of_rows(features: Float[Array, "n d"], is_generated: Bool[Array, " n"], *, where: Bool[Array, " n"]) -> Any:
        return function(features, features, where_reference=where & ~is_generated, where_generated=where & is_generated)

    row = jax.ShapeDtypeStruct((num_features,), jnp.float32)
    return gathering_metric(of_rows, capacity, row, jax.ShapeDtypeStruct((), jnp.bool_))
