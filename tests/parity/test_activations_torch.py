"""Activations and their gradients in float64 are PyTorch's."""

import jax
import numpy as np
import pytest

from dl_core.activations import activation

torch = pytest.importorskip("torch")
F = torch.nn.functional

THEIRS = {
    "identity": lambda x: x * 1,
    "sigmoid": torch.sigmoid,
    "relu": F.relu,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.1),
    "prelu": lambda x: F.prelu(x, torch.tensor([0.25], dtype=x.dtype)),
    "tanh": torch.tanh,
    "sinusoid": torch.sin,
    "elu": F.elu,
    "gelu": F.gelu,
    "silu": F.silu,
    "maxout": lambda x: x.reshape(len(x), -1, 2).amax(dim=2),
    "softmax": lambda x: F.softmax(x, dim=-1),
    "log_softmax": lambda x: F.log_softmax(x, dim=-1),
}


@pytest.mark.parametrize("name", THEIRS)
def test_values_and_gradients(name):
    x = np.random.default_rng(0).normal(0, 3, (7, 12))
    weights = np.random.default_rng(1).normal(0, 1, (7, 6 if name == "maxout" else 12))
    leaf = torch.tensor(x, requires_grad=True)
    theirs = THEIRS[name](leaf)
    (theirs * torch.tensor(weights)).sum().backward()
    with jax.enable_x64(True):
        ours, pull = jax.vjp(activation(name), jax.numpy.asarray(x))
        (gradient,) = pull(jax.numpy.asarray(weights))
        assert ours.dtype == np.float64
        np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(gradient, leaf.grad.numpy(), rtol=1e-11, atol=1e-12)
