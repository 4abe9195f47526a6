"""Perceptual path length of a generator: how far the image moves for a small step in the latent space.

    PPL = E [ d(G(I(z₀, z₁, t)), G(I(z₀, z₁, t + ε))) / ε² ]

d is a distance of images that grows with the square of a small change, such as the squared distance of their features;
I goes along the great circle ("slerp") for latents of a normal distribution, or straight ("lerp") for StyleGAN's w. It
has nothing to do with perplexity, the other PPL. Karras, Laine, Aila (2019), "A Style-Based Generator Architecture for
Generative Adversarial Networks", §4.1, https://arxiv.org/abs/1812.04948; course notes, GANs.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float

from dl_core import loops
from dl_core.errors import UsageError, unknown_name
from dl_core.metrics.accumulator import AnyArray, where_or_all
from dl_core.metrics.checks import Where, check_finite, check_not_empty, check_same_length

Images = Float[Array, "batch height width channels"]


class PathLength(NamedTuple):
    """Mean and standard deviation (divided by n - 1) of the lengths kept; all lengths [n], and which were kept [n]."""

    mean: Float[AnyArray, ""]
    std: Float[AnyArray, ""]
    lengths: Float[AnyArray, " n"]
    kept: Bool[AnyArray, " n"]


def lerp(
    start: Float[AnyArray, "*batch d"], end: Float[AnyArray, "*batch d"], t: Float[AnyArray, "*batch"] | float
) -> Float[Array, "*batch d"]:
    """The point at the share t of the straight way from start to end; arguments as in `slerp`."""
    start = jnp.asarray(start)
    return start + (end - start) * _last_axis(t, start)


def slerp(
    start: Float[AnyArray, "*batch d"], end: Float[AnyArray, "*batch d"], t: Float[AnyArray, "*batch"] | float
) -> Float[Array, "*batch d"]:
    """The point at the share t of the great circle from start to end; its norm goes straight from one to the other.

        |z₀|, |z₁| = 1:   sin((1 - t) ω) / sin ω z₀ + sin(t ω) / sin ω z₁,   ω the angle between them

    computed as cos(t ω) u + sin(t ω) w with w ⊥ u, which stays accurate where sin ω vanishes. For opposite vectors, of
    the many great circles, one is taken. Shoemake (1985), "Animating Rotation with Quaternion Curves".

    Args:
      start: latent vectors z₀, d >= 2.
      end: z₁, of the same shape. A zero vector has the direction of the other one.
      t: in [0, 1]; one for each pair, or one for all.

    Returns:
      Latent vectors of the same shape.

    Raises:
      UsageError: shapes that differ, or d < 2, where there are no great circles.
    """
    if np.shape(start) != np.shape(end) or np.ndim(start) == 0 or np.shape(start)[-1] < 2:
        shapes = f"{list(np.shape(start))} and {list(np.shape(end))}"
        raise UsageError(f"start and end must have one shape [..., d] with d >= 2, got {shapes}")
    return _slerp(jnp.asarray(start), jnp.asarray(end), _last_axis(t, start))


@jax.jit
def _slerp(
    start: Float[Array, "*batch d"], end: Float[Array, "*batch d"], t: Float[Array, "*batch 1"]
) -> Float[Array, "*batch d"]:
    norm_start, norm_end = _norm(start), _norm(end)
    u, v = _divided(start, norm_start), _divided(end, norm_end)
    u, v = jnp.where(norm_start > 0, u, v), jnp.where(norm_end > 0, v, u)
    angle = 2 * jnp.arctan2(_norm(u - v), _norm(u + v))  # acos(uᵀv) has no digits near 0 and π
    across = _orthogonal(v, u)
    length = _norm(across)
    axis = jax.nn.one_hot(jnp.argmin(jnp.abs(u), axis=-1), u.shape[-1], dtype=u.dtype)
    across = jnp.where(length > 4 * jnp.finfo(u.dtype).eps, across, axis)
    across = _orthogonal(_divided(across, _norm(across)), u)  # again: the rounding of a short vector is a large angle
    w = _divided(across, _norm(across))
    return (norm_start + (norm_end - norm_start) * t) * (jnp.cos(t * angle) * u + jnp.sin(t * angle) * w)


def _last_axis(t: Float[AnyArray, "..."] | float, like: Float[AnyArray, "*batch d"]) -> Float[Array, "*batch 1"]:
    dtype = jnp.result_type(jnp.asarray(like))
    return jnp.broadcast_to(jnp.asarray(t, dtype), np.shape(like)[:-1])[..., None]


def _norm(x: Float[Array, "*batch d"]) -> Float[Array, "*batch 1"]:
    squared = (x**2).sum(axis=-1, keepdims=True)
    return jnp.where(squared > 0, jnp.sqrt(jnp.where(squared > 0, squared, 1)), 0)  # the root at 0 has no derivative


def _divided(x: Float[Array, "*batch d"], norm: Float[Array, "*batch 1"]) -> Float[Array, "*batch d"]:
    return x / jnp.where(norm > 0, norm, 1)


def _orthogonal(x: Float[Array, "*batch d"], unit: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
    return x - (x * unit).sum(axis=-1, keepdims=True) * unit


INTERPOLATIONS = {"slerp": slerp, "lerp": lerp}


def path_length_summary(
    lengths: Float[AnyArray, " n"], *, discard: tuple[float, float] = (0.01, 0.99), where: Where = None
) -> PathLength:
    """Mean and deviation of path lengths without the shortest and the longest.

        metric = gathering_metric(path_length_summary, 100_000, jnp.float32(0))  # the accumulator

    Args:
      lengths: of single steps, >= 0.
      discard: the quantiles, each the next lower length there is, below and above which lengths are left out;
        (0, 1) keeps all.
      where: the rows that count; all by default.

    Returns:
      PathLength; std is nan where only one is kept.

    Raises:
      UsageError: no lengths, NaN, quantiles that are not 0 <= low < high <= 1.
    """
    low, high = discard
    if not 0 <= low < high <= 1:
        raise UsageError(f"discard must be two quantiles with 0 <= low < high <= 1, got {discard}")
    check_same_length(lengths=lengths, where=where)
    check_not_empty("lengths", lengths, where)
    check_finite("lengths", lengths, where)
    return _summary(lengths, where_or_all(where, lengths), low, high)


@jax.jit
def _summary(
    lengths: Float[AnyArray, " n"], counts: Bool[Array, " n"], low: float | Array, high: float | Array
) -> PathLength:
    lengths = jnp.asarray(lengths)
    ordered = jnp.sort(jnp.where(counts, lengths, jnp.inf))
    place = lambda quantile: jnp.floor(quantile * jnp.maximum(counts.sum() - 1, 0)).astype(jnp.int32)
    kept = counts & (lengths >= ordered[place(low)]) & (lengths <= ordered[place(high)])
    number = kept.sum()
    mean = jnp.where(kept, lengths, 0).sum() / number
    variance = jnp.where(kept, (lengths - mean) ** 2, 0).sum() / (number - 1)
    return PathLength(mean, jnp.sqrt(variance), lengths, kept)


def _lengths_of_batch(
    apply_fn: Partial, distance: Partial, interpolate: Partial, params: Any, eps: Array, carry: None, batch: Any
) -> tuple[None, Float[Array, " batch"]]:
    start, end, t = batch
    here, there = (apply_fn(params, interpolate(start, end, place)) for place in (t, t + eps))
    return carry, distance(here, there) / eps**2


def perceptual_path_length(
    apply_fn: Callable[[Any, Float[Array, "batch d"]], Images],
    params: Any,
    start: Float[AnyArray, "n d"],
    end: Float[AnyArray, "n d"],
    t: Float[AnyArray, " n"],
    *,
    distance: Callable[[Images, Images], Float[Array, " batch"]],
    interpolation: str = "slerp",
    eps: float = 1e-4,
    discard: tuple[float, float] = (0.01, 0.99),
    batch_size: int = 64,
    loop: str = "auto",
) -> PathLength:
    """Perceptual path length of any generator under any distance of images.

        z0, z1 = jax.random.normal(key, (2, 10_000, 512))
        perceptual_path_length(generate, variables, z0, z1, jax.random.uniform(other_key, (10_000,)), distance=distance)

    Args:
      apply_fn: (params, latents [batch, d]) -> images.
      params: what the generator needs.
      start, end: pairs of latents, drawn independently.
      t: where between them the step begins: uniform in [0, 1] for the full path, 0 for its end points only.
      distance: (images, images) -> one number for each pair, quadratic in small differences.
      interpolation: "slerp" or "lerp".
      eps: length of the step as a share of the way. In float32 two images 1e-4 apart differ in their last digits; a
        single length has an error of about a thousandth then.
      discard: as in `path_length_summary`.
      batch_size: pairs at a time.
      loop: "auto", "compiled" or "host".

    Returns:
      PathLength.

    Raises:
      UsageError: an unknown interpolation or loop, shapes that differ, NaN, no pairs, eps <= 0, batch_size < 1,
        quantiles as in `path_length_summary`.
    """
    if interpolation not in INTERPOLATIONS:
        raise unknown_name("interpolation", interpolation, INTERPOLATIONS)
    if not eps > 0 or batch_size < 1:
        raise UsageError(f"eps must be above 0 and batch_size at least 1, got {eps} and {batch_size}")
    if np.ndim(start) != 2 or np.shape(start) != np.shape(end) or np.shape(t) != np.shape(start)[:1]:
        shapes = ", ".join(str(list(np.shape(array))) for array in (start, end, t))
        raise UsageError(f"start and end must have shape [n, d] and t shape [n], got {shapes}")
    for name, array in (("start", start), ("end", end), ("t", t)):
        check_not_empty(name, array)
        check_finite(name, array)
    n = np.shape(start)[0]
    batch_size = min(batch_size, n)
    batches = -(-n // batch_size)
    rows = jnp.minimum(jnp.arange(batches * batch_size), n - 1)  # the last batch is filled with copies of the last pair
    xs = jax.tree.map(lambda a: jnp.asarray(a)[rows].reshape(batches, batch_size, *np.shape(a)[1:]), (start, end, t))
    functions = (Partial(apply_fn), Partial(distance), Partial(INTERPOLATIONS[interpolation]))
    step = Partial(_lengths_of_batch, *functions, params, jnp.asarray(eps, xs[2].dtype))
    _, lengths = loops.scan(step, None, xs, loop=loop)
    return path_length_summary(lengths.reshape(-1)[:n], discard=discard)
