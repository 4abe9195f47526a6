"""From a description to pixels: signed distances, one painted over the other from the farthest to the nearest.

Every shape is given by its signed distance in the object's own frame, where the circumscribed circle has radius 1:
negative inside, positive outside. A pixel is covered by as much as its centre lies inside the edge, from half a pixel
outside (nothing) to half a pixel inside (all of it), which is what smooths the edges. Objects are opaque whatever
their fill: the paper between the stripes, between the dots and inside an outline is a pale tint of the colour.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from dl_core.data.scenes.description import BACKGROUNDS, FILLS, HUES, KINDS, SIDE, Scene

INK_SATURATION, INK_VALUE = 0.9, 0.9
PAPER_TINT = 0.75  # share of white in the paper of a pattern
OUTLINE = 0.17  # width of the border of "outline", radii
STRIPE_PERIOD, DOT_PERIOD, DOT_RADIUS = 0.56, 0.62, 0.21  # radii
BACKGROUND_SATURATION = 0.2  # pale, so that the eight colours stand out
Index = Int[Array, ""]
Map = Float[Array, "height width"]
Planes = Float[Array, "3 height width"]


def render(scene: Scene, size: int) -> Float[Array, "height width 3"]:
    """The image of one scene; `vmap` it for a batch.

    Args:
      scene: one scene, without a batch axis.
      size: height and width in pixels; the description does not depend on it.

    Returns:
      float32 in [0, 1].
    """
    canvas = _background(scene, size)
    far_to_near = jnp.argsort(-scene.depth)

    def paint(canvas: Planes, index: Index) -> tuple[Planes, None]:
        x, y, unit = _object_frame(scene, index, size)
        distance = _shape_distance(scene.kind[index], x, y)
        covered = _coverage(distance, unit) * scene.valid[index]
        inked = _coverage(_pattern_distance(scene.fill[index], distance, x, y), unit)
        ink = _object_colour(scene, index)[:, None, None]
        paper = ink + PAPER_TINT * (1 - ink)
        return canvas + covered[None] * (paper + inked[None] * (ink - paper) - canvas), None

    canvas, _ = jax.lax.scan(paint, canvas, far_to_near)
    return jnp.moveaxis(canvas, 0, -1)


def silhouette(scene: Scene, index: Index, size: int) -> Float[Array, "height width"]:
    """Signed distance of every pixel centre from one object, in pixels: negative inside, near the edge exact.

    Args:
      scene: one scene, without a batch axis.
      index: which object, an integer scalar.
      size: height and width in pixels.

    Returns:
      float32; whether the object is valid is not looked at.
    """
    x, y, unit = _object_frame(scene, index, size)
    return _shape_distance(scene.kind[index], x, y) * unit


@functools.partial(jax.jit, static_argnames="size")
def render_batch(scenes: Scene, size: int) -> UInt8[Array, "batch height width 3"]:
    """The images of a batch of scenes as bytes, compiled once for each batch size and image size.

    Args:
      scenes: a batch of scenes [batch].
      size: height and width in pixels.

    Returns:
      uint8 [batch, height, width, 3], 0 to 255.
    """
    images = jax.vmap(lambda scene: render(scene, size))(scenes)
    return (images * 255 + 0.5).astype(jnp.uint8)


def _object_frame(scene: Scene, index: Index, size: int) -> tuple[Map, Map, Float[Array, ""]]:
    """Coordinates of the pixel centres in the object's frame, and how many pixels its unit is long."""
    radius = jnp.maximum(scene.size[index], 1).astype(jnp.float32)
    centres = (jnp.arange(size, dtype=jnp.float32) + 0.5) * (SIDE / size)
    across, down = (centres - scene.x[index]) / radius, (centres - scene.y[index]) / radius
    turn = jnp.deg2rad(scene.angle[index].astype(jnp.float32))
    cosine, sine = jnp.cos(turn), jnp.sin(turn)
    x = (cosine * across)[None, :] + (sine * down)[:, None]
    y = (cosine * down)[:, None] - (sine * across)[None, :]
    return x, y, radius * (size / SIDE)


def _coverage(distance: Map, unit: Float[Array, ""]) -> Map:
    return jnp.clip(0.5 - distance * unit, 0, 1)


def _object_colour(scene: Scene, index: Index) -> Float[Array, "3"]:
    hue = jnp.array(HUES, jnp.int32)[scene.colour[index]] + scene.hue_shift[index]
    return _rgb(hue, INK_SATURATION, INK_VALUE)


def _rgb(hue: Int[Array, ""], saturation: float, value: float | Float[Array, ""]) -> Float[Array, "3"]:
    """Hue in degrees, the others in [0, 1]: the hexagonal colour model (Smith, 1978)."""
    sector = (jnp.array([5.0, 3.0, 1.0]) + hue / 60) % 6
    return value * (1 - saturation * jnp.clip(jnp.minimum(sector, 4 - sector), 0, 1))


def _shape_distance(kind: Index, x: Map, y: Map) -> Map:
    """Signed distance from the shape `kind` in its own frame. Corners stay sharp: beyond them the distance is the
    largest of the distances from the edges, which is what a pixel's coverage wants.
    """
    radius = jnp.sqrt(x * x + y * y)
    wide, tall = jnp.abs(x), jnp.abs(y)
    longer, shorter = jnp.maximum(wide, tall), jnp.minimum(wide, tall)
    # The star's tips point up and every 72 degrees from there; by symmetry the left half is folded on the right.
    up, side, low = -y, _SIN72 * wide - _COS72 * y, _SIN36 * wide + _COS36 * y
    other_side, other_low = -_SIN72 * wide - _COS72 * y, -_SIN36 * wide + _COS36 * y
    largest, second = jnp.maximum(up, side), jnp.minimum(up, side)
    for value in (low, other_low):
        second = jnp.maximum(second, jnp.minimum(largest, value))
        largest = jnp.maximum(largest, value)
    distances = {
        "circle": radius - 1,
        "square": longer - np.sqrt(0.5),
        "triangle": jnp.maximum(y, np.sqrt(0.75) * wide - 0.5 * y) - 0.5,
        "cross": jnp.maximum(longer - 3 / np.sqrt(10), shorter - 1 / np.sqrt(10)),  # arms three times their width
        "star": second - _COS72,  # inside at least four of the five lines that join every second tip
        "ring": jnp.abs(radius - 0.75) - 0.25,
        "pentagon": -jnp.minimum(jnp.minimum(up, other_side), other_low) - _COS36,
        "crescent": jnp.maximum(radius - 1, 0.8 - jnp.sqrt((x - 0.45) ** 2 + y * y)),
    }
    return jnp.select([kind == index for index in range(len(KINDS))], [distances[name] for name in KINDS])


def _pattern_distance(fill: Index, distance: Map, x: Map, y: Map) -> Map:
    """Signed distance from the inked part of the shape; outside of the shape it does not matter."""
    stripe = jnp.abs((x / STRIPE_PERIOD) % 1 - 0.5) * STRIPE_PERIOD - STRIPE_PERIOD / 4
    centred = lambda v: (v / DOT_PERIOD + 0.5) % 1 * DOT_PERIOD - DOT_PERIOD / 2
    distances = {
        "solid": jnp.full_like(distance, -np.inf),
        "outline": -OUTLINE - distance,
        "stripes": stripe,
        "dots": jnp.sqrt(centred(x) ** 2 + centred(y) ** 2) - DOT_RADIUS,
    }
    return jnp.select([fill == index for index in range(len(FILLS))], [distances[name] for name in FILLS])


def _background(scene: Scene, size: int) -> Planes:
    """One colour, a straight gradient between two, or a sum of plane waves that mixes two."""
    tones = jax.vmap(lambda hue, level: _rgb(hue, BACKGROUND_SATURATION, level / 100))(
        scene.background_hue, scene.background_level
    )
    centres = (jnp.arange(size, dtype=jnp.float32) + 0.5) / size
    turn = jnp.deg2rad(scene.background_angle.astype(jnp.float32))
    along = (jnp.cos(turn) * (centres - 0.5))[None, :] + (jnp.sin(turn) * (centres - 0.5))[:, None]
    gradient = 0.5 + along / np.sqrt(2)
    # sin(a + b) = sin a cos b + cos a sin b: sines of rows and of columns, not of pixels
    across = 2 * np.pi * (scene.waves[:, :1] * centres[None, :] + scene.waves[:, 2:] / 360)
    down = 2 * np.pi * scene.waves[:, 1:2] * centres[None, :]
    waves = jnp.einsum("wx,wy->yx", jnp.sin(across), jnp.cos(down)) + jnp.einsum(
        "wx,wy->yx", jnp.cos(across), jnp.sin(down)
    )
    texture = jnp.clip(0.5 + waves / 4, 0, 1)
    flat = jnp.zeros((size, size))
    shares = {"colour": flat, "gradient": gradient, "texture": texture}
    share = jnp.select(
        [scene.background == index for index in range(len(BACKGROUNDS))], [shares[name] for name in BACKGROUNDS]
    )
    return tones[0][:, None, None] + share[None] * (tones[1] - tones[0])[:, None, None]


_COS36, _SIN36 = np.cos(np.pi / 5), np.sin(np.pi / 5)
_COS72, _SIN72 = np.cos(2 * np.pi / 5), np.sin(2 * np.pi / 5)
