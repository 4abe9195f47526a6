"""Projected gradient ascent: small steps up the loss, each followed by a way back into the ball.

    x₀ = x + a random point of the ball,  x_{n+1} = Π(x_n + η u(∇ₓ L(f(x_n), y)))

where u is the steepest direction of length 1 in the norm (its sign in "linf") and Π leads into the ball of radius eps
around x and into the bounds. Kurakin, Goodfellow, Bengio (2017), https://arxiv.org/abs/1607.02533 (BIM; course notes,
section 11.8); Madry et al. (2018), https://arxiv.org/abs/1706.06083 (PGD); Dong et al. (2018),
https://arxiv.org/abs/1710.06081 (momentum); Tramèr, Boneh (2019), https://arxiv.org/abs/1904.13000 (steps in "l1");
Athalye et al. (2018), https://arxiv.org/abs/1802.00420 (randomised models).
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int, Key

from dl_core.attacks.ascent import Options, Pace, any_draw, ascend, one_draw
from dl_core.attacks.checks import check_at_least, check_attack
from dl_core.attacks.climbing import check_step_size, working_dtype
from dl_core.attacks.objectives import LossFn
from dl_core.attacks.result import ApplyFn, AttackResult
from dl_core.errors import UsageError


def pgd(
    apply_fn: ApplyFn | Callable[..., Any],
    params: Any,
    images: Float[Array, "batch ..."],
    labels: Int[Array, " batch"],
    *,
    key: Key[Array, "*batch"] | None = None,
    eps: float | Float[Array, ""] | Float[Array, " batch"],
    bounds: tuple[float, float] = (0.0, 1.0),
    target: int | Int[Array, " batch"] | None = None,
    norm: str = "linf",
    loss: str | LossFn = "cross_entropy",
    step_size: float | Float[Array, ""] | Float[Array, " batch"] | None = None,
    steps: int = 40,
    random_start: bool = True,
    restarts: int = 1,
    momentum: float = 0.0,
    sparsity: float = 0.01,
    randomized: bool = False,
    samples: int = 1,
    early_stop: bool = True,
    loop: str = "auto",
) -> AttackResult:
    """Projected gradient ascent from one or several random points of the ball.

    Args:
      apply_fn: (params, images) -> logits, as in inference, normalisation included; with randomized
        (params, images, key) -> logits.
      params: pytree of everything that apply_fn needs; never changed.
      images: inside the bounds, e.g. [batch, height, width, channels].
      labels: the true classes.
      key: for random starts and randomised models; one, or one for each image.
      eps: radius of the ball in the units of the images, >= 0; one number, or one for each image.
      bounds: smallest and largest value of an image.
      target: classes to be predicted instead; None is content with any wrong one.
      norm: "linf", "l2" or "l1".
      loss: what is raised, see `dl_core.attacks.objectives`.
      step_size: η >= 0, in the units of eps; one number, or one for each image. By default 2.5 eps / steps, which is
        enough to cross the ball and back; so a comparison of different numbers of steps has to set it.
      steps: most steps from each start, >= 1.
      random_start: begin at a uniformly random point of the ball, cut to the bounds; else at the image.
      restarts: how many starts, >= 1. The first r of them are those of restarts=r with the same key.
      momentum: μ in g ← μ g + ∇L / mean|∇L|, of which u is then taken; 0 is without.
      sparsity: in "l1", the share of the values that a step moves, in [0, 1]; one at least. Values that stand at a
        bound and would be pushed beyond are left out.
      randomized: apply_fn takes a key, and is called for one image at a time (under vmap) with a key of its own.
      samples: of a randomised model, how many draws a gradient and a decision are averaged over (expectation over
        transformation): gradients of the loss, and logits.
      early_stop: each image ends with its first success; without any it keeps its highest loss. Images that the model
        gets wrong as they are stay as they are. False: every image takes every step and is left at the last, as in
        adversarial training; the result can be differentiated and few operations are needed.
      loop: see `dl_core.loops`; "unrolled" with early_stop=False for a few steps inside a jitted training step.

    Returns:
      AttackResult. Of several restarts the first success, else the highest loss. For a randomised model, success is of
      the logits' mean over `samples` draws: another draw may decide otherwise.

    Raises:
      UsageError: no key where one is needed, steps, restarts or samples below 1, step_size < 0, momentum < 0, sparsity
        outside [0, 1], restarts that would repeat each other, samples of a model that is not randomised; and see
        `dl_core.attacks.checks.check_attack`.
    """
    check_at_least(1, steps=steps, restarts=restarts, samples=samples)
    check_at_least(0, momentum=momentum)
    if not 0 <= sparsity <= 1:
        raise UsageError(f"sparsity must be in [0, 1], got {sparsity}")
    if samples > 1 and not randomized:
        raise UsageError(
            f"samples={samples} averages over the draws of a randomised model; give an apply_fn of (params, images, "
            "key) and randomized=True, or leave samples out"
        )
    if restarts > 1 and not (random_start or randomized):
        raise UsageError(f"restarts={restarts} would repeat the same steps; they need random_start=True")
    draws = {"random_start=True draws the start": random_start, "randomized=True draws the model": randomized}
    problem = check_attack(
        Partial(any_draw, Partial(apply_fn)) if randomized else apply_fn,
        params,
        images,
        labels,
        bounds=bounds,
        eps=eps,
        target=target,
        norm=norm,
        loss=loss,
        key=key,
        needs_key=next((why for why, needed in draws.items() if needed), ""),
    )
    if randomized:
        problem = problem._replace(apply_fn=Partial(one_draw, Partial(apply_fn)))
    if step_size is not None:
        check_step_size(step_size, len(images))
    dtype = working_dtype(images)
    radius = jnp.asarray(eps, dtype)
    pace = Pace(
        eps=radius,
        step_size=2.5 * radius / steps if step_size is None else jnp.asarray(step_size, dtype),
        momentum=jnp.asarray(momentum, dtype) if momentum else None,
    )
    options = Options(
        norm=norm,
        bounds=(float(bounds[0]), float(bounds[1])),
        loss=loss,
        samples=samples if randomized else 0,
        sparsity=float(sparsity),
        random_start=random_start,
        early_stop=early_stop,
    )
    return ascend(options, problem, pace, key, steps=steps, restarts=restarts, loop=loop)


def bim(
    apply_fn: ApplyFn,
    params: Any,
    images: Float[Array, "batch ..."],
    labels: Int[Array, " batch"],
    *,
    eps: float | Float[Array, ""] | Float[Array, " batch"],
    bounds: tuple[float, float] = (0.0, 1.0),
    target: int | Int[Array, " batch"] | None = None,
    norm: str = "linf",
    loss: str | LossFn = "cross_entropy",
    step_size: float | Float[Array, ""] | Float[Array, " batch"] | None = None,
    steps: int = 10,
    early_stop: bool = True,
    key: Key[Array, "*batch"] | None = None,
    loop: str = "auto",
) -> AttackResult:
    """Basic iterative method (iterative gradient sign): `pgd` from the image itself.

    Args:
      apply_fn: (params, images) -> logits, as in inference, normalisation included.
      params: pytree of everything that apply_fn needs; never changed.
      images: inside the bounds, e.g. [batch, height, width, channels].
      labels: the true classes.
      eps: radius of the ball in the units of the images, >= 0; one number, or one for each image.
      bounds: smallest and largest value of an image.
      target: classes to be predicted instead; None is content with any wrong one.
      norm: "linf" (the paper), "l2" or "l1".
      loss: what is raised, see `dl_core.attacks.objectives`.
      step_size: η >= 0; by default 1.25 eps / steps. The paper steps by 1/255, and 1.25 · 255 eps times.
      steps: most steps, >= 1.
      early_stop: see `pgd`.
      key: not used, the method is deterministic; taken so that every attack is called alike.
      loop: see `dl_core.loops`.

    Returns:
      AttackResult.

    Raises:
      UsageError: see `pgd`.
    """
    check_at_least(1, steps=steps)
    return pgd(
        apply_fn,
        params,
        images,
        labels,
        key=key,
        eps=eps,
        bounds=bounds,
        target=target,
        norm=norm,
        loss=loss,
        step_size=1.25 * eps / steps if step_size is None else step_size,
        steps=steps,
        random_start=False,
        early_stop=early_stop,
        loop=loop,
    )


def momentum_pgd(
    apply_fn: ApplyFn,
    params: Any,
    images: Float[Array, "batch ..."],
    labels: Int[Array, " batch"],
    *,
    eps: float | Float[Array, ""] | Float[Array, " batch"],
    bounds: tuple[float, float] = (0.0, 1.0),
    target: int | Int[Array, " batch"] | None = None,
    norm: str = "linf",
    loss: str | LossFn = "cross_entropy",
    step_size: float | Float[Array, ""] | Float[Array, " batch"] | None = None,
    steps: int = 10,
    momentum: float = 1.0,
    early_stop: bool = True,
    key: Key[Array, "*batch"] | None = None,
    loop: str = "auto",
) -> AttackResult:
    """Momentum iterative method (MI-FGSM): `pgd` from the image itself along a running sum of gradients.

    Its examples transfer to other networks better than those of `bim`; against the network itself it is weaker.

    Args:
      apply_fn: (params, images) -> logits, as in inference, normalisation included.
      params: pytree of everything that apply_fn needs; never changed.
      images: inside the bounds, e.g. [batch, height, width, channels].
      labels: the true classes.
      eps: radius of the ball in the units of the images, >= 0; one number, or one for each image.
      bounds: smallest and largest value of an image.
      target: classes to be predicted instead; None is content with any wrong one.
      norm: "linf", "l2" (both in the paper) or "l1".
      loss: what is raised, see `dl_core.attacks.objectives`.
      step_size: η >= 0; by default eps / steps, as in the paper.
      steps: most steps, >= 1.
      momentum: μ >= 0, of g ← μ g + ∇L / mean|∇L|.
      early_stop: see `pgd`; False for examples that are to transfer.
      key: not used, the method is deterministic; taken so that every attack is called alike.
      loop: see `dl_core.loops`.

    Returns:
      AttackResult.

    Raises:
      UsageError: see `pgd`.
    """
    check_at_least(1, steps=steps)
    return pgd(
        apply_fn,
        params,
        images,
        labels,
        key=key,
        eps=eps,
        bounds=bounds,
        target=target,
        norm=norm,
        loss=loss,
        step_size=eps / steps if step_size is None else step_size,
        steps=steps,
        random_start=False,
        momentum=momentum,
        early_stop=early_stop,
        loop=loop,
    )
