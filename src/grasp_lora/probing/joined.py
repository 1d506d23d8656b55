"""Sequences one after the other in a single row, without padding: what the layers compute token by token is not wasted.

Attention is all that mixes tokens. There, and only there, the sequences lie in rows padded on the right, under causal
attention without a mask; an attention implementation of our own name puts them there and back. It thus works with every
kernel that PyTorch may choose, and a kernel that plans for every shape sees few of them.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from ..data import Batch, Encoded, Joined, collate, join
from .attention import maskless_width, planless
from .layers import evaluating

_JOINED = "grasp_lora_joined"
_LAYOUT: ContextVar[Joined | None] = ContextVar("layout", default=None)
_KNOWN: weakref.WeakKeyDictionary[nn.Module, bool] = weakref.WeakKeyDictionary()
# Logits of a sequence in a row against the same one alone, and at another place of a row of the same length, relative
# to their size. In half precision kernels for other shapes differ by some hundredths after many layers; those for one
# shape compute every row alike.
_AGREES = {torch.float64: (1e-6, 1e-6), torch.float32: (1e-3, 1e-3)}
_AGREES_ROUGHLY = (0.15, 0.02)


class _Spread(torch.autograd.Function):
    """Tokens (T, ...) to the rows (R, ...) of a layout, one of them to all places that nobody looks at.

    Both directions are selections: the sums that PyTorch would make back are slow, and in any order. What comes back
    for places without a token is zero, since nobody looked.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, tokens: Tensor, *parts: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(rows)
        return tuple(part.index_select(0, tokens) for part in parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *given: Tensor) -> tuple[Tensor | None, ...]:
        (rows,) = ctx.saved_tensors
        return None, None, *(part.index_select(0, rows) for part in given)


class _Collected(torch.autograd.Function):
    """The rows (R, ...) of a layout to tokens (T, ...)."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, found: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.count = len(found)
        return found.index_select(0, rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, given: Tensor) -> tuple[None, Tensor]:
        return None, given.new_zeros(ctx.count, *given.shape[1:]).index_copy_(0, ctx.saved_tensors[0], given)


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **more: Any
) -> tuple[Tensor, None]:
    """Attend causally inside every sequence: queries, keys and values (1, H, T, D) to (1, T, H, D)."""
    layout = _LAYOUT.get()
    if (
        layout is None
        or attention_mask is not None
        or {x.shape[::2] for x in (query, key, value)} != {(1, layout.rows.numel())}
    ):
        raise ValueError("attention over joined sequences was given a mask, or other tokens than theirs")
    rows, tokens = layout.rows.to(query.device), layout.tokens.to(query.device)
    lying = _Spread.apply(rows, tokens, *(x[0].transpose(0, 1) for x in (query, key, value)))  # type: ignore[no-untyped-call]
    q, k, v = (part.view(layout.count, layout.width, *part.shape[1:]).transpose(1, 2) for part in lying)
    found, _ = sdpa_attention_forward(module, q, k, v, None, **more)
    collected: Tensor = _Collected.apply(rows, found.flatten(0, 1))  # type: ignore[no-untyped-call]
    return collected[None], None


AttentionInterface.register(_JOINED, _attend)


@contextmanager
def attending(model: nn.Module, layout: Joined) -> Iterator[None]:
    """Let `model`, one that `joins`, attend inside the sequences of a row, in the block; a pass back needs no block."""
    settings: Any = model.config.get_text_config()  # type: ignore[union-attr, operator]
    before, token = settings._attn_implementation, _LAYOUT.set(layout)
    settings._attn_implementation = _JOINED
    try:
        yield
    finally:
        settings._attn_implementation = before
        _LAYOUT.reset(token)


def joins(model: nn.Module, longest: int) -> bool:
    """Return whether `model` can take sequences of up to `longest` tokens in one row without padding.

    It must need no mask for them, and it is tried out, once: tokens of one sequence must not change a single bit of
    the next one, and wherever in a row a sequence lies, it must come out as it does alone. So convolutions, recurrent
    layers, positions of the model's own counting and layers that look at the whole batch rule themselves out.
    """
    if maskless_width(model) < longest:
        return False
    if model not in _KNOWN:
        try:
            _KNOWN[model] = _left_alone(model)
        except torch.OutOfMemoryError:  # says nothing about the model: the next question is another trial
            return False
        except (AttributeError, LookupError, ValueError, TypeError, RuntimeError):  # its layers take other things
            _KNOWN[model] = False
    return _KNOWN[model]


@torch.no_grad()
def _left_alone(model: nn.Module) -> bool:
    """Return whether a sequence is left alone by another one before or behind it."""
    whole: Any = model
    embedding: Tensor = whole.get_input_embeddings().weight
    device, size = embedding.device, len(embedding)
    first, other, last = (
        Encoded("", tuple((start + step * i) % size for i in range(count)), 1)
        for start, step, count in ((5, 7, 3), (6, 11, 3), (9, 13, 5))
    )
    count = len(last.input_ids)
    if device.type == "meta" or maskless_width(model) < count:
        return False
    lone, *rows = (
        batch.to(device) for batch in (collate([last], 0), *map(join, ([first, last], [other, last], [last, first])))
    )
    with evaluating(model), planless(lone, sys.maxsize):
        alone = _centred(whole(input_ids=lone.input_ids, use_cache=False).logits[0])
        behind, again, before = (_centred(_logits(model, row)) for row in rows)
    behind, again, before = behind[-count:], again[-count:], before[:count]
    near, same = _AGREES.get(alone.dtype, _AGREES_ROUGHLY)
    size_of = alone.norm()
    alike = (behind - alone).norm() <= near * size_of and (behind - before).norm() <= same * size_of
    return bool(torch.equal(behind, again) and alike)


def _centred(logits: Tensor) -> Tensor:
    """Return logits (T, V) without what all of a token's have in common, which says nothing."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return wide - wide.mean(dim=-1, keepdim=True)


def _logits(model: nn.Module, batch: Batch) -> Tensor:
    assert batch.joined is not None  # its maker has joined it
    with attending(model, batch.joined):
        logits: Tensor = model(input_ids=batch.input_ids, position_ids=batch.joined.positions, use_cache=False).logits
    return logits[0]
