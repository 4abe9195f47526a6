"""Some classes, few labels: of any data set by name."""

import numpy as np
import pytest

from dl_core.data import load
from dl_core.data.subsets import few_of_each, limit_labels, select_classes
from dl_core.errors import UsageError


@pytest.fixture(scope="module")
def digits():
    return load("digits", seed=3)


def test_chosen_classes_are_relabelled_in_the_order_given_and_keep_their_splits(digits):
    part = load("digits", seed=3, classes=(7, 5, "2"))
    assert part.class_names == ("7", "5", "2")
    for name, split in part.splits.items():
        whole = digits.splits[name]
        rows = np.flatnonzero(np.isin(whole.labels, (7, 5, 2)))
        np.testing.assert_array_equal(split.images, whole.images[rows])
        np.testing.assert_array_equal(np.array([7, 5, 2])[split.labels], whole.labels[rows])
        assert split.labels.dtype == np.int32


def test_two_halves_of_the_classes_share_nothing_and_are_the_whole(digits):
    halves = [select_classes(digits, classes) for classes in (range(5), range(5, 10))]
    for name, split in digits.splits.items():
        assert sum(len(half.splits[name]) for half in halves) == len(split)


def test_labels_are_limited_in_training_only(digits):
    few = load("digits", seed=3, labels_per_class=10)
    np.testing.assert_array_equal(np.bincount(few.train.labels), np.full(10, 10))
    for name in ("validation", "test"):
        np.testing.assert_array_equal(few.splits[name].images, digits.splits[name].images)


def test_seeds_choose_other_labels_and_fewer_are_a_part_of_more(digits):
    rows = lambda number, seed: set(few_of_each(digits.train.labels, number, seed=seed))
    assert rows(5, 0) < rows(10, 0)
    assert rows(10, 0) != rows(10, 1)


def test_few_of_each_takes_all_of_a_rare_class():
    labels = np.array([0, 1, 0, 2, 0, 1], np.int32)
    assert np.bincount(labels[few_of_each(labels, 2)]).tolist() == [2, 2, 1]


def test_classes_come_before_labels_per_class_and_before_scenes_too():
    scenes = load(
        "scenes", classes=("circle", "square"), labels_per_class=4, num_train=64, num_validation=32, num_test=32
    )
    assert np.bincount(scenes.train.labels).tolist() == [4, 4]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": (0,)}, "at least two classes"),
        ({"classes": (1, 2, 1)}, "none of them twice"),
        ({"classes": (1, 10)}, "has classes 0 to 9, got 10"),
        ({"classes": ("1", "eight")}, "unknown class of data set 'digits' 'eight'"),
        ({"labels_per_class": 0}, "between 1 and"),
        ({"labels_per_class": 1000}, "between 1 and"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(UsageError, match=message):
        load("digits", **options)


def test_values_have_no_classes(digits):
    import dataclasses

    values = dataclasses.replace(
        digits,
        **{n: dataclasses.replace(s, labels=s.labels.astype(np.float32)) for n, s in digits.splits.items()},
    )
    for call in (lambda: select_classes(values, (0, 1)), lambda: limit_labels(values, 3)):
        with pytest.raises(UsageError, match="one class an image"):
            call()
