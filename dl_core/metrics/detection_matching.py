"""Which detection finds which object: COCO's greedy rule, and the groups of objects in which it is played.

Only detections and objects of one image and one class meet. `greedy_match` plays all groups, all IoU thresholds and all
area ranges at once; only the detections of one group take turns, the surest first. A group may be a whole image (static
shapes, for use inside jit: pairs of different classes are then marked as impossible) or an image and a class, packed
by `group_by_size` into few arrays of little padding, which is many times less work where there are many classes.
"""

from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Int8, Integer

UNMATCHED, MATCHED_IGNORED, MATCHED = 0, 1, 2
_PAIRS_AT_ONCE = 65_536  # of one call: large enough to hide the cost of a call, small enough for the cache


def greedy_match(
    ious: Float[Array, "groups found objects"],
    possible: Bool[Array, "groups found objects"],
    crowd: Bool[Array, "groups objects"],
    ignored: Bool[Array, "areas groups objects"],
    thresholds: Float[Array, " thresholds"],
) -> Int8[Array, "groups found thresholds areas"]:
    """COCO's matching: in the order of their scores, detections take the object with the highest IoU still free.

    An object that counts is preferred to one that is ignored, whatever the IoU; of equal IoUs the last object is taken;
    a crowd region may be taken again and again.

    Args:
      ious: detections of a group in falling order of score.
      possible: which pairs may match at all; false for padding.
      crowd: regions that stand for many objects.
      ignored: objects that are neither rewarded nor punished, for each area range.
      thresholds: least IoU of a match.

    Returns:
      UNMATCHED, MATCHED_IGNORED or MATCHED.
    """
    # Groups come last in the loop: the processor then works on many at once, however small they are.
    ious = jnp.transpose(jnp.where(possible, ious, -1), (1, 2, 0))  # [found, objects, groups]
    crowd, ignored = crowd.T[:, None, None], jnp.transpose(ignored, (2, 0, 1))[:, None]
    num_objects = ious.shape[1]
    index = jnp.arange(num_objects)
    earlier = (index[:, None] < index[None])[None, :, :, None]
    one, other = ious[:, :, None], ious[:, None]
    place = jnp.where(earlier, one <= other, one < other).sum(1, dtype=jnp.int32) + 1  # in rising order of IoU
    bonus = jnp.where(ignored, 0, num_objects)  # any object that counts goes before any that is ignored
    least = jnp.minimum(thresholds, 1 - 1e-10)[None, :, None, None]

    def take(
        free: Bool[Array, "objects thresholds areas groups"],
        row: tuple[Float[Array, "objects groups"], Int[Array, "objects groups"]],
    ) -> tuple[Bool[Array, "objects thresholds areas groups"], Int8[Array, "thresholds areas groups"]]:
        iou, place = row
        able = free & (iou[:, None, None] >= least)
        rank = jnp.where(able, place[:, None, None] + bonus, 0)
        best = rank.max(axis=0)
        free = free & ((rank != best[None]) | (best == 0)[None] | crowd)
        return free, (best > 0).astype(jnp.int8) + (best > num_objects).astype(jnp.int8)

    free = jnp.ones((num_objects, len(thresholds), ignored.shape[2], ious.shape[2]), bool)
    matches = jax.lax.scan(take, free, (ious, place))[1]
    return jnp.transpose(matches, (3, 0, 1, 2))


class RanksInGroups(NamedTuple):
    """Rows in the order of (group, falling score, row), and the place of each row within its group."""

    order: Int[Array, " rows"]
    rank: Int[Array, " rows"]


def rank_in_groups(groups: Integer[Array, " rows"], scores: Float[Array, " rows"]) -> RanksInGroups:
    """The place of each row within its group by falling score, from 0; rows of equal score in their order.

    Args:
      groups: the number of the group that a row belongs to.
      scores: finite.

    Returns:
      RanksInGroups.
    """
    position = jnp.arange(groups.shape[0])
    groups, _, order = jax.lax.sort((groups, -scores, position), num_keys=2)
    begins = jnp.concatenate([jnp.ones(1, bool), groups[1:] != groups[:-1]])
    rank = position - jax.lax.cummax(jnp.where(begins, position, 0))
    return RanksInGroups(order, jnp.zeros_like(rank).at[order].set(rank))


class GroupedRows(NamedTuple):
    """Row numbers of the members of several groups, -1 for padding."""

    found: Int[np.ndarray, "groups found"]
    objects: Int[np.ndarray, "groups objects"]


def group_by_size(
    found_rows: Int[np.ndarray, " found_rows"],
    found_groups: Int[np.ndarray, " found_rows"],
    object_rows: Int[np.ndarray, " object_rows"],
    object_groups: Int[np.ndarray, " object_rows"],
) -> Iterator[GroupedRows]:
    """Groups that have detections and objects, those of similar size together.

    All sizes are rounded up to powers of four, so that few shapes occur and little is compiled.

    Args:
      found_rows, object_rows: row numbers, sorted by group, within a group in the order that matching needs.
      found_groups, object_groups: the group of each, rising.

    Returns:
      GroupedRows in turn, of at most some 65,000 pairs each.
    """
    found_ids, found_first, found_count = np.unique(found_groups, return_index=True, return_counts=True)
    object_ids, object_first, object_count = np.unique(object_groups, return_index=True, return_counts=True)
    _, i, j = np.intersect1d(found_ids, object_ids, assume_unique=True, return_indices=True)
    found_first, found_count = found_first[i], found_count[i]
    object_first, object_count = object_first[j], object_count[j]
    sizes = np.stack([_power_of_four(found_count), _power_of_four(object_count)], axis=1)
    for found_size, object_size in np.unique(sizes, axis=0).tolist():
        members = np.flatnonzero((sizes == (found_size, object_size)).all(axis=1))
        most = max(16, _PAIRS_AT_ONCE // (found_size * object_size))
        at_once = min(most, max(16, int(_power_of_four(np.array([len(members)]))[0])))
        for part in np.split(members, range(at_once, len(members), at_once)):
            yield GroupedRows(
                _padded_rows(found_rows, found_first[part], found_count[part], found_size, at_once),
                _padded_rows(object_rows, object_first[part], object_count[part], object_size, at_once),
            )


def _power_of_four(count: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    return 4 ** np.maximum(1, np.ceil(np.log2(count) / 2)).astype(np.int64)


def _padded_rows(
    rows: Int[np.ndarray, " rows"],
    first: Int[np.ndarray, " groups"],
    count: Int[np.ndarray, " groups"],
    size: int,
    groups: int,
) -> Int[np.ndarray, "padded_groups size"]:
    place = np.arange(size)[None]
    inside = place < count[:, None]
    padded = np.full((groups, size), -1, np.int64)
    padded[: len(first)] = np.where(inside, rows[np.where(inside, first[:, None] + place, 0)], -1)
    return padded
