"""Per-example loss on the answer tokens; the head runs on the answer positions only where the model allows it."""

from __future__ import annotations

import inspect
import warnings

import torch
from torch import Tensor, nn

from ..data import Batch, answer_window


def keeps_logits(model: nn.Module) -> bool:
    """Return whether the model's forward takes `logits_to_keep`, so that its own head can run on some positions."""
    return "logits_to_keep" in inspect.signature(model.forward).parameters


def answer_logits(model: nn.Module, batch: Batch, *, trim: bool = True) -> tuple[Tensor, int]:
    """Return logits (B, W, V) and the first position of the window they belong to.

    The window covers every position that predicts an answer token of the batch. The model's own head computes it
    (`logits_to_keep` with an index tensor), so that soft caps and logit scalings stay in.
    """
    low, high = answer_window(batch)
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "use_cache": False}
    if trim and keeps_logits(model):
        window = torch.arange(low, high, device=batch.input_ids.device)
        return model(**inputs, logits_to_keep=window).logits, low
    if trim:
        warnings.warn(
            f"{type(model).__name__} takes no logits_to_keep: logits of all positions are computed (more memory).",
            stacklevel=2,
        )
    return model(**inputs).logits[:, low:high], low


def example_losses(model: nn.Module, batch: Batch, *, trim: bool = True) -> Tensor:
    """Return the mean cross-entropy over the answer tokens of every example, shape (B,), in at least float32.

    The end token counts as an answer token. The mean over examples of these is the loss everywhere in this package.
    """
    logits, low = answer_logits(model, batch, trim=trim)
    labels = batch.labels[:, low + 1 : low + 1 + logits.shape[1]]
    wide = logits if logits.dtype == torch.float64 else logits.float()
    losses = nn.functional.cross_entropy(
        wide.reshape(-1, wide.shape[-1]), labels.reshape(-1), ignore_index=-100, reduction="none"
    ).view(labels.shape)
    return losses.sum(dim=1) / (labels != -100).sum(dim=1)
