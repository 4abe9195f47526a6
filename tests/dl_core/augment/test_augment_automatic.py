"""RandAugment and TrivialAugment: what is drawn how often, and that each image is given what was drawn for it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from dl_core.augment import affine, automatic, color, filters
from dl_core.augment.policies import per_image_keys
from dl_core.errors import UsageError

KEY = jax.random.key(11)
IMAGES = jax.random.uniform(KEY, (14, 18, 20, 3))
NAMES = automatic.OPERATIONS
TABLE = automatic.magnitudes(31, (18, 20))
compiled = jax.jit(automatic.apply_plan)


def alone(name, image, magnitude):
    """One image, by the function that bears the operation's name."""
    at = jnp.array([magnitude], jnp.float32)
    zero = jnp.zeros(1)
    unit = jnp.eye(3)[None]
    matrix = {
        "shear_x": unit.at[0, 0, 1].set(-magnitude),
        "shear_y": unit.at[0, 1, 0].set(-magnitude),
        "translate_x": affine.translation(jnp.trunc(at), zero),
        "translate_y": affine.translation(zero, jnp.trunc(at)),
        "rotate": affine.rotation(-at, (18, 20)),
    }
    changed = {
        "identity": lambda x: x,
        "brightness": lambda x: color.adjust_brightness(x, 1 + magnitude),
        "color": lambda x: color.adjust_saturation(x, 1 + magnitude),
        "contrast": lambda x: color.adjust_contrast(x, 1 + magnitude),
        "sharpness": lambda x: filters.adjust_sharpness(x, 1 + magnitude),
        "posterize": lambda x: color.posterize(x, magnitude),
        "solarize": lambda x: color.solarize(x, magnitude),
        "autocontrast": color.autocontrast,
        "equalize": color.equalize,
    }
    if name in matrix:
        return affine.warp(image[None], matrix[name], method="nearest")[0]
    return changed[name](image[None])[0]


def test_every_image_is_given_the_operation_of_its_plan():
    magnitude = np.where(np.arange(14) % 2, TABLE[:, 9], np.where(np.arange(14) < 10, -TABLE[:, 9], TABLE[:, 9]))
    plan = automatic.Plan(jnp.arange(14), jnp.asarray(magnitude, jnp.float32))
    result = compiled(IMAGES, plan)
    for row, name in enumerate(NAMES):
        expected = alone(name, IMAGES[row], float(magnitude[row]))
        np.testing.assert_allclose(result[row], expected, atol=1e-6, err_msg=name)  # sums in another order
        assert name == "identity" or (result[row] != IMAGES[row]).any(), name


def test_accelerators_compute_the_same_all_together():
    """What is compiled for other platforms than the CPU, run on it: all branches at once by `vmap`."""
    plan = automatic.random_plan(per_image_keys(KEY, 14), TABLE)
    once = jax.jit(jax.vmap(lambda image, plan: automatic.apply_plan(image[None], plan)[0]))
    each = jax.tree.map(lambda leaf: leaf[:, None], plan)
    np.testing.assert_allclose(once(IMAGES, each), compiled(IMAGES, plan), atol=1e-6)


def test_operations_are_equally_likely_and_signs_are_tossed():
    plan = jax.jit(lambda keys: automatic.random_plan(keys, TABLE[:, 9:10]))(per_image_keys(KEY, 14000))
    operation, magnitude = np.asarray(plan.operation), np.asarray(plan.magnitude)
    # With a fixed seed; a sound generator stays above this level in 999 of 1000 seeds.
    assert stats.chisquare(np.bincount(operation, minlength=14)).pvalue > 1e-3
    signed = np.isin(operation, np.arange(1, 10))
    assert stats.binomtest(int((magnitude[signed] > 0).sum()), int(signed.sum()), 0.5).pvalue > 1e-3
    np.testing.assert_allclose(np.abs(magnitude), TABLE[operation, 9])
    assert (magnitude[~signed] >= 0).all()


def test_trivial_magnitudes_are_equally_likely():
    plan = jax.jit(lambda keys: automatic.random_plan(keys, TABLE))(per_image_keys(KEY, 14000))
    turned = np.asarray(plan.magnitude)[np.asarray(plan.operation) == NAMES.index("rotate")]
    assert stats.chisquare(np.bincount(np.round(np.abs(turned)).astype(int), minlength=31)).pvalue > 1e-3


@pytest.mark.parametrize("policy", [automatic.rand_augment, automatic.trivial_augment])
def test_rows_depend_on_their_keys_only_and_stay_in_range(policy):
    run, keys = jax.jit(policy), per_image_keys(KEY, 14)
    whole = run(keys, IMAGES)
    np.testing.assert_array_equal(run(KEY, IMAGES), whole)
    for rows in (slice(0, 7), slice(7, 14)):
        np.testing.assert_allclose(run(keys[rows], IMAGES[rows]), whole[rows], atol=1e-6)
    assert whole.shape == IMAGES.shape
    assert float(whole.min()) >= 0
    assert float(whole.max()) <= 1
    assert (whole != IMAGES).any(axis=(1, 2, 3)).sum() >= 7


def test_no_operation_changes_nothing():
    np.testing.assert_array_equal(automatic.rand_augment(KEY, IMAGES, num_ops=0), IMAGES)
    plan = automatic.Plan(jnp.arange(14), jnp.asarray(TABLE[:, 0]))
    np.testing.assert_array_equal(compiled(IMAGES, plan)[:12], IMAGES[:12])  # all but autocontrast and equalize


def test_a_sharded_batch_gives_the_same():
    images, plan = jnp.tile(IMAGES[:1], (16, 1, 1, 1)), automatic.random_plan(per_image_keys(KEY, 16), TABLE)
    mesh = jax.sharding.Mesh(jax.devices(), ("data",))
    divided = jax.device_put(images, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data")))
    np.testing.assert_allclose(compiled(divided, plan), compiled(images, plan), atol=1e-6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_ops": -1}, r"num_ops must lie in \[0, inf\), got -1"),
        ({"magnitude": 31}, r"magnitude must lie in \[0, 31\), got 31"),
        ({"num_magnitude_bins": 1}, "num_magnitude_bins must lie in"),
        ({"method": "nearst"}, "did you mean 'nearest'"),
    ],
)
def test_what_is_out_of_range_is_refused(options, words):
    with pytest.raises(UsageError, match=words):
        automatic.rand_augment(KEY, IMAGES, **options)


def test_plans_for_other_images_and_other_channels_are_refused(annotations_off):
    with pytest.raises(UsageError, match=r"each of 14 images, got shapes \[13\]"):
        automatic.apply_plan(IMAGES, automatic.Plan(jnp.arange(13), jnp.ones(13)))
    with pytest.raises(UsageError, match="1 or 3 channels, got 2"):
        automatic.trivial_augment(KEY, IMAGES[..., :2])
