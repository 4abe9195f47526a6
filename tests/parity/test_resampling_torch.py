"""Down- and up-sampling against torch.nn.functional in float64: values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.layers import pooling, resampling

torch = pytest.importorskip("torch")
functional = torch.nn.functional

# float64: sums of some ten terms leave rounding below 1e-13 of values around 1.
TOLERANCE = {"rtol": 1e-12, "atol": 1e-12}


def maps(height, width, channels=3):
    return np.random.default_rng(0).standard_normal((2, height, width, channels))


def nchw(x):
    return torch.from_numpy(np.array(x)).permute(0, 3, 1, 2)


def assert_same_with_gradient(ours, theirs, x):
    """The same values, and the same gradient of a random weighting of them."""
    with jax.enable_x64(True):
        value, pullback = jax.vjp(ours, jnp.asarray(x))
        inputs = nchw(x).requires_grad_()
        expected = theirs(inputs)
        np.testing.assert_allclose(value, expected.detach().permute(0, 2, 3, 1).numpy(), **TOLERANCE)
        weights = np.random.default_rng(1).standard_normal(value.shape)
        (expected * nchw(weights)).sum().backward()
        (gradient,) = pullback(jnp.asarray(weights))
        np.testing.assert_allclose(gradient, inputs.grad.permute(0, 2, 3, 1).numpy(), **TOLERANCE)


SIZES = [((5, 7), (10, 14)), ((5, 7), (8, 9)), ((9, 6), (4, 5)), ((4, 4), (1, 1)), ((1, 3), (4, 2)), ((6, 6), (6, 13))]


@pytest.mark.parametrize(("old", "new"), SIZES)
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("method", ["bilinear", "bicubic"])
def test_smooth_interpolation_is_torchs(method, align_corners, old, new):
    assert_same_with_gradient(
        lambda x: resampling.resize(x, new, method, align_corners=align_corners),
        lambda x: functional.interpolate(x, new, mode=method, align_corners=align_corners),
        maps(*old),
    )


@pytest.mark.parametrize(("old", "new"), SIZES)
@pytest.mark.parametrize("method", ["bilinear", "bicubic"])
def test_antialiased_interpolation_is_torchs(method, old, new):
    assert_same_with_gradient(
        lambda x: resampling.resize(x, new, method, antialias=True),
        lambda x: functional.interpolate(x, new, mode=method, antialias=True),
        maps(*old),
    )


@pytest.mark.parametrize("method", ["nearest", "nearest-exact"])
def test_nearest_pixels_are_torchs_for_every_pair_of_sizes(method):
    """All sizes up to 40, and some large ones: the rounding of the place shows. (For float64 maps torch 2.13 itself
    differs from its float32 at one of these pairs, 27 -> 333.)"""
    sizes = [*range(1, 41), 100, 224, 333]
    for old in sizes:
        x = np.arange(old, dtype=np.float32)
        for new in sizes:
            theirs = functional.interpolate(torch.from_numpy(x)[None, None, None], (1, new), mode=method)
            pixels = resampling._nearest(old, new, method)
            np.testing.assert_array_equal(pixels, theirs[0, 0, 0].numpy(), err_msg=f"{old} -> {new}")


@pytest.mark.parametrize("method", ["nearest", "nearest-exact"])
@pytest.mark.parametrize(("old", "new"), SIZES)
def test_nearest_interpolation_is_torchs(method, old, new):
    assert_same_with_gradient(
        lambda x: resampling.resize(x, new, method),
        lambda x: functional.interpolate(x, new, mode=method),
        maps(*old),
    )


@pytest.mark.parametrize(
    ("stride", "padding", "output_padding", "dilation", "groups"),
    [(1, 0, 0, 1, 1), (2, 0, 0, 1, 1), (2, 1, 1, 1, 1), (3, 2, 2, 1, 2), (2, 1, 0, 2, 2), (1, 3, 0, 2, 4)],
)
@pytest.mark.parametrize("kernel", [(3, 3), (4, 2)])
def test_transposed_convolution_is_torchs(stride, padding, output_padding, dilation, groups, kernel):
    weight = np.random.default_rng(2).standard_normal((4, 8 // groups, *kernel))
    options = {"stride": stride, "padding": padding, "output_padding": output_padding}
    options |= {"dilation": dilation, "groups": groups}
    assert_same_with_gradient(
        lambda x: resampling.transposed_convolution(x, weight.transpose(2, 3, 0, 1), **options),
        lambda x: functional.conv_transpose2d(x, torch.from_numpy(weight), **options),
        maps(5, 6, 4),
    )


def test_the_layer_is_torchs_with_its_weights():
    theirs = torch.nn.ConvTranspose2d(3, 5, (4, 3), stride=2, padding=1, output_padding=1).double()
    layer = resampling.TransposedConv(5, (4, 3), stride=2, padding=1, output_padding=1, dtype="float64")
    params = {
        "kernel": theirs.weight.detach().numpy().transpose(2, 3, 0, 1),
        "bias": theirs.bias.detach().numpy(),
    }
    assert_same_with_gradient(lambda x: layer.apply({"params": params}, x), theirs, maps(4, 5))


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_shuffle_and_unshuffle_are_torchs(factor):
    assert_same_with_gradient(
        lambda x: resampling.pixel_shuffle(x, factor),
        lambda x: functional.pixel_shuffle(x, factor),
        maps(3, 4, 2 * factor**2),
    )
    assert_same_with_gradient(
        lambda x: resampling.pixel_unshuffle(x, factor),
        lambda x: functional.pixel_unshuffle(x, factor),
        maps(3 * factor, 2 * factor),
    )


@pytest.mark.parametrize(("window", "stride", "padding"), [(2, 2, 0), (3, 2, 0), (3, 2, 1), (2, 3, 1), (3, 1, 1)])
def test_pooling_with_indices_and_unpooling_are_torchs(window, stride, padding):
    x = maps(7, 8) - 5  # below the padding, which must not win
    theirs = lambda x: functional.max_pool2d(x, window, stride, padding)
    assert_same_with_gradient(lambda x: resampling.max_pool_with_indices(x, window, stride, padding)[0], theirs, x)
    with jax.enable_x64(True):
        values, indices = resampling.max_pool_with_indices(jnp.asarray(x), window, stride, padding)
        pooled, places = functional.max_pool2d(nchw(x), window, stride, padding, return_indices=True)
        np.testing.assert_array_equal(indices, places.permute(0, 2, 3, 1).numpy())
        unpooled = functional.max_unpool2d(pooled, places, window, stride, padding, output_size=(7, 8))
        expected = unpooled.permute(0, 2, 3, 1).numpy()
        np.testing.assert_allclose(resampling.max_unpool(values, indices, (7, 8)), expected, **TOLERANCE)


@pytest.mark.parametrize("count_padding", [False, True])
@pytest.mark.parametrize("ceil", [False, True])
@pytest.mark.parametrize(("window", "stride", "padding"), [(2, 2, 0), (3, 2, 1), (3, 3, 1), (2, 3, 1)])
def test_average_pooling_is_torchs(window, stride, padding, ceil, count_padding):
    options = {"ceil_mode": ceil, "count_include_pad": count_padding}
    for size in ((7, 8), (6, 9)):
        assert_same_with_gradient(
            lambda x: pooling.average_pool(x, window, stride, padding, ceil=ceil, count_padding=count_padding),
            lambda x: functional.avg_pool2d(x, window, stride, padding, **options),
            maps(*size),
        )


@pytest.mark.parametrize("ceil", [False, True])
@pytest.mark.parametrize(("window", "stride", "padding"), [(2, 2, 0), (3, 2, 1), (2, 3, 1)])
def test_max_pooling_is_torchs(window, stride, padding, ceil):
    for size in ((7, 8), (6, 9)):
        assert_same_with_gradient(
            lambda x: pooling.max_pool(x, window, stride, padding, ceil=ceil),
            lambda x: functional.max_pool2d(x, window, stride, padding, ceil_mode=ceil),
            maps(*size),
        )


@pytest.mark.parametrize("size", [(1, 1), (3, 4), (7, 2), (9, 10)])
def test_adaptive_pooling_is_torchs(size):
    x = maps(7, 8)
    assert_same_with_gradient(
        lambda x: pooling.adaptive_average_pool(x, size), lambda x: functional.adaptive_avg_pool2d(x, size), x
    )
    assert_same_with_gradient(
        lambda x: pooling.adaptive_max_pool(x, size), lambda x: functional.adaptive_max_pool2d(x, size), x
    )
