"""What is in a scene: a pytree of integers drawn from a key, from which the image and every label are derived.

Procedural scenes stand beside real data: they are drawn, never photographed. All numbers are integers, so that a
frozen set of scenes is the same on every machine and can be checked by a hash of its description; the image, whose
last bits depend on the processor, is not hashed.

Lengths and positions are in 1/1024 of the image's side (the unit of `SIDE`), angles and hues in whole degrees. The x
axis points right, the y axis down, and angles turn from x towards y (clockwise on the screen).
"""

import functools
import hashlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Key, UInt32

from dl_core.errors import UsageError, unknown_name

SIDE = 1024
KINDS = ("circle", "square", "triangle", "cross", "star", "ring", "pentagon", "crescent")
BASE_KINDS = KINDS[:4]  # the other four are held out for few-shot and out-of-distribution work
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
HUES = (0, 28, 56, 120, 180, 226, 272, 316)  # degrees, of the eight colours
HUE_JITTER = 8  # degrees each way: less than half of the smallest gap between two hues
FILLS = ("solid", "outline", "stripes", "dots")
BACKGROUNDS = ("colour", "gradient", "texture")
WAVES = 4  # plane waves that make a texture
Bound = int | Int[Array, "..."]


class Scene(NamedTuple):
    """One scene of at most `objects` objects; a batch of scenes has a leading axis on every field.

    Where `valid` is false, the other fields of that object are zero.
    """

    valid: Bool[Array, "*batch objects"]  # is there such an object
    kind: Int[Array, "*batch objects"]  # index into KINDS
    colour: Int[Array, "*batch objects"]  # index into COLOURS
    hue_shift: Int[Array, "*batch objects"]  # degrees added to the hue of the colour, at most HUE_JITTER each way
    fill: Int[Array, "*batch objects"]  # index into FILLS
    size: Int[Array, "*batch objects"]  # radius of the circumscribed circle, 1/1024 of the side
    x: Int[Array, "*batch objects"]  # centre of that circle, 1/1024 of the side
    y: Int[Array, "*batch objects"]
    angle: Int[Array, "*batch objects"]  # degrees, [0, 360)
    depth: Int[Array, "*batch objects"]  # 0 is the nearest; all different
    background: Int[Array, "*batch"]  # index into BACKGROUNDS
    background_hue: Int[Array, "*batch 2"]  # degrees, of the two ends of a gradient or the two tones of a texture
    background_level: Int[Array, "*batch 2"]  # brightness of the two, percent
    background_angle: Int[Array, "*batch"]  # direction of the gradient, degrees
    waves: Int[Array, "*batch waves 3"]  # cycles across the image along x and along y, and phase in degrees


def key_of(seed: int) -> Key[Array, ""]:
    """The key of a seed (shape []), its implementation pinned: JAX's default may change, a frozen scene may not.

    Args:
      seed: any integer.

    Returns:
      A threefry2x32 key.
    """
    return jax.random.key(seed, impl="threefry2x32")


def sample(
    key: Key[Array, ""],
    *,
    max_objects: int = 1,
    min_objects: int = 1,
    kinds: tuple[str, ...] = BASE_KINDS,
    colours: tuple[str, ...] = COLOURS,
    fills: tuple[str, ...] = FILLS,
    backgrounds: tuple[str, ...] = BACKGROUNDS,
    sizes: tuple[int, int] = (150, 360),
    layouts: int = 1,
) -> Scene:
    """Draw one scene; every attribute is uniform and independent of the others.

    Args:
      key: a key of shape [].
      max_objects: size of the object axis, and the most objects there can be.
      min_objects: the fewest.
      kinds: the kinds that occur, from KINDS.
      colours: the colours that occur, from COLOURS.
      fills: the fills that occur, from FILLS.
      backgrounds: the backgrounds that occur, from BACKGROUNDS.
      sizes: smallest and largest radius, in 1/1024 of the side; every object lies inside the image.
      layouts: sets of positions drawn, of which the one that overlaps least is kept. One leaves occlusions to chance;
        sixteen make them rare.

    Returns:
      A Scene without a batch axis.

    Raises:
      UsageError: an unknown name, a count or a size outside its range.
    """
    if not 0 <= min_objects <= max_objects or max_objects < 1:
        raise UsageError(f"objects must be 0 <= min_objects <= max_objects, got {min_objects} and {max_objects}")
    if not 1 <= sizes[0] <= sizes[1] <= SIDE // 2:
        raise UsageError(f"sizes must be 1 <= smallest <= largest <= {SIDE // 2}, got {sizes}")
    counts = 7 * max_objects, 2 * layouts * max_objects, 7 + 3 * WAVES
    bits = jax.random.bits(key, (sum(counts),))  # all at once: each call would be compiled into the program anew
    per_object, places, per_scene = jnp.split(bits, np.cumsum(counts[:2]))
    per_object = iter(per_object.reshape(7, max_objects))
    valid = jnp.arange(max_objects) < _between(per_scene[0], min_objects, max_objects)
    size = _between(next(per_object), *sizes)
    x, y = _positions(places.reshape(layouts, 2, max_objects), valid, size)
    attributes = {
        "kind": _one_of(next(per_object), "kind", kinds, KINDS),
        "colour": _one_of(next(per_object), "colour", colours, COLOURS),
        "hue_shift": _between(next(per_object), -HUE_JITTER, HUE_JITTER),
        "fill": _one_of(next(per_object), "fill", fills, FILLS),
        "size": size,
        "x": x,
        "y": y,
        "angle": _between(next(per_object), 0, 359),
        "depth": _ranks(next(per_object), valid),
    }
    cycles, phase = per_scene[7 : 7 + 2 * WAVES].reshape(WAVES, 2), per_scene[7 + 2 * WAVES :][:, None]
    return Scene(
        valid=valid,
        **{name: jnp.where(valid, values, 0) for name, values in attributes.items()},
        background=_one_of(per_scene[1], "background", backgrounds, BACKGROUNDS),
        background_hue=_between(per_scene[2:4], 0, 359),
        background_level=_between(per_scene[4:6], 15, 85),
        background_angle=_between(per_scene[6], 0, 359),
        waves=jnp.concatenate([_between(cycles, -6, 6), _between(phase, 0, 359)], axis=1),
    )


def sample_batch(key: Key[Array, ""], first: int | Int[Array, ""], n: int, **options: Any) -> Scene:
    """Scenes `first` to `first + n` of the endless sequence that the key stands for; scene i depends on (key, i) only.

    Args:
      key: a key of shape [].
      first: index of the first scene, >= 0.
      n: how many.
      options: those of `sample`.

    Returns:
      A Scene with a leading axis [n].

    Raises:
      UsageError: see `sample`.
    """
    return _sample_batch(key, first, n, tuple(sorted(options.items())))


def description_hash(scenes: Any) -> str:
    """SHA-256 of a description (fields of any batch shape), the same on every machine: the check of a frozen split.

    Args:
      scenes: one scene or a batch of any shape; any named tuple of integers.

    Returns:
      64 hexadecimal digits over the name, shape and values of every field.
    """
    digest = hashlib.sha256()
    for name, values in zip(scenes._fields, scenes, strict=True):
        values = np.ascontiguousarray(values, dtype="<i4")
        digest.update(f"{name}{values.shape}".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()


@functools.partial(jax.jit, static_argnums=(2, 3))
def _sample_batch(key: Key[Array, ""], first: Int[Array, ""], n: int, options: tuple[tuple[str, Any], ...]) -> Scene:
    one = lambda index: sample(jax.random.fold_in(key, index), **dict(options))
    return jax.vmap(one)(first + jnp.arange(n))


def _between(bits: UInt32[Array, "*shape"], low: Bound, high: Bound) -> Int[Array, "*shape"]:
    """Integers in [low, high] from random bits; the remainder is uneven by less than one part in four million."""
    span = jnp.asarray(high - low + 1, jnp.uint32)
    return low + (bits % span).astype(jnp.int32)


def _one_of(
    bits: UInt32[Array, "*shape"], what: str, given: tuple[str, ...], known: tuple[str, ...]
) -> Int[Array, "*shape"]:
    for name in given:
        if name not in known:
            raise unknown_name(what, name, known)
    if not given:
        raise UsageError(f"at least one {what} is needed, of {', '.join(known)}")
    allowed = jnp.array([known.index(name) for name in given], jnp.int32)
    return allowed[_between(bits, 0, len(given) - 1)]


def _ranks(bits: UInt32[Array, " objects"], valid: Bool[Array, " objects"]) -> Int[Array, " objects"]:
    """A random order of the valid objects: 0, 1, …"""
    order = jnp.argsort(jnp.argsort(bits))
    nearer = valid[None, :] & (order[None, :] < order[:, None])
    return nearer.sum(axis=1, dtype=jnp.int32)


def _positions(
    bits: UInt32[Array, "layouts 2 objects"], valid: Bool[Array, " objects"], size: Int[Array, " objects"]
) -> tuple[Int[Array, " objects"], Int[Array, " objects"]]:
    """Centres with the whole circle inside the image, of the layout whose closest pair has the widest gap."""
    radius = size[None, None, :]
    centres = _between(bits, radius, SIDE - radius)
    if len(bits) > 1:
        apart = ((centres[..., :, None] - centres[..., None, :]) ** 2).sum(axis=1)
        gap = apart - ((size[:, None] + size[None, :]) ** 2)[None]  # > 0: the circles do not touch
        pair = valid[:, None] & valid[None, :] & ~jnp.eye(len(size), dtype=bool)
        gap = jnp.where(pair[None], gap, 2 * SIDE**2).min(axis=(1, 2))
        centres = centres[jnp.argmax(gap)][None]
    return centres[0, 0], centres[0, 1]
