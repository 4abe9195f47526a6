"""Robust accuracy against AutoAttack of torchattacks: the same network, images and radius; equal or lower.

Both draw random numbers, so single images may come out differently: robust accuracies agree within one point, and a
lower one means that ours found adversarial examples that exist (PyTorch confirms them below).
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dl_core.attacks.ensemble import robust_accuracy
from dl_core.attacks.fab import fab

torch = pytest.importorskip("torch")
torchattacks = pytest.importorskip("torchattacks")

RNG = np.random.default_rng(0)
CLASSES, SIZE = 5, 8
KERNEL = (RNG.normal(size=(3, 3, 2, 8)) / 4).astype(np.float32)
DENSE = (RNG.normal(size=(8 * SIZE * SIZE, CLASSES)) / 8).astype(np.float32)
PARAMS = tuple(map(jnp.asarray, (KERNEL, DENSE)))


def network(params, images):
    kernel, dense = params
    maps = jax.lax.conv_general_dilated(
        images - 0.5, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return jax.nn.relu(maps).reshape(len(images), -1) @ dense


class TorchNetwork(torch.nn.Module):
    def forward(self, images):
        maps = torch.nn.functional.conv2d(images - 0.5, torch.tensor(KERNEL.transpose(3, 2, 0, 1)), padding=1)
        return torch.relu(maps).permute(0, 2, 3, 1).reshape(len(images), -1) @ torch.tensor(DENSE)


def torch_images(images):
    return torch.tensor(np.asarray(images).transpose(0, 3, 1, 2).copy())


def problem(batch, norm):
    """Images with the class that the network gives them, and a radius at which about half of them can be broken."""
    images = jnp.asarray(RNG.uniform(0, 1, (batch, SIZE, SIZE, 2)), jnp.float32)
    labels = network(PARAMS, images).argmax(axis=1)
    near = fab(network, PARAMS, images, labels, norm=norm, steps=10, num_targets=CLASSES - 1)
    return images, labels, float(np.median(near.distance))


def accuracy_in_torch(model, adversarial, labels):
    with torch.no_grad():
        return float((model(adversarial).argmax(1).numpy() == np.asarray(labels)).mean())


def compare(batch, norm, attacks, reference, **options):
    images, labels, eps = problem(batch, norm)
    model = TorchNetwork().eval()
    np.testing.assert_allclose(model(torch_images(images)).numpy(), network(PARAMS, images), rtol=1e-4, atol=1e-5)
    ours = robust_accuracy(
        network, PARAMS, images, labels, key=jax.random.key(0), eps=eps, norm=norm, attacks=attacks, **options
    )
    theirs = reference(model, eps)(torch_images(images), torch.tensor(np.asarray(labels), dtype=torch.int64))
    expected = accuracy_in_torch(model, theirs, labels)
    print(f"{norm}: eps {eps:.4f}, robust accuracy {ours.accuracy:.4f}, torchattacks {expected:.4f}")
    assert 0.2 < ours.accuracy < 0.8
    assert ours.accuracy <= expected + 0.01
    # an image at the very boundary may be rounded to the other side by another order of summation
    assert accuracy_in_torch(model, torch_images(ours.adversarial), labels) <= ours.accuracy + 1 / batch
    moved = (np.asarray(ours.adversarial) - np.asarray(images)).reshape(batch, -1)
    length = np.abs(moved).max(1) if norm == "linf" else np.linalg.norm(moved, axis=1)
    assert (length <= eps * (1 + 1e-5) + 1e-6).all()


def short(norm):
    def attack(model, eps):
        options = {"norm": norm, "eps": eps, "seed": 0}
        return torchattacks.MultiAttack(
            [
                torchattacks.APGD(model, steps=10, **options),
                torchattacks.APGDT(model, steps=10, n_classes=CLASSES, **options),
                torchattacks.Square(model, n_queries=100, **options),
            ]
        )

    return attack


@pytest.mark.parametrize(("norm", "theirs"), [("linf", "Linf"), ("l2", "L2")])
def test_a_short_ensemble_breaks_as_many_images(norm, theirs):
    compare(60, norm, ("apgd_ce", "apgd_t", "square"), short(theirs), steps=10, max_queries=100)


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "theirs"), [("linf", "Linf"), ("l2", "L2")])
def test_the_standard_ensemble_breaks_as_many_images(norm, theirs):
    reference = lambda model, eps: torchattacks.AutoAttack(model, norm=theirs, eps=eps, n_classes=CLASSES, seed=0)
    standard = ("apgd_ce", "apgd_t", "fab_t", "square")
    compare(200, norm, standard, reference, steps=10, max_queries=5000)  # 10 is what torchattacks gives to all of them
