"""Occlusion agrees with Captum on the same random network and images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dl_core.explain.occlusion import occlusion

torch = pytest.importorskip("torch")
captum_attr = pytest.importorskip("captum.attr")

RNG = np.random.default_rng(0)
KERNEL, DENSE, BIAS = (RNG.normal(size=shape) / 4 for shape in ((3, 3, 2, 4), (4 * 63, 5), (5,)))
IMAGES, BASELINES = (RNG.normal(size=(3, 9, 7, 2)) for _ in range(2))
LABELS = np.array([4, 0, 2], np.int32)


def apply_fn(params, images):
    kernel, dense, bias = params
    maps = jax.lax.conv_general_dilated(images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return jax.nn.relu(maps).reshape(len(images), -1) @ dense + bias[None]


def network(dtype):
    kernel, dense, bias = (torch.tensor(weights, dtype=dtype) for weights in (KERNEL, DENSE, BIAS))

    def forward(images):
        maps = torch.relu(torch.nn.functional.conv2d(images, kernel.permute(3, 2, 0, 1), padding=1))
        return maps.permute(0, 2, 3, 1).reshape(len(images), -1) @ dense + bias

    return forward


WINDOWS = [  # (h, w, channels) and strides; the last window is cut off in most
    ((3, 3, 2), (1, 1, 2)),
    ((4, 3, 2), (2, 3, 2)),
    ((4, 4, 1), (3, 4, 1)),
    ((9, 2, 2), (9, 2, 2)),
    ((5, 7, 2), (3, 1, 1)),
]


@pytest.mark.parametrize(("window", "strides"), WINDOWS)
@pytest.mark.parametrize("bits", [32, 64])
def test_occlusion_agrees_with_captum(window, strides, bits):
    as_torch = lambda images: torch.tensor(images.transpose(0, 3, 1, 2), dtype=getattr(torch, f"float{bits}"))
    expected = captum_attr.Occlusion(network(getattr(torch, f"float{bits}"))).attribute(
        as_torch(IMAGES),
        (window[2], *window[:2]),
        strides=(strides[2], *strides[:2]),
        baselines=as_torch(BASELINES),
        target=torch.tensor(LABELS, dtype=torch.int64),
        perturbations_per_eval=8,
    )
    with jax.enable_x64(bits == 64):
        params, images, baselines = jax.tree.map(
            lambda leaf: jnp.asarray(leaf, f"float{bits}"), ((KERNEL, DENSE, BIAS), IMAGES, BASELINES)
        )
        result = occlusion(
            apply_fn, params, images, LABELS, sliding_window_shapes=window, strides=strides, baselines=baselines
        )
    # logits of order 10 in float32, rounded to 1e-6 each; in float64, Captum still adds its differences up in float32
    atol = 1e-5 if bits == 32 else 1e-6
    np.testing.assert_allclose(result, expected.numpy().transpose(0, 2, 3, 1), atol=atol, rtol=0)
