"""BERTScore F1 (Zhang et al., ICLR 2020) by `bert-score`, raw and rescaled, or the reason why there is none.

The greedy matching is bert-score's own. The encoder is loaded here, because bert-score 0.3.13 crashes on
transformers 5 for empty texts, takes no bound on lengths, and guesses the architecture from the path. A score
that cannot be computed is reported as unavailable; no other encoder and no other baseline takes its place.

Empty predictions (nothing but white space, or no token) score 0, raw and rescaled; so do predictions without
a single non-empty reference.
"""

from __future__ import annotations

import csv
import importlib.util
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .text import check_lengths, primary_language

MAX_LENGTH = 512
_BATCH = 32
_NOT_INSTALLED = "the package `bert-score` is not installed; install it with: pip install 'grasp-lora[bertscore]'"


class BertScoreUnavailableError(Exception):
    """BERTScore cannot be computed; the text says why. Callers report it, they do not stop."""


@dataclass(frozen=True)
class BertScores:
    """F1 times 100 of every example; `rescaled` is None, with a reason, when there is no baseline."""

    raw: tuple[float, ...]
    raw_signature: str
    rescaled: tuple[float, ...] | None
    rescaled_signature: str
    rescaled_reason: str | None


def bert_scores(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    language: str,
    model: str | None,
    *,
    device: str = "cpu",
    layer: int | None = None,
) -> BertScores:
    """Return the F1 of every example, the best over its references.

    `model` is a folder or hub id; `layer` the hidden layer to compare, by default the one that bert-score
    recommends for the encoder and, for an encoder unknown to it, the last. Raises `BertScoreUnavailableError`
    when the package or the encoder is missing, `ValueError` when the lengths differ, `DataError` when there
    are no examples.
    """
    check_lengths(predictions, references)
    if model is None:
        raise BertScoreUnavailableError("evaluate.bertscore_model is not set; give an encoder's folder or hub id")
    if importlib.util.find_spec("bert_score") is None:
        raise BertScoreUnavailableError(_NOT_INSTALLED)
    encoder = _load(model, layer, device)
    raw = _f1(encoder, predictions, references)
    baseline, reason = _baseline(primary_language(language), encoder)
    signature = f"{encoder.name}|layer:{encoder.layer}|idf:no|max:{MAX_LENGTH}|empty:0|refs:best"
    signature += f"|bert-score-{version('bert-score')}|transformers-{version('transformers')}"
    rescaled = None if baseline is None else tuple(_rescale(score, baseline) for score in raw)
    return BertScores(
        tuple(100.0 * (score or 0.0) for score in raw),
        f"{signature}|raw",
        rescaled,
        f"{signature}|rescaled:{primary_language(language)}",
        reason,
    )


def _rescale(score: float | None, baseline: float) -> float:
    """Rescale a raw F1 (None: an empty text, which stays 0: the baseline is that of random sentences)."""
    return 0.0 if score is None else 100.0 * (score - baseline) / (1.0 - baseline)


class _Layer(nn.Module):
    """An encoder that returns one hidden layer first, which is where bert-score looks for embeddings."""

    def __init__(self, encoder: nn.Module, layer: int) -> None:
        super().__init__()
        self.encoder, self.layer = encoder, layer

    def forward(self, ids: torch.Tensor, attention_mask: torch.Tensor, **_unused: Any) -> tuple[torch.Tensor]:
        """Return hidden states of shape (batch, length, width)."""
        out = self.encoder(input_ids=ids, attention_mask=attention_mask, output_hidden_states=True)
        return (out.hidden_states[self.layer],)


class _Tokenizer:
    """What bert-score asks of a tokenizer, with a bound on lengths and a leading space where one is due."""

    def __init__(self, tokenizer: Any) -> None:
        from transformers import GPT2Tokenizer, RobertaTokenizer

        self._inner = tokenizer
        self._lead = " " if isinstance(tokenizer, (GPT2Tokenizer, RobertaTokenizer)) else ""
        self.model_max_length = min(MAX_LENGTH, tokenizer.model_max_length)
        self.sep_token_id, self.cls_token_id = tokenizer.sep_token_id, tokenizer.cls_token_id
        self.pad_token_id = tokenizer.pad_token_id

    def encode(self, text: str, **_unused: Any) -> list[int]:
        """Return token ids with the special tokens, cut to the bound."""
        ids: list[int] = self._inner.encode(
            self._lead + text, add_special_tokens=True, truncation=True, max_length=self.model_max_length
        )
        return ids

    def is_empty(self, text: str) -> bool:
        """Return whether nothing but special tokens is left of the text."""
        return not text.strip() or not self._inner.encode(self._lead + text.strip(), add_special_tokens=False)


@dataclass(frozen=True)
class _Encoder:
    name: str
    model: _Layer
    tokenizer: _Tokenizer
    layer: int
    device: str


def _load(location: str, layer: int | None, device: str) -> _Encoder:
    from safetensors import SafetensorError
    from transformers import AutoModel, AutoTokenizer

    name = Path(location).name if Path(location).is_absolute() else location
    try:
        tokenizer = AutoTokenizer.from_pretrained(location)
        inner, notes = AutoModel.from_pretrained(
            location, dtype=torch.float32, use_safetensors=True, output_loading_info=True
        )
        missing = sorted(key for key in notes["missing_keys"] if "pooler" not in key)
        _check_encoder(name, inner, tokenizer, missing)
        layer = _layer_of(location, inner, layer)
        inner = inner.to(device).eval()
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise BertScoreUnavailableError(f"the encoder '{name}' cannot be loaded: {first}") from None
    return _Encoder(name, _Layer(inner, layer), _Tokenizer(tokenizer), layer, device)


def _check_encoder(name: str, model: Any, tokenizer: Any, missing: Sequence[str]) -> None:
    if missing:
        raise BertScoreUnavailableError(f"the encoder '{name}' lacks weights, {missing[0]} among them")
    if model.config.is_encoder_decoder:
        raise BertScoreUnavailableError(f"'{name}' is an encoder-decoder model; give a plain encoder")
    if None in (tokenizer.pad_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id):
        raise BertScoreUnavailableError(f"the tokenizer of '{name}' lacks a pad, cls or sep token; give an encoder's")


def _labels(location: str) -> list[str]:
    """Return the names bert-score may know the encoder by: the id, or the last one or two parts of a path."""
    parts = Path(location).parts
    return [location, *(["/".join(parts[-2:])] if len(parts) > 1 else []), parts[-1]]


def _layer_of(location: str, model: Any, layer: int | None) -> int:
    from bert_score.utils import model2layers

    last = int(model.config.num_hidden_layers)
    if layer is None:
        layer = next((int(model2layers[label]) for label in _labels(location) if label in model2layers), last)
    if not 0 <= layer <= last:
        raise ValueError(f"it has {last} layers, layer {layer} was asked for")
    return layer


def _baseline(language: str, encoder: _Encoder) -> tuple[float | None, str | None]:
    """Return the F1 of random sentences that bert-score ships for this encoder, or why there is none."""
    spec = importlib.util.find_spec("bert_score")
    root = Path(str(spec.origin)).parent / "rescale_baseline" / language if spec else Path()
    file = root / f"{encoder.name}.tsv"
    if not file.is_file():
        return None, f"bert-score has no rescaling baseline for '{encoder.name}' in language '{language}'"
    with file.open(encoding="utf-8", newline="") as stream:
        rows = {int(float(row["LAYER"])): float(row["F"]) for row in csv.DictReader(stream)}
    if encoder.layer not in rows:
        return (
            None,
            f"bert-score's baseline for '{encoder.name}' in '{language}' has no layer {encoder.layer}",
        )
    return rows[encoder.layer], None


def _f1(encoder: _Encoder, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float | None]:
    """Return raw F1 per example, None where the prediction or every reference is empty."""
    empty = encoder.tokenizer.is_empty
    pairs = [
        (place, prediction, reference)
        for place, (prediction, group) in enumerate(zip(predictions, references, strict=True))
        if not empty(prediction)
        for reference in group
        if not empty(reference)
    ]
    best: list[float | None] = [None] * len(predictions)
    if not pairs:
        return best
    for (place, _, _), score in zip(pairs, _match(encoder, pairs), strict=True):
        known = best[place]
        best[place] = score if known is None else max(known, score)
    return best


def _match(encoder: _Encoder, pairs: Sequence[tuple[int, str, str]]) -> list[float]:
    from bert_score.utils import bert_cos_score_idf

    weights: defaultdict[int, float] = defaultdict(lambda: 1.0)
    weights[encoder.tokenizer.sep_token_id] = weights[encoder.tokenizer.cls_token_id] = 0.0
    found = bert_cos_score_idf(
        encoder.model,
        [reference for _, _, reference in pairs],
        [prediction for _, prediction, _ in pairs],
        encoder.tokenizer,
        weights,
        batch_size=_BATCH,
        device=encoder.device,
    )
    scores: list[float] = found[:, 2].double().tolist()
    return scores
