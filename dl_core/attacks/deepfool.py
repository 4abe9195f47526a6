"""DeepFool: the nearest boundary of the linearised network, again and again until the image has crossed one.

Moosavi-Dezfooli, Fawzi, Frossard (2016), https://arxiv.org/abs/1511.04599, algorithm 2. With logits z, label y and the
differences f_k = z_k − z_y, w_k = ∇ₓ f_k of the classes k, a step goes to the boundary that is nearest if f is linear:

    l = argmin_k |f_k| / ‖w_k‖₂        r ← r + |f_l| / ‖w_l‖₂² w_l         in the Euclidean norm
    l = argmin_k |f_k| / ‖w_k‖₁        r ← r + |f_l| / ‖w_l‖₁ sign(w_l)    in the maximum norm
    x* = clip(x + (1 + overshoot) r)
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int, Key

from dl_core.attacks.balls import distance, per_image, unit_step
from dl_core.attacks.checks import Problem, check_at_least, check_attack, first_logits
from dl_core.attacks.result import ApplyFn, AttackResult, choose, succeeded
from dl_core.loops import while_loop

_DUAL = {"l2": "l2", "linf": "l1"}


def deepfool(
    apply_fn: ApplyFn,
    params: Any,
    images: Float[Array, "batch ..."],
    labels: Int[Array, " batch"],
    *,
    norm: str = "l2",
    steps: int = 50,
    overshoot: float = 0.02,
    least_step: float = 1e-4,
    candidates: int | None = 10,
    bounds: tuple[float, float] = (0.0, 1.0),
    target: int | Int[Array, " batch"] | None = None,
    key: Key[Array, "*batch"] | None = None,
    loop: str = "auto",
) -> AttackResult:
    """DeepFool: a small perturbation that changes the prediction, found in a few steps.

    There is no eps. `result.success & (result.distance <= eps)` is the success at any eps, so that one run gives the
    whole curve of accuracy against eps.

    Args:
      apply_fn: (params, images) -> logits, as in inference, normalisation included.
      params: pytree of everything that apply_fn needs; never changed.
      images: inside the bounds, e.g. [batch, height, width, channels].
      labels: the true classes.
      norm: what is made small: "l2" or "linf".
      steps: at most, >= 1; an image that has crossed a boundary takes no more.
      overshoot: part of the perturbation, >= 0, that is added to it to end beyond the boundary.
      least_step: as a part of the range of the bounds, >= 0, added to the length of every step to the same end.
      candidates: how many classes are looked at, >= 2: those with the highest logits of the unchanged image, the label
        among them. Each but the label costs a gradient in every step, all of them taken at once: with many classes,
        it is the memory that asks for a limit. None: all.
      bounds: smallest and largest value of an image.
      target: classes to be predicted instead. Every step then goes to the boundary between the target and the class
        that is predicted at that moment, and the candidates play no part.
      key: not used, the method is deterministic; taken so that every attack is called alike.
      loop: see `dl_core.loops`.

    Returns:
      AttackResult; the distance is in the given norm. Of an image for which nothing was found, the unchanged image.

    Raises:
      UsageError: see `dl_core.attacks.checks.check_attack`; steps < 1, overshoot < 0, least_step < 0, candidates < 2.
    """
    problem = check_attack(
        apply_fn, params, images, labels, bounds=bounds, target=target, norm=norm, norms=tuple(_DUAL), key=key
    )
    check_at_least(1, steps=steps)
    check_at_least(0, overshoot=overshoot, least_step=least_step)
    check_at_least(2, candidates=2 if candidates is None else candidates)
    logits = first_logits(problem)
    rivals = min(candidates or logits.shape[1], logits.shape[1]) - 1
    options = _Options(norm, bounds, rivals if target is None else 1)
    goals, state = _start(options, problem, logits)
    lengths = (jnp.asarray(overshoot, state.total.dtype), jnp.asarray(least_step, state.total.dtype))
    step = Partial(_step, options, problem, goals, lengths)
    return _result(options, problem, while_loop(Partial(_any_active), step, state, max_steps=steps, loop=loop))


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Options:
    norm: str
    bounds: tuple[float, float]
    rivals: int  # gradients in each step


class _State(NamedTuple):
    perturbed: Float[Array, "batch ..."]
    total: Float[Array, "batch ..."]  # r: the sum of all steps, without overshoot and clipping
    success: Bool[Array, " batch"]
    active: Bool[Array, " batch"]
    steps: Int[Array, " batch"]


@jax.jit
def _start(
    options: _Options, problem: Problem, logits: Float[Array, "batch classes"]
) -> tuple[Int[Array, "rivals batch"], _State]:
    """The classes whose boundaries are looked at, and the unchanged images."""
    success = succeeded(logits, problem.labels, problem.target)
    if problem.target is None:
        is_label = jax.nn.one_hot(problem.labels, logits.shape[1], dtype=bool)
        goals = jax.lax.top_k(jnp.where(is_label, -jnp.inf, logits), options.rivals)[1].T
    else:
        goals = problem.target[None]
    images = problem.images
    total = jnp.zeros(images.shape, jnp.promote_types(images.dtype, jnp.float32))
    return goals, _State(images, total, success, ~success, jnp.zeros_like(problem.labels))


def _any_active(state: _State) -> Bool[Array, ""]:
    return state.active.any()


def _step(
    options: _Options,
    problem: Problem,
    goals: Int[Array, "rivals batch"],
    lengths: tuple[Float[Array, ""], Float[Array, ""]],
    state: _State,
) -> _State:
    images, dtype, width = problem.images, state.total.dtype, options.bounds[1] - options.bounds[0]
    overshoot, least_step = lengths
    logits, pull_back = jax.vjp(problem.logits, state.perturbed)
    classes = logits.shape[1]
    # an image that is not yet misclassified is predicted as its label
    is_goal = jax.nn.one_hot(goals, classes, dtype=logits.dtype)
    own = problem.labels if problem.target is None else jnp.where(is_goal[0] > 0, -jnp.inf, logits).argmax(axis=1)
    difference = is_goal - jax.nn.one_hot(own, classes, dtype=logits.dtype)[None]
    gains = (difference * logits[None]).sum(axis=2)
    gradients = jax.vmap(lambda cotangent: pull_back(cotangent)[0].astype(dtype))(difference)

    dual = jax.vmap(lambda gradient: distance(gradient, _DUAL[options.norm]))(gradients)
    away = jnp.where(dual > 0, jnp.abs(gains).astype(dtype) / jnp.where(dual > 0, dual, 1), jnp.inf)
    nearest = away.argmin(axis=0)[None]
    away = jnp.take_along_axis(away, nearest, axis=0)[0]
    gradient = jnp.take_along_axis(gradients, nearest.reshape(1, -1, *(1,) * (images.ndim - 1)), axis=0)[0]
    # to a faint gradient the boundary is infinitely far away; no image is wider than this
    widest = width * (images[0].size ** 0.5 if options.norm == "l2" else 1)
    length = jnp.minimum(away + least_step * width, widest)
    total = state.total + per_image(length, images) * unit_step(gradient, options.norm)
    perturbed = jnp.clip(images.astype(dtype) + (1 + overshoot) * total, *options.bounds).astype(images.dtype)

    success = succeeded(problem.logits(perturbed), problem.labels, problem.target)
    moves = jnp.isfinite(away)  # without any gradient, the next step would be this one again
    after = _State(perturbed, total, success, ~success & moves, state.steps + 1)
    return choose(state.active, after, state)


@jax.jit
def _result(options: _Options, problem: Problem, state: _State) -> AttackResult:
    adversarial = choose(state.success, state.perturbed, problem.images)
    return AttackResult(
        adversarial=adversarial,
        success=state.success,
        distance=distance(adversarial - problem.images, options.norm),
        queries=1 + state.steps * (options.rivals + 1),
        steps=state.steps,
    )
