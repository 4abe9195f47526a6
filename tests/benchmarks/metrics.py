"""Speed of metrics beside other libraries, in milliseconds a call.

    python tests/benchmarks/metrics.py --only auroc bootstrap --output=tests/benchmarks/results/metrics_cpu

Every contest is a function that makes its data and returns the sides: one call each of ours and of what others offer
for the same figure, on arrays that lie where each library wants them. The sides take turns; medians. Before the race
each side's value is compared with ours, so that nobody wins by computing something else. Libraries that are not
installed are left out.
"""

import argparse
import contextlib
import datetime
import functools
import importlib
import json
import os
import pathlib
import shlex
import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from contest import Side, markdown_table, processor, race, versions

from dl_core import metrics
from dl_core.metrics.delong import delong_interval

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "parity"))

Calls = dict[str, tuple[Callable[[], object], float]]  # side -> (one call, how far its value may be from ours)


def installed(module: str):
    """The module, or None. torchmetrics imports torchvision, which may not load beside a CPU build of torch."""
    with contextlib.suppress(ModuleNotFoundError):
        if module.startswith("torchmetrics"):
            importlib.import_module("torchvision_on_cpu").import_zoo()
        return importlib.import_module(module)
    return None


def binary_scores(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Normal scores, one unit higher for positives."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, n).astype(np.int32)
    return labels, (rng.normal(size=n) + labels).astype(np.float32)


def ranking(n: int, ours: Callable, scikit_learn: str, torchmetrics: str) -> Calls:
    """The area under a curve of n binary scores."""
    labels, scores = binary_scores(n)
    on_device = jnp.asarray(labels), jnp.asarray(scores)
    calls: Calls = {"ours": (lambda: ours(*on_device).block_until_ready(), 0)}
    if sk := installed("sklearn.metrics"):
        calls["scikit-learn"] = (lambda: getattr(sk, scikit_learn)(labels, scores), 1e-5)
    if functional := installed("torchmetrics.functional.classification"):
        import torch

        tensors = torch.tensor(scores), torch.tensor(labels)
        calls["torchmetrics"] = (lambda: getattr(functional, torchmetrics)(*tensors).item(), 1e-4)
    return calls


def bootstrap(n: int, n_resamples: int) -> Calls:
    """BCa interval of an accuracy, low end. Others draw other resamples: the ends agree to a Monte Carlo error."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, n).astype(np.int32)
    predictions = np.where(rng.random(n) < 0.8, labels, rng.integers(0, 10, n)).astype(np.int32)
    interval = functools.partial(metrics.bootstrap_interval, metrics.accuracy, n_resamples=n_resamples)
    compiled = jax.jit(lambda key, *arrays: interval(*arrays, key=key).low)
    arguments = jax.random.key(0), jnp.asarray(labels), jnp.asarray(predictions)
    calls: Calls = {"ours": (lambda: compiled(*arguments).block_until_ready(), 0)}
    if stats := installed("scipy.stats"):
        accuracy = lambda a, b, axis=-1: (a == b).mean(axis=axis)
        options = {"paired": True, "n_resamples": n_resamples, "batch": 100}
        call = lambda: stats.bootstrap((labels, predictions), accuracy, **options).confidence_interval.low
        calls["SciPy"] = (call, 0.2 / n**0.5)
    return calls


def bootstrap_auroc(n: int, n_resamples: int) -> Calls:
    """BCa interval of an AUROC, low end: a statistic that SciPy has to call once for each resample."""
    labels, scores = binary_scores(n)
    interval = functools.partial(metrics.bootstrap_interval, metrics.auroc, n_resamples=n_resamples)
    compiled = jax.jit(lambda key, *arrays: interval(*arrays, key=key).low)
    arguments = jax.random.key(0), jnp.asarray(labels), jnp.asarray(scores)
    calls: Calls = {"ours": (lambda: compiled(*arguments).block_until_ready(), 0)}
    sk, stats = installed("sklearn.metrics"), installed("scipy.stats")
    if sk and stats:
        options = {"paired": True, "vectorized": False, "n_resamples": n_resamples}
        call = lambda: stats.bootstrap((labels, scores), sk.roc_auc_score, **options).confidence_interval.low
        calls["SciPy"] = (call, 0.2 / n**0.5)
    return calls


def delong(n: int) -> Calls:
    """DeLong's interval of an AUROC, low end; nobody to compare with but the n² pairs, for which n is too large."""
    labels, scores = (jnp.asarray(array) for array in binary_scores(n))
    return {"ours": (lambda: delong_interval(labels, scores).low.block_until_ready(), 0)}


CONTESTS: dict[str, Callable[[], Calls]] = {
    "auroc, 1e6 scores": lambda: ranking(10**6, metrics.auroc, "roc_auc_score", "binary_auroc"),
    "average precision, 1e6 scores": lambda: ranking(
        10**6, metrics.average_precision, "average_precision_score", "binary_average_precision"
    ),
    "bootstrap BCa of an accuracy, n = 1000, 2000 resamples": lambda: bootstrap(1000, 2000),
    "bootstrap BCa of an AUROC, n = 1000, 1000 resamples": lambda: bootstrap_auroc(1000, 1000),
    "delong interval, 1e6 scores": lambda: delong(10**6),
}


def measure(name: str, seconds: float) -> dict[str, str]:
    """The line of one contest: milliseconds of each side, and how many times as fast as the best other ours is."""
    calls = CONTESTS[name]()
    ours = np.asarray(calls["ours"][0]())
    for side, (call, tolerance) in calls.items():
        np.testing.assert_allclose(np.asarray(call()), ours, atol=tolerance, err_msg=f"{name}: {side}")

    def repeat(call: Callable[[], object], n: int) -> None:
        for _ in range(n):
            call()

    speeds = race({side: Side(functools.partial(repeat, call), 1) for side, (call, _) in calls.items()}, seconds)
    others = [speed for side, speed in speeds.items() if side != "ours"]
    line = {"metric": name, **{side: f"{1e3 / speed:.1f} ms" for side, speed in speeds.items()}}
    return line | ({"ours against the fastest other": f"{speeds['ours'] / max(others):.2f} ×"} if others else {})


def main() -> None:
    """Measures, prints the table, and writes it when asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[""], help="parts of the contests' names")
    parser.add_argument("--seconds", type=float, default=5, help="measuring time for each side")
    parser.add_argument("--output", help="write PREFIX.json and PREFIX.md")
    arguments = parser.parse_args()
    before = os.getloadavg()[0]
    chosen = [name for name in CONTESTS if any(part in name for part in arguments.only)]
    lines = []
    for name in chosen:
        lines.append(measure(name, arguments.seconds))
        print(lines[-1], flush=True)
    result = {
        "device": processor(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"),
        "command": shlex.join(["python", *sys.argv]),
        "versions": versions(),
        "load average before and after": [round(before, 1), round(os.getloadavg()[0], 1)],
        "figures": "one call on data that is there, compiled before; the median of turns",
    }
    page = ["# Metrics", "", *(f"- {key}: {value}" for key, value in result.items()), "", markdown_table(lines)]
    print("\n".join(page))
    if arguments.output:
        prefix = pathlib.Path(arguments.output)
        prefix.parent.mkdir(parents=True, exist_ok=True)
        prefix.with_suffix(".json").write_text(
            json.dumps(result | {"lines": lines}, indent=2, ensure_ascii=False) + "\n"
        )
        prefix.with_suffix(".md").write_text("\n".join(page) + "\n")


if __name__ == "__main__":
    main()
