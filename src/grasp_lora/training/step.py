"""One training pass: forward and backward of a few examples, as it is or replayed from a recorded CUDA graph."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch
from torch import Tensor

from ..config import TrainingConfig
from ..data import Batch, Encoded, collate, join, moved
from ..probing import Attached
from ..probing.attention import planless
from ..probing.joined import joins
from ..probing.loss import answer_losses
from ..probing.memory import fitting_tokens
from .graphs import GraphedPasses, Recorder, Sizes, checkpointing, launch_bound_tokens, warn_of_memory
from .passes import (
    PLACES,
    answer_tokens,
    answer_weights,
    cut_update,
    few_widths,
    most_tokens,
    padded_width,
    pass_tokens,
    row_multiple,
    typical_tokens,
)
from .recorder import CudaRecorder
from .selector import MaskSelector
from .way import COMPUTES, Way, way_of

_WIDTHS, _GRAPHS = 6, 12  # lengths that rows are padded to, and graphs at most: each costs two passes to make
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
    padded rows of all tokens, whatever `speed.join_rows` and `speed.narrow_last` say.
    """

    def __init__(
        self, attached: Attached, items: Sequence[Encoded], config: TrainingConfig, selector: MaskSelector | None
    ) -> None:
        self._attached, self._items, self._config = attached, items, config
        self._device = attached.bank.values.device
        self.tokens = pass_tokens(attached.speed, config, items, on_gpu=self._on_gpu)  # most of a packed pass
        way = self._way(self.tokens)
        self.random, self.not_recorded = way.draws, way.not_recorded
        self._body = PassBody(
            attached, config.dropout, selector, narrow=attached.speed.narrow_last and not self.random
        )  # fmt: skip
        lengths = [len(item.input_ids) for item in items]
        self._joins = way.joins and joins(attached.model, max(lengths, default=0))
        self._widths = few_widths(lengths, _JOINED_WIDTHS) if self._joins else []
        self._places = PLACES
        self._checkpointable = [m for m in attached.model.modules() if hasattr(m, "gradient_checkpointing")]
        self.graphs: GraphedPasses | None = None
        if self.not_recorded is None:
            self.record_with(CudaRecorder(self._device), items, check=not self.random)
        elif self._on_gpu and attached.speed.cuda_graphs and self.not_recorded != COMPUTES:
            warnings.warn(f"training passes are not recorded as CUDA graphs: {self.not_recorded}.", stacklevel=3)

    @property
    def _on_gpu(self) -> bool:
        return self._device.type == "cuda"

    def _way(self, tokens: int | None) -> Way:
        attached, config = self._attached, self._config
        return way_of(
            attached.model, attached.bank.modules, self._items, tokens,
            speed=attached.speed, training=config, on_gpu=self._on_gpu,
        )  # fmt: skip

    @property
    def _recording(self) -> GraphedPasses | None:
        """The recorded passes, unless recording has failed."""
        return None if self.graphs is None or self.graphs.gave_up is not None else self.graphs

    @property
    def padded(self) -> bool:
        """Return whether sequences of a pass are padded to one length: those that are recorded are."""
        return self._recording is not None or not self._joins

    def cut(self, items: Sequence[Encoded]) -> list[list[Encoded]]:
        """Return the examples of an update, pass by pass."""
        graphs = self._recording
        lengths = [len(item.input_ids) if graphs is None else graphs.length(item) for item in items]
        chunks = cut_update(lengths, self._config, self.tokens, padded=self.padded, places=self._places)
        return [[items[i] for i in chunk] for chunk in chunks]

    def _batch(self, items: Sequence[Encoded]) -> Batch:
        if len(items) == 1 or not self._joins or any(map(checkpointing, self._checkpointable)):
            return collate(items, self._attached.pad_id)
        lengths = [len(item.input_ids) for item in items]
        tokens, longest, width = sum(lengths), max(lengths), padded_width(self._widths, max(lengths))
        width = width if len(items) * width <= max(self._places * tokens, len(items) * longest) else longest
        return join(items, width, row_multiple(tokens, self.tokens) if self._on_gpu else 1)

    @property
    def depends_on_memory(self) -> bool:
        """Return whether `settle` may change how passes run: on a GPU, where a setting does not say it all."""
        return self._on_gpu and (self._open or self.graphs is not None)

    @property
    def _open(self) -> bool:
        return self.tokens is not None and self._attached.speed.tokens_per_pass is None

    def fitting(self) -> int:
        """Return how many tokens a pass may hold in the GPU's free memory, measured on the longest example.

        Where passes are joined, with as many places inside attention as they may have, and without those where they do
        not fit. One token, where it does not fit at all by itself. The gradient is lost.
        """
        item = max(self._items, key=lambda item: len(item.input_ids))
        found = self._fitting(item, _with_places(item)) if self._joins else None
        if found is None:
            found = self._fitting(item, collate([item], self._attached.pad_id))
        return 1 if found is None else found

    def _fitting(self, item: Encoded, batch: Batch) -> int | None:
        """Return how many tokens fit at the rate of `batch`, which holds one example; None: not even that."""
        there = batch.to(self._device)
        weights = moved(answer_weights([item], 1, self._attached.bank.values.dtype), self._device)
        try:
            return fitting_tokens(
                lambda: self._body(there, weights, gather=False), there.input_ids.numel(), self._device
            )  # fmt: skip
        except torch.OutOfMemoryError:
            return None

    def settle(self, fitting: int) -> None:
        """Lower the tokens of a packed pass to the `fitting` ones that memory holds, and see again what is recorded.

        They are not lowered below `batch_size` examples. Recordings keep memory of their own: what the largest pass
        leaves. Where that is too little for passes that are bound by launches, they get half of all.
        """
        for part in (fitting, fitting // 2):
            tokens = self._lowered(part)
            reason = self._way(tokens).not_recorded
            room = fitting - most_tokens(self._config, self._items, tokens)
            typical = typical_tokens(self._config, self._items, tokens)
            if reason is not None or typical <= room:
                break
        else:
            tokens, reason = self._lowered(fitting), "GPU memory has no room"
            warn_of_memory(int(typical))
        self.tokens, self.not_recorded = tokens, reason
        if self._open and tokens is not None and tokens > fitting:
            self._places = 1  # sure to fit is what `batch_size` examples take, padded
        if reason is not None:
            self.graphs = None
        else:
            if self.graphs is None:
                self.record_with(CudaRecorder(self._device), self._items, check=not self.random)
            self.leave_to_recordings(room)

    def _lowered(self, fitting: int) -> int | None:
        if self.tokens is None or not self._open:
            return self.tokens
        return max(pass_tokens(self._attached.speed, self._config, self._items) or 1, min(self.tokens, fitting))

    def leave_to_recordings(self, tokens: int) -> None:
        """Let recorded passes hold at most so many tokens, since memory has no room for more."""
        if self.graphs is not None:
            self.graphs.limit(tokens)

    def record_with(self, recorder: Recorder, items: Sequence[Encoded], *, check: bool = True) -> None:
        """Record passes over `items` from now on, those that are bound by launches."""
        most = launch_bound_tokens(self._attached.model)
        short = [item for item in items if len(item.input_ids) <= most]
        answer = max((answer_tokens(item) for item in short), default=0)
        widths = few_widths([len(item.input_ids) for item in short], _WIDTHS)
        sizes = Sizes(tuple(widths), answer, _GRAPHS, most)
        self.graphs = GraphedPasses(
            self._body, self._attached.bank, self._attached.pad_id, sizes, recorder, check=check
        )  # fmt: skip

    def __call__(self, items: Sequence[Encoded], count: int) -> Tensor:
        """Add the gradient of the loss of `items`, each counting 1 / `count`, and return their part of the loss.

        The tensor holds it until the next pass.
        """
        graphs = self._recording
        if graphs is not None and graphs.takes(items):
            return graphs(items, count)
        batch = self._batch(items).to(self._device)
        weights = answer_weights(items, count, self._attached.bank.values.dtype)
        return self._body(batch, moved(weights, self._device))


def _with_places(item: Encoded) -> Batch:
    """Return one example in a row whose layout has room for PLACES of its length."""
    alone = join([item], PLACES * len(item.input_ids))
    assert alone.joined is not None  # it has been joined
    return replace(alone, joined=replace(alone.joined, count=PLACES, width=len(item.input_ids)))
