"""The ensemble's number: survivors only, never above a member, no claim believed, the same however it is computed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attack_contract import assert_in_budget, quadrants, small_network, trained_params

from dl_core.attacks.ensemble import STANDARD, robust_accuracy
from dl_core.attacks.projected import pgd
from dl_core.attacks.random_search import random_search
from dl_core.attacks.result import AttackResult
from dl_core.errors import UsageError

KEY = jax.random.key(0)


def largest(params, images):
    """Logits are the values of the image: its class is where it is brightest, and attacks can be worked out by hand."""
    del params
    return images.reshape(len(images), -1)


def bars(batch=12, seed=0):
    """[batch, 4], the brightest value (the label) ahead of the others by 0.02 … 0.4; the last label is wrong."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 4, batch)
    images = np.full((batch, 4), 0.4)
    images[np.arange(batch), labels] += np.linspace(0.02, 0.4, batch)
    labels[-1] = (labels[-1] + 1) % 4
    return jnp.asarray(images, jnp.float32), jnp.asarray(labels, jnp.int32)


def push(*classes, seen=None):
    """Takes eps from the label's value and gives it to the others, for images of these labels alone."""
    chosen = np.isin(np.arange(4), classes)

    def attack(apply_fn, params, images, labels, *, key, eps, norm, bounds, loop):
        if seen is not None:
            seen.append(np.asarray(labels))
        return push_these(images, labels, eps, chosen)

    return attack


@jax.jit
def push_these(images, labels, eps, classes):
    way = jnp.where(classes[labels][:, None], 1 - 2 * jax.nn.one_hot(labels, 4), 0)
    return result_of(images, jnp.clip(images + eps[:, None] * way, 0, 1), labels)


@jax.jit
def result_of(images, moved, labels):
    ones = jnp.ones_like(labels)
    success = largest({}, moved).argmax(axis=1) != labels
    return AttackResult(moved, success, jnp.abs(moved - images).max(axis=1), 3 * ones, ones)


def ensemble(*attacks, images, labels, eps=0.1, **options):
    named = {f"attack {i}": attack for i, attack in enumerate(attacks)}
    return robust_accuracy(largest, {}, images, labels, key=KEY, eps=eps, attacks=named, **options)


def test_each_attack_is_given_the_survivors_of_the_one_before_and_has_its_own_share():
    images, labels = bars()
    seen = [], []
    result = ensemble(push(0, 1, seen=seen[0]), push(1, 2, seen=seen[1]), images=images, labels=labels)
    near = np.linspace(0.02, 0.4, 12) < 0.2  # a push of 0.1 takes 0.1 and gives 0.1
    correct = np.arange(12) < 11
    first = correct & near & np.isin(labels, (0, 1))
    second = correct & near & np.isin(labels, (2,))
    assert first.any()
    assert second.any()
    np.testing.assert_array_equal(result.fooled_by, np.where(first, 0, np.where(second, 1, -1)))
    np.testing.assert_array_equal(result.robust, correct & ~first & ~second)
    np.testing.assert_array_equal(result.table.broken, [first.sum(), second.sum()])
    np.testing.assert_allclose(result.table.accuracy, [11 / 12 - first.mean(), 11 / 12 - (first | second).mean()])
    assert result.accuracy == pytest.approx(result.table.accuracy[-1])
    assert result.clean_accuracy == pytest.approx(11 / 12)
    np.testing.assert_array_equal(seen[0][0], labels[:11])
    survivors = np.asarray(labels)[correct & ~first]
    np.testing.assert_array_equal(seen[1][0][: len(survivors)], survivors)
    np.testing.assert_array_equal(result.table.queries, [3 * 11, 3 * len(survivors)])
    np.testing.assert_array_equal(result.queries, 3 * correct + 3 * (correct & ~first))
    assert result.table.names == ("attack 0", "attack 1")
    assert (result.table.seconds > 0).all()


@pytest.mark.parametrize("seed", range(4))
def test_the_ensemble_is_never_above_a_member_and_another_attack_never_raises_it(seed):
    images, labels = bars(20, seed)
    random = np.random.default_rng(seed)
    attacks = [push(*random.choice(4, random.integers(1, 4), replace=False)) for _ in range(3)]
    alone = [ensemble(attack, images=images, labels=labels).accuracy for attack in attacks]
    growing = [ensemble(*attacks[:n], images=images, labels=labels) for n in (1, 2, 3)]
    assert growing[2].accuracy <= min(alone)
    assert growing[2].accuracy <= growing[1].accuracy <= growing[0].accuracy
    for result in growing:
        assert result.low <= result.accuracy <= result.high
        predicted = largest({}, result.adversarial).argmax(axis=1)
        np.testing.assert_array_equal(predicted == labels, result.robust)
        assert_in_budget(
            AttackResult(
                result.adversarial,
                ~result.robust,
                jnp.abs(result.adversarial - images).max(axis=1),
                result.queries,
                result.queries,
            ),
            images,
            0.1,
            "linf",
        )


def test_a_survivor_keeps_the_attempt_that_came_nearest():
    images, labels = jnp.array([[0.9, 0.1, 0.1, 0.1]]), jnp.array([0])
    weak = lambda *args, eps, **options: push(0)(*args, eps=eps / 4, **options)
    for order in ((push(0), weak), (weak, push(0))):
        result = ensemble(*order, images=images, labels=labels)
        np.testing.assert_allclose(result.adversarial, [[0.8, 0.2, 0.2, 0.2]], rtol=1e-6)
        assert result.accuracy == 1
        assert int(result.fooled_by[0]) == -1


def test_neither_the_size_of_the_batches_nor_the_compiler_changes_the_result():
    """Random points are drawn by a key of each image, so they are the same wherever the image stands."""
    images, labels = bars(30)
    attacks = {"random": functools.partial(random_search, num_random=6), "push": push(2, 3)}
    run = lambda images, labels, **options: robust_accuracy(
        largest, {}, images, labels, key=KEY, eps=0.05, attacks=attacks, **options
    )
    whole = run(images, labels)
    assert (whole.table.broken > 0).all()
    for at_once in (7, 13):
        cut = run(images, labels, batch_size=at_once)
        for name in ("adversarial", "robust", "fooled_by", "queries"):
            np.testing.assert_array_equal(getattr(cut, name), getattr(whole, name), err_msg=name)
        assert cut.accuracy == whole.accuracy
    compiled = jax.jit(run)(images, labels)
    np.testing.assert_array_equal(compiled.fooled_by, whole.fooled_by)
    np.testing.assert_array_equal(compiled.robust, whole.robust)
    np.testing.assert_array_equal(compiled.table.queries, whole.table.queries)
    np.testing.assert_allclose(compiled.adversarial, whole.adversarial, atol=1e-7)  # fused, and rounded otherwise
    assert np.isnan(compiled.table.seconds).all()
    np.testing.assert_allclose(
        [compiled.accuracy, compiled.low, compiled.high], [whole.accuracy, whole.low, whole.high], rtol=1e-5
    )
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:4])
    over_batch = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    sharded = run(*jax.device_put((images[:28], labels[:28]), over_batch), batch_size=10)
    np.testing.assert_array_equal(sharded.fooled_by, whole.fooled_by[:28])


def test_an_attack_is_not_believed():
    """Everything that these claim is false: too far, out of bounds, not misclassified at all."""
    images, labels = jnp.array([[0.9, 0.3, 0.2, 0.2], [0.99, 0.9, 0.9, 0.9]]), jnp.array([0, 0])

    def liar(move):
        def attack(apply_fn, params, images, labels, **_):
            return result_of(images, move(images), labels)._replace(success=jnp.ones(len(images), bool))

        return attack

    too_far = liar(lambda x: x[:, ::-1])
    outside = liar(lambda x: jnp.where(jnp.arange(4)[None] == 1, 1.05, x))
    still = liar(lambda x: x)
    result = ensemble(too_far, outside, still, images=images, labels=labels, eps=0.2)
    # of the second image the first liar's mirror image is honest work
    np.testing.assert_array_equal(result.fooled_by, [-1, 0])
    np.testing.assert_array_equal(result.adversarial[0], images[0])


def test_an_attack_without_a_radius_counts_within_the_radius_alone():
    images, labels = bars()

    def nearest(apply_fn, params, images, labels, **_):
        lead = images.max(axis=1) - 0.4
        return push_these(images, labels, lead / 2 + 1e-3, np.ones(4, bool))

    result = ensemble(nearest, images=images, labels=labels, eps=0.1)
    within = np.linspace(0.02, 0.4, 12) / 2 + 1e-3 <= 0.1
    np.testing.assert_array_equal(result.robust, ~within & (np.arange(12) < 11))
    each = ensemble(nearest, images=images, labels=labels, eps=jnp.full(12, 0.1).at[0].set(0.0))
    assert bool(each.robust[0])


def test_the_standard_ensemble_is_no_higher_than_a_strong_attack_and_leaves_the_parameters_alone():
    params = trained_params()
    images, labels = quadrants(40, seed=7)
    before = jax.tree.map(np.array, params)
    options = {"key": KEY, "eps": 0.1}
    calls = []
    result = robust_accuracy(
        small_network,
        params,
        images,
        labels,
        steps=8,
        max_queries=40,
        progress=lambda *call: calls.append(call),
        **options,
    )
    strong = pgd(small_network, params, images, labels, steps=20, **options)
    assert 0 < result.accuracy < result.clean_accuracy
    assert result.accuracy <= (~strong.success).mean()
    assert result.table.names == STANDARD
    assert calls[0] == ("apgd_ce", int(result.clean_accuracy * 40), int(result.clean_accuracy * 40))
    np.testing.assert_allclose(jnp.abs(result.adversarial - images).max(), 0.1, rtol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, params, before)


@pytest.mark.parametrize(("classes", "attacks"), [(2, ("apgd_dlr", "fab_t")), (3, ("apgd_t",))])
def test_with_few_classes_the_margin_stands_in_for_the_ratio(classes, attacks):
    """DLR needs three logits, towards a target four."""
    first = lambda params, images: small_network(params, images)[:, :classes]
    images, labels = quadrants(24, seed=3)
    images, labels = images[labels < classes], labels[labels < classes]
    result = robust_accuracy(
        first,
        trained_params(),
        images,
        labels,
        key=KEY,
        eps=0.15,
        norm="linf",
        attacks=attacks,
        steps=5,
    )
    assert result.accuracy < result.clean_accuracy
    assert result.low <= result.accuracy <= result.high


def test_nothing_correct_is_a_result_and_not_an_error():
    images, _ = bars()
    result = ensemble(push(0), images=images, labels=(images.argmax(axis=1) + 1) % 4)
    assert (result.accuracy, result.clean_accuracy) == (0, 0)
    np.testing.assert_array_equal(result.adversarial, images)
    np.testing.assert_array_equal(result.queries, 0)


def test_half_precision_images_are_attacked_in_their_own_type():
    images, labels = bars()
    result = ensemble(push(0, 1, 2, 3), images=images.astype(jnp.bfloat16), labels=labels, eps=0.1)
    assert result.adversarial.dtype == jnp.bfloat16
    assert result.accuracy < result.clean_accuracy


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"attacks": ("apgd_cee",)}, "unknown attack 'apgd_cee'; did you mean 'apgd_ce'"),
        ({"attacks": ()}, "one or more"),
        ({"attacks": ("apgd_ce", "apgd_ce")}, "a name of its own"),
        ({"attacks": (("mine", 3),)}, "'mine' must be a function, got int"),
        ({"attacks": ("square",)}, r"square.*leave it out"),  # [batch, 4] is no image
        ({"eps": -0.1}, "eps must not be negative"),
        ({"norm": "max"}, "unknown norm 'max'"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"max_queries": 0}, "max_queries must be at least 1"),
        ({"num_targets": 0}, "num_targets must be at least 1"),
        ({"restarts": 0}, "restarts must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"confidence": 95}, "confidence must lie"),
    ],
)
@pytest.mark.usefixtures("annotations_off")
def test_nonsense_is_refused_before_an_attack_runs(options, words):
    images, labels = bars()
    with pytest.raises(UsageError, match=words):
        robust_accuracy(largest, {}, images, labels, **{"key": KEY, "eps": 0.1, "attacks": {"push": push()}, **options})


def test_probabilities_and_no_images_are_refused():
    images, labels = bars()
    softmax = lambda params, x: jax.nn.softmax(largest(params, x))
    with pytest.raises(UsageError, match="probabilities"):
        robust_accuracy(softmax, {}, images, labels, key=KEY, eps=0.1, attacks={"push": push(0)})
    with pytest.raises(UsageError, match="at least one image"):
        ensemble(push(0), images=images[:0], labels=labels[:0])
