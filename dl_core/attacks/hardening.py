"""Adversarial training: examples made inside the training loss, the loss of TRADES, and the update of free training.

    madry    min_θ E max_{‖δ‖ ≤ ε} L(f(x + δ), y)
             Madry et al. (2018), https://arxiv.org/abs/1706.06083, eq. 2.1
    trades   min_θ E [L(f(x), y) + β max_{‖δ‖ ≤ ε} KL(f(x) ‖ f(x + δ))]
             Zhang et al. (2019), https://arxiv.org/abs/1901.08573, eq. 5
    free     δ ← P(δ + α sign ∇_δ L), from the backward pass that trains θ as well
             Shafahi et al. (2019), https://arxiv.org/abs/1904.12843, algorithm 1
    fast     madry with one step of α = 1.25 ε from a random start
             Wong et al. (2020), https://arxiv.org/abs/2001.03994, algorithm 3

All of these protect, as far as they do, against small changes of the pixels in the norm and the radius trained for.
None protects against another norm, a larger radius, rotations, shifts, corruptions of another kind or poisoned training
data, and none proves anything: the accuracy under some attack is an upper bound on what the best attack would leave.
All of them cost accuracy on clean images. These functions are for the inside of a compiled training step: they do not
look for success, do not keep the best, and do not count queries; to measure robustness, use an attack.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from dl_core.attacks.balls import NORMS, per_image, project, random_in_ball, unit_step
from dl_core.attacks.checks import check_eps, check_images
from dl_core.errors import UsageError, unknown_name
from dl_core.loops import scan
from dl_core.losses import cross_entropy, kl_divergence_with_log_targets

FAST_STEP = 1.25  # of fast training, in eps (Wong et al., 2020, section 4.1)
L1_SHARE = 0.01  # of the values of an image, moved by a step in "l1" (Tramèr and Boneh, 2019)
OVERFITTED = 0.25  # accuracy under one step minus that under many, from which on the network fools the one step

LossOf = Callable[[Float[Array, "batch ..."]], Float[Array, " batch"]]


def adversarial_images(
    loss_of: LossOf,
    images: Float[Array, "batch ..."],
    *,
    eps: float | Float[Array, ""] | Float[Array, " batch"],
    step_size: float | Float[Array, ""] | Float[Array, " batch"],
    steps: int,
    norm: str = "linf",
    bounds: tuple[float, float] = (0.0, 1.0),
    keys: Key[Array, " batch"] | None = None,
) -> Float[Array, "batch ..."]:
    """Projected gradient ascent on a loss, for the inside of a compiled training step: Madry's inner maximum.

        x* ← P(x* + α s(∇ L(x*)))    with s the steepest direction of the norm, P back into the ball and the bounds

    With steps=1 and step_size=1.25 eps it is the step of fast training. Such a network may learn to fool the one step
    (catastrophic overfitting: in the course of a few updates its accuracy under many steps falls to zero); see
    `overfitted`. What adversarial training does not protect against is said at the top of this file.

    Args:
      loss_of: images -> a loss for each, with parameters, labels and every random draw held. It may be the network in
        training mode; then images of one batch share the statistics of their BatchNorm.
      images: inside the bounds.
      eps: radius in the units of the images, >= 0; one number, or one for each image (0 leaves it as it is).
      step_size: α, > 0, in the same units.
      steps: >= 0; all of them are taken, and on the CPU all are written out in the program.
      norm: "linf", "l2" or "l1" (a step moves the hundredth of the values with the largest gradients).
      bounds: smallest and largest value of an image.
      keys: one for each image, of the start, which is uniform over the ball; None starts at the images.

    Returns:
      Images, constants for any gradient taken afterwards.

    Raises:
      UsageError: images outside the bounds; eps or steps < 0, step_size <= 0; an unknown norm.
    """
    _check(images, eps, step_size, norm, bounds)
    if steps < 0:
        raise UsageError(f"steps must be at least 0, got {steps}")
    images = jax.lax.stop_gradient(images)
    start = images
    if keys is not None:
        start = jnp.clip(images + random_in_ball(keys, images, eps, norm), *bounds)
    size = per_image(jnp.asarray(step_size, images.dtype), images)

    def step(perturbed: Float[Array, "batch ..."], _: Any) -> tuple[Float[Array, "batch ..."], None]:
        ascent = jax.grad(lambda x: loss_of(x).sum())(perturbed)
        return project(perturbed + size * unit_step(ascent, norm, share=L1_SHARE), images, eps, bounds, norm), None

    return jax.lax.stop_gradient(scan(step, start, length=steps, loop=inner_loop())[0])


def trades_loss(
    logits: Float[Array, "batch classes"],
    adversarial_logits: Float[Array, "batch classes"],
    labels: Int[Array, " batch"] | Float[Array, "batch classes"],
    *,
    beta: float = 6.0,
) -> Float[Array, " batch"]:
    """Cross-entropy of the clean image, and β times how far the answer moves when the image does.

        CE(f(x), y) + β KL(f(x) ‖ f(x*))    with x* of `adversarial_images(divergence(f(x)), …)`

    β trades clean accuracy for robustness. What it does not protect against is said at the top of this file; a small β
    leaves a network that is accurate and hardly robust.

    Args:
      logits: f(x), of the clean images; the gradient flows through them as well.
      adversarial_logits: f(x*).
      labels: classes, or distributions over them.
      beta: β, >= 0; the authors take 1 on MNIST and 6 on CIFAR-10.

    Returns:
      One loss for each image.

    Raises:
      UsageError: beta < 0.
    """
    if isinstance(beta, int | float) and not beta >= 0:
        raise UsageError(f"beta must be at least 0, got {beta}")
    return cross_entropy(logits, labels) + beta * divergence(logits, adversarial_logits)


def divergence(
    logits: Float[Array, "batch classes"], adversarial_logits: Float[Array, "batch classes"]
) -> Float[Array, " batch"]:
    """KL(f(x) ‖ f(x*)) = Σ_c p_c (log p_c − log p*_c), what an image raises under TRADES.

    At x* = x it and its gradient are zero: its ascent needs a random start.

    Args:
      logits: f(x).
      adversarial_logits: f(x*).

    Returns:
      One number, >= 0 up to rounding, for each image.
    """
    answers, changed = (jax.nn.log_softmax(z, axis=-1) for z in (logits, adversarial_logits))
    return kl_divergence_with_log_targets(changed, answers)


def next_perturbation(
    perturbation: Float[Array, "batch ..."],
    ascent: Float[Array, "batch ..."],
    *,
    eps: float | Float[Array, ""] | Float[Array, " batch"],
    step_size: float | Float[Array, ""] | Float[Array, " batch"],
    norm: str = "linf",
) -> Float[Array, "batch ..."]:
    """Free training: δ after a replay of its batch, from the backward pass that the parameters learn from as well.

        δ ← P(δ + α s(∇_δ L(θ, x + δ)))    (Shafahi et al., 2019, algorithm 1, whose α is ε)

    A batch is replayed m times: the same images, each time a δ one step further and parameters one update further. So m
    steps of the attack cost nothing beyond m updates; but δ was made against parameters that have changed meanwhile,
    and is weaker for it, the more so the faster they learn. What it does not protect against is said at the top of this
    file, and like fast training it can overfit its single steps, see `overfitted`.

    Args:
      perturbation: δ of each image, in the ball.
      ascent: gradient of the loss with respect to δ.
      eps: radius, >= 0; one number, or one for each image.
      step_size: α, > 0.
      norm: "linf", "l2" or "l1".

    Returns:
      δ in the ball. The bounds of the images are not looked at: the loss is that of `clip(x + δ)`.

    Raises:
      UsageError: eps < 0, step_size <= 0, an unknown norm.
    """
    _check(None, eps, step_size, norm, batch=len(perturbation))
    size = per_image(jnp.asarray(step_size, perturbation.dtype), perturbation)
    moved = perturbation + size * unit_step(ascent, norm, share=L1_SHARE)
    return project(moved, jnp.zeros_like(moved), eps, (-jnp.inf, jnp.inf), norm)


def overfitted(one_step_accuracy: float, many_step_accuracy: float) -> bool:
    """Whether a network has learnt to fool the single step that it was trained with (Wong et al., 2020, section 5).

    An honest network loses a few points between one step and many. One that has overfitted catastrophically withstands
    the one and nearly always loses to the other.

    Args:
      one_step_accuracy: accuracy under FGSM, in [0, 1].
      many_step_accuracy: accuracy under PGD with the same eps, in [0, 1].

    Returns:
      Whether they lie more than a quarter apart.
    """
    return one_step_accuracy - many_step_accuracy > OVERFITTED


def inner_loop() -> str:
    """The driver for a few steps inside a compiled step: written out on the CPU, see `dl_core.loops`.

    Returns:
      "unrolled" or "compiled".
    """
    return "unrolled" if jax.default_backend() == "cpu" else "compiled"


def _check(
    images: Float[Array, "batch ..."] | None,
    eps: Any,
    step_size: Any,
    norm: str,
    bounds: tuple[float, float] = (0.0, 1.0),
    batch: int = 0,
) -> None:
    if norm not in NORMS:
        raise unknown_name("norm", norm, NORMS)
    if images is not None:
        check_images(images, bounds)
    check_eps(eps, batch if images is None else len(images))
    if isinstance(step_size, int | float) and not step_size > 0:
        raise UsageError(f"step_size must be above 0, got {step_size}")
