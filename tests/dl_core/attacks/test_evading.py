"""The attacker who knows the detector: where it succeeds, and what it sees through."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attack_contract import quadrants, small_network, trained_params

from dl_core.attacks.balls import project
from dl_core.attacks.detection import detection_quality, detection_scores, detection_threshold
from dl_core.attacks.evading import evading
from dl_core.attacks.gradient import fgsm
from dl_core.attacks.result import choose
from dl_core.attacks.squeezing import straight_through
from dl_core.augment.color import posterize
from dl_core.errors import UsageError

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
    params, labels, threshold, score, images, (static, fooled), (adaptive, _) = contest()
    assert fooled.mean() > 0.7
    unaware = detection_quality(score(images), score(static)[fooled], threshold)
    assert unaware.false_alarm_rate <= 0.12  # 5 % of other images; 12 of 100 is three standard errors more
    assert unaware.auroc_low > 0.9
    assert unaware.detection_rate > 0.7
    wrong = np.asarray(small_network(params, adaptive).argmax(axis=1) != labels)
    aware = detection_quality(score(images), score(adaptive)[wrong], threshold)
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
    """Rounding has a gradient of zero: without the detour, the transformed image says nothing about what to change."""
    images = jnp.array([[0.62, 0.3]])
    coarse = lambda x: jnp.round(4 * x) / 4
    gain = lambda transform: jax.grad(
        lambda x: evading(pixels, jnp.array([1]), threshold=0.0, transforms=(transform,))(None, x)[0, 1]
    )(images)
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


def test_attacking_both_leaves_the_params():
    params = trained_params()
    images, labels = quadrants()
    before = jax.tree.map(np.array, params)
    both = evading(small_network, labels, threshold=0.1, transforms=("blur",))
    assert np.isfinite(fgsm(both, params, images, labels, eps=0.1).adversarial).all()
    jax.tree.map(np.testing.assert_array_equal, params, before)


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
