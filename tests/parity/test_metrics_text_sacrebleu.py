"""BLEU against sacrebleu: corpora and sentences, every smoothing, several references, odd texts."""

import numpy as np
import pytest

from dl_core.metrics import text

pytest.importorskip("sacrebleu")
from sacrebleu.metrics import BLEU

# Both sides take logarithms and an exponential in float64.
RTOL = 1e-10


def corpus(seed, n=30, references=3, words=12, longest=14):
    rng = np.random.default_rng(seed)
    sentence = lambda: [f"w{k}" for k in rng.integers(0, words, rng.integers(0, longest))]
    return [[sentence() for _ in range(references)] for _ in range(n)], [sentence() for _ in range(n)]


def joined(references, hypotheses):
    """sacrebleu's form: sentences as text, references by stream."""
    return [" ".join(tokens) for tokens in hypotheses], [
        [" ".join(t) for t in s] for s in zip(*references, strict=True)
    ]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("order", [1, 2, 4])
@pytest.mark.parametrize(
    ("smoothing", "value"),
    [("none", None), ("exp", None), ("floor", None), ("floor", 0.3), ("add-k", None), ("add-k", 2.0)],
)
def test_bleu_of_a_corpus(seed, order, smoothing, value):
    texts = corpus(seed, references=1 + seed % 3, words=12 if seed else 400)  # long n-grams are rare in the first
    reference = BLEU(tokenize="none", smooth_method=smoothing, smooth_value=value, max_ngram_order=order)
    expected = reference.corpus_score(*joined(*texts)).score / 100
    result = text.bleu(*texts, order=order, smoothing=smoothing, smoothing_value=value)
    np.testing.assert_allclose(result, expected, rtol=RTOL, atol=1e-300)


@pytest.mark.parametrize("smoothing", ["none", "exp", "floor", "add-k"])
@pytest.mark.parametrize("effective_order", [False, True])
def test_bleu_of_single_sentences(smoothing, effective_order):
    references, hypotheses = corpus(5, n=200, words=5, longest=9)
    texts, streams = joined(references, hypotheses)
    reference = BLEU(tokenize="none", smooth_method=smoothing, effective_order=effective_order)
    expected = [
        reference.sentence_score(hypothesis, list(own)).score / 100
        for hypothesis, *own in zip(texts, *streams, strict=True)
    ]
    result = text.sentence_bleu(references, hypotheses, smoothing=smoothing, effective_order=effective_order)
    assert len({0 < score < 1 for score in expected}) == 2
    np.testing.assert_allclose(result, expected, rtol=RTOL, atol=1e-300)


ODD = [
    "Hello, world! It's 3,000.5 dollars (or so) -- isn't it?",
    "A&amp;B said &quot;no&quot; &lt;twice&gt;.\n",
    "pp. 3-4, 1990-2000; e-mail: a.b@c.de / $5.00 [sic] {x}|~ ^_` <skipped>end-\nof line",
    "Ünïcödé “quotes” – dashes… and emoji 🙂, 12.",
    "",
    " .5, 5. ,a. 7-",
    "tab\tand\r\nother   spaces",
]


@pytest.mark.parametrize("line", ODD)
def test_tokenize_13a(line):
    expected = BLEU(tokenize="13a").tokenizer(line.rstrip()).split()
    assert text.tokenize_13a(line) == expected


def test_tokenize_13a_of_random_characters():
    rng = np.random.default_rng(0)
    tokenizer = BLEU(tokenize="13a").tokenizer
    alphabet = list("ab01 .,-'\"&;!?()[]{}<>/\\|~^_`@#$%*+=:\né")
    for _ in range(1000):
        line = "".join(rng.choice(alphabet, rng.integers(0, 30)))
        assert text.tokenize_13a(line) == tokenizer(line.rstrip()).split()


def test_bleu_of_text_with_the_usual_settings():
    texts, references = [line for line in ODD if line], [line.lower() for line in ODD if line]
    expected = BLEU().corpus_score(texts, [references]).score / 100
    result = text.bleu(
        [[text.tokenize_13a(line)] for line in references], [text.tokenize_13a(line) for line in texts], smoothing="exp"
    )
    assert 0.1 < expected < 1
    np.testing.assert_allclose(result, expected, rtol=RTOL)
