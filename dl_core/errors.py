"""The one exception for a value that the caller can mend, and its commonest form: a name that does not exist."""

import difflib
from collections.abc import Iterable


class UsageError(ValueError):
    """A value given by the user is wrong. The message says what was given, what is allowed and how to mend it."""


def unknown_name(kind: str, given: str, allowed: Iterable[str]) -> UsageError:
    """The error for a name that is not in a registry, with the nearest names that are (no arrays, no shapes).

    Args:
      kind: what the name stands for, e.g. "data set".
      given: what the user wrote.
      allowed: every legal name.

    Returns:
      A UsageError to raise.
    """
    names = sorted(allowed)
    nearest = difflib.get_close_matches(given.lower(), names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(map(repr, nearest))}?" if nearest else f"known: {', '.join(names)}"
    return UsageError(f"unknown {kind} {given!r}; {hint}")
