"""Infidelity and max-sensitivity are Captum's: same weights, inputs and perturbations. In float64, to 1e-10 relative:
both compute the same sums, in another order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dl_core.explain.evaluate.infidelity import gaussian_noise, infidelity, square_removal
from dl_core.explain.evaluate.stability import stability
from dl_core.explain.gradients import gradient_x_input

torch = pytest.importorskip("torch")
metrics = pytest.importorskip("captum.metrics")

RNG = np.random.default_rng(0)
KERNEL, DENSE = RNG.normal(size=(3, 3, 2, 4)), RNG.normal(size=(4 * 36, 5)) / 10
IMAGES = np.maximum(RNG.uniform(-0.3, 0.7, (4, 6, 6, 2)), 0)  # zeros, too: there Captum does not divide
LABELS = np.array([0, 3, 1, 4])
SAMPLES = 7
EXACT = {"rtol": 1e-10, "atol": 1e-12}


def apply_fn(params, images):
    kernel, dense = params
    maps = jax.lax.conv_general_dilated(images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return jnp.tanh(maps).reshape(len(images), -1) @ dense


def torch_net(images):
    kernel = torch.tensor(KERNEL.transpose(3, 2, 0, 1))
    maps = torch.nn.functional.conv2d(images.permute(0, 3, 1, 2), kernel, padding=1)
    return torch.tanh(maps).permute(0, 2, 3, 1).reshape(len(images), -1) @ torch.tensor(DENSE)


def same_perturbations(perturb, key):
    """Captum repeats each example SAMPLES times, one after another; ours perturbs the batch SAMPLES times."""
    keys = jax.random.split(key, SAMPLES)
    made = np.stack([perturb(k, jnp.asarray(IMAGES)) for k in keys], axis=1)
    return lambda inputs, *baselines: torch.tensor(made.reshape(-1, *IMAGES.shape[1:]))


@pytest.fixture
def in_float64():
    with jax.enable_x64(True):
        yield (jnp.asarray(KERNEL), jnp.asarray(DENSE)), jnp.asarray(IMAGES), jnp.asarray(LABELS), jax.random.key(0)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("multiply_by_inputs", [False, True])
@pytest.mark.parametrize("kind", ["noise", "square"])
@pytest.mark.parametrize("baseline", [None, 0.25])
def test_infidelity(in_float64, kind, multiply_by_inputs, normalize, baseline):
    params, images, labels, key = in_float64
    perturb = gaussian_noise(0.2) if kind == "noise" else square_removal(2, baseline or 0.0)
    attributions = jnp.asarray(RNG.normal(size=IMAGES.shape))
    options = {} if baseline is None else {"baselines": baseline}
    ours = infidelity(
        apply_fn, params, images, labels, attributions, key=key, perturb=perturb, n_perturb_samples=SAMPLES,
        multiply_by_inputs=multiply_by_inputs, normalize=normalize, **options,
    )  # fmt: skip
    theirs = metrics.infidelity(
        torch_net,
        metrics.infidelity_perturb_func_decorator(multiply_by_inputs)(same_perturbations(perturb, key)),
        torch.tensor(IMAGES), torch.tensor(np.array(attributions)), target=torch.tensor(LABELS),
        n_perturb_samples=SAMPLES, normalize=normalize, **options,
    )  # fmt: skip
    assert ours.dtype == jnp.float64
    np.testing.assert_allclose(ours, theirs.numpy(), **EXACT)


def test_max_sensitivity(in_float64):
    params, images, labels, key = in_float64
    perturb = gaussian_noise(0.05)
    ours = stability(
        gradient_x_input, apply_fn, params, images, labels, key=key, perturb=perturb, n_perturb_samples=SAMPLES
    )

    def explain(inputs, target):  # Captum gives the originals as a tuple, and wants one back
        return (
            (_gradient_x_input(inputs[0], target),) if isinstance(inputs, tuple) else _gradient_x_input(inputs, target)
        )

    theirs = metrics.sensitivity_max(
        explain, torch.tensor(IMAGES), perturb_func=same_perturbations(perturb, key), n_perturb_samples=SAMPLES,
        target=torch.tensor(LABELS),
    )  # fmt: skip
    np.testing.assert_allclose(ours.sensitivity_max, theirs.numpy(), **EXACT)


def _gradient_x_input(inputs, target):
    with torch.enable_grad():
        inputs = inputs.detach().requires_grad_(True)
        output = torch_net(inputs).gather(1, target.reshape(-1, 1)).sum()
        (gradient,) = torch.autograd.grad(output, inputs)
    return (gradient * inputs).detach()
