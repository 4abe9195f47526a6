"""Figures of rankings and confusions: bands and intervals where they were given, and shares that say what was right."""

import jax
import numpy as np
import pytest
from matplotlib.text import Text

from dl_core import plots
from dl_core.errors import UsageError
from dl_core.metrics.curve_intervals import precision_recall_band, roc_band

CURVE = np.array([0, 0.2, 1.0]), np.array([0, 1.0, 1.0])
GRID = np.linspace(0, 1, 5)
BAND = GRID, GRID * 0.5, GRID**0.5
DRAWINGS = [plots.roc_curves, plots.precision_recall_curves]


def texts(figure):
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def bands_of(figure):
    return figure.axes[0].collections


@pytest.mark.parametrize("draw", DRAWINGS)
def test_a_band_is_drawn_where_it_was_given_and_an_interval_written(draw):
    ends = np.array([0.7, np.nan]), np.array([0.9, np.nan])
    figure = draw([CURVE] * 2, ["cat", "dog"], np.array([0.8, 0.85]), bands=[BAND, None], intervals=ends)
    (band,) = bands_of(figure)
    corners = band.get_paths()[0].get_extents()
    np.testing.assert_allclose([corners.ymin, corners.ymax], [0, 1])
    assert band.get_hatch()
    words = texts(figure)
    assert "cat  0.800 (0.700 – 0.900)" in words
    assert "dog  0.8500" in words


@pytest.mark.parametrize("draw", DRAWINGS)
def test_bands_are_drawn_for_the_named_classes_with_hatches_of_their_own(draw):
    areas = np.linspace(0.5, 0.9, 6)
    figure = draw([CURVE] * 6, [f"class {k}" for k in range(6)], areas, bands=[BAND] * 6)
    assert len({band.get_hatch() for band in bands_of(figure)}) == 3 == len(bands_of(figure))


def test_the_bands_of_the_metrics_are_drawn_as_they_come():
    labels, scores = np.arange(30) % 2, np.arange(30, dtype=np.float32) % 7
    for draw, band in zip(DRAWINGS, (roc_band, precision_recall_band), strict=True):
        found = band(labels, scores, key=jax.random.key(0), n_resamples=20)
        figure = draw([CURVE], ["seven"], np.array([0.8]), bands=[found])
        (drawn,) = bands_of(figure)
        assert drawn.get_paths()[0].get_extents().ymin == pytest.approx(float(found.low.min()))


@pytest.mark.parametrize("draw", DRAWINGS)
@pytest.mark.parametrize(
    "options",
    [
        {"class_names": ["a", "b"]},
        {"areas": np.ones(2)},
        {"bands": [BAND] * 2},
        {"intervals": (np.ones(1), np.ones(2))},
    ],
)
def test_lists_of_unlike_lengths_are_refused(draw, options, annotations_off):
    given = {"curves": [CURVE], "class_names": ["a"], "areas": np.ones(1)} | options
    with pytest.raises(UsageError, match="one entry for each class, got"):
        draw(**given)


def test_up_to_ten_classes_each_count_has_its_share_of_the_row():
    words = texts(plots.confusion_matrix(np.array([[299, 1], [25, 75]]), ["cat", "dog"]))
    assert {"299", "100 %", "1", "<1 %", "25", "25 %", "75", "75 %"} <= set(words)


@pytest.mark.parametrize("n", [11, 20, 21, 100])
def test_beyond_that_each_row_has_the_share_that_is_right(n):
    matrix = np.ones((n, n), int) + np.diag(np.full(n, n))
    matrix[1] = 0
    figure = plots.confusion_matrix(matrix, [f"class {k}" for k in range(n)])
    words = texts(figure)
    assert f"{100 * (n + 1) / (2 * n):.0f} %" in words
    assert "—" in words  # of the class without examples
    assert (str(n + 1) in words) == (n <= 20)


@pytest.mark.parametrize(("shape", "names"), [((2, 3), "ab"), ((2, 2), "abc"), ((0, 0), "")])
def test_what_is_no_confusion_matrix_is_refused(shape, names, annotations_off):
    with pytest.raises(UsageError, match="with a name for each, got"):
        plots.confusion_matrix(np.zeros(shape, int), list(names))
