"""What a detector does to an image: transforms that a natural image can spare, and how far the prediction moves.

Xu, Evans, Qi (2018), "Feature Squeezing", https://arxiv.org/abs/1704.01155. Shared by `dl_core.attacks.detection` and
by the attacker of `dl_core.attacks.evading`, who goes through them with gradients.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from dl_core.attacks.balls import distance
from dl_core.augment.filters import gaussian_blur, median_filter
from dl_core.augment.geometric import flip
from dl_core.augment.noise import gaussian_noise
from dl_core.errors import UsageError, unknown_name

Images = Float[Array, "batch ..."]
Transform = str | Callable[..., Images]  # a name, images -> images, or (key, images) -> images
DEFAULT_TRANSFORMS = ("flip", "blur", "bit_depth", "noise", "median")
METRICS = ("l1", "l2")
REDUCTIONS = ("max", "mean")
MOST_SPAN = 8.0  # logits further apart have a softmax without a gradient in float32


class DetectionScores(NamedTuple):
    """How far the prediction of each image moved.

    score: over all transforms.
    per_transform: by each, in the order given.
    """

    score: Float[Array, " batch"]
    per_transform: Float[Array, "batch transforms"]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Options:
    """What is compiled into a detector; a pytree without leaves, compared by value.

    transforms, metric, reduce, bounds: as of `dl_core.attacks.detection.detection_scores`.
    draws: of each random transform, over which its distances are averaged.
    """

    transforms: tuple[Transform, ...]
    metric: str
    reduce: str
    bounds: tuple[float, float]
    draws: int


def straight_through(transform: Callable[..., Images]) -> Callable[..., Images]:
    """The same transform, with the gradient of doing nothing (Athalye et al., 2018, §4.1.1).

    Args:
      transform: images -> images or (key, images) -> images, of the same shape; one that rounds, say.

    Returns:
      A function for `detection_scores` and for `evading`.
    """

    @functools.wraps(transform)
    def through(*arguments: Any) -> Images:
        images = arguments[-1]
        return replace(images, jax.lax.stop_gradient(transform(*arguments[:-1], jax.lax.stop_gradient(images))))

    return through


@jax.custom_jvp
def replace(images: Float[Array, "..."], replacement: Float[Array, "..."]) -> Float[Array, "..."]:
    """The second, with the gradient of the first.

    Args:
      images: differentiated.
      replacement: of the same shape, returned.

    Returns:
      The replacement.
    """
    del images
    return replacement


@replace.defjvp
def _(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    return primals[1], tangents[0]


@straight_through
def _four_bits(images: Images) -> Images:
    # rounded as in the paper; `posterize` cuts bits off, which darkens every image by half a level
    return jnp.round(images * 15) / 15


_NAMED: dict[str, Callable[..., Images]] = {
    "flip": flip,
    "blur": functools.partial(gaussian_blur, sigma=1.0),
    "bit_depth": _four_bits,
    "noise": functools.partial(gaussian_noise, std=0.05),
    "median": median_filter,
}


def check_options(
    transforms: Sequence[Transform],
    metric: str,
    reduce: str,
    bounds: tuple[float, float],
    key: Key[Array, "*batch"] | None,
    draws: int = 1,
) -> Options:
    """The options of a detector, if they are any.

    Args:
      transforms, metric, reduce, bounds: as of `dl_core.attacks.detection.detection_scores`.
      key: of the caller, one or one for each image; asked only whether there is one.
      draws: of each random transform.

    Returns:
      Options.

    Raises:
      UsageError: no transform or an unknown one, an unknown metric or reduction, no key where one is needed.
    """
    if isinstance(transforms, str) or not len(transforms):
        raise UsageError(f"transforms must be a sequence of at least one, such as ('blur',); got {transforms!r}")
    for transform in transforms:
        if not callable(transform) and transform not in _NAMED:
            raise unknown_name("transform", str(transform), _NAMED)
        if key is None and _needs_key(transform):
            raise UsageError(f"key is missing: the transform {transform!r} draws; give key=jax.random.key(0), say")
    if metric not in METRICS:
        raise unknown_name("metric", metric, METRICS)
    if reduce not in REDUCTIONS:
        raise unknown_name("reduction", reduce, REDUCTIONS)
    return Options(tuple(transforms), metric, reduce, bounds, draws)


def _needs_key(transform: Transform) -> bool:
    """Whether it is a function of two arguments, the first of which is a key."""
    parameters = inspect.signature(_NAMED.get(transform, transform)).parameters.values()  # pyright: ignore
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(one.kind in positional and one.default is one.empty for one in parameters) == 2


@functools.partial(jax.jit, static_argnums=0)
def views_of(options: Options, images: Images, keys: Key[Array, " batch"] | None) -> Float[Array, "views batch ..."]:
    """The images, then what each transform makes of them, one after the other; random ones several times.

    Args:
      options: of the detector.
      images: inside the bounds.
      keys: one for each image, or None where nothing is drawn.

    Returns:
      [views, batch, ...], of which the first are the images.

    Raises:
      UsageError: a transform changes the shape, or needs images [batch, height, width, channels].
    """
    views = [images]
    for index, transform in enumerate(options.transforms):
        if not _needs_key(transform):
            views.append(_transformed(options, transform, images))
            continue
        for draw in range(options.draws):
            own = jax.vmap(lambda key, index=index, draw=draw: jax.random.fold_in(jax.random.fold_in(key, index), draw))
            views.append(_transformed(options, transform, images, own(keys)))
    return jnp.stack(views)


def _transformed(options: Options, transform: Transform, images: Images, *keys: Key[Array, " batch"]) -> Images:
    if callable(transform):
        view = transform(*keys, images)
        if getattr(view, "shape", None) != images.shape:
            raise UsageError(
                f"a transform must keep the shape of the images, {list(images.shape)}; {transform!r} returned "
                f"{list(view.shape) if hasattr(view, 'shape') else type(view).__name__}"
            )
        return view.astype(images.dtype)
    if images.ndim != 4:
        raise UsageError(
            f"the transform {transform!r} needs images [batch, height, width, channels], got {list(images.shape)}"
        )
    low, high = options.bounds
    return low + (high - low) * _NAMED[transform](*keys, (images - low) / (high - low))


@functools.partial(jax.jit, static_argnums=0)
def scores_of(options: Options, logits: Float[Array, "views batch classes"]) -> DetectionScores:
    """How far the predictions of all views are from those of the images.

    Args:
      options: of the detector.
      logits: of `views_of`.

    Returns:
      DetectionScores.
    """
    views, batch, classes = logits.shape

    def moved(logits: Float[Array, "views batch classes"]) -> Float[Array, "transformed batch"]:
        probabilities = jax.nn.softmax(logits)
        change = (probabilities[1:] - probabilities[:1]).reshape(-1, classes)
        return distance(change, options.metric).reshape(views - 1, batch)

    # the gradient, which the detector does not need but its attacker does, is that of logits within MOST_SPAN
    span = jax.lax.stop_gradient(logits.max(axis=2, keepdims=True) - logits.min(axis=2, keepdims=True))
    by_view = replace(moved(logits / jnp.maximum(1, span / MOST_SPAN)), moved(logits))
    by_transform, first = [], 0
    for transform in options.transforms:
        count = options.draws if _needs_key(transform) else 1
        by_transform.append(by_view[first : first + count].mean(axis=0))
        first += count
    per_transform = jnp.stack(by_transform, axis=1)
    return DetectionScores(getattr(per_transform, options.reduce)(axis=1), per_transform)
