"""METEOR: a harmonic mean of word precision and recall that leans to recall, less a penalty for broken word order.

    P = m / |hypothesis|    R = m / |reference|    F = P R / (α P + (1 - α) R)
    METEOR = F · (1 - γ (chunks / m)^β)

m words of the hypothesis are matched with as many of the reference; a chunk is a run of matches that is consecutive in
both. This is the variant of Lavie, Agarwal (2007), "METEOR: An Automatic Metric for MT Evaluation with High Levels of
Correlation with Human Judgments", with its α = 0.9, β = 3, γ = 0.5, as in NLTK; Banerjee, Lavie (2005) is the same with
those values. It is not METEOR 1.5 (Denkowski, Lavie 2014), whose paraphrases, function words and tuned weights give
much lower values; say which one a figure is.

Words are matched in stages: equal words; then equal stems, if `stem` is given; then synonyms, if `synonyms` is. With
neither it is exact METEOR. In each stage the words of the hypothesis are taken from the last to the first, and each
gets the last free word of the reference that matches, as in NLTK. Equal words keep their order, but when one side has
more of them the crossings are not always the fewest, for which the papers search: "the cat" against "the cat sat on the
mat" is two chunks here, one there.
"""

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from dl_core.errors import UsageError
from dl_core.metrics.accumulator import AnyArray, CompensatedSum, Metric, add_sums, compensated
from dl_core.metrics.checks import check_not_empty, check_same_length
from dl_core.metrics.text.tokens import Hypotheses, References, Tokens, check_texts

Where = Bool[AnyArray, " n"] | None


def _match(
    hypothesis: dict[int, str], reference: dict[int, str], keys_of: Callable[[str], Iterable[str]]
) -> dict[int, int]:
    """Pairs free words, given by position, and takes them out of both: from the last on, with the last that fits."""
    free: dict[str, list[int]] = defaultdict(list)
    for position, key in sorted(reference.items()):
        free[key].append(position)
    pairs: dict[int, int] = {}
    for position in sorted(hypothesis, reverse=True):
        candidates = [key for key in keys_of(hypothesis[position]) if free.get(key)]
        if candidates:
            pairs[position] = free[max(candidates, key=lambda key: free[key][-1])].pop()
    for own, other in pairs.items():
        del hypothesis[own], reference[other]
    return pairs


def _alignment(
    reference: Tokens,
    hypothesis: Tokens,
    stem: Callable[[str], str] | None,
    synonyms: Callable[[str], Iterable[str]] | None,
) -> list[tuple[int, int]]:
    """Positions of the matched words, (in the hypothesis, in the reference), in the order of the hypothesis."""
    words, reference_words = dict(enumerate(hypothesis)), dict(enumerate(reference))
    pairs = _match(words, reference_words, lambda word: [word])
    if stem is not None:
        stems = {position: stem(word) for position, word in words.items()}
        stem_pairs = _match(stems, {p: stem(word) for p, word in reference_words.items()}, lambda key: [key])
        for own, other in stem_pairs.items():
            del words[own], reference_words[other]
        pairs |= stem_pairs
    if synonyms is not None:
        pairs |= _match(words, reference_words, lambda word: {word, *synonyms(word)})
    return sorted(pairs.items())


def _score(pairs: list[tuple[int, int]], reference_length: int, length: int, alpha: float, beta: float, gamma: float):
    if not pairs:
        return 0.0
    precision, recall = len(pairs) / length, len(pairs) / reference_length
    mean = precision * recall / (alpha * precision + (1 - alpha) * recall)
    breaks = sum(after != (own + 1, other + 1) for (own, other), after in itertools.pairwise(pairs))
    return mean * (1 - gamma * ((1 + breaks) / len(pairs)) ** beta)


def sentence_meteor(
    references: References,
    hypotheses: Hypotheses,
    *,
    alpha: float = 0.9,
    beta: float = 3.0,
    gamma: float = 0.5,
    preprocess: Callable[[str], str] = str.lower,
    stem: Callable[[str], str] | None = None,
    synonyms: Callable[[str], Iterable[str]] | None = None,
) -> Float[np.ndarray, " n"]:
    """METEOR of every sentence; of several references the best score counts. Host only.

    With the Porter stemmer and WordNet of NLTK, given its data:

        stem=nltk.stem.PorterStemmer().stem
        synonyms=lambda word: {lemma.name() for synset in wordnet.synsets(word) for lemma in synset.lemmas()}

    NLTK itself looks up synonyms of the stems when it has both; here it is the words', as in the papers.

    Args:
      references: of each hypothesis, at least one; tokens.
      hypotheses: tokens.
      alpha: weight of recall against precision, in [0, 1].
      beta: how fast the penalty falls with longer chunks, >= 0.
      gamma: largest penalty, in [0, 1].
      preprocess: applied to every token first.
      stem: (word) -> its stem; no stage of stems by default.
      synonyms: (word) -> words of the same meaning; no stage of synonyms by default.

    Returns:
      float64 [n] in [0, 1]; 0 without a match.

    Raises:
      UsageError: text that is not tokens; numbers that differ; a weight out of its range.
    """
    check_texts(references, hypotheses)
    for name, weight, most in (("alpha", alpha, 1.0), ("beta", beta, float("inf")), ("gamma", gamma, 1.0)):
        if not 0 <= weight <= most:
            raise UsageError(f"{name} must lie in [0, {most:g}], got {weight}")

    scores: list[float] = []
    for own_references, tokens in zip(references, hypotheses, strict=True):
        hypothesis, best = [preprocess(token) for token in tokens], 0.0
        for own in own_references:
            reference = [preprocess(token) for token in own]
            pairs = _alignment(reference, hypothesis, stem, synonyms)
            best = max(best, _score(pairs, len(reference), len(hypothesis), alpha, beta, gamma))
        scores.append(best)
    return np.array(scores, np.float64)


def meteor_metric(
    *,
    alpha: float = 0.9,
    beta: float = 3.0,
    gamma: float = 0.5,
    preprocess: Callable[[str], str] = str.lower,
    stem: Callable[[str], str] | None = None,
    synonyms: Callable[[str], Iterable[str]] | None = None,
) -> Metric:
    """Accumulator of `meteor`, with the arguments of `sentence_meteor`; its state is the scores' sum and their number.

    Returns:
      A Metric; `update(state, references, hypotheses, where=None)` runs on the host, `merge` anywhere.
    """

    def update(
        state: tuple[CompensatedSum, AnyArray], references: References, hypotheses: Hypotheses, where: Where = None
    ) -> tuple[CompensatedSum, AnyArray]:
        scores = sentence_meteor(
            references, hypotheses, alpha=alpha, beta=beta, gamma=gamma, preprocess=preprocess, stem=stem,
            synonyms=synonyms,
        )  # fmt: skip
        check_same_length(hypotheses=scores, where=where)
        scores = scores if where is None else scores[np.asarray(where)]
        total = scores.sum()
        high = np.float32(total)  # float64 as two float32, which devices can add
        low = np.float32(total - np.float64(high))
        return add_sums(state, (CompensatedSum(jnp.asarray(high), jnp.asarray(low)), np.int32(len(scores))))

    def compute(state: tuple[CompensatedSum, AnyArray]) -> Float[np.ndarray, ""]:
        total, count = state
        return np.asarray((float(total.high) + float(total.low)) / int(count) if count else np.nan)

    return Metric(lambda: (compensated(jnp.float32(0)), jnp.int32(0)), update, add_sums, compute)


def meteor(
    references: References,
    hypotheses: Hypotheses,
    *,
    alpha: float = 0.9,
    beta: float = 3.0,
    gamma: float = 0.5,
    preprocess: Callable[[str], str] = str.lower,
    stem: Callable[[str], str] | None = None,
    synonyms: Callable[[str], Iterable[str]] | None = None,
    where: Bool[AnyArray, " n"] | None = None,
) -> Float[np.ndarray, ""]:
    """Mean of `sentence_meteor` over the sentences, with its arguments.

    Returns:
      A float64 scalar in [0, 1].

    Raises:
      UsageError: no sentences; as `sentence_meteor`.
    """
    scores = sentence_meteor(
        references, hypotheses, alpha=alpha, beta=beta, gamma=gamma, preprocess=preprocess, stem=stem, synonyms=synonyms
    )
    check_same_length(hypotheses=scores, where=where)
    check_not_empty("hypotheses", scores, where)
    return np.asarray(scores.mean() if where is None else scores[np.asarray(where)].mean())
