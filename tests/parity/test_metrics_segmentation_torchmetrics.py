"""IoU, Dice and panoptic quality against torchmetrics, where both mean the same."""

import numpy as np
import pytest

from dl_core.metrics.panoptic import panoptic_quality
from dl_core.metrics.segmentation import dice, iou

torch = pytest.importorskip("torch")
from torchvision_on_cpu import import_zoo  # noqa: E402

import_zoo()  # torchmetrics imports torchvision where it is installed
pytest.importorskip("torchmetrics")
from torchmetrics.functional.detection import panoptic_quality as their_panoptic_quality  # noqa: E402
from torchmetrics.functional.segmentation import dice_score, mean_iou  # noqa: E402

RTOL = 2e-6  # ratios of whole numbers in float32, and means of a few
CLASSES = 6


def maps(seed):
    """Class 5 never occurs, class 4 in the first image only."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, (5, 16, 18))
    predictions = np.where(rng.random(labels.shape) < 0.4, rng.integers(0, 4, labels.shape), labels)
    labels[0, :3] = 4
    return labels, predictions


@pytest.mark.parametrize("seed", range(3))
def test_iou(seed):
    labels, predictions = maps(seed)
    tensors = torch.tensor(predictions), torch.tensor(labels)
    per_image = mean_iou(*tensors, num_classes=CLASSES, input_format="index").numpy()
    mean = iou(labels, predictions, num_classes=CLASSES, aggregate="images")
    np.testing.assert_allclose(mean, per_image.mean(), rtol=RTOL)
    per_class = mean_iou(*tensors, num_classes=CLASSES, input_format="index", per_class=True).numpy()
    for image, expected in enumerate(per_class):  # -1 stands for a class that is absent
        scores = iou(labels[[image]], predictions[[image]], num_classes=CLASSES, average=None)
        np.testing.assert_allclose(np.nan_to_num(scores, nan=-1), expected, rtol=RTOL)


@pytest.mark.filterwarnings("ignore:dice_score metric currently defaults")
@pytest.mark.parametrize("average", ["macro", "micro", "weighted", None])
@pytest.mark.parametrize(("aggregate", "level"), [("dataset", "global"), ("images", "samplewise")])
def test_dice(average, aggregate, level):
    labels, predictions = maps(0)
    options = {"num_classes": CLASSES, "input_format": "index", "average": average, "aggregation_level": level}
    expected = dice_score(torch.tensor(predictions), torch.tensor(labels), **options).numpy()
    defined = ~np.isnan(expected)
    images = np.maximum(defined.sum(axis=0), 1)
    expected = np.where(defined.any(axis=0), np.where(defined, expected, 0).sum(axis=0) / images, np.nan)
    result = dice(labels, predictions, num_classes=CLASSES, average=average, aggregate=aggregate)
    np.testing.assert_allclose(result, expected, rtol=RTOL)


@pytest.mark.parametrize("seed", range(4))
def test_panoptic_quality(seed):
    """Classes 0 and 1 are things, 2 and 3 stuff, one segment an image each; void in the truth alone.

    Where the prediction has void, torchmetrics takes those pixels from the true segments' area, too; COCO does not.
    """
    rng = np.random.default_rng(seed)
    categories = np.array([[0, 0, 0, 1, 1, 2, 3]] * 4)
    blocks = rng.integers(-1, 7, (4, 4, 5))
    labels = blocks.repeat(5, axis=1).repeat(4, axis=2)
    predictions = np.roll(labels, 1, axis=1)
    guesses = rng.integers(0, 7, labels.shape)
    predictions = np.where((predictions < 0) | (rng.random(labels.shape) < 0.1), guesses, predictions)

    def their_form(ids):
        category = np.where(ids < 0, 9, np.take_along_axis(categories[:, None], np.maximum(ids, 0), axis=2))
        return torch.tensor(np.stack([category, np.where(category < 2, ids, 0)], axis=-1))  # 9: unknown, so void

    assert (labels < 0).any()
    options = {"return_per_class": True, "return_sq_and_rq": True}
    expected = their_panoptic_quality(their_form(predictions), their_form(labels), {0, 1}, {2, 3}, **options).numpy()
    quality = panoptic_quality(labels, categories, predictions, categories, num_classes=4)
    assert 0.2 < quality.mean().pq < 1
    np.testing.assert_allclose(np.stack(quality, axis=-1), expected, rtol=RTOL)
