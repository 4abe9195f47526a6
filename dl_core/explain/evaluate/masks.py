"""Maps and masks of objects: what every test of where the relevance lies asks of them."""

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Shaped

from dl_core.errors import UsageError

Maps = Float[Array | np.ndarray, "batch ..."]
Masks = Shaped[Array | np.ndarray, "batch ..."]


def check_masks(masks: Masks, batch: int, height: int, width: int) -> Bool[Array, "batch height width"]:
    """The masks as an array, if there is an object in each of them.

    Raises:
      UsageError: no booleans, another shape, or (outside of `jit`) a mask without a pixel.
    """
    if jnp.result_type(masks) != jnp.bool_:
        raise UsageError(f"masks must be booleans, True inside the object; got {jnp.result_type(masks)}")
    if jnp.shape(masks) != (batch, height, width):
        raise UsageError(f"masks must have the shape {[batch, height, width]}, got {list(jnp.shape(masks))}")
    if not isinstance(masks, Tracer):
        empty = np.flatnonzero(~np.asarray(masks).any(axis=(1, 2)))
        if empty.size:
            raise UsageError(
                f"each mask must hold an object; those of the examples {empty[:5].tolist()} are empty, leave them out"
            )
    return jnp.asarray(masks)


def sum_of_channels(attributions: Maps) -> Float[Array, "batch height width"]:
    """[batch, height, width, channels] as one map, in at least float32; a map [batch, height, width] stays one.

    Raises:
      UsageError: another number of axes.
    """
    if jnp.ndim(attributions) not in (3, 4):
        raise UsageError(
            "attributions must be [batch, height, width, channels] or [batch, height, width], got "
            f"{list(jnp.shape(attributions))}"
        )
    attributions = jnp.asarray(attributions)
    attributions = attributions.astype(jnp.promote_types(attributions.dtype, jnp.float32))
    return attributions.sum(axis=3) if attributions.ndim == 4 else attributions


def area_share(masks: Bool[Array | np.ndarray, "batch height width"]) -> Float[Array, " batch"]:
    """Share of the image that lies inside the object: what relevance of no information scores.

    Args:
      masks: True inside the object.

    Returns:
      One number in [0, 1] for each example.
    """
    return jnp.asarray(masks).mean(axis=(1, 2))
