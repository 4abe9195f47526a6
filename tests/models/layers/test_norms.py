"""Normalisation of activations and of weights: what each must do to any input, with values worked out by hand."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dl_core.errors import UsageError
from models.layers.norms import (
    BatchNorm,
    GroupNorm,
    InstanceNorm,
    LayerNorm,
    adaptive_instance_norm,
    channel_statistics,
    norm_layer,
)
from models.layers.weight_standardization import (
    ScaledStandardizedConv,
    scaled_standardize,
    standardize,
    standardized_convolution,
)

NEW = {"mutable": ["batch_stats"]}


def maps(seed=0, shape=(3, 4, 5, 6)):
    """Maps whose channels and examples differ in mean and scale."""
    keys = jax.random.split(jax.random.key(seed), 3)
    spread = 1 + jax.random.uniform(keys[0], (shape[0], 1, 1, shape[3]))
    return spread * jax.random.normal(keys[1], shape) + 3 * jax.random.normal(keys[2], (shape[0], 1, 1, shape[3]))


@pytest.mark.parametrize(("unbiased", "running"), [(False, 0.9 + 0.1 * 5.0), (True, 0.9 + 0.1 * 20 / 3)])
def test_batch_norm_divides_by_the_biased_variance_of_the_batch_whatever_it_stores(unbiased, running):
    """W39: of the values 1, 3, 5, 7 the mean is 4 and Σ(x - μ)²/m = (9 + 1 + 1 + 9)/4 = 5; Σ(x - μ)²/(m - 1) = 20/3."""
    x = jnp.array([1.0, 3.0, 5.0, 7.0]).reshape(2, 1, 2, 1)
    layer = BatchNorm(use_running_average=False, momentum=0.9, epsilon=0.0, unbiased=unbiased)
    variables = layer.init(jax.random.key(0), x)
    assert variables["batch_stats"] == {"mean": jnp.zeros(1), "var": jnp.ones(1)}
    y, updated = layer.apply(variables, x, **NEW)
    np.testing.assert_allclose(y.ravel(), np.array([-3, -1, 1, 3]) / np.sqrt(5), rtol=1e-6)
    np.testing.assert_allclose(updated["batch_stats"]["mean"], [0.4], rtol=1e-6)
    np.testing.assert_allclose(updated["batch_stats"]["var"], [running], rtol=1e-6)


def test_unbiased_variance_counts_the_values_of_all_devices_and_of_the_mask():
    x = maps()
    layer = BatchNorm(use_running_average=False, momentum=0.0, unbiased=True, axis_name="data")
    variables = layer.init(jax.random.key(0), x)
    _, updated = jax.vmap(lambda part: layer.apply(variables, part, **NEW), axis_name="data")(x[:, None])
    expected = np.var(x, axis=(0, 1, 2), ddof=1)
    np.testing.assert_allclose(updated["batch_stats"]["var"], np.broadcast_to(expected, (3, 6)), rtol=1e-5)
    mask = (jnp.arange(3) < 2)[:, None, None, None]
    _, masked = layer.clone(axis_name=None).apply(variables, x, mask=mask, **NEW)
    np.testing.assert_allclose(masked["batch_stats"]["var"], np.var(x[:2], axis=(0, 1, 2), ddof=1), rtol=1e-5)


def test_unbiased_variance_of_a_single_value_is_finite():
    layer = BatchNorm(use_running_average=False, unbiased=True)
    _, updated = layer.apply(layer.init(jax.random.key(0), jnp.ones((1, 2))), jnp.ones((1, 2)), **NEW)
    np.testing.assert_allclose(updated["batch_stats"]["var"], 0.99, rtol=1e-6)


def test_batch_norm_in_evaluation_uses_what_it_stored_and_leaves_it():
    """W39 and W7: (x - running mean) / √(running variance + ε), example by example."""
    x = maps()
    variables = {
        "params": {"scale": jnp.full(6, 2.0), "bias": jnp.full(6, 0.5)},
        "batch_stats": {"mean": jnp.arange(6.0), "var": jnp.arange(1.0, 7.0)},
    }
    layer = BatchNorm(epsilon=1e-5, unbiased=True)
    y, updated = layer.apply(variables, x, use_running_average=True, mutable=["batch_stats"])
    expected = 2 * (np.asarray(x) - np.arange(6)) / np.sqrt(np.arange(1, 7) + 1e-5) + 0.5
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    assert jax.tree.all(jax.tree.map(np.array_equal, updated["batch_stats"], variables["batch_stats"]))


@pytest.mark.parametrize(
    ("layer", "axes"),
    [
        (GroupNorm(num_groups=1), (1, 2, 3)),
        (GroupNorm(num_groups=6), (1, 2)),
        (InstanceNorm(), (1, 2)),
        (LayerNorm(), (3,)),
        (LayerNorm(reduction_axes=(1, 2, 3)), (1, 2, 3)),
    ],
)
def test_layers_differ_in_the_axes_whose_mean_becomes_0_and_variance_1(layer, axes):
    x = maps()
    y, _ = layer.init_with_output(jax.random.key(0), x)
    np.testing.assert_allclose(y.mean(axes), 0, atol=1e-5)
    np.testing.assert_allclose(y.var(axes), 1, atol=1e-3)
    scaled, _ = layer.init_with_output(jax.random.key(0), 7 * x)
    np.testing.assert_allclose(scaled, y, atol=1e-4)
    alone, _ = layer.init_with_output(jax.random.key(0), x[:1])  # no statistic involves another example
    np.testing.assert_allclose(alone, y[:1], atol=1e-5)


def test_adaptive_instance_norm_gives_the_content_the_statistics_of_the_style():
    content, style = maps(0), maps(1, (3, 7, 2, 6))
    y = adaptive_instance_norm(content, *channel_statistics(style, epsilon=1e-12), epsilon=1e-12)
    np.testing.assert_allclose(y.mean((1, 2)), style.mean((1, 2)), atol=1e-5)
    np.testing.assert_allclose(y.std((1, 2)), style.std((1, 2)), rtol=1e-4)
    same = adaptive_instance_norm(content, *channel_statistics(content))
    np.testing.assert_allclose(same, content, atol=1e-5)
    plain, _ = InstanceNorm(epsilon=1e-5).init_with_output(jax.random.key(0), content)
    ones = np.ones((3, 6), np.float32)
    np.testing.assert_allclose(adaptive_instance_norm(np.asarray(content), ones, 0 * ones), plain, atol=1e-5)


def test_adaptive_instance_norm_of_a_flat_map_is_the_shift_with_a_finite_gradient():
    flat, ones = jnp.full((1, 2, 2, 3), 4.0), jnp.ones((1, 3))
    np.testing.assert_allclose(adaptive_instance_norm(flat, ones, 2 * ones), 2.0, atol=1e-6)
    gradient = jax.grad(lambda x: jnp.sin(adaptive_instance_norm(x, *channel_statistics(x))).sum())(flat)
    assert np.isfinite(gradient).all()


def test_norms_by_name():
    class Normed(nn.Module):
        kind: str

        @nn.compact
        def __call__(self, x):
            return norm_layer(self.kind, True, groups=4)(name="norm")(x)

    x = maps()
    assert Normed("none").init(jax.random.key(0), x) == {}
    y, _ = Normed("group").init_with_output(jax.random.key(0), x)  # 4 does not divide 6 channels: 2 groups
    expected, _ = GroupNorm(2, epsilon=1e-5).init_with_output(jax.random.key(0), x)
    np.testing.assert_array_equal(y, expected)
    assert set(Normed("batch").init(jax.random.key(0), x)) == {"params", "batch_stats"}
    with pytest.raises(UsageError, match="unknown normalization 'grupo'; did you mean 'group'"):
        Normed("grupo").init(jax.random.key(0), x)


@pytest.mark.parametrize("shape", [(3, 3, 4, 5), (7, 5)])
def test_standardised_weights_have_mean_0_and_variance_1_and_forget_scale_and_offset(shape):
    with jax.enable_x64(True):
        kernel = 2 + jax.random.normal(jax.random.key(0), shape, jnp.float64)
        axes = tuple(range(len(shape) - 1))
        weights = standardize(kernel, epsilon=0.0)
        np.testing.assert_allclose(weights.mean(axes), 0, atol=1e-14)
        np.testing.assert_allclose(weights.var(axes), 1, rtol=1e-13)
        np.testing.assert_allclose(standardize(5 * kernel - 3, epsilon=0.0), weights, atol=1e-12)
        # So the gradient changes neither mean nor norm of the weights of a unit: Qiao et al. (2019), section 3.
        gradient = jax.grad(lambda k: jnp.sin(standardize(k, epsilon=0.0)).sum())(kernel)
        np.testing.assert_allclose(gradient.sum(axes), 0, atol=1e-12)
        np.testing.assert_allclose((gradient * kernel).sum(axes), 0, atol=1e-12)


def test_weights_of_a_constant_kernel_stay_finite():
    assert not np.asarray(standardize(np.full((3, 3, 1, 2), 0.25, np.float32))).any()
    gradient = jax.grad(lambda k: jnp.cos(standardize(k)).sum())(jnp.full((3, 3, 1, 2), 0.25))
    assert np.isfinite(gradient).all()


def test_scaled_weights_of_a_unit_have_mean_0_and_energy_gain_times_gamma_squared():
    """W8: with white inputs, the variance of the output is the sum of the squared weights."""
    with jax.enable_x64(True):
        kernel = 1 + jax.random.normal(jax.random.key(0), (3, 3, 4, 5), jnp.float64)
        gain = np.arange(1.0, 6.0)
        weights = scaled_standardize(kernel, gain, gamma=1.7, epsilon=0.0)
        np.testing.assert_allclose(weights.sum((0, 1, 2)), 0, atol=1e-12)
        np.testing.assert_allclose((weights**2).sum((0, 1, 2)), (1.7 * gain) ** 2, rtol=1e-12)


def test_scaled_standardisation_keeps_variance_1_and_mean_0_where_a_plain_convolution_shifts_the_mean():
    """W8: the input of a unit is γ relu(z), whose mean is not 0: weights that sum to 0 do not pass it on."""
    z = jax.random.normal(jax.random.key(0), (8, 16, 16, 32))
    x = np.sqrt(2 * np.pi / (np.pi - 1)) * nn.relu(z)
    layer = ScaledStandardizedConv(64, (3, 3), padding="VALID")
    y, variables = layer.init_with_output(jax.random.key(1), x)
    variance, shift = y.var((0, 1, 2)), y.mean((0, 1, 2))
    np.testing.assert_allclose(variance.mean(), 1, atol=0.02)
    assert np.abs(shift).max() < 0.1  # 1568 values that overlap ninefold: standard error 0.03 at worst
    plain = nn.Conv(64, (3, 3), padding="VALID", use_bias=False, kernel_init=nn.initializers.he_normal())
    unstandardised, _ = plain.init_with_output(jax.random.key(1), x)
    assert np.abs(unstandardised.mean((0, 1, 2))).max() > 1
    assert {name: leaf.shape for name, leaf in variables["params"].items()} == {
        "kernel": (3, 3, 32, 64), "gain": (64,), "bias": (64,)
    }  # fmt: skip


def test_the_layers_are_convolutions_with_these_weights():
    x = maps(shape=(2, 5, 5, 4))
    plain = nn.Conv(6, (3, 3), (2, 2), padding=((1, 1), (1, 1)), feature_group_count=2)
    variables = plain.init(jax.random.key(0), x)
    params = {**variables["params"], "bias": jnp.arange(6.0)}
    standardised = {"params": {**params, "kernel": standardize(params["kernel"])}}
    layer = plain.clone(conv_general_dilated=standardized_convolution)
    np.testing.assert_allclose(layer.apply({"params": params}, x), plain.apply(standardised, x), atol=1e-5)
    gain = jnp.linspace(0.5, 1.5, 6)
    scaled = {"params": {**params, "kernel": scaled_standardize(params["kernel"], gain, gamma=1.3)}}
    layer = ScaledStandardizedConv(6, (3, 3), (2, 2), ((1, 1), (1, 1)), groups=2, gamma=1.3)
    y = layer.apply({"params": {**params, "gain": gain}}, x)
    np.testing.assert_allclose(y, plain.apply(scaled, x), atol=1e-5)


def test_a_gain_of_0_closes_a_layer_and_still_has_a_gradient():
    x = maps()
    layer = ScaledStandardizedConv(4, (1, 1), gain_init=nn.initializers.zeros)
    y, variables = layer.init_with_output(jax.random.key(0), x)
    assert not np.asarray(y).any()
    gradient = jax.grad(lambda v: (layer.apply(v, x) * maps(2, (3, 4, 5, 4))).sum())(variables)["params"]
    assert np.abs(gradient["gain"]).min() > 0


def test_half_precision_is_a_rounding_of_single_precision():
    x = maps()
    layer = ScaledStandardizedConv(4, (3, 3))
    y, variables = layer.init_with_output(jax.random.key(0), x)
    rough = layer.clone(dtype=jnp.bfloat16).apply(variables, x)
    assert rough.dtype == jnp.bfloat16
    np.testing.assert_allclose(rough.astype(jnp.float32), y, atol=0.03 * float(np.abs(y).max()))
