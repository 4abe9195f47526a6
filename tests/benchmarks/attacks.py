"""Speed of attacks beside Foolbox and torchattacks, on the same trained network, batch and device.

    python tests/benchmarks/attacks.py --output=tests/benchmarks/results/attacks_cpu

Two small networks learn scikit-learn's digits (28 px) first, and both sides attack the same weights and images with the
same settings. Beside each time stands what the attack achieved, so that nobody wins by attacking less: the share of
images fooled, or the median distance. Ours are called as a user calls them, outside of `jit`. The sides take turns;
medians. Compilation is what the first call took more than the later ones.
"""

import argparse
import datetime
import functools
import os
import shlex
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from contest import TURNS, Side, processor, publish, race, versions
from networks import Network, SmallCNN, StridedCNN, small_cnn, strided_cnn

from dl_core import attacks, data

EPS = 0.1
NETWORKS = {"strided CNN": (StridedCNN, strided_cnn), "small CNN": (SmallCNN, small_cnn)}
EPSILONS = (0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2)


class Contest(NamedTuple):
    """One attack on every side.

    ours: () -> the result, on the device.
    theirs: name -> () -> adversarial images as a tensor [batch, channels, height, width].
    distance: the figure is the median distance, not the share of fooled images.
    """

    ours: Callable[[], Any]
    theirs: dict[str, Callable[[], Any]]
    distance: bool = False


def trained_network(name: str, steps: int = 400) -> tuple[Network, np.ndarray, np.ndarray]:
    """One of NETWORKS after some steps on the digits, and images and labels of the test split that it gets right."""
    dataset = data.load("digits", image_size=28)
    images, labels = dataset.train.arrays()
    (module, make), optimizer = NETWORKS[name], optax.adam(2e-3)
    model = module()
    variables = model.init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
    state, random = optimizer.init(variables), np.random.default_rng(0)

    @jax.jit
    def step(variables: Any, state: Any, x: jax.Array, y: jax.Array) -> tuple[Any, Any]:
        loss = lambda v: optax.softmax_cross_entropy_with_integer_labels(model.apply(v, x), y).mean()
        updates, state = optimizer.update(jax.grad(loss)(variables), state)
        return optax.apply_updates(variables, updates), state

    for _ in range(steps):
        rows = random.integers(0, len(labels), 64)
        variables, state = step(variables, state, images[rows].astype(np.float32) / 255, labels[rows])
    network = make(variables)
    images, labels = dataset.test.arrays()
    images = images.astype(np.float32) / 255
    right = np.asarray(network.apply_fn(variables, images)).argmax(axis=1) == labels
    return network, images[right], labels[right].astype(np.int32)


def contests(network: Network, images: np.ndarray, labels: np.ndarray) -> dict[str, Contest]:
    """Every attack; the other libraries are imported where they are installed."""
    x, y, key = jnp.asarray(images), jnp.asarray(labels), jax.random.key(0)
    problem = (network.apply_fn, network.variables, x, y)
    foolbox, torchattacks = _foolbox(network, images, labels), _torchattacks(network, images, labels)
    settings = {"eps": EPS, "step_size": 0.01, "steps": 40, "early_stop": False}
    curve, pgd_40 = jnp.asarray(EPSILONS), functools.partial(attacks.pgd, step_size=0.01, early_stop=False)
    return {
        "PGD-40, linf": Contest(
            lambda: attacks.pgd(*problem, key=key, **settings),
            foolbox("LinfPGD", EPS, abs_stepsize=0.01, steps=40)
            | torchattacks("PGD", eps=EPS, alpha=0.01, steps=40, random_start=True),
        ),
        "PGD-40, linf, 8 radii": Contest(
            lambda: attacks.accuracy_curve(pgd_40, *problem, curve, key=key),
            foolbox("LinfPGD", list(EPSILONS), abs_stepsize=0.01, steps=40),
        ),
        "DeepFool, l2": Contest(
            lambda: attacks.deepfool(*problem, steps=50),
            foolbox("L2DeepFoolAttack", None, steps=50) | torchattacks("DeepFool", steps=50, overshoot=0.02),
            distance=True,
        ),
        "Carlini-Wagner, l2, 5×100 steps": Contest(
            lambda: attacks.carlini_wagner(*problem, binary_search_steps=5, steps=100, learning_rate=0.01),
            foolbox("L2CarliniWagnerAttack", None, binary_search_steps=5, steps=100, stepsize=0.01),
            distance=True,
        ),
        "DDN, 100 steps": Contest(
            lambda: attacks.ddn(*problem, steps=100), foolbox("DDNAttack", None, steps=100), distance=True
        ),
        "Square, 1000 queries": Contest(
            lambda: attacks.square(*problem, key=key, eps=EPS, max_queries=1000),
            torchattacks("Square", norm="Linf", eps=EPS, n_queries=1000),
        ),
        "ensemble, 10 steps": Contest(  # as many as AutoAttack of torchattacks takes; its authors take 100
            lambda: attacks.robust_accuracy(*problem, key=key, eps=EPS, steps=10),
            torchattacks("AutoAttack", eps=EPS, n_classes=10),
        ),
        "standard ensemble": Contest(
            lambda: attacks.robust_accuracy(*problem, key=key, eps=EPS),
            torchattacks("AutoAttack", eps=EPS, n_classes=10, steps=100),
        ),
    }  # fmt: skip


def _foolbox(network: Network, images: np.ndarray, labels: np.ndarray) -> Callable[..., dict[str, Callable]]:
    try:
        import foolbox
        import torch
    except ModuleNotFoundError:
        return lambda *args, **options: {}
    device = _device()
    model = foolbox.PyTorchModel(network.torch_module.to(device), bounds=(0, 1), device=device)
    x, y = _tensor(images), torch.tensor(labels, dtype=torch.long, device=device)

    def make(name: str, eps: Any, **options: Any) -> dict[str, Callable]:
        def call() -> Any:
            adversarial = getattr(foolbox.attacks, name)(**options)(model, x, y, epsilons=eps)[1]
            return adversarial[-1] if isinstance(eps, list) else adversarial

        return {"Foolbox": call}

    return make


def _torchattacks(network: Network, images: np.ndarray, labels: np.ndarray) -> Callable[..., dict[str, Callable]]:
    try:
        import torch
        import torchattacks
    except ModuleNotFoundError:
        return lambda *args, **options: {}
    module = network.torch_module.to(_device())
    x, y = _tensor(images), torch.tensor(labels, dtype=torch.long, device=_device())

    def auto_attack(eps: float, **targeted: Any) -> Any:
        """AutoAttack with another number of steps than the 10 to which it is bound."""
        first = torchattacks.APGD(module, eps=eps, steps=targeted["steps"])
        aimed = [torchattacks.APGDT(module, eps=eps, **targeted)]
        aimed += [torchattacks.FAB(module, eps=eps, multi_targeted=True, **targeted)]
        return torchattacks.MultiAttack([first, *aimed, torchattacks.Square(module, eps=eps, n_queries=5000)])

    def make(name: str, **options: Any) -> dict[str, Callable]:
        other = name == "AutoAttack" and "steps" in options
        attack = auto_attack(**options) if other else getattr(torchattacks, name)(module, **options)
        return {"torchattacks": lambda: attack(x, y)}

    return make


def _device() -> str:
    return "cuda" if jax.default_backend() == "gpu" else "cpu"


def _tensor(images: np.ndarray) -> Any:
    import torch

    return torch.tensor(images).permute(0, 3, 1, 2).contiguous().to(_device())


def measure(contest: Contest, network: Network, images: np.ndarray, labels: np.ndarray, **racing: Any) -> Any:
    """The lines of one contest."""
    classes = lambda x: np.asarray(network.apply_fn(network.variables, jnp.asarray(x))).argmax(axis=1)

    def figure(adversarial: np.ndarray) -> str:
        fooled = classes(adversarial) != labels
        moved = np.sqrt(((adversarial - images).reshape(len(images), -1) ** 2).sum(axis=1))
        return f"{np.median(moved[fooled]):.3f}" if contest.distance else f"{fooled.mean():.3f}"

    start = time.perf_counter()
    found = jax.block_until_ready(contest.ours())
    first = time.perf_counter() - start
    start = time.perf_counter()
    jax.block_until_ready(contest.ours())
    compiling = max(0.0, first - (time.perf_counter() - start))
    sides = {"ours": Side(lambda times: [jax.block_until_ready(contest.ours()) for _ in range(times)], 1)}
    figures = {"ours": figure(np.asarray(found.adversarial)) if hasattr(found, "adversarial") else ""}
    for library, call in contest.theirs.items():
        figures[library] = figure(_quiet(call).detach().cpu().numpy().transpose(0, 2, 3, 1))
        sides[library] = Side(lambda times, call=call: [_quiet(call) for _ in range(times)], 1)
    speeds = race(sides, **racing)
    line = {"ours": f"{1 / speeds['ours']:.3f} s", "compilation": f"{compiling:.2f} s"}
    line["our result"] = figures["ours"]
    for library in contest.theirs:
        line |= {
            library: f"{1 / speeds[library]:.3f} s",
            f"ratio to {library}": f"{speeds['ours'] / speeds[library]:.2f}",
        }
        line |= {f"result of {library}": figures[library]}
    return line


def _quiet(call: Callable[[], Any]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = call()
    if _device() == "cuda":
        import torch

        torch.cuda.synchronize()
    return result


def main() -> None:
    """Measures, prints the table, and writes it when asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[""], help="parts of the names of attacks")
    parser.add_argument("--batch", type=int, default=64, help="images at once")
    parser.add_argument("--seconds", type=float, default=4, help="measuring time for each side")
    parser.add_argument("--turns", type=int, default=TURNS, help="of each side, whose median counts")
    parser.add_argument("--output", help="write PREFIX.json and PREFIX.md")
    arguments = parser.parse_args()
    before, gpu = os.getloadavg()[0], jax.default_backend() == "gpu"
    lines = []
    for network_name in NETWORKS:
        network, images, labels = trained_network(network_name)
        images, labels = images[: arguments.batch], labels[: arguments.batch]
        for name, contest in contests(network, images, labels).items():
            if any(part in name or part in network_name for part in arguments.only):
                line = measure(contest, network, images, labels, seconds=arguments.seconds, turns=arguments.turns)
                lines.append({"attack": name, "network": network_name} | line)
                print(lines[-1], flush=True)
    result = {
        "device": str(jax.devices()[0].device_kind) if gpu else processor(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"),
        "command": shlex.join(["python", *sys.argv]),
        "versions": versions("foolbox", "torchattacks"),
        "load average before and after": [round(before, 1), round(os.getloadavg()[0], 1)],
        "networks, batch": f"trained on the digits (28 px); {arguments.batch} test images that they get right",
        "radius": f"{EPS} in the maximum norm",
        "figures": "one call, the median of turns; ratio: their time over ours, more than 1 is faster than they are; "
        "result: the share of images fooled, of attacks without a radius the median l2 distance",
    }
    publish("Attacks", result, lines, arguments.output)


if __name__ == "__main__":
    main()
