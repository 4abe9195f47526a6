"""What a user may ask of a named optimiser or schedule: which options it has, and in which range they lie."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Array, Float

from dl_core.errors import UsageError, unknown_name

# A hyper-parameter: a Python number, or a scalar array where it is itself computed (vmapped over, differentiated).
Number = float | int | Float[Array, ""]


def in_interval(what: str, value: Any, interval: str, *, integer: bool = False) -> None:
    """Refuses a number outside an interval (a scalar, no shapes).

    Arrays pass unchecked: they may be traced, and their value unknown.

    Args:
      what: name of the option, for the message.
      value: what the user gave.
      interval: in the usual notation, e.g. "[0, 1)" or "(0, inf)".
      integer: whether it must be a whole number, such as a count.

    Raises:
      UsageError: not a number, not in the interval, or NaN.
    """
    if isinstance(value, Array):
        return
    allowed = (int, np.integer) if integer else (int, float, np.number)
    if isinstance(value, bool) or not isinstance(value, allowed):
        raise UsageError(f"{what} must be {'an integer' if integer else 'a number'} in {interval}, got {value!r}")
    low, high = map(float, interval[1:-1].split(","))
    above = value >= low if interval[0] == "[" else value > low
    below = value <= high if interval[-1] == "]" else value < high
    if not (above and below):
        raise UsageError(f"{what} must lie in {interval}, got {value}")


def option_defaults(factory: Callable[..., Any]) -> dict[str, Any]:
    """The keyword-only options of a function with their defaults (no arrays, no shapes).

    Args:
      factory: what builds an optimiser or a schedule.

    Returns:
      option -> default, in the order of the signature.
    """
    parameters = inspect.signature(factory).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def checked_options(
    kind: str,
    name: str,
    registry: Mapping[str, Callable[..., Any]],
    options: Mapping[str, Any],
    shared: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Those of the options that were given, once it is certain that the named entry has them (no arrays, no shapes).

    Args:
      kind: what the registry holds, e.g. "optimizer".
      name: which entry the user chose.
      registry: name -> function whose keyword-only arguments are its options.
      options: what the user gave; None stands for "not given".
      shared: options that every entry accepts, for the message.

    Returns:
      The options that are not None.

    Raises:
      UsageError: unknown name, or an option that this entry lacks; the message says which it has.
    """
    if name not in registry:
        raise unknown_name(kind, name, registry)
    given = {option: value for option, value in options.items() if value is not None}
    legal = option_defaults(registry[name])
    for option in given.keys() - legal.keys():
        owners = [other for other, factory in registry.items() if option in option_defaults(factory)]
        hint = f"; {option!r} belongs to {', '.join(owners)}" if owners else ""
        accepted = ", ".join([*legal, *shared]) or "no options"
        raise UsageError(f"{kind} {name!r} has no option {option!r}; it accepts {accepted}{hint}")
    return given
