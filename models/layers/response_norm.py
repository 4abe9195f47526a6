"""Local response normalisation.

Krizhevsky, Sutskever, Hinton (2012), "ImageNet classification with deep convolutional neural networks", section 3.3.
"""

import jax
from jaxtyping import Array, Float


def local_response_norm(
    x: Float[Array, "batch height width channels"],
    *,
    size: int = 5,
    alpha: float = 1e-4,
    beta: float = 0.75,
    k: float = 2.0,
) -> Float[Array, "batch height width channels"]:
    """b_i = a_i / (k + α Σ_j a_j²)^β, the sum over the `size` channels around i.

    Args:
      x: maps [batch, height, width, channels].
      size: channels in the sum, odd; fewer at the ends.
      alpha: weight of the sum itself, as in the paper. (torch and Caffe divide theirs by `size`.)
      beta, k: exponent and offset.

    Returns:
      Maps of the same shape and dtype.
    """
    zero = x.dtype.type(0)
    energy = jax.lax.reduce_window(x * x, zero, jax.lax.add, (1, 1, 1, size), (1, 1, 1, 1), "SAME")
    return x / (k + alpha * energy) ** beta
