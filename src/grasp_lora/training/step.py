"""One training pass: forward and backward of a few examples, as it is or replayed from a recorded CUDA graph."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from ..config import SpeedConfig, TrainingConfig
from ..data import Batch, Encoded, collate, join, moved
from ..probing import Attached
from ..probing.attention import maskless_width, planless
from ..probing.joined import joins
from ..probing.loss import answer_losses
from ..probing.memory import fitting_tokens
from .graphs import (
    CudaRecorder,
    GraphedPasses,
    Recorder,
    Sizes,
    checkpointing,
    checkpoints,
    launch_bound_tokens,
    why_not_recorded,
)
from .passes import PLACES, answer_tokens, answer_weights, few_widths, padded_width, typical_tokens
from .selector import MaskSelector

_WIDTHS, _GRAPHS = 6, 12  # lengths that rows are padded to, and graphs at most: each costs two passes to make
_OTHER_HEADS = ("classifier_", "summary_")  # dropouts of heads that a language model does not have
_JOINED_WIDTHS = 6  # lengths of rows inside attention alone, whose kernels may plan for each of them


class PassBody:
    """Adds the gradient of a batch's weighted loss to `bank.values.grad` and returns the loss.

    The loss is the sum over the N answer tokens of weight (N,) times cross-entropy. Nothing in it is looked at by the
    program, and everything it reads and writes stays in its place, so that it can be recorded.
    """

    def __init__(self, attached: Attached, dropout: float, selector: MaskSelector | None, *, narrow: bool) -> None:
        self._attached, self._dropout, self._selector, self._narrow = attached, dropout, selector, narrow

    def __call__(self, batch: Batch, weights: Tensor, *, gather: bool = True) -> Tensor:
        """Run forward and backward; with `gather` the tokens feed the importance statistics."""
        parts, bank = self._attached, self._attached.bank
        values = bank.values.detach().requires_grad_()  # the same memory, as a leaf of this pass alone
        with parts.injection.active(bank.merged(values, dtype=parts.dtype), dropout=self._dropout):
            with self._gathering(batch.attention_mask) if gather else nullcontext():
                narrow = int(self._narrow and not parts.injection.gathers)
                with planless(batch, parts.speed.cudnn_from):
                    losses = answer_losses(parts.model, batch, maskless=parts.speed.skip_mask, narrow=narrow)
            loss = (losses * weights).sum()
            (gradient,) = torch.autograd.grad(loss, values)
        self.gradient.add_(gradient)
        return loss.detach()

    def _gathering(self, mask: Tensor) -> AbstractContextManager[None]:
        return nullcontext() if self._selector is None else self._selector.gathering(mask)

    @property
    def gradient(self) -> Tensor:
        """The tensor that gradients are added to; raises ValueError when the loop has made none."""
        gradient = self._attached.bank.values.grad
        if gradient is None:
            raise ValueError("a training pass needs bank.values.grad to add to")
        return gradient

    def replayed(self) -> None:
        """Account for a pass that ran from a recording: what it read must be what is in force by now."""
        if self._selector is not None:
            self._selector.gathered()


class TrainingPass:
    """Runs passes of a training loop over `items`: recorded on a GPU where that is possible, else as they are.

    `random` says that passes draw (dropout): a recorded one cannot be compared with another then, and all layers see
    padded rows of all tokens, so that what is drawn does not depend on settings of speed.
    """

    def __init__(
        self, attached: Attached, items: Sequence[Encoded], config: TrainingConfig, selector: MaskSelector | None
    ) -> None:
        self.random = config.dropout > 0.0 or _has_dropout(attached.model)
        self._attached, self._device = attached, attached.bank.values.device
        self._body = PassBody(
            attached, config.dropout, selector, narrow=attached.speed.narrow_last and not self.random
        )  # fmt: skip
        self.graphs: GraphedPasses | None = None
        lengths = [len(item.input_ids) for item in items]
        longest = max(lengths, default=0)
        self._joins = not self.random and _joins(attached, config, longest)
        self._widths = few_widths(lengths, _JOINED_WIDTHS) if self._joins else []
        self._checkpointable = [m for m in attached.model.modules() if hasattr(m, "gradient_checkpointing")]
        self.not_recorded = why_not_recorded(attached, longest)
        if self.not_recorded is None and not records_well(attached.speed, config, attached.model, items):
            self.not_recorded = "its passes compute for longer than they take to launch"
        elif self.not_recorded is None:
            self.record_with(CudaRecorder(self._device), items, check=not self.random)
        elif self._device.type == "cuda" and attached.speed.cuda_graphs:
            warnings.warn(f"training passes are not recorded as CUDA graphs: {self.not_recorded}.", stacklevel=3)

    @property
    def padded(self) -> bool:
        """Return whether sequences of a pass are padded to one length: those that are recorded are."""
        return self.graphs is not None or not self._joins

    def _batch(self, items: Sequence[Encoded]) -> Batch:
        if len(items) == 1 or not self._joins or any(map(checkpointing, self._checkpointable)):
            return collate(items, self._attached.pad_id)
        lengths = [len(item.input_ids) for item in items]
        tokens, longest, width = sum(lengths), max(lengths), padded_width(self._widths, max(lengths))
        width = width if len(items) * width <= max(PLACES * tokens, len(items) * longest) else longest
        return join(items, width, self._multiple(tokens))

    def _multiple(self, tokens: int) -> int:
        """Return what the length of a row is a multiple of: a sixteenth or less, so that a GPU sees few lengths.

        For lengths that it has not seen it loads other kernels and cuts its memory anew.
        """
        return 1 << max(0, (tokens // 16).bit_length() - 1) if self._device.type == "cuda" else 1

    @property
    def speed(self) -> SpeedConfig:
        """The settings that the passes follow."""
        return self._attached.speed

    def fitting(self, item: Encoded) -> int:
        """Return how many tokens a pass may hold in the GPU's free memory, measured on one example.

        Where passes are joined, with as many places inside attention as they may have. The gradient is lost.
        """
        alone = collate([item], self._attached.pad_id)
        batch = (join([item], PLACES * len(item.input_ids)) if self._joins else alone).to(self._device)
        weights = moved(answer_weights([item], 1, self._attached.bank.values.dtype), self._device)
        return fitting_tokens(
            lambda: self._body(batch, weights, gather=False), batch.input_ids.numel(), self._device
        )  # fmt: skip

    def leave_to_recordings(self, tokens: int) -> None:
        """Let recorded passes hold at most so many tokens, since memory has no room for more."""
        if self.graphs is not None:
            self.graphs.limit(tokens)

    def record_with(self, recorder: Recorder, items: Sequence[Encoded], *, check: bool = True) -> None:
        """Record passes over `items` from now on, those that are bound by launches."""
        answer = max(answer_tokens(item) for item in items)
        most = launch_bound_tokens(self._attached.model)
        widths = few_widths([length for item in items if (length := len(item.input_ids)) <= most], _WIDTHS)
        sizes = Sizes(tuple(widths), answer, _GRAPHS, most)
        self.graphs = GraphedPasses(
            self._body, self._attached.bank, self._attached.pad_id, sizes, recorder, check=check
        )  # fmt: skip

    def __call__(self, items: Sequence[Encoded], count: int) -> Tensor:
        """Add the gradient of the loss of `items`, each counting 1 / `count`, and return their part of the loss.

        The tensor holds it until the next pass.
        """
        if self.graphs is not None and self.graphs.takes(items):
            return self.graphs(items, count)
        batch = self._batch(items).to(self._device)
        weights = answer_weights(items, count, self._attached.bank.values.dtype)
        return self._body(batch, moved(weights, self._device))


def could_join(speed: SpeedConfig, training: TrainingConfig, model: nn.Module, longest: int) -> bool:
    """Return whether settings and lengths let the sequences of a pass follow each other in one row.

    Not where layers are compiled, which would be done again for every pass, nor where what is drawn would depend on it.
    """
    wanted = speed.join_rows and speed.skip_mask and speed.compile_layers != "all" and training.dropout == 0.0
    return wanted and training.batch_size * training.accumulation > 1 and maskless_width(model) >= longest


def _joins(attached: Attached, training: TrainingConfig, longest: int) -> bool:
    """Return whether they do: not where layers run again in the backward pass, outside of what tells them apart."""
    model = attached.model
    return could_join(attached.speed, training, model, longest) and not checkpoints(model) and joins(model, longest)


def records_well(speed: SpeedConfig, training: TrainingConfig, model: nn.Module, items: Sequence[Encoded]) -> bool:
    """Return whether most passes of a training take longer to launch than to compute."""
    return typical_tokens(speed, training, items) <= launch_bound_tokens(model)


def _has_dropout(model: nn.Module) -> bool:
    """Return whether any dropout of the base model can be active, so that the global random state matters."""
    if any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules()):
        return True
    settings = getattr(model, "config", None)
    nested = [settings, getattr(settings, "text_config", None)]
    values = [pair for part in nested if part is not None for pair in vars(part).items()]
    own = [(key, value) for key, value in values if "drop" in key and not key.startswith(_OTHER_HEADS)]
    return any(isinstance(value, float) and value > 0 for _, value in own)
