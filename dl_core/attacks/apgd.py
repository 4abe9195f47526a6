"""Auto-PGD: projected gradient ascent that chooses its own step size.

Croce, Hein (2020), "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks",
https://arxiv.org/abs/2003.01690, section 3 and algorithm 1. With P the projection and η the step size of the image,

    z = P(xᵏ + η s(∇L(xᵏ)))        xᵏ⁺¹ = P(xᵏ + 0.75 (z − xᵏ) + 0.25 (xᵏ − xᵏ⁻¹))

η begins with 2 eps. At checkpoints, which become denser, it is halved for the images whose loss rose in at most 3/4 of
the steps since the last one, or whose best loss and η have both not changed since; these go on from their best point.
For "l1", Croce, Hein (2021), "Mind the box: l1-APGD for sparse adversarial attacks on image classifiers",
https://arxiv.org/abs/2103.01208 (without its first stages of a larger eps): no momentum, steps along the largest values
of the gradient, fewer of them as the best perturbation becomes sparser, and the exact projection.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int, Key

from dl_core.attacks.balls import distance, image_keys, per_image, project, random_in_ball, unit_step
from dl_core.attacks.box_projection import project_l1_ball
from dl_core.attacks.checks import Problem, check_at_least, check_attack, first_logits
from dl_core.attacks.objectives import LossFn, objective
from dl_core.attacks.result import ApplyFn, AttackResult, choose, succeeded
from dl_core.attacks.targets import check_num_targets, run_targets
from dl_core.errors import UsageError
from dl_core.loops import while_loop


def apgd(
    apply_fn: ApplyFn,
    params: Any,
    images: Float[Array, "batch ..."],
    labels: Int[Array, " batch"],
    *,
    key: Key[Array, "*batch"] | None = None,
    eps: float | Float[Array, ""] | Float[Array, " batch"],
    bounds: tuple[float, float] = (0.0, 1.0),
    target: int | Int[Array, " batch"] | None = None,
    norm: str = "linf",
    loss: str | LossFn = "cross_entropy",
    steps: int = 100,
    restarts: int = 1,
    num_targets: int | None = None,
    start: Float[Array, "batch ..."] | None = None,
    early_stop: bool = True,
    loop: str = "auto",
) -> AttackResult:
    """Auto-PGD, and with `num_targets` APGD-T: the two gradient attacks of AutoAttack's ensemble.

    Args:
      apply_fn: (params, images) -> logits, as in inference, normalisation included.
      params: pytree of everything that apply_fn needs; never changed.
      images: inside the bounds, e.g. [batch, height, width, channels].
      labels: the true classes.
      key: for the random starts; may be missing where `start` is given and there is one run.
      eps: radius of the ball in the units of the images, >= 0; one number, or one for each image.
      bounds: smallest and largest value of an image.
      target: classes to be predicted instead; None is content with any wrong one.
      norm: "linf", "l2" or "l1".
      loss: what is raised, see `dl_core.attacks.objectives`.
      steps: of a run, >= 1; each costs one gradient.
      restarts: runs (of each target), each from another point of the ball, >= 1.
      num_targets: aims at so many of the likeliest wrong classes of each image, one after another, and is content with
        any wrong prediction; at most classes − 1 of them. AutoAttack's APGD-T is loss="dlr", num_targets=9.
      start: images from which the first run starts, projected into the ball; None draws it.
      early_stop: an image is done as soon as it succeeds. False goes on to raise the loss: the result is the success
        of the largest loss.
      loop: see `dl_core.loops`.

    Returns:
      AttackResult. Where nothing succeeded, `adversarial` is the point of the largest loss.

    Raises:
      UsageError: steps, restarts or num_targets below 1; target and num_targets together; a start of another shape; see
        `dl_core.attacks.checks.check_attack`.
    """
    check_at_least(1, steps=steps, restarts=restarts)
    check_num_targets(num_targets, target)
    runs_drawn = restarts * (num_targets or 1) - (start is not None)
    problem = check_attack(
        apply_fn,
        params,
        images,
        labels,
        bounds=bounds,
        eps=eps,
        target=target,
        norm=norm,
        loss=loss,
        key=key,
        needs_key="every run starts at a random point" if runs_drawn else "",
    )
    if start is not None and start.shape != images.shape:
        raise UsageError(f"start must have the shape of the images, {list(images.shape)}, got {list(start.shape)}")
    logits = first_logits(problem)
    if num_targets is not None and loss == "dlr" and logits.shape[1] < 4:
        raise UsageError(
            f'loss="dlr" with num_targets compares 4 logits, the model has {logits.shape[1]}; use loss="margin"'
        )
    keys = None if key is None else image_keys(key, len(images))
    setting = _Setting(
        problem,
        keys,
        jnp.broadcast_to(jnp.asarray(eps, images.dtype), (len(images),)),
        run_targets(logits, problem, num_targets),
        _Schedule.of(steps, restarts, norm),
        None if start is None else jnp.asarray(start, images.dtype),
    )
    options = _Options(norm, (float(bounds[0]), float(bounds[1])), loss, early_stop)
    runs = restarts * (1 if setting.targets is None else setting.targets.shape[1])
    state = _begin(options, setting, logits)
    state = while_loop(
        Partial(_any_active), Partial(_step, options, setting), state, max_steps=(steps + 1) * runs, loop=loop
    )
    return _result(options, setting, state)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Options:
    norm: str
    bounds: tuple[float, float]
    loss: str | LossFn
    early_stop: bool


class _Schedule(NamedTuple):
    """Numbers of steps, as arrays: another number of them compiles nothing.

    steps: of a run.
    restarts: runs of each target.
    first, less, least: the steps to the first checkpoint, by how much fewer they become, and the fewest.
    """

    steps: Int[Array, ""]
    restarts: Int[Array, ""]
    first: Int[Array, ""]
    less: Int[Array, ""]
    least: Int[Array, ""]

    @classmethod
    def of(cls, steps: int, restarts: int, norm: str) -> "_Schedule":
        parts = (0.04, 0.0, 0.04) if norm == "l1" else (0.22, 0.03, 0.06)
        first, less, least = (max(int(part * steps), 1) for part in parts)
        return cls(*map(jnp.int32, (steps, restarts, first, less, least)))


class _Setting(NamedTuple):
    """What stays during the attack."""

    problem: Problem
    keys: Key[Array, " batch"] | None
    eps: Float[Array, " batch"]
    targets: Int[Array, "batch targets"] | None
    schedule: _Schedule
    start: Float[Array, "batch ..."] | None


class _Run(NamedTuple):
    """Where a run stands, for each image.

    current: the point to be looked at next.
    previous: the point before it.
    best, ascent: the best point so far, and its gradient; a success before a failure, then the larger loss.
    best_loss, found: its loss, and whether it is a success.
    last_loss: of the point before.
    size: of the steps, η.
    step: steps taken, the number of the current point.
    since, period: steps since the last checkpoint, and from it to the next.
    rises, improved: how often the loss rose since, and whether the best did.
    reduced: whether the size was reduced at the last checkpoint.
    moving, support: "l1": the share of the values that a step moves, and how many the best perturbation had changed.
    """

    current: Float[Array, "batch ..."]
    previous: Float[Array, "batch ..."]
    best: Float[Array, "batch ..."]
    ascent: Float[Array, "batch ..."]
    best_loss: Float[Array, " batch"]
    found: Bool[Array, " batch"]
    last_loss: Float[Array, " batch"]
    size: Float[Array, " batch"]
    step: Int[Array, " batch"]
    since: Int[Array, " batch"]
    period: Int[Array, " batch"]
    rises: Int[Array, " batch"]
    improved: Bool[Array, " batch"]
    reduced: Bool[Array, " batch"]
    moving: Float[Array, " batch"]
    support: Float[Array, " batch"]


class _State(NamedTuple):
    """The run that goes on, and what all runs before it found and cost, for each image."""

    run: _Run
    number: Int[Array, " batch"]
    active: Bool[Array, " batch"]
    adversarial: Float[Array, "batch ..."]
    success: Bool[Array, " batch"]
    loss: Float[Array, " batch"]
    queries: Int[Array, " batch"]
    steps: Int[Array, " batch"]


@jax.jit
def _begin(options: _Options, setting: _Setting, logits: Float[Array, "batch classes"]) -> _State:
    problem, images = setting.problem, setting.problem.images
    done = succeeded(logits, problem.labels, problem.target)
    zeros = jnp.zeros_like(problem.labels)
    first = _draw(options, setting, zeros) if setting.start is None else _project(options, setting, setting.start)
    return _State(
        run=_new_run(options, setting, first, logits.dtype),
        number=zeros,
        active=~done,
        adversarial=images,
        success=done,
        loss=jnp.full(len(images), -jnp.inf, logits.dtype),
        queries=zeros + 1,
        steps=zeros,
    )


def _any_active(state: _State) -> Bool[Array, ""]:
    return state.active.any()


def _step(options: _Options, setting: _Setting, state: _State) -> _State:
    """Looks at the current point of every run, learns from it, and proposes the next."""
    problem, schedule = setting.problem, setting.schedule
    runs = schedule.restarts * (1 if setting.targets is None else setting.targets.shape[1])
    if setting.targets is None:
        target = None
    else:
        target = jnp.take_along_axis(setting.targets, (state.number // schedule.restarts)[:, None], axis=1)[:, 0]

    def gain(images: Float[Array, "batch ..."]) -> tuple[Float[Array, ""], Any]:
        logits = problem.logits(images)
        losses = objective(logits, problem.labels, target, options.loss)
        return losses.sum(), (losses, succeeded(logits, problem.labels, problem.target))

    ascent, (losses, success) = jax.grad(gain, has_aux=True)(state.run.current)
    run = _learn(state.run, losses.astype(state.loss.dtype), success, ascent)
    over = (run.step >= schedule.steps) | (options.early_stop & run.found)
    won = over & _better(run.found, run.best_loss, state.success, state.loss)
    number = state.number + over
    active = ~over | ((number < runs) & ~(options.early_stop & run.found))
    after = _advance(options, setting, run, ascent)
    if setting.keys is not None:  # without keys there is one run
        again = over & active
        draw = lambda: choose(
            again, _new_run(options, setting, _draw(options, setting, number), state.loss.dtype), after
        )
        after = jax.lax.cond(again.any(), draw, lambda: after)
    new = _State(
        run=after,
        number=number,
        active=active,
        adversarial=choose(won, run.best, state.adversarial),
        success=state.success | (over & run.found),
        loss=jnp.where(won, run.best_loss, state.loss),
        queries=state.queries + 1,
        steps=state.steps + (run.step > 0),
    )
    return choose(state.active, new, state)


def _better(found: Any, loss: Any, found_before: Any, loss_before: Any) -> Bool[Array, " batch"]:
    """A success before a failure, then the larger loss."""
    return (found & ~found_before) | ((found == found_before) & (loss > loss_before))


def _learn(
    run: _Run, losses: Float[Array, " batch"], success: Bool[Array, " batch"], ascent: Float[Array, "batch ..."]
) -> _Run:
    """The run after a look at its current point."""
    later = run.step > 0
    won = ~later | _better(success, losses, run.found, run.best_loss)
    return run._replace(
        best=choose(won, run.current, run.best),
        ascent=choose(won, ascent, run.ascent),
        best_loss=jnp.where(won, losses, run.best_loss),
        found=jnp.where(won, success, run.found),
        last_loss=losses,
        since=run.since + later,
        rises=run.rises + (later & (losses > run.last_loss)),
        improved=run.improved | (later & won),
    )


def _advance(options: _Options, setting: _Setting, run: _Run, ascent: Float[Array, "batch ..."]) -> _Run:
    """The run with its next point, after the checkpoint where there is one."""
    check = run.since >= run.period
    if options.norm == "l1":
        back, run = _adapt_sparsity(setting, run, check)
    else:
        # at most, as in the authors' program; the paper writes less than
        oscillates = run.rises <= 0.75 * run.period
        back = check & (oscillates | (~run.reduced & ~run.improved))
        run = run._replace(size=jnp.where(back, run.size / 2, run.size))
    base, ascent = choose(back, (run.best, run.ascent), (run.current, ascent))
    size = per_image(run.size, base)
    if options.norm == "l1":
        following = _project(options, setting, base + size * _sparse_step(ascent, run.moving))
    else:
        stepped = _project(options, setting, base + size * unit_step(ascent, options.norm))
        share = per_image(jnp.where(run.step == 0, 1, 0.75).astype(base.dtype), base)
        following = base + share * (stepped - base) + (1 - share) * (base - run.previous)
        following = _project(options, setting, following)
    schedule = setting.schedule
    return run._replace(
        current=following,
        previous=base,
        step=run.step + 1,
        since=jnp.where(check, 0, run.since),
        period=jnp.where(check, jnp.maximum(run.period - schedule.less, schedule.least), run.period),
        rises=jnp.where(check, 0, run.rises),
        improved=run.improved & ~check,
        reduced=jnp.where(check, back, run.reduced),
    )


def _adapt_sparsity(setting: _Setting, run: _Run, check: Bool[Array, " batch"]) -> tuple[Bool[Array, " batch"], _Run]:
    """Which runs go back to their best point, and the runs with the sparsity and the size of their steps adapted."""
    images, eps = setting.problem.images, setting.eps
    changed = (run.best != images).reshape(len(images), -1).sum(axis=1).astype(run.support.dtype)
    sparser = changed < 0.95 * run.support
    size = jnp.where(sparser, eps, jnp.clip(run.size / 1.5, eps / 10, eps))
    adapted = run._replace(size=size, moving=changed / (1.5 * images[0].size), support=changed)
    return check & sparser, choose(check, adapted, run)


def _sparse_step(ascent: Float[Array, "batch ..."], moving: Float[Array, " batch"]) -> Float[Array, "batch ..."]:
    """Of length 1 in "l1": the signs of the share of the values with the largest gradients, at least one of them."""
    lengths = jnp.abs(ascent.reshape(len(ascent), -1))
    size = lengths.shape[1]
    first = jnp.clip(((1 - moving) * size).astype(jnp.int32), 0, size - 1)
    least = jnp.take_along_axis(jnp.sort(lengths, axis=1), first[:, None], axis=1)
    signs = jnp.where(lengths >= least, jnp.sign(ascent.reshape(lengths.shape)), 0)
    return (signs / jnp.maximum(jnp.abs(signs).sum(axis=1, keepdims=True), 1)).reshape(ascent.shape)


def _project(options: _Options, setting: _Setting, points: Float[Array, "batch ..."]) -> Float[Array, "batch ..."]:
    images = setting.problem.images
    if options.norm != "l1":
        return project(points, images, setting.eps, options.bounds, options.norm)
    flat = images.reshape(len(images), -1)
    inside = flat + project_l1_ball(points.reshape(flat.shape) - flat, flat, setting.eps, options.bounds)
    return jnp.clip(inside, *options.bounds).reshape(images.shape)  # the sum may be rounded to outside


def _draw(options: _Options, setting: _Setting, number: Int[Array, " batch"]) -> Float[Array, "batch ..."]:
    """Where the runs of these numbers start."""
    assert setting.keys is not None
    keys = jax.vmap(jax.random.fold_in)(setting.keys, number)
    images = setting.problem.images
    return _project(options, setting, images + random_in_ball(keys, images, setting.eps, options.norm))


def _new_run(options: _Options, setting: _Setting, first: Float[Array, "batch ..."], loss_dtype: Any) -> _Run:
    """Begins at a point. What belongs to a best point is replaced when the first one is looked at."""
    batch, values = len(first), first[0].size
    zeros, false = jnp.zeros(batch, jnp.int32), jnp.zeros(batch, bool)
    whole = jnp.ones(batch, setting.eps.dtype)
    return _Run(
        current=first,
        previous=first,
        best=first,
        ascent=jnp.zeros_like(first),
        best_loss=jnp.full(batch, -jnp.inf, loss_dtype),
        found=false,
        last_loss=jnp.zeros(batch, loss_dtype),
        size=setting.eps if options.norm == "l1" else 2 * setting.eps,
        step=zeros,
        since=zeros,
        period=zeros + setting.schedule.first,
        rises=zeros,
        improved=false,
        reduced=~false,
        moving=0.2 * whole,
        support=values * whole,
    )


@jax.jit
def _result(options: _Options, setting: _Setting, state: _State) -> AttackResult:
    return AttackResult(
        adversarial=state.adversarial,
        success=state.success,
        distance=distance(state.adversarial - setting.problem.images, options.norm),
        queries=state.queries,
        steps=state.steps,
    )
