"""Occlusion and its coarse-to-fine form: closed forms, a naive loop, and what they refuse."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from explanation_contract import assert_keeps_the_contract, small_images, small_network, small_params
from hypothesis import given, settings
from hypothesis import strategies as st

from dl_core.errors import UsageError
from dl_core.explain.hierarchical_occlusion import hierarchical_occlusion
from dl_core.explain.occlusion import occlusion, occlusion_scores


def linear(weights, inputs):
    return inputs.reshape(len(inputs), -1) @ weights


def naive(apply_fn, inputs, target, window, strides, baselines):
    """Window after window; the mean over those that cover a value."""
    counts = [-(-(n - w) // s) + 1 for n, w, s in zip(inputs.shape[1:], window, strides, strict=True)]
    total, covering = np.zeros(inputs.shape), np.zeros(inputs.shape)
    whole = apply_fn(inputs)[:, target]
    for index in itertools.product(*map(range, counts)):
        inside = tuple(slice(i * s, i * s + w) for i, s, w in zip(index, strides, window, strict=True))
        occluded = inputs.copy()
        occluded[(slice(None), *inside)] = np.broadcast_to(baselines, inputs.shape)[(slice(None), *inside)]
        change = whole - apply_fn(occluded)[:, target]
        total[(slice(None), *inside)] += change.reshape(-1, *(1,) * (inputs.ndim - 1))
        covering[(slice(None), *inside)] += 1
    return total / covering


def network_float64(inputs):
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), small_params())
    with jax.enable_x64(True):
        return np.asarray(small_network(params, jnp.asarray(inputs, jnp.float64)))


def test_occlusion_keeps_the_contract():
    assert_keeps_the_contract(functools.partial(occlusion, sliding_window_shapes=(3, 4), strides=2))


def test_the_score_of_a_window_of_a_linear_model_is_the_sum_of_weight_times_change():
    keys = jax.random.split(jax.random.key(0), 3)
    weights, images = jax.random.normal(keys[0], (5 * 6 * 2, 3)), jax.random.normal(keys[1], (4, 5, 6, 2))
    baseline = jax.random.normal(keys[2], (5, 6, 2))
    scores = occlusion_scores(
        linear, weights, images, 1, sliding_window_shapes=(2, 3), strides=(1, 2), baselines=baseline
    )
    shares = np.asarray(weights[:, 1].reshape(1, 5, 6, 2) * (images - baseline[None]))
    assert scores.shape == (4, 4, 3, 1)
    for row, column in itertools.product(range(4), range(3)):
        expected = shares[:, row : row + 2, 2 * column : 2 * column + 3].sum(axis=(1, 2, 3))  # the last one is cut off
        np.testing.assert_allclose(scores[:, row, column, 0], expected, atol=1e-5)  # float32 sums of 60 terms


def test_occlusion_value_by_value_of_a_linear_model_is_weight_times_input():
    weights, images = jax.random.normal(jax.random.key(0), (18, 3)), jax.random.normal(jax.random.key(1), (4, 3, 3, 2))
    attributions = occlusion(linear, weights, images, 2, sliding_window_shapes=(1, 1, 1))
    expected = weights[:, 2].reshape(1, 3, 3, 2) * images
    np.testing.assert_allclose(attributions, expected, atol=1e-5)  # differences of float32 sums of 18 terms


@pytest.mark.parametrize(
    ("window", "strides", "internal_batch_size"),
    [
        ((3, 3, 3), (1, 1, 1), None),
        ((8, 8, 3), (9, 8, 1), 1),
        ((5, 2, 3), (4, 2, 3), 7),
        ((4, 4, 1), (4, 4, 1), 24),
        ((4, 3, 2), (2, 3, 2), None),  # the last group of channels is one channel
    ],
)
def test_occlusion_is_the_naive_loop(window, strides, internal_batch_size):
    images = np.random.default_rng(0).normal(size=(3, 8, 8, 3)).astype(np.float32)
    baselines = np.random.default_rng(1).normal(size=images.shape).astype(np.float32)
    result = occlusion(
        small_network,
        small_params(),
        jnp.asarray(images),
        4,
        sliding_window_shapes=window,
        strides=strides,
        baselines=baselines,
        internal_batch_size=internal_batch_size,
    )
    expected = naive(network_float64, images, 4, window, strides, baselines)
    np.testing.assert_allclose(result, expected, atol=2e-6)  # logits of order 1 in float32


@settings(max_examples=30, deadline=None, derandomize=True, database=None)
@given(st.data())
def test_any_window_stride_and_baseline_of_sequences(data):
    """Inputs of rank 2, of one shape so that apply_fn is compiled for few."""
    window = data.draw(st.integers(1, 6))
    stride = data.draw(st.integers(1, window))
    seed = data.draw(st.integers(0, 1000))
    rng = np.random.default_rng(seed)
    inputs, weights = rng.normal(size=(2, 6)).astype(np.float32), rng.normal(size=(6, 2)).astype(np.float32)
    baselines = data.draw(st.sampled_from([0.5, rng.normal(size=6), rng.normal(size=(1, 6)), rng.normal(size=(2, 6))]))
    given_baselines = jnp.asarray(baselines, jnp.float32)
    result = occlusion(
        _tanh,
        weights,
        jnp.asarray(inputs),
        1,
        sliding_window_shapes=(window,),
        strides=stride,
        baselines=given_baselines,
    )
    apply_fn = lambda x: np.tanh(x @ weights.astype(np.float64))
    expected = naive(apply_fn, inputs.astype(float), 1, (window,), (stride,), np.asarray(given_baselines))
    np.testing.assert_allclose(result, expected, atol=2e-6)  # outputs below 1 in float32


def _tanh(weights, inputs):
    return jnp.tanh(inputs @ weights)


def test_windows_that_the_output_does_not_depend_on_score_zero():
    images = jax.random.normal(jax.random.key(0), (2, 8, 8, 1))
    corner = lambda _, x: jnp.square(x[:, :3, :3]).sum(axis=(1, 2))
    scores = occlusion_scores(corner, None, images, 0, sliding_window_shapes=(2, 2))
    np.testing.assert_array_equal(scores[:, 3:], 0)
    np.testing.assert_array_equal(scores[:, :, 3:], 0)
    assert (scores[:, :3, :3] > 0).all()


def test_an_output_without_a_gradient_is_explained():
    images = jax.random.normal(jax.random.key(0), (2, 4, 4, 1))
    counts = lambda _, x: (x.reshape(2, -1) > 0).sum(axis=1, keepdims=True).astype(jnp.float32)
    result = occlusion(counts, None, images, 0, sliding_window_shapes=(1, 1))
    np.testing.assert_array_equal(result, images > 0)


def test_progress_is_told_piece_by_piece():
    calls = []
    options = {"sliding_window_shapes": (4, 4), "strides": 2, "internal_batch_size": 8}
    occlusion(small_network, small_params(), small_images(4), 0, **options, progress=lambda *done: calls.append(done))
    assert calls == [(i + 1, 5) for i in range(5)]  # 9 windows and the bare input, two of the batch of 4 at once


@pytest.mark.parametrize("method", [occlusion, hierarchical_occlusion])
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sliding_window_shapes": (9, 3)}, r"at most as many as an example \[8, 8, 3\]; got .*\(9, 3\)"),
        ({"sliding_window_shapes": (0, 3)}, "at least 1 value along every axis"),
        ({"sliding_window_shapes": (3, 3, 3, 1)}, "the batch left out"),
        ({"sliding_window_shapes": ()}, "whole numbers, one for each of the first axes"),
        ({"sliding_window_shapes": (2.5, 2)}, "whole numbers"),
        ({"strides": 0}, "strides must be at least 1: .*got 0"),
        ({"strides": (1, 2, 3)}, r"or 2 as in sliding_window_shapes; got \(1, 2, 3\)"),
        ({"strides": 4}, "leaves gaps that no window covers: strides=4"),
        (
            {"baselines": np.zeros((8, 8))},
            r"one example \[8, 8, 3\], or one for each, \[2, 8, 8, 3\]; got shape \[8, 8\]",
        ),
        ({"internal_batch_size": 0}, "internal_batch_size must be at least 1"),
        ({"loop": "fast"}, "unknown loop 'fast'"),
        ({"target": 5}, r"target must be in \[0, 5\), got 5"),
    ],
)
def test_nonsense_is_refused_with_the_value_given(annotations_off, method, options, words):
    options = {"sliding_window_shapes": (3, 3), "target": 0, **options}
    with pytest.raises(UsageError, match=words):
        method(small_network, small_params(), small_images(2), options.pop("target"), **options)


def template_score(template, images):
    """Two logits: the best match of the template, and the mean match."""
    match = jax.lax.conv_general_dilated(
        images, template[..., None, None], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return jnp.stack([match.max(axis=(1, 2, 3)), match.mean(axis=(1, 2, 3))], axis=1)


@pytest.fixture(scope="module")
def scenes():
    """64 images of noise with an object somewhere, which decides the first logit."""
    rng = np.random.default_rng(0)
    template = rng.uniform(0.5, 1, (6, 6)).astype(np.float32)
    images = rng.uniform(0, 0.3, (64, 24, 24, 1)).astype(np.float32)
    for image, (row, column) in zip(images, rng.integers(0, 19, (64, 2)), strict=True):
        image[row : row + 6, column : column + 6, 0] += template
    return jnp.asarray(template), jnp.asarray(images)


@pytest.mark.parametrize(("window", "stride", "levels", "fraction"), [(8, 1, 3, 6.3), (8, 2, 2, 2.4)])
def test_coarse_to_fine_finds_the_region_of_the_exhaustive_search(scenes, window, stride, levels, fraction):
    options = {"sliding_window_shapes": (window, window), "strides": stride}
    exhaustive = occlusion_scores(template_score, *scenes, 0, **options)
    found = hierarchical_occlusion(template_score, *scenes, 0, **options, levels=levels)
    assert exhaustive[0].size + 1 > fraction * found.passes
    best = np.stack(np.unravel_index(exhaustive.reshape(64, -1).argmax(axis=1), exhaustive.shape[1:]), axis=1)[:, :2]
    same = (found.top_region[:, 0, :2] == best * stride).all(axis=1)
    assert same.mean() >= 0.98  # 128 of 128 when written
    np.testing.assert_array_equal(found.top_region[:, 1, 2], 1)
    np.testing.assert_allclose(
        found.scores[found.evaluated], exhaustive[found.evaluated], atol=2e-6
    )  # the same forward passes in pieces of another size


def test_coarse_to_fine_with_everything_kept_is_exhaustive():
    arguments = small_network, small_params(), small_images(4), jnp.array([0, 1, 2, 3])
    options = {"sliding_window_shapes": (3, 2, 2), "strides": (2, 1, 1)}
    whole = occlusion(*arguments, **options)
    for levels in (0, 2):
        found = hierarchical_occlusion(*arguments, **options, levels=levels, keep=1.0)
        assert found.evaluated.all()
        np.testing.assert_allclose(found.attributions, whole, atol=2e-6)  # logits of order 1 in float32


def test_what_was_not_evaluated_shares_the_score_of_its_region():
    """Of a sum over the pixels of a constant image, every window's share is its size: all scores are exact."""
    total = lambda _, x: x.sum(axis=(1, 2))
    images = jnp.ones((2, 9, 7, 1))
    found = hierarchical_occlusion(total, None, images, 0, sliding_window_shapes=(2, 2), strides=2, levels=1, keep=0.1)
    exhaustive = occlusion_scores(total, None, images, 0, sliding_window_shapes=(2, 2), strides=2)
    assert 0 < found.evaluated.mean() < 0.5
    np.testing.assert_allclose(found.scores, exhaustive, rtol=1e-5)


def test_coarse_to_fine_misses_what_only_shows_alone():
    """Its known failure: a region holds a pixel for the class and one as much against it, and weighs nothing."""
    weights = np.zeros((8, 8))
    weights[0, 0], weights[0, 1], weights[6, 6] = 5, -5, 1
    weighted = lambda params, x: (x * params).sum(axis=(1, 2))
    arguments = weighted, jnp.asarray(weights[None, ..., None], jnp.float32), jnp.ones((1, 8, 8, 1)), 0
    search = lambda keep: hierarchical_occlusion(*arguments, sliding_window_shapes=(1, 1), levels=1, keep=keep)
    np.testing.assert_array_equal(search(1.0).top_region[0, 0], [0, 0, 0])
    np.testing.assert_array_equal(search(0.05).top_region[0, 0], [6, 6, 0])


def test_coarse_to_fine_keeps_the_contract():
    explain = lambda *arguments: (
        hierarchical_occlusion(*arguments, sliding_window_shapes=(2, 2), strides=2, levels=1, keep=0.5).attributions
    )
    assert_keeps_the_contract(explain, bfloat16_atol=None)  # rounded scores may choose other regions


def test_coarse_to_fine_tells_its_progress():
    calls = []
    hierarchical_occlusion(
        small_network,
        small_params(),
        small_images(2),
        0,
        sliding_window_shapes=(2, 2),
        internal_batch_size=8,
        progress=lambda *done: calls.append(done),
    )
    assert calls == [(i + 1, len(calls)) for i in range(len(calls))]
    assert len(calls) > 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"levels": -1}, r"levels must be a whole number in \[0, 16\], got -1"),
        ({"levels": 1.5}, "got 1.5"),
        ({"keep": 0.0}, r"keep must lie in \(0, 1\], got 0.0"),
        ({"keep": 1.5}, "got 1.5"),
    ],
)
def test_nonsense_about_levels_is_refused(annotations_off, options, words):
    with pytest.raises(UsageError, match=words):
        hierarchical_occlusion(
            small_network, small_params(), small_images(2), 0, sliding_window_shapes=(2, 2), **options
        )
