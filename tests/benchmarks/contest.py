"""Timing of several contestants in turns, and what a table of timings needs to say about its machine."""

import dataclasses
import importlib.metadata
import json
import os
import pathlib
import platform
import statistics
import time
from collections.abc import Callable

TURNS = 7


@dataclasses.dataclass
class Side:
    """One contestant: `run(n)` does n steps (or epochs) and waits for the device."""

    run: Callable[[int], None]
    images: int
    compile_seconds: float | None = None
    peak_bytes: int | None = None


def race(sides: dict[str, Side], seconds: float, turns: int = TURNS) -> dict[str, float]:
    """Images per second of each side: the median of several turns, the sides taking turns, `seconds` each in all."""
    repeats = {}
    for name, side in sides.items():
        side.run(1)
        start = time.perf_counter()
        side.run(1)
        repeats[name] = max(1, round(seconds / turns / (time.perf_counter() - start)))
    speeds = {name: [] for name in sides}
    for _ in range(turns):
        for name, side in sides.items():
            start = time.perf_counter()
            side.run(repeats[name])
            speeds[name].append(repeats[name] * side.images / (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in speeds.items()}


def markdown_table(lines: list[dict]) -> str:
    """Lines with the union of their keys as columns; an empty cell where a line has no such key."""
    columns = list(dict.fromkeys(key for line in lines for key in line))
    rows = [columns, ["---"] * len(columns), *([str(line.get(key, "")) for key in columns] for line in lines)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in rows)


def processor() -> str:
    """The name of the processor, as the system tells it, and how many of its cores this process may use."""
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = (line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{next(names, platform.processor())}, {usable} of {os.cpu_count()} CPUs"


def versions(*others: str) -> dict[str, str]:
    """Versions of everything that takes part, `others` being more packages."""
    found = {"python": platform.python_version()}
    for package in ("jax", "jaxlib", "flax", "optax", "numpy", "torch", *others):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def publish(title: str, facts: dict[str, object], lines: list[dict], output: str | None) -> None:
    """Prints a page with facts and the table of lines, and writes output.md and output.json where that is given."""
    page = [f"# {title}", "", *(f"- {name}: {value}" for name, value in facts.items()), "", markdown_table(lines)]
    print("\n".join(page))
    if output:
        prefix = pathlib.Path(output)
        prefix.parent.mkdir(parents=True, exist_ok=True)
        content = json.dumps(facts | {"lines": lines}, indent=2, ensure_ascii=False)
        prefix.with_suffix(".json").write_text(content + "\n")
        prefix.with_suffix(".md").write_text("\n".join(page) + "\n")
