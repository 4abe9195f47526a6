"""Data sets by name.

    digits, scenes, eyes      made on the spot, nothing to download
    folder:PATH, npz:PATH     the user's own images
    mnist, cifar10, …         any image classification set of tensorflow-datasets that is prepared in `data_dir`

Whatever the source, the result is three disjoint splits of uint8 images. What a source provides itself is kept: a test
split stays the test split. What it lacks is cut from training, stratified by class.
"""

import inspect
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dl_core.data import splits as _splits
from dl_core.data import tfds as _tfds
from dl_core.data.arrays import load_npz
from dl_core.data.digits import load_digits
from dl_core.data.examples import Dataset, Examples, OnError, concatenate
from dl_core.data.folder import load_folder
from dl_core.data.images import Resize
from dl_core.data.parts import Parts
from dl_core.data.statistics import are_classes
from dl_core.data.subsets import limit_labels, select_classes
from dl_core.errors import UsageError, unknown_name

IN_MEMORY_LIMIT = 2**30  # bytes of decoded images that `load` keeps in memory unless told otherwise
Loader = Callable[..., Parts]
_SCENES_PER_SPLIT = 2**28
_SHARED = ("seed", "data_dir", "image_size", "on_error")  # given to every loader; the rest are its own options


def load_scenes(
    argument: str = "",
    *,
    seed: int = 0,
    image_size: tuple[int, int] | None = None,
    num_train: int = 4096,
    num_validation: int = 512,
    num_test: int = 1024,
    target: str = "kind",
    max_objects: int = 1,
    kinds: tuple[str, ...] = (),
    **_: object,
) -> Parts:
    """Procedurally drawn scenes (`dl_core.data.scenes`), each split from a stretch of its own of one endless sequence.

    Args:
      argument: not used.
      seed: names the sequence. The scenes of a split do not depend on how many the others have.
      image_size: (height, width), equal, in pixels; 32 by default.
      num_train, num_validation, num_test: scenes per split, up to 2**28.
      target: what the label is, e.g. "kind"; "kind+colour" for labels [n, 2], and names "kind: circle|…" of its parts.
      max_objects: objects per scene, at most.
      kinds: of objects, in the order of their classes; by default the four of `dl_core.data.scenes.BASE_KINDS`. Four
        more are there to be held out: star, ring, pentagon, crescent.

    Returns:
      Parts with all three splits, in memory.

    Raises:
      UsageError: an image size that is not square.
    """
    from dl_core.data.scenes import BASE_KINDS, scene_class_names, scene_examples  # imports JAX, others do without

    kinds = tuple(kinds) or BASE_KINDS
    names = lambda part: kinds if part == "kind" else scene_class_names(part)
    draw = lambda n, size, first: scene_examples(
        seed, n, size=size, target=target, max_objects=max_objects, kinds=kinds, first=first
    )
    splits = _drawn_splits(draw, image_size, num_train, num_validation, num_test)
    targets = target.split("+")
    several = tuple(f"{part}: {'|'.join(names(part))}" for part in targets)
    return Parts(several if len(targets) > 1 else tuple(names(target)), splits)


def load_eyes(
    argument: str = "",
    *,
    seed: int = 0,
    image_size: tuple[int, int] | None = None,
    num_train: int = 4096,
    num_validation: int = 512,
    num_test: int = 1024,
    target: str = "gaze",
    style: str = "both",
    **_: object,
) -> Parts:
    """Procedurally drawn eyes (`dl_core.data.scenes.eyes`) with a value each: where they look, how far they open.

    Args:
      argument: not used.
      seed: names the sequence, as in `load_scenes`.
      image_size: (height, width), equal, in pixels; 32 by default.
      num_train, num_validation, num_test: eyes per split, up to 2**28.
      target: "gaze" (degrees), "lid_opening" or "pupil_size" (shares).
      style: "plain", "photographic", or "both" in equal parts.

    Returns:
      Parts with all three splits, in memory; labels are float32.

    Raises:
      UsageError: an unknown target or style, or an image size that is not square.
    """
    from dl_core.data.scenes.eyes import TARGETS, eye_examples

    draw = lambda n, size, first: eye_examples(seed, n, size=size, target=target, style=style, first=first)
    splits = _drawn_splits(draw, image_size, num_train, num_validation, num_test)
    return Parts((TARGETS[target],), splits)


def _drawn_splits(
    draw: Callable[..., Any], image_size: tuple[int, int] | None, num_train: int, num_validation: int, num_test: int
) -> dict[str, Examples]:
    """Three stretches of one endless sequence; draw(n, size, first) -> images, labels."""
    height, width = image_size or (32, 32)
    if height != width:
        raise UsageError(f"scenes are square: image_size must be one number, got {image_size}")
    splits = {}
    for place, (name, n) in enumerate({"test": num_test, "validation": num_validation, "train": num_train}.items()):
        if not 1 <= n <= _SCENES_PER_SPLIT:
            raise UsageError(f"num_{name} must lie between 1 and {_SCENES_PER_SPLIT:,}, got {n}")
        splits[name] = Examples(*draw(n, height, place * _SCENES_PER_SPLIT))
    return splits


_LOADERS: dict[str, Loader] = {"digits": load_digits, "scenes": load_scenes, "eyes": load_eyes}


def register(name: str, loader: Loader) -> None:
    """Adds a data set that `load` then knows by name.

    Args:
      name: what to call it.
      loader: `loader(argument, *, seed, data_dir, image_size, on_error, …its own options…) -> Parts`; what it does not
        use of these it may take as `**_`.

    Raises:
      UsageError: the name is taken.
    """
    if name in _LOADERS:
        raise UsageError(f"a data set {name!r} is registered already; choose another name")
    _LOADERS[name] = loader


def list_datasets(data_dir: str | pathlib.Path | None = None) -> list[str]:
    """The names that `load` takes now: those registered, and the tensorflow-datasets prepared in a folder.

    Args:
      data_dir: the folder; by default TFDS_DATA_DIR, else ~/tensorflow_datasets.

    Returns:
      Sorted names; a path can be given besides, as folder:PATH or npz:PATH.
    """
    return sorted({*_LOADERS, *_tfds.prepared(data_dir)})


def load(
    name: str,
    *,
    seed: int = 0,
    data_dir: str | pathlib.Path | None = None,
    image_size: int | Sequence[int] | None = None,
    channels: int | None = None,
    resize: Resize = "stretch",
    split: Sequence[float] = (0.70, 0.15, 0.15),
    on_error: OnError = "skip",
    in_memory: bool | None = None,
    folds: int = 1,
    fold: int = 0,
    classes: Sequence[int | str] | None = None,
    labels_per_class: int | None = None,
    **options: Any,
) -> Dataset:
    """A data set by name, in three splits.

    Args:
      name: "digits", "scenes", "eyes", "folder:PATH", "npz:PATH" (or a path ending in .npz), or a set of
        tensorflow-datasets.
      seed: decides how splits are cut (and what scenes are drawn).
      data_dir: where tensorflow-datasets are prepared; by default TFDS_DATA_DIR, else ~/tensorflow_datasets.
      image_size: height and width in pixels, one number or two; as stored by default, if all images agree.
      channels: 1 or 3; by default 3 as soon as one image has colours (a palette counts as such).
      resize: "stretch" to image_size, or "crop" the middle after scaling the shorter side.
      split: shares of training, validation and test. What the source itself provides is kept; if only validation is
        missing, training gives up split[1] / (split[0] + split[1]); if only test, split[2].
      on_error: an image that cannot be read is left out and reported ("skip"), or fatal ("raise").
      in_memory: True decodes every image now, False when it is read; by default True up to IN_MEMORY_LIMIT bytes.
        Damage that shows only when the pixels are decoded is found now in the first case, while streaming in the other.
      folds: K > 1 cuts what is not test in K stratified folds …
      fold: … of which this one, in [0, K), is the validation split.
      classes: keep these alone, by number or name, relabelled in this order; the splits are cut before.
      labels_per_class: keep so many training examples of each class, chosen by the seed.
      **options: for "scenes": num_train, num_validation, num_test, target, max_objects, kinds; for "eyes" style
        instead of the last two; for tensorflow-datasets: label.

    Returns:
      Dataset.

    Raises:
      UsageError: an unknown name or option, or data that cannot be used, with what to do about it.
    """
    _check_choices(channels, resize, on_error)
    _check_division(split, folds, fold)
    size = _height_and_width(image_size)
    loader, argument = _loader(name)
    own = set(inspect.signature(loader).parameters) - {"argument", "known", "_", *_SHARED}
    for option in options:
        if option not in own:
            raise unknown_name(f"option of data set {name!r}", option, own) if own else UsageError(
                f"data set {name!r} takes no option {option!r}")  # fmt: skip
    if loader is _tfds.load_tfds:
        options["known"] = sorted(_LOADERS)
    parts = loader(argument, seed=seed, data_dir=data_dir, image_size=size, on_error=on_error, **options)
    conform = lambda part: part.conform(image_size=size, channels=channels, resize=resize)
    parts = parts._replace(splits={key: conform(part) for key, part in parts.splits.items()})
    _check_parts(name, parts)
    if in_memory or (in_memory is None and sum(part.nbytes for part in parts.splits.values()) <= IN_MEMORY_LIMIT):
        parts = _decoded(parts)
    three = _divide(parts, split, seed, folds, fold)
    for key, part in three.items():
        if not len(part):
            raise UsageError(f"data set {name!r} has too few examples: nothing is left for the {key} split; add "
                             f"images, or change split={tuple(split)}")  # fmt: skip
    dataset = Dataset(name, parts.class_names, **three, unreadable=parts.unreadable)
    if classes is not None:
        dataset = select_classes(dataset, classes)
    return dataset if labels_per_class is None else limit_labels(dataset, labels_per_class, seed=seed)


def _height_and_width(image_size: int | Sequence[int] | None) -> tuple[int, int] | None:
    if image_size is None:
        return None
    numbers = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if len(numbers) != 2 or not all(isinstance(n, int) and n > 0 for n in numbers):
        raise UsageError(f"image_size must be one or two positive whole numbers, got {image_size!r}")
    return numbers[0], numbers[1]


def _check_choices(channels: Any, resize: Any, on_error: Any) -> None:
    for option, given, allowed in (
        ("channels", channels, (None, 1, 3)),
        ("resize", resize, ("stretch", "crop")),
        ("on_error", on_error, ("skip", "raise")),
    ):
        if given not in allowed:
            raise UsageError(f"{option} must be one of {allowed}, got {given!r}")


def _check_division(split: Sequence[float], folds: int, fold: int) -> None:
    if folds < 1 or not 0 <= fold < folds:
        raise UsageError(f"fold must lie in [0, folds) and folds be at least 1, got folds={folds}, fold={fold}")
    if len(split) != 3 or min(split) <= 0 or abs(sum(split) - 1) > 1e-6:
        raise UsageError(f"split must be three positive shares that add up to 1, got {tuple(split)}")


def _loader(name: str) -> tuple[Loader, str]:
    if name.startswith("folder:"):
        return load_folder, name.removeprefix("folder:")
    if name.startswith("npz:") or name.endswith(".npz"):
        return load_npz, name.removeprefix("npz:")
    return _LOADERS.get(name, _tfds.load_tfds), name


def _check_parts(name: str, parts: Parts) -> None:
    labels = np.concatenate([part.labels for part in parts.splits.values()])
    if not are_classes(labels):
        if not np.isfinite(labels).all():
            raise UsageError(f"data set {name!r} has values that are not finite; leave those examples out")
    elif len(np.unique(labels)) < 2:
        raise UsageError(f"data set {name!r} has {len(np.unique(labels))} class with images (of "
                         f"{list(parts.class_names[:5])}); a classifier needs at least two")  # fmt: skip
    if len(set(parts.class_names)) < len(parts.class_names):
        raise UsageError(f"data set {name!r} gives two classes the same name: {sorted(parts.class_names)}; rename one")
    if are_classes(labels) and (labels.min() < 0 or labels.max() >= len(parts.class_names)):
        raise UsageError(f"data set {name!r} has labels from {labels.min()} to {labels.max()} "
                         f"for {len(parts.class_names)} classes")  # fmt: skip
    shapes = {part.image_shape for part in parts.splits.values()}
    if len(shapes) > 1 or 0 in next(iter(shapes)):
        raise UsageError(f"the images of {name!r} differ in size; give image_size (e.g. image_size=224) "
                         "and they are resized")  # fmt: skip


def _decoded(parts: Parts) -> Parts:
    splits, unreadable = {}, list(parts.unreadable)
    for key, part in parts.splits.items():
        splits[key], damaged = part.decoded()
        unreadable += damaged
    return parts._replace(splits=splits, unreadable=tuple(unreadable))


def _divide(parts: Parts, shares: Sequence[float], seed: int, folds: int, fold: int) -> dict[str, Examples]:
    """The three splits; the test split does not depend on folds and fold."""

    # values belong to no class: they are divided at random
    classes = lambda examples: examples.labels if are_classes(examples.labels) else np.zeros(len(examples), np.int32)

    def cut(examples: Examples, *fractions: float) -> list[Examples]:
        rows = _splits.stratified_split(classes(examples), np.array(fractions) / sum(fractions), seed=seed)
        return [examples.take(r) for r in rows]

    splits = dict(parts.splits)
    if splits.keys() == {"train"}:
        splits["train"], splits["validation"], splits["test"] = cut(splits["train"], *shares)
    if "test" not in splits:
        splits["train"], splits["test"] = cut(splits["train"], shares[0] + shares[1], shares[2])
    if "validation" not in splits:
        splits["train"], splits["validation"] = cut(splits["train"], shares[0], shares[1])
    if folds > 1:
        pool = concatenate(splits["train"], splits["validation"])
        fold_of = _splits.stratified_folds(classes(pool), folds, seed=seed)
        splits["train"] = pool.take(np.flatnonzero(fold_of != fold))
        splits["validation"] = pool.take(np.flatnonzero(fold_of == fold))
    return {key: splits[key] for key in ("train", "validation", "test")}
