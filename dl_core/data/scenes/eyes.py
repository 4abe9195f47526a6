"""Procedural eyes: an image from which a direction of 0 to 360 degrees, or a share between 0 and 1, can be read.

One eye is drawn from a description of integers, as scenes are. The gaze is the direction in which the iris is displaced
from the middle of the eyeball: 0 to the right of the image, 90 down, 180 left, 270 up (clockwise on the screen, as all
angles of scenes). How far it is displaced, the size, place and tilt of the eye, lids, pupil, colours, light and noise
are drawn independently of it, so that nothing but the displacement tells the gaze.

Two styles: "plain" is flat colours with sharp edges; "photographic" adds shading, a shadow and lashes under the upper
lid, a structured iris, a highlight, blur and noise. Neither is a photograph.

eyes = sample_eyes(key_of(0), 0, 64)           # integers
images = render_eyes(eyes, 32)                 # uint8 [64, 32, 32, 3]
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int, Key, UInt8

from dl_core.data.scenes.description import SIDE, key_of
from dl_core.errors import UsageError, unknown_name

STYLES = ("plain", "photographic")
TARGETS = {"gaze": "gaze angle", "lid_opening": "lid opening", "pupil_size": "pupil size"}
CHUNK = 256  # eyes rendered by one call of the compiled program
IRIS = 0.36  # radius of the iris, in half-widths of the eye
REACH = 0.34  # farthest displacement of the iris, in half-widths
UPPER, LOWER = 0.84, 0.62  # height of the open lids over the middle, in half-widths
WIDEST_BLUR = 0.8  # standard deviation, in 1/32 of the side

_BOUNDS = {
    "gaze": (0, 3599),
    "displacement": (55, 100),
    "lid_opening": (50, 100),
    "pupil": (25, 60),
    "width": (330, 430),
    "x": (SIDE // 2 - 70, SIDE // 2 + 70),
    "y": (SIDE // 2 - 70, SIDE // 2 + 70),
    "tilt": (-8, 8),
    "iris_hue": (0, 359),
    "iris_level": (25, 70),
    "skin": (0, 100),
    "light": (0, 359),
    "brightness": (70, 100),
    "blur": (0, round(100 * WIDEST_BLUR)),
    "noise": (1, 5),
    "grain": (0, 2**30),
}
_DARK_SKIN, _FAIR_SKIN = (0.30, 0.19, 0.14), (0.96, 0.80, 0.70)
Map = Float[Array, "size size"]


class Eye(NamedTuple):
    """One eye, in integers; a batch has a leading axis on every field. Lengths are in 1/1024 of the image's side."""

    gaze: Int[Array, "*batch"]  # tenths of a degree, [0, 3600)
    displacement: Int[Array, "*batch"]  # of the iris, percent of the farthest
    lid_opening: Int[Array, "*batch"]  # percent
    pupil: Int[Array, "*batch"]  # radius, percent of the iris's
    width: Int[Array, "*batch"]  # from the middle of the eye to a corner
    x: Int[Array, "*batch"]  # of the middle of the eye
    y: Int[Array, "*batch"]
    tilt: Int[Array, "*batch"]  # of the line between the corners, degrees
    iris_hue: Int[Array, "*batch"]  # degrees
    iris_level: Int[Array, "*batch"]  # percent
    skin: Int[Array, "*batch"]  # percent of the way from dark to fair
    light: Int[Array, "*batch"]  # where it comes from, degrees
    brightness: Int[Array, "*batch"]  # percent
    blur: Int[Array, "*batch"]  # standard deviation, hundredths of 1/32 of the side; photographic only
    noise: Int[Array, "*batch"]  # standard deviation, percent; photographic only
    grain: Int[Array, "*batch"]  # seed of the noise
    style: Int[Array, "*batch"]  # index into STYLES


def sample_eyes(key: Key[Array, ""], first: int | Int[Array, ""], n: int, *, style: str = "both") -> Eye:
    """Eyes `first` to `first + n` of the endless sequence that the key stands for; eye i depends on (key, i) only.

    Args:
      key: from `key_of`, of shape [].
      first: index of the first, >= 0.
      n: how many.
      style: "plain", "photographic", or "both" in equal parts.

    Returns:
      An Eye with a leading axis [n]; every field is uniform and independent of the others.

    Raises:
      UsageError: an unknown style.
    """
    styles = STYLES if style == "both" else (style,)
    if style not in (*STYLES, "both"):
        raise unknown_name("style", style, (*STYLES, "both"))
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(first + jnp.arange(n))
    bits = jax.vmap(lambda k: jax.random.bits(k, (len(_BOUNDS) + 1,)))(keys)
    low = np.array([a for a, _ in _BOUNDS.values()], np.int32)
    span = np.array([b - a + 1 for a, b in _BOUNDS.values()], np.uint32)
    drawn = low[None] + (bits[:, :-1] % span[None]).astype(jnp.int32)
    chosen = jnp.array([STYLES.index(name) for name in styles], jnp.int32)[bits[:, -1] % len(styles)]
    return Eye(**dict(zip(_BOUNDS, drawn.T, strict=True)), style=chosen)


def eye_value(eye: Eye, target: str) -> Float[Array, "*batch"]:
    """What is to be read from an eye (a single one, or a batch [n]).

    Args:
      eye: its description.
      target: "gaze", in degrees in [0, 360); "lid_opening", or "pupil_size" relative to the iris, in [0, 1].

    Returns:
      float32.

    Raises:
      UsageError: an unknown target.
    """
    if target not in TARGETS:
        raise unknown_name("target", target, TARGETS)
    values, unit = {
        "gaze": (eye.gaze, 10),
        "lid_opening": (eye.lid_opening, 100),
        "pupil_size": (eye.pupil, 100),
    }[target]
    return values.astype(jnp.float32) / unit


def render_eye(eye: Eye, size: int) -> Float[Array, "size size 3"]:
    """The image of one eye.

    Args:
      eye: without a batch axis.
      size: height and width in pixels.

    Returns:
      RGB in [0, 1].
    """
    return jnp.where(eye.style == 1, _photographic(eye, size), _plain(eye, size))


def render_eyes(eyes: Eye, size: int) -> UInt8[Array, "batch size size 3"]:
    """The images of a batch of eyes; arguments as in `render_eye`."""
    images = jax.vmap(lambda eye: render_eye(eye, size))(eyes)
    return (images * 255 + 0.5).astype(jnp.uint8)


def eye_examples(
    seed: int, n: int, *, size: int = 32, target: str = "gaze", style: str = "both", first: int = 0
) -> tuple[UInt8[np.ndarray, "n size size 3"], Float32[np.ndarray, " n"]]:
    """Images and values, the same descriptions for the same arguments on every machine.

    Args:
      seed: names an endless sequence of eyes.
      n: how many to take.
      size: height and width in pixels.
      target: see `eye_value`.
      style: see `sample_eyes`.
      first: index of the first eye taken, so that splits of one sequence share none.

    Returns:
      Images [n, size, size, 3] and values [n].

    Raises:
      UsageError: an unknown target or style, or a number below one.
    """
    if min(n, size) < 1:
        raise UsageError(f"n and size must be at least 1, got {n} and {size}")
    images, values = np.empty((n, size, size, 3), np.uint8), np.empty(n, np.float32)
    for start in range(0, n, CHUNK):
        stop = min(start + CHUNK, n)
        drawn = _draw(key_of(seed), first + start, size, target, style)
        images[start:stop], values[start:stop] = (np.asarray(array)[: stop - start] for array in drawn)
    return images, values


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _draw(
    key: Key[Array, ""], first: Int[Array, ""], size: int, target: str, style: str
) -> tuple[UInt8[Array, "chunk size size 3"], Float[Array, " chunk"]]:
    eyes = sample_eyes(key, first, CHUNK, style=style)
    return render_eyes(eyes, size), eye_value(eyes, target)


class _Geometry(NamedTuple):
    """Where things are, in half-widths of the eye; signed distances are negative inside."""

    x: Map  # along the line between the corners
    y: Map
    opening: Map  # distance from the gap between the lids
    upper: Map  # distance below the edge of the upper lid, positive below
    iris: Map  # distance from the iris
    pupil: Map
    around: Map  # angle around the middle of the iris, radians
    radius: Map  # distance from the middle of the iris
    middle: Float[Array, "2"]  # of the iris
    pixels: Float[Array, ""]  # pixels in a half-width


def _geometry(eye: Eye, size: int) -> _Geometry:
    centres = (jnp.arange(size, dtype=jnp.float32) + 0.5) * (SIDE / size)
    across, down = ((centres - middle) / eye.width for middle in (eye.x, eye.y))
    tilt, gaze = (jnp.deg2rad(angle.astype(jnp.float32)) for angle in (eye.tilt, eye.gaze / 10))
    x = (jnp.cos(tilt) * across)[None, :] + (jnp.sin(tilt) * down)[:, None]
    y = (jnp.cos(tilt) * down)[:, None] - (jnp.sin(tilt) * across)[None, :]
    share = eye.lid_opening / 100
    bow = jnp.maximum(1 - x * x, -0.5)
    upper, lower = y + UPPER * share * bow, LOWER * (0.4 + 0.6 * share) * bow - y
    # the gaze is a direction of the image: the tilt of the lids does not turn it
    middle = REACH * eye.displacement / 100 * jnp.stack([jnp.cos(gaze - tilt), jnp.sin(gaze - tilt)])
    dx, dy = x - middle[0], y - middle[1]
    radius = jnp.sqrt(dx * dx + dy * dy)
    return _Geometry(
        x, y, -jnp.minimum(upper, lower) / jnp.sqrt(1 + x * x), upper, radius - IRIS,
        radius - IRIS * eye.pupil / 100, jnp.arctan2(dy, dx), radius, middle, eye.width * (size / SIDE),
    )  # fmt: skip


def _over(below: Float[Array, "size size 3"], colour: Array, share: Map) -> Float[Array, "size size 3"]:
    return below + share[..., None] * (colour - below)


def _rgb(hue: Int[Array, ""], saturation: float, value: Float[Array, ""]) -> Float[Array, "1 1 3"]:
    sector = (jnp.array([5.0, 3.0, 1.0]) + hue / 60) % 6
    return (value * (1 - saturation * jnp.clip(jnp.minimum(sector, 4 - sector), 0, 1)))[None, None]


def _skin(eye: Eye) -> Float[Array, "1 1 3"]:
    dark, fair = jnp.array(_DARK_SKIN), jnp.array(_FAIR_SKIN)
    return (dark + eye.skin / 100 * (fair - dark))[None, None]


def _plain(eye: Eye, size: int) -> Float[Array, "size size 3"]:
    """Flat colours: skin, white of the eye, iris, pupil, and a dark line around the gap."""
    place = _geometry(eye, size)
    inside = lambda distance: jnp.clip(0.5 - distance * place.pixels, 0, 1)
    image = jnp.broadcast_to(_skin(eye), (size, size, 3))
    ball = jnp.full((size, size, 3), 0.97)
    ball = _over(ball, _rgb(eye.iris_hue, 0.65, eye.iris_level / 100), inside(place.iris))
    ball = _over(ball, jnp.full((1, 1, 3), 0.04), inside(place.pupil))
    image = _over(image, 0.35 * _skin(eye), inside(place.opening - 0.06))
    image = _over(image, ball, inside(place.opening))
    return image * (eye.brightness / 100)


def _photographic(eye: Eye, size: int) -> Float[Array, "size size 3"]:
    """The same eye with soft edges, light from one side, lashes, a structured iris, a highlight, blur and noise."""
    place = _geometry(eye, size)
    soft = lambda distance, width: jax.nn.sigmoid(-4 * distance / width)
    edge = 1.5 / place.pixels  # about a pixel and a half
    light = jnp.deg2rad(eye.light.astype(jnp.float32))
    lit = jnp.cos(light) * place.x + jnp.sin(light) * place.y

    socket = jnp.exp(-(place.x**2 + (2 * (place.y + 0.7)) ** 2))  # darker below the brow
    skin = _skin(eye) * (1 + 0.12 * lit - 0.25 * socket)[..., None]
    crease = jnp.exp(-(((place.upper + 0.22) / 0.05) ** 2)) * (jnp.abs(place.x) < 1)
    skin = skin * (1 - 0.3 * crease)[..., None]

    globe = jnp.clip(1 - 0.35 * (place.x**2 + place.y**2), 0, 1)  # a ball: darker towards its rim
    ball = jnp.array([0.95, 0.92, 0.90])[None, None] * globe[..., None]
    fibres = 0.5 + 0.5 * jnp.sin(17 * place.around + 3 * jnp.sin(5 * place.around))
    tone = 0.75 + 0.35 * fibres * (1 - place.radius / IRIS)
    limbus = 1 - 0.55 * jnp.exp(-((place.iris / 0.05) ** 2))  # the dark ring around the iris
    iris = _rgb(eye.iris_hue, 0.5, eye.iris_level / 100) * (tone * limbus)[..., None]
    ball = _over(ball, iris, soft(place.iris, edge))
    ball = _over(ball, jnp.full((1, 1, 3), 0.03), soft(place.pupil, edge))
    ball = ball * (1 - 0.45 * jnp.exp(-jnp.maximum(place.upper, 0) / 0.12))[..., None]  # the lid's shadow
    spot = place.middle + 0.16 * jnp.stack([jnp.cos(light), jnp.sin(light)])
    shine = jnp.exp(-((place.x - spot[0]) ** 2 + (place.y - spot[1]) ** 2) / 0.004)
    ball = _over(ball, jnp.ones((1, 1, 3)), 0.85 * shine)

    image = _over(skin, ball, soft(place.opening, edge))
    lashes = jnp.exp(-((place.upper / 0.06) ** 2)) * (jnp.abs(place.x) < 1.02)
    image = _over(image, 0.2 * _skin(eye), 0.8 * lashes) * (eye.brightness / 100)
    image = _blur(image, eye.blur / 100 * (size / 32))
    noise = jax.random.normal(jax.random.key(eye.grain, impl="threefry2x32"), (size, size, 3))
    return jnp.clip(image + eye.noise / 100 * noise, 0, 1)


def _blur(image: Float[Array, "size size 3"], sigma: Float[Array, ""]) -> Float[Array, "size size 3"]:
    """Gaussian, by shifted sums along each axis, out to two and a half of the widest standard deviation."""
    reach = math.ceil(2.5 * WIDEST_BLUR * len(image) / 32)
    offsets = range(-reach, reach + 1)
    weights = jnp.exp(-0.5 * (jnp.array(offsets) / jnp.maximum(sigma, 0.05)) ** 2)
    weights = weights / weights.sum()
    for axis in (0, 1):
        padded = jnp.pad(image, [(reach, reach) if a == axis else (0, 0) for a in range(3)], mode="edge")
        shifted = [jax.lax.slice_in_dim(padded, k, k + image.shape[axis], axis=axis) for k in range(2 * reach + 1)]
        image = sum((w * part for w, part in zip(weights, shifted, strict=True)), jnp.zeros_like(image))
    return image
