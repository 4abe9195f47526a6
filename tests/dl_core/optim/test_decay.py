"""Weight decay: coupled and decoupled, which parameters it spares, and the lasso."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dl_core.optim import OPTIMIZERS, decay_mask, optimizer
from dl_core.regularization import l1_penalty, l2_penalty


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(use_running_average=True)(nn.Conv(3, (2, 2))(x))
        x = nn.LayerNorm()(x.mean(axis=1))
        x = nn.PReLU()(nn.MultiHeadAttention(num_heads=1)(x))
        return nn.Dense(2, name="norm_free_head")(x)


@pytest.fixture(scope="module")
def params():
    shapes = jax.eval_shape(Net().init, jax.random.key(0), jnp.zeros((1, 4, 4, 1)))["params"]
    leaves, treedef = jax.tree.flatten(shapes)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return jax.tree.unflatten(treedef, [jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)])


def updates_of(params, loss=lambda params: 0.0 * optax.tree.sum(params), steps=3, **config):
    """The last update of a few steps, so that averages of gradients take part."""
    tx = optimizer(learning_rate=0.1, **config)

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), updates

    return jax.jit(lambda p: jax.lax.scan(step, (p, tx.init(p)), length=steps))(params)[1]


def quartic(params):
    return sum(jnp.sum(jnp.sin(leaf) + leaf**4 / 4) for leaf in jax.tree.leaves(params))


def assert_same(first, second, **tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), first, second)


def test_kernels_decay_and_biases_and_norms_do_not(params):
    mask = jax.tree_util.tree_flatten_with_path(decay_mask(params))[0]
    decayed = {jax.tree_util.keystr(path, simple=True, separator="/") for path, decays in mask if decays}
    attention = "MultiHeadAttention_0"
    kernels = {f"{attention}/{part}/kernel" for part in ("query", "key", "value", "out")}
    assert decayed == {"Conv_0/kernel", "norm_free_head/kernel"} | kernels


def test_a_norm_with_more_than_one_axis_does_not_decay():
    """A scale [1, 1, channels], an attention bias [heads, features], and both again in a stack of models."""
    out = {"bias": jnp.ones((2, 3)), "scale": jnp.ones((2, 3)), "w": jnp.ones((2, 3))}
    grids = {"InstanceNorm_0": {"gamma": jnp.ones((1, 1, 3))}, "out": out}
    assert decay_mask(grids) == {"InstanceNorm_0": {"gamma": False}, "out": {"bias": False, "scale": False, "w": True}}
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), grids)
    assert decay_mask(stacked) == decay_mask(grids)


def test_a_mask_may_be_all_or_a_function():
    params = {"head": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}, "body": {"kernel": jnp.ones((2, 2))}}
    assert all(jax.tree.leaves(decay_mask(params, "all")))
    assert decay_mask(params, lambda path, leaf: path.startswith("head/") and leaf.ndim == 1) == {
        "head": {"kernel": False, "bias": True},
        "body": {"kernel": False},
    }


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "adamw"])
@pytest.mark.parametrize("decay", ["coupled", "decoupled"])
def test_what_the_mask_spares_moves_as_without_decay(name, decay, params):
    plain = updates_of(params, quartic, name=name, steps=1)
    with_decay = updates_of(params, quartic, name=name, steps=1, weight_decay=0.5, decay=decay)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), plain, with_decay)
    # the norm form of RMSProp scales everything by one norm, which a coupled decay changes; Adagrad's first step is
    # the sign of the gradient, which a decay may leave as it is
    if not (name == "rmsprop_norm" and decay == "coupled"):
        assert all(not m for m, d in zip(*map(jax.tree.leaves, (moved, decay_mask(params))), strict=True) if not d)
    assert moved["Conv_0"]["kernel"]


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "adamw"])
def test_coupled_decay_is_training_on_the_loss_with_an_l2_penalty(name, params):
    coupled = updates_of(params, quartic, name=name, weight_decay=0.3, decay="coupled")
    penalised = updates_of(params, lambda p: quartic(p) + 0.3 * l2_penalty(p), name=name)
    assert_same(coupled, penalised, rtol=1e-4, atol=1e-6)  # the same sums in another order, through three steps


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_lasso_is_training_on_the_loss_with_an_l1_penalty(name, params):
    lasso = updates_of(params, quartic, name=name, l1=0.3)
    penalised = updates_of(params, lambda p: quartic(p) + 0.3 * l1_penalty(p), name=name)
    assert_same(lasso, penalised, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("name", "same"), [("sgd", True), ("adam", False), ("rmsprop", False), ("momentum", False)])
def test_only_for_plain_descent_is_l2_the_same_as_decoupled_decay(name, same, seed):
    """Loshchilov, Hutter (2019), propositions 1 and 2; course notes, eq. 21: the same for SGD. With momentum, the
    coupled decay is remembered with the gradients and the decoupled one is not."""
    params = {"kernel": jax.random.normal(jax.random.key(seed), (4, 3))}
    coupled, decoupled = (
        updates_of(params, quartic, name=name, weight_decay=0.3, decay=decay)["kernel"]
        for decay in ("coupled", "decoupled")
    )
    if same:
        np.testing.assert_allclose(coupled, decoupled, rtol=1e-4, atol=1e-6)
    else:
        assert np.abs(coupled[-1] - decoupled[-1]).max() > 0.01 * np.abs(coupled[-1]).max()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_decoupled_decay_shrinks_every_weight_by_the_same_factor(name):
    """Course notes, eq. 23: -λ η w, whatever the gradients have been."""
    params = {"kernel": jax.random.normal(jax.random.key(0), (4, 3))}
    plain = updates_of(params, quartic, steps=1, name=name, weight_decay=0.0)["kernel"][0]
    decayed = updates_of(params, quartic, steps=1, name=name, weight_decay=0.3)["kernel"][0]
    np.testing.assert_allclose(decayed - plain, -0.1 * 0.3 * params["kernel"], rtol=1e-4, atol=1e-6)


def test_decay_follows_the_schedule_of_the_rate():
    tx = optimizer("sgd", lambda count: 1.0 / (count + 1), weight_decay=0.5)
    params = jnp.ones((1, 1))
    state = tx.init(params)
    for factor in (0.5, 0.75):
        updates, state = tx.update(jnp.zeros((1, 1)), state, params)
        np.testing.assert_allclose(params + updates, factor * params, rtol=1e-6)


def test_lasso_leaves_fewer_weights_standing_than_ridge():
    """Two of six inputs matter: L1 brings the other weights to within the oscillation η λ around 0, L2 does not."""
    inputs = jax.random.normal(jax.random.key(0), (64, 6))
    truth = jnp.array([[2.0], [-1.0], [0.0], [0.0], [0.0], [0.0]])
    targets = inputs @ truth + 0.5 * jax.random.normal(jax.random.key(1), (64, 1))

    def fitted(**penalty):
        tx = optimizer("sgd", 0.01, **penalty)

        def step(carry, _):
            w, state = carry
            gradient = jax.grad(lambda w: 0.5 * jnp.mean((inputs @ w - targets) ** 2))(w)
            updates, state = tx.update(gradient, state, w)
            return (w + updates, state), None

        return np.abs(jax.lax.scan(step, (truth * 0, tx.init(truth)), length=1500)[0][0][:, 0])

    lasso, ridge = fitted(l1=0.15), fitted(weight_decay=0.15)
    assert (lasso[2:] < 2 * 0.01 * 0.15).all()
    assert (ridge[2:] > 2 * 0.01 * 0.15).all()
    assert (lasso[:2] > 0.5).all()
