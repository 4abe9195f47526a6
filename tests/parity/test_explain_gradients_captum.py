"""Gradients, noise tunnels, path integrals, layers and neurons agree with Captum on the same random network.

In float64 where both compute the same sum: what is left (1e-9 of the largest value) is the order of summation. Captum
keeps the weights of a quadrature in float32, with errors of 6e-8 of their size; so integrals agree to 2e-7.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dl_core.explain.expected_gradients import expected_gradients
from dl_core.explain.gradients import gradient_x_input, saliency
from dl_core.explain.layer_attribution import (
    layer_conductance,
    layer_gradient_x_activation,
    layer_integrated_gradients,
    neuron_gradient,
    neuron_integrated_gradients,
)
from dl_core.explain.path_integration import METHODS, integrated_gradients
from dl_core.explain.smooth_grad import smooth_grad

torch = pytest.importorskip("torch")
attr = pytest.importorskip("captum.attr")

# Captum reports that it sets requires_grad on its inputs
pytestmark = pytest.mark.filterwarnings("ignore:Input Tensor 0 did not already require gradients:UserWarning")

RNG = np.random.default_rng(0)
SHAPES = {"conv1": (3, 3, 3, 4), "conv2": (3, 3, 4, 5), "fc": (6 * 6 * 5, 4)}
WEIGHTS = {name: RNG.normal(size=shape) * (2 / np.prod(shape[:-1])) ** 0.5 for name, shape in SHAPES.items()}
BIASES = {name: RNG.normal(size=shape[-1]) * 0.3 for name, shape in SHAPES.items()}
IMAGES, BASELINES = RNG.uniform(-1, 1, (2, 3, 6, 6, 3))
TARGET = np.array([2, 0, 3])
FLOAT32_WEIGHTS = 2e-7


def network(activation, params, images):
    weights, biases = params
    x = images
    for name in ("conv1", "conv2"):
        with jax.named_scope(name):
            x = jax.lax.conv_general_dilated(
                x, weights[name], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            x = x + biases[name].reshape(1, 1, 1, -1)
        x = activation(x)
    return x.reshape(len(x), -1) @ weights["fc"] + biases["fc"][None]


def relu_network(params, images):
    return network(jax.nn.relu, params, images)


def tanh_network(params, images):
    return network(jnp.tanh, params, images)


class TorchNetwork(torch.nn.Module):
    def __init__(self, activation, dtype=torch.float64):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(3, 4, 3, padding=1)
        self.conv2 = torch.nn.Conv2d(4, 5, 3, padding=1)
        self.fc = torch.nn.Linear(6 * 6 * 5, 4)
        self.act1, self.act2 = activation(), activation()
        self.to(dtype)
        layout = {"conv1": (3, 2, 0, 1), "conv2": (3, 2, 0, 1), "fc": (1, 0)}
        with torch.no_grad():
            for name, axes in layout.items():
                getattr(self, name).weight.copy_(torch.tensor(WEIGHTS[name].transpose(axes)))
                getattr(self, name).bias.copy_(torch.tensor(BIASES[name]))

    def forward(self, x):
        x = self.act2(self.conv2(self.act1(self.conv1(x))))
        return self.fc(x.permute(0, 2, 3, 1).flatten(1))


RELU, TANH = TorchNetwork(torch.nn.ReLU), TorchNetwork(torch.nn.Tanh)


def to_torch(images, dtype=torch.float64):
    return torch.tensor(images.transpose(0, 3, 1, 2), dtype=dtype)


def from_torch(maps):
    return maps.detach().numpy().transpose(0, 2, 3, 1)


X, B, T = to_torch(IMAGES), to_torch(BASELINES), torch.tensor(TARGET)


def agree(given, expected, share=1e-9):
    expected = from_torch(expected)
    np.testing.assert_allclose(given, expected, rtol=0, atol=share * np.abs(expected).max())


@pytest.fixture
def wide():
    """Everything in float64, as arguments (params, images, target)."""
    with jax.enable_x64(True):
        yield jax.tree.map(jnp.asarray, (WEIGHTS, BIASES)), jnp.asarray(IMAGES), TARGET


def test_saliency_and_gradient_x_input(wide):
    agree(saliency(relu_network, *wide), attr.Saliency(RELU).attribute(X, target=T))
    agree(saliency(relu_network, *wide, absolute=False), attr.Saliency(RELU).attribute(X, target=T, abs=False))
    agree(gradient_x_input(relu_network, *wide), attr.InputXGradient(RELU).attribute(X, target=T))


def test_saliency_and_integrated_gradients_in_float32():
    """To 1e-5 of the largest value: sums of a few hundred float32 products."""
    arguments = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), ((WEIGHTS, BIASES), IMAGES))
    narrow, x, b = TorchNetwork(torch.nn.Tanh, torch.float32), X.float(), B.float()
    agree(saliency(tanh_network, *arguments, TARGET), attr.Saliency(narrow).attribute(x, target=T), 1e-5)
    result = integrated_gradients(tanh_network, *arguments, TARGET, baselines=np.float32(BASELINES), n_steps=20)
    agree(result.attributions, attr.IntegratedGradients(narrow).attribute(x, b, target=T, n_steps=20), 1e-5)


@pytest.mark.parametrize(
    ("kind", "nt_type"), [("smooth", "smoothgrad"), ("squared", "smoothgrad_sq"), ("variance", "vargrad")]
)
def test_the_three_statistics_of_a_noise_tunnel(wide, monkeypatch, kind, nt_type):
    """Captum is given the noise that our samples have; the variance of both divides by n, not by n - 1."""
    options = {"key": jax.random.key(0), "stdevs": 0.2}
    sums = [n * smooth_grad(relu_network, *wide, n_samples=n, method=noisy_inputs, **options) for n in (1, 2, 3)]
    samples = np.stack([sums[0], sums[1] - sums[0], sums[2] - sums[1]], axis=1)  # [batch, samples, ...]
    monkeypatch.setattr(
        attr.NoiseTunnel, "_add_noise_to_input", staticmethod(lambda *_: to_torch(samples.reshape(9, 6, 6, 3)))
    )
    tunnel = attr.NoiseTunnel(attr.Saliency(RELU))
    expected = tunnel.attribute(X, nt_type=nt_type, nt_samples=3, stdevs=0.2, target=T, abs=False)
    agree(smooth_grad(relu_network, *wide, n_samples=3, kind=kind, **options), expected)


def noisy_inputs(apply_fn, params, inputs, target):
    return inputs


@pytest.mark.parametrize("method", METHODS)
def test_integrated_gradients(wide, method):
    """Captum's trapezoid divides by n_steps the sum of n_steps - 1 intervals, and is too small by that; ours is not."""
    result = integrated_gradients(relu_network, *wide, baselines=BASELINES, n_steps=12, method=method)
    explainer = attr.IntegratedGradients(RELU)
    expected, delta = explainer.attribute(X, B, target=T, n_steps=12, method=method, return_convergence_delta=True)
    if method == "riemann_trapezoid":
        expected = expected * 12 / 11
    else:
        np.testing.assert_allclose(result.completeness_gap, delta.detach(), atol=1e-6)
    agree(result.attributions, expected, FLOAT32_WEIGHTS)


def test_gradient_shap_tends_to_expected_gradients(wide):
    """Forty runs of Captum's random form against every baseline with a quadrature: within 5 standard errors."""
    every = expected_gradients(tanh_network, *wide, baselines=BASELINES, n_steps=20).attributions
    torch.manual_seed(0)
    state = np.random.get_state()  # noqa: NPY002 — Captum draws from NumPy's global state
    np.random.seed(0)  # noqa: NPY002
    runs = np.stack([from_torch(attr.GradientShap(TANH).attribute(X, B, n_samples=25, target=T)) for _ in range(40)])
    np.random.set_state(state)  # noqa: NPY002
    error = runs.std(axis=0) / 40**0.5
    assert (np.abs(runs.mean(axis=0) - every) < 5 * error).all()
    ours = expected_gradients(tanh_network, *wide, baselines=BASELINES, key=jax.random.key(1), n_samples=1000)
    assert (np.abs(ours.attributions - every) < 5 * error).all()  # as many draws as forty times 25
    assert error.max() < 0.1 * np.abs(every).max()


@pytest.mark.parametrize("layer", ["conv1", "conv2"])
def test_layers(wide, layer):
    module = getattr(RELU, layer)
    agree(
        layer_gradient_x_activation(relu_network, *wide, layer=layer),
        attr.LayerGradientXActivation(RELU, module).attribute(X, target=T),
    )
    result = layer_integrated_gradients(relu_network, *wide, layer=layer, baselines=BASELINES, n_steps=10)
    explainer = attr.LayerIntegratedGradients(RELU, module)
    expected, delta = explainer.attribute(X, B, target=T, n_steps=10, return_convergence_delta=True)
    agree(result.attributions, expected, FLOAT32_WEIGHTS)
    np.testing.assert_allclose(result.completeness_gap, delta.detach(), atol=1e-6)


def test_captums_conductance_tends_to_ours(wide):
    """Captum takes differences between neighbouring nodes, an error of O(1 / n); our derivatives are exact."""
    ours = layer_conductance(tanh_network, *wide, layer="conv1", baselines=BASELINES, n_steps=30).attributions
    explainer = attr.LayerConductance(TANH, TANH.conv1)
    captums = functools.partial(explainer.attribute, X, B, target=T, method="riemann_trapezoid")
    errors = [np.abs(from_torch(captums(n_steps=n)) - ours).max() for n in (25, 100, 400)]
    np.testing.assert_allclose([errors[0] / errors[1], errors[1] / errors[2]], 4, rtol=0.1)
    assert errors[2] < 0.01 * np.abs(ours).max()


def test_neurons(wide):
    params, images, _ = wide
    gradient = attr.NeuronGradient(RELU, RELU.conv2).attribute(X, (3, 2, 4))
    agree(neuron_gradient(relu_network, params, images, layer="conv2", neuron=(2, 4, 3)), gradient)
    result = neuron_integrated_gradients(
        relu_network, params, images, layer="conv2", neuron=(2, 4, 3), baselines=BASELINES, n_steps=10
    )
    integrated = attr.NeuronIntegratedGradients(RELU, RELU.conv2).attribute(X, (3, 2, 4), B, n_steps=10)
    agree(result.attributions, integrated, FLOAT32_WEIGHTS)
