"""Keys for each image, operations in sequence, and predictions averaged over views."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dl_core.augment.geometric import five_crop, random_crop, random_flip, with_mirror_image
from dl_core.augment.photometric import normalize
from dl_core.augment.policies import average_over_views, per_image_keys, sequence

KEY = jax.random.key(1)
IMAGES = jax.random.uniform(jax.random.key(2), (12, 6, 6, 3))


def noise(key, images):
    """Adds the same uniform number to all of an image: shows which key an operation was given."""
    return images + jax.vmap(jax.random.uniform)(per_image_keys(key, len(images)))[:, None, None, None]


def test_keys_depend_on_the_row_alone_and_pass_through():
    keys = per_image_keys(KEY, 5)
    np.testing.assert_array_equal(jax.random.key_data(keys[3]), jax.random.key_data(jax.random.fold_in(KEY, 3)))
    np.testing.assert_array_equal(jax.random.key_data(per_image_keys(keys, 5)), jax.random.key_data(keys))
    assert len({tuple(row) for row in np.asarray(jax.random.key_data(per_image_keys(KEY, 1000)))}) == 1000


def test_keys_for_another_number_of_images_are_refused():
    with pytest.raises(ValueError, match=r"each of 6 images.*\(5,\)"):
        per_image_keys(per_image_keys(KEY, 5), 6)


def test_an_empty_sequence_changes_nothing():
    np.testing.assert_array_equal(sequence()(KEY, IMAGES), IMAGES)


def test_a_sequence_does_its_operations_in_order():
    double, add = (lambda _, images: 2 * images), (lambda _, images: images + 1)
    np.testing.assert_allclose(sequence(double, add)(KEY, IMAGES), 2 * IMAGES + 1)


def test_every_operation_of_a_sequence_has_its_own_randomness():
    once, twice = sequence(noise)(KEY, IMAGES) - IMAGES, sequence(noise, noise)(KEY, IMAGES) - IMAGES
    assert np.abs(np.asarray(twice - 2 * once)).max() > 0.1


def test_a_sequence_does_not_depend_on_how_the_batch_is_divided():
    augment = sequence(
        functools.partial(random_crop, padding=2),
        random_flip,
        lambda _, images: normalize(images, np.full(3, 0.5), np.full(3, 0.25)),
        sequence(noise),
    )
    whole, keys = jax.jit(augment)(KEY, IMAGES), per_image_keys(KEY, 12)
    pieces = [augment(keys[rows], IMAGES[rows]) for rows in (slice(0, 5), slice(5, 12))]
    np.testing.assert_allclose(jnp.concatenate(pieces), whole, atol=1e-6)  # a product and a sum rounded as one or two


def linear(params, images):
    return images.reshape(len(images), -1) @ params


def test_averaging_over_one_view_keeps_the_prediction():
    params = jax.random.normal(KEY, (108, 4))
    averaged = average_over_views(linear, lambda images: images[:, None])(params, IMAGES)
    np.testing.assert_allclose(jax.nn.softmax(averaged), jax.nn.softmax(linear(params, IMAGES)), atol=1e-6)


def test_averaging_is_over_the_probabilities_of_each_image():
    params = jax.random.normal(KEY, (5 * 4 * 3, 4))
    views = functools.partial(five_crop, size=(5, 4))
    averaged = jax.jit(average_over_views(linear, views))(params, IMAGES)
    separate = [jax.nn.softmax(linear(params, views(IMAGES)[:, view])) for view in range(5)]
    np.testing.assert_allclose(jnp.exp(averaged), np.mean(separate, axis=0), atol=1e-6)


def test_a_flip_averaged_classifier_does_not_see_left_and_right():
    params = jax.random.normal(KEY, (108, 4))
    classify = average_over_views(linear, with_mirror_image)
    np.testing.assert_allclose(classify(params, IMAGES), classify(params, IMAGES[:, :, ::-1]), rtol=1e-5, atol=1e-5)
