"""The multi-layer perceptron: fully connected layers with a non-linearity between them."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dl_core.activations import activation
from dl_core.initializers import before_activation
from models.feature_maps import name_feature_map
from models.layers.dropout import Dropout
from models.registry import register


@register("mlp")
class MLP(nn.Module):
    """Any number of hidden layers on the flattened input: h ← dropout(activation(W h + b)), then one linear layer.

    Parameters: Σ (n_in + 1) · n_out over the layers; 669,706 for 784-512-512-10.

    hidden: units of each hidden layer; () is the linear classifier.
    activation, output_activation: keys of dl_core.activations.ACTIVATIONS. Losses want logits, so the output is linear
      unless said otherwise.
    dropout: rate after each hidden layer, in [0, 1).

    Feature maps: "hidden1", …, and "penultimate", the last of them (the flattened input when there is none).
    """

    num_classes: int
    hidden: tuple[int, ...] = (512, 512)
    activation: str = "relu"
    output_activation: str = "identity"
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Float[Array | np.ndarray, "batch ..."], train: bool = False) -> Float[Array, "batch classes"]:
        """[batch, ...] -> logits [batch, num_classes], float32."""
        x = jnp.asarray(x, self.dtype).reshape(len(x), -1)
        for i, units in enumerate(self.hidden, start=1):
            init = before_activation(self.activation)
            x = nn.Dense(units, kernel_init=init, dtype=self.dtype, param_dtype=self.param_dtype, name=f"fc{i}")(x)
            x = name_feature_map(self, f"hidden{i}", activation(self.activation)(x))
            x = Dropout(self.dropout, axis_name=self.axis_name)(x, train)
        x = name_feature_map(self, "penultimate", x)
        dtype = jnp.promote_types(self.dtype, jnp.float32)
        init = before_activation(self.output_activation)
        x = nn.Dense(self.num_classes, kernel_init=init, dtype=dtype, param_dtype=self.param_dtype, name="head")(x)
        return activation(self.output_activation)(x)
