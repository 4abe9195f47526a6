"""Named feature maps: the one way in which every family shows what happens inside.

A module passes each map that has a name through `name_feature_map(self, "stage1", x)`. It costs nothing until asked:

* `features(model, variables, x)` returns all named maps of one evaluation pass.
* A "perturbations" collection, e.g. `{**variables, "perturbations": {"stage4": delta}}`, adds `delta` to that map on
  the way. The gradient with respect to `delta` at 0 is the gradient with respect to the map.
* `feature_strides(model, input_shape)` tells how many pixels of the image each map advances a step.

Images come out as [batch, height, width, channels], vectors as [batch, channels], attention weights as [batch, heads,
queries, keys].
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

_GROWTH = 64 * 3 * 7  # pixels: a multiple of the strides 1, 2, … 64, and of patches of 12, 14 and 28


def name_feature_map(module: nn.Module, name: str, x: Float[Array, "batch ..."]) -> Float[Array, "batch ..."]:
    """Records a feature map under a name, inside a compact method.

    Args:
      module: the module that owns the map (`self`).
      name: "stem", "stage1", …, "penultimate" (the vector that enters the last linear layer).
      x: the map.

    Returns:
      The map to go on with: x, plus the perturbation under this name if there is one.
    """
    if module.has_variable("perturbations", name):
        x = x + module.get_variable("perturbations", name)
    if not module.is_initializing():  # `init` would store the maps among the variables
        module.sow("features", name, x, init_fn=lambda: None, reduce_fn=lambda _, last: last)
    return checkpoint_name(x, name)  # so that explanations find the map by name; it computes nothing


def feature_maps_wanted(module: nn.Module, name: str) -> bool:
    """Whether a map of this name is asked for or perturbed: for maps whose form costs something to make (no arrays)."""
    return module.is_mutable_collection("features") or module.has_variable("perturbations", name)


def features(
    model: nn.Module, variables: Any, x: Float[Array | np.ndarray, "batch ..."]
) -> dict[str, Float[Array, "batch ..."]]:
    """The named feature maps of a model in evaluation mode, in the order of computation.

    Args:
      model: any model of the registry.
      variables: its variables, e.g. {"params": …, "batch_stats": …}.
      x: inputs, e.g. [batch, height, width, channels].

    Returns:
      name -> map in the model's compute dtype, e.g. "stage1": [batch, height, width, channels].
    """
    _, recorded = model.apply(variables, x, train=False, mutable=["features"])
    return dict(recorded["features"])


def feature_strides(model: nn.Module, input_shape: tuple[int, int, int]) -> dict[str, int]:
    """How many pixels of the image each named map advances a step: what FPN, U-Net and Grad-CAM need to place it.

    Nothing is computed: the shapes of the maps are compared with those for an image that is larger by a multiple of all
    usual strides, so that borders do not matter (Inception's 35×35 map of 299 pixels has stride 8).

    Args:
      model: any model of the registry that takes images.
      input_shape: height, width and channels of an image that it takes.

    Returns:
      name -> stride in pixels, the same along height and width, in the order of computation. Vectors, attention weights
      and maps of a size that does not grow with the image are left out.
    """
    small, large = (_shapes(model, input_shape, extra) for extra in (0, _GROWTH))
    growing = [name for name, shape in small.items() if len(shape) == 4 and large[name][1] > shape[1]]
    return {name: round(_GROWTH / (large[name][1] - small[name][1])) for name in growing}


def _shapes(model: nn.Module, input_shape: tuple[int, int, int], extra: int) -> dict[str, tuple[int, ...]]:
    """The shapes of the maps of an image that is larger by some pixels, in the order of computation."""
    names = []

    def maps(key: Array, x: Array) -> list[Array]:
        # parameters are made on the way: half the work of `init` first, where maps are not recorded
        _, made = model.apply({}, x, train=False, rngs={"params": key}, mutable=True)
        recorded = made.get("features", {})
        names.extend(recorded)  # a dictionary would come back sorted
        return list(recorded.values())

    height, width, channels = input_shape
    images = jax.ShapeDtypeStruct((1, height + extra, width + extra, channels), jnp.float32)
    shapes = jax.eval_shape(maps, jax.random.key(0), images)
    return {name: value.shape for name, value in zip(names, shapes, strict=True)}
