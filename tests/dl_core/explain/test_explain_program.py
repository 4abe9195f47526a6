"""A model read as a list of operations: what it computes, what depends on what, which operations belong together."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from explanation_contract import small_images, small_network, small_params

from dl_core.errors import UsageError
from dl_core.explain.canonical import relevance_steps
from dl_core.explain.program import compute, cotangents, evaluate, evaluate_all, evaluate_part, primitives_inside, read
from dl_core.explain.structure import Structure


@pytest.mark.parametrize("open_rules", [False, True])
def test_a_program_computes_what_the_model_computes(open_rules):
    params, images = small_params(), small_images(2)
    program = read(small_network, params, images, open_rules=open_rules)
    np.testing.assert_allclose(evaluate(program, params, images), small_network(params, images), rtol=1e-5)
    assert ("custom_jvp_call" in {operation.name for operation in program.operations}) is not open_rules


def test_operations_know_their_place():
    program = read(small_network, small_params(), small_images(2))
    scopes = [operation.scope for operation in program.operations if operation.name == "conv_general_dilated"]
    assert scopes == ["conv1", "conv2"]


def test_operations_can_be_replaced():
    params, images = small_params(), small_images(2)
    program = read(small_network, params, images)
    silent = lambda operation, operands: (
        [0 * result for result in compute(operation, operands)] if operation.scope == "conv2" else None
    )
    output = evaluate(program, params, images, silent)
    np.testing.assert_allclose(output, small_network(params | {"conv2": 0 * params["conv2"]}, images), rtol=1e-5)


def test_a_part_runs_again_with_other_values():
    program = read(lambda p, x: jnp.exp(x * p) + 1, 2.0, jnp.ones((1, 1)))
    values = evaluate_all(program, 2.0, jnp.ones((1, 1)))
    found = evaluate_part(program.operations[-2:], {program.operations[-3].results[0]: jnp.zeros((1, 1))}, values)
    assert found[program.outputs[0]] == 2
    np.testing.assert_allclose(values[program.outputs[0]], np.exp(2) + 1, rtol=1e-6)


def test_dependence_on_the_inputs():
    """Of params alone is nothing a layer; what `stop_gradient` cuts off, or a mask is, carries nothing."""

    def apply_fn(params, x):
        w = jnp.exp(params)
        return x @ w + jax.lax.stop_gradient(jnp.sin(x)) + (x > 0).astype(x.dtype)

    program = read(apply_fn, jnp.ones((2, 2)), jnp.ones((1, 2)))
    structure = Structure(program)
    results = {operation.name: operation.results[0] for operation in program.operations}
    assert results["exp"] not in program.dependent
    assert results["sin"] in structure.reached
    assert results["stop_gradient"] in program.dependent - structure.reached
    assert results["gt"] in structure.reached - structure.carrying
    assert results["dot_general"] in structure.carrying


def test_primitives_inside_of_calls():
    program = read(lambda p, x: jax.nn.relu(x), None, jnp.ones((1, 2)))
    (operation,) = program.operations
    assert primitives_inside(operation) == {"max"}


def test_cotangents_have_the_type_of_what_they_belong_to():
    outputs = [jnp.ones(2, jnp.bfloat16), jnp.ones(3), jnp.arange(4)]
    half, nothing, whole = cotangents(outputs, [jnp.ones(2), None, None])
    assert half.dtype == jnp.bfloat16
    assert nothing.shape == (3,)
    assert not nothing.any()
    assert whole.dtype == jax.dtypes.float0


def kinds(apply_fn, params, x):
    steps = relevance_steps(Structure(read(apply_fn, params, x, open_rules=True)))
    return [step.kind for step in steps]


def test_batch_norm_and_what_comes_before_a_convolution_are_one_step_with_it():
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = jnp.pad((x - 0.5) / 0.25, ((0, 0), (1, 1), (1, 1), (0, 0)))
            x = nn.Conv(4, (3, 3), padding="VALID")(x)
            return nn.relu(nn.BatchNorm(use_running_average=True)(x)).mean(axis=(1, 2))

    x = jnp.ones((2, 6, 6, 3))
    variables = Block().init(jax.random.key(0), x)
    assert kinds(Block().apply, variables, x) == ["pass", "share", "pass", "linear"]  # 1/n, sum, ReLU, convolution


def test_batch_norm_before_relu_is_a_step_of_its_own():
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.BatchNorm(use_running_average=True)(nn.max_pool(x, (2, 2), (2, 2))))
            return nn.Dense(3)(x.reshape(len(x), -1))

    x = jnp.ones((2, 4, 4, 3))
    variables = Block().init(jax.random.key(0), x)
    assert kinds(Block().apply, variables, x) == ["linear", "pass", "share", "vjp"]


def test_a_scale_that_is_no_axis_of_the_weight_is_a_step_of_its_own():
    """A convolution with a weight of each output channel, then a window over the pixels."""
    window = np.hanning(6).astype(np.float32)[None, :, None, None] + 1

    def apply_fn(kernel, x, scale):
        x = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return (x * scale).reshape(len(x), -1)

    x, kernel = jnp.ones((2, 6, 6, 3)), jnp.ones((3, 3, 3, 4))
    by_channel = np.arange(1, 5, dtype=np.float32)[None, None, None]
    assert kinds(lambda kernel, x: apply_fn(kernel, x, by_channel), kernel, x) == ["vjp", "linear"]
    assert kinds(lambda kernel, x: apply_fn(kernel, x, window), kernel, x) == ["vjp", "pass", "linear"]


def test_a_primitive_that_no_step_covers_is_named():
    program = read(lambda p, x: jnp.cumprod(x, axis=1) @ p, jnp.ones((4, 2)), jnp.ones((1, 4)), open_rules=True)
    with pytest.raises(UsageError, match="no rule for the primitive 'cumprod'"):
        relevance_steps(Structure(program))
    steps = relevance_steps(Structure(program), unknown="gradient_x_input")
    assert [step.kind for step in steps] == ["linear", "unknown"]


def test_complex_numbers_have_no_relevance():
    program = read(lambda p, x: jnp.fft.rfft(x).real @ p, jnp.ones((3, 2)), jnp.ones((1, 4)), open_rules=True)
    with pytest.raises(UsageError, match="complex numbers, as 'real' takes"):
        relevance_steps(Structure(program), unknown="gradient_x_input")
