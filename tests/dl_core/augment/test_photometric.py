"""From bytes to normalised numbers and back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dl_core.augment import photometric
from dl_core.errors import UsageError

BYTES = np.random.default_rng(0).integers(0, 256, (32, 6, 5, 3), dtype=np.uint8)


def test_bytes_become_numbers_between_zero_and_one_and_can_be_recovered():
    every_byte = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    images = photometric.to_float(every_byte)
    assert images.dtype == jnp.float32
    assert (float(images.min()), float(images.max())) == (0.0, 1.0)
    np.testing.assert_array_equal(jnp.round(images * 255).astype(jnp.uint8), every_byte)


def test_normalising_with_a_sets_own_statistics_gives_mean_zero_and_deviation_one():
    images = photometric.to_float(BYTES)
    mean, std = np.asarray(images).mean(axis=(0, 1, 2)), np.asarray(images).std(axis=(0, 1, 2))
    normalised = jax.jit(photometric.normalize)(images, mean, std)
    np.testing.assert_allclose(np.mean(normalised, axis=(0, 1, 2)), 0, atol=1e-5)  # sums of 960 float32
    np.testing.assert_allclose(np.std(normalised, axis=(0, 1, 2)), 1, atol=1e-5)


def test_denormalising_undoes_normalising():
    images, mean, std = photometric.to_float(BYTES), jnp.array([0.1, 0.5, 0.4]), jnp.array([0.2, 0.3, 0.1])
    back = photometric.denormalize(photometric.normalize(images, mean, std), mean, std)
    np.testing.assert_allclose(back, images, atol=1e-6)  # two roundings of numbers below ten


def test_normalising_by_nothing_is_the_identity():
    images = photometric.to_float(BYTES)
    np.testing.assert_array_equal(photometric.normalize(images, jnp.zeros(3), jnp.ones(3)), images)


def test_half_precision_stays_half_precision_whatever_the_statistics_are():
    images = photometric.to_float(BYTES).astype(jnp.bfloat16)
    assert photometric.normalize(images, np.zeros(3), np.ones(3)).dtype == jnp.bfloat16


def test_a_strength_for_all_and_one_for_each_image_become_factors_of_a_batch():
    images = photometric.to_float(BYTES)
    assert photometric.per_image("factor", 2, images, "[0, inf)").shape == (1, 1, 1, 1)
    assert photometric.per_image("factor", jnp.ones(32), images, "[0, inf)").shape == (32, 1, 1, 1)
    for bad in (-1.0, np.inf, np.nan):
        with pytest.raises(UsageError, match=r"factor must lie in \[0, inf\)"):
            photometric.per_image("factor", bad, images, "[0, inf)")


def test_images_are_looked_at_where_they_can_be_seen(annotations_off):
    images = photometric.to_float(BYTES)
    photometric.check_images(images)
    jax.jit(lambda images: photometric.check_images(images))(2 * images)  # nothing to be seen
    with pytest.raises(UsageError, match=r"in \[0, 1\].*denormalize"):
        jax.jit(lambda: photometric.check_images(2 * np.asarray(images)))()
    with pytest.raises(UsageError, match="1 values that are NaN"):
        photometric.check_images(images.at[0, 0, 0, 0].set(jnp.nan))
    with pytest.raises(UsageError, match="uint8; to_float"):
        photometric.check_images(jnp.asarray(BYTES))
