"""Honest networks pass the checks; networks that hide their gradient on purpose are found out."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from attack_contract import quadrants

from dl_core.attacks.balls import distance
from dl_core.attacks.gradient import fgsm
from dl_core.attacks.masking import check_gradient_masking
from dl_core.attacks.projected import pgd
from dl_core.attacks.random_search import random_search
from dl_core.errors import UsageError

KEY, EPS = jax.random.key(0), 0.15
HONEST = {"levels": 0.0, "scale": 1.0, "ripple": 0.0}
MASKS = {
    "quantised": {"levels": 4.0},
    "saturated": {"scale": 1e4},
    "shattered": {"ripple": 0.01},
}


def network(params, images):
    """A dense network, behind a rounding of the image, a fine ripple on it, or enormous logits.

    The ripple hardly moves the image, and its derivative (up to 30) has any sign.
    """
    mask, net = params
    levels = jnp.maximum(mask["levels"], 1.0)
    x = jnp.where(mask["levels"] > 0, jnp.round(images * levels) / levels, images)
    x = x + mask["ripple"] * jnp.sin(3000.0 * images)
    x = jnp.maximum((x.reshape(len(x), -1) - 0.5) @ net["in"], 0.0)
    return mask["scale"] * (x @ net["out"])


@functools.cache
def trained(seed, hardened):
    """Right on nearly all quadrants; hardened: trained on the result of three steps of projected ascent."""
    keys = jax.random.split(jax.random.key(seed), 2)
    net = {"in": jax.random.normal(keys[0], (64, 24)) / 8, "out": jax.random.normal(keys[1], (24, 4)) / 5}
    images, labels = quadrants(512, seed=200 + seed)
    optimizer = optax.adam(1e-2)

    def loss(net, x):
        return optax.softmax_cross_entropy_with_integer_labels(network((HONEST, net), x), labels).mean()

    @jax.jit
    def step(net, state):
        x = images
        for _ in range(3 if hardened else 0):
            x = x + EPS / 2 * jnp.sign(jax.grad(loss, argnums=1)(net, x))
            x = jnp.clip(jnp.clip(x, images - EPS, images + EPS), 0, 1)
        updates, state = optimizer.update(jax.grad(loss)(net, x), state)
        return optax.apply_updates(net, updates), state

    state = optimizer.init(net)
    for _ in range(100):
        net, state = step(net, state)
    return net


def check(mask, net, seed=5, **options):
    images, labels = quadrants(64, seed)
    params = ({**HONEST, **mask}, net)
    return check_gradient_masking(network, params, images, labels, **{"key": KEY, "eps": EPS, **options})


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("hardened", [False, True])
def test_an_honest_network_raises_no_warning(seed, hardened):
    report = check({}, trained(seed, hardened), seed=seed)
    assert report.warnings == ()
    assert report.clean_accuracy > 0.9
    assert report.white_box <= min(report.one_step, report.random_search, report.black_box) + 0.05  # the tolerance
    assert report.vanished == report.saturated == 0
    assert report.gradient_wins > 0.95
    assert report.large_eps_accuracy[-1] == 0
    assert (np.diff(report.large_eps_accuracy) <= 0).all()
    assert (report.surface.along_gradient > report.surface.along_random).all()


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        ("quantised", ["vanishing gradients: 100.0%", "must leave none"]),
        ("saturated", ["saturated logits"]),
        ("shattered", ["uninformative gradients", "black box breaks"]),
    ],
)
def test_a_network_that_hides_its_gradient_is_unmasked(mask, words):
    net = trained(0, hardened=False)
    report = check(MASKS[mask], net)
    if mask != "saturated":  # the margin has a gradient, however large the logits
        assert report.white_box > check({}, net).white_box + 0.2, "the mask does make the attack fail"
    for part in words:
        assert any(part in warning for warning in report.warnings), report.warnings


def test_saturated_logits_defeat_the_cross_entropy_and_a_black_box_shows_it():
    entropy = functools.partial(pgd, steps=20)
    net = trained(0, hardened=False)
    report, honest = (check(mask, net, white_box=entropy) for mask in (MASKS["saturated"], {}))
    assert report.white_box > honest.white_box + 0.2, "the mask does make the attack fail"
    assert any("black box breaks" in warning for warning in report.warnings), report.warnings


def test_an_attack_that_does_not_move_is_beaten_by_weaker_ones():
    """The checks are of an attack as much as of a model: this one takes steps of length zero."""
    lazy = functools.partial(pgd, step_size=0.0, random_start=False, steps=2)
    report = check({}, trained(0, hardened=False), white_box=lazy)
    assert report.white_box == report.clean_accuracy
    for words in ("one step breaks", "black box breaks", "must leave none"):
        assert any(words in warning for warning in report.warnings), report.warnings
    assert report.vanished == report.saturated == 0, "the model is honest"
    assert report.gradient_wins > 0.95


def test_a_constant_network_and_wrong_labels_are_reported():
    net = trained(0, hardened=False)
    constant = {**net, "out": net["out"] * 0}
    images, _ = quadrants(64, 5)
    report = check_gradient_masking(network, (HONEST, constant), images, jnp.zeros(64, jnp.int32), key=KEY, eps=EPS)
    assert report.vanished == 1
    assert any("must leave none" in warning for warning in report.warnings)
    assert np.isnan(report.gradient_wins)
    wrong = (network((HONEST, net), images).argmax(axis=1) + 1) % 4
    report = check_gradient_masking(network, (HONEST, net), images, wrong, key=KEY, eps=EPS)
    assert len(report.warnings) == 1
    assert "no image is classified correctly" in report.warnings[0]


def test_batches_change_nothing_and_progress_names_the_check():
    net, calls = trained(0, hardened=False), []
    short = {"white_box": fgsm, "max_queries": 20, "num_random": 10}
    whole = check({}, net, **short)
    cut = check({}, net, **short, batch_size=24, progress=lambda *call: calls.append(call))
    assert cut._replace(surface=None, large_eps=None, large_eps_accuracy=None, median_margin=0) == whole._replace(
        surface=None, large_eps=None, large_eps_accuracy=None, median_margin=0
    )
    assert calls[0] == ("gradient", 24, 64)
    assert {"white box", "one step", "random search", "black box"} < {name for name, *_ in calls}


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_random_search_stays_in_the_ball_and_finds_more_with_more_points(norm):
    net = trained(0, hardened=False)
    images, labels = quadrants(64, 5)
    eps = {"linf": 0.3, "l2": 2.0, "l1": 12.0}[norm]
    few, many = (
        random_search(network, (HONEST, net), images, labels, key=KEY, eps=eps, norm=norm, num_random=n)
        for n in (3, 30)
    )
    assert (np.asarray(many.success) >= np.asarray(few.success)).all()
    moved = distance(many.adversarial - images, norm)
    assert (moved <= eps * (1 + 1e-5)).all()
    assert many.adversarial.min() >= 0
    assert many.adversarial.max() <= 1
    np.testing.assert_array_equal(many.success, network((HONEST, net), many.adversarial).argmax(axis=1) != labels)
    assert (many.queries == many.steps + 1).all()
    assert (many.steps[many.success] <= 30).all()


@pytest.mark.usefixtures("annotations_off")
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"eps": 0.0}, "eps must be one positive number"),
        ({"eps": jnp.full(64, 0.1)}, "eps must be one positive number"),
        ({"steps": 1}, "steps must be at least 2"),
        ({"max_queries": 0}, "max_queries must be at least 1"),
        ({"num_targets": 0}, "num_targets must be at least 1"),
        ({"num_random": 0}, "num_random must be at least 1"),
        ({"tolerance": 2}, "tolerance must be a share"),
        ({"norm": "l0"}, "unknown norm 'l0'"),
    ],
)
def test_nonsense_is_refused(options, words):
    with pytest.raises(UsageError, match=words):
        check({}, trained(0, hardened=False), **options)


def test_it_runs_on_the_host():
    net = trained(0, hardened=False)
    images, labels = quadrants(64, 5)
    with pytest.raises(UsageError, match="outside of jit"):
        jax.jit(lambda x: check_gradient_masking(network, (HONEST, net), x, labels, key=KEY, eps=EPS))(images)
