"""Seconds for one t-SNE map: here, by scikit-learn and by openTSNE, from the same features and the same start.

    python tests/benchmarks/tsne.py --data=DIR --points=1000 --turns=3
    python tests/benchmarks/tsne.py --data=DIR --points=10000 --turns=1 --sides here openTSNE

All take 1000 steps (250 of them exaggerated) at perplexity 30, from principal components at a width of 1e-4, in turns.
The features are 50 principal components of the first training images of Fashion-MNIST (the four files of the original
distribution in DIR), or of scikit-learn's digits without --data. The time is that of a whole call, neighbours included;
here with the neighbourhood checks, of which the others have none, and the second time, so without compilation, which is
said beside it. The loss is recomputed for every map from one set of probabilities, of all pairs.
"""

import argparse
import gzip
import os
import pathlib
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from contest import markdown_table, processor, versions
from sklearn import manifold
from sklearn.datasets import load_digits

from dl_core.explain.embedding import neighbour_check, pca
from dl_core.explain.tsne import tsne
from dl_core.explain.tsne_affinities import precisions
from dl_core.explain.tsne_forces import kl_divergence

PERPLEXITY, STEPS = 30.0, 1000


def features_of_images(data: str, points: int) -> np.ndarray:
    """50 principal components of images, [points, 50]."""
    if data:
        raw = gzip.decompress((pathlib.Path(data) / "train-images-idx3-ubyte.gz").read_bytes())
        images = np.frombuffer(raw, np.uint8, offset=16).reshape(-1, 784)[:points].astype(np.float32) / 255
    else:
        images = load_digits().data[:points].astype(np.float32) / 16
    return np.asarray(pca(images, 50).points)


def by_sklearn(method: str) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    options = {"perplexity": PERPLEXITY, "max_iter": STEPS, "method": method, "n_jobs": 2}
    return lambda x, start: manifold.TSNE(init=start.copy(), **options).fit(x).embedding_


def by_opentsne(x: np.ndarray, start: np.ndarray) -> np.ndarray:
    import openTSNE

    options = {"negative_gradient_method": "fft", "neighbors": "exact", "n_jobs": 2, "n_iter": STEPS - 250}
    return np.asarray(openTSNE.TSNE(perplexity=PERPLEXITY, initialization=start.astype(float), **options).fit(x))


def here(method: str) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    return lambda x, start: np.asarray(tsne(x, perplexity=PERPLEXITY, n_iter=STEPS, init=start, method=method).points)


SIDES = {
    "here": here("auto"),
    "here, exact": here("exact"),
    "here, fft": here("fft"),
    "sklearn exact": by_sklearn("exact"),
    "sklearn Barnes-Hut": by_sklearn("barnes_hut"),
    "openTSNE": by_opentsne,
}


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="", help="folder of the files of Fashion-MNIST")
    parser.add_argument("--points", type=int, default=1000)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    arguments = parser.parse_args()
    before = os.getloadavg()[0]
    x = features_of_images(arguments.data, arguments.points)
    start = (x[:, :2] / x[:, 0].std() * 1e-4).astype(np.float32)
    times, maps, first = {side: [] for side in arguments.sides}, {}, {}
    for turn in range(-1, arguments.turns):
        for side in arguments.sides:
            if turn < 0 and not side.startswith("here"):
                continue  # nothing to compile
            began = time.perf_counter()
            maps[side] = SIDES[side](x, start)
            seconds = time.perf_counter() - began
            if turn < 0:
                first[side] = seconds
            else:
                times[side].append(seconds)
    probabilities, divergence = precisions(x, PERPLEXITY), jax.jit(kl_divergence)
    lines = []
    for side in arguments.sides:
        check = neighbour_check(x, maps[side])
        median = statistics.median(times[side])
        lines.append(
            {
                "points": len(x),
                "by": side,
                "s": " ".join(f"{t:.1f}" for t in times[side]),
                "first call, s": f"{first[side]:.1f}" if side in first else "",
                f"of the time of {arguments.sides[0]}": f"{median / statistics.median(times[arguments.sides[0]]):.2f}",
                "KL, all pairs": f"{float(divergence(probabilities, jnp.asarray(maps[side], jnp.float32))):.4f}",
                "trustworthiness": f"{float(check.trustworthiness):.4f}",
                "neighbours kept": f"{float(check.neighbours_kept.mean()):.3f}",
            }
        )
    print(f"- device: {processor()}", f"- versions: {versions()}", sep="\n")
    print(f"- load average before and after: {before:.1f}, {os.getloadavg()[0]:.1f}\n")
    print(markdown_table(lines))


if __name__ == "__main__":
    main()
