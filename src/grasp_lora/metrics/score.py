"""All text metrics behind one call: each score with its n, a 95 % bootstrap interval and a signature."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from ..config import METRICS
from ..errors import ConfigError, DataError, nearest
from .bertscore import BertScoreUnavailableError, bert_scores
from .bootstrap import Array, Reduce, bootstrap_interval
from .corpus import bleu, chrf
from .mlqa import mlqa_scores, mlqa_signature
from .rouge import rouge_scores, rouge_signature
from .text import check_lengths

TEXT_METRICS = tuple(name for name in METRICS if name != "loss")


@dataclass(frozen=True)
class Score:
    """One score over n examples, 0 to 100 (a loss: nats), its 95 % interval and how it was computed.

    An unavailable score has neither value nor interval, and says why.
    """

    name: str
    value: float | None
    n: int
    interval: tuple[float, float] | None
    signature: str
    available: bool = True
    reason: str | None = None

    def __str__(self) -> str:
        if self.value is None or self.interval is None:
            return f"{self.name}: unavailable ({self.reason})"
        low, high = self.interval
        return f"{self.name}: {self.value:.2f} [{low:.2f}, {high:.2f}] (n={self.n}, {self.signature})"


@dataclass(frozen=True)
class ScoreSet:
    """The scores of one system, and the per-example values of those that are means over examples.

    BLEU and chrF are scores of the corpus as a whole and have no per-example values.
    """

    scores: tuple[Score, ...]
    per_example: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True)
class _Job:
    """What one call asks for."""

    predictions: Sequence[str]
    references: Sequence[Sequence[str]]
    language: str
    bootstrap: int
    seed: int
    bertscore_model: str | None
    device: str

    def score(
        self,
        name: str,
        values: Sequence[float] | Array,
        signature: str,
        total: tuple[float, Reduce] | None = None,
    ) -> Score:
        """Return the mean of `values`, or the score `total` whose statistics they are, with its interval."""
        return _with_interval(name, values, signature, (self.bootstrap, self.seed), total)

    def unavailable(self, name: str, reason: str) -> Score:
        """Return a score that says why it is missing."""
        return Score(name, None, len(self.predictions), None, "none", available=False, reason=reason)


_Named = tuple[Score, tuple[float, ...] | None]


def score_predictions(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    language: str,
    metrics: Sequence[str],
    bootstrap: int = 1000,
    seed: int = 0,
    bertscore_model: str | None = None,
    device: str = "cpu",
) -> ScoreSet:
    """Score predictions against one or more references each, in the order of `metrics`.

    `metrics` are names of `config.METRICS` without `loss`; `rouge` gives rouge1, rouge2, rougeL (zh, ja:
    rougeL_char too), `bertscore` gives bertscore_raw and bertscore_rescaled, which may be unavailable. Raises
    `ValueError` when the lengths differ, `DataError` when there are no examples, `ConfigError` for an unknown
    metric.
    """
    check_lengths(predictions, references)
    job = _Job(predictions, references, language, bootstrap, seed, bertscore_model, device)
    scores, per_example = [], {}
    for metric in dict.fromkeys(metrics):
        for score, values in _scores(job, metric):
            scores.append(score)
            if values is not None:
                per_example[score.name] = values
    return ScoreSet(tuple(scores), MappingProxyType(per_example))


def score_losses(losses: Sequence[float], *, bootstrap: int = 1000, seed: int = 0) -> Score:
    """Return the mean of per-example losses, in nats, as score `loss`; raises `DataError` for none."""
    signature = "answer-token cross-entropy, mean per example, mean over examples|nats|version:1"
    return _with_interval("loss", losses, signature, (bootstrap, seed), None)


def _with_interval(
    name: str,
    values: Sequence[float] | Array,
    signature: str,
    resampling: tuple[int, int],
    total: tuple[float, Reduce] | None,
) -> Score:
    n = len(values)
    if not n:
        raise DataError("there are no examples to score. Give a split that has some.")
    value, reduce = total if total is not None else (math.fsum(float(v) for v in values) / n, None)
    resamples, seed = resampling
    interval = bootstrap_interval(values, reduce=reduce, resamples=resamples, seed=seed)
    return Score(name, value, n, interval, f"{signature}|ci:95-percentile|bs:{resamples}|seed:{seed}")


def _scores(job: _Job, metric: str) -> Iterator[_Named]:
    match metric:
        case "em" | "f1":
            values = mlqa_scores(job.predictions, job.references, job.language)[metric]
            yield job.score(metric, values, mlqa_signature(job.language)), values
        case "rouge":
            for name, values in rouge_scores(job.predictions, job.references, job.language).items():
                yield job.score(name, values, rouge_signature(name, job.language)), values
        case "bleu" | "chrf":
            yield _corpus(job, metric), None
        case "bertscore":
            yield from _bertscore(job)
        case _:
            hint = nearest(metric, TEXT_METRICS)
            raise ConfigError(
                f"evaluate.metrics: unknown metric '{metric}'.{hint} Known here: {', '.join(TEXT_METRICS)}."
            )


def _corpus(job: _Job, metric: str) -> Score:
    if metric == "bleu":
        found = bleu(job.predictions, job.references, job.language)
    else:
        found = chrf(job.predictions, job.references)
    return job.score(metric, found.statistics, f"sacrebleu|{found.signature}", (found.value, found.reduce))


def _bertscore(job: _Job) -> Iterator[_Named]:
    try:
        found = bert_scores(job.predictions, job.references, job.language, job.bertscore_model, device=job.device)
    except BertScoreUnavailableError as error:
        yield job.unavailable("bertscore_raw", str(error)), None
        yield job.unavailable("bertscore_rescaled", str(error)), None
        return
    yield job.score("bertscore_raw", found.raw, found.raw_signature), found.raw
    if found.rescaled is None:
        yield job.unavailable("bertscore_rescaled", str(found.rescaled_reason)), None
    else:
        yield job.score("bertscore_rescaled", found.rescaled, found.rescaled_signature), found.rescaled
