"""Prepares a data set from its original files, without TensorFlow.

    python -m train.prepare fashion_mnist --from=DIR [--data-dir=DIR]
    python -m train.prepare cifar10                      downloads the file first

The names and sha256 of the original files are those that tensorflow-datasets registers, and the result is what its own
builder makes (name, version, features, keys), as array_record: `tfds.data_source(NAME, data_dir=…)` reads it, and so
does `dl_core.data.load(NAME, data_dir=…)`.
"""

import argparse
import gzip
import hashlib
import http.client
import io
import pathlib
import shutil
import sys
import tarfile
import tempfile
import urllib.request
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from dl_core.data.tfds import PREPARABLE, default_data_dir, prepared
from dl_core.errors import UsageError, unknown_name

_BUILDERS = {
    "cifar10": "Cifar10",
    "cifar100": "Cifar100",
    "fashion_mnist": "FashionMNIST",
    "kmnist": "KMNIST",
    "mnist": "MNIST",
}
_TIMEOUT = 30  # seconds without an answer before a download is given up


class OriginalFile(NamedTuple):
    """A file that a data set is made from, as registered in tensorflow-datasets."""

    name: str
    url: str
    size: int
    sha256: str


def original_files(name: str) -> list[OriginalFile]:
    """The original files of a data set, from the checksums that come with tensorflow-datasets.

    Args:
      name: one of cifar10, cifar100, fashion_mnist, kmnist, mnist.

    Returns:
      Every file, sorted by name.

    Raises:
      UsageError: another name.
    """
    return sorted(
        OriginalFile(info.filename or url.rsplit("/", 1)[-1], url, info.size, info.checksum)
        for url, info in _official_builder(name).url_infos.items()
    )


def check_files(folder: pathlib.Path, files: list[OriginalFile]) -> None:
    """Makes sure that a folder holds the original files, unchanged.

    Args:
      folder: where they should be.
      files: what `original_files` returned.

    Raises:
      UsageError: files that are missing, with where to get them; or a file whose sha256 is another one.
    """
    missing = [file for file in files if not (folder / file.name).is_file()]
    if missing:
        raise UsageError(
            f"missing in {folder}:\n{_listing(missing)}\nput {'it' if len(missing) == 1 else 'them'} there under the "
            "same name, as downloaded (not unpacked), and run again with --from naming that folder"
        )
    for file in files:
        _check_sha256(folder / file.name, file)


def _check_sha256(path: pathlib.Path, file: OriginalFile) -> None:
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != file.sha256:
        raise UsageError(
            f"{path} is not the original {file.name}: expected sha256 {file.sha256} ({file.size:,} bytes), "
            f"found {found} ({path.stat().st_size:,} bytes); get it again from {file.url}"
        )


def download(folder: pathlib.Path, files: list[OriginalFile]) -> None:
    """Fetches the original files that a folder lacks.

    Args:
      folder: where to put them; made if need be.
      files: what `original_files` returned.

    Raises:
      UsageError: no connection, with which files to put where by hand; or something else came than the original file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        target = folder / file.name
        if target.is_file():
            continue
        print(f"downloading {file.url} ({file.size / 1e6:,.1f} MB)", flush=True)
        partial = target.with_name(f"{target.name}.part")
        try:
            with urllib.request.urlopen(file.url, timeout=_TIMEOUT) as response, partial.open("wb") as out:
                shutil.copyfileobj(response, out)
            _check_sha256(partial, file)
        except (OSError, http.client.HTTPException) as error:  # no network, no such host, timed out, cut short
            partial.unlink(missing_ok=True)
            missing = [other for other in files if not (folder / other.name).is_file()]
            raise UsageError(
                f"cannot download {file.url}: {error}\nget these files some other way, put them in one folder and run "
                f"again with --from=FOLDER:\n{_listing(missing)}"
            ) from error
        partial.replace(target)


def prepare(name: str, source: pathlib.Path, data_dir: pathlib.Path) -> pathlib.Path:
    """Writes a data set in the format of tensorflow-datasets.

    Args:
      name: one of cifar10, cifar100, fashion_mnist, kmnist, mnist.
      source: the folder with the original files.
      data_dir: the folder of prepared data sets.

    Returns:
      The folder that was written.

    Raises:
      UsageError: an unknown name, or files that are missing or not the original ones.
    """
    official = _official_builder(name)
    check_files(source, original_files(name))
    read = _cifar_splits if name.startswith("cifar") else _idx_splits

    class Prepared(official, skip_registration=True):
        """The official builder, its files read with the standard library instead of TensorFlow."""

        def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
            return read(self, source)

    Prepared.name, Prepared.__module__ = name, official.__module__  # the stored description says whose format it is
    with tempfile.TemporaryDirectory() as scratch:  # the builder insists on a folder for downloads
        builder = Prepared(data_dir=data_dir, file_format="array_record")
        builder.download_and_prepare(download_dir=scratch)
    return pathlib.Path(builder.data_dir)


def main(argv: list[str] | None = None) -> int:
    """The command line.

    Args:
      argv: arguments after the program's name; those of the process by default.

    Returns:
      Exit status: 0, or 2 for a value that the user can mend.
    """
    parser = argparse.ArgumentParser(
        "python -m train.prepare", description="Prepare a data set from its original files."
    )
    parser.add_argument("name", help=", ".join(PREPARABLE))
    parser.add_argument(
        "--from", dest="source", metavar="DIR", help="folder with the original files (else: downloaded)"
    )
    parser.add_argument(
        "--data-dir", metavar="DIR", help="where to prepare it ($TFDS_DATA_DIR or ~/tensorflow_datasets)"
    )
    arguments = parser.parse_args(argv)
    data_dir = default_data_dir(arguments.data_dir)
    try:
        files = original_files(arguments.name)
        if folder := prepared(data_dir).get(arguments.name):
            print(f"{arguments.name} is prepared already: {folder} (remove the folder to prepare it anew)")
            return 0
        if arguments.source:
            source = pathlib.Path(arguments.source).expanduser()
        else:
            source = data_dir / "downloads" / arguments.name
            download(source, files)
        folder = prepare(arguments.name, source, data_dir)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"prepared {arguments.name} in {folder}")
    return 0


def _official_builder(name: str) -> Any:
    if name not in _BUILDERS:
        raise unknown_name("data set to prepare", name, _BUILDERS)
    import tensorflow_datasets as tfds

    return getattr(tfds.image_classification, _BUILDERS[name])


def _listing(files: list[OriginalFile]) -> str:
    return "\n".join(f"  {file.name}  ({file.size:,} bytes)  from {file.url}" for file in files)


def _png(image: UInt8[np.ndarray, "h w"] | UInt8[np.ndarray, "h w 3"]) -> bytes:
    """Encoded here, since an array would be sent through TensorFlow; lossless, so the pixels are the same."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def _idx(path: pathlib.Path) -> UInt8[np.ndarray, "..."]:
    """An idx file: two zero bytes, the type (8 = uint8), the rank, then the sizes as big-endian 32-bit numbers."""
    data = gzip.decompress(path.read_bytes())
    rank = data[3]
    shape = np.frombuffer(data, ">i4", count=rank, offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(shape)


def _idx_splits(builder: Any, source: pathlib.Path) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
    def examples(prefix: str) -> Iterator[tuple[int, dict[str, Any]]]:
        images, labels = (_idx(source / f"{prefix}-{kind}-ubyte.gz") for kind in ("images-idx3", "labels-idx1"))
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield index, {"image": _png(image), "label": int(label)}

    return {"train": examples("train"), "test": examples("t10k")}


def _cifar_splits(builder: Any, source: pathlib.Path) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
    """Records of label bytes and 3072 pixel bytes (red, green, blue planes), which the official builder describes."""
    info = builder._cifar_info
    (archive,) = original_files(builder.name)
    wanted = {*info.train_files, *info.test_files, *info.label_files}
    with tarfile.open(source / archive.name) as tar:
        members = {pathlib.PurePosixPath(member.name).name: member for member in tar if member.isfile()}
        contents = {name: tar.extractfile(members[name]).read() for name in wanted}
    for key, file in zip(info.label_keys, info.label_files, strict=True):
        builder.info.features[key].names = contents[file].decode().split()

    def examples(prefix: str, names: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
        keys = len(info.label_keys)
        records = np.frombuffer(b"".join(contents[name] for name in names), np.uint8).reshape(-1, keys + 3 * 32 * 32)
        images = records[:, keys:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        for index, (image, labels) in enumerate(zip(images, records[:, :keys].tolist(), strict=True)):
            record = dict(zip(info.label_keys, labels, strict=True))
            yield index, {"image": _png(np.ascontiguousarray(image)), "id": f"{prefix}_{index:05d}", **record}

    return {"train": examples("train", info.train_files), "test": examples("test", info.test_files)}


if __name__ == "__main__":
    sys.exit(main())
