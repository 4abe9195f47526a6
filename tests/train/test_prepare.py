"""Preparing from original files: checked by hash, without TensorFlow, and read back by their official name."""

import gzip
import hashlib
import io
import os
import pathlib
import subprocess
import sys
import tarfile
import urllib.error
import urllib.request

import numpy as np
import pytest
import tensorflow_datasets as tfds

from dl_core.data import load
from dl_core.data.tfds import PREPARABLE
from train import prepare
from train.prepare import OriginalFile, main, original_files

IDX = ("fashion_mnist", "kmnist", "mnist")
RANDOM = np.random.default_rng(0)
COUNTS = {"train": 30, "test": 20}
LABELS = {split: np.arange(n, dtype=np.uint8) % 10 for split, n in COUNTS.items()}


def idx(array):
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    return gzip.compress(header + array.tobytes())


def fake_idx(folder):
    images = {split: RANDOM.integers(0, 256, (n, 28, 28), np.uint8) for split, n in COUNTS.items()}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(idx(images[split]))
        (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(idx(LABELS[split]))
    return {split: array[..., None] for split, array in images.items()}, LABELS


def fake_cifar(folder, name):
    """The binary version as its web page describes it: label byte(s), then 1024 bytes each of red, green and blue."""
    images = {split: RANDOM.integers(0, 256, (n, 32, 32, 3), np.uint8) for split, n in COUNTS.items()}
    coarse = name == "cifar100"
    rows = {}
    for split in COUNTS:
        planes = images[split].transpose(0, 3, 1, 2).reshape(COUNTS[split], -1)
        columns = [LABELS[split][:, None] // 2] * coarse + [LABELS[split][:, None], planes]
        rows[split] = np.concatenate(columns, axis=1)
    if coarse:
        contents = {"train.bin": rows["train"], "test.bin": rows["test"]}
        names = {"fine_label_names.txt": [f"fine{i}" for i in range(100)]}
        names["coarse_label_names.txt"] = [f"coarse{i}" for i in range(20)]
    else:
        contents = {f"data_batch_{i + 1}.bin": part for i, part in enumerate(np.split(rows["train"], 5))}
        contents["test_batch.bin"] = rows["test"]
        names = {"batches.meta.txt": [f"name{i}" for i in range(10)]}
    files = {key: array.tobytes() for key, array in contents.items()}
    files |= {key: ("\n".join(lines) + "\n\n").encode() for key, lines in names.items()}
    inner = "cifar-100-binary" if coarse else "cifar-10-batches-bin"
    with tarfile.open(folder / f"{'cifar-100' if coarse else 'cifar-10'}-binary.tar.gz", "w:gz") as tar:
        for key, content in files.items():
            member = tarfile.TarInfo(f"{inner}/{key}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return images, LABELS


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Writes small files in the original format under the official names, and registers their hashes instead."""

    def make(name):
        folder = tmp_path / "original"
        folder.mkdir()
        arrays = fake_idx(folder) if name in IDX else fake_cifar(folder, name)
        official = original_files(name)
        assert {file.name for file in official} == {path.name for path in folder.iterdir()}
        register(name, folder)
        return folder, *arrays

    def register(name, folder):
        official = original_files(name)
        read = lambda file: (folder / file.name).read_bytes()
        table = [
            file._replace(size=len(read(file)), sha256=hashlib.sha256(read(file)).hexdigest()) for file in official
        ]
        monkeypatch.setattr(prepare, "original_files", lambda _: table)

    return make


@pytest.mark.parametrize("name", PREPARABLE)
def test_every_format_comes_back_by_its_official_name(fake, tmp_path, name):
    folder, images, labels = fake(name)
    prepared = tmp_path / "prepared"
    assert main([name, f"--from={folder}", f"--data-dir={prepared}"]) == 0
    for split in COUNTS:
        records = list(tfds.data_source(name, data_dir=prepared, split=split, download=False))
        by_pixels = {record["image"].tobytes(): record for record in records}
        assert len(by_pixels) == COUNTS[split]
        for i, (image, label) in enumerate(zip(images[split], labels[split], strict=True)):
            record = by_pixels[image.tobytes()]
            assert record["label"] == label
            if "id" in record:
                assert record["id"] == f"{split}_{i:05d}".encode()
            if "coarse_label" in record:
                assert record["coarse_label"] == label // 2
    official = tfds.builder(name, data_dir=prepared)  # the official code, not the stored description
    assert official.is_prepared()
    dataset = load(name, data_dir=prepared)
    assert len(dataset.test) == COUNTS["test"]
    assert dataset.num_classes == official.info.features["label"].num_classes
    if name.startswith("cifar"):
        assert dataset.class_names[3] == ("fine3" if name == "cifar100" else "name3")


def test_a_set_that_is_prepared_is_left_alone(fake, tmp_path, capsys):
    folder, *_ = fake("mnist")
    arguments = ["mnist", f"--from={folder}", f"--data-dir={tmp_path / 'prepared'}"]
    assert main(arguments) == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "prepared").rglob("*")}
    capsys.readouterr()
    assert main(arguments) == 0
    assert "is prepared already" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "prepared").rglob("*")}


def test_a_changed_file_is_named_with_both_hashes(fake, tmp_path, capsys):
    folder, *_ = fake("kmnist")
    file = folder / "t10k-labels-idx1-ubyte.gz"
    expected = hashlib.sha256(file.read_bytes()).hexdigest()
    file.write_bytes(file.read_bytes() + b"\0")
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    assert main(["kmnist", f"--from={folder}", f"--data-dir={tmp_path / 'prepared'}"]) == 2
    message = capsys.readouterr().err
    assert all(part in message for part in (str(file), expected, found))
    assert not (tmp_path / "prepared").exists()


def test_missing_files_are_listed_with_their_addresses(tmp_path, capsys):
    (tmp_path / "train-labels-idx1-ubyte.gz").touch()
    assert main(["fashion_mnist", f"--from={tmp_path}", f"--data-dir={tmp_path / 'prepared'}"]) == 2
    message = capsys.readouterr().err
    missing = [file for file in original_files("fashion_mnist") if file.name != "train-labels-idx1-ubyte.gz"]
    assert len(missing) == 3
    assert all(file.name in message and file.url in message for file in missing)
    assert "train-labels" not in message


def test_without_a_connection_the_message_says_which_files_to_put_where(tmp_path, capsys, monkeypatch):
    def offline(url, timeout):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    assert main(["cifar10", f"--data-dir={tmp_path}"]) == 2
    message = capsys.readouterr().err
    assert all(words in message for words in ("no network", "cifar-10-binary.tar.gz", "https://", "--from=FOLDER"))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_files_are_downloaded_checked_and_then_prepared(fake, tmp_path, monkeypatch, capsys):
    folder, *_ = fake("mnist")
    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: (folder / url.rsplit("/", 1)[-1]).open("rb"))
    assert main(["mnist", f"--data-dir={tmp_path / 'prepared'}"]) == 0
    assert capsys.readouterr().out.count("downloading https://") == 4
    assert len(load("mnist", data_dir=tmp_path / "prepared").test) == COUNTS["test"]


def test_a_wrong_download_is_not_kept(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: io.BytesIO(b"<html>moved</html>"))
    assert main(["mnist", f"--data-dir={tmp_path}"]) == 2
    assert "is not the original t10k-images-idx3-ubyte.gz" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.gz"))


def test_an_unknown_name_is_compared_with_those_that_can_be_prepared(capsys):
    assert main(["fashionmnist"]) == 2
    assert "did you mean 'fashion_mnist'" in capsys.readouterr().err


def test_the_table_is_the_one_of_tensorflow_datasets():
    folder = pathlib.Path(tfds.__file__).parent / "url_checksums"
    for name in PREPARABLE:
        lines = [line.split("\t") for line in (folder / f"{name}.txt").read_text().splitlines()]
        expected = sorted(OriginalFile(file, url, int(size), sha256) for url, size, sha256, file in lines)
        assert original_files(name) == expected


def test_preparing_needs_no_tensorflow(data_dir, tmp_path):
    """In a process of its own, up to the hashes of the real files, one of which is missing."""
    for name in os.listdir(data_dir / "fashion_mnist"):
        if name.startswith("t10k") or name == "train-labels-idx1-ubyte.gz":
            (tmp_path / name).symlink_to(data_dir / "fashion_mnist" / name)
    program = (
        "import sys; from train.prepare import main; "
        f"status = main(['fashion_mnist', '--from={tmp_path}', '--data-dir={tmp_path}']); "
        "print(status, 'tensorflow' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=120)
    assert done.stdout.split() == ["2", "False"], done.stderr
    assert "train-images-idx3-ubyte.gz" in done.stderr


@pytest.mark.slow
def test_the_real_fashion_mnist_is_prepared_from_its_original_files(data_dir, tmp_path):
    program = (
        "import sys; from train.prepare import main; "
        f"status = main(['fashion_mnist', '--from={data_dir / 'fashion_mnist'}', '--data-dir={tmp_path}']); "
        "print(status, 'tensorflow' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=300)
    assert done.stdout.split()[-2:] == ["0", "False"], done.stderr
    dataset = load("fashion_mnist", data_dir=tmp_path)
    assert dataset.class_names[0] == "T-shirt/top"
    assert [len(part) for part in dataset.splits.values()] == [49412, 10588, 10000]
    np.testing.assert_array_equal(np.bincount(dataset.test.labels), 1000)
    raw = lambda kind: gzip.decompress((data_dir / "fashion_mnist" / f"t10k-{kind}-ubyte.gz").read_bytes())
    originals = np.frombuffer(raw("images-idx3"), np.uint8, offset=16).reshape(-1, 784)
    labels = np.frombuffer(raw("labels-idx1"), np.uint8, offset=8)
    found = sorted((image.tobytes(), int(label)) for image, label in zip(*dataset.test.arrays(), strict=True))
    assert found == sorted((image.tobytes(), int(label)) for image, label in zip(originals, labels, strict=True))
