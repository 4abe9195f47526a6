"""Arithmetic of described layers: the course's problems, and agreement with real convolutions of random stacks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from dl_core import convolution_arithmetic
from dl_core.errors import UsageError
from dl_core.receptive_field import Layer, input_sizes, output_size, parameter_count, stack_receptive_fields

EXAM = Layer((5, 9), 2, "same", in_channels=200, out_channels=100)


def test_input_sizes_that_give_30_by_20_with_stride_2():
    """W4: 59 or 60 by 39 or 40, and no other."""
    assert input_sizes(EXAM, (30, 20)) == (range(59, 61), range(39, 41))
    for height, width in [(59, 39), (60, 40)]:
        assert output_size(EXAM, (height, width)) == (30, 20)
    assert output_size(EXAM, (58, 41)) == (29, 21)


def test_parameters_of_the_exam_layer():
    """W5."""
    assert parameter_count(EXAM) == 900_100


def test_receptive_fields_of_the_exam_stack():
    """W6."""
    layers = [Layer((5, 9), 2), Layer(3), Layer(7, 3)]
    fields = stack_receptive_fields(layers)
    assert [field.size for field in fields] == [(5, 9), (9, 13), (21, 25)]
    assert fields[-1].stride == (6, 6)


def test_feature_map_of_a_3x3_convolution():
    """W16. (The document's 16 × 10 × 10 is a slip.)"""
    assert output_size(Layer(3, in_channels=3, out_channels=16), 32) == (30, 30)


def test_size_and_weights_of_six_5x5_filters():
    """W20."""
    layer = Layer(5, in_channels=3, out_channels=6)
    assert output_size(layer, 224) == (220, 220)
    assert parameter_count(layer._replace(bias=False)) == 450
    assert parameter_count(layer) == 456


def test_seven_pixels_with_stride_3_on_26():
    """W24."""
    assert output_size(Layer(7, 3, 1, in_channels=26, out_channels=5), 26) == (8, 8)


def test_three_3x3_convolutions_see_7x7():
    """W26."""
    assert stack_receptive_fields([Layer(3)] * 3)[-1].size == (7, 7)


def random_layer(rng):
    pair = lambda high: tuple(int(n) for n in rng.integers(1, high, 2))
    padding = ["valid", "same", "full", tuple(tuple(int(n) for n in rng.integers(0, 3, 2)) for _ in range(2))]
    return Layer(pair(5), pair(4), padding[rng.integers(4)], pair(4))


def run(layers, x):
    """The layers as real convolutions of one channel, weights 1, [batch, height, width, 1]."""
    for layer in layers:
        padding, dilation = layer.padding, np.array(layer.dilation)
        reach = dilation * (np.array(layer.kernel) - 1)
        if isinstance(padding, str):
            padding = [(n, n) for n in reach] if padding == "full" else padding.upper()
        kernel = jnp.ones((*layer.kernel, 1, 1))
        dims = ("NHWC", "HWIO", "NHWC")
        x = lax.conv_general_dilated(
            x, kernel, layer.stride, padding, rhs_dilation=layer.dilation, dimension_numbers=dims
        )
    return x


@pytest.mark.parametrize("seed", range(6))
def test_random_stacks_agree_with_real_convolutions(seed):
    """W34, dilation and every padding included: size, and the field of every unit that no edge cuts."""
    rng = np.random.default_rng(seed)
    layers = [random_layer(rng) for _ in range(rng.integers(1, 4))]
    shape = (60, 53)
    size = output_size(layers, shape)
    # Image i has the value 1 in row i, or column i - 60, alone.
    rows = np.eye(60)[:, :, None] * np.ones((1, 1, 53))
    columns = np.eye(53)[:, None, :] * np.ones((1, 60, 1))
    images = np.concatenate([rows, columns])[..., None].astype(np.float32)
    outputs = np.asarray(jax.jit(lambda x: run(layers, x))(images))[..., 0]
    assert outputs.shape[1:] == size
    field = stack_receptive_fields(layers, shape)[-1]
    reached = [outputs[:60].any(axis=2).T, outputs[60:].any(axis=1).T]  # [unit, pixel]
    for axis in (0, 1):
        for unit, pixels in enumerate(reached[axis]):
            first = field.start[axis] + unit * field.stride[axis]
            last = first + field.size[axis] - 1
            if first >= 0 and last < shape[axis]:
                assert (pixels.argmax(), shape[axis] - 1 - pixels[::-1].argmax()) == (first, last)
            elif pixels.any():  # what padding hides is never seen, what is seen lies in the field
                assert first <= pixels.argmax() <= shape[axis] - 1 - pixels[::-1].argmax() <= last


def test_input_sizes_are_the_inverse_of_output_size():
    rng = np.random.default_rng(0)
    for _ in range(20):
        layer, n = random_layer(rng), int(rng.integers(1, 9))
        heights, widths = input_sizes(layer, n)

        def size(height, width, layer=layer):
            try:
                return output_size(layer, (height, width))
            except UsageError:
                return (0, 0)

        assert list(heights) == [m for m in range(1, 60) if size(m, 50)[0] == n]
        assert list(widths) == [m for m in range(1, 60) if size(50, m)[1] == n]


def test_cost_of_vgg_16_from_its_layers():
    """torchvision counts 15.47e9 multiply-adds and 138,357,544 parameters."""
    layers, channels = [], 3
    for size, width in [(2, 64), (2, 128), (3, 256), (3, 512), (3, 512)]:
        for _ in range(size):
            layers.append(Layer(3, 1, "same", in_channels=channels, out_channels=width))
            channels = width
        layers.append(Layer(2, 2, weights=False))
    layers += [Layer(7, in_channels=512, out_channels=4096), Layer(1, in_channels=4096, out_channels=4096)]
    layers.append(Layer(1, in_channels=4096, out_channels=1000))
    assert parameter_count(layers) == 138_357_544
    assert round(convolution_arithmetic.multiply_adds(layers, 224) / 1e9, 2) == 15.47
    assert stack_receptive_fields(layers[:-3])[-1].size == (212, 212)  # Araujo et al. (2019)


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (Layer(0), "at least 1"),
        (Layer(3, in_channels=4, groups=3), "groups must divide"),
        (Layer(3, padding="smae"), "unknown padding 'smae'; did you mean 'same'"),
        (Layer(9), "needs a larger input than 8×8"),
    ],
)
def test_wrong_numbers_are_answered(layer, words):
    with pytest.raises(UsageError, match=words):
        output_size(layer, 8)
