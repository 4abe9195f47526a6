"""What a run says while it goes on: one line that renews itself on a terminal, plain lines in a log file."""

import io
import shutil
import sys
import time
from collections.abc import Mapping
from typing import Any

INTERVAL_TERMINAL = 0.2  # seconds between two renewals of the line
INTERVAL_PLAIN = 5.0  # seconds between two lines in a file or pipe


class Progress:
    """Epoch, step, images per second, losses, accuracies and the time left, of one run.

    The speed is that of the last epoch or so, compilation excluded: the clock starts with the first step done.
    """

    def __init__(self, total_steps: int, steps_per_epoch: int, batch_size: int, *, stream: io.TextIOBase | None = None):
        """Prints nothing yet.

        Args:
          total_steps: steps of the whole run.
          steps_per_epoch: steps of one epoch.
          batch_size: images per step, over all devices.
          stream: where to print; standard output by default.
        """
        self._total, self._per_epoch, self._batch_size = total_steps, max(1, steps_per_epoch), batch_size
        self._stream = sys.stdout if stream is None else stream
        self._terminal = bool(getattr(self._stream, "isatty", lambda: False)())
        self._step = 0
        self._marks: list[tuple[float, int]] = []  # (time, step), the newest last
        self._printed_at = float("-inf")
        self._open_line = 0  # width of the line that waits to be renewed
        self._train: dict[str, Any] = {}
        self._validation: dict[str, Any] = {}

    def update(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Tells of steps done; prints where that is due.

        Args:
          step: steps done since the beginning of training, >= 1.
          metrics: of training: "loss", "accuracy"; may be empty.
        """
        self._mark(step)
        self._train.update(metrics)
        interval = INTERVAL_TERMINAL if self._terminal else INTERVAL_PLAIN
        if time.perf_counter() - self._printed_at >= interval:
            self._print(self._line(), renew=True)

    def epoch(
        self, epoch: int, train: Mapping[str, Any], validation: Mapping[str, Any], *, step: int | None = None
    ) -> None:
        """Prints the line of a validation, and leaves it standing.

        Args:
          epoch: the epoch that has ended or is under way, >= 1.
          train: "loss", "accuracy" since the last one.
          validation: the same on the validation split; may be empty.
          step: steps done since the beginning of training; by default the end of the epoch.
        """
        self._mark(min(epoch * self._per_epoch, self._total) if step is None else step)
        self._train, self._validation = dict(train), dict(validation)
        self._print(self._line(epoch), renew=False)

    def message(self, text: str) -> None:
        """Prints a line of its own, above the one that renews itself."""
        self._print(text, renew=False)

    def close(self) -> None:
        """Ends an open line."""
        if self._open_line:
            self._stream.write("\n")
            self._stream.flush()
        self._open_line = 0

    def _mark(self, step: int) -> None:
        if step > self._step or not self._marks:
            self._step = step
            self._marks.append((time.perf_counter(), step))
            # the oldest mark kept is an epoch back, so that the speed is that of an epoch with its evaluation
            while len(self._marks) > 2 and step - self._marks[1][1] >= self._per_epoch:
                del self._marks[0]

    def _speed(self) -> float | None:
        """Steps per second, None before the second mark."""
        (start, first), (end, last) = self._marks[0], self._marks[-1]
        return (last - first) / (end - start) if last > first and end > start else None

    def _line(self, epoch: int | None = None) -> str:
        epochs = -(-self._total // self._per_epoch)
        epoch = min(epochs, 1 + self._step // self._per_epoch) if epoch is None else epoch
        parts = [f"epoch {epoch:{len(str(epochs))}d}/{epochs}", f"step {self._step:{len(str(self._total))}d}"]
        speed = self._speed()
        if speed is not None:
            parts.append(f"{_rounded(speed * self._batch_size)} images/s")
        for name, metrics in (("train", self._train), ("validation", self._validation)):
            loss, accuracy, error = (metrics.get(key) for key in ("loss", "accuracy", "mae"))
            words = [f"loss {float(loss):.4f}"] if loss is not None else []
            words += [f"acc {100 * float(accuracy):.2f}%"] if accuracy is not None else []
            words += [f"mae {float(error):.4g}"] if error is not None else []
            if words:
                parts.append(f"{name} {' '.join(words)}")
        if speed is not None and self._step < self._total:
            parts.append(f"{_duration((self._total - self._step) / speed)} left")
        return " | ".join(parts)

    def _print(self, text: str, *, renew: bool) -> None:
        if self._terminal:
            if renew:  # a line that wraps cannot be renewed
                text = text[: shutil.get_terminal_size().columns - 1]
            self._stream.write("\r" + text.ljust(self._open_line) + ("" if renew else "\n"))
            self._open_line = len(text) if renew else 0
        else:
            self._stream.write(text + "\n")
        self._stream.flush()
        self._printed_at = time.perf_counter()


def _rounded(speed: float) -> str:
    return f"{speed:,.0f}" if speed >= 10 else f"{speed:.1f}"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"
