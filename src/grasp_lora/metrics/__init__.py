"""Exact scores of generated text, each with n, a bootstrap interval and a signature."""

from .bertscore import BertScores, BertScoreUnavailableError, bert_scores
from .bootstrap import PairedComparison, bootstrap_interval, paired_bootstrap
from .corpus import CorpusScore, bleu, chrf, paired_corpus
from .mlqa import mlqa_scores, mlqa_tokens
from .rouge import rouge_scores, rouge_tokens
from .score import TEXT_METRICS, Score, ScoreSet, score_losses, score_predictions

__all__ = [
    "TEXT_METRICS",
    "BertScoreUnavailableError",
    "BertScores",
    "CorpusScore",
    "PairedComparison",
    "Score",
    "ScoreSet",
    "bert_scores",
    "bleu",
    "bootstrap_interval",
    "chrf",
    "mlqa_scores",
    "mlqa_tokens",
    "paired_bootstrap",
    "paired_corpus",
    "rouge_scores",
    "rouge_tokens",
    "score_losses",
    "score_predictions",
]
