"""Candidates times examples to losses, in one pass: the frozen backbone is shared, only the adapters differ.

The batch holds one block of the same examples per candidate, and every hooked module adds each block's own low-rank
update by a batched product. Chunks of examples, sorted by length, keep a pass under a budget of tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from ..adapters.bank import AdapterBank
from ..adapters.inject import ChannelNorms, Injection
from ..adapters.merge import Pair
from ..adapters.point import MergePoint
from ..config import SpeedConfig
from ..data import Batch, Encoded, cheapest_chunks, collate
from .attention import planless
from .layers import evaluating
from .loss import example_losses
from .memory import fitting_tokens, short_pass

# Most tokens (padding included) of one pass without gradients. A CPU has no launches to save: small passes pad less and
# stay in its caches (docs/performance.md).
_TOKENS, _TOKENS_ON_CPU = 65536, 2048
# Passes that need memory in other amounts for a token.
_Kind = Literal["bare", "merged", "gathering", "candidates", "gradient"]


@dataclass(frozen=True)
class Attached:
    """A frozen model with a bank's merged factors attached to it; `pad_id` fills its batches, `speed` makes them."""

    model: nn.Module
    injection: Injection
    bank: AdapterBank
    pad_id: int
    speed: SpeedConfig = field(default_factory=SpeedConfig)

    @property
    def dtype(self) -> torch.dtype | None:
        """Precision of the model's own weights, where it says so; merged factors are rounded to it."""
        dtype = getattr(self.model, "dtype", None)
        return dtype if isinstance(dtype, torch.dtype) else None


class Evaluator:
    """Losses of a fixed list of examples under any masks of a bank. Evaluation mode, no gradients, nothing changed.

    Raises ValueError for an empty list of examples.
    """

    def __init__(
        self,
        attached: Attached,
        items: Sequence[Encoded],
        *,
        batch_size: int = 16,
        token_budget: int | None = None,
    ) -> None:
        if not items:
            raise ValueError("an evaluator needs at least one example")
        self._model, self._injection, self._bank = attached.model, attached.injection, attached.bank
        self._items, self._attached = tuple(items), attached
        self._batch_size, self._given = batch_size, token_budget
        self._budgets: dict[_Kind, int] = {}
        self._least = short_pass(attached.model, self._device)
        self._planned: dict[tuple[int, int], list[tuple[list[int], Batch]]] = {}  # by candidates and budget
        self.examples = len(items)
        self.token_passes = 0  # tokens without padding that went forward, for cost accounts

    def losses(self, *, norms: ChannelNorms | None = None) -> Float64[Tensor, " m"]:
        """Return the loss of every example under the committed mask, shape (m,), float64 on the CPU.

        With `norms`, the channel norms of the pass are gathered.
        """
        with torch.no_grad():
            return self._run(self._bank.merged(dtype=self._attached.dtype), None, norms)[0]

    def candidate_losses(self, masks: Sequence[Tensor]) -> Float64[Tensor, "c m"]:
        """Return the loss of every example under each mask (n,), shape (C, m), float64 on the CPU.

        Entries that a mask keeps and the committed one had pruned come back at their stashed value.
        """
        dense = self._bank.dense()
        return self.flat_losses(torch.stack([torch.where(mask, dense, torch.zeros_like(dense)) for mask in masks]))

    def flat_losses(
        self, flat: Float[Tensor, "c n"], points: Sequence[MergePoint] | None = None
    ) -> Float64[Tensor, "c m"]:
        """Return the loss of every example with each row of `flat` in the place of the bank's values, shape (C, m).

        With `points`, every row is merged with its own strength and weights. Nothing is written to the bank, so there
        is nothing to restore.
        """
        with torch.no_grad():
            return self._run(self._bank.merged(flat, points, self._attached.dtype), len(flat), None)

    def bare_losses(self) -> Float64[Tensor, " m"]:
        """Return the loss of every example under the base model alone, shape (m,)."""
        with torch.no_grad():
            return self._run({}, None, None)[0]

    def accumulate_gradient(self) -> None:
        """Add the gradient of the mean loss over the examples to the bank's values; weights stay as they are.

        Evaluation mode, so that no dropout of the model draws from the global random state; only layers that
        checkpoint their activations are told that they train, because they do so in no other mode.
        """
        values = self._bank.values
        total = self._in_smaller_passes("gradient", 1, self._gradients)
        values.grad = total if values.grad is None else values.grad.add_(total)

    def _gradients(self) -> Tensor:
        """Return the gradient (n,) of the mean loss over the examples."""
        total = torch.zeros_like(self._bank.values)
        with evaluating(self._model, checkpointing=True):
            for chunk, batch in self._plan(1, "gradient", self._gradient):
                total += self._gradient(batch)
                self.token_passes += 2 * self._tokens(chunk)  # forward and backward: 4 per token
        return total

    def _gradient(self, batch: Batch) -> Tensor:
        """Return the gradient (n,) of what a batch adds to the mean loss."""
        values = self._bank.values.detach().requires_grad_()
        with self._injection.active(self._bank.merged(values, dtype=self._attached.dtype)):
            (gradient,) = torch.autograd.grad(self._losses(batch, 1).sum() / self.examples, values)
        return gradient

    def _run(self, factors: dict[str, Pair], groups: int | None, norms: ChannelNorms | None) -> Tensor:
        """Return the losses (groups, m)."""
        if norms is not None and norms.filled:  # gathered before, and not to be gathered twice
            return self._run_once(factors, groups, norms)

        def anew() -> Tensor:
            if norms is not None:
                norms.reset()
            return self._run_once(factors, groups, norms)

        return self._in_smaller_passes(_kind_of(factors, groups, norms), groups or 1, anew)

    def _in_smaller_passes(self, kind: _Kind, count: int, run: Callable[[], Tensor]) -> Tensor:
        """Run passes of a kind; where memory has less room than was measured, again and smaller.

        Recorded training passes may have taken it since.
        """
        before = self.token_passes
        while True:
            try:
                return run()
            except torch.OutOfMemoryError:
                if not self._shrink(kind, count):
                    raise
            self.token_passes = before
            torch.cuda.empty_cache()  # by now nothing holds what the pass had made

    def _shrink(self, kind: _Kind, count: int) -> bool:
        """Halve the passes of a kind for `count` candidates; return whether there was anything to halve."""
        plan = self._planned.get((count, self._budgets.get(kind, 0)), [])
        sizes = [batch.input_ids.numel() for chunk, batch in plan if len(chunk) > 1]
        if not sizes:
            return False
        self._budgets[kind] = max(sizes) // 2
        return True

    def _run_once(self, factors: dict[str, Pair], groups: int | None, norms: ChannelNorms | None) -> Tensor:
        count = groups or 1
        found: list[Tensor] = []
        order: list[int] = []
        with evaluating(self._model):
            plan = self._plan(count, _kind_of(factors, groups, norms), self._small(factors, groups, norms))
            for chunk, batch in plan:
                self.token_passes += count * self._tokens(chunk)
                if norms is not None:
                    norms.tokens += self._tokens(chunk)
                found.append(self._forward(batch, factors, groups, norms).double().view(count, len(chunk)))
                order += chunk
        out = torch.empty(count, self.examples, dtype=torch.float64)
        out[:, order] = torch.cat(found, dim=1).cpu()  # the only look at the device
        return out

    def _small(
        self, factors: dict[str, Pair], groups: int | None, norms: ChannelNorms | None
    ) -> Callable[[Batch], Tensor]:
        """Return a pass of the same kind that is there to be measured, for two candidates at most.

        They stand for any number: every one adds as many rows, and as much, as the one before.
        """
        few = None if groups is None else min(groups, 2)
        some = factors if few is None else {name: (a[:few], b[:few]) for name, (a, b) in factors.items()}
        unused = None if norms is None else ChannelNorms()
        return lambda batch: self._forward(batch, some, few, unused)

    def _forward(
        self, batch: Batch, factors: dict[str, Pair], groups: int | None, norms: ChannelNorms | None
    ) -> Tensor:
        with self._injection.active(factors, groups=groups):
            if norms is None:
                return self._losses(batch, groups or 1)
            with self._injection.gathering(norms, batch.attention_mask):
                return self._losses(batch, 0)

    def _losses(self, batch: Batch, count: int) -> Tensor:
        speed = self._attached.speed
        narrow = count if speed.narrow_last else 0
        with planless(batch, speed.cudnn_from):
            return example_losses(self._model, batch, maskless=speed.skip_mask, narrow=narrow)

    @property
    def speed(self) -> SpeedConfig:
        """The settings that the passes follow."""
        return self._attached.speed

    @property
    def _device(self) -> torch.device:
        return self._bank.values.device

    def _tokens(self, chunk: Sequence[int]) -> int:
        return sum(len(self._items[i].input_ids) for i in chunk)

    def _plan(self, count: int, kind: _Kind, run: Callable[[Batch], Tensor]) -> list[tuple[list[int], Batch]]:
        """Return the passes for `count` candidates, made once and kept on the device.

        `run` makes such a pass for up to two candidates, to be measured; call in the mode that the passes are in.
        """
        if kind not in self._budgets:
            self._budgets[kind] = self._fitting(run, min(count, 2)) if self._given is None else self._given
        budget = self._budgets[kind]
        if (count, budget) not in self._planned:
            lengths = [len(item.input_ids) for item in self._items]
            chunks = cheapest_chunks(lengths, self._batch_size, budget // count, self._least // count)
            self._planned[count, budget] = [(chunk, self._batch(chunk, count)) for chunk in chunks]
        return self._planned[count, budget]

    def _fitting(self, run: Callable[[Batch], Tensor], count: int) -> int:
        """Return the most tokens of a pass: on a GPU what its memory holds, measured on the longest example."""
        if self._device.type != "cuda":
            return _TOKENS_ON_CPU
        longest = max(range(self.examples), key=lambda i: len(self._items[i].input_ids))
        batch = self._batch([longest], count)
        return min(_TOKENS, fitting_tokens(lambda: run(batch), batch.input_ids.numel(), self._device))

    def _batch(self, chunk: Sequence[int], count: int) -> Batch:
        items = [self._items[i] for i in chunk]
        return _repeat(collate(items, self._attached.pad_id).to(self._device), count)


def _kind_of(factors: dict[str, Pair], groups: int | None, norms: ChannelNorms | None) -> _Kind:
    if groups is not None:
        return "candidates"
    if norms is not None:
        return "gathering"
    return "merged" if factors else "bare"


def largest_round(
    lengths: Sequence[int], count: int, batch_size: int, least: int, device: torch.device
) -> tuple[int, int]:
    """Return the most tokens, padding included, and the most sequences that a pass for `count` candidates holds.

    `least` is that of `short_pass`; a GPU's memory may make passes smaller.
    """
    budget = _TOKENS if device.type == "cuda" else _TOKENS_ON_CPU
    chunks = cheapest_chunks(lengths, batch_size, budget // count, least // count)
    sizes = [(count * len(chunk) * max(lengths[i] for i in chunk), count * len(chunk)) for chunk in chunks]
    return max((tokens for tokens, _ in sizes), default=0), max((rows for _, rows in sizes), default=0)


def _repeat(batch: Batch, count: int) -> Batch:
    """Return the batch `count` times over, group-major."""
    if count == 1:
        return batch
    blocks = batch.input_ids.numel() * torch.arange(count, device=batch.places.device)
    return replace(
        batch,
        input_ids=batch.input_ids.repeat(count, 1),
        attention_mask=batch.attention_mask.repeat(count, 1),
        labels=batch.labels.repeat(count, 1),
        places=(blocks[:, None] + batch.places).flatten(),
        index=batch.index * count,
    )
