"""How augmentations are put together: keys for each image, operations in sequence, predictions averaged over views.

Shapes are the same whatever is drawn, as compiled programs need it: where a few images are to be changed, all of them
are, and those that were not meant keep their old values.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key, Num

from dl_core.errors import UsageError
from dl_core.optim.options import Number, in_interval

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
            images = operation(_folded(keys, index), images)
        return images

    return augment


def random_apply(operation: Augmentation, probability: Number) -> Augmentation:
    """An augmentation that is done to some of the images.

        augment = random_apply(lambda _, images: grayscale(images), 0.2)

    It is computed for all of them: the cost does not depend on the probability.

    Args:
      operation: (key, images [batch, height, width, channels]) -> images of the same shape.
      probability: of an image to be changed, in [0, 1]; may be traced.

    Returns:
      A function (key, images) -> images.

    Raises:
      UsageError: the probability out of its range; when called, an operation that changes the shape.
    """
    in_interval("probability", probability, "[0, 1]")

    def augment(key: Key[Array, "*keys"], images: Num[Array, "batch height width channels"]):
        keys = per_image_keys(key, len(images))
        chosen = jax.vmap(lambda one: jax.random.bernoulli(jax.random.fold_in(one, 0), probability))(keys)
        return _where(chosen, operation(_folded(keys, 1), images), images)

    return augment


def one_of(*operations: Augmentation, weights: Sequence[float | int] | None = None) -> Augmentation:
    """An augmentation that does one of several to each image, another one to another image.

    All of them are computed and one is kept: n operations cost what n in sequence do. `rand_augment` shares the work.

    Args:
      operations: functions (key, images [batch, height, width, channels]) -> images of the same shape; at least one.
      weights: how likely each is, >= 0, relative to their sum; equally likely by default.

    Returns:
      A function (key, images) -> images.

    Raises:
      UsageError: no operation, weights that do not fit; when called, an operation that changes the shape.
    """
    if not operations:
        raise UsageError("one_of needs at least one operation, e.g. one_of(random_flip, sequence())")
    shares = np.ones(len(operations)) if weights is None else np.asarray(weights, np.float64)
    if shares.shape != (len(operations),) or not (shares >= 0).all() or not 0 < shares.sum() < np.inf:
        raise UsageError(f"weights must be {len(operations)} numbers >= 0, not all of them 0; got {weights}")
    upper = np.cumsum(shares / shares.sum())[:-1]

    def augment(key: Key[Array, "*keys"], images: Num[Array, "batch height width channels"]):
        keys = per_image_keys(key, len(images))
        drawn = jax.vmap(lambda one: jax.random.uniform(jax.random.fold_in(one, 0)))(keys)
        choice = (drawn[:, None] >= jnp.asarray(upper, drawn.dtype)[None]).sum(axis=1)
        result = images
        for index, operation in enumerate(operations):
            result = _where(choice == index, operation(_folded(keys, index + 1), images), result)
        return result

    return augment


def crop_and_flip(*, padding: int = 4) -> Augmentation:
    """The usual recipe for small images: padded by zeros, cut to the old size anywhere, mirrored or not.

    He, Zhang, Ren, Sun (2016), "Deep Residual Learning for Image Recognition", section 4.2.

    Args:
      padding: pixels on every side, >= 0. Images are [batch, height, width, channels] of any dtype.

    Returns:
      A function (key, images) -> images.

    Raises:
      UsageError: negative padding, when called.
    """
    from dl_core.augment import geometric  # it takes its keys from here

    return sequence(lambda key, images: geometric.random_crop(key, images, padding=padding), geometric.random_flip)


def _folded(keys: Key[Array, " batch"], index: int) -> Key[Array, " batch"]:
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, index)


def _where(
    chosen: Bool[Array, " batch"], changed: Num[Array, "batch _ _ _"], images: Num[Array, "batch height width channels"]
) -> Num[Array, "batch height width channels"]:
    if changed.shape != images.shape:
        raise UsageError(
            f"an operation done to some images must keep their shape; {list(images.shape)} became {list(changed.shape)}"
        )
    return jnp.where(chosen[:, None, None, None], changed, images)


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
