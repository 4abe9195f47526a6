"""Figures of embeddings: every point is drawn once, doubtful ones are hollow, and the trustworthiness is said."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from dl_core.plots.embedding import embedding

POINTS = np.random.default_rng(0).normal(size=(30, 2)).astype(np.float32)
LABELS = np.arange(30) % 3


def drawn(figure, hollow):
    lines = [line for line in figure.axes[0].lines if (line.get_markerfacecolor() == "none") == hollow]
    return np.concatenate([np.stack(line.get_data(), axis=1) for line in lines])


def test_every_point_is_drawn_once_and_doubtful_ones_hollow():
    kept = np.where(np.arange(30) < 10, 0.1, 0.7)
    figure = embedding(POINTS, LABELS, trustworthiness=0.98, neighbours_kept=kept)
    order = lambda rows: rows[np.lexsort(rows.T)]
    np.testing.assert_array_equal(order(drawn(figure, hollow=True)), order(POINTS[:10]))
    np.testing.assert_array_equal(order(drawn(figure, hollow=False)), order(POINTS[10:]))


def test_the_caption_says_how_far_it_can_be_believed():
    figure = embedding(
        POINTS, LABELS, trustworthiness=0.9841, neighbours_kept=np.full(30, 0.5), chance_of_neighbours_kept=0.01,
        name="t-SNE",
    )  # fmt: skip
    expected = "t-SNE: trustworthiness 0.984\n50% of nearest neighbours kept (by chance 1.0%)"
    assert figure.axes[0].get_title(loc="left") == expected
    assert embedding(POINTS, trustworthiness=1.0).axes[0].get_title(loc="left") == "trustworthiness 1.000"


def test_classes_are_told_apart_by_name_and_never_by_colour_alone():
    labels = np.arange(30) % 15
    figure = embedding(POINTS, labels, trustworthiness=0.9, class_names=[f"class {k}" for k in range(15)])
    texts = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert texts == [f"class {k}" for k in range(15)]
    pairs = {(line.get_color(), line.get_marker()) for line in figure.axes[0].lines}
    assert len(pairs) == 15
    assert embedding(POINTS, trustworthiness=0.9).axes[0].get_legend() is None


@pytest.mark.parametrize("n", [0, 1])
def test_odd_numbers_of_points_are_drawn(n):
    kept = np.zeros(n)
    assert isinstance(embedding(POINTS[:n], LABELS[:n], trustworthiness=1.0, neighbours_kept=kept), Figure)
