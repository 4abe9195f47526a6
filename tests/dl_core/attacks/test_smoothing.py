"""Randomised smoothing: the radius is never longer than the truth, tends to it, and abstains where it knows nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from attack_contract import quadrants, small_network, trained_params

from dl_core.attacks.smoothing import _most_of_runner_up, certified_accuracy, certify, smoothed_predict
from dl_core.errors import UsageError

KEY = jax.random.key(0)


def linear(params, x):
    """Two classes, on the two sides of the plane w · x = b."""
    lead = x.reshape(len(x), -1) @ params["w"] - params["b"]
    return jnp.stack([-lead, lead], axis=1)


def constant(_, x):
    return jnp.broadcast_to(jnp.array([[0.0, 1.0, 0.5]]), (len(x), 3))


@functools.cache
def half_space():
    """A plane in six dimensions, images at known distances from it, and those distances."""
    random = np.random.default_rng(0)
    w = random.normal(size=6)
    images = jnp.asarray(random.uniform(0.2, 0.8, (64, 6)), jnp.float32)
    params = {"w": jnp.asarray(w, jnp.float32), "b": jnp.float32(w.sum() / 2)}
    return params, images, np.abs(np.asarray(images) @ w - w.sum() / 2) / np.linalg.norm(w)


def test_on_a_linear_classifier_the_radius_is_below_the_distance_to_the_plane_and_tends_to_it():
    """Its noise passes the plane with probability Φ(−distance / σ), so that σ Φ⁻¹(p) is the distance itself."""
    params, images, truth = half_space()
    sigma = 0.2
    few = certify(linear, params, images, key=KEY, sigma=sigma, samples=200, alpha=0.001)
    many = certify(linear, params, images, key=KEY, sigma=sigma, samples=20_000, alpha=0.001)
    for result in (few, many):
        assert (np.asarray(result.radius) <= truth).all()  # each fails once in a thousand; this key has none
        right = np.asarray(linear(params, images).argmax(axis=1))
        decided = np.asarray(result.prediction) >= 0
        np.testing.assert_array_equal(np.asarray(result.prediction)[decided], right[decided])
        assert not np.asarray(result.radius)[~decided].any()
    assert few.radius.mean() < many.radius.mean()
    # the bound lies 3.1 standard errors of Φ⁻¹(count / 20,000) below, and the count varies by another 4
    deviations = truth / sigma
    clear = (deviations > 0.5) & (deviations < 2)  # nearer ones may be given to the other side by the 100 that choose
    assert clear.sum() > 20
    spread = scipy.stats.norm.cdf(deviations) * scipy.stats.norm.sf(deviations) / 20_000
    error = np.sqrt(spread) / scipy.stats.norm.pdf(deviations)
    assert ((truth - np.asarray(many.radius)) / sigma < 7.1 * error)[clear].all()


def test_a_constant_classifier_has_the_largest_radius_that_the_samples_allow():
    images = jnp.full((3, 2, 2, 1), 0.5)
    result = certify(constant, None, images, key=KEY, sigma=0.5, samples=1000, alpha=0.001)
    np.testing.assert_array_equal(result.prediction, 1)
    largest = 0.5 * scipy.stats.norm.ppf(0.001 ** (1 / 1000))
    np.testing.assert_allclose(result.radius, largest, rtol=1e-6)
    assert (np.asarray(result.radius, np.float64) <= largest * (1 + 1e-7)).all()  # rounded down, then multiplied


@pytest.mark.parametrize("alpha", [0.001, 0.1])
def test_the_probability_is_the_lower_clopper_pearson_bound(alpha):
    """SciPy's two-sided interval with twice alpha, at every count from chance to certainty."""
    params, images, _ = half_space()
    result = certify(linear, params, images, key=KEY, sigma=0.2, samples=500, alpha=alpha)
    exact = {
        count: scipy.stats.binomtest(count, 500).proportion_ci(1 - 2 * alpha, method="exact").low
        for count in range(501)
    }
    bounds = np.array(list(exact.values()))
    at = np.abs(bounds[None] - np.asarray(result.probability)[:, None]).argmin(axis=1)
    assert len(set(at)) > 20
    np.testing.assert_allclose(result.probability, bounds[at], rtol=1e-6)  # float32
    expected = 0.2 * np.maximum(scipy.stats.norm.ppf(bounds[at]), 0)
    np.testing.assert_allclose(result.radius, expected, rtol=1e-5, atol=1e-7)


def test_the_bound_holds_as_often_as_it_promises():
    """A point at distance σ/2, certified 2,000 times with α = 0.1: the radius may be too long in a tenth of them."""
    params, images, truth = half_space()
    which = int(np.argmax(truth))
    repeated = jnp.broadcast_to(images[which], (2000, 6))
    sigma = float(2 * truth[which])
    result = certify(linear, params, repeated, key=jax.random.key(3), sigma=sigma, samples=100, alpha=0.1)
    too_long = float((np.asarray(result.radius) > truth[which]).mean())
    # exactly: P(Bin(100, Φ(1/2)) reaches the first count whose bound exceeds Φ(1/2))
    p = scipy.stats.norm.cdf(0.5)
    counts = np.arange(1, 101)
    first = counts[scipy.stats.beta.ppf(0.1, counts, 101 - counts) > p][0]
    expected = scipy.stats.binom.sf(first - 1, 100, p)
    assert expected <= 0.1
    assert abs(too_long - expected) < 4 * np.sqrt(expected * (1 - expected) / 2000)  # four standard errors


def test_a_prediction_needs_votes_that_chance_does_not_give():
    """SciPy's two-sided binomial test of the two leading classes."""
    table = _most_of_runner_up(60, 0.05)
    for votes in range(61):
        refuted = [scipy.stats.binomtest(j, votes).pvalue <= 0.05 for j in range(votes // 2 + 1)] if votes else []
        assert table[votes] == sum(refuted) - 1
    params, images, truth = half_space()
    result = smoothed_predict(linear, params, images, key=KEY, sigma=0.2, samples=60, alpha=0.05)
    votes = np.asarray(result.votes)
    assert votes.dtype == np.int32
    np.testing.assert_array_equal(votes.sum(axis=1), 60)
    sure = np.array([scipy.stats.binomtest(int(row.max()), 60).pvalue <= 0.05 for row in votes])
    assert 0 < sure.sum() < len(sure)
    np.testing.assert_array_equal(result.prediction, np.where(sure, votes.argmax(axis=1), -1))
    assert truth[~sure].max() < truth[sure].max()


def test_no_change_within_the_radius_alters_the_smoothed_prediction():
    """The attacker follows the gradient of the smoothed classifier itself, to 95 % of each certified radius."""
    params, sigma = trained_params(), 0.25
    images, _ = quadrants(24, seed=11)
    certified = certify(small_network, params, images, key=KEY, sigma=sigma, samples=1000)
    holds = np.asarray(certified.prediction) >= 0
    assert holds.sum() >= 12
    assert float(certified.radius.max()) > 0.2
    noise = sigma * jax.random.normal(jax.random.key(5), (64, *images.shape))

    def chance(x):
        of_classes = jax.vmap(lambda e: jax.nn.softmax(small_network(params, x + e)))(noise).mean(axis=0)
        return jnp.take_along_axis(of_classes, jnp.maximum(certified.prediction, 0)[:, None], axis=1).sum()

    step = -jax.jit(jax.grad(chance))(images)
    length = jnp.sqrt((step**2).sum(axis=(1, 2, 3), keepdims=True))
    moved = images + 0.95 * certified.radius.reshape(-1, 1, 1, 1) * step / length
    low, high = float(moved.min()), float(moved.max())  # the theorem knows no bounds
    again = smoothed_predict(
        small_network, params, moved, key=jax.random.key(6), sigma=sigma, samples=1000, bounds=(low, high)
    )
    np.testing.assert_array_equal(np.asarray(again.votes).argmax(axis=1)[holds], certified.prediction[holds])


def test_certified_accuracy_counts_what_is_right_and_far_enough():
    radii, predictions = jnp.array([0.5, 0.0, 0.3, 0.9]), jnp.array([1, -1, 0, 2])
    curve = certified_accuracy(radii, predictions, jnp.array([1, 1, 2, 2]), jnp.array([0.0, 0.5, 0.6, 1.0]))
    np.testing.assert_allclose(curve, [0.5, 0.5, 0.25, 0.0])


def test_the_noise_belongs_to_key_and_image_and_to_no_division():
    params = trained_params()
    images, _ = quadrants()
    run = functools.partial(smoothed_predict, small_network, params, sigma=0.5, samples=50)
    whole = run(images, key=KEY)
    np.testing.assert_array_equal(run(images, key=KEY, internal_batch_size=24).votes, whole.votes)
    np.testing.assert_array_equal(run(images, key=KEY, loop="compiled").votes, whole.votes)
    assert (np.asarray(run(images, key=jax.random.key(1)).votes) != np.asarray(whole.votes)).any()
    keys = jax.vmap(jax.random.fold_in, (None, 0))(KEY, jnp.arange(8))
    np.testing.assert_array_equal(run(images[4:], key=keys[4:]).votes, whole.votes[4:])


def test_it_runs_compiled_over_networks_over_sigma_and_over_devices():
    params = trained_params()
    images, _ = quadrants()
    before = jax.tree.map(np.array, params)
    run = functools.partial(certify, small_network, key=KEY, selection_samples=20, samples=60)
    whole = run(params, images, sigma=0.25)

    def same(given):
        np.testing.assert_array_equal(given.prediction, whole.prediction)
        np.testing.assert_allclose(given.radius, whole.radius, rtol=1e-6)

    same(jax.jit(lambda p, x: run(p, x, sigma=0.25))(params, images))
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), trained_params(3), params)
    mapped = jax.vmap(lambda p: jax.vmap(lambda s: run(p, images, sigma=s))(jnp.array([0.25, 0.5])))(stacked)
    same(jax.tree.map(lambda leaf: leaf[1, 0], mapped))
    each = run(params, images, sigma=jnp.full(8, 0.25).at[0].set(0.0))
    assert each.radius[0] == 0
    np.testing.assert_allclose(each.radius[1:], whole.radius[1:], rtol=1e-6)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:4])
    over_batch = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    same(run(jax.device_put(params, everywhere), jax.device_put(images, over_batch), sigma=0.25))
    jax.tree.map(np.testing.assert_array_equal, params, before)


def test_progress_is_told():
    calls = []
    smoothed_predict(
        constant, None, jnp.full((2, 3), 0.5), key=KEY, sigma=0.1, samples=10, internal_batch_size=4,
        progress=lambda done, of: calls.append((done, of)),
    )  # fmt: skip
    assert calls == [(done, 5) for done in range(1, 6)]


@pytest.mark.usefixtures("annotations_off")
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sigma": -0.1}, r"sigma must lie in \[0, inf\), got -0.1"),
        ({"sigma": jnp.ones(5)}, "sigma must be one number or one for each of the 2"),
        ({"samples": 0}, r"samples must lie in \[1, 16777216\], got 0"),
        ({"selection_samples": 1.5}, "selection_samples must be an integer"),
        ({"alpha": 0.5}, r"alpha must lie in \(0, 0.5\), got 0.5"),
        ({"alpha": jnp.float32(0.1)}, "alpha must be a number known before compiling"),
        ({"key": None}, "key is missing: the noise is drawn"),
        ({"bounds": (0.0, 0.1)}, "let apply_fn normalise"),
        ({"internal_batch_size": 0}, "internal_batch_size must be at least 1"),
        ({"loop": "fast"}, "unknown loop 'fast'"),
        ({"images": np.zeros((2, 3), np.uint8)}, "images must be floating numbers"),
        ({"images": [0.5, 0.5]}, "images must be floating numbers"),
    ],
)
def test_nonsense_is_refused(options, words):
    arguments = {"images": jnp.full((2, 3), 0.5), "key": KEY, "sigma": 0.1, **options}
    with pytest.raises(UsageError, match=words):
        certify(constant, None, arguments.pop("images"), **arguments)


@pytest.mark.usefixtures("annotations_off")
@pytest.mark.parametrize("lengths", [(2, 3, 3), (0, 0, 0)])
def test_a_curve_needs_one_entry_for_each_image(lengths):
    radii, predictions, labels = (jnp.zeros(length, int) for length in lengths)
    with pytest.raises(UsageError, match="one entry for each image"):
        certified_accuracy(radii.astype(float), predictions, labels, jnp.zeros(1))
