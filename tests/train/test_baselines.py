"""The traditional pipeline beside a network, and members of an ensemble trained at once."""

import json

import jax
import numpy as np
import pytest
from small_runs import random_dataset, small_config

from dl_core.data import Dataset, Examples, load
from dl_core.ensembles import unstack
from dl_core.errors import UsageError
from train import configuration, run
from train.baselines import BASELINES, baseline_figures, traditional_baseline
from train.configs import defaults
from train.loop import train_and_evaluate
from train.members import train_members


@pytest.fixture(scope="module")
def digits():
    return load("digits")


@pytest.mark.parametrize(("name", "least"), [("hog_svm", 0.95), ("hog_knn", 0.85), ("pixels_knn", 0.96)])
def test_pipelines_read_digits(digits, name, least):
    result = traditional_baseline(digits, **BASELINES[name])
    assert result.accuracy > least  # chance is 0.1
    assert (result.train_examples, result.test_examples) == (len(digits.train), len(digits.test))
    assert result == result._replace(seconds=result.seconds)


def test_colour_alone_tells_what_shape_alone_does_not():
    random = np.random.default_rng(0)

    def examples(n):
        labels = np.arange(n, dtype=np.int32) % 3
        images = random.integers(0, 60, (n, 8, 8, 3))
        images[np.arange(n), :, :, labels] += 120
        return Examples(images.astype(np.uint8), labels)

    data = Dataset("tints", ("r", "g", "b"), examples(60), examples(30), examples(30))
    assert traditional_baseline(data, **BASELINES["color_svm"]).accuracy == 1
    grey = lambda part: Examples(part.images.mean(axis=-1, keepdims=True).astype(np.uint8), part.labels)
    data = Dataset("greys", data.class_names, grey(data.train), grey(data.validation), grey(data.test))
    assert traditional_baseline(data, **BASELINES["color_svm"]).accuracy < 0.7


def test_figures_are_those_of_the_pipeline_that_was_named(digits):
    assert baseline_figures(digits, "none") == {}
    figures = baseline_figures(digits, "hog_knn")
    assert (figures["baseline"], figures["baseline_accuracy"] > 0.85) == ("hog_knn", True)


def test_a_large_split_is_sampled(digits):
    result = traditional_baseline(digits, classifier="knn", most_examples=100)
    assert (result.train_examples, result.test_examples) == (100, 100)
    assert result.accuracy > 0.6


def test_the_baseline_stands_in_summary_table_and_report(tmp_path):
    config = small_config(**{"model.name": "linear", "model.fields": {}, "max_steps": 2, "baseline": "hog_knn"})
    config.data.name, config.data.options = "scenes", {"num_train": 64, "num_validation": 32, "num_test": 32}
    summary = train_and_evaluate(config, tmp_path / "run")
    stored = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert stored["baseline_accuracy"] == summary["baseline_accuracy"]
    assert "baseline hog_knn" in (tmp_path / "run" / "report.html").read_text()


def test_an_unknown_baseline_is_refused(digits):
    config = defaults.get_config()
    config.baseline = "hog_swm"
    with pytest.raises(UsageError, match=r"config.baseline is 'hog_swm'; legal values, nearest first: hog_svm"):
        configuration.validate(config)
    with pytest.raises(UsageError, match="unknown descriptor 'sift'"):
        traditional_baseline(digits, descriptor="sift")
    with pytest.raises(UsageError, match="unknown classifier 'svm'"):
        traditional_baseline(digits, classifier="svm")


def test_members_trained_at_once_are_those_trained_one_by_one():
    """Each member is the run with its seed: same start, same batches, same random draws."""
    data = random_dataset()
    changes = {"model.name": "mlp", "model.fields": {"hidden": (8,), "dropout": 0.3}, "parallel.devices": 1}
    _, stacked = train_members(small_config(**changes), [3, 5], dataset=data)
    first, second = unstack(stacked)
    one, state = run.prepare(small_config(**changes, seed=5), dataset=data)
    feed = run.make_feed(one, 0)
    for epoch in range(one.config.epochs):
        state, _ = feed.run(state, epoch * one.steps_per_epoch, one.steps_per_epoch, lambda *_: None)
    # float32: products under vmap are summed in another order
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), second, state.variables)
    distance = jax.tree.map(lambda a, b: np.abs(a - b).max(), first["params"], second["params"])
    assert max(jax.tree.leaves(distance)) > 0.1
