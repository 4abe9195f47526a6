"""Stratified splits and folds: partitions with the right shares, the same for the same seed."""

import numpy as np
import pytest

from dl_core.data.splits import permutation, stratified_folds, stratified_split
from dl_core.errors import UsageError

SHARES = [(0.7, 0.15, 0.15), (0.5, 0.5), (0.8, 0.1, 0.05, 0.05), (1 / 3, 1 / 3, 1 / 3)]


def random_labels(seed):
    """Between 1 and 40 classes of very different sizes, numbered with gaps."""
    random = np.random.default_rng(seed)
    classes = random.choice(1000, random.integers(1, 41), replace=False)
    sizes = random.geometric(random.uniform(0.01, 0.4), len(classes))
    return random.permutation(np.repeat(classes, sizes))


@pytest.mark.parametrize("seed", range(25))
@pytest.mark.parametrize("shares", SHARES)
def test_parts_hold_every_example_once_and_every_class_in_its_share(seed, shares):
    labels = random_labels(seed)
    parts = stratified_split(labels, shares, seed=seed)
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(len(labels)))
    for part, share in zip(parts, shares, strict=True):
        assert np.all(np.diff(part) > 0)
        for c in np.unique(labels):
            assert abs(np.sum(labels[part] == c) - share * np.sum(labels == c)) < 1 + 1e-6
    assert set(labels[parts[0]]) == set(labels), "training lacks a class"


@pytest.mark.parametrize("seed", range(10))
def test_odd_examples_do_not_add_up(seed):
    """Many classes of five: each must depart from its share, all together must not."""
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(100), 5))
    sizes = [len(part) for part in stratified_split(labels, (0.7, 0.15, 0.15), seed=seed)]
    np.testing.assert_allclose(sizes, [350, 75, 75], atol=1)


@pytest.mark.parametrize("seed", range(25))
@pytest.mark.parametrize("folds", [2, 3, 5, 10])
def test_folds_are_even_in_every_class_and_in_all(seed, folds):
    labels = random_labels(seed)
    labels = np.concatenate([labels, np.repeat(np.unique(labels), folds)])  # enough of each
    fold_of = stratified_folds(labels, folds, seed=seed)
    for members in (np.ones(len(labels), bool), *(labels == c for c in np.unique(labels))):
        counts = np.bincount(fold_of[members], minlength=folds)
        assert len(counts) == folds
        assert counts.max() - counts.min() <= 1


def test_the_seed_decides():
    labels = random_labels(3)
    first, again, other = (stratified_split(labels, seed=seed)[0] for seed in (5, 5, 6))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    labels = np.repeat([0, 1], 20)
    np.testing.assert_array_equal(stratified_folds(labels, 4, seed=5), stratified_folds(labels, 4, seed=5))
    assert not np.array_equal(stratified_folds(labels, 4, seed=5), stratified_folds(labels, 4, seed=6))


def test_the_parts_are_drawn_at_random_within_a_class():
    """Each example is in the smaller part in about a fifth of the seeds: 400 seeds, 5 standard deviations."""
    labels = np.repeat([0, 1], 20)
    chosen = sum(np.bincount(stratified_split(labels, (0.8, 0.2), seed=seed)[1], minlength=40) for seed in range(400))
    np.testing.assert_allclose(chosen, 80, atol=5 * np.sqrt(400 * 0.2 * 0.8))


def test_the_order_is_the_one_written_down_here():
    """Numbers of a run that was made once: a change of NumPy or of this code would change every resumed run."""
    np.testing.assert_array_equal(permutation(8, seed=0, stream=0), [0, 2, 1, 5, 4, 3, 6, 7])
    np.testing.assert_array_equal(permutation(8, seed=1, stream=2), [4, 2, 0, 6, 1, 5, 7, 3])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: stratified_split(np.zeros(9, int), (0.5, 0.6)), "add up to 1"),
        (lambda: stratified_split(np.zeros(9, int), (1.2, -0.2)), "positive"),
        (lambda: stratified_folds(np.array([0, 0, 0, 1, 1]), 3), "class 1 has only 2 examples.*folds=2"),
        (lambda: stratified_folds(np.zeros(9, int), 1), "at least 2"),
        (lambda: permutation(3, seed=-1, stream=0), "seed must lie in"),
    ],
)
def test_nonsense_is_refused(call, words):
    with pytest.raises(UsageError, match=words):
        call()
