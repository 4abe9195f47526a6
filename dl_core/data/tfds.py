"""Image classification sets of tensorflow-datasets, prepared in a folder, read without TensorFlow.

A set must be stored in a format with random access (array_record). `python -m train.prepare` makes such a set from the
original files of the commonest ones; anything else can be prepared wherever TensorFlow is at hand, with
`tfds build NAME --file_format=array_record`, and read here.
"""

import importlib.util
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from dl_core.data.examples import Examples, LazyImages, OnError
from dl_core.data.parts import Parts
from dl_core.errors import UsageError, unknown_name

PREPARABLE = ("cifar10", "cifar100", "fashion_mnist", "kmnist", "mnist")  # by `python -m train.prepare`
_CHUNK = 4096


def default_data_dir(data_dir: str | pathlib.Path | None = None) -> pathlib.Path:
    """The folder of prepared data sets, found as tensorflow-datasets finds it.

    Args:
      data_dir: a folder, which wins; else the environment variable TFDS_DATA_DIR, else ~/tensorflow_datasets.

    Returns:
      The path; it may not exist.
    """
    return pathlib.Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def prepared(data_dir: str | pathlib.Path | None = None) -> dict[str, pathlib.Path]:
    """Every data set that lies prepared in a folder.

    Args:
      data_dir: as `default_data_dir`.

    Returns:
      {"name" or "name/config": folder of its newest version}.
    """
    root = default_data_dir(data_dir)
    found: dict[str, tuple[list[int], pathlib.Path]] = {}
    for pattern in ("*/*/features.json", "*/*/*/features.json"):
        for path in root.glob(pattern):
            name, version = path.parent.parent.relative_to(root).as_posix(), path.parent.name
            if not re.fullmatch(r"\d+\.\d+\.\d+", version):
                continue
            number = [int(digit) for digit in version.split(".")]
            if name not in found or number > found[name][0]:
                found[name] = number, path.parent
    return {name: folder for name, (_, folder) in sorted(found.items())}


class TfdsFiles:
    """The encoded images of one split, as `examples.Files`. A copy in another process opens the files anew."""

    def __init__(self, folder: pathlib.Path, split: str, image_key: str):
        self.folder, self.split, self.image_key = folder, split, image_key
        self._source: Any = None

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_source": None}

    @property
    def source(self) -> Any:
        """The records, images left encoded."""
        if self._source is None:
            import tensorflow_datasets as tfds

            builder: Any = tfds.builder_from_directory(self.folder)
            encoded = {
                key: tfds.decode.SkipDecoding()
                for key, feature in builder.info.features.items()
                if isinstance(feature, tfds.features.Image)
            }
            self._source = builder.as_data_source(split=self.split, decoders=encoded)
        return self._source

    def __len__(self) -> int:
        return len(self.source)

    def read(self, indices: Sequence[int]) -> list[bytes]:
        """The encoded bytes of some images."""
        return [record[self.image_key] for record in self.source.__getitems__(list(indices))]

    def name(self, index: int) -> str:
        """Set, split and number of one image."""
        return f"{self.folder.parent.name}/{self.split}[{index}]"

    def labels(self, key: str) -> np.ndarray:
        """The label of every record, int32 [n]; the images are passed over."""
        chunks = (range(start, min(start + _CHUNK, len(self))) for start in range(0, len(self), _CHUNK))
        return np.array([r[key] for chunk in chunks for r in self.source.__getitems__(list(chunk))], np.int32)


def load_tfds(
    argument: str,
    *,
    data_dir: str | pathlib.Path | None = None,
    on_error: OnError = "skip",
    known: Sequence[str] = (),
    label: str | None = None,
    **_: object,
) -> Parts:
    """A prepared image classification set of tensorflow-datasets.

    Args:
      argument: its name there, "name" or "name/config".
      data_dir: the folder it is prepared in, as `default_data_dir`.
      on_error: what a damaged image does, as `LazyImages`.
      known: other names of data sets, for the error when this one is unknown.
      label: which label to take where there are several, e.g. "coarse_label" of cifar100.

    Returns:
      Parts of lazy examples; splits without labels (all -1) are left out.

    Raises:
      UsageError: an unknown or unprepared set, one that is no image classification set, or one without random access.
    """
    folder = _find(argument, data_dir, known)
    import tensorflow_datasets as tfds

    info: Any = tfds.builder_from_directory(folder).info
    if info.file_format is None or info.file_format.value not in ("array_record", "parquet"):
        stored = info.file_format.value if info.file_format else "an unknown format"
        raise UsageError(f"{argument} in {folder} is stored as {stored}, which cannot be read without TensorFlow; "
                         f"prepare it again with: {_how_to_prepare(argument, data_dir)}")  # fmt: skip
    image_key, label_key = _keys(argument, info, label)
    image = info.features[image_key]
    if image.np_dtype != np.uint8:
        raise UsageError(
            f"the images of {argument} are {image.np_dtype}, not uint8; convert them to an .npz file of arrays"
        )
    height, width, channels = image.shape
    shape = (height or 0, width or 0, 1 if channels == 1 else 3)
    splits = {}
    for split in ("train", "validation", "test"):
        if split in info.splits and info.splits[split].num_examples:
            files = TfdsFiles(folder, split, image_key)
            labels = files.labels(label_key)
            if not (labels < 0).all():
                splits[split] = Examples(LazyImages(files, np.arange(len(files)), shape, on_error=on_error), labels)
    if "train" not in splits:
        raise UsageError(f"{argument} has no labelled train split; it has {sorted(info.splits)}")
    return Parts(tuple(info.features[label_key].names), splits)


def _find(name: str, data_dir: str | pathlib.Path | None, known: Sequence[str]) -> pathlib.Path:
    ready = prepared(data_dir)
    if name in ready:
        return ready[name]
    configs = [other for other in ready if other.split("/")[0] == name]
    if len(configs) == 1:
        return ready[configs[0]]
    if configs:
        raise UsageError(f"data set {name!r} is prepared in several configurations; name one: {', '.join(configs)}")
    if name.split("/")[0] in _names_of_tensorflow_datasets():
        raise UsageError(
            f"data set {name!r} is known to tensorflow-datasets but not prepared in {default_data_dir(data_dir)}; "
            f"prepare it with: {_how_to_prepare(name, data_dir)}"
        )
    raise unknown_name("data set", name, {*known, *ready, *PREPARABLE, "folder:PATH", "npz:PATH"})


def _names_of_tensorflow_datasets() -> set[str]:
    """Every data set that the installed package can prepare, told from its files: importing all takes TensorFlow."""
    spec = importlib.util.find_spec("tensorflow_datasets")
    root = (
        pathlib.Path(next(iter(spec.submodule_search_locations))) if spec and spec.submodule_search_locations else None
    )
    if root is None:
        return set()
    packages = {path.parent.name for path in root.glob("datasets/*/*_dataset_builder.py")}
    return packages | {path.stem for path in root.glob("url_checksums/*.txt")}


def _how_to_prepare(name: str, data_dir: str | pathlib.Path | None) -> str:
    option = f" --data-dir={data_dir}" if data_dir else ""
    if name in PREPARABLE:
        return f"python -m train.prepare {name}{option} (add --from=DIR if you have the original files)"
    return (
        f"tfds build {name} --file_format=array_record{option.replace('data-dir', 'data_dir')} (this needs TensorFlow)"
    )


def _keys(name: str, info: Any, label: str | None) -> tuple[str, str]:
    """The features that hold image and label."""
    import tensorflow_datasets as tfds

    images = [key for key, f in info.features.items() if isinstance(f, tfds.features.Image)]
    labels = [key for key, f in info.features.items() if isinstance(f, tfds.features.ClassLabel)]
    if not images or not labels:
        raise UsageError(f"{name} is no image classification set: its features are {dict(info.features.items())}")
    image_key, label_key = info.supervised_keys or ("", "")
    image_key = image_key if image_key in images else images[0]
    label_key = label or (label_key if label_key in labels else "label" if "label" in labels else labels[0])
    if label_key not in labels:
        raise unknown_name(f"label of {name}", label_key, labels)
    return image_key, label_key
