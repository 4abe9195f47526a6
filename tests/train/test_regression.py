"""The task "regression": angles and values through training, report, evaluation and prediction."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from called_programs import call
from PIL import Image

import train.__main__
import train.evaluate
import train.predict
from dl_core.data import load
from dl_core.errors import UsageError
from train import configuration, run, tasks
from train.configs import defaults
from train.tasks.regression import LOSSES, baselines, errors, make_loss, summarise

CONFIG = """
from train.configs import gaze_eyes

def get_config():
    config = gaze_eyes.get_config()
    config.epochs = 4
    config.parallel.devices = 1
    config.model.name = "mlp"
    config.model.fields = {"hidden": (64,)}
    config.data.image_size = 16
    config.data.options = {"num_train": 1024, "num_validation": 64, "num_test": 64}
    return config
"""


def regression(**changes):
    config = defaults.get_config()
    config.task = "regression"
    config.model.name = "linear"
    for name, value in changes.items():
        config.regression[name] = value
    return config


def info(**fields):
    base = tasks.DatasetInfo(("value",), (4, 4, 1), (0.5,), (0.25,), (10.0,), (4.0,))
    return base._replace(**fields)


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("configs") / "tiny_gaze.py"
    path.write_text(CONFIG)
    return path


@pytest.fixture(scope="module")
def finished(config_file, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "gaze"
    status, out, err = call(train.__main__, f"--config={config_file}", f"--workdir={workdir}")
    assert (status, err) == (0, "")
    return workdir, out


def test_a_run_on_angles_leaves_its_record(finished):
    workdir, out = finished
    for words in ("gaze angle in training: from 0", "mae", "test mean absolute error", "within 10°", "always the same"):
        assert words in out
    summary = json.loads((workdir / "summary.json").read_text())
    assert 75 < summary["constant_mae"] < 105
    assert summary["test_mae"] < 0.8 * summary["constant_mae"]  # four epochs of a small perceptron
    low, high = summary["test_mae_interval"]
    assert low < summary["test_mae"] < high
    report = (workdir / "report.html").read_text()
    for heading in ("Predicted against true", "Error by direction", "Largest errors", "Mean absolute error"):
        assert heading in report


def test_a_trained_model_is_evaluated_and_answers_in_degrees(finished, tmp_path):
    workdir, _ = finished
    status, out, _ = call(train.evaluate, f"--workdir={workdir}", f"--output={tmp_path / 'out.json'}")
    summary = json.loads((workdir / "summary.json").read_text())
    assert status == 0
    assert json.loads((tmp_path / "out.json").read_text())["mae"] == pytest.approx(summary["test_mae"], abs=1e-4)
    assert "\nmean absolute error " in out
    options = {"num_train": 1024, "num_validation": 64, "num_test": 64}
    images = load("eyes", image_size=16, **options).test.arrays()[0][:3]
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(path)
    status, out, _ = call(train.predict, f"--workdir={workdir}", *paths)
    assert (status, len(out.splitlines())) == (0, 3)
    assert all("gaze angle" in line and line.endswith("°") for line in out.splitlines())
    status, out, _ = call(train.predict, f"--workdir={workdir}", "--json", paths[0])
    record = json.loads(out)
    assert record["name"] == "gaze angle"
    assert 0 <= record["value"] < 360


def test_folds_of_a_regression_are_trained_and_averaged(config_file, tmp_path):
    workdir = tmp_path / "folds"
    arguments = [f"--config={config_file}", "--config.folds=2", "--config.max_steps=4"]
    status, _, err = call(train.__main__, *arguments, f"--workdir={workdir}")
    assert (status, err) == (0, "")
    summary = json.loads((workdir / "summary.json").read_text())
    assert len(summary["folds"]) == 2
    assert all("validation_mae" in fold and "test_mae" in fold for fold in summary["folds"])


@pytest.mark.parametrize(
    ("head", "loss"),
    [(head, loss) for head, known in LOSSES.items() for loss in known],
)
def test_every_loss_falls_when_its_gradient_is_followed(head, loss):
    task = tasks.make_task(regression(head=head, loss=loss), info())
    variables = task.init(jax.random.key(0))
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (16, 4, 4, 1), np.uint8)
    labels = (images.mean(axis=(1, 2, 3)) if head == "value" else random.uniform(0, 360, 16)).astype(np.float32)
    batch = {"image": jnp.asarray(images), "label": jnp.asarray(labels), "row": jnp.arange(16)}

    @jax.jit
    def step(params):
        (value, (_, metrics)), gradient = jax.value_and_grad(task.loss_fn, has_aux=True)(
            params, {}, batch, jax.random.key(1)
        )
        return value, metrics, jax.tree.map(lambda p, g: p - 0.01 * g, params, gradient)

    params, values = variables["params"], []
    for _ in range(20):
        value, metrics, params = step(params)
        values.append(float(value))
    assert set(metrics) == {"loss", "objective", "mae"}
    assert values[-1] < values[0]
    outputs, sums = jax.jit(task.evaluate_fn)({"params": params}, {**batch, "valid": jnp.ones(16, bool)})
    np.testing.assert_allclose(task.apply_fn({"params": params}, batch["image"] / jnp.float32(255)), outputs, rtol=1e-4)
    expected = errors(outputs, labels, circular=head == "angle").sum()
    np.testing.assert_allclose(sums["mae"][0], expected, rtol=1e-5)


def test_outputs_are_in_the_units_of_the_labels_whatever_these_are():
    """The same network on labels in another unit and with another zero gives the same values in that unit."""
    images = jax.random.uniform(jax.random.key(1), (5, 4, 4, 1))
    for loss in ("squared_error", "gaussian_nll"):
        one = tasks.make_task(regression(loss=loss), info())
        other = tasks.make_task(regression(loss=loss), info(label_mean=(1002.0,), label_std=(400.0,)))
        variables = one.init(jax.random.key(0))
        first, second = one.apply_fn(variables, images), other.apply_fn(variables, images)
        np.testing.assert_allclose(second[:, 0], 100 * first[:, 0] + 2, rtol=1e-5)
        if loss == "gaussian_nll":
            np.testing.assert_allclose(second[:, 1], first[:, 1] + 2 * np.log(100), rtol=1e-5)


def test_an_ensemble_of_angles_averages_directions():
    task = tasks.make_task(regression(head="angle", loss="cosine_angle"), info())
    outputs = np.array([[[9.0, -1.0]], [[0.9, 0.1]]], np.float32)
    assert float(errors(task.combine(outputs), np.zeros(1, np.float32), circular=True)[0]) < 1e-3


def test_the_constant_baseline_is_the_best_constant():
    data = load("eyes", num_train=200, num_validation=8, num_test=200, image_size=16)
    assert baselines(data, circular=True)["constant_mae"] == pytest.approx(90, abs=8)
    data = load("eyes", num_train=200, num_validation=8, num_test=200, image_size=16, target="lid_opening")
    figure = baselines(data, circular=False)["constant_mae"]
    assert figure == pytest.approx(np.abs(data.test.labels - np.median(data.train.labels)).mean())


def test_the_figures_of_a_summary_are_those_of_the_errors():
    labels = np.array([10.0, 350.0, 90.0, 180.0], np.float32)
    off = np.deg2rad(np.array([12.0, 358.0, 110.0, 180.0]))
    outputs = (5 * np.stack([np.cos(off), np.sin(off)], axis=1)).astype(np.float32)
    figures = summarise(labels, outputs, circular=True)
    assert figures["test_mae"] == pytest.approx((2 + 8 + 20 + 0) / 4, abs=1e-3)
    assert figures["test_median_absolute_error"] == pytest.approx(5, abs=1e-3)
    assert (figures["test_within_5_degrees"], figures["test_within_10_degrees"]) == (0.5, 0.75)


def test_what_cannot_be_regressed_is_refused():
    with pytest.raises(UsageError, match="unknown loss of the head 'angle' 'smooth_l1'"):
        make_loss(regression(head="angle", loss="smooth_l1").regression)
    config = regression(loss="smooth_l1")
    config.regression.options.gamma = 1.0
    with pytest.raises(UsageError, match="no option 'gamma'; it has beta"):
        configuration.validate(config)
    config = regression(head="angle")
    config.augment.flip = True
    with pytest.raises(UsageError, match="mirrors an image and not its angle"):
        tasks.make_task(config, info())
    config = defaults.get_config()
    config.data.name, config.data.image_size = "eyes", 16
    config.data.options = {"num_train": 8, "num_validation": 8, "num_test": 8}
    with pytest.raises(UsageError, match="values, not classes; set config"):
        tasks.load_data(config)


def test_class_numbers_can_be_taken_as_values():
    config = regression()
    config.data.name, config.data.options = "scenes", {"target": "count", "max_objects": 3, "num_train": 64,
                                                       "num_validation": 16, "num_test": 16}  # fmt: skip
    one, _ = run.prepare(config)
    assert one.dataset.train.labels.dtype == np.float32
    assert one.info.label_mean[0] == pytest.approx(one.dataset.train.labels.mean())
