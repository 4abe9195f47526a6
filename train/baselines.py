"""The traditional pipeline, as the baseline beside every network: descriptor, PCA, linear SVM or nearest neighbours."""

import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, UInt8

from dl_core.augment.photometric import to_float
from dl_core.data import Dataset, Examples
from dl_core.data.splits import permutation
from dl_core.descriptors import color_histogram, hog
from dl_core.errors import UsageError, unknown_name

MOST_EXAMPLES = 5000  # of a split that a baseline takes; more cost minutes
CHUNK = 256  # images described at once
CELLS = 7  # along the shorter side, whatever the image's size; fewer where they would be of one pixel
_SAMPLE_STREAM = 2**62  # of `permutation`: neither that of an epoch nor that of a split

# what config.baseline may name, besides "none"
BASELINES: dict[str, dict[str, Any]] = {
    "hog_svm": {"descriptor": "hog", "classifier": "linear_svm"},
    "hog_knn": {"descriptor": "hog", "reduce": 64, "classifier": "knn"},
    "color_svm": {"descriptor": "color", "classifier": "linear_svm"},
    "pixels_knn": {"descriptor": "pixels", "reduce": 64, "classifier": "knn"},
}


class Baseline(NamedTuple):
    """How well a traditional pipeline does.

    accuracy: on the test split.
    features: numbers that describe an image, before PCA.
    train_examples, test_examples: how many were used.
    seconds: for all of it.
    """

    accuracy: float
    features: int
    train_examples: int
    test_examples: int
    seconds: float


def _hog(images: Float[Array, "batch height width channels"]) -> Float[Array, "batch features"]:
    side = min(images.shape[1:3])
    cell = min(side, max(2, side // CELLS))
    block = min(2, side // cell)
    return hog(images, pixels_per_cell=(cell, cell), cells_per_block=(block, block))


DESCRIPTORS: dict[str, Callable[[Array], Array]] = {
    "hog": _hog,
    "color": partial(color_histogram, bins=8, joint=True),
    "pixels": lambda images: images.reshape(len(images), -1),
}


@partial(jax.jit, static_argnums=1)
def _described(images: UInt8[Array, "batch height width channels"], descriptor: str) -> Float[Array, "batch features"]:
    return DESCRIPTORS[descriptor](to_float(images))


def describe_images(examples: Examples, descriptor: str) -> tuple[Float[np.ndarray, "n features"], np.ndarray]:
    """Descriptors and labels of a split.

    Args:
      examples: n of them, lazy or not; decoded in chunks.
      descriptor: a key of `DESCRIPTORS`.

    Returns:
      float32 [n, features], and the labels.

    Raises:
      UsageError: an unknown descriptor.
    """
    if descriptor not in DESCRIPTORS:
        raise unknown_name("descriptor", descriptor, DESCRIPTORS)
    features, labels = [], []
    for start in range(0, len(examples), CHUNK):
        rows = np.arange(start, min(start + CHUNK, len(examples)))
        batch = examples.batch(np.resize(rows, min(CHUNK, len(examples))))  # one shape: one compilation
        features.append(np.asarray(_described(batch["image"], descriptor))[: len(rows)])
        labels.append(batch["label"][: len(rows)])
    return np.concatenate(features), np.concatenate(labels)


def traditional_baseline(
    dataset: Dataset,
    *,
    descriptor: str = "hog",
    reduce: int | None = None,
    classifier: str = "linear_svm",
    neighbours: int = 5,
    most_examples: int = MOST_EXAMPLES,
    seed: int = 0,
) -> Baseline:
    """Trains descriptor, PCA and classifier on the training split and scores them on the test split.

    Args:
      dataset: of classes.
      descriptor: "hog", "color" (joint histogram of 8 bins a channel) or "pixels".
      reduce: principal components that are kept; None leaves PCA out.
      classifier: "linear_svm" (one against the rest, squared hinge, C = 1) or "knn".
      neighbours: of "knn".
      most_examples: of each of the two splits; a larger split is sampled.
      seed: of the sample and of the solvers.

    Returns:
      Baseline.

    Raises:
      UsageError: an unknown descriptor or classifier.
    """
    from sklearn.decomposition import PCA  # here, because the imports take a second
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.svm import LinearSVC

    began = time.perf_counter()
    classifiers = {
        "linear_svm": lambda: LinearSVC(random_state=seed),
        "knn": lambda: KNeighborsClassifier(min(neighbours, len(train))),
    }
    if classifier not in classifiers:
        raise unknown_name("classifier", classifier, classifiers)
    if reduce is not None and reduce < 1:
        raise UsageError(f"reduce must be at least 1 component, got {reduce}")
    train, test = (_sample(part, most_examples, seed) for part in (dataset.train, dataset.test))
    features, labels = describe_images(train, descriptor)
    steps = [] if reduce is None else [PCA(min(reduce, *features.shape), random_state=seed)]
    pipeline = make_pipeline(*steps, classifiers[classifier]())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # an SVM stopped early is a baseline all the same
        pipeline.fit(features, labels)
    accuracy = float(pipeline.score(*describe_images(test, descriptor)))
    return Baseline(accuracy, features.shape[1], len(train), len(test), time.perf_counter() - began)


def _sample(examples: Examples, most: int, seed: int) -> Examples:
    if len(examples) <= most:
        return examples
    return examples.take(np.sort(permutation(len(examples), seed=seed, stream=_SAMPLE_STREAM)[:most]))


def baseline_figures(dataset: Dataset, name: str, *, seed: int = 0) -> dict[str, Any]:
    """What stands beside a classifier in its summary.

    Args:
      dataset: of classes.
      name: "none", or a key of `BASELINES`.
      seed: see `traditional_baseline`.

    Returns:
      "baseline", the name, and baseline_accuracy on the test split; nothing for "none". The commonest class is in
      `dl_core.metrics.classification_report` already.

    Raises:
      UsageError: an unknown name.
    """
    if name == "none":
        return {}
    if name not in BASELINES:
        raise unknown_name("baseline", name, ("none", *BASELINES))
    return {"baseline": name, "baseline_accuracy": traditional_baseline(dataset, **BASELINES[name], seed=seed).accuracy}
