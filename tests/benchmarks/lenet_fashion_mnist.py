"""LeNet-5 on Fashion-MNIST: accuracy after five epochs and seconds, beside the same run in PyTorch.

    python tests/benchmarks/lenet_fashion_mnist.py --output=tests/benchmarks/results/lenet_fashion_mnist_cpu

`python -m train --config=fashion_mnist` on one side. On the other the same network, split, normalisation, optimiser and
schedule in eager PyTorch: images wait as one normalised float tensor, so no DataLoader slows it. The sides take turns,
one run a seed each; the seed decides split, initial weights and order. Seconds are those of training, with the
validation after every epoch, without compilation and start. Accuracy is that of the whole test set.
"""

import argparse
import datetime
import io
import json
import os
import pathlib
import shlex
import statistics
import sys
import tempfile
import time

import numpy as np
import torch
from contest import markdown_table, processor, versions

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "parity"))
import torch_networks

from dl_core import data, metrics
from train.configs import fashion_mnist
from train.loop import train_and_evaluate


def ours(config) -> tuple[float, float]:
    """(test accuracy, seconds of training) of the config."""
    with tempfile.TemporaryDirectory() as workdir:
        summary = train_and_evaluate(config, pathlib.Path(workdir) / "run", stream=io.StringIO())
    return summary["test_accuracy"], summary["seconds"]


def theirs(config) -> tuple[float, float]:
    """The same run in PyTorch: (test accuracy, seconds of training). The best of the validations is tested."""
    torch.manual_seed(config.seed)
    dataset = data.load(
        config.data.name, seed=config.seed, data_dir=config.data.data_dir, split=tuple(config.data.split)
    )
    mean, std = data.channel_statistics(dataset.train)

    def tensors(examples):
        images = torch.from_numpy(np.array(examples.images)).permute(0, 3, 1, 2).float() / 255
        return (images - float(mean[0])) / float(std[0]), torch.from_numpy(np.array(examples.labels)).long()

    (images, labels), validation, test = map(tensors, (dataset.train, dataset.validation, dataset.test))
    network = torch_networks.LeNet5(10)
    for layer in network.modules():
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):  # He's normal and zeros, as here
            torch.nn.init.kaiming_normal_(layer.weight)
            torch.nn.init.zeros_(layer.bias)
    options = config.optimizer
    kernels = [p for p in network.parameters() if p.ndim > 1]
    rest = [p for p in network.parameters() if p.ndim == 1]
    groups = [{"params": kernels, "weight_decay": options.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, options.learning_rate)
    steps = config.epochs * (len(labels) // config.batch_size)
    warmup = round(config.schedule.warmup_epochs * (len(labels) // config.batch_size))

    def share(step):
        if step < warmup:
            return step / warmup
        return 0.5 * (1 + np.cos(np.pi * (step - warmup) / (steps - warmup)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
    loss_of = torch.nn.CrossEntropyLoss(label_smoothing=config.loss.label_smoothing)

    @torch.no_grad()
    def score(images, labels):
        logits = torch.cat([network(part) for part in images.split(config.eval_batch_size)])
        return torch.nn.functional.cross_entropy(logits, labels).item(), (logits.argmax(1) == labels).float().mean()

    start, best = time.perf_counter(), (float("-inf"), None)
    for epoch in range(config.epochs):
        for rows in data.batch_order(len(labels), config.batch_size, seed=config.seed, epoch=epoch):
            rows = torch.from_numpy(rows).long()
            optimizer.zero_grad(set_to_none=True)
            loss_of(network(images[rows]), labels[rows]).backward()
            optimizer.step()
            schedule.step()
        accuracy = score(*validation)[1].item()
        if accuracy > best[0]:
            best = accuracy, {name: value.clone() for name, value in network.state_dict().items()}
    seconds = time.perf_counter() - start
    network.load_state_dict(best[1])
    return score(*test)[1].item(), seconds


def summary(name: str, accuracies: list[float], seconds: list[float]) -> dict:
    """One line of the table."""
    error = statistics.stdev(accuracies) / len(accuracies) ** 0.5 if len(accuracies) > 1 else float("nan")
    return {
        "": name,
        "runs": len(accuracies),
        "test accuracy %, mean ± standard error": f"{100 * statistics.mean(accuracies):.2f} ± {100 * error:.2f}",
        "lowest": f"{100 * min(accuracies):.2f}",
        "highest": f"{100 * max(accuracies):.2f}",
        "seconds of training, median": round(statistics.median(seconds), 1) if seconds else "",
    }


def main() -> None:
    """Runs both sides, prints the table, and writes it when asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", default="", help="where python -m train.prepare fashion_mnist has put the data")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--output", help="write PREFIX.json and PREFIX.md")
    arguments = parser.parse_args()
    config = fashion_mnist.get_config()
    config.data.data_dir = arguments.data_dir

    results = {"dl_core": [], "PyTorch": []}
    for config.seed in range(arguments.seeds):
        for name, side in (("dl_core", ours), ("PyTorch", theirs)):
            results[name].append(side(config))
            print(name, config.seed, *results[name][-1], flush=True)
    test = data.load(config.data.name, data_dir=config.data.data_dir or None).test
    majority = float(metrics.accuracy(test.labels, np.zeros_like(test.labels)))
    lines = [summary(name, *map(list, zip(*runs, strict=True))) for name, runs in results.items()]
    lines.append({"": "always the same class", "test accuracy %, mean ± standard error": f"{100 * majority:.2f}"})
    facts = {
        "device": processor(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"),
        "command": shlex.join(["python", *sys.argv]),
        "load average after": round(os.getloadavg()[0], 1),
        "versions": ", ".join(f"{name} {version}" for name, version in versions().items()),
    }
    page = ["# LeNet-5 on Fashion-MNIST, five epochs", "", *(f"- {key}: {value}" for key, value in facts.items())]
    text = "\n".join([*page, "", markdown_table(lines)]) + "\n"
    print("\n" + text)
    if arguments.output:
        prefix = pathlib.Path(arguments.output)
        prefix.with_suffix(".md").write_text(text, encoding="utf-8")
        prefix.with_suffix(".json").write_text(json.dumps({**facts, "runs": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
