"""Does an explanation depend on the model, and hardly on noise: rank correlations, randomised layers, stability."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from explanation_contract import small_images, small_network, small_params
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import models
from dl_core.errors import UsageError
from dl_core.explain.evaluate.parameter_layers import choose_layers, leaves_by_path, parameter_layers
from dl_core.explain.evaluate.randomization import data_randomization_test, randomization_test, randomize
from dl_core.explain.evaluate.similarity import compare_attributions, spearman, structural_similarity
from dl_core.explain.evaluate.stability import stability
from dl_core.explain.gradients import gradient_x_input, saliency

axiom = settings(max_examples=40, deadline=None, derandomize=True, database=None)
# few distinct values, so that ties are common
maps = arrays(np.float32, (3, 2, 5), elements=st.sampled_from([-2.0, -1.0, 0.0, 0.5, 1.0, 3.0, 7.5]))


def key(seed=0):
    return jax.random.key(seed)


def ignores_the_model(apply_fn, params, inputs, target):
    return jnp.sin(7 * inputs)


def linear(weights, inputs):
    return inputs.reshape(len(inputs), -1) @ weights


# Similarity


@axiom
@given(maps, maps)
@pytest.mark.filterwarnings("ignore::scipy.stats.ConstantInputWarning")
def test_spearman_is_scipys_with_ties(first, second):
    expected = [scipy.stats.spearmanr(a.ravel(), b.ravel())[0] for a, b in zip(first, second, strict=True)]
    np.testing.assert_allclose(spearman(first, second), expected, atol=1e-5)  # float32; nan where constant


@axiom
@given(maps, maps, arrays(bool, (3, 2, 5)))
@pytest.mark.filterwarnings("ignore::scipy.stats.ConstantInputWarning")
def test_spearman_of_a_foreground_is_scipys_of_its_values(first, second, where):
    expected = [
        scipy.stats.spearmanr(a[keep], b[keep])[0] if keep.sum() > 1 else np.nan
        for a, b, keep in zip(first, second, where, strict=True)
    ]
    np.testing.assert_allclose(spearman(first, second, where=where), expected, atol=1e-5)


def test_spearman_of_many_values_keeps_its_digits():
    first, second = np.random.default_rng(0).normal(size=(2, 1, 50_000)).astype(np.float32)
    mixed = first + 0.3 * second
    np.testing.assert_allclose(spearman(first, mixed)[0], scipy.stats.spearmanr(first[0], mixed[0])[0], atol=1e-5)


def test_a_background_of_zeros_makes_unrelated_maps_alike_in_absolute_value_and_the_foreground_tells():
    """Why both are reported: an eighth of the pixels is noise, the rest is zero in both maps."""
    inside = jnp.zeros((20, 16, 16, 1)).at[:, 4:8, 4:12].set(1)
    first, second = (jax.random.normal(key(seed), inside.shape) * inside for seed in (1, 2))
    found = compare_attributions(first, second, inside > 0)
    assert found.absolute.mean() > 0.8
    # the mean of 20 correlations of 32 numbers each: a standard deviation of 0.04
    assert abs(found.absolute_foreground.mean()) < 0.15
    assert abs(found.signed_foreground.mean()) < 0.15


def test_structural_similarity_of_scaled_maps_is_one_and_of_noise_small():
    first, second = (jax.random.normal(key(seed), (2, 16, 16, 1)) for seed in (1, 2))
    np.testing.assert_allclose(structural_similarity(first, -3 * first), 1, atol=1e-5)
    assert (structural_similarity(first, second) < 0.3).all()
    np.testing.assert_allclose(structural_similarity(jnp.zeros_like(first), jnp.zeros_like(first)), 1, atol=1e-5)


# Layers


def test_layers_come_in_the_order_of_computation_whatever_their_names():
    shapes = {"zeta": (4, 5), "alpha": (5, 6), "beta": (6, 3), "unused": (2,)}
    params = {name: jnp.ones(shape) for name, shape in shapes.items()} | {"steps": jnp.arange(3)}

    def network(params, x):
        x = jnp.tanh(x @ params["zeta"])
        return jnp.tanh(x @ params["alpha"]) @ params["beta"] + params["steps"][None].astype(x.dtype)

    found = parameter_layers(network, params, jnp.ones((2, 4)))
    assert list(found.items()) == [(name, (name,)) for name in ("zeta", "alpha", "beta")]


def test_layers_of_a_flax_model_are_its_modules_without_the_statistics():
    network = models.create("resnet20_cifar", num_classes=4, dtype=jnp.bfloat16)
    images = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
    shapes = jax.eval_shape(lambda x: network.init(key(), x, train=False), images)
    variables = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    apply_fn = lambda variables, x: network.apply(variables, x, train=False)
    found = parameter_layers(apply_fn, variables, jnp.zeros(images.shape))
    every = [path for paths in found.values() for path in paths]
    assert sorted(every) == sorted(path for path in leaves_by_path(variables) if path.startswith("params/"))
    names = list(found)
    assert names[0] == "conv1"
    assert names[-1] == "fc"
    assert names.index("layer1_0/conv1") < names.index("layer1_0/conv2") < names.index("layer3_2/conv1")
    chosen = choose_layers(apply_fn, variables, jnp.zeros(images.shape), ["layer1_0", "batch_stats/bn1"])
    assert all(path.startswith("params/layer1_0/") for path in chosen["layer1_0"])
    assert set(chosen["batch_stats/bn1"]) == {"batch_stats/bn1/mean", "batch_stats/bn1/var"}


# Fresh values


def test_fresh_values_keep_the_distribution_and_leave_the_rest_alone():
    params = {"a": 3 + 2 * jax.random.normal(key(1), (50, 40)), "b": jnp.zeros(7), "c": jnp.ones(5, jnp.bfloat16)}
    drawn = randomize(params, {"a": ("a",), "b": ("b",)}, key=key())
    # 2000 normal numbers: the mean is known to 0.045, the standard deviation to 0.03
    np.testing.assert_allclose([drawn["a"].mean(), drawn["a"].std()], [3, 2], atol=0.2)
    assert abs(np.corrcoef(drawn["a"].ravel(), params["a"].ravel())[0, 1]) < 0.1
    np.testing.assert_array_equal(drawn["b"], 0)
    assert drawn["c"] is params["c"] or (drawn["c"] == params["c"]).all()
    shuffled = randomize(params, {"a": ("a",)}, key=key(), fresh="permute")
    np.testing.assert_array_equal(np.sort(shuffled["a"].ravel()), np.sort(params["a"].ravel()))
    assert (shuffled["a"] != params["a"]).mean() > 0.9
    alone = randomize(params, {"a": ("a",)}, key=key())
    np.testing.assert_array_equal(alone["a"], drawn["a"])  # no other choice of layers changes the values


def test_statistics_are_permuted_so_that_variances_stay_positive():
    variables = {"params": {"bn": {"scale": jnp.arange(1.0, 9)}}, "batch_stats": {"bn": {"var": jnp.arange(1.0, 9)}}}
    paths = ("params/bn/scale", "batch_stats/bn/var")
    found = randomize(variables, {"bn": paths}, key=key())
    np.testing.assert_array_equal(np.sort(found["batch_stats"]["bn"]["var"]), jnp.arange(1.0, 9))
    assert set(found["params"]["bn"]["scale"].tolist()) != set(range(1, 9))


# The randomisation tests


def randomise(*given, **options):
    return randomization_test(saliency, *given, key=key(), **options)


@pytest.fixture(scope="module")
def problem():
    return small_network, small_params(), small_images(8), jnp.arange(8) % 5


def test_an_explanation_that_ignores_the_model_stays_as_it_is(problem):
    found = randomization_test(ignores_the_model, *problem, key=key())
    assert found.layers == ("fc", "conv2", "conv1")
    for correlations in found.similarity:
        np.testing.assert_allclose(correlations, np.ones((3, 8)), atol=1e-5)


def test_of_a_linear_model_the_gradient_is_unlike_once_its_layer_is_fresh():
    """Signed: the gradient is the weights, and the fresh ones know nothing of the old."""
    weights = jax.random.normal(key(1), (300, 4))
    inputs = jnp.maximum(jax.random.normal(key(2), (6, 10, 10, 3)), 0)
    gradient = lambda *given: saliency(*given, absolute=False)
    found = randomization_test(gradient, linear, weights, inputs, 1, key=key())
    assert found.layers == ("array",)
    assert np.abs(found.similarity.signed).max() < 0.2  # of 300 numbers: a standard deviation of 0.06
    product = randomization_test(gradient_x_input, linear, weights, inputs, 1, key=key())
    # Half of the inputs are zero, and so is the product, for any weights.
    assert product.similarity.absolute.min() > 0.5 > np.abs(product.similarity.signed).max()
    assert product.similarity.absolute_foreground.mean() < product.similarity.absolute.mean() - 0.2


def test_cascades_keep_what_is_randomised_and_independent_steps_do_not(problem):
    network, params, images, target = problem
    runs = {order: randomization_test(saliency, *problem, key=key(), order=order)
            for order in ("top_down", "bottom_up", "independent")}  # fmt: skip
    down, up, alone = runs.values()
    assert down.layers == alone.layers == up.layers[::-1]
    np.testing.assert_allclose(down.similarity.signed[0], alone.similarity.signed[0], atol=1e-5)  # fc fresh
    np.testing.assert_allclose(up.similarity.signed[0], alone.similarity.signed[2], atol=1e-5)  # conv1 fresh
    np.testing.assert_allclose(up.similarity.signed[2], down.similarity.signed[2], atol=1e-5)  # all fresh
    layers = choose_layers(network, params, images, None)
    by_hand = {**params, "conv2": randomize(params, layers, key=key())["conv2"]}
    expected = data_randomization_test(saliency, network, params, by_hand, images, target)
    np.testing.assert_allclose(alone.similarity.signed[1], expected.signed, atol=1e-5)
    named = randomization_test(saliency, *problem, key=key(), layers=["conv2"])
    assert named.layers == ("conv2",)
    np.testing.assert_allclose(named.similarity.signed[0], expected.signed, atol=1e-5)


def test_the_host_and_the_compiled_loop_agree_and_params_are_left_alone(problem):
    before = jax.tree.map(np.array, problem[1])
    steps = []
    host = randomization_test(saliency, *problem, key=key(), loop="host", progress=lambda *done: steps.append(done))
    compiled = jax.jit(lambda p, x: randomization_test(saliency, small_network, p, x, problem[3], key=key()).similarity)
    for first, second in zip(host.similarity, compiled(*problem[1:3]), strict=True):
        np.testing.assert_allclose(first, second, atol=1e-4)  # ranks of float32 gradients of another order
    assert steps == [(1, 3), (2, 3), (3, 3)]
    jax.tree.map(np.testing.assert_array_equal, problem[1], before)


# Stability


def test_of_a_linear_model_the_gradient_does_not_move_and_the_product_moves_with_the_input():
    weights = jax.random.normal(key(1), (12, 2))
    inputs = jax.random.uniform(key(2), (5, 12), minval=0.5)
    steady = stability(saliency, linear, weights, inputs, 1, key=key())
    np.testing.assert_array_equal(steady, jnp.zeros((2, 5)))
    square = jnp.ones((12, 1))
    moving = stability(gradient_x_input, linear, square, inputs, 0, key=key(), perturb_radius=0.1)
    np.testing.assert_allclose(moving.lipschitz, 1, rtol=1e-4)  # attributions are the inputs themselves
    most = 0.1 * 12**0.5 / np.linalg.norm(inputs, axis=1)
    assert (moving.sensitivity_max <= most).all()
    assert (moving.sensitivity_max > 0.4 * most).all()  # the largest of ten uniform vectors: about 0.58 and more
    twice = stability(gradient_x_input, linear, square, inputs, 0, key=key(), perturb=lambda key, x: 2 * x)
    np.testing.assert_allclose(twice.sensitivity_max, 1, rtol=1e-5)


def test_an_explanation_of_zeros_and_one_perturbation_of_nothing():
    nothing = stability(lambda a, p, x, t: 0 * x, linear, jnp.ones((4, 2)), jnp.ones((2, 4)), 0, key=key())
    np.testing.assert_array_equal(nothing, jnp.zeros((2, 2)))
    same = stability(gradient_x_input, linear, jnp.ones((4, 2)), jnp.ones((2, 4)), 0, key=key(), perturb=lambda k, x: x)
    np.testing.assert_array_equal(same, jnp.zeros((2, 2)))


def test_stability_is_the_same_compiled_and_over_targets_and_stacked_weights():
    inputs = jax.random.uniform(key(2), (3, 6), minval=0.5)
    score = lambda w, t: jnp.stack(stability(gradient_x_input, linear, w, inputs, t, key=key(), n_perturb_samples=3))
    weights, target = jax.random.normal(key(1), (6, 2)), jnp.array([0, 1, 1])
    mapped = jax.jit(jax.vmap(score))(jnp.stack([-weights, weights]), jnp.stack([1 - target, target]))
    # differences of float32 products, divided by steps of 0.02: errors grow by 50
    np.testing.assert_allclose(mapped[1], score(weights, target), rtol=1e-3, atol=1e-4)


@pytest.mark.usefixtures("annotations_off")
@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda given: randomise(*given, layers=["conv3"]), "unknown layer 'conv3'; did you mean 'conv"),
        (lambda given: randomise(*given, layers=[]), "at least one"),
        (lambda given: randomise(*given, order="down"), "did you mean 'top_down'"),
        (lambda given: randomise(*given, fresh="zero"), "unknown fresh 'zero'"),
        (lambda given: randomise(*given, foreground=given[2][..., :1] > 0), r"shape of the inputs"),
        (lambda given: randomization_test(lambda a, p, x, t: x[..., :1], *given, key=key()), r"got \[8, 8, 8, 1\]"),
        (lambda given: randomization_test(lambda a, p, x, t: "map", *given, key=key()), "got str"),
        (lambda given: randomise(lambda p, x: x.mean((1, 2)), *given[1:3], 0), "nothing to randomise"),
        (lambda given: data_randomization_test(saliency, *given[:2], {"fc": 1}, *given[2:]), "same model"),
        (lambda given: stability(saliency, *given, key=key(), n_perturb_samples=0), "at least 1, got 0"),
        (lambda given: stability(saliency, *given, key=key(), perturb_radius=0.0), "positive, got 0"),
        (lambda given: stability(saliency, *given, key=key(), perturb=lambda k, x: x[:2]), r"got \[2, 8, 8, 3\]"),
        (lambda given: spearman(jnp.ones((2, 3)), jnp.ones((2, 4))), r"\[2, 3\], \[2, 4\]"),
        (lambda given: structural_similarity(given[2], given[2]), "at least 11 pixels"),
    ],
)  # fmt: skip
def test_nonsense_is_refused(problem, call, words):
    with pytest.raises(UsageError, match=words):
        call(problem)


def test_layers_that_overlap_are_refused(problem):
    network, params, images, _ = problem
    nested = {"block": params}
    apply_fn = lambda p, x: network(p["block"], x)
    with pytest.raises(UsageError, match="do not overlap"):
        choose_layers(apply_fn, nested, images, ["block", "block/fc"])
