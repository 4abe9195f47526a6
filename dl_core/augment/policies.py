"""How augmentations are put together: keys for each image, operations in sequence, predictions averaged over views."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, Num

Augmentation = Callable[[Key[Array, "*keys"], Num[Array, "batch height width channels"]], Num[Array, "batch _ _ _"]]
ApplyFn = Callable[[Any, Float[Array, "batch height width channels"]], Float[Array, "batch classes"]]


def per_image_keys(key: Key[Array, ""] | Key[Array, " batch"], batch: int) -> Key[Array, " batch"]:
    """A key for each image: row i depends on (key, i) only, not on the size of the batch.

    A batch that is divided over devices, or cut into pieces, is augmented as the whole would be if each piece is given
    its own rows of these keys.

    Args:
      key: one key, or the keys themselves, which are returned as they are.
      batch: how many images.

    Returns:
      Keys of shape [batch].

    Raises:
      ValueError: as many keys as images were not given.
    """
    if key.ndim == 0:
        return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(batch))
    if key.shape != (batch,):
        raise ValueError(f"one key, or one for each of {batch} images, is needed; got keys of shape {key.shape}")
    return key


def sequence(*operations: Augmentation) -> Augmentation:
    """One augmentation that does the given ones in turn, each with keys of its own.

        augment = sequence(partial(random_crop, padding=4), random_flip)

    Args:
      operations: functions (key, images [batch, height, width, channels]) -> images. With none, images pass unchanged.

    Returns:
      A function (key, images) -> images.
    """

    def augment(key: Key[Array, "*keys"], images: Num[Array, "batch height width channels"]):
        keys = per_image_keys(key, len(images))
        for index, operation in enumerate(operations):
            images = operation(jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, index), images)
        return images

    return augment


def average_over_views(
    apply_fn: ApplyFn,
    views: Callable[[Float[Array, "batch height width channels"]], Float[Array, "batch views _ _ channels"]],
) -> ApplyFn:
    """Test-time augmentation: a classifier whose probabilities are the mean over several views of each image.

    Args:
      apply_fn: (params, images) -> logits [batch, classes].
      views: images -> views [batch, views, height, width, channels], e.g. `partial(ten_crop, size=28)`.

    Returns:
      (params, images) -> log of the mean probabilities [batch, classes], which serve as logits.
    """

    def averaged(params: Any, images: Float[Array, "batch height width channels"]) -> Float[Array, "batch classes"]:
        seen = views(images)
        logits = apply_fn(params, seen.reshape(-1, *seen.shape[2:]))
        log_probabilities = jax.nn.log_softmax(logits).reshape(*seen.shape[:2], -1)
        return jax.nn.logsumexp(log_probabilities, axis=1) - jnp.log(seen.shape[1])

    return averaged
