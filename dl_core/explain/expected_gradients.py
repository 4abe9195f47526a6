"""Integrated gradients from many baselines: attribution against a background, not against one arbitrary image.

Erion, Janizek, Sturmfels, Lundberg, Lee (2021), "Improving performance of deep learning models with axiomatic
attribution priors and expected gradients", https://arxiv.org/abs/1906.10670, equation 4; GradientShap in SHAP, Captum.

    attribution_i = E_{b ~ background, α ~ U(0, 1)} [(x_i - b_i) ∂f_t / ∂x_i (b + α (x - b))]

The attributions of one example sum to f_t(x) - E_b f_t(b).
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int, Key

from dl_core.errors import UsageError
from dl_core.explain.gradients import input_gradient
from dl_core.explain.path_integration import (
    PathAttribution,
    accumulated,
    path_attribution,
    quadrature,
    straight_path,
)
from dl_core.explain.pieces import Progress, sum_over, variants_at_once
from dl_core.explain.smooth_grad import Deviation, Keys, deviations, example_keys
from dl_core.explain.target import ApplyFn, Target, check_target, explained_output, select_target
from dl_core.optim.options import in_interval


def expected_gradients(
    apply_fn: ApplyFn,
    params: Any,
    inputs: Float[Array, "batch ..."],
    target: Target,
    *,
    baselines: Float[Array | np.ndarray, "baselines ..."],
    key: Keys | None = None,
    n_samples: int = 200,
    stdevs: Deviation = 0.0,
    n_steps: int | None = None,
    method: str = "gausslegendre",
    internal_batch_size: int | None = None,
    loop: str = "auto",
    progress: Progress | None = None,
) -> PathAttribution:
    """The mean of integrated gradients over a set of baselines, by random samples or from every one of them.

    With `key`, each of n_samples draws a baseline and a point of the way to the input for each example. The draws of
    an example depend on its key and on the number of the sample only, as in `smooth_grad`. The gap is then mostly
    the error of sampling, which falls as 1 / √n_samples.

    With `n_steps`, nothing is random: every baseline is taken with n_steps nodes of a quadrature, which costs
    baselines × n_steps gradients of each example and leaves the small gap of integrated gradients.

    Args:
      apply_fn: (params, inputs) -> logits, as in inference.
      params: pytree of everything that apply_fn needs; never changed.
      inputs: the examples to explain.
      target: a class, one class for each example, or a function of the logits; see `explained_output`.
      baselines: the background: a set of any number of examples, the same for all inputs.
      key: one key, or one for each example.
      n_samples: draws for each example, >= 1.
      stdevs: standard deviation of noise that is added to the inputs in each draw, in their units, >= 0; one number, or
        one for each example. Noise stays in the gap.
      n_steps: nodes for each baseline, >= 1, in place of a key.
      method: the quadrature; see `integrated_gradients`.
      internal_batch_size: most rows that apply_fn is given at once; None bounds their size instead. Smaller needs less
        memory and gives the same result.
      loop: how the pieces are driven; see `dl_core.loops`.
      progress: called with (pieces done, pieces in all); not inside `jit`.

    Returns:
      PathAttribution, whose gap compares with the mean of the explained output over the background.

    Raises:
      UsageError: see `check_target`; baselines that are no set of examples, both or none of key and n_steps, a number
        out of its range, or an unknown method.
    """
    target = check_target(apply_fn, params, inputs, target)
    background = _background(baselines, inputs)
    if (key is None) == (n_steps is None):
        raise UsageError(
            "give either key=jax.random.key(…), for n_samples random draws, or n_steps=…, for every baseline with so "
            f"many nodes; got {'neither' if key is None else 'both'}"
        )
    model, size = Partial(apply_fn), len(background)
    if n_steps is not None:
        if not isinstance(stdevs, int | float) or stdevs:
            raise UsageError("stdevs is noise, and without a key nothing is random; give key= in place of n_steps=")
        nodes, weights = quadrature(method, n_steps, accumulated(inputs))
        every = np.repeat(np.arange(size, dtype=np.int32), n_steps)
        xs = (every, np.tile(nodes, size), np.tile(weights, size) / np.asarray(size, weights.dtype))
        at_node, count = Partial(_node, model, params, inputs, target, background), size * n_steps
    else:
        in_interval("n_samples", n_samples, "[1, inf)", integer=True)
        assert key is not None, "checked above"
        noise = deviations("stdevs", stdevs, inputs)
        xs, count = np.arange(n_samples, dtype=np.int32), n_samples
        at_node = Partial(_draw, model, params, inputs, target, background, example_keys(key, len(inputs)), noise)
    at_once = variants_at_once(internal_batch_size, inputs, count)
    total = sum_over(at_node, xs, at_once=at_once, loop=loop, progress=progress)

    at_once = variants_at_once(internal_batch_size, background[:1], size)
    output = Partial(_output_of_baseline, model, params, inputs, target, background)
    outputs = sum_over(output, np.arange(size, dtype=np.int32), at_once=at_once, loop=loop)
    return _finish(model, params, inputs, target, total, outputs, n_samples if n_steps is None else 1, size)


def _background(
    baselines: Float[Array | np.ndarray, "baselines ..."], inputs: Float[Array, "batch ..."]
) -> Float[Array, "baselines ..."]:
    given, example = jnp.shape(baselines), inputs.shape[1:]
    if given[1:] != example or len(given) == 0 or given[0] == 0:
        hint = "; one baseline is for integrated_gradients" if given in ((), example) else ""
        raise UsageError(
            f"baselines must be a set of examples, [any number, {', '.join(map(str, example))}], got shape "
            f"{list(given)}{hint}"
        )
    return jnp.asarray(baselines, inputs.dtype)


def _node(
    apply_fn: ApplyFn,
    params: Any,
    inputs: Float[Array, "batch ..."],
    target: Target,
    background: Float[Array, "baselines ..."],
    index_node_weight: tuple[Int[Array, ""], Float[Array, ""], Float[Array, ""]],
) -> Float[Array, "batch ..."]:
    index, node, weight = index_node_weight
    start = jnp.broadcast_to(background[index][None], inputs.shape)
    point, difference = straight_path(start, inputs, node)
    return weight * difference * input_gradient(apply_fn, params, point, target)


def _draw(
    apply_fn: ApplyFn,
    params: Any,
    inputs: Float[Array, "batch ..."],
    target: Target,
    background: Float[Array, "baselines ..."],
    keys: Key[Array, " batch"],
    deviation: Float[Array, "batch ..."],
    sample: Int[Array, ""],
) -> Float[Array, "batch ..."]:
    wide = accumulated(inputs)

    def draw(key: Key[Array, ""]) -> tuple[Int[Array, ""], Float[Array, ""], Float[Array, "..."]]:
        which, where, noise = jax.random.split(jax.random.fold_in(key, sample), 3)
        index = jax.random.randint(which, (), 0, len(background))
        return index, jax.random.uniform(where, (), wide), jax.random.normal(noise, inputs.shape[1:], wide)

    indices, nodes, noise = jax.vmap(draw)(keys)
    noisy = (inputs.astype(wide) + deviation * noise).astype(inputs.dtype)
    nodes = nodes.reshape(deviation.shape)
    point, difference = straight_path(background[indices], noisy, nodes)
    return difference * input_gradient(apply_fn, params, point, target)


def _output_of_baseline(
    apply_fn: ApplyFn,
    params: Any,
    inputs: Float[Array, "batch ..."],
    target: Target,
    background: Float[Array, "baselines ..."],
    index: Int[Array, ""],
) -> Float[Array, " batch"]:
    """What is explained of each example, had it been this baseline."""
    logits = apply_fn(params, background[index][None])
    return select_target(jnp.broadcast_to(logits, (len(inputs), *logits.shape[1:])), target)


@jax.jit
def _finish(
    apply_fn: ApplyFn,
    params: Any,
    inputs: Float[Array, "batch ..."],
    target: Target,
    total: Float[Array, "batch ..."],
    outputs: Float[Array, " batch"],
    count: Int[Array, ""],
    size: Int[Array, ""],
) -> PathAttribution:
    after = explained_output(apply_fn, params, inputs, target)
    return path_attribution(total / count, outputs / size, after, inputs.dtype)
