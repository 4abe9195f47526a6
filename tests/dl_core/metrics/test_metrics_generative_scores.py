"""Inception score, path length with slerp, and the overfitting of a discriminator."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from partitions import assert_any_partition_gives_the_whole

from dl_core.errors import UsageError
from dl_core.metrics.accumulator import gathering_metric
from dl_core.metrics.inception_score import inception_score, inception_score_metric
from dl_core.metrics.overfitting import adjust_augmentation, overfitting_metric, overfitting_r_t, overfitting_r_v
from dl_core.metrics.path_length import lerp, path_length_summary, perceptual_path_length, slerp

RANDOM = np.random.default_rng(0)
PROBABILITIES = RANDOM.dirichlet(np.full(4, 0.4), 61).astype(np.float32)


def score_of(p):
    p = p.astype(float)
    marginal = p.mean(axis=0, keepdims=True)
    return np.exp(np.where(p > 0, p * np.log(np.where(p > 0, p, 1) / marginal), 0).sum(axis=1).mean())


def test_the_inception_score_is_the_exponential_of_the_mean_divergence_of_each_split():
    found = inception_score(PROBABILITIES, num_splits=3)
    scores = [score_of(PROBABILITIES[i * 61 // 3 : (i + 1) * 61 // 3]) for i in range(3)]
    assert found.mean == pytest.approx(np.mean(scores), abs=0.02)
    scores = [score_of(PROBABILITIES[np.arange(61) * 3 // 61 == i]) for i in range(3)]
    np.testing.assert_allclose(found, (np.mean(scores), np.std(scores)), rtol=1e-9)  # float64


def test_the_score_is_one_without_classes_or_without_variety_and_at_most_their_number():
    sure = np.eye(4, dtype=np.float32)[np.arange(40) % 4]
    np.testing.assert_allclose(inception_score(sure, num_splits=1), (4, 0), atol=1e-12)
    np.testing.assert_allclose(inception_score(np.full((40, 4), 0.25), num_splits=1), (1, 0), atol=1e-12)
    np.testing.assert_allclose(inception_score(sure[np.zeros(40, int)], num_splits=1), (1, 0), atol=1e-12)


def test_inside_jit_masked_rows_fill_no_split():
    where = RANDOM.random(61) < 0.7
    expected = inception_score(PROBABILITIES[where], num_splits=5)
    spoilt = np.where(where[:, None], PROBABILITIES, np.nan).astype(np.float32)
    np.testing.assert_allclose(inception_score(spoilt, num_splits=5, where=where), expected, rtol=1e-9)
    inside = jax.jit(lambda p, where: inception_score(p, num_splits=5, where=where))(spoilt, where)
    np.testing.assert_allclose(inside, expected, rtol=1e-4)  # float32; the deviation is a difference


def test_any_partition_gives_the_score_of_the_whole():
    splits = (np.arange(61) * 3 // 61).astype(np.int32)
    metric = inception_score_metric(4, 3)
    whole = inception_score(PROBABILITIES, num_splits=3)
    assert_any_partition_gives_the_whole(metric, (PROBABILITIES, splits), whole, rtol=1e-4)  # float32 sums
    with pytest.raises(UsageError, match=r"every split must hold at least one example, got \[0, 0, 0\]"):
        metric.compute(metric.init())


def test_slerp_starts_and_ends_where_it_should_and_keeps_the_norm():
    start, end = RANDOM.normal(size=(2, 30, 7)).astype(np.float32)
    np.testing.assert_allclose(slerp(start, end, 0.0), start, rtol=1e-5, atol=1e-5)  # float32
    np.testing.assert_allclose(slerp(start, end, 1.0), end, rtol=1e-5, atol=1e-5)
    unit = start / np.linalg.norm(start, axis=1, keepdims=True), end / np.linalg.norm(end, axis=1, keepdims=True)
    between = slerp(*unit, np.linspace(0, 1, 30, dtype=np.float32))
    np.testing.assert_allclose(np.linalg.norm(between, axis=1), 1, rtol=1e-6)


def test_slerp_is_shoemakes_formula_at_constant_speed():
    u = np.array([1.0, 0, 0], np.float32)
    v = np.array([np.cos(2.0), np.sin(2.0), 0], np.float32)
    for t in (0.1, 0.5, 0.9):
        np.testing.assert_allclose(slerp(u, v, t), (np.sin((1 - t) * 2) * u + np.sin(t * 2) * v) / np.sin(2), atol=1e-6)
        np.testing.assert_allclose(slerp(u, v, t), [np.cos(2 * t), np.sin(2 * t), 0], atol=1e-6)


@pytest.mark.parametrize("angle", [0.0, 1e-7, 1e-4, np.pi - 1e-4, np.pi - 1e-7, np.pi])
def test_slerp_of_parallel_and_opposite_vectors_stays_on_the_sphere(angle):
    u = np.float32([0.6, 0.8, 0, 0])
    v = (np.cos(angle) * u + np.sin(angle) * np.float32([-0.8, 0.6, 0, 0])).astype(np.float32)
    half, quarter = slerp(u, v, 0.5), slerp(u, v, 0.25)
    np.testing.assert_allclose([np.linalg.norm(half), np.linalg.norm(quarter)], 1, rtol=1e-6)
    np.testing.assert_allclose(slerp(u, v, 1.0), v, atol=1e-6)
    assert np.arccos(np.clip(half @ u, -1, 1)) == pytest.approx(angle / 2, abs=1e-3)  # of arccos near 1
    assert np.isfinite(jax.grad(lambda u: slerp(u, jnp.asarray(v), 0.3).sum())(jnp.asarray(u))).all()


def test_slerp_of_a_zero_vector_goes_straight():
    v, zero = np.float32([3, 4]), np.zeros(2, np.float32)
    np.testing.assert_allclose(slerp(zero, v, 0.5), v / 2, rtol=1e-6)
    np.testing.assert_allclose(slerp(v, zero, 0.5), v / 2, rtol=1e-6)
    np.testing.assert_array_equal(slerp(zero, zero, 0.5), zero)
    np.testing.assert_allclose(lerp(v, -v, 0.5), zero)


def squared_difference(a, b):
    return ((a - b) ** 2).sum(axis=(1, 2, 3))


def linear(matrix, z):
    return (z @ matrix)[:, None, None, :]


@pytest.fixture
def pairs():
    start, end = RANDOM.normal(size=(2, 50, 5)).astype(np.float32)
    return start, end, RANDOM.random(50).astype(np.float32)


def test_the_path_length_of_a_linear_generator_is_that_of_its_image_of_the_line(pairs):
    matrix = RANDOM.normal(size=(5, 3)).astype(np.float32)
    found = perceptual_path_length(
        linear, matrix, *pairs, distance=squared_difference, interpolation="lerp", discard=(0.0, 1.0), batch_size=16
    )
    expected = (((pairs[1] - pairs[0]) @ matrix) ** 2).sum(axis=1)
    np.testing.assert_allclose(found.lengths, expected, rtol=0.02)  # 1e-4 steps in float32: last digits
    np.testing.assert_allclose(found.mean, expected.mean(), rtol=2e-3)
    np.testing.assert_allclose(found.std, expected.std(ddof=1), rtol=5e-3)
    assert found.kept.all()


def test_the_path_length_of_the_identity_on_the_sphere_is_the_squared_angle(pairs):
    start, end = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in pairs[:2])
    with jax.enable_x64(True):
        found = perceptual_path_length(
            linear, jnp.eye(5), *(jnp.asarray(a, float) for a in (start, end, pairs[2])), distance=squared_difference
        )
    angle = np.arccos((start.astype(float) * end).sum(axis=1))
    np.testing.assert_allclose(found.lengths, angle**2, rtol=1e-5)  # the inputs are unit vectors to 1e-7


def test_the_path_length_is_the_same_by_any_driver_and_inside_jit(pairs):
    matrix = RANDOM.normal(size=(5, 3)).astype(np.float32)
    run = lambda loop: perceptual_path_length(
        linear, matrix, *pairs, distance=squared_difference, eps=1e-2, batch_size=16, loop=loop
    )
    found = run("host")
    assert found.lengths.shape == (50,)  # 4 batches of 16: 14 copies of the last pair do not count
    for other in (run("compiled"), jax.jit(lambda: run("auto"))()):
        np.testing.assert_allclose(other.lengths, found.lengths, rtol=1e-3)  # differences of nearly equal numbers
        np.testing.assert_allclose(other.mean, found.mean, rtol=1e-4)


def test_a_generator_twice_as_steep_has_four_times_the_path_length(pairs):
    matrix = RANDOM.normal(size=(5, 3)).astype(np.float32)
    once, twice = (
        perceptual_path_length(linear, factor * matrix, *pairs, distance=squared_difference, eps=1e-2).mean
        for factor in (1, 2)
    )
    assert float(twice) == pytest.approx(4 * float(once), rel=1e-4)  # float32


def test_the_longest_and_shortest_lengths_are_left_out():
    lengths = np.arange(200.0).astype(np.float32)[RANDOM.permutation(200)]
    found = path_length_summary(lengths)
    np.testing.assert_array_equal(np.sort(lengths[found.kept]), np.arange(1, 198))  # ranks 1.99 and 197.01, down
    np.testing.assert_allclose(found.mean, np.arange(1, 198).mean(), rtol=1e-6)
    np.testing.assert_allclose(found.std, np.arange(1, 198).std(ddof=1), rtol=1e-6)
    where = lengths < 100
    masked = jax.jit(path_length_summary)(np.where(where, lengths, np.nan), where=where)
    np.testing.assert_allclose(masked.mean, np.arange(0, 99).mean(), rtol=1e-6)


def test_any_partition_gives_the_path_length_of_the_whole():
    lengths = RANDOM.random(60).astype(np.float32)
    metric = gathering_metric(lambda rows, where: path_length_summary(rows, where=where)[:2], 80, jnp.float32(0))
    assert_any_partition_gives_the_whole(metric, (lengths,), path_length_summary(lengths)[:2])


def test_r_v_is_zero_where_validation_scores_as_training_and_one_where_it_scores_as_generated():
    """W37."""
    train, generated = RANDOM.normal(2, 1, 40).astype(np.float32), RANDOM.normal(-1, 1, 30).astype(np.float32)
    assert float(overfitting_r_v(train, train, generated)) == 0
    assert float(overfitting_r_v(train, generated, generated)) == 1
    between = np.float32([train.mean() * 0.75 + generated.mean() * 0.25] * 3)
    assert float(overfitting_r_v(train, between, generated)) == pytest.approx(0.25, rel=1e-4)


def test_r_t_is_the_mean_sign_of_training_scores():
    """W37."""
    assert float(overfitting_r_t(np.float32([3, -1, 0.1, 7]))) == 0.5
    assert float(overfitting_r_t(np.ones(5, np.float32))) == 1
    assert float(overfitting_r_t(np.float32([1, -1, np.nan]), where=np.array([True, True, False]))) == 0


def test_any_partition_gives_the_overfitting_of_the_whole():
    scores, source = RANDOM.normal(size=60).astype(np.float32), (np.arange(60) % 3).astype(np.int32)
    whole = [overfitting_r_v(*(scores[source == i] for i in range(3))), overfitting_r_t(scores[source == 0])]
    metric = overfitting_metric()
    listed = metric._replace(compute=lambda state: list(metric.compute(state)))
    assert_any_partition_gives_the_whole(listed, (scores, source), whole)


def test_augmentation_follows_r_t_and_stays_in_its_range():
    """W37: p moves every 4 mini-batches towards r_t of 0.6, by the share of the ramp that was shown."""
    step = jax.jit(lambda p, r_t: adjust_augmentation(p, r_t, num_images=4 * 64, ramp_images=25_600))
    assert float(step(0.0, 0.9)) == pytest.approx(0.01)
    assert float(step(0.5, 0.2)) == pytest.approx(0.49)
    assert float(step(0.5, np.float32(0.6))) == 0.5
    assert float(step(0.0, 0.2)) == 0
    assert float(step(0.8, 1.0)) == pytest.approx(0.8)


def test_a_discriminator_that_overfits_less_with_augmentation_is_held_at_the_target():
    p, r_t, step = 0.0, 1.0, jax.jit(lambda p, r_t: adjust_augmentation(p, r_t, num_images=256, ramp_images=12_800))
    for _ in range(60):
        p = float(step(p, r_t))
        r_t = 1 - p
    assert r_t == pytest.approx(0.6, abs=0.03)


IMAGES = {"distance": squared_difference}
Z = np.ones((3, 5), np.float32)


@pytest.mark.usefixtures("annotations_off")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: inception_score(PROBABILITIES, num_splits=62), "at most the number of examples, 61; got 62"),
        (lambda: inception_score(PROBABILITIES, num_splits=0), "num_splits must be at least 1, got 0"),
        (lambda: inception_score(PROBABILITIES[0]), r"shape \[n, classes\], got \[4\]"),
        (lambda: inception_score(PROBABILITIES * 9), "probabilities in \\[0, 1\\]"),
        (lambda: inception_score(PROBABILITIES / 2), "sum to 1 over the last axis"),
        (lambda: inception_score(PROBABILITIES[:0]), "at least one example"),
        (lambda: inception_score_metric(0), "num_classes must be at least 1"),
        (lambda: slerp(Z, Z[:2], 0.5), r"one shape \[..., d\] with d >= 2, got \[3, 5\] and \[2, 5\]"),
        (lambda: slerp(Z[:, :1], Z[:, :1], 0.5), "d >= 2"),
        (lambda: perceptual_path_length(linear, None, Z, Z, Z[:, 0], **IMAGES, interpolation="slurp"), "slerp"),
        (lambda: perceptual_path_length(linear, None, Z, Z, Z[:2, 0], **IMAGES), r"t shape \[n\], got"),
        (lambda: perceptual_path_length(linear, None, Z, Z * np.nan, Z[:, 0], **IMAGES), "end must be finite"),
        (lambda: perceptual_path_length(linear, None, Z, Z, Z[:, 0], **IMAGES, eps=0), "eps must be above 0"),
        (lambda: path_length_summary(Z[0], discard=(0.9, 0.1)), "0 <= low < high <= 1"),
        (lambda: path_length_summary(Z[0, :0]), "at least one example"),
        (lambda: overfitting_r_t(Z), r"train must have shape \[n\], one score for each image"),
        (lambda: overfitting_r_v(Z[0], Z[0, :0], Z[0]), "validation must hold at least one example"),
        (lambda: overfitting_r_v(Z[0], Z[0], Z[0] * np.inf), "generated must be finite"),
        (lambda: adjust_augmentation(1.5, 0.5, num_images=4), r"p must lie in \[0, 1\], got 1.5"),
        (lambda: adjust_augmentation(0.5, -2.0, num_images=4), r"r_t must lie in \[-1, 1\], got -2"),
        (lambda: adjust_augmentation(0.5, 0.5, num_images=0), "at least 1, got 0 and 500000"),
        (lambda: adjust_augmentation(0.5, float("nan"), num_images=4), r"r_t must lie in \[-1, 1\], got nan"),
    ],
)
def test_what_makes_no_sense_is_refused(call, message):
    with pytest.raises(UsageError, match=message):
        call()
