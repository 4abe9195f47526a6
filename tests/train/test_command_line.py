"""The programs as a user meets them: `python -m train`, `train.evaluate` and `train.predict`."""

import functools
import json
import os
import pathlib
import shutil
import subprocess
import sys

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
from train import loop
from train.writers import read_history

ROOT = pathlib.Path(__file__).parents[2]
TINY = ["--config=linear_digits", "--config.epochs=2", "--config.parallel.devices=1", "--config.optimizer.name=adam"]


def numbers(workdir: pathlib.Path) -> list[dict]:
    """The history without what a clock measured."""
    clock = ("seconds", "images_per_second")
    return [{name: value for name, value in line.items() if name not in clock} for line in read_history(workdir)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[pathlib.Path, str]:
    workdir = tmp_path_factory.mktemp("runs") / "tiny"
    status, out, err = call(train.__main__, *TINY, f"--workdir={workdir}")
    assert (status, err) == (0, "")
    return workdir, out


def test_a_run_shows_progress_and_ends_with_the_table(finished):
    workdir, out = finished
    for words in ("epoch 1/2", "epoch 2/2", "step 78", "train loss", "validation loss", "95 % interval", str(workdir)):
        assert words in out
    for words in ("test accuracy", "macro precision", "macro recall", "macro F1", "calibration error", "report.html"):
        assert words in out


def test_a_run_leaves_its_record(finished):
    workdir, _ = finished
    names = ("config.json", "metrics.jsonl", "summary.json", "report.html", "checkpoints", "weights", "tensorboard")
    assert [name for name in names if not (workdir / name).exists()] == []
    summary = json.loads((workdir / "summary.json").read_text())
    expected = {"config", "test_accuracy", "test_accuracy_interval", "seconds", "steps", "parameters", "versions"}
    assert expected <= set(summary)
    assert summary["config"]["epochs"] == 2
    assert (summary["steps"], summary["parameters"]) == (2 * (1257 // 32), 650)


def test_a_finished_run_is_not_overwritten(finished):
    workdir, _ = finished
    before = (workdir / "summary.json").read_bytes()
    status, _, err = call(train.__main__, *TINY, f"--workdir={workdir}")
    assert status == 2
    assert err.startswith(f"error: {workdir} holds a finished run: go on with --resume, replace it with --overwrite")
    assert (workdir / "summary.json").read_bytes() == before


@pytest.mark.parametrize("arguments", [[], TINY])
def test_resuming_a_finished_run_says_so(finished, arguments):
    workdir, _ = finished
    status, out, _ = call(train.__main__, *arguments, f"--workdir={workdir}", "--resume")
    assert status == 0
    assert "is finished" in out


def test_resuming_with_another_config_names_what_differs(finished):
    workdir, _ = finished
    status, _, err = call(train.__main__, *TINY, "--config.seed=3", f"--workdir={workdir}", "--resume")
    assert status == 2
    assert "1 field(s) differ: config.seed: 0 stored, 3 given" in err


@pytest.mark.parametrize("override", ["data.workers=2", "parallel.devices=2", "loop=compiled"])
def test_where_a_run_is_computed_may_change_on_resuming(finished, override):
    status, out, _ = call(train.__main__, *TINY, f"--config.{override}", f"--workdir={finished[0]}", "--resume")
    assert status == 0
    assert "is finished" in out


def test_overwriting_removes_the_run_and_nothing_else(finished, tmp_path):
    workdir = tmp_path / "copy"
    shutil.copytree(finished[0], workdir)
    (workdir / "notes.txt").write_text("mine")
    status, _, _ = call(train.__main__, *TINY, "--config.epochs=1", f"--workdir={workdir}", "--overwrite")
    assert status == 0
    assert json.loads((workdir / "summary.json").read_text())["steps"] == 1257 // 32
    assert (workdir / "notes.txt").read_text() == "mine"


def test_overwriting_leaves_a_folder_alone_that_is_no_run(tmp_path):
    (tmp_path / "weights").mkdir()
    status, _, err = call(train.__main__, *TINY, f"--workdir={tmp_path}", "--overwrite")
    assert (status, (tmp_path / "weights").exists()) == (2, True)
    assert "give another --workdir" in err


def test_an_interrupted_run_is_resumed_to_the_same_numbers(finished, tmp_path, monkeypatch):
    workdir = tmp_path / "run"
    real = loop.Progress.epoch

    def interrupted(self, *arguments, **options):
        real(self, *arguments, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop.Progress, "epoch", interrupted)
        status, _, err = call(train.__main__, *TINY, f"--workdir={workdir}")
    assert status == 130
    assert f"go on with: python -m train --workdir={workdir} --resume" in err
    status, _, err = call(train.__main__, *TINY, f"--workdir={workdir}")
    assert status == 2
    assert "holds a run that was begun" in err
    status, out, _ = call(train.__main__, f"--workdir={workdir}", "--resume")
    assert status == 0
    assert "resumed at step 39" in out
    assert numbers(workdir) == numbers(finished[0])


def test_resuming_before_the_first_checkpoint_starts_from_the_beginning(tmp_path):
    status, out, _ = call(train.__main__, *TINY, "--config.max_steps=3", f"--workdir={tmp_path / 'run'}", "--resume")
    assert status == 0
    assert "has no checkpoint: starting from the beginning" in out


def test_a_loss_that_explodes_ends_with_status_3(tmp_path):
    wild = ["--config.optimizer.name=sgd", "--config.optimizer.learning_rate=1e38"]
    status, _, err = call(train.__main__, *TINY, *wild, f"--workdir={tmp_path / 'run'}")
    assert status == 3
    assert err.startswith("error: the loss is")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "give --config=NAME"),
        (["--config=digts"], "unknown config 'digts'; did you mean 'digits'"),
        (["--config=no/such.py"], "there is no config file 'no/such.py'"),
        (
            ["--config=digits", "--config.lr=1"],
            "there is no field config.lr; did you mean config.optimizer.learning_rate?",
        ),
        (["--config=digits", "--config.epochs=many"], "config.epochs is an int field (now 40), and got 'many'"),
        (["--config=digits", "--config.epochs"], "config.epochs was given no value"),
        (["--config=digits", "--config.data.name=digit"], "unknown data set 'digit'; did you mean 'digits'"),
        (["--config=digits", "--config.model.name=lenet"], "nearest first: lenet5"),
        (["--config=digits", "--work-dir=x"], "unknown flag --work-dir; did you mean --workdir?"),
        (["--config=digits", "--confg.epochs=3"], "unknown flag --confg.epochs; did you mean --config"),
        (["digits"], "unknown argument 'digits'"),
        (["--config=digits", "--resume"], "--resume needs --workdir"),
        (["--config=digits", "--resume", "--overwrite", "--workdir=x"], "give one of them"),
        (["--workdir=no-such-run", "--resume"], "no-such-run holds no run"),
    ],
)
def test_a_slip_is_one_line_with_the_nearest_and_status_2(tmp_path, monkeypatch, argv, words):
    monkeypatch.chdir(tmp_path)
    status, _, err = call(train.__main__, *argv)
    assert status == 2
    assert err.startswith("error: ")
    assert words in err
    assert len(err.splitlines()) == 1
    assert list(tmp_path.rglob("config.json")) == []  # nothing was begun


def test_an_override_may_follow_its_field_as_an_argument_of_its_own():
    argv = ["--config=a", "--config.x.y", "-3", "--workdir", "b", "--config.z=1=2"]
    assert train.__main__.split_overrides(argv) == (["--config=a", "--workdir", "b"], ["x.y=-3", "z=1=2"])


def test_help_shows_every_field_of_a_config():
    status, out, _ = call(train.__main__, "--config=linear_digits", "--config.seed=5", "--help")
    assert status == 0
    for words in ("--config.seed=5", "--config.model.name=linear", "--config.early_stopping.budget_seconds=0.0"):
        assert words in out


def test_the_list_shows_what_to_expect_without_starting_jax():
    code = "import sys; from train.__main__ import main; main(['--list']); main(['--help'])"
    code += "; sys.exit('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    for words in (
        "digits: LeNet-5",
        "imagenet_resnet50",
        "command   python -m train --config=digits",
        "expected",
        "hardware",
    ):
        assert words in done.stdout


def test_output_may_be_cut_short_by_its_reader():
    with subprocess.Popen(
        [sys.executable, "-m", "train", "--list"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.close()
        assert (process.stderr.read(), process.wait()) == (b"", 141)


def test_the_program_itself_trains_and_fails_as_promised(tmp_path):
    """The one test with processes of their own: exit statuses, streams, and no traceback."""
    cache = {"JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir}
    command = [sys.executable, "-m", "train", *TINY, f"--workdir={tmp_path / 'run'}"]
    start = functools.partial(subprocess.run, cwd=ROOT, capture_output=True, text=True, env={**os.environ, **cache})
    done = start([*command, "--config.max_steps=5"])
    assert (done.returncode, done.stderr) == (0, "")
    assert "95 % interval" in done.stdout
    failed = start([*command, "--config.epoch=3"])
    assert (failed.returncode, failed.stdout) == (2, "")
    assert failed.stderr == "error: there is no field config.epoch; did you mean config.epochs?\n"


def test_evaluating_again_gives_the_figures_of_the_run(finished, tmp_path):
    workdir, out = finished
    summary = json.loads((workdir / "summary.json").read_text())
    status, table, _ = call(train.evaluate, f"--workdir={workdir}", f"--output={tmp_path / 'out.json'}")
    figures = json.loads((tmp_path / "out.json").read_text())
    assert status == 0
    assert (figures["split"], figures["examples"]) == ("test", len(load("digits").test))
    assert figures["accuracy"] == summary["test_accuracy"]
    assert figures["accuracy_interval"] == summary["test_accuracy_interval"]
    interval = next(line for line in table.splitlines() if "95 % interval" in line)
    assert interval in out


def test_every_split_can_be_evaluated(finished, tmp_path):
    workdir, _ = finished
    summary = json.loads((workdir / "summary.json").read_text())
    seen = {}
    for split in ("train", "validation", "test", "all"):
        status, _, _ = call(train.evaluate, f"--workdir={workdir}", f"--split={split}", f"--output={tmp_path / split}")
        assert status == 0
        seen[split] = json.loads((tmp_path / split).read_text())
    assert seen["validation"]["accuracy"] == pytest.approx(summary["validation_accuracy"], abs=1e-9)
    correct = {split: figures["accuracy"] * figures["examples"] for split, figures in seen.items()}
    assert correct["all"] == pytest.approx(correct["train"] + correct["validation"] + correct["test"])
    assert seen["all"]["examples"] == 1797


def external(folder: pathlib.Path, **changes: np.ndarray) -> str:
    data = load("digits")
    arrays = {"images": data.test.images, "labels": data.test.labels, "class_names": np.array(data.class_names)}
    path = folder / "external.npz"
    np.savez(path, **{**arrays, **changes})
    return f"--data=npz:{path}"


def test_an_external_set_of_the_same_kind_is_evaluated_whole(finished, tmp_path):
    workdir, _ = finished
    output = tmp_path / "out.json"
    status, out, err = call(train.evaluate, f"--workdir={workdir}", external(tmp_path), f"--output={output}")
    figures, summary = json.loads(output.read_text()), json.loads((workdir / "summary.json").read_text())
    assert (status, err) == (0, "")
    assert (figures["split"], figures["accuracy"]) == ("all", summary["test_accuracy"])
    assert f"{figures['examples']} examples" in out


def test_classes_in_another_order_are_matched_by_name(finished, tmp_path):
    workdir, _ = finished
    data, output = load("digits"), tmp_path / "out.json"
    turned = {"labels": 9 - data.test.labels, "class_names": np.array(data.class_names[::-1])}
    _, _, err = call(train.evaluate, f"--workdir={workdir}", external(tmp_path, **turned), f"--output={output}")
    assert "matched by name" in err
    summary = json.loads((workdir / "summary.json").read_text())
    assert json.loads(output.read_text())["accuracy"] == summary["test_accuracy"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"images": np.zeros((200, 7, 8, 1), np.uint8), "labels": np.arange(200) % 10},
            "are 7×8×1 and the model takes 8×8×1",
        ),
        (
            {
                "images": np.zeros((200, 8, 8), np.uint8),
                "labels": np.arange(200) % 2,
                "class_names": np.array(["a", "b"]),
            },
            "the data have 2 classes (a, b), and the model was trained on 10",
        ),
    ],
)
def test_an_external_set_of_another_kind_is_refused(finished, tmp_path, changes, words):
    status, _, err = call(train.evaluate, f"--workdir={finished[0]}", external(tmp_path, **changes))
    assert status == 2
    assert words in err


@pytest.mark.parametrize("program", [train.evaluate, train.predict])
def test_a_folder_without_a_run_is_refused(program, tmp_path):
    status, _, err = call(program, f"--workdir={tmp_path}", *(["x.png"] if program is train.predict else []))
    assert status == 2
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1


@pytest.fixture
def pictures(tmp_path) -> tuple[list[str], list[int]]:
    """Twenty test digits as files, some grey, some RGB, and their labels."""
    test = load("digits").test.take(np.arange(20))
    paths = [str(tmp_path / f"{number}.png") for number in range(20)]
    for number, (path, image) in enumerate(zip(paths, test.images, strict=True)):
        Image.fromarray(image[..., 0]).convert("RGB" if number % 2 else "L").save(path)
    return paths, test.labels.tolist()


def test_files_are_classified_as_the_same_images_in_the_data_set(finished, pictures):
    workdir, _ = finished
    paths, labels = pictures
    status, out, err = call(train.predict, f"--workdir={workdir}", "--json", "--top=10", *paths)
    records = [json.loads(line) for line in out.splitlines()]
    assert (status, err) == (0, "")
    assert [record["file"] for record in records] == paths
    trained = train.evaluate.load_members(workdir)[0]
    images = load("digits").test.take(np.arange(20)).images
    logits = np.asarray(trained.apply_fn(trained.variables, jnp.asarray(images, jnp.float32) / 255), np.float64)
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    for record, row in zip(records, expected, strict=True):
        given = {entry["class"]: entry["probability"] for entry in record["top"]}
        np.testing.assert_allclose([given[str(i)] for i in range(10)], row, rtol=1e-4, atol=1e-6)  # float32 softmax
        assert [entry["probability"] for entry in record["top"]] == sorted(given.values(), reverse=True)
    right = sum(int(record["top"][0]["class"]) == label for record, label in zip(records, labels, strict=True))
    assert right >= 12  # two epochs reach about 85 %; chance is 2 of 20


def test_a_file_of_another_size_is_resized_with_a_note(finished, tmp_path):
    Image.new("L", (30, 20)).save(tmp_path / "big.png")
    status, out, _ = call(train.predict, f"--workdir={finished[0]}", "--top=1", tmp_path / "big.png")
    assert status == 0
    assert "(resized from 20×30)" in out
    assert out.count("%") == 1


def test_an_unreadable_file_is_named_and_the_others_are_classified(finished, pictures, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    workdir, (paths, _) = finished[0], pictures
    status, out, err = call(train.predict, f"--workdir={workdir}", tmp_path / "broken.png", paths[0])
    assert status == 0
    assert f"error: cannot read {tmp_path / 'broken.png'}" in err
    assert out.startswith(paths[0])
    status, out, err = call(train.predict, f"--workdir={workdir}", tmp_path / "broken.png", "no-such-file.png")
    assert (status, out, len(err.splitlines())) == (2, "", 2)


def test_folds_are_trained_evaluated_and_used_as_one(pictures, tmp_path):
    workdir = tmp_path / "folds"
    status, out, _ = call(train.__main__, *TINY, "--config.folds=2", "--config.max_steps=20", f"--workdir={workdir}")
    summary = json.loads((workdir / "summary.json").read_text())
    assert status == 0
    assert "95 % interval" in out
    call(train.evaluate, f"--workdir={workdir}", f"--output={tmp_path / 'out.json'}")
    assert json.loads((tmp_path / "out.json").read_text())["accuracy"] == summary["test_accuracy"]
    status, _, err = call(train.evaluate, f"--workdir={workdir}", "--split=validation")
    assert status == 2
    assert "fold_0" in err
    fold = workdir / "fold_1"
    call(train.evaluate, f"--workdir={fold}", "--split=validation", f"--output={tmp_path / 'fold.json'}")
    validation = json.loads((fold / "summary.json").read_text())["validation_accuracy"]
    assert json.loads((tmp_path / "fold.json").read_text())["accuracy"] == pytest.approx(validation, abs=1e-9)
    status, out, _ = call(train.predict, f"--workdir={workdir}", *pictures[0][:3])
    assert (status, len(out.splitlines())) == (0, 3)
