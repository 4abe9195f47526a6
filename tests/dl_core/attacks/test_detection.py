"""Detection by prediction change: what it scores, what it finds, and how an attacker who knows it gets past."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from attack_contract import quadrants, small_network, trained_params

from dl_core.attacks.balls import project
from dl_core.attacks.detection import detection_quality, detection_scores, detection_threshold
from dl_core.attacks.evading import evading
from dl_core.attacks.gradient import fgsm
from dl_core.attacks.result import choose
from dl_core.attacks.squeezing import straight_through
from dl_core.augment.color import posterize
from dl_core.augment.filters import gaussian_blur
from dl_core.augment.noise import gaussian_noise
from dl_core.errors import UsageError

KEY = jax.random.key(0)
UNFLIPPED = ("blur", "bit_depth", "noise")  # the mirror image of a quadrant is another class
posterize_2 = functools.partial(posterize, bits=2)


def pixels(_, x):
    """The first two values of an image are its logits."""
    return 4 * x.reshape(len(x), -1)[:, :2]


def iterated(apply_fn, params, images, labels, eps, steps=30):
    """The sign method in small steps, each image until it succeeds."""
    attacked, done = images, jnp.zeros(len(images), bool)
    for _ in range(steps):
        step = fgsm(apply_fn, params, attacked, labels, eps=eps / 8, loss="margin")
        attacked = choose(done, attacked, project(step.adversarial, images, eps, (0.0, 1.0), "linf"))
        done = done | (apply_fn(params, attacked).argmax(axis=1) != labels)
    return attacked, np.asarray(done)


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


@functools.cache
def contest():
    """A detector, the images that it guards, those of an attacker who does not know it and of one who does."""
    params = trained_params()
    tuning, _ = quadrants(200, seed=5)
    images, labels = quadrants(100, seed=6)
    score = lambda x: detection_scores(small_network, params, x, transforms=UNFLIPPED, key=jax.random.key(1)).score
    threshold = detection_threshold(score(tuning))
    static, fooled = iterated(small_network, params, images, labels, eps=0.2)
    defended = evading(
        small_network, labels, threshold=threshold, transforms=UNFLIPPED, key=jax.random.key(77), noise_samples=2
    )
    adaptive, claimed = iterated(defended, params, images, labels, eps=0.2)
    return params, labels, threshold, score, images, (static, fooled), (adaptive, claimed)


def test_the_attacker_who_does_not_know_the_detector_is_found_and_the_one_who_does_is_not():
    params, labels, threshold, score, images, (static, fooled), (adaptive, claimed) = contest()
    assert fooled.mean() > 0.7
    unaware = detection_quality(score(images), score(static)[fooled], threshold)
    assert unaware.false_alarm_rate <= 0.12  # 5 % of other images; 12 of 100 is three standard errors more
    assert unaware.auroc_low > 0.9
    assert unaware.detection_rate > 0.7
    wrong = np.asarray(small_network(params, adaptive).argmax(axis=1) != labels)
    aware = detection_quality(score(images), score(adaptive)[wrong], threshold)
    print(f"{unaware}\n{aware}\nfooled {fooled.mean():.2f} {wrong.mean():.2f}, claimed {claimed.mean():.2f}")
    assert aware.auroc < unaware.auroc
    assert aware.detection_rate < unaware.detection_rate / 2
    passed = lambda x, hit: float((hit & ~np.asarray(score(x) > threshold)).mean())
    assert passed(adaptive, wrong) > 2 * passed(static, fooled)


def test_the_adaptive_attack_succeeds_exactly_where_the_image_fools_and_passes():
    """Asked with the attacker's own draws, the claim is the truth; with the detector's, nearly."""
    params, labels, threshold, score, _, _, (adaptive, claimed) = contest()
    wrong = np.asarray(small_network(params, adaptive).argmax(axis=1) != labels)
    passes = wrong & ~np.asarray(score(adaptive) > threshold)
    assert (passes == claimed).mean() > 0.8  # the attack ends just below the threshold, where the draws decide
    fixed = ("blur", "bit_depth")
    known = detection_scores(small_network, params, adaptive, transforms=fixed).score
    defended = evading(small_network, labels, threshold=threshold, transforms=fixed)
    predicted = defended(params, adaptive).argmax(axis=1)
    np.testing.assert_array_equal(predicted != labels, wrong & ~np.asarray(known > threshold))


def test_a_detector_that_refuses_nothing_changes_no_logit_and_one_that_refuses_all_gives_all_back():
    params = trained_params()
    images, labels = quadrants()
    wrong = (labels + 1) % 4
    never = evading(small_network, labels, threshold=2.0, transforms=("blur",))
    np.testing.assert_allclose(never(params, images), small_network(params, images), atol=1e-5)
    always = evading(small_network, wrong, threshold=-1.0, transforms=("blur",))
    np.testing.assert_array_equal(always(params, images).argmax(axis=1), wrong)
    enormous = evading(lambda p, x: 1e6 * small_network(p, x), wrong, threshold=-1e-9, transforms=(lambda x: x,))
    np.testing.assert_array_equal(enormous(params, images).argmax(axis=1), wrong)  # in spite of rounding


def test_the_attacker_sees_through_rounding():
    """Two logits are two pixels: the score falls where the fraction lost by rounding does, and the gradient says so."""
    images = jnp.array([[0.62, 0.3]])
    coarse = lambda x: jnp.round(4 * x) / 4
    gain = lambda transform: jax.grad(
        lambda x: evading(pixels, jnp.array([1]), threshold=0.0, transforms=(transform,))(None, x)[0, 1]
    )(images)
    raised = 4 * (1 / 4 - 0.3)  # what the rounded image gains in the second logit, against the first
    assert raised < 0
    blind, seeing = gain(coarse), gain(straight_through(coarse))
    assert np.isfinite(blind).all()
    assert np.isfinite(seeing).all()
    assert (np.asarray(blind) != np.asarray(seeing)).any()
    np.testing.assert_array_equal(straight_through(coarse)(images), coarse(images))
    through = jax.grad(lambda x: (straight_through(coarse)(x) * jnp.array([[1.0, 2.0]])).sum())(images)
    np.testing.assert_array_equal(through, [[1, 2]])
    np.testing.assert_array_equal(
        straight_through(posterize_2)(images[:, None, None]), posterize_2(images[:, None, None])
    )


def test_a_saturated_softmax_does_not_hide_the_score_from_the_attacker():
    """Logits a thousand times as large: the softmax has no gradient, the attack has one."""
    images, labels = jnp.array([[0.6, 0.5, 0.4, 0.5]] * 3), jnp.array([1, 1, 1])
    sure = lambda _, x: 10_000 * x[:, :2]
    mirror = lambda x: x[:, jnp.array([2, 3, 0, 1])]  # shows the other class
    defended = evading(sure, labels, threshold=0.1, transforms=(mirror,))
    scores = detection_scores(sure, None, images, transforms=(mirror,)).score
    assert (scores > 1.9).all()
    slope = jax.grad(lambda x: defended(None, x)[:, 1].sum())(images)
    assert np.isfinite(slope).all()
    assert (np.asarray(slope)[:, 2:] != 0).any()  # the pixels that only the transformed image shows


def test_it_runs_compiled_over_networks_and_over_devices_and_leaves_the_params():
    params = trained_params()
    images, labels = quadrants()
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
    attacked = fgsm(
        evading(small_network, labels, threshold=0.1, transforms=("blur",)), params, images, labels, eps=0.1
    )
    assert np.isfinite(attacked.adversarial).all()
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


@pytest.mark.usefixtures("annotations_off")
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"transforms": ("noise",)}, "key is missing"),
        ({"noise_samples": 0}, "noise_samples must lie in"),
        ({"weight": 0.0}, "weight must lie in"),
        ({"metric": "kl"}, "unknown metric"),
        ({"labels": jnp.zeros(3, int)}, "3 labels, and is asked about 2 images"),
    ],
)
def test_an_attacker_cannot_ask_for_nonsense_either(options, words):
    arguments = {"labels": jnp.zeros(2, int), "transforms": ("bit_depth",), "threshold": 0.1, **options}
    with pytest.raises(UsageError, match=words):
        evading(pixels, arguments.pop("labels"), **arguments)(None, jnp.full((2, 4, 4, 1), 0.5))


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
