"""Causal attention over batches that are padded on the right needs no mask: no token ever sees the padding behind it.

Without a mask the fastest attention kernels apply, no mask is built and none is looked at, which on a GPU would make
the program wait. transformers has no way to say so: left without a mask it looks whether positions start anew in a row,
and with one it looks whether it hides anything. An attention implementation of our own name, for which transformers
builds no masks, says it.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from ..data import Batch

_CAUSAL = "grasp_lora_causal"
AttentionInterface.register(_CAUSAL, sdpa_attention_forward)
# What does not change while a model lives; a look at every module would cost more than a small pass.
_WIDTHS: weakref.WeakKeyDictionary[nn.Module, int] = weakref.WeakKeyDictionary()


def maskless_width(model: nn.Module) -> int:
    """Return the longest batch, padded on the right, that `model` attends in causally without a mask; 0: none.

    Models of transformers qualify that take their attention from its interface, use SDPA, and look at earlier tokens
    only. Windows and chunks of attention bound the length.
    """
    if not isinstance(model, PreTrainedModel) or not type(model).__module__.startswith("transformers."):
        return 0
    if model.config.get_text_config()._attn_implementation not in ("sdpa", _CAUSAL):
        return 0
    if model not in _WIDTHS:
        _WIDTHS[model] = _causal_width(model)
    return _WIDTHS[model]


def _causal_width(model: PreTrainedModel) -> int:
    settings: Any = model.config.get_text_config()
    both_ways = getattr(settings, "use_bidirectional_attention", None) or settings.is_encoder_decoder
    if not model._supports_attention_backend or both_ways:
        return 0
    if any(getattr(module, "is_causal", True) is False for module in model.modules()):
        return 0
    windows = [getattr(settings, name, None) for name in ("sliding_window", "attention_chunk_size")]
    return min((window for window in windows if window), default=sys.maxsize)


@contextmanager
def planless(batch: Batch, cudnn_from: int) -> Iterator[None]:
    """Let attention over sequences of fewer than `cudnn_from` tokens use no kernel of cuDNN inside the block.

    Those are the fastest, and plan a tenth of a second for every new shape, which few passes over short sequences earn.
    """
    width = batch.input_ids.shape[1] if batch.joined is None else batch.joined.width
    allowed = torch.backends.cuda.cudnn_sdp_enabled()  # type: ignore[no-untyped-call]
    if not (allowed and batch.input_ids.is_cuda and width < cudnn_from):
        yield
        return
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(True)


@contextmanager
def unmasked(model: nn.Module, width: int) -> Iterator[bool]:
    """Let `model` attend without a mask inside the block; says whether it does, for batches of length `width`."""
    if maskless_width(model) < width:
        yield False
        return
    settings: Any = model.config.get_text_config()  # type: ignore[union-attr, operator]
    before = settings._attn_implementation
    settings._attn_implementation = _CAUSAL
    try:
        yield True
    finally:
        settings._attn_implementation = before
