"""A folder of images: the class of an image is the sub-folder that it lies in.

    PATH/cat/1.jpg  PATH/dog/sub/2.png                                     one part, to be split
    PATH/train/cat/1.jpg  PATH/test/cat/9.jpg  PATH/validation/dog/5.jpg   parts as given (validation may be missing)

Every file is checked on loading (header and checksums); the pixels are decoded later.
"""

import os
import pathlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from dl_core.data.examples import Examples, LazyImages, OnError, Paths
from dl_core.data.images import EXTENSIONS, UnreadableImage, image_header
from dl_core.data.parts import Parts
from dl_core.errors import UsageError

_SPLITS = {"train": "train", "validation": "validation", "val": "validation", "valid": "validation", "test": "test"}
Header = tuple[int, int, int] | UnreadableImage


def load_folder(argument: str, *, on_error: OnError = "skip", **_: object) -> Parts:
    """Labelled images from a folder.

    Args:
      argument: the folder; "~" is expanded.
      on_error: a damaged file is left out and reported ("skip") or fatal ("raise").

    Returns:
      Parts of lazy examples. A height, width or number of channels that differs between files is 0 (sizes) or the
      larger (channels) in `image_shape`.

    Raises:
      UsageError: no such folder, no classes, no images, or a class that training lacks.
    """
    root = pathlib.Path(argument).expanduser()
    if not root.is_dir():
        raise UsageError(f"folder {str(root)!r} does not exist or is not a folder; write folder:PATH with PATH holding "
                         "one sub-folder of images per class")  # fmt: skip
    roots = _split_roots(root)
    class_names = tuple(_sub_folders(roots["train"]))
    if not class_names:
        loose = any(path.suffix.lower() in EXTENSIONS for path in roots["train"].iterdir())
        raise UsageError(f"folder {str(roots['train'])!r} holds no sub-folders{' but loose images' if loose else ''}; "
                         "put the images of each class in a sub-folder named after the class")  # fmt: skip

    found = {split: _labelled_files(folder, class_names) for split, folder in roots.items()}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        headers = {split: list(pool.map(_try_header, [path for path, _ in files])) for split, files in found.items()}
    damaged = [header for split in headers.values() for header in split if isinstance(header, UnreadableImage)]
    if damaged and on_error == "raise":
        raise damaged[0]
    if not any(map(len, found.values())) or len(damaged) == sum(map(len, found.values())):
        raise UsageError(f"no readable image in folder {str(root)!r} ({len(damaged)} damaged); looked for files "
                         f"ending in {', '.join(sorted(EXTENSIONS))} in {', '.join(class_names[:5])}")  # fmt: skip
    shape = _agreed_shape(header for split in headers.values() for header in split)
    splits = {}
    for split, files in found.items():
        good = [
            file for file, header in zip(files, headers[split], strict=True) if not isinstance(header, UnreadableImage)
        ]
        paths, labels = Paths(tuple(path for path, _ in good)), np.array([label for _, label in good], np.int32)
        splits[split] = Examples(LazyImages(paths, np.arange(len(good)), shape, on_error=on_error), labels)
    return Parts(class_names, splits, tuple((error.name, error.reason) for error in damaged))


def _sub_folders(folder: pathlib.Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _split_roots(root: pathlib.Path) -> dict[str, pathlib.Path]:
    """The folder of each split, or the whole as "train": a lone "train" may be a class (trains)."""
    names = _sub_folders(root)
    if len(names) < 2 or "train" not in names or not set(names) <= set(_SPLITS):
        return {"train": root}
    roots = {}
    for name in names:
        if _SPLITS[name] in roots:
            raise UsageError(f"folder {str(root)!r} has two validation splits: {names}; keep one")
        roots[_SPLITS[name]] = root / name
    return roots


def _labelled_files(folder: pathlib.Path, class_names: tuple[str, ...]) -> list[tuple[str, int]]:
    strange = set(_sub_folders(folder)) - set(class_names)
    if strange:
        raise UsageError(f"folder {str(folder)!r} has classes that training lacks: {sorted(strange)[:5]}; "
                         f"training has {list(class_names[:10])}")  # fmt: skip
    files = []
    for label, name in enumerate(class_names):
        walk = os.walk(folder / name, followlinks=True)  # a class may be put together from links
        paths = (os.path.join(parent, file) for parent, _, inside in walk for file in inside if file[0] != ".")
        files += [(path, label) for path in sorted(paths) if os.path.splitext(path)[1].lower() in EXTENSIONS]
    return files


def _try_header(path: str) -> Header:
    try:
        return image_header(path)
    except UnreadableImage as error:
        return error


def _agreed_shape(headers: Iterable[Header]) -> tuple[int, int, int]:
    shapes = {header for header in headers if not isinstance(header, UnreadableImage)}
    height, width = (sizes.pop() if len(sizes := {shape[axis] for shape in shapes}) == 1 else 0 for axis in (0, 1))
    return height, width, max(shape[2] for shape in shapes)
