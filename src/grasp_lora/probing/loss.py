"""Per-example loss on the answer tokens; the head runs on the answer positions only."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..data import IGNORED, Batch, answer_window


def keeps_logits(model: nn.Module) -> bool:
    """Return whether the model's forward takes `logits_to_keep`, so that its own head can run on some positions."""
    return "logits_to_keep" in inspect.signature(model.forward).parameters


def gatherable_head(model: nn.Module) -> nn.Module | None:
    """Return the output head if its input may be cut to single tokens; None where a hook on it needs whole batches."""
    get = getattr(model, "get_output_embeddings", None)
    head = get() if callable(get) else None
    return head if isinstance(head, nn.Module) and not head._forward_hooks else None


@contextmanager
def _gathered(head: nn.Module, rows: Tensor, columns: Tensor) -> Iterator[None]:
    """Give the head only the hidden states (1, N, H) at N places of the batch, for one forward pass."""
    handle = head.register_forward_pre_hook(lambda _module, args: (args[0][rows, columns][None], *args[1:]))
    try:
        yield
    finally:
        handle.remove()


def answer_logits(model: nn.Module, batch: Batch, *, trim: bool = True) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Return the logits (N, V) that predict the N answer tokens of the batch, and their places (rows, columns).

    The model's own head computes them, so that soft caps and logit scalings stay in. It sees the answer positions only;
    a head that carries an adapter sees every position from the first to the last of them (`logits_to_keep`), and all
    positions where the model has no such argument, or with `trim=False`.
    """
    rows, columns = (batch.labels[:, 1:] != IGNORED).nonzero(as_tuple=True)
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "use_cache": False}
    head = gatherable_head(model) if trim else None
    if head is not None:
        with _gathered(head, rows, columns):
            logits = model(**inputs).logits
        if logits.shape[:2] == (1, len(rows)):
            return logits[0], (rows, columns)
    if trim and keeps_logits(model):
        low, high = answer_window(batch)
        window = torch.arange(low, high, device=batch.input_ids.device)
        return model(**inputs, logits_to_keep=window).logits[rows, columns - low], (rows, columns)
    if trim:
        warnings.warn(
            f"{type(model).__name__} takes no logits_to_keep: logits of all positions are computed (more memory).",
            stacklevel=2,
        )
    return model(**inputs).logits[rows, columns], (rows, columns)


def example_losses(model: nn.Module, batch: Batch, *, trim: bool = True) -> Tensor:
    """Return the mean cross-entropy over the answer tokens of every example, shape (B,), in at least float32.

    The end token counts as an answer token. The mean over examples of these is the loss everywhere in this package.
    """
    logits, (rows, columns) = answer_logits(model, batch, trim=trim)
    wide = logits if logits.dtype == torch.float64 else logits.float()
    token_losses = nn.functional.cross_entropy(wide, batch.labels[rows, columns + 1], reduction="none")
    # A dense table and not a scattered sum, whose order would differ from run to run on a GPU.
    table = token_losses.new_zeros(batch.labels.shape[0], batch.labels.shape[1] - 1)
    table = table.index_put((rows, columns), token_losses)
    return table.sum(dim=1) / (batch.labels[:, 1:] != IGNORED).sum(dim=1)
