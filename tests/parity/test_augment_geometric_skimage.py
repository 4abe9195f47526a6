"""Warps beside scikit-image's, which has the same kernels and fill, but counts places from the centre of a pixel.

So its matrices are those of this library moved by half a pixel, and it asks for the inverse. Its `resize` smooths by a
Gaussian before it shrinks an image, where here (and in Pillow and torch) the kernel itself is widened: shrinking is not
compared.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

transform = pytest.importorskip("skimage.transform")

from dl_core.augment import affine, resize  # noqa: E402

SIZE = (17, 22)
IMAGES = np.random.default_rng(0).random((3, *SIZE, 2), np.float32)
ORDER = {"nearest": 0, "bilinear": 1, "bicubic": 3}
HALF = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
warp = jax.jit(affine.warp, static_argnames=("method", "fill", "size"))


def theirs(image, matrix, **options):
    inverse = np.linalg.inv(HALF) @ np.linalg.inv(np.asarray(matrix, np.float64)) @ HALF
    return transform.warp(image.astype(np.float64), inverse, clip=False, **options)


MATRICES = {
    "affine": lambda: affine.random_affine_matrices(
        jax.random.key(0), 3, SIZE, degrees=40.0, translate=(0.2, 0.2), scale=(0.6, 1.5), shear=(0.3, 0.3)
    ),
    "perspective": lambda: affine.random_perspective_matrices(jax.random.key(1), 3, SIZE),
}


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("method", ORDER)
def test_warps_are_scikit_images(name, method):
    matrices = jax.jit(MATRICES[name])()
    got = np.asarray(warp(IMAGES, matrices, method=method, fill=0.25))
    expected = [
        np.stack([theirs(image[..., c], m, order=ORDER[method], mode="constant", cval=0.25) for c in range(2)], axis=-1)
        for image, m in zip(IMAGES, matrices, strict=True)
    ]
    if method == "nearest":  # rounding decides where a place falls between two pixels
        assert (np.abs(got - np.stack(expected)) > 1e-6).mean() < 0.01
    else:
        np.testing.assert_allclose(got, expected, atol=5e-5)  # places up to 22 in float32 here, float64 there


def test_another_output_size_is_scikit_images():
    matrices = affine.scaling(jnp.full(3, 1.7), SIZE)
    got = warp(IMAGES, matrices, size=(25, 12))
    expected = [theirs(image, m, order=1, output_shape=(25, 12)) for image, m in zip(IMAGES, matrices, strict=True)]
    np.testing.assert_allclose(got, expected, atol=5e-5)


def test_enlarging_is_scikit_images():
    expected = transform.resize(IMAGES[0].astype(np.float64), (34, 50), order=1, mode="edge", anti_aliasing=False)
    np.testing.assert_allclose(resize.resize(jnp.asarray(IMAGES), size=(34, 50))[0], expected, atol=1e-5)
