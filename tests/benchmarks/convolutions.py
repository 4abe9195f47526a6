"""Speed of single convolutions in GFLOP/s: forward, gradient of the input, gradient of the weights.

    python tests/benchmarks/convolutions.py --output=tests/benchmarks/results/convolutions_cpu

XLA's convolution, models/layers/convolution.py, the product of a matrix with shifted copies of the image side by side,
and PyTorch's (channels-last) where it is installed; in turns, medians.
"""

import argparse
import datetime
import json
import os
import pathlib
import shlex
import sys

import jax
import jax.numpy as jnp
from contest import Side, markdown_table, processor, race, versions
from jax import lax

from models.layers import convolution as layers

try:
    import torch
except ModuleNotFoundError:
    torch = None

NHWC = ("NHWC", "HWIO", "NHWC")
LAYERS = {  # batch, side, input channels, output channels, kernel, stride, padding
    "LeNet 1": (64, 28, 1, 6, 5, 1, 2),
    "LeNet 2": (64, 14, 6, 16, 5, 1, 0),
    "ResNet-20, stage 1": (64, 32, 16, 16, 3, 1, 1),
    "ResNet-20, stage 3": (64, 8, 64, 64, 3, 1, 1),
    "ResNet-18, stage 1": (16, 32, 64, 64, 3, 1, 1),
    "ResNet-18, stage 3": (16, 8, 256, 256, 3, 1, 1),
    "ResNet-18, stage 4": (16, 4, 512, 512, 3, 1, 1),
    "ResNet-50, 1×1 in stage 1": (4, 56, 64, 256, 1, 1, 0),
    "ResNet-50, 1×1 in stage 3": (4, 14, 1024, 256, 1, 1, 0),
}


def xla_side(which: str, form: str, layer: tuple, flops: int) -> Side:
    """One of "forward", "input gradient", "weight gradient" by "XLA", "ours" or "product"."""
    batch, side, inputs, outputs, size, stride, padding = layer
    x = jax.random.normal(jax.random.key(0), (batch, side, side, inputs))
    w = jax.random.normal(jax.random.key(1), (size, size, inputs, outputs))
    out = (side + 2 * padding - size) // stride + 1

    def ours(x, w):
        return layers.convolution(x, w, (stride, stride), ((padding, padding),) * 2, dimension_numbers=NHWC)

    def product(x, w):
        x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
        stop = stride * (out - 1) + 1
        shifted = [x[:, i : i + stop : stride, j : j + stop : stride] for i in range(size) for j in range(size)]
        return jnp.tensordot(jnp.concatenate(shifted, axis=-1), w.reshape(-1, outputs), axes=1)

    def convolution(x, w):
        return lax.conv_general_dilated(x, w, (stride, stride), ((padding, padding),) * 2, dimension_numbers=NHWC)

    apply = {"XLA": convolution, "ours": ours, "product": product}[form]
    y = apply(x, w)
    function, arguments = {
        "forward": (apply, (x, w)),
        "input gradient": (lambda y, w: jax.linear_transpose(lambda x: apply(x, w), x)(y)[0], (y, w)),
        "weight gradient": (lambda y, x: jax.linear_transpose(lambda w: apply(x, w), w)(y)[0], (y, x)),
    }[which]
    compiled = jax.jit(function)

    def run(n):
        for _ in range(n):
            compiled(*arguments).block_until_ready()

    return Side(run, flops)


def torch_side(which: str, layer: tuple, flops: int) -> Side:
    """The same in PyTorch."""
    batch, side, inputs, outputs, size, stride, padding = layer
    x = torch.randn(batch, inputs, side, side).contiguous(memory_format=torch.channels_last)
    w = torch.randn(outputs, inputs, size, size).contiguous(memory_format=torch.channels_last)
    y = torch.nn.functional.conv2d(x, w, None, stride, padding)
    geometry = (None, (stride,) * 2, (padding,) * 2, (1, 1), False, (0, 0), 1)

    def run(n):
        for _ in range(n):
            if which == "forward":
                torch.nn.functional.conv2d(x, w, None, stride, padding)
            else:
                wanted = (which == "input gradient", which == "weight gradient", False)
                torch.ops.aten.convolution_backward(y, x, w, *geometry, wanted)

    return Side(run, flops)


def main() -> None:
    """Measures, prints the table, and writes it when asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1, help="measuring time for each figure")
    parser.add_argument("--output", help="write PREFIX.json and PREFIX.md")
    arguments = parser.parse_args()
    before, lines = os.getloadavg()[0], []
    for name, layer in LAYERS.items():
        batch, side, inputs, outputs, size, stride, padding = layer
        flops = 2 * batch * ((side + 2 * padding - size) // stride + 1) ** 2 * inputs * outputs * size**2
        line = {"layer": name, "kernel": f"{size}×{size}×{inputs}×{outputs}", "map": f"{side}×{side}", "batch": batch}
        for which in ("forward", "input gradient", "weight gradient"):
            sides = {form: xla_side(which, form, layer, flops) for form in ("XLA", "ours", "product")}
            if torch:
                sides["torch"] = torch_side(which, layer, flops)
            speed = race(sides, arguments.seconds)
            line[which] = " / ".join(f"{value / 1e9:.0f}" for value in speed.values())
        print(line, flush=True)
        lines.append(line)
    result = {
        "device": processor(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"),
        "command": shlex.join(["python", *sys.argv]),
        "versions": versions(),
        "load average before and after": [round(before, 1), round(os.getloadavg()[0], 1)],
        "figures": "GFLOP/s: XLA / ours / product with shifted copies" + (" / PyTorch" if torch else ""),
    }
    page = ["# Convolutions", "", *(f"- {key}: {value}" for key, value in result.items()), "", markdown_table(lines)]
    print("\n".join(page))
    if arguments.output:
        prefix = pathlib.Path(arguments.output)
        prefix.parent.mkdir(parents=True, exist_ok=True)
        prefix.with_suffix(".json").write_text(
            json.dumps(result | {"lines": lines}, indent=2, ensure_ascii=False) + "\n"
        )
        prefix.with_suffix(".md").write_text("\n".join(page) + "\n")


if __name__ == "__main__":
    main()
