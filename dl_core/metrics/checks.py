"""What metrics ask of their arguments, checked where the user's values enter.

Shapes are checked always. Values are looked at only where they are there to be seen: inside jit an array has none, and
what a metric does with a bad one there is said in its docstring. Rows that a mask leaves out may hold anything.
"""

from typing import Any

import numpy as np
from jax.core import Tracer
from jaxtyping import Bool, Shaped

from dl_core.errors import UsageError
from dl_core.metrics.accumulator import AnyArray

Where = Bool[AnyArray, " n"] | None


def check_same_length(**arrays: Shaped[AnyArray, "..."] | None) -> None:
    """Refuses arrays whose first axes [n, ...] differ, and a `where` that is no mask [n]; None is passed over."""
    where = arrays.get("where")
    if where is not None and (_dtype(where) != np.bool_ or np.ndim(where) != 1):
        raise UsageError(f"where must be booleans [n], got {_dtype(where)} {list(np.shape(where))}")
    given = {name: tuple(np.shape(array)) for name, array in arrays.items() if array is not None}
    if len({shape[:1] for shape in given.values()}) > 1 or any(not shape for shape in given.values()):
        shapes = ", ".join(f"{name} {list(shape)}" for name, shape in given.items())
        raise UsageError(f"{' and '.join(given)} must have one row for each example, got shapes {shapes}")


def check_not_empty(name: str, array: Shaped[AnyArray, "n ..."], where: Where = None) -> None:
    """Refuses an array [n, ...] without rows, or with none that `where` [n] keeps."""
    if np.shape(array)[0] == 0:
        raise UsageError(f"{name} must hold at least one example, got shape {list(np.shape(array))}")
    if where is not None and not isinstance(where, Tracer) and not np.any(np.asarray(where)):
        raise UsageError(f"where must keep at least one example, got none of {np.shape(array)[0]}")


def check_classes(name: str, values: Shaped[AnyArray, "n ..."], num_classes: int, where: Where = None) -> None:
    """Refuses values [n, ...] that are not whole numbers in [0, num_classes), in the rows that `where` [n] keeps."""
    if not (np.issubdtype(_dtype(values), np.integer) or np.issubdtype(_dtype(values), np.bool_)):
        raise UsageError(f"{name} must be integers or booleans, got {_dtype(values)}; convert them with astype(int)")
    kept = _visible_rows(values, where)
    if kept is not None and kept.size and (kept.min() < 0 or kept.max() >= num_classes):
        raise UsageError(
            f"{name} must lie in [0, {num_classes}), got values in [{kept.min()}, {kept.max()}]; "
            "give the right num_classes, or mask the rows out with where="
        )


def check_finite(name: str, values: Shaped[AnyArray, "n ..."], where: Where = None) -> None:
    """Refuses values [n, ...] that are NaN or infinite, in the rows that `where` [n] keeps."""
    kept = _visible_rows(values, where)
    if kept is not None and not np.isfinite(kept).all():
        bad = int((~np.isfinite(kept)).sum())
        raise UsageError(f"{name} must be finite, got {bad} of {kept.size} values NaN or infinite")


def check_probabilities(
    name: str, values: Shaped[AnyArray, "n ..."], where: Where = None, *, distributions: bool = False
) -> None:
    """Refuses values [n, ...] outside [0, 1], in the rows that `where` [n] keeps.

    Args:
      name: of the argument, for the message.
      values: [n, ...].
      where: the rows that count; all by default.
      distributions: whether they must also sum to 1 (within 1e-3) over the last axis.

    Raises:
      UsageError: saying which, and the range of what was given.
    """
    check_finite(name, values, where)
    kept = _visible_rows(values, where)
    if kept is None or not kept.size:
        return
    low, high = float(kept.min()), float(kept.max())
    if low < 0 or high > 1 + 1e-6:
        hint = "; logits become probabilities with jax.nn.softmax or jax.nn.sigmoid"
        raise UsageError(f"{name} must be probabilities in [0, 1], got values in [{low:.4g}, {high:.4g}]{hint}")
    if distributions:
        totals = kept.astype(np.float64).sum(axis=-1)
        worst = float(totals.flat[np.abs(totals - 1).argmax()])
        if abs(worst - 1) > 1e-3:
            raise UsageError(f"{name} must sum to 1 over the last axis, got a row that sums to {worst:.4g}")


def _dtype(values: Any) -> Any:
    return values.dtype if hasattr(values, "dtype") else np.asarray(values).dtype


def _visible_rows(values: Any, where: Any) -> np.ndarray | None:
    """The rows that count as NumPy sees them, or None for traced values."""
    if isinstance(values, Tracer) or isinstance(where, Tracer):
        return None
    kept = np.asarray(values) if where is None else np.asarray(values)[np.asarray(where)]
    return kept if kept.dtype.kind in "biuf" else kept.astype(np.float32)  # bfloat16 is a kind of its own to NumPy
