"""What is true of a scene, derived from its description: classes, instances, masks, boxes, visibility.

All functions take one scene without a batch axis and are pure; `vmap` them for a batch. A pixel belongs to an object
if its centre lies inside the silhouette; an object is seen in a pixel if it is the nearest one there. Boxes are
[x_min, y_min, x_max, y_max] in pixels, the last two exclusive: a box around one pixel is one wide and one high.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from dl_core.data.scenes.description import BASE_KINDS, COLOURS, FILLS, Scene
from dl_core.data.scenes.render import silhouette
from dl_core.errors import unknown_name

TARGETS = ("kind", "colour", "fill", "count")
MOST_COUNTED = 8  # classes of "count"
FARTHEST = np.iinfo(np.int32).max  # depth of what is not there


def masks(scene: Scene, size: int) -> Bool[Array, "objects height width"]:
    """Amodal masks: every pixel of an object, whether another one hides it or not.

    Args:
      scene: one scene.
      size: height and width in pixels.

    Returns:
      False everywhere for an object that is not valid.
    """
    distance = jax.vmap(lambda index: silhouette(scene, index, size))(jnp.arange(len(scene.valid)))
    return (distance < 0) & scene.valid[:, None, None]


def visible_masks(scene: Scene, size: int) -> Bool[Array, "objects height width"]:
    """The part of each mask that no nearer object covers: no pixel belongs to two.

    Args:
      scene: one scene.
      size: height and width in pixels.

    Returns:
      Subsets of `masks`.
    """
    amodal = masks(scene, size)
    ranks = jnp.where(amodal, scene.depth[:, None, None], FARTHEST)
    return amodal & (ranks == ranks.min(axis=0, keepdims=True))


def instance_ids(scene: Scene, size: int) -> Int[Array, "height width"]:
    """Which object each pixel shows: 0 is the background, i + 1 object i.

    Args:
      scene: one scene.
      size: height and width in pixels.

    Returns:
      int32.
    """
    identity = jnp.arange(1, len(scene.valid) + 1, dtype=jnp.int32)
    return (visible_masks(scene, size) * identity[:, None, None]).sum(axis=0, dtype=jnp.int32)


def semantic_map(scene: Scene, size: int, *, target: str = "kind") -> Int[Array, "height width"]:
    """Which class each pixel shows: 0 is the background, c + 1 class c.

    Args:
      scene: one scene.
      size: height and width in pixels.
      target: the attribute that is the class: "kind" (of all eight), "colour" or "fill".

    Returns:
      int32.

    Raises:
      UsageError: the target is unknown.
    """
    if target not in TARGETS[:3]:
        raise unknown_name("target", target, TARGETS[:3])
    classes = jnp.concatenate([jnp.zeros(1, jnp.int32), getattr(scene, target) + 1])
    return classes[instance_ids(scene, size)]


def boxes(masks: Bool[Array, "objects height width"]) -> Float[Array, "objects 4"]:
    """The smallest box around each mask.

    Args:
      masks: `masks` for amodal boxes, `visible_masks` for the boxes of what is seen.

    Returns:
      Pixels, zeros for an empty mask.
    """
    ends = [_first_and_last(masks.any(axis=axis)) for axis in (1, 2)]  # of the columns, of the rows
    corners = jnp.stack([ends[0][0], ends[1][0], ends[0][1], ends[1][1]], axis=1)
    return jnp.where(masks.any(axis=(1, 2))[:, None], corners, 0).astype(jnp.float32)


def visible_fraction(scene: Scene, size: int) -> Float[Array, " objects"]:
    """How much of each object is seen, by area.

    Args:
      scene: one scene.
      size: height and width in pixels, at which the areas are counted.

    Returns:
      Fractions in [0, 1]; 0 for an object that is not valid or covers no pixel.
    """
    areas = [jnp.sum(kind, axis=(1, 2)) for kind in (visible_masks(scene, size), masks(scene, size))]
    return areas[0] / jnp.maximum(areas[1], 1)


def scene_label(scene: Scene, target: str) -> Int[Array, ""]:
    """The class of the whole image.

    Args:
      scene: one scene with at least one object.
      target: "kind", "colour" or "fill" of the nearest object, or "count" of all objects.

    Returns:
      An index into `scene_class_names(target)`; a kind that is held out there keeps its index in KINDS.

    Raises:
      UsageError: the target is unknown.
    """
    if target not in TARGETS:
        raise unknown_name("target", target, TARGETS)
    if target == "count":
        return scene.valid.sum(dtype=jnp.int32) - 1
    nearest = jnp.argmin(jnp.where(scene.valid, scene.depth, FARTHEST))
    return getattr(scene, target)[nearest]


def scene_class_names(target: str = "kind") -> tuple[str, ...]:
    """The names of the classes that `scene_label` counts (no arrays, no shapes).

    Args:
      target: "kind", "colour", "fill" or "count".

    Returns:
      One name for each class.

    Raises:
      UsageError: the target is unknown.
    """
    names = {
        "kind": BASE_KINDS,
        "colour": COLOURS,
        "fill": FILLS,
        "count": tuple(f"{n} object{'s' * (n > 1)}" for n in range(1, MOST_COUNTED + 1)),
    }
    if target not in names:
        raise unknown_name("target", target, names)
    return names[target]


def _first_and_last(occupied: Bool[Array, "objects length"]) -> tuple[Int[Array, " objects"], Int[Array, " objects"]]:
    """Index of the first occupied place, and one past the last."""
    length = occupied.shape[1]
    return jnp.argmax(occupied, axis=1), length - jnp.argmax(occupied[:, ::-1], axis=1)
