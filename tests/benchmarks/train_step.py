"""Training speed: images per second, compile time and peak memory, beside the same networks in PyTorch.

    python tests/benchmarks/train_step.py --output=tests/benchmarks/results/train_step_cpu

Two tables. *Steps*: one optimiser step on a batch that lies on the device, for our network, for PyTorch
(channels-last) and for PyTorch compiled. *Epochs*: a pass over uint8 images that lie on the device (one compiled `scan`
on an accelerator, a host loop over the compiled step on the CPU) against a PyTorch loop over a DataLoader with workers.
The sides take turns, A B A B …, in one process; every figure is a median over the turns, every ratio a ratio of medians
(above 1: ours is faster). On a GPU both sides compute in bfloat16 with float32 parameters, on the CPU in float32.

Needs jax, flax, optax, numpy and this repository on the path; the PyTorch columns are empty where torch is missing. A
busy machine distorts the ratios (PyTorch's threads wait for one another, XLA's steal work): the load is written down,
and `taskset -c 0 python …` compares the sides on one core, where neither waits.
"""

import argparse
import dataclasses
import datetime
import functools
import json
import os
import pathlib
import shlex
import sys
import time
from collections.abc import Callable

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # both sides share one GPU

import jax
import jax.numpy as jnp
import numpy as np
import optax
from contest import Side, markdown_table, processor, race, versions

import models

MEAN, STD = 0.5, 0.25


@dataclasses.dataclass(frozen=True)
class Case:
    """A network, its images, and the batch sizes to try on each kind of device."""

    image_shape: tuple[int, int, int]
    num_classes: int
    fields: dict
    torch_network: str
    torch_fields: dict
    batch_sizes: dict
    epoch_examples: dict | None = None


CASES = {
    "lenet5": Case(
        (28, 28, 1),
        10,
        {"activation": "relu", "pooling": "max", "padding": "SAME"},
        "LeNet5",
        {},
        {"cpu": (64, 512), "gpu": (512, 4096)},
        {"cpu": 20_480, "gpu": 61_440},
    ),
    "resnet20_cifar": Case(
        (32, 32, 3),
        10,
        {},
        "ResNet",
        {"sizes": (3, 3, 3), "width": 16, "cifar": True, "option_a": True},
        {"cpu": (64,), "gpu": (512, 2048)},
        {"cpu": 1_024, "gpu": 51_200},
    ),
    "resnet18": Case(
        (32, 32, 3),
        10,
        {"stem": "cifar"},
        "ResNet",
        {"sizes": (2, 2, 2, 2), "cifar": True},
        {"cpu": (32,), "gpu": (512, 2048)},
    ),
    "resnet50": Case(
        (224, 224, 3),
        1000,
        {},
        "ResNet",
        {"sizes": (3, 4, 6, 3), "bottleneck": True},
        {"cpu": (4,), "gpu": (128, 256, 512)},
    ),
}


def our_step(name: str, case: Case, dtype: str):
    """The initial state, and (state, images, labels) -> state: gradient, SGD with momentum, running statistics."""
    model = models.create(name, num_classes=case.num_classes, dtype=dtype, **case.fields)
    optimizer = optax.sgd(0.01, momentum=0.9)

    def step(state, images, labels):
        variables, momentum = state

        def loss(params):
            logits, updated = model.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"])
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), updated

        gradients, updated = jax.grad(loss, has_aux=True)(variables["params"])
        updates, momentum = optimizer.update(gradients, momentum)
        return {"params": optax.apply_updates(variables["params"], updates), **updated}, momentum

    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, *case.image_shape)))
    return (variables, optimizer.init(variables["params"])), step


def our_steps(name: str, case: Case, batch: int, dtype: str) -> Side:
    """Steps on one resident batch."""
    state, step = our_step(name, case, dtype)
    images = jax.random.normal(jax.random.key(1), (batch, *case.image_shape))
    labels = jnp.arange(batch) % case.num_classes
    start = time.perf_counter()
    compiled = jax.jit(step, donate_argnums=0).lower(state, images, labels).compile()
    seconds = time.perf_counter() - start
    memory = compiled.memory_analysis()
    peak = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    holder = [state]

    def run(steps):
        for _ in range(steps):
            holder[0] = compiled(holder[0], images, labels)
        jax.block_until_ready(holder[0])

    return Side(run, batch, seconds, peak - memory.alias_size_in_bytes)


def our_epochs(name: str, case: Case, batch: int, dtype: str, examples: int) -> Side:
    """Whole epochs over uint8 images on the device, in a new order each time."""
    state, step = our_step(name, case, dtype)
    random = np.random.default_rng(0)
    pixels = jnp.asarray(random.integers(0, 256, (examples, *case.image_shape), dtype=np.uint8))
    classes = jnp.asarray(random.integers(0, case.num_classes, examples), jnp.int32)

    def step_on(state, rows, pixels, classes):
        images = (jnp.take(pixels, rows, axis=0).astype(jnp.float32) / 255 - MEAN) / STD
        return step(state, images, jnp.take(classes, rows))

    def scan_epoch(state, rows, pixels, classes):
        return jax.lax.scan(lambda state, rows: (step_on(state, rows, pixels, classes), None), state, rows)[0]

    host_loop = jax.default_backend() == "cpu"
    rows = jnp.zeros(batch if host_loop else (examples // batch, batch), jnp.int32)
    start = time.perf_counter()
    epoch = jax.jit(step_on if host_loop else scan_epoch, donate_argnums=0)
    compiled = epoch.lower(state, rows, pixels, classes).compile()
    seconds = time.perf_counter() - start
    holder = [state]

    def run(epochs):
        for _ in range(epochs):
            order = random.permutation(examples).astype(np.int32).reshape(-1, batch)
            for rows in order if host_loop else [order]:
                holder[0] = compiled(holder[0], rows, pixels, classes)
        jax.block_until_ready(holder[0])

    return Side(run, examples, seconds)


def build(label: str, make: Callable[[], Side], notes: list[str]) -> Side | None:
    """A side, or None and a note where it does not fit or its compiler is missing."""
    try:
        side = make()
        side.run(1)
    except Exception as error:  # whatever a backend raises when memory or a compiler is missing
        notes.append(f"{label}: {type(error).__name__}: {str(error).strip().splitlines()[0][:160]}")
        print("  " + notes[-1], flush=True)
        return None
    return side


def row(model: str, batch: int, sides: dict[str, Side | None], seconds: float, **more) -> dict | None:
    """Races the sides that could be built; one line of a table."""
    sides = {name: side for name, side in sides.items() if side is not None}
    if "ours" not in sides:
        return None
    speed = race(sides, seconds)
    line = {"model": model, "batch": batch, **more}
    for name, side in sides.items():
        line[f"{name} img/s"] = round(speed[name], 1)
        if name != "ours":
            line[f"ours / {name}"] = round(speed["ours"] / speed[name], 2)
        if side.compile_seconds is not None:
            line[f"{name} compile s"] = round(side.compile_seconds, 1)
        if side.peak_bytes is not None:
            line[f"{name} peak MB"] = round(side.peak_bytes / 1e6)
    print("  " + ", ".join(f"{key} {value}" for key, value in line.items()), flush=True)
    return line


def measure(names: list[str], seconds: float, kind: str, torch_side) -> dict:
    """Both tables for some models on a kind of device, with notes on what could not be measured."""
    dtype = "bfloat16" if kind == "gpu" else "float32"
    steps, epochs, notes = [], [], []
    for name in names:
        case = CASES[name]
        for batch in case.batch_sizes[kind]:
            label = f"{name}, batch {batch}"
            print(label, flush=True)
            sides = {"ours": build(f"{label}, ours", functools.partial(our_steps, name, case, batch, dtype), notes)}
            for compiled in (False, True) if torch_side else ():
                make = functools.partial(torch_side.steps, case, batch, kind, compiled=compiled)
                side = "torch compiled" if compiled else "torch eager"
                sides[side] = build(f"{label}, {side}", make, notes)
            steps.append(row(name, batch, sides, seconds, image="×".join(map(str, case.image_shape))))
        if case.epoch_examples:
            batch, examples = case.batch_sizes[kind][0], case.epoch_examples[kind]
            label = f"{name}, epochs of {examples}"
            print(label, flush=True)
            sides = {"ours": our_epochs(name, case, batch, dtype, examples)}
            if torch_side:
                make = functools.partial(torch_side.epochs, case, batch, kind, examples, MEAN, STD)
                side = build(f"{label}, torch compiled", functools.partial(make, compiled=True), notes)
                side = side or build(f"{label}, torch eager", functools.partial(make, compiled=False), notes)
                sides["torch DataLoader"] = side
            epochs.append(row(name, batch, sides, seconds, examples=examples))
    return {
        "precision": dtype,
        "steps": [line for line in steps if line],
        "epochs": [line for line in epochs if line],
        "notes": notes,
    }


def report(result: dict) -> str:
    """The result as a page of Markdown."""
    facts = [f"{key}: {value}" for key, value in result.items() if key not in ("steps", "epochs", "notes", "versions")]
    facts.append("versions: " + ", ".join(f"{name} {version}" for name, version in result["versions"].items()))
    page = [
        "# Training speed",
        "",
        *(f"- {fact}" for fact in facts),
        "",
        "## Steps",
        "",
        markdown_table(result["steps"]),
    ]
    if result["epochs"]:
        page += ["", "## Epochs", "", markdown_table(result["epochs"])]
    if result["notes"]:
        page += ["", "Not measured:", "", *(f"- {note}" for note in result["notes"])]
    return "\n".join(page) + "\n"


def main() -> None:
    """Measures, prints the tables, and writes them when asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(CASES), help=f"comma-separated, of {', '.join(CASES)}")
    parser.add_argument("--seconds", type=float, default=20, help="measuring time for each side of each line")
    parser.add_argument("--output", help="write PREFIX.json and PREFIX.md")
    parser.add_argument("--device", choices=("auto", "cpu", "gpu"), default="auto")
    arguments = parser.parse_args()
    names = arguments.models.split(",")
    if unknown := set(names) - set(CASES):
        parser.error(f"unknown models {sorted(unknown)}; known: {', '.join(CASES)}")
    if arguments.device != "auto":
        jax.config.update("jax_platforms", {"cpu": "cpu", "gpu": "cuda"}[arguments.device])
    jax.config.update("jax_enable_compilation_cache", False)  # compile times are part of the result
    kind = "cpu" if jax.default_backend() == "cpu" else "gpu"

    try:
        import torch_side
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        torch_side = None

    device = jax.devices()[0].device_kind
    result = {
        "device": processor() if kind == "cpu" else device,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"),
        "command": shlex.join(["python", *sys.argv]),
        "versions": versions(),
        "load average before": round(os.getloadavg()[0], 1),
        **measure(names, arguments.seconds, kind, torch_side),
        "load average after": round(os.getloadavg()[0], 1),
    }
    print("\n" + report(result))
    if arguments.output:
        prefix = pathlib.Path(arguments.output)
        prefix.parent.mkdir(parents=True, exist_ok=True)
        prefix.with_suffix(".json").write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n")
        prefix.with_suffix(".md").write_text(report(result))


if __name__ == "__main__":
    main()
