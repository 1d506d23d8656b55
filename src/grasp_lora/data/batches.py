"""Token sequences as padded batches, and the orders in which they are visited."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ..rng import numpy_generator
from .encode import Encoded

IGNORED = -100
"""The label of positions that do not count, as in transformers and `torch.nn.functional.cross_entropy`."""


@dataclass(frozen=True)
class Joined:
    """Where `count` sequences lie that follow each other in one row of T tokens; padding may follow behind the last.

    `positions` (1, T) counts the tokens of every sequence from 0 and is 0 for padding. `rows` (T,) is each token's
    place in a flattened (count, width) layout, in which every sequence has a row of its own, padded on the right;
    `tokens` (count width,) the token at each place of it, the first one where there is none.
    """

    positions: Tensor
    rows: Tensor
    tokens: Tensor
    count: int
    width: int

    def to(self, device: torch.device) -> Joined:
        """Return the layout on a device, as `Batch.to` does."""
        positions, rows, tokens = (moved(part, device) for part in (self.positions, self.rows, self.tokens))
        return Joined(positions, rows, tokens, self.count, self.width)


@dataclass(frozen=True)
class Batch:
    """B sequences padded to one length T, or several in one row of T tokens (`joined`).

    `input_ids`, `attention_mask` (1 on tokens, 0 on padding) and `labels` (`IGNORED` outside answer and end
    token) are int64 of shape (B, T); `labels[:, t]` is predicted by the logits at position t - 1. `places` (N,) are
    the positions in the flattened batch, row by row, whose logits predict the N labels, so that no device has to look
    for them. `index` holds the examples' positions in their split.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    places: Tensor
    index: tuple[int, ...]
    joined: Joined | None = None

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch on a device; a GPU copies it from pinned memory while the program goes on."""
        target = torch.device(device)
        return replace(
            self,
            joined=None if self.joined is None else self.joined.to(target),
            input_ids=moved(self.input_ids, target),
            attention_mask=moved(self.attention_mask, target),
            labels=moved(self.labels, target),
            places=moved(self.places, target),
        )


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on a device; to a GPU from pinned memory, without waiting for what the GPU does."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def collate(
    items: Sequence[Encoded],
    pad_id: int,
    index: Sequence[int] | None = None,
    side: Literal["right", "left"] = "right",
    width: int | None = None,
) -> Batch:
    """Return the sequences as one batch, padded on the right for training and on the left for generation.

    `index` gives the examples' positions in their split, 0, 1, ... without it; `width` the length T, that of the
    longest sequence without it. Raises ValueError for no sequences, or for one that is longer than `width`.
    """
    if not items:
        raise ValueError("a batch needs at least one sequence")
    longest = max(len(item.input_ids) for item in items)
    width = longest if width is None else width
    if width < longest:
        raise ValueError(f"a sequence of {longest} tokens does not fit into {width}")
    input_ids = torch.full((len(items), width), pad_id, dtype=torch.int64)
    attention_mask = torch.zeros((len(items), width), dtype=torch.int64)
    labels = torch.full((len(items), width), IGNORED, dtype=torch.int64)
    places: list[int] = []
    for row, item in enumerate(items):
        length = len(item.input_ids)
        start = 0 if side == "right" else width - length
        tokens = torch.tensor(item.input_ids, dtype=torch.int64)
        input_ids[row, start : start + length] = tokens
        attention_mask[row, start : start + length] = 1
        labels[row, start + item.prompt_length : start + length] = tokens[item.prompt_length :]
        first = row * width + start - 1  # the logits before a token predict it; nothing predicts position 0 of a row
        places += range(first + max(item.prompt_length, 1 - start), first + length)
    positions = tuple(range(len(items))) if index is None else tuple(index)
    if len(positions) != len(items):
        raise ValueError(f"{len(items)} sequences need as many positions, got {len(positions)}")
    return Batch(input_ids, attention_mask, labels, torch.tensor(places, dtype=torch.int64), positions)


def join(items: Sequence[Encoded], width: int | None = None, multiple: int = 1) -> Batch:
    """Return the sequences one after the other in one row, without padding in between.

    `width` is that of the layout in which every sequence has a row of its own (`Joined`), the longest sequence's
    without it. The row is as long as the sequences together, up to the next `multiple` as far as that layout has places
    left: padding lies there behind the sequences, where causal attention does not see it. Raises ValueError for no
    sequences, or for one that is longer than `width`.
    """
    apart = collate(items, 0, width=width)
    count, width = apart.input_ids.shape
    filled = apart.attention_mask.flatten()
    found, free = filled.nonzero().flatten(), (filled == 0).nonzero().flatten()
    padding = free[: -len(found) % multiple]
    rows = torch.cat([found, padding])
    tokens = torch.zeros(count * width, dtype=torch.int64).index_copy_(0, rows, torch.arange(len(rows)))
    ids, mask, labels = (part.flatten()[rows][None] for part in (apart.input_ids, apart.attention_mask, apart.labels))
    positions = torch.cat([found % width, torch.zeros_like(padding)])  # padding is at none that a sequence lacks
    joined = Joined(positions[None], rows, tokens, count, width)
    return Batch(ids, mask, labels, tokens[apart.places], apart.index, joined)


def answer_window(batch: Batch) -> tuple[int, int]:
    """Return (lo, hi): the logits at positions lo to hi - 1 predict all labels, those at lo + 1 to hi.

    The model's head is needed at these positions only. A label at position 0 has no predecessor and does
    not count; a batch without labels gives (0, 0).
    """
    counted = (batch.labels[:, 1:] != IGNORED).any(dim=0).nonzero().flatten()
    if counted.numel() == 0:
        return 0, 0
    return int(counted[0]), int(counted[-1]) + 1


def length_sorted_chunks(items: Sequence[Encoded], batch_size: int) -> list[list[int]]:
    """Return the positions of all items in chunks of like length, longest first (memory fails early).

    Items of one length keep their order; every position occurs once.
    """
    order = _longest_first([len(item.input_ids) for item in items])
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def cheapest_chunks(lengths: Sequence[int], most: int, tokens: int, least: int = 0) -> list[list[int]]:
    """Return all positions in chunks of like length that cost the fewest tokens, padding included, longest first.

    A chunk holds at most `most` sequences and `tokens` tokens (a longer sequence makes a chunk by itself) and costs at
    least as much as `least` tokens: what a pass costs however short it is. Among equals, fewer chunks.
    """
    order = _longest_first(lengths)
    best: list[tuple[int, int, int]] = [(0, 0, 0)]  # cost, chunks and start of the last one, of the first k positions
    for end in range(1, len(order) + 1):
        options = []
        for start in range(end - 1, max(-1, end - 1 - most), -1):
            size = (end - start) * lengths[order[start]]
            if size > tokens and end - start > 1:
                break
            options.append((best[start][0] + max(size, least), best[start][1] + 1, start))
        best.append(min(options))
    chunks: list[list[int]] = []
    end = len(order)
    while end:
        start = best[end][2]
        chunks.append(order[start:end])
        end = start
    return chunks[::-1]


def packed(lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """Return all positions in chunks of at most `tokens` tokens, padding included, longest sequences first.

    Sorted by length, each chunk takes as many sequences as fit, so no other cut of the sorted list has fewer chunks. A
    sequence that is longer than `tokens` makes a chunk by itself. Sequences of one length keep their order.
    """
    chunks: list[list[int]] = []
    for position in _longest_first(lengths):
        if chunks and (len(chunks[-1]) + 1) * lengths[chunks[-1][0]] <= tokens:
            chunks[-1].append(position)
        else:
            chunks.append([position])
    return chunks


def joined_chunks(lengths: Sequence[int], tokens: int, places: int) -> list[list[int]]:
    """Return all positions in chunks to `join`: at most `tokens` tokens each, longest sequences first.

    Padded to the longest of its chunk, as attention has them, its sequences take at most `places`. Each goes to the
    first chunk that has room; one that is longer than either makes a chunk by itself.
    """
    chunks: list[list[int]] = []
    sums: list[int] = []
    for position in _longest_first(lengths):
        for i, chunk in enumerate(chunks):
            fits = sums[i] + lengths[position] <= tokens
            if fits and (len(chunk) + 1) * lengths[chunk[0]] <= places:
                chunk.append(position)
                sums[i] += lengths[position]
                break
        else:
            chunks.append([position])
            sums.append(lengths[position])
    return chunks


def _longest_first(lengths: Sequence[int]) -> list[int]:
    return sorted(range(len(lengths)), key=lambda position: -lengths[position])


def epoch_order(n: int, seed: int, epoch: int) -> list[int]:
    """Return the permutation of 0 to n - 1 in which an epoch visits the training examples."""
    order: list[int] = numpy_generator(seed, "epoch-order", epoch).permutation(n).tolist()
    return order
