"""Peak memory of a run before it runs: weights, adapters, and the larger of a training and a probing pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..config import ModelConfig
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


def peak_bytes(
    model: ModelConfig, described: Any, *, parameters: int, trainable: int, training: Pass, probing: Pass
) -> int:
    """Return the estimated peak in bytes; `described` is the transformers configuration of the model.

    Saved per token and layer for the backward without checkpointing: norms, projections, attention in and out, and the
    gated FFN. A pass without gradients holds one layer's at a time. Logits exist at answer positions only.
    """
    settings = described.get_text_config()
    width = resolve_dtype(model.dtype, resolve_device(model.device)).itemsize
    weights = parameters * _QUANTIZED_BYTES.get(model.quantization, width)
    hidden = settings.hidden_size
    inner = getattr(settings, "intermediate_size", None) or 4 * hidden
    layer = 12 * hidden + 4 * inner
    saved = 2 * hidden if model.gradient_checkpointing else layer
    trained = training.tokens * settings.num_hidden_layers * saved * width + 3 * _logits(settings, training)
    probed = probing.tokens * layer * width + 2 * _logits(settings, probing)
    return int(weights + trainable * _BYTES_PER_ENTRY + max(trained, probed))


def _logits(settings: Any, size: Pass) -> int:
    """Return the bytes of a pass's logits in float32."""
    return int(size.answers * settings.vocab_size * 4)
