"""The ADA pipeline: exactly nothing at p = 0, each transformation with probability p, and what each of them does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from dl_core.augment import adaptive
from dl_core.augment.policies import per_image_keys
from dl_core.errors import UsageError

KEY = jax.random.key(13)
IMAGES = jax.random.uniform(KEY, (40, 16, 16, 3))
everything = jax.jit(lambda key, images, p: adaptive.adaptive_augment(key, images, p=p, groups=adaptive.GROUPS))
default = jax.jit(lambda key, images, p: adaptive.adaptive_augment(key, images, p=p))


@pytest.mark.parametrize("channels", [1, 3])
def test_no_strength_is_the_identity_to_the_bit(channels):
    images = IMAGES[..., :channels]
    np.testing.assert_array_equal(everything(KEY, images, 0.0), images)


def test_more_images_change_as_the_strength_grows_and_it_may_be_traced():
    changed = [float((default(KEY, IMAGES, p) != IMAGES).any(axis=(1, 2, 3)).mean()) for p in (0.0, 0.02, 0.1, 0.9)]
    assert changed[0] == 0
    assert changed == sorted(changed)
    assert changed[1] < 0.6
    assert changed[3] == 1


@pytest.mark.parametrize("p", [0.25, 0.8])
def test_every_transformation_is_drawn_with_probability_p(p):
    n = 4000
    keys = per_image_keys(KEY, n)
    for name in ("mirror", "hue", "cutout", "band 2"):
        drawn = adaptive._sometimes(keys, name, p, 0.0, lambda one: jnp.ones(()))
        assert stats.binomtest(int(drawn.sum()), n, p).pvalue > 1e-3, name  # passed by 999 seeds of 1000
    linear = np.asarray(adaptive.movements(keys, (16, 16), p, ("blit",)))[:, :2, :2]
    upright = (linear == np.eye(2)).all(axis=(1, 2))
    # Half of the mirrorings mirror, a quarter of the turns do not turn; a mirror and a half turn are no identity.
    assert stats.binomtest(int(upright.sum()), n, (1 - p / 2) * (1 - 3 * p / 4)).pvalue > 1e-3
    _, brightness = adaptive.color_matrices(keys, p)
    moved = np.asarray(brightness)[np.asarray(brightness) != 0]
    assert stats.binomtest(len(moved), n, p).pvalue > 1e-3
    assert stats.kstest(moved / 0.1, "norm").pvalue > 1e-3
    turned = np.asarray(adaptive.movements(keys, (16, 16), p, ("geometry",)))[:, 0, 1] != 0
    assert stats.binomtest(int(turned.sum()), n, p).pvalue > 1e-3  # by either of two turns


def test_blits_only_move_pixels():
    moved = jax.jit(lambda key: adaptive.adaptive_augment(key, IMAGES, p=1.0, groups=("blit",)))(KEY)
    for row in range(10):
        missing = ~np.isclose(np.asarray(moved[row]).ravel()[:, None], np.asarray(IMAGES[row]).ravel(), atol=1e-6).any(
            axis=1
        )
        assert not missing.any()


def test_colours_leave_greys_grey_and_are_the_same_for_one_channel():
    grey = jnp.broadcast_to(IMAGES[..., :1], IMAGES.shape)
    paint = lambda images: adaptive.adaptive_augment(KEY, images, p=1.0, groups=("color",))
    result = paint(grey)
    np.testing.assert_allclose(result[..., 0], result[..., 2], atol=1e-5)
    np.testing.assert_allclose(paint(IMAGES[..., :1]), result[..., :1], atol=1e-5)
    assert (paint(IMAGES) < 0).any()
    clipped = adaptive.adaptive_augment(KEY, IMAGES, p=1.0, groups=("color",), clip=True)
    np.testing.assert_array_equal(clipped, jnp.clip(paint(IMAGES), 0, 1))


def test_octaves_are_amplified_and_a_flat_image_only_by_the_lowest():
    keys = per_image_keys(KEY, 40)
    gains = adaptive.band_gains(keys, 1.0)
    flat = adaptive._amplify(jnp.full((40, 16, 16, 1), 0.5), gains)
    # Rows and columns are filtered in turn: the gain counts twice.
    np.testing.assert_allclose(flat[:, 3, 5, 0], 0.5 * gains[:, 0] ** 2, rtol=1e-4)
    checks = jnp.asarray(np.indices((16, 16)).sum(axis=0) % 2 - 0.5, jnp.float32).reshape(1, 16, 16, 1)
    top = adaptive._amplify(jnp.broadcast_to(checks, (40, 16, 16, 1)), gains)
    np.testing.assert_allclose(top[:, 8, 8, 0], -0.5 * gains[:, 3] ** 2, rtol=1e-4)


def test_half_of_the_sides_are_cut_out_around_a_point_inside():
    cut = np.asarray(adaptive.adaptive_augment(KEY, jnp.ones((40, 16, 16, 3)), p=1.0, groups=("cutout",)))
    hole = cut[..., 0] == 0.5
    tall, wide = hole.any(axis=2).sum(axis=1), hole.any(axis=1).sum(axis=1)
    np.testing.assert_array_equal(hole.sum(axis=(1, 2)), tall * wide)
    assert tall.max() == 8
    assert tall.min() >= 4


def test_rows_depend_on_their_keys_only_and_gradients_pass():
    whole = everything(KEY, IMAGES, 0.7)
    np.testing.assert_allclose(everything(per_image_keys(KEY, 40)[20:], IMAGES[20:], 0.7), whole[20:], atol=1e-5)
    gradient = jax.jit(jax.grad(lambda images: (default(KEY, images, 0.7) ** 2).sum()))(IMAGES)
    assert np.isfinite(np.asarray(gradient)).all()
    assert (np.asarray(gradient) != 0).any(axis=(1, 2, 3)).all()


def test_unknown_groups_and_strengths_out_of_range_are_refused():
    with pytest.raises(UsageError, match="did you mean 'geometry'"):
        adaptive.adaptive_augment(KEY, IMAGES, p=0.5, groups=("geometri",))
    with pytest.raises(UsageError, match=r"p must lie in \[0, 1\], got 1.5"):
        adaptive.adaptive_augment(KEY, IMAGES, p=1.5)
