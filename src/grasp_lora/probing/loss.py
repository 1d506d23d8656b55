"""Per-example loss on the answer tokens; the head runs on the answer positions only."""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ..data import Batch
from .attention import unmasked
from .joined import attending
from .layers import narrowed


def keeps_logits(model: nn.Module) -> bool:
    """Return whether the model's forward takes `logits_to_keep`, so that its own head can run on some positions."""
    return "logits_to_keep" in inspect.signature(model.forward).parameters


def gatherable_head(model: nn.Module) -> nn.Module | None:
    """Return the output head if its input may be cut to single tokens; None where a hook on it needs whole batches."""
    get = getattr(model, "get_output_embeddings", None)
    head = get() if callable(get) else None
    return head if isinstance(head, nn.Module) and not head._forward_hooks else None


@contextmanager
def gathered(head: nn.Module, places: Tensor) -> Iterator[None]:
    """Give the head only the hidden states (1, N, H) at N places of the flattened batch, for one forward pass."""

    def cut(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return args[0].flatten(0, 1).index_select(0, places)[None], *args[1:]

    handle = head.register_forward_pre_hook(cut)
    try:
        yield
    finally:
        handle.remove()


def answer_logits(
    model: nn.Module, batch: Batch, *, trim: bool = True, maskless: bool = True, narrow: int = 0
) -> Tensor:
    """Return the logits (N, V) that predict the N answer tokens of the batch, those at its `places`.

    The model's own head computes them, so that soft caps and logit scalings stay in. It sees the answer positions only.
    A head that carries an adapter sees them, too, in a batch of one row (`logits_to_keep`), else every position from
    the first to the last of them, and all positions where the model has no such argument, or with `trim=False`. The
    batch is padded on the right, or its sequences are joined, for a model that `joins` them; with `maskless`, models
    that need no mask then get none. With `narrow`, the number of equal blocks (candidates) in the batch, the last
    feed-forward block sees the answer positions only, too.
    """
    with _inputs(model, batch, maskless=maskless) as inputs:
        head = gatherable_head(model) if trim else None
        if head is not None:
            cut = narrowed(model, batch.places, narrow) if narrow else nullcontext()
            with gathered(head, batch.places), cut:
                logits: Tensor = model(**inputs).logits
            if logits.shape[:2] == (1, len(batch.places)):
                return logits[0]
        return _whole_rows(model, batch, inputs, trim)


@contextmanager
def _inputs(model: nn.Module, batch: Batch, *, maskless: bool) -> Iterator[dict[str, Any]]:
    """Yield what the model's forward is given, with its attention as the batch needs it inside the block."""
    inputs: dict[str, Any] = {"input_ids": batch.input_ids, "use_cache": False}
    if batch.joined is not None:
        with attending(model, batch.joined):
            yield inputs | {"position_ids": batch.joined.positions}
        return
    with unmasked(model, batch.input_ids.shape[1] if maskless else sys.maxsize) as free:
        yield inputs if free else inputs | {"attention_mask": batch.attention_mask}


def _whole_rows(model: nn.Module, batch: Batch, inputs: dict[str, Any], trim: bool) -> Tensor:
    """Return the logits (N, V) at the answer positions from a head that sees whole rows, or a window of them."""
    width = batch.input_ids.shape[1]
    rows, columns = batch.places // width, batch.places % width
    if trim and keeps_logits(model) and len(batch.input_ids) == 1:
        one: Tensor = model(**inputs, logits_to_keep=batch.places).logits
        return one[0]
    if trim and keeps_logits(model):
        low, high = int(columns.min()), int(columns.max()) + 1
        window = torch.arange(low, high, device=batch.input_ids.device)
        logits: Tensor = model(**inputs, logits_to_keep=window).logits
        return logits[rows, columns - low]
    if trim:
        warnings.warn(
            f"{type(model).__name__} takes no logits_to_keep: logits of all positions are computed (more memory).",
            stacklevel=2,
        )
    logits = model(**inputs).logits
    return logits[rows, columns]


def answer_losses(
    model: nn.Module, batch: Batch, *, trim: bool = True, maskless: bool = True, narrow: int = 0
) -> Tensor:
    """Return the cross-entropy of the N answer tokens of the batch, shape (N,), in at least float32."""
    logits = answer_logits(model, batch, trim=trim, maskless=maskless, narrow=narrow)
    wide = logits if logits.dtype == torch.float64 else logits.float()
    targets = batch.labels.flatten().index_select(0, batch.places + 1)
    return nn.functional.cross_entropy(wide, targets, reduction="none")


def example_losses(
    model: nn.Module, batch: Batch, *, trim: bool = True, maskless: bool = True, narrow: int = 0
) -> Tensor:
    """Return the mean cross-entropy over the answer tokens of every example, shape (B,), in at least float32.

    The end token counts as an answer token. The mean over examples of these is the loss everywhere in this package.
    Raises ValueError for joined sequences, whose rows are no examples.
    """
    if batch.joined is not None:
        raise ValueError("joined sequences have no losses by example; collate them")
    token_losses = answer_losses(model, batch, trim=trim, maskless=maskless, narrow=narrow)
    # A dense table and not a scattered sum, whose order would differ from run to run on a GPU.
    ones = torch.ones_like(token_losses)
    sums, counts = (
        torch.zeros(batch.labels.numel(), dtype=values.dtype, device=values.device)
        .index_put((batch.places,), values)
        .view(batch.labels.shape)
        .sum(dim=1)
        for values in (token_losses, ones)
    )
    return sums / counts
