"""Activation maximisation: closed forms of linear models, what each regulariser does, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from explanation_contract import small_images, small_network, small_params

from dl_core.errors import UsageError
from dl_core.explain.activation_maximization import activation_maximization
from dl_core.explain.layers import run_with_layer

KEY = jax.random.key(0)
SHAPE = (2, 6, 5, 1)
WEIGHTS = jax.random.normal(jax.random.key(1), (30, 3))
SGD = optax.sgd(1.0)


def linear(weights, images):
    return images.reshape(len(images), -1) @ weights


def search(target=0, *, apply_fn=linear, params=WEIGHTS, key=KEY, shape=SHAPE, **options):
    return activation_maximization(apply_fn, params, target, key=key, shape=shape, **options)


def test_a_linear_model_is_maximised_at_the_corner_of_the_bounds():
    found = search(np.array([0, 2]), steps=120, bounds=(-0.5, 2.0))
    best = np.where(WEIGHTS.T[np.array([0, 2])] > 0, 2.0, -0.5)
    np.testing.assert_array_equal(found.images.reshape(2, -1), best)
    np.testing.assert_allclose(found.history[-1], (best * WEIGHTS.T[np.array([0, 2])]).sum(axis=1), rtol=1e-5)


def test_a_sigmoid_comes_near_the_corner_and_never_leaves_the_bounds():
    found = search(1, steps=100, parametrization="sigmoid", learning_rate=0.5)
    best = np.maximum(WEIGHTS[:, 1], 0).sum()
    assert (found.history[-1] > 0.99 * best).all()
    assert ((found.images >= 0) & (found.images <= 1)).all()


def test_with_a_squared_norm_the_maximum_of_a_linear_model_is_its_weights():
    """w·x - λ mean x² is largest at n w / 2λ; gradient ascent with step n / 4λ halves the distance each time."""
    found = search(2, steps=40, bounds=None, norm_weight=15.0, optimizer=optax.sgd(0.5))
    np.testing.assert_allclose(found.images.reshape(2, -1), np.stack([WEIGHTS[:, 2]] * 2), rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def logits_found():
    classes = jnp.arange(5)
    return activation_maximization(
        small_network, small_params(), classes, key=KEY, shape=(5, 8, 8, 3), steps=60, jitter=0
    )


def test_the_objective_rises_beyond_that_of_all_random_images(logits_found):
    random = small_network(small_params(), small_images(512))
    assert logits_found.history.shape == (61, 5)
    assert (logits_found.history[-1] > random.max(axis=0) + random.std(axis=0)).all()
    own = small_network(small_params(), logits_found.images)
    np.testing.assert_allclose(jnp.diagonal(own), logits_found.history[-1], rtol=1e-5)


def test_it_is_decided_by_the_key_and_the_same_under_jit(logits_found):
    run = lambda key, params: activation_maximization(
        small_network, params, jnp.arange(5), key=key, shape=(5, 8, 8, 3), steps=60
    )
    again = run(KEY, small_params())
    np.testing.assert_array_equal(again.images, logits_found.images)
    compiled = jax.jit(run)(KEY, small_params())
    # rounding grows along 60 steps of Adam, whose early steps depend on little more than signs
    np.testing.assert_allclose(compiled.history, logits_found.history, rtol=1e-2, atol=1e-2)
    assert np.abs(run(jax.random.key(1), small_params()).images - logits_found.images).max() > 0.1


def roughness(images):
    return float(sum(jnp.square(jnp.diff(images, axis=axis)).mean() for axis in (1, 2)))


def test_total_variation_falls_with_its_weight():
    rough = [roughness(search(0, steps=100, total_variation_weight=weight).images) for weight in (0.0, 20.0, 200.0)]
    assert rough[0] > 2 * rough[1] > 4 * rough[2]


def test_a_blur_smooths_and_does_so_every_few_steps():
    assert roughness(search(0, steps=8, blur_sigma=1.0).images) < 0.5 * roughness(search(0, steps=8).images)
    np.testing.assert_array_equal(search(0, steps=3, blur_sigma=1.0).images, search(0, steps=3).images)
    constant = search(0, steps=4, init=np.full(SHAPE, 0.25), shape=None, blur_sigma=2.0, learning_rate=1e-9)
    np.testing.assert_allclose(constant.images, 0.25, atol=1e-6)  # also at the border


def test_a_higher_power_of_the_norm_bounds_the_largest_pixels():
    options = {"steps": 150, "bounds": None, "norm_weight": 15.0}
    largest = [float(jnp.abs(search(0, **options, norm_power=p).images).max()) for p in (2.0, 6.0)]
    assert largest[1] < 0.6 * largest[0]


def test_jitter_shows_the_model_rolled_images():
    """The mean over all offsets of a linear model is the mean weight times the sum of pixels: images become flat."""
    options = {"bounds": None, "steps": 400, "optimizer": optax.sgd(0.01)}
    start = np.zeros(SHAPE, np.float32)
    still, rolled = (search(0, **options, init=start, shape=None, jitter=jitter).images for jitter in (0, 30))
    relative = lambda images: float(images.std() / jnp.abs(images.mean()))
    assert relative(rolled) < 0.5 * relative(still)


def test_normalised_gradients_make_steps_of_one_length():
    options = {"bounds": None, "steps": 1, "optimizer": SGD, "normalize_gradients": True}
    start = jnp.zeros(SHAPE)
    for scale in (1e-3, 1e3):
        found = search(0, params=scale * WEIGHTS, init=start, shape=None, **options)
        np.testing.assert_allclose(jnp.square(found.images).mean(axis=(1, 2, 3)), 1, rtol=1e-3)  # the floor is 1e-8


def test_octaves_grow_to_the_shape_of_the_images():
    seen = []

    def anything(_, images):
        seen.append(images.shape)
        return images.mean(axis=(1, 2))

    found = search(0, apply_fn=anything, params=None, shape=(1, 20, 28, 1), octaves=3, octave_scale=1.4, steps=20)
    assert {shape[1:3] for shape in seen} == {(10, 14), (14, 20), (20, 28)}
    assert found.images.shape == (1, 20, 28, 1)
    assert found.history.shape == (61, 1)
    seen.clear()
    search(
        0,
        apply_fn=lambda _, x: anything(None, x),
        params=None,
        shape=(1, 20, 28, 1),
        octaves=3,
        steps=2,
        fixed_size=True,
    )
    assert {shape[1:3] for shape in seen} == {(20, 28)}


def test_octaves_of_a_model_of_one_size_maximise_it_too(logits_found):
    found = activation_maximization(
        small_network, small_params(), jnp.arange(5), key=KEY, shape=(5, 8, 8, 3), steps=30, octaves=2, fixed_size=True
    )
    assert (found.history[-1] > 0.8 * logits_found.history[-1]).all()


def in_layer(images):
    return run_with_layer(small_network, small_params(), images, "conv2")[1]


LAYER_UNITS = {
    "a channel": (3, lambda a: a[..., 3].mean(axis=(1, 2))),
    "a channel for each image": (np.array([4, 0]), lambda a: jnp.diagonal(a.mean(axis=(1, 2))[:, jnp.array([4, 0])])),
    "one value": ((2, 5, 1), lambda a: a[:, 2, 5, 1]),
    "a function": (lambda a: a.max(axis=(1, 2, 3)), lambda a: a.max(axis=(1, 2, 3))),
    "the layer": (None, lambda a: jnp.square(a).mean(axis=(1, 2, 3))),
}


@pytest.mark.parametrize("unit", LAYER_UNITS)
def test_any_part_of_a_layer_is_maximised(unit):
    unit, objective = LAYER_UNITS[unit]
    shape = (2, 8, 8, 3)
    found = search(None, apply_fn=small_network, params=small_params(), shape=shape, layer="conv2", unit=unit, steps=40)
    np.testing.assert_allclose(objective(in_layer(found.images)), found.history[-1], rtol=1e-5)
    random = jax.vmap(lambda image: objective(in_layer(jnp.stack([image] * 2))))(small_images(128))
    assert (found.history[-1] > random.max(axis=0)).all()


def test_progress_counts_the_steps_of_all_octaves():
    calls = []
    search(steps=3, octaves=2, fixed_size=True, progress=lambda *done: calls.append(done))
    assert calls == [(i + 1, 6) for i in range(6)]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"target": 3}, r"target must be in \[0, 3\), got 3"),
        ({"target": None}, "without a layer, give a target and no unit"),
        ({"unit": 1}, "without a layer, give a target and no unit"),
        ({"layer": "conv1"}, "with layer='conv1' the target is None"),
        ({"shape": None}, "either shape or init"),
        ({"init": np.zeros(SHAPE, np.float32)}, "either shape or init"),
        ({"shape": (6, 5, 1)}, r"\[batch, height, width, channels\], got \[6, 5, 1\]"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"octaves": 0}, "octaves must be at least 1"),
        ({"octaves": 12}, "12 octaves shrink images"),
        ({"octaves": 2}, "does not take images of shape .*fixed_size=True"),
        ({"octave_scale": 1.0}, "octave_scale must be above 1"),
        ({"bounds": (1.0, 0.0)}, r"bounds must be \(lowest, highest\)"),
        ({"bounds": None, "parametrization": "sigmoid"}, "needs bounds"),
        ({"parametrization": "sigmoyd"}, "did you mean 'sigmoid'"),
        ({"norm_weight": -1.0}, "norm_weight must not be negative"),
        ({"norm_power": 0.5}, "norm_power must be at least 1"),
        ({"total_variation_weight": -1.0}, "total_variation_weight must not be negative"),
        ({"jitter": -1}, "jitter must not be negative"),
        ({"blur_sigma": -1.0}, "blur_sigma must not be negative"),
        ({"blur_every": 0}, "blur_every must be at least 1"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0"),
        ({"loop": "fast"}, "unknown loop"),
    ],
)
def test_nonsense_is_refused_with_the_value_given(annotations_off, options, words):
    with pytest.raises(UsageError, match=words):
        search(**options)


@pytest.mark.parametrize(
    ("layer", "unit", "words"),
    [
        ("conv3", 0, "unknown layer 'conv3'; did you mean"),
        ("conv2", 6, r"unit must be in \[0, 6\), the channels of layer 'conv2'; got 6"),
        ("conv2", (8, 0, 0), r"unit \(8, 0, 0\) is not in layer 'conv2' of shape \[8, 8, 6\]"),
        ("conv2", (1, 2), "is not in layer"),
    ],
)
def test_layers_and_units_that_do_not_exist_are_refused(layer, unit, words):
    with pytest.raises(UsageError, match=words):
        search(None, apply_fn=small_network, params=small_params(), shape=(2, 8, 8, 3), layer=layer, unit=unit)
