"""FAB: the exact distance where it is known, the boundary between classes where it is not."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attack_contract import assert_in_budget, assert_keeps_the_contract, quadrants, small_network, trained_params

from dl_core.attacks.apgd import apgd
from dl_core.attacks.fab import fab
from dl_core.errors import UsageError

DUAL = {"linf": 1, "l2": 2, "l1": np.inf}


def linear(params, x):
    return x.reshape(len(x), -1) @ params


@pytest.fixture(scope="module")
def hard():
    """Quadrants of other noise than in training, which the network gets right."""
    params = trained_params()
    images, labels = quadrants(80, seed=7)
    right = np.flatnonzero(small_network(params, images).argmax(axis=1) == labels)[:64]
    return params, images[right], labels[right]


def test_it_keeps_the_contract_of_attacks():
    assert_keeps_the_contract(functools.partial(fab, steps=3), eps=0.2, norm="linf", atol=1e-4)


def test_without_eps_it_keeps_the_contract_of_minimal_attacks():
    attack = functools.partial(fab, steps=3, norm="l2", num_targets=2, restarts=2, key=jax.random.key(0))
    assert_keeps_the_contract(attack, eps=None, norm="l2", atol=1e-3, over_params=False)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("num_targets", [None, 9])
def test_on_a_linear_model_it_is_the_distance_in_closed_form(norm, num_targets):
    """To the nearest hyperplane between the label and a class: their gap over the dual norm of its normal."""
    weights = 0.2 * jax.random.normal(jax.random.key(0), (64, 5))
    images = jax.random.uniform(jax.random.key(1), (16, 8, 8, 1), minval=0.45, maxval=0.55)
    logits = np.asarray(linear(weights, images), np.float64)
    labels = logits.argmax(axis=1)
    columns = np.asarray(weights, np.float64).T
    normals = columns[None] - columns[labels][:, None]
    gaps = logits[np.arange(16), labels][:, None] - logits
    lengths = np.linalg.norm(normals, DUAL[norm], axis=2)
    gaps[np.arange(16), labels], lengths[np.arange(16), labels] = np.inf, 1
    expected = (gaps / lengths).min(axis=1)
    result = fab(
        linear,
        weights,
        images,
        jnp.asarray(labels, jnp.int32),
        norm=norm,
        steps=5,
        num_targets=num_targets,
        bounds=(-9.0, 9.0),  # too far to be met, even where one value alone moves
    )
    assert result.success.all()
    # the last search stops short of the boundary by 0.001 of the gap
    np.testing.assert_allclose(result.distance, expected, rtol=2e-3)
    assert (np.asarray(result.distance) >= expected * (1 - 1e-4)).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_result_lies_just_beyond_the_boundary(hard, norm):
    params, images, labels = hard
    result = fab(small_network, *hard, norm=norm, steps=10)
    assert result.success.all()
    assert_in_budget(result, images, np.inf, norm)
    nearer = images + 0.98 * (result.adversarial - images)  # the search leaves less than 2 % on nearly all
    assert (small_network(params, nearer).argmax(axis=1) == labels).mean() > 0.9


def test_a_radius_decides_what_is_a_success(hard):
    free = fab(small_network, *hard, steps=10)
    eps = float(jnp.median(free.distance))
    within = fab(small_network, *hard, steps=10, eps=eps)
    np.testing.assert_array_equal(within.distance > 0, within.success)
    assert (np.asarray(within.success) >= np.asarray(free.distance <= eps / 1.05)).all()  # η = 1.05 overshoots
    np.testing.assert_array_equal(
        np.asarray(within.adversarial)[~np.asarray(within.success)], np.asarray(hard[1])[~np.asarray(within.success)]
    )
    assert_in_budget(within, hard[1], eps, "linf")
    nearest = fab(small_network, *hard, steps=10, eps=eps, early_stop=False)
    np.testing.assert_array_equal(nearest.success, free.distance <= eps)
    assert within.queries.sum() < nearest.queries.sum()


def test_fab_and_apgd_agree_on_what_is_within_reach(hard):
    """Two different ideas: one looks for the nearest point, the other for the largest loss of a ball."""
    nearest = fab(small_network, *hard, steps=20, num_targets=3).distance
    for eps in np.quantile(nearest, (0.25, 0.75)):
        ball = apgd(small_network, *hard, key=jax.random.key(0), eps=float(eps), steps=20, num_targets=3, loss="dlr")
        assert abs(float((nearest <= eps).mean()) - float(ball.success.mean())) <= 2 / 64


def test_more_runs_never_do_worse(hard):
    run = functools.partial(fab, small_network, *hard, norm="l2", steps=5, key=jax.random.key(0))
    once, more, aimed = run(), run(restarts=3), run(num_targets=3)
    # nearer before the search at the end, which takes away what η = 1.05 left of one and not of the other; runs towards
    # a target take other paths than runs towards the nearest class, and five steps leave as much between them
    assert (more.distance <= once.distance * 1.05).all()
    assert float(jnp.median(aimed.distance)) <= float(jnp.median(once.distance)) * 1.05
    assert set(np.asarray(once.queries)) == {1 + 2 * 5 + 4}
    assert set(np.asarray(aimed.steps)) == {15}


def test_a_target_is_reached_and_nothing_else_counts(hard):
    target = (hard[2] + 1) % 4
    result = fab(small_network, *hard, steps=15, target=target)
    predicted = small_network(hard[0], result.adversarial).argmax(axis=1)
    # a step may end so near to the boundary that rounding in another program decides
    assert (np.asarray(predicted == target) == np.asarray(result.success)).mean() > 0.95
    assert result.success.mean() > 0.9


def test_an_image_that_is_wrong_already_is_left_alone(hard):
    result = fab(small_network, hard[0], hard[1], (hard[2] + 1) % 4, steps=2)
    np.testing.assert_array_equal(result.adversarial, hard[1])
    assert result.success.all()
    assert not result.steps.any()
    assert set(np.asarray(result.queries)) == {1}


@pytest.mark.parametrize(("norm", "num_targets"), [("l2", None), ("linf", 2)])
def test_a_vanishing_gradient_gives_no_nan_and_no_success(hard, norm, num_targets):
    flat = lambda params, x: jnp.array([[2.0, 0.0, 0.0]]) + 0 * x.reshape(len(x), -1).sum(axis=1, keepdims=True)
    labels = jnp.zeros(len(hard[1]), jnp.int32)
    result = fab(flat, None, hard[1], labels, steps=2, norm=norm, num_targets=num_targets)
    np.testing.assert_array_equal(result.adversarial, hard[1])
    assert not result.success.any()


def test_images_of_few_digits_are_attacked_as_well(hard):
    params, images, labels = hard
    result = fab(
        small_network,
        jax.tree.map(lambda w: w.astype(jnp.bfloat16), params),
        images.astype(jnp.bfloat16),
        labels,
        steps=5,
    )
    assert result.adversarial.dtype == jnp.bfloat16
    assert result.success.mean() > 0.9


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"eta": 0.9}, "eta must be at least 1, got 0.9"),
        ({"alpha_max": 1.5}, r"alpha_max must be in \[0, 1\], got 1.5"),
        ({"beta": -0.1}, r"beta must be in \[0, 1\], got -0.1"),
        ({"restarts": 2}, "key is missing: restarts=2 draws the starts"),
        ({"num_targets": 2, "target": 1}, "give it or target, not both"),
        ({"norm": "max"}, "unknown norm 'max'"),
        ({"eps": -1.0}, "eps must not be negative"),
    ],
)
def test_nonsense_is_refused_with_the_value_given(options, words):
    images, labels = quadrants(4)
    with pytest.raises(UsageError, match=words):
        fab(small_network, trained_params(), images, jnp.zeros_like(labels), **options)
