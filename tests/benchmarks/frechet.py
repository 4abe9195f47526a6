"""Seconds for one Fréchet distance of two covariances: here, and by scipy's root of their product.

    OPENBLAS_NUM_THREADS=1 taskset -c 0 python tests/benchmarks/frechet.py

Both take turns on covariances of a falling spectrum. On one core neither waits for cores that others hold.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable

import numpy as np
import scipy.linalg
from contest import markdown_table, processor, versions

from dl_core.metrics.frechet import frechet_distance
from dl_core.metrics.moments import Moments


def moments(features: int, seed: int) -> Moments:
    """Of 3 d examples whose standard deviations fall by e every d / 4 features, in rotated axes."""
    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(np.random.default_rng(99).normal(size=(features, features)))[0]
    x = rng.normal(size=(3 * features, features)) * np.exp(-np.arange(features) / (features / 4)) @ axes.T
    return Moments(x.mean(axis=0), np.cov(x, rowvar=False), len(x))


def by_scipy(a: Moments, b: Moments) -> float:
    """As pytorch-fid computes it."""
    root = scipy.linalg.sqrtm(a.covariance @ b.covariance).real
    return float(((a.mean - b.mean) ** 2).sum() + np.trace(a.covariance + b.covariance - 2 * root))


def seconds(call: Callable[[], object]) -> tuple[float, float]:
    """How long one call takes, and what it returns."""
    start = time.perf_counter()
    value = float(call())
    return time.perf_counter() - start, value


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=int, default=2048)
    parser.add_argument("--turns", type=int, default=3, help="of ours")
    parser.add_argument("--scipy-turns", type=int, default=2, help="the first of ours are followed by one of scipy's")
    arguments = parser.parse_args()
    before = os.getloadavg()[0]
    a, b = moments(arguments.features, 0), moments(arguments.features, 1)
    frechet_distance(a, b)
    ours, theirs = [], []
    for turn in range(arguments.turns):
        ours.append(seconds(lambda: frechet_distance(a, b)))
        if turn < arguments.scipy_turns:
            theirs.append(seconds(lambda: by_scipy(a, b)))
    here, there = (statistics.median(time for time, _ in side) for side in (ours, theirs))
    print(f"- device: {processor()}", f"- versions: {versions()}", f"- scipy: {scipy.__version__}", sep="\n")
    print(f"- load average before and after: {before:.1f}, {os.getloadavg()[0]:.1f}\n")
    line = {
        "features": arguments.features,
        "here, s": " ".join(f"{time:.2f}" for time, _ in ours),
        "scipy, s": " ".join(f"{time:.2f}" for time, _ in theirs),
        "times as fast": f"{there / here:.1f}",
        "difference": f"{abs(ours[0][1] - theirs[0][1]):.1e} of {ours[0][1]:.4f}",
    }
    print(markdown_table([line]))


if __name__ == "__main__":
    main()
