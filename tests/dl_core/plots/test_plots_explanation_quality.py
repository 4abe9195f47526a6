"""Curves of deletion and of randomised layers: means with standard errors, areas beside names, random order in grey."""

import io

import matplotlib
import numpy as np
import pytest

from dl_core.errors import UsageError
from dl_core.plots.explanation_quality import perturbation_curves, randomization_curves
from dl_core.plots.style import GREY

FRACTIONS = np.array([0, 0.5, 1.0])
STEEP, FLAT = np.array([[1.0, 0.2, 0], [1, 0, 0]]), np.array([[1.0, 0.6, 0], [1, 0.4, 0]])


def rendered(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=50)
    buffer.seek(0)
    return matplotlib.image.imread(buffer)[..., :3]


def test_lines_are_means_with_bands_of_one_standard_error_and_areas_beside_the_names():
    figure = perturbation_curves(FRACTIONS, {"deletion": {"gradient": STEEP}}, random_order={"deletion": FLAT})
    (axes,) = figure.axes
    chance, gradient = axes.lines
    assert chance.get_color() == GREY != gradient.get_color()
    np.testing.assert_allclose(gradient.get_ydata(), [1, 0.1, 0])
    band = axes.collections[1].get_paths()[0].vertices
    at_half = band[np.isclose(band[:, 0], 0.5), 1]
    np.testing.assert_allclose([at_half.min(), at_half.max()], [0, 0.2], atol=1e-9)  # 0.1 ± 0.1
    words = {text.get_text() for text in axes.get_legend().get_texts()}
    assert words == {"gradient  0.300", "random order  0.500"}


def test_a_method_has_one_colour_in_all_panels():
    figure = perturbation_curves(FRACTIONS, {"deletion": {"a": STEEP, "b": FLAT}, "insertion": {"b": STEEP}})
    upper, lower = figure.axes
    assert lower.lines[0].get_color() == upper.lines[1].get_color() != upper.lines[0].get_color()
    assert lower.get_xlabel() == "share of the features exchanged"
    assert rendered(figure).min() < 0.5


def test_a_cascade_starts_at_one_with_nothing_randomised():
    values = np.array([[0.6, 0.4], [0.1, np.nan]])
    figure = randomization_curves(["fc", "conv1"], {"gradient": values})
    (axes,) = figure.axes
    line = next(line for line in axes.lines if len(line.get_xdata()) == 3)
    np.testing.assert_allclose(line.get_xydata(), [[0, 1], [1, 0.5], [2, 0.1]])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["none", "fc", "conv1"]
    assert {text.get_text() for text in axes.texts} == {"gradient"}
    assert rendered(figure).min() < 0.5


def test_layers_randomised_alone_are_points_that_are_not_joined():
    figure = randomization_curves(["fc", "conv1"], {"gradient": np.array([[0.6], [0.1]])}, cascading=False)
    (axes,) = figure.axes
    line = next(line for line in axes.lines if line.get_marker() == "o")
    np.testing.assert_allclose(line.get_xydata(), [[1, 0.6], [2, 0.1]])
    assert line.get_linestyle() == "None"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["fc", "conv1"]


def test_odd_inputs_are_drawn():
    many = {f"method {i}": np.full((1, 3), np.nan if i == 2 else i / 9) for i in range(9)}
    assert rendered(perturbation_curves(FRACTIONS, {"deletion": many})).min() < 0.5
    layers = [f"layer{i}/conv" for i in range(20)]
    assert rendered(randomization_curves(layers, {"a": np.full((20, 2), np.nan), "b": np.ones((20, 1))})).min() < 0.5


@pytest.mark.usefixtures("annotations_off")
@pytest.mark.parametrize(
    ("draw", "words"),
    [
        (lambda: perturbation_curves(FRACTIONS, {}), "at least one panel"),
        (lambda: perturbation_curves(FRACTIONS, {"deletion": {}}), "at least one method"),
        (lambda: perturbation_curves(FRACTIONS, {"deletion": {"a": STEEP[:, :2]}}), r"\[examples, 3\], got \[2, 2\]"),
        (lambda: perturbation_curves(FRACTIONS, {"d": {"a": STEEP}}, random_order={"e": STEEP}), "no panel for e"),
        (lambda: randomization_curves([], {"a": STEEP}), "one layer"),
        (lambda: randomization_curves(["fc"], {}), "at least one method"),
        (lambda: randomization_curves(["fc"], {"a": STEEP}), r"\[1, examples\], got \[2, 3\]"),
    ],
)
def test_what_cannot_be_drawn_is_refused(draw, words):
    with pytest.raises(UsageError, match=words):
        draw()
