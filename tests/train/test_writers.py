"""metrics.jsonl, TensorBoard events and the progress line: what a run leaves and says while it goes on."""

import io
import json
import re

import numpy as np
import pytest

from train import progress as progress_module
from train.progress import Progress
from train.writers import MetricWriter, read_history


def line(step: int, split: str = "train") -> dict:
    return {"split": split, "step": step, "epoch": step / 10, "loss": 1 / 3 + step, "accuracy": 0.5}


def test_what_is_written_is_read_back(tmp_path):
    writer = MetricWriter(tmp_path / "run")
    writer.write(line(10))
    writer.write({**line(10, "validation"), "loss": np.float32(0.5), "seconds": np.asarray(2.0)})
    history = read_history(tmp_path / "run")  # before close: every line is on disk at once
    writer.close()
    assert history == [line(10), {**line(10, "validation"), "loss": 0.5, "seconds": 2.0}]


def test_a_folder_without_metrics_has_an_empty_history(tmp_path):
    assert read_history(tmp_path) == []


def test_a_resumed_run_leaves_the_file_of_an_unbroken_one(tmp_path):
    whole, broken = MetricWriter(tmp_path / "whole"), MetricWriter(tmp_path / "broken")
    for step in (10, 20, 30, 40):
        whole.write(line(step))
        if step <= 30:
            broken.write(line(step))
    whole.close()
    broken.close()
    path = tmp_path / "broken" / "metrics.jsonl"
    path.write_text(path.read_text() + '{"split": "train", "st')  # killed while it wrote

    resumed = MetricWriter(tmp_path / "broken")
    resumed.truncate_after(20)  # the newest checkpoint
    for step in (30, 40):
        resumed.write(line(step))
    resumed.close()
    assert path.read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()


def test_an_unfinished_last_line_is_left_out_and_any_other_is_an_error(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps(line(1)) + '\n{"split"')
    assert read_history(tmp_path) == [line(1)]
    path.write_text('{"split"\n' + json.dumps(line(1)) + "\n")
    with pytest.raises(ValueError, match=r"metrics.jsonl, line 1 is not JSON"):
        read_history(tmp_path)


def test_only_an_enabled_writer_leaves_anything(tmp_path):
    writer = MetricWriter(tmp_path / "run", enabled=False)
    writer.truncate_after(0)
    writer.write(line(1))
    writer.close()
    assert not (tmp_path / "run").exists()


def test_tensorboard_gets_the_same_numbers(tmp_path):
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    record = pytest.importorskip("tensorboardX.event_file_writer")
    del record
    writer = MetricWriter(tmp_path)
    writer.write(line(10))
    writer.write(line(10, "validation"))
    writer.close()
    (path,) = (tmp_path / "tensorboard").glob("events.out.tfevents.*")
    data, found = path.read_bytes(), {}
    while data:  # TFRecord: length uint64, its checksum uint32, the bytes, their checksum uint32
        size = int.from_bytes(data[:8], "little")
        event = event_pb2.Event.FromString(data[12 : 12 + size])
        found |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
        data = data[16 + size :]
    assert found == {
        (f"{name}/{split}", 10): pytest.approx(line(10)[name])
        for name in ("loss", "accuracy", "epoch")
        for split in ("train", "validation")
    }


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress_module.time, "perf_counter", lambda: now[0])
    return now


def test_the_line_of_an_epoch_says_where_the_run_is(clock):
    stream = io.StringIO()
    progress = Progress(40, 10, 64, stream=stream)
    for step in range(1, 11):
        clock[0] += 0.5  # two steps a second
        progress.update(step, {"loss": 2.0, "accuracy": 0.25})
    progress.epoch(1, {"loss": 1.5, "accuracy": 0.5}, {"loss": 1.25, "accuracy": 0.75})
    progress.close()
    assert stream.getvalue().splitlines()[-1] == (
        "epoch 1/4 | step 10 | 128 images/s | train loss 1.5000 acc 50.00% | "
        "validation loss 1.2500 acc 75.00% | 15 s left"
    )


def test_a_log_file_gets_a_line_every_five_seconds_and_no_control_characters(clock):
    stream = io.StringIO()
    progress = Progress(1000, 1000, 1, stream=stream)
    for step in range(1, 100):
        clock[0] += 0.25
        progress.update(step, {"loss": 1.0})
    progress.close()
    lines = stream.getvalue().splitlines()
    assert [int(re.search(r"step +(\d+)", text)[1]) for text in lines] == [1, 21, 41, 61, 81]
    assert "\r" not in stream.getvalue()


def test_a_terminal_has_one_line_that_renews_itself_and_is_never_wider(clock, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    stream = Terminal()
    progress = Progress(100, 50, 8, stream=stream)
    for step in range(1, 51):
        clock[0] += 0.25
        progress.update(step, {"loss": 1.0, "accuracy": 0.5})
    assert "\n" not in stream.getvalue()
    assert all(len(text) < 40 for text in stream.getvalue().split("\r"))
    progress.message("a checkpoint is damaged")
    progress.update(51, {})
    assert "\ra checkpoint is damaged" in stream.getvalue()
    clock[0] += 1
    progress.update(52, {"loss": 1.0})
    progress.close()
    assert stream.getvalue().endswith("\n")


def test_time_left_takes_the_last_epoch_for_its_measure(clock):
    """A first epoch of 100 s (compilation) and then epochs of 10 s: after the third, 20 s for the last two."""
    stream = io.StringIO()
    progress = Progress(50, 10, 1, stream=stream)
    for number, seconds in enumerate([100, 10, 10], start=1):
        clock[0] += seconds
        progress.epoch(number, {"loss": 1.0, "accuracy": 0.5}, {})
    assert stream.getvalue().splitlines()[-1].endswith("| 20 s left")
    assert "validation" not in stream.getvalue()


def test_a_validation_within_an_epoch_says_its_own_step(clock):
    stream = io.StringIO()
    progress = Progress(20, 10, 1, stream=stream)
    progress.epoch(1, {"loss": 1.0}, {"loss": 1.0}, step=5)
    assert stream.getvalue().startswith("epoch 1/2 | step  5 |")
