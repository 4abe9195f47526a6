"""BatchNorm's statistics over the whole training set equal those of one batch that holds all of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from train.batch_statistics import recompute_batch_stats


class Normed(nn.Module):
    momentum: float = 0.9

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(4)(x)
        return nn.BatchNorm(use_running_average=False, momentum=self.momentum)(x)


@pytest.mark.parametrize("momentum", [0.9, 0.99, 0.0])
def test_statistics_equal_those_of_the_whole_set(momentum):
    model = Normed(momentum)
    x = 3 + 2 * jax.random.normal(jax.random.key(0), (60, 5))
    variables = model.init(jax.random.key(1), x)
    forward = lambda v, batch: model.apply(v, batch, mutable=["batch_stats"])[1]["batch_stats"]
    parts = [(x[:10], 10), (x[10:40], 30), (x[40:], 20)]
    stats = recompute_batch_stats(forward, variables, parts)["batch_stats"]["BatchNorm_0"]
    hidden = x @ variables["params"]["Dense_0"]["kernel"] + variables["params"]["Dense_0"]["bias"][None]
    # dividing by 1 - momentum magnifies float32 rounding, a hundredfold at 0.99
    np.testing.assert_allclose(stats["mean"], hidden.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(stats["var"], hidden.var(0), rtol=2e-4)


def test_a_model_without_statistics_is_returned_as_it_is():
    variables = {"params": {"w": jnp.ones(3)}}
    assert recompute_batch_stats(lambda *_: None, variables, [(jnp.ones(3), 3)]) is variables
