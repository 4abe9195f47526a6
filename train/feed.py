"""Feeds the compiled step: from a copy of the data on the device, or from Grain's workers. Same batches either way.

`run(state, first_step, num_steps)` takes so many steps and returns the state with the metrics of each step. A batch has
"image", "label" and "index", the place of each example in the training split.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from dl_core.data import Examples, batch_order, stream
from dl_core.loops import in_turn
from train.parallel import CompiledTraining, Parallel
from train.state import TrainState

OnStep = Callable[[int, Any], None]


class DeviceFeed:
    """The whole training split lies on the device as uint8; a step gathers its rows there.

    Args:
      examples: the training split.
      batch_size: of the global batch.
      seed: of the order.
      parallel: where arrays lie.
      compiled: the compiled train step.
      scanned: one compiled scan an interval (for accelerators), or a host loop over the compiled step.
    """

    def __init__(
        self,
        examples: Examples,
        batch_size: int,
        seed: int,
        parallel: Parallel,
        compiled: CompiledTraining,
        scanned: bool,
    ):
        images, labels = examples.arrays()
        self._size, self._batch_size, self._seed = len(labels), batch_size, seed
        self._parallel, self._compiled, self._scanned = parallel, compiled, scanned
        index = np.arange(len(labels), dtype=np.int32)
        self._data = parallel.place_data({"image": images, "label": labels, "index": index})

    def rows(self, step: int) -> np.ndarray:
        """The rows of the training split that step number `step` takes, int32 [batch]."""
        epoch, place = divmod(step, self._size // self._batch_size)
        return batch_order(self._size, self._batch_size, seed=self._seed, epoch=epoch)[place]

    def run(self, state: TrainState, first_step: int, num_steps: int, on_step: OnStep) -> tuple[TrainState, Any]:
        """Takes `num_steps` steps, all within one epoch, from `first_step` on."""
        parallel = self._parallel
        epoch, start = divmod(first_step, self._size // self._batch_size)
        order = batch_order(self._size, self._batch_size, seed=self._seed, epoch=epoch)
        if self._scanned:
            part = parallel.place_order(order[start : start + num_steps])
            state, metrics = self._compiled.chunk(state, self._data, part)
            return state, parallel.metrics(metrics)
        placed, records = parallel.place_order(order), []
        for step in range(first_step, first_step + num_steps):
            state, metrics = in_turn(self._compiled.indexed_step(state, self._data, placed))
            on_step(step, metrics)
            records.append(metrics)
        return state, stack([parallel.metrics(record) for record in records])

    def close(self) -> None:
        """Nothing to release."""


class StreamFeed:
    """Batches come from Grain: read and decoded by workers, batched before iteration, prefetched.

    Args:
      examples: the training split, possibly decoded on access.
      batch_size: of the global batch.
      seed: of the order.
      parallel: where arrays lie; each process reads its own rows of every batch.
      compiled: the compiled train step.
      start_step: the step number is the whole state of the stream.
      total_steps: where the run ends.
      workers: processes that read; 0 reads in this one.
    """

    def __init__(
        self, examples: Examples, batch_size: int, seed: int, parallel: Parallel, compiled: CompiledTraining,
        start_step: int, total_steps: int, workers: int,
    ):  # fmt: skip
        self._size, self._batch_size, self._seed = len(examples), batch_size, seed
        self._parallel, self._compiled = parallel, compiled
        self._batches: Iterator[Any] = stream(
            examples, batch_size, seed=seed, start_step=start_step, num_steps=total_steps - start_step,
            workers=workers, rows=parallel.rows(batch_size),
        )  # fmt: skip
        self._step = start_step  # of the batch that is read next
        self._next = self._load()

    rows = DeviceFeed.rows

    def _load(self) -> Any:
        batch = next(self._batches, None)
        if batch is None:
            return None
        index = self.rows(self._step)[self._parallel.rows(self._batch_size)]
        self._step += 1
        return self._parallel.place_batch({**batch, "index": index})

    def run(self, state: TrainState, first_step: int, num_steps: int, on_step: OnStep) -> tuple[TrainState, Any]:
        """Takes `num_steps` steps; the next batch is on its way to the device while a step runs."""
        records = []
        for step in range(first_step, first_step + num_steps):
            batch = self._next
            state, metrics = self._compiled.step(state, batch)
            self._next = self._load()
            state, metrics = in_turn((state, metrics))
            on_step(step, metrics)
            records.append(metrics)
        return state, stack([self._parallel.metrics(record) for record in records])

    def close(self) -> None:
        """Ends the workers."""
        close = getattr(self._batches, "close", None)
        if close is not None:
            close()


Feed = DeviceFeed | StreamFeed


def stack(records: list[Any]) -> Any:
    """Metrics of several steps -> one array [steps] a metric."""
    return jax.tree.map(lambda *values: np.stack(values), *records)
