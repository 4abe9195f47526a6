"""Classification losses: what cross-entropy is zero for, stability, gradients, masks and refusals."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from dl_core import losses
from dl_core.errors import UsageError
from dl_core.losses import cross_entropy


@pytest.fixture(params=range(3))
def batch(request):
    keys = jax.random.split(jax.random.key(request.param), 3)
    logits = 5 * jax.random.normal(keys[0], (6, 4))
    return logits, jax.random.randint(keys[1], (6,), 0, 4), jax.nn.softmax(jax.random.normal(keys[2], (6, 4)))


def softmax(logits):
    """The probabilities behind cross_entropy: its gradient plus the one-hot label."""
    labels = jnp.zeros(len(logits), jnp.int32)
    return jax.grad(lambda z: cross_entropy(z, labels).sum())(logits) + jax.nn.one_hot(labels, logits.shape[-1])


@pytest.mark.parametrize("scale", [1.0, 1e2, 1e4])
def test_softmax_is_positive_sums_to_one_and_ignores_a_shift(batch, scale):
    """W19."""
    logits = scale * batch[0] / 20
    p = softmax(logits)
    assert (p >= 0).all()
    assert scale > 1 or (p > 0).all()  # at larger scales the small ones underflow
    np.testing.assert_allclose(p.sum(-1), 1, rtol=1e-5)
    shifted = softmax(logits + 1000.0)
    np.testing.assert_allclose(shifted, p, atol=1e-4 * max(1, scale / 10))  # logits + 1000 keep 6e-5 of a unit
    assert (p.argmax(-1) == logits.argmax(-1)).all()


def test_cross_entropy_ignores_a_shift(batch):
    logits, labels, soft = batch
    for target in (labels, soft):
        np.testing.assert_allclose(cross_entropy(logits + 64.0, target), cross_entropy(logits, target), atol=1e-4)


def test_cross_entropy_is_zero_for_a_one_hot_match_and_only_for_that(batch):
    """W19: certain and right is 0; uncertain, wrong, or certain about an uncertain label is more."""
    logits, labels, soft = batch
    certain = 1e4 * jax.nn.one_hot(labels, 4)
    assert (cross_entropy(certain, labels) == 0).all()
    assert (cross_entropy(certain, jax.nn.one_hot(labels, 4)) == 0).all()
    assert (cross_entropy(logits, labels) > 0).all()
    assert (cross_entropy(certain, (labels + 1) % 4) > 9e3).all()
    entropy = -jnp.sum(soft * jnp.log(soft), axis=-1)
    np.testing.assert_allclose(cross_entropy(jnp.log(soft), soft), entropy, rtol=1e-5)  # its least value, above 0
    assert (cross_entropy(logits, soft) > entropy).all()


def test_uniform_logits_cost_the_log_of_the_number_of_classes():
    np.testing.assert_allclose(cross_entropy(jnp.full((1, 10), 3.0), jnp.array([7])), [np.log(10)], rtol=1e-6)


EXTREMES = jnp.array([[1e4, -1e4, 0.0], [-1e4, -1e4, -1e4], [1e4, 1e4, -1e4], [0.0, 1e-4, -1e4]])
CLASSES = jnp.array([1, 0, 2, 0])


@pytest.mark.parametrize(
    ("name", "loss"),
    [
        ("cross_entropy", lambda z: cross_entropy(z, CLASSES)),
        ("smoothed", lambda z: cross_entropy(z, CLASSES, label_smoothing=0.1)),
        ("weighted", lambda z: cross_entropy(z, CLASSES, class_weights=jnp.array([0.0, 1.0, 1e4]))),
        ("soft", lambda z: cross_entropy(z, jnp.full((4, 3), 1 / 3))),
        ("one_hot", lambda z: losses.softmax_cross_entropy(z, jax.nn.one_hot(CLASSES, 3))),
        ("integer", lambda z: losses.softmax_cross_entropy_with_integer_labels(z, CLASSES)),
        ("sigmoid", lambda z: losses.sigmoid_binary_cross_entropy(z, jax.nn.one_hot(CLASSES, 3))),
        ("hinge", lambda z: losses.hinge_loss(z, 2 * jax.nn.one_hot(CLASSES, 3) - 1)),
        ("multiclass_hinge", lambda z: losses.multiclass_hinge_loss(z, CLASSES)),
        ("likelihood", lambda z: losses.negative_log_likelihood(jax.nn.log_softmax(z), CLASSES)),
    ],
)
@pytest.mark.parametrize("compiled", [False, True])
def test_values_and_gradients_are_finite_for_extreme_logits(name, loss, compiled):
    """W19: logits up to ±1e4."""
    loss = jax.jit(loss) if compiled else loss
    values, pullback = jax.vjp(loss, EXTREMES)
    gradient = pullback(jnp.ones_like(values))[0]
    assert jnp.isfinite(values).all()
    assert (values >= 0).all()
    assert jnp.isfinite(gradient).all()
    assert jnp.abs(values).max() > 9e3  # not by clipping


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.2}, {"class_weights": jnp.array([0.5, 1.0, 2.0, 0.0])}])
@pytest.mark.parametrize("kind", ["classes", "distributions"])
def test_gradients_are_those_of_finite_differences(batch, kind, options):
    logits, labels, soft = batch
    target = labels if kind == "classes" else soft
    # float32 differences over 1e-2 carry 1e-4 of rounding and as much of curvature
    loss = lambda z: cross_entropy(jnp.asarray(z), target, **options)  # differences are taken in numpy
    check_grads(loss, (logits / 5,), order=2, atol=1e-2, rtol=1e-2, eps=1e-2)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.3])
def test_a_class_and_its_one_hot_vector_cost_the_same(batch, label_smoothing):
    logits, labels, _ = batch
    one_hot = jax.nn.one_hot(labels, 4)
    np.testing.assert_allclose(
        cross_entropy(logits, labels, label_smoothing=label_smoothing),
        cross_entropy(logits, one_hot, label_smoothing=label_smoothing),
        rtol=1e-6,
    )


def test_cross_entropy_agrees_with_optax_and_with_the_likelihood(batch):
    logits, labels, soft = batch
    by_class = losses.softmax_cross_entropy_with_integer_labels(logits, labels)
    np.testing.assert_allclose(cross_entropy(logits, labels), by_class, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        losses.negative_log_likelihood(jax.nn.log_softmax(logits), labels), by_class, rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(
        cross_entropy(logits, soft, label_smoothing=0.2),
        losses.softmax_cross_entropy(logits, losses.smooth_labels(soft, 0.2)),
        rtol=1e-5,
    )


def test_masked_examples_cost_nothing_and_send_no_gradient_even_if_broken(batch):
    logits, labels, _ = batch
    where = jnp.array([True, False, True, True, False, True])
    broken = jnp.where(where[:, None], logits, jnp.nan)
    labels = jnp.where(where, labels, -1)
    values, pullback = jax.vjp(lambda z: cross_entropy(z, labels, where=where), broken)
    gradient = pullback(jnp.ones(6))[0]
    np.testing.assert_array_equal(values[~where], 0)
    np.testing.assert_array_equal(gradient[~where], 0)
    np.testing.assert_allclose(values[where], cross_entropy(logits[where], labels[where]), rtol=1e-6)
    assert jnp.isfinite(gradient).all()


def test_a_label_that_does_not_exist_is_not_a_number(batch):
    """A silent 0 would train on nothing; a NaN stops the run."""
    logits, labels, _ = batch
    labels = labels.at[0].set(4).at[1].set(-1)
    for loss in (cross_entropy(logits, labels), losses.negative_log_likelihood(logits, labels)):
        assert jnp.isnan(loss[:2]).all()
        assert jnp.isfinite(loss[2:]).all()


def test_a_class_ruled_out_by_minus_infinity_takes_no_part(batch):
    logits, _, _ = batch
    labels = jnp.zeros(6, jnp.int32)
    ruled_out = logits.at[:, 3].set(-jnp.inf)
    values, pullback = jax.vjp(lambda z: cross_entropy(z, labels), ruled_out)
    np.testing.assert_allclose(values, cross_entropy(logits[:, :3], labels), rtol=1e-5, atol=1e-6)
    assert jnp.isfinite(pullback(jnp.ones(6))[0]).all()


def test_pixels_are_examples_too(batch):
    logits, labels, _ = batch
    weights, where = jnp.array([0.5, 1.0, 2.0, 3.0]), jnp.arange(6) % 2 == 0
    flat = cross_entropy(logits, labels, class_weights=weights, where=where)
    grid = cross_entropy(
        logits.reshape(1, 2, 3, 4), labels.reshape(1, 2, 3), class_weights=weights, where=where.reshape(1, 2, 3)
    )
    np.testing.assert_array_equal(grid.ravel(), flat)


def test_bfloat16_logits_are_summed_in_float32(batch):
    logits, labels, _ = batch
    low = logits.astype(jnp.bfloat16)
    values = cross_entropy(low, labels)
    assert values.dtype == jnp.float32
    np.testing.assert_array_equal(values, cross_entropy(low.astype(jnp.float32), labels))
    assert jax.grad(lambda z: cross_entropy(z, labels).sum())(low).dtype == jnp.bfloat16


def test_the_hinge_bounds_the_zero_one_loss(batch):
    """Course notes, section 2.1.4: a low hinge loss means a low zero-one loss."""
    logits, labels, _ = batch
    wrong = logits.argmax(-1) != labels
    assert (losses.multiclass_hinge_loss(logits, labels) >= wrong).all()
    signs = 2 * (labels % 2) - 1
    assert (losses.hinge_loss(logits[:, 0], signs) >= (jnp.sign(logits[:, 0]) != signs)).all()
    assert losses.hinge_loss(jnp.array(0.25), jnp.array(1)) == 0.75


@pytest.mark.parametrize(
    ("labels", "options", "words"),
    [
        (jnp.zeros(3, jnp.int32), {"label_smoothing": 1.0}, r"label_smoothing must lie in \[0, 1\), got 1.0"),
        (jnp.zeros(3, jnp.int32), {"label_smoothing": -0.1}, "label_smoothing must lie in"),
    ],
)
def test_nonsense_is_refused(labels, options, words):
    with pytest.raises(UsageError, match=words):
        cross_entropy(jnp.zeros((3, 2)), labels, **options)


@pytest.mark.parametrize("labels", [jnp.zeros((3, 1), jnp.int32), jnp.zeros(2, jnp.int32), jnp.zeros((3, 1))])
def test_labels_of_another_shape_are_refused_without_the_annotations(labels):
    """What users see, who run without the type checker that the tests install: no silent broadcasting."""
    spec = importlib.util.spec_from_file_location("unchecked", losses.classification.__file__)
    unchecked = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(unchecked)
    with pytest.raises(UsageError, match=r"logits of shape \(3, 2\) need (integer|float) labels of shape"):
        unchecked.cross_entropy(jnp.zeros((3, 2)), labels)
