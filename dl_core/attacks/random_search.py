"""Random points of the ball: an attack that every other one must beat."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int, Key

from dl_core.attacks.balls import distance, image_keys, per_image, random_in_ball, unit_step
from dl_core.attacks.checks import Problem, check_at_least, check_attack, check_logits
from dl_core.attacks.objectives import margin
from dl_core.attacks.result import ApplyFn, AttackResult, choose, succeeded
from dl_core.loops import while_loop


def random_search(
    apply_fn: ApplyFn,
    params: Any,
    images: Float[Array, "batch ..."],
    labels: Int[Array, " batch"],
    *,
    key: Key[Array, "*batch"],
    eps: float | Float[Array, ""] | Float[Array, " batch"],
    norm: str = "linf",
    num_random: int = 100,
    target: int | Int[Array, " batch"] | None = None,
    bounds: tuple[float, float] = (0.0, 1.0),
    loop: str = "auto",
) -> AttackResult:
    """The weakest attack there is: random points of the ball, every second one as far out as it reaches.

    Args:
      apply_fn: (params, images) -> logits, as in inference, normalisation included.
      params: pytree of everything that apply_fn needs; never changed.
      images: inside the bounds.
      labels: the true classes.
      key: one key, or one for each image.
      eps: radius of the ball in the units of the images, >= 0; one number, or one for each image.
      norm: "linf" (a point as far out as it reaches has every value at ±eps), "l2" or "l1" (one value at ±eps).
      num_random: points, >= 1.
      target: classes to be predicted instead; None is content with any wrong one.
      bounds: smallest and largest value of an image.
      loop: see `dl_core.loops`.

    Returns:
      AttackResult; where nothing succeeded, the point of the largest margin.

    Raises:
      UsageError: num_random below 1; see `dl_core.attacks.checks.check_attack`.
    """
    check_at_least(1, num_random=num_random)
    problem = check_attack(
        apply_fn,
        params,
        images,
        labels,
        bounds=bounds,
        eps=eps,
        norm=norm,
        target=target,
        key=key,
        needs_key="the points are drawn",
    )
    options = _Options(norm, (float(bounds[0]), float(bounds[1])))
    radius = jnp.broadcast_to(jnp.asarray(eps, images.dtype), (len(images),))
    setting = (problem, image_keys(key, len(images)), radius)
    state = _begin(problem)
    check_logits(state.logits)
    state = while_loop(
        Partial(_any_active), Partial(_draw_once, options, setting), state, max_steps=num_random, loop=loop
    )
    return AttackResult(state.best, state.success, distance(state.best - images, norm), state.steps + 1, state.steps)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Options:
    norm: str
    bounds: tuple[float, float]


class _Search(NamedTuple):
    """logits: of the images as they are. best: the point of the largest margin. draw: how many there were."""

    logits: Float[Array, "batch classes"]
    best: Float[Array, "batch ..."]
    margin: Float[Array, " batch"]
    success: Bool[Array, " batch"]
    steps: Int[Array, " batch"]
    draw: Int[Array, ""]


@jax.jit
def _begin(problem: Problem) -> _Search:
    logits = problem.logits(problem.images)
    return _Search(
        logits,
        problem.images,
        margin(logits, problem.labels, problem.target),
        succeeded(logits, problem.labels, problem.target),
        jnp.zeros_like(problem.labels),
        jnp.int32(0),
    )


def _any_active(state: _Search) -> Bool[Array, ""]:
    return ~state.success.all()


def _draw_once(options: _Options, setting: tuple[Problem, Any, Any], state: _Search) -> _Search:
    problem, keys, eps = setting
    active, images = ~state.success, problem.images
    keys = jax.vmap(jax.random.fold_in, (0, None))(keys, state.draw)
    inside = random_in_ball(keys, images, eps, options.norm)
    far = per_image(eps, images) * random_direction(keys, images, options.norm)
    point = jnp.clip(images + jnp.where(state.draw % 2 == 0, far, inside), *options.bounds)
    logits = problem.logits(point)
    gain, success = margin(logits, problem.labels, problem.target), succeeded(logits, problem.labels, problem.target)
    found = active & (success | (gain > state.margin))
    return state._replace(
        best=choose(found, point, state.best),
        margin=jnp.where(found, gain, state.margin),
        success=state.success | success,
        steps=state.steps + active,
        draw=state.draw + 1,
    )


def random_direction(
    keys: Key[Array, " batch"], images: Float[Array, "batch ..."], norm: str
) -> Float[Array, "batch ..."]:
    """Of length 1 in the norm: every value ±1, any direction alike, or one value of ±1.

    Args:
      keys: one for each image.
      images: of these shapes.
      norm: "linf", "l2" or "l1".

    Returns:
      Of the shape of the images.
    """
    normal = jax.vmap(lambda key: jax.random.normal(key, images.shape[1:], images.dtype))(keys)
    return unit_step(normal, norm)
