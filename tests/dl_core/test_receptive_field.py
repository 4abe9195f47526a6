"""Receptive fields of functions: what the jaxpr says is what changes when pixels change."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from dl_core.errors import UsageError
from dl_core.receptive_field import (
    Layer,
    effective_extent,
    effective_receptive_field,
    multiply_adds,
    receptive_field,
    stack_receptive_fields,
)

HEIGHT, WIDTH, CHANNELS = 22, 19, 4


def conv(x, kernel, **options):
    weights = jnp.full((*kernel, CHANNELS // options.get("feature_group_count", 1), CHANNELS), 0.1)
    options = {"window_strides": (1, 1), "padding": "SAME", "dimension_numbers": ("NHWC", "HWIO", "NHWC"), **options}
    return lax.conv_general_dilated(x, weights, **options)


def random_step(rng, x):
    """One operation of those that models are made of, with random settings; every output grows with every input."""
    pair = lambda high: tuple(int(n) for n in rng.integers(1, high, 2))
    kind = rng.integers(11)
    if kind <= 1:
        padding = ["SAME", "VALID", ((2, 1), (0, 3)), ((-1, 0), (1, 1))][rng.integers(4)]
        return conv(x, pair(4), window_strides=pair(3), padding=padding, rhs_dilation=pair(3))
    if kind == 2:
        return conv(x, pair(4), feature_group_count=2, padding="VALID")
    if kind == 3:  # transposed convolution
        return conv(x, pair(4), lhs_dilation=pair(3), padding=((1, 2), (0, 1)))
    if kind == 4:
        return nn.max_pool(x, pair(4), pair(3), ["SAME", "VALID"][rng.integers(2)])
    if kind == 5:
        return nn.avg_pool(x, pair(4), pair(3), ["SAME", "VALID"][rng.integers(2)])
    if kind == 6:
        return x + nn.relu(conv(x, (3, 3), rhs_dilation=pair(3)))
    if kind == 7:
        side = conv(x, (1, 5))[..., :2]
        return jnp.concatenate([side, x[..., :2]], axis=-1)[:, :, ::-1]
    if kind == 8:
        return jax.image.resize(x, (1, x.shape[1] + 3, x.shape[2] * 2, CHANNELS), "nearest")
    if kind == 9:
        return jnp.pad(x, ((0, 0), (1, 2), (0, 1), (0, 0)))[:, :: pair(3)[0], 1:] ** 2
    return jnp.einsum("bhwc,ij,cd->bhwd", jnp.roll(x, 2, axis=1), jnp.ones((1, 1)), jnp.ones((CHANNELS, CHANNELS)))


def found_by_experiment(apply, shape=(HEIGHT, WIDTH, CHANNELS)):
    """First and last row (column) whose change changes each row (column) of the output."""
    base = 1 + np.random.default_rng(0).random(shape)
    images = [base]
    for row in range(shape[0]):
        images.append(np.where(np.arange(shape[0])[:, None, None] == row, 100 * base, base))
    for column in range(shape[1]):
        images.append(np.where(np.arange(shape[1])[None, :, None] == column, 100 * base, base))
    outputs = np.asarray(jax.jit(jax.vmap(lambda x: apply(x[None])[0]))(np.stack(images).astype(np.float32)))
    changed = np.abs(outputs[1:] / outputs[:1] - 1) > 1e-5
    ends = []
    for axis, of in [(0, changed[: shape[0]]), (1, changed[shape[0] :])]:
        reached = of.any(axis=tuple(i for i in (1, 2, 3) if i != axis + 1))  # [pixel, unit]
        last = len(reached) - 1 - reached[::-1].argmax(axis=0)
        pairs = np.stack([reached.argmax(axis=0), last], axis=1)
        ends.append(np.where(reached.any(axis=0)[:, None], pairs, [[0, -1]]))
    return ends


@pytest.mark.parametrize("seed", range(14))
def test_random_programs_see_what_an_experiment_finds(seed):
    def apply(x):
        rng = np.random.default_rng(seed)
        for _ in range(4):
            x = random_step(rng, x)
        return x + 1e-3

    field = receptive_field(lambda _, x: apply(x), {}, (HEIGHT, WIDTH, CHANNELS))
    with np.errstate(all="ignore"):
        rows, columns = found_by_experiment(apply)
    np.testing.assert_array_equal(field.rows, rows)
    np.testing.assert_array_equal(field.columns, columns)


@pytest.mark.parametrize("seed", range(5))
def test_a_stack_of_convolutions_agrees_with_the_arithmetic_of_its_description(seed):
    rng = np.random.default_rng(100 + seed)
    pair = lambda high: tuple(int(n) for n in rng.integers(1, high, 2))
    layers = [Layer(pair(4), pair(3), tuple(int(n) for n in rng.integers(0, 2, 2)), pair(3)) for _ in range(3)]

    def apply(_, x):
        for layer in layers:
            padding = [(n, n) for n in layer.padding]
            x = conv(x, layer.kernel, window_strides=layer.stride, padding=padding, rhs_dilation=layer.dilation)
        return x

    field = receptive_field(apply, {}, (64, 61, CHANNELS))
    expected = stack_receptive_fields(layers)[-1]
    assert (field.size, field.stride, field.start) == tuple(expected)


def test_the_full_size_of_a_field_does_not_depend_on_the_image_even_where_maps_have_one_pixel():
    def apply(_, x):
        for _ in range(4):
            x = conv(x, (3, 3), window_strides=(2, 2), padding=((1, 1), (1, 1)))
        return conv(x, (3, 3))

    sizes = {receptive_field(apply, {}, (side, side, CHANNELS)).size for side in (16, 64, 97)}
    assert sizes == {(31 + 2 * 16, 31 + 2 * 16)}


def test_attention_sees_everything_and_a_window_of_it_its_part():
    def apply(_, x):
        tokens = x.reshape(1, 6, 2, 4, 3, CHANNELS).transpose(0, 1, 3, 2, 4, 5).reshape(1, 24, -1)
        attended = nn.softmax(tokens @ tokens.swapaxes(1, 2)) @ tokens
        return {"tokens": tokens, "first": tokens[:, 0], "corner": tokens[:, jnp.array([0, 5])], "attended": attended}

    fields = receptive_field(apply, {}, (12, 12, CHANNELS))
    assert fields["attended"].size == (12, 12)
    assert fields["first"].size == (2, 3)
    np.testing.assert_array_equal(fields["corner"].rows, [[0, 3]])  # tokens of the first two rows
    assert receptive_field(apply, {}, (12, 12, CHANNELS), output="first").size == (2, 3)
    with pytest.raises(UsageError, match="unknown output 'frist'; did you mean 'first'"):
        receptive_field(apply, {}, (12, 12, CHANNELS), output="frist")


def test_an_unknown_operation_is_named_or_taken_to_see_everything():
    apply = lambda _, x: jnp.cumsum(x, axis=1)
    with pytest.raises(UsageError, match="'cumsum' lies between image and output"):
        receptive_field(apply, {}, (8, 8, 1))
    assert receptive_field(apply, {}, (8, 8, 1), unknown="whole").rows.tolist() == [[0, 7]] * 8
    assert receptive_field(lambda w, x: x * jnp.cumsum(w)[0], jnp.ones(1), (8, 8, 1)).size == (1, 1)  # not on the way
    with pytest.raises(UsageError, match="unknown treatment"):
        receptive_field(apply, {}, (8, 8, 1), unknown="hole")


def test_an_output_that_does_not_depend_on_the_image_sees_nothing():
    field = receptive_field(lambda w, x: (x * 0)[:, :2] + w, jnp.ones(()), (8, 8, 1))
    assert field.size == (1, 1) or field.rows.tolist() == [[0, -1]] * 2
    assert receptive_field(lambda w, x: jnp.ones((1, 3)) * w, jnp.ones(()), (8, 8, 1)).size == (0, 0)


def test_multiply_adds_of_convolutions_and_products():
    def apply(params, x):
        x = conv(x, (3, 3), window_strides=(2, 2), feature_group_count=2)  # 11·10 positions, 9·2·4 weights
        prepared = params @ params  # not a cost of the image
        return x.reshape(len(x), -1) @ prepared

    params = jax.ShapeDtypeStruct((440, 440), jnp.float32)
    one = 11 * 10 * 9 * 2 * 4 + 440 * 440
    assert multiply_adds(apply, params, jax.ShapeDtypeStruct((1, HEIGHT, WIDTH, CHANNELS), jnp.float32)) == one
    assert multiply_adds(apply, params, np.zeros((3, HEIGHT, WIDTH, CHANNELS), np.float32)) == 3 * one


def test_the_effective_field_of_equal_weights_is_their_repeated_convolution():
    """Luo et al. (2016), section 2.2: a Gaussian of variance n (k² - 1) / 12 in the limit."""
    kernel = jnp.ones((3, 3, 1, 1)) / 9

    def apply(kernel, x):
        for _ in range(5):
            x = lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return {"map": x}

    field = effective_receptive_field(
        apply, kernel, (21, 25, 1), key=jax.random.key(0), num_samples=2, output="map", unit=(9, 13)
    )
    line = np.ones(1)
    for _ in range(5):
        line = np.convolve(line, np.ones(3) / 3)
    expected = np.zeros((21, 25))
    expected[4:15, 8:19] = np.outer(line, line)
    np.testing.assert_allclose(field, expected, atol=1e-7)  # float32
    variance = (np.square(np.arange(-5, 6)) * line).sum()
    assert variance == pytest.approx(5 * 8 / 12)
    assert effective_extent(field) == (8, 8)  # 4 σ = 7.3; 7 rows hold 0.947 of it
    assert effective_extent(field, 1.0) == (11, 11) == receptive_field(apply, kernel, (21, 25, 1))["map"].size


def test_the_effective_field_lies_within_the_theoretical_one_and_its_shares_sum_to_1():
    def apply(params, x):
        return nn.relu(conv(nn.relu(conv(x, (5, 3))) * params, (3, 3)))

    shape = (HEIGHT, WIDTH, CHANNELS)
    seen = effective_receptive_field(apply, jnp.ones(()), shape, key=jax.random.key(0), num_samples=3)
    field = receptive_field(apply, jnp.ones(()), shape)
    (top, bottom), (left, right) = field.rows[HEIGHT // 2], field.columns[WIDTH // 2]
    assert seen.sum() == pytest.approx(1, abs=1e-6)
    assert seen[top : bottom + 1, left : right + 1].sum() == seen.sum()
    assert seen.min() >= 0
    with pytest.raises(UsageError, match="num_samples"):
        effective_receptive_field(apply, jnp.ones(()), shape, key=jax.random.key(0), num_samples=0)
    with pytest.raises(UsageError, match="share"):
        effective_extent(seen, 0.0)
