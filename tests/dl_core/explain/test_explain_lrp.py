"""LRP: each rule against its formula written out, conservation, what counts as one layer, and its errors."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from explanation_contract import assert_keeps_the_contract, small_images, small_network, small_params

import models
from dl_core.errors import UsageError
from dl_core.explain import lrp_rules
from dl_core.explain.gradients import gradient_x_input
from dl_core.explain.lrp import lrp
from dl_core.explain.lrp_rules import (
    alpha_beta,
    epsilon,
    epsilon_gamma_box,
    flat,
    gamma,
    pass_through,
    w_square,
    z_box,
    z_plus,
)

LOW, HIGH = -2.0, 3.0
RULES = {
    "epsilon": epsilon(0.25),
    "gamma": gamma(0.5),
    "alpha_beta": alpha_beta(3.0, 2.0),
    "z_plus": z_plus(),
    "w_square": w_square(),
    "flat": flat(),
    "z_box": z_box(LOW, HIGH),
}


def by_the_formula(rule, x, w, b, relevance):
    """One dense layer [inputs] -> [outputs], one pair of neurons at a time, in the notation of lrp_rules."""
    s = lambda z, eps=1e-6: z + eps * (1 if z >= 0 else -1)
    up, down = lambda v: max(v, 0.0), lambda v: min(v, 0.0)
    found = np.zeros(len(x))
    for k in range(w.shape[1]):
        z = x @ w[:, k] + b[k]
        for j in range(len(x)):
            c = x[j] * w[j, k]
            products = x * w[:, k]
            match rule:
                case "epsilon":
                    share = c / s(z, 0.25)
                case "gamma":  # of the sign of the output: products of that sign count 1 + γ times
                    favour = up if z > 0 else down
                    total = sum(p + 0.5 * favour(p) for p in products) + b[k] + 0.5 * favour(b[k])
                    share = (c + 0.5 * favour(c)) / s(total) if z != 0 else 0.0
                case "alpha_beta":
                    above, below = sum(map(up, products)) + up(b[k]), sum(map(down, products)) + down(b[k])
                    share = 3 * up(c) / s(above) - 2 * down(c) / s(below)
                case "z_plus":
                    share = up(c) / s(sum(map(up, products)) + up(b[k]))
                case "w_square":
                    share = w[j, k] ** 2 / s((w[:, k] ** 2).sum() + b[k] ** 2)
                case "flat":
                    share = 1 / s(float(len(x)))
                case "z_box":
                    reach = lambda value, weight: value * weight - LOW * up(weight) - HIGH * down(weight)
                    share = reach(x[j], w[j, k]) / s(sum(map(reach, x, w[:, k])))
            found[j] += share * relevance[k]
    return found


def dense(params, x):
    with jax.named_scope("fc"):
        return x @ params["w"] + params["b"][None]


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_is_its_formula(rule):
    rng = np.random.default_rng(0)
    w, b, x = rng.normal(size=(6, 3)), rng.normal(size=3), rng.normal(size=(2, 6))
    with jax.enable_x64(True):
        relevance = lrp(dense, {"w": w, "b": b}, jnp.asarray(x), lambda logits: logits.sum(axis=1), rules=RULES[rule])
    expected = [by_the_formula(rule, example, w, b, example @ w + b) for example in x]
    np.testing.assert_allclose(relevance, expected, rtol=1e-10)


@pytest.mark.parametrize("rule", [epsilon(0.0), gamma(0.0)])
def test_lrp_of_a_linear_model_is_weight_times_input(rule):
    """LRP-0, whichever way the model is written: normalisation before, BatchNorm and a temperature after."""
    rng = np.random.default_rng(1)
    mean, w = rng.normal(size=4).astype(np.float32), rng.normal(size=(4, 3)).astype(np.float32)
    x = jnp.asarray(rng.normal(size=(5, 4)), jnp.float32)

    def scaled(params, x):
        z = ((x - params["mean"][None]) / 0.5) @ params["w"]
        return (2 - (z - 0.25) * 3) / 1.5

    relevance = lrp(scaled, {"mean": mean, "w": w}, x, 1, rules=rule)
    np.testing.assert_allclose(relevance, x * (w[:, 1] * 2 * -3 / 1.5)[None], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rule", ["epsilon", "gamma", "alpha_beta", "z_plus", "epsilon_plus", "epsilon_plus_flat"])
def test_relevance_is_conserved_without_biases(rule):
    params, images = small_params(), small_images()
    output = small_network(params, images)[:, 3]
    relevance = lrp(small_network, params, images, 3, rules=rule)
    np.testing.assert_allclose(relevance.sum(axis=(1, 2, 3)), output, rtol=1e-4)


def test_biases_absorb_the_rest():
    """By hand: f = relu(x₁ + x₂ + 2) · 3 with x = (1, 3) hands back (1, 3) / 6 of 18."""
    apply_fn = lambda params, x: (jax.nn.relu(x @ params + 2) * 3).sum(axis=1, keepdims=True)
    relevance = lrp(apply_fn, jnp.ones((2, 1)), jnp.array([[1.0, 3.0]]), 0)
    np.testing.assert_allclose(relevance, [[3.0, 9.0]], rtol=1e-5)


def folded(variables):
    """The weights of `ConvNormRelu` as one convolution."""
    norm, statistics = variables["params"]["norm"], variables["batch_stats"]["norm"]
    scale = norm["scale"] / jnp.sqrt(statistics["var"] + 1e-5)
    kernel = variables["params"]["conv"]["kernel"] * scale[None, None, None]
    return kernel, norm["bias"] - statistics["mean"] * scale, variables["params"]["fc"]["kernel"]


class ConvNormRelu(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(6, (3, 3), use_bias=False, name="conv")(x)
        x = nn.relu(nn.BatchNorm(use_running_average=True, name="norm")(x))
        return nn.Dense(3, use_bias=False, name="fc")(x.reshape(len(x), -1))


def merged(params, x):
    kernel, bias, fc = params
    x = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return jnp.maximum(x + bias[None, None, None], 0).reshape(len(x), -1) @ fc


@pytest.mark.parametrize("rule", ["gamma", "alpha_beta", "w_square", "z_box"])
def test_batch_norm_after_a_convolution_is_part_of_it(rule):
    """Also with scales of both signs, of which rules that look at the sign of weights must know."""
    rng = np.random.default_rng(2)
    x = jnp.asarray(rng.normal(size=(2, 4, 4, 2)), jnp.float32)
    variables = jax.eval_shape(ConvNormRelu().init, jax.random.key(0), x)
    variables = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), variables)
    variables["batch_stats"]["norm"]["var"] = jnp.asarray(rng.uniform(0.5, 2, 6), jnp.float32)
    relevance = lrp(ConvNormRelu().apply, variables, x, 1, rules=RULES[rule])
    expected = lrp(merged, folded(variables), x, 1, rules=RULES[rule])
    # float32, and denominators that cancel: 1e-4 of the largest
    np.testing.assert_allclose(relevance, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


ACTIVATIONS = {"gelu": jax.nn.gelu, "leaky": jax.nn.leaky_relu, "product": lambda x: x * (x > 0), "tanh": jnp.tanh}


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_pass_relevance(activation):
    """By hand for x -> f(x W) V: relevance of f's outputs is that of its inputs."""
    rng = np.random.default_rng(3)
    w, v, x = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((4, 5), (5, 2), (3, 4)))
    f = ACTIVATIONS[activation]
    relevance = lrp(lambda params, x: f(x @ params[0]) @ params[1], (w, v), x, 0, rules=epsilon(0.0))
    expected = x * ((f(x @ w) * v[:, 0][None] / (x @ w)) @ w.T)
    np.testing.assert_allclose(relevance, expected, rtol=1e-4, atol=1e-5)


def test_a_gate_is_a_constant():
    """Ali et al. (2022): softmax weights, 1/σ and sigmoids are not explained, what they multiply is."""
    rng = np.random.default_rng(4)
    tokens = jnp.asarray(rng.normal(size=(2, 5, 4)), jnp.float32)
    w = jnp.asarray(rng.normal(size=(4, 4)), jnp.float32)

    def attention(params, x, detach=lambda weights: weights):
        x = x - x.mean(axis=2, keepdims=True)
        x = x * detach(jax.lax.rsqrt((x**2).mean(axis=2, keepdims=True) + 1e-3))
        weights = detach(jax.nn.softmax(jnp.einsum("bqc,bkc->bqk", x @ params, x)))
        x = jnp.einsum("bqk,bkc->bqc", weights, x @ params) + x
        return (x * detach(jax.nn.sigmoid(x.mean(axis=1, keepdims=True) @ params))).mean(axis=1)

    relevance = lrp(attention, w, tokens, 2, rules=epsilon(0.0))
    detached = lambda params, x: attention(params, x, jax.lax.stop_gradient)
    np.testing.assert_allclose(relevance, gradient_x_input(detached, w, tokens, 2), rtol=1e-3, atol=1e-4)
    output = attention(w, tokens)[:, 2]
    np.testing.assert_allclose(relevance.sum(axis=(1, 2)), output, rtol=1e-3, atol=1e-5)


def test_two_factors_without_a_gate_share_equally():
    apply_fn = lambda params, x: (x[:, :2] @ params) * (x[:, 2:] @ params)
    relevance = lrp(apply_fn, jnp.array([[1.0], [2.0]]), jnp.array([[1.0, 1.0, 2.0, 1.0]]), 0)
    np.testing.assert_allclose(relevance, [[2.0, 4.0, 3.0, 3.0]], rtol=1e-4)  # 12: 6 as (1, 2) of 3, 6 as (2, 2) of 4


def test_masks_and_choices_hand_on_what_they_let_through():
    mask = np.array([[1.0, 0.0, 1.0, 1.0]], np.float32)

    def apply_fn(params, x):
        x = x * (x[:, ::-1] > 0)
        x = jnp.where(mask > 0, x, 0.0)
        return jnp.stack([jnp.sort(x)[:, -1], jax.lax.top_k(x, 2)[0].sum(axis=1)], axis=1) * params

    x = jnp.array([[3.0, 9.0, 2.0, 1.0], [-1.0, 1.0, 2.0, 5.0]])
    np.testing.assert_allclose(lrp(apply_fn, 2.0, x, 0), [[6, 0, 0, 0], [0, 0, 4, 0]], rtol=1e-5)
    np.testing.assert_allclose(lrp(apply_fn, 2.0, x, 1), [[6, 0, 4, 0], [0, 0, 4, 0]], rtol=1e-5, atol=1e-6)


class AnotherHand(nn.Module):
    """Everything of Flax that a stranger might use: grouped, dilated, transposed convolution, norms, pooling, skips."""

    @nn.compact
    def __call__(self, x):
        free = {"use_bias": False}
        x = nn.Conv(8, (3, 3), **free)(x)
        x = nn.leaky_relu(nn.BatchNorm(use_running_average=True, **free)(x), 0.1)
        x = x + nn.Conv(8, (3, 3), feature_group_count=4, kernel_dilation=2, **free)(nn.swish(x))
        x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        x = nn.gelu(nn.GroupNorm(2, **free)(x))
        x = jnp.concatenate([x, nn.Conv(4, (1, 1), **free)(x)], axis=-1)
        x = nn.relu(nn.ConvTranspose(6, (2, 2), (2, 2), **free)(x))
        x = nn.avg_pool(x, (2, 2), (2, 2), "SAME", count_include_pad=False).reshape(len(x), 16, 6)
        x = x + nn.MultiHeadDotProductAttention(2, use_bias=False)(nn.LayerNorm(**free)(x))
        return nn.Dense(3, **free)(x.mean(axis=1))


def test_another_hand_s_model_conserves_relevance():
    rng = np.random.default_rng(5)
    x = jnp.asarray(rng.normal(size=(2, 8, 8, 3)), jnp.float32)
    variables = jax.eval_shape(AnotherHand().init, jax.random.key(0), x)
    draw = lambda path, leaf: (
        rng.uniform(0.5, 1.5, leaf.shape)
        if "kernel" not in str(path[-1])
        else (rng.normal(size=leaf.shape) * (2 / np.prod(leaf.shape[:-1])) ** 0.5)
    )
    variables = jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.asarray(draw(path, leaf), leaf.dtype), variables
    )
    variables["batch_stats"] = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf * 0 if "mean" in str(path[-1]) else leaf, variables["batch_stats"]
    )
    output = jax.jit(AnotherHand().apply)(variables, x)[:, 0]
    rules = {"convolution": gamma(0.1), "ConvTranspose_0": z_plus(), "first": z_plus()}
    relevance = lrp(AnotherHand().apply, variables, x, 0, rules=rules)
    # ε = 1e-6 takes its share where sums nearly cancel: the mean of LayerNorm, the skips
    np.testing.assert_allclose(relevance.sum(axis=(1, 2, 3)), output, rtol=1e-3)


def random_variables(model, x, seed=0):
    """Weights, BatchNorm statistics and biases, all at random."""
    rng = np.random.default_rng(seed)
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x), x)

    def draw(path, leaf):
        kind = path[-1].key
        if kind in ("scale", "var"):
            return jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape), leaf.dtype)
        size = (2 / np.prod(leaf.shape[:-1])) ** 0.5 if kind == "kernel" else 0.1
        return jnp.asarray(rng.normal(size=leaf.shape) * size, leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, variables)


slow = lambda *values: pytest.param(*values, marks=pytest.mark.slow)
MODELS = [
    ("resnet20_cifar", {}),
    slow("resnet18_v2", {"width": 8}),
    slow("vgg11_bn", {"channels": (8, 12, 16, 16, 16), "hidden": 24}),
    slow("densenet121", {"block_sizes": (2, 2), "growth_rate": 8, "stem_channels": 16}),
    slow("googlenet", {"width": 0.125}),
    slow("mobilenet_v1", {"width_multiplier": 0.25}),
]


@pytest.mark.parametrize(("name", "fields"), MODELS)
def test_lrp_0_is_gradient_times_input_in_networks_of_relu(name, fields):
    """Shrikumar et al. (2017), appendix A; with biases, skips, BatchNorm after and before ReLU, pooling."""
    model = models.create(name, num_classes=5, **fields)
    x = jax.random.normal(jax.random.key(0), (2, 32, 32, 3))
    variables = random_variables(model, x)
    relevance = lrp(model.apply, variables, x, 3, rules=epsilon(1e-12))
    expected = gradient_x_input(model.apply, variables, x, 3)
    # a quotient of float32 numbers in each of the layers
    np.testing.assert_allclose(relevance, expected, rtol=0, atol=0.02 * np.abs(expected).max())


def test_lrp_keeps_the_contract():
    assert_keeps_the_contract(lambda *arguments: lrp(*arguments, rules="epsilon_plus"))


def test_lrp_can_be_differentiated_and_mapped_over_its_parameters():
    params, images = small_params(), small_images(2)
    explain = lambda factor, params: lrp(small_network, params, images, 1, rules=gamma(factor))
    both = jax.vmap(explain, in_axes=(0, None))(jnp.array([0.0, 0.5]), params)
    np.testing.assert_allclose(both[1], explain(0.5, params), rtol=1e-3, atol=1e-5)
    slope = jax.grad(lambda params: (explain(0.5, params) ** 2).sum())(params)["fc"]
    step = 1e-2 * slope / jnp.linalg.norm(slope)
    moved = lambda sign: (explain(0.5, params | {"fc": params["fc"] + sign * step}) ** 2).sum()
    np.testing.assert_allclose(moved(1) - moved(-1), 2 * (slope * step).sum(), rtol=0.02)  # a central difference


def test_a_target_function_starts_with_logits_times_its_gradient():
    params, images = small_params(), small_images(2)
    relevance = lambda target: lrp(small_network, params, images, target)
    difference = relevance(lambda logits: logits[:, 1] - 2 * logits[:, 4])
    np.testing.assert_allclose(difference, relevance(1) - 2 * relevance(4), rtol=1e-3, atol=1e-4)


def test_rules_by_place_and_name():
    """The name that reaches furthest into the model counts, then the first layers, then the kind, then the default."""
    params, images = small_params(), small_images(2)
    explain = lambda **rules: lrp(small_network, params, images, 1, rules=rules)
    all_named = explain(conv1=flat(), conv2=z_plus(), fc=epsilon(0.1))
    close = lambda rules: np.testing.assert_allclose(explain(**rules), all_named, rtol=1e-4, atol=1e-6)
    close({"first": flat(), "convolution": z_plus(), "dense": epsilon(0.1)})
    close({"first_convolution": flat(), "first": gamma(), "convolution": z_plus(), "dense": epsilon(0.1)})
    close({"first": "flat", "convolution": "z_plus", "default": epsilon(0.1)})
    close({"conv1": flat(), "conv2": z_plus(), "first": gamma(), "convolution": gamma(), "default": epsilon(0.1)})
    assert np.abs(explain(first=gamma(), dense=epsilon(0.1)) - all_named).max() > 1e-3


def test_composites_have_the_rules_that_they_are_named_after():
    assert lrp_rules.epsilon_plus() == {"convolution": z_plus(), "dense": epsilon()}
    assert lrp_rules.epsilon_plus_flat()["first"] == flat()
    assert lrp_rules.epsilon_alpha2_beta1_flat()["convolution"] == alpha_beta(2.0, 1.0)
    assert epsilon_gamma_box(-1.0, 1.0)["first_convolution"] == z_box(-1.0, 1.0)


def test_a_box_reaches_the_first_layer_through_the_normalisation():
    """Pixels in [0, 1], normalised inside of the model or outside of it."""
    params, images = small_params(), small_images(2)
    mean, std = jnp.array([0.4, 0.5, 0.6]), jnp.array([0.2, -0.3, 0.25])
    normalise = lambda x: (x - mean[None, None, None]) / std[None, None, None]
    inside = lrp(lambda p, x: small_network(p, normalise(x)), params, images, 1, rules=epsilon_gamma_box(0.0, 1.0))
    ends = normalise(jnp.zeros((1, 1, 1, 3))), normalise(jnp.ones((1, 1, 1, 3)))
    rules = epsilon_gamma_box(jnp.minimum(*ends)[0, 0, 0], jnp.maximum(*ends)[0, 0, 0])
    outside = lrp(small_network, params, normalise(images), 1, rules=rules)
    # 'SAME' padding is a zero of what the layer is given, which the mean does not move
    np.testing.assert_allclose(inside, outside, rtol=1e-3, atol=1e-4)


def test_flat_knows_the_gaps_of_a_weight_that_is_laid_out_as_a_band():
    """The project's narrow convolutions are one product with a matrix that is zero off a band (on the CPU)."""
    from models.layers.convolution import convolution

    kernel, x = jax.random.normal(jax.random.key(0), (3, 3, 2, 4)), jax.random.normal(jax.random.key(1), (2, 7, 6, 2))
    options = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}

    def explain(convolve, rule):
        apply_fn = lambda w, x: jax.nn.relu(convolve(x, w, (2, 1), "SAME", **options)).sum(axis=(1, 2))
        return lrp(apply_fn, kernel, x, 1, rules=rule)

    for rule in ("flat", "w_square"):
        np.testing.assert_allclose(
            explain(convolution, rule), explain(jax.lax.conv_general_dilated, rule), rtol=1e-3, atol=1e-4
        )


def test_a_primitive_without_a_rule_is_an_error_or_gradient_times_input():
    def apply_fn(params, x):
        with jax.named_scope("recurrence"):
            return jax.lax.scan(lambda carry, _: (carry @ params, None), x, None, length=3)[0]

    w, x = jax.random.normal(jax.random.key(0), (3, 3)), jax.random.normal(jax.random.key(1), (2, 3))
    with pytest.raises(UsageError, match=r"'scan' in recurrence.*unknown=\"gradient_x_input\""):
        lrp(apply_fn, w, x, 0)
    relevance = lrp(apply_fn, w, x, 0, unknown="gradient_x_input")
    np.testing.assert_allclose(relevance, gradient_x_input(apply_fn, w, x, 0), rtol=1e-4, atol=1e-5)
    with pytest.raises(UsageError, match=r"value of unknown 'gradient'.*gradient_x_input"):
        lrp(apply_fn, w, x, 0, unknown="gradient")


def test_what_a_gate_hides_needs_no_rule():
    """Only what relevance reaches must be known: here not what computes a sigmoid's input."""

    def apply_fn(params, x):
        gate = jax.nn.sigmoid(jax.lax.scan(lambda carry, _: (carry * 0.5, None), x, None, length=2)[0])
        return (gate * x) @ params

    x = jnp.array([[1.0, 2.0, -1.0]])
    gate = jax.nn.sigmoid(x / 4)
    np.testing.assert_allclose(lrp(apply_fn, jnp.ones((3, 2)), x, 1), gate * x, rtol=1e-4)


def test_functions_with_a_derivative_of_their_own_are_seen_through():
    clipped = jax.custom_vjp(lambda x: jnp.maximum(x, 0))
    clipped.defvjp(lambda x: (jnp.maximum(x, 0), None), lambda _, g: (g,))
    x = jnp.array([[1.0, -2.0]])
    np.testing.assert_allclose(lrp(lambda p, x: clipped(x) @ p, jnp.ones((2, 1)), x, 0), [[1.0, 0.0]], rtol=1e-5)


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ("epsilom", "unknown rule 'epsilom'; did you mean 'epsilon'"),
        ("z_box", r"z_box\(low, high\)"),
        ("epsilon_gamma_box", r"epsilon_gamma_box\(low, high\)"),
        ({"conv3": flat()}, "'conv3'; did you mean 'conv"),
        ({"firts": flat()}, "'firts'; did you mean 'first'"),
        ({"default": 0.1}, r"rules\['default'\].*float"),
        ({"default": "epsilon_plus"}, "composites cannot"),
        (pass_through(), r"pass_through needs .*\[8, 4, 4, 6\]|pass_through needs"),
        (z_box(np.zeros(7, np.float32), 1.0), r"broadcast to the layer's inputs.*\[7\]"),
    ],
)
def test_rules_that_do_not_exist(rules, words, annotations_off):
    with pytest.raises(UsageError, match=words):
        lrp(small_network, small_params(), small_images(2), 0, rules=rules)


def test_parameters_of_rules_out_of_range():
    with pytest.raises(UsageError, match="epsilon must be at least 0, got -1"):
        epsilon(-1.0)
    with pytest.raises(UsageError, match="gamma must be at least 0"):
        gamma(float("nan"))
    with pytest.raises(UsageError, match=r"alpha - beta must be 1.*2.0 and 0.5"):
        alpha_beta(2.0, 0.5)
    with pytest.raises(UsageError, match="beta must be at least 0"):
        alpha_beta(0.5, -0.5)


def test_a_box_must_have_an_inside():
    with pytest.raises(UsageError, match="low must be at most high"):
        z_box(1.0, 0.0)
    with pytest.raises(UsageError, match="low must be at most high"):
        epsilon_gamma_box(np.array([0.0, 2.0]), np.array([1.0, 1.5]))
    z_box(np.array([0.0, 2.0]), np.array([1.0, 2.5]))  # channels of different range


def test_targets_are_checked():
    with pytest.raises(UsageError, match=r"\[0, 5\)"):
        lrp(small_network, small_params(), small_images(2), 5)
