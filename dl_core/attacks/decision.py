"""What the decision-based attacks share: a budget of questions, a first adversarial point, the way to the boundary.

Such an attack sees one bit for each query: whether the model decides as the attack wants. Every query goes through
`ask`, which counts it, stops at the budget, and keeps the nearest adversarial image that has been seen. So the distance
never grows along a run, and a run with a larger budget is a continuation of one with a smaller budget.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int, Key

from dl_core.attacks.balls import distance, image_keys, per_image
from dl_core.attacks.checks import Problem, check_at_least, first_logits
from dl_core.attacks.result import AttackResult, choose, succeeded
from dl_core.errors import UsageError
from dl_core.loops import choose_driver, while_loop

MOST_DRAWS = 1000  # random images tried as a start, as in Foolbox
UNLIMITED = 2**31 - 1  # steps: every step of an active image asks, so that the budget ends the loop


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Geometry:
    """In which norm distances are measured, and the smallest and largest value of an image."""

    norm: str
    bounds: tuple[float, float]


class Oracle(NamedTuple):
    """The attacked model as something that answers questions.

    problem: what is attacked.
    max_queries: how many questions each image has.
    keys: one for each image.
    geometry: see there.
    """

    problem: Problem
    max_queries: Int[Array, " batch"]
    keys: Key[Array, " batch"]
    geometry: Geometry


class Run(NamedTuple):
    """How far an attack has come, for each image.

    active: goes on.
    adversarial: the nearest adversarial image so far; the original where there is none.
    distance: of it; infinite where there is none.
    queries, steps: so far.
    """

    active: Bool[Array, " batch"]
    adversarial: Float[Array, "batch ..."]
    distance: Float[Array, " batch"]
    queries: Int[Array, " batch"]
    steps: Int[Array, " batch"]

    def found(self) -> Bool[Array, " batch"]:
        """Whether there is an adversarial image."""
        return jnp.isfinite(self.distance)

    def result(self) -> AttackResult:
        """What the attack gives back; an image without an adversarial one is as it was."""
        found = self.found()
        return AttackResult(self.adversarial, found, jnp.where(found, self.distance, 0), self.queries, steps=self.steps)


def check_decision_options(
    problem: Problem,
    max_queries: int | Int[Array, "*budgets"],
    steps: int | None,
    starts: Float[Array, "batch ..."] | None,
    bounds: tuple[float, float],
    loop: str,
) -> None:
    """Refuses budgets and starting points that mean nothing.

    Args:
      problem: what is attacked.
      max_queries: the budget, one or one for each image.
      steps: most steps, or None.
      starts: adversarial images to begin from, or None.
      bounds: smallest and largest value of an image.
      loop: see `dl_core.loops`.

    Raises:
      UsageError: a budget below 1 or of a wrong shape; negative steps; starts of another shape or outside
        the bounds; an unknown loop.
    """
    choose_driver(loop)
    batch = len(problem.images)
    if jnp.shape(max_queries) not in ((), (batch,)) or not jnp.issubdtype(jnp.result_type(max_queries), jnp.integer):
        raise UsageError(
            f"max_queries must be a whole number, or one for each of the {batch} images, got {max_queries}; several "
            "budgets for every image are for jax.vmap"
        )
    if not isinstance(max_queries, Tracer) and np.size(max_queries):
        check_at_least(1, max_queries=int(np.min(np.asarray(max_queries))))
    if steps is not None:
        check_at_least(0, steps=steps)
    if starts is None:
        return
    if jnp.shape(starts) != problem.images.shape:
        raise UsageError(
            f"starts must be an image for each of the images, {list(problem.images.shape)}; "
            f"got shape {list(jnp.shape(starts))}"
        )
    if not isinstance(starts, Tracer) and getattr(starts, "is_fully_addressable", True) and np.size(starts):
        values = np.asarray(starts, np.float32)
        if not (bounds[0] - 1e-6 <= values.min() and values.max() <= bounds[1] + 1e-6):  # not a number fails as well
            raise UsageError(
                f"starts must lie in bounds={bounds}, got values from {values.min():.4g} to {values.max():.4g}"
            )


def begin(
    problem: Problem, max_queries: int | Int[Array, "*budgets"], key: Key[Array, "*batch"], geometry: Geometry
) -> tuple[Oracle, Run]:
    """Asks for the images as they are: those that the model gets wrong are adversarial at distance 0.

    Args:
      problem: what is attacked.
      max_queries: the budget, one or one for each image.
      key: one key, or one for each image.
      geometry: see there.

    Returns:
      The oracle, and the run after the first query.

    Raises:
      UsageError: the logits look like probabilities.
    """
    batch = len(problem.images)
    budget = jnp.broadcast_to(jnp.asarray(max_queries, jnp.int32), (batch,))
    oracle = Oracle(problem, budget, image_keys(key, batch), geometry)
    return oracle, _begin(oracle, first_logits(problem))


def ask(
    oracle: Oracle, run: Run, candidates: Float[Array, "batch ..."], wanted: Bool[Array, " batch"]
) -> tuple[Bool[Array, " batch"], Run]:
    """One question for each image where it is wanted and can be paid for.

    Args:
      oracle: who is asked.
      run: so far.
      candidates: images inside the bounds.
      wanted: for which images there is a question; the others are not counted.

    Returns:
      Where the candidate was asked about and is adversarial, and the run after it. An image is no longer active when
      its budget is spent.
    """
    problem = oracle.problem
    asked = wanted & run.active & (run.queries < oracle.max_queries)
    decided = asked & succeeded(problem.logits(candidates), problem.labels, problem.target)
    far = gap(oracle, candidates)
    nearer = decided & (far < run.distance)
    queries = run.queries + asked
    return decided, Run(
        active=run.active & (queries < oracle.max_queries),
        adversarial=choose(nearer, candidates, run.adversarial),
        distance=jnp.where(nearer, far, run.distance),
        queries=queries,
        steps=run.steps,
    )


def find_starts(oracle: Oracle, starts: Float[Array, "batch ..."] | None, run: Run, loop: str) -> Run:
    """A first adversarial image: the one given, else noise.

    The noise is uniform, first over the bounds, then between two random values: a network tends to put all images of
    one kind of noise into one class.

    Args:
      oracle: who is asked.
      starts: images to begin from; where one is missing or not adversarial, noise is tried.
      run: so far.
      loop: see `dl_core.loops`.

    Returns:
      The run. Images for which nothing was found, with the budget or with MOST_DRAWS tries, are no longer active.
    """
    if starts is not None:
        run = _try_starts(oracle, jnp.asarray(starts, oracle.problem.images.dtype), run)
    search = (run, jnp.zeros((), jnp.int32))
    run, _ = while_loop(Partial(_without_start), Partial(_try_noise, oracle), search, max_steps=MOST_DRAWS, loop=loop)
    return run._replace(active=run.active & run.found())


class _Bisection(NamedTuple):
    """Between an image (low) and an adversarial one (high), as fractions of the way, for each image.

    near: the adversarial image at `high`.
    """

    run: Run
    near: Float[Array, "batch ..."]
    low: Float[Array, " batch"]
    high: Float[Array, " batch"]
    undecided: Bool[Array, " batch"]


def to_boundary(
    oracle: Oracle,
    run: Run,
    far: Float[Array, "batch ..."],
    wanted: Bool[Array, " batch"],
    tolerance: float | Float[Array, ""],
    loop: str,
) -> tuple[Run, Float[Array, "batch ..."]]:
    """Bisects the way from each image to an adversarial one: a line in "l2", shrinking boxes in "linf".

    Args:
      oracle: who is asked.
      run: so far.
      far: adversarial images.
      wanted: for which images.
      tolerance: where to stop, as a fraction of the way.
      loop: see `dl_core.loops`.

    Returns:
      The run, and an adversarial image near the boundary; `far` where it is not wanted.
    """
    state = _open_bisection(oracle, run, far, wanted)
    step = Partial(_bisect, oracle, far, jnp.asarray(tolerance, run.distance.dtype))
    state = while_loop(Partial(_any_undecided), step, state, max_steps=64, loop=loop)  # floats have no 64th half
    return state.run, state.near


def gap(oracle: Oracle, candidates: Float[Array, "batch ..."]) -> Float[Array, " batch"]:
    """How far candidates are from the images, in at least float32.

    Args:
      oracle: with the images.
      candidates: changed images.

    Returns:
      Distances.
    """
    return distance(widen(candidates) - widen(oracle.problem.images), oracle.geometry.norm)


def widen(images: Float[Array, "..."]) -> Float[Array, "..."]:
    """In at least float32, so that a step between half-precision images is not rounded before it is taken.

    Args:
      images: any floats.

    Returns:
      Same shape.
    """
    return images.astype(jnp.promote_types(images.dtype, jnp.float32))


def in_bounds(oracle: Oracle, candidates: Float[Array, "batch ..."]) -> Float[Array, "batch ..."]:
    """Clipped to the bounds, in the dtype of the images: what the model can be asked about.

    Args:
      oracle: with the bounds.
      candidates: changed images.

    Returns:
      Images.
    """
    return jnp.clip(candidates, *oracle.geometry.bounds).astype(oracle.problem.images.dtype)


@jax.jit
def _begin(oracle: Oracle, logits: Float[Array, "batch classes"]) -> Run:
    problem = oracle.problem
    done = succeeded(logits, problem.labels, problem.target)
    counts = jnp.ones_like(problem.labels)
    wide = widen(problem.images).dtype
    return Run(
        active=~done & (counts < oracle.max_queries),
        adversarial=problem.images,
        distance=jnp.where(done, 0, jnp.inf).astype(wide),
        queries=counts,
        steps=jnp.zeros_like(counts),
    )


@jax.jit
def _try_starts(oracle: Oracle, starts: Float[Array, "batch ..."], run: Run) -> Run:
    return ask(oracle, run, in_bounds(oracle, starts), run.active)[1]


def _without_start(search: tuple[Run, Int[Array, ""]]) -> Bool[Array, ""]:
    run, _ = search
    return (run.active & ~run.found()).any()


def _try_noise(oracle: Oracle, search: tuple[Run, Int[Array, ""]]) -> tuple[Run, Int[Array, ""]]:
    run, drawn = search
    images = oracle.problem.images

    def draw(key: Key[Array, ""]) -> Float[Array, "..."]:
        interval_key, values_key = jax.random.split(jax.random.fold_in(key, 2 * drawn))  # odd numbers are for steps
        interval = jnp.sort(jax.random.uniform(interval_key, (2,)))
        lowest, highest = jnp.where(drawn == 0, jnp.array([0.0, 1.0]), interval)
        return lowest + (highest - lowest) * jax.random.uniform(values_key, images.shape[1:])

    smallest, largest = oracle.geometry.bounds
    noise = smallest + (largest - smallest) * jax.vmap(draw)(oracle.keys)
    return ask(oracle, run, in_bounds(oracle, noise), ~run.found())[1], drawn + 1


def step_keys(oracle: Oracle, steps: Int[Array, " batch"]) -> Key[Array, " batch"]:
    """A key for each image at each of its steps, none of them used for a start.

    Args:
      oracle: with the keys of the images.
      steps: number of the step.

    Returns:
      Keys.
    """
    return jax.vmap(jax.random.fold_in)(oracle.keys, 2 * steps + 1)


@jax.jit
def _open_bisection(
    oracle: Oracle, run: Run, far: Float[Array, "batch ..."], wanted: Bool[Array, " batch"]
) -> _Bisection:
    del oracle
    zeros = jnp.zeros_like(run.distance)
    return _Bisection(run, far, zeros, zeros + 1, wanted & run.active)


def _any_undecided(state: Any) -> Bool[Array, ""]:
    return state.undecided.any()


def _bisect(
    oracle: Oracle, far: Float[Array, "batch ..."], tolerance: Float[Array, ""], state: _Bisection
) -> _Bisection:
    images = widen(oracle.problem.images)
    way = widen(far) - images
    middle = (state.low + state.high) / 2
    if oracle.geometry.norm == "linf":
        radius = per_image(middle * distance(way, "linf"), images)
        candidates = images + jnp.clip(way, -radius, radius)
    else:
        candidates = images + per_image(middle, images) * way
    candidates = in_bounds(oracle, candidates)
    decided, run = ask(oracle, state.run, candidates, state.undecided)
    answered = run.queries > state.run.queries
    low = jnp.where(answered & ~decided, middle, state.low)
    high = jnp.where(decided, middle, state.high)
    finer = (high - low > tolerance) & (low < (low + high) / 2) & ((low + high) / 2 < high)
    near = choose(decided, candidates, state.near)
    return _Bisection(run, near, low, high, state.undecided & run.active & finer)
