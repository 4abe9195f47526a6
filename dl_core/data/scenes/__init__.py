"""Procedural scenes: one description, every label, no download.

scenes = sample_batch(key_of(0), 0, 64, max_objects=4)     # integers
images = render_batch(scenes, 64)                          # uint8 [64, 64, 64, 3]
ids = jax.vmap(lambda scene: instance_ids(scene, 64))(scenes)
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Int32, Key, UInt8

from dl_core.data.scenes.description import (
    BACKGROUNDS,
    BASE_KINDS,
    COLOURS,
    FILLS,
    KINDS,
    SIDE,
    Scene,
    description_hash,
    key_of,
    sample,
    sample_batch,
)
from dl_core.data.scenes.labels import (
    MOST_COUNTED,
    TARGETS,
    boxes,
    instance_ids,
    masks,
    scene_class_names,
    scene_label,
    semantic_map,
    visible_fraction,
    visible_masks,
)
from dl_core.data.scenes.render import render, render_batch, silhouette
from dl_core.errors import UsageError

__all__ = [
    "BACKGROUNDS",
    "BASE_KINDS",
    "COLOURS",
    "FILLS",
    "KINDS",
    "MOST_COUNTED",
    "SIDE",
    "TARGETS",
    "Scene",
    "boxes",
    "description_hash",
    "instance_ids",
    "key_of",
    "masks",
    "render",
    "render_batch",
    "sample",
    "sample_batch",
    "scene_class_names",
    "scene_examples",
    "scene_label",
    "semantic_map",
    "silhouette",
    "visible_fraction",
    "visible_masks",
]

CHUNK = 256  # scenes rendered by one call of the compiled program
APART = {"sizes": (90, 190), "layouts": 32}  # options of `sample` under which hardly any object hides another


def scene_examples(
    seed: int,
    n: int,
    *,
    size: int = 32,
    target: str = "kind",
    max_objects: int = 1,
    kinds: tuple[str, ...] = BASE_KINDS,
    first: int = 0,
) -> tuple[UInt8[np.ndarray, "n size size 3"], Int32[np.ndarray, "n *targets"]]:
    """Images and labels of a classification set, the same for the same arguments on every machine.

    Args:
      seed: names an endless sequence of scenes.
      n: how many to take.
      size: height and width in pixels.
      target: what the class is; see `scene_label`. For "count", objects are smaller and drawn apart, so that few hide.
        Several, joined by "+", give several labels.
      max_objects: at most this many objects in an image, and at least one.
      kinds: those that occur, from KINDS; as classes of "kind" in this order.
      first: index of the first scene taken, so that splits of one sequence share no scene.

    Returns:
      Images [n, size, size, 3] and labels [n], or [n, targets] of several; the classes are `scene_class_names(target)`
      or `kinds`.

    Raises:
      UsageError: an unknown target or kind, a number below one, or more objects than "count" has classes.
    """
    targets = tuple(target.split("+"))
    for part in targets:
        scene_class_names(part)  # an unknown name is refused before anything is compiled
    if min(n, size, max_objects) < 1:
        raise UsageError(f"n, size and max_objects must be at least 1, got {n}, {size} and {max_objects}")
    if "count" in targets and max_objects > MOST_COUNTED:
        raise UsageError(f"target 'count' has classes up to {MOST_COUNTED} objects, got max_objects={max_objects}")
    images, labels = np.empty((n, size, size, 3), np.uint8), np.empty((n, len(targets)), np.int32)
    for start in range(0, n, CHUNK):
        stop = min(start + CHUNK, n)
        drawn = _draw(key_of(seed), first + start, size, targets, max_objects, tuple(kinds))
        images[start:stop], labels[start:stop] = (np.asarray(array)[: stop - start] for array in drawn)
    return images, labels if len(targets) > 1 else labels[:, 0]


@functools.partial(jax.jit, static_argnums=(2, 3, 4, 5))
def _draw(
    key: Key[Array, ""],
    first: Int[Array, ""],
    size: int,
    targets: tuple[str, ...],
    max_objects: int,
    kinds: tuple[str, ...],
) -> tuple[UInt8[Array, "chunk size size 3"], Int[Array, "chunk targets"]]:
    apart = APART if "count" in targets else {}
    scenes = sample_batch(key, first, CHUNK, max_objects=max_objects, kinds=kinds, **apart)
    place = jnp.array([kinds.index(kind) if kind in kinds else -1 for kind in KINDS])  # of a kind among the classes

    def label(scene: Scene, target: str) -> Int[Array, ""]:
        return place[scene_label(scene, target)] if target == "kind" else scene_label(scene, target)

    labels = jax.vmap(lambda scene: jnp.stack([label(scene, target) for target in targets]))(scenes)
    return render_batch(scenes, size), labels
