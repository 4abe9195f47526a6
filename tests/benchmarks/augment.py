"""RandAugment and TrivialAugment on small images: here, and in torchvision on the CPU of the same machine.

    python tests/benchmarks/augment.py --output=tests/benchmarks/results/augment_cpu

The columns of torchvision: one image after another in one process, as a worker of a DataLoader does it; the same by as
many workers as there are processors (a DataLoader, the batch ready for use); and one call for the whole batch, which
draws one pair of operations for all images and so does less. All in turns, medians. Ours draws operations for each
image; where JAX finds an accelerator it runs there, and the ratios are to torchvision's workers on the CPU.
"""

import argparse
import datetime
import json
import os
import pathlib
import shlex
import sys

import jax
import torch
from contest import Side, markdown_table, processor, race, versions

from dl_core.augment.automatic import rand_augment, trivial_augment

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "parity"))
try:
    from torchvision.transforms import v2
except RuntimeError:  # torchvision's CUDA build beside a CPU build of torch
    from torchvision_on_cpu import import_zoo

    import_zoo()
    from torchvision.transforms import v2


# Taken from the workers at a time: while the others have their turn, each worker gets one batch ready, which is then
# had for nothing. Of so many that hardly counts (and it counts for torchvision).
BATCHES = 16


def our_side(policy, batch: int, size: int) -> Side:
    """A compiled call with a key of its own for each step."""
    images = jax.random.uniform(jax.random.key(0), (batch, size, size, 3))
    compiled = jax.jit(lambda step, images: policy(jax.random.fold_in(jax.random.key(1), step), images))

    def run(n):
        result = images
        for step in range(n):
            result = compiled(step, images)
        result.block_until_ready()

    return Side(run, batch)


class Augmented(torch.utils.data.Dataset):
    """Bytes [n, 3, size, size], augmented one by one as they are asked for."""

    def __init__(self, transform, images: torch.Tensor, length: int):
        self.transform, self.images, self.length = transform, images, length

    def __len__(self):
        return self.length

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.transform(self.images[index % len(self.images)])


def torch_sides(transform, batch: int, size: int, workers: int) -> dict[str, Side]:
    """torchvision: one by one, by several workers, and all alike in one call."""
    torch.set_num_threads(1)  # as in a worker; more make single small images several times slower
    images = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8)
    # Many batches an epoch, and the same workers all along: their start is not what is measured.
    endless = Augmented(transform, images, batch * 1_000_000)
    loader = iter(torch.utils.data.DataLoader(endless, batch, num_workers=workers, prefetch_factor=1))

    def one_by_one(n):
        for _ in range(n):
            torch.stack([transform(image) for image in images])

    def by_workers(n):
        for _ in range(n * BATCHES):
            next(loader)

    def all_alike(n):
        for _ in range(n):
            transform(images)

    sides = {"one by one": one_by_one, f"{workers} workers": by_workers, "all alike": all_alike}
    batches = [1, BATCHES, 1]
    return {f"torchvision, {name}": Side(run, batch * n) for (name, run), n in zip(sides.items(), batches, strict=True)}


def main() -> None:
    """Measures, prints the table, and writes it when asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4, help="measuring time for each figure")
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--size", type=int, default=32, help="height and width of the images")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--output", help="write PREFIX.json and PREFIX.md")
    arguments = parser.parse_args()
    before, lines = os.getloadavg()[0], []
    policies = {
        "RandAugment, 2 operations of magnitude 9": (rand_augment, v2.RandAugment()),
        "TrivialAugmentWide": (trivial_augment, v2.TrivialAugmentWide()),
    }
    # All workers are forked before JAX starts its threads: a process that has threads must not be.
    options = (arguments.batch, arguments.size)
    torchs = {name: torch_sides(theirs, *options, arguments.workers) for name, (_, theirs) in policies.items()}
    for name, (ours, _) in policies.items():
        sides = {"ours": our_side(ours, *options)} | torchs[name]
        speed = race(sides, arguments.seconds)
        line = {"policy": name} | {f"{side}, images/s": f"{value:,.0f}" for side, value in speed.items()}
        line |= {f"ours / {side}": f"{speed['ours'] / value:.1f}" for side, value in speed.items() if side != "ours"}
        print(line, flush=True)
        lines.append(line)
    result = {
        "CPU": processor(),
        "device of JAX": jax.devices()[0].device_kind,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"),
        "command": shlex.join(["python", *sys.argv]),
        "versions": versions(),
        "load average before and after": [round(before, 1), round(os.getloadavg()[0], 1)],
        "images": f"{arguments.batch} of {arguments.size} × {arguments.size} × 3; ours float32, torchvision's uint8",
    }
    page = ["# RandAugment", "", *(f"- {key}: {value}" for key, value in result.items()), "", markdown_table(lines)]
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
