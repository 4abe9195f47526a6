"""The loop: one compilation, a stop at NaN, early stopping, averages, accumulation, and what a run leaves behind."""

import io
import json

import jax
import numpy as np
import pytest
from small_runs import random_dataset, small_config

from dl_core.errors import UsageError
from train import run as runs
from train import tasks
from train.loop import NonFiniteLoss, train_and_evaluate
from train.run import make_feed, prepare
from train.trained import restore
from train.writers import read_history


@pytest.fixture
def on_random_images(monkeypatch):
    """Makes every run train on the same small random data set."""
    dataset = random_dataset()
    monkeypatch.setattr(tasks, "load_data", lambda config, fold=0: dataset)
    return dataset


def run_once(workdir, **changes):
    output = io.StringIO()
    changes = {"parallel.devices": 1, "model.name": "mlp", "model.fields": {"hidden": (16,)}, **changes}
    return train_and_evaluate(small_config(**changes), workdir, stream=output), output.getvalue()


SMALL = {"parallel.devices": 1}


@pytest.mark.parametrize("loop", ["host", "compiled"])
@pytest.mark.parametrize("placement", ["device", "grain"])
def test_the_step_is_traced_once(loop, placement, monkeypatch):
    traces = []
    make_task = tasks.make_task

    def counted(config, info):
        task = make_task(config, info)

        def loss_fn(*arguments):
            traces.append(1)
            return task.loss_fn(*arguments)

        return task._replace(loss_fn=loss_fn)

    monkeypatch.setattr(tasks, "make_task", counted)
    run, state = prepare(small_config(**SMALL, **{"loop": loop, "data.placement": placement}), dataset=random_dataset())
    feed, first = make_feed(run, 0), None
    for epoch in range(2):
        state, _ = feed.run(state, epoch * run.steps_per_epoch, run.steps_per_epoch, lambda *_: None)
        first = first or len(traces)
    assert len(traces) == first
    assert int(state.step) == 2 * run.steps_per_epoch


def test_accumulated_gradients_are_those_of_the_whole_batch():
    """Without BatchNorm, whose statistics are those of each part, four parts of eight give the step of 32."""
    changes = {
        **SMALL, "model.name": "mlp", "model.fields": {"hidden": (16,)},
        "augment.flip": False, "augment.crop_padding": 0,
    }  # fmt: skip

    def one_epoch(accumulate):
        run, state = prepare(small_config(**changes, accumulate=accumulate), dataset=random_dataset())
        state, metrics = make_feed(run, 0).run(state, 0, run.steps_per_epoch, lambda *_: None)
        return state.params, metrics

    (whole, metrics), (parts, summed) = one_epoch(1), one_epoch(4)
    # the sums of float32 gradients run in another order
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), whole, parts)
    np.testing.assert_allclose(metrics["loss"], summed["loss"], rtol=1e-5)


def test_bfloat16_keeps_float32_parameters_and_statistics():
    run, state = prepare(small_config(**SMALL, **{"model.dtype": "bfloat16"}), dataset=random_dataset())
    state, metrics = make_feed(run, 0).run(state, 0, 3, lambda *_: None)
    assert {leaf.dtype for leaf in jax.tree.leaves((state.params, state.model_state))} == {np.dtype("float32")}
    assert np.isfinite(metrics["loss"]).all()


def test_a_planted_nan_stops_the_run_with_its_step(on_random_images, monkeypatch, tmp_path):
    row = 17
    on_random_images.train.images[row] = 255  # a completely white image is what the planted loss cannot bear
    make_task = tasks.make_task

    def planted(config, info):
        task = make_task(config, info)

        def loss_fn(params, model_state, batch, key):
            loss, (model_state, metrics) = task.loss_fn(params, model_state, batch, key)
            white = (batch["image"] == 255).all(axis=(1, 2, 3)).any()
            loss = jax.numpy.where(white, jax.numpy.nan, loss)
            return loss, (model_state, {**metrics, "loss": loss})

        return task._replace(loss_fn=loss_fn)

    monkeypatch.setattr(tasks, "make_task", planted)
    feed = make_feed(prepare(small_config(**SMALL))[0], 0)
    step = next(step for step in range(3) if row in feed.rows(step))
    with pytest.raises(NonFiniteLoss, match=rf"loss is nan .* at step {step} .*there is no checkpoint yet"):
        run_once(tmp_path)


def test_a_diverging_run_names_the_last_good_checkpoint(on_random_images, tmp_path):
    """A step decay upwards: two good epochs, then a learning rate that no parameter survives."""
    changes = {
        "schedule.name": "step", "schedule.options": {"factor": 1.0, "every": 100}, "optimizer.learning_rate": 0.01,
        "epochs": 2,
    }  # fmt: skip
    run_once(tmp_path / "good", **changes)
    changes |= {"model.name": "mlp", "parallel.devices": 1, "model.fields": {"hidden": (16,)}}
    config = small_config(**{**changes, "epochs": 4, "optimizer.learning_rate": 1e30})
    (tmp_path / "good" / "summary.json").unlink()
    with pytest.raises(NonFiniteLoss, match=r"at step \d+ .* last good checkpoint is step 6"):
        train_and_evaluate(config, tmp_path / "good", resume=True, stream=io.StringIO())


def test_a_run_leaves_what_was_promised(on_random_images, tmp_path):
    summary, output = run_once(tmp_path / "run", epochs=3)
    stored = json.loads((tmp_path / "run" / "summary.json").read_text())
    promised = {"config", "test_accuracy", "test_accuracy_interval", "seconds", "steps", "parameters", "versions"}
    assert promised <= set(stored)
    assert stored["steps"] == summary["steps"] == 9
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000
    assert list((tmp_path / "run" / "tensorboard").iterdir())
    lines = read_history(tmp_path / "run")
    assert [line["split"] for line in lines] == ["train", "validation"] * 3
    assert {"loss", "accuracy", "learning_rate", "gradient_norm", "update_norm", "images_per_second"} <= set(lines[0])
    assert "epoch 3/3" in output
    low, high = stored["test_accuracy_interval"]
    assert low <= stored["test_accuracy"] <= high


def test_a_run_is_never_overwritten(on_random_images, tmp_path):
    run_once(tmp_path, epochs=1)
    before = (tmp_path / "summary.json").read_bytes()
    with pytest.raises(UsageError, match="holds a run already; go on with --resume"):
        run_once(tmp_path, epochs=1)
    assert (tmp_path / "summary.json").read_bytes() == before


def test_the_restored_weights_give_the_reported_accuracy(on_random_images, tmp_path):
    summary, _ = run_once(tmp_path, epochs=3)
    trained = restore(tmp_path, weights="best")
    images = on_random_images.test.arrays()[0].astype(np.float32) / 255
    predicted = trained.apply_fn(trained.variables, images).argmax(-1)
    assert (predicted == on_random_images.test.labels).mean() == pytest.approx(summary["test_accuracy"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"early_stopping.patience": 1, "optimizer.learning_rate": 1e-12}, "validation loss has stopped falling"),
        (
            {"early_stopping.small_update": 10.0, "early_stopping.small_update_patience": 2},
            "training loss hardly changes",
        ),
        ({"early_stopping.budget_seconds": 1e-3}, "budget of 0.001 seconds"),
        ({"max_steps": 4}, "all 4 steps done"),
    ],
)
def test_each_form_of_early_stopping_stops(changes, words, on_random_images, tmp_path):
    summary, _ = run_once(tmp_path, **{"epochs": 50, "early_stopping.min_delta": 1e-3, **changes})
    assert words in summary["stopped"]
    assert summary["steps"] < 50 * 3


def test_the_plateau_lowers_the_learning_rate(on_random_images, tmp_path):
    run_once(
        tmp_path, **{
            "epochs": 6, "schedule.name": "constant", "optimizer.learning_rate": 1e-9,
            "plateau.factor": 0.5, "plateau.patience": 1,
        },
    )  # fmt: skip
    rates = [line["learning_rate"] for line in read_history(tmp_path) if line["split"] == "train"]
    assert rates[-1] <= 0.25 * rates[0]


@pytest.mark.parametrize("name", ["ema", "swa"])
def test_averaged_weights_are_kept_and_can_be_used(name, on_random_images, tmp_path):
    summary, _ = run_once(
        tmp_path, **{
            "model.name": "resnet20_cifar", "model.fields": {"stage_sizes": (1, 1), "width": 4}, "epochs": 3,
            "average.name": name, "average.decay": 0.8, "evaluate_with": "average",
        },
    )  # fmt: skip
    average, last = restore(tmp_path, weights="average"), restore(tmp_path, weights="last")
    apart = jax.tree.map(lambda a, b: np.abs(a - b).max(), average.variables["params"], last.variables["params"])
    assert max(jax.tree.leaves(apart)) > 0
    assert summary["weights"] == "average"


def test_swa_is_the_mean_of_the_parameters_at_the_ends_of_epochs(on_random_images, tmp_path, monkeypatch):
    seen = []
    evaluate = runs.evaluate

    def remember(run, variables, examples, **options):
        if examples is run.dataset.validation:
            seen.append(jax.tree.map(np.asarray, variables["params"]))
        return evaluate(run, variables, examples, **options)

    monkeypatch.setattr("train.loop.evaluate", remember)
    run_once(tmp_path, **{"epochs": 4, "average.name": "swa", "average.start_epoch": 2.0})
    mean = jax.tree.map(lambda *x: np.mean(x, axis=0), *seen[1:4])
    average = restore(tmp_path, weights="average").variables["params"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), average, mean)


def test_shuffled_training_labels_give_chance_on_the_test_split():
    """The network that reads digits must not, when the training labels are permuted: by majority it would get 10 %."""
    accuracy = {}
    for shuffled in (False, True):
        run, state = prepare(
            small_config(
                **{
                    **SMALL, "data.shuffle_labels": shuffled, "model.name": "mlp", "model.fields": {"hidden": (64,)},
                    "augment.flip": False, "augment.crop_padding": 0,
                }
            )
        )  # fmt: skip
        feed = make_feed(run, 0)
        for epoch in range(10):
            state, _ = feed.run(state, epoch * run.steps_per_epoch, run.steps_per_epoch, lambda *_: None)
        accuracy[shuffled] = runs.evaluate(run, state.variables, run.dataset.test)[0]["accuracy"]
    assert accuracy[False] > 0.9
    # 269 examples of which those of a class are predicted alike: a spread of 4 points around 10 %
    assert accuracy[True] < 0.25
