"""The square attack: what it may change, what it draws, what it asks, and what it must achieve."""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attack_contract import assert_in_budget, assert_keeps_the_contract, quadrants, small_network, trained_params

from dl_core.attacks.square import square
from dl_core.errors import UsageError

EPS = {"linf": 0.1, "l2": 1.0}
KEY = jax.random.key(3)
module = importlib.import_module("dl_core.attacks.square")  # the package exports a function of that name


def attack(batch=24, norm="linf", **options):
    images, labels = quadrants(batch)
    defaults = {"key": KEY, "eps": EPS.get(norm), "norm": norm, "max_queries": 60}
    return square(small_network, trained_params(), images, labels, **{**defaults, **options})


def stubborn(params, images):
    """Predicts class 0 whatever the image, and draws the search on by the other logit."""
    del params
    draw = (images * jnp.arange(images[0].size).reshape(1, *images.shape[1:])).sum(axis=(1, 2, 3))
    return jnp.stack([jnp.full(len(images), 1e6), draw], axis=1)


def test_square_keeps_the_contract():
    assert_keeps_the_contract(functools.partial(square, key=KEY, max_queries=12), eps=EPS["linf"], norm="linf")


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_more_queries_fool_more_and_no_image_gets_more_than_allowed(norm):
    rates = []
    for max_queries in (1, 2, 60):
        result = attack(norm=norm, max_queries=max_queries)
        assert_in_budget(result, quadrants(24)[0], EPS[norm], norm)
        assert (result.queries <= max_queries).all()
        assert (result.queries[~result.success] == max_queries).all()
        np.testing.assert_array_equal(result.steps, result.queries - 1)
        rates.append(float(result.success.mean()))
    assert rates[0] <= rates[1] < rates[2]


def test_an_image_is_asked_about_no_more_once_it_is_fooled():
    result = attack()
    assert (np.asarray(result.queries)[np.asarray(result.success)] < 60).any()
    longer = attack(max_queries=60, loop="compiled")
    np.testing.assert_array_equal(longer.queries, result.queries)


def test_the_first_proposal_is_vertical_stripes_of_eps():
    images = jnp.full((3, 6, 5, 2), 0.5)
    found = square(stubborn, None, images, jnp.zeros(3, int), key=KEY, eps=0.25, max_queries=2).adversarial
    np.testing.assert_array_equal(np.abs(found - images), 0.25)
    np.testing.assert_array_equal(found, jnp.broadcast_to(found[:, :1], found.shape))
    assert len(np.unique(np.asarray(found).reshape(3, -1), axis=0)) == 3  # every image has its own


def test_every_later_perturbation_is_plus_or_minus_eps_and_the_loss_only_rises():
    images = jnp.full((3, 6, 5, 2), 0.5)
    before = -np.inf
    for max_queries in (2, 12, 40):
        found = square(stubborn, None, images, jnp.zeros(3, int), key=KEY, eps=0.25, max_queries=max_queries)
        np.testing.assert_array_equal(np.abs(found.adversarial - images), 0.25)
        assert not found.success.any()
        mean = float(stubborn(None, found.adversarial)[:, 1].mean())
        assert mean > before
        before = mean


def test_the_euclidean_perturbation_is_always_as_long_as_allowed():
    images = jnp.full((3, 11, 9, 2), 0.5)  # far from the bounds, which could take some of it away
    for max_queries in (2, 30):
        found = square(stubborn, None, images, jnp.zeros(3, int), key=KEY, eps=0.7, norm="l2", max_queries=max_queries)
        np.testing.assert_allclose(found.distance, 0.7, rtol=1e-5)  # roundings of a sum of 198 squares


@pytest.mark.parametrize(("norm", "shape"), [("linf", (1, 1, 1)), ("l2", (1, 1, 1)), ("l2", (9, 4, 3))])
def test_images_of_any_size_have_squares(norm, shape):
    images = jnp.full((2, *shape), 0.5)
    found = square(stubborn, None, images, jnp.zeros(2, int), key=KEY, eps=0.1, norm=norm, max_queries=8)
    assert np.isfinite(found.adversarial).all()
    assert_in_budget(found, images, 0.1, norm)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_restarts_share_the_budget(norm):
    result = attack(norm=norm, restarts=3)
    assert (result.queries <= 60).all()
    assert_in_budget(result, quadrants(24)[0], EPS[norm], norm)
    assert result.success.mean() > attack(norm=norm, max_queries=2).success.mean()


def test_a_proposal_always_changes_something():
    """One channel, two signs: the paper's draw would repeat what is there every second time."""
    images = jnp.full((16, 6, 6, 1), 0.5)
    problem = module.check_attack(stubborn, None, images, jnp.zeros(16, jnp.int32), bounds=(0.0, 1.0))
    keys = jax.vmap(jax.random.key)(jnp.arange(16))
    search = module._Search(problem, keys, jnp.full(16, 0.1), jnp.float32(0.8), jnp.int32(1000))
    unknown = jnp.zeros(16)
    options = module._Options("linf", "margin", (0.0, 1.0))
    current, propose = images + 0.1, jax.jit(module._propose_linf, static_argnums=0)
    for step in range(1, 9):
        state = module._State(jnp.int32(step), current, unknown, current, unknown, unknown == 0, jnp.ones(16, int))
        assert (propose(options, search, state, jnp.int32(step)) != current).any(axis=(1, 2, 3)).all()


def test_squares_shrink_as_in_the_paper():
    """Ten thousand steps on 32×32 pixels: the sides that p = 0.8 / 2ᵏ gives, at the steps of section 5."""
    search = module._Search(None, None, None, jnp.float32(0.8), jnp.int32(10_000))
    sizes = jax.jit(jax.vmap(lambda place: module._size(search, place, 32, 32)))
    ends = np.array([0, 10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000])
    expected = np.maximum(np.round(np.sqrt(0.8 * 1024 / 2.0 ** np.arange(10))), 1)
    np.testing.assert_array_equal(sizes(jnp.asarray(ends[1:]) + 1), expected[:-1])  # the start is the place 0
    np.testing.assert_array_equal(sizes(jnp.asarray(ends) + 2), expected)


@pytest.mark.parametrize("size", [1, 2, 5, 8])
def test_bumps_are_concentric_rectangles(size):
    """Equation 2, summed rectangle by rectangle."""

    def bump(height, width):
        total = np.zeros((height, width))
        for k in range(width // 2 + 1):
            top, left = height // 2 - k, width // 2 - k
            total[max(top, 0) : top + 2 * k + 1, max(left, 0) : left + 2 * k + 1] += 1 / (k + 1) ** 2
        return total / max(np.linalg.norm(total), 1e-12)

    both = np.concatenate([bump(size // 2, size), -bump(size - size // 2, size)])
    expected = np.zeros((8, 9))
    expected[:size, :size] = both / np.linalg.norm(both)
    upright, lying = module._bumps(jnp.int32(size), 8, 9)
    np.testing.assert_allclose(upright, expected, atol=1e-6)
    np.testing.assert_allclose(lying[:size, :size], expected[:size, :size].T, atol=1e-6)


def test_survivors_that_go_on_in_a_smaller_batch_find_the_same(monkeypatch):
    images, labels = quadrants(24)
    eps = jnp.where(jnp.arange(24) % 6 == 0, 0.02, 0.5)  # four images that hold out
    run = functools.partial(square, small_network, trained_params(), images, labels, key=KEY, eps=eps, max_queries=40)
    whole = run()
    calls, sizes, put = [], [], module._put
    monkeypatch.setattr(
        module, "_put", lambda all_, places, part: (sizes.append(len(places)), put(all_, places, part))[1]
    )
    monkeypatch.setattr(module, "_SEGMENT", 8)
    monkeypatch.setattr(module, "_WORTHWHILE", 8)
    pieces = run(progress=lambda done, steps: calls.append((done, steps)))
    assert calls == [(9, 40), (17, 40), (25, 40), (33, 40), (40, 40)]
    assert sizes == [24, 6]
    np.testing.assert_array_equal(pieces.queries, whole.queries)
    np.testing.assert_array_equal(pieces.success, whole.success)
    np.testing.assert_allclose(pieces.adversarial, whole.adversarial, atol=1e-6)


def test_draws_belong_to_the_image_and_not_to_its_batch():
    images, labels = quadrants(24)
    keys = jax.random.split(KEY, 24)
    run = functools.partial(square, small_network, trained_params(), eps=0.1, max_queries=20)
    whole = run(images, labels, key=keys)
    part = run(images[12:], labels[12:], key=keys[12:])
    np.testing.assert_array_equal(part.queries, whole.queries[12:])
    np.testing.assert_allclose(part.adversarial, whole.adversarial[12:], atol=1e-6)


def test_a_network_without_gradients_is_fooled_as_well():
    """Scores alone: rounding the image to 32 levels leaves a white-box attack without a direction."""
    images, labels = quadrants(24)
    coarse = lambda params, x: small_network(params, jnp.round(x * 32) / 32)
    before = coarse(trained_params(), images).argmax(axis=1) != labels
    result = square(coarse, trained_params(), images, labels, key=KEY, eps=0.3, max_queries=60)
    assert result.success.mean() > before.mean() + 0.2


def test_success_means_the_target_and_images_that_are_wrong_already_stay():
    images, labels = quadrants(24)
    target = (labels + 1) % 4
    result = attack(target=target, eps=0.3)
    predicted = small_network(trained_params(), result.adversarial).argmax(axis=1)
    np.testing.assert_array_equal(result.success, predicted == target)
    assert result.success.mean() > 0.3
    wrong = square(small_network, trained_params(), images, target, key=KEY, eps=0.1, max_queries=9)
    assert wrong.success.mean() > 0.9
    done = np.asarray(wrong.queries == 1)
    assert done.mean() > 0.9
    np.testing.assert_array_equal(np.asarray(wrong.adversarial)[done], np.asarray(images)[done])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"norm": "l1", "eps": 1.0}, "unknown norm 'l1'"),
        ({"max_queries": 0}, "max_queries must be at least 1"),
        ({"restarts": 0}, "restarts must be at least 1"),
        ({"restarts": 60}, "restarts=60 runs need max_queries >= 61, got 60"),
        ({"p_init": 0.0}, r"p_init must lie in \(0, 1\], got 0.0"),
        ({"p_init": 1.5}, "got 1.5"),
        ({"loss": "hinge"}, "unknown loss 'hinge'"),
        ({"key": None}, "key is missing: the squares are drawn"),
        ({"eps": -0.1}, "eps must not be negative"),
        ({"loop": "fast"}, "unknown loop 'fast'"),
    ],
)
def test_nonsense_is_refused_with_the_value_given(annotations_off, options, words):
    with pytest.raises(UsageError, match=words):
        attack(8, **options)


def test_images_have_four_axes(annotations_off):
    flat = lambda params, x: x[:, :4]
    with pytest.raises(UsageError, match=r"\[batch, height, width, channels\], got \[8, 64\]"):
        square(flat, None, quadrants()[0].reshape(8, 64), quadrants()[1], key=KEY, eps=0.1)
