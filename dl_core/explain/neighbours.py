"""Nearest examples: which of a data set the model sees as most like the one that is explained.

The distance is between features h(x) of the user's choice, the values of a layer say ("course notes", equation 65):

    ‖h(x_i) - h(x)‖, sorted

The search is exact, on the device, some examples at a time. Distances are computed in float64 outside of `jit`, and
those of the examples found are computed again from the differences, so that a copy is at distance 0.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int

from dl_core.errors import UsageError, unknown_name
from dl_core.explain.layers import find_layer, run_with_layer
from dl_core.explain.pieces import Progress, variants_at_once
from dl_core.explain.program import read
from dl_core.explain.target import ApplyFn
from dl_core.loops import scan
from dl_core.metrics.checks import check_finite
from dl_core.metrics.float64 import in_float64
from dl_core.metrics.nearest import by_blocks, squared_distances

METRICS = ("cosine", "euclidean")

Table = Float[Array | np.ndarray, "n d"]


class NearestExamples(NamedTuple):
    """The k examples that are nearest to each input, the nearest first; of equally near ones, the lower index first.

    indices: into the examples. The share of them that have the input's label, how far the features know the classes:
      `(example_labels[indices] == labels[:, None]).mean(axis=1)`.
    distances: ‖h(x_i) - h(x)‖ in the units of the features, or 1 - cosine in [0, 2].
    """

    indices: Int[Array, "batch k"]
    distances: Float[Array, "batch k"]


def features_of(
    apply_fn: ApplyFn,
    params: Any,
    inputs: Float[Array | np.ndarray, "batch ..."],
    *,
    layer: str | None = None,
    internal_batch_size: int | None = None,
    loop: str = "auto",
    progress: Progress | None = None,
) -> Float[Array, "batch d"]:
    """One feature vector for each example, some examples at a time: what is searched, or embedded by `tsne`.

    Args:
      apply_fn: (params, inputs) -> logits, or whatever [batch, ...] is to be the features where no layer is named.
      params: pytree of everything that apply_fn needs.
      inputs: the examples.
      layer: whose values are the features, see `list_layers`; None: the output of apply_fn.
      internal_batch_size: most examples that apply_fn is given at once, >= 1; None bounds the number of values.
      loop: how the pieces are driven; see `dl_core.loops`.
      progress: called with (pieces done, pieces in all).

    Returns:
      The features, flattened: average a feature map over its positions if where something is should not count.

    Raises:
      UsageError: no such layer, nothing to compute, or features without one row for each example.
    """
    _check_batch("inputs", inputs)
    at_once = variants_at_once(internal_batch_size, jnp.asarray(inputs[:1]), len(inputs))
    piece = jax.ShapeDtypeStruct((at_once, *np.shape(inputs)[1:]), inputs.dtype)
    if layer is not None:
        few = jnp.asarray(inputs[:at_once])
        find_layer(read(apply_fn, params, few), layer)  # a wrong name is an error before anything is computed
    values = jax.eval_shape(lambda p, x: _layer_or_output(apply_fn, p, x, layer), params, piece)
    if not hasattr(values, "shape") or len(values.shape) < 2 or values.shape[0] != at_once:
        made = list(values.shape) if hasattr(values, "shape") else type(values).__name__
        raise UsageError(f"features must be one array [batch, ...] with the batch of {at_once} first, got {made}")
    pieces = -(-len(inputs) // at_once)
    library = jnp if isinstance(inputs, jax.Array) else np
    surplus = pieces * at_once - len(inputs)
    filled = library.concatenate([inputs, library.repeat(inputs[-1:], surplus, axis=0)]) if surplus else inputs
    step = Partial(_FeaturesOf(layer), Partial(apply_fn), params)
    xs = filled.reshape(pieces, at_once, *np.shape(inputs)[1:])
    _, features = scan(step, jnp.zeros(()), xs, loop=loop, progress=progress)
    return features.reshape(pieces * at_once, -1)[: len(inputs)]


def nearest_examples(
    apply_fn: ApplyFn,
    params: Any,
    inputs: Float[Array | np.ndarray, "batch ..."],
    examples: Float[Array | np.ndarray, "n ..."] | None,
    *,
    layer: str | None = None,
    k: int = 5,
    metric: str = "euclidean",
    example_features: Table | None = None,
    block_size: int = 256,
    internal_batch_size: int | None = None,
    loop: str = "auto",
    progress: Progress | None = None,
) -> NearestExamples:
    """The k examples whose features are nearest to those of each input; exact.

    Args:
      apply_fn: (params, inputs) -> logits; without a layer, the features themselves, e.g.
        `lambda params, x: models.features(model, params, x)["penultimate"]`.
      params: pytree of everything that apply_fn needs.
      inputs: what is explained.
      examples: where is searched, of the shape of the inputs but for their number, e.g. the training images. None if
        their features are given.
      layer: whose values are compared, see `list_layers`; None: the output of apply_fn.
      k: how many, in [1, n].
      metric: "euclidean", or "cosine": 1 - cos of the angle between the features, without regard to their length.
      example_features: of the examples, from `features_of` with the same layer, computed once for many searches.
      block_size: inputs that are compared with all examples at a time, >= 1; memory grows with block_size × n.
      internal_batch_size: most examples that apply_fn is given at once, >= 1; None bounds the number of values.
      loop: how the computation of features is driven; see `dl_core.loops`.
      progress: called with (pieces done, pieces in all) while the features of the examples are computed.

    Returns:
      NearestExamples. An input that is one of the examples finds itself at distance 0.

    Raises:
      UsageError: an unknown layer or metric, k not in [1, n], features that differ in number or are not finite,
        a feature vector of zeros with the cosine, both or none of examples and example_features.
    """
    check_metric(metric)
    if block_size < 1:
        raise UsageError(f"block_size must be at least 1, got {block_size}")
    if (examples is None) == (example_features is None):
        given = "neither" if examples is None else "both"
        raise UsageError(f"give the examples or their example_features, got {given}")
    n = len(examples if examples is not None else example_features)  # pyright: ignore[reportArgumentType]
    if not 1 <= k <= n:
        raise UsageError(f"k must be in [1, {n}], the number of examples, got {k}")
    of = functools.partial(features_of, apply_fn, params, layer=layer, internal_batch_size=internal_batch_size)
    if examples is not None:
        _check_batch("inputs", inputs)
        if np.shape(examples)[1:] != np.shape(inputs)[1:]:
            raise UsageError(
                f"examples must be of the shape of the inputs, [n, …] = [n, {', '.join(map(str, inputs.shape[1:]))}], "
                f"got {list(np.shape(examples))}"
            )
        example_features = of(examples, loop=loop, progress=progress)
    queries = of(inputs, loop=loop)
    assert example_features is not None
    check_table("example_features", example_features, metric)
    check_table("features of the inputs", queries, metric)
    if queries.shape[1] != np.shape(example_features)[1]:
        raise UsageError(
            f"example_features must be of the same layer as the inputs' features, [n, {queries.shape[1]}], got "
            f"{list(np.shape(example_features))}"
        )
    squared, indices = _search(queries, example_features, k=k, metric=metric, block_size=block_size)
    return NearestExamples(jnp.asarray(indices, jnp.int32), jnp.asarray(distance(squared, metric), jnp.float32))


@in_float64
@functools.partial(jax.jit, static_argnames=("k", "metric", "block_size"))
def _search(queries: Array, examples: Array, *, k: int, metric: str, block_size: int) -> tuple[Array, Array]:
    points = comparable(examples, metric)
    centre = points.mean(axis=0, keepdims=True)
    return nearest(comparable(queries, metric) - centre, points - centre, k, block_size=block_size)


def nearest(
    queries: Float[Array, "m d"], points: Float[Array, "n d"], k: int, *, block_size: int, leave_out_self: bool = False
) -> tuple[Float[Array, "m k"], Int[Array, "m k"]]:
    """Squared Euclidean distances, rising, and indices of the k nearest points; equal ones by index.

    Args:
      queries: from where.
      points: what is searched. Both around a common centre, which keeps digits.
      k: in [1, n], without the query itself in [1, n - 1].
      block_size: queries at a time.
      leave_out_self: the queries are the points, and none is its own neighbour.

    Returns:
      Each [m, k].
    """
    places = jnp.arange(len(points))
    candidates = min(len(points) - leave_out_self, k + 8)  # rounding may have changed the order at the border

    def of_row(row: Float[Array, " d"], place: Int[Array, ""]) -> tuple[Array, Array]:
        rough = squared_distances(row, points).astype(jnp.float32)  # the search for the largest is made for float32
        rough = jnp.where(places == place, jnp.inf, rough) if leave_out_self else rough
        chosen = jax.lax.top_k(-rough, candidates)[1]
        exact = ((points[chosen] - row[None]) ** 2).sum(axis=1)
        exact, chosen = jax.lax.sort((exact, chosen), num_keys=2)
        return exact[:k], chosen[:k]

    return by_blocks(of_row, queries, jnp.arange(len(queries)), batch_size=block_size)


def comparable(features: Float[Array, "n d"], metric: str) -> Float[Array, "n d"]:
    """Features whose Euclidean distance orders as the metric does: of length 1 for the cosine."""
    features = features.astype(jnp.promote_types(features.dtype, jnp.float32))
    return features / jnp.linalg.norm(features, axis=1, keepdims=True) if metric == "cosine" else features


def distance(squared: Float[Array | np.ndarray, "..."], metric: str) -> Float[Array | np.ndarray, "..."]:
    """The metric's distance from squared Euclidean ones of `comparable` features: ½‖u - v‖² = 1 - cos."""
    return squared / 2 if metric == "cosine" else squared**0.5


def check_metric(metric: str) -> None:
    """Refuses an unknown metric (no arrays)."""
    if metric not in METRICS:
        raise unknown_name("metric", metric, METRICS)


def check_table(name: str, features: Table, metric: str, *, at_least: int = 1) -> None:
    """Refuses features that are not a finite table [n, d] of at least some rows, or whose cosine is not defined."""
    shape = np.shape(features)
    if len(shape) != 2 or shape[1] == 0:
        raise UsageError(f"{name} must be a table [n, d], got {list(shape)}; flatten with reshape(n, -1)")
    if not jnp.issubdtype(getattr(features, "dtype", np.object_), jnp.floating):
        raise UsageError(f"{name} must be floating numbers, got {getattr(features, 'dtype', type(features).__name__)}")
    if shape[0] < at_least:
        raise UsageError(f"{name} must hold at least {at_least} examples, got {shape[0]}")
    check_finite(name, features)
    if metric == "cosine" and not isinstance(features, Tracer):
        zeros = np.flatnonzero(~np.asarray(features).any(axis=1))
        if zeros.size:
            raise UsageError(f"{name} must not be all zeros with the metric 'cosine', as row {zeros[0]} is")


def _check_batch(name: str, inputs: Any) -> None:
    if not hasattr(inputs, "dtype") or not jnp.issubdtype(inputs.dtype, jnp.floating) or not np.ndim(inputs):
        raise UsageError(f"{name} must be an array of floating numbers [batch, ...], got {type(inputs).__name__}")
    if len(inputs) == 0:
        raise UsageError(f"{name} must hold at least one example, got shape {list(np.shape(inputs))}")


@dataclasses.dataclass(frozen=True)
class _FeaturesOf:
    """A step of the loop over pieces; those of one layer are equal, and compiled once."""

    layer: str | None

    def __call__(
        self, apply_fn: Partial, params: Any, carry: Float[Array, ""], inputs: Float[Array, "batch ..."]
    ) -> tuple[Float[Array, ""], Float[Array, "batch d"]]:
        return carry, _layer_or_output(apply_fn, params, inputs, self.layer).reshape(len(inputs), -1)


def _layer_or_output(apply_fn: ApplyFn, params: Any, inputs: Array, layer: str | None) -> Array:
    return apply_fn(params, inputs) if layer is None else run_with_layer(apply_fn, params, inputs, layer)[1]
