"""Losses of embeddings: what draws together and what pushes apart, masks, and what Optax's do at the edges."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dl_core import losses
from dl_core.errors import UsageError

contrastive, info_nce, ntxent = (
    jax.jit(loss) for loss in (losses.contrastive, losses.info_nce, losses.ntxent)
)  # compiled once each

A, B = jax.random.normal(jax.random.key(0), (2, 6, 4))


def test_contrastive_draws_the_same_together_and_others_to_the_margin():
    first, second = jnp.zeros((3, 2)), jnp.array([[0.3, 0.4], [0.3, 0.4], [3.0, 4.0]])
    same = jnp.array([True, False, False])
    loss = lambda b: contrastive(first, b, same, margin=2.0)
    np.testing.assert_allclose(loss(second), [0.125, 1.125, 0], rtol=1e-6)
    gradient = jax.grad(lambda b: loss(b).sum())(second)
    np.testing.assert_allclose(gradient[0], second[0], rtol=1e-6)
    assert (gradient[1] < 0).all()
    np.testing.assert_array_equal(gradient[2], 0)
    np.testing.assert_array_equal(loss(second), contrastive(first, second, same.astype(int), margin=2.0))


def test_contrastive_has_a_gradient_of_zero_at_zero_distance():
    for same in (True, False):
        gradient = jax.jit(jax.grad(lambda a, same: losses.contrastive(a, A, same).sum()))(A, jnp.full(6, same))
        np.testing.assert_array_equal(gradient, 0)


def test_info_nce_knows_pairs_from_others_and_nothing_about_lengths():
    np.testing.assert_allclose(info_nce(A, jnp.ones((6, 4))), np.log(6), rtol=1e-5)
    orthogonal = jnp.eye(6)
    np.testing.assert_allclose(info_nce(orthogonal, orthogonal, temperature=0.01), 0, atol=1e-6)
    lengths = jnp.arange(1.0, 7.0)[:, None]
    np.testing.assert_allclose(info_nce(A * lengths, 9 * B), info_nce(A, B), rtol=1e-4)
    logits = (A @ B.T) / jnp.linalg.norm(A, axis=1)[:, None] / jnp.linalg.norm(B, axis=1)[None] / 0.5
    np.testing.assert_allclose(info_nce(A, B, temperature=0.5), losses.cross_entropy(logits, jnp.arange(6)), rtol=1e-5)


def test_masked_rows_of_info_nce_are_nobodys_negatives():
    where = jnp.array([True, False, True, True, False, True])
    spoiled = [jnp.where(where[:, None], rows, jnp.nan) for rows in (A, B)]
    values, pullback = jax.vjp(functools.partial(info_nce, where=where), *spoiled)
    np.testing.assert_allclose(values[where], info_nce(A[where], B[where]), rtol=1e-5)
    np.testing.assert_array_equal(values[~where], 0)
    for gradient in pullback(jnp.ones(6)):
        np.testing.assert_array_equal(gradient[~where], 0)
        assert jnp.isfinite(gradient).all()


@pytest.mark.parametrize("scale", [0.0, 1e4])
def test_embeddings_of_any_length_have_finite_gradients(scale):
    labels = jnp.array([0, 0, 1, 1, 2, 2])
    for loss in (lambda a: info_nce(a, B).sum(), lambda a: ntxent(a, labels)):
        value, gradient = jax.jit(jax.value_and_grad(loss))(scale * A)
        assert jnp.isfinite(value)
        assert jnp.isfinite(gradient).all()


def test_info_nce_has_the_gradient_of_its_value():
    with jax.enable_x64(True):
        a, b, direction = (jnp.asarray(np.asarray(x), jnp.float64) for x in (A, B, A[::-1] + B))
        loss = jax.jit(jax.value_and_grad(lambda a: losses.info_nce(a, b, where=jnp.arange(6) < 5).sum()))
        numerical = (loss(a + 1e-6 * direction)[0] - loss(a - 1e-6 * direction)[0]) / 2e-6
        np.testing.assert_allclose((loss(a)[1] * direction).sum(), numerical, rtol=1e-6)


def test_ntxent_without_a_pair_is_nan_as_documented():
    assert jnp.isnan(ntxent(A, jnp.arange(6)))


def test_ctc_needs_a_larger_infinity_for_extreme_logits():
    """The file's warning: eight frames, eight labels, so each is forced; seven of them cost 2e4 each."""
    logits = jnp.full((1, 8, 9), -1e4).at[..., 8].set(1e4)
    run = lambda eps: losses.ctc_loss(
        logits, jnp.zeros((1, 8)), jnp.arange(1, 9)[None], jnp.zeros((1, 8)), log_epsilon=eps
    )
    np.testing.assert_allclose(run(-1e9), 7 * 2e4, rtol=1e-5)
    assert run(-1e5)[0] < 1.2e5


@pytest.mark.usefixtures("annotations_off")
def test_nonsense_is_refused():
    with pytest.raises(UsageError, match=r"pairs of one shape, got \(6, 4\) and \(5, 4\)"):
        losses.info_nce(A, B[:5])
    with pytest.raises(UsageError, match=r"temperature must lie in \(0, inf\), got 0"):
        losses.info_nce(A, B, temperature=0.0)
    with pytest.raises(UsageError, match=r"pairs of one shape, got \(6, 4\) and \(1, 4\)"):
        losses.contrastive(A, B[:1], jnp.ones(6, bool))
    with pytest.raises(UsageError, match=r"margin must lie in \(0, inf\), got 0"):
        losses.contrastive(A, B, jnp.ones(6, bool), margin=0)
