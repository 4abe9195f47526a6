"""Carlini and Wagner's attack: the nearest of all, from outside, with the confidence that was asked for."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
from affine_models import affine, boundary_distances, four_classes
from attack_contract import assert_in_budget, assert_keeps_the_contract, quadrants, small_network, trained_params

from dl_core.attacks.carlini_wagner import carlini_wagner
from dl_core.attacks.deepfool import deepfool
from dl_core.attacks.objectives import margin
from dl_core.errors import UsageError

QUICK = functools.partial(carlini_wagner, steps=40, binary_search_steps=5, learning_rate=0.01, initial_const=0.1)


@pytest.fixture
def affine_problem():
    return four_classes()


def test_carlini_wagner_keeps_the_contract():
    attack = lambda *problem: carlini_wagner(
        *problem, steps=10, binary_search_steps=2, learning_rate=0.1, initial_const=10.0
    )
    assert_keeps_the_contract(attack, eps=None, norm="l2", atol=1e-4)  # Adam divides by small gradients


def test_on_an_affine_model_it_closes_in_on_the_nearest_boundary_from_outside(affine_problem):
    nearest = boundary_distances(*affine_problem).min(axis=1)
    medians = []
    for steps in (20, 60, 300):
        result = QUICK(affine, *affine_problem, steps=steps, binary_search_steps=8, abort_early=False)
        assert result.success.all()
        ratio = np.asarray(result.distance) / nearest
        assert ratio.min() >= 1 - 1e-3  # the logits are of order 1 and known to 1e-6
        medians.append(np.median(ratio))
    assert medians[0] >= medians[1] >= medians[2]
    assert ratio.max() < 1.02  # it is a minimum, and what Adam leaves of the way is less than a step


def test_more_constants_never_do_worse(affine_problem):
    """The first constants of a longer search are those of a shorter one, and the best of all is kept."""
    results = [QUICK(affine, *affine_problem, binary_search_steps=rounds) for rounds in (1, 3, 6)]
    away = [np.where(result.success, result.distance, np.inf) for result in results]
    assert (away[1] <= away[0]).all()
    assert (away[2] <= away[1]).all()
    assert (away[2] < away[0]).any()


def test_each_image_has_a_constant_of_its_own(affine_problem):
    """Logits a thousand times smaller need a constant a thousand times larger, and an image beside them does not."""
    params, images, labels = affine_problem
    factors = jnp.where(jnp.arange(8) < 4, 1.0, 1e-3)
    mixed = lambda p, x: factors[:, None] * affine(p, x)
    nearest = boundary_distances(params, images, labels).min(axis=1)
    result = QUICK(mixed, params, images, labels, binary_search_steps=9, steps=100, abort_early=False)
    assert result.success.all()
    assert (np.asarray(result.distance) / nearest).max() < 1.1


def test_it_comes_nearer_than_deepfool_on_a_trained_network():
    params = trained_params()
    images, labels = quadrants(8)
    result = QUICK(small_network, params, images, labels, steps=100, abort_early=False)
    assert_in_budget(result, images, np.inf, "l2")
    assert result.success.all()
    assert (small_network(params, result.adversarial).argmax(axis=1) != labels).all()
    quick = deepfool(small_network, params, images, labels)
    assert result.distance.mean() < quick.distance.mean()


def test_a_targeted_attack_ends_in_the_target(affine_problem):
    params, images, labels = affine_problem
    target = (labels + 1) % 4
    result = QUICK(affine, params, images, labels, target=target)
    assert result.success.all()
    np.testing.assert_array_equal(affine(params, result.adversarial).argmax(axis=1), target)
    between = boundary_distances(params, images, labels)[np.arange(8), target]
    assert (result.distance >= between * (1 - 1e-3)).all()  # it must cross that boundary at least


@pytest.mark.parametrize("aimed", [False, True])
def test_success_has_the_confidence_that_was_asked_for(affine_problem, aimed):
    params, images, labels = affine_problem
    target = (labels + 1) % 4 if aimed else None
    plain, confident = (
        QUICK(affine, params, images, labels, target=target, confidence=confidence, learning_rate=0.05)
        for confidence in (0.0, 0.5)
    )
    assert confident.success.all()
    # what the compiled model called 0.5 may be off by the rounding of logits of order 1
    assert (margin(affine(params, confident.adversarial), labels, target) >= 0.5 - 1e-5).all()
    assert (confident.distance > plain.distance).all()


def test_early_abortion_saves_steps_and_costs_little(affine_problem):
    patient, hasty = (QUICK(affine, *affine_problem, steps=200, abort_early=abort) for abort in (False, True))
    np.testing.assert_array_equal(patient.steps, 200 * 5)
    np.testing.assert_array_equal(hasty.queries, 1 + hasty.steps)
    assert hasty.steps.mean() < 0.8 * patient.steps.mean()
    assert len(set(np.asarray(hasty.steps))) > 1  # each image stops by itself
    assert hasty.distance.mean() < 1.02 * patient.distance.mean()


def test_images_that_are_misclassified_already_cost_one_query_and_stay(affine_problem):
    params, images, labels = affine_problem
    mixed = jnp.where(jnp.arange(8) < 4, (labels + 1) % 4, labels)
    result = QUICK(affine, params, images, mixed, abort_early=False)
    np.testing.assert_array_equal(result.adversarial[:4], images[:4])
    assert result.success.all()
    for counts, first, second in ((result.distance > 0, 0, 1), (result.steps, 0, 200), (result.queries, 1, 201)):
        np.testing.assert_array_equal(counts, [first] * 4 + [second] * 4)


def test_without_a_gradient_the_image_is_left(affine_problem):
    """Sixty constants: ten times as large each, they would leave the range of float32 and make 0 · ∞."""
    _, images, labels = affine_problem
    constant = lambda params, x: jnp.zeros((len(x), 4))  # the lowest class is predicted
    result = carlini_wagner(constant, None, images, jnp.zeros_like(labels), steps=1, binary_search_steps=60)
    np.testing.assert_array_equal(result.adversarial, images)
    assert not result.success.any()
    assert not result.distance.any()


def test_pixels_at_the_bounds_and_a_rounding_beyond_them_give_no_nan(affine_problem):
    params, images, _ = affine_problem
    images = jnp.where(images > 0.5, 1 + 5e-7, 0.0)  # the change of variables is infinite there
    labels = affine(params, images).argmax(axis=1).astype(jnp.int32)
    result = QUICK(affine, params, images, labels, learning_rate=0.5, abort_early=False)
    assert np.isfinite(result.adversarial).all()
    assert result.success.all()
    assert float(result.adversarial.max()) <= 1
    assert float(result.adversarial.min()) >= 0


def test_the_unit_of_the_pixels_does_not_matter(affine_problem):
    params, images, labels = affine_problem
    faint = {"w": params["w"] / 256}
    scaled = QUICK(affine, faint, 256 * images, labels, bounds=(0.0, 256.0))
    plain = QUICK(affine, params, images, labels)
    np.testing.assert_allclose(scaled.distance, 256 * plain.distance, rtol=1e-2)  # Adam divides by small gradients


def test_images_are_attacked_one_by_one(affine_problem):
    params, images, labels = affine_problem
    whole, half = (QUICK(affine, params, images[part], labels[part]) for part in (slice(8), slice(4, 8)))
    np.testing.assert_allclose(whole.distance[4:], half.distance, rtol=1e-2)  # as above
    np.testing.assert_array_equal(whole.steps[4:], half.steps)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"binary_search_steps": 0}, "binary_search_steps must be at least 1, got 0"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0, got 0.0"),
        ({"initial_const": -1.0}, "initial_const must be above 0, got -1.0"),
        ({"confidence": -0.5}, "confidence must be at least 0, got -0.5"),
        ({"target": 9}, r"target must be in \[0, 4\), got 9"),
        ({"loop": "fast"}, "unknown loop 'fast'"),
    ],
)
def test_nonsense_is_refused_with_the_value_given(affine_problem, options, words):
    with pytest.raises(UsageError, match=words):
        carlini_wagner(affine, *affine_problem, **options)
