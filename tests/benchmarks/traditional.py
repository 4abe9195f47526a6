"""The traditional pipeline beside networks, and an ensemble beside its members, on small data sets.

    python tests/benchmarks/traditional.py --data=digits
    python tests/benchmarks/traditional.py --data=fashion_mnist --data-dir=FOLDER

FOLDER is where `python -m train.prepare fashion_mnist` put its data. Writes results/traditional_digits_cpu.md beside
this file (other names for other data and platforms). Rows are means over seeds, each with its own split of the digits
or its own sample of Fashion-MNIST's training images, and its own initialisation.
"""

import argparse
import datetime
import pathlib
import platform
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from dl_core.data import load
from dl_core.data.splits import stratified_split
from dl_core.ensembles import ensemble, unstack
from train import configuration, run
from train.baselines import traditional_baseline
from train.members import train_members
from train.versions import versions

PIPELINES = {
    "HOG, linear SVM": {"descriptor": "hog", "classifier": "linear_svm"},
    "HOG, PCA 64, 5-NN": {"descriptor": "hog", "reduce": 64, "classifier": "knn"},
    "pixels, PCA 64, 5-NN": {"descriptor": "pixels", "reduce": 64, "classifier": "knn"},
}
FASHION_TRAIN = 3000
MEMBERS = 5


def dataset_of(name, seed, data_dir):
    """The digits in the split of the seed, or a stratified sample of Fashion-MNIST's training images."""
    if name == "digits":
        return load("digits", seed=seed)
    whole = load(name, seed=seed, data_dir=data_dir, in_memory=True)
    share = FASHION_TRAIN / len(whole.train)
    rows, _ = stratified_split(whole.train.labels, (share, 1 - share), seed=seed)
    return dataclasses.replace(whole, train=whole.train.take(rows))


def config_of(config_name, seed, *overrides):
    """A named config with another seed, on images as they are stored, without augmentation."""
    config = configuration.load_config(config_name)
    plain = ["data.image_size=0", "augment.translate=0", "augment.flip=False"]
    config = configuration.apply_overrides(config, [*plain, f"seed={seed}", *overrides])
    configuration.validate(config)
    return config


def network_accuracy(config, dataset):
    """Test accuracy of the last weights."""
    one, state = run.prepare(config, dataset=dataset)
    feed = run.make_feed(one, 0)
    for epoch in range(config.epochs):
        state, _ = feed.run(state, epoch * one.steps_per_epoch, one.steps_per_epoch, lambda *_: None)
    return run.evaluate(one, state.variables, dataset.test)[0]["accuracy"]


def ensemble_accuracies(config, dataset, repeat):
    """Mean test accuracy of the members, and that of their ensemble."""
    one, stacked = train_members(config, range(MEMBERS * repeat, MEMBERS * (repeat + 1)), dataset=dataset)
    images, labels = dataset.test.arrays()
    images = jnp.asarray(images, jnp.float32) / 255
    accuracy = lambda logits: float((logits.argmax(-1) == labels).mean())
    single = [accuracy(one.task.apply_fn(member, images)) for member in unstack(stacked)]
    return np.mean(single), accuracy(jax.jit(ensemble(one.task.apply_fn))(stacked, images))


def cell(values):
    """Mean ± standard error, in percent."""
    values = 100 * np.asarray(values)
    return f"{values.mean():.2f} ± {values.std(ddof=1) / np.sqrt(len(values)):.2f}"


def measure(name, seeds, data_dir):
    """{row: (accuracies, seconds)} on one data set, and the ensembles' (single, together) accuracies."""
    networks = {
        "linear": ("linear_digits", f"epochs={40 if name == 'digits' else 8}"),
        "MLP 256-128": ("mlp_digits", f"epochs={40 if name == 'digits' else 8}"),
        "LeNet-5": ("fashion_mnist", "batch_size=32", f"epochs={20 if name == 'digits' else 8}"),
    }
    rows, pairs = {}, []

    def add(row, accuracy, start):
        rows.setdefault(row, ([], []))
        rows[row][0].append(accuracy)
        rows[row][1].append(time.perf_counter() - start)
        print(name, row, f"{100 * accuracy:.2f} %, {rows[row][1][-1]:.1f} s", flush=True)

    for seed in range(seeds):
        dataset = dataset_of(name, seed, data_dir)
        add(
            "always the commonest class",
            np.bincount(dataset.test.labels).max() / len(dataset.test),
            time.perf_counter(),
        )
        for row, options in PIPELINES.items():
            start = time.perf_counter()
            add(row, traditional_baseline(dataset, **options, most_examples=10_000, seed=seed).accuracy, start)
        for row, (config_name, *overrides) in networks.items():
            start = time.perf_counter()
            if row == "LeNet-5" and name == "digits":
                overrides.append("data.image_size=16")
                resized = load("digits", seed=seed, image_size=16)
                add(row, network_accuracy(config_of(config_name, seed, *overrides), resized), start)
            elif row == "MLP 256-128":
                pairs.append(ensemble_accuracies(config_of(config_name, seed, *overrides), dataset, seed))
                add(f"{MEMBERS} MLPs, mean of each alone", pairs[-1][0], start)
                add(f"{MEMBERS} MLPs, their ensemble", pairs[-1][1], start)
            else:
                add(row, network_accuracy(config_of(config_name, seed, *overrides), dataset), start)
    return rows, pairs


def main():
    """Measures every row and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--data", choices=("digits", "fashion_mnist"), default="digits")
    parser.add_argument("--data-dir", default="")
    args = parser.parse_args()
    device = jax.devices()[0]
    command = f"python tests/benchmarks/traditional.py --data={args.data} --seeds={args.seeds}"
    command += " --data-dir=FOLDER" if args.data_dir else ""
    titles = {
        "digits": "1,797 digits of 8×8",
        "fashion_mnist": f"Fashion-MNIST, {FASHION_TRAIN:,} training images",
    }
    lines = [
        "# Traditional pipelines, networks, and an ensemble: " + titles[args.data],
        "",
        f"`{command}`, {datetime.date.today()}, {device.platform} ({device.device_kind}, {platform.machine()}), "
        + ", ".join(f"{name} {version}" for name, version in versions().items()) + ".",
        "",
        f"Test accuracy in percent, mean ± standard error of {args.seeds} seeds; seconds are for training and testing, "
        "compilation included, on a machine shared with other work. Networks: last weights, images as stored (LeNet-5 "
        f"sees the digits at 16×16), no augmentation. The {MEMBERS} MLPs are trained at once by `vmap`: the time "
        "is that of all.",
        "",
    ]  # fmt: skip
    rows, pairs = measure(args.data, args.seeds, args.data_dir or None)
    gain = cell([together - single for single, together in pairs])
    lines += [
        "| | test accuracy, % | seconds |",
        "|---|---|---|",
        *(f"| {row} | {cell(accuracies)} | {np.mean(seconds):.1f} |" for row, (accuracies, seconds) in rows.items()),
        "",
        f"The ensemble gains {gain} points over the mean of its members (paired by seed).",
        "",
    ]
    path = pathlib.Path(__file__).parent / "results" / f"traditional_{args.data}_{device.platform}.md"
    path.write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
