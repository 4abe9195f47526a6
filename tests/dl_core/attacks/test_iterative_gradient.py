"""The iterative gradient method of the course notes: its formulae, where it stops, and what it may change."""

import functools
import itertools

import attack_contract
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dl_core.attacks.iterative import DIRECTIONS, iterative_gradient
from dl_core.errors import UsageError


def small_net(params, x):
    return jnp.tanh((x.reshape(len(x), -1) - 0.5) @ params["w1"]) @ params["w2"]


def linear(params, x):
    return x.reshape(len(x), -1) @ params


@pytest.fixture(scope="module")
def problem():
    keys = jax.random.split(jax.random.key(0), 3)
    params = {"w1": jax.random.normal(keys[0], (48, 16)) / 3, "w2": jax.random.normal(keys[1], (16, 5))}
    images = jax.random.uniform(keys[2], (8, 4, 4, 3), minval=0.2, maxval=0.8)
    return params, images, small_net(params, images).argmax(axis=1)


def options_of(direction, labels):
    return {"direction": direction, **({"target": (labels + 1) % 5} if direction == "targeted" else {})}


def test_the_contract_of_every_attack():
    attack = functools.partial(iterative_gradient, step_size=0.2, steps=8)
    attack_contract.assert_keeps_the_contract(attack, eps=1.0, norm="l2")


@pytest.mark.parametrize(
    ("direction", "targeted", "formula"),
    [
        ("untargeted", False, lambda f, first, goal, x: -f(first)),
        ("targeted", True, lambda f, first, goal, x: f(goal)),
        ("least_likely", False, lambda f, first, goal, x: f(goal)),
        ("combined", True, lambda f, first, goal, x: f(goal) - f(first)),
        ("combined", False, lambda f, first, goal, x: f(goal) - f(first)),
    ],
)
def test_the_step_is_the_formula_of_the_notes(problem, direction, targeted, formula):
    """Equations 43, 45, 47 and 42 and, without a target, 41 and 42; one step, written out with the plain gradient."""
    params, images, labels = problem
    logits = small_net(params, images)
    first = logits.argmax(axis=1)
    target = (labels + 3) % 5 if targeted else None
    goal = target if targeted else logits.argmin(axis=1) if direction == "least_likely" else jnp.argsort(logits)[:, -2]
    rows = jnp.arange(len(images))
    climbed = lambda x: formula(lambda classes: small_net(params, x)[rows, classes], first, goal, x).sum()
    expected = jnp.clip(images + 0.01 * jax.grad(climbed)(images), 0, 1)
    result = iterative_gradient(
        small_net, *problem, direction=direction, target=target, step_size=0.01, steps=1, eps=None
    )
    np.testing.assert_allclose(result.adversarial, expected, atol=1e-6)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_an_image_stops_at_the_first_step_at_which_its_label_flips(problem, direction):
    params, images, labels = problem
    attack = functools.partial(
        iterative_gradient, small_net, *problem, **options_of(direction, labels), step_size=0.005
    )
    result = attack(steps=200)
    predicted = small_net(params, result.adversarial).argmax(axis=1)
    goal = {"targeted": (labels + 1) % 5, "least_likely": small_net(params, images).argmin(axis=1)}.get(direction)
    np.testing.assert_array_equal(result.success, predicted != labels if goal is None else predicted == goal)
    assert result.success.mean() >= 0.5
    # the image itself, one gradient a step, and the look at the last point, which is another gradient before the end
    np.testing.assert_array_equal(result.queries, result.steps + 2)
    stopped = int(jnp.where(result.success, result.steps, 0).argmax())
    needed = int(result.steps[stopped])
    assert 1 < needed < 200
    np.testing.assert_array_equal(attack(steps=needed).adversarial[stopped], result.adversarial[stopped])
    assert not attack(steps=needed - 1).success[stopped]


def test_on_a_linear_model_the_number_of_steps_is_known():
    """f = (w·x, −w·x) from a margin of m: descending w·x by η ‖w‖² a step flips the label at step ⌈w·x / (η ‖w‖²)⌉."""
    weights = jax.random.normal(jax.random.key(1), (48, 1))
    params = jnp.concatenate([weights, -weights], axis=1)
    images = jnp.clip(0.5 + 0.02 * weights[:, 0].reshape(1, 4, 4, 3), 0, 1)
    centred = lambda params, x: linear(params, x - 0.5)
    height, square = float(centred(params, images)[0, 0]), float((weights**2).sum())
    result = iterative_gradient(centred, params, images, jnp.zeros(1, jnp.int32), step_size=0.003)
    assert int(result.steps[0]) == int(np.ceil(height / (0.003 * square))) == 7
    np.testing.assert_allclose(result.distance, 7 * 0.003 * np.sqrt(square), rtol=1e-4)


def test_the_image_is_updated_and_never_the_parameters(problem):
    """W11: the exercise's attack subtracted the gradient from the parameters of the network instead."""
    params, images, labels = problem
    before = jax.tree.map(np.array, (params, images, labels))
    result = iterative_gradient(small_net, params, images, labels, step_size=0.05)
    jax.tree.map(np.testing.assert_array_equal, (params, images, labels), before)
    assert result.success.all()
    assert (np.asarray(result.adversarial) != np.asarray(images)).any(axis=(1, 2, 3)).all()


def test_more_steps_never_do_worse(problem):
    params, _, labels = problem
    target = (labels + 1) % 5
    height = lambda result: small_net(params, result.adversarial)[jnp.arange(8), target]
    attack = functools.partial(
        iterative_gradient, small_net, *problem, direction="targeted", target=target, step_size=1.0, eps=0.3
    )  # steps so long that they overshoot
    results = [attack(steps=steps) for steps in (1, 2, 5, 20)]
    for fewer, more in itertools.pairwise(results):
        assert (more.success >= fewer.success).all()
        assert (height(more) >= height(fewer) - 1e-6)[~np.asarray(more.success)].all()
    assert not results[-1].success.all()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_ball_and_the_bounds_hold(problem, norm):
    eps = {"linf": 0.01, "l2": 0.05, "l1": 0.2}[norm]
    result = iterative_gradient(small_net, *problem, step_size=0.5, steps=5, eps=eps, norm=norm)
    attack_contract.assert_in_budget(result, problem[1], eps, norm)
    assert not result.success.all()
    free = iterative_gradient(small_net, *problem, direction="least_likely", step_size=5.0, steps=5, norm=norm)
    attack_contract.assert_in_budget(free, problem[1], np.inf, norm)
    none = iterative_gradient(small_net, *problem, step_size=0.5, steps=5, eps=0.0, norm=norm)
    np.testing.assert_array_equal(none.adversarial, problem[1])


def test_a_normalised_gradient_makes_steps_of_a_known_length(problem):
    attack = functools.partial(iterative_gradient, small_net, *problem, steps=1, normalize=True, step_size=0.01)
    np.testing.assert_allclose(attack(norm="l2").distance, 0.01, rtol=1e-4)
    signs = np.asarray(attack(norm="linf").adversarial - problem[1])
    np.testing.assert_allclose(np.abs(signs), 0.01, rtol=1e-4)  # the iterative gradient sign


def test_logits_are_followed_where_probabilities_would_have_no_gradient(problem):
    """A network that is so sure that its softmax is exactly 0 and 1 in float32."""
    params, images, labels = problem
    sure = lambda params, x: 1e3 * small_net(params, x)
    assert float(jax.nn.softmax(sure(params, images)).max(axis=1).min()) > 0.99
    assert iterative_gradient(sure, params, images, labels, step_size=1e-5, steps=200).success.all()


def test_an_image_that_is_misclassified_stays_as_it_is(problem):
    params, images, labels = problem
    wrong = labels.at[0].set((labels[0] + 1) % 5)
    result = iterative_gradient(small_net, params, images, wrong, step_size=0.05)
    assert bool(result.success[0])
    assert (int(result.steps[0]), int(result.queries[0]), float(result.distance[0])) == (0, 1, 0.0)


def test_the_least_likely_class_is_never_the_label(problem):
    """An attack towards the truth would be none."""
    params, images, _ = problem
    labels = small_net(params, images).argmin(axis=1)
    result = iterative_gradient(small_net, params, images, labels, direction="least_likely", step_size=0.05)
    assert result.success.any()
    predicted = small_net(params, result.adversarial).argmax(axis=1)
    assert (predicted != labels)[result.success].all()


def test_every_driver_gives_the_same_numbers(problem):
    attack = functools.partial(iterative_gradient, small_net, *problem, step_size=0.05, steps=10)
    host, compiled = attack(loop="host"), attack(loop="compiled")
    np.testing.assert_allclose(compiled.adversarial, host.adversarial, atol=1e-6)
    np.testing.assert_array_equal(compiled.steps, host.steps)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"direction": "up"}, "unknown direction 'up'"),
        ({"direction": "targetted"}, "did you mean 'targeted'"),
        ({"direction": "targeted"}, 'direction="targeted" needs target'),
        ({"target": 2}, 'direction="untargeted" takes no target'),
        ({"direction": "least_likely", "target": 2}, 'direction="least_likely" takes no target'),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"step_size": -0.1}, "step_size must not be negative, got -0.1"),
        ({"eps": -1.0}, "eps must not be negative"),
        ({"norm": "l3"}, "unknown norm 'l3'"),
    ],
)
def test_nonsense_is_refused_with_the_value_given(problem, options, words):
    with pytest.raises(UsageError, match=words):
        iterative_gradient(small_net, *problem, **{"step_size": 0.1, **options})
