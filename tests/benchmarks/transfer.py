"""Ten labels a class: fine-tuned, from scratch, and a linear head on frozen features, mean of seeds ± standard error.

    python tests/benchmarks/transfer.py --data-dir=FOLDER --output=tests/benchmarks/results/transfer_cpu.md

Pretraining is on the first five classes with all their labels, everything else on the other five with ten labels each.
A seed decides split, labels, initialisation and order, the same for all methods. The last weights are evaluated,
and the validation split decides nothing.
"""

import argparse
import os
import pathlib
import tempfile

import numpy as np
from seeds import over_seeds, percent, table, write_page

from train.configs import pretrain_digits, pretrain_fashion_mnist, transfer_digits, transfer_fashion_mnist
from train.tasks import load_data

TRUNK = ("conv*", "fc1", "fc2")
# method -> what it changes in the config of the fine-tuning
METHODS = {
    "from scratch": {"weights": ""},
    "fine-tuned": {},
    "linear head on frozen pretrained features": {"freeze": TRUNK},
    "linear head on frozen random features": {"weights": "", "freeze": TRUNK},
}
# Of networks from scratch and fine-tuned (tried: 3e-4, 1e-3, 3e-3), and of a linear head (3e-3, 1e-2, 3e-2): those with
# the best mean validation accuracy on digits for the seeds 100 to 102, which are not reported.
LEARNING_RATE, LINEAR_LEARNING_RATE = 3e-3, 3e-2


CONFIGS = {
    "digits": (pretrain_digits, transfer_digits),
    "fashion_mnist": (pretrain_fashion_mnist, transfer_fashion_mnist),
}


def pretraining(data: str, seed: int, arguments: argparse.Namespace):
    """Config and workdir of the first half."""
    config = CONFIGS[data][0].get_config()
    config.seed, config.baseline = seed, "none"
    if data != "digits":
        config.data.data_dir = arguments.data_dir
    config.checkpoint.every_epochs = float(config.epochs)
    return config, arguments.workdir / data / f"pretrained_{seed}"


def few_labels(data: str, method: str, seed: int, arguments: argparse.Namespace):
    """Config and workdir of one method on the second half."""
    first, source = pretraining(data, seed, arguments)
    config = CONFIGS[data][1].get_config()
    config.seed, config.baseline = seed, "none"
    config.data.data_dir = first.data.data_dir
    config.transfer.weights = str(source)
    config.transfer.update(METHODS[method])
    config.optimizer.learning_rate = LINEAR_LEARNING_RATE if "linear head" in method else LEARNING_RATE
    config.checkpoint.every_epochs = float(config.epochs)
    return config, arguments.workdir / data / f"{method.replace(' ', '_')}_{seed}"


def measure(data: str, title: str, arguments: argparse.Namespace) -> str:
    """The table of one data set."""
    seeds = range(arguments.seeds)
    source = over_seeds(lambda seed: pretraining(data, seed, arguments), seeds, "test_accuracy")
    rows, majority = [], []
    for seed in seeds:
        labels = load_data(few_labels(data, "fine-tuned", seed, arguments)[0]).test.labels
        majority.append(np.bincount(labels).max() / len(labels))
    rows.append(["the commonest class", percent(np.array(majority)), ""])
    scratch = None
    for method in METHODS:
        accuracy = over_seeds(lambda seed, m=method: few_labels(data, m, seed, arguments), seeds, "test_accuracy")
        scratch = accuracy if scratch is None else scratch
        gain = percent(accuracy - scratch) if method != "from scratch" else ""
        rows.append([method, percent(accuracy), gain])
    text = f"Pretrained on the other five classes: {percent(source)} % there. {len(seeds)} seeds."
    columns = ["method", "test accuracy, %", "against from scratch, same seed, points"]
    return "\n\n".join([f"## {title}", text, table(columns, rows)])


def main() -> None:
    """Runs, prints and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", default=os.environ.get("TFDS_DATA_DIR", ""), help="of the prepared Fashion-MNIST")
    parser.add_argument("--output", type=pathlib.Path, help="write the page there")
    parser.add_argument("--workdir", type=pathlib.Path, help="keep the runs there; finished ones are not repeated")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--data", default="digits,fashion_mnist")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        arguments.workdir = arguments.workdir or pathlib.Path(scratch)
        titles = {
            "digits": "Digits 5-9 after 0-4",
            "fashion_mnist": "Fashion-MNIST: sandal to boot after T-shirt to coat",
        }
        chosen = {data: titles[data] for data in arguments.data.split(",")}
        output = arguments.output or pathlib.Path(os.devnull)
        parts = [measure(data, title, arguments) for data, title in chosen.items()]
        parts.append(
            f"Learning rate {LEARNING_RATE} of networks, {LINEAR_LEARNING_RATE} of linear heads, chosen on digits."
        )
        write_page(output, "Transfer with ten labels a class", arguments.workdir, parts)


if __name__ == "__main__":
    main()
