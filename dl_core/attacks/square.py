"""Square attack: a random search that sees nothing but the scores, one query a step.

Andriushchenko, Croce, Flammarion, Hein (2020), "Square Attack: a query-efficient black-box adversarial attack via
random search", https://arxiv.org/abs/1912.00049. A step proposes to change the pixels of one random square, and keeps
the change if the loss rises. The squares shrink as the budget is used up: at step i of N one covers the share
p(i) = p_init / 2ᵏ of the image, where k grows at i = 10, 50, 200, 500, 1000, 2000, 4000, 6000 and 8000 of 10,000.

    "linf"  starts with vertical stripes of ±eps; a square takes one of ±eps for each channel, so that every
            perturbation is ±eps.
    "l2"    starts with a chequered pattern of length eps; one square is given the mass of another, and what the bounds
            had taken away, in a pattern of two bumps of opposite signs (algorithm 3; the bumps are equation 2).

Squares lie anywhere in the image, its last row and column included (those the authors' program leaves out).
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

from dl_core.attacks.balls import distance, image_keys, per_image
from dl_core.attacks.checks import Problem, check_at_least, check_attack, first_logits
from dl_core.attacks.objectives import LossFn, objective
from dl_core.attacks.result import ApplyFn, AttackResult, choose, succeeded
from dl_core.errors import UsageError
from dl_core.loops import while_loop

_SHRINK_AT = np.array([10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000], np.float32) / 10_000  # shares of the budget
_SEGMENT = 25  # steps between two looks from the host at how many images are still being attacked
_WORTHWHILE = 500  # steps to come for which a smaller batch is compiled


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Options:
    norm: str
    loss: str | LossFn
    bounds: tuple[float, float]


class _Search(NamedTuple):
    """What stays as it is during the search; arrays have one entry for each image, or no axes."""

    problem: Problem
    keys: Key[Array, " batch"]
    eps: Float[Array, " batch"]
    p_init: Float[Array, ""]
    run_length: Int[Array, ""]


class _State(NamedTuple):
    """step: queries since the first. current, value: of this run. best, best_value: of all runs."""

    step: Int[Array, ""]
    current: Float[Array, "batch height width channels"]
    value: Float[Array, " batch"]
    best: Float[Array, "batch height width channels"]
    best_value: Float[Array, " batch"]
    active: Bool[Array, " batch"]
    queries: Int[Array, " batch"]


def square(
    apply_fn: ApplyFn,
    params: Any,
    images: Float[Array, "batch height width channels"],
    labels: Int[Array, " batch"],
    *,
    key: Key[Array, "*batch"],
    eps: float | Float[Array, ""] | Float[Array, " batch"],
    norm: str = "linf",
    max_queries: int = 5000,
    p_init: float | Float[Array, ""] = 0.8,
    loss: str | LossFn = "margin",
    restarts: int = 1,
    target: int | Int[Array, " batch"] | None = None,
    bounds: tuple[float, float] = (0.0, 1.0),
    loop: str = "auto",
    progress: Callable[[int, int], None] | None = None,
) -> AttackResult:
    """Square attack: random search over squares by scores alone, within a hard budget of queries.

    Args:
      apply_fn: (params, images) -> logits, as in inference, normalisation included. It is never differentiated.
      params: pytree of everything that apply_fn needs; never changed.
      images: inside the bounds.
      labels: the true classes.
      key: one key, or one for each image.
      eps: radius of the ball in the units of the images, >= 0; one number, or one for each image.
      norm: "linf" or "l2".
      max_queries: of each image, >= 1, over all restarts together; the first query asks for the image as it is.
      p_init: share of the image that the first squares cover, in (0, 1]; 0.8 as in AutoAttack.
      loss: what is raised, see `dl_core.attacks.objectives`.
      restarts: >= 1; how many runs share the budget, each with the whole schedule of sizes.
      target: classes to be predicted instead; None is content with any wrong one.
      bounds: smallest and largest value of an image.
      loop: "auto", "compiled" or "host", see `dl_core.loops`.
      progress: called now and then with (queries asked, max_queries); not inside of `jit`.

    Returns:
      AttackResult; where the attack fails, the image is the one of highest loss. The steps are all queries but the
      first.

    Raises:
      UsageError: see `dl_core.attacks.checks.check_attack`; images that are not [batch, height, width, channels], an
        option out of its range, or fewer queries than runs.
    """
    problem = check_attack(
        apply_fn,
        params,
        images,
        labels,
        eps=eps,
        bounds=bounds,
        target=target,
        norm=norm,
        norms=("linf", "l2"),
        loss=loss,
        key=key,
        needs_key="the squares are drawn",
    )
    if images.ndim != 4:
        raise UsageError(f"images must be [batch, height, width, channels], got {list(images.shape)}")
    check_at_least(1, max_queries=max_queries, restarts=restarts)
    if not isinstance(p_init, Tracer) and not 0 < p_init <= 1:
        raise UsageError(f"p_init must lie in (0, 1], got {p_init}")
    if restarts > max(max_queries - 1, 1):
        raise UsageError(f"restarts={restarts} runs need max_queries >= {restarts + 1}, got {max_queries}")

    batch, float_type = len(images), jnp.promote_types(images.dtype, jnp.float32)
    run_length = max((max_queries - 1) // restarts, 1)
    search = _Search(
        problem,
        image_keys(key, batch),
        jnp.broadcast_to(jnp.asarray(eps, float_type), (batch,)),
        jnp.asarray(p_init, jnp.float32),
        jnp.int32(run_length),
    )
    logits = first_logits(problem)
    unknown = jnp.full(batch, -jnp.inf, logits.dtype)
    won = succeeded(logits, problem.labels, problem.target)
    state = _State(jnp.int32(0), images, unknown, images, unknown, ~won, jnp.ones_like(problem.labels))
    steps = min(run_length * restarts, max_queries - 1)
    state = _run(_Options(norm, loss, bounds), search, state, steps, loop, progress)
    return AttackResult(
        state.best, ~state.active, distance(state.best - images, norm), state.queries, state.queries - 1
    )


def _run(
    options: _Options,
    search: _Search,
    state: _State,
    steps: int,
    loop: str,
    progress: Callable[[int, int], None] | None,
) -> _State:
    """The loop, in segments: once half of the images are done, the others go on in a batch of half the size.

    That costs a compilation, and saves half of the work to come. Nothing else depends on it, as every image has its own
    key.
    """
    compiler = any(isinstance(leaf, Tracer) for leaf in [*jax.tree.leaves((search, state)), jnp.zeros(())])
    segment = steps if compiler else _SEGMENT
    whole, places = state, np.arange(len(state.active))
    for start in range(0, steps, max(segment, 1)):
        length = min(segment, steps - start)
        state = while_loop(Partial(_any_active), Partial(_step, options, search), state, max_steps=length, loop=loop)
        if isinstance(state.active, Tracer):  # of a model that has tracers in its closure
            continue
        if progress is not None:
            progress(start + length + 1, steps + 1)
        if len(state.active.devices()) > 1:
            continue
        active = np.asarray(state.active)
        if not active.any():
            break
        if 2 * active.sum() <= len(active) and start + length + _WORTHWHILE <= steps:
            whole = _put(whole, places, state)
            size = len(active)
            while 2 * active.sum() <= size:
                size //= 2
            chosen = np.argsort(~active, kind="stable")[:size]
            search, state, places = _take(search, chosen), _take(state, chosen), places[chosen]
    return _put(whole, places, state) if len(places) < len(whole.active) else state


def _any_active(state: _State) -> Bool[Array, ""]:
    return state.active.any()


def _step(options: _Options, search: _Search, state: _State) -> _State:
    """One query for each image that is still attacked."""
    problem = search.problem
    place_in_run = state.step % search.run_length
    propose = _propose_linf if options.norm == "linf" else _propose_l2
    candidate = propose(options, search, state, place_in_run)
    logits = problem.logits(candidate)
    won = succeeded(logits, problem.labels, problem.target)
    value = objective(logits, problem.labels, problem.target, options.loss)
    to_beat = jnp.where(place_in_run == 0, -jnp.inf, state.value)
    kept = state.active & (won | (value > to_beat))
    better = state.active & (won | (value > state.best_value))
    current, kept_value = choose(kept, (candidate, value), (state.current, state.value))
    best, best_value = choose(better, (candidate, value), (state.best, state.best_value))
    return _State(
        state.step + 1, current, kept_value, best, best_value, state.active & ~won, state.queries + state.active
    )


def _propose_linf(
    options: _Options, search: _Search, state: _State, place_in_run: Int[Array, ""]
) -> Float[Array, "batch height width channels"]:
    images = search.problem.images
    _, height, width, channels = images.shape
    words = _random_words(search.keys, state.step, 2 + channels + width * channels)
    size = _size(search, place_in_run, height, width)
    inside = _window(words[:, 0], words[:, 1], size, height, width)[..., None]
    eps = per_image(search.eps, images)
    signs = _signs(words[:, 2 : 2 + channels]).reshape(-1, 1, 1, channels)
    up, down = (jnp.clip(images + step, *options.bounds).astype(images.dtype) for step in (eps, -eps))

    # a square that is there already would waste the query, every second time in a grey image: its opposite is tried
    new = jnp.where(signs > 0, up, down)
    same = jnp.where(inside, new == state.current, True).all(axis=(1, 2, 3), keepdims=True)
    changed = jnp.where(inside, jnp.where((signs > 0) ^ same, up, down), state.current)
    stripes = jnp.where(_signs(words[:, 2 + channels :]).reshape(-1, 1, width, channels) > 0, up, down)
    return jnp.where(place_in_run == 0, stripes, changed)


def _propose_l2(
    options: _Options, search: _Search, state: _State, place_in_run: Int[Array, ""]
) -> Float[Array, "batch height width channels"]:
    float_type = search.eps.dtype
    images = search.problem.images.astype(float_type)
    batch, height, width, channels = images.shape
    side = max(min(height, width) // 5, 1)
    rows, columns = height // side, width // side
    words = _random_words(search.keys, state.step, 5 + channels + rows * columns * (1 + channels))
    words, start_words = words[:, : 5 + channels], words[:, 5 + channels :]
    smallest = min(height, width)
    size = jnp.minimum(jnp.maximum(_size(search, place_in_run, height, width), 3) | 1, smallest - 1 + smallest % 2)
    receives = _window(words[:, 0], words[:, 1], size, height, width)[..., None]
    gives = _window(words[:, 2], words[:, 3], size, height, width)[..., None]

    # the bumps are drawn once for all images, and moved to where each of them has its square
    bumps = _bumps(size, height, width).astype(float_type)
    room = jnp.pad(bumps, ((0, 0), (height, 0), (width, 0)))
    top, left = _corner(words[:, 0], size, height), _corner(words[:, 1], size, width)
    move = lambda which, i, j: jax.lax.dynamic_slice(room, (which, height - i, width - j), (1, height, width))[0]
    placed = jax.vmap(move)((words[:, 4] & 1).astype(jnp.int32), top, left)[..., None]

    eps = per_image(search.eps, images)
    change = state.current.astype(float_type) - images
    length = lambda masked: jnp.sqrt((masked**2).sum(axis=(1, 2), keepdims=True))  # of each channel
    old = jnp.where(receives, change, 0)
    signs = _signs(words[:, 5:]).reshape(batch, 1, 1, channels).astype(float_type)
    direction = signs * placed + _divided(old, length(old))
    unused = jnp.maximum(eps**2 - (change**2).sum(axis=(1, 2, 3), keepdims=True), 0)
    available = jnp.sqrt(length(jnp.where(receives | gives, change, 0)) ** 2 + unused / channels)
    rest = jnp.where(receives | gives, 0, change)
    moved = rest + _divided(direction, length(direction)) * available

    tiles = _tiles(start_words, (rows, columns), side, images.shape).astype(float_type)
    proposed = jnp.where(place_in_run == 0, tiles, moved)
    to_eps = (
        _divided(proposed, per_image(distance(proposed, "l2"), images)) * eps
    )  # mends roundings, and sets the start
    return jnp.clip(images + to_eps, *options.bounds).astype(state.current.dtype)


def _tiles(
    words: UInt32[Array, "batch words"], grid: tuple[int, int], side: int, shape: tuple[int, ...]
) -> Float[Array, "batch height width channels"]:
    """The start: squares of bumps side by side in the middle of the image, each with signs and a direction."""
    batch, height, width, channels = shape
    rows, columns = grid
    turned = (words[:, : rows * columns] & 1).astype(bool).reshape(batch, rows, columns, 1, 1, 1)
    signs = _signs(words[:, rows * columns :]).reshape(batch, rows, columns, 1, 1, channels)
    upright, lying = _bumps(jnp.int32(side), side, side)[:, None, None, None, :, :, None]
    tiles = jnp.where(turned, lying, upright) * signs  # [batch, rows, columns, side, side, channels]
    tiles = tiles.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows * side, columns * side, channels)
    margins = [(0, 0), *((n // 2, n - n // 2) for n in (height - rows * side, width - columns * side)), (0, 0)]
    return jnp.pad(tiles, margins)


def _bumps(size: Int[Array, ""], height: int, width: int) -> Float[Array, "2 height width"]:
    """Two bumps of opposite signs in the upper left square of this size, one above the other, or side by side.

    A bump is the sum of concentric rectangles that weigh 1/(k + 1)² (equation 2): at distance d from its centre the sum
    over k = d, …, size // 2. Each has the same length in the Euclidean norm, both together 1.
    """
    sums = np.concatenate([[0], np.cumsum(1 / np.arange(1.0, max(height, width) + 2) ** 2)]).astype(np.float32)

    def upright(row: Int[Array, "height width"], column: Int[Array, "height width"]) -> Float[Array, "height width"]:
        half = size // 2
        above = row < half
        centre = jnp.where(above, half // 2, half + (size - half) // 2)
        far = jnp.maximum(jnp.abs(row - centre), jnp.abs(column - half))
        heights = jnp.asarray(sums)[half + 1] - jnp.asarray(sums)[jnp.minimum(far, half + 1)]
        bump = jnp.where((row < size) & (column < size), heights, 0)
        parts = [jnp.where(above, bump, 0), jnp.where(above, 0, bump)]
        first, second = (_divided(part, jnp.sqrt((part**2).sum())) for part in parts)
        both = first - second
        return _divided(both, jnp.sqrt((both**2).sum()))

    row, column = jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij")
    return jnp.stack([upright(row, column), upright(column, row)])


def _size(search: _Search, place_in_run: Int[Array, ""], height: int, width: int) -> Int[Array, ""]:
    """Side of the squares. The step is traced, so squares of all sizes are one program."""
    done = (place_in_run - 1).astype(jnp.float32) / search.run_length
    halvings = (done > jnp.asarray(_SHRINK_AT)).sum()
    covered = search.p_init * 0.5**halvings * height * width
    return jnp.clip(jnp.round(jnp.sqrt(covered)).astype(jnp.int32), 1, min(height, width))


def _corner(words: UInt32[Array, " batch"], size: Int[Array, ""], length: int) -> Int[Array, " batch"]:
    """Uniform among the places where a square fits."""
    return (words % (length - size + 1).astype(jnp.uint32)).astype(jnp.int32)


def _window(
    row_words: UInt32[Array, " batch"],
    column_words: UInt32[Array, " batch"],
    size: Int[Array, ""],
    height: int,
    width: int,
) -> Bool[Array, "batch height width"]:
    """The pixels of each image's square."""
    top = _corner(row_words, size, height)[:, None, None]
    left = _corner(column_words, size, width)[:, None, None]
    row, column = jnp.arange(height)[None, :, None], jnp.arange(width)[None, None, :]
    return (row >= top) & (row < top + size) & (column >= left) & (column < left + size)


def _random_words(keys: Key[Array, " batch"], step: Int[Array, ""], count: int) -> UInt32[Array, "batch count"]:
    """All that one step draws, for each image from its own key; in one call, as many small ones cost more."""
    return jax.vmap(lambda key: jax.random.bits(jax.random.fold_in(key, step), (count,), "uint32"))(keys)


def _signs(words: UInt32[Array, "..."]) -> Float[Array, "..."]:
    return 1.0 - 2.0 * (words & 1)


def _divided(values: Float[Array, "..."], lengths: Float[Array, "..."]) -> Float[Array, "..."]:
    return values / jnp.where(lengths > 0, lengths, 1)


def _take(tree: Any, chosen: np.ndarray) -> Any:
    """The parts of some images; parameters and what all images share stay."""
    if isinstance(tree, Problem):
        return tree._replace(**_rows({name: getattr(tree, name) for name in ("images", "labels", "target")}, chosen))
    if isinstance(tree, _Search):
        keys, eps = _rows((tree.keys, tree.eps), chosen)
        return tree._replace(problem=_take(tree.problem, chosen), keys=keys, eps=eps)
    return _rows(tree, chosen)


@jax.jit
def _rows(tree: Any, chosen: Int[Array, " part"]) -> Any:
    return jax.tree.map(lambda leaf: leaf[chosen] if leaf.ndim else leaf, tree)


@jax.jit
def _put(whole: _State, places: Int[Array, " part"], part: _State) -> _State:
    """Back to where they were taken from."""
    return jax.tree.map(lambda all_, some: all_.at[places].set(some) if all_.ndim else some, whole, part)
