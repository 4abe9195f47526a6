"""Carlini and Wagner's attack: the nearest adversarial image as a minimum of distance plus a penalty.

Carlini, Wagner (2017), "Towards evaluating the robustness of neural networks", https://arxiv.org/abs/1608.04644,
section VI.A. With the change of variables x* = a + b tanh(w), which never leaves the bounds [a − b, a + b], Adam
minimises

    ‖x* − x‖₂² + c · max(0, κ − m(x*))        m: the margin, by how much another class (or the target) is ahead

and a binary search looks for the smallest constant c of each image that still finds an adversarial one.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int, Key

from dl_core.attacks.balls import distance
from dl_core.attacks.checks import Problem, check_at_least, check_attack, first_logits
from dl_core.attacks.objectives import margin
from dl_core.attacks.result import ApplyFn, AttackResult, choose, succeeded
from dl_core.errors import UsageError
from dl_core.loops import while_loop

_LARGEST_CONST = 1e10  # as in the authors' program


def carlini_wagner(
    apply_fn: ApplyFn,
    params: Any,
    images: Float[Array, "batch ..."],
    labels: Int[Array, " batch"],
    *,
    steps: int = 1000,
    binary_search_steps: int = 9,
    learning_rate: float = 0.01,
    initial_const: float = 1e-3,
    confidence: float = 0.0,
    abort_early: bool = True,
    bounds: tuple[float, float] = (0.0, 1.0),
    target: int | Int[Array, " batch"] | None = None,
    key: Key[Array, "*batch"] | None = None,
    loop: str = "auto",
) -> AttackResult:
    """Carlini and Wagner's attack in the Euclidean norm: slow, and hard to come nearer than.

    There is no eps. `result.success & (result.distance <= eps)` is the success at any eps, so that one run gives the
    whole curve of accuracy against eps.

    Args:
      apply_fn: (params, images) -> logits, as in inference, normalisation included.
      params: pytree of everything that apply_fn needs; never changed.
      images: inside the bounds, e.g. [batch, height, width, channels].
      labels: the true classes.
      steps: of Adam for each constant, >= 1.
      binary_search_steps: how many constants are tried, >= 1.
      learning_rate: of Adam, > 0, in the space of w.
      initial_const: the first c, > 0. It is multiplied by 10 until an adversarial image is found; then bisected. The
        distance that it is weighed against is measured in parts of the range of the bounds.
      confidence: κ >= 0, by how much the margin must exceed zero; more of it transfers better to other networks.
      abort_early: an image whose loss has not fallen over a tenth of the steps goes on to its next constant.
      bounds: smallest and largest value of an image.
      target: classes to be predicted instead; None is content with any wrong one.
      key: not used, the method is deterministic; taken so that every attack is called alike.
      loop: see `dl_core.loops`.

    Returns:
      AttackResult: the nearest adversarial image of all constants and steps; the distance is Euclidean. Of an image for
      which nothing was found, the unchanged image. With a confidence, success means a margin of at least that much.

    Raises:
      UsageError: see `dl_core.attacks.checks.check_attack`; steps < 1, binary_search_steps < 1, learning_rate <= 0,
        initial_const <= 0, confidence < 0.
    """
    problem = check_attack(apply_fn, params, images, labels, bounds=bounds, target=target, key=key)
    check_at_least(1, steps=steps, binary_search_steps=binary_search_steps)
    check_at_least(0, confidence=confidence)
    for name, value in {"learning_rate": learning_rate, "initial_const": initial_const}.items():
        if not value > 0:
            raise UsageError(f"{name} must be above 0, got {value}")
    options = _Options(bounds, abort_early)
    dtype = jnp.promote_types(images.dtype, jnp.float32)
    constants = _Constants(
        learning_rate=jnp.asarray(learning_rate, dtype),
        initial_const=jnp.asarray(initial_const, dtype),
        confidence=jnp.asarray(confidence, dtype),
        steps=jnp.int32(steps),
        rounds=jnp.int32(binary_search_steps),
        check_every=jnp.int32(math.ceil(steps / 10)),
    )
    origin, state = _start(options, problem, constants, first_logits(problem))
    step = Partial(_step, options, problem, constants, origin)
    most = steps * binary_search_steps
    return _result(problem, while_loop(Partial(_any_active), step, state, max_steps=most, loop=loop))


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Options:
    bounds: tuple[float, float]
    abort_early: bool


class _Constants(NamedTuple):
    learning_rate: Float[Array, ""]
    initial_const: Float[Array, ""]
    confidence: Float[Array, ""]
    steps: Int[Array, ""]
    rounds: Int[Array, ""]
    check_every: Int[Array, ""]


class _Round(NamedTuple):
    """One minimisation with one constant; begun anew for each constant, at a time of its own for each image."""

    variable: Float[Array, "batch ..."]  # w
    adam: Any
    steps: Int[Array, " batch"]
    checked_loss: Float[Array, " batch"]
    found: Bool[Array, " batch"]


class _State(NamedTuple):
    round: _Round
    rounds: Int[Array, " batch"]
    const: Float[Array, " batch"]
    too_small: Float[Array, " batch"]  # the largest constant that found nothing
    enough: Float[Array, " batch"]  # the smallest one that did
    best: Float[Array, "batch ..."]  # the original as long as nothing was found
    best_distance: Float[Array, " batch"]  # infinite as long
    active: Bool[Array, " batch"]
    steps: Int[Array, " batch"]


def _begin(variable: Float[Array, "batch ..."]) -> _Round:
    batch = len(variable)
    return _Round(
        variable=variable,
        adam=jax.vmap(optax.scale_by_adam().init)(variable),
        steps=jnp.zeros(batch, jnp.int32),
        checked_loss=jnp.full(batch, jnp.inf, variable.dtype),
        found=jnp.zeros(batch, bool),
    )


@jax.jit
def _start(
    options: _Options, problem: Problem, constants: _Constants, logits: Float[Array, "batch classes"]
) -> tuple[Float[Array, "batch ..."], _State]:
    """The w of the unchanged images, and the state there."""
    images, dtype = problem.images, constants.learning_rate.dtype
    middle, half = sum(options.bounds) / 2, (options.bounds[1] - options.bounds[0]) / 2
    # a little inside: the w of a bound is infinite
    origin = jnp.arctanh(0.999999 * jnp.clip((images.astype(dtype) - middle) / half, -1, 1))
    success = _adversarial(problem, constants, logits)
    batch = len(images)
    return origin, _State(
        round=_begin(origin),
        rounds=jnp.zeros(batch, jnp.int32),
        const=jnp.full(batch, constants.initial_const),
        too_small=jnp.zeros(batch, dtype),
        enough=jnp.full(batch, jnp.inf, dtype),
        best=images,
        best_distance=jnp.where(success, 0, jnp.inf).astype(dtype),
        active=~success,
        steps=jnp.zeros(batch, jnp.int32),
    )


def _any_active(state: _State) -> Bool[Array, ""]:
    return state.active.any()


def _adversarial(
    problem: Problem, constants: _Constants, logits: Float[Array, "batch classes"]
) -> Bool[Array, " batch"]:
    labels, target = problem.labels, problem.target
    return succeeded(logits, labels, target) & (margin(logits, labels, target) >= constants.confidence)


def _step(
    options: _Options, problem: Problem, constants: _Constants, origin: Float[Array, "batch ..."], state: _State
) -> _State:
    """One step of Adam for each image, and the next constant for those whose minimisation ends with it."""
    (lower, upper), current = options.bounds, state.round
    inside = lambda w: jnp.clip((lower + upper) / 2 + (upper - lower) / 2 * jnp.tanh(w), lower, upper)
    original = inside(origin)

    def loss(variable: Float[Array, "batch ..."]) -> tuple[Float[Array, ""], tuple[Array, Array, Array]]:
        perturbed = inside(variable)
        logits = problem.logits(perturbed.astype(problem.images.dtype))
        missing = jax.nn.relu(constants.confidence - margin(logits, problem.labels, problem.target))
        moved = (((perturbed - original) / (upper - lower)) ** 2).reshape(len(variable), -1).sum(axis=1)
        losses = moved + state.const * missing
        return losses.sum(), (losses, logits, perturbed.astype(problem.images.dtype))

    gradient, (losses, logits, perturbed) = jax.grad(loss, has_aux=True)(current.variable)
    adversarial = _adversarial(problem, constants, logits)
    away = distance((perturbed - problem.images).astype(origin.dtype), "l2")
    nearer = adversarial & (away < state.best_distance)
    found = current.found | adversarial

    updates, adam = jax.vmap(optax.scale_by_adam().update)(gradient, current.adam)
    check = current.steps % constants.check_every == 0
    stalled = check & ~(losses <= 0.9999 * current.checked_loss) & options.abort_early
    advanced = _Round(
        variable=current.variable - constants.learning_rate * jnp.asarray(updates),
        adam=adam,
        steps=current.steps + 1,
        checked_loss=jnp.where(check, losses, current.checked_loss).astype(origin.dtype),
        found=found,
    )

    over = stalled | (advanced.steps == constants.steps)
    enough = jnp.where(over & found, state.const, state.enough)
    too_small = jnp.where(over & ~found, state.const, state.too_small)
    following = jnp.where(jnp.isinf(enough), 10 * state.const, (too_small + enough) / 2)
    rounds = state.rounds + over
    after = _State(
        round=choose(over, _begin(origin), advanced),
        rounds=rounds,
        const=jnp.where(over, jnp.minimum(following, _LARGEST_CONST), state.const),
        too_small=too_small,
        enough=enough,
        best=choose(nearer, perturbed, state.best),
        best_distance=jnp.where(nearer, away, state.best_distance),
        active=rounds < constants.rounds,
        steps=state.steps + 1,
    )
    return choose(state.active, after, state)


@jax.jit
def _result(problem: Problem, state: _State) -> AttackResult:
    return AttackResult(
        adversarial=state.best,
        success=jnp.isfinite(state.best_distance),
        distance=distance(state.best - problem.images, "l2"),
        queries=1 + state.steps,
        steps=state.steps,
    )
