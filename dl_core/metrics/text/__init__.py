"""Scores of texts against references: BLEU, METEOR, CIDEr, perplexity.

Arguments come in the order (references, hypotheses). A hypothesis is a list of tokens, and has a list of references,
each a list of tokens: `references[i][j]` is the j-th reference of hypothesis i. How a text becomes tokens changes every
score, so it is the caller's to say: `tokenize_13a` is what sacrebleu does, `str.split` leaves tokens as they are.

Strings live on the host. BLEU also takes arrays of token ids, and then works inside jit.
"""

from dl_core.metrics.text.bleu import BleuCounts, bleu, bleu_counts, bleu_from_counts, bleu_metric, sentence_bleu
from dl_core.metrics.text.cider import DocumentFrequencies, cider, cider_metric, document_frequencies, sentence_cider
from dl_core.metrics.text.meteor import meteor, meteor_metric, sentence_meteor
from dl_core.metrics.text.perplexity import perplexity, perplexity_metric
from dl_core.metrics.text.tokens import tokenize_13a

__all__ = [
    "BleuCounts",
    "DocumentFrequencies",
    "bleu",
    "bleu_counts",
    "bleu_from_counts",
    "bleu_metric",
    "cider",
    "cider_metric",
    "document_frequencies",
    "meteor",
    "meteor_metric",
    "perplexity",
    "perplexity_metric",
    "sentence_bleu",
    "sentence_cider",
    "sentence_meteor",
    "tokenize_13a",
]
