"""The rules of layer-wise relevance propagation: how one linear layer shares the relevance of its outputs.

Bach et al. (2015), "On Pixel-Wise Explanations for Non-Linear Classifier Decisions by Layer-Wise Relevance
Propagation", https://doi.org/10.1371/journal.pone.0130140 (ε, αβ); Montavon et al. (2017), "Explaining nonlinear
classification decisions with deep Taylor decomposition", https://arxiv.org/abs/1512.02479 (z⁺, w², z^B); Lapuschkin
et al. (2019), https://arxiv.org/abs/1902.10178 (flat); Montavon et al. (2019), "Layer-Wise Relevance Propagation: An
Overview", https://doi.org/10.1007/978-3-030-28954-6_10 (γ, composites); Andéol et al. (2021),
https://arxiv.org/abs/2106.13727 (γ for inputs of any sign); Kohlbrenner et al. (2020),
https://arxiv.org/abs/1910.09840 (composites).

A layer computes z_k = Σ_j x_j w_jk + b_k, and has relevance R_k. With s(z) = z + ε sign(z), sign(0) = 1:

    ε      R_j = Σ_k x_j w_jk / s(z_k) · R_k
    γ      the same with w + γ w⁺ and b + γ b⁺ where z_k > 0, w + γ w⁻ and b + γ b⁻ where z_k < 0 (⁺, ⁻ of the
           products x_j w_jk where inputs may be negative)
    αβ     R_j = Σ_k (α (x_j w_jk)⁺ / s(Σ_i (x_i w_ik)⁺ + b_k⁺) - β (x_j w_jk)⁻ / s(Σ_i (x_i w_ik)⁻ + b_k⁻)) R_k
    z⁺     αβ with α = 1, β = 0
    w²     R_j = Σ_k w_jk² / s(Σ_i w_ik² + b_k²) · R_k
    flat   R_j = Σ_k 1 / s(Σ_i 1) · R_k, over the weights that there are
    z^B    R_j = Σ_k (x_j w_jk - l_j w_jk⁺ - h_j w_jk⁻) / s(Σ_i (…)) · R_k for inputs in [l, h]

where b takes a share of z it takes its share of the relevance, which is not handed on.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from dl_core.errors import UsageError, unknown_name

STABILIZER = 1e-6

Number = Float[Array | np.ndarray, ""] | float
Bound = Float[Array | np.ndarray, "..."] | float  # broadcast to the inputs


class Epsilon(NamedTuple):
    """See `epsilon`."""

    epsilon: Number = STABILIZER


class Gamma(NamedTuple):
    """See `gamma`."""

    gamma: Number = 0.25


class AlphaBeta(NamedTuple):
    """See `alpha_beta`."""

    alpha: Number = 2.0
    beta: Number = 1.0


class ZPlus(NamedTuple):
    """See `z_plus`."""


class WSquare(NamedTuple):
    """See `w_square`."""


class Flat(NamedTuple):
    """See `flat`."""


class ZBox(NamedTuple):
    """See `z_box`."""

    low: Bound
    high: Bound


class PassThrough(NamedTuple):
    """See `pass_through`."""


Rule = Epsilon | Gamma | AlphaBeta | ZPlus | WSquare | Flat | ZBox | PassThrough
Rules = str | Rule | Mapping[str, Rule | str]


class Layer(NamedTuple):
    """What a rule sees of a linear layer.

    apply: (weight, inputs) -> outputs, linear in both, without bias.
    weight: with the scale of what follows folded in.
    ones: 1 for each weight that there is, 0 where the layout of the weight has a gap.
    inputs: of `apply`.
    nonnegative: the inputs are certainly not negative.
    bias: of the outputs.
    outputs: with bias.
    present: 1 for each input, 0 for padding; and the same times the square of the scale of the input.
    box: (low, high) of the values that the model's inputs may take -> those of the layer's inputs.
    """

    apply: Callable[[Array, Array], Array]
    weight: Array
    ones: Callable[[], Array]
    inputs: Array
    nonnegative: bool
    bias: Array
    outputs: Array
    present: Callable[[], Array]
    present_squared: Callable[[], Array]
    box: Callable[[Bound, Bound], tuple[Array, Array]]


def epsilon(epsilon: Number = STABILIZER) -> Epsilon:
    """LRP-ε: in proportion to the contributions; ε damps where they cancel (Bach et al., 2015, eq. 58).

    Args:
      epsilon: added to |z|, in units of the layer's outputs, >= 0; what it takes is lost. 0 is LRP-0.

    Raises:
      UsageError: negative.
    """
    return Epsilon(_at_least_zero("epsilon", epsilon))


def gamma(gamma: Number = 0.25) -> Gamma:
    """LRP-γ: favours contributions of the output's own sign (Montavon et al., 2019; any inputs: Andéol et al., 2021).

    Args:
      gamma: >= 0; 0 is LRP-0, and towards infinity it becomes z⁺ where the output is positive.

    Raises:
      UsageError: negative.
    """
    return Gamma(_at_least_zero("gamma", gamma))


def alpha_beta(alpha: Number = 2.0, beta: Number = 1.0) -> AlphaBeta:
    """LRP-αβ: positive and negative contributions apart (Bach et al., 2015, eq. 60).

    Args:
      alpha: weight of the positive ones.
      beta: of the negative ones, >= 0; alpha - beta = 1, so that relevance is conserved.

    Raises:
      UsageError: negative, or alpha - beta is not 1.
    """
    _at_least_zero("alpha", alpha)
    _at_least_zero("beta", beta)
    if not isinstance(alpha, Tracer) and not isinstance(beta, Tracer) and abs(alpha - beta - 1) > 1e-6:
        raise UsageError(f"alpha - beta must be 1, so that relevance is conserved; got {alpha} and {beta}")
    return AlphaBeta(alpha, beta)


def z_plus() -> ZPlus:
    """LRP-z⁺: in proportion to the positive contributions alone; αβ with α = 1, β = 0 (Montavon et al., 2017)."""
    return ZPlus()


def w_square() -> WSquare:
    """LRP-w²: in proportion to the squared weights, whatever the input (Montavon et al., 2017); for first layers."""
    return WSquare()


def flat() -> Flat:
    """LRP-flat: to all inputs of an output alike (Lapuschkin et al., 2019); for first layers."""
    return Flat()


def z_box(low: Bound, high: Bound) -> ZBox:
    """LRP-z^B: for inputs in a box, such as pixels (Montavon et al., 2017); for first layers.

    Args:
      low: the least value that an input may take, in the units of the inputs; broadcast to them.
      high: the greatest.

    Raises:
      UsageError: low above high.
    """
    if not isinstance(low, Tracer) and not isinstance(high, Tracer) and np.max(low) > np.min(high):
        low, high = np.asarray(low), np.asarray(high)  # by channel, say
        if low.shape != high.shape or np.any(low > high):
            raise UsageError(f"low must be at most high, and of its shape where they vary; got {low} and {high}")
    return ZBox(low, high)


def pass_through() -> PassThrough:
    """Relevance unchanged, for layers whose outputs have the shape of their inputs."""
    return PassThrough()


def epsilon_plus() -> dict[str, Rule]:
    """z⁺ for convolutions, ε for dense layers (Kohlbrenner et al., 2020)."""
    return {"convolution": ZPlus(), "dense": Epsilon()}


def epsilon_plus_flat() -> dict[str, Rule]:
    """`epsilon_plus` with the flat rule for the first layers."""
    return {"first": Flat(), **epsilon_plus()}


def epsilon_alpha2_beta1_flat() -> dict[str, Rule]:
    """α2β1 for convolutions, ε for dense layers, flat for the first layers (Kohlbrenner et al., 2020)."""
    return {"first": Flat(), "convolution": AlphaBeta(), "dense": Epsilon()}


def epsilon_gamma_box(low: Bound, high: Bound) -> dict[str, Rule]:
    """γ for convolutions, ε for dense layers, z^B for the first layers where they are convolutions.

    Args:
      low, high: of the inputs, see `z_box`.
    """
    return {"first_convolution": z_box(low, high), "convolution": Gamma(), "dense": Epsilon()}


BY_NAME: dict[str, Callable[[], Rule | dict[str, Rule]]] = {
    "epsilon": epsilon,
    "gamma": gamma,
    "alpha_beta": alpha_beta,
    "z_plus": z_plus,
    "w_square": w_square,
    "flat": flat,
    "pass_through": pass_through,
    "epsilon_plus": epsilon_plus,
    "epsilon_plus_flat": epsilon_plus_flat,
    "epsilon_alpha2_beta1_flat": epsilon_alpha2_beta1_flat,
}
PLACES = ("first", "first_convolution", "convolution", "dense", "default")
_WITH_BOX = ("z_box", "epsilon_gamma_box")


def as_mapping(rules: Rules) -> dict[str, Rule]:
    """Place or layer's name -> rule, from whatever form the user chose.

    Args:
      rules: a rule, the name of a rule or of a composite, or a mapping of them.

    Returns:
      Mapping to rules.

    Raises:
      UsageError: unknown name, or a value that is no rule.
    """
    if isinstance(rules, str):
        rules = _named(rules)
    if isinstance(rules, Mapping):
        return {place: _as_rule(place, rule) for place, rule in rules.items()}
    return {"default": _as_rule("default", rules)}


def _named(name: str) -> Rule | dict[str, Rule]:
    if name in _WITH_BOX:
        raise UsageError(f"{name!r} needs the bounds of the inputs: rules={name}(low, high)")
    if name not in BY_NAME:
        raise unknown_name("rule", name, BY_NAME)
    return BY_NAME[name]()


def _as_rule(place: str, rule: Rule | str | object) -> Rule:
    if isinstance(rule, str):
        rule = _named(rule)
    if not isinstance(rule, Rule):
        raise UsageError(
            f"rules[{place!r}] must be a rule such as epsilon() or its name, got {type(rule).__name__}; "
            "composites cannot be the value of a place"
        )
    return rule


def _at_least_zero(name: str, value: Number) -> Number:
    if not isinstance(value, Tracer) and not jnp.ndim(value) and not value >= 0:
        raise UsageError(f"{name} must be at least 0, got {value}")
    return value


def share(rule: Rule, layer: Layer, relevance: Float[Array, "..."]) -> Float[Array, "..."]:
    """The relevance of a layer's inputs from that of its outputs.

    Args:
      rule: any.
      layer: see `Layer`.
      relevance: of the outputs, in at least float32.

    Returns:
      Of the shape of the inputs.

    Raises:
      UsageError: `pass_through` where the shapes differ.
    """
    w, x = layer.weight, layer.inputs
    match rule:
        case Epsilon(eps):
            _, back = _forward(layer, w, x)
            return x * back(_divide(relevance, layer.outputs, eps))
        case Gamma(factor):
            factor = jnp.asarray(factor, w.dtype)
            rising, falling = w + factor * _positive(w), w + factor * _negative(w)
            b, z = layer.bias, layer.outputs
            up = _signed(layer, rising, falling, b + factor * _positive(b), relevance * (z > 0))
            down = _signed(layer, falling, rising, b + factor * _negative(b), relevance * (z < 0))
            return up + down
        case AlphaBeta(alpha, beta):
            up = _signed(layer, _positive(w), _negative(w), _positive(layer.bias), relevance)
            down = _signed(layer, _negative(w), _positive(w), _negative(layer.bias), relevance)
            return jnp.asarray(alpha) * up - jnp.asarray(beta) * down
        case ZPlus():
            return _signed(layer, _positive(w), _negative(w), _positive(layer.bias), relevance)
        case WSquare():
            present = layer.present_squared()
            z, back = _forward(layer, w**2, present)
            return present * back(_divide(relevance, z + layer.bias**2))
        case Flat():
            present = layer.present()
            z, back = _forward(layer, layer.ones(), present)
            return present * back(_divide(relevance, z))
        case ZBox(low, high):
            low, high = layer.box(low, high)
            z, back = _forward(layer, w, x)
            z_low, back_low = _forward(layer, _positive(w), low)
            z_high, back_high = _forward(layer, _negative(w), high)
            divided = _divide(relevance, z - z_low - z_high)  # the biases of the three cancel
            return x * back(divided) - low * back_low(divided) - high * back_high(divided)
        case PassThrough():
            if relevance.shape != x.shape:
                raise UsageError(
                    f"pass_through needs a layer whose outputs have the shape of its inputs, got {list(x.shape)} -> "
                    f"{list(relevance.shape)}"
                )
            return relevance


def stabilized(z: Float[Array, "..."], eps: Number = STABILIZER) -> Float[Array, "..."]:
    """z + eps sign(z), with sign(0) = 1: never zero."""
    return z + jnp.asarray(eps, z.dtype) * jnp.where(z < 0, -1, 1).astype(z.dtype)


def _divide(relevance: Array, z: Array, eps: Number = STABILIZER) -> Array:
    return relevance / stabilized(z.astype(relevance.dtype), eps)


def _forward(layer: Layer, weight: Array, x: Array) -> tuple[Array, Callable[[Array], Array]]:
    """The outputs without bias, and what takes something of their shape back to the inputs."""
    outputs, back = jax.vjp(lambda value: layer.apply(weight, value), x)
    return outputs, lambda divided: back(divided.astype(outputs.dtype))[0]


def _signed(layer: Layer, for_positive: Array, for_negative: Array, bias: Array, relevance: Array) -> Array:
    """Shares by contributions whose weights depend on the sign of the input."""
    if layer.nonnegative:
        z, back = _forward(layer, for_positive, layer.inputs)
        return layer.inputs * back(_divide(relevance, z + bias))
    above, below = _positive(layer.inputs), _negative(layer.inputs)
    z_above, back_above = _forward(layer, for_positive, above)
    z_below, back_below = _forward(layer, for_negative, below)
    divided = _divide(relevance, z_above + z_below + bias)
    return above * back_above(divided) + below * back_below(divided)


def _positive(values: Array) -> Array:
    return jnp.maximum(values, 0)


def _negative(values: Array) -> Array:
    return jnp.minimum(values, 0)
