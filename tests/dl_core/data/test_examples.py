"""Examples in memory and decoded on access give the same rows, damaged files included."""

import logging
import pickle

import numpy as np
import pytest
from PIL import Image

from dl_core.data.examples import Dataset, Examples, LazyImages, Paths, concatenate
from dl_core.data.images import UnreadableImage
from dl_core.errors import UsageError


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (12, 5, 6, 3), np.uint8)


@pytest.fixture
def lazy(tmp_path, pixels):
    paths = [str(tmp_path / f"{i}.png") for i in range(len(pixels))]
    for path, image in zip(paths, pixels, strict=True):
        Image.fromarray(image).save(path)
    images = LazyImages(Paths(tuple(paths)), np.arange(len(paths)), (5, 6, 3))
    return Examples(images, np.arange(12, dtype=np.int32))


def damage(lazy, *indices):
    for i in indices:
        with open(lazy.name(i), "wb") as file:
            file.write(b"\x89PNG\r\n\x1a\n nothing more")


def strict(lazy):
    images = lazy.images
    return Examples(LazyImages(images.files, images.rows, images.image_shape, on_error="raise"), lazy.labels)


def test_lazy_examples_are_the_files(lazy, pixels):
    assert not lazy.in_memory
    assert lazy.image_shape == (5, 6, 3)
    assert lazy.nbytes == pixels.nbytes
    np.testing.assert_array_equal(lazy.arrays()[0], pixels)
    np.testing.assert_array_equal(lazy.images[-1], pixels[-1])
    with pytest.raises(IndexError):
        lazy.images[12]


@pytest.mark.parametrize("order", [[3], [7, 0, 7, 11], []])
def test_taking_and_batching_agree_with_arrays(lazy, pixels, order):
    order = np.array(order, np.int64)
    for examples in (lazy, Examples(pixels, lazy.labels)):
        for images, labels in (examples.take(order).arrays(), examples.batch(order).values()):
            np.testing.assert_array_equal(images, pixels[order])
            np.testing.assert_array_equal(labels, order)
            assert labels.dtype == np.int32


def test_a_copy_in_another_process_reads_the_same(lazy, pixels):
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(lazy)).arrays()[0], pixels)


def test_joined_examples_are_the_first_then_the_second(lazy, pixels):
    first, second = lazy.take(np.array([4, 1])), lazy.take(np.array([9]))
    for joined in (concatenate(first, second), concatenate(Examples(*first.arrays()), Examples(*second.arrays()))):
        images, labels = joined.arrays()
        np.testing.assert_array_equal(images, pixels[[4, 1, 9]])
        np.testing.assert_array_equal(labels, [4, 1, 9])
    assert concatenate(first, second).name(2) == lazy.name(9)


def test_the_next_readable_example_stands_in_for_a_damaged_one(lazy, pixels, caplog):
    damage(lazy, 3, 4, 11)
    expected = [0, 1, 2, 5, 5, 5, 6, 7, 8, 9, 10, 0]
    with caplog.at_level(logging.WARNING, "dl_core.data"):
        for images, labels in (lazy.arrays(), lazy.batch(np.arange(12)).values()):
            np.testing.assert_array_equal(images, pixels[expected])
            np.testing.assert_array_equal(labels, expected)
    for i in (3, 4, 11):
        assert sum(lazy.name(i) in message.split(" (")[0] for message in caplog.messages) == 1, "named once"


def test_a_damaged_file_is_fatal_where_so_asked(lazy):
    damage(lazy, 3)
    for read in (lambda x: x.arrays(), lambda x: x.decoded(), lambda x: x.batch(np.array([1, 3]))):
        with pytest.raises(UnreadableImage, match=r"3\.png"):
            read(strict(lazy))


def test_decoding_all_leaves_damaged_files_out_and_names_them(lazy, pixels):
    damage(lazy, 0, 8)
    examples, unreadable = lazy.decoded()
    kept = np.delete(np.arange(12), [0, 8])
    np.testing.assert_array_equal(examples.images, pixels[kept])
    np.testing.assert_array_equal(examples.labels, kept)
    assert [name for name, _ in unreadable] == [lazy.name(0), lazy.name(8)]
    assert all(reason for _, reason in unreadable)


def test_when_nothing_can_be_read_there_is_no_stand_in(lazy):
    damage(lazy, *range(12))
    with pytest.raises(UnreadableImage):
        lazy.batch(np.array([0]))


def test_one_label_per_image():
    with pytest.raises(UsageError, match="3 images but 2 labels"):
        Examples(np.zeros((3, 2, 2, 1), np.uint8), np.zeros(2, np.int32))


def test_a_data_set_knows_its_sizes(pixels):
    part = Examples(pixels, np.zeros(12, np.int32))
    dataset = Dataset("toy", ("a", "b", "c"), part, part, part)
    assert (dataset.num_classes, dataset.image_shape, list(dataset.splits)) == (
        3,
        (5, 6, 3),
        ["train", "validation", "test"],
    )
