"""A table of group fairness with bootstrap intervals of its gaps, beside fairlearn's MetricFrame.

    python tests/benchmarks/fairness.py

2,000 examples, 4 groups; accuracy, selection rate and true positive rate (ours: three more), each as difference and as
ratio. The sides take turns; the compilation is timed by itself.
"""

import json
import time

import fairlearn.metrics
import jax
import numpy as np
from contest import Side, markdown_table, processor, race, versions
from sklearn.metrics import accuracy_score

from dl_core.metrics.group_table import group_table

EXAMPLES, GROUPS = 2000, 4
OURS, THEIRS = 1000, 100


def measure(seconds: float = 20.0) -> str:
    """The table, in Markdown; `seconds` for each side."""
    rng = np.random.default_rng(0)
    labels, decisions = rng.integers(0, 2, (2, EXAMPLES))
    groups = rng.integers(0, GROUPS, EXAMPLES)
    metrics = {
        "accuracy": accuracy_score,
        "selection rate": fairlearn.metrics.selection_rate,
        "true positive rate": fairlearn.metrics.true_positive_rate,
    }

    def ours(repeats: int) -> None:
        for i in range(repeats):
            table = group_table(labels, decisions, groups, key=jax.random.key(i), n_resamples=OURS)
            jax.block_until_ready(table[:-1])

    def theirs(repeats: int) -> None:
        for i in range(repeats):
            frame = fairlearn.metrics.MetricFrame(
                metrics=metrics, y_true=labels, y_pred=decisions, sensitive_features=groups,
                n_boot=THEIRS, ci_quantiles=[0.025, 0.975], random_state=i,
            )  # fmt: skip
            frame.difference_ci()
            frame.ratio_ci()

    start = time.perf_counter()
    ours(1)
    first = time.perf_counter() - start
    resamples = {"dl_core": OURS, "fairlearn": THEIRS}
    speeds = race({"dl_core": Side(ours, OURS, first), "fairlearn": Side(theirs, THEIRS)}, seconds)
    rows = [
        {
            "": name,
            "resamples": resamples[name],
            "s a table": f"{resamples[name] / speed:.4f}",
            "ms a resample": f"{1000 / speed:.4f}",
            "first call, s": f"{first:.2f}" if name == "dl_core" else "",
        }
        for name, speed in speeds.items()
    ]
    return markdown_table(rows)


if __name__ == "__main__":
    print(processor())
    print(json.dumps(versions()), f"fairlearn {fairlearn.__version__}")
    print(measure())
