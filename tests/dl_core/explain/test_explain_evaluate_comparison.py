"""The table of methods on a trained network: real methods beat those that never look at it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scene_network import scene_network

from dl_core.errors import UsageError
from dl_core.explain.evaluate.comparison import METRICS, OF_MASKS, compare_methods, comparison_rows, summarize
from dl_core.explain.evaluate.randomization import randomization_test
from dl_core.explain.gradients import gradient_x_input, saliency
from dl_core.explain.guided import guided_backprop

NUM_IMAGES = 16  # of the 64 scenes


def linear(weights, inputs):
    return inputs.reshape(len(inputs), -1) @ weights


@pytest.fixture(scope="module")
def table():
    network = scene_network()
    few = slice(NUM_IMAGES)
    return compare_methods(
        network.apply_fn, network.params, network.images[few], network.labels[few],
        {"gradient": saliency, "gradient × input": gradient_x_input},
        key=jax.random.key(0), masks=network.masks[few], patch_size=8, n_samples=20,
    )  # fmt: skip


def test_real_methods_beat_random_ones_on_faithfulness_and_on_place(table):
    """Margins of about half of what was measured on 64 scenes: deletion 0.20 against 0.65, pointing 0.94 to 1
    against 0.08, sensitivity-n 0.87 to 0.96 against 0.03."""
    means = {name: {metric: found.mean for metric, found in row.items()} for name, row in summarize(table).items()}
    area = table.area_share.mean()
    for name in ("gradient", "gradient × input"):
        real, random = means[name], means["random"]
        assert real["deletion"] < random["deletion"] - 0.2
        assert real["insertion"] > random["insertion"] + 0.1
        assert real["sensitivity-n"] > random["sensitivity-n"] + 0.4
        assert real["infidelity"] < random["infidelity"] - 0.3
        assert real["pointing game"] > random["pointing game"] + 0.4
        assert real["mass accuracy"] > 3 * area
        assert real["rank accuracy"] > 5 * area
        assert real["randomisation"] < 0.5 * random["randomisation"]
    noise = summarize(table)["random"]
    assert abs(noise["mass accuracy"].mean - area) < 4 * noise["mass accuracy"].standard_error + 0.01


def test_what_ignores_the_model_is_perfectly_stable_and_fails_the_randomisation(table):
    for name in ("random", "edges", "|x|"):
        np.testing.assert_allclose(table.scores[name]["randomisation"], 1, atol=1e-5)
    np.testing.assert_allclose(table.scores["random"]["max-sensitivity"], 0, atol=1e-6)


def test_guided_backpropagation_fails_the_sanity_check_that_gradient_x_input_passes():
    """With the last layer randomised, and with the last two; measured on 64 scenes: 0.85 and 0.81 against −0.09 and
    0.02. With all layers randomised both are unlike: 0.23 and 0.01."""
    network = scene_network()
    few = slice(NUM_IMAGES)
    given = network.apply_fn, network.params, network.images[few], network.labels[few]
    guided, product = (
        randomization_test(method, *given, key=jax.random.key(1)) for method in (guided_backprop, gradient_x_input)
    )
    assert guided.layers == ("fc", "conv3", "conv2", "conv1")
    stay, change = guided.similarity.signed.mean(axis=1), product.similarity.signed.mean(axis=1)
    assert (stay[:2] > 0.6).all()
    assert (abs(change) < 0.3).all()
    assert stay[3] < 0.5


def test_the_rows_hold_every_method_and_test_with_its_direction(table):
    rows = comparison_rows(table)
    assert [row[0] for row in rows] == [
        "method", "gradient", "gradient × input", "random", "edges", "|x|", "share of the area",
    ]  # fmt: skip
    assert {len(row) for row in rows} == {1 + len(METRICS)}
    assert rows[0][1] == "deletion ↓"
    assert rows[0][-1] == "rank accuracy ↑"
    found = summarize(table)["gradient"]["deletion"]
    scores = table.scores["gradient"]["deletion"].astype(np.float64)
    assert found.examples == NUM_IMAGES
    np.testing.assert_allclose(found[:2], [scores.mean(), scores.std(ddof=1) / NUM_IMAGES**0.5])
    assert rows[1][1] == f"{scores.mean():.3g} ± {found.standard_error:.2g}"
    assert rows[-1][1:8] == ("",) * 7
    assert all(rows[-1][8:])


def test_vectors_chosen_metrics_and_undefined_scores():
    weights, inputs = jnp.asarray(np.random.default_rng(0).normal(size=(6, 2)), jnp.float32), jnp.ones((3, 6))
    steps = []
    table = compare_methods(
        linear, weights, inputs, 1, {"product": gradient_x_input}, key=jax.random.key(0), n_samples=5,
        metrics=["completeness gap", "sensitivity-n", "infidelity"], progress=lambda *done: steps.append(done),
    )  # fmt: skip
    assert list(table.scores) == ["product", "random", "|x|"]
    np.testing.assert_allclose(table.scores["product"]["completeness gap"], 0, atol=1e-5)
    np.testing.assert_allclose(table.scores["product"]["infidelity"], 0, atol=1e-5)
    assert table.area_share is None
    assert steps == [(1, 3), (2, 3), (3, 3)]
    rows = comparison_rows(table)
    assert rows[0] == ("method", "completeness gap ↓", "sensitivity-n ↑", "infidelity ↓")
    assert rows[3][2] == "—"  # attributions that are all equal correlate with nothing


@pytest.mark.usefixtures("annotations_off")
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"methods": {}}, "at least one explanation, got none"),
        ({"methods": {"random": saliency}}, "rename .'random'."),
        ({"metrics": ["deletions"]}, "unknown metric 'deletions'; did you mean 'deletion'"),
        ({"metrics": [OF_MASKS[0]]}, "'pointing game' needs masks="),
        ({"masks": np.ones((3, 6), bool)}, r"masks need images .*got inputs \[3, 6\]"),
        ({"methods": {"map": lambda a, p, x, t: x[:, :2]}}, r"\[3, 6\], got \[3, 2\]"),
    ],
)
def test_nonsense_is_refused(options, words):
    given = {"methods": {"product": gradient_x_input}, "key": jax.random.key(0)} | options
    with pytest.raises(UsageError, match=words):
        compare_methods(linear, jnp.ones((6, 2)), jnp.ones((3, 6)), 1, **given)
