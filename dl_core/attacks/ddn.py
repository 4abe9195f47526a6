"""Decoupled direction and norm: the gradient says where to go, and the last prediction how far.

Rony, Hafemann, Oliveira, Ben Ayed, Sabourin, Granger (2019), https://arxiv.org/abs/1811.09600, algorithm 1. The image
lies on a sphere around the original whose radius ε shrinks after each adversarial point and grows after each other one:

    δ ← δ + α ∇ₓL / ‖∇ₓL‖₂      ε ← (1 − γ) ε if adversarial, else (1 + γ) ε      x* = clip(x + ε δ / ‖δ‖₂)

so that it crosses the boundary to and fro, and the nearest adversarial point that it met is kept.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int, Key

from dl_core.attacks.balls import distance, per_image, unit_step
from dl_core.attacks.checks import Problem, check_at_least, check_attack, first_logits
from dl_core.attacks.objectives import LossFn, objective
from dl_core.attacks.result import ApplyFn, AttackResult, choose, succeeded
from dl_core.errors import UsageError
from dl_core.loops import while_loop


def ddn(
    apply_fn: ApplyFn,
    params: Any,
    images: Float[Array, "batch ..."],
    labels: Int[Array, " batch"],
    *,
    steps: int = 100,
    init_eps: float | None = None,
    gamma: float = 0.05,
    levels: int | None = None,
    loss: str | LossFn = "cross_entropy",
    bounds: tuple[float, float] = (0.0, 1.0),
    target: int | Int[Array, " batch"] | None = None,
    key: Key[Array, "*batch"] | None = None,
    loop: str = "auto",
) -> AttackResult:
    """Decoupled direction and norm: nearly as near as Carlini and Wagner's attack, in a hundred steps.

    There is no eps. `result.success & (result.distance <= eps)` is the success at any eps, so that one run gives the
    whole curve of accuracy against eps.

    Args:
      apply_fn: (params, images) -> logits, as in inference, normalisation included.
      params: pytree of everything that apply_fn needs; never changed.
      images: inside the bounds, e.g. [batch, height, width, channels].
      labels: the true classes.
      steps: >= 1. Their length falls along a cosine from 1 to 0.01 of the range of the bounds over all of them.
      init_eps: the first radius in the units of the images, > 0; None: the range of the bounds.
      gamma: how fast the radius changes, in (0, 1).
      levels: every changed image is rounded to this many equally spaced values of the bounds, >= 2, and adversarial so;
        256 for images that are stored as bytes. None: not rounded.
      loss: what is raised, see `dl_core.attacks.objectives`. "margin" for networks so sure that the cross-entropy has
        no gradient.
      bounds: smallest and largest value of an image.
      target: classes to be predicted instead; None is content with any wrong one.
      key: not used, the method is deterministic; taken so that every attack is called alike.
      loop: see `dl_core.loops`.

    Returns:
      AttackResult; the distance is Euclidean. Of an image for which nothing was found, the unchanged image.

    Raises:
      UsageError: see `dl_core.attacks.checks.check_attack`; steps < 1, init_eps <= 0, gamma outside (0, 1), levels < 2.
    """
    problem = check_attack(apply_fn, params, images, labels, bounds=bounds, target=target, loss=loss, key=key)
    check_at_least(1, steps=steps)
    check_at_least(2, levels=2 if levels is None else levels)
    radius = bounds[1] - bounds[0] if init_eps is None else init_eps
    if not radius > 0:
        raise UsageError(f"init_eps must be above 0, because the radius is only ever multiplied; got {init_eps}")
    if not 0 < gamma < 1:
        raise UsageError(f"gamma must be in (0, 1), got {gamma}: 0.05 changes the radius by 5 % a step")
    options = _Options(loss, bounds, levels)
    state = _start(problem, first_logits(problem), radius)
    constants = (jnp.asarray(gamma, state.eps.dtype), jnp.asarray(steps, state.eps.dtype))
    step = Partial(_step, options, problem, constants)
    return _result(problem, while_loop(Partial(_any_active), step, state, max_steps=steps, loop=loop))


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Options:
    loss: str | LossFn
    bounds: tuple[float, float]
    levels: int | None


class _State(NamedTuple):
    perturbed: Float[Array, "batch ..."]
    eps: Float[Array, " batch"]
    best: Float[Array, "batch ..."]  # the original as long as nothing was found
    best_distance: Float[Array, " batch"]  # infinite as long
    active: Bool[Array, " batch"]
    steps: Int[Array, " batch"]


@jax.jit
def _start(problem: Problem, logits: Float[Array, "batch classes"], radius: Any) -> _State:
    success = succeeded(logits, problem.labels, problem.target)
    images = problem.images
    dtype = jnp.promote_types(images.dtype, jnp.float32)
    return _State(
        perturbed=images,
        eps=jnp.full(len(images), radius, dtype),
        best=images,
        best_distance=jnp.where(success, 0, jnp.inf).astype(dtype),
        active=~success,
        steps=jnp.zeros_like(problem.labels),
    )


def _any_active(state: _State) -> Bool[Array, ""]:
    return state.active.any()


def _step(options: _Options, problem: Problem, constants: tuple[Any, Any], state: _State) -> _State:
    (lower, upper), (gamma, steps) = options.bounds, constants
    images = problem.images.astype(state.eps.dtype)

    def gain(perturbed: Float[Array, "batch ..."]) -> tuple[Float[Array, ""], Float[Array, "batch classes"]]:
        logits = problem.logits(perturbed)
        return objective(logits, problem.labels, problem.target, options.loss).sum(), logits

    ascent, logits = jax.grad(gain, has_aux=True)(state.perturbed)
    success = succeeded(logits, problem.labels, problem.target)
    change = state.perturbed.astype(images.dtype) - images
    length = distance(change, "l2")
    nearer = success & (length < state.best_distance)

    share = 0.01 + 0.99 * (1 + jnp.cos(jnp.pi * state.steps / steps)) / 2
    change = change + per_image((upper - lower) * share, images) * unit_step(ascent.astype(images.dtype), "l2")
    farthest = distance(jnp.maximum(images - lower, upper - images), "l2")
    eps = jnp.minimum(state.eps * jnp.where(success, 1 - gamma, 1 + gamma), farthest)
    perturbed = jnp.clip(images + per_image(eps, images) * unit_step(change, "l2"), lower, upper)
    if options.levels is not None:
        spacing = (upper - lower) / (options.levels - 1)
        perturbed = jnp.clip(lower + jnp.round((perturbed - lower) / spacing) * spacing, lower, upper)

    after = _State(
        perturbed=perturbed.astype(problem.images.dtype),
        eps=eps.astype(state.eps.dtype),
        best=choose(nearer, state.perturbed, state.best),
        best_distance=jnp.where(nearer, length, state.best_distance),
        active=state.active,
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
