"""Runs that start from another run's weights: what is taken over, what is frozen, and what a resumed run does."""

import io
import json
import shutil

import jax
import numpy as np
import pytest
from small_runs import random_dataset, small_config

import models
import train.loop
from dl_core.errors import UsageError
from models.extraction import extract_features
from models.weights import export_torch
from train import configuration
from train.loop import train_and_evaluate
from train.run import prepare
from train.tasks.classification import make_model
from train.trained import restore
from train.transfer import load_pretrained, start_from_pretrained

FROZEN = ("conv1", "bn1", "layer1_0")


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """The workdir of a small ResNet trained for two epochs on three classes of digits."""
    folder = tmp_path_factory.mktemp("runs") / "source"
    train_and_evaluate(digits(classes=(0, 1, 2)), folder, stream=io.StringIO())
    return folder


def digits(classes=(3, 4, 5), **changes):
    config = small_config(**{"parallel.devices": 1, "data.name": "digits", **changes})
    config.data.options = {"classes": classes, "labels_per_class": 16, **config.data.options.to_dict()}
    return config


def leaves(variables):
    paths = jax.tree_util.tree_leaves_with_path({name: variables[name] for name in ("params", "batch_stats")})
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in paths}


def names_changed(before, after):
    return {name for name in before if before[name].tobytes() != after[name].tobytes()}


def test_a_run_starts_from_the_weights_with_a_new_head_for_other_classes(pretrained, tmp_path):
    run, state = prepare(digits(**{"transfer.weights": str(pretrained)}))
    fresh, source = leaves(state.variables), leaves(restore(pretrained).variables)
    said = []
    started = leaves(start_from_pretrained(run, state, tmp_path, said.append).variables)
    assert names_changed(source, started) == {"params/fc/kernel", "params/fc/bias"}
    assert names_changed(fresh, started) >= {"params/conv1/kernel", "batch_stats/bn1/mean"}
    report = json.loads((tmp_path / "transfer.json").read_text())
    assert report["missing"] == report["unexpected"] == ["params/fc/bias", "params/fc/kernel"]
    assert "fresh: 2 (params/fc/bias, params/fc/kernel)" in said[0]


def test_the_head_stays_for_the_same_classes_unless_a_new_one_is_asked_for(pretrained):
    for new_head, fresh in ((False, ()), (True, ("params/fc/bias", "params/fc/kernel"))):
        config = digits((0, 1, 2), **{"transfer.weights": str(pretrained), "transfer.new_head": new_head})
        run, _ = prepare(config)
        assert load_pretrained(config, run.info, run.task)[1].missing == fresh


def test_a_grey_stem_becomes_one_for_colours_that_answers_grey_images_alike(pretrained):
    config = digits((0, 1, 2), **{"transfer.weights": str(pretrained), "data.options": {"channels": 3}})
    run, state = prepare(config)
    values, report = load_pretrained(config, run.info, run.task)
    assert report.adapted == ("params/conv1/kernel",)
    grey = restore(pretrained)
    image = np.random.default_rng(0).random((2, 8, 8, 1), np.float32)
    model, old = make_model(config, run.info), make_model(grey.config, grey.info)
    new = jax.tree_util.tree_map_with_path(lambda path, _: values[tuple(p.key for p in path)], state.variables)
    expected = jax.jit(old.apply)(grey.variables, image)
    answer = jax.jit(model.apply)(new, image.repeat(3, axis=3))
    np.testing.assert_allclose(answer, expected, rtol=1e-4, atol=1e-5)


def test_weights_that_do_not_fit_are_refused_with_the_names(pretrained):
    config = digits(**{"transfer.weights": str(pretrained)})
    config.model.fields = {"stage_sizes": (1, 2), "width": 4}
    run, _ = prepare(config)
    with pytest.raises(UsageError, match=r"do not fit: .*layer2_1/bn1/.* is missing"):
        load_pretrained(config, run.info, run.task)
    config.transfer.weights = "no/such/run"
    with pytest.raises(UsageError, match="neither the workdir of a finished run nor a file"):
        load_pretrained(config, run.info, run.task)


def test_torch_weights_fill_everything_but_a_head_for_other_classes(tmp_path):
    numpy_file = pytest.importorskip("safetensors.numpy")
    fields = {"stage_sizes": (1, 1), "width": 4}
    model = models.create("resnet20_cifar", num_classes=7, **fields)
    variables = jax.jit(model.init)(jax.random.key(5), np.zeros((1, 8, 8, 3), np.float32))
    file = tmp_path / "weights.safetensors"
    numpy_file.save_file(export_torch("resnet20_cifar", variables, **fields), file)
    config = digits(**{"transfer.weights": str(file)})
    run, state = prepare(config)
    started = leaves(start_from_pretrained(run, state, tmp_path, lambda _: None).variables)
    report = json.loads((tmp_path / "transfer.json").read_text())
    assert (report["adapted"], sorted(report["missing"])) == (["conv1.weight"], ["fc.bias", "fc.weight"])
    same = {"params/conv1/kernel", "params/fc/kernel", "params/fc/bias"}
    assert names_changed(leaves(variables), started) <= same
    np.testing.assert_allclose(
        started["params/conv1/kernel"],
        np.asarray(variables["params"]["conv1"]["kernel"]).sum(2, keepdims=True),
        rtol=1e-6,
    )


@pytest.fixture(scope="module")
def tuned(pretrained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "tuned"
    config = digits(
        **{
            "transfer.weights": str(pretrained),
            "transfer.freeze": FROZEN,
            "optimizer.name": "adamw",
            "optimizer.weight_decay": 0.1,
            "optimizer.clip_norm": 1.0,
            "loss.l2": 0.1,
            "transfer.layer_decay": 0.5,
            "transfer.unfreeze_every_epochs": 0.5,
            "evaluate_with": "last",
        }
    )
    config.epochs = 4
    configuration.validate(config)
    train_and_evaluate(config, folder, stream=io.StringIO())
    return folder


def test_what_is_frozen_ends_as_it_began_statistics_included(pretrained, tuned):
    before, after = (
        leaves(restore(folder, weights=w).variables) for folder, w in ((pretrained, "best"), (tuned, "last"))
    )
    changed = names_changed(before, after)
    kept = {name for name in before if name.split("/")[1] in FROZEN}
    assert {name.split("/")[0] for name in kept} == {"params", "batch_stats"}
    assert changed == set(before) - kept


def test_a_resumed_run_needs_the_source_no_more_and_ends_the_same(pretrained, tuned, tmp_path, monkeypatch):
    broken = tmp_path / "broken"
    config = configuration.from_json((tuned / "config.json").read_text())
    run_to_its_end = train.loop.finish

    def killed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(train.loop, "finish", killed)
    source = tmp_path / "source"
    shutil.copytree(pretrained, source)
    config.transfer.weights = str(source)
    with pytest.raises(KeyboardInterrupt):
        train_and_evaluate(config, broken, stream=io.StringIO())
    newest = max((broken / "checkpoints").glob("[0-9]*"), key=lambda folder: int(folder.name))
    shutil.rmtree(newest)  # the last epoch is done again
    shutil.rmtree(source)
    monkeypatch.setattr(train.loop, "finish", run_to_its_end)
    output = io.StringIO()
    train_and_evaluate(config, broken, resume=True, stream=output)
    assert "resumed at step" in output.getvalue()
    one, other = (leaves(restore(folder, weights="last").variables) for folder in (tuned, broken))
    assert names_changed(one, other) == set()


def test_a_frozen_norm_normalises_as_in_evaluation_while_the_rest_trains():
    """With everything but the head frozen, the loss of training is that of evaluation."""
    dataset = random_dataset()
    config = small_config(**{"parallel.devices": 1, "transfer.freeze": ("conv1", "bn1", "layer*")})
    config.augment.flip, config.augment.crop_padding = False, 0
    run, state = prepare(config, dataset=dataset)
    images, labels = dataset.train.images[:32], dataset.train.labels[:32]
    batch = {"image": images, "label": labels, "row": np.arange(32, dtype=np.int32)}
    shift = lambda tree: jax.tree.map(lambda x: x + 0.3, tree)
    model_state = shift(state.model_state)
    loss, (updated, _) = jax.jit(run.task.loss_fn)(state.params, model_state, batch, jax.random.key(0))
    _, sums = jax.jit(run.task.evaluate_fn)(
        {"params": state.params, **model_state}, {**batch, "valid": np.ones(32, bool)}
    )
    np.testing.assert_allclose(loss, sums["loss"][0] / 32, rtol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, updated, model_state)


def test_features_of_a_data_set_come_out_in_order(pretrained):
    trained = restore(pretrained)
    examples, model = random_dataset().test, make_model(trained.config, trained.info)
    rows = extract_features(model, trained.variables, examples, mean=(0.5,), std=(0.25,), batch_size=10)
    images = (examples.images.astype(np.float32) / 255 - 0.5) / 0.25
    expected = models.features(model, trained.variables, images)["penultimate"]
    np.testing.assert_allclose(rows, expected, rtol=1e-4, atol=1e-6)
    with pytest.raises(UsageError, match="unknown feature map 'stage9'; did you mean 'stage"):
        extract_features(model, trained.variables, examples, "stage9")


def test_freezing_and_recomputed_statistics_exclude_each_other():
    config = digits(**{"transfer.freeze": ("conv1",), "recompute_batch_stats": True})
    with pytest.raises(UsageError, match=r"config.transfer.freeze keeps BatchNorm's statistics"):
        configuration.validate(config)
