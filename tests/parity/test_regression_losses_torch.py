"""Regression losses against torch.nn.functional, values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dl_core import losses

torch = pytest.importorskip("torch")

RANDOM = np.random.default_rng(0)
PREDICTIONS, TARGETS, LOG_VARIANCES = RANDOM.normal(scale=2, size=(3, 60)).astype(np.float32)


def same(here, there, *arrays):
    values, pullback = jax.vjp(here, *map(jnp.asarray, arrays))
    tensors = [torch.tensor(array, requires_grad=True) for array in arrays]
    expected = there(*tensors)
    expected.sum().backward()
    close = {"rtol": 1e-5, "atol": 1e-5}  # float32 on both sides
    np.testing.assert_allclose(values, expected.detach().numpy(), **close)
    for gradient, tensor in zip(pullback(jnp.ones_like(values)), tensors, strict=True):
        np.testing.assert_allclose(gradient, tensor.grad.numpy(), **close)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0, 3.0])
def test_smooth_l1(beta):
    functional = torch.nn.functional
    same(
        lambda p: losses.smooth_l1(p, jnp.asarray(TARGETS), beta=beta),
        lambda p: functional.smooth_l1_loss(p, torch.tensor(TARGETS), beta=beta, reduction="none"),
        PREDICTIONS,
    )


@pytest.mark.parametrize(
    ("here", "there"),
    [("l1", "l1_loss"), ("squared_error", "mse_loss"), ("huber_loss", "huber_loss")],
)
def test_losses_of_values(here, there):
    same(
        lambda p: getattr(losses, here)(p, jnp.asarray(TARGETS)),
        lambda p: getattr(torch.nn.functional, there)(p, torch.tensor(TARGETS), reduction="none"),
        PREDICTIONS,
    )


def test_gaussian_nll():
    same(
        lambda mean, log_variance: losses.gaussian_nll(mean, log_variance, jnp.asarray(TARGETS)),
        lambda mean, log_variance: torch.nn.functional.gaussian_nll_loss(
            mean, torch.tensor(TARGETS), log_variance.exp(), full=True, eps=1e-12, reduction="none"
        ),
        PREDICTIONS,
        LOG_VARIANCES,
    )


def test_poisson_nll():
    counts = RANDOM.poisson(4, 60).astype(np.float32)
    same(
        lambda log_rates: losses.poisson_nll(log_rates, jnp.asarray(counts)),
        lambda log_rates: torch.nn.functional.poisson_nll_loss(log_rates, torch.tensor(counts), reduction="none"),
        PREDICTIONS,
    )
