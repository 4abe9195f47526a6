"""Optimisers: their formulas followed by hand, what the whole family shares, and what is refused."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest

from dl_core.errors import UsageError
from dl_core.optim import OPTIMIZERS, optimizer, schedule

# Rates at which each optimiser gets somewhere on `least_squares` in 60 steps.
RATES = {
    "sgd": 0.1,
    "momentum": 0.03,
    "nesterov": 0.03,
    "adagrad": 0.5,
    "adadelta": 1.0,
    "rmsprop": 0.03,
    "rmsprop_norm": 0.05,
    "adam": 0.1,
    "adamw": 0.1,
    "muon": 0.1,
}
OPTIONS = {"adadelta": {"eps": 1e-2}}  # with the paper's 1e-6 the first steps are a thousandth long


def follow(tx, start, gradients):
    """The parameters after each of the gradients."""
    params = jnp.asarray(start)
    state, path = tx.init(params), []
    for gradient in gradients:
        updates, state = tx.update(jnp.asarray(gradient), state, params)
        params = optax.apply_updates(params, updates)
        path.append(params)
    return np.stack(path)


def least_squares(params, inputs, targets):
    return 0.5 * jnp.mean((inputs @ params["kernel"] + params["bias"][None] - targets) ** 2)


@pytest.fixture(scope="module")
def regression():
    keys = jax.random.split(jax.random.key(0), 4)
    truth = {"kernel": jax.random.normal(keys[0], (4, 3)), "bias": jax.random.normal(keys[1], (3,))}
    inputs = jax.random.normal(keys[2], (32, 4))
    start = jax.tree.map(lambda leaf: leaf + jax.random.normal(keys[3], leaf.shape), truth)
    return truth, start, inputs, inputs @ truth["kernel"] + truth["bias"][None]


# Worked by hand. Rounding: float32 holds these numbers to 6e-8; three steps of a few operations each stay below 1e-6.


def test_momentum_by_hand():
    """W18: v = βv - α∇L, θ += v, with β = 1/2, α = 0.1 and gradients 2, 4, -1: v = -0.2, -0.5, -0.15."""
    path = follow(optimizer("momentum", 0.1, momentum=0.5), [1.0], [[2.0], [4.0], [-1.0]])
    np.testing.assert_allclose(path[:, 0], [0.8, 0.3, 0.15], rtol=1e-6)


def test_rmsprop_by_hand():
    """W18: n = β₂n + (1-β₂)g², θ -= αg/√(n+ε), with β₂ = 1/2, ε = 1: n+ε = 9, 16, 9 after gradients 4, -√22, 1."""
    root = np.sqrt(22)
    path = follow(optimizer("rmsprop", 0.1, rho=0.5, eps=1.0), [2.0], [[4.0], [-root], [1.0]])
    np.testing.assert_allclose(path[:, 0], 2 - np.cumsum([0.4 / 3, -0.1 * root / 4, 0.1 / 3]), rtol=1e-6)


def test_adam_by_hand():
    """W18: β₁ = 1/2, β₂ = 3/4, ε = 1/4 and gradients 2, -2, √249/4.

    m = 1, -1/2, -1/4 + √249/8, divided by 1/2, 3/4, 7/8; n = 1, 7/4, 333/64, divided by 1/4, 7/16, 37/64: 4, 4, 9.
    """
    last = np.sqrt(249) / 4
    path = follow(optimizer("adam", 0.1, b1=0.5, b2=0.75, eps=0.25), [1.0], [[2.0], [-2.0], [last]])
    steps = [2 / 2.25, -(2 / 3) / 2.25, (-1 / 4 + last / 2) / (7 / 8) / 3.25]
    np.testing.assert_allclose(path[:, 0], 1 - 0.1 * np.cumsum(steps), rtol=1e-6)


@pytest.mark.parametrize("decay", ["coupled", "decoupled"])
def test_weight_decay_by_hand(decay):
    """W18: w = (1-αδ)w - α∇L with α = 0.1, δ = 1/2: 0.95·2 - 0.1, 0.95·1.8 + 0.2, 0.95·1.91 - 0.05."""
    tx = optimizer("sgd", 0.1, weight_decay=0.5, decay=decay, decay_mask="all")
    np.testing.assert_allclose(follow(tx, [2.0], [[1.0], [-2.0], [0.5]])[:, 0], [1.8, 1.91, 1.7645], rtol=1e-6)


def test_adagrad_by_hand():
    """Gradients 3, 4, 12 have the roots of summed squares 3, 5, 13."""
    path = follow(optimizer("adagrad", 0.1), [1.0], [[3.0], [4.0], [12.0]])
    np.testing.assert_allclose(path[:, 0], 1 - 0.1 * np.cumsum([1, 4 / 5, 12 / 13]), rtol=1e-6)


def test_adadelta_by_hand():
    """ρ = 1/2, ε = 1, gradients 4, √22: E[g²]+ε = 9, 16; the first step 4/3 makes E[x²]+ε = 8/9 + 1."""
    path = follow(optimizer("adadelta", 1.0, rho=0.5, eps=1.0), [1.0], [[4.0], [np.sqrt(22)]])
    np.testing.assert_allclose(path[:, 0], 1 - np.cumsum([4 / 3, np.sqrt(17 / 9) * np.sqrt(22) / 4]), rtol=1e-6)


@pytest.mark.parametrize("as_one_array", [True, False])
def test_rmsprop_on_the_norm_of_the_gradient_by_hand(as_one_array):
    """W9: EMA α = 0.5 of ‖g‖² gives e_2 = 36, hence the update g_2 / √36.006; parts of one gradient share the norm."""
    gradients = [np.array(g, np.float32) for g in [(-6, 4), (2, 6**0.5), (-(40**0.5), 14**0.5)]]
    split = (lambda g: {"w": jnp.asarray(g)}) if as_one_array else (lambda g: {"a": g[:1], "b": jnp.asarray(g[1])})
    tx = optimizer("rmsprop_norm", 1.0, rho=0.5, eps=6e-3)
    state = tx.init(split(np.zeros(2, np.float32)))
    for gradient in gradients:
        updates, state = tx.update(jax.tree.map(jnp.asarray, split(gradient)), state)
    np.testing.assert_allclose(optax.tree.get(state, "mean_square_norm"), 36, rtol=1e-6)
    np.testing.assert_allclose(
        np.hstack(jax.tree.leaves(updates)), [40**0.5 / 36.006**0.5, -(14**0.5) / 36.006**0.5], rtol=1e-6
    )


def test_a_smaller_momentum_weighs_recent_gradients_more():
    """W15. The course's hint says to raise β above 0.9; a slip: the newest gradient's share of v is 1 - β."""
    share = {}
    for beta in (0.5, 0.9, 0.99):
        tx = optimizer("momentum", 1.0, momentum=beta)
        pulse = follow(tx, [0.0], [[1.0]] + [[0.0]] * 999)[:, 0]  # θ after k+1 steps: -Σ_{j≤k} β^j
        share[beta] = pulse[0] / pulse[-1]
        assert share[beta] == pytest.approx(1 - beta, rel=2e-3)  # 0.99^1000 = 4e-5 is cut off, float32 sums 1000 terms
    assert share[0.5] > share[0.9] > share[0.99]


def test_nesterov_takes_its_gradient_at_the_look_ahead_point():
    """m = αm + η∇L(w - αm), w -= m (course notes, section 3.3): the optimiser's parameters are the points w - αm."""
    curvature, eta, alpha = np.array([1.0, 10.0]), 0.05, 0.9
    w, m, looks = np.array([1.0, -2.0]), np.zeros(2), []
    for _ in range(6):
        m = alpha * m + eta * curvature * (w - alpha * m)
        w = w - m
        looks.append(w - alpha * m)
    tx = optimizer("nesterov", eta, momentum=alpha)
    params = jnp.array([1.0, -2.0])
    state = tx.init(params)
    for look in looks:
        updates, state = tx.update(jnp.asarray(curvature, jnp.float32) * params, state)
        params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(params, look, rtol=1e-5, atol=1e-6)


# The whole family.


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_descends_under_jit_without_retracing(name, dtype, regression):
    _, start, inputs, targets = jax.tree.map(lambda leaf: leaf.astype(dtype), regression)
    tx = optimizer(name, schedule("constant", learning_rate=RATES[name], total_steps=60), **OPTIONS.get(name, {}))
    traces = 0

    @jax.jit
    def step(params, state):
        nonlocal traces
        traces += 1
        loss, gradients = jax.value_and_grad(least_squares)(params, inputs, targets)
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, loss

    params, state = start, tx.init(start)
    for _ in range(60):
        params, state, _ = step(params, state)
    assert traces == 1
    assert jax.tree.map(lambda leaf: leaf.dtype, params) == jax.tree.map(lambda leaf: leaf.dtype, start)
    before, after = (float(least_squares(p, inputs, targets)) for p in (start, params))
    assert after < 0.2 * before


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_zero_gradient_moves_nothing(name):
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    tx = optimizer(name, 0.1, weight_decay=0.0, clip_norm=1.0, clip_adaptive=0.01)
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(updates))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_takes_every_shared_option_and_a_schedule(name):
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    rate = schedule("cosine", learning_rate=0.1, total_steps=10, warmup_steps=2)
    tx = optimizer(name, rate, weight_decay=0.1, l1=0.1, clip_value=1.0, clip_norm=1.0, clip_adaptive=0.1)
    updates, state = tx.update(params, tx.init(params), params)
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(updates))  # the warm-up starts at 0
    updates, _ = tx.update(params, state, params)
    assert all((leaf < 0).all() for leaf in jax.tree.leaves(updates))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_options_default_is_what_leaving_it_out_gives(name):
    gradients = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    explicit = optimizer(name, 0.1, **OPTIMIZERS[name])
    as_none = optimizer(name, 0.1, **dict.fromkeys(OPTIMIZERS[name]))
    implicit = follow(optimizer(name, 0.1), np.ones(3, np.float32), gradients)
    for tx in (explicit, as_none):
        np.testing.assert_array_equal(follow(tx, np.ones(3, np.float32), gradients), implicit)


@pytest.mark.parametrize("batch_size", [32, 8, 1])
def test_batch_mini_batch_and_stochastic_descent_find_the_solution(batch_size, regression):
    """Where one solution fits every example, each of the three reaches it; a smaller batch takes more updates."""
    truth, start, inputs, targets = regression
    tx = optimizer("sgd", 0.3)
    order = jnp.concatenate([jax.random.permutation(jax.random.key(e), 32) for e in range(200)])

    def step(carry, rows):
        params, state = carry
        updates, state = tx.update(jax.grad(least_squares)(params, inputs[rows], targets[rows]), state)
        return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.lax.scan(step, (start, tx.init(start)), order.reshape(-1, batch_size))
    for found, true in zip(jax.tree.leaves(params), jax.tree.leaves(truth), strict=True):
        np.testing.assert_allclose(found, true, atol=2e-2)  # where batch descent is after its 200 updates


def test_the_mean_of_mini_batch_gradients_is_the_batch_gradient(regression):
    """Course notes, eq. 18: the batches of one epoch, at the same weights, average to the gradient of eq. 17."""
    _, params, inputs, targets = regression
    gradient = jax.grad(least_squares)
    parts = jax.vmap(gradient, (None, 0, 0))(params, inputs.reshape(4, 8, 4), targets.reshape(4, 8, 3))
    whole = gradient(params, inputs, targets)
    jax.tree.map(lambda part, all_: np.testing.assert_allclose(part.mean(0), all_, rtol=1e-5, atol=1e-6), parts, whole)


def test_several_rates_train_at_once_under_vmap(regression):
    _, start, inputs, targets = regression

    def first_update(rate, momentum):
        tx = optimizer("momentum", rate, momentum=momentum)
        gradients = jax.grad(least_squares)(start, inputs, targets)
        return tx.update(gradients, tx.init(start))[0]["bias"]

    updates = jax.jit(jax.vmap(first_update))(jnp.array([0.1, 0.2]), jnp.array([0.9, 0.5]))
    np.testing.assert_allclose(updates[1], 2 * updates[0], rtol=1e-6)


# From a configuration, and what is refused.


def test_an_optimizer_is_built_from_a_config():
    config = ml_collections.ConfigDict(
        {"name": "nesterov", "learning_rate": 0.1, "momentum": 0.8, "weight_decay": 1e-4}
    )
    built = follow(optimizer(**config), np.ones((1, 1), np.float32), np.ones((3, 1, 1), np.float32))
    by_hand = optimizer("nesterov", 0.1, momentum=0.8, weight_decay=1e-4)
    np.testing.assert_array_equal(built, follow(by_hand, np.ones((1, 1), np.float32), np.ones((3, 1, 1), np.float32)))


def test_adamw_decays_unless_told_otherwise():
    start, gradients = np.ones((1, 1), np.float32), np.zeros((1, 1, 1), np.float32)
    np.testing.assert_allclose(follow(optimizer("adamw", 0.1), start, gradients)[0], 1 - 0.1 * 0.01, rtol=1e-6)
    np.testing.assert_array_equal(follow(optimizer("adamw", 0.1, weight_decay=0.0), start, gradients)[0], start)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("adm", {}, "unknown optimizer 'adm'; did you mean .*'adam'"),
        (
            "sgd",
            {"momentum": 0.9},
            "'sgd' has no option 'momentum'; it accepts weight_decay, .*belongs to momentum, nest",
        ),
        ("adam", {"beta1": 0.9}, "'adam' has no option 'beta1'; it accepts b1, b2, eps, weight_decay"),
        ("momentum", {"momentum": 1.0}, r"momentum must lie in \[0, 1\), got 1.0"),
        ("adam", {"b2": -0.1}, r"b2 must lie in \[0, 1\), got -0.1"),
        ("adam", {"eps": 0.0}, r"eps must lie in \(0, inf\), got 0.0"),
        ("sgd", {"learning_rate": -0.1}, "learning_rate must lie in .*got -0.1"),
        ("sgd", {"learning_rate": float("nan")}, "learning_rate must lie in .*got nan"),
        ("sgd", {"weight_decay": -1.0}, "weight_decay must lie in .*got -1.0"),
        ("sgd", {"clip_norm": -1.0}, "clip_norm must lie in"),
        ("sgd", {"l1": -1.0}, "l1 must lie in"),
        ("sgd", {"decay": "couple"}, "unknown decay 'couple'; did you mean .*'coupled'"),
        ("sgd", {"decay_mask": "kernel"}, "unknown decay_mask 'kernel'; did you mean 'kernels'"),
        ("adamw", {"decay": "coupled"}, "use optimizer 'adam'"),
    ],
)
def test_nonsense_is_refused_with_what_is_allowed(name, options, words):
    with pytest.raises(UsageError, match=words):
        optimizer(name, **{"learning_rate": 0.1, **options})


def test_muon_steps_kernels_along_the_nearest_orthogonal_matrix_and_the_rest_by_adam():
    """Five Newton-Schulz steps bring every singular value between 0.68 and 1.14 (Jordan, 2024), not to 1."""
    rng = np.random.default_rng(0)
    shapes = {"dense": {"kernel": (6, 9), "bias": (9,)}, "conv": {"kernel": (3, 3, 4, 8)}}
    params = jax.tree.map(lambda shape: jnp.zeros(shape), shapes, is_leaf=lambda x: isinstance(x, tuple))
    gradients = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), params)
    tx = optimizer("muon", 1.0, adam_scale=0.5)
    updates, _ = tx.update(gradients, tx.init(params), params)

    for layer, inputs, outputs in [("dense", 6, 9), ("conv", 36, 8)]:
        step = -np.asarray(updates[layer]["kernel"]).reshape(inputs, outputs) / max(1, outputs / inputs) ** 0.5
        left, _, right = np.linalg.svd(np.asarray(gradients[layer]["kernel"]).reshape(inputs, outputs), False)
        in_basis = left.T @ step @ right.T
        assert np.abs(in_basis - np.diag(np.diag(in_basis))).max() < 1e-5
        assert 0.65 < np.diag(in_basis).min() < np.diag(in_basis).max() < 1.2
    np.testing.assert_allclose(updates["dense"]["bias"], -0.5 * np.sign(gradients["dense"]["bias"]), rtol=1e-5)
