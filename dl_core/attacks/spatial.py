"""Spatial attack: the image turned and shifted by a little, and nothing else.

Engstrom, Tran, Tsipras, Schmidt, Madry (2019), "Exploring the Landscape of Spatial Robustness",
https://arxiv.org/abs/1712.02779. An image is rotated about its centre, then shifted; pixels are interpolated
bilinearly, and what comes into view is black. Gradients are of little use in three dimensions (their section 4), so
all points of a grid are tried, or the worst of k random ones is taken.
"""

import dataclasses
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int, Key

from dl_core.attacks.balls import distance, image_keys
from dl_core.attacks.checks import Problem, check_at_least, check_attack, first_logits
from dl_core.attacks.objectives import margin
from dl_core.attacks.result import ApplyFn, AttackResult, choose, succeeded
from dl_core.augment.affine import compose, rotation, translation, warp
from dl_core.errors import UsageError
from dl_core.loops import while_loop


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Options:
    bounds: tuple[float, float]
    fill: float


class _State(NamedTuple):
    step: Int[Array, ""]
    best: Float[Array, "batch height width channels"]
    best_margin: Float[Array, " batch"]
    active: Bool[Array, " batch"]
    queries: Int[Array, " batch"]


def spatial(
    apply_fn: ApplyFn,
    params: Any,
    images: Float[Array, "batch height width channels"],
    labels: Int[Array, " batch"],
    *,
    max_rotation: float | int = 30,
    max_translation: float | int = 3,
    grid: tuple[int, int, int] = (31, 5, 5),
    samples: int | None = None,
    key: Key[Array, "*batch"] | None = None,
    target: int | Int[Array, " batch"] | None = None,
    norm: str = "l2",
    bounds: tuple[float, float] = (0.0, 1.0),
    fill: float | int | None = None,
    loop: str = "auto",
) -> AttackResult:
    """Rotations and translations, all of a grid or some at random, until the prediction changes.

    The transforms of the grid are tried from the mildest to the strongest, by the sum of the squares of the three
    motions, each as a share of its range; an image is done at its first success.

    Args:
      apply_fn: (params, images) -> logits, as in inference, normalisation included. It is never differentiated.
      params: pytree of everything that apply_fn needs; never changed.
      images: inside the bounds.
      labels: the true classes.
      max_rotation: largest angle either way in degrees, >= 0.
      max_translation: largest shift either way along x and along y in pixels, >= 0.
      grid: how many angles, shifts along x and shifts along y, each >= 1 and evenly spaced over its range; a single one
        is zero. The paper's is the default: 775 queries.
      samples: >= 1: that many uniform draws for each image in place of the grid; the paper's worst of k takes 10.
      key: one key, or one for each image; needed with samples.
      target: classes to be predicted instead; None is content with any wrong one.
      norm: "linf", "l2" or "l1", in which the distance between the images is reported. It limits nothing: a shift by
        one pixel may be far in any of them.
      bounds: smallest and largest value of an image.
      fill: what comes into view from outside of the image; the smallest value by default.
      loop: "auto", "compiled" or "host", see `dl_core.loops`. Memory does not grow with the number of transforms.

    Returns:
      AttackResult; where the attack fails, the image is the transformed one of largest margin. Images that are
      misclassified as they are stay as they are.

    Raises:
      UsageError: see `dl_core.attacks.checks.check_attack`; images that are not [batch, height, width, channels], or an
        option out of its range.
    """
    problem = check_attack(
        apply_fn,
        params,
        images,
        labels,
        bounds=bounds,
        target=target,
        norm=norm,
        loss="margin",
        key=key,
        needs_key="" if samples is None else "samples draws rotations and translations",
    )
    if images.ndim != 4:
        raise UsageError(f"images must be [batch, height, width, channels], got {list(images.shape)}")
    check_at_least(0, max_rotation=max_rotation, max_translation=max_translation)
    if len(grid) != 3 or min(grid) < 1:
        raise UsageError(f"grid must be the numbers of angles, shifts along x and along y, each >= 1; got {grid}")
    if samples is not None:
        check_at_least(1, samples=samples)
    outside = bounds[0] if fill is None else float(fill)
    if not bounds[0] <= outside <= bounds[1]:
        raise UsageError(f"fill must lie in bounds={bounds}, got {fill}")

    logits = first_logits(problem)
    won = succeeded(logits, problem.labels, problem.target)
    unknown = jnp.full_like(logits[:, 0], -jnp.inf)
    state = _State(jnp.int32(0), images, unknown, ~won, jnp.ones_like(problem.labels))
    most = jnp.array([max_rotation, max_translation, max_translation], jnp.float32)
    motions = None if samples is not None else jnp.asarray(_shares(grid))
    keys = None if samples is None or key is None else image_keys(key, len(images))
    step = Partial(_step, _Options(bounds, outside), problem, most, motions, keys)
    count = int(np.prod(grid)) if samples is None else samples
    state = while_loop(Partial(_any_active), step, state, max_steps=count, loop=loop)
    return AttackResult(
        state.best, ~state.active, distance(state.best - images, norm), state.queries, state.queries - 1
    )


def _shares(grid: tuple[int, int, int]) -> np.ndarray:
    """The grid's points [points, 3] as shares of the ranges in [-1, 1], the mildest first."""
    axes = [np.linspace(-1, 1, n) if n > 1 else np.zeros(1) for n in grid]
    points = np.array(list(itertools.product(*axes)), np.float32)
    return points[np.argsort((points**2).sum(axis=1), kind="stable")]


def _any_active(state: _State) -> Bool[Array, ""]:
    return state.active.any()


def _step(
    options: _Options,
    problem: Problem,
    most: Float[Array, "3"],
    motions: Float[Array, "points 3"] | None,
    keys: Key[Array, " batch"] | None,
    state: _State,
) -> _State:
    """One transform for each image that is still attacked."""
    images = problem.images
    batch, height, width, _ = images.shape
    size = height, width
    if motions is not None:
        shares = jnp.broadcast_to(motions[state.step][None], (batch, 3))
    else:
        draw = lambda key: jax.random.uniform(jax.random.fold_in(key, state.step), (3,), minval=-1.0, maxval=1.0)
        shares = jax.vmap(draw)(keys)
    degrees, dx, dy = jnp.moveaxis(shares * most[None], 1, 0)
    matrices = compose(rotation(degrees, size), translation(dx, dy))
    candidate = jnp.clip(warp(images, matrices, fill=options.fill), *options.bounds)
    logits = problem.logits(candidate)
    won = succeeded(logits, problem.labels, problem.target)
    value = margin(logits, problem.labels, problem.target)
    better = state.active & (won | (value > state.best_margin))
    best, best_margin = choose(better, (candidate, value), (state.best, state.best_margin))
    return _State(state.step + 1, best, best_margin, state.active & ~won, state.queries + state.active)
