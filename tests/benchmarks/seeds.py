"""One configuration, many seeds: the runs, their mean with its standard error, and the page that reports them."""

import argparse
import datetime
import json
import math
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from contest import processor, versions

from train import configuration
from train.loop import train_and_evaluate

WALL_FILE = "wall_seconds.txt"


class Quiet:
    """A stream that keeps nothing."""

    def write(self, text: str) -> int:
        """Takes text."""
        return len(text)

    def flush(self) -> None:
        """Nothing to do."""


def trained(config: Any, workdir: pathlib.Path) -> dict[str, Any]:
    """The summary of a run; a run that is there already is read, not repeated."""
    summary = workdir / "summary.json"
    if not summary.exists():
        configuration.validate(config)
        start = time.monotonic()
        train_and_evaluate(config, workdir, resume=(workdir / "config.json").exists(), stream=Quiet())
        seconds = time.monotonic() - start
        (workdir / WALL_FILE).write_text(f"{seconds}\n", encoding="utf-8")
        print(f"{workdir}: {seconds:.1f} s", flush=True)
    return json.loads(summary.read_text(encoding="utf-8"))


def over_seeds(make: Callable[[int], tuple[Any, pathlib.Path]], seeds: Sequence[int], key: str) -> np.ndarray:
    """One figure of the summary for each seed; `make(seed)` gives config and workdir."""
    return np.array([trained(*make(seed))[key] for seed in seeds], np.float64)


def percent(values: np.ndarray) -> str:
    """Mean ± standard error of shares, in per cent."""
    values = 100 * np.asarray(values)
    return f"{values.mean():.1f} ± {values.std(ddof=1) / math.sqrt(len(values)):.1f}"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write_page(path: pathlib.Path, title: str, workdir: pathlib.Path, parts: Sequence[str]) -> None:
    """Writes and prints the page: what it was measured on and by which command, then the parts."""
    seconds = [float(file.read_text()) for file in workdir.rglob(WALL_FILE)]
    facts = {
        "device": processor(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"),
        "command": f"python tests/benchmarks/{pathlib.Path(sys.argv[0]).name} (folders left out)",
        "time": f"{sum(seconds) / 60:.1f} min for {len(seconds)} runs, compilation and reports included",
        "versions": ", ".join(f"{name} {version}" for name, version in versions().items()),
    }
    page = "\n".join(
        [f"# {title}", "", *(f"- {name}: {fact}" for name, fact in facts.items()), "", "\n\n".join(parts), ""]
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    print(page)


def report(description: str | None, title: str, measure: Callable[[argparse.Namespace], str]) -> None:
    """The program of a page: runs, prints and writes the table that `measure` makes of its arguments."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path(os.devnull), help="write the page there")
    parser.add_argument("--workdir", type=pathlib.Path, help="keep the runs there; finished ones are not repeated")
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        arguments.workdir = arguments.workdir or pathlib.Path(scratch)
        write_page(arguments.output, title, arguments.workdir, [measure(arguments)])
