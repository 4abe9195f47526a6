"""Grad-CAM and guided Grad-CAM agree with Captum on the same network: weights carried over, random images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dl_core.explain.cam import grad_cam, guided_grad_cam

torch = pytest.importorskip("torch")
pytest.importorskip("captum")
from captum.attr import GuidedGradCam, LayerAttribution, LayerGradCam  # noqa: E402

RNG = np.random.default_rng(0)
SHAPES = {"conv1": (3, 3, 3, 8), "conv2": (3, 3, 8, 6), "fc": (4 * 4 * 6, 5), "bias": (5,)}
PARAMS = {name: RNG.normal(size=shape) * np.prod(shape[:-1]) ** -0.5 for name, shape in SHAPES.items()}
IMAGES, TARGET = RNG.normal(size=(4, 16, 16, 3)), np.array([0, 3, 1, 3])

# In float64 throughout, so that what differs is the method and not the rounding: sums of some hundred terms
TOLERANCE = {"rtol": 1e-10, "atol": 1e-12}


def apply_fn(params, x):
    """Stride 2 twice, so that the map of conv2 is 4×4."""
    for name in ("conv1", "conv2"):
        with jax.named_scope(name):
            x = jax.lax.conv_general_dilated(
                x, params[name], (2, 2), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
        x = jax.nn.relu(x)
    return x.reshape(len(x), -1) @ params["fc"] + params["bias"][None]


class Network(torch.nn.Module):
    """The same, NCHW, with modules that Captum can hook."""

    def __init__(self):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(3, 8, 3, 2, 1, bias=False)
        self.conv2 = torch.nn.Conv2d(8, 6, 3, 2, 1, bias=False)
        self.relu1, self.relu2 = torch.nn.ReLU(), torch.nn.ReLU()
        self.fc = torch.nn.Linear(96, 5)
        self.double()
        with torch.no_grad():
            for name in ("conv1", "conv2"):
                getattr(self, name).weight.copy_(torch.tensor(PARAMS[name].transpose(3, 2, 0, 1)))
            dense = PARAMS["fc"].reshape(4, 4, 6, 5).transpose(2, 0, 1, 3).reshape(96, 5)
            self.fc.weight.copy_(torch.tensor(dense.T))
            self.fc.bias.copy_(torch.tensor(PARAMS["bias"]))

    def forward(self, x):
        return self.fc(self.relu2(self.conv2(self.relu1(self.conv1(x)))).flatten(1))


@pytest.fixture(scope="module")
def network():
    network = Network().eval()
    with jax.enable_x64(True):
        logits = apply_fn(jax.tree.map(jnp.asarray, PARAMS), jnp.asarray(IMAGES))
    np.testing.assert_allclose(network(images()).detach(), logits, **TOLERANCE)
    return network


def images():
    return torch.tensor(IMAGES.transpose(0, 3, 1, 2), requires_grad=True)


def ours(method, **options):
    with jax.enable_x64(True):
        return np.asarray(method(apply_fn, jax.tree.map(jnp.asarray, PARAMS), jnp.asarray(IMAGES), TARGET, **options))


@pytest.mark.parametrize("layer", ["conv1", "conv2"])
@pytest.mark.parametrize("relu", [False, True])
def test_grad_cam_at_the_layers_own_resolution(network, layer, relu):
    given = LayerGradCam(network, getattr(network, layer)).attribute(
        images(), torch.tensor(TARGET), relu_attributions=relu
    )
    raw = ours(grad_cam, layer=layer, relu=relu, upsample=False)
    assert np.abs(raw).max() > 1e-3
    np.testing.assert_allclose(raw, given[:, 0].detach(), **TOLERANCE)


@pytest.mark.parametrize("interpolation", ["bilinear", "nearest"])
def test_grad_cam_at_the_size_of_the_image(network, interpolation):
    raw = LayerGradCam(network, network.conv2).attribute(images(), torch.tensor(TARGET), relu_attributions=True)
    given = LayerAttribution.interpolate(raw, (16, 16), interpolation)
    # the weights of the interpolation are float32 in one of them: 4x is a whole factor, and they are exact all the same
    maps = ours(grad_cam, layer="conv2", interpolation=interpolation)
    np.testing.assert_allclose(maps, given[:, 0].detach(), **TOLERANCE)


@pytest.mark.filterwarnings("ignore:Setting backward hooks")
def test_guided_grad_cam(network):
    """Captum upsamples by the nearest; its factor is whole, where all conventions of it agree."""
    given = GuidedGradCam(network, network.conv2).attribute(images(), torch.tensor(TARGET))
    maps = ours(guided_grad_cam, layer="conv2", interpolation="nearest")
    assert np.abs(maps).max() > 1e-4
    np.testing.assert_allclose(maps, given.detach().numpy().transpose(0, 2, 3, 1), **TOLERANCE)
