"""Dropout whose noise belongs to the example, not to the device that happens to hold it.

Srivastava et al. (2014), "Dropout", JMLR 15; spatial form: Tompson et al. (2015), https://arxiv.org/abs/1411.4280.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dl_core.errors import UsageError


class Dropout(nn.Module):
    """Sets units to zero with probability `rate` in training, divides the others by 1 - rate; identity in evaluation.

    The mask of row i of the whole batch is drawn from (the "dropout" key, i) alone. So the same key gives the same
    noise under jit, with the batch sharded over a mesh, and under pmap with `axis_name`.

    rate: probability of dropping, in [0, 1). (Some texts call the probability of keeping p: here it is 1 - rate.)
    spatial: drop whole channels of a map [batch, ..., channels] rather than single units.
    axis_name: the pmap axis over which the batch is divided, or None.
    """

    rate: float
    spatial: bool = False
    axis_name: str | None = None

    def __post_init__(self):
        if not 0 <= self.rate < 1:
            raise UsageError(f"the dropout rate must lie in [0, 1), got {self.rate}")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Float[Array, "batch ..."], train: bool) -> Float[Array, "batch ..."]:
        """[batch, ..., channels] -> the same shape and dtype; needs the random stream "dropout" when train is true."""
        if not train or self.rate == 0:
            return x
        key = self.make_rng("dropout")
        shape = (1,) * (x.ndim - 2) + x.shape[-1:] if self.spatial else x.shape[1:]
        divided = self.axis_name is not None and not self.is_initializing()  # `init` runs outside pmap
        first_row = jax.lax.axis_index(self.axis_name) * len(x) if divided else 0
        rows = first_row + jnp.arange(len(x))
        keep = jax.vmap(lambda row: jax.random.bernoulli(jax.random.fold_in(key, row), 1 - self.rate, shape))(rows)
        return jnp.where(keep, x / (1 - self.rate), 0)
