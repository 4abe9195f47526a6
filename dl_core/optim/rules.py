"""How each optimiser turns a gradient into a step, before the learning rate.

One function per optimiser; its keyword arguments are that optimiser's options. With g the gradient, θ the parameters
and η the learning rate:

    sgd           θ -= η g
    momentum      v = β v + g;  θ -= η v          Polyak (1964); η stands outside v, as in PyTorch, so that a change
                                                  of η acts at once. At constant η this is v = β v - η g; θ += v.
    nesterov      v = β v + g;  θ -= η (g + β v)  Sutskever et al. (2013); θ are the look-ahead points, where g is taken
    adagrad       s += g²;  θ -= η g / (√s + ε)   Duchi et al. (2011)
    adadelta      Zeiler (2012), https://arxiv.org/abs/1212.5701; η = 1 in the paper
    rmsprop       n = ρ n + (1-ρ) g²;  θ -= η g / √(n + ε)         Tieleman, Hinton (2012)
    rmsprop_norm  e = ρ e + (1-ρ) ‖g‖²;  θ -= η g / √(e + ε)       course notes, eq. 22
    adam          m = β₁ m + (1-β₁) g;  n = β₂ n + (1-β₂) g²;  θ -= η m/(1-β₁^t) / (√(n/(1-β₂^t)) + ε)
                                                  Kingma, Ba (2015), https://arxiv.org/abs/1412.6980
    adamw         adam with decoupled weight decay
    muon          v = β v + g;  θ -= η √max(1, m/n) U Vᵀ, of the SVD of g + β v, for kernels n × m; adam for the rest.
                  Jordan (2024), https://kellerjordan.github.io/posts/muon

Squares, roots and quotients are per coordinate; ‖g‖ is the norm of the whole gradient, over all parameters. State has
the parameters' dtype: with bfloat16 parameters an average with a factor above 0.996 rounds to one that never forgets.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from jaxtyping import Array, Float, PyTree

from dl_core.optim.decay import decay_mask
from dl_core.optim.options import Number, in_interval


class AccumulatedSquares(NamedTuple):
    """State of Adagrad. sum_of_squares: per coordinate, shaped as the parameters."""

    sum_of_squares: PyTree[Float[Array, "..."]]


def scale_by_accumulated_squares(
    *, eps: Number = 1e-10, initial_accumulator: Number = 0.0
) -> optax.GradientTransformation:
    """Adagrad's g / (√Σg² + ε), per coordinate, with ε outside the root as in the paper and PyTorch.

    (Optax's `scale_by_rss` has ε inside the root and starts its sum at 0.1.)

    Duchi, Hazan, Singer (2011), "Adaptive Subgradient Methods", https://jmlr.org/papers/v12/duchi11a.html.

    Args:
      eps: ε, > 0.
      initial_accumulator: where the sum of squares starts, >= 0.

    Returns:
      An Optax transformation; updates keep the shapes of the gradients.

    Raises:
      UsageError: a value out of its range.
    """
    in_interval("eps", eps, "(0, inf)")
    in_interval("initial_accumulator", initial_accumulator, "[0, inf)")

    def init(params: Any) -> AccumulatedSquares:
        return AccumulatedSquares(optax.tree.full_like(params, initial_accumulator))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, AccumulatedSquares]:
        del params
        sums = jax.tree.map(lambda s, g: s + jnp.square(g), state.sum_of_squares, updates)
        return jax.tree.map(lambda g, s: g / (jnp.sqrt(s) + eps), updates, sums), AccumulatedSquares(sums)

    return optax.GradientTransformation(init, update)


class NormRms(NamedTuple):
    """State of RMSProp on the norm. mean_square_norm: a scalar, the moving average of ‖g‖²."""

    mean_square_norm: Float[Array, ""]


def scale_by_norm_rms(*, rho: Number = 0.99, eps: Number = 1e-8) -> optax.GradientTransformation:
    """RMSProp in the form g / √(EMA(‖g‖²) + ε): one scale for the whole gradient (course notes, eq. 22).

    The direction of the gradient is kept, which the per-coordinate form does not do. The average starts at 0.

    Args:
      rho: share of the old average, in [0, 1).
      eps: ε inside the root, > 0.

    Returns:
      An Optax transformation; updates keep the shapes of the gradients.

    Raises:
      UsageError: a value out of its range.
    """
    in_interval("rho", rho, "[0, 1)")
    in_interval("eps", eps, "(0, inf)")

    def init(params: Any) -> NormRms:
        dtype = jnp.result_type(jnp.float32, *jax.tree.leaves(params))
        return NormRms(jnp.zeros((), dtype))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, NormRms]:
        del params
        mean = state.mean_square_norm
        square_norm = sum((jnp.sum(jnp.square(g.astype(mean.dtype))) for g in jax.tree.leaves(updates)), 0.0)
        mean = rho * mean + (1 - rho) * square_norm
        scale = jax.lax.rsqrt(mean + eps)
        return jax.tree.map(lambda g: g * scale.astype(g.dtype), updates), NormRms(mean)

    return optax.GradientTransformation(init, update)


def _sgd() -> optax.GradientTransformation:
    return optax.identity()


def _momentum(*, momentum: Number = 0.9) -> optax.GradientTransformation:
    in_interval("momentum", momentum, "[0, 1)")
    return optax.trace(momentum)


def _nesterov(*, momentum: Number = 0.9) -> optax.GradientTransformation:
    in_interval("momentum", momentum, "[0, 1)")
    return optax.trace(momentum, nesterov=True)


def _adadelta(*, rho: Number = 0.9, eps: Number = 1e-6) -> optax.GradientTransformation:
    in_interval("rho", rho, "[0, 1)")
    in_interval("eps", eps, "(0, inf)")
    return optax.scale_by_adadelta(rho, eps)


def _rmsprop(
    *, rho: Number = 0.99, eps: Number = 1e-8, eps_in_sqrt: bool = True, momentum: Number = 0.0
) -> optax.GradientTransformation:
    in_interval("rho", rho, "[0, 1)")
    in_interval("eps", eps, "(0, inf)")
    in_interval("momentum", momentum, "[0, 1)")
    scaled = optax.scale_by_rms(rho, eps, eps_in_sqrt=eps_in_sqrt)
    return optax.chain(scaled, optax.trace(momentum)) if momentum else scaled


def _adam(*, b1: Number = 0.9, b2: Number = 0.999, eps: Number = 1e-8) -> optax.GradientTransformation:
    in_interval("b1", b1, "[0, 1)")
    in_interval("b2", b2, "[0, 1)")
    in_interval("eps", eps, "(0, inf)")
    return optax.scale_by_adam(b1, b2, eps)


def _muon(
    *, momentum: Number = 0.95, ns_steps: int = 5, adam_scale: Number = 1.0, b1: Number = 0.9, b2: Number = 0.999
) -> optax.GradientTransformation:
    """adam_scale: Adam's learning rate, of everything that is no kernel, as a share of Muon's."""
    in_interval("momentum", momentum, "[0, 1)")
    in_interval("ns_steps", ns_steps, "[1, inf)", integer=True)
    in_interval("adam_scale", adam_scale, "[0, inf)")
    in_interval("b1", b1, "[0, 1)")
    in_interval("b2", b2, "[0, 1)")

    def as_matrices(updates: Any) -> Any:
        """A kernel [..., inputs, outputs] as a matrix: its last axis against all others."""
        return jax.tree.map(
            lambda leaf: optax.contrib.MuonDimensionNumbers(tuple(range(leaf.ndim - 1)), leaf.ndim - 1), updates
        )

    def widen(leaf: Array) -> Array:
        return leaf * max(1.0, leaf.shape[-1] / (leaf.size // leaf.shape[-1])) ** 0.5

    orthogonal = optax.contrib.scale_by_muon(
        beta=0.0, nesterov=False, ns_steps=ns_steps, weight_dimension_numbers=as_matrices
    )
    by_width = optax.stateless(lambda updates, _: jax.tree.map(widen, updates))
    rules: dict[Any, Any] = {
        "kernel": optax.chain(optax.trace(momentum, nesterov=True), orthogonal, by_width),
        "other": optax.chain(optax.scale_by_adam(b1, b2), optax.scale(adam_scale)),
    }
    label = lambda kernel: "kernel" if kernel else "other"
    return optax.partition(rules, lambda params: jax.tree.map(label, decay_mask(params, "kernels")))


RULES: dict[str, Callable[..., optax.GradientTransformation]] = {
    "sgd": _sgd,
    "momentum": _momentum,
    "nesterov": _nesterov,
    "adagrad": scale_by_accumulated_squares,
    "adadelta": _adadelta,
    "rmsprop": _rmsprop,
    "rmsprop_norm": scale_by_norm_rms,
    "adam": _adam,
    "adamw": _adam,
    "muon": _muon,
}
