"""The fast gradient sign method: what it may change, how far it may go, and what it must achieve."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dl_core.attacks.gradient import fgsm
from dl_core.errors import UsageError

NORMS = ("linf", "l2")


def small_net(params, x):
    return jnp.tanh((x.reshape(len(x), -1) - 0.5) @ params["w1"]) @ params["w2"]


def linear(params, x):
    return x.reshape(len(x), -1) @ params["w"]


@pytest.fixture
def problem():
    """A network, images and the labels that it predicts: right before the attack."""
    keys = jax.random.split(jax.random.key(0), 4)
    params = {
        "w": 0.3 * jax.random.normal(keys[3], (48, 5)),
        "w1": 0.5 * jax.random.normal(keys[0], (48, 16)),
        "w2": jax.random.normal(keys[1], (16, 5)),
    }
    images = jax.random.uniform(keys[2], (24, 4, 4, 3))
    return params, images, small_net(params, images).argmax(axis=1)


def length(perturbation, norm):
    flat = np.asarray(perturbation, np.float64).reshape(len(perturbation), -1)
    return np.abs(flat).max(axis=1) if norm == "linf" else np.linalg.norm(flat, axis=1)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("eps", [0.003, 0.1, 2.0])
@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-0.5, 1.25)])
def test_the_image_stays_inside_the_bounds_and_the_ball(problem, norm, eps, bounds):
    result = fgsm(small_net, *problem, eps=eps, bounds=bounds, norm=norm)
    assert result.adversarial.min() >= bounds[0]
    assert result.adversarial.max() <= bounds[1]
    moved = length(result.adversarial - problem[1], norm)
    assert (moved <= eps * (1 + 1e-5) + 1e-7).all()  # the sum and the difference with an image near 1 are rounded
    np.testing.assert_allclose(result.distance, moved, rtol=1e-5)


@pytest.mark.parametrize("norm", NORMS)
def test_no_budget_changes_nothing(problem, norm):
    result = fgsm(small_net, *problem, eps=0.0, norm=norm)
    np.testing.assert_array_equal(result.adversarial, problem[1])
    assert not result.success.any()
    assert not result.distance.any()


@pytest.mark.parametrize("norm", NORMS)
def test_an_attack_changes_the_image_and_never_the_parameters(problem, norm):
    """W11: the exercise's attack updated the network instead of the image."""
    params, images, labels = problem
    before = jax.tree.map(np.array, params)
    result = fgsm(small_net, params, images, labels, eps=0.1, norm=norm)
    jax.tree.map(np.testing.assert_array_equal, params, before)
    assert (np.asarray(result.adversarial) != np.asarray(images)).any(axis=(1, 2, 3)).all()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("targeted", [False, True])
def test_on_a_linear_model_the_loss_never_falls_away_from_the_goal(problem, norm, targeted):
    """Its loss is convex in the image: a step along the gradient cannot lower it, nor one against it a small step."""
    params, images, _ = problem
    labels = linear(params, images).argmax(axis=1)
    target = (labels + 1) % 5 if targeted else None
    goal = target if targeted else labels
    result = fgsm(linear, params, images, labels, eps=0.01, target=target, norm=norm)
    loss = lambda x: optax.softmax_cross_entropy_with_integer_labels(linear(params, x), goal)
    change = loss(result.adversarial) - loss(images)
    assert ((-change if targeted else change) >= -1e-6).all()
    assert (jnp.abs(change) > 1e-4).mean() > 0.9


def test_the_step_is_the_sign_of_the_gradient(problem):
    """Binary logistic regression, where ∇ₓ L = (p - y) w: in the middle of the bounds x* = x ± eps sign(w)."""
    weights = problem[0]["w"][:, :1]
    two_classes = lambda w, x: jnp.concatenate([jnp.zeros((len(x), 1)), x @ w], axis=1)
    images, labels = jnp.full((2, 48), 0.5), jnp.array([0, 1])
    result = fgsm(two_classes, weights, images, labels, eps=0.125)
    expected = 0.5 + 0.125 * np.outer([1, -1], np.sign(weights[:, 0]))
    np.testing.assert_array_equal(result.adversarial, expected.astype(np.float32))
    euclidean = fgsm(two_classes, weights, images, labels, eps=0.125, norm="l2").adversarial - 0.5
    unit = weights[:, 0] / np.linalg.norm(weights)
    np.testing.assert_allclose(euclidean, 0.125 * np.outer([1, -1], unit), atol=1e-6)


def test_success_is_what_the_model_says_of_the_result(problem):
    params, images, labels = problem
    free = fgsm(small_net, params, images, labels, eps=0.2)
    np.testing.assert_array_equal(free.success, small_net(params, free.adversarial).argmax(axis=1) != labels)
    assert free.success.mean() > 0.5  # at a fifth of the range the network is fooled on most images
    target = (labels + 2) % 5
    aimed = fgsm(small_net, params, images, labels, eps=0.2, target=target)
    np.testing.assert_array_equal(aimed.success, small_net(params, aimed.adversarial).argmax(axis=1) == target)
    assert aimed.success.mean() > (small_net(params, free.adversarial).argmax(axis=1) == target).mean()
    assert set(np.asarray(free.queries)) == {2}
    assert set(np.asarray(free.steps)) == {1}


@pytest.mark.parametrize("norm", NORMS)
def test_a_vanishing_gradient_leaves_the_image_and_gives_no_nan(problem, norm):
    params, images, labels = problem
    result = fgsm(lambda params, x: jnp.zeros((len(x), 5)), params, images, labels, eps=0.1, norm=norm)
    np.testing.assert_array_equal(result.adversarial, images)


def test_a_tiny_gradient_is_followed_to_the_whole_radius(problem):
    """A network that is very sure has gradients whose squares underflow in float32."""
    params, images, labels = problem
    faint = lambda params, x: 1e-30 * small_net(params, x)
    result = fgsm(faint, params, jnp.clip(images, 0.3, 0.7), labels, eps=0.1, norm="l2")
    np.testing.assert_allclose(result.distance, 0.1, rtol=1e-5)


@pytest.mark.parametrize("norm", NORMS)
def test_the_attack_can_be_compiled_and_mapped_over_eps(problem, norm):
    budgets = jnp.array([0.0, 0.05, 0.3])
    attack = functools.partial(fgsm, small_net, *problem, norm=norm)
    mapped = jax.jit(jax.vmap(lambda eps: attack(eps=eps)))(budgets)
    for index, eps in enumerate(budgets):
        alone = attack(eps=float(eps))
        # a sure prediction has a gradient of few significant digits, and compiled code rounds in another order
        np.testing.assert_allclose(mapped.adversarial[index], alone.adversarial, atol=1e-5)
    assert mapped.success.mean(axis=1)[0] <= mapped.success.mean(axis=1)[2]


@pytest.mark.parametrize("norm", NORMS)
def test_every_image_may_have_a_budget_of_its_own(problem, norm):
    budgets = jnp.linspace(0, 0.1, 24)
    result = fgsm(small_net, *problem, eps=budgets, norm=norm)
    assert (result.distance <= budgets * (1 + 1e-5) + 1e-7).all()
    whole = fgsm(small_net, *problem, eps=float(budgets[7]), norm=norm)
    np.testing.assert_allclose(result.adversarial[7], whole.adversarial[7], atol=1e-5)


@pytest.mark.parametrize("norm", NORMS)
def test_images_are_attacked_one_by_one(problem, norm):
    params, images, labels = problem
    whole = fgsm(small_net, params, images, labels, eps=0.1, norm=norm, key=jax.random.key(0))
    half = fgsm(small_net, params, images[12:], labels[12:], eps=0.1, norm=norm)
    np.testing.assert_allclose(whole.adversarial[12:], half.adversarial, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"norm": "linfty"}, "unknown norm 'linfty'; did you mean 'linf'"),
        ({"eps": -0.1}, "eps must not be negative, got -0.1"),
        ({"bounds": (1.0, 0.0)}, r"smallest, largest.*\(1.0, 0.0\)"),
        ({"bounds": (0.0, 0.5)}, "let apply_fn normalise"),
    ],
)
def test_nonsense_is_refused_with_the_value_given(problem, options, words):
    with pytest.raises(UsageError, match=words):
        fgsm(small_net, *problem, **{"eps": 0.1, **options})
