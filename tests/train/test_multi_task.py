"""The task multi_task: several labels an image, a head for each, fixed or learned weights, a report page a head."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_runs import small_config

from dl_core.data import load
from dl_core.errors import UsageError
from models.multi_head import create_multi_head, split_logits
from train.loop import train_and_evaluate
from train.run import prepare
from train.tasks import load_data, make_task
from train.tasks.multi_task import LOG_VARIANCES, heads_of, summarise
from train.trained import restore

SCENES = {"num_train": 64, "num_validation": 32, "num_test": 32}
HEADS = {"kind": 4, "colour": 8}


def config_of(**changes):
    config = small_config(**{"parallel.devices": 1, "task": "multi_task", "data.name": "scenes", **changes})
    config.data.image_size = 16
    config.data.options = {**SCENES, "target": "kind+colour"}
    return config


def test_several_targets_are_the_single_ones_side_by_side():
    several = load("scenes", target="colour+kind", **SCENES)
    for column, target in enumerate(("colour", "kind")):
        single = load("scenes", target=target, **SCENES)
        np.testing.assert_array_equal(several.train.labels[:, column], single.train.labels)
        np.testing.assert_array_equal(several.train.images, single.train.images)
        assert several.class_names[column] == f"{target}: {'|'.join(single.class_names)}"
    with pytest.raises(UsageError, match="colours"):
        load("scenes", target="kind+colours")


def test_heads_are_blocks_of_the_last_layer():
    model = create_multi_head("mlp", HEADS, hidden=(5,))
    variables = model.init(jax.random.key(0), jnp.zeros((1, 3, 3, 1)))
    x = jax.random.normal(jax.random.key(1), (2, 3, 3, 1))
    parts = split_logits(model.apply(variables, x), HEADS)
    assert {name: part.shape for name, part in parts.items()} == {name: (2, size) for name, size in HEADS.items()}
    hidden = jax.nn.relu(x.reshape(2, -1) @ variables["params"]["fc1"]["kernel"])
    kernel = variables["params"]["head"]["kernel"][:, 4:]
    np.testing.assert_allclose(parts["colour"], hidden @ kernel, rtol=1e-4, atol=1e-5)
    for heads in ({}, {"kind": 0}):
        with pytest.raises(UsageError, match="at least one head"):
            create_multi_head("mlp", heads)
    with pytest.raises(UsageError, match="16 logits"):
        split_logits(np.zeros((2, 16)), {"kind": 4})


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "several"
    summary = train_and_evaluate(config_of(**{"multi_task.weighting": "uncertainty"}), folder, stream=io.StringIO())
    return folder, summary


def test_a_run_leaves_figures_and_a_page_for_every_head(finished):
    folder, summary = finished
    each = [summary[f"test_accuracy_{name}"] for name in HEADS]
    assert summary["test_accuracy"] == pytest.approx(np.mean(each))
    assert summary["test_all_heads_right"] <= min(each)
    report = (folder / "report.html").read_text(encoding="utf-8")
    assert all(f"Test: {name}" in report for name in HEADS)


def test_learned_weights_move_are_kept_and_do_not_disturb_the_network(finished):
    trained = restore(finished[0], weights="last")
    assert (np.asarray(trained.variables["params"][LOG_VARIANCES]) != 0).all()
    images = np.random.default_rng(0).random((2, 16, 16, 3), np.float32)
    logits = trained.apply_fn(trained.variables, images)
    entry, text = trained.task.answer(trained.info.class_names, np.asarray(logits[0]), 2)
    assert [len(entry[name]) for name in HEADS] == [2, 2]
    assert text.startswith("kind: ")
    members = jnp.stack([logits, logits])
    probabilities = split_logits(jnp.exp(trained.task.combine(members)), HEADS)
    for name, part in split_logits(logits, HEADS).items():
        np.testing.assert_allclose(probabilities[name], jax.nn.softmax(part), rtol=1e-5)


def test_fixed_weights_multiply_the_losses():
    small = {"model.name": "mlp", "model.fields": {"hidden": (4,)}}
    run, state = prepare(config_of(**small))
    images, labels = (jnp.asarray(array[:16]) for array in run.dataset.train.arrays())
    batch = {"image": images, "label": labels, "row": jnp.arange(16, dtype=jnp.int32)}
    losses = {}
    for weights in ((1.0, 1.0), (1.0, 0.0), (0.0, 2.0)):
        task = make_task(config_of(**small, **{"multi_task.weights": weights}), run.info)
        _, (_, metrics) = jax.jit(task.loss_fn)(state.params, state.model_state, batch, jax.random.key(0))
        losses[weights] = float(metrics["objective"])
        plain = float(metrics["loss"])
    assert losses[1.0, 1.0] == pytest.approx(plain, rel=1e-5)
    assert losses[1.0, 0.0] + losses[0.0, 2.0] / 2 == pytest.approx(plain, rel=1e-5)
    assert 0 < losses[1.0, 0.0] < plain
    with pytest.raises(UsageError, match="1 numbers for the heads kind, colour"):
        make_task(config_of(**small, **{"multi_task.weights": (1.0,)}), run.info)


def test_the_summary_counts_by_hand():
    labels = np.array([[0, 1], [1, 1], [0, 0], [0, 1]], np.int32)
    hits = np.array([[1, 1], [1, 0], [0, 1], [1, 1]], bool)
    answers = np.where(hits, labels, 1 - labels)
    logits = np.concatenate([np.eye(2)[answers[:, 0]], np.eye(2)[answers[:, 1]]], axis=1).astype(np.float32)
    figures = summarise({"a": 2, "b": 2}, labels, logits)
    assert (figures["test_accuracy_a"], figures["test_accuracy_b"]) == (0.75, 0.75)
    assert figures["test_all_heads_right"] == 0.5
    assert figures["test_majority_baseline_b"] == 0.75


def test_labels_are_corrupted_each_by_itself_in_training_only():
    clean, noisy = (load_data(config_of(**{"data.label_noise": noise})) for noise in (0.0, 1.0))
    assert (clean.train.labels != noisy.train.labels).all()
    assert (noisy.train.labels < np.array([[4, 8]])).all()
    np.testing.assert_array_equal(clean.test.labels, noisy.test.labels)


def test_data_with_one_label_an_image_are_refused():
    with pytest.raises(UsageError, match="several labels an image"):
        heads_of(("cat", "dog"))
