"""What no attack can mean is refused here, before anything is compiled, in words that say how to mend it."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int, Key

from dl_core.attacks.balls import NORMS
from dl_core.attacks.objectives import OBJECTIVES
from dl_core.attacks.result import ApplyFn
from dl_core.errors import UsageError, unknown_name
from dl_core.explain.target import once_for_shapes


class Problem(NamedTuple):
    """What is attacked, checked; a pytree that can be an argument of a compiled function.

    apply_fn: as a `Partial`.
    params, images: as given.
    labels: int32 [batch].
    target: int32 [batch], or None.
    """

    apply_fn: Partial
    params: Any
    images: Float[Array, "batch ..."]
    labels: Int[Array, " batch"]
    target: Int[Array, " batch"] | None

    def logits(self, images: Float[Array, "batch ..."]) -> Float[Array, "batch classes"]:
        """Of changed images, in at least float32."""
        logits = self.apply_fn(self.params, images)
        return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))


def check_attack(
    apply_fn: ApplyFn,
    params: Any,
    images: Float[Array, "batch ..."],
    labels: Int[Array, " batch"],
    *,
    bounds: tuple[float, float],
    eps: float | int | Float[Array | np.ndarray, "*radii"] = 0.0,
    target: int | Int[Array, " batch"] | None = None,
    norm: str = "linf",
    norms: Sequence[str] = NORMS,
    loss: str | Callable[..., Any] = "cross_entropy",
    key: Key[Array, "*keys"] | None = None,
    needs_key: str = "",
) -> Problem:
    """Every attack calls this first. Values that a compiler traces are not looked at, shapes are.

    Args:
      apply_fn: (params, images) -> logits.
      params: pytree of everything that apply_fn needs.
      images: [batch, ...], floats inside the bounds.
      labels: classes in [0, classes).
      bounds: smallest and largest value of an image.
      eps: radius, >= 0; one number, or one for each image.
      target: classes in [0, classes), none equal to its label; one for all or one for each; or None.
      norm: of the ball.
      norms: those that the attack knows.
      loss: a name of `objectives.OBJECTIVES`, or a function.
      key: as given by the caller.
      needs_key: what the attack draws, e.g. "random_start=True draws the start"; "" where it draws nothing.

    Returns:
      Problem.

    Raises:
      UsageError: images that are no floats or lie outside of the bounds; eps < 0 or of a wrong shape; labels or targets
        out of range, a target equal to the label; an unknown norm or loss, or too few classes for it; no key where one
        is needed; an output that is not [batch, classes].
    """
    if norm not in norms:
        raise unknown_name("norm", norm, norms)
    if not callable(loss) and loss not in OBJECTIVES:
        raise unknown_name("loss", loss, OBJECTIVES)
    check_images(images, bounds)
    check_eps(eps, len(images))
    if needs_key and key is None:
        raise UsageError(f"key is missing: {needs_key}; give key=jax.random.key(0), say")
    if key is not None and key.shape not in ((), (len(images),)):
        raise UsageError(f"key must be one key, or one for each of the {len(images)} images; got {list(key.shape)}")
    classes = _num_classes(apply_fn, params, images)
    needed = {"dlr": 3 if target is None else 4}.get(loss, 2) if isinstance(loss, str) else 1
    if classes < needed:
        raise UsageError(
            f"loss={loss!r} {'' if target is None else 'with a target '}compares {needed} logits, the model has "
            f'{classes}; use loss="margin"'
        )
    labels = _check_classes("labels", labels, len(images), classes)
    if target is not None:
        target = _check_classes("target", target, len(images), classes)
        if not _traced(labels, target):
            equal = np.flatnonzero(np.asarray(labels) == np.asarray(target))
            if equal.size:
                raise UsageError(
                    f"target must differ from the label, and is equal to it for {equal.size} images, the first at "
                    f"index {equal[0]}; (labels + 1) % {classes} never is"
                )
    wrapped = apply_fn if isinstance(apply_fn, Partial) else Partial(apply_fn)
    return Problem(wrapped, params, images, labels, target)


def check_images(images: Float[Array, "batch ..."], bounds: tuple[float, float]) -> None:
    """Refuses what is no batch of images inside the bounds.

    Args:
      images: [batch, ...].
      bounds: smallest and largest value of an image.

    Raises:
      UsageError: bounds out of order; images that are no floats, without a batch axis, not finite, or outside.
    """
    if not (len(bounds) == 2 and bounds[0] < bounds[1] and all(map(math.isfinite, bounds))):
        raise UsageError(f"bounds must be (smallest, largest), got {bounds}")
    if not hasattr(images, "dtype") or not jnp.issubdtype(images.dtype, jnp.floating) or images.ndim < 2:
        given = f"{images.dtype} of shape {list(images.shape)}" if hasattr(images, "dtype") else type(images).__name__
        raise UsageError(
            f"images must be floating numbers [batch, ...], got {given}; bytes become images by astype(float32) / 255"
        )
    if _traced(images) or not images.size:
        return
    values = np.asarray(images, np.float32)  # inside a compiled function, jax.numpy would trace even a constant
    if not (bounds[0] - 1e-6 <= values.min() and values.max() <= bounds[1] + 1e-6):  # not a number fails as well
        raise UsageError(
            f"images must lie in bounds={bounds}, got values from {values.min():.4g} to {values.max():.4g}: "
            "give the bounds of these images, or let apply_fn normalise"
        )


def check_eps(eps: float | int | Float[Array | np.ndarray, "*radii"], batch: int) -> None:
    """Refuses a radius that is negative, not a number, or of a wrong shape.

    Args:
      eps: radius.
      batch: number of images.

    Raises:
      UsageError: see above.
    """
    if jnp.shape(eps) not in ((), (batch,)):
        raise UsageError(
            f"eps must be one number, or one for each of the {batch} images, got shape {list(jnp.shape(eps))}; several "
            "radii for every image are for attacks.accuracy_curve, or jax.vmap"
        )
    if not _traced(eps) and np.size(eps) and not np.min(np.asarray(eps)) >= 0:
        raise UsageError(f"eps must not be negative, got {eps}")


def check_at_least(least: float | int, **options: float | int) -> None:
    """Refuses options below a limit.

    Args:
      least: smallest legal value.
      **options: name=value.

    Raises:
      UsageError: with the name and the value.
    """
    for name, value in options.items():
        if not _traced(value) and not value >= least:
            raise UsageError(f"{name} must be at least {least}, got {value}")


def first_logits(problem: Problem) -> Float[Array, "batch classes"]:
    """The logits of the images as they are, the first query of an attack.

    Args:
      problem: what is attacked.

    Returns:
      In at least float32.

    Raises:
      UsageError: they look like probabilities.
    """
    return check_logits(_logits(problem))


def check_logits(logits: Float[Array, "batch classes"]) -> Float[Array, "batch classes"]:
    """Refuses probabilities: an attack on them follows a gradient that a confident softmax has rounded to zero.

    Args:
      logits: of images.

    Returns:
      The same.

    Raises:
      UsageError: no value is negative and every row sums to 1.
    """
    if not _traced(logits) and logits.size and logits.shape[1] > 1:
        values = np.asarray(logits, np.float32)
        if (values >= 0).all() and (np.abs(values.sum(axis=1) - 1) < 1e-3).all():
            raise UsageError(
                "apply_fn must return logits, and these look like probabilities: none is negative and every row sums "
                "to 1. Leave out the softmax, or take their logarithm: lambda params, images: "
                "jnp.log(apply_fn(params, images) + 1e-12)"
            )
    return logits


@jax.jit
def _logits(problem: Problem) -> Float[Array, "batch classes"]:
    return problem.logits(problem.images)


@once_for_shapes
def _output_shape(apply_fn: ApplyFn, params: Any, images: Any) -> tuple[int, ...] | str:
    output = jax.eval_shape(apply_fn, params, images)
    return tuple(output.shape) if hasattr(output, "shape") else type(output).__name__


def _num_classes(apply_fn: ApplyFn, params: Any, images: Float[Array, "batch ..."]) -> int:
    shape = _output_shape(apply_fn, params, images)
    if isinstance(shape, str):
        raise UsageError(
            f"apply_fn must return one array, the logits; got {shape}. Wrap it: "
            'lambda params, images: apply_fn(params, images)["logits"], say'
        )
    if len(shape) != 2 or shape[0] != len(images) or shape[1] < 2:
        raise UsageError(
            f"apply_fn must return logits [batch, classes] = [{len(images)}, 2 or more], got {list(shape)}"
        )
    return shape[1]


def _check_classes(name: str, given: Any, batch: int, classes: int) -> Int[Array, " batch"]:
    shapes = ((batch,),) if name == "labels" else ((), (batch,))
    if not jnp.issubdtype(jnp.result_type(given), jnp.integer) or jnp.shape(given) not in shapes:
        raise UsageError(
            f"{name} must be one class for each of the {batch} images, got {jnp.result_type(given)} of shape "
            f"{list(jnp.shape(given))}"
        )
    if not _traced(given):
        wrong = np.unique(np.asarray(given)[(np.asarray(given) < 0) | (np.asarray(given) >= classes)])
        if wrong.size:
            raise UsageError(f"{name} must be in [0, {classes}), got {', '.join(map(str, wrong[:5]))}")
    return jnp.broadcast_to(jnp.asarray(given, jnp.int32), (batch,))


def _traced(*values: Any) -> bool:
    """Not to be looked at: under a compiler, or on another host."""
    return any(isinstance(value, Tracer) or not getattr(value, "is_fully_addressable", True) for value in values)
