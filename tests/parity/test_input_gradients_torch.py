"""Gradient × input, integrated gradients and FGSM agree with autograd in PyTorch on the same weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dl_core.attacks.gradient import fgsm
from dl_core.explain.gradients import gradient_x_input, saliency
from dl_core.explain.path_integration import integrated_gradients

torch = pytest.importorskip("torch")

RNG = np.random.default_rng(0)
KERNEL, DENSE, BIAS = (RNG.normal(size=shape).astype(np.float32) for shape in ((3, 3, 2, 4), (4 * 36, 5), (5,)))
IMAGES = RNG.uniform(0.3, 0.7, (6, 6, 6, 2)).astype(np.float32)
LABELS = RNG.integers(0, 5, 6).astype(np.int32)


def apply_fn(params, images):
    kernel, dense, bias = params
    maps = jax.lax.conv_general_dilated(images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return jnp.tanh(maps).reshape(len(images), -1) @ dense + bias[None]


def torch_net(images):
    kernel = torch.tensor(KERNEL.transpose(3, 2, 0, 1))
    maps = torch.nn.functional.conv2d(images.permute(0, 3, 1, 2), kernel, padding=1)
    return torch.tanh(maps).permute(0, 2, 3, 1).reshape(len(images), -1) @ torch.tensor(DENSE) + torch.tensor(BIAS)


def torch_gradient(images, output):
    images = torch.tensor(images, requires_grad=True)
    output(torch_net(images)).sum().backward()
    return images.grad.numpy()


PARAMS = tuple(map(jnp.asarray, (KERNEL, DENSE, BIAS)))


def pick(logits):
    return logits.gather(1, torch.tensor(LABELS, dtype=torch.int64)[:, None])


def test_saliency_and_gradient_x_input():
    gradient = torch_gradient(IMAGES, pick)
    # float32 sums in another order
    np.testing.assert_allclose(
        saliency(apply_fn, PARAMS, jnp.asarray(IMAGES), jnp.asarray(LABELS)), np.abs(gradient), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(
        gradient_x_input(apply_fn, PARAMS, jnp.asarray(IMAGES), jnp.asarray(LABELS)),
        gradient * IMAGES,
        rtol=1e-4,
        atol=1e-5,
    )


def test_integrated_gradients_by_the_right_riemann_sum():
    path = [torch_gradient(IMAGES * alpha, pick) for alpha in (0.25, 0.5, 0.75, 1.0)]
    result = integrated_gradients(
        apply_fn, PARAMS, jnp.asarray(IMAGES), jnp.asarray(LABELS), n_steps=4, method="riemann_right"
    )
    np.testing.assert_allclose(result.attributions, IMAGES * np.mean(path, axis=0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_fgsm(norm):
    loss = lambda logits: torch.nn.functional.cross_entropy(
        logits, torch.tensor(LABELS, dtype=torch.int64), reduction="sum"
    )
    gradient = torch_gradient(IMAGES, loss)
    lengths = np.sqrt((gradient**2).sum(axis=(1, 2, 3), keepdims=True))
    step = np.sign(gradient) if norm == "linf" else gradient / lengths
    result = fgsm(apply_fn, PARAMS, jnp.asarray(IMAGES), jnp.asarray(LABELS), eps=0.1, norm=norm)
    # no component of the gradient is so near zero that its sign could differ
    assert np.abs(gradient).min() > 1e-6
    np.testing.assert_allclose(result.adversarial, np.clip(IMAGES + 0.1 * step, 0, 1), atol=1e-5)
