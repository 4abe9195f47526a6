"""The one driver for everything iterative: an epoch, an attack, an integration path.

A loop is written once, as a pure `step`, and driven in one of these ways with the same result:

* ``"compiled"``: one `jax.lax.scan` or `while_loop`; no round trip to the host between steps. Right on an accelerator,
  and the only way inside `jit`, `vmap` or `grad`.
* ``"host"``: a Python loop over the jitted step. Right on the CPU, where XLA runs convolutions inside a compiled loop
  through slow kernels (2.6 times slower for an epoch of LeNet, 10 times and more for the step of an attack).
* ``"unrolled"``: a compiled loop of `scan` with every step written out. For a few steps inside of a `jit` on the CPU,
  where there is no host to drive; it compiles as many times longer as there are steps.

``"auto"`` chooses between the first two. No driver compiles a step twice: the compiled form is remembered for as long
as the function `step` lives, so define it once and put what changes into the carry. A step made anew on every call (by
a function that is given a model, say) is compiled anew, unless it is a `jax.tree_util.Partial` of a function that
stays:

    step = Partial(_step, Partial(apply_fn), params, eps)  # _step(apply_fn, params, eps, carry, x)

whose arrays are arguments of the compiled step, and whose functions are compared by identity.
"""

import functools
import weakref
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.tree_util import Partial

from dl_core.errors import unknown_name

DRIVERS = ("auto", "compiled", "host", "unrolled")
_COUNTING = weakref.WeakKeyDictionary()


def choose_driver(loop: str, *trees: Any) -> str:
    """Which driver `loop` means for these arguments (pytrees of any shapes).

    Args:
      loop: "auto", "compiled", "host" or "unrolled".
      trees: everything that the loop works on, arrays of any shape [...]. A tracer anywhere, or an array that lies on
        an accelerator, asks for the compiled loop.

    Returns:
      "compiled", "host" or "unrolled".

    Raises:
      UsageError: loop is none of these.
    """
    if loop not in DRIVERS:
        raise unknown_name("loop", loop, DRIVERS)
    if loop != "auto":
        return loop
    leaves = [leaf for leaf in jax.tree.leaves(trees) if isinstance(leaf, jax.Array)]
    leaves.append(jnp.zeros(()))  # a tracer inside jit, even where only the closure of the step is traced
    if any(isinstance(leaf, Tracer) for leaf in leaves):
        return "compiled"
    platforms = {device.platform for leaf in leaves[:-1] for device in leaf.devices()} or {jax.default_backend()}
    return "host" if platforms == {"cpu"} else "compiled"


def scan(
    step: Callable[[Any, Any], tuple[Any, Any]],
    carry: Any,
    xs: Any = None,
    *,
    length: int | None = None,
    loop: str = "auto",
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Any, Any]:
    """`jax.lax.scan` with a choice of driver: carry, y = step(carry, x) for every x along the first axis of xs.

    Args:
      step: pure; a `jit`-ed function is called as it is by the host loop, with its donation and its shardings.
      carry: pytree that keeps its structure, shapes and dtypes from step to step.
      xs: pytree of arrays [length, ...], or None.
      length: the number of steps where xs is None.
      loop: "auto", "compiled", "host" or "unrolled".
      progress: called after each step with (steps done, steps in all). With "auto" the host then drives; a compiled
        loop calls it at its end only, and inside `jit` it is not called.

    Returns:
      The last carry, and the ys stacked to [length, ...].

    Raises:
      UsageError: loop is unknown.
      TypeError: the step changes the carry's structure, a shape or a dtype.
      ValueError: neither xs nor length says how many steps to take, or they disagree.
    """
    driver = choose_driver(loop, step, carry, xs)
    traced = any(isinstance(leaf, Tracer) for leaf in [*jax.tree.leaves((step, carry, xs)), jnp.zeros(())])
    if progress is not None and loop == "auto" and not traced:
        driver = "host"
    carry, xs = jax.tree.map(_strong, carry), jax.tree.map(jnp.asarray, xs)
    steps = _length(xs, length)
    if driver != "host" or steps == 0:  # an empty loop still has to know the shape of its ys
        run, unroll = _scan_partial if isinstance(step, Partial) else jax.lax.scan, driver == "unrolled"
        results = run(step, carry, xs, length=steps, unroll=unroll)
        if progress is not None and not traced:
            progress(steps, steps)
        return results
    take_step, ys = _compiled_step(step), []
    for index in range(steps):
        after, y = take_step(carry, None if xs is None else _row(xs, np.int32(index)))
        if index == 0:
            _check_carry(carry, after)
        carry = in_turn(after)
        ys.append(y)
        if progress is not None:
            progress(index + 1, steps)
    return carry, jax.tree.map(_stack, *ys)


def while_loop(
    condition: Callable[[Any], Any],
    step: Callable[[Any], Any],
    state: Any,
    *,
    max_steps: int,
    loop: str = "auto",
) -> Any:
    """Take steps while the condition holds, and at most max_steps of them.

    Args:
      condition: state -> boolean scalar; the step is taken where it is true.
      step: state -> state, pure, with the same structure, shapes and dtypes.
      state: pytree of arrays of any shape [...].
      max_steps: >= 0, so that every loop ends.
      loop: "auto", "compiled" or "host" ("unrolled" means "compiled" here: nobody knows how often). The host loop waits
        for the condition after every step.

    Returns:
      The state at the first step at which the condition fails, or after max_steps steps.

    Raises:
      UsageError: loop is unknown.
      TypeError: the step changes the state's structure, a shape or a dtype.
    """
    driver = choose_driver(loop, condition, step, state)
    state = jax.tree.map(_strong, state)
    if driver != "host":
        return _compiled_while(condition, step, state, max_steps)
    holds, take_step = _compiled_step(condition), _compiled_step(step)
    for index in range(max_steps):
        going_on = holds(state)
        if isinstance(going_on, Tracer) and loop == "auto":  # the closures are traced by vmap or grad
            return _compiled_while(condition, step, state, max_steps - index)
        if not bool(going_on):
            break
        after = take_step(state)
        if index == 0:
            _check_carry(state, after)
        state = after
    return state


def in_turn(results: Any) -> Any:
    """What a step returned, before the next one starts: waits for it on the CPU, and nowhere else.

    Of two programs in flight over several CPU devices, each may hold the threads that the other's collectives wait for,
    for ever. An accelerator runs its programs in order by itself.

    Args:
      results: pytree of arrays of any shape [...].

    Returns:
      The same.
    """
    return jax.block_until_ready(results) if jax.default_backend() == "cpu" else results


def _compiled_while(condition: Callable, step: Callable, state: Any, max_steps: int) -> Any:
    counted = (jnp.int32(0), jnp.int32(max_steps), state)
    if isinstance(condition, Partial) and isinstance(step, Partial):
        return _while_partial(condition, step, counted)
    return jax.lax.while_loop(*_counting(condition, step), counted)[2]


def _counting(condition: Callable, step: Callable) -> tuple[Callable, Callable]:
    """The two functions on (steps taken, most steps, state); always the same pair for the same two functions."""
    pairs = _COUNTING.setdefault(step, weakref.WeakKeyDictionary())
    if condition not in pairs:
        holds, advance = weakref.ref(condition), weakref.ref(step)  # the memory must not keep its own key alive
        pairs[condition] = (
            lambda counted: (counted[0] < counted[1]) & _alive(holds)(counted[2]),
            lambda counted: (counted[0] + 1, counted[1], _alive(advance)(counted[2])),
        )
    return pairs[condition]


def _alive(function: weakref.ref[Callable]) -> Callable:
    found = function()
    assert found is not None, "traced while its caller holds it"
    return found


def _compiled_step(step: Callable) -> Callable:
    """The jitted step; `jax.jit` returns the same program for the same function, and holds it weakly."""
    if isinstance(step, Partial):
        return lambda *args: _call_partial(step, *args)
    return step if hasattr(step, "lower") else jax.jit(step)


@jax.jit
def _call_partial(step: Partial, *args: Any) -> Any:
    return step(*args)


@jax.jit
def _row(xs: Any, index: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, index, keepdims=False), xs)


@functools.partial(jax.jit, static_argnames=("length", "unroll"))
def _scan_partial(step: Partial, carry: Any, xs: Any, length: int, unroll: bool) -> tuple[Any, Any]:
    return jax.lax.scan(step, carry, xs, length=length, unroll=unroll)


@jax.jit
def _while_partial(condition: Partial, step: Partial, counted: Any) -> Any:
    return jax.lax.while_loop(*_counting(condition, step), counted)[2]


def _strong(leaf: Any) -> jax.Array:
    """The leaf as an array that is no Python scalar any more: 0.0 and float32 zero would be two programs."""
    array = jnp.asarray(leaf)
    return jax.lax.convert_element_type(array, array.dtype) if getattr(array, "weak_type", False) else array


def _stack(*leaves: jax.Array) -> jax.Array:
    """jnp.stack compiles a program with an operand for each step; through the host it is a copy."""
    if any(isinstance(leaf, Tracer) or jnp.issubdtype(leaf.dtype, jax.dtypes.extended) for leaf in leaves):
        return jnp.stack(leaves)
    return jnp.asarray(np.stack(leaves))


def _length(xs: Any, length: int | None) -> int:
    lengths = {len(leaf) for leaf in jax.tree.leaves(xs)} | (set() if length is None else {length})
    if len(lengths) != 1:
        raise ValueError(f"xs and length must agree on one number of steps, got {sorted(lengths) or 'neither'}")
    return lengths.pop()


def _check_carry(before: Any, after: Any) -> None:
    describe = lambda tree: jax.tree.map(lambda leaf: (jnp.shape(leaf), str(jnp.result_type(leaf))), tree)
    if describe(before) != describe(after):
        raise TypeError(f"the step must keep the carry's types: it was {describe(before)}, became {describe(after)}")
