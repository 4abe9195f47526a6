"""Whitening kernels: what they are for, and what they are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dl_core.errors import UsageError
from dl_core.whitening import patch_whitening


def test_responses_are_uncorrelated_and_of_equal_variance_and_come_with_both_signs():
    mixing = jax.random.normal(jax.random.key(1), (3, 3))
    images = jax.random.normal(jax.random.key(0), (64, 12, 12, 3)) @ mixing
    images = images + jnp.roll(images, 1, axis=2)  # neighbours are alike
    kernels = patch_whitening(images, 2, eps=0.0)
    assert kernels.shape == (2, 2, 3, 24)
    responses = jax.lax.conv_general_dilated(
        images, kernels, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    first, second = np.split(np.asarray(responses).reshape(-1, 24), 2, axis=1)
    np.testing.assert_allclose(first.T @ first / len(first), np.eye(12), atol=1e-3)  # float32 sums of 7,744 patches
    np.testing.assert_array_equal(second, -first)


def test_directions_come_in_the_order_of_their_variance_and_eps_tames_the_last():
    images = jax.random.normal(jax.random.key(0), (32, 8, 8, 1))
    images = (images + jnp.roll(images, 1, axis=1)) / 2
    norms = lambda eps: np.linalg.norm(
        np.asarray(patch_whitening(images, 2, eps=eps))[..., 0, :4].reshape(4, 4), axis=0
    )
    assert (np.diff(norms(1e-6)) > 0).all()
    assert (norms(1.0) <= 1).all()


def test_a_patch_larger_than_the_image_is_refused():
    with pytest.raises(UsageError, match="size must lie between 1 and"):
        patch_whitening(np.zeros((2, 4, 4, 1), np.float32), 5)
