"""The features of a pretrained network as a table, for linear probes, nearest neighbours and embeddings.

Donahue et al. (2014), "DeCAF: a deep convolutional activation feature", https://arxiv.org/abs/1310.1531.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from dl_core.data import Examples, evaluation_batches
from dl_core.errors import unknown_name
from models.feature_maps import features


def extract_features(
    model: nn.Module,
    variables: Any,
    examples: Examples,
    name: str = "penultimate",
    *,
    mean: Float[np.ndarray, " c"] | tuple[float, ...] = (0.0,),
    std: Float[np.ndarray, " c"] | tuple[float, ...] = (1.0,),
    batch_size: int = 256,
) -> Float[np.ndarray, "n ..."]:
    """One named feature map of every image, in evaluation mode.

    Args:
      model: from `models.create`.
      variables: its variables, e.g. pretrained.
      examples: n images; divided by 255 and normalised here.
      name: of the feature map, e.g. "penultimate" or "stage3".
      mean, std: per channel, of images in [0, 1], as in training.
      batch_size: images at once.

    Returns:
      float32 [n, channels] for "penultimate", [n, height, width, channels] for a map, in the order of the examples.

    Raises:
      UsageError: the model has no feature map of that name.
    """
    shape = jax.ShapeDtypeStruct((1, *examples.image_shape), jnp.float32)
    known = jax.eval_shape(lambda v, x: features(model, v, x), variables, shape)
    if name not in known:
        raise unknown_name("feature map", name, known)
    mean, std = (np.reshape(np.asarray(value, np.float32), (1, 1, 1, -1)) for value in (mean, std))

    @jax.jit
    def extract(variables: Any, images: jax.Array) -> jax.Array:
        return features(model, variables, (images.astype(jnp.float32) / 255 - mean) / std)[name]

    parts = []
    for batch in evaluation_batches(examples, min(batch_size, len(examples))):
        parts.append(np.asarray(extract(variables, batch["image"]), np.float32)[batch["valid"]])
    return np.concatenate(parts)
