"""CIDEr: how much of what people say about an image a caption says, rare n-grams weighing more than common ones.

An n-gram k that occurs h_k times in a sentence has the weight g_k = h_k · log(|I| / |{images with k in a reference}|).
Vedantam, Zitnick, Parikh (2015), "CIDEr", https://arxiv.org/abs/1411.5726:

    CIDEr_n(c, S)   = 10 · mean over the references s of  g(c) · g(s) / (‖g(c)‖ ‖g(s)‖)                          (eq. 2)
    CIDEr-D_n(c, S) = 10 · mean over s of  exp(-(|c| - |s|)² / 2σ²) · min(g(c), g(s)) · g(s) / (‖g(c)‖ ‖g(s)‖)

and the score is the mean over n = 1 … 4, so both lie in [0, 10]: the factor 10, which the paper has for CIDEr-D alone,
is in the authors' code for both. What the COCO caption evaluation calls CIDEr is CIDEr-D. As in that code h_k is a
count, where the paper divides by the sentence's length (which only CIDEr-D notices), and an n-gram that no reference
has weighs log |I|. The paper stems words first; pass stems for that.

The weights need the references of the whole corpus. With one image they are all zero, and so is every score.
"""

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from dl_core.errors import UsageError, unknown_name
from dl_core.metrics.accumulator import AnyArray, Metric
from dl_core.metrics.checks import check_not_empty, check_same_length
from dl_core.metrics.text.tokens import Hypotheses, References, Tokens, check_order, check_texts, ngrams

Texts = tuple[tuple[Any, ...], tuple[Any, ...]]  # references and hypotheses

VARIANTS = ("cider", "cider-d")


class DocumentFrequencies(NamedTuple):
    """In how many images each n-gram occurs in a reference, and how many images there are."""

    counts: Mapping[tuple[str, ...], int]
    images: int


class _Sentence(NamedTuple):
    """Weights of the n-grams and their norm, for each n; the number of tokens."""

    weights: list[dict[tuple[str, ...], float]]
    norms: list[float]
    length: int


def _weighted(tokens: Tokens, order: int, frequencies: DocumentFrequencies) -> _Sentence:
    log_images = math.log(max(frequencies.images, 1))
    weigh = lambda ngram: log_images - math.log(max(frequencies.counts.get(ngram, 0), 1))
    weights = [
        {ngram: count * weigh(ngram) for ngram, count in ngrams(tokens, index + 1).items()} for index in range(order)
    ]
    return _Sentence(weights, [math.hypot(*own.values()) for own in weights], len(tokens))


def _similarity(caption: _Sentence, reference: _Sentence, sigma: float | None) -> float:
    """Mean over n of the cosines; with a sigma those of CIDEr-D, clipped and less the penalty for another length."""
    total = 0.0
    for index, (own, other) in enumerate(zip(caption.weights, reference.weights, strict=True)):
        norm = caption.norms[index] * reference.norms[index]
        if norm:
            weight = own.__getitem__ if sigma is None else (lambda ngram, a=own, b=other: min(a[ngram], b[ngram]))
            total += math.fsum(weight(ngram) * other[ngram] for ngram in own.keys() & other.keys()) / norm
    if sigma is not None:
        total *= math.exp(-((caption.length - reference.length) ** 2) / (2 * sigma**2))
    return total / len(caption.weights)


def _kept(references: References, hypotheses: Hypotheses, where: Any) -> Texts:
    """The texts of the images that count, after the checks."""
    check_texts(references, hypotheses)
    if where is None:
        return tuple(references), tuple(hypotheses)
    check_same_length(hypotheses=np.empty(len(hypotheses)), where=where)
    return tuple(itertools.compress(references, where)), tuple(itertools.compress(hypotheses, where))


def document_frequencies(references: Sequence[Sequence[Sequence[str]]], *, order: int = 4) -> DocumentFrequencies:
    """Frequencies of the n-grams of a corpus, e.g. of the training captions.

    Args:
      references: of each image, at least one; tokens.
      order: longest n-gram.

    Returns:
      DocumentFrequencies.

    Raises:
      UsageError: text that is not tokens; order < 1.
    """
    check_order(order)
    check_texts(references, [[] for _ in references])
    counts: Counter[tuple[str, ...]] = Counter()
    for own in references:
        counts.update({ngram for text in own for index in range(order) for ngram in ngrams(text, index + 1)})
    return DocumentFrequencies(counts, len(references))


def sentence_cider(
    references: Sequence[Sequence[Sequence[str]]],
    hypotheses: Sequence[Sequence[str]],
    *,
    variant: str = "cider-d",
    order: int = 4,
    sigma: float = 6.0,
    frequencies: DocumentFrequencies | None = None,
) -> Float[np.ndarray, " n"]:
    """CIDEr of every caption. Host only.

    Args:
      references: of each caption, at least one; tokens.
      hypotheses: one caption for each image; tokens.
      variant: "cider-d" or "cider".
      order: longest n-gram.
      sigma: of the penalty for another length (CIDEr-D), in tokens, > 0.
      frequencies: of the n-grams; those of these references by default.

    Returns:
      float64 [n] in [0, 10].

    Raises:
      UsageError: text that is not tokens; numbers that differ; an unknown variant; order < 1; sigma <= 0.
    """
    check_texts(references, hypotheses)
    check_order(order)
    if variant not in VARIANTS:
        raise unknown_name("variant", variant, VARIANTS)
    if not sigma > 0:
        raise UsageError(f"sigma must be positive, got {sigma}")
    known = document_frequencies(references, order=order) if frequencies is None else frequencies
    width = sigma if variant == "cider-d" else None
    scores: list[float] = []
    for own_references, hypothesis in zip(references, hypotheses, strict=True):
        caption = _weighted(hypothesis, order, known)
        similarities = [_similarity(caption, _weighted(own, order, known), width) for own in own_references]
        scores.append(10 * sum(similarities) / len(similarities))
    return np.array(scores, np.float64)


def cider_metric(
    *,
    variant: str = "cider-d",
    order: int = 4,
    sigma: float = 6.0,
    frequencies: DocumentFrequencies | None = None,
) -> Metric:
    """Accumulator of `cider`, with the arguments of `sentence_cider`. Its state is the texts: every one is needed.

    Returns:
      A Metric on the host; `update(state, references, hypotheses, where=None)`; merging joins the texts.
    """

    def update(
        state: Texts, references: References, hypotheses: Hypotheses, where: Bool[AnyArray, " n"] | None = None
    ) -> Texts:
        return merge(state, _kept(references, hypotheses, where))

    merge = lambda a, b: (a[0] + b[0], a[1] + b[1])

    def compute(state: Texts) -> Float[np.ndarray, ""]:
        if not state[1]:
            return np.asarray(np.nan)
        scores = sentence_cider(*state, variant=variant, order=order, sigma=sigma, frequencies=frequencies)
        return np.asarray(scores.mean())

    return Metric(lambda: ((), ()), update, merge, compute)


def cider(
    references: Sequence[Sequence[Sequence[str]]],
    hypotheses: Sequence[Sequence[str]],
    *,
    variant: str = "cider-d",
    order: int = 4,
    sigma: float = 6.0,
    frequencies: DocumentFrequencies | None = None,
    where: Bool[AnyArray, " n"] | None = None,
) -> Float[np.ndarray, ""]:
    """Mean of `sentence_cider` over the captions, with its arguments.

    Returns:
      A float64 scalar in [0, 10].

    Raises:
      UsageError: no captions; as `sentence_cider`.
    """
    kept = _kept(references, hypotheses, where)
    check_not_empty("hypotheses", np.empty(len(hypotheses)), where)
    scores = sentence_cider(*kept, variant=variant, order=order, sigma=sigma, frequencies=frequencies)
    return np.asarray(scores.mean())
