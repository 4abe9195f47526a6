"""Batches: the one definition of their order, and the two ways to them.

Data on the device gathers rows by `batch_order` itself; data that does not fit comes from `stream`, through Grain.
Batch k of a run holds the same examples either way, and depends on (seed, k) alone: not on workers, nor on where a run
resumed.
"""

import dataclasses
import functools
import gc
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Int32

from dl_core.data.examples import Examples
from dl_core.data.splits import permutation
from dl_core.errors import UsageError

Batch = dict[str, np.ndarray]


def batch_order(n: int, batch_size: int, *, seed: int, epoch: int) -> Int32[np.ndarray, "batches batch_size"]:
    """Which examples each batch of an epoch holds; the n % batch_size left over are other ones every epoch.

    Args:
      n: number of examples.
      batch_size: in [1, n].
      seed: in [0, 2**64).
      epoch: counts from 0. Every (seed, epoch) gives an order of its own.

    Returns:
      int32 [n // batch_size, batch_size], all different.

    Raises:
      UsageError: a batch size outside [1, n].
    """
    if not 1 <= batch_size <= n:
        raise UsageError(f"batch_size must lie between 1 and the number of examples, {n}; got {batch_size}")
    batches = n // batch_size
    return permutation(n, seed=seed, stream=epoch)[: batches * batch_size].reshape(batches, batch_size)


_cached_order = functools.lru_cache(maxsize=2)(batch_order)  # the epoch that is read, and the next that is prefetched


def stream(
    examples: Examples,
    batch_size: int,
    *,
    seed: int,
    start_step: int = 0,
    num_steps: int,
    workers: int = 0,
    prefetch: int = 2,
    rows: slice = slice(None),
) -> Iterator[Batch]:
    """Training batches start_step … start_step + num_steps - 1, epoch after epoch.

    Worker processes pay where decoding is the bottleneck. They are spawned, so the program that asks for them must
    start under `if __name__ == "__main__"`, and they end with the iterator (close it when leaving early).

    Args:
      examples: n of them.
      batch_size: of the whole batch, in [1, n].
      seed: decides the order, see `batch_order`.
      start_step: the first batch; resuming needs nothing else.
      num_steps: how many batches.
      workers: processes that read and decode; with 0, threads of this one.
      prefetch: batches (per worker) read ahead, >= 1. Without workers this is also the number of threads.
      rows: the part of every batch that this process is to load, where several share it.

    Returns:
      Iterator of {"image": uint8 [b, h, w, c], "label": as in the examples [b, …]}, b the length of the slice.

    Raises:
      UsageError: numbers out of range, or workers asked for while this process is itself being spawned.
      UnreadableImage: while iterating, a damaged image under on_error="raise".
    """
    for name, value, least in (("start_step", start_step, 0), ("num_steps", num_steps, 0)):
        if value < least:
            raise UsageError(f"{name} must be at least {least}, got {value}")
    if not 1 <= batch_size <= len(examples):
        raise UsageError(f"batch_size must lie between 1 and the number of examples, {len(examples)}; got {batch_size}")
    source = _TrainingBatches(examples, batch_size, seed, start_step + num_steps, rows)
    return _iterate(source, start_step, examples.in_memory, workers, prefetch)


def evaluation_batches(
    examples: Examples,
    batch_size: int,
    *,
    workers: int = 0,
    prefetch: int = 2,
    rows: slice = slice(None),
) -> Iterator[Batch]:
    """Every example once, in order; the last batch is filled up with black images that are marked as not valid.

    Args:
      examples: n of them.
      batch_size: of the whole batch, >= 1.
      workers, prefetch, rows: as in `stream`.

    Returns:
      Iterator of {"image": uint8 [b, h, w, c], "label": as in the examples [b, …], "valid": bool [b]}, ceil(n /
      batch_size) of them.

    Raises:
      UsageError, UnreadableImage: as `stream`.
    """
    if batch_size < 1:
        raise UsageError(f"batch_size must be at least 1, got {batch_size}")
    return _iterate(_EvaluationBatches(examples, batch_size, rows), 0, examples.in_memory, workers, prefetch)


@dataclasses.dataclass(frozen=True, eq=False)
class _TrainingBatches:
    """Batch k of a run, by its number: what Grain reads from."""

    examples: Examples
    batch_size: int
    seed: int
    steps: int
    rows: slice

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> Batch:
        n = len(self.examples)
        epoch, position = divmod(int(step), n // self.batch_size)
        order = _cached_order(n, self.batch_size, seed=self.seed, epoch=epoch)
        return self.examples.batch(order[position][self.rows])


@dataclasses.dataclass(frozen=True, eq=False)
class _EvaluationBatches:
    """Batch k of a pass in order, the last one filled up."""

    examples: Examples
    batch_size: int
    rows: slice

    def __len__(self) -> int:
        return -(-len(self.examples) // self.batch_size)

    def __getitem__(self, step: int) -> Batch:
        indices = (int(step) * self.batch_size + np.arange(self.batch_size))[self.rows]
        valid = indices < len(self.examples)
        found = self.examples.batch(indices[valid])
        batch = {key: np.zeros((len(indices), *values.shape[1:]), values.dtype) for key, values in found.items()}
        for key, values in found.items():
            batch[key][valid] = values
        return {**batch, "valid": valid}


def _iterate(source: Any, start: int, in_memory: bool, workers: int, prefetch: int) -> Iterator[Batch]:
    """Checks, then hands over to Grain. Batches are elements, so that neither workers nor a restart can shift them."""
    if workers < 0 or prefetch < 1:
        raise UsageError(
            f"workers must be at least 0 and prefetch at least 1, got workers={workers}, prefetch={prefetch}"
        )
    if workers and getattr(multiprocessing.current_process(), "_inheriting", False):
        raise UsageError("worker processes were asked for while a worker imports the main program: start the program "
                         "under if __name__ == '__main__':, or set workers=0")  # fmt: skip
    return _batches(source, start, in_memory, min(workers, len(source) - start), prefetch)


def _batches(source: Any, start: int, in_memory: bool, workers: int, prefetch: int) -> Iterator[Batch]:
    if start == len(source):
        return
    import grain
    from absl import flags

    # Arrays are gathered under the interpreter's lock, where threads only wait for each other; decoding releases it.
    threads = 0 if in_memory else 1 if workers else prefetch
    batches = grain.MapDataset.source(source)[start:].to_iter_dataset(
        grain.ReadOptions(num_threads=threads, prefetch_buffer_size=0 if not threads else 1 if workers else prefetch)
    )
    if workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain reads its own flags, which are only legible after parsing
        options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=prefetch)
        batches = batches.mp_prefetch(options, worker_init_fn=_begin_worker)
    iterator = iter(batches)
    try:
        yield from iterator
    finally:
        iterator.close()
        if workers:  # Grain's iterators hold themselves in cycles: free their semaphores now, not amid later ones
            del iterator, batches
            gc.collect()


def _begin_worker(worker: int, num_workers: int) -> None:
    """Runs first in every worker: keeps it off the trainer's device, and ends it when the trainer is killed."""
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    os.environ["JAX_PLATFORMS"] = "cpu"
    if "jax" in sys.modules:
        sys.modules["jax"].config.update("jax_platforms", "cpu")


def _end_with(trainer: int) -> None:
    while os.getppid() == trainer:
        time.sleep(1)
    os._exit(1)
