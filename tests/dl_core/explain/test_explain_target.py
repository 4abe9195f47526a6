"""What may be explained: targets in every form, and what is refused before anything compiles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from explanation_contract import small_images, small_network, small_params

from dl_core.errors import UsageError
from dl_core.explain.target import check_target, explained_output


@pytest.fixture(scope="module")
def problem():
    return small_params(), small_images(4)


def test_a_class_for_all_a_class_for_each_and_a_function_are_the_same(problem):
    logits = small_network(*problem)
    for target in (2, np.array(2), jnp.full(4, 2), np.full(4, 2), lambda logits: logits[:, 2]):
        checked = check_target(small_network, *problem, target)
        np.testing.assert_allclose(explained_output(small_network, *problem, checked), logits[:, 2], rtol=1e-6)


def test_targets_are_checked_where_they_are_known_and_mapped_where_not(problem):
    targets = jnp.array([[0, 1, 2, 3], [4, 3, 2, 1]])
    checked = jax.vmap(lambda target: check_target(small_network, *problem, target))(targets)
    np.testing.assert_array_equal(checked, targets)


@jax.custom_vjp
def straight_through(x):
    return jnp.round(x)


straight_through.defvjp(lambda x: (jnp.round(x), None), lambda _, g: (g,))


def test_a_derivative_of_ones_own_is_a_way_to_the_inputs(problem):
    quantised = lambda params, x: small_network(params, straight_through(x))
    check_target(quantised, *problem, 1)


def test_what_needs_no_gradient_is_not_asked_for_one(problem):
    check_target(lambda params, x: small_network(params, jnp.round(x)), *problem, 1, differentiable=False)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"target": 5}, r"must be in \[0, 5\), got 5"),
        ({"target": -1}, r"must be in \[0, 5\), got -1"),
        ({"target": jnp.array([0, 9, 1, 7])}, "got 7, 9"),
        ({"target": jnp.arange(3)}, "one class for each of the 4 examples"),
        ({"target": jnp.ones(4)}, "float32"),
        ({"target": lambda logits: logits.max()}, r"one number of each example, \[4\]"),
        ({"target": lambda logits: logits.argmax(axis=1)}, "'argmax', which has no gradient"),
        ({"apply_fn": lambda params, x: small_network(params, jnp.floor(x))}, "'floor', which has no gradient"),
        ({"apply_fn": lambda params, x: small_network(params, x).argmax(axis=1)}, r"needs logits \[batch, classes\]"),
        ({"apply_fn": lambda params, x: jnp.ones((4, 5))}, "through no operation at all"),
        ({"apply_fn": lambda params, x: {"logits": small_network(params, x)}}, "must return one array"),
        ({"inputs": jnp.ones((4, 8, 8, 3), jnp.uint8)}, "bytes become images"),
        ({"inputs": jnp.ones(4)}, r"floating numbers \[batch, ...\]"),
        ({"inputs": None}, "NoneType"),
    ],
)
@pytest.mark.usefixtures("annotations_off")
def test_what_cannot_be_explained_is_refused_before_anything_compiles(problem, change, words):
    params, images = problem
    given = {"apply_fn": small_network, "inputs": images, "target": 1, **change}
    with pytest.raises(UsageError, match=words):
        check_target(given["apply_fn"], params, given["inputs"], given["target"])
