"""Corpus BLEU-4 and chrF by `sacrebleu` (Post, WMT 2018; Popović, WMT 2015), and how to resample them.

The score is sacrebleu's. The per-sentence statistics, whose sums give the same score, serve the bootstrap:
for BLEU they are what sacrebleu publishes of a sentence's score, for chrF they are counted here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np

from .bootstrap import Array, PairedComparison, Reduce, paired_bootstrap
from .text import check_lengths, primary_language

_BLEU_TOKENIZERS = {"zh": "zh", "ar": "intl", "ja": "char", "th": "char"}
_ORDER = 4
_CHARACTER_ORDER = 6
_BETA = 2.0


@dataclass(frozen=True)
class CorpusScore:
    """A corpus score, 0 to 100, with sacrebleu's signature.

    `statistics` has shape (n, k); `reduce` maps sums of its rows, shape (resamples, k), to scores.
    """

    name: str
    value: float
    signature: str
    statistics: Array
    reduce: Reduce


def bleu_tokenizer(language: str) -> str:
    """Return sacrebleu's tokenizer for a language: `zh`, `intl` for ar, `char` for ja and th, else `13a`."""
    return _BLEU_TOKENIZERS.get(primary_language(language), "13a")


def _streams(references: Sequence[Sequence[str]]) -> Any:
    """Return reference streams as sacrebleu takes them; None where an example has no further reference."""
    return [list(stream) for stream in zip_longest(*references)]


def bleu(predictions: Sequence[str], references: Sequence[Sequence[str]], language: str) -> CorpusScore:
    """Return corpus BLEU-4 of detokenized, case-sensitive text.

    Raises `ValueError` when the lengths differ and `DataError` when there are no examples.
    """
    from sacrebleu.metrics.bleu import BLEU

    check_lengths(predictions, references)
    tokenizer = bleu_tokenizer(language)
    metric = BLEU(tokenize=tokenizer, force=True)
    value = float(metric.corpus_score(list(predictions), _streams(references)).score)
    # The counts do not depend on the effective order; asking for it keeps a hint out of the log.
    counter = BLEU(tokenize=tokenizer, force=True, effective_order=True)
    rows = []
    for prediction, group in zip(predictions, references, strict=True):
        part = counter.sentence_score(prediction, list(group))
        rows.append([part.sys_len, part.ref_len, *part.counts, *part.totals])

    def reduce(sums: Array) -> Array:
        return np.array([_bleu_of(BLEU, row) for row in np.rint(sums).astype(int).tolist()])

    return CorpusScore("bleu", value, str(metric.get_signature()), np.array(rows, dtype=np.float64), reduce)


def _bleu_of(metric: Any, row: list[int]) -> float:
    counts, totals = row[2 : 2 + _ORDER], row[2 + _ORDER :]
    return float(metric.compute_bleu(counts, totals, row[0], row[1], smooth_method="exp").score)


def chrf(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> CorpusScore:
    """Return corpus chrF2 (characters 1 to 6, no words), in every language the same.

    Raises `ValueError` when the lengths differ and `DataError` when there are no examples.
    """
    from sacrebleu.metrics.chrf import CHRF

    check_lengths(predictions, references)
    metric = CHRF()
    value = float(metric.corpus_score(list(predictions), _streams(references)).score)
    rows = np.stack([_chrf_counts(p, group) for p, group in zip(predictions, references, strict=True)])
    return CorpusScore("chrf", value, str(metric.get_signature()), rows, _chrf_of)


def _grams(text: str) -> list[Counter[str]]:
    text = "".join(text.split())
    return [
        Counter(text[start : start + n] for start in range(len(text) - n + 1)) for n in range(1, _CHARACTER_ORDER + 1)
    ]


def _chrf_counts(prediction: str, references: Sequence[str]) -> Array:
    """Return counts (prediction, reference, common) per order, shape (18,), for the best reference."""
    grams = _grams(prediction)
    tables = []
    for reference in references:
        others = _grams(reference)
        # Without a reference n-gram of this order, the prediction's are not counted against it.
        tables.append(
            [c for own, ref in zip(grams, others, strict=True)
             for c in (own.total() if ref else 0, ref.total(), (own & ref).total())]
        )  # fmt: skip
    table = np.array(tables, dtype=np.float64)
    best: Array = table[int(np.argmax(_chrf_of(table)))]
    return best


def _chrf_of(sums: Array) -> Array:
    """Return chrF2 of counts, shape (rows, 18): F of mean precision and recall over the shared orders.

    In sacrebleu's order of operations: of references that are equally good, rounding says which is taken.
    """
    own, ref, common = sums.reshape(len(sums), _CHARACTER_ORDER, 3).transpose(2, 0, 1)
    used = (own > 0) & (ref > 0)
    orders = np.maximum(used.sum(axis=1), 1)
    precision = np.where(used, common / np.maximum(own, 1.0), 0.0).sum(axis=1) / orders
    recall = np.where(used, common / np.maximum(ref, 1.0), 0.0).sum(axis=1) / orders
    weight = _BETA**2
    bottom = weight * precision + recall
    return np.where(bottom > 0, 100.0 * ((1.0 + weight) * precision * recall / np.where(bottom > 0, bottom, 1.0)), 0.0)


def paired_corpus(a: CorpusScore, b: CorpusScore, *, resamples: int = 1000, seed: int = 0) -> PairedComparison:
    """Compare two systems by one corpus metric; raises `ValueError` for two different metrics."""
    if (a.name, a.signature) != (b.name, b.signature):
        raise ValueError(f"two different metrics: {a.name} ({a.signature}) and {b.name} ({b.signature})")
    return paired_bootstrap(a.statistics, b.statistics, reduce=a.reduce, resamples=resamples, seed=seed)
