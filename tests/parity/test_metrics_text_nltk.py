"""METEOR and BLEU against NLTK; stemmer and dictionary are stand-ins, since NLTK's WordNet is a download."""

import numpy as np
import pytest

from dl_core.metrics import text

pytest.importorskip("nltk")
from nltk.stem.porter import PorterStemmer
from nltk.translate.bleu_score import corpus_bleu
from nltk.translate.meteor_score import meteor_score

RTOL = 1e-12  # the same few float64 operations
WORDS = [
    "run",
    "runs",
    "running",
    "Runner",
    "walk",
    "walked",
    "walks",
    "cat",
    "cats",
    "feline",
    "the",
    "a",
    "The",
    "on",
]
SYNONYMS = {"cat": {"feline", "kitty"}, "feline": {"cat"}, "run": {"walk"}, "the": {"a"}, "walk": {"run", "walked"}}


class NoStems:
    def stem(self, word):
        return word


class Dictionary:
    """What NLTK asks of WordNet: synsets(word) with lemmas() with name()."""

    def __init__(self, synonyms):
        self.synonyms = synonyms

    def synsets(self, word):
        return [Synset(self.synonyms[word])] if word in self.synonyms else []


class Synset:
    def __init__(self, names):
        self.names = names

    def lemmas(self):
        return [Lemma(name) for name in sorted(self.names)]


class Lemma:
    def __init__(self, name):
        self.text = name

    def name(self):
        return self.text


def corpus(seed, n=150, references=2, longest=12):
    rng = np.random.default_rng(seed)
    sentence = lambda least: [str(word) for word in rng.choice(WORDS, rng.integers(least, longest))]
    return [[sentence(1) for _ in range(references)] for _ in range(n)], [sentence(0) for _ in range(n)]


@pytest.mark.parametrize("weights", [{}, {"alpha": 0.7, "beta": 1.5, "gamma": 0.3}])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({}, {}),
        ({"stem": PorterStemmer().stem}, {"stemmer": PorterStemmer()}),
        ({"synonyms": lambda word: SYNONYMS.get(word, ())}, {"wordnet": Dictionary(SYNONYMS)}),
    ],
)
def test_meteor(weights, ours, theirs):
    references, hypotheses = corpus(0)  # empty hypotheses among them
    expected = [
        meteor_score(own, hypothesis, **({"stemmer": NoStems(), "wordnet": Dictionary({})} | theirs), **weights)
        for own, hypothesis in zip(references, hypotheses, strict=True)
    ]
    np.testing.assert_allclose(text.sentence_meteor(references, hypotheses, **ours, **weights), expected, rtol=RTOL)
    assert len({round(score, 6) for score in expected}) > 80


def test_bleu_of_a_corpus():
    references, hypotheses = corpus(1, longest=20)
    # NLTK counts one n-gram in a sentence that is too short to have any: here none is.
    hypotheses = [[*own[0][:-1], "a", "the", "cat", "runs"] for own in references]
    np.testing.assert_allclose(text.bleu(references, hypotheses), corpus_bleu(references, hypotheses), rtol=RTOL)
