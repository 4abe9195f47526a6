"""Distances between distributions: closed forms, SciPy, the axioms, and what is refused."""

import functools

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from partitions import assert_any_partition_gives_the_whole
from scipy import stats
from scipy.spatial import distance

from dl_core.errors import UsageError
from dl_core.metrics import mean_metric
from dl_core.metrics.accumulator import gathering_metric
from dl_core.metrics.distances import (
    jensen_shannon,
    kl_divergence,
    optimal_transport,
    sinkhorn,
    total_variation,
    wasserstein,
)

RANDOM = np.random.default_rng(0)
P, Q, R = RANDOM.dirichlet(np.ones(5), (3, 40)).astype(np.float32)
OF_CLASSES = [kl_divergence, jensen_shannon, total_variation]
thousand = settings(max_examples=1000, deadline=None, derandomize=True, database=None)


def test_the_three_distances_of_a_coin_by_hand():
    fair, sure = np.float32([0.5, 0.5]), np.float32([1, 0])
    assert float(kl_divergence(sure, fair)) == pytest.approx(np.log(2))
    assert float(kl_divergence(fair, sure)) == np.inf
    assert float(total_variation(fair, sure)) == 0.5
    opposite = np.float32([0, 1])
    assert float(jensen_shannon(sure, opposite, base=2)) == pytest.approx(1)
    assert float(jensen_shannon(sure, opposite)) == pytest.approx(np.sqrt(np.log(2)))


def test_they_are_scipys():
    np.testing.assert_allclose(kl_divergence(P, Q), stats.entropy(P, Q, axis=-1), rtol=1e-4)
    np.testing.assert_allclose(jensen_shannon(P, Q), distance.jensenshannon(P, Q, axis=-1), rtol=1e-4)
    np.testing.assert_allclose(jensen_shannon(P, Q, base=2), distance.jensenshannon(P, Q, 2, axis=-1), rtol=1e-4)
    np.testing.assert_allclose(total_variation(P, Q), distance.cdist(P, Q, "cityblock").diagonal() / 2, rtol=1e-5)


def test_the_axioms_and_pinskers_inequality():
    for metric in (jensen_shannon, total_variation):
        between = np.asarray(metric(P, Q))
        np.testing.assert_allclose(between, metric(Q, P), rtol=1e-5)
        np.testing.assert_array_equal(metric(P, P), 0)
        assert (between <= np.asarray(metric(P, R)) + metric(R, Q) + 1e-6).all()  # rounding
    assert (np.asarray(total_variation(P, Q)) <= np.sqrt(np.asarray(kl_divergence(P, Q)) / 2)).all()
    np.testing.assert_array_equal(kl_divergence(P, P), 0)


def test_close_distributions_keep_their_distance():
    """For p = q + d the divergence is Σ d² / 8 q: the root of float32's rounding would be 2e-4."""
    q = np.float32([0.1, 0.2, 0.3, 0.4])
    p = q + np.float32([1e-5, -1e-5, 0, 0])
    expected = np.sqrt(((p - q).astype(np.float64) ** 2 / (8 * q)).sum())
    np.testing.assert_allclose(jensen_shannon(p, q), expected, rtol=1e-2)  # 6e-8 of rounding in a share of 1e-4


@pytest.mark.parametrize("metric", OF_CLASSES)
def test_batches_of_any_shape_masks_and_jit(metric):
    whole, where = np.asarray(metric(P, Q)), np.arange(40) % 3 > 0
    grid = lambda a: jnp.asarray(a).reshape(5, 8, *a.shape[1:])
    np.testing.assert_allclose(metric(grid(P), grid(Q)), grid(whole), rtol=1e-4)
    spoiled = [np.where(where[:, None], a, np.nan) for a in (P, Q)]
    np.testing.assert_allclose(metric(*spoiled, where=where), np.where(where, whole, 0), rtol=1e-4)

    def total(p, q, where):
        return metric(p, q, where=where).sum()

    gradients = jax.jit(jax.grad(total, argnums=(0, 1)))(*spoiled, where)
    for gradient in gradients:
        assert np.isfinite(gradient).all()
        np.testing.assert_array_equal(np.asarray(gradient)[~where], 0)


@pytest.mark.parametrize("metric", OF_CLASSES)
def test_gradients_are_central_differences_and_finite_at_the_corners(metric):
    with jax.enable_x64(True):
        p, q, towards = (jnp.asarray(a, jnp.float64) for a in (P[:3], Q[:3], R[:3]))
        step = jax.jit(jax.value_and_grad(lambda q: metric(p, q).sum()))
        along = (step(q)[1] * (towards - q)).sum()
        ahead, behind = (step(q + h * (towards - q))[0] for h in (1e-6, -1e-6))
        np.testing.assert_allclose(along, (ahead - behind) / 2e-6, rtol=1e-6)
    corners = jnp.eye(3)
    for p, q in ((corners, corners), (corners, jnp.full((3, 3), 1 / 3))):
        assert jnp.isfinite(jax.grad(lambda p, q=q: metric(p, q).sum())(p)).all()


def test_many_rows_are_averaged_batch_by_batch():
    expected = np.mean(total_variation(P, Q))
    metric = mean_metric()
    of_rows = metric._replace(
        update=lambda state, p, q, where=None: metric.update(state, total_variation(p, q, where=where), where=where)
    )
    assert_any_partition_gives_the_whole(of_rows, [P, Q], expected, seeds=1)


# --- on a line ---

A, B = RANDOM.normal(size=17).astype(np.float32), RANDOM.normal(1, 2, size=23).astype(np.float32)
WEIGHTS_A, WEIGHTS_B = RANDOM.random(17).astype(np.float32), RANDOM.random(23).astype(np.float32)


def test_two_samples_by_hand():
    assert float(wasserstein(np.float32([0, 1, 3]), np.float32([5, 6, 8]))) == 5
    assert float(wasserstein(np.float32([0]), np.float32([0, 4]))) == 2
    half = wasserstein(
        np.float32([0, 1]), np.float32([0, 1]), weights_a=np.float32([3, 1]), weights_b=np.float32([1, 1])
    )
    assert float(half) == 0.25


@pytest.mark.parametrize("weighted", [False, True])
def test_on_a_line_it_is_scipys(weighted):
    """W13. In float64 to the last digits."""
    ours = {"weights_a": WEIGHTS_A, "weights_b": WEIGHTS_B} if weighted else {}
    expected = stats.wasserstein_distance(A, B, *ours.values())
    np.testing.assert_allclose(wasserstein(A, B, **ours), expected, rtol=1e-5)
    np.testing.assert_allclose(jax.jit(wasserstein)(A, B, **ours), expected, rtol=1e-5)
    with jax.enable_x64(True):
        ours = {name: weights.astype(np.float64) for name, weights in ours.items()}
        precise = wasserstein(A.astype(np.float64), B.astype(np.float64), **ours)
        np.testing.assert_allclose(precise, expected, rtol=1e-12)


def test_a_million_samples_are_counted_exactly():
    """In float32 a sum of a million shares of 1e-6 would be off by more than this."""
    samples = np.arange(2**20, dtype=np.float32)
    np.testing.assert_allclose(wasserstein(samples, samples + 1), 1, rtol=1e-5)
    assert float(wasserstein(samples, samples[::-1])) == 0


def test_samples_of_no_weight_do_not_count_whatever_they_hold():
    kept = np.arange(17) % 2 == 0
    expected = wasserstein(A[kept], B)
    for mask in (kept, kept.astype(np.float32)):
        spoiled = np.where(kept, A, np.nan)
        np.testing.assert_allclose(wasserstein(spoiled, B, weights_a=mask), expected, rtol=1e-5)
    function = jax.jit(jax.value_and_grad(lambda a, w: wasserstein(a, B, weights_a=w)))
    value, gradient = function(spoiled, kept)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_array_equal(np.asarray(gradient)[~kept], 0)
    assert np.isfinite(gradient).all()


def test_rows_are_problems_of_their_own():
    a, b = RANDOM.normal(size=(2, 3, 9)), RANDOM.normal(size=(2, 3, 4))
    together = wasserstein(a, b)
    alone = [[stats.wasserstein_distance(a[i, j], b[i, j]) for j in range(3)] for i in range(2)]
    np.testing.assert_allclose(together, alone, rtol=1e-4)


def test_its_gradient_moves_the_samples_together():
    gradient = jax.grad(lambda a: wasserstein(a, jnp.array([10.0, 20.0])))(jnp.array([0.0, 1.0, 30.0, 40.0]))
    np.testing.assert_allclose(gradient, [-0.25, -0.25, 0.25, 0.25])


def test_samples_may_be_gathered():
    pairs = RANDOM.normal(size=(30, 2)).astype(np.float32)
    function = jax.jit(lambda a, b, where: wasserstein(a, b, weights_a=where, weights_b=where))
    metric = gathering_metric(function, 30, *map(jnp.float32, (0, 0)))
    expected = stats.wasserstein_distance(*pairs.T)
    assert_any_partition_gives_the_whole(metric, list(pairs.T), expected, seeds=1)


# --- with a cost ---


@pytest.mark.parametrize(("p", "q"), [(0.7, 0.2), (0.0, 1.0), (0.4, 0.4)])
def test_on_two_points_what_moves_is_the_difference(p, q):
    """W13: with d(a, b) = 1, R(a, b) + R(b, a) = |P(a) - Q(a)|."""
    cost = 1 - np.eye(2)
    exact = optimal_transport(np.array([p, 1 - p]), np.array([q, 1 - q]), cost)
    moved = exact.plan[0, 1] + exact.plan[1, 0]
    assert moved == pytest.approx(abs(p - q), abs=1e-12)
    assert exact.cost == pytest.approx(abs(p - q), abs=1e-12)
    assert float(exact.cost) == pytest.approx(
        float(total_variation(np.array([p, 1 - p]), np.array([q, 1 - q]))), abs=1e-6
    )


def test_the_linear_program_agrees_with_the_line_and_its_plan_does_the_moving():
    """W13, the general solver in one dimension."""
    p, q = (w / w.sum() for w in (WEIGHTS_A.astype(np.float64), WEIGHTS_B.astype(np.float64)))
    exact = optimal_transport(p, q, np.abs(A[:, None] - B[None]))
    assert exact.cost == pytest.approx(stats.wasserstein_distance(A, B, p, q), rel=1e-6)  # the cost is float32
    assert (exact.plan >= 0).all()
    np.testing.assert_allclose(exact.plan.sum(1), p, atol=1e-12)
    np.testing.assert_allclose(exact.plan.sum(0), q, atol=1e-12)
    assert exact.marginal_error < 1e-12


def test_no_other_plan_is_cheaper():
    """Every permutation is a plan between uniform distributions of the same size, and one of them is the best."""
    cost, uniform = RANDOM.random((6, 6)), np.full(6, 1 / 6)
    exact = optimal_transport(uniform, uniform, cost)
    shuffled = [cost[np.arange(6), RANDOM.permutation(6)].mean() for _ in range(300)]
    assert exact.cost <= min(shuffled) + 1e-12
    assert exact.cost <= cost.mean()
    np.testing.assert_allclose(exact.plan @ np.ones(6), uniform)
    np.testing.assert_allclose(np.sort(exact.plan.ravel())[-6:], 1 / 6)  # Birkhoff: a permutation


POINTS = RANDOM.normal(size=(6, 2)), RANDOM.normal(size=(5, 2))
COST = np.linalg.norm(POINTS[0][:, None] - POINTS[1][None], axis=-1).astype(np.float32)
MASSES = RANDOM.dirichlet(np.ones(6)).astype(np.float32), RANDOM.dirichlet(np.ones(5)).astype(np.float32)


def test_sinkhorn_falls_to_the_linear_program_as_the_entropy_term_does():
    exact = optimal_transport(*MASSES, COST).cost
    found = [sinkhorn(*MASSES, COST, epsilon=epsilon, n_steps=1000) for epsilon in (1.0, 0.3, 0.1, 0.03, 0.01)]
    excess = np.array([float(result.cost) for result in found]) - exact
    assert (np.diff(excess) < 0).all()
    assert excess[-1] < 2e-3
    assert (excess > -1e-5).all()  # float32
    assert max(float(result.marginal_error) for result in found) < 1e-4
    for result in found:
        np.testing.assert_allclose(result.plan.sum(0), MASSES[1], rtol=1e-4)


def test_a_large_entropy_term_gives_the_independent_plan():
    plan = sinkhorn(*MASSES, COST, epsilon=1e4, n_steps=5).plan
    np.testing.assert_allclose(plan, MASSES[0][:, None] * MASSES[1][None], rtol=1e-3)


def test_sinkhorns_plan_solves_the_problem_with_the_entropy_term():
    """R = u K v: log R + C / ε is a sum of something of the rows and something of the columns."""
    result = sinkhorn(*MASSES, COST, epsilon=0.5, n_steps=200)
    scaled = np.log(result.plan) + COST / 0.5
    np.testing.assert_allclose(scaled - scaled[:1] - scaled[:, :1] + scaled[0, 0], 0, atol=1e-4)


def test_too_few_steps_show_in_the_marginal_error():
    assert float(sinkhorn(*MASSES, COST, epsilon=0.01, n_steps=3).marginal_error) > 1e-2


def test_drivers_batches_and_jit_agree():
    one = sinkhorn(*MASSES, COST, epsilon=0.2, n_steps=50)
    hosted = sinkhorn(*MASSES, COST, epsilon=0.2, n_steps=50, loop="host")
    np.testing.assert_allclose(one.plan, hosted.plan, rtol=1e-4, atol=1e-6)
    p, q = (np.stack([mass, mass[::-1]]) for mass in MASSES)
    costs = np.stack([COST, 7 * COST])
    batched = jax.jit(functools.partial(sinkhorn, epsilon=0.2, n_steps=50))(p, q, costs)
    np.testing.assert_allclose(batched.plan[0], one.plan, rtol=1e-4, atol=1e-6)
    shared = sinkhorn(p, q, COST, epsilon=0.2, n_steps=50)
    np.testing.assert_allclose(shared.plan[0], one.plan, rtol=1e-4, atol=1e-6)
    assert shared.cost.shape == (2,)


def test_sinkhorn_has_the_gradient_of_its_value():
    with jax.enable_x64(True):
        p, q, cost = (jnp.asarray(a, jnp.float64) for a in (*MASSES, COST))
        p = p.at[0].set(0.0) / (1 - p[0])  # a point without mass
        function = jax.jit(jax.value_and_grad(lambda c: sinkhorn(p, q, c, epsilon=0.2, n_steps=100).cost))
        direction = jnp.asarray(RANDOM.normal(size=cost.shape))
        numerical = (function(cost + 1e-6 * direction)[0] - function(cost - 1e-6 * direction)[0]) / 2e-6
        np.testing.assert_allclose((function(cost)[1] * direction).sum(), numerical, rtol=1e-5)


# --- any input ---

SIZES = st.sampled_from([1, 2, 7, 16])


@st.composite
def distributions(draw, classes=None):
    """Rows over the classes, with zeros and certainties among them."""
    classes = classes or draw(SIZES)
    masses = draw(arrays_of.arrays(np.float32, (3, classes), elements=st.sampled_from([0, 1e-6, 0.1, 1, 5])))
    masses[:, draw(st.integers(0, classes - 1))] += 1
    return masses / masses.sum(-1, keepdims=True)


def broken(draw, values):
    """The same with one thing wrong that no annotation is needed to see."""
    values, kind = values.copy(), draw(st.sampled_from(["nan", "inf", "negative", "sum", "shape", "empty"]))
    if kind == "shape":
        return np.concatenate([values, values], axis=-1)
    if kind == "empty":
        return values[:, :0]
    place = tuple(draw(st.integers(0, size - 1)) for size in values.shape)
    values[place] += {"nan": np.nan, "inf": np.inf, "negative": -2, "sum": 0.5}[kind]
    return values


@pytest.mark.parametrize("metric", OF_CLASSES)
@thousand
@given(st.data())
def test_any_distributions_have_a_distance_and_nothing_else_does(metric, data):
    p = data.draw(distributions())
    q = data.draw(distributions(p.shape[-1]))
    if data.draw(st.booleans()):
        values = np.asarray(metric(p, q))
        assert values.shape == p.shape[:-1]
        largest = {kl_divergence: np.inf, jensen_shannon: np.sqrt(np.log(2)), total_variation: 1}[metric]
        assert ((values >= 0) & (values <= largest * (1 + 1e-5))).all()
        np.testing.assert_array_equal(np.asarray(metric(p, p)), 0)
    else:
        pair = [p, broken(data.draw, q)][:: data.draw(st.sampled_from([1, -1]))]
        _assert_refused(metric, *pair)


@thousand
@given(st.data())
def test_any_samples_have_a_distance_and_nothing_else_does(data):
    numbers = st.floats(-100, 100, width=32)
    a = data.draw(arrays_of.arrays(np.float32, data.draw(SIZES), elements=numbers))
    b = data.draw(arrays_of.arrays(np.float32, data.draw(st.sampled_from([1, 7])), elements=numbers))
    weights = data.draw(arrays_of.arrays(np.float32, a.shape, elements=st.sampled_from([0, 0.5, 3])))
    weights[data.draw(st.integers(0, len(a) - 1))] = 1
    kind = data.draw(st.sampled_from(["good", "good", "weighted", "nan", "empty", "negative", "nothing", "shape"]))
    if kind == "good":
        np.testing.assert_allclose(wasserstein(a, b), stats.wasserstein_distance(a, b), rtol=1e-4, atol=1e-4)
    elif kind == "weighted":
        expected = stats.wasserstein_distance(a, b, weights)
        np.testing.assert_allclose(wasserstein(a, b, weights_a=weights), expected, rtol=1e-4, atol=1e-4)
    elif kind == "nan":
        a[0] = data.draw(st.sampled_from([np.nan, np.inf]))
        _assert_refused(wasserstein, a, b)
    elif kind == "empty":
        _assert_refused(wasserstein, a[:0], b)
    elif kind == "shape":
        _assert_refused(wasserstein, a, b[None])
    else:
        weights = {"negative": weights - 5, "nothing": 0 * weights}[kind]
        _assert_refused(wasserstein, a, b, weights_a=weights)


@thousand
@given(st.data())
def test_any_cost_has_a_plan_and_nothing_else_does(data):
    p, q = data.draw(distributions(3))[0], data.draw(distributions(2))[0]
    cost = data.draw(arrays_of.arrays(np.float64, (3, 2), elements=st.floats(-10, 10, width=32)))
    kind = data.draw(st.sampled_from(["good", "good", "p", "cost", "shape"]))
    if kind == "good":
        exact = optimal_transport(p, q, cost)
        assert cost.min() - 1e-6 <= exact.cost <= cost.max() + 1e-6
        assert exact.cost <= p @ cost @ q + 1e-4  # the independent plan; p and q sum to 1 in float32
        assert exact.marginal_error < 1e-6
    elif kind == "p":
        _assert_refused(optimal_transport, broken(data.draw, p[None])[0], q, cost)
    elif kind == "cost":
        cost[data.draw(st.integers(0, 2)), data.draw(st.integers(0, 1))] = data.draw(st.sampled_from([np.nan, np.inf]))
        _assert_refused(optimal_transport, p, q, cost)
        _assert_refused(sinkhorn, p, q, cost.astype(np.float32), epsilon=0.1)
    else:
        _assert_refused(optimal_transport, q, p, cost)
        _assert_refused(sinkhorn, q, p, cost.astype(np.float32), epsilon=0.1)


@thousand
@given(st.data())
def test_sinkhorn_gives_a_plan_for_any_problem(data):
    p, q = data.draw(distributions(3))[0], data.draw(distributions(2))[0]
    cost = data.draw(arrays_of.arrays(np.float32, (3, 2), elements=st.floats(-1, 1, width=32)))
    if data.draw(st.integers(0, 3)):
        cost_of_plan, plan, error = map(np.asarray, _sinkhorn(p, q, cost))
        assert np.isfinite(cost_of_plan)
        assert (plan >= 0).all()
        np.testing.assert_allclose(plan.sum(0), q, atol=1e-5)
        assert error <= 2
    else:
        _assert_refused(sinkhorn, p, q, cost, epsilon=data.draw(st.sampled_from([0.0, -1.0, np.nan])))


_sinkhorn = jax.jit(functools.partial(sinkhorn, epsilon=0.1, n_steps=20))


def _assert_refused(function, *args, **options):
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        with pytest.raises(UsageError):
            function(*args, **options)
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.usefixtures("annotations_off")
@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: kl_divergence(P, Q[:5]), r"p and q must have one shape, got \[40, 5\] and \[5, 5\]"),
        (lambda: kl_divergence(np.log(P), Q), r"p must be probabilities in \[0, 1\].*jax.nn.softmax"),
        (lambda: total_variation(P, 0.5 * Q), "q must sum to 1 over the last axis"),
        (lambda: jensen_shannon(P, Q, base=1), r"base must lie in \(1, inf\), got 1"),
        (lambda: jensen_shannon(P, Q, where=np.ones(3, bool)), r"where must have one value a row, \[40\], got \[3\]"),
        (lambda: wasserstein(A[:0], B), r"samples_a must hold at least one sample, got shape \[0\]"),
        (lambda: wasserstein(A, B, weights_b=WEIGHTS_A), "weights_b and samples_b must have one shape"),
        (lambda: wasserstein(A, B, weights_a=0 * WEIGHTS_A), "weights_a must be >= 0, and above 0 somewhere"),
        (lambda: wasserstein(np.float32(1), B), "samples_a must be an array of samples"),
        (lambda: optimal_transport(*MASSES, COST.T), r"need a cost \[n, m\] or .*got shapes \[6\], \[5\] and \[5, 6\]"),
        (lambda: sinkhorn(*MASSES, COST, epsilon=0.1, n_steps=0), r"n_steps must lie in \[1, inf\), got 0"),
        (lambda: sinkhorn(*MASSES, COST, epsilon=0.1, loop="fast"), "unknown loop 'fast'"),
    ],
)
def test_the_message_says_what_was_given_and_what_is_allowed(call, words):
    with pytest.raises(UsageError, match=words):
        call()
