"""Learning-rate schedules: their values at the corners, warm-up, and the plateau rule driven as a loop drives it."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest

from dl_core.errors import UsageError
from dl_core.optim import SCHEDULES, inverse_power_decay, optimizer, reduce_on_plateau, schedule, step_decay, warm_up


def test_step_decay():
    """W14: η_t = η_0 c^⌊t/K⌋ at t = 0, K-1, K, 2K."""
    rate = step_decay(0.8, factor=0.5, every=10)
    np.testing.assert_allclose([rate(t) for t in (0, 9, 10, 19, 20)], [0.8, 0.8, 0.4, 0.4, 0.2], rtol=1e-6)


def test_polynomial_decay():
    """W14 (course notes, eq. 20): η_t = η_0 / t^α at t = 1, K-1, K, 2K; at t = 0, where it has no value, η_0."""
    rate = inverse_power_decay(0.8, power=0.5)
    np.testing.assert_allclose([rate(t) for t in (0, 1, 9, 16, 64)], [0.8, 0.8, 0.8 / 3, 0.2, 0.1], rtol=1e-6)


def test_warm_up():
    """W14: slower during the first K steps, then the other schedule from its start: t = 0, K-1, K, 2K."""
    rate = warm_up(step_decay(0.8, factor=0.5, every=10), 0.8, warmup_steps=10)
    np.testing.assert_allclose([rate(t) for t in (0, 5, 9, 10, 19, 20)], [0, 0.4, 0.72, 0.8, 0.8, 0.4], rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "options", "middle", "last"),
    [
        ("constant", {}, 0.5, 0.5),
        ("step", {"factor": 0.1, "every": 40}, 0.05, 0.005),
        ("step", {}, 0.05, 0.0005),  # a tenth after every third of the run
        ("polynomial", {"power": 1.0}, 0.5 / 50, 0.5 / 100),
        ("linear", {}, 0.25, 0.0),
        ("linear", {"end_factor": 0.5}, 0.375, 0.25),
        ("exponential", {}, 0.05, 0.005),
        ("exponential", {"factor": 0.5, "every": 50}, 0.25, 0.125),
        ("cosine", {}, 0.25, 0.0),
        ("cosine", {"end_factor": 0.2}, 0.3, 0.1),
        ("plateau", {"factor": 0.5, "patience": 3}, 0.5, 0.5),
    ],
)
@pytest.mark.parametrize("warmup_steps", [0, 20])
def test_values_at_the_start_the_middle_and_the_end(name, options, middle, last, warmup_steps):
    rate = schedule(name, learning_rate=0.5, total_steps=100 + warmup_steps, warmup_steps=warmup_steps, **options)
    values = [rate(warmup_steps + t) for t in (0, 50, 100)]
    np.testing.assert_allclose(values, [0.5, middle, last], rtol=1e-5, atol=1e-8)
    if warmup_steps:
        np.testing.assert_allclose([rate(t) for t in (0, 10)], [0.0, 0.25], rtol=1e-6)


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_takes_ints_arrays_and_traced_steps(name):
    rate = schedule(name, learning_rate=0.5, total_steps=20, warmup_steps=5)
    one_by_one = [float(rate(t)) for t in range(21)]
    compiled = jax.vmap(jax.jit(rate))(jnp.arange(21))
    np.testing.assert_allclose(compiled, one_by_one, atol=1e-7)  # XLA divides by a constant with one rounding more
    np.testing.assert_allclose(jnp.broadcast_to(rate(jnp.arange(21)), 21), one_by_one, atol=1e-7)
    after = np.array(compiled[5:])
    assert np.isfinite(after).all()
    assert (np.diff(after) <= 0).all()
    assert (after >= 0).all()


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_run_that_is_all_warm_up_climbs_to_the_rate(name):
    rate = schedule(name, learning_rate=0.5, total_steps=5, warmup_steps=5)
    np.testing.assert_allclose([rate(0), rate(5)], [0.0, 0.5], rtol=1e-6)


def test_the_optimizer_uses_the_rate_of_its_own_step():
    rate = schedule("linear", learning_rate=1.0, total_steps=4)
    tx = optimizer("sgd", rate)
    state, steps = tx.init(jnp.zeros(())), []
    for _ in range(5):
        update, state = tx.update(jnp.ones(()), state)
        steps.append(float(-update))
    np.testing.assert_allclose(steps, [1.0, 0.75, 0.5, 0.25, 0.0], rtol=1e-6)


def test_a_schedule_is_built_from_a_config():
    config = ml_collections.ConfigDict({"name": "cosine", "learning_rate": 0.1, "total_steps": 10, "warmup_steps": 2})
    assert float(schedule(**config)(2)) == pytest.approx(0.1)


# The plateau rule.


def scales(rule, values):
    state, out = rule.init({}), []
    for value in values:
        _, state = rule.update({}, state, value=value)
        out.append(float(state.scale))
    return out


def test_the_scale_falls_after_patience_validations_without_improvement():
    rule = reduce_on_plateau(factor=0.5, patience=2)
    values = [1.0, 0.9, 0.9, 0.9, 0.9, 0.8, 0.85, 0.85]
    np.testing.assert_allclose(scales(rule, values), [1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.25])


def test_the_scale_stops_at_its_floor_and_pauses_during_the_cooldown():
    np.testing.assert_allclose(
        scales(reduce_on_plateau(factor=0.1, patience=1, min_scale=0.05), [1.0] * 5), [1, 0.1, 0.05, 0.05, 0.05]
    )
    np.testing.assert_allclose(
        scales(reduce_on_plateau(factor=0.5, patience=1, cooldown=2), [1.0] * 7), [1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25]
    )


def test_an_improvement_too_small_or_a_nan_does_not_count():
    assert scales(reduce_on_plateau(factor=0.5, patience=1, rtol=0.1), [1.0, 0.95])[-1] == 0.5
    assert scales(reduce_on_plateau(factor=0.5, patience=1, rtol=0.1), [1.0, 0.85])[-1] == 1.0
    assert scales(reduce_on_plateau(factor=0.5, patience=1), [1.0, float("nan")])[-1] == 0.5


def test_a_training_loop_with_a_plateau_schedule():
    """The plateau state is part of the training state: read in every step, moved once per validation."""
    tx, plateau = optimizer("sgd", schedule("plateau", learning_rate=0.1, total_steps=6)), reduce_on_plateau(patience=1)

    @jax.jit
    def train_step(state):
        params, opt_state, plateau_state = state
        updates, opt_state = tx.update(jnp.ones(()), opt_state, params)
        updates = jax.tree.map(lambda update: plateau_state.scale * update, updates)
        return optax.apply_updates(params, updates), opt_state, plateau_state

    @jax.jit
    def after_validation(state, loss):
        params, opt_state, plateau_state = state
        _, plateau_state = plateau.update({}, plateau_state, value=loss)
        return params, opt_state, plateau_state

    params = jnp.zeros(())
    state, path = (params, tx.init(params), plateau.init(params)), []
    for validation_loss in (1.0, 1.0, 1.0):
        for _ in range(2):
            state = train_step(state)
            path.append(float(state[0]))
        state = after_validation(state, validation_loss)
    np.testing.assert_allclose(-np.diff(path, prepend=0.0), [0.1, 0.1, 0.1, 0.1, 0.01, 0.01], rtol=1e-5)
    assert train_step._cache_size() == 1


def test_the_scale_is_float32_whatever_the_parameters_are():
    """0.1 ** n in bfloat16 is off by up to 0.4 %, and would drift further with every fall."""
    rule = reduce_on_plateau(patience=1)
    assert rule.init({"kernel": jnp.ones((2, 2), jnp.bfloat16)}).scale.dtype == jnp.float32
    np.testing.assert_allclose(scales(rule, [1.0] * 5), [1, 1e-1, 1e-2, 1e-3, 1e-4], rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("cosin", {}, "unknown schedule 'cosin'; did you mean .*'cosine'"),
        (
            "cosine",
            {"every": 3},
            "'cosine' has no option 'every'; it accepts end_factor, .*belongs to step, exponential",
        ),
        ("constant", {"power": 1.0}, "'constant' has no option 'power'; it accepts learning_rate, total_steps"),
        ("step", {"factor": 1.5}, r"factor must lie in \(0, 1\], got 1.5"),
        ("step", {"every": 0}, r"every must lie in \[1, inf\), got 0"),
        ("polynomial", {"power": -1.0}, "power must lie in"),
        ("linear", {"end_factor": 2.0}, "end_factor must lie in"),
        ("exponential", {"factor": 0.0}, "factor must lie in"),
        ("plateau", {"patience": 0}, "patience must lie in"),
        ("constant", {"learning_rate": -1.0}, "learning_rate must lie in"),
        ("constant", {"total_steps": 0}, "total_steps must lie in"),
        ("constant", {"warmup_steps": 11}, r"warmup_steps must lie in \[0, 10\], got 11"),
    ],
)
def test_nonsense_is_refused_with_what_is_allowed(name, options, words):
    with pytest.raises(UsageError, match=words):
        schedule(name, **{"learning_rate": 0.1, "total_steps": 10, **options})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"factor": 1.0}, "factor must lie in"),
        ({"patience": 0}, "patience must lie in"),
        ({"cooldown": -1}, "cooldown must lie in"),
        ({"min_scale": 2.0}, "min_scale must lie in"),
        ({"rtol": 0.0}, "one of them must be positive"),
    ],
)
def test_a_nonsense_plateau_is_refused(options, words):
    with pytest.raises(UsageError, match=words):
        reduce_on_plateau(**options)
