"""Relevance is Zennit's: every rule and every composite, on networks with the same weights, in float64.

Zennit's rules and ours have the same stabiliser, so nothing but the order of summation differs: 1e-10 of the largest
relevance, which a denominator near zero can magnify from 1e-16. Average pooling is a sum and a scale for us, with the
stabiliser added to the sum, and one layer for Zennit, with the stabiliser added to the mean; Zennit is given a
stabiliser divided by the number of values in a mean, which is the same.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dl_core.explain import lrp_rules
from dl_core.explain.lrp import lrp

torch = pytest.importorskip("torch")
from torchvision_on_cpu import import_zoo  # noqa: E402

zoo, _ = import_zoo()  # Zennit imports torchvision
pytest.importorskip("zennit")
import lrp_networks  # noqa: E402
from lrp_networks import POOLED, TARGETS, Add, case, images, to_torch  # noqa: E402
from zennit import composites, rules  # noqa: E402
from zennit.attribution import Gradient  # noqa: E402
from zennit.canonizers import SequentialMergeBatchNorm  # noqa: E402
from zennit.torchvision import ResNetCanonizer  # noqa: E402
from zennit.types import AvgPool, Convolution, Linear  # noqa: E402
from zoo_comparison import CLASSES, fill_at_random, images_of, our_model  # noqa: E402

TOLERANCE = 1e-10
LOW, HIGH = -1.0, 1.5
slow = lambda *values: pytest.param(*values, marks=pytest.mark.slow)

# One rule for all convolutions and dense layers: ours, Zennit's.
RULES = {
    "epsilon": (lrp_rules.epsilon(), rules.Epsilon()),
    "epsilon 0.1": (lrp_rules.epsilon(epsilon=0.1), rules.Epsilon(0.1)),
    "gamma": (lrp_rules.gamma(), rules.Gamma()),
    "gamma 2": (lrp_rules.gamma(gamma=2.0), rules.Gamma(2.0)),
    "alpha_beta": (lrp_rules.alpha_beta(), rules.AlphaBeta()),
    "alpha_beta 1.5": (lrp_rules.alpha_beta(alpha=1.5, beta=0.5), rules.AlphaBeta(1.5, 0.5)),
    "z_plus": (lrp_rules.z_plus(), rules.ZPlus()),
    "w_square": (lrp_rules.w_square(), rules.WSquare()),
    "flat": (lrp_rules.flat(), rules.Flat()),
    "z_box": (lrp_rules.z_box(LOW, HIGH), rules.ZBox(LOW, HIGH)),
}
# ours, Zennit's
COMPOSITES = {
    "epsilon_plus": (lrp_rules.epsilon_plus(), composites.EpsilonPlus),
    "epsilon_plus_flat": (lrp_rules.epsilon_plus_flat(), composites.EpsilonPlusFlat),
    "epsilon_gamma_box": (
        lrp_rules.epsilon_gamma_box(LOW, HIGH),
        lambda **o: composites.EpsilonGammaBox(LOW, HIGH, **o),
    ),
    "epsilon_alpha2_beta1_flat": (lrp_rules.epsilon_alpha2_beta1_flat(), composites.EpsilonAlpha2Beta1Flat),
}


def zennit_relevance(network, inputs, target, make_composite, pooled=1, canonizers=None):
    """Relevance [batch, height, width, channels], seeded with the explained logit; pooled: values in a mean."""
    layer_map = [(Add, rules.Norm()), (AvgPool, rules.Norm(stabilizer=1e-6 / pooled))]
    composite = make_composite(layer_map=layer_map, canonizers=canonizers or [SequentialMergeBatchNorm()])
    inputs = to_torch(inputs).requires_grad_()
    with Gradient(network, composite) as attributor:
        onehot = lambda output: torch.nn.functional.one_hot(torch.from_numpy(target), output.shape[1])
        _, relevance = attributor(inputs, lambda output: output * onehot(output))
    return lrp_networks.from_torch(relevance)


def everywhere(rule):
    """Zennit's composite of one rule for all layers with weights; for the others what its own composites have."""
    return lambda layer_map, canonizers: composites.LayerMapComposite(
        layer_map + composites.layer_map_base() + [(Linear, rule)], canonizers=canonizers
    )


def assert_equal_relevance(expected, apply_fn, variables, inputs, target, ours, tolerance=TOLERANCE):
    relevance = lrp(apply_fn, variables, jnp.asarray(inputs), jnp.asarray(target), rules=ours)
    assert relevance.dtype == inputs.dtype
    assert np.abs(expected).max() > 1e-3  # there is something to compare
    np.testing.assert_allclose(relevance, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def assert_case(name, ours, theirs):
    with jax.enable_x64(True):
        network, apply_fn, variables = case(name)
        expected = zennit_relevance(network, images(), TARGETS, theirs, pooled=POOLED[name])
        assert_equal_relevance(expected, apply_fn, variables, images(), TARGETS, ours)


@pytest.mark.parametrize("rule", RULES)
def test_one_rule_everywhere(rule):
    ours, theirs = RULES[rule]
    assert_case("plain", ours, everywhere(theirs))


@pytest.mark.parametrize(
    "composite", ["epsilon_plus_flat", "epsilon_gamma_box", slow("epsilon_plus"), slow("epsilon_alpha2_beta1_flat")]
)
def test_composites_with_batch_norm_and_skips(composite):
    assert_case("residual", *COMPOSITES[composite])


@pytest.mark.parametrize(
    ("name", "composite"),
    [
        ("batch_norm", "epsilon_gamma_box"),
        ("concatenation", "epsilon_plus"),
        ("grouped", "epsilon_plus_flat"),
        slow("batch_norm", "epsilon_plus_flat"),
        slow("batch_norm", "epsilon_alpha2_beta1_flat"),
        slow("concatenation", "epsilon_gamma_box"),
        slow("concatenation", "epsilon_alpha2_beta1_flat"),
        slow("grouped", "epsilon_gamma_box"),
        slow("grouped", "epsilon_alpha2_beta1_flat"),
    ],
)
def test_composites_with_pooling_concatenation_groups_and_dilation(name, composite):
    assert_case(name, *COMPOSITES[composite])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["batch_norm", "residual", "concatenation", "grouped"])
@pytest.mark.parametrize("rule", RULES)
def test_every_rule_on_every_network(name, rule):
    ours, theirs = RULES[rule]
    assert_case(name, ours, everywhere(theirs))


def test_rules_by_layer():
    """Names go before kinds, and kinds before the default."""
    ours = {
        "conv2": lrp_rules.gamma(gamma=0.1),
        "fc2": lrp_rules.epsilon(epsilon=0.3),
        "convolution": lrp_rules.w_square(),
        "default": lrp_rules.z_plus(),
    }
    by_name = [(("conv2",), rules.Gamma(0.1)), (("fc2",), rules.Epsilon(0.3))]

    def theirs(layer_map, canonizers):
        kinds = layer_map + composites.layer_map_base() + [(Convolution, rules.WSquare()), (Linear, rules.ZPlus())]
        return composites.NameLayerMapComposite(name_map=by_name, layer_map=kinds, canonizers=canonizers)

    assert_case("plain", ours, theirs)


def test_a_box_of_a_range_for_each_channel():
    """As of images normalised channel by channel."""
    low, high = np.array([-1.0, -1.5, -2.0, -1.2]), np.array([1.5, 2.0, 1.6, 1.7])
    theirs = lambda **options: composites.EpsilonGammaBox(
        torch.from_numpy(low)[None, :, None, None], torch.from_numpy(high)[None, :, None, None], **options
    )
    assert_case("plain", lrp_rules.epsilon_gamma_box(low, high), theirs)


def test_a_mean_is_a_layer_of_its_own():
    """The 1/n of a mean belongs to the pooling, not to the weights or the box of the dense layer after it.

    By hand: the mean m of four pixels of one channel, m w + b with w = (2, -1), b = (1, 1/2), one logit explained.
    """
    x = jnp.array([1.0, 2.0, 3.0, 0.5]).reshape(1, 2, 2, 1)
    weights, biases = jnp.array([[2.0, -1.0]]), jnp.array([1.0, 0.5])
    apply_fn = lambda params, images: images.mean(axis=(1, 2)) @ params[0] + params[1][None]
    output = apply_fn((weights, biases), x)[0, 0]
    relevance = lrp(apply_fn, (weights, biases), x, 0, rules="w_square")
    np.testing.assert_allclose(relevance, output * 4 / (4 + 1) * x / x.sum(), rtol=1e-5)  # the bias takes b² of w² + b²


# Two stabilisers instead of one in VGG's adaptive pooling, by rows and by columns for us: 1e-6 of values near 1.
@pytest.mark.parametrize(
    ("name", "size", "pooled", "tolerance"), [slow("resnet18", 33, 4, 1e-10), slow("vgg11_bn", 32, 1, 1e-5)]
)
def test_whole_networks_of_torchvision(name, size, pooled, tolerance):
    """The project's model with all of the network's weights, under the composite ε-z⁺-flat."""
    fields = {"hidden": 32} if name.startswith("vgg") else {}
    inputs, target = images_of(size, "float64"), np.array([2, 5])
    with jax.enable_x64(True):
        with torch.device("meta"):
            network = getattr(zoo, name)(weights=None, num_classes=CLASSES)
            if fields:  # 4096 hidden units prove no more than 32
                network.classifier = torch.nn.Sequential(
                    torch.nn.Linear(512 * 49, 32), torch.nn.ReLU(), torch.nn.Identity(), torch.nn.Linear(32, 32),
                    torch.nn.ReLU(), torch.nn.Identity(), torch.nn.Linear(32, CLASSES),
                )  # fmt: skip
        network = fill_at_random(network, "float64")
        model, variables = our_model(name, network, "float64", **fields)
        lrp_networks.without_epsilon(network)
        canonizers = [ResNetCanonizer()] if name.startswith("resnet") else None
        expected = zennit_relevance(network, inputs, target, composites.EpsilonPlusFlat, pooled, canonizers)
        assert_equal_relevance(
            expected, model.apply, variables, inputs, target, "epsilon_plus_flat", tolerance=tolerance
        )
