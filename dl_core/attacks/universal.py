"""Universal perturbations: one change that is the same for every image and fools the network on most of them.

Moosavi-Dezfooli, Fawzi, Fawzi, Frossard (2017), "Universal adversarial perturbations",
https://arxiv.org/abs/1610.08401 (DeepFool); Shafahi, Najibi, Xu, Dickerson, Davis, Goldstein (2020), "Universal
Adversarial Training", https://arxiv.org/abs/1811.11304 (projected gradient). Over training images x with labels y

    projected gradient    max over ‖δ‖ ≤ eps of Σ min(L(f(x + δ), y), loss_limit)
    DeepFool              while f(x + δ) is still f(x): δ ← P(δ + r), r the least change with f(x + δ + r) ≠ f(x + δ)

It is made on some images and means something on others: `fooling_rate` scores it there, beside noise of its size.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int, Key

from dl_core.attacks.balls import distance, image_keys, per_image, project, unit_step
from dl_core.attacks.checks import Problem, check_at_least, check_attack, check_images, first_logits
from dl_core.attacks.deepfool import deepfool
from dl_core.attacks.objectives import LossFn, objective
from dl_core.attacks.result import ApplyFn, succeeded
from dl_core.errors import UsageError, unknown_name
from dl_core.loops import choose_driver, scan

METHODS = ("projected_gradient", "deepfool")


class UniversalPerturbation(NamedTuple):
    """One perturbation for all images.

    perturbation: to be added to images, which are then clipped to their bounds: `apply_perturbation`.
    fooling_rate: share of the training images on which it changes the prediction, or with a target calls it forth.
    losses: what was raised, the mean over the batch at each step; nan with "deepfool", which has no loss.
    """

    perturbation: Float[Array, "..."]
    fooling_rate: Float[Array, ""]
    losses: Float[Array, " steps"]


class FoolingRate(NamedTuple):
    """How a perturbation fares beside random noise.

    rate: share of the images whose prediction it changes, or with a target whose prediction becomes it.
    noise_rate: the same for noise of the same length in the norm, drawn for each image.
    fooled: which images.
    fooled_by_noise: likewise.
    """

    rate: Float[Array, ""]
    noise_rate: Float[Array, ""]
    fooled: Bool[Array, " batch"]
    fooled_by_noise: Bool[Array, " batch"]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Options:
    norm: str
    loss: str | LossFn
    bounds: tuple[float, float]


def universal_perturbation(
    apply_fn: ApplyFn,
    params: Any,
    images: Float[Array, "batch ..."],
    labels: Int[Array, " batch"],
    *,
    key: Key[Array, ""],
    eps: float | Float[Array, ""],
    norm: str = "linf",
    method: str = "projected_gradient",
    epochs: int = 10,
    batch_size: int = 32,
    step_size: float = 0.1,
    loss: str | LossFn = "cross_entropy",
    loss_limit: float = 9.0,
    target: int | Int[Array, " batch"] | None = None,
    bounds: tuple[float, float] = (0.0, 1.0),
    loop: str = "auto",
    progress: Callable[[int, int], None] | None = None,
) -> UniversalPerturbation:
    """One perturbation within eps that fools the network on as many of these images as possible.

    "projected_gradient" takes a step along the normalised mean gradient (the sign in "linf") on every batch, shorter
    and shorter until the last one is next to nothing. "deepfool" adds, for the images of a batch that are not fooled
    yet, the sum of their least perturbations; with batch_size=1, which is slower, that is the paper's method.

    Args:
      apply_fn: (params, images) -> logits, as in inference, normalisation included.
      params: pytree of everything that apply_fn needs; never changed.
      images: training images inside the bounds; it takes hundreds for a perturbation that carries over to others.
      labels: their classes. "deepfool" does not look at them, it changes predictions.
      key: of the order of the images, another one in every epoch.
      eps: the perturbation is at most this long, >= 0, in the units of the images.
      norm: "linf" or "l2"; "projected_gradient" also knows "l1".
      method: "projected_gradient" or "deepfool".
      epochs: how often every image is looked at, >= 1.
      batch_size: images for one step, >= 1; an epoch whose last batch would not be full begins it anew from the front.
      step_size: of "projected_gradient": the length of the first step as a share of eps, >= 0.
      loss: of "projected_gradient": what is raised, see `dl_core.attacks.objectives`.
      loss_limit: of "projected_gradient": an image whose loss is larger pulls no more, so that a few images that
        are fooled thoroughly do not decide; infinity for none. Losses that a target lowers are not limited.
      target: a class to be predicted for all images (or for each); none may have it as its label.
      bounds: smallest and largest value of an image.
      loop: see `dl_core.loops`.
      progress: called after each step with (steps done, steps in all), not inside of `jit`.

    Returns:
      UniversalPerturbation.

    Raises:
      UsageError: see `dl_core.attacks.checks.check_attack`; an unknown method, or an option out of its range.
    """
    if method not in METHODS:
        raise unknown_name("method", method, METHODS)
    norms = ("linf", "l2", "l1") if method == "projected_gradient" else ("linf", "l2")
    problem = check_attack(
        apply_fn,
        params,
        images,
        labels,
        eps=eps,
        bounds=bounds,
        target=target,
        norm=norm,
        norms=norms,
        loss=loss,
        key=key,
        needs_key="the order of the images is drawn",
    )
    if jnp.ndim(eps) or key.ndim:
        raise UsageError(f"one perturbation has one eps and one key, got shapes {list(jnp.shape(eps))}, {key.shape}")
    check_at_least(1, epochs=epochs, batch_size=batch_size)
    check_at_least(0, step_size=step_size, loss_limit=loss_limit)
    logits = first_logits(problem)

    float_type = jnp.promote_types(images.dtype, jnp.float32)
    radius = jnp.asarray(eps, float_type)
    batches = _batches(key, len(images), min(batch_size, len(images)), epochs)
    options = _Options(norm, loss, bounds)
    start = jnp.zeros(images.shape[1:], float_type)
    before = logits.argmax(axis=1)
    if method == "projected_gradient":
        lengths = radius * step_size * jnp.linspace(1, 0, len(batches), endpoint=False, dtype=float_type)
        limit = jnp.asarray(loss_limit, logits.dtype)
        step = Partial(_gradient_step, options, problem, radius, limit)
        perturbation, losses = scan(step, start, (batches, lengths), loop=loop, progress=progress)
    else:
        step = Partial(_deepfool_step, options, problem._replace(labels=before), radius)
        perturbation = _by_deepfool(step, start, batches, loop, progress)
        losses = jnp.full(len(batches), jnp.nan, logits.dtype)
    perturbation = perturbation.astype(images.dtype)
    rate = _rate(options, problem, perturbation, batches.shape[1], None, loop)
    return UniversalPerturbation(perturbation, rate.rate, losses)


def apply_perturbation(
    images: Float[Array, "batch ..."], perturbation: Float[Array, "..."], *, bounds: tuple[float, float] = (0.0, 1.0)
) -> Float[Array, "batch ..."]:
    """The same perturbation on every image.

    Args:
      images: inside the bounds.
      perturbation: of the shape of one image.
      bounds: smallest and largest value of an image.

    Returns:
      Images inside the bounds.

    Raises:
      UsageError: images outside of the bounds, or a perturbation of another shape.
    """
    check_images(images, bounds)
    _check_shape(images, perturbation)
    return _add(images, perturbation[None], bounds)


def fooling_rate(
    apply_fn: ApplyFn,
    params: Any,
    images: Float[Array, "batch ..."],
    perturbation: Float[Array, "..."],
    *,
    key: Key[Array, "*batch"],
    norm: str = "linf",
    target: int | Int[Array, " batch"] | None = None,
    batch_size: int = 256,
    bounds: tuple[float, float] = (0.0, 1.0),
    loop: str = "auto",
) -> FoolingRate:
    """How often a perturbation changes the prediction, and how often random noise of its length does.

    Labels play no part: an image that was misclassified before is fooled if it is given yet another class. The noise is
    as strong as noise of that length can be: in "linf" every value is moved by the length, up or down; in "l2" and "l1"
    the direction is uniform.

    Args:
      apply_fn: (params, images) -> logits.
      params: pytree of everything that apply_fn needs.
      images: held out, inside the bounds.
      perturbation: of the shape of one image.
      key: of the noise; one key, or one for each image.
      norm: "linf", "l2" or "l1", in which the noise is as long as the perturbation.
      target: the class that is to be predicted; then "fooled" means that it is, and was not before. None: any change.
      batch_size: images for one step, >= 1.
      bounds: smallest and largest value of an image.
      loop: see `dl_core.loops`.

    Returns:
      FoolingRate.

    Raises:
      UsageError: see `dl_core.attacks.checks.check_attack`; a perturbation of another shape.
    """
    classes = jnp.zeros(len(images), jnp.int32) if target is None else (jnp.asarray(target) == 0).astype(jnp.int32)
    problem = check_attack(
        apply_fn,
        params,
        images,
        jnp.broadcast_to(classes, (len(images),)),  # no labels are needed: any class that is not the target
        bounds=bounds,
        target=target,
        norm=norm,
        key=key,
        needs_key="the noise is drawn",
    )
    check_at_least(1, batch_size=batch_size)
    _check_shape(images, perturbation)
    keys = image_keys(key, len(images))
    return _rate(_Options(norm, "margin", bounds), problem, perturbation, min(batch_size, len(images)), keys, loop)


def _add(
    images: Float[Array, "batch ..."], perturbation: Float[Array, "..."], bounds: tuple[float, float]
) -> Float[Array, "batch ..."]:
    return jnp.clip(images + perturbation, *bounds).astype(images.dtype)


def _batches(key: Key[Array, ""], count: int, batch_size: int, epochs: int) -> Int[Array, "steps batch_size"]:
    """Which images each step looks at: every epoch in an order of its own."""
    order = lambda epoch: jax.random.permutation(jax.random.fold_in(key, epoch), count)
    orders = jax.vmap(order)(jnp.arange(epochs)).astype(jnp.int32)
    filled = np.arange(-(-count // batch_size) * batch_size) % count
    return orders[:, filled].reshape(-1, batch_size)


def _gradient_step(
    options: _Options,
    problem: Problem,
    eps: Float[Array, ""],
    limit: Float[Array, ""],
    perturbation: Float[Array, "..."],
    batch_and_length: tuple[Int[Array, " batch_size"], Float[Array, ""]],
) -> tuple[Float[Array, "..."], Float[Array, ""]]:
    indices, length = batch_and_length
    images, labels = problem.images[indices], problem.labels[indices]
    target = None if problem.target is None else problem.target[indices]

    def gain(perturbation: Float[Array, "..."]) -> Float[Array, ""]:
        logits = problem.logits(_add(images, perturbation[None], options.bounds))
        return jnp.minimum(objective(logits, labels, target, options.loss), limit).mean()

    value, ascent = jax.value_and_grad(gain)(perturbation)
    return _inside(perturbation + length * unit_step(ascent[None], options.norm)[0], eps, options.norm), value


def _deepfool_step(
    options: _Options,
    problem: Problem,
    eps: Float[Array, ""],
    perturbation: Float[Array, "..."],
    indices: Int[Array, " batch_size"],
    loop: str = "compiled",
) -> tuple[Float[Array, "..."], None]:
    """The labels of the problem are the predictions, so that DeepFool leaves alone what is fooled already."""
    perturbed = _add(problem.images[indices], perturbation[None], options.bounds)
    found = deepfool(
        problem.apply_fn,
        problem.params,
        perturbed,
        problem.labels[indices],
        norm=options.norm,
        steps=10,  # the authors' program allows no more
        bounds=options.bounds,
        target=None if problem.target is None else problem.target[indices],
        loop=loop,
    )
    total = (found.adversarial - perturbed).astype(perturbation.dtype).sum(axis=0)
    return _inside(perturbation + total, eps, options.norm), None


def _by_deepfool(
    step: Partial,
    perturbation: Float[Array, "..."],
    batches: Int[Array, "steps batch_size"],
    loop: str,
    progress: Callable[[int, int], None] | None,
) -> Float[Array, "..."]:
    """The host drives both loops, that over batches and DeepFool's own, or neither."""
    if choose_driver(loop, step, batches) != "host":
        return scan(step, perturbation, batches, loop=loop, progress=progress)[0]
    for index in range(len(batches)):
        perturbation, _ = step(perturbation, batches[index], loop="host")
        if progress is not None:
            progress(index + 1, len(batches))
    return perturbation


def _inside(perturbation: Float[Array, "..."], eps: Float[Array, ""], norm: str) -> Float[Array, "..."]:
    return project(perturbation[None], jnp.zeros_like(perturbation)[None], eps, (-jnp.inf, jnp.inf), norm)[0]


def _rate(
    options: _Options,
    problem: Problem,
    perturbation: Float[Array, "..."],
    batch_size: int,
    keys: Key[Array, " batch"] | None,
    loop: str,
) -> FoolingRate:
    """A batch at a time; without keys there is no noise."""
    count = len(problem.images)
    indices = jnp.asarray((np.arange(-(-count // batch_size) * batch_size) % count).reshape(-1, batch_size), jnp.int32)
    step = Partial(_score, options, problem, perturbation, keys)
    _, results = scan(step, None, indices, loop=loop)
    fooled, by_noise = (result.reshape(-1)[:count] for result in results)
    return FoolingRate(fooled.mean(), by_noise.mean(), fooled, by_noise)


def _score(
    options: _Options,
    problem: Problem,
    perturbation: Float[Array, "..."],
    keys: Key[Array, " batch"] | None,
    carry: None,
    indices: Int[Array, " batch_size"],
) -> tuple[None, tuple[Bool[Array, " batch_size"], Bool[Array, " batch_size"]]]:
    images = problem.images[indices]
    target = None if problem.target is None else problem.target[indices]
    before = problem.logits(images).argmax(axis=1)

    def fooled(perturbed: Float[Array, "batch_size ..."]) -> Bool[Array, " batch_size"]:
        return succeeded(problem.logits(perturbed), before, target) & (True if target is None else before != target)

    won = fooled(_add(images, perturbation[None], options.bounds))
    if keys is None:
        return carry, (won, jnp.zeros_like(won))
    noise = _noise(keys[indices], images, distance(perturbation[None], options.norm), options.norm)
    return carry, (won, fooled(_add(images, noise, options.bounds)))


def _noise(
    keys: Key[Array, " batch"], images: Float[Array, "batch ..."], length: Float[Array, "1"], norm: str
) -> Float[Array, "batch ..."]:
    draw = {"linf": jax.random.rademacher, "l2": jax.random.normal, "l1": jax.random.laplace}[norm]
    noise = jax.vmap(lambda key: draw(key, images.shape[1:], jnp.float32))(keys)
    return noise * per_image(length, images) / per_image(distance(noise, norm), images)


def _check_shape(images: Float[Array, "batch ..."], perturbation: Float[Array, "..."]) -> None:
    if perturbation.shape != images.shape[1:]:
        raise UsageError(
            f"perturbation must have the shape {list(images.shape[1:])} of one image, got {list(perturbation.shape)}"
        )
