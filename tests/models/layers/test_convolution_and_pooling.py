"""The faster forms of convolution and pooling against JAX's own: the same numbers, the same gradients."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from models.layers.convolution import convolution
from models.layers.disjoint_pooling import disjoint_max_pool

NHWC = ("NHWC", "HWIO", "NHWC")


def assert_same_with_gradients(ours, reference, *arguments):
    with jax.enable_x64(True):
        arguments = [jnp.asarray(np.asarray(a), jnp.float64) for a in arguments]
        value, pullback = jax.vjp(ours, *arguments)
        expected, expected_pullback = jax.vjp(reference, *arguments)
        np.testing.assert_allclose(value, expected, rtol=1e-12, atol=1e-12)
        ones = jnp.cos(jnp.arange(value.size, dtype=jnp.float64)).reshape(value.shape)
        for gradient, expected_gradient in zip(pullback(ones), expected_pullback(ones), strict=True):
            np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("size", "stride", "padding", "groups", "form"),
    [
        (1, 1, ((0, 0), (0, 0)), 1, "product"),
        (1, 3, ((0, 0), (0, 0)), 1, "product"),
        (1, 2, "SAME", 1, "product"),
        (3, 1, "SAME", 1, "product"),
        (3, 2, ((1, 1), (1, 1)), 1, "product"),
        (5, 3, ((0, 2), (3, 1)), 1, "product"),
        (5, 1, "VALID", 1, "product"),
        (1, 1, ((8, 8), (8, 8)), 1, "convolution"),  # wide for its kernel
        (3, 1, "SAME", 2, "convolution"),
    ],
)
def test_convolution_is_that_of_lax_in_every_form(size, stride, padding, groups, form):
    x = jax.random.normal(jax.random.key(0), (2, 7, 8, 4))
    kernel = jax.random.normal(jax.random.key(1), (size, size, 4 // groups, 6))
    options = {"dimension_numbers": NHWC, "feature_group_count": groups}
    ours = lambda x, kernel: convolution(x, kernel, (stride, stride), padding, **options)
    reference = lambda x, kernel: lax.conv_general_dilated(x, kernel, (stride, stride), padding, **options)
    assert ("stablehlo.convolution" in jax.jit(ours).lower(x, kernel).as_text()) == (form == "convolution")
    assert_same_with_gradients(ours, reference, x, kernel)


@pytest.mark.parametrize(("height", "width", "stride"), [(1, 1, 1), (2, 2, 1), (2, 2, 2), (1, 4, 1), (2, 5, 2)])
def test_convolution_of_maps_smaller_than_the_kernel_is_that_of_lax(height, width, stride):
    x = jax.random.normal(jax.random.key(0), (2, height, width, 12))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 12, 5))
    options = {"dimension_numbers": NHWC}
    ours = lambda x, kernel: convolution(x, kernel, (stride, stride), ((1, 1), (1, 1)), **options)
    reference = lambda x, k: lax.conv_general_dilated(x, k, (stride, stride), ((1, 1), (1, 1)), **options)
    assert "stablehlo.convolution" not in jax.jit(ours).lower(x, kernel).as_text()
    assert_same_with_gradients(ours, reference, x, kernel)


@pytest.mark.parametrize("size", [1, 3])
def test_other_devices_get_a_convolution(size, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    x, kernel = jnp.ones((2, 4, 4, 3)), jnp.ones((size, size, 3, 5))
    lowered = jax.jit(lambda x, k: convolution(x, k, (1, 1), "SAME", dimension_numbers=NHWC)).lower(x, kernel)
    assert "stablehlo.convolution" in lowered.as_text()


def test_forward_derivatives_and_vmap_work_through_the_products():
    x = jax.random.normal(jax.random.key(0), (3, 2, 7, 8, 4))
    kernels = jax.random.normal(jax.random.key(1), (3, 3, 3, 4, 6))
    ours = lambda x, k: convolution(x, k, (1, 1), "SAME", dimension_numbers=NHWC)
    reference = lambda x, k: lax.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=NHWC)
    derivative = lambda f: jax.vmap(lambda x, k: jax.jvp(lambda k: f(x, k), (k,), (jnp.cos(k),))[1])(x, kernels)
    np.testing.assert_allclose(
        derivative(ours), derivative(reference), rtol=1e-4, atol=1e-4
    )  # float32 sums of 36 terms


@pytest.mark.parametrize(("shape", "size"), [((2, 6, 8, 3), 2), ((2, 7, 9, 3), 2), ((1, 9, 10, 2), 3)])
def test_disjoint_max_pool_is_max_pool(shape, size):
    x = jax.random.normal(jax.random.key(0), shape)
    reference = lambda x: nn.max_pool(x, (size, size), strides=(size, size))
    assert_same_with_gradients(lambda x: disjoint_max_pool(x, size), reference, x)


def test_max_pooling_of_the_course_example():
    """W3."""
    image = [
        [1, 7, 1, 1, 4, 0],
        [0, 2, 1, 7, 5, 2],
        [6, 5, 3, 6, 5, 2],
        [6, 5, 2, 3, 0, 2],
        [5, 0, 2, 0, 4, 5],
        [3, 2, 1, 2, 7, 5],
    ]
    x = jnp.array(image, jnp.float32)
    pooled = disjoint_max_pool(x[None, :, :, None], 2)[0, :, :, 0]
    np.testing.assert_array_equal(pooled, [[7, 7, 5], [6, 6, 5], [5, 2, 7]])
