"""The boundary attack: a random walk along the border of the adversarial region, towards the image.

Brendel, Rauber, Bethge (2018), "Decision-Based Adversarial Attacks: Reliable Attacks Against Black-Box Machine Learning
Models", https://arxiv.org/abs/1712.04248, algorithm 1 and figure 2 (course notes). It needs decisions only. With the
image x, the adversarial x* at distance d, and noise η orthogonal to x* − x of length δ d:

    s = x + (x* − x + η) / √(1 + δ²)        a step δ along the sphere of radius d around x
    c = s + ε d (x − s) / ‖x − s‖           a step ε towards x; the next x* if it is adversarial

The two step sizes adapt to each image: where half of the points s are adversarial the boundary looks flat, and δ is
right; where c succeeds too often ε is too small.

Differences from the paper: the start is brought to the boundary by bisection first; s is asked about at every tenth
step only, in place of c, so that a step costs one query (Foolbox asks about it there besides c).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int, Key

from dl_core.attacks.balls import distance, per_image, unit_step
from dl_core.attacks.checks import check_at_least, check_attack
from dl_core.attacks.decision import (
    UNLIMITED,
    Geometry,
    Oracle,
    Run,
    ask,
    begin,
    check_decision_options,
    find_starts,
    gap,
    in_bounds,
    step_keys,
    to_boundary,
    widen,
)
from dl_core.attacks.result import ApplyFn, AttackResult, choose
from dl_core.loops import while_loop

_SPHERE_EVERY = 10  # steps from one question about s to the next
_SPHERE_ANSWERS, _TOO_CURVED, _TOO_FLAT = 10, 0.2, 0.5  # answers, and shares of them at which both steps change
_SOURCE_ANSWERS, _TOO_FAR, _TOO_NEAR = 30, 0.1, 0.25  # likewise of c, at which the source step changes
_CONVERGED = 1e-7  # source step below which nothing is gained in float32
_START_TOLERANCE = 1e-3  # of the way from the image to its start


class _Tally(NamedTuple):
    """Answers since a step size was last looked at, for each image."""

    hits: Int[Array, " batch"]
    answers: Int[Array, " batch"]


class _Walk(NamedTuple):
    run: Run
    spherical_step: Float[Array, " batch"]
    source_step: Float[Array, " batch"]
    sphere: _Tally
    source: _Tally


def boundary(
    apply_fn: ApplyFn,
    params: Any,
    images: Float[Array, "batch ..."],
    labels: Int[Array, " batch"],
    *,
    key: Key[Array, "*batch"],
    max_queries: int | Int[Array, "*budgets"] = 5000,
    steps: int | None = None,
    starts: Float[Array, "batch ..."] | None = None,
    spherical_step: float = 0.01,
    source_step: float = 0.01,
    step_adaptation: float = 1.5,
    bounds: tuple[float, float] = (0.0, 1.0),
    target: int | Int[Array, " batch"] | None = None,
    norm: str = "l2",
    loop: str = "auto",
) -> AttackResult:
    """Boundary attack: the nearest adversarial image that a random walk finds, from decisions alone.

    A run with more steps or a larger budget continues the run with fewer, so that the images of `steps=0, 10, 100, …`
    with one key are a path. An image without a start has success False and is returned unchanged.

    Args:
      apply_fn: (params, images) -> logits, as in inference; only their argmax is used.
      params: pytree of everything that apply_fn needs; never changed.
      images: inside the bounds, e.g. [batch, height, width, channels].
      labels: the true classes.
      key: one key, or one for each image.
      max_queries: hard limit of forward passes for an image, >= 1; one, or one for each. It may be mapped over.
      steps: most steps, >= 0; None leaves it to the budget.
      starts: adversarial images to begin from; where one is not adversarial, or None is given, noise is tried, which
        rarely is of a given target.
      spherical_step: first δ, relative to the distance, > 0.
      source_step: first ε, relative to the distance, > 0.
      step_adaptation: factor by which they are multiplied or divided, > 1.
      bounds: smallest and largest value of an image.
      target: classes to be predicted instead; None is content with any wrong one.
      norm: "l2", the only one.
      loop: how the steps are driven; see `dl_core.loops`.

    Returns:
      AttackResult. Success without a step: the image was misclassified already, or the budget ended at the start.

    Raises:
      UsageError: see `check_attack`; nonsensical budgets, starts or step sizes.
    """
    problem = check_attack(
        apply_fn,
        params,
        images,
        labels,
        bounds=bounds,
        target=target,
        norm=norm,
        norms=("l2",),
        key=key,
        needs_key="the attack is a random walk",
    )
    check_decision_options(problem, max_queries, steps, starts, bounds, loop)
    check_at_least(0, spherical_step=spherical_step, source_step=source_step)
    check_at_least(1, step_adaptation=step_adaptation)
    oracle, run = begin(problem, max_queries, key, Geometry(norm, bounds))
    run = find_starts(oracle, starts, run, loop)
    run, _ = to_boundary(oracle, run, run.adversarial, run.active, _START_TOLERANCE, loop)
    full = lambda value: jnp.broadcast_to(jnp.asarray(value, run.distance.dtype), run.distance.shape)
    none = _Tally(jnp.zeros_like(run.steps), jnp.zeros_like(run.steps))
    walk = _Walk(run, full(spherical_step), full(source_step), none, none)
    step = Partial(_step, oracle, full(step_adaptation))
    most_steps = UNLIMITED if steps is None else steps
    return while_loop(Partial(_any_active), step, walk, max_steps=most_steps, loop=loop).run.result()


def _any_active(walk: _Walk) -> Bool[Array, ""]:
    return walk.run.active.any()


def _step(oracle: Oracle, adaptation: Float[Array, " batch"], walk: _Walk) -> _Walk:
    run = walk.run
    on_sphere, candidates = _propose(oracle, walk)
    asks_sphere = run.steps % _SPHERE_EVERY == _SPHERE_EVERY - 1
    decided, after = ask(oracle, run, choose(asks_sphere, on_sphere, candidates), run.active)
    both, sphere = _adapt(walk.sphere, decided, run.active & asks_sphere, _SPHERE_ANSWERS, _TOO_CURVED, _TOO_FLAT)
    one, source = _adapt(walk.source, decided, run.active & ~asks_sphere, _SOURCE_ANSWERS, _TOO_FAR, _TOO_NEAR)
    source_step = walk.source_step * adaptation ** (both + one)
    after = after._replace(active=after.active & (source_step > _CONVERGED), steps=run.steps + run.active)
    return _Walk(after, walk.spherical_step * adaptation**both, source_step, sphere, source)


def _propose(oracle: Oracle, walk: _Walk) -> tuple[Float[Array, "batch ..."], Float[Array, "batch ..."]]:
    """The points s and c of each image."""
    images, adversarial = widen(oracle.problem.images), widen(walk.run.adversarial)
    outward = adversarial - images
    draw = lambda key: jax.random.normal(key, images.shape[1:], images.dtype)
    noise = jax.vmap(draw)(step_keys(oracle, walk.run.steps))
    unit = unit_step(outward, "l2")
    axes = tuple(range(1, images.ndim))
    orthogonal = unit_step(noise - (noise * unit).sum(axis=axes, keepdims=True) * unit, "l2")
    length = distance(outward, "l2")
    sideways = per_image(walk.spherical_step * length, images) * orthogonal
    on_sphere = in_bounds(oracle, images + (outward + sideways) / per_image(jnp.hypot(1, walk.spherical_step), images))
    # clipping may have left the sphere: the step leads to the distance (1 - ε) d, and never away from the image
    reached = gap(oracle, on_sphere)
    nearer = jnp.minimum((1 - walk.source_step) * length / jnp.where(reached > 0, reached, 1), 1)
    candidates = in_bounds(oracle, images + per_image(jnp.maximum(nearer, 0), images) * (widen(on_sphere) - images))
    return on_sphere, candidates


def _adapt(
    tally: _Tally, hit: Bool[Array, " batch"], answered: Bool[Array, " batch"], enough: int, few: float, many: float
) -> tuple[Int[Array, " batch"], _Tally]:
    """Whether a step size is to grow (1), to shrink (-1) or to stay (0); counting starts anew once it is known."""
    hits, answers = tally.hits + (hit & answered), tally.answers + answered
    known = answers >= enough
    share = hits / jnp.maximum(answers, 1)
    change = jnp.where(known & (share > many), 1, jnp.where(known & (share < few), -1, 0))
    return change, _Tally(jnp.where(known, 0, hits), jnp.where(known, 0, answers))
