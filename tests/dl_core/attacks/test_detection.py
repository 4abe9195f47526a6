"""Detection by prediction change: what it scores, the threshold, and how well it tells."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from attack_contract import quadrants, small_network, trained_params

from dl_core.attacks.detection import detection_quality, detection_scores, detection_threshold
from dl_core.augment.filters import gaussian_blur
from dl_core.augment.noise import gaussian_noise
from dl_core.errors import UsageError

KEY = jax.random.key(0)
UNFLIPPED = ("blur", "bit_depth", "noise")  # the mirror image of a quadrant is another class


def pixels(_, x):
    """The first two values of an image are its logits."""
    return 4 * x.reshape(len(x), -1)[:, :2]


def softmax(logits):
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def test_the_score_is_the_distance_of_the_probabilities_under_each_transform():
    params = trained_params()
    images, _ = quadrants(16)
    flipped = np.asarray(images)[:, :, ::-1]
    median = scipy.ndimage.median_filter(np.asarray(images), (1, 3, 3, 1), mode="reflect")
    coarse = np.round(np.asarray(images) * 15) / 15
    probabilities = lambda x: softmax(np.asarray(small_network(params, jnp.asarray(x, jnp.float32)), np.float64))
    change = np.stack([probabilities(x) - probabilities(images) for x in (flipped, median, coarse)], axis=1)
    l1 = detection_scores(small_network, params, images, transforms=("flip", "median", "bit_depth"))
    np.testing.assert_allclose(l1.per_transform, np.abs(change).sum(axis=2), atol=1e-5)
    np.testing.assert_allclose(l1.score, np.abs(change).sum(axis=2).max(axis=1), atol=1e-5)
    euclidean = detection_scores(
        small_network, params, images, transforms=("flip", "median", "bit_depth"), metric="l2", reduce="mean"
    )
    np.testing.assert_allclose(euclidean.score, np.linalg.norm(change, axis=2).mean(axis=1), atol=1e-5)


def test_scores_lie_between_nothing_and_two():
    """A transform that does nothing scores 0; one that turns a sure prediction round scores 2."""
    images = jnp.array([[1.0, 0.0], [0.5, 0.5]])
    sure = lambda _, x: 1000 * x
    scores = detection_scores(sure, None, images, transforms=(lambda x: x, lambda x: x[:, ::-1])).per_transform
    np.testing.assert_allclose(scores, [[0, 2], [0, 0]], atol=1e-6)


def test_units_of_the_images_do_not_matter():
    params = trained_params()
    images, _ = quadrants()
    scaled = lambda p, x: small_network(p, (x + 1) / 2)
    run = functools.partial(detection_scores, transforms=UNFLIPPED, key=KEY)
    expected = run(small_network, params, images).per_transform
    given = run(scaled, params, 2 * images - 1, bounds=(-1.0, 1.0)).per_transform
    np.testing.assert_allclose(given[:, [0, 2]], expected[:, [0, 2]], atol=1e-5)
    # a value halfway between two of the 16 levels may be rounded either way
    assert (np.abs(given[:, 1] - expected[:, 1]) < 1e-5).mean() >= 0.75


def test_draws_belong_to_key_image_and_transform_and_to_no_division():
    params = trained_params()
    images, _ = quadrants()
    noise = functools.partial(gaussian_noise, std=0.1)
    run = functools.partial(detection_scores, small_network, params, transforms=("noise", noise, noise))
    whole = run(images, key=KEY).per_transform
    np.testing.assert_allclose(
        run(images, key=KEY, internal_batch_size=8, loop="compiled").per_transform, whole, atol=1e-6
    )
    keys = jax.vmap(jax.random.fold_in, (None, 0))(KEY, jnp.arange(8))
    np.testing.assert_allclose(run(images[4:], key=keys[4:]).per_transform, whole[4:], atol=1e-6)
    assert (np.asarray(run(images, key=jax.random.key(1)).score) != np.asarray(whole).max(axis=1)).all()
    assert (np.asarray(whole)[:, 1] != np.asarray(whole)[:, 2]).all()


def test_the_threshold_leaves_at_most_the_asked_share_above():
    scores = jnp.asarray(np.random.default_rng(0).permutation(100).astype(np.float32))
    for rate in (0.0, 0.05, 0.29, 0.999):
        threshold = detection_threshold(scores, rate)
        assert (scores > threshold).sum() == int(round(100 * rate) if rate < 0.99 else 99)
    tied = jnp.array([0.0, 0.0, 1.0, 1.0])  # of two alike, none or both can be refused
    assert detection_threshold(tied, 0.3) == 1
    assert detection_threshold(jnp.array([3.0])) == 3


def test_quality_of_scores_that_separate_and_of_scores_that_do_not():
    clean = jnp.linspace(0, 1, 40)
    apart = detection_quality(clean, clean + 2, 1.5)
    assert (apart.auroc, apart.detection_rate, apart.false_alarm_rate) == (1, 1, 0)
    assert 0.8 < apart.auroc_low < apart.auroc_high
    alike = detection_quality(clean, clean, 0.5)
    np.testing.assert_allclose(alike.auroc, 0.5, rtol=1e-6)
    assert alike.detection_rate == alike.false_alarm_rate == 0.5
    assert alike.auroc_low < 0.4 < 0.6 < alike.auroc_high


def test_it_runs_compiled_over_networks_and_over_devices_and_leaves_the_params():
    params = trained_params()
    images, _ = quadrants()
    before = jax.tree.map(np.array, params)
    run = lambda p, x: detection_scores(small_network, p, x, transforms=UNFLIPPED, key=KEY).per_transform
    whole = run(params, images)
    same = lambda given: np.testing.assert_allclose(given, whole, atol=1e-5)
    same(jax.jit(run)(params, images))
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), trained_params(3), params)
    same(jax.vmap(lambda p: run(p, images))(stacked)[1])
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:4])
    over_batch = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    same(run(jax.device_put(params, everywhere), jax.device_put(images, over_batch)))
    jax.tree.map(np.testing.assert_array_equal, params, before)


def test_half_precision_images_are_scored_in_single_precision():
    params = trained_params()
    images, _ = quadrants()
    halves = detection_scores(
        lambda p, x: small_network(p, x.astype(jnp.float32)), params, images.astype(jnp.bfloat16), transforms=("blur",)
    )
    assert halves.score.dtype == jnp.float32
    expected = detection_scores(small_network, params, images, transforms=("blur",)).score
    np.testing.assert_allclose(halves.score, expected, atol=0.1)  # eight bits of each pixel


@pytest.mark.usefixtures("annotations_off")
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"transforms": ()}, "at least one"),
        ({"transforms": "blur"}, "must be a sequence"),
        ({"transforms": ("blurr",)}, "unknown transform 'blurr'; did you mean 'blur'"),
        ({"transforms": ("noise",)}, "key is missing: the transform 'noise' draws"),
        ({"transforms": (lambda key, x: x,)}, "key is missing"),
        ({"transforms": (lambda x: x[:, 1:],)}, r"keep the shape of the images, \[2, 4, 4, 1\]"),
        ({"metric": "kl"}, "unknown metric 'kl'"),
        ({"reduce": "sum"}, "unknown reduction 'sum'"),
        ({"bounds": (0.0, 0.1)}, "let apply_fn normalise"),
        ({"images": jnp.full((2, 16), 0.5)}, "needs images"),
        ({"images": np.zeros((2, 4, 4, 1), np.uint8)}, "floating"),
        ({"apply_fn": lambda _, x: jax.nn.softmax(pixels(_, x))}, "look like probabilities"),
        ({"internal_batch_size": 0}, "at least 1"),
    ],
)
def test_nonsense_is_refused(options, words):
    arguments = {"apply_fn": pixels, "images": jnp.full((2, 4, 4, 1), 0.5), "transforms": ("bit_depth",), **options}
    with pytest.raises(UsageError, match=words):
        detection_scores(arguments.pop("apply_fn"), None, arguments.pop("images"), **arguments)


@pytest.mark.parametrize(
    ("scores", "rate", "words"),
    [
        (jnp.zeros(0), 0.05, "at least one clean image"),
        (jnp.array([jnp.nan]), 0.05, "finite"),
        (jnp.zeros(4), 5.0, "false_alarm_rate"),
    ],
)
def test_a_threshold_needs_scores_and_a_rate(scores, rate, words):
    with pytest.raises(UsageError, match=words):
        detection_threshold(scores, rate)


def test_a_function_with_options_bound_is_the_named_transform():
    params = trained_params()
    images, _ = quadrants()
    both = ("blur", functools.partial(gaussian_blur, sigma=1.0))
    scores = detection_scores(small_network, params, images, transforms=both).per_transform
    np.testing.assert_array_equal(scores[:, 0], scores[:, 1])
