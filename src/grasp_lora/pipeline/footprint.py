"""Peak memory of a run before it runs: weights, adapters, and the largest pass of training, judging or answering."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..adapters.kernels import kernels_fit
from ..config import Config, TrainingConfig
from ..data import Encoded
from ..probing.evaluator import largest_round
from ..probing.layers import TOLERANCE
from ..probing.memory import short_tokens
from ..training.passes import largest_pass, most_places, pass_tokens
from .models import resolve_device, resolve_dtype

# Bytes per trainable entry: value, gradient, two moments, stash (float32) and the mask.
_BYTES_PER_ENTRY = 5 * 4 + 1
# Bytes per frozen weight: 4 bits with a 32-bit scale for 64 of them; 8 bits with one scale for a whole row.
_QUANTIZED_BYTES = {"bnb-4bit": 0.5625, "torchao-8bit": 1.0}
_KERNEL_ACTIVATIONS = ("silu", "swish")  # what the kernels of gated blocks compute


@dataclass(frozen=True)
class Pass:
    """The most tokens (padding included) and answer positions of one pass; `places` inside attention, where more."""

    tokens: int = 0
    answers: int = 0
    places: int = 0


@dataclass(frozen=True)
class Trained:
    """A training over `items`; `padded` says whether the sequences of its passes are."""

    training: TrainingConfig
    items: Sequence[Encoded]
    padded: bool


@dataclass(frozen=True)
class Judged:
    """Items whose losses are taken, at most `batch_size` at once under each of `candidates`."""

    items: Sequence[Encoded]
    batch_size: int
    candidates: int = 1


def largest(passes: Iterable[Pass]) -> Pass:
    """Return the most of everything that any of the passes holds; nothing for none."""
    found = [(size.tokens, size.answers, size.places) for size in passes]
    return Pass(*map(max, zip(*found, strict=True))) if found else Pass()


def training_pass(config: Config, trained: Trained, *, shrunk: bool = False) -> Pass:
    """Return the most that any pass of a training holds; `shrunk`, where a GPU's memory has no room for more."""
    on_gpu = resolve_device(config.model.device).type == "cuda" and not shrunk
    training, items = trained.training, trained.items
    tokens, answers = largest_pass(config.speed, training, items, on_gpu=on_gpu)
    budget = pass_tokens(config.speed, training, items, on_gpu=on_gpu)
    if trained.padded or budget is None:
        return Pass(tokens, answers)
    return Pass(tokens, answers, most_places(training, [len(item.input_ids) for item in items], budget))


def judging_pass(config: Config, described: Any, parameters: int, judged: Judged, *, shrunk: bool = False) -> Pass:
    """Return the most that a pass over judged items holds; `shrunk`, as for a training pass."""
    device, items = resolve_device(config.model.device), judged.items
    least = short_tokens(parameters, described.get_text_config().num_hidden_layers, device)
    lengths = [len(item.input_ids) for item in items]
    width = 1 if shrunk and device.type == "cuda" else judged.batch_size
    tokens, rows = largest_round(lengths, judged.candidates, width, least, device)
    return Pass(tokens, rows * max((len(item.input_ids) - item.prompt_length for item in items), default=0))


def answering_bytes(config: Config, described: Any, prompts: Sequence[Encoded], *, shrunk: bool = False) -> int:
    """Return the bytes of answering a batch of the longest prompts: keys and values, and the pass that reads them.

    On a GPU batches that do not fit are halved: `shrunk`, down to one answer.
    """
    device, settings = resolve_device(config.model.device), described.get_text_config()
    rows = min(len(prompts), 1 if shrunk and device.type == "cuda" else config.evaluate.batch_size)
    longest = max((item.prompt_length for item in prompts), default=0)
    width = resolve_dtype(config.model.dtype, device).itemsize
    _, keys = _attended(settings)
    cached = 2 * settings.num_hidden_layers * keys * rows * (longest + config.task.max_new_tokens) * width
    return int(cached + rows * longest * _layer(settings) * width) + 2 * _logits(settings, Pass(answers=rows))


def peak_bytes(
    config: Config,
    described: Any,
    *,
    parameters: int,
    trainable: int,
    training: Pass,
    forward: Pass,
    answering: int = 0,
) -> int:
    """Return the estimated peak in bytes; `described` is the transformers configuration of the model.

    Saved per token and layer for the backward without checkpointing: norms, projections, attention in and out, and the
    gated FFN; about half of it where fused kernels save what goes in only; queries, keys, values and what attention
    gives at every place that a joined pass has beyond its tokens. A pass without gradients (`forward`) holds one
    layer's at a time. Logits exist at answer positions only. `answering` are the bytes that generation takes.
    """
    model = config.model
    settings = described.get_text_config()
    dtype = resolve_dtype(model.dtype, resolve_device(model.device))
    width = dtype.itemsize
    weights = parameters * _QUANTIZED_BYTES.get(model.quantization, width)
    hidden = settings.hidden_size
    inner = _inner(settings)
    kept = 6 * hidden + 2 * inner if _saves_inputs_only(config, settings, dtype) else _layer(settings)
    saved = training.tokens * (2 * hidden if model.gradient_checkpointing else kept)
    saved += 2 * max(0, training.places - training.tokens) * sum(_attended(settings))
    trained = saved * settings.num_hidden_layers * width + 3 * _logits(settings, training)
    judged = forward.tokens * _layer(settings) * width + 2 * _logits(settings, forward)
    return int(weights + trainable * _BYTES_PER_ENTRY + max(trained, judged, answering))


def _inner(settings: Any) -> int:
    return int(getattr(settings, "intermediate_size", None) or 4 * settings.hidden_size)


def _layer(settings: Any) -> int:
    """Return the numbers of a token that a layer makes."""
    return int(12 * settings.hidden_size + 4 * _inner(settings))


def _attended(settings: Any) -> tuple[int, int]:
    """Return the numbers of a token's query, and of its key, in one layer."""
    heads = settings.num_attention_heads
    size = getattr(settings, "head_dim", None) or settings.hidden_size // heads
    return heads * size, (getattr(settings, "num_key_value_heads", None) or heads) * size


def _saves_inputs_only(config: Config, settings: Any, dtype: torch.dtype) -> bool:
    """Return whether norms, rotations and gated blocks run in kernels that save what goes in only.

    By the settings of the model alone: a family that has these activations in blocks of another make is not known here.
    Nothing is compiled for an estimate.
    """
    speed = config.speed
    fused = speed.fused_norms and speed.fused_kernels and speed.compile_layers == "none"
    fits = getattr(settings, "hidden_act", None) in _KERNEL_ACTIVATIONS and dtype in TOLERANCE
    return fused and fits and kernels_fit(resolve_device(config.model.device))


def _logits(settings: Any, size: Pass) -> int:
    """Return the bytes of a pass's logits in float32."""
    return int(size.answers * settings.vocab_size * 4)
