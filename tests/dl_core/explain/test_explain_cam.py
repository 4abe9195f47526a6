"""Class activation maps: closed forms, naive references, layers and tokens by name, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from explanation_contract import assert_keeps_the_contract, small_images, small_network, small_params
from jax.ad_checkpoint import checkpoint_name

import models
from dl_core.errors import UsageError
from dl_core.explain import cam, spatial
from dl_core.explain.cam import (
    default_cam_layer,
    grad_cam,
    grad_cam_plus_plus,
    guided_grad_cam,
    layer_cam,
    score_cam,
)
from dl_core.explain.guided import guided_backprop

METHODS = (grad_cam, grad_cam_plus_plus, layer_cam, score_cam)
GRADIENT_METHODS = METHODS[:3]
TARGET = np.array([0, 3, 1])


@pytest.fixture(scope="module")
def problem():
    return small_params(), small_images(3)


def channel_means(_, images):
    """The logit of class k is the mean of channel k of "maps": 2×2 means of the image's channels."""
    maps = images.reshape(len(images), 4, 2, 4, 2, 3).mean(axis=(2, 4))
    return checkpoint_name(maps, "maps").mean(axis=(1, 2))


def numbers(images, layer="conv2"):
    """Activation, and its gradient, of `small_network` at conv2, by hand: [batch, 8, 8, 6] in float64."""
    params = small_params()
    convolve = lambda x, kernel: jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    before = jax.nn.relu(convolve(images, params["conv1"]))
    activation = np.asarray(convolve(before, params["conv2"]), np.float64)
    weights = np.asarray(params["fc"], np.float64).reshape(4, 4, 6, 5)[..., TARGET].transpose(3, 0, 1, 2)
    gradient = weights.repeat(2, axis=1).repeat(2, axis=2) / 4 * (np.asarray(before) + activation > 0)
    return activation, gradient


@pytest.mark.parametrize("method", METHODS)
def test_methods_keep_the_contract(method):
    assert_keeps_the_contract(lambda *args: method(*args, layer="conv2", relu=False))


def test_guided_grad_cam_keeps_the_contract():
    assert_keeps_the_contract(lambda *args: guided_grad_cam(*args, layer="conv2"))


def test_where_a_class_is_the_mean_of_a_channel_the_map_is_that_channel():
    images = small_images(3)
    channel = np.asarray(images).reshape(3, 4, 2, 4, 2, 3).mean(axis=(2, 4))[..., 1]
    # every one of the 16 places has the gradient 1/16; LayerCAM weights by it, Grad-CAM by its mean
    for method in (grad_cam, layer_cam):
        raw = method(channel_means, None, images, 1, layer="maps", upsample=False)
        np.testing.assert_allclose(raw, channel / 16, rtol=1e-5)
    plus = grad_cam_plus_plus(channel_means, None, images, 1, upsample=False)
    share = 16 * (1 / 16) / (2 + channel.sum(axis=(1, 2), keepdims=True) / 16)
    np.testing.assert_allclose(plus, channel * share, rtol=1e-5)


def test_grad_cam_of_a_known_network_is_the_weighted_sum(problem):
    activation, gradient = numbers(problem[1])
    expected = np.einsum("bhwc,bc->bhw", activation, gradient.mean(axis=(1, 2)))
    for relu in (True, False):
        raw = grad_cam(small_network, *problem, TARGET, layer="conv2", upsample=False, relu=relu)
        np.testing.assert_allclose(raw, np.maximum(expected, 0) if relu else expected, rtol=1e-4, atol=1e-5)
    assert (expected < 0).any()


def test_grad_cam_plus_plus_is_the_papers_closed_form(problem):
    """With its powers of the gradient, in float64, place by place. Activations of the ReLU in front of conv2."""
    params, images = problem

    def named(params, images):
        head = lambda x: x.reshape(len(x), 4, 2, 4, 2, -1).mean(axis=(2, 4)).reshape(len(x), -1) @ params["fc"]
        kernel = params["conv1"]
        x = jax.lax.conv_general_dilated(images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return head(checkpoint_name(jax.nn.relu(x), "relu1"))

    activation = np.asarray(
        jax.nn.relu(
            jax.lax.conv_general_dilated(
                images, params["conv1"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
        ),
        np.float64,
    )
    weights = np.asarray(params["fc"], np.float64).reshape(4, 4, 6, 5)[..., TARGET].transpose(3, 0, 1, 2)
    gradient = weights.repeat(2, axis=1).repeat(2, axis=2) / 4
    expected = np.zeros((3, 8, 8))
    for b in range(3):
        for k in range(6):
            weight = 0.0
            for i in range(8):
                for j in range(8):
                    g = gradient[b, i, j, k]
                    alpha = g**2 / (2 * g**2 + (activation[b, :, :, k] * g**3).sum())
                    weight += alpha * max(g, 0)
            expected[b] += weight * activation[b, :, :, k]
    raw = grad_cam_plus_plus(named, *problem, TARGET, layer="relu1", upsample=False)
    np.testing.assert_allclose(raw, expected, rtol=1e-4, atol=1e-6)  # float32 sums of 64


def test_gradients_so_small_that_their_powers_vanish_keep_their_plus_plus_map():
    """A complaint about implementations that cube the gradient: a small logit has no map."""
    images = small_images(2)
    small = lambda _, x: 1e-20 * channel_means(_, x)
    raw = grad_cam_plus_plus(small, None, images, 0, layer="maps", upsample=False)
    whole = grad_cam(small, None, images, 0, layer="maps", upsample=False)
    np.testing.assert_allclose(raw, whole * 8, rtol=1e-5)  # Σ g / 2 over 16 places, against their mean


def test_negative_activations_do_not_blow_up_a_plus_plus_weight():
    """Sum -32 and gradient 1/16: the paper's denominator is 0. No weight is above relu(G) / 2 at each place."""
    images = small_images(2).at[..., 0].set(-2.0)
    raw = grad_cam_plus_plus(channel_means, None, images, 0, layer="maps", upsample=False, relu=False)
    np.testing.assert_allclose(raw, -2 * 16 * (1 / 16) / 2, rtol=1e-6)


def test_layer_cam_weights_every_place_by_its_own_positive_gradient(problem):
    activation, gradient = numbers(problem[1])
    expected = (activation * np.maximum(gradient, 0)).sum(axis=-1)
    raw = layer_cam(small_network, *problem, TARGET, layer="conv2", upsample=False, relu=False)
    np.testing.assert_allclose(raw, expected, rtol=1e-4, atol=1e-5)


def test_score_cam_is_the_sum_of_a_loop_over_channels(problem):
    params, images = problem
    activation, _ = numbers(images)
    scores = np.zeros((3, 6))
    for k in range(6):
        for b in range(3):
            mask = activation[b, :, :, k]
            mask = (mask - mask.min()) / (mask.max() - mask.min())
            masked = images[b] * jnp.asarray(mask, jnp.float32)[:, :, None]
            scores[b, k] = small_network(params, masked[None])[0, TARGET[b]]
    weights = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    expected = np.einsum("bhwc,bc->bhw", activation, weights)
    raw = score_cam(small_network, *problem, TARGET, layer="conv2", upsample=False, relu=False)
    np.testing.assert_allclose(raw, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("internal_batch_size", "loop"), [(1, "host"), (8, "compiled"), (100, "host")])
def test_memory_pieces_do_not_change_score_cam(problem, internal_batch_size, loop):
    """Three images and six channels: pieces of one channel, of two, of all."""
    done = []
    options = {"internal_batch_size": internal_batch_size, "loop": loop}
    explain = lambda **more: score_cam(small_network, *problem, TARGET, layer="conv2", relu=False, **more)
    pieces = explain(**options, progress=lambda *counts: done.append(counts))
    np.testing.assert_allclose(pieces, explain(), rtol=1e-4, atol=1e-5)
    assert done[-1] == {1: (6, 6), 8: (3, 3), 100: (1, 1)}[internal_batch_size]


@pytest.mark.parametrize("method", METHODS)
def test_channels_that_are_the_same_everywhere_make_no_nan(method):
    """A complaint about Score-CAM: max = min of a dead channel divides by zero."""
    images = small_images(3).at[0].set(0.5).at[1, ..., 2].set(0)  # all channels the same everywhere; one of them
    raw = method(channel_means, None, images, 2, layer="maps", upsample=False)
    assert np.isfinite(raw).all()
    if method is score_cam:
        np.testing.assert_array_equal(raw[0], 0)
        np.testing.assert_array_less(0, raw[1].max())


def test_a_map_is_brought_to_the_image_as_asked(problem):
    images = small_images(3)
    raw = grad_cam(channel_means, None, images, 1, layer="maps", upsample=False)
    nearest = grad_cam(channel_means, None, images, 1, layer="maps", interpolation="nearest")
    np.testing.assert_allclose(nearest, np.repeat(np.repeat(raw, 2, axis=1), 2, axis=2), rtol=1e-6)
    bilinear = grad_cam(channel_means, None, images, 1, layer="maps")
    assert bilinear.shape == (3, 8, 8)
    np.testing.assert_allclose(bilinear[:, 0, 0], raw[:, 0, 0], rtol=1e-5)  # outside of the centres: the border's
    between = (9 * raw[:, 0, 0] + 3 * raw[:, 0, 1] + 3 * raw[:, 1, 0] + raw[:, 1, 1]) / 16
    np.testing.assert_allclose(bilinear[:, 1, 1], between, rtol=1e-5)  # a quarter of the way along both axes


def test_guided_grad_cam_is_guided_backpropagation_where_the_class_is(problem):
    maps = grad_cam(small_network, *problem, TARGET, layer="conv2")
    expected = guided_backprop(small_network, *problem, TARGET) * maps[..., None]
    given = guided_grad_cam(small_network, *problem, TARGET, layer="conv2")
    np.testing.assert_allclose(given, expected, rtol=1e-5, atol=1e-7)
    assert given.shape == problem[1].shape


@pytest.mark.parametrize("method", METHODS)
def test_an_image_is_explained_as_if_it_were_alone(problem, method):
    """A complaint: the second image of a batch is all zero."""
    params, images = problem
    together = method(small_network, params, images, TARGET, layer="conv2", relu=False)
    alone = method(small_network, params, images[1:2], TARGET[1:2], layer="conv2", relu=False)
    np.testing.assert_allclose(together[1:2], alone, rtol=1e-4, atol=1e-5)
    assert np.abs(together[1]).max() > 0


def test_the_map_lies_on_the_object():
    """A bright square moves; the logit counts bright places: the map follows."""
    images = np.zeros((3, 8, 8, 1), np.float32)
    for i, (row, column) in enumerate([(0, 0), (0, 4), (4, 2)]):
        images[i, row : row + 4, column : column + 4] = 1

    def counts(_, x):
        blurred = jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 3, 3, 1), (1, 1, 1, 1), "SAME") / 9
        return checkpoint_name(jax.nn.relu(blurred - 0.5), "evidence").sum(axis=(1, 2))

    for method in METHODS:
        maps = method(counts, None, jnp.asarray(images), 0, layer="evidence")
        inside = (maps * images[..., 0]).sum(axis=(1, 2)) / maps.sum(axis=(1, 2))
        np.testing.assert_array_less(0.99, inside)


@pytest.mark.parametrize(
    ("name", "shape", "fields", "layer"),
    [
        ("lenet5", (28, 28, 1), {}, "stage2"),
        ("resnet20_cifar", (32, 32, 3), {}, "stage3"),
        ("mobilenet_v1", (64, 64, 3), {}, "stage5"),
        ("mobilenet_v1", (32, 32, 3), {}, "stage4"),  # stage5 is one position
        ("vgg11", (64, 64, 3), {}, "pool5"),
        ("googlenet", (64, 64, 3), {}, "stage4"),
        ("vit_lite_7_4_cifar", (16, 24, 3), {}, "encoder_layer_6/ln_1"),  # the class token alone is read behind it
        ("vit_lite_7_4_cifar", (16, 16, 3), {"pool": "mean"}, "ln"),
    ],
)
def test_the_layer_taken_by_default_is_the_last_that_all_places_go_through(name, shape, fields, layer):
    model = models.create(name, num_classes=3, **fields)
    images = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    found = []
    jax.eval_shape(lambda v, x: found.append(default_cam_layer(model.apply, v, x)), variables, images)
    assert found == [layer]


@pytest.fixture(scope="module", params=["cls", "mean"])
def transformer(request):
    """Images of 3 × 2 patches."""
    model = models.create(
        "vit_b_16", num_classes=3, patch_size=4, width=16, depth=2, heads=2, hidden=24, pool=request.param
    )
    images = jax.random.normal(jax.random.key(1), (2, 12, 8, 3))
    variables = jax.jit(model.init)(jax.random.key(0), images)
    return model, variables, images


def test_tokens_are_laid_out_as_patches(transformer):
    """Against the gradient through the model's own named map of patches."""
    model, variables, images = transformer
    apply_fn = lambda v, x: model.apply(v, x)
    layer = "encoder_layer_1/ln_1"
    if model.pool == "cls":
        assert default_cam_layer(apply_fn, variables, images) == layer
    maps = jax.jit(lambda v, x: models.features(model, v, x)["last_input"])(variables, images)
    explained = lambda delta: model.apply({**variables, "perturbations": {"last_input": delta}}, images)[:, 1].sum()
    gradient = jax.jit(jax.grad(explained))(jnp.zeros_like(maps))
    expected = np.maximum((maps * gradient.mean(axis=(1, 2), keepdims=True)).sum(axis=-1), 0)
    raw = grad_cam(apply_fn, variables, images, 1, layer=layer, upsample=False)
    assert raw.shape == (2, 3, 2)
    np.testing.assert_allclose(raw, expected, rtol=1e-4, atol=1e-6)
    assert grad_cam(apply_fn, variables, images, 1).shape == (2, 12, 8)


def test_after_the_last_attention_patches_do_not_reach_the_class_token(transformer):
    model, variables, images = transformer
    apply_fn = lambda v, x: model.apply(v, x)
    if model.pool == "mean":
        assert grad_cam(apply_fn, variables, images, 1, layer="ln").shape == (2, 12, 8)
        return
    with pytest.raises(UsageError, match=r"'ln' .* no way to the output from its patches.*'encoder_layer_1/ln_1' has"):
        grad_cam(apply_fn, variables, images, 1, layer="ln")


@pytest.mark.parametrize(
    ("tokens", "image", "grid"),
    [
        (196, (224, 224), (0, 14, 14)),
        (197, (224, 224), (1, 14, 14)),
        (198, (224, 224), None),  # a second token in front
        (7, (12, 8), (1, 3, 2)),
        (6, (12, 8), (0, 3, 2)),
        (6, (8, 12), (0, 2, 3)),
        (7, (8, 8), None),
        (1, (8, 8), None),
        (2, (8, 8), None),
    ],
)
def test_the_grid_of_patches_has_the_proportions_of_the_image(tokens, image, grid):
    assert spatial.token_grid(tokens, *image) == grid


@pytest.mark.parametrize("method", [*METHODS, guided_grad_cam])
def test_layers_without_a_map_are_refused_with_one_that_has(problem, method):
    for layer, words in {
        "fc": r"'fc' of shape \[3, 5\] has no rows and columns.*'conv2' has",
        "conv3": "unknown layer 'conv3'; did you mean 'conv",
    }.items():
        with pytest.raises(UsageError, match=words):
            method(small_network, *problem, 0, layer=layer)


def test_what_is_no_map_is_refused_in_words(problem):
    images = problem[1]

    def odd(_, x):
        tokens = checkpoint_name(x.reshape(3, 64, 3)[:, :7], "tokens")
        weights = checkpoint_name(jnp.einsum("btc,bsc->bts", tokens, tokens)[:, None], "attention1")
        top = checkpoint_name(x[:, :1, :1], "one")
        reached = checkpoint_name(x * 2, "unused")
        numbers = checkpoint_name(x > 0, "bright")
        del reached
        return (weights.sum(axis=(1, 2)) + top.sum()) * numbers[:, 0, 0, :1]

    for layer, words in {
        "tokens": "7 tokens, which are no grid of patches of a 8×8 image.*lay them out",
        "attention1": "looks like attention weights.*attention_rollout",
        "one": "no rows and columns of more than one position",
        "unused": "no way to the output",
        "bright": "no floating numbers",
    }.items():
        with pytest.raises(UsageError, match=words):
            grad_cam(odd, None, images, 0, layer=layer)
    with pytest.raises(
        UsageError, match=r"no layer of apply_fn is a map.*Its layers: none has a name.*checkpoint_name"
    ):
        grad_cam(lambda _, x: x.mean(axis=(1, 2)), None, images, 0)


@pytest.mark.parametrize("method", [*METHODS, guided_grad_cam])
def test_nonsense_is_refused_before_anything_compiles(problem, method, annotations_off):
    params, images = problem
    for arguments, options, words in [
        ((images, 5), {}, r"target must be in \[0, 5\), got 5"),
        ((images, 0), {"interpolation": "cubic"}, "unknown interpolation 'cubic'; .*bilinear"),
        (((images * 255).astype(jnp.uint8), 0), {}, "inputs must be images.*uint8"),
        ((images[0], 0), {}, r"inputs must be images.*shape \[8, 8, 3\]"),
    ]:
        with pytest.raises(UsageError, match=words):
            method(small_network, params, *arguments, layer="conv2", **options)


def test_score_cam_needs_no_gradient_and_at_least_one_row(problem):
    steps = lambda _, x: jnp.floor(4 * channel_means(_, x))
    assert np.isfinite(score_cam(steps, None, problem[1], 0, layer="maps")).all()
    with pytest.raises(UsageError, match="no gradient"):
        grad_cam(steps, None, problem[1], 0, layer="maps")
    with pytest.raises(UsageError, match="internal_batch_size must be at least 1, got 0"):
        score_cam(small_network, *problem, 0, layer="conv2", internal_batch_size=0)


def test_a_second_call_compiles_nothing_new(problem):
    traces = []

    def counted(params, images):
        traces.append(None)
        return small_network(params, images)

    params, images = problem
    for method in METHODS:
        explain = lambda images, method=method: method(counted, params, images, TARGET, layer="conv2")
        explain(images)
        first = len(traces)
        explain(images + 1)
        assert len(traces) == first, method


def test_the_maps_of_the_module_are_all_offered():
    assert set(cam.__all__) >= {method.__name__ for method in (*METHODS, guided_grad_cam)}
