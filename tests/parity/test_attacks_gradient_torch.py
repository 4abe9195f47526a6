"""FGSM, BIM, PGD and MI-FGSM agree step for step with Foolbox and torchattacks on one network, weights carried over.

Both sides run in float64, where no component of a gradient is so near zero that its sign could differ: so a sign
attack has to give the same image up to rounding, and one flipped sign would show as a difference of two steps.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dl_core.attacks.balls import distance
from dl_core.attacks.gradient import fgsm
from dl_core.attacks.iterative import iterative_gradient
from dl_core.attacks.projected import bim, momentum_pgd, pgd

torch = pytest.importorskip("torch")
foolbox = pytest.importorskip("foolbox")
torchattacks = pytest.importorskip("torchattacks")

RNG = np.random.default_rng(0)
KERNEL, DENSE, BIAS = RNG.normal(size=(3, 3, 2, 4)) / 2, RNG.normal(size=(144, 5)) / 3, RNG.normal(size=5)
IMAGES = RNG.uniform(size=(16, 6, 6, 2))  # some pixels reach the bounds
EPS, STEP, STEPS = 0.03, 0.008, 7


def apply_fn(params, images):
    kernel, dense, bias = params
    maps = jax.lax.conv_general_dilated(images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return jax.nn.softplus(maps).reshape(len(images), -1) @ dense + bias[None]


class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(2, 4, 3, padding=1, bias=False)
        self.dense = torch.nn.Linear(144, 5)
        self.double().eval()
        self.load_state_dict(
            {
                "conv.weight": torch.tensor(KERNEL.transpose(3, 2, 0, 1)),
                "dense.weight": torch.tensor(DENSE.T.copy()),
                "dense.bias": torch.tensor(BIAS),
            }
        )

    def forward(self, images):
        maps = torch.nn.functional.softplus(self.conv(images))
        return self.dense(maps.permute(0, 2, 3, 1).flatten(1))


NETWORK = Network()
TORCH_IMAGES = torch.tensor(IMAGES.transpose(0, 3, 1, 2)).contiguous()
with torch.no_grad():
    LABELS = NETWORK(TORCH_IMAGES).argmax(1)
TARGET = (LABELS + 2) % 5


def ours(attack, eps=EPS, **options):
    """In float64; int32 classes."""
    with jax.enable_x64(True):
        classes = {name: jnp.asarray(options.pop(name).numpy(), jnp.int32) for name in ("target",) if name in options}
        params = tuple(map(jnp.asarray, (KERNEL, DENSE, BIAS)))
        result = attack(
            apply_fn, params, jnp.asarray(IMAGES), jnp.asarray(LABELS.numpy(), jnp.int32), eps=eps, **classes, **options
        )
        assert result.adversarial.dtype == jnp.float64
        return jax.tree.map(np.asarray, result)


def to_numpy(images):
    return images.detach().numpy().transpose(0, 2, 3, 1)


def by_foolbox(attack, eps=EPS, target=None):
    model = foolbox.PyTorchModel(NETWORK, bounds=(0, 1), device="cpu")
    criterion = (
        foolbox.criteria.Misclassification(LABELS)
        if target is None
        else foolbox.criteria.TargetedMisclassification(target)
    )
    return to_numpy(attack.run(model, TORCH_IMAGES, criterion, epsilon=eps))


def by_torchattacks(attack, target=None):
    if target is not None:
        attack.set_mode_targeted_by_label(quiet=True)
    return to_numpy(attack(TORCH_IMAGES, LABELS if target is None else target))


def assert_equal(given, expected):
    """1e-12: float64, some thousand roundings; a sign that differs is a difference of 0.016."""
    np.testing.assert_allclose(given, expected, rtol=0, atol=1e-12)
    assert np.abs(given - IMAGES).max() > 1e-4


all_steps = {"steps": STEPS, "step_size": STEP, "early_stop": False}


def test_fgsm():
    assert_equal(ours(fgsm).adversarial, by_foolbox(foolbox.attacks.LinfFastGradientAttack()))
    assert_equal(ours(fgsm).adversarial, by_torchattacks(torchattacks.FGSM(NETWORK, eps=EPS)))
    aimed = by_torchattacks(torchattacks.FGSM(NETWORK, eps=EPS), TARGET)
    assert_equal(ours(fgsm, target=TARGET).adversarial, aimed)
    assert_equal(ours(fgsm, eps=0.3, norm="l2").adversarial, by_foolbox(foolbox.attacks.L2FastGradientAttack(), 0.3))


@pytest.mark.parametrize("target", [None, TARGET], ids=["untargeted", "targeted"])
def test_bim_and_pgd_in_the_maximum_norm(target):
    """A step of 0.008 does not divide 0.03: the projection is at work from the fourth step on."""
    options = {} if target is None else {"target": target}
    result = ours(bim, **all_steps, **options).adversarial
    peer = foolbox.attacks.LinfProjectedGradientDescentAttack(steps=STEPS, abs_stepsize=STEP, random_start=False)
    assert_equal(result, by_foolbox(peer, target=target))
    for peer in (torchattacks.BIM(NETWORK, EPS, STEP, STEPS), torchattacks.PGD(NETWORK, EPS, STEP, STEPS, False)):
        assert_equal(result, by_torchattacks(peer, target))
    np.testing.assert_array_equal(ours(pgd, random_start=False, **all_steps, **options).adversarial, result)


@pytest.mark.parametrize("target", [None, TARGET], ids=["untargeted", "targeted"])
def test_pgd_in_the_euclidean_norm(target):
    """torchattacks adds a constant to the length of a gradient, 1e-10 where it is not told otherwise."""
    options = {} if target is None else {"target": target}
    result = ours(bim, 0.3, norm="l2", steps=STEPS, step_size=0.08, early_stop=False, **options).adversarial
    peer = foolbox.attacks.L2ProjectedGradientDescentAttack(steps=STEPS, abs_stepsize=0.08, random_start=False)
    assert_equal(result, by_foolbox(peer, 0.3, target))
    peer = torchattacks.PGDL2(NETWORK, 0.3, 0.08, STEPS, random_start=False, eps_for_division=1e-30)
    assert_equal(result, by_torchattacks(peer, target))


def test_sparse_steps_in_the_norm_of_absolute_values():
    """Foolbox moves what reaches a quantile of |gradient|: of 72 values and 0.9 the 8 largest that the bounds let move.

    The ball is so large that nothing is projected; projection has a test of its own, against a root of its equation.
    """
    attack = functools.partial(pgd, sparsity=8 / 72, random_start=False, step_size=0.8, steps=STEPS, early_stop=False)
    result = ours(attack, 100.0, norm="l1").adversarial
    assert ((result == 0) | (result == 1)).any(axis=(1, 2, 3)).all()  # values have reached the bounds
    peer = foolbox.attacks.SparseL1DescentAttack(quantile=0.9, steps=STEPS, abs_stepsize=0.8)
    assert_equal(result, by_foolbox(peer, 100.0))


def test_momentum():
    """Every step of MI-FGSM as in torchattacks, which divides by the mean of |gradient| as the paper does."""
    result = ours(momentum_pgd, **all_steps).adversarial
    assert_equal(result, by_torchattacks(torchattacks.MIFGSM(NETWORK, EPS, STEP, STEPS, decay=1.0)))
    assert np.abs(result - ours(bim, **all_steps).adversarial).max() > 1e-3  # momentum does something
    aimed = by_torchattacks(torchattacks.MIFGSM(NETWORK, EPS, STEP, STEPS, decay=0.5), TARGET)
    assert_equal(ours(momentum_pgd, **all_steps, momentum=0.5, target=TARGET).adversarial, aimed)


def test_the_least_likely_class():
    """Which torchattacks finds by itself, and never takes the label for."""
    with torch.no_grad():
        least_likely = NETWORK(TORCH_IMAGES).argmin(1)
    peer = torchattacks.BIM(NETWORK, EPS, STEP, STEPS)
    peer.set_mode_targeted_least_likely(kth_min=1, quiet=True)
    expected = to_numpy(peer(TORCH_IMAGES, LABELS))
    assert_equal(ours(bim, **all_steps, target=least_likely).adversarial, expected)


@pytest.mark.parametrize("direction", ["untargeted", "targeted", "least_likely", "combined"])
def test_the_iterative_gradient_as_a_loop_of_autograd(direction):
    """The exercise's loop, which updates the image: neither library has the method."""
    images, perturbed = TORCH_IMAGES, TORCH_IMAGES.clone()
    goal = {"least_likely": NETWORK(images).argmin(1)}.get(direction, TARGET)
    steps = 0
    while steps < 3:
        perturbed = perturbed.detach().requires_grad_()
        logits = NETWORK(perturbed)
        rise, fall = logits.gather(1, goal[:, None]), logits.gather(1, LABELS[:, None])
        climbed = {"untargeted": -fall, "combined": rise - fall}.get(direction, rise)
        (gradient,) = torch.autograd.grad(climbed.sum(), perturbed)
        perturbed, steps = torch.clamp(perturbed + 1e-4 * gradient, 0, 1), steps + 1
    options = {"target": TARGET} if direction in ("targeted", "combined") else {}
    result = ours(iterative_gradient, eps=None, direction=direction, step_size=1e-4, steps=3, **options)
    assert not result.success.any()  # too short to flip a label, so that every image takes every step
    assert_equal(result.adversarial, to_numpy(perturbed))


def success_rate(norm, eps):
    """Of one run of a peer with a random start, uniform in the ball as ours.

    That of torchattacks in "l2" is not: its length is uniform, and so mostly shorter.
    """
    if norm == "linf":
        adversarial = torchattacks.PGD(NETWORK, eps, eps / 3, 3, random_start=True)(TORCH_IMAGES, LABELS)
    else:
        peer = foolbox.attacks.L2ProjectedGradientDescentAttack(rel_stepsize=1 / 3, steps=3, random_start=True)
        adversarial = torch.tensor(by_foolbox(peer, eps).transpose(0, 3, 1, 2))
    return (NETWORK(adversarial).argmax(1) != LABELS).double().mean().item()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_success_rates_with_random_starts_are_within_sampling_error(norm):
    """20 draws of both; the same images are attacked, so only starts differ: |difference| <= 4 standard errors."""
    largest = {"linf": 0.5, "l2": 4.0}[norm]
    torch.manual_seed(0)
    # the radius at which about half of the images are fooled, where starts matter most
    eps = min(np.linspace(0, largest, 51)[1:], key=lambda eps: abs(success_rate(norm, eps) - 0.5))
    with jax.enable_x64(True):
        params = tuple(map(jnp.asarray, (KERNEL, DENSE, BIAS)))
        attack = lambda key: pgd(
            apply_fn, params, jnp.asarray(IMAGES), jnp.asarray(LABELS.numpy(), jnp.int32), key=key, eps=eps, norm=norm,
            step_size=eps / 3, steps=3, early_stop=False,
        )  # fmt: skip
        results = [attack(key) for key in jax.random.split(jax.random.key(0), 20)]
        rates = np.array([np.asarray(result.success).mean() for result in results])
        assert all(float(distance(each.adversarial - IMAGES, norm).max()) <= eps * (1 + 1e-9) for each in results)
    theirs = [success_rate(norm, eps) for _ in range(20)]
    assert 0 < rates.mean() < 1
    error = np.sqrt((rates.var() + np.var(theirs)) / 20 + 1 / (20 * 16) ** 2)  # at least one image in all of them
    assert abs(rates.mean() - np.mean(theirs)) <= 4 * error, (rates.mean(), np.mean(theirs), error)
