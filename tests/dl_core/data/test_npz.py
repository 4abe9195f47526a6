"""An .npz of arrays: the layouts and value ranges that are read, and those that are refused with a way out."""

import numpy as np
import pytest

from dl_core.data import load
from dl_core.errors import UsageError

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 256, (60, 6, 5), np.uint8)
LABELS = np.arange(60) % 3


def save(tmp_path, **arrays):
    path = tmp_path / "data.npz"
    np.savez(path, **arrays)
    return str(path)


def everything(dataset):
    """All images by label and first row, so that order and split do not matter."""
    parts = [part.arrays() for part in dataset.splits.values()]
    return sorted((int(y), x.tobytes()) for images, labels in parts for x, y in zip(images, labels, strict=True))


EXPECTED = sorted((int(y), x.tobytes()) for x, y in zip(IMAGES, LABELS, strict=True))


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (IMAGES, LABELS),
        (IMAGES[..., None], LABELS[:, None]),
        (IMAGES.astype(np.int64), LABELS.astype(np.uint8)),
        (IMAGES / 255, LABELS),
        ((IMAGES - 0.4).clip(0) / 255, LABELS),  # to the nearest level
        ((IMAGES / 255).astype(np.float32), np.array(["a", "b", "c"])[LABELS]),
    ],
)
def test_every_way_to_write_the_same_images_reads_the_same(tmp_path, images, labels):
    path = save(tmp_path, images=images, labels=labels)
    dataset = load(path)
    assert dataset.image_shape == (6, 5, 1)
    assert dataset.num_classes == 3
    assert everything(dataset) == EXPECTED
    assert everything(load(f"npz:{path}", seed=9)) == EXPECTED


@pytest.mark.parametrize("names", [("train_{}", "val_{}", "test_{}"), ("train_{}", "validation_{}", "test_{}")])
def test_splits_that_are_given_are_kept(tmp_path, names):
    cuts = (slice(0, 30), slice(30, 45), slice(45, 60))
    arrays = {}
    for name, cut in zip(names, cuts, strict=True):
        arrays |= {name.format("images"): IMAGES[cut], name.format("labels"): LABELS[cut]}
    dataset = load(save(tmp_path, **arrays))
    for part, cut in zip(dataset.splits.values(), cuts, strict=True):
        np.testing.assert_array_equal(part.images[..., 0], IMAGES[cut])
        np.testing.assert_array_equal(part.labels, LABELS[cut])


def test_keras_spelling_is_known(tmp_path):
    dataset = load(save(tmp_path, x_train=IMAGES[:50], y_train=LABELS[:50], x_test=IMAGES[50:], y_test=LABELS[50:]))
    np.testing.assert_array_equal(dataset.test.images[..., 0], IMAGES[50:])


def test_class_names_are_taken_and_allow_gaps(tmp_path):
    dataset = load(save(tmp_path, images=IMAGES, labels=LABELS * 2, class_names=np.array(["a", "b", "c", "d", "e"])))
    assert dataset.class_names == ("a", "b", "c", "d", "e")


def test_images_are_resized_and_coloured_as_asked(tmp_path):
    dataset = load(save(tmp_path, images=IMAGES, labels=LABELS), image_size=12, channels=3)
    assert dataset.image_shape == (12, 12, 3)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"images": IMAGES}, "has no array 'labels'"),
        ({"pictures": IMAGES}, "no training images: give arrays images"),
        ({"images": IMAGES, "labels": LABELS[:-1]}, r"shape \(59,\) for 60 images"),
        ({"images": IMAGES / 100, "labels": LABELS}, r"floats must lie in \[0, 1\]: rescale"),
        ({"images": IMAGES / 255 - 0.5, "labels": LABELS}, r"values from -0\.5"),
        ({"images": np.full((60, 2, 2), np.nan), "labels": LABELS}, "nan"),
        ({"images": IMAGES.astype(int) * 3, "labels": LABELS}, r"integers must lie in 0 … 255"),
        ({"images": np.zeros((60, 3, 32, 32), np.uint8), "labels": LABELS}, "channels first"),
        ({"images": IMAGES[:, 0], "labels": LABELS}, r"expected \[n, h, w\]"),
        ({"images": IMAGES, "labels": LABELS + 1}, "number them from 0"),
        ({"images": IMAGES, "labels": LABELS * 2}, "without gaps"),
        ({"images": IMAGES, "labels": LABELS * 0}, "at least two"),
        ({"images": IMAGES, "labels": LABELS / 2}, "expected integers from 0, or strings"),
        ({"images": IMAGES, "labels": LABELS, "class_names": np.array(["a", "b"])}, "but there are 2 class_names"),
        ({"images": IMAGES, "labels": LABELS, "class_names": np.array(["a", "b", "a"])}, "two classes the same name"),
        ({"images": IMAGES, "labels": LABELS, "x_train": IMAGES, "y_train": LABELS}, "twice"),
        ({"images": np.array([object()]), "labels": LABELS}, "not objects"),
    ],
)
def test_mistakes_are_explained(tmp_path, arrays, words):
    with pytest.raises(UsageError, match=words):
        load(save(tmp_path, **arrays))


def test_a_damaged_or_missing_file_is_named(tmp_path):
    path = tmp_path / "data.npz"
    with pytest.raises(UsageError, match="does not exist"):
        load(f"npz:{path}")
    for content in (b"", b"no archive at all", b"PK\x03\x04 cut short"):
        path.write_bytes(content)
        with pytest.raises(UsageError, match=r"cannot read .*data\.npz"):
            load(str(path))
