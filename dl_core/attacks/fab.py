"""The fast adaptive boundary attack: the nearest point with another prediction, along linearised boundaries.

Croce, Hein (2020), "Minimally distorted Adversarial Examples with a Fast Adaptive Boundary Attack",
https://arxiv.org/abs/1907.02044, algorithm 1. At xᵏ the boundary between the label and a class is taken for the
hyperplane f(xᵏ) + ⟨∇f(xᵏ), z − xᵏ⟩ = 0, with f the difference of their logits. With d and d₀ the shortest ways from xᵏ
and from the image x to that hyperplane inside the bounds, the next point leans towards the image:

    xᵏ⁺¹ = clip((1 − α)(xᵏ + η d) + α (x + η d₀))        α = min(‖d‖ / (‖d‖ + ‖d₀‖), α_max)

and where its prediction is wrong already, the attack goes back to x + β (xᵏ⁺¹ − x). At the end, a search along the line
to the image takes away what the overshoot η has left.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int, Key

from dl_core.attacks.balls import distance, image_keys, per_image, random_in_ball
from dl_core.attacks.box_projection import project_hyperplane
from dl_core.attacks.checks import Problem, check_at_least, check_attack, first_logits
from dl_core.attacks.objectives import margin
from dl_core.attacks.result import ApplyFn, AttackResult, choose, succeeded
from dl_core.attacks.targets import check_num_targets, run_targets
from dl_core.errors import UsageError
from dl_core.loops import scan, while_loop

_DUAL = {"linf": "l1", "l2": "l2", "l1": "linf"}
# AutoAttack's radius of the random starts where there is neither eps nor a result, for values in [0, 1]
_USUAL_EPS = {"linf": 0.3, "l2": 1.0, "l1": 5.0}
_SEARCH_STEPS = 3
_SEARCH_SLACK = 1e-3  # of the margins' difference: a result on the boundary itself would be one by rounding alone


def fab(
    apply_fn: ApplyFn,
    params: Any,
    images: Float[Array, "batch ..."],
    labels: Int[Array, " batch"],
    *,
    key: Key[Array, "*batch"] | None = None,
    eps: float | Float[Array, ""] | Float[Array, " batch"] | None = None,
    bounds: tuple[float, float] = (0.0, 1.0),
    target: int | Int[Array, " batch"] | None = None,
    norm: str = "linf",
    steps: int = 100,
    restarts: int = 1,
    num_targets: int | None = None,
    alpha_max: float = 0.1,
    eta: float = 1.05,
    beta: float = 0.9,
    early_stop: bool = True,
    loop: str = "auto",
) -> AttackResult:
    """Fast adaptive boundary attack (FAB), and with `num_targets` FAB-T.

    Without targets a step needs the gradient of every class; with many classes, `num_targets` is the cheap form.

    Args:
      apply_fn: (params, images) -> logits, as in inference, normalisation included.
      params: pytree of everything that apply_fn needs; never changed.
      images: inside the bounds, e.g. [batch, height, width, channels].
      labels: the true classes.
      key: for the random starts of all runs but the first; needed where restarts > 1.
      eps: radius beyond which a result is no success, in the units of the images, >= 0; one number, or one for each
        image. None: the nearest result counts, however far it is.
      bounds: smallest and largest value of an image.
      target: classes to be predicted instead; None is content with any wrong one.
      norm: of the distance, "linf", "l2" or "l1".
      steps: of a run, >= 1; each costs one gradient and one forward pass.
      restarts: runs (of each target), >= 1: the first from the image, the others from a random point, half as far from
        it as the best result.
      num_targets: aims at so many of the likeliest wrong classes of each image, one after another, and is content with
        any wrong prediction; at most classes − 1 of them. AutoAttack's FAB-T has num_targets=9.
      alpha_max: largest share of the image's own projection, in [0, 1].
      eta: how far to overshoot the hyperplane, >= 1.
      beta: what is kept of the way from the image after a success, in [0, 1].
      early_stop: with an eps, an image is done at the first result within it. False goes on to the nearest.
      loop: see `dl_core.loops`.

    Returns:
      AttackResult. Where nothing (within eps) was found, `adversarial` is the image. More restarts never lose a
      success; the distance before the search along the line never grows with them, after it by eta − 1 at most.

    Raises:
      UsageError: steps, restarts, num_targets or eta below 1; alpha_max or beta outside of [0, 1]; target and
        num_targets together; see `dl_core.attacks.checks.check_attack`.
    """
    check_at_least(1, steps=steps, restarts=restarts, eta=eta)
    for name, value in (("alpha_max", alpha_max), ("beta", beta)):
        if not 0 <= value <= 1:
            raise UsageError(f"{name} must be in [0, 1], got {value}")
    check_num_targets(num_targets, target)
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
        needs_key=f"restarts={restarts} draws the starts of all runs but the first" if restarts > 1 else "",
    )
    logits = first_logits(problem)
    working = jnp.promote_types(images.dtype, jnp.float32)
    radius = jnp.asarray(jnp.inf if eps is None else eps, images.dtype).astype(working)
    setting = _Setting(
        problem,
        image_keys(key, len(images)) if key is not None and restarts > 1 else None,
        jnp.broadcast_to(radius, (len(images),)),
        run_targets(logits, problem, num_targets),
        *map(jnp.int32, (steps, restarts)),
        *(jnp.asarray(value, working) for value in (alpha_max, eta, beta)),
    )
    options = _Options(norm, (float(bounds[0]), float(bounds[1])), early_stop and eps is not None)
    runs = restarts * (1 if setting.targets is None else setting.targets.shape[1])
    state = while_loop(
        Partial(_any_active),
        Partial(_step, options, setting),
        _begin(setting, logits),
        max_steps=steps * runs,
        loop=loop,
    )
    if not options.stop_within_eps:
        search = _begin_search(setting, state, logits)
        search, _ = scan(Partial(_search_step, options, setting), search, length=_SEARCH_STEPS, loop=loop)
        state = _end_search(state, search)
    return _result(options, setting, state)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Options:
    norm: str
    bounds: tuple[float, float]
    stop_within_eps: bool


class _Setting(NamedTuple):
    """What stays during the attack."""

    problem: Problem
    keys: Key[Array, " batch"] | None
    eps: Float[Array, " batch"]
    targets: Int[Array, "batch targets"] | None
    steps: Int[Array, ""]
    restarts: Int[Array, ""]
    alpha_max: Float[Array, ""]
    eta: Float[Array, ""]
    beta: Float[Array, ""]


class _State(NamedTuple):
    """For each image.

    current: where the boundary is linearised next.
    best, nearest: the nearest success so far, and its distance; infinite where there is none.
    number, step: the run, and its step.
    """

    current: Float[Array, "batch ..."]
    best: Float[Array, "batch ..."]
    nearest: Float[Array, " batch"]
    number: Int[Array, " batch"]
    step: Int[Array, " batch"]
    active: Bool[Array, " batch"]
    queries: Int[Array, " batch"]
    steps: Int[Array, " batch"]


class _Search(NamedTuple):
    """The end of the attack: a success, a point towards the image that is none, the margins of both, and the aim."""

    success: Float[Array, "batch ..."]
    failure: Float[Array, "batch ..."]
    above: Float[Array, " batch"]
    below: Float[Array, " batch"]
    aim: Float[Array, " batch"]
    active: Bool[Array, " batch"]


@jax.jit
def _begin(setting: _Setting, logits: Float[Array, "batch classes"]) -> _State:
    problem = setting.problem
    done = succeeded(logits, problem.labels, problem.target)
    zeros = jnp.zeros_like(problem.labels)
    return _State(
        current=problem.images,
        best=problem.images,
        nearest=jnp.where(done, 0, jnp.inf).astype(setting.eps.dtype),
        number=zeros,
        step=zeros,
        active=~done,
        queries=zeros + 1,
        steps=zeros,
    )


def _any_active(state: _State | _Search) -> Bool[Array, ""]:
    return state.active.any()


def _step(options: _Options, setting: _Setting, state: _State) -> _State:
    problem, images = setting.problem, setting.problem.images
    runs = setting.restarts * (1 if setting.targets is None else setting.targets.shape[1])
    candidate = _towards_the_boundary(options, setting, state)
    success = succeeded(problem.logits(candidate), problem.labels, problem.target)
    length = distance(candidate - images, options.norm).astype(state.nearest.dtype)
    won = success & (length < state.nearest)
    nearest = jnp.where(won, length, state.nearest)
    back = images + (setting.beta * (candidate - images)).astype(images.dtype)
    current = choose(success, back, candidate)
    over = state.step + 1 >= setting.steps
    number = state.number + over
    active = number < runs
    if options.stop_within_eps:
        active = active & (nearest > setting.eps)
    again = over & active
    restart = lambda: choose(again, _start(options, setting, number, nearest), current)
    new = _State(
        current=jax.lax.cond(again.any(), restart, lambda: current),
        best=choose(won, candidate, state.best),
        nearest=nearest,
        number=number,
        step=jnp.where(over, 0, state.step + 1),
        active=active,
        queries=state.queries + 2,
        steps=state.steps + 1,
    )
    return choose(state.active, new, state)


def _towards_the_boundary(options: _Options, setting: _Setting, state: _State) -> Float[Array, "batch ..."]:
    """xᵏ⁺¹ of the equation above."""
    images, dtype = setting.problem.images, setting.eps.dtype
    values, gradients = _boundary(options, setting, state)
    flat = lambda array: array.reshape(len(images), -1).astype(dtype)
    here, image, normals = flat(state.current), flat(images), flat(gradients)
    values = values.astype(dtype)
    # both ways at once: of twice as many points, one after another on the CPU, the loop for λ would run twice
    twice = lambda first, second: jnp.concatenate([first, second])
    ways = project_hyperplane(
        twice(here, image),
        twice(normals, normals),
        twice(-values, -values - (normals * (image - here)).sum(axis=1)),
        options.bounds,
        options.norm,
    )
    lengths = distance(ways, options.norm)
    (way, image_way), (length, image_length) = jnp.split(ways, 2), jnp.split(lengths, 2)
    both = length + image_length
    α = jnp.minimum(length / jnp.where(both > 0, both, 1), setting.alpha_max)[:, None]
    moved = (1 - α) * (here + setting.eta * way) + α * (image + setting.eta * image_way)
    return jnp.clip(moved.reshape(images.shape).astype(images.dtype), *options.bounds)


def _boundary(
    options: _Options, setting: _Setting, state: _State
) -> tuple[Float[Array, " batch"], Float[Array, "batch ..."]]:
    """f and ∇f: of the run's target, or of the class whose linearised boundary is nearest."""
    problem, batch = setting.problem, len(setting.problem.images)
    rows = jnp.arange(batch)
    if setting.targets is not None:
        target = setting.targets[rows, state.number // setting.restarts]

        def ahead(images: Float[Array, "batch ..."]) -> tuple[Float[Array, ""], Float[Array, " batch"]]:
            logits = problem.logits(images)
            values = logits[rows, target] - logits[rows, problem.labels]
            return values.sum(), values

        gradients, values = jax.grad(ahead, has_aux=True)(state.current)
        return values, gradients
    logits, pull_back = jax.vjp(problem.logits, state.current)
    classes = logits.shape[1]
    own = jax.nn.one_hot(problem.labels, classes, dtype=logits.dtype)
    towards = jnp.eye(classes, dtype=logits.dtype)[:, None] - own[None]
    (gradients,) = jax.vmap(pull_back)(towards)
    values = logits - logits[rows, problem.labels][:, None]
    steepness = distance(gradients.reshape(classes * batch, -1), _DUAL[options.norm]).reshape(classes, batch).T
    far = jnp.abs(values) / jnp.where(steepness > 0, steepness, 1)
    chosen = jnp.where((own > 0) | (steepness == 0), jnp.inf, far).argmin(axis=1)
    return values[rows, chosen], gradients[chosen, rows]


def _start(
    options: _Options, setting: _Setting, number: Int[Array, " batch"], nearest: Float[Array, " batch"]
) -> Float[Array, "batch ..."]:
    """Where the runs of these numbers start: the first of every target at the image, the others around it."""
    images = setting.problem.images
    if setting.keys is None:
        return images
    keys = jax.vmap(jax.random.fold_in)(setting.keys, number)
    low, high = options.bounds
    known = jnp.minimum(nearest, setting.eps)
    radius = jnp.where(jnp.isfinite(known), known, _USUAL_EPS[options.norm] * (high - low)) / 2
    around = images + random_in_ball(keys, images, radius.astype(images.dtype), options.norm)
    return choose(number % setting.restarts == 0, images, jnp.clip(around, low, high))


@jax.jit
def _begin_search(setting: _Setting, state: _State, logits: Float[Array, "batch classes"]) -> _Search:
    problem = setting.problem
    margins = lambda of: margin(of, problem.labels, problem.target)
    above, below = margins(problem.logits(state.best)), margins(logits)
    return _Search(
        success=state.best,
        failure=problem.images,
        above=above,
        below=below,
        aim=_SEARCH_SLACK * jnp.abs(above - below),
        active=jnp.isfinite(state.nearest) & (state.nearest > 0),
    )


def _search_step(options: _Options, setting: _Setting, search: _Search, _: None) -> tuple[_Search, None]:
    """One of the two ends moves to where a straight margin between them would be the aim, hardly more than zero."""
    problem = setting.problem
    between = search.above - search.below
    share = jnp.clip((search.above - search.aim) / jnp.where(between > 0, between, 1), 0, 1).astype(
        search.success.dtype
    )
    share = per_image(share, search.success)
    point = jnp.clip((1 - share) * search.success + share * search.failure, *options.bounds)
    logits = problem.logits(point)
    margins = margin(logits, problem.labels, problem.target)
    lengths = [distance(where - problem.images, options.norm) for where in (point, search.success)]
    success = succeeded(logits, problem.labels, problem.target) & (margins >= search.aim / 2)
    nearer = choose(lengths[0] <= lengths[1], search._replace(success=point, above=margins), search)
    after = choose(success, nearer, search._replace(failure=point, below=margins))
    return choose(search.active, after, search), None


@jax.jit
def _end_search(state: _State, search: _Search) -> _State:
    # the margins of the success, and one forward pass a step
    return state._replace(
        best=search.success, queries=state.queries + jnp.where(search.active, 1 + _SEARCH_STEPS, 0).astype(jnp.int32)
    )


@jax.jit
def _result(options: _Options, setting: _Setting, state: _State) -> AttackResult:
    images = setting.problem.images
    length = distance(state.best - images, options.norm)
    success = jnp.isfinite(state.nearest) & (length <= setting.eps)
    adversarial = choose(success, state.best, images)
    return AttackResult(
        adversarial=adversarial,
        success=success,
        distance=distance(adversarial - images, options.norm),
        queries=state.queries,
        steps=state.steps,
    )
