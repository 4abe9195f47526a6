"""The shortest way to a hyperplane that stays inside the bounds, and the nearest point of the "l1" ball inside them.

For a point x in [l, u]ⁿ, a normal w and an offset c, the way is the shortest d with ⟨w, d⟩ = c and l ≤ x + d ≤ u. Every
value moves to where it brings ⟨w, d⟩ nearer to c, by at most the room rᵢ ≥ 0 that is left there:

    "linf"  |dᵢ| = min(λ, rᵢ)          "l2"  |dᵢ| = min(λ |wᵢ|, rᵢ)
    "l1"    the values of the largest |wᵢ| move by rᵢ, one by what is still missing, the others not

Croce, Hein (2020), "Minimally distorted Adversarial Examples with a Fast Adaptive Boundary Attack",
https://arxiv.org/abs/1907.02044. λ is the root of a concave and piecewise linear function. Newton's method from the
left passes at least one bend a step and ends on the root: a few sums, where sorting the bends, as in the paper, takes
longer than all the rest of a step of the attack on the CPU.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

_MOST_NEWTON_STEPS = 100  # a dozen are many; rounding must not make a loop without an end
_Newton = tuple[Float[Array, "batch 1"], Bool[Array, "batch 1"], Int[Array, ""]]


def project_hyperplane(
    points: Float[Array, "batch size"],
    normals: Float[Array, "batch size"],
    offsets: Float[Array, " batch"],
    bounds: tuple[float, float],
    norm: str,
) -> Float[Array, "batch size"]:
    """The shortest way from points inside the bounds to their hyperplanes, inside the bounds.

    Args:
      points: x, inside the bounds.
      normals: w.
      offsets: c, what ⟨w, d⟩ has to become.
      bounds: smallest and largest value of a point.
      norm: that is shortest: "linf", "l2" or "l1".

    Returns:
      d. Where the hyperplane does not meet the bounds, the corner nearest to it; zero where w is zero.
    """
    # relative to the largest: a network that is very sure has gradients too small to be squared
    scale = jnp.abs(normals).max(axis=1, keepdims=True)
    weights = jnp.abs(normals) / jnp.where(scale > 0, scale, 1)
    sides = jnp.sign(normals) * jnp.where(offsets < 0, -1, 1).astype(normals.dtype)[:, None]
    room = jnp.maximum(jnp.where(sides > 0, bounds[1] - points, points - bounds[0]), 0)
    within_reach = (weights * room).sum(axis=1, keepdims=True)
    wanted = jnp.abs(offsets)[:, None] / jnp.where(scale > 0, scale, 1)
    missing = jnp.minimum(wanted, within_reach)
    if norm == "l1":
        order = jnp.argsort(-weights, axis=1)
        gains = jnp.take_along_axis(weights * room, order, axis=1)
        before = jnp.take_along_axis(jnp.cumsum(gains, axis=1) - gains, jnp.argsort(order, axis=1), axis=1)
        lengths = jnp.clip((missing - before) / jnp.where(weights > 0, weights, 1), 0, room)
    else:
        speeds = jnp.ones_like(weights) if norm == "linf" else weights
        lengths = jnp.minimum(_multiplier(weights, speeds, room, missing) * speeds, room)
    return sides * jnp.where(wanted >= within_reach, room, lengths)


def _multiplier(
    weights: Float[Array, "batch size"],
    speeds: Float[Array, "batch size"],
    room: Float[Array, "batch size"],
    missing: Float[Array, "batch 1"],
) -> Float[Array, "batch 1"]:
    """λ with Σ weights · min(λ speeds, room) = missing."""

    def newton(carry: _Newton) -> _Newton:
        λ, _, steps = carry
        free = λ * speeds < room
        reached = jnp.where(free, 0, weights * room).sum(axis=1, keepdims=True)
        slope = jnp.where(free, weights * speeds, 0).sum(axis=1, keepdims=True)
        root = jnp.where(slope > 0, (missing - reached) / jnp.where(slope > 0, slope, 1), 0)
        grows = root > λ  # where it does not, it stands on the root up to rounding
        return jnp.where(grows, root, λ), grows, steps + 1

    def unsettled(carry: _Newton) -> Bool[Array, ""]:
        return carry[1].any() & (carry[2] < _MOST_NEWTON_STEPS)

    start = jnp.zeros_like(missing)
    return jax.lax.while_loop(unsettled, newton, (start, missing > 0, jnp.int32(0)))[0]


def project_l1_ball(
    perturbations: Float[Array, "batch size"],
    points: Float[Array, "batch size"],
    eps: Float[Array, " batch"],
    bounds: tuple[float, float],
) -> Float[Array, "batch size"]:
    """The nearest perturbations with a sum of absolute values of at most eps that keep the points inside the bounds.

    Every value is shrunk by one θ ≥ 0 and then cut: |dᵢ| = min(max(|vᵢ| − θ, 0), rᵢ), with rᵢ the room on the side of
    vᵢ (Croce, Hein, 2021, "Mind the box", https://arxiv.org/abs/2103.01208).

    Args:
      perturbations: v.
      points: inside the bounds.
      eps: radius.
      bounds: smallest and largest value of a point.

    Returns:
      d.
    """
    lengths = jnp.abs(perturbations)
    room = jnp.maximum(jnp.where(perturbations > 0, bounds[1] - points, points - bounds[0]), 0)
    # Σ |dᵢ| as θ falls: a value begins to count at |vᵢ|, and no longer grows from |vᵢ| − rᵢ on
    bends = jnp.concatenate([lengths, lengths - room], axis=1)
    changes = jnp.concatenate([jnp.ones_like(lengths), -jnp.ones_like(lengths)], axis=1)
    order = jnp.argsort(-bends, axis=1)
    bends = jnp.take_along_axis(bends, order, axis=1)
    slopes = jnp.cumsum(jnp.take_along_axis(changes, order, axis=1), axis=1)[:, :-1]
    totals = jnp.cumsum(slopes * (bends[:, :-1] - bends[:, 1:]), axis=1)  # at the second bend and after
    first = (totals >= eps[:, None]).argmax(axis=1)[:, None]
    at = lambda values, index: jnp.take_along_axis(values, index, axis=1)
    excess = at(totals, first) - eps[:, None]
    θ = at(bends, first + 1) + excess / jnp.maximum(at(slopes, first), 1)
    inside = jnp.minimum(lengths, room).sum(axis=1, keepdims=True) <= eps[:, None]
    return jnp.sign(perturbations) * jnp.clip(lengths - jnp.where(inside, 0, θ), 0, room)
