"""Stratified division of a data set: train/validation/test shares and K folds, the same for the same seed everywhere.

Every class is divided in the shares asked for, to within one example (course notes: 70/15/15 and K-fold
cross-validation; Kohavi (1995), "A study of cross-validation and bootstrap for accuracy estimation and model
selection", for why to stratify).
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, Int32

from dl_core.errors import UsageError

_SPLIT_STREAM = 2**63  # second half of the Philox key; epochs, which count from 0, use the values below


def permutation(n: int, *, seed: int, stream: int) -> Int32[np.ndarray, " n"]:
    """A random order of 0 … n-1 that depends on (seed, stream) alone.

    NumPy keeps the raw bits of Philox the same for ever, but not what `Generator.permutation` makes of them; so the
    bits themselves are sorted.

    Args:
      n: how many.
      seed: in [0, 2**64).
      stream: in [0, 2**64); different streams are independent.

    Returns:
      int32 [n].

    Raises:
      UsageError: a seed outside its range.
    """
    if not 0 <= seed < 2**64:
        raise UsageError(f"seed must lie in [0, 2**64), got {seed}")
    bits = np.random.Philox(key=np.array([seed, stream], np.uint64)).random_raw(n)
    return np.argsort(bits, kind="stable").astype(np.int32)


def _by_class(labels: Int[np.ndarray, " n"], seed: int) -> dict[int, Int[np.ndarray, " m"]]:
    """The members of each class in random order; the classes, too, in random order."""
    order = permutation(len(labels), seed=seed, stream=_SPLIT_STREAM)
    shuffled = labels[order]
    classes = np.unique(labels)
    classes = classes[permutation(len(classes), seed=seed, stream=_SPLIT_STREAM + 1)]
    return {int(c): order[shuffled == c] for c in classes}


def stratified_split(
    labels: Int[np.ndarray, " n"], fractions: Sequence[float] | np.ndarray = (0.70, 0.15, 0.15), *, seed: int = 0
) -> tuple[Int32[np.ndarray, " _"], ...]:
    """Divides examples in parts that hold the same share of every class.

    A class of m examples puts floor(f m) or ceil(f m) of them in the part with share f. Which parts get the odd ones
    is chosen so that the parts as a whole have the right sizes too; the first part (training) is never left without
    a class. A class of few examples may therefore be absent from the smaller parts.

    Args:
      labels: int [n], any integers.
      fractions: the share of each part, > 0, adding up to 1.
      seed: decides which examples go where.

    Returns:
      For each part the numbers of its examples, int32, ascending. Together they are 0 … n-1.

    Raises:
      UsageError: shares that are not positive or do not add up to 1.
    """
    shares = np.asarray(fractions, np.float64)
    if (shares <= 0).any() or abs(shares.sum() - 1) > 1e-6:
        raise UsageError(f"the shares of a split must be positive and add up to 1, got {tuple(fractions)}")
    shares = shares / shares.sum()
    parts: list[list[np.ndarray]] = [[] for _ in shares]
    lag = np.zeros(len(shares))  # how many examples each part is short of, over the classes seen so far
    for members in _by_class(labels, seed).values():
        quota = len(members) * shares
        counts = np.floor(quota + 1e-9).astype(int)
        odd = len(members) - counts.sum()
        lag += quota - counts
        urgency = np.where(quota - counts > 1e-9, lag, -np.inf)
        if counts[0] == 0:
            urgency[0] = np.inf
        for part in np.argsort(-urgency, kind="stable")[:odd]:
            counts[part] += 1
            lag[part] -= 1
        for part, chosen in zip(parts, np.split(members, np.cumsum(counts)[:-1]), strict=True):
            part.append(chosen)
    return tuple(np.sort(np.concatenate(part)) if part else np.zeros(0, np.int32) for part in parts)


def stratified_folds(labels: Int[np.ndarray, " n"], folds: int, *, seed: int = 0) -> Int32[np.ndarray, " n"]:
    """Divides examples in K folds that hold the same number of every class, to within one, and of all examples.

    Args:
      labels: int [n], any integers.
      folds: K >= 2; at most the size of the smallest class.
      seed: decides which examples go where.

    Returns:
      int32 [n], the fold of each example in [0, K). Fold k validates the model trained on the others.

    Raises:
      UsageError: K < 2, or a class with fewer examples than folds.
    """
    if folds < 2:
        raise UsageError(f"cross-validation needs at least 2 folds, got {folds}")
    groups = _by_class(labels, seed)
    label, smallest = min(((c, len(m)) for c, m in groups.items()), key=lambda pair: pair[1], default=(0, 0))
    if smallest < folds:
        raise UsageError(
            f"folds={folds} but class {label} has only {smallest} examples: every fold needs one of each class; "
            f"use folds={max(smallest, 2)} or fewer, or merge or drop the class"
        )
    fold_of = np.empty(len(labels), np.int32)
    fold_of[np.concatenate(list(groups.values()))] = np.arange(len(labels)) % folds  # dealt like cards, class by class
    return fold_of
