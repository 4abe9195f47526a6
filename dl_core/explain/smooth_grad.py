"""Explanations averaged over noisy copies of the input, in which the fine, fluctuating part of a gradient cancels.

Smilkov et al. (2017), "SmoothGrad: removing noise by adding noise", https://arxiv.org/abs/1706.03825; squared: Hooker
et al. (2019), "A Benchmark for Interpretability Methods", https://arxiv.org/abs/1806.10758; VarGrad: Adebayo et al.
(2018), "Sanity Checks for Saliency Maps", https://arxiv.org/abs/1810.03292.

    smooth = mean_k a(x + σ ε_k)        squared = mean_k a(x + σ ε_k)²        variance = mean_k a² - (mean_k a)²
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int, Key

from dl_core.augment.policies import per_image_keys
from dl_core.errors import UsageError, unknown_name
from dl_core.explain.gradients import input_gradient
from dl_core.explain.path_integration import accumulated
from dl_core.explain.pieces import Progress, sum_over, variants_at_once
from dl_core.explain.target import ApplyFn, Target, check_target
from dl_core.optim.options import in_interval

KINDS = ("smooth", "squared", "variance")
Keys = Key[Array, ""] | Key[Array, " batch"]
Deviation = float | Float[Array | np.ndarray, ""] | Float[Array | np.ndarray, " batch"]


def smooth_grad(
    apply_fn: ApplyFn,
    params: Any,
    inputs: Float[Array, "batch ..."],
    target: Target,
    *,
    key: Keys,
    n_samples: int = 50,
    noise_level: Deviation = 0.15,
    stdevs: Deviation | None = None,
    kind: str = "smooth",
    method: Callable[..., Any] = input_gradient,
    internal_batch_size: int | None = None,
    loop: str = "auto",
    progress: Progress | None = None,
) -> Float[Array, "batch ..."]:
    """SmoothGrad, SmoothGrad-squared and VarGrad of the gradient, or of any other explanation.

    The noise of an example depends on its key and on the number of the sample only: not on the other examples, not on
    the memory, and the first samples of a longer run are those of a shorter one.

    Args:
      apply_fn: (params, inputs) -> logits, as in inference.
      params: pytree of everything that apply_fn needs; never changed.
      inputs: the examples to explain.
      target: a class, one class for each example, or a function of the logits; see `explained_output`.
      key: one key, from which example i takes fold_in(key, i); or one for each example, with which a data set that is
        explained in batches gets the same noise for any division.
      n_samples: noisy copies of each example, >= 1 (for the variance >= 2).
      noise_level: standard deviation of the noise as a share of the example's range (largest minus smallest value),
        >= 0; one number, or one for each example.
      stdevs: standard deviation in units of the inputs, >= 0, in place of noise_level; one, or one for each example.
      kind: "smooth", "squared" or "variance", which divides by n_samples (not by n_samples - 1).
      method: (apply_fn, params, inputs, target) -> attributions, what is averaged: the signed gradient, or e.g.
        `gradient_x_input` or `functools.partial(integrated_gradients, n_steps=8)`. Define it once and use it again: a
        new function is compiled anew.
      internal_batch_size: most rows (examples × samples) that the method is given at once; None bounds their size
        instead. Smaller needs less memory and gives the same result.
      loop: how the pieces are driven; see `dl_core.loops`.
      progress: called with (pieces done, pieces in all); not inside `jit`.

    Returns:
      Of the shape of the method's attributions (that of the inputs) and of their dtype.

    Raises:
      UsageError: see `check_target`; no key, an unknown kind, too few samples, a negative deviation, a method that
        cannot be called, or internal_batch_size below 1.
    """
    target = check_target(apply_fn, params, inputs, target, differentiable=method is input_gradient)
    if kind not in KINDS:
        raise unknown_name("kind", kind, KINDS)
    in_interval("n_samples", n_samples, "[2, inf)" if kind == "variance" else "[1, inf)", integer=True)
    if not callable(method):
        raise UsageError(
            f"method must be a function (apply_fn, params, inputs, target) -> attributions, got {method!r}; "
            "e.g. gradient_x_input, or functools.partial(integrated_gradients, n_steps=8)"
        )
    keys = example_keys(key, len(inputs))
    name, level = ("noise_level", noise_level) if stdevs is None else ("stdevs", stdevs)
    deviation = _deviation(inputs, deviations(name, level, inputs), relative=stdevs is None)
    at_once = variants_at_once(internal_batch_size, inputs, n_samples)
    model, explanation = Partial(apply_fn), Partial(method)
    # The variance is a difference of two means; taken around a value of their size, it loses no digits.
    centre = _explain(explanation, model, params, inputs, target) if kind == "variance" else None
    sample = Partial(
        _sample, Partial(_POWERS[kind]), explanation, model, params, inputs, target, keys, deviation, centre
    )
    sums = sum_over(sample, np.arange(n_samples, dtype=np.int32), at_once=at_once, loop=loop, progress=progress)
    return _finish(sums, inputs, n_samples=n_samples)


def example_keys(key: Keys, batch: int) -> Key[Array, " batch"]:
    """A key for each example; see `per_image_keys`.

    Args:
      key: one, or as many as examples.
      batch: how many examples.

    Returns:
      Keys.

    Raises:
      UsageError: not keys of `jax.random.key`, or another number of them.
    """
    if not jnp.issubdtype(getattr(key, "dtype", bool), jax.dtypes.prng_key) or key.shape not in ((), (batch,)):
        given = f"{key.dtype} of shape {list(key.shape)}" if hasattr(key, "dtype") else repr(key)
        raise UsageError(
            f"key must be a key, e.g. jax.random.key(0), or one for each of the {batch} examples; got {given}"
        )
    return per_image_keys(key, batch)


def deviations(name: str, value: Deviation, inputs: Float[Array, "batch ..."]) -> Float[Array, "batch ..."]:
    """A standard deviation for each example.

    Args:
      name: of the option, for the message.
      value: what the user gave, one number or one for each example.
      inputs: the examples.

    Returns:
      [batch, 1, ...], to be multiplied by noise of the shape of the inputs, in at least float32.

    Raises:
      UsageError: another shape, or (where the value is known) a number that is not in [0, inf).
    """
    batch = len(inputs)
    if jnp.shape(value) not in ((), (batch,)):
        raise UsageError(
            f"{name} must be one number or one for each of the {batch} examples, got shape {list(jnp.shape(value))}"
        )
    if not isinstance(value, Tracer):
        for number in np.ravel(np.asarray(value)).tolist():
            in_interval(name, number, "[0, inf)")
    spread = jnp.broadcast_to(jnp.asarray(value, accumulated(inputs)), (batch,))
    return spread.reshape(batch, *(1,) * (inputs.ndim - 1))


def noise_like(
    keys: Key[Array, " batch"], sample: Int[Array, ""], inputs: Float[Array, "batch ..."]
) -> Float[Array, "batch ..."]:
    """Standard normal noise, each example's own, in at least float32.

    Args:
      keys: of the examples.
      sample: its number.
      inputs: the examples.

    Returns:
      Of the shape of the inputs.
    """
    draw = lambda key: jax.random.normal(jax.random.fold_in(key, sample), inputs.shape[1:], accumulated(inputs))
    return jax.vmap(draw)(keys)


_POWERS = {
    "smooth": lambda attributions: (attributions,),
    "squared": lambda attributions: (jnp.square(attributions),),
    "variance": lambda attributions: (attributions, jnp.square(attributions)),
}


def _sample(
    powers: Callable[..., Any],
    method: Callable[..., Any],
    apply_fn: ApplyFn,
    params: Any,
    inputs: Float[Array, "batch ..."],
    target: Target,
    keys: Key[Array, " batch"],
    deviation: Float[Array, "batch ..."],
    centre: Float[Array, "batch ..."] | None,
    sample: Int[Array, ""],
) -> tuple[Float[Array, "batch ..."], ...]:
    noisy = inputs.astype(deviation.dtype) + deviation * noise_like(keys, sample, inputs)
    attributions = _attributions(method, apply_fn, params, noisy.astype(inputs.dtype), target)
    return powers(attributions if centre is None else attributions - centre)


def _attributions(
    method: Callable[..., Any], apply_fn: ApplyFn, params: Any, inputs: Float[Array, "batch ..."], target: Target
) -> Float[Array, "batch ..."]:
    """Of a method that returns them alone or in a NamedTuple, in at least float32."""
    explained = method(apply_fn, params, inputs, target)
    attributions = getattr(explained, "attributions", explained)
    return attributions.astype(accumulated(attributions))


_explain = jax.jit(_attributions)


@functools.partial(jax.jit, static_argnames="relative")
def _deviation(
    inputs: Float[Array, "batch ..."], level: Float[Array, "batch ..."], relative: bool
) -> Float[Array, "batch ..."]:
    if not relative:
        return level
    axes = tuple(range(1, inputs.ndim))
    wide = inputs.astype(level.dtype)
    return level * (wide.max(axis=axes, keepdims=True) - wide.min(axis=axes, keepdims=True))


@functools.partial(jax.jit, static_argnames="n_samples")
def _finish(
    sums: tuple[Float[Array, "batch ..."], ...], inputs: Float[Array, "batch ..."], n_samples: int
) -> Float[Array, "batch ..."]:
    means = [total / n_samples for total in sums]
    result = means[0] if len(means) == 1 else jnp.maximum(means[1] - jnp.square(means[0]), 0)
    return result.astype(inputs.dtype)
