"""What a data set looks like before training: per-channel mean and deviation, class balance, and a text."""

import math
from fractions import Fraction

import numpy as np
from jaxtyping import Float, Shaped

from dl_core.data.examples import Dataset, Examples

_CHUNK = 512
_LONGEST_TABLE = 30


def channel_statistics(examples: Examples) -> tuple[Float[np.ndarray, " c"], Float[np.ndarray, " c"]]:
    """Mean and standard deviation of every channel over all pixels of the given examples, in units of [0, 1].

    The 256 possible values are counted, so both are exact up to the last rounding, whatever the order or the number of
    the images. Give it the training split alone: what is learnt from the others leaks into their score.

    Args:
      examples: n >= 1 of them; lazy ones are decoded in chunks, never all at once.

    Returns:
      mean and std, float64 [c]. A constant channel has std 1 here, so that dividing by it is safe (as in
      scikit-learn's StandardScaler).
    """
    channels = examples.image_shape[-1]
    counts = np.zeros((channels, 256), np.int64)
    for start in range(0, len(examples), _CHUNK):
        images = examples.batch(np.arange(start, min(start + _CHUNK, len(examples))))["image"]
        for channel in range(channels):
            counts[channel] += np.bincount(images[..., channel].ravel(), minlength=256)
    mean, std = np.empty(channels), np.empty(channels)
    for channel, histogram in enumerate(counts.tolist()):
        n = sum(histogram)
        total = sum(value * count for value, count in enumerate(histogram))
        squares = sum(value * value * count for value, count in enumerate(histogram))
        mean[channel] = Fraction(total, n * 255)
        variance = Fraction(squares * n - total * total, (n * 255) ** 2)
        std[channel] = math.sqrt(variance) if variance else 1.0
    return mean, std


def are_classes(labels: Shaped[np.ndarray, "n *values"]) -> bool:
    """Whether labels are one class an example, int [n], rather than values (floats) or several labels each."""
    return labels.ndim == 1 and np.issubdtype(labels.dtype, np.integer)


def class_balance(labels: Shaped[np.ndarray, "n *values"], class_names: tuple[str, ...]) -> dict[str, int]:
    """How many examples each class has; of values, which have no classes, how many there are.

    Args:
      labels: int [n] in [0, len(class_names)), or values.
      class_names: the name of each class, or of each value.

    Returns:
      {name: count} in the order of the labels.
    """
    if not are_classes(labels):
        return dict.fromkeys(class_names, len(labels))
    counts = np.bincount(labels, minlength=len(class_names)).tolist()
    return dict(zip(class_names, counts, strict=True))


def _describe_values(dataset: Dataset) -> str:
    height, width, channels = dataset.image_shape
    counts = ", ".join(f"{len(part):,} {name}" for name, part in dataset.splits.items())
    lines = [f"{dataset.name}: {', '.join(dataset.class_names)}; images of {height}×{width}×{channels}: {counts}"]
    columns = dataset.train.labels.reshape(len(dataset.train), -1).T
    for name, values in zip(dataset.class_names, columns, strict=True):
        lines.append(f"  {name} in training: from {values.min():.4g} to {values.max():.4g}, mean {values.mean():.4g}, "
                     f"standard deviation {values.std():.4g}")  # fmt: skip
    lines.append(f"images that could not be read and were left out: {len(dataset.unreadable) or 'none'}")
    return "\n".join(lines)


def describe(dataset: Dataset) -> str:
    """A data set in words: sizes, class balance per split, and the images that could not be read.

    Args:
      dataset: what `load` returned.

    Returns:
      Lines of text. With more than 30 classes only the 15 largest and the 15 smallest of training are listed.
    """
    height, width, channels = dataset.image_shape
    if not are_classes(dataset.train.labels):
        return _describe_values(dataset)
    counts = np.stack([np.bincount(part.labels, minlength=dataset.num_classes) for part in dataset.splits.values()])
    megabytes = sum(part.nbytes for part in dataset.splits.values()) / 1e6
    where = "in memory" if dataset.train.in_memory else "decoded while training"
    lines = [f"{dataset.name}: {dataset.num_classes} classes, {counts.sum():,} images of {height}×{width}×{channels} "
             f"({megabytes:,.1f} MB, {where})"]  # fmt: skip

    order = np.arange(dataset.num_classes)
    if dataset.num_classes > _LONGEST_TABLE:
        order = np.argsort(-counts[0], kind="stable")
        order = np.concatenate([order[: _LONGEST_TABLE // 2], order[-_LONGEST_TABLE // 2 :]])
    width = max(len("class"), len("all"), *(len(dataset.class_names[i]) for i in order))
    row = lambda name, values: f"  {name:<{width}}" + "".join(f"  {value:>10}" for value in values)
    lines.append(row("class", dataset.splits))
    lines += [row(dataset.class_names[i], counts[:, i]) for i in order]
    lines.append(row("all", counts.sum(axis=1)))

    train = counts[0]
    if train.min():
        lines.append(f"largest class / smallest class in training: {train.max() / train.min():.2f}")
    else:
        missing = [dataset.class_names[i] for i in np.flatnonzero(train == 0)]
        lines.append(f"WITHOUT any training example: {', '.join(missing[:10])}{' …' if len(missing) > 10 else ''}")
    lines.append(f"images that could not be read and were left out: {len(dataset.unreadable) or 'none'}")
    lines += [f"  {name}: {reason}" for name, reason in dataset.unreadable[:20]]
    if len(dataset.unreadable) > 20:
        lines.append(f"  … and {len(dataset.unreadable) - 20} more")
    return "\n".join(lines)
