"""Where Quantus has the same definition it has the same numbers, on the same weights, inputs and attributions.

Pixel flipping, region perturbation, pointing game, mass and rank accuracy, and the parameter randomisation test.
Sensitivity-n is left out: Quantus correlates over the examples, at one set for each n, and the paper over random sets.
Quantus 0.6 normalises attributions by default, which is switched off. Tolerance 1e-5: float32 sums in another order.
"""

import importlib.util
import sys
import types
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dl_core.explain.evaluate.deletion_insertion import perturbation_curve
from dl_core.explain.evaluate.pointing_game import pointing_game
from dl_core.explain.evaluate.randomization import data_randomization_test
from dl_core.explain.evaluate.relevance_accuracy import relevance_mass_accuracy, relevance_rank_accuracy
from dl_core.explain.gradients import gradient_x_input

torch = pytest.importorskip("torch")
from torchvision_on_cpu import import_zoo  # noqa: E402

import_zoo()  # Quantus imports Zennit where it is installed, and that torchvision
if importlib.util.find_spec("cv2") is None:
    sys.modules["cv2"] = types.ModuleType("cv2")  # Quantus imports it for rotations and shifts, which are not used here
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    quantus = pytest.importorskip("quantus")
if sys.modules.get("cv2") is not None and not hasattr(sys.modules["cv2"], "__file__"):
    del sys.modules["cv2"]

RNG = np.random.default_rng(0)
KERNEL, DENSE = RNG.normal(size=(3, 3, 1, 4)), RNG.normal(size=(4 * 64, 5)) / 4
IMAGES = RNG.uniform(0.1, 1, (6, 8, 8, 1)).astype(np.float32)
LABELS = RNG.integers(0, 5, 6).astype(np.int32)
ATTRIBUTIONS = RNG.normal(size=IMAGES.shape).astype(np.float32)
MASKS = np.zeros((6, 8, 8), bool)
for i in range(6):
    MASKS[i, i % 3 + 1 : i % 3 + 4, 2:6] = True
PARAMS = {"conv": jnp.asarray(KERNEL, jnp.float32), "fc": jnp.asarray(DENSE, jnp.float32)}
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
PLAIN = {"normalise": False, "abs": False, "disable_warnings": True, "display_progressbar": False}
BLACK = np.broadcast_to(IMAGES.min(axis=(1, 2, 3), keepdims=True), IMAGES.shape)  # what Quantus calls so
first_channel = lambda array: array.transpose(0, 3, 1, 2).copy()


def apply_fn(params, images):
    maps = jax.lax.conv_general_dilated(
        images, params["conv"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return jnp.tanh(maps).reshape(len(images), -1) @ params["fc"]


class Network(torch.nn.Module):
    def __init__(self, params):
        super().__init__()
        self.conv = torch.nn.Conv2d(1, 4, 3, padding=1, bias=False)
        self.fc = torch.nn.Linear(4 * 64, 5, bias=False)
        with torch.no_grad():
            self.conv.weight.copy_(torch.tensor(np.array(params["conv"]).transpose(3, 2, 0, 1)))
            self.fc.weight.copy_(torch.tensor(np.array(params["fc"]).T))

    def forward(self, images):
        return self.fc(torch.tanh(self.conv(images)).permute(0, 2, 3, 1).reshape(len(images), -1))


def score(metric, **options):
    given = {
        "model": Network(PARAMS).eval(), "x_batch": first_channel(IMAGES), "y_batch": LABELS,
        "a_batch": first_channel(ATTRIBUTIONS), "channel_first": True, "batch_size": 6,
    } | options  # fmt: skip
    return metric(**given)


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("features_in_step", [1, 4])
def test_pixel_flipping(softmax, features_in_step):
    metric = quantus.PixelFlipping(features_in_step=features_in_step, perturb_baseline="black", **PLAIN)
    theirs = np.asarray(score(metric, softmax=softmax))
    ours = perturbation_curve(
        apply_fn, PARAMS, jnp.asarray(IMAGES), LABELS, ATTRIBUTIONS, n_steps=64 // features_in_step, baselines=BLACK,
        output="probability" if softmax else "logit",
    )  # fmt: skip
    np.testing.assert_allclose(ours.scores[:, 1:], theirs, **CLOSE)  # theirs has no point for the whole image


@pytest.mark.parametrize(("order", "quantus_order"), [("most_first", "morf"), ("least_first", "lerf")])
def test_region_perturbation(order, quantus_order):
    metric = quantus.RegionPerturbation(
        patch_size=2, order=quantus_order, regions_evaluation=16, perturb_baseline="black", **PLAIN
    )
    theirs = np.asarray(score(metric, softmax=False))
    ours = perturbation_curve(
        apply_fn, PARAMS, jnp.asarray(IMAGES), LABELS, ATTRIBUTIONS, patch_size=2, order=order, output="logit",
        baselines=BLACK,
    ).scores  # fmt: skip
    np.testing.assert_allclose((ours[:, :1] - ours)[:, 1:], theirs, **CLOSE)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (pointing_game, "PointingGame"),
        (lambda *given: relevance_mass_accuracy(*given, relevance="signed"), "RelevanceMassAccuracy"),
        (relevance_rank_accuracy, "RelevanceRankAccuracy"),
    ],
)
def test_relevance_inside_masks(ours, theirs):
    metric = getattr(quantus, theirs)(**PLAIN)
    attributions = np.abs(ATTRIBUTIONS)  # Quantus's localisation metrics expect relevance that is not negative
    expected = score(metric, a_batch=first_channel(attributions), s_batch=MASKS[:, None])
    np.testing.assert_allclose(ours(attributions, MASKS), np.asarray(expected, float), **CLOSE)


def test_parameter_randomisation():
    """Quantus draws its own weights; ours is given these, step by step from the output down."""
    explain = lambda model, inputs, targets, **_: _torch_gradient_x_input(model, inputs, targets)
    metric = quantus.MPRT(layer_order="top_down", seed=3, **PLAIN)
    original = gradient_x_input(apply_fn, PARAMS, jnp.asarray(IMAGES), jnp.asarray(LABELS))
    theirs = score(metric, a_batch=first_channel(np.array(original)), explain_func=explain)
    wrapped = quantus.helpers.model.pytorch_model.PyTorchModel(Network(PARAMS).eval(), channel_first=True)
    checked = 0
    for name, model in wrapped.get_random_layer_generator(order="top_down", seed=3):
        fresh = {
            "conv": jnp.asarray(model.conv.weight.detach().numpy().transpose(2, 3, 1, 0)),
            "fc": jnp.asarray(model.fc.weight.detach().numpy().T),
        }
        ours = data_randomization_test(
            gradient_x_input, apply_fn, PARAMS, fresh, jnp.asarray(IMAGES), jnp.asarray(LABELS)
        )
        # ranks of float32 products: two near equals may change places, 1/64² of the correlation
        np.testing.assert_allclose(ours.signed, theirs[name], atol=1e-3)
        checked += 1
    assert checked == 2


def _torch_gradient_x_input(model, inputs, targets):
    inputs = torch.tensor(np.asarray(inputs), dtype=torch.float32, requires_grad=True)
    output = model(inputs).gather(1, torch.tensor(np.asarray(targets), dtype=torch.int64)[:, None]).sum()
    (gradient,) = torch.autograd.grad(output, inputs)
    return (gradient * inputs).detach().numpy()
