"""HopSkipJump: decisions are all it sees, the budget is hard, and the boundary of a plane is found."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attack_contract import assert_keeps_the_contract, quadrants, small_network, trained_params

from dl_core.attacks.hop_skip_jump import hop_skip_jump
from dl_core.errors import UsageError


def attack(*problem, **options):
    return hop_skip_jump(*problem, **{"key": jax.random.key(0), "initial_gradient_queries": 20, **options})


@pytest.fixture(scope="module")
def quadrant_problem():
    return small_network, trained_params(), *quadrants(8)


def linear(weights, images):
    score = (images - 0.5).reshape(len(images), -1) @ weights
    return jnp.stack([score, -score], axis=1)


@pytest.fixture(scope="module")
def linear_problem():
    """Two classes with a plane between them, so far from the bounds that the nearest point lies inside."""
    keys = jax.random.split(jax.random.key(1))
    weights = jax.random.normal(keys[0], (16,)) / 4
    images = 0.5 + 0.2 * jax.random.uniform(keys[1], (8, 4, 4, 1), minval=-1)
    return linear, weights, images, linear(weights, images).argmax(axis=1)


def test_it_keeps_the_contract():
    # decisions flip with the last bit of a logit, and the walk then goes elsewhere: three of four images must agree
    short = functools.partial(attack, max_queries=60, gamma=10.0)
    assert_keeps_the_contract(short, eps=None, norm="l2", agreement=0.75, atol=1e-4)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_the_distance_to_a_plane_is_approached_from_above(linear_problem, norm):
    _, weights, images, _ = linear_problem
    score = np.abs(np.asarray(images - 0.5).reshape(8, -1) @ np.asarray(weights))
    exact = score / (np.linalg.norm(weights) if norm == "l2" else np.abs(weights).sum())
    results = [attack(*linear_problem, norm=norm, max_queries=budget) for budget in (30, 300, 2000)]
    distances = np.stack([result.distance for result in results])
    assert (distances >= exact * (1 - 1e-5)).all()  # nothing is nearer than the plane; float32
    assert (np.diff(distances, axis=0) <= 0).all()
    # the sign of an estimated gradient is wrong where a weight is near zero, so that "linf" stays further away
    assert np.median(distances[-1] / exact) < {"l2": 1.03, "linf": 1.15}[norm], distances[-1] / exact


def test_it_sees_decisions_only(quadrant_problem):
    decisions = lambda params, x: 10 * jax.nn.one_hot(small_network(params, x).argmax(axis=1), 4) - 5
    _, *rest = quadrant_problem
    with_logits = attack(small_network, *rest, max_queries=150)
    without = attack(decisions, *rest, max_queries=150)
    assert int(with_logits.steps.min()) >= 2
    jax.tree.map(np.testing.assert_array_equal, with_logits, without)


def test_a_budget_is_never_exceeded_and_each_image_may_have_its_own(quadrant_problem):
    budgets = jnp.array([1, 2, 3, 5, 9, 40, 80, 150])
    result = attack(*quadrant_problem, max_queries=budgets)
    assert (result.queries <= budgets).all()
    assert (result.queries >= jnp.minimum(budgets, 5)).all()
    alone = attack(*quadrant_problem, max_queries=80)
    np.testing.assert_array_equal(result.adversarial[6], alone.adversarial[6])
    np.testing.assert_array_equal(result.queries[6], alone.queries[6])


def test_every_query_is_counted(quadrant_problem):
    """Against a model that counts how often it is asked, for one image and one direction at a time."""
    apply_fn, params, images, labels = quadrant_problem
    asked = []

    def counting(params, images):
        jax.debug.callback(lambda: asked.append(len(images)))
        return apply_fn(params, images)

    options = {"max_queries": 70, "initial_gradient_queries": 10, "internal_batch_size": 1, "loop": "host"}
    result = attack(counting, params, images[:1], labels[:1], **options)
    jax.effects_barrier()
    assert sum(asked) == int(result.queries[0])


def test_the_directions_do_not_depend_on_how_many_are_asked_at_once(quadrant_problem):
    whole = attack(*quadrant_problem, steps=1, gamma=10.0)
    pieces = attack(*quadrant_problem, steps=1, gamma=10.0, internal_batch_size=8 * 7)
    np.testing.assert_array_equal(whole.queries, pieces.queries)
    np.testing.assert_allclose(whole.adversarial, pieces.adversarial, atol=1e-4)  # sums in another order


def test_more_steps_continue_the_same_run(quadrant_problem):
    path = [attack(*quadrant_problem, steps=steps) for steps in (0, 1, 3)]
    distances = np.stack([result.distance for result in path])
    assert (np.diff(distances, axis=0) <= 0).all()
    assert distances[-1].mean() < 0.9 * distances[0].mean()
    assert [int(result.steps.max()) for result in path] == [0, 1, 3]


def test_without_a_start_there_is_no_exception():
    never = lambda params, images: jnp.stack([jnp.ones(len(images)), jnp.zeros(len(images))], axis=1) - 0.5
    images, labels = jnp.full((2, 4, 4, 1), 0.5), jnp.array([0, 1])
    result = attack(never, None, images, labels, max_queries=12)
    np.testing.assert_array_equal(result.success, [False, True])  # the second is misclassified as it is
    np.testing.assert_array_equal(result.adversarial, images)
    np.testing.assert_array_equal(result.distance, [0, 0])
    np.testing.assert_array_equal(result.queries, [12, 1])


def test_a_target_is_reached_from_starts_of_its_class(quadrant_problem):
    apply_fn, params, images, labels = quadrant_problem
    others, _ = quadrants(64, seed=7)
    predicted = np.asarray(apply_fn(params, others).argmax(axis=1))
    target = (labels + 1) % 4
    starts = others[np.array([np.flatnonzero(predicted == c)[0] for c in np.asarray(target)])]
    result = attack(*quadrant_problem, target=target, starts=starts, max_queries=150)
    assert result.success.all()
    np.testing.assert_array_equal(apply_fn(params, result.adversarial).argmax(axis=1), target)
    assert (result.distance < 0.8 * jnp.linalg.norm((starts - images).reshape(8, -1), axis=1)).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_queries": 0}, "max_queries must be at least 1, got 0"),
        ({"max_queries": 10.5}, "max_queries must be a whole number"),
        ({"initial_gradient_queries": 0}, "initial_gradient_queries must be at least 1, got 0"),
        ({"max_gradient_queries": 0}, "max_gradient_queries must be at least 1, got 0"),
        ({"gamma": -1.0}, "gamma must be at least 0, got -1"),
        ({"internal_batch_size": 0}, "internal_batch_size must be at least 1, got 0"),
        ({"norm": "l1"}, "unknown norm 'l1'"),
        ({"key": None}, "key is missing: the directions are random"),
        ({"starts": jnp.zeros((8, 8, 8))}, "starts must be an image for each"),
    ],
)
def test_nonsense_is_refused_with_the_value_given(quadrant_problem, annotations_off, options, words):
    with pytest.raises(UsageError, match=words):
        attack(*quadrant_problem, **options)
