"""The linear classifier, and logistic regression: the baselines that every network has to beat."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dl_core.errors import UsageError
from models.feature_maps import name_feature_map
from models.registry import register


@register("linear")
class Linear(nn.Module):
    """logits = W x + b on the flattened input: multinomial logistic regression under softmax cross-entropy.

    With num_classes=1 the one logit of a binary problem under sigmoid cross-entropy. Parameters: (inputs + 1) ·
    num_classes; 7,850 for 28×28×1 images and 10 classes.
    """

    num_classes: int
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    axis_name: str | None = None  # nothing here depends on the other examples; every model has the field

    @nn.compact
    def __call__(self, x: Float[Array | np.ndarray, "batch ..."], train: bool = False) -> Float[Array, "batch classes"]:
        """[batch, ...] -> logits [batch, num_classes], float32."""
        del train
        x = name_feature_map(self, "penultimate", jnp.asarray(x, self.dtype).reshape(len(x), -1))
        logits = nn.Dense(self.num_classes, dtype=self.dtype, param_dtype=self.param_dtype, name="fc")(x)
        return logits.astype(jnp.promote_types(self.dtype, jnp.float32))


@register("logistic_regression")
class LogisticRegression(nn.Module):
    """Binary logistic regression, p(y = 1 | x) = σ(z), z = w·x + b, with one weight vector.

    Returned as the two logits (0, z), whose softmax is (1 - σ(z), σ(z)): losses, metrics and attacks for two classes
    take it as it is. Parameters: inputs + 1.
    """

    num_classes: int = 2
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    axis_name: str | None = None

    def __post_init__(self):
        if self.num_classes != 2:
            raise UsageError(f"logistic_regression is for 2 classes, got {self.num_classes}; use the model 'linear'")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Float[Array | np.ndarray, "batch ..."], train: bool = False) -> Float[Array, "batch 2"]:
        """[batch, ...] -> logits [batch, 2], float32."""
        del train
        x = name_feature_map(self, "penultimate", jnp.asarray(x, self.dtype).reshape(len(x), -1))
        z = nn.Dense(1, dtype=self.dtype, param_dtype=self.param_dtype, name="fc")(x)
        logits = jnp.concatenate([jnp.zeros_like(z), z], axis=-1)
        return logits.astype(jnp.promote_types(self.dtype, jnp.float32))
