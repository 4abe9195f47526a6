"""Prepared tensorflow-datasets: found by name, read without TensorFlow, equal to what its own reader gives."""

import io
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from dl_core.data import UnreadableImage, list_datasets, load
from dl_core.data.tfds import prepared
from dl_core.errors import UsageError

NAMES = ["ash", "birch", "cedar"]


class Writer(tfds.dataset_builders.AdhocBuilder, skip_registration=True):
    """Writes given examples without TensorFlow."""

    def _split_generators(self, dl_manager):
        return {key: self._generate_examples_iterator(value) for key, value in self._split_datasets.items()}


def png(image):
    buffer = io.BytesIO()
    Image.fromarray(image.squeeze()).save(buffer, "PNG")
    return buffer.getvalue()


def write(data_dir, name, splits, *, shape=(4, 5, 3), features=None, version="1.0.0"):
    default = {"image": tfds.features.Image(shape=shape), "label": tfds.features.ClassLabel(names=NAMES)}
    builder = Writer(
        name=name,
        version=version,
        data_dir=data_dir,
        file_format="array_record",
        disable_shuffling=True,
        features=tfds.features.FeaturesDict(features or default),
        split_datasets={key: list(enumerate(records)) for key, records in splits.items()},
    )
    builder.download_and_prepare()


def records(n, seed=0, shape=(4, 5, 3), **more):
    images = np.random.default_rng(seed).integers(0, 256, (n, *shape), np.uint8)
    return [{"image": png(image), "label": i % 3, **more} for i, image in enumerate(images)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    write(folder, "trees", {"train": records(40, 1), "test": records(9, 2)})
    return folder


@pytest.mark.parametrize("in_memory", [True, False])
def test_pixels_and_labels_are_those_of_tensorflow_datasets(folder, in_memory):
    dataset = load("trees", data_dir=folder, in_memory=in_memory)
    assert dataset.class_names == tuple(NAMES)
    assert [len(part) for part in dataset.splits.values()] == [33, 7, 9]
    official = tfds.data_source("trees", data_dir=folder, split="test", download=False)
    images, labels = dataset.test.arrays()
    np.testing.assert_array_equal(images, [record["image"] for record in official])
    np.testing.assert_array_equal(labels, [record["label"] for record in official])
    assert dataset.train.in_memory == in_memory


def test_a_lazy_split_can_be_sent_to_another_process(folder):
    part = load("trees", data_dir=folder, in_memory=False).train
    part.images[0]
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(part)).arrays()[0], part.arrays()[0])


def test_tensorflow_is_never_imported(folder):
    program = (
        "import sys; from dl_core.data import load, stream; "
        f"d = load('trees', data_dir={str(folder)!r}, in_memory=False); "
        "print(sum(len(b['label']) for b in stream(d.train, 8, seed=0, num_steps=3)), 'tensorflow' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=120)
    assert done.stdout.split() == ["24", "False"], done.stderr


def test_prepared_sets_are_listed_by_name_configuration_and_newest_version(folder, tmp_path):
    assert list_datasets(folder) == ["digits", "eyes", "scenes", "trees"]
    for name in ("one/9.0.0", "one/10.0.0", "two/big/1.0.0", "two/small/1.0.0", "unfinished/1.0.0.incompleteX"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "features.json").touch()
    found = {name: path.relative_to(tmp_path).as_posix() for name, path in prepared(tmp_path).items()}
    assert found == {"one": "one/10.0.0", "two/big": "two/big/1.0.0", "two/small": "two/small/1.0.0"}
    with pytest.raises(UsageError, match="name one: two/big, two/small"):
        load("two", data_dir=tmp_path)


def test_the_folder_can_come_from_the_environment(folder, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(folder))
    assert len(load("trees").test) == 9


def test_a_misspelt_name_is_compared_with_what_is_prepared(folder):
    with pytest.raises(UsageError, match="unknown data set 'tres'; did you mean 'trees'"):
        load("tres", data_dir=folder)


def test_another_label_can_be_chosen(tmp_path):
    features = {
        "image": tfds.features.Image(shape=(4, 5, 3)),
        "label": tfds.features.ClassLabel(names=NAMES),
        "season": tfds.features.ClassLabel(names=["summer", "winter"]),
        "id": tfds.features.Text(),
    }
    examples = [{**record, "season": i % 2, "id": str(i)} for i, record in enumerate(records(40))]
    write(tmp_path, "seasons", {"train": examples}, features=features)
    assert load("seasons", data_dir=tmp_path).class_names == tuple(NAMES)
    assert load("seasons", data_dir=tmp_path, label="season").class_names == ("summer", "winter")
    with pytest.raises(UsageError, match="unknown label of seasons 'saeson'; did you mean 'season'"):
        load("seasons", data_dir=tmp_path, label="saeson")


def test_images_of_any_size_need_a_common_one(tmp_path):
    examples = [record for i in range(20) for record in records(3, i, shape=(4 + i % 2, 6, 3))]
    write(tmp_path, "mixed", {"train": examples}, shape=(None, None, 3))
    with pytest.raises(UsageError, match="give image_size"):
        load("mixed", data_dir=tmp_path)
    assert load("mixed", data_dir=tmp_path, image_size=5).image_shape == (5, 5, 3)


def test_a_split_without_labels_is_no_test_split(tmp_path):
    unlabelled = [{**record, "label": -1} for record in records(9)]
    write(tmp_path, "contest", {"train": records(40), "test": unlabelled})
    dataset = load("contest", data_dir=tmp_path)
    assert sum(map(len, dataset.splits.values())) == 40


def test_a_damaged_record_is_named(tmp_path):
    examples = records(40)
    examples[7]["image"] = examples[7]["image"][:60]
    write(tmp_path, "torn", {"train": examples})
    dataset = load("torn", data_dir=tmp_path)
    assert [name for name, _ in dataset.unreadable] == ["torn/train[7]"]
    assert sum(map(len, dataset.splits.values())) == 39
    with pytest.raises(UnreadableImage, match=r"torn/train\[7\]"):
        load("torn", data_dir=tmp_path, on_error="raise")


def test_what_is_no_image_classification_set_is_refused(tmp_path):
    write(tmp_path, "texts", {"train": [{"label": 0}]}, features={"label": tfds.features.ClassLabel(names=NAMES)})
    with pytest.raises(UsageError, match="texts is no image classification set"):
        load("texts", data_dir=tmp_path)


def test_a_set_without_random_access_is_to_be_prepared_again(folder, tmp_path):
    stored = prepared(folder)["trees"]
    copy = tmp_path / "trees" / "1.0.0"
    copy.mkdir(parents=True)
    for file in stored.glob("*.json"):
        (copy / file.name).write_text(file.read_text().replace("array_record", "tfrecord"))
    for file in stored.glob("*.txt"):
        (copy / file.name).write_text(file.read_text())
    with pytest.raises(UsageError, match=r"stored as tfrecord.*--file_format=array_record"):
        load("trees", data_dir=tmp_path)
