"""Adversarial losses against torch, with the gradients that a training step takes; second derivatives for penalties."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dl_core import losses

torch = pytest.importorskip("torch")
functional = torch.nn.functional

RANDOM = np.random.default_rng(0)
REAL, FAKE = RANDOM.normal(scale=3, size=(2, 20)).astype(np.float32)
with_logits = functional.binary_cross_entropy_with_logits


def bce(logits, label):
    return with_logits(logits, torch.full_like(logits, label), reduction="none")


PAIRS = {
    "discriminator": lambda real, fake: bce(real, 1.0) + bce(fake, 0.0),
    "wasserstein_critic": lambda real, fake: fake - real,
    "least_squares_discriminator": lambda real, fake: (
        0.5 * (functional.mse_loss(real, torch.ones(20), reduction="none") + fake**2)
    ),
    "hinge_discriminator": lambda real, fake: functional.relu(1 - real) + functional.relu(1 + fake),
}
FAKES = {
    "saturating_generator": lambda fake: -bce(fake, 0.0),
    "non_saturating_generator": lambda fake: bce(fake, 1.0),
    "wasserstein_generator": lambda fake: -fake,
    "least_squares_generator": lambda fake: 0.5 * functional.mse_loss(fake, torch.ones(20), reduction="none"),
    "hinge_generator": lambda fake: -fake,
}


@pytest.mark.parametrize("name", [*PAIRS, *FAKES])
def test_values_and_gradients(name):
    arrays = (REAL, FAKE) if name in PAIRS else (FAKE,)
    values, pullback = jax.vjp(getattr(losses, name), *map(jnp.asarray, arrays))
    tensors = [torch.tensor(array, requires_grad=True) for array in arrays]
    expected = {**PAIRS, **FAKES}[name](*tensors)
    expected.sum().backward()
    np.testing.assert_allclose(values, expected.detach(), rtol=1e-5, atol=1e-6)  # float32 on both sides
    for gradient, tensor in zip(pullback(jnp.ones(20)), tensors, strict=True):
        np.testing.assert_allclose(gradient, tensor.grad, rtol=1e-5, atol=1e-6)


IMAGES = RANDOM.normal(size=(2, 5, 8)).astype(np.float32)
WEIGHTS = RANDOM.normal(size=(8, 6)).astype(np.float32), RANDOM.normal(size=6).astype(np.float32)


def test_the_gradient_penalty_and_its_gradient_in_the_critic():
    key = jax.random.key(3)
    critic = lambda params, x: jnp.tanh(x @ params[0]) @ params[1]
    share = np.array(jax.random.uniform(key, (5, 1)))  # the points that the penalty is taken at

    def penalties(params):
        return losses.gradient_penalty(critic, params, *map(jnp.asarray, IMAGES), key=key)

    values, pullback = jax.vjp(penalties, tuple(map(jnp.asarray, WEIGHTS)))
    first, second = (torch.tensor(w, requires_grad=True) for w in WEIGHTS)
    points = torch.tensor(share * IMAGES[0] + (1 - share) * IMAGES[1], requires_grad=True)
    scores = torch.tanh(points @ first) @ second
    slope = torch.autograd.grad(scores.sum(), points, create_graph=True)[0]
    expected = (slope.norm(dim=1) - 1) ** 2
    expected.sum().backward()
    np.testing.assert_allclose(values, expected.detach(), rtol=1e-4)
    for gradient, tensor in zip(pullback(jnp.ones(5))[0], (first, second), strict=True):
        np.testing.assert_allclose(gradient, tensor.grad, rtol=1e-4, atol=1e-4)


def test_reconstruction():
    expected = functional.l1_loss(*map(torch.tensor, IMAGES), reduction="none").mean(1)
    np.testing.assert_allclose(losses.reconstruction_l1(*map(jnp.asarray, IMAGES)), expected, rtol=1e-5)
