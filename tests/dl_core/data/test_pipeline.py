"""Batches: one order, whoever reads them; and workers that come and go without a trace."""

import dataclasses
import io
import itertools
import multiprocessing
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from dl_core.data import Examples, LazyImages, UnreadableImage, batch_order, evaluation_batches, stream
from dl_core.data.examples import Paths
from dl_core.errors import UsageError

N, BATCH = 23, 5  # four batches an epoch, three examples left over


@pytest.fixture(scope="module")
def lazy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    pixels = np.random.default_rng(0).integers(0, 256, (N, 4, 3, 3), np.uint8)
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{i}.png")
    paths = Paths(tuple(str(folder / f"{i}.png") for i in range(N)))
    return Examples(LazyImages(paths, np.arange(N), (4, 3, 3)), np.arange(N, dtype=np.int32))


def gathered(examples, seed, start, steps, rows=slice(None)):
    """What the on-device path does: all rows in memory, gathered by batch_order."""
    images, labels = examples.arrays()
    per_epoch = len(labels) // BATCH
    for step in range(start, start + steps):
        order = batch_order(len(labels), BATCH, seed=seed, epoch=step // per_epoch)[step % per_epoch][rows]
        yield {"image": images[order], "label": labels[order]}


def assert_same(batches, expected):
    for batch, other in itertools.zip_longest(batches, expected):
        assert batch.keys() == other.keys()
        for key in batch:
            np.testing.assert_array_equal(batch[key], other[key])
            assert batch[key].dtype == other[key].dtype


@pytest.mark.parametrize(("n", "batch_size"), [(23, 5), (20, 5), (7, 7), (100, 1)])
def test_an_epoch_holds_no_example_twice_and_leaves_out_only_the_rest(n, batch_size):
    order = batch_order(n, batch_size, seed=3, epoch=1)
    assert order.shape == (n // batch_size, batch_size)
    assert order.dtype == np.int32
    assert len(set(order.ravel().tolist()) & set(range(n))) == order.size


def test_every_epoch_and_every_seed_has_its_own_order():
    orders = {batch_order(50, 10, seed=seed, epoch=epoch).tobytes() for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


def test_left_over_examples_have_their_turn():
    seen = {int(i) for epoch in range(20) for i in batch_order(N, BATCH, seed=0, epoch=epoch).ravel()}
    assert seen == set(range(N))


@pytest.mark.parametrize("start", [0, 2, 4, 9])
@pytest.mark.parametrize("in_memory", [False, True])
def test_the_stream_gives_the_batches_of_the_device_path_across_epochs(lazy, start, in_memory):
    examples = Examples(*lazy.arrays()) if in_memory else lazy
    batches = stream(examples, BATCH, seed=7, start_step=start, num_steps=9)
    assert_same(batches, gathered(lazy, 7, start, 9))


@pytest.mark.parametrize(("workers", "start"), [(1, 0), (2, 3)])
def test_worker_processes_change_nothing_and_leave_nothing(lazy, workers, start):
    batches = stream(lazy, BATCH, seed=7, start_step=start, num_steps=7, workers=workers)
    assert_same(batches, gathered(lazy, 7, start, 7))
    assert not multiprocessing.active_children()


class Witness:
    """Files that hold no image but whether the process that reads them keeps JAX off the accelerator."""

    def __len__(self):
        return 4

    def read(self, indices):
        kept_off = os.environ.get("JAX_PLATFORMS") == jax.config.jax_platforms == "cpu"
        buffer = io.BytesIO()
        Image.new("L", (1, 1), int(kept_off)).save(buffer, "PNG")
        return [buffer.getvalue()] * len(indices)

    def name(self, index):
        return f"witness {index}"


def test_a_worker_cannot_take_the_accelerator(monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    examples = Examples(LazyImages(Witness(), np.arange(4), (1, 1, 1)), np.zeros(4, np.int32))
    (batch,) = stream(examples, 4, seed=0, num_steps=1, workers=1)
    assert batch["image"].all()
    (batch,) = stream(examples, 4, seed=0, num_steps=1)
    assert not batch["image"].any(), "this process is not restricted"


def test_processes_that_share_a_batch_load_its_rows(lazy):
    halves = [stream(lazy, BATCH, seed=1, num_steps=6, rows=rows) for rows in (slice(0, 2), slice(2, 5))]
    joined = ({key: np.concatenate([a[key], b[key]]) for key in a} for a, b in zip(*halves, strict=True))
    assert_same(joined, gathered(lazy, 1, 0, 6))


def test_leaving_early_ends_the_workers(lazy):
    batches = stream(lazy, BATCH, seed=0, num_steps=10_000, workers=1)
    next(batches)
    assert multiprocessing.active_children()
    batches.close()
    assert not multiprocessing.active_children()


def test_a_stream_of_no_steps_is_empty(lazy):
    assert list(stream(lazy, BATCH, seed=0, start_step=5, num_steps=0, workers=2)) == []


@pytest.fixture
def damaged(lazy, tmp_path):
    """The same examples, number 11 cut short."""
    paths = list(lazy.images.files.paths)
    broken = tmp_path / "broken.png"
    with open(paths[11], "rb") as whole:
        broken.write_bytes(whole.read()[:50])
    paths[11] = str(broken)
    return dataclasses.replace(lazy, images=dataclasses.replace(lazy.images, files=Paths(tuple(paths))))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_is_replaced_alike_on_both_paths(damaged, lazy, workers):
    batches = list(stream(damaged, BATCH, seed=0, num_steps=4, workers=workers))
    assert_same(batches, gathered(damaged, 0, 0, 4))
    labels, whole = (np.concatenate([b["label"] for b in x]) for x in (batches, gathered(lazy, 0, 0, 4)))
    assert 11 in whole, "the test needs an epoch that uses the damaged image"
    np.testing.assert_array_equal(labels, np.where(whole == 11, 12, whole))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_fatal_and_named_where_so_asked(damaged, workers):
    strict = dataclasses.replace(damaged, images=dataclasses.replace(damaged.images, on_error="raise"))
    with pytest.raises(UnreadableImage, match=r"broken\.png"):
        list(stream(strict, BATCH, seed=0, num_steps=4, workers=workers))
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("batch_size", [5, 23, 40, 1])
def test_evaluation_sees_every_example_once_in_order(lazy, batch_size):
    batches = list(evaluation_batches(lazy, batch_size))
    assert len(batches) == -(-N // batch_size)
    assert all(len(b["image"]) == len(b["label"]) == len(b["valid"]) == batch_size for b in batches)
    valid = np.concatenate([b["valid"] for b in batches])
    images, labels = lazy.arrays()
    np.testing.assert_array_equal(np.concatenate([b["label"] for b in batches])[valid], labels)
    np.testing.assert_array_equal(np.concatenate([b["image"] for b in batches])[valid], images)
    assert not any(b["image"][~b["valid"]].any() for b in batches)


def test_evaluation_rows_make_up_the_whole_batch_even_where_one_process_has_only_filling(lazy):
    halves = [evaluation_batches(lazy, 8, rows=rows) for rows in (slice(0, 7), slice(7, 8))]
    joined = ({key: np.concatenate([a[key], b[key]]) for key in a} for a, b in zip(*halves, strict=True))
    assert_same(joined, evaluation_batches(lazy, 8))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 24}, "between 1 and the number of examples, 23; got 24"),
        ({"batch_size": 0}, "got 0"),
        ({"start_step": -1}, "start_step must be at least 0"),
        ({"workers": -1}, "workers must be at least 0"),
        ({"prefetch": 0}, "prefetch at least 1"),
    ],
)
def test_nonsense_is_refused_before_the_first_batch(lazy, options, words):
    with pytest.raises(UsageError, match=words):
        stream(lazy, **{"batch_size": BATCH, "seed": 0, "num_steps": 3, **options})


PROGRAM = """
import sys
import numpy as np
from dl_core.data import Examples, stream

def main():
    examples = Examples(np.zeros((8, 2, 2, 1), np.uint8), np.arange(8, dtype=np.int32))
    batches = stream(examples, 4, seed=0, num_steps=3, workers=1)
    print(sum(len(batch["label"]) for batch in batches), "tensorflow" in sys.modules)

"""


def run_program(tmp_path, ending):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM + ending)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run([sys.executable, program], capture_output=True, text=True, env=environment, timeout=120)


def test_a_program_of_its_own_needs_no_flags(tmp_path):
    done = run_program(tmp_path, "if __name__ == '__main__':\n    main()")
    assert done.stdout.split() == ["12", "False"], done.stderr


def test_a_program_without_the_guard_is_told_so(tmp_path):
    done = run_program(tmp_path, "main()")
    assert done.returncode
    assert "if __name__ == '__main__'" in done.stderr
