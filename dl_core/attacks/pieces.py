"""Some images of a batch at a time, in fixed memory: the survivors of an attack, or every image at many radii."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int


def in_pieces(
    function: Callable[[Int[np.ndarray, " part"]], Any],
    rows: Int[np.ndarray, " rows"],
    at_once: int | None,
    images: Float[Array, "batch ..."],
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Any:
    """function(rows) for a list of rows, some at a time, in few sizes: every size is a program to be compiled.

    Args:
      function: rows [part] -> pytree of arrays [part, ...], each row by itself.
      rows: what it is asked for.
      at_once: most rows in one piece; None for all. Every piece has this size, or where there is but one its half,
        quarter, …; it is filled up with copies of its last row, which take no longer than that one.
      images: what the rows are of; a batch that is divided between devices stays so.
      progress: called with (rows done, rows in all).

    Returns:
      Pytree of arrays [rows, ...].
    """
    limit = at_once or len(rows)
    size = _size(min(limit, len(rows)), limit, _devices(images))
    if size == len(rows):
        done = function(rows)  # stays on the device, and may be traced
        if progress is not None and not traced(done):
            progress(len(rows), len(rows))
        return done
    results, found = [], None
    for start in range(0, len(rows), limit):
        part = rows[start : start + limit]
        filled = np.pad(part, (0, size - len(part)), mode="edge")
        # through the host: to join pieces on the device is one more program for every number of pieces
        found = function(filled)
        results.append([np.asarray(leaf)[: len(part)] for leaf in jax.tree.leaves(found)])
        if progress is not None:
            progress(min(start + limit, len(rows)), len(rows))
    joined = [jnp.asarray(np.concatenate(leaves)) for leaves in zip(*results, strict=True)]
    return jax.tree.unflatten(jax.tree.structure(found), joined)


def take(tree: Any, rows: Int[np.ndarray, " part"]) -> Any:
    """Rows of every array, divided between the devices as the arrays were.

    Args:
      tree: pytree of arrays [batch, ...].
      rows: indices.

    Returns:
      Pytree of arrays [part, ...].
    """
    taken = _take(tree, rows)
    leaf = jax.tree.leaves(tree)[0]
    if traced(leaf) or _devices(leaf) == 1 or len(rows) % _devices(leaf):
        return taken
    return jax.device_put(taken, NamedSharding(leaf.sharding.mesh, PartitionSpec(*leaf.sharding.spec[:1])))


def traced(*trees: Any) -> bool:
    """Whether values of any shape [...] are not to be looked at: under a compiler, or on another host."""
    leaves = [*jax.tree.leaves(trees), jnp.zeros(())]  # a tracer inside jit, even where only a closure is traced
    return any(isinstance(leaf, Tracer) or not getattr(leaf, "is_fully_addressable", True) for leaf in leaves)


@jax.jit
def _take(tree: Any, rows: Int[Array, " part"]) -> Any:
    return jax.tree.map(lambda leaf: leaf[rows], tree)


def _size(count: int, at_once: int, devices: int) -> int:
    """at_once or its half, quarter, …: the smallest that holds the count, and that the devices can share."""
    size = at_once
    while -(-size // 2) >= count and size > 8:
        size = -(-size // 2)
    return -(-size // devices) * devices


def _devices(images: Any) -> int:
    """How many devices share the batch."""
    sharding = None if isinstance(images, Tracer) else getattr(images, "sharding", None)
    if not isinstance(sharding, NamedSharding) or not sharding.spec or sharding.spec[0] is None:
        return 1
    names = sharding.spec[0] if isinstance(sharding.spec[0], tuple) else (sharding.spec[0],)
    return int(np.prod([sharding.mesh.shape[name] for name in names]))
