"""BLEU, METEOR, CIDEr and perplexity: cases by hand, invariants, accumulators, and what they refuse."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import config as annotations
from partitions import assert_any_partition_gives_the_whole

from dl_core.errors import UsageError
from dl_core.metrics import text

CAT = ["the", "cat", "sat", "on", "the", "mat"]


def corpus(seed, n=12, words="abcdefg", references=3, longest=9):
    """Random texts with much in common, empty ones among them; of each, one to `references` references."""
    rng = np.random.default_rng(seed)
    sentence = lambda: [str(word) for word in rng.choice(list(words), rng.integers(0, longest))]
    return [[sentence() for _ in range(rng.integers(1, references + 1))] for _ in range(n)], [
        sentence() for _ in range(n)
    ]


def as_ids(references, hypotheses, most=4, length=9):
    """Padded with -1; a reference that is not there and an empty one look alike."""
    pad = lambda tokens: [ord(token) for token in tokens] + [-1] * (length - len(tokens))
    absent = [-1] * length
    ids = [[*map(pad, own), *[absent] * (most - len(own))] for own in references]
    return np.array(ids, np.int32), np.array([pad(tokens) for tokens in hypotheses], np.int32)


def no_empty(references):
    return [[reference or ["z"] for reference in own] for own in references]


# BLEU


def test_bleu_by_hand():
    """Papineni et al. 2002, example 2: seven times "the"; one reference has two of them, the other one."""
    references = [[["the", "cat", "is", "on", "the", "mat"], ["there", "is", "a", "cat", "on", "the", "mat"]]]
    hypotheses = [["the"] * 7]
    counts = text.bleu_counts(references, hypotheses, order=2)
    np.testing.assert_array_equal(counts.matches, [[2, 0]])
    np.testing.assert_array_equal(counts.totals, [[7, 6]])
    np.testing.assert_allclose(text.bleu(references, hypotheses, order=1), 2 / 7, rtol=1e-15)
    assert text.bleu(references, hypotheses, order=2) == 0
    smoothed = text.bleu(references, hypotheses, order=2, smoothing="floor", smoothing_value=0.5)
    np.testing.assert_allclose(smoothed, math.sqrt(2 / 7 * 0.5 / 6), rtol=1e-14)


def test_a_short_hypothesis_is_penalised_by_the_reference_that_is_asked_for():
    references, hypotheses = [[CAT, CAT[:2]]], [CAT[:5]]
    assert text.bleu(references, hypotheses) == pytest.approx(math.exp(1 - 6 / 5), rel=1e-14)
    assert text.bleu(references, hypotheses, reference_length="shortest") == pytest.approx(1, rel=1e-14)
    between = text.bleu_counts([[CAT[:4], CAT[:2]]], [CAT[:3]])  # as far from both: the shorter one
    assert between.reference_length == 2


def test_bleu_of_a_corpus_is_not_the_mean_of_its_sentences():
    references, hypotheses = [[CAT], [list("abcdefgh")]], [CAT, list("abcdefhg")]
    matches = np.array([6 + 8, 5 + 5, 4 + 4, 3 + 3]) / [14, 12, 10, 8]
    np.testing.assert_allclose(text.bleu(references, hypotheses), np.exp(np.log(matches).mean()), rtol=1e-14)
    second = np.exp(np.log([8 / 8, 5 / 7, 4 / 6, 3 / 5]).mean())
    np.testing.assert_allclose(text.sentence_bleu(references, hypotheses), [1, second], rtol=1e-14)


@pytest.mark.parametrize("smoothing", ["none", "floor", "add-k", "exp"])
def test_token_ids_inside_jit_give_what_tokens_give(smoothing):
    references, hypotheses = corpus(0)
    references = no_empty(references)
    whole = text.bleu(references, hypotheses, smoothing=smoothing)
    ids = as_ids(references, hypotheses)
    assert text.bleu(*ids, smoothing=smoothing) == whole  # outside jit both end in float64
    compiled = jax.jit(lambda r, h: text.bleu(r, h, smoothing=smoothing))
    np.testing.assert_allclose(compiled(*ids), whole, rtol=2e-6)  # logarithms and an exponential in float32


def test_any_partition_gives_the_bleu_of_the_whole():
    references, hypotheses = corpus(1, n=40)
    ids = as_ids(no_empty(references), hypotheses)
    metric = text.bleu_metric(smoothing="exp")
    assert_any_partition_gives_the_whole(metric, ids, text.bleu(*ids, smoothing="exp"), seeds=1, rtol=0)


@pytest.mark.parametrize(
    ("metric", "score"),
    [
        (text.bleu_metric(), text.bleu),
        (text.meteor_metric(), text.meteor),
        (text.cider_metric(), text.cider),
        (text.cider_metric(variant="cider", order=2), lambda r, h: text.cider(r, h, variant="cider", order=2)),
    ],
)
def test_states_of_texts_merge_to_the_whole(metric, score):
    references, hypotheses = corpus(2, n=20, words="ab")
    whole = score(references, hypotheses)
    where = np.arange(12) < 9
    first = metric.update(metric.init(), references[:12], hypotheses[:12], where=where)
    second = metric.update(metric.init(), references[9:], hypotheses[9:])
    # METEOR's sum is kept in two float32, 48 bits; CIDEr's mean has another order.
    np.testing.assert_allclose(metric.compute(metric.merge(second, first)), whole, rtol=1e-12)
    assert whole > 0
    nothing = metric.compute(metric.init())
    assert np.isnan(nothing) or nothing == 0


@settings(max_examples=1000, deadline=None, derandomize=True, database=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    smoothing=st.sampled_from(["none", "floor", "add-k", "exp"]),
    order=st.integers(1, 4),
)
def test_any_texts_have_a_bleu_in_the_range_that_ids_share(seed, smoothing, order):
    references, hypotheses = corpus(seed, n=4, words="abc"[: 1 + seed % 3])
    references = no_empty(references)
    counts = text.bleu_counts(references, hypotheses)
    assert (counts.matches <= counts.totals).all()
    of_ids = ids_counts(*as_ids(references, hypotheses))
    assert all(np.array_equal(ids, own) for ids, own in zip(of_ids, counts, strict=True))
    score = text.bleu(references, hypotheses, smoothing=smoothing, order=order)
    assert 0 <= score <= 1 + 1e-12
    if all(len(own[0]) >= 4 for own in references):
        own_first = [own[0] for own in references]
        assert text.bleu(references, own_first, order=order) == pytest.approx(1, rel=1e-12)


ids_counts = jax.jit(text.bleu_counts)


# METEOR


def test_meteor_by_hand():
    """All six words in six chunks: pairing each "the" with the far one would cross more (and break less)."""
    hypothesis = ["on", "the", "mat", "sat", "the", "cat"]
    np.testing.assert_allclose(text.meteor([[CAT]], [hypothesis]), 0.5, rtol=1e-14)
    precision, recall = 2 / 3, 2 / 6
    mean = precision * recall / (0.9 * precision + 0.1 * recall)
    one_chunk = text.meteor([[CAT]], [["CAT", "Sat", "slept"]])
    np.testing.assert_allclose(one_chunk, mean * (1 - 0.5 * (1 / 2) ** 3), rtol=1e-14)
    crossed = text.meteor([[CAT]], [["the", "cat", "slept"]])  # "the" gets the last one of the reference, as in NLTK
    np.testing.assert_allclose(crossed, mean * (1 - 0.5), rtol=1e-14)
    assert text.meteor([[CAT]], [["dog"]]) == 0
    assert text.meteor([[CAT]], [[]]) == 0
    assert text.meteor([[["dog"], CAT]], [CAT]) == text.meteor([[CAT]], [CAT])  # the best reference counts


def test_meteor_matches_stems_and_then_synonyms_where_they_are_given():
    references, hypotheses = [[["dogs", "barked"]]], [["dog", "yelped"]]
    stem = lambda word: word.removesuffix("s")
    synonyms = lambda word: {"yelped": ["barked", "cried"]}.get(word, [])
    assert text.meteor(references, hypotheses) == 0
    half = text.meteor(references, hypotheses, stem=stem)
    np.testing.assert_allclose(half, 0.5 * (1 - 0.5), rtol=1e-14)
    both = text.meteor(references, hypotheses, stem=stem, synonyms=synonyms)
    np.testing.assert_allclose(both, 1 - 0.5 * (1 / 2) ** 3, rtol=1e-14)


# CIDEr


def naive_cider(references, hypotheses, variant, order=4, sigma=6.0):
    """Vectors over the whole vocabulary of n-grams, by the formulas."""
    grams = lambda tokens, n: [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    scores = np.zeros(len(hypotheses))
    for n in range(1, order + 1):
        everything = [g for own in references for tokens in own for g in grams(tokens, n)]
        vocabulary = sorted({*everything, *(g for tokens in hypotheses for g in grams(tokens, n))})
        documents = [sum(any(g in grams(tokens, n) for tokens in own) for own in references) for g in vocabulary]
        idf = np.log(len(references)) - np.log(np.maximum(documents, 1))
        vector = lambda tokens, n=n, idf=idf, vocabulary=vocabulary: (
            idf * [grams(tokens, n).count(g) for g in vocabulary]
        )
        for row, (own, tokens) in enumerate(zip(references, hypotheses, strict=True)):
            for reference in own:
                c, s = vector(tokens), vector(reference)
                norms = np.linalg.norm(c) * np.linalg.norm(s)
                if not norms > 0:
                    continue
                if variant == "cider":
                    value = c @ s / norms
                else:
                    penalty = np.exp(-((len(tokens) - len(reference)) ** 2) / (2 * sigma**2))
                    value = np.minimum(c, s) @ s / norms * penalty
                scores[row] += 10 * value / len(own) / order
    return scores


@pytest.mark.parametrize("variant", ["cider", "cider-d"])
@pytest.mark.parametrize("seed", range(3))
def test_cider_is_that_of_the_formulas(variant, seed):
    references, hypotheses = corpus(seed, n=6)
    expected = naive_cider(references, hypotheses, variant)
    assert expected.max() > 0.1
    np.testing.assert_allclose(text.sentence_cider(references, hypotheses, variant=variant), expected, rtol=1e-12)


def test_cider_by_hand():
    """Two images that share "a": it weighs nothing, "cat" weighs log 2; the caption repeats it."""
    references, hypotheses = [[["a", "cat"]], [["a", "dog"]]], [["cat", "cat"], ["a", "dog"]]
    options = {"order": 1, "sigma": 1.0}
    np.testing.assert_allclose(text.sentence_cider(references, hypotheses, variant="cider", **options), [10, 10])
    clipped = text.sentence_cider(references, hypotheses, **options)
    np.testing.assert_allclose(clipped, [10 * 1 / 2, 10], rtol=1e-14)  # min(2, 1) · 1 / (2 · 1), equal lengths
    longer = text.sentence_cider(references, [["a", "a", "cat"], ["a", "dog"]], **options)
    np.testing.assert_allclose(longer, [10 * math.exp(-0.5), 10], rtol=1e-14)


def test_cider_of_given_frequencies_does_not_depend_on_the_other_captions():
    references, hypotheses = corpus(3, n=8)
    frequencies = text.document_frequencies(references)
    whole = text.sentence_cider(references, hypotheses)
    some = text.sentence_cider(references[2:4], hypotheses[2:4], frequencies=frequencies)
    np.testing.assert_array_equal(some, whole[2:4])
    assert not text.sentence_cider(references[:1], hypotheses[:1]).any()  # one image: nothing is rare


@settings(max_examples=1000, deadline=None, derandomize=True, database=None)
@given(seed=st.integers(0, 2**32 - 1), variant=st.sampled_from(["cider", "cider-d"]))
def test_any_texts_have_a_meteor_and_a_cider_in_the_range(seed, variant):
    references, hypotheses = corpus(seed, n=3, words="abcd", references=2, longest=7)
    meteor = text.sentence_meteor(references, hypotheses)
    assert ((meteor >= 0) & (meteor <= 1)).all()
    for own, tokens, score in zip(references, hypotheses, meteor, strict=True):
        assert (score > 0) == any({*tokens} & {*reference} for reference in own)
        if tokens:
            alone = text.sentence_meteor([[tokens]], [tokens])[0]  # one chunk: the best there is
            np.testing.assert_allclose(alone, 1 - 0.5 / len(tokens) ** 3, rtol=1e-14)
            assert score <= alone + 1e-14 or any(len(reference) != len(tokens) for reference in own)
    cider = text.sentence_cider(references, hypotheses, variant=variant)
    assert ((cider >= 0) & (cider <= 10 + 1e-9)).all()
    order = np.random.default_rng(seed).permutation(3)
    shuffled = text.sentence_cider([references[k] for k in order], [hypotheses[k] for k in order], variant=variant)
    np.testing.assert_allclose(shuffled, cider[order], rtol=1e-12)


# Perplexity


def test_perplexity_of_a_uniform_model_is_the_size_of_its_vocabulary():
    losses = jnp.full((3, 5), math.log(50.0))
    np.testing.assert_allclose(text.perplexity(losses), 50, rtol=1e-5)
    spoiled = losses.at[0, 3:].set(jnp.nan)
    valid = np.ones((3, 5), bool)
    valid[0, 3:] = False
    np.testing.assert_allclose(text.perplexity(spoiled, valid=valid), 50, rtol=1e-5)


def test_any_partition_gives_the_perplexity_of_the_whole():
    rng = np.random.default_rng(0)
    losses, valid = rng.exponential(size=(30, 4)).astype(np.float32), rng.random((30, 4)) < 0.7
    expected = np.exp(losses[valid].mean())
    np.testing.assert_allclose(text.perplexity(losses, valid=valid), expected, rtol=1e-5)
    assert_any_partition_gives_the_whole(text.perplexity_metric(), (losses, valid), expected, seeds=1)


@settings(max_examples=1000, deadline=None, derandomize=True, database=None)
@given(seed=st.integers(0, 2**32 - 1), spoiled=st.booleans())
def test_perplexity_is_at_least_1_and_a_valid_token_must_be_finite(seed, spoiled):
    rng = np.random.default_rng(seed)
    losses, valid = rng.exponential(size=(3, 4)).astype(np.float32), rng.random((3, 4)) < 0.7
    valid[0, 0] = True
    losses[~valid] = np.nan
    if spoiled:
        losses[0, 0] = rng.choice([np.nan, np.inf])
        with pytest.raises(UsageError, match="negative_log_likelihoods must be finite"):
            text.perplexity(losses, valid=valid)
    else:
        assert float(text.perplexity(losses, valid=valid)) >= 1


# What is refused

GOOD = [[CAT]], [CAT]
TEXTS = {
    "text for a hypothesis": ([[CAT]], ["the cat"]),
    "text for a reference": ([["the cat"]], [CAT]),
    "a reference where a list of them belongs": ([CAT], [CAT]),
    "text for all": ("the cat", "the cat"),
    "another number of references": ([[CAT]] * 2, [CAT]),
    "no reference": ([[]], [CAT]),
    "a number for a token": ([[CAT]], [[1, 2]]),
    "nothing for a reference": ([[None]], [CAT]),
    "bytes": ([[CAT]], [b"the cat"]),
    "floats for ids": (np.zeros((1, 1, 3), np.float32), np.zeros((1, 3), np.float32)),
    "ids of another shape": (np.zeros((1, 3), np.int32), np.zeros((1, 3), np.int32)),
    "another number of ids": (np.zeros((2, 1, 3), np.int32), np.zeros((1, 3), np.int32)),
    "padding in front": (np.zeros((1, 1, 3), np.int32), np.array([[-1, 0, 1]])),
    "nothing at all": ([], []),
}


@pytest.mark.parametrize("fault", TEXTS)
@pytest.mark.parametrize("score", [text.bleu, text.meteor, text.cider])
def test_texts_that_are_none_are_refused(score, fault, annotations_off):
    with pytest.raises(UsageError):
        score(*TEXTS[fault])


@settings(max_examples=1000, deadline=None, derandomize=True, database=None)
@given(
    seed=st.integers(0, 2**32 - 1), score=st.sampled_from([text.bleu, text.meteor, text.cider]),
    fault=st.sampled_from(["number", "text", "nan", "nothing", "missing", "no references", "mask"]),
)  # fmt: skip
def test_one_fault_anywhere_in_a_corpus_is_found(seed, score, fault):
    references, hypotheses = corpus(seed, n=4)
    rng = np.random.default_rng(seed)
    row, where = int(rng.integers(4)), None
    wrong = {"number": [3], "text": "a b", "nan": [float("nan")], "nothing": None}
    if fault in wrong and rng.random() < 0.5:
        hypotheses[row] = wrong[fault]
    elif fault in wrong:
        references[row][-1] = wrong[fault]
    elif fault == "missing":
        del (hypotheses if rng.random() < 0.5 else references)[row]
    elif fault == "no references":
        references[row] = []
    else:
        where = np.zeros(4, bool) if rng.random() < 0.5 else np.ones(5, bool)
    annotations.update("jaxtyping_disable", True)
    try:
        with pytest.raises(UsageError):
            score(references, hypotheses, where=where)
    finally:
        annotations.update("jaxtyping_disable", False)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: text.bleu(*GOOD, smoothing="exponential"), "unknown smoothing 'exponential'"),
        (lambda: text.bleu(*GOOD, smoothing="exp", smoothing_value=0.1), "is for 'floor' and 'add-k', not for 'exp'"),
        (lambda: text.bleu(*GOOD, smoothing="floor", smoothing_value=-1.0), "must be positive, got -1.0"),
        (lambda: text.bleu(*GOOD, reference_length="shorter"), "did you mean 'shortest'"),
        (lambda: text.bleu(*GOOD, order=0), "at least 1, got 0"),
        (
            lambda: text.bleu([["the cat"]], [CAT]),
            r"references\[0\]\[0\] must be a list of tokens .str., got str 'the cat'",
        ),
        (lambda: text.meteor(*GOOD, alpha=1.5), r"alpha must lie in \[0, 1\], got 1.5"),
        (lambda: text.cider(*GOOD, variant="cider-r"), "unknown variant 'cider-r'"),
        (lambda: text.cider(*GOOD, sigma=0.0), "sigma must be positive, got 0.0"),
        (lambda: text.cider(*GOOD, order=-1), "at least 1, got -1"),
        (
            lambda: text.perplexity(np.ones((2, 3), np.float32), valid=np.ones((2, 2), bool)),
            r"valid must have the shape",
        ),
    ],
)
def test_nonsense_is_refused_with_the_value_given(call, words, annotations_off):
    with pytest.raises(UsageError, match=words):
        call()
