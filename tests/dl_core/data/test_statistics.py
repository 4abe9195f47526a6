"""Per-channel statistics, class balance and the text of both."""

import dataclasses

import numpy as np
import pytest

from dl_core.data import Dataset, Examples, channel_statistics, class_balance, describe


def random_examples(n=700, channels=3, seed=0, classes=4):
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (n, 6, 5, channels), np.uint8)
    return Examples(images, random.integers(0, classes, n).astype(np.int32))


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_statistics_are_those_of_all_pixels(channels):
    examples = random_examples(channels=channels)
    mean, std = channel_statistics(examples)
    pixels = examples.images.reshape(-1, channels) / 255
    np.testing.assert_allclose(mean, pixels.mean(axis=0), rtol=1e-13)  # float64 sums of 21,000 numbers
    np.testing.assert_allclose(std, pixels.std(axis=0), rtol=1e-13)


def test_statistics_do_not_depend_on_the_order():
    examples = random_examples()
    shuffled = examples.take(np.random.default_rng(1).permutation(len(examples)))
    np.testing.assert_array_equal(channel_statistics(examples), channel_statistics(shuffled))


def test_a_constant_channel_can_be_divided_by():
    images = np.zeros((3, 2, 2, 2), np.uint8)
    images[..., 1] = 255
    mean, std = channel_statistics(Examples(images, np.zeros(3, np.int32)))
    np.testing.assert_array_equal(mean, [0, 1])
    np.testing.assert_array_equal(std, [1, 1])


def test_class_balance_counts_absent_classes_too():
    assert class_balance(np.array([0, 2, 2, 0, 2]), ("a", "b", "c")) == {"a": 2, "b": 0, "c": 3}


@pytest.fixture
def dataset():
    part = lambda labels: Examples(np.zeros((len(labels), 4, 4, 1), np.uint8), np.array(labels, np.int32))
    return Dataset(
        "toy", ("ant", "bee"), part([0] * 6 + [1] * 2), part([0, 1, 1]), part([0]), (("x.png", "truncated"),)
    )


def test_the_description_tells_counts_ratio_and_damage(dataset):
    text = describe(dataset)
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines()}
    assert rows["ant"] == ["6", "1", "1"]
    assert rows["bee"] == ["2", "2", "0"]
    assert rows["all"] == ["8", "3", "1"]
    assert "smallest class in training: 3.00" in text
    assert "x.png: truncated" in text


def test_the_description_warns_of_a_class_that_cannot_be_learnt(dataset):
    lacking = dataclasses.replace(dataset, train=dataset.train.take(np.arange(6)))
    assert "WITHOUT any training example: bee" in describe(lacking)


def test_many_classes_are_cut_to_the_extremes():
    labels = np.repeat(np.arange(100), np.arange(1, 101)).astype(np.int32)
    part = Examples(np.zeros((len(labels), 1, 1, 1), np.uint8), labels)
    text = describe(Dataset("long", tuple(f"class{i:02d}" for i in range(100)), part, part, part))
    assert "class99" in text
    assert "class00" in text
    assert "class50" not in text
