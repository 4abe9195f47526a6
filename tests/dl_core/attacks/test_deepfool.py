"""DeepFool: exact on affine models, indifferent to the scale of the logits, and silent about what it cannot find."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from affine_models import affine, boundary_distances
from attack_contract import (
    assert_in_budget,
    assert_keeps_the_contract,
    quadrants,
    small_network,
    trained_params,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from dl_core.attacks.deepfool import deepfool
from dl_core.errors import UsageError

NORMS = ("l2", "linf")


def affine_problem(seed=0, classes=5):
    """Images near the middle of wide bounds, which are then never met, and the classes that are predicted."""
    keys = jax.random.split(jax.random.key(seed), 3)
    steepness = jnp.linspace(0.3, 2, classes)[None]  # so that the second highest logit is not always the nearest
    params = {"w": steepness * jax.random.normal(keys[0], (18, classes)), "b": jax.random.normal(keys[1], (classes,))}
    images = jax.random.uniform(keys[2], (8, 3, 3, 2), minval=0.45, maxval=0.55)
    return params, images, affine(params, images).argmax(axis=1).astype(jnp.int32)


def test_deepfool_keeps_the_contract():
    attack = lambda *problem, **options: deepfool(*problem, steps=10, **options)
    assert_keeps_the_contract(attack, eps=None, norm="l2")


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("overshoot", [0.0, 0.02, 0.5])
def test_on_an_affine_model_one_step_ends_just_beyond_the_nearest_boundary(norm, overshoot):
    params, images, labels = affine_problem()
    result = deepfool(affine, params, images, labels, norm=norm, overshoot=overshoot)
    nearest = boundary_distances(params, images, labels, norm).min(axis=1)
    assert set(np.asarray(result.steps)) == {1}
    assert result.success.all()
    # the logits are of order 1 and known to 1e-6
    np.testing.assert_allclose(result.distance, (1 + overshoot) * (nearest + 1e-4), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("norm", NORMS)
def test_only_the_candidates_are_looked_at(norm):
    params, images, labels = affine_problem()
    logits = np.asarray(affine(params, images))
    away = boundary_distances(params, images, labels, norm)
    for candidates in (2, 3, None):
        looked_at = np.argsort(-logits, axis=1)[:, 1:candidates]
        expected = np.take_along_axis(away, looked_at, axis=1).min(axis=1)
        result = deepfool(affine, params, images, labels, norm=norm, candidates=candidates, overshoot=0.0)
        np.testing.assert_allclose(result.distance, expected + 1e-4, rtol=1e-4, atol=1e-6)
    assert (np.take_along_axis(away, np.argsort(-logits, axis=1)[:, 1:2], axis=1)[:, 0] > away.min(axis=1)).any()


@settings(max_examples=12, deadline=None, derandomize=True, database=None)
@given(scale=st.floats(1e-25, 1e25), seed=st.integers(0, 99), norm=st.sampled_from(NORMS))
def test_scaled_and_shifted_logits_change_nothing(scale, seed, norm):
    params, images, labels = affine_problem(seed)
    scaled = jax.tree.map(lambda leaf: jnp.float32(scale) * leaf, params)
    plain = deepfool(affine, params, images, labels, norm=norm)
    np.testing.assert_allclose(
        deepfool(affine, scaled, images, labels, norm=norm).adversarial, plain.adversarial, atol=1e-5
    )
    shifted = {"w": params["w"], "b": params["b"] + 3}
    np.testing.assert_allclose(
        deepfool(affine, shifted, images, labels, norm=norm).adversarial, plain.adversarial, atol=1e-4
    )


def random_network(params, images):
    scaled = (images.reshape(len(images), -1) - params["lower"]) / params["width"] - 0.5
    return jnp.tanh(scaled @ params["w1"]) @ params["w2"]


def random_problem(seed, bounds=(0.0, 1.0)):
    keys = jax.random.split(jax.random.key(seed), 3)
    params = {"w1": jax.random.normal(keys[0], (18, 12)), "w2": jax.random.normal(keys[1], (12, 4))}
    params |= {"lower": jnp.float32(bounds[0]), "width": jnp.float32(bounds[1] - bounds[0])}
    images = jax.random.uniform(keys[2], (8, 3, 3, 2), minval=bounds[0], maxval=bounds[1])
    return params, images, random_network(params, images).argmax(axis=1).astype(jnp.int32)


@pytest.mark.parametrize(
    ("norm", "bounds", "aimed"), [("l2", (0.0, 1.0), False), ("linf", (-0.25, 0.75), False), ("l2", (0.0, 255.0), True)]
)
@settings(max_examples=10, deadline=None, derandomize=True, database=None)
@given(seed=st.integers(0, 2**16))
def test_inside_the_bounds_and_honest_about_success_on_random_networks(norm, bounds, aimed, seed):
    params, images, predicted = random_problem(seed, bounds)
    labels = predicted.at[0].set((predicted[0] + 1) % 4)  # the first is misclassified before the attack
    target = (labels + 2) % 4 if aimed else None
    result = deepfool(random_network, params, images, labels, norm=norm, bounds=bounds, target=target)
    assert_in_budget(result, images, np.inf, norm, bounds)
    after = random_network(params, result.adversarial).argmax(axis=1)
    np.testing.assert_array_equal(result.success, after == target if aimed else after != labels)
    np.testing.assert_array_equal(result.adversarial[~result.success], images[~result.success])
    assert result.success.mean() > 0.8  # a smooth network of four classes gives way nearly always


@pytest.mark.parametrize("norm", NORMS)
def test_a_targeted_attack_ends_in_the_target(norm):
    params, images, labels = affine_problem()
    target = (labels + 1) % 5
    result = deepfool(affine, params, images, labels, norm=norm, target=target)
    assert result.success.all()
    np.testing.assert_array_equal(affine(params, result.adversarial).argmax(axis=1), target)
    away = boundary_distances(params, images, labels, norm)[np.arange(8), target]
    assert (result.distance >= away).all()  # it must cross the boundary between label and target at least
    one_step = np.asarray(result.steps) == 1  # and nothing else where no third class is in the way
    assert one_step.any()
    np.testing.assert_allclose(result.distance[one_step], 1.02 * (away[one_step] + 1e-4), rtol=1e-4, atol=1e-6)


def test_images_that_are_misclassified_already_cost_one_query_and_stay():
    params, images, labels = affine_problem()
    wrong = (labels + 1) % 5
    mixed = jnp.where(jnp.arange(8) < 4, wrong, labels)
    result = deepfool(affine, params, images, mixed)
    np.testing.assert_array_equal(result.adversarial[:4], images[:4])
    assert result.success.all()
    for counts, first, second in ((result.distance > 0, 0, 1), (result.steps, 0, 1), (result.queries, 1, 1 + 4 + 1)):
        np.testing.assert_array_equal(counts, [first] * 4 + [second] * 4)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("aimed", [False, True])
def test_without_a_gradient_the_image_is_left_and_the_attack_ends(norm, aimed):
    params, images, _ = affine_problem()
    labels = jnp.zeros(8, jnp.int32)
    equal_logits = lambda params, x: jnp.zeros((len(x), 5))  # the lowest class is predicted
    result = deepfool(equal_logits, params, images, labels, norm=norm, target=jnp.ones(8, int) if aimed else None)
    np.testing.assert_array_equal(result.adversarial, images)
    assert not result.success.any()
    assert not result.distance.any()
    assert set(np.asarray(result.steps)) == {1}


def test_equal_logits_with_a_gradient_are_crossed():
    """Two classes on their boundary: |f| = 0, and without least_step no step would ever leave it."""
    images = jnp.full((2, 3), 0.5)
    apply_fn = lambda w, x: jnp.stack([jnp.zeros(len(x)), (x - 0.5) @ w], axis=1)
    result = deepfool(apply_fn, jnp.array([1.0, 2.0, -2.0]), images, jnp.zeros(2, jnp.int32), overshoot=0.0)
    assert result.success.all()
    np.testing.assert_allclose(result.distance, 1e-4, rtol=1e-3)  # 0.5 + 1e-4 is rounded in the seventh digit


def test_more_steps_keep_what_fewer_have_found():
    params, images, predicted = random_problem(0)
    attack = functools.partial(deepfool, random_network, params, images, predicted)
    results = [attack(steps=steps) for steps in (1, 2, 20)]
    for fewer, more in itertools.pairwise(results):
        found = np.asarray(fewer.success)
        assert np.asarray(more.success)[found].all()
        np.testing.assert_array_equal(more.adversarial[found], fewer.adversarial[found])
    assert not results[0].success.all()  # the network is not affine
    assert results[-1].success.all()


def test_images_are_attacked_one_by_one():
    params = trained_params()
    images, labels = quadrants(16)
    attack = functools.partial(deepfool, small_network, params)
    whole, half = attack(images, labels), attack(images[8:], labels[8:])
    np.testing.assert_allclose(whole.adversarial[8:], half.adversarial, atol=1e-5)  # sums in another order
    np.testing.assert_array_equal(whole.steps[8:], half.steps)


def test_images_of_few_bits_stay_so_and_are_judged_so():
    params = trained_params()
    images, labels = quadrants(16)
    images = images.astype(jnp.bfloat16)
    result = deepfool(small_network, jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params), images, labels)
    assert result.adversarial.dtype == jnp.bfloat16
    assert result.success.mean() > 0.8  # a value near 1 moves in steps of 1/256
    assert np.isfinite(np.asarray(result.distance, np.float32)).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"norm": "l1"}, "unknown norm 'l1'.*l2"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"overshoot": -0.1}, "overshoot must be at least 0, got -0.1"),
        ({"least_step": -1e-4}, "least_step must be at least 0"),
        ({"candidates": 1}, "candidates must be at least 2, got 1"),
        ({"target": 7}, r"target must be in \[0, 5\), got 7"),
        ({"loop": "fast"}, "unknown loop 'fast'"),
        ({"bounds": (0.0, 0.4)}, "let apply_fn normalise"),
    ],
)
def test_nonsense_is_refused_with_the_value_given(options, words):
    with pytest.raises(UsageError, match=words):
        deepfool(affine, *affine_problem(), **options)


def test_probabilities_are_refused():
    softmax = lambda params, images: jax.nn.softmax(affine(params, images))
    with pytest.raises(UsageError, match="look like probabilities"):
        deepfool(softmax, *affine_problem())
