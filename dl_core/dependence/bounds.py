"""What is known of a value: for each element, whether it may differ from zero and which part of the image reaches it.

Every value carries five integer arrays that broadcast to its shape: whether the element may differ from zero, and the
first and last row and column that reach it. A first index is kept as it is and a last index with its sign changed, so
that wherever values meet (a sum, a window, a product with weights) the element-wise minimum is their union. Reshapes,
slices and their like act on the five arrays as they act on the value. Zeros count because a convolution may be written
as a product with a matrix that is mostly zero: without them its output would seem to see whole rows of the image.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

NOTHING = 2**40  # as a bound: no row or column at all; as the first of the five: zero for certain
LARGEST_CONSTANT = 2**20  # elements: the zeros of larger constants are not looked at
Bounds = tuple[Int[np.ndarray, "..."], ...]  # nonzero, first row, -last row, first column, -last column


@dataclasses.dataclass(frozen=True)
class Value:
    """What is known of one value of any shape.

    bounds: the five arrays, each with as many axes as the value and one element along axes on which it is constant.
    steps: rows and columns of the image from one row and column of a map to the next; padding continues a map that has
      one row or column only with them.
    known: the elements, where they depend on constants alone.
    """

    shape: tuple[int, ...]
    bounds: Bounds
    steps: tuple[int, ...] = (1, 1)
    known: np.ndarray | None = None

    @property
    def depends(self) -> bool:
        """Whether anything of the image reaches it."""
        return any((bound < NOTHING).any() for bound in self.bounds[1:])

    def mapped(self, change: Callable[[np.ndarray], np.ndarray], shape: Sequence[int]) -> "Value":
        """The value of that shape whose five arrays are changed alike."""
        return dataclasses.replace(self, shape=tuple(shape), bounds=tuple(map(change, self.bounds)), known=None)


def image_value(shape: Sequence[int]) -> Value:
    """The image itself, [batch, height, width, channels]: each pixel depends on its own row and column.

    Of an input of any other number of axes every element counts as the pixel at row 0 and column 0.
    """
    if len(shape) != 4:
        return Value(tuple(shape), (np.zeros((1,) * len(shape), int),) * 5)
    rows, columns = np.arange(shape[1])[None, :, None, None], np.arange(shape[2])[None, None, :, None]
    return Value(tuple(shape), (np.zeros((1, 1, 1, 1), int), rows, -rows, columns, -columns))


def independent(shape: Sequence[int]) -> Value:
    """A value [...] that the image does not reach, such as a parameter."""
    nothing = np.full((1,) * len(shape), NOTHING)
    return Value(tuple(shape), (np.zeros_like(nothing), *[nothing] * 4))


def constant(elements: Any) -> Value:
    """A value [...] that the image does not reach, with its elements and zeros, unless it is very large."""
    value = independent(np.shape(elements))
    is_key = jnp.issubdtype(getattr(elements, "dtype", np.float32), jax.dtypes.extended)
    if is_key or np.size(elements) > LARGEST_CONSTANT:
        return value
    known = np.asarray(elements)
    return Value(value.shape, (compact(np.where(known == 0, NOTHING, 0)), *value.bounds[1:]), known=known)


def union(bounds: Sequence[Bounds]) -> Bounds:
    """All that reaches any of several values; their arrays broadcast to each other."""

    def least(arrays: tuple[np.ndarray, ...]) -> np.ndarray:
        smallest = arrays[0]
        for array in arrays[1:]:
            smallest = np.minimum(smallest, array)
        return smallest

    return tuple(map(least, zip(*bounds, strict=True)))


def hull(values: Sequence[Value], shape: Sequence[int]) -> Value:
    """A value [...] of which every element depends on all that reaches any element of the given ones."""
    ends = [tuple(bound.min().reshape((1,) * len(shape)) for bound in value.bounds) for value in values]
    return Value(tuple(shape), (np.zeros((1,) * len(shape), int), *union(ends)[1:]))


def expand(bound: Int[np.ndarray, "..."], axis: int, n: int) -> Int[np.ndarray, "..."]:
    """The same with n elements along an axis, where it may have had one."""
    return np.broadcast_to(bound, (*bound.shape[:axis], n, *bound.shape[axis + 1 :]))


def compact(bound: Int[np.ndarray, "..."]) -> Int[np.ndarray, "..."]:
    """The same with one element along every axis on which it does not change."""
    for axis, size in enumerate(bound.shape):
        if size > 1:
            first = bound.take([0], axis)
            bound = first if (bound == first).all() else bound
    return bound


def reshape(bound: Int[np.ndarray, "..."], old: Sequence[int], new: Sequence[int]) -> Int[np.ndarray, "..."]:
    """Bounds of a value that goes from one shape to another; axes on which they are constant stay so if they can."""
    sizes: list[int] = []
    targets: list[int] = []
    i = j = 0
    while i < len(old) or j < len(new):
        a, b = i, j
        left, right = (old[i] if i < len(old) else 1), (new[j] if j < len(new) else 1)
        i, j = i + 1, j + 1
        while left != right:  # the smallest group of axes that keeps its number of elements
            if left < right:
                left, i = left * old[i], i + 1
            else:
                right, j = right * new[j], j + 1
        i, j = min(i, len(old)), min(j, len(new))
        varies = any(size > 1 for size in bound.shape[a:i])
        sizes += old[a:i] if varies else [1] * (i - a)
        targets += new[b:j] if varies else [1] * (j - b)
    return np.broadcast_to(bound, sizes).reshape(targets)


@dataclasses.dataclass(frozen=True)
class Window:
    """Windows along one axis of n elements, as XLA describes them.

    before, after: elements added at the ends; negative ones are taken away.
    base_dilation: the distance of neighbours after zeros have been put between them.
    """

    size: int = 1
    stride: int = 1
    dilation: int = 1
    base_dilation: int = 1
    before: int = 0
    after: int = 0

    def count(self, n: int) -> int:
        """Windows along n elements."""
        padded = (n - 1) * self.base_dilation + 1 + self.before + self.after
        return max((padded - self.dilation * (self.size - 1) - 1) // self.stride + 1, 0)

    def union(self, bound: Int[np.ndarray, "..."], axis: int, n: int, extrapolate: bool, step: int) -> np.ndarray:
        """The least bound in each window of one axis; the other arguments as in `extend`."""
        if self == Window():
            return bound
        wide = [max(-(-pad // self.base_dilation), 0) for pad in (self.before, self.after)]
        bound = extend(bound, axis, n, (wide[0], wide[1]), extrapolate, step)
        if bound.shape[axis] == 1 and (self.size > 1 or self.base_dilation == 1):
            return bound
        bound = np.moveaxis(expand(bound, axis, n + sum(wide)), axis, -1)
        dilated = np.full((*bound.shape[:-1], (bound.shape[-1] - 1) * self.base_dilation + 1), NOTHING)
        dilated[..., :: self.base_dilation] = bound
        first = wide[0] * self.base_dilation - self.before
        starts = first + self.stride * np.arange(self.count(n))
        reach = starts[:, None] + self.dilation * np.arange(self.size)[None]
        last = dilated.shape[-1] - 1  # beyond it: zeros of a padding that ends between two elements
        least = np.where(reach > last, NOTHING, dilated[..., np.minimum(reach, last)]).min(axis=-1)
        return np.moveaxis(least, -1, axis)


def extend(
    bound: Int[np.ndarray, "..."], axis: int, n: int, pads: tuple[int, int], extrapolate: bool, step: int = 0
) -> Int[np.ndarray, "..."]:
    """Bounds along an axis of n elements with more before and after it.

    Args:
      bound: [..., n or 1, ...].
      axis, n: which axis, and its length.
      pads: elements to add before and after, >= 0.
      extrapolate: continue in a straight line; otherwise nothing reaches what is added.
      step: slope of the line where n = 1.

    Returns:
      [..., before + n + after, ...], or 1 where the bound is constant.
    """
    constant_along = bound.shape[axis] == 1 and (n > 1 or step == 0)
    if pads == (0, 0) or (constant_along and extrapolate):
        return bound
    bound = np.moveaxis(expand(bound, axis, n), axis, -1)

    def beyond(edge: np.ndarray, slope: Any, count: int) -> np.ndarray:
        line = edge[..., None] + slope * np.arange(1, count + 1) if extrapolate else np.full(count, NOTHING)
        return np.where(edge[..., None] >= NOTHING, NOTHING, np.broadcast_to(line, (*edge.shape, count)))

    def slope(edge: np.ndarray, inner: np.ndarray) -> np.ndarray:
        return np.where((edge < NOTHING) & (inner < NOTHING), edge - inner, 0)[..., None]

    left = slope(bound[..., 0], bound[..., 1]) if n > 1 else -step
    right = slope(bound[..., -1], bound[..., -2]) if n > 1 else step
    parts = [beyond(bound[..., 0], left, pads[0])[..., ::-1], bound, beyond(bound[..., -1], right, pads[1])]
    return np.moveaxis(np.concatenate(parts, axis=-1), -1, axis)
