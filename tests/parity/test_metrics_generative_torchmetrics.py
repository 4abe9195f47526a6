"""Metrics of generators beside torchmetrics, with feature networks of our own: no weights are fetched."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dl_core.metrics.frechet import frechet_distance
from dl_core.metrics.inception_score import inception_score
from dl_core.metrics.kernel_distance import kernel_distance
from dl_core.metrics.path_length import perceptual_path_length

torch = pytest.importorskip("torch")
from torchvision_on_cpu import import_zoo  # noqa: E402

import_zoo()  # torchmetrics imports torchvision
pytest.importorskip("torchmetrics")
from torchmetrics.functional.image import perceptual_path_length as theirs_of_path_length  # noqa: E402
from torchmetrics.image.fid import FrechetInceptionDistance  # noqa: E402
from torchmetrics.image.inception import InceptionScore  # noqa: E402
from torchmetrics.image.kid import KernelInceptionDistance  # noqa: E402

RANDOM = np.random.default_rng(0)
D = 10
REAL = RANDOM.normal(size=(90, D)).astype(np.float32)
FAKE = (RANDOM.normal(size=(90, D)) * 1.3 + 0.2).astype(np.float32)


class Identity(torch.nn.Module):
    """Features are the images themselves."""

    num_features = D

    def forward(self, images):
        return images.reshape(len(images), D)


def fed(metric, real=REAL, fake=FAKE):
    metric.update(torch.tensor(real).reshape(-1, D, 1, 1), real=True)
    metric.update(torch.tensor(fake).reshape(-1, D, 1, 1), real=False)
    return metric.compute()


@pytest.fixture(autouse=True)
def quiet():
    torch.manual_seed(0)


@pytest.mark.filterwarnings("ignore")
def test_frechet_distance():
    metric = FrechetInceptionDistance(feature=Identity(), normalize=True, input_img_size=(D, 1, 1))
    metric.set_dtype(torch.float64)
    theirs = fed(metric, REAL.astype(float), FAKE.astype(float)).item()
    np.testing.assert_allclose(frechet_distance(REAL, FAKE), theirs, rtol=1e-6)  # theirs: sums around 0


@pytest.mark.filterwarnings("ignore")
def test_kernel_distance():
    metric = KernelInceptionDistance(feature=Identity(), subsets=1, subset_size=90, normalize=True)
    np.testing.assert_allclose(kernel_distance(REAL, FAKE), fed(metric)[0].item(), rtol=1e-4)  # theirs: float32


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("splits", [1, 5])
def test_inception_score(splits, monkeypatch):
    monkeypatch.setattr(torch, "randperm", torch.arange)  # they shuffle; we take rows in order
    metric = InceptionScore(feature=Identity(), splits=splits)
    metric.update(torch.tensor(REAL).reshape(-1, D, 1, 1))
    mean, std = (value.item() for value in metric.compute())
    found = inception_score(jax.nn.softmax(jnp.asarray(REAL)), num_splits=splits)
    np.testing.assert_allclose(found.mean, mean, rtol=1e-5)  # float32 probabilities
    if splits > 1:
        np.testing.assert_allclose(found.std * np.sqrt(splits / (splits - 1)), std, rtol=1e-3)  # they divide by n - 1


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("here", "there"), [("lerp", "lerp"), ("slerp", "slerp_unit")])
def test_perceptual_path_length(here, there):
    """Latents on the sphere, on which the two kinds of slerp agree; steps from the latents themselves (t = 0)."""
    latents = RANDOM.normal(size=(2, 120, 4))
    latents /= np.linalg.norm(latents, axis=-1, keepdims=True)
    matrix = RANDOM.normal(size=(4, 12))

    class Generator(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.drawn = iter(torch.tensor(latents))

        def sample(self, num_samples):
            return next(self.drawn)

        def forward(self, z):
            return 255 * torch.sigmoid(z @ torch.tensor(matrix)).reshape(-1, 3, 2, 2)

    class Distance(torch.nn.Module):
        def forward(self, a, b):
            return ((a - b) ** 2).sum(dim=(1, 2, 3))

    mean, std, lengths = theirs_of_path_length(
        Generator(), num_samples=120, interpolation_method=there, sim_net=Distance(), resize=None
    )
    with jax.enable_x64(True):
        found = perceptual_path_length(
            lambda matrix, z: 2 * jax.nn.sigmoid(z @ matrix).reshape(-1, 3, 2, 2) - 1,
            jnp.asarray(matrix),
            *jnp.asarray(latents),
            jnp.zeros(120),
            distance=lambda a, b: ((a - b) ** 2).sum(axis=(1, 2, 3)),
            interpolation=here,
        )
    np.testing.assert_allclose(np.asarray(found.lengths)[np.asarray(found.kept)], lengths, rtol=1e-6)  # steps of 1e-4
    np.testing.assert_allclose(found.mean, mean.item(), rtol=1e-6)
    np.testing.assert_allclose(found.std, std.item(), rtol=1e-6)
