"""Losses for regression: of values, and of angles, which have no beginning and no end.

Those of values work element by element, so predictions of shape [batch] give one loss per example. What Optax has goes
by Optax's name:

    squared_error(predictions, targets)       (p - t)²
    l2_loss(predictions, targets)             (p - t)² / 2
    huber_loss(predictions, targets, delta)   (p - t)² / 2 up to delta, then delta (|p - t| - delta / 2)
    log_cosh(predictions, targets)            log cosh(p - t)

An angle is predicted as a vector η of two numbers, whose direction is the angle: an output that can turn through 360
degrees without a jump, as a single number cannot. All angles are in degrees.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from optax.losses import huber_loss, l2_loss, log_cosh, squared_error

from dl_core.errors import UsageError

__all__ = [
    "angle_of",
    "circular_distance",
    "cosine_angle_loss",
    "gaussian_nll",
    "huber_loss",
    "l1",
    "l2_loss",
    "log_cosh",
    "poisson_nll",
    "smooth_l1",
    "squared_error",
    "unit_vector",
    "von_mises_nll",
]

AnyArray = Array | np.ndarray


def l1(predictions: Float[AnyArray, "*batch"], targets: Float[AnyArray, "*batch"]) -> Float[Array, "*batch"]:
    """|p - t|, element by element.

    Args:
      predictions: any shape.
      targets: the same shape.

    Returns:
      >= 0; its gradient at p = t is 0.
    """
    return jnp.abs(jnp.asarray(predictions) - targets)


def smooth_l1(
    predictions: Float[AnyArray, "*batch"], targets: Float[AnyArray, "*batch"], *, beta: float | int = 1.0
) -> Float[Array, "*batch"]:
    """(p - t)² / (2 beta) up to |p - t| = beta, then |p - t| - beta / 2: the Huber loss over beta.

    Girshick (2015), "Fast R-CNN", https://arxiv.org/abs/1504.08083, eq. 3, has beta = 1; `beta` as in PyTorch.

    Args:
      predictions: any shape.
      targets: the same shape.
      beta: where the parabola becomes a line, >= 0; with 0 it is `l1`.

    Returns:
      >= 0, element by element.

    Raises:
      UsageError: a negative beta.
    """
    if beta < 0:
        raise UsageError(f"beta must be at least 0, got {beta}")
    if beta == 0:
        return l1(predictions, targets)
    return huber_loss(jnp.asarray(predictions), jnp.asarray(targets), delta=beta) / beta


def gaussian_nll(
    means: Float[AnyArray, "*batch"], log_variances: Float[AnyArray, "*batch"], targets: Float[AnyArray, "*batch"]
) -> Float[Array, "*batch"]:
    """Heteroscedastic loss: the model says how uncertain it is, ½ (log σ² + (t - μ)² / σ²) + ½ log 2π.

    Nix, Weigend (1994), "Estimating the mean and variance of the target probability distribution"; Kendall, Gal (2017),
    https://arxiv.org/abs/1703.04977, eq. 8, for predicting log σ², which needs no bound below.

    Args:
      means: μ, any shape.
      log_variances: log σ², the same shape.
      targets: the same shape.

    Returns:
      Negative log-density in nats, element by element; below log σ² = -40 it goes on as its tangent, which is finite.
    """
    log_variances = jnp.asarray(log_variances)
    squares = squared_error(jnp.asarray(means), jnp.asarray(targets))
    return 0.5 * (log_variances + squares * _finite_exp(-log_variances) + np.log(2 * np.pi))


def poisson_nll(
    log_rates: Float[AnyArray, "*batch"], targets: Float[AnyArray, "*batch"], *, full: bool = False
) -> Float[Array, "*batch"]:
    """For counts: the model says log λ, the loss is λ - y log λ (+ log y!).

    `full` as in PyTorch, whose Stirling formula it is not: the last term is exact.

    Args:
      log_rates: log λ, any shape.
      targets: counts y >= 0, the same shape.
      full: whether to add log y!, which does not depend on the prediction.

    Returns:
      Negative log-probability in nats, element by element; above log λ = 40 it goes on as its tangent, which is finite.
    """
    log_rates, targets = jnp.asarray(log_rates), jnp.asarray(targets)
    loss = _finite_exp(log_rates) - targets * log_rates
    return loss + jax.scipy.special.gammaln(targets + 1) if full else loss


def _finite_exp(x: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """exp up to 40, then its tangent: no product with a square of 1e4 leaves float32, and the way back is downhill."""
    return jnp.exp(jnp.minimum(x, 40.0)) * (1 + jnp.maximum(x - 40.0, 0.0))


def circular_distance(a: Float[AnyArray, "*batch"], b: Float[AnyArray, "*batch"]) -> Float[Array, "*batch"]:
    """The shorter way around between two angles: 2 degrees between 359 and 1.

    Args:
      a: degrees, any real number.
      b: degrees.

    Returns:
      Degrees in [0, 180].
    """
    return jnp.abs((jnp.asarray(a) - b + 180) % 360 - 180)


def unit_vector(degrees: Float[AnyArray, "*batch"]) -> Float[Array, "*batch 2"]:
    """(cos θ, sin θ) of angles in degrees."""
    radians = jnp.deg2rad(jnp.asarray(degrees))
    return jnp.stack([jnp.cos(radians), jnp.sin(radians)], axis=-1)


def angle_of(vectors: Float[AnyArray, "*batch 2"]) -> Float[Array, "*batch"]:
    """The direction of vectors of any length, in degrees in [0, 360)."""
    vectors = jnp.asarray(vectors)
    degrees = jnp.rad2deg(jnp.arctan2(vectors[..., 1], vectors[..., 0])) % 360
    return jnp.where(degrees < 360, degrees, 0)  # -1e-6 % 360 rounds to 360


def cosine_angle_loss(
    vectors: Float[AnyArray, "*batch 2"], degrees: Float[AnyArray, "*batch"], *, eps: float = 1e-6
) -> Float[Array, "*batch"]:
    """1 - cos Δ, Δ the angle between a predicted direction and the true one; about Δ²/2 radians² when small.

    The length of the vector does not matter, and the gradient is the steeper the shorter it is.

    Args:
      vectors: predicted directions, of any length.
      degrees: the true angle.
      eps: least length divided by, > 0: keeps the gradient finite at the origin.

    Returns:
      One loss per example in [0, 2]; 1 for the vector (0, 0).
    """
    vectors = jnp.asarray(vectors)
    along = jnp.sum(vectors * unit_vector(degrees), axis=-1)
    return 1 - along / jnp.sqrt(jnp.maximum(jnp.sum(vectors**2, axis=-1), eps**2))


def von_mises_nll(vectors: Float[AnyArray, "*batch 2"], degrees: Float[AnyArray, "*batch"]) -> Float[Array, "*batch"]:
    """Negative log-density of the von Mises distribution with natural parameter η: log 2π I0(|η|) - η · (cos θ, sin θ).

    The direction of η is the predicted angle, its length the concentration κ: how sure the model is. Mardia, Jupp
    (2000), *Directional Statistics*, §3.5.4.

    Args:
      vectors: η.
      degrees: the true angle θ.

    Returns:
      One loss per example, in nats (density per radian); log 2π for the vector (0, 0).
    """
    vectors = jnp.asarray(vectors)
    squares = jnp.sum(vectors**2, axis=-1)
    at_zero = squares == 0  # the root has no gradient there, and the loss has none in it
    concentration = jnp.where(at_zero, 0.0, jnp.sqrt(jnp.where(at_zero, 1.0, squares)))
    log_i0 = jnp.log(jax.scipy.special.i0e(concentration)) + concentration
    return np.log(2 * np.pi) + log_i0 - jnp.sum(vectors * unit_vector(degrees), axis=-1)
