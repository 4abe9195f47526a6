"""Auto-PGD: it finds the optimum where that is known, never forgets the best, and beats a fixed step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from attack_contract import assert_in_budget, assert_keeps_the_contract, quadrants, small_network, trained_params

from dl_core.attacks.apgd import apgd
from dl_core.attacks.balls import project, unit_step
from dl_core.attacks.objectives import margin, objective
from dl_core.errors import UsageError

KEY = jax.random.key(0)


def linear(params, x):
    return x.reshape(len(x), -1) @ params


def test_it_keeps_the_contract_of_attacks():
    assert_keeps_the_contract(functools.partial(apgd, key=KEY, steps=4), eps=0.1, norm="linf")


def best_margin(weights, image, eps, norm):
    """The largest ⟨w, x + d⟩ for d in ball and bounds, by SciPy."""
    low, high, size = -image, 1 - image, len(image)
    if norm == "linf":
        return weights @ (image + np.where(weights > 0, np.minimum(high, eps), np.maximum(low, -eps)))
    if norm == "l1":
        both = scipy.optimize.linprog(
            np.concatenate([-weights, weights]),
            np.ones((1, 2 * size)),
            [eps],
            bounds=[(0, limit) for limit in np.concatenate([high, -low])],
        )
        return weights @ image - both.fun
    found = scipy.optimize.minimize(
        lambda d: -weights @ d,
        np.zeros(size),
        jac=lambda d: -weights,
        bounds=list(zip(low, high, strict=True)),
        constraints={"type": "ineq", "fun": lambda d: eps**2 - d @ d, "jac": lambda d: -2 * d},
    )
    return weights @ image - found.fun


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.2), ("l2", 0.6), ("l1", 1.5)])
def test_on_a_linear_model_it_reaches_the_optimum_of_ball_and_bounds(norm, eps):
    weights = jax.random.normal(jax.random.key(1), (16, 2))
    images = jax.random.uniform(jax.random.key(2), (6, 4, 4, 1))
    labels = jnp.zeros(6, jnp.int32)
    result = apgd(
        linear, weights, images, labels, key=KEY, eps=eps, norm=norm, loss="margin", steps=60, early_stop=False
    )
    assert_in_budget(result, images, eps, norm)
    before = np.asarray(margin(linear(weights, images), labels))
    reached = np.asarray(margin(linear(weights, result.adversarial), labels))
    difference = np.asarray(weights[:, 1] - weights[:, 0], np.float64)
    best = [best_margin(difference, np.ravel(image).astype(np.float64), eps, norm) for image in np.asarray(images)]
    attacked = before < 0  # the others were wrong before and stay as they are
    assert attacked.sum() >= 2
    # of the gain, what 60 steps leave: the signs are there at once, the direction of "l2" along a cut ball is not
    left = {"linf": 1e-5, "l2": 0.02, "l1": 0.01}[norm]
    assert (np.asarray(best) - reached <= left * (best - before) + 1e-5)[attacked].all()
    assert (reached <= np.asarray(best) + 1e-4)[attacked].all()


@pytest.fixture(scope="module")
def hard():
    """Quadrants of other noise than in training, which the network gets right."""
    params = trained_params()
    images, labels = quadrants(160, seed=7)
    right = np.flatnonzero(small_network(params, images).argmax(axis=1) == labels)[:128]
    return params, images[right], labels[right]


def pgd(problem, start, eps, norm, steps, size):
    """A fixed step; the largest margin met, and whether any point was wrong."""
    params, images, labels = problem

    @jax.jit
    def step(x):
        gain = lambda x: objective(small_network(params, x), labels, None).sum()
        return project(x + size * unit_step(jax.grad(gain)(x), norm), images, eps, (0.0, 1.0), norm)

    wrong, x = np.zeros(len(labels), bool), start
    for _ in range(steps):
        x = step(x)
        wrong |= np.asarray(small_network(params, x).argmax(axis=1) != labels)
    return wrong


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("l2", 0.6)])
def test_it_is_no_weaker_than_a_fixed_step_from_the_same_point(hard, norm, eps):
    fixed = pgd(hard, hard[1], eps, norm, steps=20, size=eps / 10)
    result = apgd(small_network, *hard, eps=eps, norm=norm, steps=20, start=hard[1])
    assert 0.2 < fixed.mean() < 0.95  # the radius tells them apart
    assert result.success.sum() >= fixed.sum()
    assert_in_budget(result, hard[1], eps, norm)


def test_targets_one_after_another_find_what_the_loss_of_the_label_does_not(hard):
    run = functools.partial(apgd, small_network, *hard, key=KEY, eps=0.1, steps=10)
    aimed, free = run(num_targets=9, loss="dlr"), run()
    assert aimed.success.sum() >= free.success.sum()
    # four classes: three targets of ten steps, and a look at each start
    assert set(np.asarray(aimed.queries)[~np.asarray(aimed.success)]) == {1 + 3 * 11}
    assert set(np.asarray(aimed.steps)[~np.asarray(aimed.success)]) == {30}
    np.testing.assert_array_equal(run(num_targets=3, loss="dlr").adversarial, aimed.adversarial)


def test_more_restarts_never_lower_the_loss_nor_lose_a_success(hard):
    run = functools.partial(apgd, small_network, *hard, key=KEY, eps=0.06, steps=5, loss="margin", early_stop=False)
    once, more = run(restarts=1), run(restarts=3)
    loss = lambda result: margin(small_network(hard[0], result.adversarial), hard[2])
    assert (loss(more) >= loss(once) - 1e-5).all()
    assert (loss(more) > loss(once) + 1e-5).any()
    assert (np.asarray(more.success) >= np.asarray(once.success)).all()
    stopped = apgd(small_network, *hard, key=KEY, eps=0.06, steps=5, loss="margin", restarts=3)
    np.testing.assert_array_equal(stopped.success, more.success)
    assert stopped.queries.sum() < more.queries.sum()


def test_the_best_point_is_never_worse_than_the_start(hard):
    start = project(hard[1] + 0.05, hard[1], 0.02, (0.0, 1.0), "linf")
    loss = lambda images: objective(small_network(hard[0], images), hard[2], None)
    result = apgd(small_network, *hard, eps=0.02, steps=1, start=start)
    kept = ~np.asarray(result.success)
    assert (loss(result.adversarial) >= loss(start) - 1e-5)[kept].all()


def test_a_target_is_reached_and_nothing_else_counts(hard):
    target = (hard[2] + 1) % 4
    result = apgd(small_network, *hard, key=KEY, eps=0.2, steps=10, target=target)
    predicted = small_network(hard[0], result.adversarial).argmax(axis=1)
    np.testing.assert_array_equal(result.success, predicted == target)
    assert result.success.mean() > 0.5


def test_an_image_that_is_wrong_already_is_left_alone(hard):
    params, images, labels = hard
    result = apgd(small_network, params, images, (labels + 1) % 4, key=KEY, eps=0.1, steps=3)
    np.testing.assert_array_equal(result.adversarial, images)
    assert result.success.all()
    assert not result.steps.any()
    assert set(np.asarray(result.queries)) == {1}


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_a_vanishing_gradient_gives_no_nan(hard, norm):
    flat = lambda params, x: jnp.zeros((len(x), 4)) + 0 * x.reshape(len(x), -1).sum(axis=1, keepdims=True)
    labels = jnp.zeros(len(hard[1]), jnp.int32)  # equal logits: the first class is predicted
    result = apgd(flat, None, hard[1], labels, key=KEY, eps=0.1, steps=3, norm=norm, loss="dlr", num_targets=2)
    assert np.isfinite(result.adversarial).all()
    assert not result.success.any()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"restarts": 0}, "restarts must be at least 1, got 0"),
        ({"num_targets": 0}, "num_targets must be at least 1, got 0"),
        ({"num_targets": 2, "target": 1}, "give it or target, not both"),
        ({"key": None}, "key is missing: every run starts at a random point"),
        ({"key": None, "start": jnp.zeros((4, 8, 8, 1)), "restarts": 2}, "key is missing"),
        (
            {"start": jnp.zeros((4, 8, 8, 3))},
            r"start must have the shape of the images, \[4, 8, 8, 1\], got \[4, 8, 8, 3\]",
        ),
        ({"norm": "l0"}, "unknown norm 'l0'"),
        ({"loss": "ce"}, "unknown loss 'ce'"),
        ({"eps": -1.0}, "eps must not be negative"),
        ({"loop": "fast"}, "unknown loop 'fast'"),
    ],
)
def test_nonsense_is_refused_with_the_value_given(annotations_off, options, words):
    images, labels = quadrants(4)
    labels = jnp.zeros_like(labels)
    with pytest.raises(UsageError, match=words):
        apgd(small_network, trained_params(), images, labels, **{"key": KEY, "eps": 0.1, **options})


def test_too_few_classes_for_the_targeted_ratio_are_refused():
    images, labels = quadrants(4)
    three = lambda params, x: small_network(params, x)[:, :3]
    with pytest.raises(UsageError, match=r"compares 4 logits, the model has 3; use loss=.margin"):
        apgd(three, trained_params(), images, labels % 3, key=KEY, eps=0.1, loss="dlr", num_targets=2)
