"""An explanation as a function, and how it is called once for each of many changed models or inputs."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dl_core.errors import UsageError
from dl_core.explain.evaluate.features import check_attributions
from dl_core.explain.pieces import Progress
from dl_core.explain.target import ApplyFn, Target
from dl_core.loops import choose_driver

Explain = Callable[[ApplyFn, Any, Float[Array, "batch ..."], Target], Any]


def explain_with(
    explain: Explain, apply_fn: ApplyFn, params: Any, inputs: Float[Array, "batch ..."], target: Target
) -> Float[Array, "batch ..."]:
    """The attributions of an explanation, as floating numbers of at least 32 bits.

    Args:
      explain: (apply_fn, params, inputs, target) -> attributions of the shape of the inputs, or a NamedTuple with a
        field `attributions`, as every method of `dl_core.explain` returns; options are bound by a lambda or
        `functools.partial`.
      apply_fn, params, inputs, target: what it is given.

    Raises:
      UsageError: attributions of another shape, or not finite.
    """
    result = explain(apply_fn, params, inputs, target)
    attributions = getattr(result, "attributions", result)
    if not hasattr(attributions, "shape"):
        raise UsageError(
            "an explanation must return attributions, or something with a field `attributions`; got "
            f"{type(attributions).__name__}"
        )
    attributions = check_attributions(inputs, attributions)
    return attributions.astype(jnp.promote_types(attributions.dtype, jnp.float32))


def for_each(
    function: Callable[[Any], Any], xs: Any, *, loop: str, progress: Progress | None, given: Any = ()
) -> list[Any] | Any:
    """function(x) for every x along the first axis of xs [variants, ...], stacked; one after another.

    Unlike `dl_core.loops.scan`, the host calls the function as it is, without `jit`: an explanation has its own
    compiled parts and, on the CPU, its own loop on the host, which a surrounding `jit` would turn into a slow one.

    Args:
      function: x -> pytree of arrays.
      xs: pytree of arrays.
      loop: "auto", "compiled" or "host", see `dl_core.loops`.
      progress: called with (done, in all).
      given: what the function works on besides; an array on an accelerator or a tracer asks for the compiled loop.
    """
    driver = choose_driver(loop, xs, given)
    variants = len(jax.tree.leaves(xs)[0])
    if driver == "compiled" and (progress is None or loop == "compiled"):
        results = jax.lax.map(function, xs)
        if progress is not None:
            progress(variants, variants)
        return results
    results = []
    for index in range(variants):
        results.append(function(jax.tree.map(lambda leaf, index=index: leaf[index], xs)))
        if progress is not None:
            progress(index + 1, variants)
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *results)
