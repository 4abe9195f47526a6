"""Transfer: which parameters of a pretrained network move, from when on, and how fast.

Parameters are named by their path, "layer1_0/conv1/kernel", and chosen by shell patterns. A pattern names a leaf or a
module with all it holds: "layer1_0" and "layer1_0/*" are the same, "layer[12]_*" are two stages, "*/kernel" all kernels
of submodules; "|" separates alternatives. Groups of layers run from the input to the head:

    groups = layer_groups(parameter_order(model.init, key, images))
    tx = optimizer("adamw", 1e-3)
    tx = optax.chain(tx, layerwise_learning_rates(groups, 0.5), gradual_unfreezing(groups, steps_per_group=100))
    tx = freeze(tx, ["conv1", "bn1"])

Feature extraction as in DeCAF (Donahue et al., 2014, https://arxiv.org/abs/1310.1531) is a network of which all but the
head is frozen. Layer-wise learning rates ("discriminative fine-tuning") and gradual unfreezing: Howard, Ruder (2018),
https://arxiv.org/abs/1801.06146, section 3.2-3.3. How far features carry over: Yosinski et al. (2014),
https://arxiv.org/abs/1411.1792.
"""

import difflib
import fnmatch
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree

from dl_core.errors import UsageError
from dl_core.optim.options import Number, in_interval


def path_matches(path: str, patterns: Iterable[str]) -> bool:
    """Whether any of the patterns names a leaf or a module that holds it (no arrays, no shapes).

    Args:
      path: of a leaf, e.g. "layer1_0/conv1/kernel".
      patterns: see the top of this file.
    """
    alternatives = [alternative for pattern in patterns for alternative in pattern.split("|")]
    return any(fnmatch.fnmatchcase(path, a) or fnmatch.fnmatchcase(path, f"{a}/*") for a in alternatives)


def matching(tree: PyTree, patterns: Sequence[str]) -> PyTree[bool]:
    """Which leaves the patterns name.

    Args:
      tree: parameters or statistics, any shapes.
      patterns: see the top of this file.

    Returns:
      The same pytree with a bool for every leaf.
    """
    return jax.tree_util.tree_map_with_path(lambda path, _: path_matches(_name(path), patterns), tree)


def freeze(optimizer: optax.GradientTransformation, patterns: Sequence[str]) -> optax.GradientTransformation:
    """An optimiser that leaves some parameters as they are, bit for bit, weight decay included.

    The optimiser does not see them: it keeps no state for them, and clips by the norm of the others' gradient.

    Args:
      optimizer: any Optax chain.
      patterns: what is frozen, see the top of this file.

    Returns:
      An Optax transformation.

    Raises:
      UsageError: when its state is made: a pattern that names no parameter, or patterns that name all.
    """

    def labels(params: PyTree) -> PyTree[str]:
        _check_patterns(params, patterns)
        return jax.tree.map(lambda frozen: "frozen" if frozen else "trained", matching(params, patterns))

    return optax.partition({"trained": optimizer, "frozen": optax.set_to_zero()}, labels)


def parameter_order(init: Callable[..., Any], *args: Any) -> tuple[str, ...]:
    """The paths of a model's parameters in the order in which the forward pass asks for them.

    A pytree that went through `jit` lists its keys in the order of the alphabet; a model that is being initialised
    lists them in the order of computation. Nothing is computed.

    Args:
      init: `model.init`, or any function that returns variables {"params": …} made there and then.
      *args: its arguments, or their shapes.

    Returns:
      Paths such as "conv1/kernel".
    """
    paths: list[str] = []

    def record(*args: Any) -> Any:
        variables = init(*args)
        paths.extend(_walk(variables["params"]))
        return variables

    jax.eval_shape(record, *args)
    return tuple(paths)


def layer_groups(paths: Sequence[str]) -> tuple[str, ...]:
    """Groups of layers from input to head: one for each top-level module that has a kernel.

    What has none (norms, class tokens) joins the group before it, the first ones the group after.

    Args:
      paths: from `parameter_order`, those of frozen parameters left out.

    Returns:
      One pattern for each group, e.g. ("conv1|bn1", "layer1_0", …, "fc").
    """
    tops = list(dict.fromkeys(path.split("/")[0] for path in paths))
    with_kernel = {path.split("/")[0] for path in paths if path.split("/")[-1] == "kernel"}
    groups: list[list[str]] = []
    for top in tops:
        if not groups or (top in with_kernel and any(name in with_kernel for name in groups[-1])):
            groups.append([])
        groups[-1].append(top)
    return tuple("|".join(group) for group in groups)


def group_numbers(params: PyTree, groups: Sequence[str]) -> PyTree[int]:
    """The group that each parameter belongs to.

    Args:
      params: any shapes.
      groups: one pattern for each; where several name a parameter, the first counts.

    Returns:
      The same pytree with a number in [0, len(groups)) for every leaf.

    Raises:
      UsageError: a parameter that no group names.
    """

    def number(path: Any, _: Any) -> int:
        name = _name(path)
        found = (place for place, pattern in enumerate(groups) if path_matches(name, [pattern]))
        place = next(found, None)
        if place is None:
            raise UsageError(f"the parameter {name!r} is in no group; the groups are {', '.join(map(repr, groups))}")
        return place

    return jax.tree_util.tree_map_with_path(number, params)


def layerwise_learning_rates(groups: Sequence[str], decay: Number) -> optax.GradientTransformation:
    """Scales the update of group l of L by decay^(L - 1 - l): the head learns at full rate, the input slowest.

    Put it after the optimiser. Howard, Ruder (2018), section 3.2, divide by 2.6 from layer to layer: decay = 1 / 2.6.

    Args:
      groups: patterns from input to head, e.g. from `layer_groups`.
      decay: in (0, 1]; 1 changes nothing.

    Returns:
      An Optax transformation without state.

    Raises:
      UsageError: decay out of range; later, a parameter that no group names.
    """
    in_interval("decay", decay, "(0, 1]")

    def scale(updates: PyTree, params: Any = None) -> PyTree:
        del params
        last = len(groups) - 1
        return jax.tree.map(
            lambda update, group: update * jnp.asarray(decay ** (last - group), update.dtype),
            updates, group_numbers(updates, groups),
        )  # fmt: skip

    return optax.stateless(scale)


class GradualUnfreezingState(NamedTuple):
    """step: number of updates so far."""

    step: Int[Array, ""]


def gradual_unfreezing(groups: Sequence[str], steps_per_group: int) -> optax.GradientTransformation:
    """Trains the head alone, then one group more every `steps_per_group` steps. Howard, Ruder (2018), section 3.3.

    Group l of L moves from step (L - 1 - l) · steps_per_group on. Put it after the optimiser: what is still frozen then
    stays as it is bit for bit, weight decay included, while the optimiser's averages of its gradient warm up.

    Args:
      groups: patterns from input to head, e.g. from `layer_groups`.
      steps_per_group: >= 1.

    Returns:
      An Optax transformation whose state is the number of steps.

    Raises:
      UsageError: steps_per_group < 1; later, a parameter that no group names.
    """
    in_interval("steps_per_group", steps_per_group, "[1, inf)", integer=True)

    def init(params: PyTree) -> GradualUnfreezingState:
        group_numbers(params, groups)
        return GradualUnfreezingState(jnp.zeros((), jnp.int32))

    def update(updates: PyTree, state: Any, params: Any = None) -> tuple[PyTree, GradualUnfreezingState]:
        del params
        last, thawed = len(groups) - 1, state.step // steps_per_group
        updates = jax.tree.map(
            # chosen, not multiplied by 0: an update that overflowed must not reach a frozen parameter
            lambda update, group: jnp.where(last - group <= thawed, update, jnp.zeros_like(update)),
            updates, group_numbers(updates, groups),
        )  # fmt: skip
        return updates, GradualUnfreezingState(jnp.asarray(optax.safe_increment(state.step)))

    return optax.GradientTransformation(init, update)


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _paths(tree: PyTree) -> tuple[str, ...]:
    return tuple(_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree))


def _walk(tree: Any, prefix: str = "") -> Iterable[str]:
    """The paths of nested dicts in the order of insertion, which `jax.tree` would sort."""
    for name, child in tree.items():
        if hasattr(child, "items"):
            yield from _walk(child, f"{prefix}{name}/")
        else:
            yield prefix + name


def _check_patterns(params: PyTree, patterns: Sequence[str]) -> None:
    paths = _paths(params)
    for pattern in patterns:
        if not any(path_matches(path, [pattern]) for path in paths):
            modules = {path.rsplit("/", depth)[0] for path in paths for depth in range(1, path.count("/") + 1)}
            near = difflib.get_close_matches(pattern, [*modules, *paths], n=1, cutoff=0.3)
            hint = f"; the nearest that does: {near[0]!r}" if near else ""
            raise UsageError(f"the pattern {pattern!r} names no parameter{hint}")
    if paths and all(path_matches(path, patterns) for path in paths):
        raise UsageError(
            f"the patterns {', '.join(map(repr, patterns))} freeze every parameter: nothing is left to train"
        )
