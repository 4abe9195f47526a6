"""What every loss promises: finite for logits up to ±1e4, the gradient of its value, each row for itself, masks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dl_core import losses
from dl_core.errors import UsageError

ROWS = 5
ONES = np.ones(ROWS, np.float32)
SHAPES = {"logits": (4,), "images": (2, 3, 4), "vectors": (2,), "boxes": (4,), "values": ()}  # what is learned


def argument(kind, rng, scale=1.0):
    """One array of ROWS rows: a learned kind, multiplied by the scale, or a target."""
    if kind in SHAPES:
        normal = rng.normal(size=(ROWS, *SHAPES[kind]))
        return normal if scale == 1 else scale * np.sign(normal)
    return {
        "classes": lambda: np.arange(ROWS) % 4,
        "pixel_classes": lambda: rng.integers(0, 4, (ROWS, 2, 3)),
        "multi_hot": lambda: rng.integers(0, 2, (ROWS, 2, 3, 4)),
        "binary": lambda: rng.integers(0, 2, (ROWS, 4)).astype(np.float64),
        "same": lambda: np.arange(ROWS) % 2 == 0,
        "signs": lambda: 2.0 * rng.integers(0, 2, (ROWS, 4)) - 1,
        "simplex": lambda: rng.dirichlet(np.ones(4), ROWS),
        "counts": lambda: rng.poisson(3.0, ROWS).astype(np.float64),
        "degrees": lambda: rng.uniform(0, 360, ROWS),
        "targets": lambda: rng.normal(size=ROWS),
        "target_boxes": lambda: rng.uniform(size=(ROWS, 4)),
    }[kind]()


def of_log_softmax(loss):
    return lambda logits, *targets: loss(jax.nn.log_softmax(logits), *targets)


# the critic of the penalties: its gradient depends on the image, as that of a deep one does
critic = lambda params, images: jnp.sum(jnp.log(jnp.cosh(images / 1e3)) * 1e3, axis=(1, 2, 3))

CASES = {
    "cross_entropy": (losses.cross_entropy, "logits", "classes"),
    "cross_entropy soft": (functools.partial(losses.cross_entropy, label_smoothing=0.1), "logits", "simplex"),
    "focal": (losses.focal, "logits", "classes"),
    "focal, rough": (functools.partial(losses.focal, gamma=0.5), "logits", "classes"),
    "softmax_cross_entropy": (losses.softmax_cross_entropy, "logits", "simplex"),
    "integer": (losses.softmax_cross_entropy_with_integer_labels, "logits", "classes"),
    "negative_log_likelihood": (of_log_softmax(losses.negative_log_likelihood), "logits", "classes"),
    "multiclass_hinge_loss": (losses.multiclass_hinge_loss, "logits", "classes"),
    "sigmoid_binary_cross_entropy": (losses.sigmoid_binary_cross_entropy, "logits", "binary"),
    "sigmoid_focal_loss": (functools.partial(losses.sigmoid_focal_loss, alpha=0.25), "logits", "binary"),
    "hinge_loss": (losses.hinge_loss, "logits", "signs"),
    "kl_divergence": (of_log_softmax(losses.kl_divergence), "logits", "simplex"),
    "distillation": (losses.distillation, "logits", "simplex", "classes"),
    "l1": (losses.l1, "values", "targets"),
    "squared_error": (losses.squared_error, "values", "targets"),
    "l2_loss": (losses.l2_loss, "values", "targets"),
    "smooth_l1": (losses.smooth_l1, "values", "targets"),
    "huber_loss": (losses.huber_loss, "values", "targets"),
    "log_cosh": (losses.log_cosh, "values", "targets"),
    "gaussian_nll": (losses.gaussian_nll, "values", "values", "targets"),
    "poisson_nll": (losses.poisson_nll, "values", "counts"),
    "cosine_angle_loss": (losses.cosine_angle_loss, "vectors", "degrees"),
    "von_mises_nll": (losses.von_mises_nll, "vectors", "degrees"),
    "dice": (losses.dice, "images", "pixel_classes"),
    "dice, independent": (functools.partial(losses.dice, independent=True), "images", "multi_hot"),
    "generalized_dice": (losses.generalized_dice, "images", "pixel_classes"),
    "jaccard": (losses.jaccard, "images", "pixel_classes"),
    "tversky": (functools.partial(losses.tversky, alpha=0.3, beta=0.7, smooth=0.0), "images", "pixel_classes"),
    "detection": (losses.detection, "logits", "boxes", "classes", "target_boxes"),
    "discriminator": (losses.discriminator, "values", "values"),
    "saturating_generator": (losses.saturating_generator, "values"),
    "non_saturating_generator": (losses.non_saturating_generator, "values"),
    "wasserstein_critic": (losses.wasserstein_critic, "values", "values"),
    "wasserstein_generator": (losses.wasserstein_generator, "values"),
    "least_squares_discriminator": (losses.least_squares_discriminator, "values", "values"),
    "least_squares_generator": (losses.least_squares_generator, "values"),
    "hinge_discriminator": (losses.hinge_discriminator, "values", "values"),
    "hinge_generator": (losses.hinge_generator, "values"),
    "gradient_penalty": (
        lambda real, fake: losses.gradient_penalty(critic, None, real, fake, key=jax.random.key(0)),
        "images",
        "images",
    ),
    "r1_penalty": (functools.partial(losses.r1_penalty, critic, None), "images"),
    "reconstruction_l1": (losses.reconstruction_l1, "images", "images"),
    "contrastive": (losses.contrastive, "logits", "logits", "same"),
    "triplet_margin_loss": (losses.triplet_margin_loss, "logits", "logits", "logits"),
    "cosine_distance": (losses.cosine_distance, "logits", "logits"),
}
BATCH_WIDE = {"info_nce", "ntxent", "ctc_loss"}  # tested with their own files
every_loss = pytest.mark.parametrize("name", CASES)


def arguments(name, scale=1.0, seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    arrays = [argument(kind, rng, scale) for kind in CASES[name][1:]]
    return [array.astype(dtype) if array.dtype.kind == "f" else array for array in arrays]


@functools.cache
def compiled(name, masked=False):
    """(arrays, cotangents of the rows, mask) -> losses, gradients of what is learned; one program for all tests."""
    loss, *kinds = CASES[name]
    learned = [place for place, kind in enumerate(kinds) if kind in SHAPES]

    def run(arrays, cotangents, where=None):
        def function(*values):
            filled = list(arrays)
            for place, value in zip(learned, values, strict=True):
                filled[place] = value
            return losses.masked(loss, *filled, where=where) if masked else loss(*filled)

        values, pullback = jax.vjp(function, *(arrays[place] for place in learned))
        return values, pullback(jnp.broadcast_to(cotangents.reshape(-1, *(1,) * (values.ndim - 1)), values.shape))

    return jax.jit(run)


def test_the_table_lists_every_loss():
    """So that a new loss cannot be forgotten here."""
    not_losses = {"angle_of", "circular_distance", "masked", "smooth_labels", "unit_vector", "uncertainty_weighting"}
    same_but_for_logs = {"kl_divergence_with_log_targets"}
    listed = {getattr(case[0], "func", case[0]) for case in CASES.values()}
    for name in set(losses.__all__) - not_losses - same_but_for_logs - BATCH_WIDE:
        assert name in CASES or getattr(losses, name) in listed, name


@every_loss
def test_values_and_gradients_are_finite_at_ten_thousand(name):
    for seed in range(3):
        values, gradients = compiled(name)(arguments(name, scale=1e4, seed=seed), ONES)
        assert np.isfinite(values).all()
        assert all(np.isfinite(gradient).all() for gradient in gradients)


@every_loss
def test_the_gradient_is_that_of_the_value(name):
    """Central differences along a random direction, in float64."""
    rng = np.random.default_rng(1)
    with jax.enable_x64(True):
        arrays, kinds, cotangents = arguments(name, dtype=np.float64), CASES[name][1:], rng.normal(size=ROWS)
        learned = [place for place, kind in enumerate(kinds) if kind in SHAPES]
        directions = {place: rng.normal(size=arrays[place].shape) for place in learned}
        moved = lambda step: [a + step * directions[i] if i in learned else a for i, a in enumerate(arrays)]
        ahead, behind = (np.asarray(compiled(name)(moved(step), cotangents)[0]) for step in (1e-6, -1e-6))
        gradients = [np.asarray(gradient) for gradient in compiled(name)(arrays, cotangents)[1]]
    differences = ((ahead - behind).reshape(ROWS, -1).sum(axis=1) * cotangents).sum() / 2e-6
    along = sum((gradient * directions[place]).sum() for gradient, place in zip(gradients, learned, strict=True))
    np.testing.assert_allclose(along, differences, rtol=1e-6, atol=1e-7)  # rounding of 1e-16 · 10 over 1e-6: 1e-9


@every_loss
def test_each_row_is_for_itself(name):
    arrays, others = arguments(name), arguments(name, seed=7)
    values, gradients = compiled(name)(arrays, np.eye(ROWS, dtype=np.float32)[0])
    assert values.shape[0] == ROWS
    for gradient in gradients:
        np.testing.assert_array_equal(gradient[1:], 0)
    first_changed = [np.concatenate([b[:1], a[1:]]) for a, b in zip(arrays, others, strict=True)]
    changed, _ = compiled(name)(first_changed, ONES)
    np.testing.assert_array_equal(changed[1:], values[1:])


@every_loss
def test_a_masked_row_costs_nothing_and_sends_no_gradient_whatever_it_holds(name):
    arrays, where = arguments(name), np.array([True, False, True, True, False])
    expected, expected_gradients = compiled(name)(arrays, ONES)
    for broken in (np.nan, np.inf):
        spoiled = [array.copy() for array in arrays]
        for array in spoiled:
            array[~where] = {"f": broken, "i": -9, "b": True}[array.dtype.kind]
        values, gradients = compiled(name, masked=True)(spoiled, ONES, where)
        np.testing.assert_array_equal(values[~where], 0)
        np.testing.assert_allclose(
            values[where], expected[where], rtol=1e-5, atol=1e-6
        )  # other fusions, other rounding
        for gradient, unmasked in zip(gradients, expected_gradients, strict=True):
            np.testing.assert_array_equal(gradient[~where], 0)
            np.testing.assert_allclose(gradient[where], unmasked[where], rtol=1e-5, atol=1e-6)


def test_multiplying_by_the_mask_would_not_do():
    """The reason for `masked`."""
    predictions, where = jnp.array([1.0, jnp.nan]), jnp.array([True, False])
    naive = jax.grad(lambda p: jnp.where(where, optax.squared_error(p, jnp.sqrt(p)), 0).sum())(predictions)
    assert jnp.isnan(naive[1])
    safe = lambda p: losses.masked(lambda a: optax.squared_error(a, jnp.sqrt(a)), p, where=where)
    np.testing.assert_array_equal(jax.grad(lambda p: safe(p).sum())(predictions)[1], 0)


def test_a_mask_of_rows_covers_what_is_inside_them_and_options_pass():
    predictions, targets = jnp.arange(12.0).reshape(2, 3, 2), jnp.zeros((2, 3, 2))
    where = jnp.array([[True, False, True], [False, True, True]])
    loss = jax.jit(functools.partial(losses.masked, losses.huber_loss, delta=0.5))(predictions, targets, where=where)
    whole = losses.huber_loss(predictions, targets, delta=0.5)
    np.testing.assert_array_equal(loss, jnp.where(where[..., None], whole, 0))


def test_a_mask_of_other_rows_is_refused():
    with pytest.raises(UsageError, match=r"begin with the axes of where, \[3\], got \[2\]"):
        losses.masked(losses.l1, jnp.zeros(2), jnp.zeros(2), where=jnp.ones(3, bool))
