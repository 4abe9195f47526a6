"""A run that is killed and resumed ends like one that was not, bit for bit; a damaged checkpoint is passed over."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from small_runs import random_dataset, small_config

from train.checkpoint import Checkpoints, abstract_like
from train.run import make_feed, prepare
from train.writers import read_history

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = """
from train.configs import defaults


def get_config():
    config = defaults.get_config()
    config.model.name = "resnet20_cifar"
    config.model.fields = {"stage_sizes": (1, 1), "width": 4}
    config.optimizer.name = "adam"
    config.augment.translate = 1
    config.average.name = "ema"
    config.batch_size = 128
    config.epochs = 8
    return config
"""


def start(config, workdir, *arguments):
    """Starts a run as a process; what it prints goes into a file beside its workdir, which a killed run leaves too."""
    command = [sys.executable, "-m", "train", f"--config={config}", f"--workdir={workdir}", *arguments]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    log = workdir.with_suffix(".log")
    with log.open("w") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
    return process, log


def finish(process, log):
    assert process.wait(timeout=300) == 0, log.read_text()
    return log.read_text()


def children(pid):
    """The processes that a process has started, where the system tells (Linux)."""
    path = pathlib.Path(f"/proc/{pid}/task/{pid}/children")
    return path.read_text().split() if path.exists() else []


def weights(workdir):
    from train.trained import restore

    return {
        name: jax.tree.map(np.asarray, restore(workdir, weights=name).variables) for name in ("best", "last", "average")
    }


def history(workdir):
    clocks = ("seconds", "images_per_second")
    return [{name: value for name, value in line.items() if name not in clocks} for line in read_history(workdir)]


def assert_same_run(one, other):
    jax.tree.map(np.testing.assert_array_equal, weights(one), weights(other))
    assert history(one) == history(other)
    for name in ("test_accuracy", "test_loss", "best_step", "steps"):
        assert (
            json.loads((one / "summary.json").read_text())[name]
            == json.loads((other / "summary.json").read_text())[name]
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "then"),
    [((), ()), (("--config.data.placement=grain", "--config.data.workers=1"), ("--config.data.workers=2",))],
    ids=["on the device", "grain with other workers"],
)
def test_a_run_killed_at_a_random_step_resumes_bit_identical(first, then, tmp_path):
    config = tmp_path / "config.py"
    config.write_text(CONFIG)
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    finish(*start(config, unbroken, *first))
    epochs = random.SystemRandom().randint(1, 6)
    process, log = start(config, broken, *first)
    deadline = time.monotonic() + 240
    while len([line for line in read_history(broken) if line["split"] == "train"]) < epochs:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(random.SystemRandom().uniform(0, 0.2))
    workers = children(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 20
    while any(pathlib.Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() < deadline, f"{workers} outlive the run that started them"
        time.sleep(0.1)
    assert not (broken / "summary.json").exists()
    output = finish(*start(config, broken, "--resume", *[c for c in first if "workers" not in c], *then))
    assert "resumed at step" in output or "from the beginning" in output
    assert_same_run(unbroken, broken)


def train_and_save(checkpoints, run, state, saves):
    feed, per_epoch, states = make_feed(run, 0), run.steps_per_epoch, []
    for number in range(saves):
        state, _ = feed.run(state, number * per_epoch, per_epoch, lambda *_: None)
        checkpoints.save(state, {"number": number}, {"accuracy": number / 10, "loss": 1.0})
        checkpoints.wait()
        states.append(jax.tree.map(np.asarray, state))
    return states


@pytest.fixture
def saved(tmp_path):
    run, state = prepare(small_config(**{"parallel.devices": 1}), dataset=random_dataset())
    abstract = abstract_like(state)
    checkpoints = Checkpoints(tmp_path / "checkpoints", rank=run.task.rank, keep=2)
    yield checkpoints, abstract, train_and_save(checkpoints, run, state, 3), tmp_path / "checkpoints"
    checkpoints.close()


def test_the_newest_checkpoint_is_restored_bit_for_bit(saved):
    checkpoints, abstract, states, _ = saved
    state, host = checkpoints.restore(abstract)
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, state), states[-1])
    assert host == {"number": 2}


def test_a_truncated_newest_checkpoint_falls_back_to_the_one_before_and_says_so(saved):
    checkpoints, abstract, states, folder = saved
    newest = folder / str(checkpoints.latest_step())
    for path in newest.rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    said = []
    state, host = checkpoints.restore(abstract, warn=said.append)
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, state), states[-2])
    assert host == {"number": 1}
    assert "cannot be read" in said[0]
    assert newest.name in said[0]


def test_a_truncated_data_file_alone_is_noticed(saved):
    checkpoints, abstract, states, folder = saved
    newest = folder / str(checkpoints.latest_step())
    largest = max((path for path in newest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size - 64])
    said = []
    state, _ = checkpoints.restore(abstract, warn=said.append)
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, state), states[-2])
    assert said


def test_the_best_checkpoint_outlives_the_latest(tmp_path):
    run, state = prepare(small_config(**{"parallel.devices": 1}), dataset=random_dataset())
    checkpoints = Checkpoints(tmp_path, rank=run.task.rank, keep=1)
    for step, accuracy in enumerate([0.1, 0.9, 0.5, 0.4]):
        checkpoints.save(state.replace(step=np.int32(step)), {}, {"accuracy": accuracy, "loss": 1.0})
        checkpoints.wait()
    assert (checkpoints.best_step(), checkpoints.latest_step()) == (1, 3)
    assert checkpoints.restore(abstract_like(state), step=1) is not None
    checkpoints.close()
