"""Exact Shapley values, permutation sampling and kernel SHAP agree with Captum on the same weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
captum = pytest.importorskip("captum.attr")

from dl_core.explain.kernel_shap import kernel_shap  # noqa: E402
from dl_core.explain.players import patches  # noqa: E402
from dl_core.explain.shapley import shapley_exact, shapley_sampling  # noqa: E402

RNG = np.random.default_rng(0)
KERNEL, DENSE, BIAS = (RNG.normal(size=shape).astype(np.float32) for shape in ((3, 3, 2, 4), (4 * 48, 5), (5,)))
PARAMS = tuple(map(jnp.asarray, (KERNEL, DENSE, BIAS)))
IMAGES = RNG.uniform(0.3, 0.7, (3, 6, 8, 2)).astype(np.float32)
BASELINES = RNG.uniform(0.0, 0.3, (3, 6, 8, 2)).astype(np.float32)
LABELS = RNG.integers(0, 5, 3).astype(np.int32)
OPTIONS = {"baselines": BASELINES}


def apply_fn(params, images):
    kernel, dense, bias = params
    maps = jax.lax.conv_general_dilated(images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return jnp.tanh(maps).reshape(len(images), -1) @ dense + bias[None]


class Network(torch.nn.Module):
    def forward(self, images):
        maps = torch.nn.functional.conv2d(images, torch.tensor(KERNEL.transpose(3, 2, 0, 1)), padding=1)
        return torch.tanh(maps).permute(0, 2, 3, 1).reshape(len(images), -1) @ torch.tensor(DENSE) + torch.tensor(BIAS)


def of_captum(method, mask, **options):
    """Attributions as ours are laid out."""
    torch.manual_seed(0)
    to_torch = lambda images: torch.tensor(images.transpose(0, 3, 1, 2).copy())
    mask = np.broadcast_to(mask, (1, *IMAGES.shape[1:]) if mask.ndim == 3 else (*mask.shape[:1], *IMAGES.shape[1:]))
    result = method(Network()).attribute(
        to_torch(IMAGES),
        baselines=to_torch(BASELINES),
        target=torch.tensor(LABELS, dtype=torch.int64),
        feature_mask=to_torch(mask.astype(np.int64)),
        **options,
    )
    return result.detach().numpy().transpose(0, 2, 3, 1)


def test_exact_values():
    of_pixels = patches((6, 8), (3, 4))
    of_channels = np.stack([np.zeros((6, 8), int), 1 + (np.arange(8)[None] > 4) + np.zeros((6, 1), int)], axis=-1)
    for mask in (of_pixels, of_channels):
        ours = shapley_exact(apply_fn, PARAMS, IMAGES, LABELS, feature_mask=mask, **OPTIONS).attributions
        full = mask[:, :, None] if mask.ndim == 2 else mask
        # float32: logits of about 10, summed over 24 permutations there and 16 coalitions here
        np.testing.assert_allclose(ours, of_captum(captum.ShapleyValues, full), rtol=1e-4, atol=2e-5)


@pytest.mark.filterwarnings("ignore:You are providing multiple inputs")
def test_kernel_shap_of_many_samples():
    """Captum draws coalitions with replacement and weighs all and none by 1e6: with 4000 draws of 14 it is near."""
    mask = patches((6, 8), (3, 4))
    ours = kernel_shap(apply_fn, PARAMS, IMAGES, LABELS, key=jax.random.key(0), feature_mask=mask, **OPTIONS)
    exact = shapley_exact(apply_fn, PARAMS, IMAGES, LABELS, feature_mask=mask, **OPTIONS)
    np.testing.assert_allclose(ours.values, exact.values, rtol=1e-4, atol=2e-5)
    theirs = of_captum(captum.KernelShap, mask[:, :, None], n_samples=4000, perturbations_per_eval=500)
    scale = np.abs(exact.values).max()
    np.testing.assert_allclose(ours.attributions, theirs, atol=0.02 * scale)  # its sampling error


def test_permutation_sampling_within_the_errors_of_both():
    mask = patches((6, 8), 2)
    options = {"feature_mask": mask, "n_samples": 100, **OPTIONS}
    ours = shapley_sampling(apply_fn, PARAMS, IMAGES, LABELS, key=jax.random.key(0), antithetic=False, **options)
    theirs = of_captum(captum.ShapleyValueSampling, mask[:, :, None], n_samples=100, perturbations_per_eval=12)
    theirs = np.stack([theirs[:, *np.argwhere(mask == player)[0], 0] for player in range(12)], axis=1)
    z = (ours.values - theirs) / (np.sqrt(2) * ours.standard_errors)  # both have the error of 100 permutations
    assert np.abs(z).max() < 4  # of 36
    assert 0.5 < np.sqrt((z**2).mean()) < 1.5
