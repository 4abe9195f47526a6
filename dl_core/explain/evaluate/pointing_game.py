"""The pointing game: does the strongest point of an explanation lie on the object?

Zhang, Bargal, Lin, Brandt, Shen, Sclaroff (2018), "Top-down Neural Attention by Excitation Backprop",
https://arxiv.org/abs/1608.00507, section 4.1.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from dl_core.errors import UsageError
from dl_core.explain.evaluate.masks import Maps, Masks, check_masks, sum_of_channels


def pointing_game(attributions: Maps, masks: Masks, *, tolerance: float = 0.0) -> Float[Array, " batch"]:
    """Whether the pixel of the largest attribution is a pixel of the object.

    Where several pixels share the maximum, the result is the share of them on the object, which is what picking one of
    them at random scores; so a constant map scores the object's share of the area, and not 1.

    Args:
      attributions: [batch, height, width, channels], summed over the channels, or a map [batch, height, width].
      masks: [batch, height, width], True inside the object.
      tolerance: >= 0, in pixels: a maximum that is no farther than this from the object is a hit; the paper takes 15
        on photographs.

    Returns:
      1 (hit) or 0 (miss) for each example, or a share between for ties.

    Raises:
      UsageError: shapes that do not fit, masks that are no booleans or empty, a negative tolerance.
    """
    maps = sum_of_channels(attributions)
    masks = check_masks(masks, *maps.shape)
    if not 0 <= tolerance < np.inf:
        raise UsageError(f"tolerance must be a number of pixels from 0 up, got {tolerance}")
    return _share_of_maxima(maps, masks, tolerance=float(tolerance))


@functools.partial(jax.jit, static_argnames="tolerance")
def _share_of_maxima(
    maps: Float[Array, "batch height width"], masks: Bool[Array, "batch height width"], *, tolerance: float
) -> Float[Array, " batch"]:
    maxima = maps == maps.max(axis=(1, 2), keepdims=True)
    hits = maxima & _grow(masks, tolerance)
    return hits.sum(axis=(1, 2)) / maxima.sum(axis=(1, 2))


def _grow(masks: Bool[Array, "batch height width"], tolerance: float) -> Bool[Array, "batch height width"]:
    """The masks with all pixels no farther than tolerance from them."""
    radius = min(int(tolerance), max(masks.shape[1:]))
    if radius == 0:
        return masks
    offsets = np.arange(-radius, radius + 1)
    disc = (offsets[:, None] ** 2 + offsets[None] ** 2 <= tolerance**2).astype(np.float32)
    near = jax.lax.conv_general_dilated(
        masks[..., None].astype(jnp.float32), jnp.asarray(disc)[..., None, None], (1, 1), [(radius, radius)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip
    return near[..., 0] > 0.5
