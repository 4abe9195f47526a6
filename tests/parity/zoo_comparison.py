"""What the comparisons with torchvision's and timm's networks share: random contents, images, and the error."""

import numpy as np
import torch

import models
from models.weights import load_torch

CLASSES = 7


def fill_at_random(network, dtype):
    """A network made on the device "meta", in evaluation mode, with random weights and BatchNorm statistics."""
    network = network.to_empty(device="cpu").to(getattr(torch, dtype))
    generator = torch.Generator().manual_seed(0)
    uniform = lambda like, low, high: torch.empty_like(like).uniform_(low, high, generator=generator)
    for key, value in network.state_dict().items():
        if key.endswith("num_batches_tracked"):
            value.zero_()
        elif key.endswith(("running_var", "gain")):
            value.copy_(uniform(value, 0.5, 2.0))
        elif value.ndim == 1:
            value.copy_(uniform(value, 0.5, 1.5) if key.endswith("weight") else uniform(value, -0.3, 0.3))
        else:  # He's variance
            value.copy_(uniform(value, -1, 1) * (6 / value[0].numel()) ** 0.5)
    return network.eval()


def our_model(name, network, dtype, **fields):
    """Our model of that name with the torch network's weights, all of which must find their place."""
    variables, report = load_torch(name, network.state_dict(), param_dtype=dtype, dtype=dtype, **fields)
    assert (report.missing, report.unexpected, report.adapted) == ((), (), ())
    return models.create(name, num_classes=CLASSES, param_dtype=dtype, dtype=dtype, **fields), variables


def images_of(size, dtype, batch=2):
    """Random images [batch, size, size, 3]."""
    return np.random.default_rng(1).standard_normal((batch, size, size, 3)).astype(dtype)


def to_torch(images):
    """NHWC array -> NCHW tensor."""
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def relative_error(ours, theirs):
    """Largest difference over the largest value."""
    theirs = theirs.detach().numpy()
    return np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max()
