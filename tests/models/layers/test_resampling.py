"""Down- and up-sampling without torch: the course example, definitions, round trips, transforms, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dl_core.errors import UsageError
from models.layers import pooling, resampling

EXAMPLE = [
    [1, 7, 1, 1, 4, 0],
    [0, 2, 1, 7, 5, 2],
    [6, 5, 3, 6, 5, 2],
    [6, 5, 2, 3, 0, 2],
    [5, 0, 2, 0, 4, 5],
    [3, 2, 1, 2, 7, 5],
]


def example():
    return jnp.array(EXAMPLE, jnp.float32)[None, :, :, None]


def maps(*shape):
    return jax.random.normal(jax.random.key(0), shape)


def test_pooling_of_the_course_example():
    """W3."""
    expected = [[7, 7, 5], [6, 6, 5], [5, 2, 7]]
    np.testing.assert_array_equal(pooling.max_pool(example(), 2, 2)[0, :, :, 0], expected)
    values, indices = resampling.max_pool_with_indices(example(), 2)
    np.testing.assert_array_equal(values[0, :, :, 0], expected)
    assert np.asarray(EXAMPLE).ravel()[indices.ravel()].tolist() == np.ravel(expected).tolist()
    np.testing.assert_array_equal(pooling.adaptive_max_pool(example(), 3)[0, :, :, 0], expected)
    mean = [[2.5, 2.5, 2.75], [5.5, 3.5, 2.25], [2.5, 1.25, 5.25]]
    np.testing.assert_array_equal(pooling.average_pool(example(), 2, 2)[0, :, :, 0], mean)
    np.testing.assert_array_equal(pooling.adaptive_average_pool(example(), 3)[0, :, :, 0], mean)


def test_strided_and_global_pooling_of_the_course_example():
    np.testing.assert_array_equal(pooling.strided(example(), 2)[0, :, :, 0], [[1, 1, 4], [6, 3, 5], [5, 2, 4]])
    assert pooling.global_max_pool(example()).item() == 7
    np.testing.assert_allclose(pooling.global_average_pool(example()), np.mean(EXAMPLE).reshape(1, 1), rtol=1e-6)
    assert pooling.global_average_pool(example().astype(jnp.bfloat16)).dtype == jnp.float32


def test_unpooling_puts_the_maxima_back_and_pooling_finds_them_again():
    x = jnp.abs(maps(2, 6, 8, 3)) + 1
    values, indices = jax.jit(resampling.max_pool_with_indices, static_argnums=1)(x, 2)
    unpooled = resampling.max_unpool(values, indices, (6, 8))
    assert ((unpooled == x) | (unpooled == 0)).all()
    assert (unpooled != 0).sum() == values.size
    again, same = resampling.max_pool_with_indices(unpooled, 2)
    np.testing.assert_array_equal(again, values)
    np.testing.assert_array_equal(same, indices)


def test_shuffle_takes_channels_as_rows_and_columns_and_unshuffle_gives_them_back():
    x = jnp.arange(2 * 3 * 8, dtype=jnp.float32).reshape(1, 2, 3, 8)
    y = resampling.pixel_shuffle(x, 2)
    assert y.shape == (1, 4, 6, 2)
    for c, i, j in [(0, 0, 1), (1, 1, 0), (1, 1, 1)]:
        assert y[0, 2 + i, 4 + j, c] == x[0, 1, 2, c * 4 + i * 2 + j]
    np.testing.assert_array_equal(resampling.pixel_unshuffle(y, 2), x)


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("method", ["bilinear", "bicubic"])
def test_interpolation_keeps_constants_and_is_jaxs_where_both_define_it(method, antialias):
    x = maps(2, 7, 9, 3)
    ones = resampling.resize(jnp.ones((1, 5, 4, 1)), (8, 3), method, antialias=antialias)
    np.testing.assert_allclose(ones, 1, rtol=1e-6)
    if method == "bilinear" or antialias:  # without antialiasing torch's bicubic kernel is another one
        size = (4, 5) if antialias else (12, 20)
        theirs = jax.image.resize(x, (2, *size, 3), method, antialias=antialias)
        ours = resampling.resize(x, size, method, antialias=antialias)
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)  # float32


def test_aligned_corners_keep_the_corner_pixels_and_the_plane_between_them():
    rows, columns = np.mgrid[0:4, 0:5]
    plane = jnp.asarray(2 * rows + 3 * columns, jnp.float32)[None, :, :, None]
    rows, columns = np.meshgrid(np.linspace(0, 3, 7), np.linspace(0, 4, 6), indexing="ij")
    resized = resampling.resize(plane, (7, 6), align_corners=True)[0, :, :, 0]
    np.testing.assert_allclose(resized, 2 * rows + 3 * columns, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("stride", "padding", "size"), [(1, 0, 5), (2, 1, 7), (3, 2, 8)])
def test_transposed_convolution_is_the_transpose_of_convolution(stride, padding, size):
    """<conv(x), y> = <x, transposed(y)> for all x and y."""
    kernel, x = maps(3, 3, 2, 4), maps(1, size, size, 2)
    convolve = lambda x: jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), [(padding, padding)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    y = jnp.cos(jnp.arange(convolve(x).size, dtype=jnp.float32)).reshape(convolve(x).shape)
    options = {"stride": stride, "padding": padding}
    options["output_padding"] = (size + 2 * padding - 3) % stride
    back = resampling.transposed_convolution(y, kernel.transpose(0, 1, 3, 2), **options)
    assert back.shape == x.shape
    np.testing.assert_allclose((convolve(x) * y).sum(), (x * back).sum(), rtol=1e-4, atol=1e-4)  # float32


def test_the_layer_has_weights_precision_and_a_bias_of_choice():
    x = maps(1, 3, 3, 4)
    layer = resampling.TransposedConv(6, (2, 2), stride=2, groups=2, dtype="bfloat16")
    y, variables = layer.init_with_output(jax.random.key(0), x)
    assert (y.shape, y.dtype) == ((1, 6, 6, 6), jnp.bfloat16)
    assert jax.tree.map(lambda leaf: leaf.shape, variables["params"]) == {"kernel": (2, 2, 4, 3), "bias": (6,)}
    assert set(layer.clone(use_bias=False).init(jax.random.key(0), x)["params"]) == {"kernel"}


def test_everything_works_under_jit_vmap_and_grad():
    x = maps(3, 2, 4, 4, 4)

    def total(x):
        y = resampling.resize(resampling.pixel_shuffle(x, 2), (5, 7), "bicubic")
        values, indices = resampling.max_pool_with_indices(y, 2)
        return (resampling.max_unpool(values, indices, y.shape[1:3]) ** 2).sum()

    together = jax.jit(jax.vmap(jax.grad(total)))(x)
    np.testing.assert_allclose(together[1], jax.grad(total)(x[1]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x: resampling.resize(x, (2, 2), "cubic"), "unknown method 'cubic'; did you mean 'bicubic'"),
        (lambda x: resampling.resize(x, (0, 2)), "size must be at least 1×1, got 0×2"),
        (lambda x: resampling.resize(x, (2, 2), "nearest", align_corners=True), "are for bilinear and bicubic"),
        (lambda x: resampling.resize(x, (2, 2), align_corners=True, antialias=True), "exclude each other"),
        (lambda x: resampling.pixel_shuffle(x, 2), "channels must be a multiple of 4 for a factor of 2, got 3"),
        (lambda x: resampling.pixel_unshuffle(x, 2), "must be multiples of 2, got 5×4"),
        (
            lambda x: resampling.transposed_convolution(x, jnp.ones((2, 2, 3, 1)), output_padding=1),
            "output_padding must be below stride or dilation, got 1",
        ),
    ],
)
def test_nonsense_is_refused_with_the_value_given(call, words):
    with pytest.raises(UsageError, match=words):
        call(jnp.ones((1, 5, 4, 3)))
