"""Adversarial training on Fashion-MNIST: accuracy, clean and under attacks, after each recipe; seconds of training.

    python tests/benchmarks/hardening.py --workdir=FOLDER --seeds=3 --output=tests/benchmarks/results/hardening_cpu

The network is the small one of Wong et al. (2020): 4×4 convolutions of stride 2 with 16 and 32 maps, 100 units. Every
recipe trains with Adam in batches of 100, its learning rate up to 0.005 in the first two fifths of the run and down to
0 in the rest, for changes of at most 0.1 of each pixel. The standard network has 5 epochs, the others have 10 (free: so
few that there are as many updates). The last weights are tested, of the fast recipe those with the best accuracy under
PGD-20 on the validation split: it can overfit its one step, which is why its authors stop early. A reference in torch
with the same budget, one seed, had:

    standard 90.8 clean, 0.0 PGD-40; fast 85.0, 72.2, ensemble 71.3; madry 84.9, 76.6, ensemble 77.3

PGD-20 has steps of eps / 5 and PGD-40 of eps / 10, both one random start. PGD-40 is that of the first 2,000 test images
at eps = 0.1, the ensemble (`attacks.robust_accuracy`) that of the first 300; the rest of all 10,000. A run that was
interrupted goes on where it was when the command is given again; `--runs` names some of them.
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
import time

import jax
import jax.numpy as jnp
from contest import markdown_table, processor, versions
from networks import StridedCNN

from dl_core import data
from dl_core.attacks.ensemble import robust_accuracy
from dl_core.attacks.gradient import fgsm
from dl_core.attacks.projected import pgd
from models.registry import register
from train.configs import defaults
from train.loop import train_and_evaluate
from train.trained import restore

EPS = 0.1
RADII = (0.03, 0.1, 0.2)
RECIPES = ("standard", "fast", "madry", "trades", "free")
REPLAYS = 2  # of free


register("conv16_conv32_fc100")(StridedCNN)


def config_of(recipe, seed, data_dir):
    """One run."""
    config = defaults.get_config()
    config.seed = seed
    config.batch_size, config.eval_batch_size = 100, 500
    config.epochs = {"standard": 5, "free": 10 // REPLAYS}.get(recipe, 10)
    config.evaluate_with, config.baseline = "best" if recipe == "fast" else "last", "none"
    config.model.name = "conv16_conv32_fc100"
    config.data.name, config.data.data_dir = "fashion_mnist", data_dir
    config.data.split = (0.92, 0.03, 0.05)  # the test split is given; about 1,900 of the other 60,000 images validate
    config.optimizer.learning_rate = 5e-3
    config.schedule.name, config.schedule.warmup_epochs = "linear", 0.4 * config.epochs
    options = config.hardening
    options.recipe = "none" if recipe == "standard" else recipe
    options.eps, options.replays, options.test_steps = EPS, REPLAYS, 20 if recipe == "fast" else 0
    options.step_size = {"madry": EPS / 4, "trades": EPS / 4}.get(recipe, 0.0)
    return config


def attacked(trained, images, labels):
    """Percentages by name, and seconds for each."""
    apply_fn, params = trained.task.apply_fn, trained.variables
    figures, seconds = {}, {}

    def note(name, correct):
        start = time.perf_counter()
        figures[name] = 100 * float(correct())
        seconds[name] = round(time.perf_counter() - start, 1)
        print(name, round(figures[name], 2), f"{seconds[name]} s", flush=True)

    def left(attack, count, **options):
        parts = [slice(at, at + 1000) for at in range(0, count, 1000)]
        broken = [attack(apply_fn, params, images[at], labels[at], **options).success.sum() for at in parts]
        return 1 - sum(map(int, broken)) / count

    def clean():
        logits = jax.jit(apply_fn)
        right = [
            logits(params, images[at : at + 1000]).argmax(1) == labels[at : at + 1000] for at in range(0, 10_000, 1000)
        ]
        return jnp.concatenate(right).mean()

    note("clean", clean)
    key = jax.random.key(0)
    note("PGD-40", lambda: left(pgd, 2000, eps=EPS, steps=40, step_size=EPS / 10, key=key))
    for eps in RADII:
        note(f"FGSM {eps}", lambda eps=eps: left(fgsm, 10_000, eps=eps))
        note(f"PGD-20 {eps}", lambda eps=eps: left(pgd, 10_000, eps=eps, steps=20, step_size=eps / 5, key=key))
    few = slice(0, 300)
    note("ensemble", lambda: robust_accuracy(apply_fn, params, images[few], labels[few], key=key, eps=EPS).accuracy)
    return {"percent": figures, "seconds": seconds}


def run(recipe, seed, arguments):
    """Trains and attacks one network, or goes on; what was measured is kept in its folder."""
    workdir = pathlib.Path(arguments.workdir) / f"{recipe}_{seed}"
    measured = workdir / "measured.json"
    if measured.exists():
        return json.loads(measured.read_text())
    config = config_of(recipe, seed, arguments.data_dir)
    if (workdir / "summary.json").exists():
        summary = json.loads((workdir / "summary.json").read_text())
    else:
        summary = train_and_evaluate(config, workdir, resume=(workdir / "config.json").exists(), stream=io.StringIO())
    print(recipe, seed, "trained in", round(summary["seconds"]), "s, clean", summary["test_accuracy"], flush=True)
    test = data.load(config.data.name, data_dir=config.data.data_dir or None).test
    images, labels = test.arrays()
    trained = restore(workdir, weights=config.evaluate_with)
    result = attacked(trained, jnp.asarray(images, jnp.float32) / 255, jnp.asarray(labels))
    result["seconds of training"] = summary["seconds"]
    measured.write_text(json.dumps(result, indent=2) + "\n")
    print(recipe, seed, result, flush=True)
    return result


def line(recipe, results):
    """One line of the table: means over the seeds, and their standard deviation where there are several."""
    figures = {"recipe": recipe, "seeds": len(results)}
    for name in results[0]["percent"]:
        values = [result["percent"][name] for result in results]
        spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
        figures[name] = f"{statistics.mean(values):.1f}{spread}"
    figures["seconds of training"] = round(statistics.median(result["seconds of training"] for result in results))
    return figures


def main() -> None:
    """Trains, attacks, prints the table, and writes it when asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", default="", help="where python -m train.prepare fashion_mnist has put the data")
    parser.add_argument("--workdir", required=True, help="keeps the runs, finished and interrupted ones")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", help="only these, e.g. madry:0,fast:1; the table has every run of the workdir")
    parser.add_argument("--output", help="write PREFIX.json and PREFIX.md")
    arguments = parser.parse_args()
    named = [name.split(":") for name in (arguments.runs or "").split(",") if name]
    for seed in range(arguments.seeds):
        for recipe in RECIPES:
            if not named or [recipe, str(seed)] in named:
                run(recipe, seed, arguments)
    folder = pathlib.Path(arguments.workdir)
    results = {
        recipe: [json.loads(path.read_text()) for path in sorted(folder.glob(f"{recipe}_*/measured.json"))]
        for recipe in RECIPES
    }
    results = {recipe: measured for recipe, measured in results.items() if measured}
    facts = {
        "device": processor(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"),
        "command": shlex.join(["python", *sys.argv]),
        "load average after": round(os.getloadavg()[0], 1),
        "versions": ", ".join(f"{name} {version}" for name, version in versions().items()),
        "figures": "accuracy in %, mean ± standard deviation over the seeds; eps beside the attack, 0.1 where none is",
    }
    page = ["# Adversarial training on Fashion-MNIST", "", *(f"- {key}: {value}" for key, value in facts.items())]
    text = "\n".join([*page, "", markdown_table([line(recipe, each) for recipe, each in results.items()])]) + "\n"
    print("\n" + text)
    if arguments.output:
        prefix = pathlib.Path(arguments.output)
        prefix.with_suffix(".md").write_text(text, encoding="utf-8")
        prefix.with_suffix(".json").write_text(json.dumps({**facts, "runs": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
