"""DeepFool, Carlini and Wagner's attack and DDN agree with Foolbox on the same network, in float64.

All three are deterministic, so that the images themselves are compared, not only their distances.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dl_core.attacks.carlini_wagner import carlini_wagner
from dl_core.attacks.ddn import ddn
from dl_core.attacks.deepfool import deepfool

torch = pytest.importorskip("torch")
foolbox = pytest.importorskip("foolbox")

CLASSES = 6
RNG = np.random.default_rng(0)
KERNEL, DENSE, BIAS = (RNG.normal(size=shape) for shape in ((3, 3, 2, 4), (4 * 36, CLASSES), (CLASSES,)))
IMAGES = RNG.uniform(size=(10, 6, 6, 2))


def apply_fn(params, images):
    kernel, dense, bias = params
    maps = jax.lax.conv_general_dilated(images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return jnp.tanh(maps).reshape(len(images), -1) @ dense + bias[None]


class Network(torch.nn.Module):
    def forward(self, images):
        kernel = torch.tensor(KERNEL.transpose(3, 2, 0, 1))
        maps = torch.nn.functional.conv2d(images.permute(0, 3, 1, 2), kernel, padding=1)
        return torch.tanh(maps).permute(0, 2, 3, 1).reshape(len(images), -1) @ torch.tensor(DENSE) + torch.tensor(BIAS)


LABELS = Network()(torch.tensor(IMAGES)).argmax(dim=1).numpy()
LABELS[0] = (LABELS[0] + 1) % CLASSES  # misclassified before the attack
TARGET = (LABELS + 2) % CLASSES
TARGET[0] = (LABELS[0] + 1) % CLASSES


def theirs(attack, aimed=False):
    """Adversarial images and their success as the network in torch sees it."""
    model = foolbox.PyTorchModel(Network().eval(), bounds=(0, 1), device="cpu")
    goal = torch.tensor(TARGET if aimed else LABELS)
    criterion = (foolbox.criteria.TargetedMisclassification if aimed else foolbox.criteria.Misclassification)(goal)
    adversarial, _, success = attack(model, torch.tensor(IMAGES), criterion, epsilons=None)
    return adversarial.detach().numpy(), success.numpy()


def ours(attack, aimed=False, **options):
    with jax.enable_x64(True):
        params = tuple(map(jnp.asarray, (KERNEL, DENSE, BIAS)))
        target = jnp.asarray(TARGET, jnp.int32) if aimed else None
        result = attack(apply_fn, params, jnp.asarray(IMAGES), jnp.asarray(LABELS, jnp.int32), target=target, **options)
        assert result.adversarial.dtype == jnp.float64
        return jax.tree.map(np.asarray, result)


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("options", [{}, {"candidates": 3, "overshoot": 0.1}])
def test_deepfool_step_for_step(norm, options):
    attack = {"l2": foolbox.attacks.L2DeepFoolAttack, "linf": foolbox.attacks.LinfDeepFoolAttack}[norm]
    shares = []
    for steps in (1, 2, 3, 50):
        adversarial, success = theirs(attack(steps=steps, **options))
        result = ours(deepfool, norm=norm, steps=steps, **options)
        np.testing.assert_array_equal(result.success, success)
        # Foolbox adds 1e-8 to lengths of gradients, which are of order 10 here, and the steps add up
        np.testing.assert_allclose(result.adversarial[success], adversarial[success], atol=1e-7)
        shares.append(success.mean())
    assert shares[0] < shares[-1] == 1  # some images take more steps than one


@pytest.mark.parametrize(("aimed", "confidence"), [(False, 0.0), (True, 0.5)])
def test_carlini_wagner(aimed, confidence):
    options = {"steps": 30, "binary_search_steps": 5, "initial_const": 0.01, "abort_early": False}
    attack = foolbox.attacks.L2CarliniWagnerAttack(stepsize=0.05, confidence=confidence, **options)
    adversarial, _ = theirs(attack, aimed)
    found = adversarial.any(axis=(1, 2, 3))  # Foolbox returns zeros where it found nothing
    result = ours(carlini_wagner, aimed, learning_rate=0.05, confidence=confidence, **options)
    np.testing.assert_array_equal(result.success, found)
    assert found.mean() > 0.8
    # Foolbox rounds its constants to float32 (6e-8), and starts from the image in the space of w (5e-7 at a bound)
    np.testing.assert_allclose(result.adversarial[found], adversarial[found], atol=2e-6)


@pytest.mark.parametrize(("aimed", "init_eps"), [(False, 1.0), (True, 0.2)])
def test_ddn(aimed, init_eps):
    # Foolbox rounds 1 ± γ to float32, which changes nothing for this one
    adversarial, success = theirs(foolbox.attacks.DDNAttack(steps=50, init_epsilon=init_eps, gamma=1 / 16), aimed)
    result = ours(ddn, aimed, steps=50, init_eps=init_eps, gamma=1 / 16)
    np.testing.assert_array_equal(result.success, success)
    assert success.mean() > 0.8
    np.testing.assert_allclose(result.adversarial[success], adversarial[success], atol=1e-9)  # float64
