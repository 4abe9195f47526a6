"""Parts of a data set: some of its classes, and few labels of each, as studies of transfer need them."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, Int32

from dl_core.data.examples import Dataset
from dl_core.data.splits import permutation
from dl_core.data.statistics import are_classes
from dl_core.errors import UsageError, unknown_name

_LABELS_STREAM = 2**63 + 2**62  # second half of the Philox key, apart from those of splits and epochs


def select_classes(dataset: Dataset, classes: Sequence[int | str]) -> Dataset:
    """The examples of some classes, relabelled 0, 1, … in the order given; every split keeps its own.

    Args:
      dataset: of classes.
      classes: at least two of them, by number or by name, none twice.

    Returns:
      Dataset. Its splits are parts of the given one's: two disjoint sets of classes share no image.

    Raises:
      UsageError: a class that does not exist, one named twice, fewer than two, or one without example in a split.
    """
    _check_classes(dataset, "classes")
    chosen = [_number(dataset, name) for name in classes]
    if len(chosen) < 2 or len(set(chosen)) < len(chosen):
        raise UsageError(f"classes must name at least two classes, none of them twice, got {tuple(classes)}")
    new_label = np.full(dataset.num_classes, -1, np.int32)
    new_label[chosen] = np.arange(len(chosen))
    splits = {}
    for name, split in dataset.splits.items():
        labels = new_label[split.labels]
        part = split.take(np.flatnonzero(labels >= 0))
        if not len(part):
            raise UsageError(
                f"data set {dataset.name!r} has no example of the classes {tuple(classes)} in its {name} split"
            )
        splits[name] = dataclasses.replace(part, labels=labels[labels >= 0])
    return dataclasses.replace(dataset, class_names=tuple(dataset.class_names[c] for c in chosen), **splits)


def limit_labels(dataset: Dataset, labels_per_class: int, *, seed: int = 0) -> Dataset:
    """Keeps so many training examples of each class; validation and test stay whole.

    Args:
      dataset: of classes.
      labels_per_class: >= 1; at most the size of the smallest class.
      seed: decides which. The ten of a seed are the first ten of its hundred.

    Returns:
      Dataset.

    Raises:
      UsageError: a number below 1, or a class with fewer training examples.
    """
    _check_classes(dataset, "labels_per_class")
    counts = np.bincount(dataset.train.labels, minlength=dataset.num_classes)
    rarest = int(counts.argmin())
    if not 1 <= labels_per_class <= counts[rarest]:
        raise UsageError(
            f"labels_per_class must lie between 1 and {counts[rarest]}, the training examples of class "
            f"{dataset.class_names[rarest]!r}, got {labels_per_class}"
        )
    rows = few_of_each(dataset.train.labels, labels_per_class, seed=seed)
    return dataclasses.replace(dataset, train=dataset.train.take(rows))


def few_of_each(labels: Int[np.ndarray, " n"], number: int, *, seed: int = 0) -> Int32[np.ndarray, " m"]:
    """The rows of so many examples of each class, ascending; all of a class that has fewer.

    Args:
      labels: int [n].
      number: of each class.
      seed: decides which, in [0, 2**64).
    """
    order = permutation(len(labels), seed=seed, stream=_LABELS_STREAM)
    rows = [order[labels[order] == c][:number] for c in np.unique(labels)]
    return np.sort(np.concatenate(rows))


def _number(dataset: Dataset, name: int | str) -> int:
    if isinstance(name, str):
        if name not in dataset.class_names:
            raise unknown_name(f"class of data set {dataset.name!r}", name, dataset.class_names)
        return dataset.class_names.index(name)
    if not 0 <= name < dataset.num_classes:
        raise UsageError(f"data set {dataset.name!r} has classes 0 to {dataset.num_classes - 1}, got {name}")
    return int(name)


def _check_classes(dataset: Dataset, option: str) -> None:
    if not are_classes(dataset.train.labels):
        raise UsageError(f"{option} needs a data set with one class an image; {dataset.name!r} has other labels")
