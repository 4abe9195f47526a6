"""Transfer: the frozen stays bit for bit; groups move when and as fast as they should, in the order of computation."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import models
from dl_core.errors import UsageError
from dl_core.optim import (
    OPTIMIZERS,
    freeze,
    gradual_unfreezing,
    layer_groups,
    layerwise_learning_rates,
    optimizer,
    parameter_order,
)
from dl_core.optim.transfer import group_numbers, matching, path_matches

SHAPES = {"stem": {"kernel": (3, 2), "bias": (2,)}, "block_0": {"conv": {"kernel": (2, 2)}}, "head": {"kernel": (2, 4)}}
GROUPS = ("stem", "block_*", "head")


@pytest.fixture
def params():
    leaves, treedef = jax.tree.flatten(SHAPES, is_leaf=lambda x: isinstance(x, tuple))
    keys = jax.random.split(jax.random.key(0), len(leaves))
    return jax.tree.unflatten(treedef, [jax.random.normal(k, s) for k, s in zip(keys, leaves, strict=True)])


def trained(tx, params, steps, *, scale=1.0):
    """The parameters after so many steps on a loss whose gradient is nowhere zero, and the optimiser's state."""
    loss = lambda p: scale * sum(jnp.sum(jnp.sin(leaf) + leaf**4 / 4) for leaf in jax.tree.leaves(p))

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.jit(lambda p: jax.lax.scan(step, (p, tx.init(p)), length=steps)[0])(params)


def moved(before, after):
    """The names of the modules with a parameter that changed by as much as a bit."""
    same = lambda a, b: np.asarray(a).tobytes() == np.asarray(b).tobytes()
    return {name for name in before if not all(jax.tree.leaves(jax.tree.map(same, before[name], after[name])))}


@pytest.mark.parametrize(
    ("pattern", "path", "named"),
    [
        ("layer1_0", "layer1_0/conv1/kernel", True),
        ("layer1_0", "layer1_01/conv1/kernel", False),
        ("layer[12]_*", "layer2_1/bn1/scale", True),
        ("*/kernel", "layer2_1/bn1/scale", False),
        ("bn1", "layer1_0/bn1/scale", False),
        ("conv1|bn1", "bn1/bias", True),
        ("fc/kernel", "fc/kernel", True),
    ],
)
def test_a_pattern_names_leaves_and_whole_modules(pattern, path, named):
    assert path_matches(path, [pattern]) is named


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_frozen_parameters_stay_bit_for_bit_under_decay_lasso_and_clipping(name, params):
    rate = optax.constant_schedule(0.1)
    for decay in ("decoupled", "coupled") if name != "adamw" else ("decoupled",):
        tx = optimizer(name, rate, weight_decay=0.1, decay=decay, decay_mask="all", l1=0.1, clip_norm=1.0)
        after, _ = trained(freeze(tx, ["stem/kernel", "block_*"]), params, 3)
        assert moved(params, after) == {"stem", "head"}
        np.testing.assert_array_equal(after["stem"]["kernel"], params["stem"]["kernel"])
        assert (after["stem"]["bias"] != params["stem"]["bias"]).all()


def test_the_rest_trains_as_if_the_frozen_parameters_did_not_exist(params):
    """So the norm that is clipped is theirs alone, and no state is kept for what is frozen."""
    tx = optimizer("adam", 0.1, clip_norm=0.5)
    after, state = trained(freeze(tx, ["stem", "block_0"]), params, 4)
    alone, _ = trained(tx, {"head": params["head"]}, 4)
    np.testing.assert_allclose(after["head"]["kernel"], alone["head"]["kernel"], rtol=1e-6)
    kept = [leaf.shape for leaf in jax.tree.leaves(state) if leaf.ndim]
    assert set(kept) == {SHAPES["head"]["kernel"]}


def test_layerwise_rates_multiply_from_the_head_down(params):
    plain = optimizer("sgd", 0.1)
    slow = optax.chain(plain, layerwise_learning_rates(GROUPS, 0.5))
    difference = lambda tx: jax.tree.map(jnp.subtract, trained(tx, params, 1)[0], params)
    full, scaled = difference(plain), difference(slow)
    for name, factor in {"stem": 0.25, "block_0": 0.5, "head": 1.0}.items():
        # the step is the difference of two parameters near 1, so it carries their rounding, 1e-7
        jax.tree.map(lambda a, b, f=factor: np.testing.assert_allclose(b, f * a, atol=3e-7), full[name], scaled[name])


@pytest.mark.parametrize("steps", range(1, 7))
def test_groups_thaw_one_by_one_from_the_head(steps, params):
    tx = optax.chain(optimizer("adamw", 0.1, weight_decay=0.1), gradual_unfreezing(GROUPS, 2))
    after, _ = trained(tx, params, steps)
    expected = {1: {"head"}, 2: {"head"}, 3: {"head", "block_0"}, 4: {"head", "block_0"}}
    assert moved(params, after) == expected.get(steps, set(params))


def test_an_overflow_does_not_reach_what_is_still_frozen(params):
    after, _ = trained(optax.chain(optimizer("sgd", 0.1), gradual_unfreezing(GROUPS, 5)), params, 2, scale=np.inf)
    assert moved(params, after) == {"head"}


def test_unfreezing_goes_on_from_its_state(params):
    tx = optax.chain(optimizer("momentum", 0.1), gradual_unfreezing(GROUPS, 2))
    whole, _ = trained(tx, params, 5)
    half, state = trained(tx, params, 3)
    gradient = jax.jit(jax.grad(lambda p: sum(jnp.sum(jnp.sin(x) + x**4 / 4) for x in jax.tree.leaves(p))))
    for _ in range(2):
        updates, state = jax.jit(tx.update)(gradient(half), state, half)
        half = optax.apply_updates(half, updates)
    # two programs: compiled as a loop or step by step, XLA may round the last bit otherwise
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), whole, half)


@pytest.mark.parametrize(
    ("name", "fields", "expected"),
    [
        (
            "resnet20_cifar",
            {"stage_sizes": (2, 1), "width": 4},
            ("conv1|bn1", "layer1_0", "layer1_1", "layer2_0", "fc"),
        ),
        ("lenet5", {}, ("conv1", "conv2", "fc1", "fc2", "fc3")),
    ],
)
def test_groups_follow_the_order_of_computation_not_of_the_alphabet(name, fields, expected):
    model = models.create(name, num_classes=3, **fields)
    paths = parameter_order(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 1)))
    assert layer_groups(paths) == expected
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 1)))["params"]
    assert sorted(paths) == sorted(
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree_util.tree_leaves_with_path(shapes)
    )
    assert set(jax.tree.leaves(group_numbers(shapes, expected))) == set(range(5))


def test_norms_and_tokens_join_a_neighbour():
    assert layer_groups(["token", "patch/kernel", "norm/scale", "block/mlp/kernel", "last/scale", "head/kernel"]) == (
        "token|patch|norm",
        "block|last",
        "head",
    )


def test_matching_keeps_the_structure(params):
    assert matching(params, ["*/kernel"])["stem"] == {"kernel": True, "bias": False}


def test_mistakes_are_named(params):
    with pytest.raises(UsageError, match="'steem' names no parameter; the nearest that does: 'stem"):
        freeze(optimizer("sgd", 0.1), ["steem"]).init(params)
    with pytest.raises(UsageError, match="freeze every parameter"):
        freeze(optimizer("sgd", 0.1), ["*"]).init(params)
    with pytest.raises(UsageError, match="'block_0/conv/kernel' is in no group"):
        gradual_unfreezing(("stem", "head"), 1).init(params)
    with pytest.raises(UsageError, match="decay must lie in"):
        layerwise_learning_rates(GROUPS, 1.5)
    with pytest.raises(UsageError, match="steps_per_group"):
        gradual_unfreezing(GROUPS, 0)
