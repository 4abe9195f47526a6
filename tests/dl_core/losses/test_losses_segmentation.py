"""Losses of overlap: what they are at known overlaps, how they relate, and pixels that do not count."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dl_core import losses
from dl_core.errors import UsageError

RANDOM = np.random.default_rng(0)
LOGITS = jnp.asarray(RANDOM.normal(size=(3, 4, 5, 3)), jnp.float32)
LABELS = jnp.asarray(RANDOM.integers(0, 3, (3, 4, 5)))
ALL = [losses.dice, losses.generalized_dice, losses.jaccard, losses.tversky]


def sure(labels, classes=3):
    """Logits whose softmax and sigmoid are 0 and 1."""
    return 1e4 * (2 * jax.nn.one_hot(jnp.asarray(labels), classes) - 1)


@pytest.mark.parametrize("loss", ALL)
def test_the_right_answer_costs_nothing_and_the_wrong_one_costs_all(loss):
    np.testing.assert_allclose(loss(sure(LABELS), LABELS, smooth=0.0), 0, atol=1e-6)
    np.testing.assert_allclose(loss(sure((LABELS + 1) % 3), LABELS, smooth=0.0), 1, atol=1e-6)
    between = loss(LOGITS, LABELS)
    assert ((between > 0) & (between < 1)).all()


def test_counts_of_decisions_give_the_formulas_of_sets():
    """One image, class 1 in 4 pixels of which 3 are found, and 2 others taken for it: TP 3, FP 2, FN 1."""
    labels, found = jnp.array([[1, 1, 1, 1, 0, 0, 0, 0, 0, 0]]), jnp.array([[1, 1, 1, 0, 1, 1, 0, 0, 0, 0]])
    only_one = jnp.array([0.0, 1.0])
    options = {"class_weights": only_one, "smooth": 0.0}
    logits = sure(found, 2)
    np.testing.assert_allclose(losses.dice(logits, labels, **options), 1 - 2 * 3 / (2 * 3 + 2 + 1), rtol=1e-6)
    np.testing.assert_allclose(losses.jaccard(logits, labels, **options), 1 - 3 / 6, rtol=1e-6)
    np.testing.assert_allclose(
        losses.tversky(logits, labels, alpha=0.25, beta=2.0, **options), 1 - 3 / (3 + 0.25 * 2 + 2.0 * 1), rtol=1e-6
    )
    # class 0: TP 4, FP 1, FN 2, 6 pixels; class 1 is the rarest
    weight = (4 / 6) ** 2
    expected = 1 - 2 * (weight * 4 + 3) / (weight * (8 + 3) + 6 + 3)
    np.testing.assert_allclose(losses.generalized_dice(logits, labels, smooth=0.0), expected, rtol=1e-6)


@pytest.mark.parametrize("independent", [False, True])
@pytest.mark.parametrize(("alpha", "beta"), [(0.5, 0.5), (0.3, 0.7), (1.0, 1.0)])
def test_tversky_is_optaxs_dice_loss(alpha, beta, independent):
    one_hot = jax.nn.one_hot(LABELS, 3)
    if independent:  # Optax has the sigmoid for a single class alone
        ours = losses.tversky(LOGITS[..., :1], one_hot[..., :1], alpha=alpha, beta=beta, independent=True)
        theirs = optax.losses.dice_loss(LOGITS[..., :1], one_hot[..., :1], alpha=alpha, beta=beta)
    else:
        ours = losses.tversky(LOGITS, LABELS, alpha=alpha, beta=beta)
        theirs = optax.losses.dice_loss(LOGITS, one_hot, alpha=alpha, beta=beta)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_dice_and_jaccard_are_tversky():
    np.testing.assert_array_equal(losses.dice(LOGITS, LABELS), losses.tversky(LOGITS, LABELS))
    jaccard = losses.jaccard(LOGITS, LABELS, smooth=0.0, class_weights=jnp.array([0.0, 0.0, 1.0]))
    dice = losses.dice(LOGITS, LABELS, smooth=0.0, class_weights=jnp.array([0.0, 0.0, 1.0]))
    np.testing.assert_allclose(1 - dice, 2 * (1 - jaccard) / (2 - jaccard), rtol=1e-5)  # D = 2 J / (1 + J)


@pytest.mark.parametrize("loss", ALL)
def test_labels_may_be_classes_or_distributions(loss):
    np.testing.assert_allclose(loss(LOGITS, LABELS), loss(LOGITS, jax.nn.one_hot(LABELS, 3)), rtol=1e-6)


@pytest.mark.parametrize("loss", ALL)
@pytest.mark.parametrize("independent", [False, True])
def test_pixels_without_a_label_do_not_count_whatever_they_hold(loss, independent):
    where = np.zeros((3, 4, 5), bool)
    where[0, 1:3], where[1, ::3] = True, True  # two rows of pixels each, and none in the last image
    labels = np.asarray(jax.nn.one_hot(LABELS, 3)) if independent else np.asarray(LABELS)
    spoiled_labels, spoiled_logits = labels.copy(), np.array(LOGITS)
    spoiled_labels[~where], spoiled_logits[~where] = (np.nan if independent else 255), np.nan

    @jax.jit
    def with_gradient(logits):
        values, pullback = jax.vjp(
            lambda z: loss(z, jnp.asarray(spoiled_labels), independent=independent, where=jnp.asarray(where)), logits
        )
        return values, pullback(jnp.ones_like(values))[0]

    values, gradient = map(np.asarray, with_gradient(spoiled_logits))
    np.testing.assert_array_equal(gradient[~where], 0)
    assert np.isfinite(gradient).all()
    assert np.abs(gradient[:2]).max() > 0
    np.testing.assert_allclose(values[2], 0, atol=1e-6)  # an image without labels
    for image in range(2):  # the labelled pixels as an image of one axis
        pixels = [jnp.asarray(np.asarray(array)[image][where[image]][None]) for array in (LOGITS, labels)]
        alone = jax.jit(functools.partial(loss, independent=independent))(*pixels)
        np.testing.assert_allclose(values[image], alone[0], rtol=1e-5)


@pytest.mark.parametrize("loss", ALL)
@pytest.mark.parametrize("smooth", [0.0, 1.0])
def test_classes_that_are_absent_keep_values_and_gradients_finite(loss, smooth):
    @jax.jit
    def with_gradient(logits):
        values, pullback = jax.vjp(lambda z: loss(z, jnp.zeros_like(LABELS), smooth=smooth), logits)
        return values, pullback(jnp.ones(3))[0]

    for logits in (LOGITS, sure(jnp.zeros_like(LABELS))):
        values, gradient = with_gradient(logits)
        assert np.isfinite(values).all()
        assert np.isfinite(gradient).all()
    np.testing.assert_allclose(values, 0, atol=1e-6)


def test_smoothing_makes_an_empty_class_cost_what_is_predicted_of_it():
    empty, logits = jnp.zeros((3, 4, 5, 1)), LOGITS[..., :1]
    predicted = jax.nn.sigmoid(logits).sum((1, 2, 3))
    np.testing.assert_allclose(losses.jaccard(logits, empty, independent=True), predicted / (predicted + 1), rtol=1e-5)
    np.testing.assert_allclose(
        losses.generalized_dice(logits, empty, independent=True), predicted / (predicted + 1), rtol=1e-5
    )


def test_a_rare_class_counts_as_much_as_a_common_one_in_generalized_dice():
    """4 pixels of 100: cross-entropy hardly minds that they are missed, generalised Dice minds as much as the rest."""
    labels = jnp.zeros((1, 100), int).at[0, :4].set(1)
    missed, confused = sure(jnp.zeros_like(labels), 2), sure(jnp.ones_like(labels), 2)
    pixelwise = [losses.cross_entropy(logits, labels).mean() for logits in (missed, confused)]
    np.testing.assert_allclose(pixelwise[1] / pixelwise[0], 96 / 4, rtol=1e-5)
    overlap = [losses.generalized_dice(logits, labels, smooth=0.0)[0] for logits in (missed, confused)]
    weight = (4 / 96) ** 2  # of the common class; that of the rare one is 1
    np.testing.assert_allclose(overlap[0], 1 - 2 * weight * 96 / (weight * (100 + 96) + 4), rtol=1e-5)
    np.testing.assert_allclose(overlap[1], 1 - 2 * 4 / (weight * 96 + 4 + 100), rtol=1e-5)
    assert 0.9 < overlap[0] / overlap[1] < 1.1


@pytest.mark.parametrize("loss", ALL)
def test_a_class_that_does_not_exist_is_not_a_number(loss):
    values = loss(LOGITS, LABELS.at[0, 0, 0].set(3))
    assert jnp.isnan(values[0])
    assert jnp.isfinite(values[1:]).all()


def test_half_precision_is_summed_in_float32():
    low = LOGITS.astype(jnp.bfloat16)
    values = losses.dice(low, LABELS)
    assert values.dtype == jnp.float32
    np.testing.assert_array_equal(values, losses.dice(low.astype(jnp.float32), LABELS))


@pytest.mark.usefixtures("annotations_off")
@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        ((LOGITS, LABELS), {"smooth": -1.0}, r"smooth must lie in \[0, inf\), got -1"),
        ((LOGITS, LABELS[:, :3]), {}, r"need integer labels of shape \(3, 4, 5\)"),
        ((LOGITS, LABELS), {"independent": True}, "independent classes need labels of the shape of the logits"),
        ((LOGITS[..., :1], LABELS), {}, "softmax of one class is always 1; give independent=True"),
        ((LOGITS, LABELS), {"where": jnp.ones((3, 4), bool)}, r"where must have the axes of the pixels, \(3, 4, 5\)"),
    ],
)
@pytest.mark.parametrize("loss", [losses.dice, losses.generalized_dice])
def test_nonsense_is_refused(loss, arguments, options, words):
    with pytest.raises(UsageError, match=words):
        loss(*arguments, **options)
