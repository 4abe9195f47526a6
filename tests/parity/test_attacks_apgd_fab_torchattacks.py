"""APGD, APGD-T, FAB and FAB-T beside torchattacks on one trained network: the same steps, and no weaker results."""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits

from dl_core.attacks.apgd import apgd
from dl_core.attacks.balls import distance
from dl_core.attacks.fab import fab

torch = pytest.importorskip("torch")
torchattacks = pytest.importorskip("torchattacks")

NUM_IMAGES = 200
NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}


def network(params, images):
    x = jax.lax.conv_general_dilated(
        images - 0.5, params["conv"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    x = jax.nn.relu(x + params["conv_bias"])
    x = x.reshape(len(x), 4, 2, 4, 2, -1).mean(axis=(2, 4)).reshape(len(x), -1)
    return jax.nn.relu(x @ params["hidden"]) @ params["dense"]


class TorchNetwork(torch.nn.Module):
    def __init__(self, params, dtype=torch.float32):
        super().__init__()
        given = {name: torch.tensor(np.asarray(array), dtype=dtype) for name, array in params.items()}
        self.weights = torch.nn.ParameterDict(given)

    def forward(self, images):
        kernel, bias = self.weights["conv"].permute(3, 2, 0, 1), self.weights["conv_bias"].flatten()
        x = torch.nn.functional.conv2d(images - 0.5, kernel, bias, padding=1)
        x = torch.nn.functional.avg_pool2d(torch.relu(x), 2).permute(0, 2, 3, 1).flatten(1)
        return torch.relu(x @ self.weights["hidden"]) @ self.weights["dense"]


@functools.cache
def trained():
    """Parameters, and test images that the network gets right with their labels."""
    images, labels = load_digits(return_X_y=True)
    images = jnp.asarray(images.reshape(-1, 8, 8, 1) / 16, jnp.float32)
    labels = jnp.asarray(labels, jnp.int32)
    keys = jax.random.split(jax.random.key(0), 3)
    params = {
        "conv": jax.random.normal(keys[0], (3, 3, 1, 8)) / 3,
        "conv_bias": jnp.zeros((1, 1, 1, 8)),
        "hidden": jax.random.normal(keys[1], (128, 32)) / 11,
        "dense": jax.random.normal(keys[2], (32, 10)) / 6,
    }
    optimizer = optax.adam(1e-2)

    @jax.jit
    def step(params, state):
        loss = lambda p: optax.softmax_cross_entropy_with_integer_labels(network(p, images[:1200]), labels[:1200])
        updates, state = optimizer.update(jax.grad(lambda p: loss(p).mean())(params), state)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for _ in range(100):
        params, state = step(params, state)
    images, labels = images[1200:], labels[1200:]
    right = np.flatnonzero(network(params, images).argmax(axis=1) == labels)[:NUM_IMAGES]
    assert len(right) == NUM_IMAGES
    return params, images[right], labels[right]


def to_torch(images, dtype=torch.float32):
    return torch.tensor(np.asarray(images).transpose(0, 3, 1, 2), dtype=dtype)


def from_torch(images):
    return images.detach().numpy().transpose(0, 2, 3, 1)


@pytest.fixture(autouse=True)
def one_thread():
    """Networks this small spend their time on handing work to threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@functools.cache
def setting():
    params, images, labels = trained()
    return TorchNetwork(params).eval(), to_torch(images), torch.tensor(np.asarray(labels), dtype=torch.int64)


def torch_robust(attack):
    model, images, labels = setting()
    return float((model(attack(images, labels)).argmax(1) == labels).double().mean())


def robust(result):
    return float(1 - np.asarray(result.success).mean())


def test_the_two_networks_are_one():
    params, images, _ = trained()
    model, torch_images, _ = setting()
    np.testing.assert_allclose(network(params, images), model(torch_images).detach().numpy(), atol=1e-4)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("loss", ["cross_entropy", "dlr"])
def test_apgd_takes_the_same_steps_from_the_same_start(norm, loss):
    """In float64, where rounding does not decide a checkpoint; a radius at which most images withstand."""
    params, images, labels = trained()
    steps, eps = 20, {"linf": 0.04, "l2": 0.25}[norm]
    model = TorchNetwork(params, torch.float64).eval()
    attack = torchattacks.APGD(
        model, norm=NORMS[norm], eps=eps, steps=steps, loss={"cross_entropy": "ce"}.get(loss, loss)
    )
    # at the first checkpoint torchattacks compares with a loss of 0 in place of the start's, which a ratio below 0
    # never exceeds; raised, both count a rise there
    ratio = attack.dlr_loss
    attack.dlr_loss = lambda logits, labels: ratio(logits, labels) + 10
    # what the other attack draws first, drawn again for ours
    torch.manual_seed(0)
    torch_images = to_torch(images, torch.float64)
    if norm == "linf":
        drawn = 2 * torch.rand(torch_images.shape) - 1
        drawn = eps * drawn / drawn.abs().amax(dim=(1, 2, 3), keepdim=True)
    else:
        drawn = torch.randn(torch_images.shape)
        drawn = eps * drawn / drawn.square().sum(dim=(1, 2, 3), keepdim=True).sqrt()
    torch.manual_seed(0)
    best, withstood, _, _ = attack.attack_single_run(torch_images, torch.tensor(np.asarray(labels)).long())
    with jax.enable_x64(True):
        wide = lambda array: jnp.asarray(np.asarray(array), jnp.float64)
        start = jnp.clip(wide(images) + wide(from_torch(drawn)), 0, 1)
        result = apgd(
            network, jax.tree.map(wide, params), wide(images), labels, eps=eps, norm=norm, loss=loss, steps=steps,
            start=start,
        )  # fmt: skip
    found, withstood = np.asarray(result.success), withstood.numpy()
    np.testing.assert_array_equal(found, ~withstood)
    assert withstood.mean() > 0.5
    difference = np.abs(np.asarray(result.adversarial) - from_torch(best)).reshape(NUM_IMAGES, -1).max(axis=1)
    # a first step that lowers the loss is a rise to torchattacks, see above; and torch draws in float32
    assert (difference < 1e-5)[withstood].mean() > (0.85 if loss == "dlr" else 0.95), np.sort(difference[withstood])[
        -10:
    ]


@pytest.mark.parametrize(("norm", "radii"), [("linf", (0.05, 0.1)), ("l2", (0.3, 0.6))])
def test_apgd_leaves_no_more_images_than_torchattacks(norm, radii):
    """Within one point, or fewer; the same number of steps, another random start."""
    for eps in radii:
        theirs = torch_robust(torchattacks.APGD(setting()[0], norm=NORMS[norm], eps=eps, steps=20))
        ours = robust(apgd(network, *trained(), key=jax.random.key(0), eps=eps, norm=norm, steps=20))
        assert ours <= theirs + 0.01 + 1e-6
        assert 0.1 < theirs < 0.9


def test_targeted_apgd_leaves_no_more_images_than_torchattacks():
    for eps in (0.05, 0.1):
        theirs = torch_robust(torchattacks.APGDT(setting()[0], eps=eps, steps=5))
        result = apgd(network, *trained(), key=jax.random.key(0), eps=eps, loss="dlr", num_targets=9, steps=5)
        assert robust(result) <= theirs + 0.01 + 1e-6
        assert 0.1 < theirs < 0.9


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_fab_takes_the_same_steps(norm, monkeypatch):
    """Without the search at the end, which torchattacks does not have; with it the median is never larger."""
    params, images, labels = trained()
    model, torch_images, torch_labels = setting()
    attack = torchattacks.FAB(model, norm=NORMS[norm], eps=1.0, steps=10)
    theirs = from_torch(attack.attack_single_run(torch_images, torch_labels))
    lengths = np.asarray(distance(jnp.asarray(theirs) - images, norm))
    searched = fab(network, params, images, labels, norm=norm, steps=10)
    monkeypatch.setattr(importlib.import_module("dl_core.attacks.fab"), "_SEARCH_STEPS", 0)
    ours = fab(network, params, images, labels, norm=norm, steps=10)
    # float32 in another order; "l1" moves single values, and which one may be decided by rounding
    ratio = np.asarray(ours.distance) / lengths
    assert (np.abs(ratio - 1) < 1e-4).mean() > (0.8 if norm == "l1" else 0.95), np.quantile(ratio, (0, 0.1, 0.9, 1))
    assert np.median(ours.distance) <= np.median(lengths) * (1 + 1e-3)
    assert np.median(searched.distance) <= np.median(lengths) * (1 + 1e-3)


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("l2", 0.6)])
def test_targeted_fab_leaves_no_more_images_than_torchattacks(norm, eps):
    theirs = torch_robust(torchattacks.FAB(setting()[0], norm=NORMS[norm], eps=eps, steps=5, multi_targeted=True))
    ours = robust(fab(network, *trained(), eps=eps, norm=norm, num_targets=9, steps=5))
    assert ours <= theirs + 0.01 + 1e-6
    assert 0.1 < theirs < 0.9
