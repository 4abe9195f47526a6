"""What is known about an image moves with it: masks, boxes and key points by the matrices that move the image.

    matrices = compose(
        random_flip_matrices(flip_key, batch, (height, width)),
        random_affine_matrices(key, batch, (height, width), degrees=10.0),
    )
    moved = warp_sample(Sample(images, boxes=boxes, boxes_valid=valid), matrices)

Shapes stay what they are: what has left the frame is not removed but marked as not valid.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Shaped

from dl_core.augment.affine import Fill, Matrices, Size, warp
from dl_core.errors import UsageError


class Sample(NamedTuple):
    """A batch of images and what is known about them; leave out what is not.

    Boxes and key points are in pixels; see `dl_core.augment.affine` for the coordinates.
    """

    image: Float[Array, "batch height width channels"]
    mask: Shaped[Array, "batch *objects height width"] | None = None  # classes, instances, or one mask an object
    boxes: Float[Array, "batch objects 4"] | None = None  # x_min, y_min, x_max, y_max
    boxes_valid: Bool[Array, "batch objects"] | None = None  # all by default
    keypoints: Float[Array, "batch *objects points 2"] | None = None  # x, y
    keypoints_valid: Bool[Array, "batch *objects points"] | None = None  # all by default


def warp_sample(
    sample: Sample,
    matrices: Matrices,
    *,
    size: Size | None = None,
    method: str = "bilinear",
    fill: Fill = 0.0,
    mask_fill: int = 0,
    min_visible: float = 0.1,
    min_side: float = 1.0,
    mirrored_points: tuple[int, ...] | None = None,
) -> Sample:
    """Move images and everything that is known about them.

    Args:
      sample: images, masks, boxes, key points.
      matrices: [batch, 3, 3] from the input to the output, invertible.
      size: height and width of the output; those of the input by default.
      method: of the images, see `warp`; masks are always "nearest".
      fill: value of the images outside the frame.
      mask_fill: value of the masks there, e.g. the class that a loss ignores.
      min_visible: see `warp_boxes`.
      min_side: see `warp_boxes`.
      mirrored_points: see `warp_keypoints`.

    Returns:
      A Sample with the same fields; what was None stays None, but valid boxes and key points are always said.

    Raises:
      UsageError: fields of different batches, and see `warp`.
    """
    for name, field in zip(Sample._fields, sample, strict=True):
        if field is not None and len(field) != len(matrices):
            raise UsageError(f"{name} must have one row for each of {len(matrices)} matrices, got {len(field)}")
    if sample.mask is not None and sample.mask.shape[-2:] != sample.image.shape[1:3]:
        raise UsageError(f"masks {list(sample.mask.shape)} and images {list(sample.image.shape)} differ in size")
    height, width = sample.image.shape[1:3] if size is None else size
    moved = sample
    if sample.keypoints is not None:
        points, valid = warp_keypoints(
            sample.keypoints,
            matrices,
            (height, width),
            valid=sample.keypoints_valid,
            mirrored_points=mirrored_points,
        )
        moved = moved._replace(keypoints=points, keypoints_valid=valid)
    if sample.boxes is not None:
        boxes, valid = warp_boxes(
            sample.boxes,
            matrices,
            (height, width),
            valid=sample.boxes_valid,
            min_visible=min_visible,
            min_side=min_side,
        )
        moved = moved._replace(boxes=boxes, boxes_valid=valid)
    if sample.mask is not None:
        layers = sample.mask.reshape(len(matrices), -1, *sample.mask.shape[-2:])
        warped = warp(jnp.moveaxis(layers, 1, -1), matrices, method="nearest", fill=mask_fill, size=size)
        moved = moved._replace(mask=jnp.moveaxis(warped, -1, 1).reshape(*sample.mask.shape[:-2], height, width))
    return moved._replace(image=warp(sample.image, matrices, method=method, fill=fill, size=size))


def warp_boxes(
    boxes: Float[Array, "batch objects 4"],
    matrices: Matrices,
    size: Size,
    *,
    valid: Bool[Array, "batch objects"] | None = None,
    min_visible: float = 0.1,
    min_side: float = 1.0,
) -> tuple[Float[Array, "batch objects 4"], Bool[Array, "batch objects"]]:
    """The upright boxes around the moved corners, clipped to the frame.

    The box around a turned box is wider than one around the turned object, by up to 1.41 in each direction at 45°: take
    the boxes of the moved masks (`dl_core.data.scenes.boxes`) where there are masks.

    Args:
      boxes: [batch, objects, 4] as x_min, y_min, x_max, y_max in pixels.
      matrices: [batch, 3, 3].
      size: height and width of the output.
      valid: [batch, objects], which of the boxes are there; all by default.
      min_visible: least share of the moved box that must lie inside the frame, in [0, 1].
      min_side: least width and height of what is left, in pixels.

    Returns:
      Boxes [batch, objects, 4] and which of them are (still) valid; the others are zeros.

    Raises:
      UsageError: a share outside [0, 1] or a negative side.
    """
    if not 0 <= min_visible <= 1 or not min_side >= 0:
        raise UsageError(f"min_visible must lie in [0, 1] and min_side be >= 0, got {min_visible} and {min_side}")
    x_min, y_min, x_max, y_max = jnp.moveaxis(boxes, -1, 0)
    corners = jnp.stack([x_min, y_min, x_max, y_min, x_max, y_max, x_min, y_max], axis=-1)
    points, in_front = _move(corners.reshape(*boxes.shape[:2], 4, 2), matrices)
    low, high = points.min(axis=2), points.max(axis=2)
    frame = jnp.array([size[1], size[0]], boxes.dtype).reshape(1, 1, 2)
    low_seen, high_seen = jnp.clip(low, 0, frame), jnp.clip(high, 0, frame)
    sides = high_seen - low_seen
    enough = sides.prod(axis=-1) >= min_visible * (high - low).prod(axis=-1)
    kept = enough & (sides >= min_side).all(axis=-1) & (sides > 0).all(axis=-1) & in_front.all(axis=-1)
    kept = kept if valid is None else kept & valid
    return jnp.where(kept[..., None], jnp.concatenate([low_seen, high_seen], axis=-1), 0), kept


def warp_keypoints(
    keypoints: Float[Array, "batch *objects points 2"],
    matrices: Matrices,
    size: Size,
    *,
    valid: Bool[Array, "batch *objects points"] | None = None,
    mirrored_points: tuple[int, ...] | None = None,
) -> tuple[Float[Array, "batch *objects points 2"], Bool[Array, "batch *objects points"]]:
    """Points where they have moved to.

    Args:
      keypoints: [batch, …, points, 2] as x, y in pixels.
      matrices: [batch, 3, 3].
      size: height and width of the output.
      valid: [batch, …, points], which of the points are there; all by default.
      mirrored_points: for each point the index of its partner on the other side (its own in the middle), e.g. (1, 0, 2)
        for left eye, right eye, nose: they change places in images that are mirrored, where the left eye of the picture
        is a right one.

    Returns:
      Points of the same shape and which of them are (still) valid, that is, inside the frame or on its edge; the
      others are zeros.

    Raises:
      UsageError: mirrored_points that do not pair the points.
    """
    count = keypoints.shape[-2]
    order = np.arange(count) if mirrored_points is None else np.array(mirrored_points)
    if order.shape != (count,) or sorted(order) != list(range(count)) or (order[order] != np.arange(count)).any():
        raise UsageError(f"mirrored_points must pair the {count} points with each other, got {mirrored_points}")
    points, in_front = _move(keypoints, matrices)
    x, y = points[..., 0], points[..., 1]
    kept = in_front & (x >= 0) & (x <= size[1]) & (y >= 0) & (y <= size[0])
    kept = kept if valid is None else kept & valid
    points = jnp.where(kept[..., None], points, 0)
    if mirrored_points is None:
        return points, kept
    turned_over = (jnp.linalg.det(matrices) < 0).reshape(-1, *(1,) * (kept.ndim - 1))
    kept = jnp.where(turned_over, kept[..., order], kept)
    return jnp.where(turned_over[..., None], points[..., order, :], points), kept


def _move(
    points: Float[Array, "batch *others 2"], matrices: Matrices
) -> tuple[Float[Array, "batch *others 2"], Bool[Array, "batch *others"]]:
    """Moved points, and whether they are in front of the camera of a perspective, where they have a place at all."""
    x, y = points[..., 0], points[..., 1]
    entries = matrices.reshape(-1, 9, *(1,) * (points.ndim - 2))  # not a matrix product: accelerators round its factors
    rows = [entries[:, 3 * i] * x + entries[:, 3 * i + 1] * y + entries[:, 3 * i + 2] for i in range(3)]
    in_front = rows[2] > 0
    depth = jnp.where(in_front, rows[2], 1)
    return jnp.stack([rows[0] / depth, rows[1] / depth], axis=-1), in_front
