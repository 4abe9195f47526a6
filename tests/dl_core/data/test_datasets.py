"""Data sets by name: the digits, the scenes, how what is missing is cut, folds, and names that do not exist."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from dl_core.data import Examples, Parts, list_datasets, load, register
from dl_core.data import datasets as registry
from dl_core.errors import UsageError


@pytest.fixture
def numbered(monkeypatch):
    """Registers a source with the given parts; image i holds the number i, so that every example can be told."""
    monkeypatch.setattr(registry, "_LOADERS", dict(registry._LOADERS))

    def make(**sizes):
        splits, first = {}, 0
        for name, n in sizes.items():
            ids = np.arange(first, first + n)
            images = np.stack([ids % 256, ids // 256], axis=-1).astype(np.uint8)[:, None, None, :]
            splits[name] = Examples(images, (ids % 4).astype(np.int32))
            first += n
        register("numbered", lambda argument, **_: Parts(tuple("abcd"), splits))

    return make


def ids(examples):
    return (examples.images[:, 0, 0, 0] + 256 * examples.images[:, 0, 0, 1].astype(int)).tolist()


def test_the_digits_are_those_of_scikit_learn():
    dataset = load("digits")
    assert dataset.class_names == tuple("0123456789")
    assert dataset.image_shape == (8, 8, 1)
    sizes = np.array([len(part) for part in dataset.splits.values()])
    np.testing.assert_allclose(sizes / 1797, [0.70, 0.15, 0.15], atol=1e-3)
    bundled = load_digits()
    expected = sorted(zip((bundled.images * 255 / 16).round().reshape(-1, 64).tolist(), bundled.target, strict=True))
    parts = [part.arrays() for part in dataset.splits.values()]
    found = [(x.ravel().tolist(), y) for images, labels in parts for x, y in zip(images, labels, strict=True)]
    assert sorted(found) == expected


def test_the_digits_can_be_enlarged():
    small, large = load("digits"), load("digits", image_size=32)
    assert large.image_shape == (32, 32, 1)
    np.testing.assert_array_equal(small.test.labels, large.test.labels)
    means = [part.images.mean(axis=(1, 2, 3)) for part in (small.test, large.test)]
    np.testing.assert_allclose(*means, atol=3)  # smooth enlargement keeps the brightness, but for the border


def test_the_scenes_are_drawn_and_no_split_depends_on_the_size_of_another():
    few = load("scenes", num_train=6, num_validation=4, num_test=5, image_size=24)
    more = load("scenes", num_train=9, num_validation=4, num_test=5, image_size=24)
    assert few.image_shape == (24, 24, 3)
    assert [len(part) for part in few.splits.values()] == [6, 4, 5]
    for key in few.splits:
        np.testing.assert_array_equal(more.splits[key].images[:4], few.splits[key].images[:4])
    images = np.concatenate([part.images for part in more.splits.values()])
    assert len({image.tobytes() for image in images}) == 18
    with pytest.raises(UsageError, match="scenes are square"):
        load("scenes", image_size=(24, 32))
    with pytest.raises(UsageError, match="unknown option of data set 'scenes' 'num_trian'; did you mean 'num_train'"):
        load("scenes", num_trian=6)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"train": 200}, (140, 30, 30)),
        ({"train": 170, "test": 40}, (140, 30, 40)),
        ({"train": 200, "validation": 24}, (170, 24, 30)),
        ({"train": 100, "validation": 24, "test": 16}, (100, 24, 16)),
    ],
)
def test_what_is_given_is_kept_and_what_is_missing_is_cut_from_training(numbered, given, expected):
    numbered(**given)
    dataset = load("numbered", seed=4)
    assert tuple(len(part) for part in dataset.splits.values()) == expected
    seen = [i for part in dataset.splits.values() for i in ids(part)]
    assert sorted(seen) == list(range(sum(given.values())))
    offset = 0
    for name, n in given.items():
        if name != "train":
            assert set(ids(dataset.splits[name])) == set(range(offset, offset + n))
        offset += n
    for part in dataset.splits.values():
        assert np.ptp(np.bincount(part.labels, minlength=4)) <= 2, "not stratified"


@pytest.mark.parametrize(
    "given", [{"train": 200}, {"train": 200, "test": 40}, {"train": 160, "validation": 40, "test": 16}]
)
def test_folds_share_out_everything_but_the_test_split(numbered, given):
    numbered(**given)
    whole = load("numbered", seed=2)
    folds = [load("numbered", seed=2, folds=5, fold=k) for k in range(5)]
    pool = set(ids(whole.train)) | set(ids(whole.validation))
    for dataset in folds:
        assert ids(dataset.test) == ids(whole.test)
        assert set(ids(dataset.train)) | set(ids(dataset.validation)) == pool
        assert not set(ids(dataset.train)) & set(ids(dataset.validation))
        assert np.ptp(np.bincount(dataset.validation.labels, minlength=4)) <= 1
    assert sorted(i for dataset in folds for i in ids(dataset.validation)) == sorted(pool)


def test_the_seed_decides_the_cut(numbered):
    numbered(train=100)
    first, again, other = (load("numbered", seed=seed) for seed in (1, 1, 2))
    assert ids(first.train) == ids(again.train)
    assert ids(first.test) != ids(other.test)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "digts"}, "unknown data set 'digts'; did you mean 'digits'"),
        ({"name": "fashon_mnist"}, "did you mean 'fashion_mnist'"),
        ({"name": "mnist"}, "not prepared in .*python -m train.prepare mnist"),
        ({"name": "oxford_flowers102"}, "not prepared in .*tfds build oxford_flowers102"),
        ({"name": "eurosat/rgb"}, "not prepared in .*tfds build eurosat/rgb"),
        ({"target": "kind"}, "'digits' takes no option 'target'"),
        ({"split": (0.7, 0.3)}, "three positive shares"),
        ({"split": (0.7, 0.2, 0.2)}, "add up to 1"),
        ({"folds": 5, "fold": 5}, r"fold must lie in \[0, folds\)"),
        ({"folds": 0}, "folds be at least 1"),
        ({"folds": 500}, "folds=500 but class"),
        ({"image_size": 0}, "image_size must be"),
        ({"image_size": (8, 8, 1)}, "image_size must be"),
        ({"channels": 2}, "channels must be one of"),
        ({"seed": -1}, "seed must lie in"),
    ],
)
def test_mistakes_are_explained(tmp_path, options, words):
    with pytest.raises(UsageError, match=words):
        load(**{"name": "digits", "data_dir": str(tmp_path), **options})


def test_a_registered_name_is_listed_and_cannot_be_taken_twice(numbered, tmp_path):
    numbered(train=40)
    assert list_datasets(tmp_path) == ["digits", "eyes", "numbered", "scenes"]
    with pytest.raises(UsageError, match="registered already"):
        register("digits", lambda argument, **_: None)
