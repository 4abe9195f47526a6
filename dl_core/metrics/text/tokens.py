"""From a text to tokens, from tokens to n-grams, and what the text metrics ask of both."""

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Any

from dl_core.errors import UsageError

Tokens = Sequence[str]
Hypotheses = Sequence[Sequence[str]]
References = Sequence[Sequence[Sequence[str]]]

_ENTITIES = (("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">"))
_ALWAYS_APART = re.compile("([" + re.escape("".join(set(string.punctuation) - set("',-."))) + "])")
_STOP_AFTER_NON_DIGIT = re.compile(r"([^0-9])([.,])")
_STOP_BEFORE_NON_DIGIT = re.compile(r"([.,])([^0-9])")
_DASH_AFTER_DIGIT = re.compile(r"([0-9])(-)")


def tokenize_13a(text: str) -> list[str]:
    """The tokens of a Western text by the rules of mteval-v13a, which WMT and sacrebleu use.

    Punctuation becomes tokens of its own: full stops and commas save between digits, dashes only after a digit,
    apostrophes never. Case is kept.

    Args:
      text: one segment.

    Returns:
      The tokens.
    """
    text = text.rstrip().replace("<skipped>", "").replace("-\n", "").replace("\n", " ")
    for entity, character in _ENTITIES:
        text = text.replace(entity, character)
    text = _ALWAYS_APART.sub(r" \1 ", f" {text} ")
    text = _STOP_AFTER_NON_DIGIT.sub(r"\1 \2 ", text)
    text = _STOP_BEFORE_NON_DIGIT.sub(r" \1 \2", text)
    return _DASH_AFTER_DIGIT.sub(r"\1 \2 ", text).split()


def ngrams(tokens: Sequence[str], order: int) -> Counter[tuple[str, ...]]:
    """How often each sequence of `order` consecutive tokens occurs."""
    return Counter(zip(*(tokens[start:] for start in range(order)), strict=False))


def check_texts(references: Sequence[Sequence[Sequence[str]]], hypotheses: Sequence[Sequence[str]]) -> None:
    """Refuses anything but lists of tokens, with at least one reference for each hypothesis.

    Args:
      references: list over hypotheses of lists of references, each a list of tokens.
      hypotheses: list of lists of tokens.

    Raises:
      UsageError: text in the place of tokens or of a list; numbers that do not match.
    """
    for name, texts in (("references", references), ("hypotheses", hypotheses)):
        if not _is_list(texts):
            raise UsageError(f"{name} must be a list with one entry for each hypothesis, got {_shown(texts)}")
    if len(references) != len(hypotheses):
        raise UsageError(
            f"references and hypotheses must have one entry for each hypothesis, got {len(references)} and "
            f"{len(hypotheses)}; references[i] lists those of hypothesis i"
        )
    for index, (own_references, hypothesis) in enumerate(zip(references, hypotheses, strict=True)):
        if not _is_list(own_references) or not own_references:
            raise UsageError(
                f"references[{index}] must list at least one reference, each a list of tokens, got "
                f"{_shown(own_references)}"
            )
        _check_tokens(f"hypotheses[{index}]", hypothesis)
        for which, reference in enumerate(own_references):
            _check_tokens(f"references[{index}][{which}]", reference)


def check_order(order: int) -> None:
    """Refuses n-grams of fewer than one token."""
    if order < 1:
        raise UsageError(f"order must be at least 1, got {order}")


def _check_tokens(name: str, tokens: Any) -> None:
    if not _is_list(tokens) or not all(isinstance(token, str) for token in tokens):
        raise UsageError(
            f"{name} must be a list of tokens (str), got {_shown(tokens)}; text becomes tokens with tokenize_13a or "
            "str.split"
        )


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _shown(value: Any) -> str:
    words = repr(value)
    return f"{type(value).__name__} {words if len(words) <= 60 else words[:57] + '...'}"
