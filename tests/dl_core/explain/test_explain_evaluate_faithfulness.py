"""Completeness, deletion and insertion, sensitivity-n, infidelity: closed forms on linear and additive models."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from explanation_contract import assert_keeps_the_contract, small_images, small_network, small_params
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dl_core.errors import UsageError
from dl_core.explain.evaluate.completeness import completeness
from dl_core.explain.evaluate.deletion_insertion import area_over_curve, perturbation_curve, random_order_curve
from dl_core.explain.evaluate.infidelity import gaussian_noise, infidelity, square_removal
from dl_core.explain.evaluate.sensitivity_n import sensitivity_n
from dl_core.explain.gradients import gradient_x_input, saliency

RNG = np.random.default_rng(0)
KEY_SEED = 0
axiom = settings(max_examples=25, deadline=None, derandomize=True, database=None)
unit = arrays(np.float32, (2, 6), elements=st.floats(-2, 2, width=32))


def linear(weights, inputs):
    return inputs.reshape(len(inputs), -1) @ weights


WEIGHTS = jnp.asarray(RNG.normal(size=(48, 3)), jnp.float32)  # of images [4, 4, 3]
IMAGES = jnp.asarray(RNG.uniform(0.2, 1, size=(5, 4, 4, 3)), jnp.float32)
TARGET = jnp.array([0, 1, 2, 1, 0])
PARTS = gradient_x_input(linear, WEIGHTS, IMAGES, TARGET)  # exact: the output is their sum


def key():
    return jax.random.key(KEY_SEED)


# Completeness


def test_of_a_linear_model_gradient_x_input_is_complete():
    found = completeness(linear, WEIGHTS, IMAGES, TARGET, PARTS)
    np.testing.assert_allclose(found.change, linear(WEIGHTS, IMAGES)[jnp.arange(5), TARGET], rtol=1e-5)
    np.testing.assert_allclose(found.gap, 0, atol=1e-5)  # sums of 48 float32 products in another order
    np.testing.assert_allclose(found.relative_gap, 0, atol=1e-5)


def test_the_gap_is_what_is_missing_and_the_baseline_is_subtracted():
    baseline = jnp.full((4, 4, 3), 0.1)
    complete = PARTS - gradient_x_input(linear, WEIGHTS, jnp.broadcast_to(baseline, IMAGES.shape), TARGET)
    found = completeness(linear, WEIGHTS, IMAGES, TARGET, 1.5 * complete, baselines=baseline)
    np.testing.assert_allclose(found.gap, 0.5 * found.change, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.relative_gap, 0.5, rtol=1e-4)


@axiom
@given(unit, unit)
def test_the_gap_of_a_sum_is_the_sum_of_the_gaps_plus_the_change(first, second):
    """gap(a + b) = gap(a) + gap(b) + change: the gap is affine in the attributions."""
    weights, inputs = WEIGHTS[:6], jnp.asarray(RNG.normal(size=(2, 6)), jnp.float32)
    of = lambda attributions: completeness(linear, weights, inputs, 1, jnp.asarray(attributions))
    np.testing.assert_allclose(of(first + second).gap, of(first).gap + of(second).gap + of(first).change, atol=1e-4)


# Deletion and insertion


def test_the_curve_deletes_pixels_from_the_most_to_the_least_relevant():
    """By hand: each point is the linear output without the first k pixels, all of whose channels go at once."""
    found = perturbation_curve(linear, WEIGHTS, IMAGES, TARGET, PARTS, output="logit", n_steps=16)
    pixels = np.sort(np.asarray(PARTS.sum(axis=3)).reshape(5, 16))[:, ::-1]
    left = np.concatenate([pixels, np.zeros((5, 1))], axis=1)[:, ::-1].cumsum(axis=1)[:, ::-1]
    np.testing.assert_allclose(found.scores, left, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.fractions, np.arange(17) / 16)
    np.testing.assert_allclose(found.auc, np.trapezoid(left, np.arange(17) / 16, axis=1), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(area_over_curve(found.scores), (left[:, :1] - left).mean(axis=1), rtol=1e-4)


def test_on_an_additive_model_true_attributions_have_the_best_curves_of_all_orders():
    """All 120 orders of five features: none has a smaller area of deletion, or a larger one of insertion."""
    values = jnp.asarray(RNG.normal(size=(1, 5)), jnp.float32)
    additive = lambda params, x: x.sum(axis=1, keepdims=True)
    orders = np.array(list(itertools.permutations(range(5))), np.float32)
    many = jnp.broadcast_to(values, (120, 5))
    areas = {
        mode: (
            perturbation_curve(additive, None, many, 0, jnp.asarray(orders), mode=mode, output="logit").auc,
            perturbation_curve(additive, None, values, 0, values, mode=mode, output="logit").auc[0],
        )
        for mode in ("deletion", "insertion")
    }
    of_orders, best = areas["deletion"]
    assert best <= of_orders.min() + 1e-6  # rounding of the order that is the same
    np.testing.assert_allclose(best, of_orders.min(), atol=1e-6)
    assert len(np.unique(np.round(of_orders, 5))) > 60  # the orders do differ
    of_orders, best = areas["insertion"]
    np.testing.assert_allclose(best, of_orders.max(), atol=1e-6)


def test_insertion_is_deletion_seen_from_the_other_end():
    """The most relevant inserted first = the least relevant deleted first, backwards."""
    options = {"output": "logit", "n_steps": 16}
    inserted = perturbation_curve(linear, WEIGHTS, IMAGES, TARGET, PARTS, mode="insertion", **options)
    deleted = perturbation_curve(linear, WEIGHTS, IMAGES, TARGET, PARTS, order="least_first", **options)
    np.testing.assert_allclose(inserted.scores, deleted.scores[:, ::-1], atol=1e-5)


def test_equal_attributions_go_by_rows():
    found = perturbation_curve(linear, WEIGHTS, IMAGES, TARGET, jnp.zeros_like(IMAGES), output="logit", n_steps=16)
    rows = perturbation_curve(
        linear, WEIGHTS, IMAGES, TARGET, jnp.broadcast_to(-jnp.arange(16.0).reshape(1, 4, 4, 1), IMAGES.shape),
        output="logit", n_steps=16,
    )  # fmt: skip
    np.testing.assert_array_equal(found.scores, rows.scores)


def test_patches_and_a_mask_of_the_same_numbers_are_the_same_features():
    """Patches of 3 on 4 pixels leave narrow ones at the far edge."""
    numbers = np.array([[0, 0, 0, 1]] * 3 + [[2, 2, 2, 3]])[..., None]
    run = lambda **features: perturbation_curve(linear, WEIGHTS, IMAGES, TARGET, PARTS, output="logit", **features)
    patches, mask = run(patch_size=3), run(feature_mask=numbers)
    assert patches.scores.shape == (5, 5)
    np.testing.assert_array_equal(patches.scores, mask.scores)
    totals = np.asarray(jnp.stack([jnp.where(numbers == k, PARTS, 0).sum(axis=(1, 2, 3)) for k in range(4)], axis=1))
    falling = np.sort(totals, axis=1)[:, ::-1]
    np.testing.assert_allclose(-np.diff(patches.scores, axis=1), falling, rtol=1e-3, atol=1e-4)


def test_a_mask_may_separate_channels_and_differ_between_examples():
    by_channel = np.arange(3)[None, None, None]
    found = perturbation_curve(linear, WEIGHTS, IMAGES, TARGET, PARTS, output="logit", feature_mask=by_channel)
    falling = np.sort(np.asarray(PARTS.sum(axis=(1, 2))))[:, ::-1]
    np.testing.assert_allclose(-np.diff(found.scores, axis=1), falling, rtol=1e-3, atol=1e-4)
    of_each = (np.arange(16).reshape(1, 4, 4, 1) + np.arange(5).reshape(5, 1, 1, 1)) % 4
    each = perturbation_curve(linear, WEIGHTS, IMAGES, TARGET, PARTS, output="logit", feature_mask=of_each)
    alone = perturbation_curve(
        linear, WEIGHTS, IMAGES[2:3], TARGET[2:3], PARTS[2:3], output="logit", feature_mask=of_each[2]
    )
    np.testing.assert_allclose(each.scores[2], alone.scores[0], rtol=1e-5, atol=1e-5)


def test_probabilities_and_normalised_curves():
    found = perturbation_curve(linear, WEIGHTS, IMAGES, TARGET, PARTS)
    whole = jax.nn.softmax(linear(WEIGHTS, IMAGES))[jnp.arange(5), TARGET]
    np.testing.assert_allclose(found.scores[:, 0], whole, rtol=1e-5)
    np.testing.assert_allclose(found.scores[:, -1], 1 / 3, rtol=1e-5)  # nothing is left: equal logits
    picked = perturbation_curve(linear, WEIGHTS, IMAGES, lambda scores: scores[jnp.arange(5), TARGET], PARTS)
    np.testing.assert_allclose(picked.scores, found.scores, rtol=1e-5)
    for mode, ends in (("deletion", (1, 0)), ("insertion", (0, 1))):
        scores = perturbation_curve(linear, WEIGHTS, IMAGES, TARGET, PARTS, mode=mode, normalize=True).scores
        np.testing.assert_allclose(scores[:, [0, -1]], np.broadcast_to(ends, (5, 2)), atol=1e-6)


@axiom
@given(arrays(np.float32, (2, 6), elements=st.floats(-2, 2, width=16)), st.sampled_from([0.25, 2, 64]))
def test_curves_depend_on_ranks_alone(attributions, scale):
    """Powers of two scale without rounding, so not even ties may change."""
    weights, inputs = WEIGHTS[:6], jnp.asarray([[1.0, -2, 3, -4, 5, 6], [3.0, 1, -2, 4, 2, 1]])
    run = lambda found: perturbation_curve(linear, weights, inputs, 1, jnp.asarray(found)).scores
    np.testing.assert_array_equal(run(attributions), run(np.float32(scale) * attributions))


def test_random_attributions_score_like_the_random_baseline_and_true_ones_better():
    network, params, images = small_network, small_params(), small_images(16)
    target = small_network(params, images).argmax(axis=1)
    options = {"patch_size": 2, "output": "logit"}
    noise = jax.random.normal(jax.random.key(1), images.shape)
    chance = perturbation_curve(network, params, images, target, noise, **options)
    baseline = random_order_curve(network, params, images, target, key=key(), n_orders=4, **options)
    true = perturbation_curve(
        network, params, images, target, gradient_x_input(network, params, images, target), **options
    )
    spread = float(chance.auc.std()) / 16**0.5
    assert abs(float((chance.auc - baseline.auc).mean())) < 3 * spread
    # The path is chosen for it: measured 0.24 logits of a mean area of 0.6.
    assert float((baseline.auc - true.auc).mean()) > 0.1
    np.testing.assert_allclose(baseline.scores[:, 0], chance.scores[:, 0], rtol=1e-5)
    repeated = random_order_curve(network, params, images, target, key=key(), n_orders=4, **options)
    np.testing.assert_array_equal(baseline.scores, repeated.scores)


def test_a_blurred_baseline_is_a_smooth_image():
    steps = jnp.zeros((1, 20, 20, 1)).at[:, :, 10:].set(1)
    total = lambda params, x: jnp.stack([x[:, :, 9, 0].sum(axis=1), x.sum(axis=(1, 2, 3))], axis=1)
    options = {"mode": "insertion", "output": "logit", "baselines": "blurred"}
    column = perturbation_curve(total, None, steps, 0, steps, **options).scores[0, 0] / 20
    assert 0.2 < column < 0.5  # left of the step, by half a pixel of a Gaussian of 2
    whole = perturbation_curve(total, None, steps, 1, steps, **options).scores[0, 0]
    np.testing.assert_allclose(whole, 200, rtol=1e-5)  # blurring keeps the mean of a symmetric step


def test_pieces_do_not_change_a_curve_and_bound_what_the_model_sees():
    rows = []

    def watched(weights, inputs):
        rows.append(len(inputs))
        return linear(weights, inputs)

    whole = perturbation_curve(linear, WEIGHTS, IMAGES, TARGET, PARTS, n_steps=16)
    done = []
    pieces = perturbation_curve(
        watched, WEIGHTS, IMAGES, TARGET, PARTS, n_steps=16, internal_batch_size=20,
        progress=lambda *counts: done.append(counts),
    )  # fmt: skip
    np.testing.assert_allclose(pieces.scores, whole.scores, rtol=1e-5)
    assert done == [(i, 5) for i in range(1, 6)]  # 17 points of 5 rows, four points at most at once


# Sensitivity-n


def test_of_a_linear_model_sensitivity_n_is_one_for_every_n():
    found = sensitivity_n(linear, WEIGHTS, IMAGES, TARGET, PARTS, key=key(), n=[1, 3, 8, 15], n_samples=40)
    assert found.shape == (5, 4)
    np.testing.assert_allclose(found, 1, atol=1e-4)
    opposite = sensitivity_n(linear, WEIGHTS, IMAGES, TARGET, -PARTS, key=key(), n=[1, 3, 8, 15], n_samples=40)
    np.testing.assert_allclose(opposite, -1, atol=1e-4)


def test_sensitivity_n_of_noise_is_near_zero_and_of_a_constant_undefined():
    noise = jax.random.normal(jax.random.key(3), IMAGES.shape)
    found = sensitivity_n(linear, WEIGHTS, IMAGES, TARGET, noise, key=key(), n=4, n_samples=200)
    assert np.abs(found).max() < 0.75  # sixteen numbers correlate by chance: a standard deviation of 1/4
    assert np.isnan(sensitivity_n(linear, WEIGHTS, IMAGES, TARGET, jnp.ones_like(IMAGES), key=key(), n=4)).all()


def test_the_sets_have_n_features_and_the_correlation_is_numpys():
    """A model that counts what is left, and one that squares: n from the change, the correlation from NumPy."""
    inputs = jnp.ones((2, 7))
    seen = []
    count = lambda params, x: jnp.stack([x.sum(axis=1), jnp.square(x @ params)], axis=1)
    weights = jnp.asarray(RNG.normal(size=7), jnp.float32)
    attributions = jnp.asarray(RNG.normal(size=(2, 7)), jnp.float32)

    def recorded(params, x):
        jax.debug.callback(lambda x: seen.append(np.asarray(x).reshape(-1, 2, 7)), x)
        return count(params, x)

    found = sensitivity_n(recorded, weights, inputs, 1, attributions, key=key(), n=3, n_samples=30)
    jax.effects_barrier()
    sets = np.concatenate([x for x in seen if not (x == 1).all()])
    assert sets.shape == (30, 2, 7)
    assert ((sets == 0).sum(axis=2) == 3).all()
    for i in range(2):
        change = float(weights.sum()) ** 2 - (sets[:, i] @ weights) ** 2
        expected = np.corrcoef((1 - sets[:, i]) @ attributions[i], change)[0, 1]
        np.testing.assert_allclose(found[i, 0], expected, atol=1e-4)
    assert len(np.unique(sets[:, 0], axis=0)) > 15  # of 35 sets


# Infidelity


@pytest.mark.parametrize("perturb", [gaussian_noise(0.3), square_removal(2)], ids=["noise", "square"])
@pytest.mark.parametrize("normalize", [False, True])
def test_of_a_linear_model_gradient_x_input_has_infidelity_zero(perturb, normalize):
    options = {"key": key(), "perturb": perturb, "normalize": normalize}
    found = infidelity(linear, WEIGHTS, IMAGES, TARGET, PARTS, **options)
    np.testing.assert_allclose(found, 0, atol=1e-6)  # squares of float32 rounding
    gradient = saliency(linear, WEIGHTS, IMAGES, TARGET, absolute=False)
    local = infidelity(linear, WEIGHTS, IMAGES, TARGET, gradient, multiply_by_inputs=False, **options)
    np.testing.assert_allclose(local, 0, atol=1e-6)
    twice = infidelity(linear, WEIGHTS, IMAGES, TARGET, 2 * PARTS, **options)
    assert (np.max(twice) < 1e-6) == normalize  # the best scale takes the factor away


def test_attributions_of_zero_have_the_mean_squared_change():
    """A square that covers the whole image: the change is the output itself."""
    perturb = square_removal(4)
    zero = infidelity(linear, WEIGHTS, IMAGES, TARGET, jnp.zeros_like(IMAGES), key=key(), perturb=perturb)
    np.testing.assert_allclose(zero, jnp.square(linear(WEIGHTS, IMAGES)[jnp.arange(5), TARGET]), rtol=1e-4)


def test_a_removed_square_lies_inside_at_every_place_alike():
    images = jnp.ones((400, 5, 4, 2))
    holes = np.asarray(square_removal(3, 0.5)(key(), images) == 0.5)
    assert (holes.sum(axis=(1, 2)) == 9).all()
    places, counts = np.unique(holes[..., 0].reshape(400, -1), axis=0, return_counts=True)
    assert len(places) == 3 * 2
    assert counts.min() > 400 / 6 - 4 * (400 * 5 / 36) ** 0.5  # four standard deviations


def test_the_perturbation_of_a_user_is_used_as_it_is():
    halve = lambda key, inputs: inputs / 2
    found = infidelity(linear, WEIGHTS, IMAGES, TARGET, jnp.zeros_like(IMAGES), key=key(), perturb=halve)
    np.testing.assert_allclose(found, jnp.square(linear(WEIGHTS, IMAGES)[jnp.arange(5), TARGET] / 2), rtol=1e-4)


# All of them


@pytest.mark.parametrize(
    "score",
    [
        lambda *given: completeness(*given, jnp.cos(given[2])).gap,
        lambda *given: perturbation_curve(*given, jnp.cos(given[2]), patch_size=4, internal_batch_size=16).scores,
    ],
    ids=["completeness", "deletion"],
)
def test_scores_keep_the_contract(score):
    """Compiled, over targets, over stacked params, sharded. In bfloat16 the ranks of attributions differ: left out."""
    assert_keeps_the_contract(score, rtol=1e-3, atol=1e-3, bfloat16_atol=None)


@pytest.mark.parametrize(
    "score",
    [
        lambda w, t: sensitivity_n(linear, w, IMAGES, t, jnp.cos(9 * IMAGES), key=key(), n=3, n_samples=8),
        lambda w, t: infidelity(linear, w, IMAGES, t, PARTS + 1, key=key(), internal_batch_size=10, normalize=True),
    ],
    ids=["sensitivity-n", "infidelity"],
)
def test_scores_are_the_same_compiled_and_over_targets_and_stacked_weights(score):
    whole = score(WEIGHTS, TARGET)
    stacked, targets = jnp.stack([-2 * WEIGHTS, WEIGHTS]), jnp.stack([(TARGET + 1) % 3, TARGET])
    mapped = jax.jit(jax.vmap(score))(stacked, targets)
    np.testing.assert_allclose(mapped[1], whole, rtol=1e-3, atol=1e-4)  # differences of float32 sums
    half = score(WEIGHTS.astype(jnp.bfloat16), TARGET)
    np.testing.assert_allclose(half, whole, rtol=0.1, atol=0.05)  # weights of three digits


@pytest.mark.usefixtures("annotations_off")
@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda given: completeness(*given, PARTS[..., :1]), r"the inputs, \[5, 4, 4, 3\], got \[5, 4, 4, 1\]"),
        (lambda given: completeness(*given, PARTS.astype(int)), "floating numbers, got int32"),
        (lambda given: completeness(*given, PARTS.at[3].set(jnp.nan)), r"examples \[3\] are not"),
        (lambda given: completeness(*given, PARTS, baselines="black"), "'black'"),
        (lambda given: completeness(*given, PARTS, baselines=jnp.zeros(3)), r"one example \[4, 4, 3\].*got \[3\]"),
        (lambda given: perturbation_curve(*given, PARTS, mode="delete"), "'delete'; did you mean 'deletion'"),
        (lambda given: perturbation_curve(*given, PARTS, order="first"), "unknown order"),
        (lambda given: perturbation_curve(*given, PARTS, output="probabilities"), "did you mean 'probability'"),
        (lambda given: perturbation_curve(*given, PARTS, n_steps=17), r"in \[1, 16\], the number of features; got 17"),
        (lambda given: perturbation_curve(*given, PARTS, n_steps=0), "got 0"),
        (lambda given: perturbation_curve(*given, PARTS, patch_size=0), "from 1 up"),
        (lambda given: perturbation_curve(*given, PARTS, patch_size=(2, 2, 2)), r"2 of them for the axes \[4, 4\]"),
        (lambda given: perturbation_curve(*given, PARTS, feature_mask=np.zeros((3, 4, 1), int)), "broadcast against"),
        (lambda given: perturbation_curve(*given, PARTS, feature_mask=np.full((4, 4, 1), -1)), "from 0 up"),
        (lambda given: perturbation_curve(*given, PARTS, feature_mask=np.zeros((4, 1), int), patch_size=2), "not both"),
        (lambda given: perturbation_curve(*given, PARTS, internal_batch_size=0), "at least 1, got 0"),
        (lambda given: random_order_curve(*given, key=key(), n_orders=0), "n_orders must be at least 1, got 0"),
        (lambda given: sensitivity_n(*given, PARTS, key=key(), n=16), "there are 16 features"),
        (lambda given: sensitivity_n(*given, PARTS, key=key(), n=[1, 99]), "got .1, 99."),
        (lambda given: sensitivity_n(*given, PARTS, key=key(), n=0), r"in \[1, 16\)"),
        (lambda given: sensitivity_n(*given, PARTS, key=key(), n=0.5), "got 0.5"),
        (lambda given: sensitivity_n(*given, PARTS, key=key(), n=2, n_samples=1), "at least 2"),
        (lambda given: infidelity(*given, PARTS, key=key(), n_perturb_samples=0), "at least 1, got 0"),
        (lambda given: infidelity(*given, PARTS, key=key(), perturb=lambda key, x: x[:1]), r"got \[1, 4, 4, 3\]"),
        (lambda given: gaussian_noise(0.0), "stdev must be positive, got 0"),
        (lambda given: square_removal(0), "at least 1 pixel, got 0"),
        (lambda given: completeness(*given[:3], 7, PARTS), r"target must be in \[0, 3\), got 7"),
    ],
)  # fmt: skip
def test_nonsense_is_refused(call, words):
    with pytest.raises(UsageError, match=words):
        call((linear, WEIGHTS, IMAGES, TARGET))


def test_a_mask_that_is_not_known_is_refused_inside_jit():
    run = jax.jit(lambda mask: perturbation_curve(linear, WEIGHTS, IMAGES, TARGET, PARTS, feature_mask=mask).auc)
    with pytest.raises(UsageError, match="known outside of jit"):
        run(jnp.zeros((4, 4, 1), int))
