"""Penalties, averaged weights, early stopping and label noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.training.early_stopping import EarlyStopping as FlaxEarlyStopping

from dl_core import regularization as reg
from dl_core.errors import UsageError


@pytest.fixture
def params():
    keys = jax.random.split(jax.random.key(0), 3)
    return {
        "Dense_0": {"kernel": jax.random.normal(keys[0], (3, 2)), "bias": jax.random.normal(keys[1], (2,))},
        "BatchNorm_0": {"scale": jax.random.normal(keys[2], (2,))},
    }


# Penalties.


def test_penalties_are_those_of_the_kernels(params):
    kernel = np.asarray(params["Dense_0"]["kernel"], np.float64)
    np.testing.assert_allclose(reg.l1_penalty(params), np.abs(kernel).sum(), rtol=1e-6)
    np.testing.assert_allclose(reg.l2_penalty(params), (kernel**2).sum() / 2, rtol=1e-6)
    everything = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(params)])
    np.testing.assert_allclose(reg.l1_penalty(params, "all"), np.abs(everything).sum(), rtol=1e-6)
    np.testing.assert_allclose(
        reg.l2_penalty(params, lambda path, leaf: "bias" in path),
        0.5 * (params["Dense_0"]["bias"] ** 2).sum(),
        rtol=1e-6,
    )


def test_the_gradient_of_l2_is_the_weight_and_that_of_l1_its_sign(params):
    """Hence w⁺ = w - η∇(L + λ/2‖w‖²) = (1 - ηλ)w - η∇L: ridge is weight decay."""
    kernel = params["Dense_0"]["kernel"]
    for penalty, expected in ((reg.l2_penalty, kernel), (reg.l1_penalty, jnp.sign(kernel))):
        gradient = jax.grad(penalty)(params)
        np.testing.assert_allclose(gradient["Dense_0"]["kernel"], expected, rtol=1e-6)
        assert (gradient["Dense_0"]["bias"] == 0).all()


def test_penalties_of_bfloat16_parameters_are_summed_in_float32():
    params = {"kernel": jnp.full((64, 64), 1.0, jnp.bfloat16)}
    assert reg.l1_penalty(params).dtype == jnp.float32
    assert float(reg.l1_penalty(params)) == 4096.0
    assert float(reg.l2_penalty({"bias": jnp.ones(3)})) == 0.0


# Averages of the weights.


def test_swa_is_the_mean(params):
    snapshots = [jax.tree.map(lambda leaf, i=i: leaf * (i - 1.5) + i, params) for i in range(5)]
    average = snapshots[0]
    for count, snapshot in enumerate(snapshots[1:], start=1):
        average = jax.jit(reg.swa_update)(average, snapshot, count)
    for found, *leaves in zip(*map(jax.tree.leaves, (average, *snapshots)), strict=True):
        np.testing.assert_allclose(found, np.mean(leaves, axis=0), rtol=1e-5, atol=1e-6)


def test_swa_begins_with_the_first_model_whatever_stood_there(params):
    first = reg.swa_update(jax.tree.map(jnp.zeros_like, params), params, 0)
    jax.tree.map(np.testing.assert_array_equal, first, params)


def test_ema_weighs_the_past_geometrically():
    average = jnp.array(0.0)
    for value in (1.0, 2.0, 3.0):
        average = reg.ema_update(average, jnp.array(value), 0.5)
    np.testing.assert_allclose(average, 0.125 * 1 + 0.25 * 2 + 0.5 * 3, rtol=1e-6)


def test_averages_keep_their_own_precision_and_take_counters_over():
    old = {"kernel": jnp.zeros(2, jnp.float32), "count": jnp.array(3)}
    new = {"kernel": jnp.ones(2, jnp.bfloat16), "count": jnp.array(7)}
    average = reg.ema_update(old, new, 0.999)
    assert average["kernel"].dtype == jnp.float32
    np.testing.assert_allclose(average["kernel"], 0.001, rtol=1e-4)  # 1 - 0.999 in float32
    assert average["count"] == 7
    jax.tree.map(np.testing.assert_array_equal, reg.ema_update(old, old, 0.5), old)


# Early stopping.


def stops_at(rule, **signals):
    """How many updates a rule allows; None if it never stops. Checked in jit and outside it."""
    names, columns = list(signals), zip(*signals.values(), strict=True)
    state, compiled = rule.init(), rule.init()
    update = jax.jit(lambda state, values: rule.update(state, **values))
    found = None
    for n, values in enumerate(columns, start=1):
        state = rule.update(state, **dict(zip(names, values, strict=True)))
        compiled = update(compiled, dict(zip(names, values, strict=True)))
        jax.tree.map(np.testing.assert_array_equal, state, compiled)
        assert not (found and not state.stop)  # once stopped, stopped
        if state.stop and found is None:
            found = n
    return found


def test_a_budget_of_steps():
    assert stops_at(reg.budget(30), step=[10, 20, 30, 40]) == 3
    assert stops_at(reg.budget(41), step=[10, 20, 30, 40]) is None


def test_a_small_update_of_the_loss():
    losses = [4.0, 2.0, 1.0, 0.95, 0.5, 0.45, 0.41, 0.40]
    assert stops_at(reg.small_update(0.1), loss=losses) == 4
    assert stops_at(reg.small_update(0.1, patience=2), loss=losses) == 7
    assert stops_at(reg.small_update(0.001), loss=losses) is None
    assert stops_at(reg.small_update(0.1), loss=[1.0, float("nan"), 1.0, 2.0]) is None


def test_a_validation_loss_that_rises():
    losses = [1.0, 0.8, 0.9, 0.85, 0.7, 0.75, 0.72, 0.71, 0.6]
    assert stops_at(reg.validation(3), validation_loss=losses) == 8
    assert stops_at(reg.validation(2), validation_loss=losses) == 4
    assert stops_at(reg.validation(4), validation_loss=losses) is None
    assert stops_at(reg.validation(3, min_delta=0.25), validation_loss=losses) == 4
    assert stops_at(reg.validation(2), validation_loss=[1.0, float("nan"), float("nan")]) == 3


def test_the_state_says_which_validation_was_the_best():
    rule, states = reg.validation(5), []
    state = rule.init()
    for loss in (1.0, 0.5, 0.6, 0.4):
        state = rule.update(state, validation_loss=loss)
        states.append((round(float(state.best), 6), int(state.since_best)))
    assert states == [(1.0, 0), (0.5, 0), (0.5, 1), (0.4, 0)]


@pytest.mark.parametrize("seed", range(5))
def test_the_validation_rule_agrees_with_flax(seed):
    """Flax counts one validation more for the same patience."""
    losses = np.cumsum(np.random.default_rng(seed).normal(-0.02, 0.1, size=40)).astype(np.float32)
    flax_rule, expected = FlaxEarlyStopping(min_delta=0.05, patience=4), None
    for n, loss in enumerate(losses, start=1):
        flax_rule = flax_rule.update(float(loss))
        if flax_rule.should_stop and expected is None:
            expected = n
    assert stops_at(reg.validation(5, min_delta=0.05), validation_loss=losses) == expected


def test_a_hybrid_stops_with_the_first_of_its_rules():
    steps, loss, validation = [10, 20, 30, 40], [1.0, 0.5, 0.2, 0.19], [1.0, 1.1, 1.2, 1.3]
    signals = {"step": steps, "loss": loss, "validation_loss": validation}
    rules = [reg.budget(30), reg.small_update(0.05), reg.validation(1)]
    assert [stops_at(rule, **signals) for rule in rules] == [3, 4, 2]
    assert stops_at(reg.hybrid(*rules), **signals) == 2
    assert stops_at(reg.hybrid(*rules[:2]), **signals) == 3
    assert stops_at(reg.hybrid(reg.hybrid(rules[1]), reg.budget(50)), **signals) == 4


def test_a_whole_loop_stops_inside_jit():
    """Descent on x² halves x at every step: |Δ| of x² falls below 1e-3 when 3/4 · 4^-n does, at n = 5."""
    rule = reg.small_update(1e-3)

    def body(carry):
        x, state, steps = carry
        return x / 2, rule.update(state, loss=x**2), steps + 1

    _, state, steps = jax.lax.while_loop(lambda carry: ~carry[1].stop, body, (jnp.array(1.0), rule.init(), 0))
    assert state.stop
    assert steps == 7  # the losses 4^0 … 4^-6; 4^-5 - 4^-6 = 7.3e-4 is the first small change


# Label noise.


def test_label_noise_changes_the_stated_share_to_every_other_class():
    labels = jax.random.randint(jax.random.key(0), (20_000,), 0, 5)
    noisy = reg.label_noise(jax.random.key(1), labels, 0.3, 5)
    assert noisy.dtype == labels.dtype
    changed = noisy != labels
    assert float(changed.mean()) == pytest.approx(0.3, abs=5 * (0.3 * 0.7 / 20_000) ** 0.5)  # five standard errors
    shift = np.bincount(np.asarray((noisy - labels) % 5)[np.asarray(changed)], minlength=5) / changed.sum()
    np.testing.assert_allclose(shift, [0, 0.25, 0.25, 0.25, 0.25], atol=5 * (0.25 * 0.75 / 6_000) ** 0.5)
    assert noisy.min() >= 0
    assert noisy.max() < 5


@pytest.mark.parametrize(("rate", "share"), [(0.0, 0.0), (1.0, 1.0)])
def test_label_noise_at_its_ends(rate, share):
    labels = jnp.arange(100) % 3
    assert float((reg.label_noise(jax.random.key(0), labels, rate, 3) != labels).mean()) == share


def test_label_noise_with_a_key_for_each_label_does_not_depend_on_the_batch():
    labels, keys = jnp.arange(12) % 3, jax.random.split(jax.random.key(0), 12)
    noise = jax.jit(lambda key, labels: reg.label_noise(key, labels, 0.5, 3))
    whole = noise(keys, labels)
    np.testing.assert_array_equal(whole, jnp.concatenate([noise(keys[:4], labels[:4]), noise(keys[4:], labels[4:])]))
    np.testing.assert_array_equal(whole, noise(jax.random.key(0), labels))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: reg.ema_update(jnp.ones(1), jnp.ones(1), 1.5), r"decay must lie in \[0, 1\], got 1.5"),
        (lambda: reg.budget(0), "max_steps must lie in"),
        (lambda: reg.small_update(0.0), "min_change must lie in"),
        (lambda: reg.small_update(0.1, patience=0), "patience must lie in"),
        (lambda: reg.validation(0), "patience must lie in"),
        (lambda: reg.validation(1, min_delta=-1.0), "min_delta must lie in"),
        (lambda: reg.hybrid(), "at least one stopping rule"),
        (lambda: reg.label_noise(jax.random.key(0), jnp.arange(2), 1.5, 2), "rate must lie in"),
        (lambda: reg.label_noise(jax.random.key(0), jnp.arange(2), 0.5, 1), "num_classes must lie in"),
        (lambda: reg.l2_penalty({"kernel": jnp.ones((2, 2))}, "kernel"), "did you mean 'kernels'"),
    ],
)
def test_nonsense_is_refused_with_what_is_allowed(call, words):
    with pytest.raises(UsageError, match=words):
        call()
