"""Rotation, shear, scaling, translation, perspective: matrices, and one warp that moves the pixels.

A matrix [3, 3] maps points of the input to points of the output, (x, y, 1) in pixels: x to the right, y down. Pixel
(row i, column j) covers [j, j + 1] × [i, i + 1], its centre is (j + 0.5, i + 0.5), and boxes and key points are in the
same coordinates; so a matrix that moves an image also moves what is known about it (`dl_core.augment.targets`).
Several steps are one matrix, `compose(first, second, …)`, and are paid for, in time and in blur, once.

The formulas of affine matrices are in Szeliski, "Computer Vision: Algorithms and Applications", 2nd edition, section
2.1.1, https://szeliski.org/Book/.
"""

import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int, Key, Shaped

from dl_core.augment.policies import per_image_keys
from dl_core.errors import UsageError, unknown_name

Size = tuple[int, int]  # height and width in pixels
Fill = float | int | Sequence[float | int] | Shaped[Array | np.ndarray, "*channels"]
Matrices = Float[Array, "batch 3 3"]
Tap = tuple[Int[Array, "height width"], Float[Array, "height width"]]  # column or row of a neighbour, and its weight


def rotation(degrees: Float[Array, " batch"], size: Size) -> Matrices:
    """Turn about the centre of the image.

    Args:
      degrees: [batch], from x towards y: clockwise on the screen.
      size: height and width of the image.

    Returns:
      Matrices [batch, 3, 3].
    """
    angle = jnp.deg2rad(degrees)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return _about_centre([[cos, -sin], [sin, cos]], size)


def shear(x_factors: Float[Array, " batch"], y_factors: Float[Array, " batch"], size: Size) -> Matrices:
    """Slant along x, then along y, about the centre of the image; areas stay as they are.

    x' = x + x_factor · y, then y' = y + y_factor · x'. torchvision's shear by an angle is the factor -tan(angle).

    Args:
      x_factors: [batch], pixels to the right for each pixel down.
      y_factors: [batch], pixels down for each pixel to the right.
      size: height and width of the image.

    Returns:
      Matrices [batch, 3, 3].
    """
    one = jnp.ones_like(x_factors)
    return _about_centre([[one, x_factors], [y_factors, 1 + x_factors * y_factors]], size)


def scaling(factors: Float[Array, " batch"] | Float[Array, "batch 2"], size: Size) -> Matrices:
    """Enlarge about the centre of the image.

    Args:
      factors: [batch], or [batch, 2] along x and along y; above 1 enlarges, -1 mirrors, 0 is not allowed.
      size: height and width of the image.

    Returns:
      Matrices [batch, 3, 3].
    """
    x, y = (factors, factors) if factors.ndim == 1 else (factors[:, 0], factors[:, 1])
    zero = jnp.zeros_like(x)
    return _about_centre([[x, zero], [zero, y]], size)


def translation(dx: Float[Array, " batch"], dy: Float[Array, " batch"]) -> Matrices:
    """Shift.

    Args:
      dx: [batch], pixels to the right.
      dy: [batch], pixels down.

    Returns:
      Matrices [batch, 3, 3].
    """
    one, zero = jnp.ones_like(dx), jnp.zeros_like(dx)
    return _matrix([[one, zero, dx], [zero, one, dy], [zero, zero, one]])


def perspective(start: Float[Array, "batch 4 2"], end: Float[Array, "batch 4 2"]) -> Matrices:
    """The projective map that takes four points to four others (Szeliski, section 2.1.1).

    Args:
      start: [batch, 4, 2] points (x, y) of the input, no three on a line.
      end: [batch, 4, 2] where they go.

    Returns:
      Matrices [batch, 3, 3] whose last entry is 1.
    """
    (x, y), (u, v) = (jnp.moveaxis(points, -1, 0) for points in (start, end))  # each [batch, 4]
    one, zero = jnp.ones_like(x), jnp.zeros_like(x)
    for_u = jnp.stack([x, y, one, zero, zero, zero, -u * x, -u * y], axis=-1)
    for_v = jnp.stack([zero, zero, zero, x, y, one, -v * x, -v * y], axis=-1)
    equations = jnp.concatenate([for_u, for_v], axis=1)
    unknowns = jnp.linalg.solve(equations, jnp.concatenate([u, v], axis=1)[..., None])[..., 0]
    return jnp.concatenate([unknowns, jnp.ones_like(unknowns[:, :1])], axis=1).reshape(-1, 3, 3)


def compose(first: Matrices, *then: Matrices) -> Matrices:
    """One matrix for several steps, in the order in which they are done.

    The same as `last @ … @ first`, at full precision also on accelerators that round the factors of `@` to ten bits.

    Args:
      first: matrices [batch, 3, 3] of the first step.
      then: those of the following steps.

    Returns:
      Matrices [batch, 3, 3].
    """
    for matrices in then:
        first = jnp.matmul(matrices, first, precision=jax.lax.Precision.HIGHEST)
    return first


def inverse(matrices: Matrices) -> Matrices:
    """The way back (shapes [batch, 3, 3]), by cofactors: exact for whole-pixel shifts and mirror images."""
    (a, b, c), (d, e, f), (g, h, i) = (tuple(jnp.moveaxis(row, -1, 0)) for row in jnp.moveaxis(matrices, 1, 0))
    adjugate = _matrix(
        [
            [e * i - f * h, c * h - b * i, b * f - c * e],
            [f * g - d * i, a * i - c * g, c * d - a * f],
            [d * h - e * g, b * g - a * h, a * e - b * d],
        ]
    )
    determinant = a * (e * i - f * h) + b * (f * g - d * i) + c * (d * h - e * g)
    return adjugate / determinant[:, None, None]


def warp(
    images: Shaped[Array, "batch height width channels"],
    matrices: Matrices,
    *,
    method: str = "bilinear",
    fill: Fill = 0.0,
    size: Size | None = None,
) -> Shaped[Array, "batch _ _ channels"]:
    """Move every image by its matrix: each pixel of the output takes the value found where it comes from.

    What lies outside the image has the value `fill`, so the border blends into it over half a pixel, as in torchvision
    (tensors) and scikit-image (mode "constant"); Pillow repeats the border pixel there. Nothing is smoothed before
    pixels are left out: to shrink an image by more than about two, use `dl_core.augment.resize`.

    Args:
      images: [batch, height, width, channels] of any float dtype; with "nearest" of any dtype, e.g. masks.
      matrices: [batch, 3, 3] from the input to the output, invertible.
      method: "nearest", "bilinear" or "bicubic" (Keys 1981, a = -0.5, as scikit-image; torch has -0.75 and Pillow's
        Image.transform -1).
      fill: a number, or one for each channel.
      size: height and width of the output; those of the input by default. The origin is the upper left corner in both.

    Returns:
      Images [batch, *size, channels] of the same dtype.

    Raises:
      UsageError: an unknown method, matrices that do not fit the images or have no inverse, or whole numbers that are
        to be averaged.
    """
    if method not in _METHODS:
        raise unknown_name("method", method, _METHODS)
    _check_warp(images, matrices, method, size)
    height, width, channels = images.shape[1:]
    out_height, out_width = (height, width) if size is None else size
    outside = _fill_values(fill, channels, images.dtype)
    x, y = (jnp.arange(n, dtype=matrices.dtype) + 0.5 for n in (out_width, out_height))

    # dm_pix.affine_transform does a similar thing 100 times more slowly (it interpolates along the channels, too: eight
    # neighbours a value), and makes every pixel outside that is not wholly inside. Images one by one under vmap rather
    # than one flat gather, so that a batch divided over devices stays divided.
    def one(image: Shaped[Array, "height width channels"], inverse: Float[Array, "3 3"]):
        x_depth, y_depth, depth = (row[0] * x[None, :] + row[1] * y[:, None] + row[2] for row in inverse)
        pixels = image.reshape(height * width, channels)
        look_up = lambda row, column: pixels.at[row * width + column].get(mode="promise_in_bounds")
        columns, rows = (_METHODS[method](at / depth) for at in (x_depth, y_depth))
        if method == "nearest":
            (column, inside_x), (row, inside_y) = _inside(*columns[0], width), _inside(*rows[0], height)
            return jnp.where((inside_x * inside_y > 0)[..., None], look_up(row, column), outside)
        # what lies outside is left out of the sums and added as one term: less than half the time of a choice a pixel
        columns, rows = [_inside(*tap, width) for tap in columns], [_inside(*tap, height) for tap in rows]
        total, share = jnp.zeros((), image.dtype), jnp.zeros(())
        for (row, down), (column, right) in itertools.product(rows, columns):
            total += (down * right)[..., None] * look_up(row, column)
            share += down * right
        return (total + (1 - share)[..., None] * outside).astype(image.dtype)

    return jax.vmap(one)(images, inverse(matrices))


def random_affine_matrices(
    key: Key[Array, ""] | Key[Array, " batch"],
    batch: int,
    size: Size,
    *,
    degrees: float | int = 0.0,
    translate: tuple[float, float] = (0.0, 0.0),
    scale: tuple[float, float] = (1.0, 1.0),
    shear: tuple[float, float] = (0.0, 0.0),
) -> Float[Array, "batch 3 3"]:
    """What `random_affine` moves images by, for whatever has to move along.

    Shear, scaling, rotation, translation are done in this order (torchvision's), all but the last about the centre.

    Args:
      key: one key, or one for each image.
      batch: how many images.
      size: their height and width in pixels.
      degrees: the angle is uniform in [-degrees, degrees].
      translate: the largest shifts along x and y as shares of the width and of the height; uniform either way.
      scale: smallest and largest factor, > 0; uniform between.
      shear: the largest factors along x and y (see `shear`); uniform either way.

    Returns:
      Matrices [batch, 3, 3]; matrix i depends on (key, i) only.

    Raises:
      UsageError: a negative strength, or scale factors that are not 0 < smallest <= largest.
    """
    if min(degrees, *translate, *shear) < 0:
        raise UsageError(f"degrees, translate and shear must not be negative, got {degrees}, {translate} and {shear}")
    if not 0 < scale[0] <= scale[1]:
        raise UsageError(f"scale must be 0 < smallest <= largest, got {scale}")
    draw = lambda one: jax.random.uniform(one, (6,), minval=-1.0, maxval=1.0)
    drawn = jax.vmap(draw)(per_image_keys(key, batch))
    most = np.array([degrees, translate[0] * size[1], translate[1] * size[0], 1.0, *shear], np.float32)
    angle, dx, dy, share, shear_x, shear_y = jnp.moveaxis(drawn * most[None], 1, 0)
    factor = scale[0] + (scale[1] - scale[0]) * (share + 1) / 2
    slant = _about_centre([[jnp.ones_like(shear_x), shear_x], [shear_y, 1 + shear_x * shear_y]], size)
    return compose(slant, scaling(factor, size), rotation(angle, size), translation(dx, dy))


def random_affine(
    key: Key[Array, ""] | Key[Array, " batch"],
    images: Shaped[Array, "batch height width channels"],
    *,
    degrees: float | int = 0.0,
    translate: tuple[float, float] = (0.0, 0.0),
    scale: tuple[float, float] = (1.0, 1.0),
    shear: tuple[float, float] = (0.0, 0.0),
    method: str = "bilinear",
    fill: Fill = 0.0,
) -> Shaped[Array, "batch height width channels"]:
    """Turn, shift, enlarge and slant every image by numbers of its own, in one warp.

    Args:
      key: one key, or one for each image.
      images: [batch, height, width, channels]; see `warp`.
      degrees: the angle is uniform in [-degrees, degrees].
      translate: the largest shifts along x and y as shares of the width and of the height.
      scale: smallest and largest factor, > 0.
      shear: the largest factors along x and y.
      method: see `warp`.
      fill: see `warp`.

    Returns:
      Images of the same size.

    Raises:
      UsageError: see `random_affine_matrices` and `warp`.
    """
    size = images.shape[1], images.shape[2]
    matrices = random_affine_matrices(
        key, len(images), size, degrees=degrees, translate=translate, scale=scale, shear=shear
    )
    return warp(images, matrices, method=method, fill=fill)


def random_rotate(
    key: Key[Array, ""] | Key[Array, " batch"],
    images: Shaped[Array, "batch height width channels"],
    *,
    degrees: float | int,
    method: str = "bilinear",
    fill: Fill = 0.0,
) -> Shaped[Array, "batch height width channels"]:
    """`random_affine` that only turns: images [batch, height, width, channels], by up to `degrees` either way."""
    return random_affine(key, images, degrees=degrees, method=method, fill=fill)


def random_shear(
    key: Key[Array, ""] | Key[Array, " batch"],
    images: Shaped[Array, "batch height width channels"],
    *,
    shear: tuple[float, float],
    method: str = "bilinear",
    fill: Fill = 0.0,
) -> Shaped[Array, "batch height width channels"]:
    """`random_affine` that only slants: images [batch, height, width, channels], by up to these factors either way."""
    return random_affine(key, images, shear=shear, method=method, fill=fill)


def random_scale(
    key: Key[Array, ""] | Key[Array, " batch"],
    images: Shaped[Array, "batch height width channels"],
    *,
    scale: tuple[float, float],
    method: str = "bilinear",
    fill: Fill = 0.0,
) -> Shaped[Array, "batch height width channels"]:
    """`random_affine` that only enlarges or shrinks: images [batch, height, width, channels], the frame stays."""
    return random_affine(key, images, scale=scale, method=method, fill=fill)


def random_perspective_matrices(
    key: Key[Array, ""] | Key[Array, " batch"], batch: int, size: Size, *, distortion: float = 0.5
) -> Matrices:
    """The image as seen from the side: each corner moves inwards, by up to half the side times `distortion`.

    The corners are drawn as in torchvision's RandomPerspective, without rounding them to whole pixels.

    Args:
      key: one key, or one for each image.
      batch: how many images.
      size: their height and width in pixels.
      distortion: in [0, 1); 0 is the identity.

    Returns:
      Matrices [batch, 3, 3] for `warp`; matrix i depends on (key, i) only.

    Raises:
      UsageError: a distortion out of its range.
    """
    if not 0 <= distortion < 1:
        raise UsageError(f"distortion must lie in [0, 1), got {distortion}")
    height, width = size
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
    inwards = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]], np.float32) * np.array([width, height]) * distortion / 2
    drawn = jax.vmap(lambda one: jax.random.uniform(one, (4, 2)))(per_image_keys(key, batch))
    start = jnp.broadcast_to(jnp.asarray(corners)[None], (batch, 4, 2))
    return perspective(start, start + drawn * inwards.astype(np.float32)[None])


def _nearest(at: Float[Array, "height width"]) -> list[Tap]:
    return [(jnp.floor(at).astype(jnp.int32), jnp.ones_like(at))]


def _bilinear(at: Float[Array, "height width"]) -> list[Tap]:
    before = jnp.floor(at - 0.5)
    t, index = at - 0.5 - before, before.astype(jnp.int32)
    return [(index, 1 - t), (index + 1, t)]


def _bicubic(at: Float[Array, "height width"]) -> list[Tap]:
    before = jnp.floor(at - 0.5)
    t, index = at - 0.5 - before, before.astype(jnp.int32)
    near, far = (lambda d: (1.5 * d - 2.5) * d * d + 1), (lambda d: ((-0.5 * d + 2.5) * d - 4) * d + 2)
    return [(index - 1, far(t + 1)), (index, near(t)), (index + 1, near(1 - t)), (index + 2, far(2 - t))]


_METHODS: dict[str, Callable[[Float[Array, "height width"]], list[Tap]]] = {
    "nearest": _nearest,
    "bilinear": _bilinear,
    "bicubic": _bicubic,
}


def _inside(index: Int[Array, "height width"], weight: Float[Array, "height width"], length: int) -> Tap:
    """The nearest place that exists, with weight 0 if it is another one."""
    return jnp.clip(index, 0, length - 1), jnp.where((index >= 0) & (index < length), weight, 0)


def _matrix(rows: list[list[Float[Array, " batch"]]]) -> Matrices:
    return jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)


def _about_centre(linear: list[list[Float[Array, " batch"]]], size: Size) -> Matrices:
    """The matrix with this linear part that leaves the centre of the image where it is."""
    (a, b), (c, d) = linear
    x, y = size[1] / 2, size[0] / 2
    zero, one = jnp.zeros_like(a), jnp.ones_like(a)
    return _matrix([[a, b, x - a * x - b * y], [c, d, y - c * x - d * y], [zero, zero, one]])


def _fill_values(fill: Fill, channels: int, dtype: jnp.dtype) -> Shaped[Array, "1 1 channels"]:
    values = jnp.asarray(fill, dtype)
    if values.shape not in {(), (channels,)}:
        raise UsageError(f"fill must be one number or one for each of {channels} channels, got shape {values.shape}")
    return jnp.broadcast_to(values.reshape(1, 1, -1), (1, 1, channels))


def _check_warp(images: Shaped[Array, "..."], matrices: Float[Array, "..."], method: str, size: Size | None) -> None:
    if images.ndim != 4 or matrices.shape != (images.shape[0], 3, 3):
        shapes = f"{list(images.shape)} and {list(matrices.shape)}"
        raise UsageError(f"warp needs images [batch, height, width, channels] and matrices [batch, 3, 3]; got {shapes}")
    if 0 in images.shape[1:3] or (size is not None and min(size) < 1):
        raise UsageError(f"height and width must be at least 1, got images {list(images.shape)} and size {size}")
    if method != "nearest" and not jnp.issubdtype(images.dtype, jnp.floating):
        raise UsageError(f'{method} averages, and {images.dtype} cannot hold a mean: use method="nearest" or floats')
    if not isinstance(matrices, Tracer):
        given = np.asarray(matrices, np.float64)
        finite = np.all(np.isfinite(given), axis=(1, 2))
        good = finite & (np.abs(np.linalg.det(np.where(finite[:, None, None], given, 0))) > 1e-12)
        if not good.all():
            raise UsageError(f"matrices must be finite and invertible; matrix {int(good.argmin())} is not")
