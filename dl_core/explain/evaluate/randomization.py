"""Sanity checks: an explanation of the model must change when the model does.

Adebayo, Gilmer, Muelly, Goodfellow, Hardt, Kim (2018), "Sanity Checks for Saliency Maps",
https://arxiv.org/abs/1810.03292, section 3 (model parameter and data randomisation).

Layers get fresh values one after another, from the output down (cascading) or each alone, and the explanations before
and after are compared. An explanation that stays alike did not depend on what those layers had learned.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from dl_core.errors import UsageError, unknown_name
from dl_core.explain.evaluate.explanation import Explain, explain_with, for_each
from dl_core.explain.evaluate.parameter_layers import PARAMS, choose_layers, leaves_by_path
from dl_core.explain.evaluate.similarity import Similarity, compare_attributions
from dl_core.explain.pieces import Progress
from dl_core.explain.target import ApplyFn, Target, check_target

ORDERS = ("top_down", "bottom_up", "independent")
FRESH = ("redraw", "permute")


class RandomizationTest(NamedTuple):
    """How alike the explanations of the model and of the randomised models are.

    layers: the names, in the order in which they were randomised.
    similarity: each field [steps, batch]; step s has the first s + 1 layers randomised, or layer s alone.
    """

    layers: tuple[str, ...]
    similarity: Similarity


def randomization_test(
    explain: Explain,
    apply_fn: ApplyFn,
    params: Any,
    inputs: Float[Array, "batch ..."],
    target: Target,
    *,
    key: Key[Array, ""],
    order: str = "top_down",
    layers: Sequence[str] | None = None,
    fresh: str = "redraw",
    foreground: Bool[Array | np.ndarray, "batch ..."] | None = None,
    loop: str = "auto",
    progress: Progress | None = None,
) -> RandomizationTest:
    """Similarity of the explanations as the model's layers are randomised.

    Running statistics of batch normalisation (whatever a Flax model keeps outside of "params") are left alone unless
    `layers` names them.

    Args:
      explain: (apply_fn, params, inputs, target) -> attributions; see `explain_with`.
      apply_fn: (params, inputs) -> logits, as in inference.
      params: pytree of everything that apply_fn needs; never changed.
      inputs: the examples to explain.
      target: what is explained; the same for all models.
      key: for the fresh values. A layer gets the same ones at every step and in every order.
      order: "top_down" randomises from the output down and keeps what is randomised (the paper's cascade), "bottom_up"
        likewise from the input up, "independent" each layer alone, from the output down.
      layers: names or beginnings of paths from the input up, see `choose_layers`; by default all of
        `parameter_layers`.
      fresh: how an array's values are replaced, see `randomize`.
      foreground: [batch, ...] of the shape of the inputs, True where a value counts in the foreground's correlations;
        by default wherever the input is not 0.
      loop: how the steps are driven; see `dl_core.loops`.
      progress: called with (steps done, steps in all).

    Returns:
      RandomizationTest.

    Raises:
      UsageError: an unknown order, way of refreshing or layer (the nearest names are said), a foreground of another
        shape; see `check_target`.
    """
    check_target(apply_fn, params, inputs, target, differentiable=False)
    if order not in ORDERS:
        raise unknown_name("order", order, ORDERS)
    chosen = choose_layers(apply_fn, params, inputs, layers)
    names = list(chosen) if order == "bottom_up" else list(chosen)[::-1]
    foreground = _foreground(foreground, inputs)
    new = randomize(params, chosen, key=key, fresh=fresh)
    original = explain_with(explain, apply_fn, params, inputs, target)
    flags = np.eye(len(names), dtype=bool) if order == "independent" else np.tri(len(names), dtype=bool)
    step_of = {path: place for place, name in enumerate(names) for path in chosen[name]}
    steps = tuple(step_of.get(path, -1) for path in leaves_by_path(params))

    def similarity(flags: Bool[Array, " layers"]) -> Similarity:
        randomised = explain_with(explain, apply_fn, _exchange(params, new, flags, steps), inputs, target)
        return compare_attributions(original, randomised, foreground)

    given = (params, inputs, target)
    similarities: Any = for_each(similarity, jnp.asarray(flags), loop=loop, progress=progress, given=given)
    return RandomizationTest(tuple(names), similarities)


def data_randomization_test(
    explain: Explain,
    apply_fn: ApplyFn,
    params: Any,
    params_of_random_labels: Any,
    inputs: Float[Array, "batch ..."],
    target: Target,
    *,
    foreground: Bool[Array | np.ndarray, "batch ..."] | None = None,
) -> Similarity:
    """Similarity of the explanations of a model and of one that was trained on shuffled labels (paper, section 3.2).

    Args:
      explain: (apply_fn, params, inputs, target) -> attributions; see `explain_with`.
      apply_fn: (params, inputs) -> logits, as in inference.
      params: of the model that was trained on the true labels.
      params_of_random_labels: of one trained alike on permuted labels until it fits them.
      inputs: the examples to explain.
      target: what is explained, in both.
      foreground: as in `randomization_test`.

    Returns:
      Similarity, one value for each example. High values mean that the explanation shows the input rather than what
      the model learned.

    Raises:
      UsageError: params of different structures or shapes; see `randomization_test`.
    """
    check_target(apply_fn, params, inputs, target, differentiable=False)
    shapes = [jax.tree.map(jnp.shape, tree) for tree in (params, params_of_random_labels)]
    if shapes[0] != shapes[1]:
        raise UsageError("params and params_of_random_labels must be of the same model: their arrays differ in shape")
    first, second = (
        explain_with(explain, apply_fn, either, inputs, target) for either in (params, params_of_random_labels)
    )
    return compare_attributions(first, second, _foreground(foreground, inputs))


def randomize(params: Any, layers: Mapping[str, Sequence[str]], *, key: Key[Array, ""], fresh: str = "redraw") -> Any:
    """The params with fresh values in the arrays of some layers.

    Args:
      params: pytree of arrays.
      layers: name -> paths of arrays [...], as `parameter_layers` returns them.
      key: for the values; each array has its own, which no other choice of layers changes.
      fresh: "redraw" from a normal distribution with the array's own mean and standard deviation (a constant array,
        such as biases at zero, stays), or "permute" the values that it has. What lies outside of a Flax model's
        "params" is permuted in any case: a variance must stay positive.

    Returns:
      The same structure, shapes and dtypes.

    Raises:
      UsageError: an unknown way of refreshing.
    """
    if fresh not in FRESH:
        raise unknown_name("fresh", fresh, FRESH)
    paths = {path for of_layer in layers.values() for path in of_layer}
    by_path = leaves_by_path(params)
    learned = lambda path: path.startswith(f"{PARAMS}/") or not any(name.startswith(f"{PARAMS}/") for name in by_path)
    leaves = [
        _fresh_values(jax.random.fold_in(key, place), leaf, redraw=fresh == "redraw" and learned(path))
        if path in paths
        else leaf
        for place, (path, leaf) in enumerate(by_path.items())
    ]
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


def _foreground(foreground: Any, inputs: Float[Array, "batch ..."]) -> Bool[Array, "batch ..."]:
    if foreground is None:
        return inputs != 0
    if jnp.shape(foreground) != inputs.shape or jnp.result_type(foreground) != jnp.bool_:
        raise UsageError(
            f"foreground must be booleans of the shape of the inputs, {list(inputs.shape)}; got "
            f"{jnp.result_type(foreground)} {list(jnp.shape(foreground))}"
        )
    return jnp.asarray(foreground)


@functools.partial(jax.jit, static_argnames="redraw")
def _fresh_values(key: Key[Array, ""], leaf: Float[Array, "..."], *, redraw: bool) -> Float[Array, "..."]:
    if not redraw:
        return jax.random.permutation(key, leaf.reshape(-1)).reshape(leaf.shape)
    wide = leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))
    return (wide.mean() + wide.std() * jax.random.normal(key, leaf.shape, wide.dtype)).astype(leaf.dtype)


@functools.partial(jax.jit, static_argnums=3)
def _exchange(params: Any, new: Any, flags: Bool[Array, " layers"], steps: tuple[int, ...]) -> Any:
    """Fresh values in the arrays whose layer is flagged; steps: the place of each array's layer, or -1."""
    olds, news = jax.tree.leaves(params), jax.tree.leaves(new)
    leaves = [
        old if step < 0 else jnp.where(flags[step], fresh, old)
        for old, fresh, step in zip(olds, news, steps, strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(params), leaves)
