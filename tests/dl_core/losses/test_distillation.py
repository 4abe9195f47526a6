"""Distillation: its two ends, its limit, its gradient; and losses weighted by learned uncertainty."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dl_core.errors import UsageError
from dl_core.losses import cross_entropy, distillation, uncertainty_weighting


@pytest.fixture
def answers():
    keys = jax.random.split(jax.random.key(0), 3)
    student, teacher = (3 * jax.random.normal(key, (6, 5)) for key in keys[:2])
    return student, teacher, jax.random.randint(keys[2], (6,), 0, 5)


def test_without_the_soft_part_it_is_cross_entropy(answers):
    student, teacher, labels = answers
    loss = distillation(student, teacher, labels, temperature=3.0, alpha=0.0)
    np.testing.assert_allclose(loss, cross_entropy(student, labels), rtol=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 8.0])
def test_the_soft_part_is_zero_for_equal_answers_alone(answers, temperature):
    student, teacher, labels = answers
    soft = lambda s: distillation(s, teacher, labels, temperature=temperature, alpha=1.0)
    np.testing.assert_allclose(soft(teacher + 2.0), 0, atol=1e-4)  # 64 times the rounding of a sum near 1
    assert (soft(student) > 1e-4).all()
    p, q = (jax.nn.softmax(x / temperature) for x in (teacher, student))
    expected = temperature**2 * (p * (jnp.log(p) - jnp.log(q))).sum(-1)
    np.testing.assert_allclose(soft(student), expected, rtol=1e-3)


def test_at_a_high_temperature_it_matches_logits(answers):
    """Hinton et al., eq. 4: with the means taken off, half the mean squared difference of the logits."""
    student, teacher, labels = answers
    centred = (student - student.mean(-1, keepdims=True)) - (teacher - teacher.mean(-1, keepdims=True))
    with jax.enable_x64(True):
        double = [jnp.asarray(np.asarray(x), jnp.float64) for x in (student, teacher)]
        loss = distillation(*double, labels, temperature=1e4, alpha=1.0)
    np.testing.assert_allclose(loss, 0.5 * (centred**2).mean(-1), rtol=1e-3)  # the next term is O(1 / T)


def test_no_gradient_reaches_the_teacher(answers):
    student, teacher, labels = answers
    gradient = jax.grad(lambda t: distillation(student, t, labels).sum())(teacher)
    np.testing.assert_array_equal(gradient, 0)


def test_answers_near_certainty_stay_finite(answers):
    *_, labels = answers
    student, teacher = (sign * 1e4 * jax.nn.one_hot(labels, 5) for sign in (-1, 1))
    value, gradient = jax.value_and_grad(lambda s: distillation(s, teacher, labels, temperature=1.0).sum())(student)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


def test_distillation_refuses_what_cannot_be(answers):
    student, teacher, labels = answers
    for options, message in (({"temperature": 0.0}, "temperature"), ({"alpha": 1.5}, "alpha")):
        with pytest.raises(UsageError, match=message):
            distillation(student, teacher, labels, **options)
    with pytest.raises(UsageError, match="the same classes"):
        distillation(student, teacher[:, :4], labels)


def test_uncertainty_at_the_start_is_the_plain_sum():
    losses = jnp.array([[1.0, 2.0], [0.5, 3.0]])
    np.testing.assert_allclose(uncertainty_weighting(losses, jnp.zeros(2)), [3.0, 3.5])
    np.testing.assert_allclose(uncertainty_weighting(losses, jnp.zeros(2), regression=(False, True)), [2.0, 2.0])


@pytest.mark.parametrize(("regression", "factor"), [((), 2.0), ((True, True), 1.0)])
def test_the_best_weights_are_the_inverse_of_the_losses(regression, factor):
    losses, s = jnp.array([[0.2, 5.0]]), jnp.zeros(2)
    gradient = jax.jit(jax.grad(lambda s: uncertainty_weighting(losses, s, regression=regression).sum()))
    for _ in range(300):
        s = s - 0.5 * gradient(s)
    np.testing.assert_allclose(jnp.exp(-s), 1 / (factor * losses[0]), rtol=1e-4)


def test_uncertainty_needs_a_number_for_each_loss():
    with pytest.raises(UsageError, match="2 losses need as many"):
        uncertainty_weighting(jnp.ones((1, 2)), jnp.zeros(3))
    with pytest.raises(UsageError, match="2 losses need as many"):
        uncertainty_weighting(jnp.ones((1, 2)), jnp.zeros(2), regression=(True,))
