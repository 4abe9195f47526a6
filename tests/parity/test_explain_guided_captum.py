"""Guided backpropagation, deconvnet and three rules of LRP are Captum's, on networks with the same weights, in float64.

Nothing differs but the order of summation, so the tolerance is 1e-12 of the largest attribution.
"""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dl_core.explain import lrp_rules
from dl_core.explain.guided import deconvnet, guided_backprop
from dl_core.explain.lrp import lrp

torch = pytest.importorskip("torch")
pytest.importorskip("captum")
from captum.attr import LRP, Deconvolution, GuidedBackprop  # noqa: E402
from captum.attr._utils import lrp_rules as captum_rules  # noqa: E402
from lrp_networks import NAMES, TARGETS, case, from_torch, images, to_torch  # noqa: E402

slow = lambda *values: pytest.param(*values, marks=pytest.mark.slow)
METHODS = {"guided_backprop": (guided_backprop, GuidedBackprop), "deconvnet": (deconvnet, Deconvolution)}


def captum_attributions(method, inputs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it sets hooks on ReLU
        return from_torch(method.attribute(to_torch(inputs).requires_grad_(), torch.from_numpy(TARGETS)))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "name", ["plain", "residual", *(slow(name) for name in NAMES if name not in ("plain", "residual"))]
)
def test_guided_backprop_and_deconvnet(name, method):
    """`jnp.maximum(x, 0)` in "plain", `jax.nn.relu` and Flax's elsewhere."""
    ours, theirs = METHODS[method]
    with jax.enable_x64(True):
        network, apply_fn, variables = case(name)
        expected = captum_attributions(theirs(network), images())
        attributions = ours(apply_fn, variables, jnp.asarray(images()), jnp.asarray(TARGETS))
        assert attributions.dtype == "float64"
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(attributions, expected, rtol=0, atol=1e-12 * np.abs(expected).max())


# Where the definitions coincide. Captum's γ rule is that of the paper, for inputs >= 0, and leaves the biases as they
# are where Zennit's and ours add γ b⁺: hence positive images and no biases. On a negative logit Zennit's generalised γ
# is another rule, hence ε for the last layer. Captum's α1β0 with positive inputs is z⁺.
RULES = {
    "epsilon": (lrp_rules.epsilon(), captum_rules.EpsilonRule, True),
    "gamma": (lrp_rules.gamma(gamma=0.5), lambda: captum_rules.GammaRule(0.5), False),
    "z_plus": (lrp_rules.z_plus(), captum_rules.Alpha1_Beta0_Rule, False),
}


@pytest.mark.parametrize("rule", RULES)
def test_three_rules_of_lrp(rule):
    ours, make_theirs, biases = RULES[rule]
    by_layer = {"fc2": lrp_rules.epsilon(), "default": ours}
    with jax.enable_x64(True):
        network, apply_fn, variables = case("plain", biases=biases)
        inputs = images() - images().min()
        for name, layer in network.named_children():
            # Captum knows no reshaping and has ε for max-pooling, whose gradient is ours: ε -> 0 makes it that
            layer.rule = captum_rules.EpsilonRule(1e-30)
            if isinstance(layer, torch.nn.ReLU):
                del layer.rule
            elif isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
                layer.rule = make_theirs() if name != "fc2" else captum_rules.EpsilonRule()
                layer.rule.STABILITY_FACTOR = 1e-6  # ours; Captum's is 1e-9
        expected = captum_attributions(LRP(network), inputs)
        relevance = lrp(apply_fn, variables, jnp.asarray(inputs), jnp.asarray(TARGETS), rules=by_layer)
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(relevance, expected, rtol=0, atol=1e-10 * np.abs(expected).max())
