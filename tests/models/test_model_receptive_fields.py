"""Receptive fields of models: published sizes, and the forms in which layers are computed on the CPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from dl_core.receptive_field import multiply_adds, receptive_field
from models.layers.convolution import convolution
from models.layers.disjoint_pooling import disjoint_max_pool
from models.layers.pooling import adaptive_average_pool


@pytest.mark.parametrize(
    ("name", "fields", "output", "size", "stride"),
    [  # Araujo, Norris, Sim (2019), https://distill.pub/2019/computing-receptive-fields, their table of models
        ("alexnet", {}, "pool5", 195, 32),
        ("vgg16", {}, "pool5", 212, 32),
        ("mobilenet_v1", {}, "stage5", 315, 32),
        ("inception_v3", {"aux_logits": False}, "stage4", 1311, 32),
        ("resnet50", {"stride_in_1x1": True}, "stage4", 483, 32),
    ],
)
def test_sizes_are_the_published_ones(name, fields, output, size, stride):
    model = models.create(name, num_classes=10, **fields)
    variables = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32))
    apply = lambda variables, x: models.features(model, variables, x)
    field = receptive_field(apply, variables, (224, 224, 3), output=output)
    assert field.size == (size, size)
    assert field.stride == (stride, stride)


@pytest.mark.parametrize(("size", "stride", "pad"), [(5, 1, 0), (5, 2, 2), (3, 1, 1), (1, 2, 0), (1, 1, 0)])
def test_every_form_of_our_convolution_is_seen_through(size, stride, pad):
    """Images of 14 columns go through a banded product on the CPU, 1×1 kernels through a product of pixels."""
    kernel = jax.ShapeDtypeStruct((size, size, 2, 3), jnp.float32)
    apply = lambda kernel, x: convolution(x, kernel, (stride, stride), ((pad, pad), (pad, pad)))
    field = receptive_field(apply, kernel, (14, 14, 2))
    n = (14 + 2 * pad - size) // stride + 1
    first = stride * np.arange(n) - pad
    expected = np.stack([np.maximum(first, 0), np.minimum(first + size - 1, 13)], axis=1)
    np.testing.assert_array_equal(field.rows, expected)
    np.testing.assert_array_equal(field.columns, expected)
    assert (field.size, field.start) == ((size, size), (-pad, -pad))
    inside = (expected[:, 1] - expected[:, 0] + 1).sum()  # rows of the kernel on rows of the image, padding left out
    x = jax.ShapeDtypeStruct((1, 14, 14, 2), jnp.float32)
    assert multiply_adds(apply, kernel, x) in (inside**2 * 2 * 3, n * n * size * size * 2 * 3)


def test_pooling_without_overlap_and_bins_that_do_not_divide_the_map():
    pooled = receptive_field(lambda _, x: disjoint_max_pool(x, 3), {}, (11, 9, 2))
    np.testing.assert_array_equal(pooled.rows, [[0, 2], [3, 5], [6, 8]])
    bins = receptive_field(lambda _, x: adaptive_average_pool(x, 4), {}, (10, 8, 2))
    np.testing.assert_array_equal(bins.rows, [[0, 2], [2, 4], [5, 7], [7, 9]])
    np.testing.assert_array_equal(bins.columns, [[0, 1], [2, 3], [4, 5], [6, 7]])
