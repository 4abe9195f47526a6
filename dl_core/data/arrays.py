"""An .npz file of arrays: `images` and `labels`, or the same per split (`train_images`, `train_labels`, …).

The file is read without pickle, so it may come from anywhere.
"""

import pathlib
import zipfile
from collections.abc import Iterable

import numpy as np
from jaxtyping import Int32, Shaped, UInt8

from dl_core.data.examples import Examples
from dl_core.data.parts import Parts
from dl_core.errors import UsageError

# split → (images, labels), in every spelling that is known; the last is Keras's
_KEYS = {
    "train": (("train_images", "train_labels"), ("images", "labels"), ("x_train", "y_train")),
    "validation": (("validation_images", "validation_labels"), ("val_images", "val_labels"), ("x_val", "y_val")),
    "test": (("test_images", "test_labels"), ("x_test", "y_test")),
}
_LAYOUT = "give arrays images [n, h, w] or [n, h, w, c] and labels [n] (or train_images, train_labels, test_images, …)"


def load_npz(argument: str, **_: object) -> Parts:
    """Labelled images from an .npz file.

    Images are uint8, any integers in 0 … 255, booleans, or floats in [0, 1]. Labels are integers from 0 without
    gaps, or strings. An optional array `class_names` names them (and then gaps are allowed).

    Args:
      argument: the file; "~" is expanded.

    Returns:
      Parts of examples in memory.

    Raises:
      UsageError: a missing or damaged file, missing arrays, or values out of range.
    """
    path = pathlib.Path(argument).expanduser()
    arrays = _read(path)
    images, labels = {}, {}
    for split, spellings in _KEYS.items():
        for image_key, label_key in spellings:
            if image_key not in arrays and label_key not in arrays:
                continue
            if missing := {image_key, label_key} - set(arrays):
                raise UsageError(f"{path} has no array {missing.pop()!r}; it has {sorted(arrays)}: {_LAYOUT}")
            if split in images:
                raise UsageError(f"{path} holds its {split} split twice ({sorted(arrays)}): {_LAYOUT}")
            images[split] = _as_uint8(arrays[image_key], f"{image_key} in {path}")
            labels[split] = _as_vector(arrays[label_key], len(images[split]), f"{label_key} in {path}")
    if "train" not in images:
        raise UsageError(f"{path} holds {sorted(arrays)} but no training images: {_LAYOUT}")
    class_names = arrays["class_names"].tolist() if "class_names" in arrays else None
    names, numbered = _numbered(labels, class_names, path)
    return Parts(names, {split: Examples(images[split], numbered[split]) for split in images})


def _read(path: pathlib.Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise UsageError(f"file {str(path)!r} does not exist; write npz:PATH with PATH an .npz file")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except (ValueError, OSError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        objects = "pickle" in str(error)
        hint = "save numbers or fixed-width strings, not objects" if objects else "save it again with numpy.savez"
        raise UsageError(f"cannot read {path}: {error}; {hint}") from error


def _as_uint8(images: Shaped[np.ndarray, "..."], what: str) -> UInt8[np.ndarray, "n h w c"]:
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or 0 in images.shape:
        raise UsageError(f"{what} has shape {images.shape}; expected [n, h, w] or [n, h, w, c], none of them 0")
    if images.shape[1] in (1, 3) and images.shape[3] > 4:
        raise UsageError(f"{what} has shape {images.shape}, channels first; save images.transpose(0, 2, 3, 1)")
    if images.dtype == bool:
        return images.astype(np.uint8) * 255
    if not np.issubdtype(images.dtype, np.integer) and not np.issubdtype(images.dtype, np.floating):
        raise UsageError(f"{what} has dtype {images.dtype}; expected integers in 0 … 255 or floats in [0, 1]")
    low, high = images.min(), images.max()
    floating = np.issubdtype(images.dtype, np.floating)
    if not (low >= 0 and high <= (1 if floating else 255)):  # so that NaN fails too
        allowed = "floats must lie in [0, 1]" if floating else "integers must lie in 0 … 255"
        mend = "rescale them, or save integers in 0 … 255 as uint8" if floating else "rescale them"
        raise UsageError(f"{what} has values from {low} to {high}; {allowed}: {mend}")
    return np.rint(images * 255.0).astype(np.uint8) if floating else images.astype(np.uint8)


def _as_vector(labels: Shaped[np.ndarray, "..."], n: int, what: str) -> Shaped[np.ndarray, " n"]:
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or len(labels) != n:
        raise UsageError(f"{what} has shape {labels.shape} for {n} images; expected [{n}], one label per image")
    if labels.dtype.kind not in "iuU":
        raise UsageError(f"{what} has dtype {labels.dtype}; expected integers from 0, or strings")
    return labels


def _numbered(
    labels: dict[str, np.ndarray], names: Iterable[object] | None, path: pathlib.Path
) -> tuple[tuple[str, ...], dict[str, Int32[np.ndarray, " _"]]]:
    """Class names, and the labels of every split as numbers among them."""
    used = np.unique(np.concatenate(list(labels.values())))
    if used.dtype.kind == "U":
        class_names = used.tolist() if names is None else [str(name) for name in names]
        if strange := set(used.tolist()) - set(class_names):
            raise UsageError(f"labels in {path} that class_names lacks: {sorted(strange)[:5]}")
        number = {name: i for i, name in enumerate(class_names)}
        return tuple(class_names), {
            s: np.array([number[y] for y in array.tolist()], np.int32) for s, array in labels.items()
        }
    if names is None:
        if used[0] != 0 or used[-1] != len(used) - 1:
            raise UsageError(f"the labels in {path} are {used[:8].tolist()}{' …' if len(used) > 8 else ''}; number "
                             "them from 0 without gaps, or add an array class_names")  # fmt: skip
        names = range(len(used))
    class_names = tuple(str(name) for name in names)
    if used[0] < 0 or used[-1] >= len(class_names):
        raise UsageError(
            f"the labels in {path} go from {used[0]} to {used[-1]} but there are {len(class_names)} class_names"
        )
    return class_names, {split: array.astype(np.int32) for split, array in labels.items()}
