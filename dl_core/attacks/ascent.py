"""The compiled steps of projected gradient ascent; `dl_core.attacks.projected` has the attacks made of them."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int, Key

from dl_core.attacks.balls import image_keys, per_image, project, random_in_ball, unit_step
from dl_core.attacks.checks import Problem, check_logits
from dl_core.attacks.climbing import Search, any_active, begin, record, result_of
from dl_core.attacks.objectives import LossFn, objective
from dl_core.attacks.result import AttackResult, choose, succeeded
from dl_core.loops import choose_driver, scan, while_loop


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Options:
    """What is compiled into the steps; a pytree without leaves, compared by value.

    norm, bounds, loss, sparsity, random_start, early_stop: as of `dl_core.attacks.projected.pgd`.
    samples: draws of a randomised model; 0 for a model that is none.
    """

    norm: str
    bounds: tuple[float, float]
    loss: str | LossFn
    samples: int
    sparsity: float
    random_start: bool
    early_stop: bool


class Pace(NamedTuple):
    """What the steps take as arrays: another value compiles nothing.

    eps: radius.
    step_size: length of a step in the norm.
    momentum: None is without.
    """

    eps: Float[Array, "*batch"]
    step_size: Float[Array, "*batch"]
    momentum: Float[Array, ""] | None


class _State(NamedTuple):
    """velocity: the running sum of gradients. question: numbers what the model is asked; its draws are made from it."""

    search: Search
    velocity: Float[Array, "batch ..."] | None
    question: Int[Array, ""]


def ascend(
    options: Options,
    problem: Problem,
    pace: Pace,
    key: Key[Array, "*batch"] | None,
    *,
    steps: int,
    restarts: int = 1,
    loop: str = "auto",
) -> AttackResult:
    """Every start and the steps from it; pure, also inside of `jit`, `vmap` and `grad`.

    Args:
      options: see there.
      problem: checked. Its apply_fn is a Partial of `one_draw` where options.samples is not 0.
      pace: see there.
      key: one, or one for each image; None where nothing is drawn.
      steps: from each start.
      restarts: how many starts.
      loop: see `dl_core.loops`.

    Returns:
      AttackResult.

    Raises:
      UsageError: apply_fn returns probabilities, or loop is unknown.
    """
    starts = None
    if key is not None:
        starts, models = _two_streams(key, len(problem.images))
        if options.samples:
            problem = problem._replace(params=(problem.params, models))
    logits, search = _begin(options, problem)
    check_logits(logits)
    if restarts > 1 and choose_driver(loop, problem, pace, starts) == "compiled":
        search = _restarts(options, steps, restarts, problem, pace, starts, search)
    else:
        for restart in range(restarts):
            search = _attempt(options, problem, pace, starts, search, np.int32(restart), steps, loop)
    return _result(search, problem.images, options.norm)


def one_draw(
    apply_fn: Callable[..., Any], params: tuple[Any, Key[Array, " batch"]], images: Float[Array, "batch ..."]
) -> Float[Array, "batch classes"]:
    """A randomised model as a model of (params, keys): every image is asked about alone, with its own key.

    So what is drawn does not depend on how a batch is cut.

    Args:
      apply_fn: (params, images, key) -> logits.
      params: those of apply_fn, and one key for each image.
      images: [batch, ...].

    Returns:
      Logits.
    """
    own, keys = params
    return jax.vmap(lambda image, key: apply_fn(own, image[None], key)[0])(images, keys)


def any_draw(
    apply_fn: Callable[..., Any], params: Any, images: Float[Array, "batch ..."]
) -> Float[Array, "batch classes"]:
    """A randomised model as a model of params alone, for checks of shapes.

    Args:
      apply_fn: (params, images, key) -> logits.
      params: those of apply_fn.
      images: [batch, ...].

    Returns:
      Logits of some draw.
    """
    return one_draw(apply_fn, (params, jax.random.split(jax.random.key(0), len(images))), images)


@functools.partial(jax.jit, static_argnums=1)
def _two_streams(key: Key[Array, "*batch"], batch: int) -> tuple[Key[Array, " batch"], Key[Array, " batch"]]:
    """For each image a key of its starts and one of a randomised model."""
    pairs = jax.vmap(jax.random.split)(image_keys(key, batch))
    return pairs[:, 0], pairs[:, 1]


def _fold(keys: Key[Array, " batch"], number: int | Int[Array, ""]) -> Key[Array, " batch"]:
    return jax.vmap(jax.random.fold_in, (0, None))(keys, number)


def _ask(
    options: Options, problem: Problem, question: int | Int[Array, ""], perturbed: Float[Array, "batch ..."]
) -> tuple[Float[Array, " batch"], Float[Array, "batch classes"]]:
    """What is climbed, and the logits; both a mean over the draws of a randomised model."""
    images = perturbed.astype(problem.images.dtype)
    gain_of = lambda logits: objective(logits, problem.labels, problem.target, options.loss)
    if not options.samples:
        logits = problem.logits(images)
        return gain_of(logits), logits
    params, keys = problem.params
    asked = _fold(keys, question)
    draw = lambda sample: problem._replace(params=(params, _fold(asked, sample))).logits(images)
    logits = jax.vmap(draw)(jnp.arange(options.samples))
    return jax.vmap(gain_of)(logits).mean(axis=0), logits.mean(axis=0)


@jax.jit
def _begin(options: Options, problem: Problem) -> tuple[Float[Array, "batch classes"], Search]:
    gain, logits = _ask(options, problem, 0, problem.images)
    if not options.early_stop:  # then the images as they are do not count
        return logits, begin(problem.images, jnp.full_like(gain, -jnp.inf), jnp.zeros(len(gain), bool))
    return logits, begin(problem.images, gain, succeeded(logits, problem.labels, problem.target))


@functools.partial(jax.jit, static_argnums=(1, 2))
def _restarts(
    options: Options,
    steps: int,
    restarts: int,
    problem: Problem,
    pace: Pace,
    starts: Key[Array, " batch"] | None,
    search: Search,
) -> Search:
    attempt = lambda search, number: (
        _attempt(options, problem, pace, starts, search, number, steps, "compiled"),
        None,
    )
    return jax.lax.scan(attempt, search, jnp.arange(restarts))[0]


def _attempt(
    options: Options,
    problem: Problem,
    pace: Pace,
    starts: Key[Array, " batch"] | None,
    search: Search,
    restart: Any,
    steps: int,
    loop: str,
) -> Search:
    """One start and the steps from it, for the images that are not fooled yet."""
    state = _start(options, problem, pace, starts, search, restart, restart * (steps + 1) + 1)
    if options.early_stop:
        step = Partial(_stopping_step, options, problem, pace)
        state = while_loop(Partial(_going_on), step, state, max_steps=steps, loop=loop)
        return _arrive(options, problem, state, False)
    # nothing else is carried along: all of it would be kept for the backward pass
    carry = (state.search.perturbed, state.velocity, state.question)
    carry, _ = scan(Partial(_plain_step, options, problem, pace), carry, length=steps, loop=loop)
    perturbed, velocity, question = carry
    taken = state.search.steps + steps * state.search.active
    search = state.search._replace(perturbed=perturbed, steps=taken, queries=state.search.queries + taken)
    return _arrive(options, problem, _State(search, velocity, question), restart == 0)


@jax.jit
def _start(
    options: Options,
    problem: Problem,
    pace: Pace,
    starts: Key[Array, " batch"] | None,
    search: Search,
    restart: Int[Array, ""],
    question: Int[Array, ""],
) -> _State:
    images = problem.images.astype(search.perturbed.dtype)
    perturbed = images
    if options.random_start and starts is not None:
        perturbed = images + random_in_ball(_fold(starts, restart), images, pace.eps, options.norm)
        perturbed = project(perturbed, images, pace.eps, options.bounds, options.norm)
    velocity = None if pace.momentum is None else jnp.zeros_like(images)
    search = search._replace(perturbed=perturbed, active=~search.success)
    return _State(search, velocity, jnp.asarray(question, jnp.int32))


def _going_on(state: _State) -> Bool[Array, ""]:
    return any_active(state.search)


def _stopping_step(options: Options, problem: Problem, pace: Pace, state: _State) -> _State:
    search = state.search
    gradient, gain, logits = _gradient(options, problem, state.question, search.perturbed)
    search = record(search, gain, succeeded(logits, problem.labels, problem.target))
    moved, velocity = _move(options, problem, pace, search.perturbed, state.velocity, gradient)
    search = search._replace(
        perturbed=choose(search.active, moved, search.perturbed), steps=search.steps + search.active
    )
    return _State(search, velocity, state.question + 1)


def _plain_step(options: Options, problem: Problem, pace: Pace, carry: Any, nothing: None) -> tuple[Any, None]:
    perturbed, velocity, question = carry
    gradient, _, _ = _gradient(options, problem, question, perturbed)
    return (*_move(options, problem, pace, perturbed, velocity, gradient), question + 1), None


@jax.jit
def _arrive(options: Options, problem: Problem, state: _State, anyway: Any) -> Search:
    """The last points have not been looked at."""
    gain, logits = _ask(options, problem, state.question, state.search.perturbed)
    return record(state.search, gain, succeeded(logits, problem.labels, problem.target), anyway=anyway)


def _gradient(
    options: Options, problem: Problem, question: Int[Array, ""], perturbed: Float[Array, "batch ..."]
) -> tuple[Float[Array, "batch ..."], Float[Array, " batch"], Float[Array, "batch classes"]]:
    def total(perturbed: Float[Array, "batch ..."]) -> tuple[Float[Array, ""], Any]:
        gain, logits = _ask(options, problem, question, perturbed)
        return gain.sum(), (gain, logits)

    gradient, (gain, logits) = jax.grad(total, has_aux=True)(perturbed)
    return gradient, gain, logits


def _move(
    options: Options,
    problem: Problem,
    pace: Pace,
    perturbed: Float[Array, "batch ..."],
    velocity: Float[Array, "batch ..."] | None,
    gradient: Float[Array, "batch ..."],
) -> tuple[Float[Array, "batch ..."], Float[Array, "batch ..."] | None]:
    """The next point, and the new velocity."""
    if velocity is not None and pace.momentum is not None:
        size = jnp.abs(gradient).mean(axis=tuple(range(1, gradient.ndim)), keepdims=True)
        velocity = pace.momentum * velocity + gradient / jnp.where(size > 0, size, 1)
        gradient = velocity
    if options.norm == "l1":  # a step of few values is lost where it leads out of the bounds
        lowest, highest = options.bounds
        outwards = ((perturbed <= lowest) & (gradient < 0)) | ((perturbed >= highest) & (gradient > 0))
        gradient = jnp.where(outwards, 0, gradient)
    step = unit_step(gradient, options.norm, share=options.sparsity)
    images = problem.images.astype(perturbed.dtype)
    moved = perturbed + per_image(pace.step_size, images) * step
    return project(moved, images, pace.eps, options.bounds, options.norm), velocity


@functools.partial(jax.jit, static_argnums=2)
def _result(search: Search, images: Float[Array, "batch ..."], norm: str) -> AttackResult:
    return result_of(search, images, norm)
