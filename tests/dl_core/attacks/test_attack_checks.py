"""What every attack refuses, and the pieces that every attack is made of: balls, steps and objectives."""

import attack_contract
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from dl_core.attacks.balls import NORMS, distance, image_keys, per_image, project, random_in_ball, unit_step
from dl_core.attacks.gradient import fgsm
from dl_core.attacks.iterative import iterative_gradient
from dl_core.attacks.objectives import margin, objective
from dl_core.attacks.projected import bim, momentum_pgd, pgd
from dl_core.errors import UsageError

QUICK = settings(max_examples=25, deadline=None, derandomize=True, database=None)
ATTACKS = {
    "fgsm": fgsm,
    "bim": bim,
    "pgd": lambda *args, **options: pgd(*args, **{"key": jax.random.key(0), **options}),
    "momentum_pgd": momentum_pgd,
    "iterative_gradient": lambda *args, **options: iterative_gradient(*args, step_size=0.1, **options),
}


def linear(params, x):
    return x.reshape(len(x), -1) @ params


def problem():
    return jax.random.normal(jax.random.key(0), (12, 5)), jnp.full((3, 2, 2, 3), 0.5), jnp.array([0, 1, 2])


def vectors(seed, scale=1.0, batch=4, size=12):
    return jnp.asarray(scale * np.random.default_rng(seed).normal(size=(batch, size)), jnp.float32)


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"eps": -0.1}, "eps must not be negative, got -0.1"),
        ({"eps": float("nan")}, "eps must not be negative, got nan"),
        ({"norm": "linfty"}, "unknown norm 'linfty'; did you mean 'linf'"),
        ({"bounds": (1.0, 0.0)}, r"bounds must be \(smallest, largest\), got \(1.0, 0.0\)"),
        ({"bounds": (0.0, float("inf"))}, "bounds must be"),
        ({"bounds": (0.0, 0.4)}, r"bounds=\(0.0, 0.4\), got values from 0.5 to 0.5.*let apply_fn normalise"),
        ({"images": jnp.full((3, 12), jnp.nan)}, "got values from nan"),
        ({"labels": jnp.array([0, 1, 5])}, r"labels must be in \[0, 5\), got 5"),
        ({"labels": jnp.array([0, -1, 2])}, r"labels must be in \[0, 5\), got -1"),
        ({"target": jnp.array([1, 2, 9])}, r"target must be in \[0, 5\), got 9"),
        ({"target": jnp.array([1, 1, 0])}, "equal to it for 1 images, the first at index 1"),
        ({"target": 2}, "the first at index 2"),
        ({"apply_fn": lambda p, x: jax.nn.softmax(linear(p, x))}, "look like probabilities.*jnp.log"),
        ({"apply_fn": lambda p, x: {"logits": linear(p, x)}}, "got dict. Wrap it"),
        ({"apply_fn": lambda p, x: linear(p, x)[:, 0]}, r"logits \[batch, classes\]"),
        ({"apply_fn": lambda p, x: linear(p, x)[:, :1]}, r"\[3, 2 or more\], got \[3, 1\]"),
        ({"key": jax.random.split(jax.random.key(0), 2)}, r"one for each of the 3 images; got \[2\]"),
    ],
)
def test_what_no_attack_can_mean_is_refused(name, changes, words):
    params, images, labels = problem()
    given = {"apply_fn": linear, "params": params, "images": images, "labels": labels, "eps": 0.1, **changes}
    if name == "iterative_gradient" and "target" in changes:
        given["direction"] = "targeted"
    positional = [given.pop(each) for each in ("apply_fn", "params", "images", "labels")]
    with pytest.raises(UsageError, match=words):
        ATTACKS[name](*positional, **given)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"images": jnp.full((3, 2, 2, 3), 128, jnp.uint8)}, "got uint8 of shape.*astype"),
        ({"images": [[0.5]]}, "got list"),
        ({"labels": jnp.array([0.0, 1.0, 2.0])}, "labels must be one class for each of the 3 images, got float32"),
        ({"labels": jnp.array([0, 1])}, r"of shape \[2\]"),
        ({"eps": jnp.ones(2)}, r"eps must be one number, or one for each of the 3 images, got shape \[2\]"),
    ],
)
def test_wrong_types_and_shapes_are_refused(annotations_off, changes, words):
    params, images, labels = problem()
    given = {"images": images, "labels": labels, "eps": 0.1, **changes}
    with pytest.raises(UsageError, match=words):
        bim(linear, params, **given)


@pytest.mark.parametrize(
    ("classes", "target", "words"), [(2, None, "compares 3 logits, the model has 2"), (3, 2, "compares 4 logits")]
)
def test_a_ratio_of_more_logits_than_there_are_is_refused(classes, target, words):
    params, images, labels = problem()
    with pytest.raises(UsageError, match=words):
        bim(linear, params[:, :classes], images, labels * 0, eps=0.1, loss="dlr", target=target)


def test_an_unknown_loss_is_refused():
    with pytest.raises(UsageError, match="unknown loss 'cross-entropy'; did you mean 'cross_entropy'"):
        bim(linear, *problem(), eps=0.1, loss="cross-entropy")


def reference_projection(vector, radius, norm):
    """In float64; for "l1" the root of the decreasing function θ ↦ Σ max(|v| − θ, 0) − radius."""
    vector = np.asarray(vector, np.float64)
    if norm == "linf":
        return np.clip(vector, -radius, radius)
    if norm == "l2":
        return vector * min(1, radius / np.linalg.norm(vector))
    if np.abs(vector).sum() <= radius:
        return vector
    surplus = lambda θ: np.maximum(np.abs(vector) - θ, 0).sum() - radius
    θ = optimize.brentq(surplus, 0, np.abs(vector).max(), xtol=1e-14)
    return np.sign(vector) * np.maximum(np.abs(vector) - θ, 0)


@QUICK
@given(seed=st.integers(0, 10_000), norm=st.sampled_from(NORMS), radius=st.floats(0, 5), scale=st.floats(0.01, 10))
def test_projection_is_the_nearest_point_of_the_ball(seed, norm, radius, scale):
    perturbation = vectors(seed, scale)
    origin = jnp.zeros_like(perturbation)
    projected = project(perturbation, origin, radius, (-1e3, 1e3), norm)
    expected = np.stack([reference_projection(row, radius, norm) for row in perturbation])
    np.testing.assert_allclose(projected, expected, atol=2e-6 * max(1, scale))  # sums of 12 float32 values
    np.testing.assert_allclose(project(projected, origin, radius, (-1e3, 1e3), norm), projected, atol=1e-5)


@QUICK
@given(seed=st.integers(0, 10_000), norm=st.sampled_from(NORMS), eps=st.sampled_from([0.0, 0.01, 0.3, 100.0]))
def test_clipping_to_the_bounds_does_not_lead_out_of_the_ball(seed, norm, eps):
    images = jnp.asarray(np.random.default_rng(seed).uniform(size=(4, 12)), jnp.float32)
    projected = project(images + vectors(seed + 1), images, eps, (0.0, 1.0), norm)
    assert projected.min() >= 0
    assert projected.max() <= 1
    assert (distance(projected - images, norm) <= eps * (1 + 1e-5) + 1e-6).all()
    if eps == 0:
        np.testing.assert_array_equal(projected, images)


def test_every_image_has_its_own_radius():
    perturbation = vectors(0, 10.0)
    radii = jnp.array([0.0, 0.5, 1.0, 2.0])
    for norm in NORMS:
        moved = distance(project(perturbation, jnp.zeros_like(perturbation), radii, (-1e3, 1e3), norm), norm)
        np.testing.assert_allclose(moved, radii, rtol=1e-5)
    assert per_image(radii, jnp.zeros((4, 2, 3))).shape == (4, 1, 1)


@QUICK
@given(seed=st.integers(0, 10_000), norm=st.sampled_from(NORMS))
def test_no_direction_of_length_one_rises_faster_than_the_unit_step(seed, norm):
    """It reaches the dual norm of the gradient, which by Hölder's inequality none exceeds."""
    gradient = vectors(seed)
    step = unit_step(gradient, norm)
    np.testing.assert_allclose(distance(step, norm), 1, rtol=1e-5)
    dual = {"linf": 1, "l2": 2, "l1": np.inf}[norm]
    np.testing.assert_allclose((step * gradient).sum(axis=1), np.linalg.norm(gradient, dual, axis=1), rtol=1e-5)
    others = np.random.default_rng(seed).normal(size=(200, 12))
    others /= np.linalg.norm(others, {"linf": np.inf, "l2": 2, "l1": 1}[norm], axis=1, keepdims=True)
    assert (others @ np.asarray(gradient).T <= np.asarray((step * gradient).sum(axis=1))[None] + 1e-5).all()


@pytest.mark.parametrize("norm", NORMS)
def test_steps_and_lengths_of_nothing_and_of_very_little(norm):
    zero = jnp.zeros((2, 12))
    np.testing.assert_array_equal(unit_step(zero, norm), zero)
    assert np.isfinite(jax.grad(lambda x: distance(x, norm).sum())(zero)).all()
    faint = 1e-30 * vectors(0)  # squares are zero in float32
    np.testing.assert_allclose(unit_step(faint, norm), unit_step(vectors(0), norm), rtol=1e-4)
    np.testing.assert_allclose(distance(faint, norm) * 1e30, distance(vectors(0), norm), rtol=1e-4)


def test_a_share_of_the_largest_values_moves_alike():
    gradient = jnp.array([[4.0, -3.0, 2.0, 1.0]])
    np.testing.assert_allclose(unit_step(gradient, "l1", share=0.5), [[0.5, -0.5, 0, 0]])
    np.testing.assert_allclose(unit_step(gradient, "l1", share=0.01), [[1, 0, 0, 0]])
    np.testing.assert_allclose(unit_step(gradient, "l1", share=1.0), [[0.25, -0.25, 0.25, 0.25]])


@pytest.mark.parametrize("norm", NORMS)
def test_random_points_are_uniform_in_the_ball(norm):
    """(‖δ‖ / eps)ⁿ is uniform on [0, 1], signs are even, and one coordinate has the marginal of rejection sampling."""
    size, count, eps = 3, 4000, 0.25
    images = jnp.zeros((count, size))
    points = np.asarray(random_in_ball(image_keys(jax.random.key(0), count), images, eps, norm), np.float64)
    lengths = np.linalg.norm(points, {"linf": np.inf, "l2": 2, "l1": 1}[norm], axis=1) / eps
    assert lengths.max() <= 1 + 1e-6
    # a fixed seed: a level of 1 % fails for one seed of a hundred, once and for all
    assert stats.kstest(lengths**size, "uniform").pvalue > 0.01
    assert abs(np.sign(points).mean(axis=0)).max() < 0.05
    cube = np.random.default_rng(0).uniform(-eps, eps, (40_000, size))
    inside = cube[np.linalg.norm(cube, {"linf": np.inf, "l2": 2, "l1": 1}[norm], axis=1) <= eps]
    assert stats.ks_2samp(points[:, 0], inside[:, 0]).pvalue > 0.01


def test_draws_do_not_depend_on_how_a_batch_is_cut():
    keys, images = image_keys(jax.random.key(3), 6), jnp.zeros((6, 5))
    for norm in NORMS:
        whole = random_in_ball(keys, images, 1.0, norm)
        np.testing.assert_allclose(random_in_ball(keys[4:], images[4:], 1.0, norm), whole[4:], rtol=1e-5)
    np.testing.assert_array_equal(jax.random.key_data(image_keys(keys, 6)), jax.random.key_data(keys))


LOGITS = jnp.array([[3.0, 1.0, 0.0, -2.0], [0.0, 4.0, 1.0, 2.0]])


@pytest.mark.parametrize(
    ("loss", "target", "expected"),
    [
        ("margin", None, [1 - 3, 4 - 0]),
        ("margin", [2, 3], [0 - 3, 2 - 4]),
        ("dlr", None, [(1 - 3) / (3 - 0), (4 - 0) / (4 - 1)]),
        ("dlr", [2, 3], [(0 - 3) / (3 - (0 - 2) / 2), (2 - 0) / (4 - (1 + 0) / 2)]),
        ("cross_entropy", None, [np.log(np.exp([0.0, -2, -3, -5]).sum()), np.log(np.exp([0.0, 4, 1, 2]).sum())]),
        ("cross_entropy", [2, 3], [-np.log(np.exp([3.0, 1, 0, -2]).sum()), 2 - np.log(np.exp([0.0, 4, 1, 2]).sum())]),
    ],
)
def test_objectives_by_hand(loss, target, expected):
    """Both images have label 0; the second is misclassified."""
    target = None if target is None else jnp.array(target)
    np.testing.assert_allclose(objective(LOGITS, jnp.array([0, 0]), target, loss), expected, rtol=1e-5)


def test_a_function_is_raised_for_the_label_and_lowered_for_the_target():
    loss = lambda logits, classes: logits[jnp.arange(2), classes]
    np.testing.assert_allclose(objective(LOGITS, jnp.array([0, 1]), None, loss), [3, 4])
    np.testing.assert_allclose(objective(LOGITS, jnp.array([0, 1]), jnp.array([1, 0]), loss), [-1, 0])


@QUICK
@given(seed=st.integers(0, 10_000), targeted=st.booleans(), shift=st.floats(-5, 5), scale=st.floats(0.1, 100))
def test_the_sign_of_the_margin_is_success_and_the_ratio_ignores_scale_and_shift(seed, targeted, shift, scale):
    logits = vectors(seed, size=5)
    labels = jnp.arange(4)
    target = (labels + 1) % 5 if targeted else None
    predicted = logits.argmax(axis=1)
    gain = margin(logits, labels, target)
    np.testing.assert_array_equal(gain > 0, predicted == target if targeted else predicted != labels)
    ratio = objective(logits, labels, target, "dlr")
    np.testing.assert_allclose(
        objective(scale * (logits + shift), labels, target, "dlr"), ratio, rtol=2e-3, atol=1e-4
    )  # a shift of 5 takes three bits from differences
    assert not np.isnan(objective(0 * logits, labels, target, "dlr")).any()


def test_the_shared_network_is_right_on_nearly_all_of_its_images():
    """Or the contract of the attacks would be tested on images that are misclassified already."""
    images, labels = attack_contract.quadrants(64)
    predicted = attack_contract.small_network(attack_contract.trained_params(), images).argmax(axis=1)
    assert (predicted == labels).mean() > 0.9
