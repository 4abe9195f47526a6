"""Keys for each image, operations in sequence, and predictions averaged over views."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from dl_core.augment.geometric import five_crop, random_crop, random_flip, with_mirror_image
from dl_core.augment.photometric import normalize
from dl_core.augment.policies import average_over_views, crop_and_flip, one_of, per_image_keys, random_apply, sequence
from dl_core.errors import UsageError

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


negative = lambda _, images: 1 - images


def test_a_random_application_changes_the_asked_share_of_images_and_depends_on_the_row_only():
    many = jnp.full((3000, 1, 1, 1), 0.25)
    augment = random_apply(negative, 0.3)
    changed = np.asarray(jax.jit(augment)(KEY, many)).ravel() == 0.75
    assert stats.binomtest(int(changed.sum()), 3000, 0.3).pvalue > 1e-3  # passed by 999 seeds of 1000
    np.testing.assert_array_equal(
        jax.jit(augment)(per_image_keys(KEY, 3000)[:100], many[:100]).ravel() == 0.75, changed[:100]
    )
    np.testing.assert_array_equal(random_apply(negative, 0.0)(KEY, IMAGES), IMAGES)
    np.testing.assert_array_equal(random_apply(negative, 1.0)(KEY, IMAGES), 1 - IMAGES)


def test_one_of_several_is_done_to_each_image_as_often_as_its_weight_says():
    many = jnp.full((3000, 1, 1, 1), 0.25)
    add = lambda amount: lambda _, images: images + amount
    augment = one_of(add(1), add(2), add(3), weights=(1, 0, 3))
    drawn = np.round(np.asarray(jax.jit(augment)(KEY, many)).ravel() - 0.25).astype(int)
    assert (drawn != 2).all()
    assert (drawn != 0).all()
    assert stats.binomtest(int((drawn == 1).sum()), 3000, 0.25).pvalue > 1e-3
    equal = np.round(np.asarray(jax.jit(one_of(add(1), add(2)))(KEY, many)).ravel() - 0.25).astype(int)
    assert stats.binomtest(int((equal == 1).sum()), 3000, 0.5).pvalue > 1e-3


def test_the_usual_recipe_is_a_padded_crop_and_a_flip():
    expected = sequence(functools.partial(random_crop, padding=2), random_flip)(KEY, IMAGES)
    np.testing.assert_array_equal(crop_and_flip(padding=2)(KEY, IMAGES), expected)


def test_what_cannot_be_put_together_is_refused(annotations_off):
    with pytest.raises(UsageError, match=r"probability must lie in \[0, 1\], got 1.1"):
        random_apply(negative, 1.1)
    with pytest.raises(UsageError, match=r"\[12, 6, 6, 3\] became \[12, 5, 5, 3\]"):
        random_apply(functools.partial(random_crop, size=5), 0.5)(KEY, IMAGES)
    with pytest.raises(UsageError, match="at least one operation"):
        one_of()
    for weights in ((1.0,), (1.0, -1.0), (0.0, 0.0), (np.nan, 1.0)):
        with pytest.raises(UsageError, match="weights must be 2 numbers"):
            one_of(negative, negative, weights=weights)
