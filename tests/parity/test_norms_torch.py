"""Normalisation layers against torch's: values, gradients and running statistics in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.layers.norms import (
    BatchNorm,
    GroupNorm,
    InstanceNorm,
    LayerNorm,
    adaptive_instance_norm,
    channel_statistics,
    local_response_norm,
)
from models.layers.weight_standardization import ScaledStandardizedConv, standardized_convolution

torch = pytest.importorskip("torch")
from flax import linen as nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

RANDOM = np.random.default_rng(0)
X = RANDOM.standard_normal((4, 6, 5, 8)) * RANDOM.uniform(0.5, 2, 8) + RANDOM.standard_normal(8)
SCALE, BIAS, COTANGENT = RANDOM.uniform(0.5, 1.5, 8), RANDOM.standard_normal(8), RANDOM.standard_normal(X.shape)
nchw = lambda x: torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, 1)))
nhwc = lambda x: np.moveaxis(x.detach().numpy(), 1, -1)


def close(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12)  # float64, sums of some hundred terms


def with_affine(layer):
    """A torch layer in float64 with the weights above."""
    layer = layer.double()
    layer.load_state_dict({**layer.state_dict(), "weight": torch.from_numpy(SCALE), "bias": torch.from_numpy(BIAS)})
    return layer


def assert_same_values_and_gradients(apply, layer):
    """apply(params, x) and the torch layer: outputs, and gradients of sum(COTANGENT · output)."""
    params = {"scale": jnp.asarray(SCALE), "bias": jnp.asarray(BIAS)}
    y, pullback = jax.vjp(apply, params, jnp.asarray(X))
    gradients, by_input = pullback(jnp.asarray(COTANGENT))
    inputs = nchw(X).requires_grad_()
    outputs = layer(inputs)
    outputs.backward(nchw(COTANGENT))
    close(y, nhwc(outputs))
    close(by_input, nhwc(inputs.grad))
    close(gradients["scale"], layer.weight.grad.numpy())
    close(gradients["bias"], layer.bias.grad.numpy())


@pytest.mark.parametrize("train", [True, False])
def test_batch_norm_with_its_running_statistics(train):
    with jax.enable_x64(True):
        theirs = with_affine(torch.nn.BatchNorm2d(8)).train(train)
        mean, var = RANDOM.standard_normal(8), RANDOM.uniform(0.5, 2, 8)
        theirs.running_mean.copy_(torch.from_numpy(mean))
        theirs.running_var.copy_(torch.from_numpy(var))
        layer = BatchNorm(not train, momentum=0.9, epsilon=1e-5, unbiased=True, dtype="float64", param_dtype="float64")
        statistics = {"mean": jnp.asarray(mean), "var": jnp.asarray(var)}
        apply = lambda params, x: layer.apply({"params": params, "batch_stats": statistics}, x, mutable=["batch_stats"])
        assert_same_values_and_gradients(lambda params, x: apply(params, x)[0], theirs)
        updated = apply({"scale": jnp.asarray(SCALE), "bias": jnp.asarray(BIAS)}, X)[1]["batch_stats"]
        close(updated["mean"], theirs.running_mean.numpy())
        close(updated["var"], theirs.running_var.numpy())


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (GroupNorm(4, epsilon=1e-5), torch.nn.GroupNorm(4, 8)),
        (GroupNorm(1, epsilon=1e-5), torch.nn.GroupNorm(1, 8)),
        (InstanceNorm(epsilon=1e-5), torch.nn.InstanceNorm2d(8, affine=True)),
    ],
)
def test_norms_of_one_example(ours, theirs):
    with jax.enable_x64(True):
        layer = ours.clone(dtype="float64", param_dtype="float64")
        assert_same_values_and_gradients(lambda params, x: layer.apply({"params": params}, x), with_affine(theirs))


def test_layer_norm_over_channels_and_over_whole_maps():
    with jax.enable_x64(True):
        options = {"epsilon": 1e-5, "dtype": "float64", "param_dtype": "float64"}
        params = {"scale": jnp.asarray(SCALE), "bias": jnp.asarray(BIAS)}
        y = LayerNorm(**options).apply({"params": params}, X)
        close(y, F.layer_norm(torch.from_numpy(X), (8,), torch.from_numpy(SCALE), torch.from_numpy(BIAS)).numpy())
        y = LayerNorm(**options, reduction_axes=(1, 2, 3), use_scale=False, use_bias=False).apply({}, X)
        close(y, nhwc(F.layer_norm(nchw(X), (8, 6, 5))))


def test_local_response_norm():
    """torch divides α by the number of channels in the sum."""
    with jax.enable_x64(True):
        y = local_response_norm(jnp.asarray(X), size=5, alpha=0.02, beta=0.75, k=2.0)
        close(y, nhwc(F.local_response_norm(nchw(X), 5, alpha=0.1, beta=0.75, k=2.0)))


def test_adaptive_instance_norm_and_its_gradients():
    with jax.enable_x64(True):
        style = RANDOM.standard_normal((4, 3, 7, 8)) * 2 + 1
        y, pullback = jax.vjp(lambda c, s: adaptive_instance_norm(c, *channel_statistics(s)), X, style)
        ours = pullback(jnp.asarray(COTANGENT))
        inputs = [nchw(X).requires_grad_(), nchw(style).requires_grad_()]
        variance, mean = torch.var_mean(inputs[1], dim=(2, 3), unbiased=False, keepdim=True)
        outputs = F.instance_norm(inputs[0]) * (variance + 1e-5).sqrt() + mean
        outputs.backward(nchw(COTANGENT))
        close(y, nhwc(outputs))
        for gradient, theirs in zip(ours, inputs, strict=True):
            close(gradient, nhwc(theirs.grad))


@pytest.mark.parametrize("scaled", [False, True])
def test_convolutions_with_standardised_weights_and_their_gradients(scaled):
    """The torch side is written out; timm's own layer takes part in test_residual_torch.py."""
    with jax.enable_x64(True):
        kernel, gain, bias = (
            RANDOM.standard_normal((3, 3, 4, 8)),
            RANDOM.uniform(0.5, 1.5, 8),
            RANDOM.standard_normal(8),
        )
        options = {"padding": ((1, 1), (1, 1)), "dtype": "float64", "param_dtype": "float64"}
        params = {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)}
        if scaled:
            layer = ScaledStandardizedConv(8, (3, 3), groups=2, gamma=1.7, **options)
            params["gain"] = jnp.asarray(gain)
        else:
            conv = {"conv_general_dilated": standardized_convolution, "feature_group_count": 2}
            layer = nn.Conv(8, (3, 3), **conv, **options)
        y, pullback = jax.vjp(lambda params, x: layer.apply({"params": params}, x), params, jnp.asarray(X))
        ours, by_input = pullback(jnp.asarray(COTANGENT))

        leaves = {"kernel": torch.from_numpy(kernel.transpose(3, 2, 0, 1).copy()), "gain": torch.from_numpy(gain)}
        leaves = {name: leaf.requires_grad_() for name, leaf in {**leaves, "bias": torch.from_numpy(bias)}.items()}
        variance, mean = torch.var_mean(leaves["kernel"], dim=(1, 2, 3), unbiased=False, keepdim=True)
        weights = (leaves["kernel"] - mean) / (variance + 1e-6).sqrt()
        if scaled:
            weights = weights * (1.7 * leaves["gain"] / 36**0.5)[:, None, None, None]
        inputs = nchw(X).requires_grad_()
        outputs = F.conv2d(inputs, weights, leaves["bias"], padding=1, groups=2)
        outputs.backward(nchw(COTANGENT))
        close(y, nhwc(outputs))
        close(by_input, nhwc(inputs.grad))
        close(ours["kernel"], leaves["kernel"].grad.numpy().transpose(2, 3, 1, 0))
        close(ours["bias"], leaves["bias"].grad.numpy())
        if scaled:
            close(ours["gain"], leaves["gain"].grad.numpy())
