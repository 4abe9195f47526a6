"""Universal perturbations: one for all images, made on some and scored on others, beside noise."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attack_contract import quadrants, small_network, trained_params

from dl_core.attacks.balls import distance
from dl_core.attacks.universal import METHODS, apply_perturbation, fooling_rate, universal_perturbation
from dl_core.errors import UsageError

KEY = jax.random.key(5)
EPS = {"linf": 0.2, "l2": 1.3, "l1": 6.0}


@functools.cache
def made(norm="linf", method="projected_gradient", epochs=4, **options):
    images, labels = quadrants(128)
    return universal_perturbation(
        small_network,
        trained_params(),
        images,
        labels,
        key=KEY,
        eps=EPS[norm],
        norm=norm,
        method=method,
        epochs=epochs,
        batch_size=8 if method == "deepfool" else 32,
        **options,
    )


@pytest.mark.parametrize(
    ("norm", "method"),
    [("linf", "projected_gradient"), ("l2", "projected_gradient"), ("l1", "projected_gradient"), ("l2", "deepfool")],
)
def test_it_fools_on_images_that_it_was_not_made_on_and_noise_of_its_length_does_not(norm, method):
    result = made(norm, method, 2 if method == "deepfool" else 4)
    assert result.perturbation.shape == (8, 8, 1)
    assert float(distance(result.perturbation[None], norm)[0]) <= EPS[norm] * (1 + 1e-5)
    images, _ = quadrants(256, seed=9)
    held_out = fooling_rate(small_network, trained_params(), images, result.perturbation, key=KEY, norm=norm)
    # 256 images: a rate is known to 0.03; the noise, of the same length, is an order of magnitude below
    assert held_out.rate > 0.15
    assert held_out.noise_rate < 0.05
    assert abs(held_out.rate - result.fooling_rate) < 0.2


def test_the_fooling_rate_is_the_share_of_changed_predictions_whatever_the_labels():
    images, _ = quadrants(50, seed=9)
    perturbation = made().perturbation
    predict = lambda x: small_network(trained_params(), x).argmax(axis=1)
    changed = predict(images) != predict(apply_perturbation(images, perturbation))
    rate = fooling_rate(small_network, trained_params(), images, perturbation, key=KEY, batch_size=16)
    np.testing.assert_array_equal(rate.fooled, changed)
    np.testing.assert_allclose(rate.rate, changed.mean(), rtol=1e-6)
    np.testing.assert_allclose(rate.noise_rate, rate.fooled_by_noise.mean(), rtol=1e-6)


def test_the_perturbation_is_the_same_for_all_images_and_keeps_them_in_bounds():
    images, _ = quadrants(5)
    perturbation = jnp.linspace(-0.4, 0.4, 64).reshape(8, 8, 1)
    changed = apply_perturbation(images, perturbation)
    np.testing.assert_array_equal(changed, np.clip(np.asarray(images) + np.asarray(perturbation)[None], 0, 1))


def test_no_budget_is_no_perturbation():
    images, labels = quadrants(16)
    run = functools.partial(universal_perturbation, small_network, trained_params(), images, labels, key=KEY, epochs=1)
    for method in METHODS:
        result = run(eps=0.0, method=method)
        np.testing.assert_array_equal(result.perturbation, 0)
        assert result.fooling_rate == 0


def test_the_loss_rises_and_a_limit_of_zero_stops_the_pull():
    losses = made().losses
    assert losses[-4:].mean() > losses[:4].mean() + 0.1
    images, labels = quadrants(32)
    run = functools.partial(universal_perturbation, small_network, trained_params(), images, labels, key=KEY, epochs=1)
    np.testing.assert_array_equal(run(eps=0.1, loss_limit=0.0).perturbation, 0)


def test_a_target_is_what_the_images_become():
    images, labels = quadrants(128)
    others = labels != 2
    run = functools.partial(universal_perturbation, small_network, trained_params(), key=KEY, eps=0.3, epochs=4)
    result = run(images[others], labels[others], target=2)
    unseen, unseen_labels = quadrants(128, seed=9)
    unseen = unseen[unseen_labels != 2]
    rate = fooling_rate(small_network, trained_params(), unseen, result.perturbation, key=KEY, target=2)
    changed = apply_perturbation(unseen, result.perturbation)
    predicted = np.asarray(small_network(trained_params(), changed).argmax(axis=1))
    assert (predicted[np.asarray(rate.fooled)] == 2).all()
    assert rate.rate > 0.5 > rate.noise_rate


def test_it_can_be_compiled_and_mapped_over_eps():
    images, labels = quadrants(16)
    params = trained_params()
    before = jax.tree.map(np.array, params)
    run = lambda eps: universal_perturbation(
        small_network, params, images, labels, key=KEY, eps=eps, epochs=2, batch_size=6
    )
    mapped = jax.jit(jax.vmap(run))(jnp.array([0.0, 0.15]))
    alone = run(0.15)
    np.testing.assert_array_equal(mapped.perturbation[0], 0)
    # a sign flips where a gradient is nearly zero, and compiled code rounds in another order
    assert np.mean(np.abs(mapped.perturbation[1] - alone.perturbation) < 1e-5) > 0.9
    jax.tree.map(np.testing.assert_array_equal, params, before)


def test_deepfool_is_the_same_in_one_program():
    images, labels = quadrants(8)
    run = functools.partial(universal_perturbation, small_network, trained_params(), images, labels, key=KEY)
    steps = []
    options = {"eps": 1.0, "norm": "l2", "method": "deepfool", "epochs": 1, "batch_size": 4}
    host = run(**options, loop="host", progress=lambda *done: steps.append(done))
    compiled = run(**options, loop="compiled")
    assert steps == [(1, 2), (2, 2)]
    assert np.isnan(host.losses).all()
    np.testing.assert_allclose(host.perturbation, compiled.perturbation, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "sgd"}, "unknown method 'sgd'"),
        ({"norm": "l1", "method": "deepfool"}, "unknown norm 'l1'"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"step_size": -0.5}, "step_size must be at least 0"),
        ({"eps": jnp.full(8, 0.1)}, "one perturbation has one eps and one key"),
        ({"key": jax.random.split(KEY, 8)}, "one perturbation has one eps and one key"),
        ({"key": None}, "key is missing"),
        ({"target": 9}, r"target must be in \[0, 4\), got 9"),
    ],
)
def test_nonsense_is_refused_with_the_value_given(annotations_off, options, words):
    images, labels = quadrants()
    with pytest.raises(UsageError, match=words):
        universal_perturbation(small_network, trained_params(), images, labels, **{"key": KEY, "eps": 0.1, **options})


def test_a_perturbation_of_another_shape_is_refused(annotations_off):
    images, _ = quadrants()
    words = r"the shape \[8, 8, 1\] of one image, got \[8, 8\]"
    with pytest.raises(UsageError, match=words):
        apply_perturbation(images, jnp.zeros((8, 8)))
    with pytest.raises(UsageError, match=words):
        fooling_rate(small_network, trained_params(), images, jnp.zeros((8, 8)), key=KEY)
