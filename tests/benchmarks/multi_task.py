"""One network with three heads and three networks with one, on scenes, mean of seeds ± standard error.

    python tests/benchmarks/multi_task.py --output=tests/benchmarks/results/multi_task_cpu.md

The config multi_task_scenes, with fixed and with learned weights, and the same config for each label by itself. A seed
decides scenes, initialisation and order, the same for all. The last weights are evaluated; nothing was tuned.
"""

import argparse

import numpy as np
from seeds import over_seeds, percent, report, table

from train.configs import multi_task_scenes

HEADS = ("kind", "colour", "fill")


def together(weighting: str, seed: int, arguments: argparse.Namespace):
    """Config and workdir of a network with three heads."""
    config = multi_task_scenes.get_config()
    config.seed, config.baseline = seed, "none"
    config.checkpoint.every_epochs = float(config.epochs)
    config.multi_task.weighting = weighting
    return config, arguments.workdir / f"{weighting}_{seed}"


def alone(head: str, seed: int, arguments: argparse.Namespace):
    """Config and workdir of a network for one label."""
    config, _ = together("fixed", seed, arguments)
    config.task, config.data.options.target = "classification", head
    return config, arguments.workdir / f"{head}_{seed}"


def measure(arguments: argparse.Namespace) -> str:
    """The table."""
    seeds = range(arguments.seeds)
    majority, single, fixed, learned = {}, {}, {}, {}
    for head in HEADS:
        make = lambda seed, h=head: alone(h, seed, arguments)
        majority[head] = over_seeds(make, seeds, "test_majority_baseline")
        single[head] = over_seeds(make, seeds, "test_accuracy")
    for accuracies, weighting in ((fixed, "fixed"), (learned, "uncertainty")):
        make = lambda seed, w=weighting: together(w, seed, arguments)
        for head in HEADS:
            accuracies[head] = over_seeds(make, seeds, f"test_accuracy_{head}")
    methods = {
        "the commonest class": majority,
        "three networks, one label each": single,
        "one network, weights 1": fixed,
        "one network, learned weights": learned,
    }
    rows = []
    for name, accuracies in methods.items():
        mean = np.mean(list(accuracies.values()), axis=0)
        gain = percent(mean - np.mean(list(single.values()), axis=0)) if name.startswith("one network") else ""
        rows.append([name, *(percent(accuracies[head]) for head in HEADS), percent(mean), gain])
    columns = ["", *HEADS, "mean", "against three networks, same seed, points"]
    return f"Test accuracy in %. {len(seeds)} seeds, 2,048 training scenes.\n\n" + table(columns, rows)


if __name__ == "__main__":
    report(__doc__, "Several tasks on scenes", measure)
