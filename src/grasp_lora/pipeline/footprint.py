"""Peak memory of a run before it runs: weights, adapters, and the larger of a training and a probing pass."""

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
from ..training.passes import largest_pass
from .models import resolve_device, resolve_dtype

# Bytes per trainable entry: value, gradient, two moments, stash (float32) and the mask.
_BYTES_PER_ENTRY = 5 * 4 + 1
# Bytes per frozen weight: 4 bits with a 32-bit scale for 64 of them; 8 bits with one scale for a whole row.
_QUANTIZED_BYTES = {"bnb-4bit": 0.5625, "torchao-8bit": 1.0}
_KERNEL_ACTIVATIONS = ("silu", "swish")  # what the kernels of gated blocks compute


@dataclass(frozen=True)
class Pass:
    """The most tokens (padding included) and the most answer positions of one pass."""

    tokens: int
    answers: int


def training_pass(
    config: Config, stages: Iterable[tuple[TrainingConfig, Sequence[Encoded]]], *, shrunk: bool = False
) -> Pass:
    """Return the most that any pass of these stages holds; `shrunk`, where a GPU's memory has no room for more."""
    on_gpu = resolve_device(config.model.device).type == "cuda" and not shrunk
    sizes = [largest_pass(config.speed, training, items, on_gpu=on_gpu) for training, items in stages]
    return Pass(max(tokens for tokens, _ in sizes), max(answers for _, answers in sizes))


def probing_pass(
    config: Config, described: Any, parameters: int, items: Sequence[Encoded], *, shrunk: bool = False
) -> Pass:
    """Return the most that a pass of a round over the micro-dev `items` holds; `shrunk`, as for a training pass."""
    device, count = resolve_device(config.model.device), 1 + config.controller.candidates
    least = short_tokens(parameters, described.get_text_config().num_hidden_layers, device)
    lengths = [len(item.input_ids) for item in items]
    width = 1 if shrunk and device.type == "cuda" else config.search.eval_batch_size
    tokens, rows = largest_round(lengths, count, width, least, device)
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
    settings = described.get_text_config()
    dtype = resolve_dtype(model.dtype, resolve_device(model.device))
    width = dtype.itemsize
    weights = parameters * _QUANTIZED_BYTES.get(model.quantization, width)
    hidden = settings.hidden_size
    inner = getattr(settings, "intermediate_size", None) or 4 * hidden
    layer = 12 * hidden + 4 * inner
    kept = 6 * hidden + 2 * inner if _saves_inputs_only(config, settings, dtype) else layer
    saved = 2 * hidden if model.gradient_checkpointing else kept
    trained = training.tokens * settings.num_hidden_layers * saved * width + 3 * _logits(settings, training)
    probed = probing.tokens * layer * width + 2 * _logits(settings, probing)
    return int(weights + trainable * _BYTES_PER_ENTRY + max(trained, probed))


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
