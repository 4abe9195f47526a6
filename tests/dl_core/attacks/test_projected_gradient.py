"""Projected gradient ascent: invariants under random networks, restarts, early stopping, noise and derivatives."""

import functools

import attack_contract
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dl_core.attacks.balls import NORMS, distance
from dl_core.attacks.gradient import fgsm
from dl_core.attacks.objectives import objective
from dl_core.attacks.projected import bim, momentum_pgd, pgd
from dl_core.errors import UsageError

EPS = {"linf": 0.08, "l2": 0.5, "l1": 3.0}


def small_net(params, x):
    return jnp.tanh((x.reshape(len(x), -1) - 0.5) @ params["w1"]) @ params["w2"]


def linear(params, x):
    return x.reshape(len(x), -1) @ params


def random_problem(seed, batch=8):
    """Small networks are fast to compile; the last image is misclassified before the attack."""
    keys = jax.random.split(jax.random.key(seed), 3)
    params = {"w1": jax.random.normal(keys[0], (48, 16)) / 3, "w2": jax.random.normal(keys[1], (16, 5))}
    images = jax.random.uniform(keys[2], (batch, 4, 4, 3))
    labels = small_net(params, images).argmax(axis=1)
    return params, images, labels.at[-1].set((labels[-1] + 1) % 5)


@pytest.fixture(scope="module")
def problem():
    return random_problem(0)


def gain(params, images, labels, target=None):
    return objective(small_net(params, images), labels, target)


@pytest.mark.parametrize(
    ("attack", "norm"),
    [
        (functools.partial(pgd, key=jax.random.key(1), steps=3, restarts=2), "linf"),
        (functools.partial(momentum_pgd, steps=3, early_stop=False), "l2"),
        (functools.partial(bim, steps=3), "l1"),
    ],
    ids=["pgd", "momentum_pgd", "bim"],
)
def test_the_contract_of_every_attack(attack, norm):
    radius = {"linf": 0.1, "l2": 1.0, "l1": 6.0}[norm]
    attack_contract.assert_keeps_the_contract(functools.partial(attack, norm=norm), eps=radius, norm=norm)


@settings(max_examples=20, deadline=None, derandomize=True, database=None)
@given(
    seed=st.integers(0, 1000),
    scale=st.one_of(st.just(0.0), st.floats(0, 2)),
    kind=st.sampled_from([("linf", False, 0.0), ("l2", True, 1.0), ("l1", False, 0.0), ("linf", True, 1.0)]),
)
def test_inside_the_bounds_and_the_ball_and_success_means_success(seed, scale, kind):
    norm, targeted, momentum = kind  # not all twelve: each is compiled
    params, images, labels = random_problem(seed)
    eps = scale * EPS[norm]
    target = (labels + 2) % 5 if targeted else None
    result = pgd(
        small_net, params, images, labels, key=jax.random.key(seed), eps=eps, norm=norm, steps=5, target=target,
        momentum=momentum,
    )  # fmt: skip
    attack_contract.assert_in_budget(result, images, eps, norm)
    predicted = small_net(params, result.adversarial).argmax(axis=1)
    np.testing.assert_array_equal(result.success, predicted == target if targeted else predicted != labels)
    # the kept image is never worse than the original; float32 sums may differ in the last digits
    assert (gain(params, result.adversarial, labels, target) >= gain(params, images, labels, target) - 1e-5).all()
    if scale == 0:
        np.testing.assert_array_equal(result.adversarial, images)


def test_a_misclassified_image_stays_as_it_is(problem):
    result = pgd(small_net, *problem, key=jax.random.key(0), eps=0.1)
    assert bool(result.success[-1])
    assert (int(result.queries[-1]), int(result.steps[-1]), float(result.distance[-1])) == (1, 0, 0.0)
    np.testing.assert_array_equal(result.adversarial[-1], problem[1][-1])


def test_more_steps_and_more_restarts_never_do_worse(problem):
    """With the same length of step; gain is the loss that is climbed."""
    params, _, labels = problem
    attack = functools.partial(
        pgd, small_net, *problem, key=jax.random.key(3), norm="l2", eps=0.1, step_size=0.03, early_stop=True
    )
    before = None
    for options in ({"steps": 1}, {"steps": 3}, {"steps": 9}, {"steps": 9, "restarts": 2}, {"steps": 9, "restarts": 4}):
        result = attack(**options)
        height = gain(params, result.adversarial, labels)
        if before is not None:
            assert (result.success >= before[0].success).all()
            failed = ~np.asarray(result.success)
            assert (height >= before[1] - 1e-6)[failed].all()
            assert (result.queries >= before[0].queries).all()
        before = result, height
    assert not result.success.all()  # or nothing was compared


def test_restarts_attack_the_survivors_only_and_extend_each_other(problem):
    attack = functools.partial(pgd, small_net, *problem, key=jax.random.key(5), eps=0.02, steps=4)
    once, often = attack(restarts=1), attack(restarts=3)
    fooled = np.asarray(once.success)
    assert 0 < fooled.sum() < len(fooled)
    np.testing.assert_array_equal(often.adversarial[fooled], once.adversarial[fooled])
    np.testing.assert_array_equal(often.queries[fooled], once.queries[fooled])
    failed = ~np.asarray(often.success)
    # the image itself, then 4 gradients and the last point of each start
    np.testing.assert_array_equal(often.queries[failed], 1 + 3 * 5)
    np.testing.assert_array_equal(often.steps[failed], 3 * 4)


@pytest.mark.parametrize("early_stop", [True, False])
def test_every_driver_gives_the_same_numbers(problem, early_stop):
    attack = lambda loop: pgd(
        small_net, *problem, key=jax.random.key(5), eps=0.03, steps=3, restarts=2, early_stop=early_stop, loop=loop
    )
    host = attack("host")
    for loop in ("compiled", "unrolled"):
        other = attack(loop)
        np.testing.assert_allclose(other.adversarial, host.adversarial, atol=1e-6)
        np.testing.assert_array_equal(other.queries, host.queries)
        np.testing.assert_array_equal(other.success, host.success)


def test_the_draws_of_an_image_do_not_depend_on_its_batch(problem):
    """One key for each image goes with it, whatever else is in the batch."""
    params, images, labels = problem
    keys = jax.random.split(jax.random.key(2), 8)
    attack = functools.partial(pgd, small_net, params, eps=0.03, steps=3, restarts=2, early_stop=False)
    whole = attack(images, labels, key=keys)
    part = attack(images[4:], labels[4:], key=keys[4:])
    np.testing.assert_allclose(part.adversarial, whole.adversarial[4:], atol=1e-6)


def test_on_a_linear_model_every_norm_reaches_the_most_adversarial_point():
    """Two logits ±w·x: the margin falls by 2 eps times the dual norm of w, and no more."""
    weights = jax.random.normal(jax.random.key(0), (48, 1))
    params = jnp.concatenate([weights, -weights], axis=1)
    images = jnp.full((2, 4, 4, 3), 0.5)
    labels = jnp.zeros(2, jnp.int32)
    dual = {"linf": jnp.abs(weights).sum(), "l2": jnp.linalg.norm(weights), "l1": jnp.abs(weights).max()}
    for norm in NORMS:
        eps = {"linf": 0.01, "l2": 0.05, "l1": 0.1}[norm]
        result = pgd(
            linear, params, images, labels, key=jax.random.key(1), eps=eps, norm=norm, early_stop=False, step_size=eps,
            sparsity=0.0,
        )  # fmt: skip
        risen = 0.5 * (jnp.diff(linear(params, result.adversarial)) - jnp.diff(linear(params, images)))
        np.testing.assert_allclose(risen[:, 0], eps * dual[norm], rtol=2e-4)


def test_a_sparse_step_leaves_out_values_at_the_bounds():
    """The two largest weights belong to pixels that are white already and would be pushed beyond; the third moves."""
    weights = jnp.zeros(48).at[jnp.array([0, 1, 2])].set(jnp.array([3.0, 2.0, 1.0]))
    images = jnp.full((1, 4, 4, 3), 0.5).at[0, 0, 0, :2].set(1.0)
    params = jnp.stack([-weights, weights], axis=1)
    result = bim(
        linear, params, images, jnp.zeros(1, jnp.int32), norm="l1", eps=0.25, steps=1, step_size=0.25, early_stop=False
    )
    expected = np.asarray(images).copy()
    expected[0, 0, 0, 2] += 0.25
    np.testing.assert_allclose(result.adversarial, expected, atol=1e-6)


def test_a_share_of_the_values_moves_in_a_sparse_step():
    params = jax.random.normal(jax.random.key(0), (48, 2))
    result = pgd(
        linear, params, jnp.full((1, 48), 0.5), jnp.zeros(1, jnp.int32), eps=1.0, norm="l1", steps=1, step_size=0.5,
        sparsity=0.25, random_start=False, early_stop=False,
    )  # fmt: skip
    moved = np.abs(np.asarray(result.adversarial) - 0.5)[0]
    np.testing.assert_allclose(np.sort(moved)[-12:], 0.5 / 12, rtol=1e-5)
    assert (np.sort(moved)[:-12] == 0).all()


def test_one_whole_step_from_the_image_is_the_fast_gradient_sign_method(problem):
    params, images, labels = (leaf if isinstance(leaf, dict) else leaf[:-1] for leaf in problem)
    for norm in ("linf", "l2"):
        one = bim(small_net, params, images, labels, eps=0.05, norm=norm, steps=1, step_size=0.05, early_stop=False)
        fast = fgsm(small_net, params, images, labels, eps=0.05, norm=norm)
        np.testing.assert_allclose(one.adversarial, fast.adversarial, atol=1e-6)


def test_momentum_sums_gradients_of_equal_mean(problem):
    """Dong et al., equations 6 and 7, written out."""
    params, images, labels = problem
    result = momentum_pgd(small_net, *problem, eps=0.05, steps=4, momentum=0.7, early_stop=False)
    slope = jax.grad(lambda x: gain(params, x, labels).sum())
    perturbed, velocity = images, jnp.zeros_like(images)
    for _ in range(4):
        gradient = slope(perturbed)
        velocity = 0.7 * velocity + gradient / jnp.abs(gradient).mean(axis=(1, 2, 3), keepdims=True)
        perturbed = jnp.clip(perturbed + 0.05 / 4 * jnp.sign(velocity), images - 0.05, images + 0.05)
        perturbed = jnp.clip(perturbed, 0, 1)
    np.testing.assert_allclose(result.adversarial, perturbed, atol=1e-6)


@pytest.mark.parametrize("loss", ["margin", "dlr", lambda logits, classes: -logits[jnp.arange(len(logits)), classes]])
def test_other_losses_fool_the_network_as_well(problem, loss):
    labels = problem[2]
    result = bim(small_net, *problem, eps=0.3, loss=loss)
    assert result.success.all()
    aimed = bim(small_net, *problem, eps=0.6, loss=loss, target=(labels + 2) % 5, steps=20)
    assert aimed.success.mean() > 0.6


def noisy(params, x, key):
    return small_net(params, x + 0.3 * jax.random.normal(key, x.shape))


def test_gradients_of_a_randomised_model_are_averaged(problem):
    """The mean of many noisy gradients points where the mean loss rises: compared with 500 draws."""
    params, images, labels = problem
    draws = jax.random.split(jax.random.key(9), 500)
    mean_loss = lambda x: jax.vmap(lambda key: objective(noisy(params, x, key), labels, None))(draws).mean(axis=0).sum()
    expected = np.asarray(jax.grad(mean_loss)(images)).reshape(8, -1)
    agreement = []
    for samples in (1, 64):
        step = pgd(
            noisy, params, jnp.clip(images, 0.1, 0.9), labels, key=jax.random.key(0), eps=0.01, norm="l2", steps=1,
            step_size=0.01, random_start=False, randomized=True, samples=samples, early_stop=False,
        )  # fmt: skip
        moved = np.asarray(step.adversarial - jnp.clip(images, 0.1, 0.9)).reshape(8, -1)
        cosines = (moved * expected).sum(axis=1) / np.linalg.norm(moved, axis=1) / np.linalg.norm(expected, axis=1)
        agreement.append(cosines.mean())
    assert agreement[1] > 0.9  # 0.96 when written; the images of `expected` are not clipped
    assert agreement[0] < agreement[1]


def test_a_randomised_model_is_attacked_image_by_image(problem):
    params, images, labels = problem
    keys = jax.random.split(jax.random.key(2), 8)
    attack = functools.partial(pgd, noisy, params, eps=0.05, steps=3, randomized=True, samples=4)
    whole = attack(images, labels, key=keys)
    part = attack(images[4:], labels[4:], key=keys[4:])
    np.testing.assert_allclose(part.adversarial, whole.adversarial[4:], atol=1e-6)
    assert (whole.queries <= 1 + 3 + 1).all()
    again = attack(images, labels, key=keys)
    np.testing.assert_array_equal(again.adversarial, whole.adversarial)


def test_the_last_iterate_can_be_differentiated(problem):
    """Against central differences in float64; a sign has no derivative, so "l2"."""
    with jax.enable_x64(True):
        params, images, labels = jax.tree.map(
            lambda leaf: leaf.astype(jnp.float64) if leaf.dtype == jnp.float32 else leaf, problem
        )

        attack = functools.partial(bim, eps=0.2, norm="l2", steps=3, loss="margin", early_stop=False)
        weights = jnp.arange(48.0).reshape(1, 4, 4, 3)

        def weighted_pixels(scale):
            scaled = {**params, "w1": params["w1"] * scale}
            return (attack(small_net, scaled, images, labels).adversarial * weights).sum()

        slope = jax.grad(weighted_pixels)(jnp.float64(1.0))
        difference = (weighted_pixels(jnp.float64(1 + 1e-5)) - weighted_pixels(jnp.float64(1 - 1e-5))) / 2e-5
        assert abs(float(slope)) > 1e-3
        np.testing.assert_allclose(slope, difference, rtol=1e-5)


def test_a_training_step_can_hold_the_unrolled_attack(problem):
    params, images, labels = problem

    @jax.jit
    def adversarial_slope(params, key):
        crafted = pgd(
            small_net, params, images, labels, key=key, eps=0.05, steps=2, early_stop=False, loop="unrolled"
        ).adversarial
        loss = lambda p: objective(small_net(p, jax.lax.stop_gradient(crafted)), labels, None).mean()
        return jax.grad(loss)(params), crafted

    slope, crafted = adversarial_slope(params, jax.random.key(0))
    outside = pgd(small_net, *problem, key=jax.random.key(0), eps=0.05, steps=2, early_stop=False)
    np.testing.assert_allclose(crafted, outside.adversarial, atol=1e-6)
    assert all(np.isfinite(leaf).all() and np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(slope))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("early_stop", [True, False])
def test_a_network_without_gradients_gives_no_nan(problem, norm, early_stop):
    params, images, _ = problem
    flat = lambda params, x: jnp.zeros((len(x), 5)) * x.sum()
    result = pgd(
        flat, params, images, jnp.zeros(8, jnp.int32), eps=0.1, norm=norm, steps=2, momentum=1.0, random_start=False,
        early_stop=early_stop, loss="dlr",
    )  # fmt: skip
    np.testing.assert_array_equal(result.adversarial, images)
    assert not result.success.any()


def test_small_steps_are_not_lost_in_bfloat16(problem):
    """Between 1/2 and 1 the numbers of bfloat16 lie 1/256 apart; ten steps of a thousandth still move the image."""
    params, _, labels = problem
    images = jnp.full((8, 4, 4, 3), 0.75, jnp.bfloat16)
    labels = small_net(params, images).argmax(axis=1)
    result = bim(small_net, params, images, labels, eps=0.01, steps=10, step_size=0.001, early_stop=False)
    assert result.adversarial.dtype == jnp.bfloat16
    assert float(distance(result.adversarial - images, "linf").min()) >= 0.0078


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"key": None}, "key is missing: random_start=True"),
        ({"key": None, "random_start": False, "randomized": True}, "key is missing: randomized=True"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"restarts": 0}, "restarts must be at least 1"),
        ({"restarts": 3, "random_start": False}, "restarts=3 would repeat"),
        ({"samples": 0}, "samples must be at least 1"),
        ({"samples": 4}, "randomized=True"),
        ({"step_size": -0.1}, "step_size must not be negative, got -0.1"),
        ({"step_size": float("nan")}, "step_size must not be negative, got nan"),
        ({"momentum": -1.0}, "momentum must be at least 0"),
        ({"sparsity": 1.5}, r"sparsity must be in \[0, 1\], got 1.5"),
        ({"loop": "fast"}, "unknown loop 'fast'"),
    ],
)
def test_nonsense_is_refused_with_the_value_given(problem, options, words):
    apply_fn = noisy if options.get("randomized") else small_net
    with pytest.raises(UsageError, match=words):
        pgd(apply_fn, *problem, **{"eps": 0.1, "key": jax.random.key(0), **options})


@pytest.mark.parametrize("attack", [bim, momentum_pgd])
def test_nonsense_for_the_methods_without_a_random_start(problem, attack):
    with pytest.raises(UsageError, match="steps must be at least 1, got 0"):
        attack(small_net, *problem, eps=0.1, steps=0)
    with pytest.raises(UsageError, match="eps must not be negative"):
        attack(small_net, *problem, eps=-0.1)


def test_a_step_size_of_a_wrong_shape_is_refused(problem, annotations_off):
    with pytest.raises(UsageError, match=r"step_size must be one number, or one for each of the 8 images.*\[3\]"):
        bim(small_net, *problem, eps=0.1, step_size=jnp.ones(3))
