"""What is removed or kept together when explanations are put to the test: pixels, patches, or groups of the user's own.

A feature is a set of input values with one number. Its attribution is the sum of the attributions of its values, over
the channels too.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int, Integer, Shaped

from dl_core.augment.filters import separable_filter
from dl_core.errors import UsageError

Attributions = Float[Array | np.ndarray, "batch ..."]
Baselines = Float[Array | np.ndarray, "..."] | float | str
FeatureMask = Integer[Array | np.ndarray, "..."] | None
PatchSize = int | tuple[int, ...]


def check_attributions(
    inputs: Float[Array | np.ndarray, "batch ..."], attributions: Attributions
) -> Float[Array, "batch ..."]:
    """The attributions [batch, ...] as an array, if they have the shape of the inputs and are finite.

    Raises:
      UsageError: another shape, no floating numbers, or (outside of `jit`) nan or infinite values.
    """
    shape, wanted = list(jnp.shape(attributions)), list(jnp.shape(inputs))
    if shape != wanted:
        raise UsageError(
            f"attributions must have the shape of the inputs, {wanted}, got {shape}; spread a map over the channels by "
            "jnp.broadcast_to(map[..., None] / channels, inputs.shape)"
        )
    if not jnp.issubdtype(jnp.result_type(attributions), jnp.floating):
        raise UsageError(f"attributions must be floating numbers, got {jnp.result_type(attributions)}")
    if not isinstance(attributions, Tracer):  # by NumPy: inside of jit, what jnp makes of a known array is a tracer
        finite = np.isfinite(np.asarray(attributions, np.float32)).reshape(len(attributions), -1).all(axis=1)
        if not finite.all():
            raise UsageError(
                f"attributions must be finite; those of the examples {np.flatnonzero(~finite)[:5].tolist()} are not"
            )
    return jnp.asarray(attributions)


def as_baselines(baselines: Baselines, inputs: Float[Array, "batch ..."]) -> Float[Array, "batch ..."]:
    """What takes the place of removed values, in the shape of the inputs.

    Args:
      baselines: one number; values of the shape of one example or of all; or "blurred", the images under a Gaussian
        of a tenth of their shorter side.
      inputs: the examples.

    Raises:
      UsageError: a shape that does not fit, or a word other than "blurred".
    """
    if isinstance(baselines, str):
        if baselines != "blurred" or inputs.ndim != 4:
            raise UsageError(
                f'baselines must be a number, an array or (for [batch, height, width, channels]) "blurred"; got '
                f"{baselines!r} for inputs {list(inputs.shape)}"
            )
        radius = int(np.ceil(3 * min(inputs.shape[1:3]) / 10))
        weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / (min(inputs.shape[1:3]) / 10)) ** 2)[None]
        return separable_filter(inputs, jnp.asarray(weights / weights.sum(), inputs.dtype), mode="edge")
    baselines = jnp.asarray(baselines, inputs.dtype)
    if baselines.shape not in ((), inputs.shape[1:], (1, *inputs.shape[1:]), inputs.shape):
        raise UsageError(
            f"baselines must be one number, one example {list(inputs.shape[1:])} or one for each {list(inputs.shape)}; "
            f"got {list(baselines.shape)}"
        )
    lifted = baselines.reshape((1,) * (inputs.ndim - baselines.ndim) + baselines.shape)
    return jnp.broadcast_to(lifted, inputs.shape)


def number_features(
    inputs: Shaped[Array, "batch ..."], patch_size: PatchSize, feature_mask: FeatureMask
) -> tuple[Int[np.ndarray, "..."], int]:
    """The number of the feature that each input value belongs to, and how many features there are.

    Args:
      inputs: the examples [batch, ...spatial axes, channels], or [batch, features].
      patch_size: side of a patch, or one for each spatial axis; 1 makes every pixel a feature. Patches at the far edge
        may be smaller.
      feature_mask: numbers from 0 in place of patches, e.g. superpixels; broadcast against the inputs from the right,
        so that [batch, height, width, 1] goes for all channels. The same number in several places is one feature.

    Returns:
      Numbers [batch or 1, ...], of as many axes as the inputs and broadcast against them; the count.

    Raises:
      UsageError: a patch_size below 1 or for another number of axes; a mask of another shape, with negative numbers,
        or unknown inside of `jit`; both a mask and a patch_size.
    """
    if feature_mask is not None:
        return _numbers_of_mask(inputs.shape, patch_size, feature_mask)
    spatial = inputs.shape[1:-1] if inputs.ndim > 2 else inputs.shape[1:]
    sizes = (patch_size,) * len(spatial) if isinstance(patch_size, int) else tuple(patch_size)
    if len(sizes) != len(spatial) or min(sizes) < 1:
        raise UsageError(
            f"patch_size must be a number from 1 up, or {len(spatial)} of them for the axes {list(spatial)}; got "
            f"{patch_size}"
        )
    counts = [-(-side // size) for side, size in zip(spatial, sizes, strict=True)]
    places = [np.arange(side) // size for side, size in zip(spatial, sizes, strict=True)]
    numbers = np.ravel_multi_index(np.meshgrid(*places, indexing="ij"), counts).astype(np.int32)
    return numbers.reshape(1, *spatial, *((1,) if inputs.ndim > 2 else ())), int(np.prod(counts))


def _numbers_of_mask(
    shape: tuple[int, ...], patch_size: PatchSize, feature_mask: Any
) -> tuple[Int[np.ndarray, "..."], int]:
    if patch_size != 1:
        raise UsageError(f"give patch_size or feature_mask, not both; got patch_size {patch_size} beside a mask")
    if isinstance(feature_mask, Tracer):
        raise UsageError("feature_mask must be known outside of jit and vmap: the number of features is read from it")
    numbers = np.asarray(feature_mask)
    lifted = numbers.reshape((1,) * (len(shape) - numbers.ndim) + numbers.shape) if numbers.ndim <= len(shape) else None
    if lifted is None or any(given not in (1, side) for given, side in zip(lifted.shape, shape, strict=True)):
        raise UsageError(
            f"feature_mask must be broadcast against the inputs {list(shape)}, e.g. {[*shape[:-1], 1]}; got "
            f"{list(numbers.shape)}"
        )
    if not np.issubdtype(numbers.dtype, np.integer) or numbers.size == 0 or numbers.min() < 0:
        raise UsageError("feature_mask must hold whole numbers from 0 up, one for each feature")
    return lifted.astype(np.int32), int(numbers.max()) + 1


def sum_by_feature(
    values: Float[Array, "batch ..."], numbers: Integer[Array | np.ndarray, "..."], num_features: int
) -> Float[Array, "batch features"]:
    """The sum of the values of each feature, in at least float32.

    Args:
      values: of the shape of the inputs.
      numbers, num_features: of `number_features`.
    """
    values = values.astype(jnp.promote_types(values.dtype, jnp.float32))
    if numbers.shape[-1] == 1:
        values = values.sum(axis=-1, keepdims=True)
    spread = jnp.broadcast_to(jnp.asarray(numbers), values.shape).reshape(len(values), -1)
    add = lambda row, places: jax.ops.segment_sum(row, places, num_segments=num_features)
    return jax.vmap(add)(values.reshape(len(values), -1), spread)


def spread_over_inputs(
    by_feature: Shaped[Array, "batch features"], numbers: Integer[Array | np.ndarray, "..."]
) -> Shaped[Array, "batch ..."]:
    """Each feature's value at its places: [batch, ...], to be broadcast against the inputs.

    Args:
      by_feature: one value for each feature.
      numbers: of `number_features`.
    """
    spread = jnp.broadcast_to(jnp.asarray(numbers), (len(by_feature), *numbers.shape[1:]))
    return jax.vmap(lambda values, places: values[places])(by_feature, spread)
