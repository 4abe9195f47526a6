"""HopSkipJump: the direction of the boundary estimated from decisions, then a long step, then bisection.

Chen, Jordan, Wainwright (2020), "HopSkipJumpAttack: A Query-Efficient Decision-Based Attack",
https://arxiv.org/abs/1904.02144, algorithms 1 and 2. At an adversarial point x* near the boundary, at distance d from
the image, with φ = 1 for an adversarial decision and −1 for another, and random unit vectors u_b:

    ∇S ≈ mean over b of (φ(x* + δ u_b) − mean φ) u_b        equation 16; B₀ √t of them in iteration t = 1, 2, …
    x* ← x* + ξ v,  v = ∇S / ‖∇S‖₂  or  sign(∇S)            ξ = d / √t, halved until the step is adversarial
    x* ← bisected between the image and x*, to a tolerance θ of the way

δ = γ d / n for n values, θ = γ / n^{3/2} in "l2" and γ / n² in "linf". As in Foolbox, a direction is measured after
clipping to the bounds.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int, Key

from dl_core.attacks.balls import per_image, unit_step
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
from dl_core.attacks.result import ApplyFn, AttackResult, choose, succeeded
from dl_core.explain.pieces import variants_at_once
from dl_core.loops import choose_driver, while_loop

_MOST_HALVINGS = 20  # of a step; what is shorter than a millionth of the distance leads nowhere


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _AtOnce:
    """How many directions of one image are asked about at once."""

    directions: int


class _Hop(NamedTuple):
    """Where the walk is, for each image; `run` keeps the nearest point, which may be an earlier one.

    current: near the boundary, adversarial.
    """

    run: Run
    current: Float[Array, "batch ..."]


class _Estimate(NamedTuple):
    """Sums over the directions asked about so far, for each image.

    decisions: of φ.
    directions, products: of u and φ u.
    asked, wanted: how many directions, and how many there shall be.
    """

    current: Float[Array, "batch ..."]
    radius: Float[Array, " batch"]
    keys: Key[Array, " batch"]
    decisions: Int[Array, " batch"]
    directions: Float[Array, "batch ..."]
    products: Float[Array, "batch ..."]
    asked: Int[Array, " batch"]
    wanted: Int[Array, " batch"]


class _Jump(NamedTuple):
    """The search for a step that stays adversarial, for each image.

    length: of the step tried next.
    reached: the adversarial point that a step led to.
    undecided, landed: the search goes on; it has ended well.
    """

    run: Run
    length: Float[Array, " batch"]
    reached: Float[Array, "batch ..."]
    undecided: Bool[Array, " batch"]
    landed: Bool[Array, " batch"]


def hop_skip_jump(
    apply_fn: ApplyFn,
    params: Any,
    images: Float[Array, "batch ..."],
    labels: Int[Array, " batch"],
    *,
    key: Key[Array, "*batch"],
    max_queries: int | Int[Array, "*budgets"] = 5000,
    steps: int | None = None,
    initial_gradient_queries: int = 100,
    max_gradient_queries: int = 10_000,
    gamma: float = 1.0,
    starts: Float[Array, "batch ..."] | None = None,
    bounds: tuple[float, float] = (0.0, 1.0),
    target: int | Int[Array, " batch"] | None = None,
    norm: str = "l2",
    internal_batch_size: int | None = None,
    loop: str = "auto",
) -> AttackResult:
    """HopSkipJump: the nearest adversarial image found from decisions alone, by estimated gradients of the boundary.

    An image stops where its budget does not pay for the next gradient. So a run with more steps or a larger budget
    continues the run with fewer, and never does worse. An image without a start has success False and is returned
    unchanged.

    Args:
      apply_fn: (params, images) -> logits, as in inference; only their argmax is used.
      params: pytree of everything that apply_fn needs; never changed.
      images: inside the bounds, e.g. [batch, height, width, channels].
      labels: the true classes.
      key: one key, or one for each image.
      max_queries: hard limit of forward passes for an image, >= 1; one, or one for each. It may be mapped over.
      steps: most iterations, >= 0; None leaves it to the budget.
      initial_gradient_queries: B₀, directions of the first iteration, >= 1.
      max_gradient_queries: most directions of any iteration, >= 1.
      gamma: γ, > 0: more for a boundary that is rough, or for so many values that δ is lost in rounding.
      starts: adversarial images to begin from; where one is not adversarial, or None is given, noise is tried, which
        rarely is of a given target.
      bounds: smallest and largest value of an image.
      target: classes to be predicted instead; None is content with any wrong one.
      norm: "l2" or "linf".
      internal_batch_size: most rows (images × directions) that apply_fn is given at once; None bounds memory by itself.
        The directions are the same for any.
      loop: how the steps are driven; see `dl_core.loops`.

    Returns:
      AttackResult. Success without a step: the image was misclassified already, or the budget ended at the start.

    Raises:
      UsageError: see `check_attack`; nonsensical budgets, starts or counts.
    """
    problem = check_attack(
        apply_fn,
        params,
        images,
        labels,
        bounds=bounds,
        target=target,
        norm=norm,
        norms=("l2", "linf"),
        key=key,
        needs_key="the directions are random",
    )
    check_decision_options(problem, max_queries, steps, starts, bounds, loop)
    check_at_least(1, initial_gradient_queries=initial_gradient_queries, max_gradient_queries=max_gradient_queries)
    check_at_least(0, gamma=gamma)
    first = min(initial_gradient_queries, max_gradient_queries)
    at_once = _AtOnce(variants_at_once(internal_batch_size, images, first))
    driver = choose_driver(loop, problem, key, max_queries, starts)

    oracle, run = begin(problem, max_queries, key, Geometry(norm, bounds))
    run = find_starts(oracle, starts, run, loop)
    n = max(1, images[0].size)
    γ = jnp.asarray(gamma, run.distance.dtype)
    θ = γ / (float(n) ** 2 if norm == "linf" else float(n) ** 1.5)
    run, current = to_boundary(oracle, run, run.adversarial, run.active, θ, loop)
    counts = jnp.asarray([initial_gradient_queries, max_gradient_queries], jnp.int32)
    hop = _Hop(run, current)
    most_steps = UNLIMITED if steps is None else steps
    step = Partial(_iterate, at_once, oracle, counts, γ / n, θ)
    if driver != "host":
        return while_loop(Partial(_any_active), step, hop, max_steps=most_steps, loop="compiled").run.result()
    for _ in range(most_steps):  # its inner loops are driven by the host too, so that nothing is a loop in a program
        if not bool(hop.run.active.any()):
            break
        hop = step(hop, loop="host")
    return hop.run.result()


def _any_active(hop: _Hop) -> Bool[Array, ""]:
    return hop.run.active.any()


def _iterate(
    at_once: _AtOnce,
    oracle: Oracle,
    counts: Int[Array, " 2"],
    relative_radius: Float[Array, ""],
    tolerance: Float[Array, ""],
    hop: _Hop,
    loop: str = "compiled",
) -> _Hop:
    """One iteration: gradient, step, bisection."""
    hop, estimate = _open_estimate(oracle, counts, relative_radius, hop)
    add = Partial(_add_directions, at_once, oracle)
    estimate = while_loop(Partial(_any_wanted), add, estimate, max_steps=UNLIMITED, loop=loop)
    jump, update = _open_jump(oracle, hop, estimate)
    try_step = Partial(_try_step, oracle, hop.current, update)
    jump = while_loop(Partial(_any_undecided), try_step, jump, max_steps=_MOST_HALVINGS, loop=loop)
    run, current = to_boundary(oracle, jump.run, jump.reached, jump.landed, tolerance, loop)
    return _close(hop, run, current)


@jax.jit
def _open_estimate(
    oracle: Oracle, counts: Int[Array, " 2"], relative_radius: Float[Array, ""], hop: _Hop
) -> tuple[_Hop, _Estimate]:
    """Images that cannot pay for this gradient and one step along it are no longer active; the others pay for it."""
    run, iteration = hop.run, hop.run.steps + 1
    smallest, largest = oracle.geometry.bounds
    later = relative_radius * gap(oracle, hop.current)
    radius = jnp.where(iteration == 1, 0.1 * (largest - smallest), later)
    grown = jnp.floor(counts[0] * jnp.sqrt(iteration.astype(jnp.float32))).astype(jnp.int32)
    directions = jnp.minimum(grown, counts[1])
    active = run.active & (run.queries + directions < oracle.max_queries)
    wanted = jnp.where(active, directions, 0)
    zeros = jnp.zeros_like(widen(hop.current))
    keys = step_keys(oracle, run.steps)
    none = jnp.zeros_like(wanted)
    estimate = _Estimate(hop.current, radius, keys, none, zeros, zeros, none, wanted)
    return hop._replace(run=run._replace(active=active, queries=run.queries + wanted)), estimate


def _any_wanted(estimate: _Estimate) -> Bool[Array, ""]:
    return (estimate.asked < estimate.wanted).any()


def _add_directions(at_once: _AtOnce, oracle: Oracle, estimate: _Estimate) -> _Estimate:
    """Asks about the next directions of each image, all images and directions as one batch."""
    problem, number = oracle.problem, at_once.directions
    current = widen(estimate.current)
    batch, shape = len(current), current.shape[1:]
    indices = estimate.asked[:, None] + jnp.arange(number, dtype=jnp.int32)[None]
    counted = indices < estimate.wanted[:, None]

    def draw(key: Key[Array, ""], index: Int[Array, ""]) -> Float[Array, "..."]:
        one = jax.random.fold_in(key, index)  # so that the directions do not depend on how many are asked at once
        if oracle.geometry.norm == "linf":
            return jax.random.uniform(one, shape, current.dtype, -1, 1)
        return jax.random.normal(one, shape, current.dtype)

    noise = jax.vmap(jax.vmap(draw, (None, 0)))(estimate.keys, indices).reshape(-1, *shape)
    repeated = jnp.repeat(current, number, axis=0)
    radius = per_image(jnp.repeat(estimate.radius, number), noise)
    asked_about = in_bounds(oracle, repeated + radius * unit_step(noise, "l2"))
    directions = (widen(asked_about) - repeated) / jnp.where(radius > 0, radius, 1)
    labels, target = jax.tree.map(lambda classes: jnp.repeat(classes, number), (problem.labels, problem.target))
    decided = succeeded(problem.logits(asked_about), labels, target)
    φ = jnp.where(counted, jnp.where(decided.reshape(batch, number), 1, -1), 0)
    directions = directions.reshape(batch, number, -1)
    total = lambda weights: jnp.einsum("bk,bkn->bn", weights.astype(directions.dtype), directions).reshape(
        current.shape
    )
    return estimate._replace(
        decisions=estimate.decisions + φ.sum(axis=1),
        directions=estimate.directions + total(counted),
        products=estimate.products + total(φ),
        asked=jnp.minimum(estimate.asked + number, estimate.wanted),
    )


@jax.jit
def _open_jump(oracle: Oracle, hop: _Hop, estimate: _Estimate) -> tuple[_Jump, Float[Array, "batch ..."]]:
    """The first step to be tried, and its direction."""
    mean = estimate.decisions / jnp.maximum(estimate.wanted, 1)
    # where all decisions are the same, the mean is no control variate: nothing would be left
    baseline = jnp.where(jnp.abs(mean) < 1, mean, 0).astype(estimate.products.dtype)
    gradient = estimate.products - per_image(baseline, estimate.products) * estimate.directions
    update = unit_step(gradient, oracle.geometry.norm)
    iteration = (hop.run.steps + 1).astype(hop.run.distance.dtype)
    length = gap(oracle, hop.current) / jnp.sqrt(iteration)
    active = hop.run.active
    return _Jump(hop.run, length, hop.current, active, jnp.zeros_like(active)), update


def _any_undecided(jump: _Jump) -> Bool[Array, ""]:
    return jump.undecided.any()


def _try_step(
    oracle: Oracle, current: Float[Array, "batch ..."], update: Float[Array, "batch ..."], jump: _Jump
) -> _Jump:
    candidates = in_bounds(oracle, widen(current) + per_image(jump.length, update) * update)
    decided, run = ask(oracle, jump.run, candidates, jump.undecided)
    return _Jump(
        run=run,
        length=jump.length / 2,
        reached=choose(decided, candidates, jump.reached),
        undecided=jump.undecided & ~decided & run.active,
        landed=jump.landed | decided,
    )


@jax.jit
def _close(hop: _Hop, run: Run, current: Float[Array, "batch ..."]) -> _Hop:
    return _Hop(run._replace(steps=run.steps + hop.run.active), choose(hop.run.active, current, hop.current))
