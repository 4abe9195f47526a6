"""The networks of models/ written a second time, in PyTorch, with torchvision's layout and parameter names.

An independent reading of the papers, for agreement tests and for timings; shares no code with models/.
"""

import torch
from torch import nn
from torch.nn import functional


class Pad(nn.Module):
    """Option A: every second pixel, new channels zero."""

    def __init__(self, extra):
        super().__init__()
        self.extra = extra

    def forward(self, x):
        return functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, self.extra))


class Block(nn.Module):
    """Basic (two 3×3) or bottleneck (1×1, 3×3, 1×1), original or pre-activation."""

    def __init__(self, inputs, width, stride, bottleneck, option_a, preactivation, first):
        super().__init__()
        outputs = 4 * width if bottleneck else width
        if bottleneck:
            self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
            self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
            self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        else:
            self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
            self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.depth = 3 if bottleneck else 2
        for i in range(1, self.depth + 1):
            conv = getattr(self, f"conv{i}")
            setattr(self, f"bn{i}", nn.BatchNorm2d(conv.in_channels if preactivation else conv.out_channels))
        self.preactivation, self.first, self.downsample = preactivation, first, None
        if stride != 1 or inputs != outputs:
            if option_a:
                self.downsample = Pad(outputs - inputs)
            else:
                norm = [] if preactivation else [nn.BatchNorm2d(outputs)]
                self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), *norm)

    def forward(self, x):
        return self.forward_v2(x) if self.preactivation else self.forward_v1(x)

    def forward_v1(self, x):
        y = functional.relu(self.bn1(self.conv1(x)))
        if self.depth == 3:
            y = self.bn3(self.conv3(functional.relu(self.bn2(self.conv2(y)))))
        else:
            y = self.bn2(self.conv2(y))
        return functional.relu(y + (x if self.downsample is None else self.downsample(x)))

    def forward_v2(self, x):
        a = functional.relu(self.bn1(x))
        y = self.conv2(functional.relu(self.bn2(self.conv1(a))))
        if self.depth == 3:
            y = self.conv3(functional.relu(self.bn3(y)))
        if self.downsample is None:
            return y + (a if self.first else x)
        return y + self.downsample(x if isinstance(self.downsample, Pad) else a)


class ResNet(nn.Module):
    """ResNet-18…152, v1.5 or v2, and with `cifar` the three-stage form for small images."""

    def __init__(
        self, sizes, num_classes, bottleneck=False, width=64, cifar=False, option_a=False, preactivation=False
    ):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False) if cifar else nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.Identity() if preactivation else nn.BatchNorm2d(width)
        self.relu = nn.Identity() if preactivation else nn.ReLU()
        self.maxpool = nn.Identity() if cifar else nn.MaxPool2d(3, 2, 1)
        channels, self.stages = width, len(sizes)
        for i, size in enumerate(sizes):
            blocks = []
            for j in range(size):
                stride = 2 if i > 0 and j == 0 else 1
                here = width * 2**i
                blocks.append(Block(channels, here, stride, bottleneck, option_a, preactivation, i == j == 0))
                channels = 4 * here if bottleneck else here
            setattr(self, f"layer{i + 1}", nn.Sequential(*blocks))
        self.norm = nn.BatchNorm2d(channels) if preactivation else nn.Identity()
        self.fc = nn.Linear(channels, num_classes)
        self.final = functional.relu if preactivation else (lambda x: x)

    def forward(self, x):
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for i in range(self.stages):
            x = getattr(self, f"layer{i + 1}")(x)
        return self.fc(self.final(self.norm(x)).mean((2, 3)))


class LeNet5(nn.Module):
    """The modern form (ReLU, max-pooling) or that of 1998 (tanh, average), for 28×28 images padded by 2."""

    def __init__(self, num_classes, modern=True):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 6, 5, padding=2), nn.Conv2d(6, 16, 5)
        self.fc1, self.fc2, self.fc3 = nn.Linear(400, 120), nn.Linear(120, 84), nn.Linear(84, num_classes)
        self.act = functional.relu if modern else torch.tanh
        self.pool = functional.max_pool2d if modern else functional.avg_pool2d

    def forward(self, x):
        x = self.pool(self.act(self.conv1(x)), 2)
        x = self.pool(self.act(self.conv2(x)), 2).flatten(1)
        return self.fc3(self.act(self.fc2(self.act(self.fc1(x)))))
