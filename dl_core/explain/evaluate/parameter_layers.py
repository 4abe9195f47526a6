"""The layers of a model as parts of its parameters, in the order in which the computation first uses them."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import keystr
from jaxtyping import Array, Float

from dl_core.errors import UsageError, unknown_name
from dl_core.explain.program import read
from dl_core.explain.target import ApplyFn

PARAMS = "params"  # Flax's collection of what is learned


def parameter_layers(apply_fn: ApplyFn, params: Any, inputs: Float[Array, "batch ..."]) -> dict[str, tuple[str, ...]]:
    """The layers whose parameters an output depends on, in the order of computation; nothing is computed.

    A layer is a module: the arrays whose paths differ in the last name only ("conv1/kernel", "conv1/bias"). An array
    that lies at the top is a layer of its own. Of a Flax model's variables only the collection "params" is taken: the
    running statistics of batch normalisation are measured, not learned.

    Args:
      apply_fn: (params, inputs) -> logits.
      params: pytree of everything that apply_fn needs.
      inputs: the examples.

    Returns:
      Name of the layer, as `list_layers` has it for Flax modules -> paths of its arrays, the first used first.
    """
    uses = _first_uses(apply_fn, params, inputs)
    layers: dict[str, list[str]] = {}
    for path in sorted(uses, key=lambda path: uses[path]):
        if _has_collections(params) and not path.startswith(f"{PARAMS}/"):
            continue
        parts = (path.removeprefix(f"{PARAMS}/") if _has_collections(params) else path).split("/")
        layers.setdefault("/".join(parts[:-1] or parts), []).append(path)
    return {name: tuple(paths) for name, paths in layers.items()}


def choose_layers(
    apply_fn: ApplyFn, params: Any, inputs: Float[Array, "batch ..."], layers: Sequence[str] | None
) -> dict[str, tuple[str, ...]]:
    """The layers by name -> paths of their arrays, in the order given: None for those of `parameter_layers`.

    Args:
      apply_fn, params, inputs: as there.
      layers: each a layer, or the beginning of a path, which stands for all floating arrays below it: "layer1" for
        "layer1/conv1/kernel", "layer1/bn1/scale", …; or "batch_stats/bn1" for statistics.

    Raises:
      UsageError: a name that nothing begins with (the nearest are said), one array named twice, or no layers.
    """
    found = parameter_layers(apply_fn, params, inputs)
    if layers is None:
        if not found:
            raise UsageError("no floating array of params reaches the output: there is nothing to randomise")
        return found
    paths = [path for path, leaf in leaves_by_path(params).items() if jnp.issubdtype(leaf.dtype, jnp.floating)]
    below = lambda prefix: tuple(path for path in paths if path == prefix or path.startswith(f"{prefix}/"))
    chosen: dict[str, tuple[str, ...]] = {}
    for name in layers:
        matches = below(name) or (below(f"{PARAMS}/{name}") if _has_collections(params) else ())
        if not matches:
            raise unknown_name("layer", name, [*found, *paths])
        chosen[name] = matches
    every = [path for matches in chosen.values() for path in matches]
    if not chosen or len(set(every)) != len(every):
        raise UsageError(f"layers must name parts of params that do not overlap, at least one; got {list(layers)}")
    return chosen


def leaves_by_path(params: Any) -> dict[str, Array]:
    """The arrays [...] of a pytree by their path, e.g. "params/conv1/kernel"; those of a single array by "array"."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    return {keystr(path, simple=True, separator="/") or "array": jnp.asarray(leaf) for path, leaf in leaves}


def _has_collections(params: Any) -> bool:
    return hasattr(params, "keys") and PARAMS in params


def _first_uses(apply_fn: ApplyFn, params: Any, inputs: Float[Array, "batch ..."]) -> dict[str, int]:
    """Path of each floating array that meets the inputs -> the operation at which it first does.

    An array may pass through operations of its own before (a cast, the inverse root of a variance).
    """
    program = read(apply_fn, params, inputs)
    leaves = leaves_by_path(params)
    origins = {number: {path} for number, path in zip(program.arguments, leaves, strict=False)}  # the inputs come last
    uses: dict[str, int] = {}
    for place, operation in enumerate(program.operations):
        sources = set().union(*(origins.get(number, ()) for number in operation.operands))
        if program.dependent.isdisjoint(operation.operands):
            origins.update((number, sources) for number in operation.results)
            continue
        for path in sources:
            uses.setdefault(path, place)
    return {path: place for path, place in uses.items() if jnp.issubdtype(leaves[path].dtype, jnp.floating)}
