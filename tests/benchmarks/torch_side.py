"""The PyTorch side of the training benchmark: channels-last, eager or compiled, autocast to bfloat16 on a GPU."""

import contextlib
import os
import pathlib
import sys
import time

os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"  # compile times are part of the result

import torch
from contest import Side

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "parity"))
import torch_networks


class Examples(torch.utils.data.Dataset):
    """uint8 images [n, channels, height, width] that are scaled one at a time, as a user's data set would."""

    def __init__(self, images, labels, mean, std):
        self.images, self.labels, self.mean, self.std = images, labels, mean, std

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return (self.images[i].float() / 255 - self.mean) / self.std, self.labels[i]


def train_step(case, kind, compiled):
    """(images, labels) -> None: one step of SGD with momentum; and the device. Compiles anew for every case."""
    torch._dynamo.reset()
    device = torch.device("cuda" if kind == "gpu" else "cpu")
    network = getattr(torch_networks, case.torch_network)(num_classes=case.num_classes, **case.torch_fields)
    network = network.to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9, fused=kind == "gpu")
    forward = torch.compile(network) if compiled else network
    precision = torch.autocast("cuda", torch.bfloat16) if kind == "gpu" else contextlib.nullcontext()

    def step(images, labels):
        optimizer.zero_grad(set_to_none=True)
        with precision:
            loss = torch.nn.functional.cross_entropy(forward(images), labels)
        loss.backward()
        optimizer.step()

    return step, device


def wait(device):
    """Until the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def steps(case, batch, kind, *, compiled):
    """Steps on one resident batch."""
    torch.manual_seed(0)
    height, width, channels = case.image_shape
    if kind == "gpu":
        before = torch.cuda.memory_allocated()  # of the sides built earlier
        torch.cuda.reset_peak_memory_stats()
    step, device = train_step(case, kind, compiled)
    images = torch.randn(batch, channels, height, width, device=device).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(batch, device=device) % case.num_classes
    start = time.perf_counter()
    step(images, labels)
    wait(device)
    seconds = time.perf_counter() - start

    def run(n):
        for _ in range(n):
            step(images, labels)
        wait(device)

    run(1)
    peak = torch.cuda.max_memory_allocated() - before if kind == "gpu" else None
    return Side(run, batch, seconds if compiled else None, peak)


def epochs(case, batch, kind, examples, mean, std, *, compiled):
    """Whole epochs through a DataLoader with workers."""
    torch.manual_seed(0)
    height, width, channels = case.image_shape
    images = torch.randint(0, 256, (examples, channels, height, width), dtype=torch.uint8)
    labels = torch.randint(0, case.num_classes, (examples,))
    workers = min(8, max(1, (os.cpu_count() or 2) - 1))
    loader = torch.utils.data.DataLoader(
        Examples(images, labels, mean, std),
        batch,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=True,
        pin_memory=kind == "gpu",
        multiprocessing_context="spawn",  # a fork of a process with JAX's threads may hang
    )
    step, device = train_step(case, kind, compiled)

    def run(n):
        for _ in range(n):
            for image, label in loader:
                image = image.to(device, non_blocking=True, memory_format=torch.channels_last)
                step(image, label.to(device, non_blocking=True))
        wait(device)

    return Side(run, examples)
