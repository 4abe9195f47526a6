"""Padding modes against numpy.pad, and convolutions that use them."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dl_core.errors import UsageError
from models.layers.padding import pad, padded_convolution

MODES = {"zero": "constant", "nearest": "edge", "mean": "mean", "mirror": "reflect", "circular": "wrap"}
NUMPY = {**MODES, **{mode: mode for mode in (*MODES.values(), "symmetric")}}


@pytest.mark.parametrize("widths", [((1, 2), (3, 0)), ((0, 0), (2, 2)), ((7, 3), (4, 9))])
@pytest.mark.parametrize("mode", NUMPY)
def test_every_mode_is_numpys(mode, widths):
    """Also widths beyond the map, where mirrors and circles go around more than once."""
    x = np.random.default_rng(0).standard_normal((2, 4, 3, 2)).astype(np.float32)
    expected = np.pad(x, ((0, 0), *widths, (0, 0)), mode=NUMPY[mode])
    np.testing.assert_allclose(pad(x, widths, mode), expected, rtol=1e-6, atol=1e-6)  # means in float32
    np.testing.assert_array_equal(pad(x, widths, mode)[:, widths[0][0] :, widths[1][0] :][:, :4, :3], x)


@pytest.mark.parametrize("mode", MODES)
def test_the_gradient_of_padding_counts_how_often_a_pixel_is_copied(mode):
    x = jnp.arange(12, dtype=jnp.float32).reshape(1, 4, 3, 1)
    gradient = jax.grad(lambda x: pad(x, ((1, 1), (2, 1)), mode).sum())(x)
    expected = 12 if mode == "zero" else 6 * 6
    np.testing.assert_allclose(gradient.sum(), expected, rtol=1e-6)


@pytest.mark.parametrize("strides", [(1, 1), (2, 2)])
@pytest.mark.parametrize("padding", ["SAME", ((2, 1), (0, 3)), "VALID"])
@pytest.mark.parametrize("mode", MODES)
def test_a_convolution_pads_as_told(mode, padding, strides):
    x = jax.random.normal(jax.random.key(0), (2, 7, 6, 3))
    layer = nn.Conv(4, (3, 5), strides, padding=padding, conv_general_dilated=padded_convolution(mode))
    y, variables = layer.init_with_output(jax.random.key(1), x)
    named = isinstance(padding, str)
    pads = jax.lax.padtype_to_pads((7, 6), (3, 5), strides, padding) if named else padding
    by_hand = np.pad(x, ((0, 0), *pads, (0, 0)), mode=NUMPY[mode])
    plain = nn.Conv(4, (3, 5), strides, padding="VALID")
    np.testing.assert_allclose(y, plain.apply(variables, by_hand), rtol=1e-4, atol=1e-5)  # float32 sums of 45 terms


def test_same_padding_counts_the_dilation():
    x = jax.random.normal(jax.random.key(0), (1, 8, 8, 2))
    options = {"kernel_dilation": 3, "use_bias": False}
    layer = nn.Conv(2, (3, 3), conv_general_dilated=padded_convolution("circular"), **options)
    y, variables = layer.init_with_output(jax.random.key(1), x)
    expected = nn.Conv(2, (3, 3), padding="CIRCULAR", **options).apply(variables, x)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [lambda mode: pad(jnp.ones((1, 2, 2, 1)), ((1, 1), (1, 1)), mode), padded_convolution])
def test_an_unknown_mode_is_refused(make):
    with pytest.raises(UsageError, match="unknown padding mode 'mirrored'; did you mean 'mirror'"):
        make("mirrored")
