"""Decoupled direction and norm: it closes in on the boundary from outside, and keeps the nearest point it met."""

import jax.numpy as jnp
import numpy as np
import pytest
from affine_models import affine, boundary_distances, four_classes
from attack_contract import assert_in_budget, assert_keeps_the_contract, quadrants, small_network, trained_params

from dl_core.attacks.ddn import ddn
from dl_core.errors import UsageError


@pytest.fixture
def affine_problem():
    return four_classes()


def test_ddn_keeps_the_contract():
    attack = lambda *problem, **options: ddn(*problem, steps=12, **options)
    assert_keeps_the_contract(attack, eps=None, norm="l2")


@pytest.mark.parametrize("loss", ["cross_entropy", "margin"])
def test_on_an_affine_model_it_closes_in_on_the_nearest_boundary_from_outside(affine_problem, loss):
    params, images, labels = affine_problem
    if loss == "cross_entropy":  # its gradient leads to the nearest boundary only where there is but one
        params, labels = {"w": params["w"][:, :2]}, affine(params, images)[:, :2].argmax(axis=1).astype(jnp.int32)
    nearest = boundary_distances(params, images, labels).min(axis=1)
    options = [{"steps": 10}, {"steps": 60}, {"steps": 400}, {"steps": 400, "gamma": 0.01}]
    results = [ddn(affine, params, images, labels, loss=loss, **given) for given in options]
    assert all(result.success.all() for result in results)
    ratios = [np.asarray(result.distance) / nearest for result in results]
    assert min(ratio.min() for ratio in ratios) >= 1 - 1e-3  # the logits are of order 1 and known to 1e-6
    medians = list(map(np.median, ratios))
    assert medians == sorted(medians, reverse=True)
    assert ratios[2].max() < 1.05  # the radius changes by 5 % a step, and no better is to be expected
    assert ratios[3].max() < 1.01  # by 1 % likewise


def test_a_targeted_attack_ends_in_the_target(affine_problem):
    params, images, labels = affine_problem
    target = (labels + 1) % 4
    result = ddn(affine, params, images, labels, target=target)
    assert result.success.all()
    np.testing.assert_array_equal(affine(params, result.adversarial).argmax(axis=1), target)
    between = boundary_distances(params, images, labels)[np.arange(8), target]
    assert (result.distance >= between * (1 - 1e-3)).all()  # it must cross that boundary at least


def test_a_trained_network_is_fooled_within_the_bounds():
    params = trained_params()
    images, labels = quadrants(8)
    result = ddn(small_network, params, images, labels)
    assert_in_budget(result, images, np.inf, "l2")
    assert result.success.all()
    np.testing.assert_array_equal(small_network(params, result.adversarial).argmax(axis=1) != labels, True)
    short = ddn(small_network, params, images, labels, steps=20)
    assert result.distance.mean() < short.distance.mean()


def test_images_that_are_misclassified_already_cost_one_query_and_stay(affine_problem):
    params, images, labels = affine_problem
    mixed = jnp.where(jnp.arange(8) < 4, (labels + 1) % 4, labels)
    result = ddn(affine, params, images, mixed)
    np.testing.assert_array_equal(result.adversarial[:4], images[:4])
    assert result.success.all()
    for counts, first, second in ((result.distance > 0, 0, 1), (result.steps, 0, 100), (result.queries, 1, 101)):
        np.testing.assert_array_equal(counts, [first] * 4 + [second] * 4)


@pytest.mark.parametrize("loss", ["cross_entropy", "margin"])
def test_without_a_gradient_the_image_is_left(affine_problem, loss):
    _, images, labels = affine_problem
    constant = lambda params, x: jnp.zeros((len(x), 4))  # the lowest class is predicted
    result = ddn(constant, None, images, jnp.zeros_like(labels), loss=loss, steps=3)
    np.testing.assert_array_equal(result.adversarial, images)
    assert not result.success.any()
    assert not result.distance.any()


def test_a_saturated_network_needs_the_margin(affine_problem):
    """A difference of logits in the thousands: the softmax is exactly 1, and the cross-entropy has no gradient."""
    params, images, labels = affine_problem
    sure = {"w": 1e5 * params["w"]}
    assert not ddn(affine, sure, images, labels, steps=30).success.any()
    assert ddn(affine, sure, images, labels, steps=30, loss="margin").success.all()


def test_images_of_bytes_stay_images_of_bytes(affine_problem):
    params, images, _ = affine_problem
    images = jnp.round(images * 255) / 255
    labels = affine(params, images).argmax(axis=1).astype(jnp.int32)
    result = ddn(affine, params, images, labels, levels=256)
    assert result.success.all()
    stored = np.asarray(jnp.round(result.adversarial * 255).astype(jnp.uint8))
    np.testing.assert_allclose(result.adversarial, stored / np.float32(255), atol=1e-7)  # rounding of the division
    again = affine(params, jnp.asarray(stored / np.float32(255)))
    assert (again.argmax(axis=1) != labels).all()
    assert (result.distance >= boundary_distances(params, images, labels).min(axis=1) * (1 - 1e-3)).all()


def test_the_unit_of_the_pixels_does_not_matter(affine_problem):
    params, images, labels = affine_problem
    faint = {"w": params["w"] / 256}
    scaled = ddn(affine, faint, 256 * images, labels, bounds=(0.0, 256.0), steps=30)
    # a power of two rounds nothing
    plain = ddn(affine, params, images, labels, steps=30)
    np.testing.assert_allclose(scaled.distance, 256 * plain.distance, rtol=1e-4)


def test_images_are_attacked_one_by_one(affine_problem):
    params, images, labels = affine_problem
    whole, half = (ddn(affine, params, images[part], labels[part], steps=30) for part in (slice(8), slice(4, 8)))
    np.testing.assert_allclose(whole.adversarial[4:], half.adversarial, atol=1e-5)  # sums in another order


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"init_eps": 0.0}, "init_eps must be above 0.*got 0.0"),
        ({"gamma": 1.0}, r"gamma must be in \(0, 1\), got 1.0"),
        ({"gamma": 0.0}, r"gamma must be in \(0, 1\), got 0.0"),
        ({"levels": 1}, "levels must be at least 2, got 1"),
        ({"loss": "hinge"}, "unknown loss 'hinge'"),
        ({"target": 9}, r"target must be in \[0, 4\), got 9"),
        ({"loop": "fast"}, "unknown loop 'fast'"),
    ],
)
def test_nonsense_is_refused_with_the_value_given(affine_problem, options, words):
    with pytest.raises(UsageError, match=words):
        ddn(affine, *affine_problem, **options)
