"""The boundary attack: decisions are all it sees, the budget is hard, and every step leads nearer."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attack_contract import assert_keeps_the_contract, quadrants, small_network, trained_params

from dl_core.attacks.boundary import boundary
from dl_core.errors import UsageError


def attack(*problem, **options):
    return boundary(*problem, **{"key": jax.random.key(0), **options})


def decisions_only(params, images):
    """The class that the network decides for, and nothing else."""
    return 10 * jax.nn.one_hot(small_network(params, images).argmax(axis=1), 4) - 5


def starts_for(images, labels, target=None):
    """For each image one of another class, or of the target."""
    others, _ = quadrants(64, seed=7)
    predicted = np.asarray(small_network(trained_params(), others).argmax(axis=1))
    wanted = [np.flatnonzero(predicted != c) for c in np.asarray(labels)]
    if target is not None:
        wanted = [np.flatnonzero(predicted == c) for c in np.asarray(target)]
    return others[np.array([candidates[i % len(candidates)] for i, candidates in enumerate(wanted)])]


@pytest.fixture(scope="module")
def quadrant_problem():
    return small_network, trained_params(), *quadrants(8)


def linear(weights, images):
    score = images.reshape(len(images), -1) @ weights
    return jnp.stack([score, -score], axis=1)


@pytest.fixture(scope="module")
def linear_problem():
    """Two classes with a plane between them, so far from the bounds that the nearest point lies inside."""
    keys = jax.random.split(jax.random.key(1))
    weights = jax.random.normal(keys[0], (16,)) / 4
    images = 0.5 + 0.2 * jax.random.uniform(keys[1], (8, 4, 4, 1), minval=-1)
    weights = weights - weights.mean()  # the plane passes through the grey image
    labels = linear(weights, images).argmax(axis=1)
    return linear, weights, images, labels


def to_the_plane(weights, images, norm):
    score = np.abs(np.asarray(images).reshape(len(images), -1) @ np.asarray(weights))
    return score / (np.linalg.norm(weights) if norm == "l2" else np.abs(weights).sum())


def test_it_keeps_the_contract():
    # decisions flip with the last bit of a logit, and the walk then goes elsewhere: three of four images must agree
    assert_keeps_the_contract(functools.partial(attack, max_queries=40), eps=None, norm="l2", agreement=0.75)


def test_the_distance_to_a_plane_is_approached_from_above(linear_problem):
    exact = to_the_plane(*linear_problem[1:3], "l2")
    distances = np.stack([attack(*linear_problem, max_queries=budget).distance for budget in (30, 300, 2000)])
    assert (distances >= exact * (1 - 1e-5)).all()  # nothing is nearer than the plane; float32
    assert (np.diff(distances, axis=0) <= 0).all()
    assert np.median(distances[-1] / exact) < 1.03, distances[-1] / exact


def test_it_sees_decisions_only(quadrant_problem):
    _, *rest = quadrant_problem
    with_logits = attack(small_network, *rest, max_queries=150)
    without = attack(decisions_only, *rest, max_queries=150)
    jax.tree.map(np.testing.assert_array_equal, with_logits, without)


def test_a_budget_is_never_exceeded_and_each_image_may_have_its_own(quadrant_problem):
    budgets = jnp.array([1, 2, 3, 5, 9, 20, 60, 150])
    result = attack(*quadrant_problem, max_queries=budgets)
    assert (result.queries <= budgets).all()
    # an image goes on to the end of its budget; the first query is for the image itself
    np.testing.assert_array_equal(result.queries, np.where(result.success & (result.distance == 0), 1, budgets))
    alone = attack(*quadrant_problem, max_queries=60)
    np.testing.assert_array_equal(result.adversarial[6], alone.adversarial[6])


def test_more_steps_continue_the_same_run(quadrant_problem):
    """So that calls with 0, 10, … steps and one key give the path of the attack."""
    path = [attack(*quadrant_problem, steps=steps) for steps in (0, 10, 60, 150)]
    distances = np.stack([result.distance for result in path])
    assert (np.diff(distances, axis=0) <= 0).all()
    assert distances[-1].mean() < 0.95 * distances[0].mean()  # 0.93 measured
    assert [int(result.steps.max()) for result in path] == [0, 10, 60, 150]
    assert all(result.success.all() for result in path)


def test_the_budgets_can_be_mapped_over(quadrant_problem):
    budgets = jnp.array([20, 60])
    mapped = jax.vmap(lambda budget: attack(*quadrant_problem, max_queries=budget))(budgets)
    assert (mapped.queries <= budgets[:, None]).all()
    assert (mapped.distance[1] <= mapped.distance[0]).all()


def test_without_a_start_there_is_no_exception():
    """Foolbox stops the whole batch; here the image is returned as it was, and the budget is spent in looking."""
    never = lambda params, images: jnp.stack([jnp.ones(len(images)), jnp.zeros(len(images))], axis=1) - 0.5
    images, labels = jnp.full((2, 4, 4, 1), 0.5), jnp.array([0, 1])
    result = attack(never, None, images, labels, max_queries=12)
    np.testing.assert_array_equal(result.success, [False, True])  # the second is misclassified as it is
    np.testing.assert_array_equal(result.adversarial, images)
    np.testing.assert_array_equal(result.distance, [0, 0])
    np.testing.assert_array_equal(result.queries, [12, 1])
    np.testing.assert_array_equal(result.steps, [0, 0])


def test_a_start_that_is_not_adversarial_is_replaced_by_noise(quadrant_problem):
    images = quadrant_problem[2]
    result = attack(*quadrant_problem, starts=images, max_queries=40)
    assert result.success.all()


def test_a_target_is_reached_from_starts_of_its_class(quadrant_problem):
    _, params, images, labels = quadrant_problem
    target = (labels + 1) % 4
    starts = starts_for(images, labels, target)
    result = attack(*quadrant_problem, target=target, starts=starts, max_queries=150)
    assert result.success.all()
    np.testing.assert_array_equal(small_network(params, result.adversarial).argmax(axis=1), target)
    apart = jnp.linalg.norm((starts - images).reshape(8, -1), axis=1)
    assert (result.distance < 0.9 * apart).all()


def test_the_draws_of_an_image_do_not_depend_on_its_batch(quadrant_problem):
    apply_fn, params, images, labels = quadrant_problem
    keys = jax.random.split(jax.random.key(5), 8)
    whole = boundary(apply_fn, params, images, labels, key=keys, max_queries=30)
    half = boundary(apply_fn, params, images[4:], labels[4:], key=keys[4:], max_queries=30)
    np.testing.assert_allclose(whole.adversarial[4:], half.adversarial, atol=1e-5)


def test_half_precision_keeps_its_type_and_its_success(quadrant_problem):
    apply_fn, params, images, labels = quadrant_problem
    half, coarse = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), (params, images))
    result = attack(apply_fn, half, coarse, labels, max_queries=60)
    assert result.adversarial.dtype == jnp.bfloat16
    assert np.isfinite(np.asarray(result.adversarial, np.float32)).all()
    # at the boundary a network of half precision decides by how its program was compiled
    wrong = apply_fn(half, result.adversarial).argmax(axis=1) != labels
    assert (wrong == result.success).mean() >= 0.75


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_queries": 0}, "max_queries must be at least 1, got 0"),
        ({"max_queries": jnp.array([10, 20, 30])}, "one for each of the 8 images"),
        ({"steps": -1}, "steps must be at least 0, got -1"),
        ({"starts": jnp.zeros((3, 8, 8, 1))}, r"starts must be an image for each.*\[3, 8, 8, 1\]"),
        ({"starts": jnp.full((8, 8, 8, 1), 2.0)}, "starts must lie in bounds"),
        ({"spherical_step": -0.1}, "spherical_step must be at least 0, got -0.1"),
        ({"source_step": float("nan")}, "source_step must be at least 0, got nan"),
        ({"step_adaptation": 0.5}, "step_adaptation must be at least 1, got 0.5"),
        ({"norm": "linf"}, "unknown norm 'linf'"),
        ({"key": None}, "key is missing: the attack is a random walk"),
        ({"loop": "sometimes"}, "unknown loop 'sometimes'"),
    ],
)
def test_nonsense_is_refused_with_the_value_given(quadrant_problem, annotations_off, options, words):
    with pytest.raises(UsageError, match=words):
        attack(*quadrant_problem, **options)
