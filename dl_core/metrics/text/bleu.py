"""BLEU: the share of a text's n-grams that a reference has, too, with a penalty for being short.

    BLEU = BP · exp(mean over n = 1 … N of log p_n)    p_n = matched / all n-grams of the hypotheses
    BP = 1, or exp(1 - r / c) if the hypotheses' length c falls short of the references' length r

An n-gram matches at most as often as it occurs in the one reference that has it most often. Papineni, Roukos, Ward, Zhu
(2002), "BLEU". The corpus figure adds the counts of all sentences first; it is not the mean of sentence scores. Values
lie in [0, 1]; sacrebleu prints 100 times as much.

Smoothing says what p_n is when nothing matches (Chen, Cherry 2014; sacrebleu's names): "none" 0, so that BLEU is 0;
"floor" value / all (0.1 by default); "add-k" adds value (1 by default) to both counts of every n > 1; "exp" 1 / (2^k
all) for the k-th such n. sacrebleu's default is "exp", that of nltk and torchmetrics "none".

Sentences come as tokens, or as arrays of token ids (hypotheses [n, length], references [n, references, length], padded
with -1 at the end; a reference of padding alone is not there). Both give the same counts. Tokens are counted on the
host, in a time that grows with their number; ids anywhere, in jit too, by comparing all pairs of positions, which suits
captions more than whole documents.
"""

import functools
import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Integer

from dl_core.errors import UsageError, unknown_name
from dl_core.metrics.accumulator import AnyArray, Metric, add_sums, where_or_all
from dl_core.metrics.checks import check_not_empty, check_same_length
from dl_core.metrics.text.tokens import Hypotheses, References, check_order, check_texts, ngrams

SMOOTHINGS = {"none": None, "floor": 0.1, "add-k": 1.0, "exp": None}
REFERENCE_LENGTHS = ("closest", "shortest")

ReferenceIds = Integer[AnyArray, "n references reference_length"]
HypothesisIds = Integer[AnyArray, "n length"]
Where = Bool[AnyArray, " n"] | None


class BleuCounts(NamedTuple):
    """What BLEU is made of, per sentence [n, ...] or added up; int32.

    matches: [..., order] n-grams of the hypothesis that a reference has, of 1 … order tokens.
    totals: [..., order] all n-grams of the hypothesis.
    length: [...] tokens of the hypothesis.
    reference_length: [...] tokens of the reference that the penalty looks at.
    """

    matches: Integer[AnyArray, "... order"]
    totals: Integer[AnyArray, "... order"]
    length: Integer[AnyArray, "..."]
    reference_length: Integer[AnyArray, "..."]


def _effective_length(lengths: list[int], length: int, reference_length: str) -> int:
    if reference_length == "shortest":
        return min(lengths)
    return min(lengths, key=lambda own: (abs(own - length), own))


def _counts_of_tokens(references: References, hypotheses: Hypotheses, order: int, reference_length: str) -> BleuCounts:
    n = len(hypotheses)
    matches = np.zeros((n, order), np.int32)
    for row, (own_references, hypothesis) in enumerate(zip(references, hypotheses, strict=True)):
        for index in range(min(order, len(hypothesis))):
            own = ngrams(hypothesis, index + 1)
            most = functools.reduce(operator.or_, (ngrams(reference, index + 1) for reference in own_references))
            matches[row, index] = sum(min(own[ngram], most[ngram]) for ngram in own.keys() & most.keys())
            if not matches[row, index]:  # nor can anything longer match
                break
    length = np.array([len(hypothesis) for hypothesis in hypotheses], np.int32)
    chosen = [
        _effective_length([len(reference) for reference in own_references], len(hypothesis), reference_length)
        for own_references, hypothesis in zip(references, hypotheses, strict=True)
    ]
    totals = np.maximum(length[:, None] - np.arange(order, dtype=np.int32), 0)
    return BleuCounts(matches, totals, length, np.array(chosen, np.int32))


@functools.partial(jax.jit, static_argnames=("order", "reference_length"))
def _counts_of_ids(
    references: ReferenceIds, hypotheses: HypothesisIds, order: int, reference_length: str
) -> BleuCounts:
    references, hypotheses = jnp.asarray(references), jnp.asarray(hypotheses)
    same_in_reference = (hypotheses[:, None, :, None] == references[:, :, None, :]) & (references >= 0)[:, :, None, :]
    same_in_itself = (hypotheses[:, :, None] == hypotheses[:, None, :]) & (hypotheses >= 0)[:, None, :]
    in_reference, in_itself = same_in_reference, same_in_itself
    position = jnp.arange(hypotheses.shape[1])
    earlier = position[None, None, :] < position[None, :, None]
    matches: list[Array] = []
    for index in range(order):
        if index:  # equal n-grams: an equal first token, and an equal rest one place on
            in_reference, in_itself = (
                first & jnp.pad(rest[..., 1:, 1:], [*[(0, 0)] * (rest.ndim - 2), (0, 1), (0, 1)])
                for first, rest in ((same_in_reference, in_reference), (same_in_itself, in_itself))
            )
        allowed = in_reference.sum(axis=-1, dtype=jnp.int32).max(axis=1)
        used = (in_itself & earlier).sum(axis=-1, dtype=jnp.int32)
        matches.append((used < allowed).sum(axis=-1, dtype=jnp.int32))
    length = (hypotheses >= 0).sum(axis=1, dtype=jnp.int32)
    totals = jnp.maximum(length[:, None] - jnp.arange(order, dtype=jnp.int32)[None], 0)

    lengths = (references >= 0).sum(axis=2, dtype=jnp.int32)
    distance = 0 if reference_length == "shortest" else jnp.abs(lengths - length[:, None])
    rank = jnp.where(lengths > 0, distance * (references.shape[2] + 1) + lengths, jnp.iinfo(jnp.int32).max)
    chosen = jnp.take_along_axis(lengths, rank.argmin(axis=1)[:, None], axis=1)[:, 0]
    return BleuCounts(jnp.stack(matches, axis=1), totals, length, chosen)


def _check_ids(references: Any, hypotheses: Any) -> None:
    """Refuses arrays that are not padded ids; values are looked at where they can be seen."""
    if np.ndim(hypotheses) != 2 or np.ndim(references) != 3 or np.shape(references)[1] == 0:
        raise UsageError(
            "token ids must be hypotheses [n, length] and references [n, references, length] with at least one "
            f"reference, got shapes {list(np.shape(hypotheses))} and {list(np.shape(references))}"
        )
    check_same_length(references=references, hypotheses=hypotheses)
    for name, ids in (("references", references), ("hypotheses", hypotheses)):
        if not np.issubdtype(ids.dtype, np.integer):
            raise UsageError(f"{name} must be lists of tokens or integer ids, got an array of {ids.dtype}")
        if not isinstance(ids, Tracer) and (np.diff((np.asarray(ids) >= 0).astype(np.int8), axis=-1) > 0).any():
            raise UsageError(f"{name} must be padded with -1 behind the last token, got a token after padding")


def bleu_counts(
    references: References | Integer[AnyArray, "n references reference_length"],
    hypotheses: Hypotheses | Integer[AnyArray, "n length"],
    *,
    order: int = 4,
    reference_length: str = "closest",
    where: Bool[AnyArray, " n"] | None = None,
) -> BleuCounts:
    """Matched and all n-grams and the lengths of every sentence.

    Args:
      references: of each hypothesis, at least one; tokens, or ids [n, references, length] padded with -1.
      hypotheses: tokens, or ids [n, length] padded with -1.
      order: longest n-gram.
      reference_length: of several references the penalty looks at the one "closest" in length to the hypothesis (the
        shorter of two that are as close; mteval-v13a, sacrebleu), or at the "shortest" (the first NIST script).
      where: the sentences that count; all by default.

    Returns:
      BleuCounts of [n, ...]; zeros where a sentence does not count.

    Raises:
      UsageError: text that is not tokens; numbers of references and hypotheses that differ; ids that are not padded at
        the end; an unknown reference_length.
    """
    check_order(order)
    if reference_length not in REFERENCE_LENGTHS:
        raise unknown_name("reference_length", reference_length, REFERENCE_LENGTHS)
    if isinstance(hypotheses, jax.Array | np.ndarray) and isinstance(references, jax.Array | np.ndarray):
        _check_ids(references, hypotheses)
        check_same_length(hypotheses=hypotheses, where=where)
        counts = _counts_of_ids(references, hypotheses, order, reference_length)
        kept = where_or_all(where, hypotheses)
        return jax.tree.map(lambda each: jnp.where(kept[:, None] if each.ndim == 2 else kept, each, 0), counts)
    check_texts(references, hypotheses)  # pyright: ignore[reportArgumentType]
    counts = _counts_of_tokens(references, hypotheses, order, reference_length)  # pyright: ignore[reportArgumentType]
    if where is None:
        return counts
    check_same_length(hypotheses=counts.length, where=where)
    kept = np.asarray(where)
    return jax.tree.map(lambda each: np.where(kept[:, None] if each.ndim == 2 else kept, each, 0), counts)


def _checked_smoothing_value(smoothing: str, smoothing_value: float | None) -> float | None:
    if smoothing not in SMOOTHINGS:
        raise unknown_name("smoothing", smoothing, SMOOTHINGS)
    default = SMOOTHINGS[smoothing]
    if smoothing_value is not None and (default is None or not 0 < smoothing_value < float("inf")):
        allowed = "must be positive" if default else f"is for 'floor' and 'add-k', not for {smoothing!r}"
        raise UsageError(f"smoothing_value {allowed}, got {smoothing_value}")
    return default if smoothing_value is None else smoothing_value


def bleu_from_counts(
    counts: BleuCounts,
    *,
    smoothing: str = "none",
    smoothing_value: float | None = None,
    effective_order: bool = False,
) -> Float[AnyArray, "..."]:
    """BLEU of counts [...], of a corpus or of many sentences at once: see `bleu`.

    Args:
      counts: BleuCounts [...].
      smoothing: "none", "floor", "add-k" or "exp".
      smoothing_value: of "floor" (0.1 by default) or "add-k" (1 by default).
      effective_order: leave out n-grams longer than the hypothesis, as suits single sentences.

    Returns:
      [...] in [0, 1], float64 of NumPy; inside jit float32.

    Raises:
      UsageError: an unknown smoothing, a value for one that has none, or a value that is not positive.
    """
    value = _checked_smoothing_value(smoothing, smoothing_value)
    traced = any(isinstance(each, Tracer) for each in counts)
    xp, dtype = (jnp, jnp.float32) if traced else (np, np.float64)
    matches, totals, length, reference_length = (xp.asarray(each).astype(dtype) for each in counts)
    any_match = (matches > 0).any(axis=-1)
    if smoothing == "add-k":
        added = value * (xp.arange(matches.shape[-1]) > 0).astype(dtype)
        added = added.reshape((1,) * (matches.ndim - 1) + added.shape)
        matches, totals = matches + added, totals + added
    defined = xp.cumprod((totals > 0).astype(dtype), axis=-1) > 0
    nothing = defined & (matches == 0)
    if smoothing == "exp":
        matches = xp.where(nothing, 0.5 ** xp.cumsum(nothing.astype(dtype), axis=-1), matches)
    elif smoothing == "floor":
        matches = xp.where(nothing, value, matches)
    used = defined if effective_order else xp.ones_like(defined)
    positive = defined & (matches > 0)
    logs = xp.where(positive, xp.log(xp.where(positive, matches, 1) / xp.where(positive, totals, 1)), 0)
    score = xp.exp((logs * used).sum(axis=-1) / xp.maximum(used.sum(axis=-1), 1))
    penalty = xp.exp(xp.minimum(1 - reference_length / xp.maximum(length, 1), 0))
    return xp.asarray(xp.where(any_match & (positive | ~used).all(axis=-1), penalty * score, 0.0))


def _added(counts: BleuCounts) -> BleuCounts:
    return jax.tree.map(lambda each: each.sum(axis=0, dtype=np.int32), counts)


def bleu_metric(
    *,
    order: int = 4,
    smoothing: str = "none",
    smoothing_value: float | None = None,
    reference_length: str = "closest",
    effective_order: bool = False,
) -> Metric:
    """Accumulator of `bleu`, with its arguments; its state is BleuCounts, int32 (up to 2^31 tokens).

    Returns:
      A Metric; `update(state, references, hypotheses, where=None)`, with token ids inside jit, too.
    """
    options = {"smoothing": smoothing, "smoothing_value": smoothing_value, "effective_order": effective_order}
    check_order(order)
    _checked_smoothing_value(smoothing, smoothing_value)

    def zeros() -> BleuCounts:
        nothing = jnp.zeros(order, jnp.int32)
        return BleuCounts(nothing, nothing, jnp.int32(0), jnp.int32(0))

    def update(state: BleuCounts, references: Any, hypotheses: Any, where: Where = None) -> BleuCounts:
        counts = bleu_counts(references, hypotheses, order=order, reference_length=reference_length, where=where)
        return add_sums(state, _added(counts))

    return Metric(zeros, update, add_sums, lambda state: bleu_from_counts(state, **options))


def bleu(
    references: References | Integer[AnyArray, "n references reference_length"],
    hypotheses: Hypotheses | Integer[AnyArray, "n length"],
    *,
    order: int = 4,
    smoothing: str = "none",
    smoothing_value: float | None = None,
    reference_length: str = "closest",
    effective_order: bool = False,
    where: Bool[AnyArray, " n"] | None = None,
) -> Float[AnyArray, ""]:
    """BLEU of a corpus: n-grams are counted over all sentences, then divided.

    Args:
      references: of each hypothesis, at least one; tokens, or ids [n, references, length] padded with -1.
      hypotheses: tokens, or ids [n, length] padded with -1.
      order: longest n-gram: BLEU-1 to BLEU-4 are order 1 to 4.
      smoothing: "none", "floor", "add-k" or "exp".
      smoothing_value: of "floor" (0.1 by default) or "add-k" (1 by default).
      reference_length: "closest" or "shortest", see `bleu_counts`.
      effective_order: leave out n-grams longer than every hypothesis.
      where: the sentences that count; all by default.

    Returns:
      A scalar in [0, 1] (sacrebleu prints 100 times as much), float64 of NumPy; inside jit float32.

    Raises:
      UsageError: no sentences; as `bleu_counts` and `bleu_from_counts`.
    """
    counts = bleu_counts(references, hypotheses, order=order, reference_length=reference_length, where=where)
    check_not_empty("hypotheses", counts.length, where)
    return bleu_from_counts(
        _added(counts), smoothing=smoothing, smoothing_value=smoothing_value, effective_order=effective_order
    )


def sentence_bleu(
    references: References | Integer[AnyArray, "n references reference_length"],
    hypotheses: Hypotheses | Integer[AnyArray, "n length"],
    *,
    order: int = 4,
    smoothing: str = "exp",
    smoothing_value: float | None = None,
    reference_length: str = "closest",
    effective_order: bool = True,
) -> Float[AnyArray, " n"]:
    """BLEU of every sentence by itself. Arguments as in `bleu`, with the defaults of sacrebleu's sentence_bleu.

    Returns:
      [n] in [0, 1], float64 of NumPy; inside jit float32. A hypothesis without any match scores 0.
    """
    counts = bleu_counts(references, hypotheses, order=order, reference_length=reference_length)
    return bleu_from_counts(
        counts, smoothing=smoothing, smoothing_value=smoothing_value, effective_order=effective_order
    )
