"""A small student with a teacher and the same student alone, mean of seeds ± standard error.

    python tests/benchmarks/distillation.py --output=tests/benchmarks/results/distillation_cpu.md

The configs pretrain_digits (the teacher, on all ten digits) and distill_digits. A seed decides split, labels,
initialisation and order, the same for teacher and student, so that no teacher has seen a test image. The last weights
are evaluated, the validation split decides nothing, and nothing was tuned.
"""

import argparse

import numpy as np
from seeds import over_seeds, percent, report, table, trained

from train.configs import distill_digits, pretrain_digits
from train.tasks import load_data


def teaching(seed: int, arguments: argparse.Namespace):
    """Config and workdir of the teacher."""
    config = pretrain_digits.get_config()
    config.seed, config.baseline = seed, "none"
    config.data.options = {}
    config.checkpoint.every_epochs = 40.0
    return config, arguments.workdir / f"teacher_{seed}"


def learning(seed: int, arguments: argparse.Namespace, **options: float):
    """Config and workdir of a student; options of config.distillation, none for the student alone."""
    config = distill_digits.get_config()
    config.seed, config.baseline = seed, "none"
    config.checkpoint.every_epochs = 100.0
    config.distillation.teacher = str(arguments.workdir / f"teacher_{seed}")
    config.distillation.update(options)
    return config, arguments.workdir / f"student_{seed}_{'_'.join(map(str, options.values()))}"


def measure(arguments: argparse.Namespace) -> str:
    """The table."""
    seeds = range(arguments.seeds)
    teacher = over_seeds(lambda seed: teaching(seed, arguments), seeds, "test_accuracy")
    alone = over_seeds(lambda seed: learning(seed, arguments, alpha=0.0), seeds, "test_accuracy")
    taught = over_seeds(lambda seed: learning(seed, arguments), seeds, "test_accuracy")
    labels = [load_data(learning(seed, arguments)[0]).test.labels for seed in seeds]
    majority = np.array([np.bincount(split).max() / len(split) for split in labels])
    sizes = [f"{trained(*make(0, arguments))['parameters']:,}" for make in (teaching, learning)]
    options = distill_digits.get_config().distillation
    rows = [
        ["the commonest class", "", percent(majority), ""],
        ["teacher: LeNet-5, all training labels", sizes[0], percent(teacher), ""],
        ["student alone: 16 hidden units, 20 labels a class", sizes[1], percent(alone), ""],
        [f"student with teacher, T = {options.temperature:g}, α = {options.alpha:g}", sizes[1], percent(taught),
         percent(taught - alone)],
    ]  # fmt: skip
    columns = ["", "parameters", "test accuracy, %", "against alone, same seed, points"]
    return f"{len(seeds)} seeds.\n\n" + table(columns, rows)


if __name__ == "__main__":
    report(__doc__, "Distillation on digits", measure)
