"""Layers of any function by name: what has a name, its value, a change at it, and what cannot be looked into."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from explanation_contract import small_images, small_network, small_params
from jax.ad_checkpoint import checkpoint_name

import models
from dl_core.errors import UsageError
from dl_core.explain.layers import find_layer, list_layers, run_with_layer, run_with_layers
from dl_core.explain.program import read

X = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4)), jnp.float32)


def chain(params, x):
    """Two named scopes and a named value, without Flax."""
    with jax.named_scope("double"):
        x = 2 * x @ params
    x = checkpoint_name(jnp.tanh(x), "middle")
    with jax.named_scope("outer"):
        with jax.named_scope("inner"):
            y = x + 1
        z = y * y
    return z - x


W = jnp.asarray(np.random.default_rng(1).normal(size=(4, 4)), jnp.float32)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.relu(nn.Dense(4)(x)) + self._half(x)

    def _half(self, x):
        return x / 2


class Network(nn.Module):
    """A block with recomputation, one that is called twice in a row, a layer that is called twice with a pause."""

    @nn.compact
    def __call__(self, x):
        dense, twice = nn.Dense(4, name="dense"), Block(name="twice")
        x = nn.relu(dense(x))
        x = nn.remat(Block)(name="recomputed")(x)
        x = dense(x)
        x = twice(twice(x))
        return nn.Dense(3, name="head")(x)


@pytest.fixture(scope="module")
def network():
    variables = Network().init(jax.random.key(0), X)
    return lambda variables, x: Network().apply(variables, x), variables


def test_layers_are_scopes_and_named_values_in_the_order_of_computation():
    assert list(list_layers(chain, W, X).items()) == [
        ("double", (3, 4)),
        ("middle", (3, 4)),
        ("outer/inner", (3, 4)),
        ("outer", (3, 4)),
    ]


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit, jax.checkpoint], ids=["plain", "jit", "checkpoint"])
def test_values_are_those_that_the_function_computes(wrap):
    middle = np.tanh(2 * X @ W)
    expected = {"double": 2 * X @ W, "middle": middle, "outer/inner": middle + 1, "outer": (middle + 1) ** 2}
    for name, value in expected.items():
        output, activation = run_with_layer(wrap(chain), W, X, name)
        np.testing.assert_allclose(activation, value, rtol=1e-5, atol=1e-6)  # float32
        np.testing.assert_allclose(output, chain(W, X), rtol=1e-6)


def test_a_change_goes_on_from_the_layer_everywhere():
    """The middle is read by the scope behind it and by the skip."""
    output, middle = run_with_layer(chain, W, X, "middle", lambda activation: 0 * activation + 3)
    np.testing.assert_allclose(output, (3 + 1) ** 2 - 3)
    np.testing.assert_allclose(middle, np.tanh(2 * X @ W), rtol=1e-5, atol=1e-6)  # as it was before the change


def test_several_layers_in_one_run_see_the_changes_before_them():
    changes = {"outer/inner": lambda y: y + 1, "middle": lambda x: x * 0}
    output, found = run_with_layers(chain, W, X, changes)
    np.testing.assert_allclose(output, (0 + 1 + 1) ** 2)
    assert list(found) == list(changes)
    np.testing.assert_allclose(found["outer/inner"], 1)
    np.testing.assert_allclose(run_with_layers(chain, W, X, {})[0], chain(W, X), rtol=1e-6)


def test_two_names_of_one_value_are_changed_in_turn():
    def apply_fn(_, x):
        with jax.named_scope("a"), jax.named_scope("b"):
            x = x * 1.0
        with jax.named_scope("c"):
            return x + 0

    changes = {"a": lambda value: value + 1, "a/b": lambda value: value * 10}
    output, found = run_with_layers(apply_fn, None, X, changes)
    np.testing.assert_allclose(output, (X + 1) * 10, rtol=1e-6)
    np.testing.assert_array_equal(found["a"], X)
    np.testing.assert_array_equal(found["a/b"], X)


def test_the_gradient_with_respect_to_a_layer_under_jit_vmap_and_grad():
    def summed(delta, params, x):
        return run_with_layer(chain, params, x, "middle", lambda activation: activation + delta)[0].sum()

    middle = np.tanh(2 * X @ W)
    expected = 2 * (middle + 1) - 1  # d/dm of (m + 1)² - m
    np.testing.assert_allclose(jax.jit(jax.grad(summed))(jnp.zeros((3, 4)), W, X), expected, rtol=1e-5, atol=1e-5)
    alone = jax.vmap(lambda x: jax.grad(summed)(jnp.zeros((1, 4)), W, x[None])[0])(X)
    np.testing.assert_allclose(alone, expected, rtol=1e-5, atol=1e-5)
    stacked = jax.vmap(lambda params: run_with_layer(chain, params, X, "middle")[1])(jnp.stack([W, 2 * W]))
    np.testing.assert_allclose(stacked[1], np.tanh(4 * X @ W), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["plain", "jit"])
def test_modules_that_are_called_several_times_are_numbered(network, wrap):
    apply_fn, variables = network
    layers = list_layers(wrap(apply_fn), variables, X)
    names = {
        "dense#1", "recomputed/Dense_0", "recomputed", "dense#2", "twice/Dense_0#1", "twice#1", "twice/Dense_0#2",
        "twice#2", "head",
    }  # fmt: skip
    assert set(layers) == names
    assert [name for name in layers if name in ("dense#1", "recomputed", "dense#2", "twice#1", "twice#2")] == [
        "dense#1", "recomputed", "dense#2", "twice#1", "twice#2",
    ]  # fmt: skip
    bound = Network().bind(variables)
    once = lambda name, x: x @ bound.variables["params"][name]["kernel"] + bound.variables["params"][name]["bias"][None]
    first = once("dense", X)
    np.testing.assert_allclose(run_with_layer(wrap(apply_fn), variables, X, "dense#1")[1], first, rtol=1e-5, atol=1e-5)
    block = lambda name, x: Block().apply({"params": variables["params"][name]}, x)
    second = once("dense", block("recomputed", nn.relu(first)))
    for layer, value in {"dense#2": second, "twice#1": block("twice", second)}.items():
        activation = run_with_layer(wrap(apply_fn), variables, X, layer)[1]
        np.testing.assert_allclose(activation, value, rtol=1e-5, atol=1e-5)


def test_the_gradient_passes_a_block_that_is_recomputed(network):
    apply_fn, variables = network
    output, activation = run_with_layer(apply_fn, variables, X, "recomputed", lambda value: 2 * value)
    assert not np.allclose(output, apply_fn(variables, X))

    def by_delta(delta):
        return run_with_layer(apply_fn, variables, X, "dense#1", lambda value: value + delta)[0].sum()

    gradient = jax.grad(by_delta)(jnp.zeros((3, 4)))
    step = 1e-2 * np.eye(4, dtype=np.float32)[None, 1].repeat(3, axis=0)
    slope = (by_delta(step) - by_delta(-step)) / 2e-2
    np.testing.assert_allclose(gradient[:, 1].sum(), slope, rtol=1e-2, atol=1e-3)  # differences of float32
    assert activation.shape == (3, 4)


def test_the_end_of_a_path_is_enough_where_it_tells_one_layer(network):
    program = read(*network, X)
    assert find_layer(program, "recomputed/Dense_0") != find_layer(program, "recomputed")
    renamed = read(lambda _, x: chain(W, x), None, X)
    assert find_layer(renamed, "inner") == find_layer(renamed, "outer/inner")


def test_a_name_that_is_given_comes_before_a_scope_of_the_same_name():
    def apply_fn(_, x):
        with jax.named_scope("here"):
            x = x + 1
        return checkpoint_name(x * 5, "here") + 0

    np.testing.assert_allclose(run_with_layer(apply_fn, None, X, "here")[1], (X + 1) * 5, rtol=1e-6)


def test_values_of_parameters_alone_are_no_layers():
    def apply_fn(params, x):
        with jax.named_scope("normalised_weight"):
            params = params / jnp.sum(params)
        params = checkpoint_name(params, "weight")
        with jax.named_scope("product"):
            x = x @ params
        return x * 2

    assert list(list_layers(apply_fn, W, X)) == ["product"]


def test_a_model_inside_of_a_pipeline_keeps_its_layers():
    """A normalisation in front, a softmax behind: the outermost scope is the model's, and its result has a name now."""
    apply_fn = lambda variables, x: nn.softmax(Network().apply(variables, x - 0.5))
    variables = Network().init(jax.random.key(0), X)
    layers = list_layers(apply_fn, variables, X)
    assert {"dense#1", "recomputed", "head", "Network"} <= set(layers)
    logits = run_with_layer(apply_fn, variables, X, "Network")[1]
    np.testing.assert_allclose(logits, Network().apply(variables, X - 0.5), rtol=1e-5, atol=1e-6)


def test_a_function_that_knows_its_params_has_the_same_layers(network):
    apply_fn, variables = network
    assert list_layers(lambda _, x: apply_fn(variables, x), None, X) == list_layers(apply_fn, variables, X)


@pytest.mark.parametrize(
    ("name", "shape", "fields", "absent"),
    [
        ("lenet5", (28, 28, 1), {}, set()),
        ("resnet20_cifar", (8, 8, 3), {"stage_sizes": (1, 1, 1)}, set()),
        ("mobilenet_v1", (32, 32, 3), {"width_multiplier": 0.25}, set()),
        # a grid of patches is laid out for those who ask for features alone
        ("vit_b_16", (12, 8, 3), {"patch_size": 4, "width": 16, "depth": 3, "heads": 2, "hidden": 24},
         {"stage1", "stage2", "stage3", "last_input"}),
    ],
)  # fmt: skip
def test_the_feature_maps_of_models_are_layers(name, shape, fields, absent):
    model = models.create(name, num_classes=3, **fields)
    images = jax.random.normal(jax.random.key(1), (2, *shape))
    variables = jax.jit(model.init)(jax.random.key(0), images)

    @jax.jit
    def both(variables, images):
        maps = models.features(model, variables, images)
        wanted = {key: lambda value: value for key in maps if key not in absent}
        return maps, run_with_layers(model.apply, variables, images, wanted), model.apply(variables, images)

    maps, (output, found), logits = both(variables, images)
    wanted = [key for key in maps if key not in absent]
    assert len(wanted) >= 3
    np.testing.assert_allclose(output, logits, rtol=1e-4, atol=1e-5)
    for key in wanted:  # the same program, perhaps fused otherwise
        np.testing.assert_allclose(found[key], maps[key], rtol=1e-4, atol=1e-5, err_msg=key)


def test_scopes_inside_of_loops_and_of_functions_with_their_own_derivative_are_said_to_be_hidden():
    @jax.custom_jvp
    def own(x):
        with jax.named_scope("hidden"):
            return checkpoint_name(x * 2, "deep") + 1

    own.defjvp(lambda primals, tangents: (own(*primals), 2 * tangents[0]))

    def step(x, _):
        with jax.named_scope("repeated"):
            return x @ W, None

    def apply_fn(_, x):
        with jax.named_scope("before"):
            x = x + 1
        with jax.named_scope("around"):
            x = own(x)
        x, _ = jax.lax.scan(step, x, None, length=2)
        return jax.lax.cond(x.sum() > 0, lambda x: checkpoint_name(x, "positive"), lambda x: x, x)

    assert list(list_layers(apply_fn, None, X)) == ["before", "around"]
    with pytest.raises(UsageError, match=r"'repeated' lies inside of a 'scan' loop.*Python loop.*before, around"):
        run_with_layer(apply_fn, None, X, "repeated")
    with pytest.raises(UsageError, match=r"'hidden' lies inside of a function with a derivative of its own"):
        run_with_layer(apply_fn, None, X, "hidden")
    with pytest.raises(UsageError, match="'deep' lies inside of a function"):
        find_layer(read(apply_fn, None, X), "deep")
    with pytest.raises(UsageError, match="'positive' lies inside of a branch"):
        run_with_layer(apply_fn, None, X, "positive")
    # the layer around such a function has its value and its derivative
    around = lambda x: run_with_layer(apply_fn, None, x, "around")[1].sum()
    np.testing.assert_allclose(jax.grad(around)(X), 2)


def test_blocks_of_a_flax_scan_are_said_to_be_hidden():
    class Deep(nn.Module):
        @nn.compact
        def __call__(self, x):
            body = lambda block, carry, _: (block(carry), None)
            scanned = nn.scan(body, variable_axes={"params": 0}, split_rngs={"params": True}, length=2)
            return nn.Dense(2, name="head")(scanned(Block(name="block"), x, None)[0])

    variables = Deep().init(jax.random.key(0), X)
    for layer in ("block", "block/Dense_0", "Dense_0"):
        with pytest.raises(UsageError, match=f"'{layer}' lies inside of a 'scan' loop"):
            run_with_layer(Deep().apply, variables, X, layer)


def test_names_that_do_not_exist_get_the_nearest_names():
    params, images = small_params(), small_images(2)
    with pytest.raises(UsageError, match=r"unknown layer 'conv3'; did you mean 'conv\d' or 'conv\d'\?"):
        run_with_layer(small_network, params, images, "conv3")
    with pytest.raises(UsageError, match="known: conv1, conv2"):
        run_with_layer(small_network, params, images, "zzz")
    with pytest.raises(UsageError, match=r"names none of its values.*checkpoint_name\(x, \"conv1\"\)"):
        run_with_layer(lambda _, x: x + 1, None, images, "conv1")


def test_a_name_of_several_layers_is_refused_with_all_of_them(network):
    apply_fn, variables = network
    with pytest.raises(UsageError, match="several times; choose one of dense#1, dense#2"):
        run_with_layer(apply_fn, variables, X, "dense")
    with pytest.raises(UsageError, match="several layers are called 'conv': a/conv, b/conv"):
        run_with_layer(two_scopes, None, X, "conv")


def two_scopes(_, x):
    for name in "ab":
        with jax.named_scope(name), jax.named_scope("conv"):
            x = x * 2
        x = x + 1
    return x


def test_a_change_must_keep_the_shape():
    with pytest.raises(UsageError, match=r"'middle' must keep shape and dtype.*\[3, 4\] and made float32 \[3, 2\]"):
        run_with_layer(chain, W, X, "middle", lambda activation: activation[:, :2])
