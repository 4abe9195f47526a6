"""Speed of explanations beside Captum, on the same network, batch and device.

    python tests/benchmarks/explain.py --only "small CNN" --output=tests/benchmarks/results/explain_cpu

The networks carry the same weights on both sides, and each side's attributions are compared with ours before the race
(statistically where the method draws), so that nobody wins by computing something else. Ours are called as a user
calls them, outside of `jit`; Captum with the batch of evaluations that suits it best among a few. The sides take
turns; medians. Compilation is what the first call took more than the later ones, and the last columns are the ratio of
Captum's time to ours with the compilation spread over 1, 10 and 100 calls.
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
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from contest import Side, processor, publish, race, versions
from networks import Network, small_cnn, zoo

from dl_core import explain

GPU_ONLY = ("ResNet-50",)


NETWORKS = {
    "small CNN": small_cnn,
    "ResNet-18": lambda: zoo("resnet18", 32),
    "ResNet-50": lambda: zoo("resnet50", 224),
}


def grid(shape: tuple[int, int, int], players: tuple[int, int]) -> np.ndarray:
    """Rectangles as players: int32 [height, width]."""
    rows = np.arange(shape[0]) * players[0] // shape[0]
    columns = np.arange(shape[1]) * players[1] // shape[1]
    return (rows[:, None] * players[1] + columns).astype(np.int32)


class Contest(NamedTuple):
    """One method on both sides.

    ours: (network, images, target) -> attributions [batch, height, width, channels].
    captum: (forward, images, target, mask) -> the same as a tensor [batch, channels, height, width]; several, of which
      the fastest counts.
    tolerance: largest difference as a share of the largest attribution; None where the method draws.
    players: rows and columns of the rectangles that are players, if any.
    """

    ours: Callable
    captum: tuple[Callable, ...]
    tolerance: float | None
    players: tuple[int, int] = (1, 1)


def contests(shape: tuple[int, int, int]) -> dict[str, Contest]:
    """Every method; Captum is imported where it is called."""
    from importlib import import_module

    attr = lambda name: getattr(import_module("captum.attr"), name)
    side = shape[0] // 28 * 8 if shape[0] > 28 else 8
    stride = max(1, side // 4)

    def noise_tunnel(forward, x, t, mask):
        tunnel = attr("NoiseTunnel")(attr("Saliency")(forward))
        return tunnel.attribute(x, target=t, nt_type="smoothgrad", nt_samples=50, stdevs=0.15, abs=False)

    def gradient_shap(forward, x, t, mask):
        return attr("GradientShap")(forward).attribute(x, x[:1] * 0, target=t, n_samples=50, stdevs=0.09)

    def occlusion(at_once):
        return lambda forward, x, t, mask: attr("Occlusion")(forward).attribute(
            x, (shape[2], side, side), (shape[2], stride, stride), target=t, perturbations_per_eval=at_once
        )

    def shapley(at_once):
        return lambda forward, x, t, mask: attr("ShapleyValues")(forward).attribute(
            x, target=t, feature_mask=mask, perturbations_per_eval=at_once
        )

    def kernel_shap(at_once):
        return lambda forward, x, t, mask: attr("KernelShap")(forward).attribute(
            x, target=t, feature_mask=mask, n_samples=200, perturbations_per_eval=at_once
        )

    mask = lambda players: jnp.asarray(grid(shape, players))
    key = jax.random.key(0)
    return {
        "integrated gradients, 50 steps": Contest(
            lambda n, x, t: explain.integrated_gradients(n.apply_fn, n.variables, x, t, n_steps=50).attributions,
            (lambda forward, x, t, mask: attr("IntegratedGradients")(forward).attribute(x, target=t, n_steps=50),),
            1e-3,
        ),
        "SmoothGrad, 50 samples": Contest(
            lambda n, x, t: explain.smooth_grad(n.apply_fn, n.variables, x, t, key=key, n_samples=50, stdevs=0.15),
            (noise_tunnel,),
            None,
        ),
        "GradientShap, 50 samples": Contest(
            lambda n, x, t: (
                explain.expected_gradients(
                    n.apply_fn, n.variables, x, t, key=key, baselines=x[:1] * 0, n_samples=50, stdevs=0.09
                ).attributions
            ),
            (gradient_shap,),
            None,
        ),
        f"occlusion {side}×{side}, stride {stride}": Contest(
            lambda n, x, t: explain.occlusion(
                n.apply_fn, n.variables, x, t, sliding_window_shapes=(side, side), strides=(stride, stride)
            ),
            (occlusion(1), occlusion(16), occlusion(64)),
            1e-3,
        ),
        "exact Shapley, 6 players": Contest(
            lambda n, x, t: (
                explain.shapley_exact(n.apply_fn, n.variables, x, t, feature_mask=mask((2, 3))).attributions
            ),
            (shapley(16),),
            1e-3,
            (2, 3),
        ),
        "kernel SHAP, 16 players, 200 samples": Contest(
            lambda n, x, t: (
                explain.kernel_shap(
                    n.apply_fn, n.variables, x, t, key=key, feature_mask=mask((4, 4)), n_samples=200
                ).attributions
            ),
            (kernel_shap(1), kernel_shap(64)),
            None,
            (4, 4),
        ),
    }


def measure(name: str, network_name: str, network: Network, batch: int, seconds: float) -> dict[str, str]:
    """The line of one contest."""
    contest = contests(network.shape)[name]
    values = np.random.default_rng(1).random((batch, *network.shape)).astype(np.float32)
    images, target = jnp.asarray(values), jnp.arange(batch, dtype=jnp.int32) % 5
    ours = lambda: contest.ours(network, images, target).block_until_ready()
    start = time.perf_counter()
    ours()
    first = time.perf_counter() - start
    times = []
    for _ in range(3):
        start = time.perf_counter()
        result = np.asarray(ours())
        times.append(time.perf_counter() - start)
    sides = {"ours": Side(functools.partial(_repeat, ours), 1)}
    if network.torch_module is not None:
        sides["Captum"] = Side(functools.partial(_repeat, _captum(contest, network, values, result)), 1)
    speeds = race(sides, seconds)
    own, compiling = 1 / speeds["ours"], max(first - float(np.median(times)), 0.0)
    line = {"method": name, "network": network_name, "batch": str(batch), "ours": f"{1e3 * own:.1f} ms"}
    line["compilation"] = f"{compiling:.2f} s"
    if "Captum" in speeds:
        theirs = 1 / speeds["Captum"]
        line |= {"Captum": f"{1e3 * theirs:.1f} ms", "ratio": f"{theirs / own:.2f}"}
        line |= {f"over {calls} calls": f"{theirs / (own + compiling / calls):.2f}" for calls in (1, 10, 100)}
    return line


def _repeat(call: Callable[[], object], times: int) -> None:
    for _ in range(times):
        call()


def _captum(contest: Contest, network: Network, values: np.ndarray, ours: np.ndarray) -> Callable[[], object]:
    """The fastest of Captum's calls, compared with our result."""
    import torch

    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    module = network.torch_module.to(device)
    x = torch.tensor(values).permute(0, 3, 1, 2).contiguous().to(device)
    target = torch.arange(len(values), device=device) % 5
    mask = torch.tensor(grid(network.shape, contest.players), dtype=torch.long, device=device)[None, None]

    def call(method: Callable) -> torch.Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = method(module, x.clone(), target, mask)
        if device == "cuda":
            torch.cuda.synchronize()
        return result

    best, fastest = contest.captum[0], float("inf")
    for method in contest.captum:
        theirs = call(method).detach().cpu().numpy().transpose(0, 2, 3, 1)
        start = time.perf_counter()
        call(method)
        if time.perf_counter() - start < fastest:
            best, fastest = method, time.perf_counter() - start
        if contest.tolerance is not None:
            error = np.abs(theirs - ours).max() / np.abs(theirs).max()
            assert error < contest.tolerance, f"the sides differ by {error:.1e} of the largest attribution"
        else:
            agreement = np.corrcoef(theirs.ravel(), ours.ravel())[0, 1]
            assert agreement > 0.5, f"the sides' attributions have a correlation of {agreement:.2f} only"
    return functools.partial(call, best)


def main() -> None:
    """Measures, prints the table, and writes it when asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[""], help="parts of the names of methods or networks")
    parser.add_argument("--batches", nargs="*", type=int, default=[1, 16], help="images at once")
    parser.add_argument("--seconds", type=float, default=4, help="measuring time for each side")
    parser.add_argument("--output", help="write PREFIX.json and PREFIX.md")
    arguments = parser.parse_args()
    before, lines, gpu = os.getloadavg()[0], [], jax.default_backend() == "gpu"
    for network_name, make in NETWORKS.items():
        if network_name in GPU_ONLY and not gpu:
            continue
        network = make()
        for name in contests(network.shape):
            if not any(part in name or part in network_name for part in arguments.only):
                continue
            for batch in arguments.batches:
                if "Shapley" in name and batch > 1:  # Captum needs minutes
                    continue
                lines.append(measure(name, network_name, network, batch, arguments.seconds))
                print(lines[-1], flush=True)
    result = {
        "device": str(jax.devices()[0].device_kind) if gpu else processor(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"),
        "command": shlex.join(["python", *sys.argv]),
        "versions": versions("captum"),
        "load average before and after": [round(before, 1), round(os.getloadavg()[0], 1)],
        "figures": "one call; the median of turns; ratio: Captum's time over ours, more than 1 is faster than Captum",
    }
    publish("Explanations", result, lines, arguments.output)


if __name__ == "__main__":
    main()
