"""Images that excite one output, unit, channel or layer of a model the most, by gradient ascent on pixels.

Erhan, Bengio, Courville, Vincent (2009), "Visualizing Higher-Layer Features of a Deep Network" (the method); Mahendran,
Vedaldi (2015), https://arxiv.org/abs/1412.0035 (α-norm and total variation); Mordvintsev, Olah, Tyka (2015),
"Inceptionism" (octaves, jitter, normalised gradients, whole layers); Yosinski et al. (2015),
https://arxiv.org/abs/1506.06579 (blur every few steps); Olah, Mordvintsev, Schubert (2017), "Feature Visualization".

    maximise   a(x) - w_norm · mean |x - c|^p - w_tv · mean (|x↓ - x|² + |x→ - x|²)

What is found says what the unit answers to, not what it answers to among natural images: set the most-activating
patches of a data set beside it (`top_patches`). Which input excites a whole layer most (DeCAF features, say) is
`layer="fc7", unit=None`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int, Key

from dl_core.errors import UsageError, unknown_name
from dl_core.explain.layers import run_with_layer
from dl_core.explain.pieces import Progress
from dl_core.explain.target import ApplyFn, Target, check_target, select_target
from dl_core.loops import scan

PARAMETRIZATIONS = ("clip", "sigmoid")
_ADAM = optax.scale_by_adam()  # one object, so that two calls compile once

Images = Float[Array, "batch height width channels"]
Unit = Int[Array | np.ndarray, "..."] | int | tuple[int, ...] | Callable[[Float[Array, "batch ..."]], Any] | None


class ActivationMaximum(NamedTuple):
    """What was found, and how.

    images: [batch, height, width, channels], inside of the bounds.
    history: the objective of each image without penalties, before each step of each octave; the last row is that of the
      images returned.
    """

    images: Images
    history: Float[Array, "values batch"]


class _Options(NamedTuple):
    """Arrays, or None for what is switched off; a program is compiled for each choice of what is."""

    rate: Any  # times the optimizer's update
    low_high: Any = None  # bounds to clip to
    sigmoid: Any = None  # bounds of the sigmoid
    centre: Any = None
    norm: Any = None  # weight and power
    variation: Any = None  # weight
    least_gradient: Any = None  # added to the size that gradients are divided by
    blur: Any = None  # a matrix for the rows, one for the columns
    enlarge: Any = None  # likewise


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Name:
    """A layer's name among the arguments of a compiled function."""

    layer: str


def activation_maximization(
    apply_fn: ApplyFn,
    params: Any,
    target: Target | None,
    *,
    key: Key[Array, ""],
    shape: tuple[int, int, int, int] | None = None,
    init: Float[Array | np.ndarray, "batch height width channels"] | None = None,
    layer: str | None = None,
    unit: Unit = None,
    steps: int = 128,
    learning_rate: float = 0.05,
    optimizer: optax.GradientTransformation | None = None,
    octaves: int = 1,
    octave_scale: float = 1.4,
    fixed_size: bool = False,
    bounds: tuple[float, float] | None = (0.0, 1.0),
    parametrization: str = "clip",
    norm_weight: float = 0.0,
    norm_power: float = 2.0,
    total_variation_weight: float = 0.0,
    jitter: int = 0,
    blur_sigma: float = 0.0,
    blur_every: int = 4,
    normalize_gradients: bool = False,
    loop: str = "auto",
    progress: Progress | None = None,
) -> ActivationMaximum:
    """Images that maximise an output of the model, or what a layer inside of it computes.

    Args:
      apply_fn: (params, images) -> logits, as in inference.
      params: pytree of everything that apply_fn needs; never changed.
      target: a class, one class for each image, or a function of the logits, see `explained_output`; None with a layer.
      key: for the first image where there is no `init`, and for jitter.
      shape: [batch, height, width, channels] of the images, which start as faint noise around the middle of the bounds.
      init: where to start instead; clipped to the bounds. Its dtype does not matter, pixels are float32.
      layer: a layer in place of the output; see `list_layers`. Of one that ends in a ReLU, units that are silent at the
        start have no gradient: name the layer before it.
      unit: of a layer [batch, …, channels]: a channel (its mean over all positions), one channel for each image; the
        index of one value without the batch, e.g. (row, column, channel); a function of the layer, -> [batch]; or
        None for the whole layer, the mean of its squares.
      steps: of each octave, >= 1.
      learning_rate: of Adam, in units of the pixels; not used with an optimizer.
      optimizer: any Optax transformation, which minimises the negative objective, in place of Adam. One object for
        all calls compiles once.
      octaves: scales, from coarse to fine, >= 1; the images of one are enlarged to start the next.
      octave_scale: height and width grow by it from one octave to the next, > 1; the last has the size of `shape`.
      fixed_size: the model takes images of `shape` only (it has a dense layer): those of the coarse octaves are
        enlarged before it sees them. Otherwise it sees them small, where features are large parts of the image.
      bounds: lowest and highest pixel value, or None.
      parametrization: "clip" to the bounds after each step, or pixels are "sigmoid" functions of what is optimised
        (learning_rate is then in units of their argument).
      norm_weight, norm_power: of the mean of |x - c|^p; c is the middle of the bounds, or 0.
      total_variation_weight: of the mean squared difference of neighbours.
      jitter: the model sees the images rolled by up to so many pixels, anew in each step.
      blur_sigma: of a Gaussian blur after every `blur_every` steps, in pixels.
      blur_every: steps, >= 1.
      normalize_gradients: divides the gradient of each image by its root mean square (it matters to optimizers that,
        unlike Adam, go further where it is larger).
      loop: how the steps are driven; see `dl_core.loops`.
      progress: called with (steps done, steps in all); not inside `jit`.

    Returns:
      ActivationMaximum.

    Raises:
      UsageError: see `check_target`; no such layer or unit; options out of range or at odds with each other.
    """
    numbers = {"steps": steps, "octaves": octaves, "blur_every": blur_every}
    _check_numbers(numbers, octave_scale, bounds, norm_power)
    weights = {"norm_weight": norm_weight, "total_variation_weight": total_variation_weight, "blur_sigma": blur_sigma}
    for name, value in {**weights, "jitter": jitter}.items():
        if value < 0:
            raise UsageError(f"{name} must not be negative, got {value}; 0 switches it off")
    if learning_rate <= 0:
        raise UsageError(f"learning_rate must be above 0, got {learning_rate}")
    if parametrization not in PARAMETRIZATIONS:
        raise unknown_name("parametrization", parametrization, PARAMETRIZATIONS)
    if parametrization == "sigmoid" and bounds is None:
        raise UsageError('parametrization="sigmoid" needs bounds; give them, or take "clip" with bounds=None')
    start_key, jitter_key = jax.random.split(key)
    images = _first_images(start_key, shape, init, bounds)
    sizes = [[round(n / octave_scale**i) for n in images.shape[1:3]] for i in reversed(range(octaves))]
    if min(sizes[0]) < 1:
        raise UsageError(f"{octaves} octaves shrink images of {list(images.shape[1:3])} to nothing; take fewer")
    whole = images.shape
    images = _resized(images, sizes[0])
    model, explained = _objective(
        apply_fn, params, target, layer, unit, _resized(images, whole[1:3]) if fixed_size else images
    )

    take = _ADAM if optimizer is None else optimizer
    middle = 0.0 if bounds is None else sum(bounds) / 2
    as_arrays = lambda *values: tuple(jnp.float32(value) for value in values)
    options = _Options(
        *as_arrays(-learning_rate if optimizer is None else 1.0),
        low_high=as_arrays(*bounds) if bounds and parametrization == "clip" else None,
        sigmoid=as_arrays(*bounds) if bounds and parametrization == "sigmoid" else None,
        centre=jnp.float32(middle),
        norm=as_arrays(norm_weight, norm_power) if norm_weight else None,
        variation=jnp.float32(total_variation_weight) if total_variation_weight else None,
        least_gradient=jnp.float32(1e-8) if normalize_gradients else None,
    )
    history = []
    for i, size in enumerate(sizes):
        images = _resized(images, size)
        options = options._replace(
            blur=tuple(_blur_matrix(n, blur_sigma) for n in size) if blur_sigma else None,
            enlarge=tuple(map(_resized_axis, size, whole[1:3])) if fixed_size and i + 1 < octaves else None,
        )
        canvas = _inverse(images, options)
        offsets = jax.random.randint(jax.random.fold_in(jitter_key, i), (steps, 2), -jitter, jitter + 1)
        blurred = (np.arange(1, steps + 1) % blur_every == 0) & (blur_sigma > 0)
        step = Partial(_step, model, params, explained, Partial(take.update), options)
        report = None if progress is None else Partial(_report, progress, i * steps, octaves * steps)
        xs = (offsets if jitter else None, jnp.asarray(blurred))
        (canvas, _), values = scan(step, (canvas, take.init(canvas)), xs, loop=loop, progress=report)
        history.append(values)
        images = _pixels(canvas, options._replace(enlarge=None))
    return ActivationMaximum(images, jnp.concatenate([*history, _value(model, params, explained, images)[None]]))


def activation_of(apply_fn: ApplyFn, layer: str) -> Partial:
    """(params, images) -> the value of a layer; equal for equal arguments, so that it is compiled once.

    Args:
      apply_fn: (params, images) -> logits.
      layer: its name, see `list_layers`; looked up when the function is called.

    Returns:
      A function whose result is [batch, ...].
    """
    return Partial(_activation, _Name(layer), Partial(apply_fn))


def _report(progress: Progress, before: int, total: int, done: int, _: int) -> None:
    progress(before + done, total)


def _check_numbers(
    numbers: dict[str, int], octave_scale: float, bounds: tuple[float, float] | None, norm_power: float
) -> None:
    for name, value in numbers.items():
        if value < 1:
            raise UsageError(f"{name} must be at least 1, got {value}")
    if octave_scale <= 1:
        raise UsageError(f"octave_scale must be above 1, got {octave_scale}; images grow by it")
    if norm_power < 1:
        raise UsageError(f"norm_power must be at least 1, got {norm_power}")
    if bounds is not None and not bounds[0] < bounds[1]:
        raise UsageError(f"bounds must be (lowest, highest) pixel value, got {bounds}; None for no bounds")


def _first_images(
    key: Key[Array, ""], shape: tuple[int, ...] | None, init: Any, bounds: tuple[float, float] | None
) -> Images:
    low, high = bounds or (-1.0, 1.0)
    if (shape is None) == (init is None):
        raise UsageError("give either shape or init: the size of the images, or where they start")
    given = shape if init is None else jnp.shape(init)
    assert given is not None
    if len(given) != 4 or any(n < 1 for n in given):
        raise UsageError(f"images are [batch, height, width, channels], got {list(given)}")
    if init is None:
        return (low + high) / 2 + 0.01 * (high - low) * jax.random.normal(key, given)
    images = jnp.asarray(init, jnp.float32)
    return images if bounds is None else jnp.clip(images, low, high)


def _objective(
    apply_fn: ApplyFn, params: Any, target: Target | None, layer: str | None, unit: Unit, images: Images
) -> tuple[Partial, Any]:
    """(params, images) -> logits or activations, and what of them is maximised; refused if it cannot be."""
    model = Partial(apply_fn)
    try:
        jax.eval_shape(apply_fn, params, images)
    except Exception as error:
        raise UsageError(
            f"the model does not take images of shape {list(images.shape)}: {error}; if it takes one size only, give "
            "that as the shape, and fixed_size=True with octaves"
        ) from error
    if layer is None:
        if unit is not None or target is None:
            raise UsageError("without a layer, give a target and no unit: a class, or a function of the logits")
        return model, check_target(model, params, images, target)
    if target is not None:
        raise UsageError(f"with layer={layer!r} the target is None: unit says what of the layer is maximised")
    model = activation_of(apply_fn, layer)
    found = jax.eval_shape(model, params, images).shape
    if unit is None:
        return model, check_target(model, params, images, Partial(_mean_square))
    if callable(unit):
        return model, check_target(model, params, images, unit)
    if isinstance(unit, tuple):
        if len(unit) != len(found) - 1 or any(not 0 <= i < n for i, n in zip(unit, found[1:], strict=True)):
            raise UsageError(f"unit {unit} is not in layer {layer!r} of shape {list(found[1:])}")
        return model, check_target(model, params, images, Partial(_value_at, tuple(map(jnp.int32, unit))))
    if not isinstance(unit, Tracer) and not ((np.asarray(unit) >= 0) & (np.asarray(unit) < found[-1])).all():
        raise UsageError(f"unit must be in [0, {found[-1]}), the channels of layer {layer!r}; got {unit}")
    model = Partial(_channel_means, model)
    return model, check_target(model, params, images, unit)


def _activation(name: _Name, apply_fn: Partial, params: Any, images: Images) -> Float[Array, "batch ..."]:
    return run_with_layer(apply_fn, params, images, name.layer)[1]


def _channel_means(model: Partial, params: Any, images: Images) -> Float[Array, "batch units"]:
    activation = model(params, images)
    return activation.reshape(len(activation), -1, activation.shape[-1]).mean(axis=1)


def _mean_square(activation: Float[Array, "batch ..."]) -> Float[Array, " batch"]:
    return jnp.square(activation).reshape(len(activation), -1).mean(axis=1)


def _value_at(index: tuple[Any, ...], activation: Float[Array, "batch ..."]) -> Float[Array, " batch"]:
    return activation[(slice(None), *index)]


def _step(
    model: Partial,
    params: Any,
    target: Any,
    update: Partial,
    options: _Options,
    carry: tuple[Images, Any],
    x: tuple[Int[Array, "2"] | None, Any],
) -> tuple[tuple[Images, Any], Float[Array, " batch"]]:
    (canvas, state), (offset, blur_now) = carry, x

    def penalised(canvas: Images) -> tuple[Float[Array, ""], Float[Array, " batch"]]:
        images = _pixels(canvas, options)
        seen = images if offset is None else jnp.roll(images, offset, axis=(1, 2))
        values = _value(model, params, target, seen)
        return (values - _penalty(images, options)).sum(), values

    gradient, values = jax.grad(penalised, has_aux=True)(canvas)
    if options.least_gradient is not None:
        size = jnp.sqrt(jnp.square(gradient).mean(axis=(1, 2, 3), keepdims=True))
        gradient = gradient / (size + options.least_gradient)
    change, state = update(-gradient, state, canvas)  # optimizers descend
    canvas = canvas + options.rate * change
    if options.blur is not None:
        canvas = jnp.where(blur_now, _along_axes(options.blur, canvas), canvas)
    if options.low_high is not None:
        canvas = jnp.clip(canvas, *options.low_high)
    return (canvas, state), values


def _penalty(images: Images, options: _Options) -> Float[Array, " batch"] | float:
    penalty = 0.0
    if options.norm is not None:
        weight, power = options.norm
        distance = jnp.abs(images - options.centre)
        safe = jnp.where(distance > 0, distance, 1.0)  # the derivative of 0^p is NaN
        penalty += weight * jnp.where(distance > 0, safe**power, 0.0).mean(axis=(1, 2, 3))
    if options.variation is not None:
        for axis in (1, 2):
            if images.shape[axis] > 1:
                penalty += options.variation * jnp.square(jnp.diff(images, axis=axis)).mean(axis=(1, 2, 3))
    return penalty


def _pixels(canvas: Images, options: _Options) -> Float[Array, "batch _ _ channels"]:
    """What the model sees of what is optimised."""
    if options.sigmoid is not None:
        low, high = options.sigmoid
        canvas = low + (high - low) * jax.nn.sigmoid(canvas)
    return canvas if options.enlarge is None else _along_axes(options.enlarge, canvas)


def _inverse(images: Images, options: _Options) -> Images:
    if options.sigmoid is None:
        return images
    low, high = options.sigmoid
    return jax.scipy.special.logit(jnp.clip((images - low) / (high - low), 0.01, 0.99))  # where it still has a slope


def _along_axes(matrices: tuple[Any, Any], images: Images) -> Float[Array, "batch _ _ channels"]:
    rows, columns = matrices
    return jnp.einsum("yh,bhwc,xw->byxc", rows, images, columns, precision="highest")


def _blur_matrix(n: int, sigma: float) -> Float[Array, "n n"]:
    weights = np.exp(-0.5 * (np.subtract.outer(np.arange(n), np.arange(n)) / sigma) ** 2)
    return jnp.asarray(weights / weights.sum(axis=1, keepdims=True), jnp.float32)


def _resized_axis(n: int, size: int) -> Float[Array, "size n"]:
    return jax.image.resize(jnp.eye(n), (size, n), "linear")


def _resized(images: Images, size: Any) -> Float[Array, "batch _ _ channels"]:
    if tuple(size) == images.shape[1:3]:
        return images
    return jax.image.resize(images, (len(images), *size, images.shape[3]), "linear")


@jax.jit
def _value(model: Partial, params: Any, target: Any, images: Images) -> Float[Array, " batch"]:
    output = model(params, images)  # of any rank, where a function tells what of it counts
    values = target(output) if callable(target) else select_target(output, target)
    return jnp.asarray(values, jnp.float32)
