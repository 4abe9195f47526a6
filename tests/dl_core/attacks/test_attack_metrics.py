"""Metrics of attacks: the score of the course notes, success rates, distances, and accuracy over the radius."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dl_core.attacks.evaluate import (
    accuracy_curve,
    attack_score,
    curve_from_distances,
    distance_summary,
    success_rate,
)
from dl_core.attacks.gradient import fgsm
from dl_core.attacks.random_search import random_search
from dl_core.attacks.result import AttackResult
from dl_core.errors import UsageError
from dl_core.metrics.intervals import wilson_interval

KEY = jax.random.key(0)
RADII = (0.0, 0.02, 0.05, 0.1, 0.3)


def linear(params, images):
    return images.reshape(len(images), -1) @ params


@pytest.fixture(scope="module")
def problem():
    keys = jax.random.split(jax.random.key(1), 2)
    params, images = jax.random.normal(keys[0], (12, 4)), jax.random.uniform(keys[1], (20, 2, 2, 3))
    return params, images, linear(params, images).argmax(axis=1).at[0].set(3)


def result(success, distances):
    n = len(success)
    return AttackResult(
        jnp.zeros((n, 4)), jnp.array(success), jnp.array(distances), jnp.ones(n, jnp.int32), jnp.ones(n, jnp.int32)
    )


def test_the_attack_score_of_a_linear_model_is_its_gain_along_the_perturbation(problem):
    """W10: ‖f(x) − f(x*)‖² / ‖x − x*‖² = ‖Wᵀδ‖² / ‖δ‖², whatever the length of δ."""
    params, images, _ = problem
    change = jax.random.normal(KEY, images.shape)
    expected = np.sum((np.asarray(change).reshape(20, -1) @ np.asarray(params)) ** 2, axis=1)
    expected /= np.sum(np.asarray(change) ** 2, axis=(1, 2, 3))
    for length in (0.01, 1.0):
        # the difference of two images loses digits where it is short
        np.testing.assert_allclose(attack_score(linear, params, images, images + length * change), expected, rtol=1e-3)
    twice = attack_score(linear, 2 * params, images, images + change)
    np.testing.assert_allclose(twice, 4 * expected, rtol=1e-4)


def test_the_attack_score_is_zero_where_nothing_changes(problem):
    """W10: an unchanged image, and an unchanged prediction."""
    params, images, _ = problem
    np.testing.assert_array_equal(attack_score(linear, params, images, images), 0)
    blind = params.at[0].set(0)
    moved = images.reshape(20, 12).at[:, 0].add(0.3).reshape(images.shape)
    np.testing.assert_allclose(attack_score(linear, blind, images, moved), 0, atol=1e-10)
    gradient = jax.grad(lambda x: attack_score(linear, params, images, x).sum())(images)
    assert np.isfinite(gradient).all()


def test_the_success_rate_counts_the_attacked_images_alone_and_its_interval_holds_it():
    given = result([True, True, False, True], [0.0, 0.1, 0.3, 0.2])
    right = jnp.array([False, True, True, True])  # the first was wrong from the start
    every, fair = success_rate(given), success_rate(given, attacked=right)
    assert float(every.rate) == 0.75
    assert float(fair.rate) == pytest.approx(2 / 3)
    assert int(fair.attacked) == 3
    np.testing.assert_allclose([fair.low, fair.high], wilson_interval(2, 3), rtol=1e-5)
    assert np.isnan(success_rate(given, attacked=jnp.zeros(4, bool)).rate)


def test_distances_are_those_of_successes_and_a_failure_is_infinitely_far_in_the_median_of_all():
    given = result([True, True, False, True, False, False], [0.0, 0.1, 0.3, 0.2, 9.0, 9.0])
    summary = distance_summary(given, attacked=jnp.array([False, True, True, True, False, True]))
    np.testing.assert_allclose(summary, [0.15, 0.15, 0.2, 0.2], rtol=1e-6)  # 0.1, 0.2, ∞, ∞: the lower median
    alone = distance_summary(result([False, False, True], [1.0, 1.0, 0.5]))
    assert float(alone.largest) == 0.5
    assert np.isinf(alone.median_of_all)
    nothing = distance_summary(result([False], [1.0]))
    assert np.isnan(nothing.mean)
    assert np.isnan(nothing.largest)


def test_a_curve_is_the_attack_at_each_radius(problem):
    params, images, labels = problem
    curve = accuracy_curve(fgsm, linear, params, images, labels, RADII, key=KEY, worst_case=False)
    for i, eps in enumerate(RADII):
        alone = fgsm(linear, params, images, labels, eps=eps)
        np.testing.assert_array_equal(curve.broken[i], alone.success)
    np.testing.assert_allclose(curve.accuracy, 1 - np.asarray(curve.broken).mean(axis=1), rtol=1e-6)
    assert (curve.low <= curve.accuracy).all()
    assert (curve.accuracy <= curve.high).all()
    assert float(curve.accuracy[0]) == pytest.approx(0.95)  # one label is wrong, and needs no attack


def test_the_worst_case_never_rises_and_a_run_by_itself_may(problem):
    """An attack that overshoots breaks an image at a small radius and not at a large one, in whose ball it lies too."""
    params, images, labels = problem

    def overshooting(*args, eps, **options):
        return fgsm(*args, eps=jnp.where(eps > 0.1, 0.0, eps), **options)

    radii = (0.3, 0.1, 0.0)
    run = functools.partial(accuracy_curve, overshooting, linear, params, images, labels, radii, key=KEY)
    itself, worst = run(worst_case=False).accuracy, run().accuracy
    assert itself[0] > itself[1]
    assert worst[0] == worst[1] == itself[1]
    assert worst[2] == itself[2]


def test_all_radii_are_one_program_and_other_radii_none(problem):
    params, images, labels = problem
    traces = []

    def counted(params, images):
        traces.append(images.shape)
        return linear(params, images)

    run = lambda radii: accuracy_curve(fgsm, counted, params, images, labels, radii, key=KEY, batch_size=16)
    first = run(RADII)
    compiled = len(traces)
    second = run((0.01, 0.03, 0.04, 0.2, 0.4, 0.5, 0.6, 0.7))
    assert len(traces) == compiled, "other radii, and more of them, compile nothing"
    assert {shape[0] for shape in traces if shape[0] != len(images)} == {16}
    assert first.accuracy.shape == (5,)
    assert second.accuracy.shape == (8,)


def test_the_size_of_the_pieces_and_the_compiler_change_no_draw(problem):
    params, images, labels = problem
    attack = functools.partial(random_search, num_random=5)
    run = lambda images, **options: accuracy_curve(
        attack, linear, params, images, labels, RADII, key=KEY, worst_case=False, **options
    )
    whole = run(images)
    calls = []
    cut = run(images, batch_size=7, progress=lambda *call: calls.append(call))
    np.testing.assert_array_equal(cut.broken, whole.broken)
    assert calls[0] == (7, 100)
    assert calls[-1] == (100, 100)
    compiled = jax.jit(run)(images)
    np.testing.assert_array_equal(compiled.broken, whole.broken)
    np.testing.assert_allclose(compiled.low, whole.low, rtol=1e-5)


def test_a_minimal_distance_gives_the_whole_curve():
    given = result([True, True, True, False], [0.0, 0.1, 0.25, 0.05])
    curve = curve_from_distances(given, (0.0, 0.1, 0.2, 0.25, 1.0))
    np.testing.assert_allclose(curve.accuracy, [0.75, 0.5, 0.5, 0.25, 0.25])  # what failed is broken nowhere
    np.testing.assert_allclose(
        np.stack([curve.low, curve.high]), np.stack(wilson_interval(np.array([3, 2, 2, 1, 1]), 4)), rtol=1e-5
    )


@pytest.mark.usefixtures("annotations_off")
def test_a_score_needs_two_images_of_one_shape(problem):
    with pytest.raises(UsageError, match="shape of images"):
        attack_score(linear, problem[0], problem[1], problem[1][:3])


@pytest.mark.usefixtures("annotations_off")
@pytest.mark.parametrize(
    ("radii", "options", "words"),
    [
        ((), {}, "one radius or more"),
        (0.1, {}, "one radius or more"),
        ((0.1, -0.2), {}, "eps must not be negative"),
        ((0.1,), {"batch_size": 0}, "batch_size must be at least 1"),
        ((0.1,), {"confidence": 2.0}, "confidence must lie"),
        ((0.1,), {"norm": "l3"}, "unknown norm 'l3'"),
        ((0.1,), {"key": None}, "key is missing"),
    ],
)
def test_nonsense_is_refused(problem, radii, options, words):
    with pytest.raises(UsageError, match=words):
        accuracy_curve(fgsm, linear, *problem, radii, **{"key": KEY, **options})
