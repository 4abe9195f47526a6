"""What is explained: the logit of a class, or any scalar function of the logits, for each example."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.extend import core
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int

from dl_core.errors import UsageError

ApplyFn = Callable[[Any, Float[Array, "batch ..."]], Float[Array, "batch classes"]]
Target = (
    int
    | Int[Array | np.ndarray, " batch"]
    | Int[Array | np.ndarray, ""]
    | Callable[[Float[Array, "batch classes"]], Float[Array, " batch"]]
)

# Their derivative is zero wherever it exists, or they have none. Comparisons are found by the type of their result.
_CUTS = {"ceil", "floor", "io_callback", "pure_callback", "round", "sign", "stop_gradient"}


def explained_output(
    apply_fn: ApplyFn, params: Any, inputs: Float[Array, "batch ..."], target: Target
) -> Float[Array, " batch"]:
    """The number that is explained for each example: the logit of its target, or any function of the logits.

    Args:
      apply_fn: (params, inputs) -> logits.
      params: pytree of everything that apply_fn needs.
      inputs: the examples.
      target: a class in [0, classes) for all examples or for each; or logits [batch, classes] -> [batch], e.g.
        `lambda logits: logits.max(axis=1)` for the prediction, or the difference of two logits.

    Returns:
      One number for each example.
    """
    return select_target(apply_fn(params, inputs), target)


def select_target(logits: Float[Array, "batch classes"], target: Target) -> Float[Array, " batch"]:
    """The explained number of each example from its logits.

    Args:
      logits: of a model.
      target: see `explained_output`.

    Returns:
      One number for each example.
    """
    if callable(target):
        return target(logits)
    classes = jnp.broadcast_to(jnp.asarray(target), (len(logits),))
    return jnp.take_along_axis(logits, classes[:, None], axis=1)[:, 0]


def check_target(
    apply_fn: ApplyFn,
    params: Any,
    inputs: Float[Array | np.ndarray, "batch ..."],
    target: Target,
    *,
    differentiable: bool = True,
) -> Int[Array, " batch"] | Partial:
    """Refuses what cannot be explained, before anything is compiled; nothing is computed for it.

    Every explanation calls this first. What it returns can be an argument of a compiled function.

    Args:
      apply_fn: (params, inputs) -> logits.
      params: pytree of everything that apply_fn needs.
      inputs: the examples, of a floating type.
      target: see `explained_output`. Classes are checked where they are known, that is outside of `jit` and `vmap`.
      differentiable: the method needs the gradient of the output with respect to the inputs.

    Returns:
      The class of each example, or the target function as a `Partial`.

    Raises:
      UsageError: no batch of floating inputs; a class that is not in [0, classes), or not one for each example; an
        output that is not [batch, classes] (for a target function: whose result is not [batch]); a differentiable
        method and an output that the inputs reach only through operations without a gradient.
    """
    shaped = hasattr(inputs, "dtype") and hasattr(inputs, "shape")
    if not shaped or not jnp.issubdtype(inputs.dtype, jnp.floating) or len(inputs.shape) < 2:
        given = f"{inputs.dtype} of shape {list(inputs.shape)}" if shaped else type(inputs).__name__
        raise UsageError(
            f"inputs must be floating numbers [batch, ...], got {given}; bytes become images by astype(float32) / 255"
        )
    batch = len(inputs)
    shape, obstacle = _traced(apply_fn, params, inputs)
    if callable(target):
        inside, given = jax.make_jaxpr(target, return_shape=True)(jax.ShapeDtypeStruct(*shape))
        obstacle = obstacle or _obstacle(inside.jaxpr)
        if getattr(given, "shape", None) != (batch,):
            made = list(given.shape) if hasattr(given, "shape") else type(given).__name__
            raise UsageError(
                f"the target function must make one number of each example, [{batch}] of the logits {list(shape[0])}; "
                f"it returned {made}"
            )
    elif len(shape[0]) != 2 or shape[0][0] != batch:
        raise UsageError(
            f"a class as target needs logits [batch, classes] = [{batch}, …], and apply_fn returned {list(shape[0])}; "
            "give a target function that makes [batch] of that output"
        )
    if differentiable and obstacle:
        raise UsageError(
            f"the output depends on the inputs only through {obstacle}, which has no gradient; explain a smooth output "
            "(logits, not predictions), or use a method without gradients, e.g. occlusion"
        )
    if callable(target):
        return target if isinstance(target, Partial) else Partial(target)
    return _checked_classes(target, batch, shape[0][1])


def _checked_classes(target: Any, batch: int, num_classes: int) -> Int[Array, " batch"]:
    if not jnp.issubdtype(jnp.result_type(target), jnp.integer) or jnp.shape(target) not in ((), (batch,)):
        raise UsageError(
            f"target must be a class, one class for each of the {batch} examples, or a function of the logits; got "
            f"{jnp.result_type(target)} of shape {list(jnp.shape(target))}"
        )
    if not isinstance(target, Tracer):
        wrong = np.unique(np.asarray(target)[(np.asarray(target) < 0) | (np.asarray(target) >= num_classes)])
        if wrong.size:
            raise UsageError(f"target must be in [0, {num_classes}), got {', '.join(map(str, wrong[:5]))}")
    return jnp.broadcast_to(jnp.asarray(target, jnp.int32), (batch,))


def once_for_shapes(function: Callable[[ApplyFn, Any, Any], Any]) -> Callable[[ApplyFn, Any, Any], Any]:
    """A function (apply_fn, params, inputs) -> facts that depend on shapes [...] and dtypes alone, remembered.

    Args:
      function: it is given tracers in place of arrays, and must return none.

    Returns:
      The same function of arrays. Its results are shared: they must not be changed.
    """

    def of_leaves(apply_fn: ApplyFn, tree: Any, leaves: tuple[Any, ...]) -> Any:
        facts = []
        jax.eval_shape(
            lambda *arguments: facts.append(function(apply_fn, *arguments)), *jax.tree.unflatten(tree, leaves)
        )
        return facts[0]

    of_shapes = functools.lru_cache(maxsize=32)(of_leaves)

    @functools.wraps(function)
    def of_arrays(apply_fn: ApplyFn, params: Any, inputs: Any) -> Any:
        shapes = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), getattr(leaf, "dtype", None) or jnp.result_type(leaf)),
            (params, inputs),
        )
        leaves, tree = jax.tree.flatten(shapes)
        try:
            return of_shapes(apply_fn, tree, tuple(leaves))
        except TypeError as error:
            if "unhashable" not in str(error):
                raise
            return of_leaves(apply_fn, tree, tuple(leaves))

    return of_arrays


@once_for_shapes
def _traced(apply_fn: ApplyFn, params: Any, inputs: Any) -> tuple[tuple[tuple[int, ...], Any], str]:
    """Shape and dtype of the output, and the operation that cuts it off from the inputs, or ""."""
    closed, output = jax.make_jaxpr(apply_fn, return_shape=True)(params, inputs)
    if not hasattr(output, "shape"):
        raise UsageError(
            f"apply_fn must return one array, the logits; got {type(output).__name__}. Wrap it: "
            'lambda params, inputs: apply_fn(params, inputs)["logits"], say'
        )
    return (tuple(output.shape), output.dtype), _obstacle(closed.jaxpr)


def _obstacle(jaxpr: core.Jaxpr) -> str:
    """What stands between the last input and the output, or "" where a gradient comes through."""
    (reached,), cut = _flow(jaxpr, [False] * (len(jaxpr.invars) - 1) + [True])
    return "" if reached else cut or "no operation at all"


def _flow(jaxpr: core.Jaxpr, inputs: list[bool]) -> tuple[list[bool], str]:
    """Which results a gradient can reach from the marked inputs, and the last operation that stopped one."""
    live, cut = {variable for variable, marked in zip(jaxpr.invars, inputs, strict=True) if marked}, ""
    is_live = lambda atom: not isinstance(atom, core.Literal) and atom in live
    for equation in jaxpr.eqns:
        marks = list(map(is_live, equation.invars))
        if not any(marks):
            continue
        own_rule = equation.primitive.name.startswith(
            "custom_"
        )  # a derivative whatever is inside, e.g. straight through
        inner = None if own_rule else equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
        reached = [jnp.issubdtype(getattr(result.aval, "dtype", bool), jnp.inexact) for result in equation.outvars]
        if equation.primitive.name in _CUTS or not any(reached):
            cut, reached = repr(equation.primitive.name), [False] * len(reached)
        elif isinstance(inner, core.ClosedJaxpr) and len(inner.jaxpr.invars) == len(marks):
            reached, inside = _flow(inner.jaxpr, marks)
            cut = inside or cut
        live.update(result for result, alive in zip(equation.outvars, reached, strict=True) if alive)
    return list(map(is_live, jaxpr.outvars)), cut
