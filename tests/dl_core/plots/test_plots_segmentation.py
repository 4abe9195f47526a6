"""Class maps over images and bars of scores: what is drawn is what was given."""

import io

import matplotlib
import numpy as np
import pytest

from dl_core.errors import UsageError
from dl_core.plots.segmentation import class_colours, class_scores, segmentation_maps


def texts(figure):
    figure.draw_without_rendering()
    return [text.get_text() for text in figure.findobj(matplotlib.text.Text) if text.get_text()]


def example(n=2, channels=3):
    rng = np.random.default_rng(0)
    labels = np.zeros((n, 12, 16), np.int32)
    labels[:, 2:8, 3:9], labels[:, 9:] = 1, 255
    predictions = np.where(labels == 255, 2, np.roll(labels, 1, axis=1))
    predictions[predictions == 255] = 0
    return rng.random((n, 12, 16, channels)).astype(np.float32), labels, predictions


@pytest.mark.parametrize("channels", [1, 3])
def test_each_row_has_the_image_the_truth_and_the_prediction(channels):
    images, labels, predictions = example(channels=channels)
    names = ["background", "nucleus", "debris"]
    figure = segmentation_maps(images, labels, predictions, names, ignore_label=255, strength=1.0)
    panels = [axes.images[0].get_array() for axes in figure.axes]
    assert len(panels) == 6
    image, truth, guess = panels[:3]
    np.testing.assert_allclose(truth[labels[0] == 1], np.tile(class_colours(3)[1], (36, 1)))
    np.testing.assert_array_equal(truth[labels[0] == 0], image[labels[0] == 0])
    np.testing.assert_array_equal(guess[(predictions[0] == 0)], image[predictions[0] == 0])
    hatched = truth[labels[0] == 255]
    np.testing.assert_allclose(np.unique(hatched), [0.55, 0.85])
    assert {"image", "true", "predicted", "nucleus"} <= set(texts(figure))
    assert "debris" not in texts(figure)  # it is predicted only where nothing counts


def test_colours_are_told_apart():
    colours = class_colours(15)
    distance = np.abs(colours[:, None] - colours[None]).sum(axis=-1) + np.eye(15)
    assert distance.min() > 0.15  # a fifteenth colour next to the darker blue
    assert ((colours >= 0) & (colours <= 1)).all()


def test_bars_are_sorted_and_absent_classes_have_none():
    figure = class_scores(np.array([0.9, np.nan, 0.4]), ["sky", "boat", "tree"])
    axes = figure.axes[0]
    np.testing.assert_allclose([bar.get_width() for bar in axes.patches], [0, 0.4, 0.9])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["boat", "tree", "sky"]
    assert {"does not occur", "0.400", "0.900", "mean 0.650", "IoU"} <= set(texts(figure))


def test_odd_scores_are_drawn():
    for scores in (np.array([np.nan, np.nan]), np.array([0.0]), np.ones(40)):
        class_scores(scores, [str(k) for k in range(len(scores))]).savefig(io.BytesIO(), dpi=40)
    images, labels, predictions = example(n=1)
    segmentation_maps(images, labels * 0, predictions * 0, ["all"]).savefig(io.BytesIO(), dpi=40)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x, y, p: segmentation_maps(x, y, p, ["a", "b", "c"]), r"true classes must lie in \[0, 3\)"),
        (lambda x, y, p: segmentation_maps(x, p, p + 1, ["a", "b", "c"]), r"predicted classes must lie in \[0, 3\)"),
        (lambda x, y, p: segmentation_maps(x, p[:, 1:], p, ["a", "b", "c"]), "as the images"),
        (lambda x, y, p: class_scores(np.ones(3), ["a"]), "one name for each of the 3 classes, got 1"),
    ],
)
def test_what_does_not_fit_is_refused(call, words, annotations_off):
    with pytest.raises(UsageError, match=words):
        call(*example())
