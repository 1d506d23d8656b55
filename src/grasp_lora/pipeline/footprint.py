"""Peak memory of a run before it runs: weights, adapters, and the larger of a training and a probing pass."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ..adapters.kernels import kernels_run
from ..config import Config, TrainingConfig
from ..data import Encoded
from ..probing.evaluator import largest_round
from ..probing.memory import short_tokens
from ..training.passes import largest_pass
from .models import resolve_device, resolve_dtype

# Bytes per trainable entry: value, gradient, two moments, stash (float32) and the mask.
_BYTES_PER_ENTRY = 5 * 4 + 1
# Bytes per frozen weight: 4 bits with a 32-bit scale for 64 of them; 8 bits with one scale for a whole row.
_QUANTIZED_BYTES = {"bnb-4bit": 0.5625, "torchao-8bit": 1.0}


@dataclass(frozen=True)
class Pass:
    """The most tokens (padding included) and the most answer positions of one pass."""

    tokens: int
    answers: int


def training_pass(config: Config, stages: Iterable[tuple[TrainingConfig, Sequence[Encoded]]]) -> Pass:
    """Return the most that any pass of these stages holds."""
    on_gpu = resolve_device(config.model.device).type == "cuda"
    sizes = [largest_pass(config.speed, training, items, on_gpu=on_gpu) for training, items in stages]
    return Pass(max(tokens for tokens, _ in sizes), max(answers for _, answers in sizes))


def probing_pass(config: Config, described: Any, parameters: int, items: Sequence[Encoded]) -> Pass:
    """Return the most that a pass of a round over the micro-dev `items` holds."""
    device, count = resolve_device(config.model.device), 1 + config.controller.candidates
    least = short_tokens(parameters, described.get_text_config().num_hidden_layers, device)
    lengths = [len(item.input_ids) for item in items]
    tokens, rows = largest_round(lengths, count, config.search.eval_batch_size, least, device)
    return Pass(tokens, rows * max((len(item.input_ids) - item.prompt_length for item in items), default=0))


def peak_bytes(
    config: Config, described: Any, *, parameters: int, trainable: int, training: Pass, probing: Pass
) -> int:
    """Return the estimated peak in bytes; `described` is the transformers configuration of the model.

    Saved per token and layer for the backward without checkpointing: norms, projections, attention in and out, and the
    gated FFN; about half of it where fused kernels save what goes in only. A pass without gradients holds one layer's
    at a time. Logits exist at answer positions only.
    """
    model = config.model
    lean = config.speed.fused_norms and config.speed.fused_kernels and config.speed.compile_layers == "none"
    settings = described.get_text_config()
    width = resolve_dtype(model.dtype, resolve_device(model.device)).itemsize
    weights = parameters * _QUANTIZED_BYTES.get(model.quantization, width)
    hidden = settings.hidden_size
    inner = getattr(settings, "intermediate_size", None) or 4 * hidden
    layer = 12 * hidden + 4 * inner
    lean = lean and kernels_run(resolve_device(model.device))
    kept = 6 * hidden + 2 * inner if lean else layer
    saved = 2 * hidden if model.gradient_checkpointing else kept
    trained = training.tokens * settings.num_hidden_layers * saved * width + 3 * _logits(settings, training)
    probed = probing.tokens * layer * width + 2 * _logits(settings, probing)
    return int(weights + trainable * _BYTES_PER_ENTRY + max(trained, probed))


def _logits(settings: Any, size: Pass) -> int:
    """Return the bytes of a pass's logits in float32."""
    return int(size.answers * settings.vocab_size * 4)
