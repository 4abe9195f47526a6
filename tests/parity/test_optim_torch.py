"""Optimisers, schedules and clipping against torch.optim: the same start, float64, 50 steps, the same path."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dl_core.optim import optimizer, reduce_on_plateau, schedule
from dl_core.regularization import ema_update, swa_update

torch = pytest.importorskip("torch")

STEPS = 50

# (name, options here, class there, options there)
PAIRS = [
    ("sgd", {}, "SGD", {}),
    ("sgd", {"weight_decay": 0.1, "decay": "coupled"}, "SGD", {"weight_decay": 0.1}),
    ("momentum", {}, "SGD", {"momentum": 0.9}),
    (
        "momentum",
        {"momentum": 0.5, "weight_decay": 0.1, "decay": "coupled"},
        "SGD",
        {"momentum": 0.5, "weight_decay": 0.1},
    ),
    ("nesterov", {}, "SGD", {"momentum": 0.9, "nesterov": True}),
    ("adagrad", {}, "Adagrad", {}),
    ("adagrad", {"eps": 0.1, "initial_accumulator": 0.2}, "Adagrad", {"eps": 0.1, "initial_accumulator_value": 0.2}),
    ("adadelta", {}, "Adadelta", {}),
    ("adadelta", {"rho": 0.5, "eps": 1e-3}, "Adadelta", {"rho": 0.5, "eps": 1e-3}),
    ("rmsprop", {"eps_in_sqrt": False}, "RMSprop", {}),
    ("rmsprop", {"eps_in_sqrt": False, "rho": 0.9, "momentum": 0.5}, "RMSprop", {"alpha": 0.9, "momentum": 0.5}),
    ("adam", {}, "Adam", {}),
    ("adam", {"b1": 0.8, "b2": 0.9, "eps": 1e-3}, "Adam", {"betas": (0.8, 0.9), "eps": 1e-3}),
    ("adam", {"weight_decay": 0.1, "decay": "coupled"}, "Adam", {"weight_decay": 0.1}),
    ("adamw", {}, "AdamW", {}),
    ("adamw", {"weight_decay": 0.2}, "AdamW", {"weight_decay": 0.2}),
    ("adam", {"weight_decay": 0.2, "decay": "decoupled"}, "AdamW", {"weight_decay": 0.2}),
]


def quadratic(rng):
    """½ xᵀAx - bᵀx with curvatures from 0.1 to 10."""
    rotation, _ = np.linalg.qr(rng.normal(size=(5, 5)))
    curvature, slope = rotation @ np.diag(np.geomspace(0.1, 10, 5)) @ rotation.T, rng.normal(size=5)
    return (
        [rng.normal(size=5)],
        lambda x: 0.5 * x[0] @ (jnp.asarray(curvature) @ x[0]) - jnp.asarray(slope) @ x[0],
        lambda x: 0.5 * x[0] @ (torch.tensor(curvature) @ x[0]) - torch.tensor(slope) @ x[0],
    )


def small_net(rng):
    """Cross-entropy of a tanh network 4-6-3 on ten examples."""
    inputs, labels = rng.normal(size=(10, 4)), rng.integers(3, size=10)

    def in_jax(p):
        logits = jnp.tanh(jnp.asarray(inputs) @ p[0] + p[1][None]) @ p[2] + p[3][None]
        return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(labels)).mean()

    def in_torch(p):
        logits = torch.tanh(torch.tensor(inputs) @ p[0] + p[1]) @ p[2] + p[3]
        return torch.nn.functional.cross_entropy(logits, torch.tensor(labels))

    return [rng.normal(size=shape) for shape in [(4, 6), (6,), (6, 3), (3,)]], in_jax, in_torch


def path_here(tx, start, loss, steps=STEPS):
    """All parameters after each step, [steps, parameters]."""

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), jnp.concatenate([leaf.ravel() for leaf in params])

    params = [jnp.asarray(leaf) for leaf in start]
    return jax.lax.scan(step, (params, tx.init(params)), length=steps)[1]


def path_there(build, start, loss, steps=STEPS, clip=lambda params: None):
    params = [torch.tensor(leaf, requires_grad=True) for leaf in start]
    tx, path = build(params), []
    for _ in range(steps):
        tx.zero_grad()
        loss(params).backward()
        clip(params)
        tx.step()
        path.append(np.concatenate([leaf.detach().numpy().ravel() for leaf in params]))
    return np.stack(path)


@pytest.mark.parametrize("problem", [quadratic, small_net])
@pytest.mark.parametrize(("name", "options", "torch_name", "torch_options"), PAIRS)
def test_every_optimizer_follows_torch(problem, name, options, torch_name, torch_options):
    start, loss_here, loss_there = problem(np.random.default_rng(0))
    rate = 1.0 if name == "adadelta" else 0.03
    with jax.enable_x64(True):
        here = path_here(optimizer(name, rate, decay_mask="all", **options), start, loss_here)
    there = path_there(lambda p: getattr(torch.optim, torch_name)(p, lr=rate, **torch_options), start, loss_there)
    assert np.abs(there[-1] - there[0]).max() > 0.02  # it went somewhere
    np.testing.assert_allclose(here, there, rtol=1e-9, atol=1e-11)  # float64 rounding of 50 steps; measured 1e-12


@pytest.mark.parametrize("problem", [quadratic, small_net])
def test_rmsprop_with_eps_inside_the_root_stays_close_to_torch(problem):
    """Inside the root (W18) ε = 1e-8 weighs like 1e-4 outside it: seen where an average gradient is that small."""
    start, loss_here, loss_there = problem(np.random.default_rng(0))
    with jax.enable_x64(True):
        here = path_here(optimizer("rmsprop", 0.03), start, loss_here)
    there = path_there(lambda p: torch.optim.RMSprop(p, lr=0.03), start, loss_there)
    np.testing.assert_allclose(here, there, atol=1e-2)  # a third of one step; measured 5e-3 on the net
    assert (np.asarray(here) != there).any()


@pytest.mark.parametrize(
    ("options", "clip"),
    [
        ({"clip_norm": 0.1}, lambda params: torch.nn.utils.clip_grad_norm_(params, 0.1)),
        ({"clip_value": 0.02}, lambda params: torch.nn.utils.clip_grad_value_(params, 0.02)),
    ],
)
def test_clipping_follows_torch(options, clip):
    start, loss_here, loss_there = small_net(np.random.default_rng(0))
    tx = {"weight_decay": 0.1, "decay": "coupled", "decay_mask": "all", **options}
    with jax.enable_x64(True):
        here = path_here(optimizer("momentum", 0.1, **tx), start, loss_here)
    there = path_there(
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1), start, loss_there, clip=clip
    )
    np.testing.assert_allclose(here, there, atol=1e-5)  # torch divides by ‖g‖ + 1e-6, 1e-5 of a step; measured 2e-6


@pytest.mark.parametrize(
    ("name", "options", "torch_name", "torch_options"),
    [
        ("step", {"factor": 0.5, "every": 7}, "StepLR", {"gamma": 0.5, "step_size": 7}),
        ("exponential", {"factor": 0.9, "every": 1}, "ExponentialLR", {"gamma": 0.9}),
        ("linear", {"end_factor": 0.25}, "LinearLR", {"start_factor": 1.0, "end_factor": 0.25, "total_iters": 30}),
        ("cosine", {"end_factor": 0.1}, "CosineAnnealingLR", {"T_max": 30, "eta_min": 0.03}),
    ],
)
def test_schedules_follow_torch(name, options, torch_name, torch_options):
    tx = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    rule, there = getattr(torch.optim.lr_scheduler, torch_name)(tx, **torch_options), []
    for _ in range(31):
        there.append(tx.param_groups[0]["lr"])
        tx.step()
        rule.step()
    rate = schedule(name, learning_rate=0.3, total_steps=30, **options)
    np.testing.assert_allclose([rate(t) for t in range(31)], there, rtol=1e-5)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("cooldown", [0, 3])
def test_the_plateau_rule_follows_torch(cooldown, seed):
    """torch reduces when bad validations exceed its patience, so that its patience is one less for the same rule."""
    losses = 2.0 + np.cumsum(np.random.default_rng(seed).normal(-0.01, 0.1, size=60)).astype(np.float32)
    tx = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    there = torch.optim.lr_scheduler.ReduceLROnPlateau(tx, factor=0.5, patience=2, cooldown=cooldown, min_lr=0.01)
    here = reduce_on_plateau(factor=0.5, patience=3, cooldown=cooldown, min_scale=0.01)
    state, update = here.init({}), jax.jit(lambda state, value: here.update({}, state, value=value)[1])
    for loss in losses:
        there.step(float(loss))
        state = update(state, loss)
        assert float(state.scale) == pytest.approx(tx.param_groups[0]["lr"], rel=1e-6)
    assert state.scale < 0.2


@pytest.mark.parametrize("kind", ["ema", "swa"])
def test_averaged_weights_follow_torch(kind):
    models = np.random.default_rng(0).normal(size=(5, 2, 3)).astype(np.float32)
    there = torch.nn.Linear(3, 2, bias=False)
    rule = torch.optim.swa_utils.get_ema_multi_avg_fn(0.9) if kind == "ema" else None
    averaged = torch.optim.swa_utils.AveragedModel(there, multi_avg_fn=rule)
    here = jnp.asarray(models[0])
    for count, weight in enumerate(models):
        with torch.no_grad():
            there.weight.copy_(torch.tensor(weight))
        averaged.update_parameters(there)
        here = (
            ema_update(here, jnp.asarray(weight), 0.9)
            if kind == "ema"
            else swa_update(here, jnp.asarray(weight), count)
        )
    np.testing.assert_allclose(here, averaged.module.weight.detach().numpy(), rtol=1e-5, atol=1e-6)


def test_muon_follows_torch():
    """Torch orthogonalises in bfloat16, whose steps of 0.8 % five iterations add up: 5 % of the way, not 1e-12."""
    rng = np.random.default_rng(0)
    start, gradients = rng.normal(size=(6, 9)), rng.normal(size=(5, 6, 9))
    tx = optimizer("muon", 0.1, weight_decay=0.2)
    params = {"kernel": jnp.asarray(start, jnp.float32)}
    state = tx.init(params)
    theirs = torch.nn.Parameter(torch.tensor(start.T, dtype=torch.float32))
    muon = torch.optim.Muon([theirs], lr=0.1, weight_decay=0.2, momentum=0.95)
    for gradient in gradients:
        updates, state = tx.update({"kernel": jnp.asarray(gradient, jnp.float32)}, state, params)
        params = optax.apply_updates(params, updates)
        theirs.grad = torch.tensor(gradient.T, dtype=torch.float32)
        muon.step()
    moved = np.linalg.norm(theirs.detach().numpy().T - start)
    assert np.linalg.norm(params["kernel"] - theirs.detach().numpy().T) < 0.05 * moved
