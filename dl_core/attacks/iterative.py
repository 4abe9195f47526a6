"""Following the gradient of a logit until the label flips.

The iterative gradient method (course notes, eq. 40 to 47). With logits f, the step size η, the class
c⁰ = argmax f(x₀) predicted at first, the least likely class c* = argmin f(x₀) and a target t:

    direction       step                                            ends when the prediction is
    untargeted      x ← x − η ∇f_c⁰(x)                              not the label
    targeted        x ← x + η ∇f_t(x)                               t
    least_likely    x ← x + η ∇f_c*(x)                              c*
    combined        x ← x − η ∇f_c⁰(x) + η ∇f_t(x)                  t
    combined        x ← x − η ∇f_c⁰(x) + η ∇f_g(x)                  not the label
    (no target)     with g = argmax_{c ≠ c⁰} f_c(x), anew in every step

The step is the gradient itself, neither its sign nor of a set length: logits do not saturate as probabilities do, and
where a network is flat the image moves little. Images are changed, never parameters.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int, Key

from dl_core.attacks.balls import per_image, project, unit_step
from dl_core.attacks.checks import Problem, check_at_least, check_attack, check_logits
from dl_core.attacks.climbing import Search, any_active, begin, check_step_size, record, result_of, working_dtype
from dl_core.attacks.objectives import margin
from dl_core.attacks.result import ApplyFn, AttackResult, choose, succeeded
from dl_core.errors import UsageError, unknown_name
from dl_core.explain.target import select_target
from dl_core.loops import while_loop

DIRECTIONS = ("untargeted", "targeted", "least_likely", "combined")


def iterative_gradient(
    apply_fn: ApplyFn,
    params: Any,
    images: Float[Array, "batch ..."],
    labels: Int[Array, " batch"],
    *,
    direction: str = "untargeted",
    step_size: float | Float[Array, ""] | Float[Array, " batch"],
    steps: int = 100,
    normalize: bool = False,
    eps: float | Float[Array, ""] | Float[Array, " batch"] | None = None,
    bounds: tuple[float, float] = (0.0, 1.0),
    target: int | Int[Array, " batch"] | None = None,
    norm: str = "l2",
    key: Key[Array, "*batch"] | None = None,
    loop: str = "auto",
) -> AttackResult:
    """Moves each image along the gradient of its logits until its label flips.

    Args:
      apply_fn: (params, images) -> logits, as in inference, normalisation included.
      params: pytree of everything that apply_fn needs; never changed.
      images: inside the bounds, e.g. [batch, height, width, channels].
      labels: the true classes.
      direction: "untargeted", "targeted", "least_likely" or "combined", see above. The least likely class is never the
        label.
      step_size: η >= 0, by which the gradient is multiplied; one number, or one for each image.
      steps: most steps, >= 1.
      normalize: the gradient is first given the length 1 in the norm ("linf": its sign), so that η is how far a step
        leads.
      eps: radius of a ball that the image is projected into after every step; None: it may go anywhere in the bounds.
      bounds: smallest and largest value of an image.
      target: classes to be predicted instead; for "targeted", and possible with "combined".
      norm: "linf", "l2" or "l1": of the ball, of the reported distance and of normalize.
      key: not used, the method is deterministic; taken so that every attack is called alike.
      loop: see `dl_core.loops`.

    Returns:
      AttackResult; success as in the last column of the table. Where it failed, the image with the highest of the
      logits (or differences of them) that are climbed.

    Raises:
      UsageError: an unknown direction, a target that is missing or not wanted, step_size < 0, steps < 1; and see
        `dl_core.attacks.checks.check_attack`.
    """
    if direction not in DIRECTIONS:
        raise unknown_name("direction", direction, DIRECTIONS)
    if direction == "targeted" and target is None:
        raise UsageError('direction="targeted" needs target: the classes to be predicted, one for each image')
    if direction in ("untargeted", "least_likely") and target is not None:
        raise UsageError(f'direction="{direction}" takes no target; use "targeted" or "combined"')
    check_at_least(1, steps=steps)
    problem = check_attack(
        apply_fn,
        params,
        images,
        labels,
        bounds=bounds,
        eps=0.0 if eps is None else eps,
        target=target,
        norm=norm,
        key=key,
    )
    check_step_size(step_size, len(images))
    options = _Options(direction, norm, (float(bounds[0]), float(bounds[1])), normalize)
    dtype = working_dtype(images)
    radius, length = jnp.asarray(jnp.inf if eps is None else eps, dtype), jnp.asarray(step_size, dtype)
    logits, first, problem, search = _begin(options, problem)
    check_logits(logits)
    climb = Partial(_climb, options, problem, first, radius, length)
    return _end(options, problem, first, while_loop(Partial(any_active), climb, search, max_steps=steps, loop=loop))


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Options:
    direction: str
    norm: str
    bounds: tuple[float, float]
    normalize: bool


@functools.partial(jax.jit, static_argnums=0)
def _begin(
    options: _Options, problem: Problem
) -> tuple[Float[Array, "batch classes"], Int[Array, " batch"], Problem, Search]:
    """Logits and predictions of the images, the problem with its target, and the search."""
    logits = problem.logits(problem.images)
    first = logits.argmax(axis=1).astype(jnp.int32)
    if options.direction == "least_likely":
        is_label = jax.nn.one_hot(problem.labels, logits.shape[1], dtype=bool)
        least_likely = jnp.where(is_label, jnp.inf, logits).argmin(axis=1)
        problem = problem._replace(target=least_likely.astype(jnp.int32))
    success = succeeded(logits, problem.labels, problem.target)
    return logits, first, problem, begin(problem.images, _gain(options, problem, first, logits), success)


def _gain(
    options: _Options, problem: Problem, first: Int[Array, " batch"], logits: Float[Array, "batch classes"]
) -> Float[Array, " batch"]:
    """The number that is climbed."""
    if problem.target is None:
        return margin(logits, first) if options.direction == "combined" else -select_target(logits, first)
    risen = select_target(logits, problem.target)
    return risen - select_target(logits, first) if options.direction == "combined" else risen


def _climb(
    options: _Options,
    problem: Problem,
    first: Int[Array, " batch"],
    eps: Float[Array, "*radii"],
    step_size: Float[Array, "*lengths"],
    search: Search,
) -> Search:
    def gain_of(perturbed: Float[Array, "batch ..."]) -> tuple[Float[Array, ""], Any]:
        logits = problem.logits(perturbed.astype(problem.images.dtype))
        gain = _gain(options, problem, first, logits)
        return gain.sum(), (gain, succeeded(logits, problem.labels, problem.target))

    gradient, (gain, reached) = jax.grad(gain_of, has_aux=True)(search.perturbed)
    search = record(search, gain, reached)
    step = unit_step(gradient, options.norm) if options.normalize else gradient
    images = problem.images.astype(gradient.dtype)
    moved = search.perturbed + per_image(step_size, images) * step
    moved = project(moved, images, eps, options.bounds, options.norm)
    return search._replace(perturbed=choose(search.active, moved, search.perturbed), steps=search.steps + search.active)


@functools.partial(jax.jit, static_argnums=0)
def _end(options: _Options, problem: Problem, first: Int[Array, " batch"], search: Search) -> AttackResult:
    logits = problem.logits(search.perturbed.astype(problem.images.dtype))
    reached = succeeded(logits, problem.labels, problem.target)
    search = record(search, _gain(options, problem, first, logits), reached)
    return result_of(search, problem.images, options.norm)
