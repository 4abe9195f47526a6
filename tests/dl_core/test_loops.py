"""The two drivers of a loop: the same numbers, no second compilation, and the choice between them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from dl_core import loops
from dl_core.errors import UsageError

DRIVERS = ("host", "compiled", "unrolled")


def newton_step(square, root, scale):
    """One step towards the square root, which also returns the residual: carry and output differ in shape."""
    return 0.5 * (root + square / root) * scale, {"residual": root[0] ** 2 - square[0], "scale": scale}


@pytest.mark.parametrize("loop", ["auto", *DRIVERS])
def test_scan_agrees_with_lax_scan(loop):
    square, scales = jnp.array([2.0, 9.0]), jnp.linspace(1.0, 1.1, 7)
    step = functools.partial(newton_step, square)
    expected = jax.lax.scan(step, jnp.ones(2), scales)
    actual = loops.scan(step, jnp.ones(2), scales, loop=loop)
    # the same float32 operations; a fused loop may round a product and a sum together
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), actual, expected)
    assert jax.tree.structure(actual) == jax.tree.structure(expected)


@pytest.mark.parametrize("loop", DRIVERS)
def test_scan_without_xs_takes_length_steps(loop):
    carry, ys = loops.scan(lambda total, _: (total + 2, total), 0, length=5, loop=loop)
    assert int(carry) == 10
    np.testing.assert_array_equal(ys, [0, 2, 4, 6, 8])


@pytest.mark.parametrize("loop", DRIVERS)
def test_an_empty_scan_returns_empty_outputs(loop):
    carry, ys = loops.scan(lambda c, x: (c + x.sum(), x * 2), jnp.float32(3), jnp.zeros((0, 4)), loop=loop)
    assert float(carry) == 3
    assert ys.shape == (0, 4)


@pytest.mark.parametrize("loop", DRIVERS)
def test_random_keys_can_be_carried_and_returned(loop):
    def step(key, _):
        carried, returned = jax.random.split(key)
        return carried, returned

    carry, ys = loops.scan(step, jax.random.key(3), length=3, loop=loop)
    expected_carry, expected = jax.lax.scan(step, jax.random.key(3), length=3)
    np.testing.assert_array_equal(jax.random.key_data(ys), jax.random.key_data(expected))
    np.testing.assert_array_equal(jax.random.key_data(carry), jax.random.key_data(expected_carry))


@pytest.mark.parametrize("loop", DRIVERS)
def test_a_plain_step_is_traced_once_over_many_calls(loop):
    traces = []

    def step(carry, x):
        traces.append(None)
        return carry + x, carry

    carry = 0.0  # a Python scalar must not cost a second program
    for _ in range(3):
        carry, _ = loops.scan(step, carry, jnp.arange(4.0), loop=loop)
    assert float(carry) == 18
    assert len(traces) == 1


@pytest.mark.parametrize("loop", DRIVERS)
def test_a_partial_made_anew_is_traced_once(loop):
    traces = []

    def step(function, scale, carry, x):
        traces.append(None)
        return carry + scale * function(x), None

    for scale in (1.0, 2.0, 3.0):  # another array, a new Partial, the same functions
        made_anew = Partial(step, Partial(jnp.square), jnp.float32(scale))
        carry, _ = loops.scan(made_anew, jnp.float32(0), jnp.arange(3.0), loop=loop)
        assert float(carry) == scale * 5
    assert len(traces) == 1


def test_a_step_that_is_jitted_already_keeps_its_donation():
    step = jax.jit(lambda carry, x: (carry + x, None), donate_argnums=0)
    start = jnp.zeros(8)
    carry, _ = loops.scan(step, start, jnp.ones((3, 8)), loop="host")
    assert start.is_deleted()
    np.testing.assert_array_equal(carry, np.full(8, 3.0))


@pytest.mark.parametrize("loop", ["auto", *DRIVERS])
def test_while_loop_stops_when_the_condition_fails(loop):
    state = loops.while_loop(lambda s: s["x"] < 100, lambda s: {"x": s["x"] * 3}, {"x": 1}, max_steps=50, loop=loop)
    assert int(state["x"]) == 243  # the first power of three that is not below 100


@pytest.mark.parametrize("loop", DRIVERS)
@pytest.mark.parametrize("max_steps", [0, 1, 4])
def test_while_loop_never_takes_more_than_max_steps(loop, max_steps):
    state = loops.while_loop(lambda _: jnp.bool_(True), lambda s: s + 1, jnp.int32(0), max_steps=max_steps, loop=loop)
    assert int(state) == max_steps


@pytest.mark.parametrize("loop", DRIVERS)
def test_while_loop_traces_condition_and_step_once(loop):
    traces = []

    def step(limit, state):
        traces.append(None)
        return state + 1

    def condition(limit, state):
        traces.append(None)
        return state < limit

    for limit in (3, 5):
        bind = lambda function, limit=limit: Partial(function, jnp.int32(limit))
        state = loops.while_loop(bind(condition), bind(step), jnp.int32(0), max_steps=10, loop=loop)
        assert int(state) == limit
    assert len(traces) == 2


@pytest.mark.parametrize("loop", DRIVERS)
def test_while_loop_traces_plain_functions_once(loop):
    traces = []

    def step(state):
        traces.append(None)
        return state + 1

    condition = lambda state: state < 4
    for max_steps in (2, 3, 9):
        state = loops.while_loop(condition, step, jnp.int32(0), max_steps=max_steps, loop=loop)
        assert int(state) == min(4, max_steps)
    assert len(traces) == 1


def test_auto_is_a_host_loop_on_the_cpu_and_compiled_under_a_trace():
    assert loops.choose_driver("auto", {"x": jnp.zeros(3)}, None, np.zeros(2)) == "host"
    seen = {}

    def look(x):
        seen["leaf"] = loops.choose_driver("auto", x)
        seen["closure"] = loops.choose_driver("auto", np.zeros(2))  # only what the step closes over is traced
        return x

    jax.jit(look)(jnp.zeros(3))
    assert seen == {"leaf": "compiled", "closure": "compiled"}
    jax.vmap(lambda x: seen.update(vmap=loops.choose_driver("auto", x)))(jnp.zeros(3))
    assert seen["vmap"] == "compiled"


def test_loops_work_under_jit_vmap_and_grad():
    def power(base, exponent=5):
        return loops.scan(lambda c, _: (c * base, None), jnp.ones_like(base), length=exponent)[0]

    bases = jnp.array([1.0, 2.0, 3.0])
    np.testing.assert_allclose(jax.jit(jax.vmap(power))(bases), bases**5, rtol=1e-6)
    np.testing.assert_allclose(jax.grad(power)(2.0), 5 * 2.0**4, rtol=1e-6)


def test_while_loop_under_vmap_where_only_the_condition_is_traced():
    def count_to(limit):
        return loops.while_loop(lambda s: s < limit, lambda s: s + 1, jnp.int32(0), max_steps=10)

    np.testing.assert_array_equal(jax.vmap(count_to)(jnp.array([2, 7, 30])), [2, 7, 10])


def test_while_loop_under_vmap_counts_the_steps_taken_before_anything_was_traced():
    """The first condition is concrete; the step brings the traced amount into the state."""

    def add(amount):
        return loops.while_loop(lambda s: s < 100, lambda s: s + amount, jnp.int32(0), max_steps=3)

    np.testing.assert_array_equal(jax.vmap(add)(jnp.array([1, 5, 60])), [3, 15, 120])


@pytest.mark.parametrize("loop", DRIVERS)
@pytest.mark.parametrize(
    "step",
    [lambda c, x: (c.astype(jnp.int32), None), lambda c, x: (jnp.stack([c, c]), None), lambda c, x: ((c, c), None)],
    ids=["dtype", "shape", "structure"],
)
def test_a_step_that_changes_the_carry_is_refused_by_both_drivers(step, loop):
    with pytest.raises(TypeError, match="carry"):
        loops.scan(step, jnp.float32(1), jnp.arange(3.0), loop=loop)


def test_what_cannot_be_meant_is_refused():
    step = lambda c, x: (c, x)
    with pytest.raises(UsageError, match="did you mean 'compiled'"):
        loops.scan(step, 0, length=3, loop="compile")
    with pytest.raises(ValueError, match=r"\[3, 4\]"):
        loops.scan(step, 0, jnp.zeros(3), length=4)
    with pytest.raises(ValueError, match="neither"):
        loops.scan(step, 0)


def test_the_host_loop_keeps_a_sharded_batch_sharded():
    """Eight devices, each step a sum over all of them: many steps in flight must neither hang nor change the result."""
    mesh = jax.sharding.Mesh(jax.devices(), ("data",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "data"))
    xs = jax.device_put(jnp.arange(400.0).reshape(50, 8), sharding)
    carry, ys = loops.scan(lambda c, x: (c + x.sum(), 2 * x), jnp.float32(0), xs)
    assert float(carry) == 400 * 399 / 2
    np.testing.assert_array_equal(ys, 2 * np.asarray(xs))
