"""Ensembles as one more axis of the parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dl_core.ensembles import average_outputs, ensemble, stack, unstack
from dl_core.errors import UsageError
from dl_core.explain import saliency

RANDOM = np.random.default_rng(0)
MEMBERS = [
    {"kernel": RANDOM.normal(size=(4, 3)).astype(np.float32), "bias": RANDOM.normal(size=3).astype(np.float32)}
    for _ in range(5)
]
INPUTS = jnp.asarray(RANDOM.normal(size=(6, 4)), jnp.float32)


def apply_fn(params, inputs):
    return jnp.tanh(inputs.reshape(len(inputs), -1) @ params["kernel"]) + params["bias"][None]


def test_stacked_members_come_back():
    stacked = stack(MEMBERS)
    assert stacked["kernel"].shape == (5, 4, 3)
    for member, again in zip(MEMBERS, unstack(stacked), strict=True):
        jax.tree.map(np.testing.assert_array_equal, again, member)


def test_an_ensemble_is_the_loop_over_its_members():
    each = np.stack([apply_fn(member, INPUTS) for member in MEMBERS])
    probabilities = np.asarray(jax.nn.softmax(each)).mean(axis=0)
    together = jax.jit(ensemble(apply_fn))(stack(MEMBERS), INPUTS)
    np.testing.assert_allclose(np.exp(together), probabilities, rtol=1e-5)
    np.testing.assert_allclose(jax.nn.softmax(together), probabilities, rtol=1e-5)
    logits = ensemble(apply_fn, average="logits")(stack(MEMBERS), INPUTS)
    np.testing.assert_allclose(logits, each.mean(axis=0), rtol=1e-5, atol=1e-6)


def test_an_ensemble_of_equals_is_each_of_them():
    single = apply_fn(MEMBERS[0], INPUTS)
    together = ensemble(apply_fn)(stack(MEMBERS[:1] * 4), INPUTS)
    np.testing.assert_allclose(together, jax.nn.log_softmax(single), atol=1e-6)


def test_the_mean_probability_is_never_worse_than_the_mean_loss():
    """-log of a mean is at most the mean of -log (Jensen)."""
    each = jnp.stack([jax.nn.log_softmax(apply_fn(member, INPUTS)) for member in MEMBERS])
    assert (np.asarray(-average_outputs(each)) <= np.asarray(-each.mean(axis=0)) + 1e-6).all()


def test_directions_are_averaged_whatever_their_lengths():
    vectors = np.array([[[100.0, 0.0]], [[0.0, 0.01]], [[0.0, 0.0]]], np.float32)
    mean = average_outputs(vectors, "directions")[0]
    assert float(jnp.rad2deg(jnp.arctan2(mean[1], mean[0]))) == pytest.approx(45)


def test_explanations_take_an_ensemble_as_one_model():
    images = INPUTS.reshape(6, 2, 2, 1)
    target = jnp.zeros(6, jnp.int32)
    gradient = jax.grad(lambda x: ensemble(apply_fn)(stack(MEMBERS), x)[:, 0].sum())(images)
    np.testing.assert_allclose(
        jnp.abs(saliency(ensemble(apply_fn), stack(MEMBERS), images, target)), jnp.abs(gradient), atol=1e-6
    )


def test_what_is_no_ensemble_is_refused():
    with pytest.raises(UsageError, match="at least one member"):
        stack([])
    with pytest.raises(UsageError, match="member 1 differs"):
        stack([{"a": np.ones(3)}, {"a": np.ones(4)}])
    with pytest.raises(UsageError, match="did you mean 'logits'"):
        ensemble(apply_fn, average="logit")
