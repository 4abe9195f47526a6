"""Angle of the gaze: a circular loss against squared error on the raw degrees, and against a constant answer.

    python tests/benchmarks/angle_regression.py

writes results/angle_regression_cpu.md beside this file (another name on another platform). Every row is the mean over
seeds, each with its own eyes, initialisation and order of batches; last weights, no choice by validation.
"""

import argparse
import datetime
import pathlib
import platform
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

import jax
import numpy as np

from dl_core.losses import circular_distance
from train import configuration, run
from train.tasks.regression import predictions
from train.versions import versions

VARIANTS = {
    "vector, 1 - cos Δ": ("angle", "cosine_angle"),
    "vector, von Mises": ("angle", "von_mises"),
    "vector, squared error": ("angle", "squared_error"),
    "raw degrees, squared error": ("value", "squared_error"),
}
NEAR = 30  # degrees around 0 that count as near the jump of raw degrees


def trained(head, loss, seed, epochs, num_train):
    """Labels and predictions on the test split, and the answer and error of a constant."""
    config = configuration.load_config("gaze_eyes")
    overrides = [f"seed={seed}", f"epochs={epochs}", f"regression.head={head}", f"regression.loss={loss}"]
    config = configuration.apply_overrides(config, [*overrides, f"data.options.num_train={num_train}"])
    configuration.validate(config)
    one, state = run.prepare(config)
    feed = run.make_feed(one, 0)
    for epoch in range(epochs):
        state, _ = feed.run(state, epoch * one.steps_per_epoch, one.steps_per_epoch, lambda *_: None)
    _, (labels, outputs) = run.evaluate(one, state.variables, one.dataset.test, outputs=True)
    return labels, np.asarray(predictions(outputs, circular=head == "angle")), one.task.baselines(one.dataset)


def figures(labels, predicted):
    """Mean and median error, share within 5 degrees, and mean error near the jump and far from it."""
    error = np.asarray(circular_distance(predicted, labels))
    near = np.minimum(labels, 360 - labels) < NEAR
    return error.mean(), np.median(error), 100 * (error <= 5).mean(), error[near].mean(), error[~near].mean()


def cell(values):
    """Mean ± standard error."""
    return f"{np.mean(values):.2f} ± {np.std(values, ddof=1) / np.sqrt(len(values)):.2f}"


def main():
    """Trains every variant with every seed and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--num-train", type=int, default=4096)
    args = parser.parse_args()
    rows, seconds, constants = {name: [] for name in VARIANTS}, [], []
    for seed in range(args.seeds):
        for name, (head, loss) in VARIANTS.items():
            start = time.perf_counter()
            labels, predicted, baseline = trained(head, loss, seed, args.epochs, args.num_train)
            seconds.append(time.perf_counter() - start)
            rows[name].append(figures(labels, predicted))
            print(seed, name, *(f"{value:.2f}" for value in rows[name][-1]), f"{seconds[-1]:.0f} s", flush=True)
            if head == "angle":
                constants.append(baseline["constant_mae"])
    command = " ".join(["python tests/benchmarks/angle_regression.py", *sys.argv[1:]])
    device = jax.devices()[0]
    lines = [
        "# Gaze of procedural eyes: which loss for an angle",
        "",
        f"`{command}`, {datetime.date.today()}, {device.platform} ({device.device_kind}, {platform.machine()}), "
        + ", ".join(f"{name} {version}" for name, version in versions().items()) + ".",
        "",
        f"LeNet-5, {args.num_train:,} eyes of 32×32 (half plain, half photographic), {args.epochs} epochs, "
        f"{len(labels):,} test eyes; mean ± standard error of {args.seeds} seeds; "
        f"at most {max(seconds):.0f} s a run, data and compilation included. Errors are in degrees, the shorter way "
        f"around; \"near the jump\" are eyes that look within {NEAR}° of 0°.",
        "",
        "| output and loss | mean error | median error | within 5°, % | mean error near the jump | elsewhere |",
        "|---|---|---|---|---|---|",
        *(f"| {name} | {' | '.join(map(cell, zip(*values, strict=True)))} |" for name, values in rows.items()),
        f"| always the mean direction | {cell(constants[:: len(constants) // args.seeds])} | | | | |",
        "",
    ]  # fmt: skip
    path = pathlib.Path(__file__).parent / "results" / f"angle_regression_{device.platform}.md"
    path.write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
