"""Pooling against its definition, pixel by pixel: ceiled sizes, padding that never wins, adaptive bins."""

import jax.numpy as jnp
import numpy as np
import pytest

from models.layers.pooling import adaptive_average_pool, max_pool


def image(height, width):
    return np.random.default_rng(0).standard_normal((2, height, width, 3)).astype(np.float32) - 5  # below the zeros


@pytest.mark.parametrize(
    ("size", "window", "stride", "padding", "ceil", "outputs"),
    [
        (112, 3, 2, 0, True, 56),  # GoogLeNet
        (112, 3, 2, 0, False, 55),
        (7, 2, 2, 0, True, 4),
        (7, 2, 2, 0, False, 3),
        (5, 3, 1, 1, True, 5),
        (4, 2, 3, 0, True, 2),  # the second window starts at pixel 3, inside
        (3, 2, 3, 0, True, 1),  # it would start at pixel 3, outside
        (9, 3, 2, 1, False, 5),
    ],
)
def test_max_pool_takes_the_largest_of_each_window(size, window, stride, padding, ceil, outputs):
    x = image(size, size)
    pooled = np.asarray(max_pool(jnp.asarray(x), window, stride, padding, ceil=ceil))
    assert pooled.shape == (2, outputs, outputs, 3)
    span = lambda i: slice(max(0, i * stride - padding), i * stride - padding + window)
    for i in range(outputs):
        for j in range(outputs):
            np.testing.assert_array_equal(pooled[:, i, j], x[:, span(i), span(j)].max(axis=(1, 2)))


@pytest.mark.parametrize(
    ("height", "width", "size"), [(7, 7, 7), (14, 7, 7), (14, 14, 4), (3, 10, 6), (1, 1, 6), (5, 5, 1)]
)
def test_adaptive_bins_cover_the_map_as_torch_defines_them(height, width, size):
    x = image(height, width)
    pooled = np.asarray(adaptive_average_pool(jnp.asarray(x), size))
    assert pooled.shape == (2, size, size, 3)
    span = lambda i, n: slice(i * n // size, -(-(i + 1) * n // size))
    for i in range(size):
        for j in range(size):
            expected = x[:, span(i, height), span(j, width)].mean(axis=(1, 2))
            np.testing.assert_allclose(pooled[:, i, j], expected, rtol=1e-5)  # float32 sums of up to 25 values
