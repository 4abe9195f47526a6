"""The record of a run: `metrics.jsonl`, one JSON object a line, and the same numbers as TensorBoard events."""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

METRICS_FILE = "metrics.jsonl"
EVENTS_FOLDER = "tensorboard"


class MetricWriter:
    """Appends lines of metrics, each handed to the file system before the call returns: a killed run keeps them.

    Only the first process of several should write: the others make theirs with `enabled=False`, and every call of
    theirs does nothing.
    """

    def __init__(self, workdir: str | os.PathLike[str], *, enabled: bool = True):
        """Opens nothing yet.

        Args:
          workdir: folder of the run; made where it is missing.
          enabled: False makes every call do nothing.
        """
        self._workdir = pathlib.Path(workdir)
        self._enabled = enabled
        self._file = None
        self._events = None
        self._purge_step: int | None = None

    def write(self, line: Mapping[str, Any]) -> None:
        """Appends one line.

        Args:
          line: "split" and "step", and any further numbers; array scalars are taken as numbers.
        """
        if not self._enabled:
            return
        if self._file is None:
            self._open()
        line = {name: value.item() if hasattr(value, "item") else value for name, value in line.items()}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        for name, value in line.items():
            if name not in ("split", "step") and isinstance(value, int | float):
                self._events.add_scalar(f"{name}/{line.get('split', 'run')}", value, line["step"])

    def truncate_after(self, step: int) -> None:
        """Drops what lies after a step, and a last line that a kill left unfinished; call before the first `write`.

        A run that is resumed at that step then writes the lines of the unbroken one. TensorBoard hides later events.

        Args:
          step: the step that the run goes on from.
        """
        if not self._enabled:
            return
        path = self._workdir / METRICS_FILE
        if path.exists():
            kept = [line for line in read_history(self._workdir) if line["step"] <= step]
            whole = path.with_suffix(".new")
            whole.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
            os.replace(whole, path)
        self._purge_step = step + 1

    def close(self) -> None:
        """Closes the files; a later `write` opens them again."""
        if self._file is not None:
            self._file.close()
            self._events.close()
        self._file = self._events = None

    def _open(self) -> None:
        import tensorboardX  # late: only runs that write need it

        self._workdir.mkdir(parents=True, exist_ok=True)
        self._file = open(self._workdir / METRICS_FILE, "a", encoding="utf-8")  # noqa: SIM115  (closed in close)
        self._events = tensorboardX.SummaryWriter(str(self._workdir / EVENTS_FOLDER), purge_step=self._purge_step)


def read_history(workdir: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl.

    Args:
      workdir: folder of the run.

    Returns:
      One dict a line, in the order written; empty where there is no file yet. A last line that is not whole, as a kill
      leaves it, is left out.

    Raises:
      ValueError: a line before the last is not JSON.
    """
    path = pathlib.Path(workdir) / METRICS_FILE
    if not path.exists():
        return []
    *lines, last = path.read_text(encoding="utf-8").split("\n")
    del last  # empty, or a line without its end
    history = []
    for number, line in enumerate(lines, start=1):
        try:
            history.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number} is not JSON: {line[:60]!r}") from error
    return history
