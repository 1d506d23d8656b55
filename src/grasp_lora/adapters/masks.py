"""Prune masks with exact counts (algorithm.md, section 3).

A flat vector of importances is cut into segments: one per tensor (scope `per_tensor`) or a single one (`global`). In a
segment of n entries the `k = floor(p n + 1e-9)` lowest (importance, flat index) pairs are pruned, exactly that many.
One stable sort per segment gives the masks of every ratio: an entry is kept at p when its rank is at least k(p).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from ..data import moved

# The tolerance of k = floor(p n + 1e-9): plain floor(0.29 * 100) is 28 in floating point.
_TOLERANCE = 1e-9


def prune_count(ratio: float, entries: int) -> int:
    """Return how many of `entries` are pruned at `ratio` in [0, 1]; raises ValueError outside."""
    if not 0.0 <= ratio <= 1.0:
        raise ValueError(f"ratio must lie in [0, 1], got {ratio}")
    return min(entries, math.floor(ratio * entries + _TOLERANCE))


@dataclass(frozen=True)
class Ranking:
    """The rank of every entry inside its segment, lowest importance first; the masks of all ratios follow from it."""

    ranks: Int64[Tensor, " n"]
    sizes: tuple[int, ...]

    def kept(self, ratio: float | Sequence[float]) -> Bool[Tensor, " n"]:
        """Return the mask at `ratio`, or at one ratio per segment, shape (n,): True where an entry is kept."""
        ratios = (ratio,) * len(self.sizes) if isinstance(ratio, float | int) else ratio
        pairs = zip(ratios, self.sizes, strict=True)
        counts = moved(torch.tensor([prune_count(p, size) for p, size in pairs]), self.ranks.device)
        if len(self.sizes) == 1:
            return self.ranks >= counts
        repeats = moved(torch.tensor(self.sizes), self.ranks.device)
        return self.ranks >= torch.repeat_interleave(counts, repeats, output_size=self.ranks.numel())


class CommitReport:
    """What a commit did, measured on the mask; the first look at it waits for a GPU.

    `counts` (3,) are the entries newly pruned, those revived and those kept, of `entries`.
    """

    def __init__(self, counts: Int64[Tensor, "3"], entries: int) -> None:
        self._counts, self._entries = counts, entries

    @cached_property
    def _found(self) -> tuple[int, int, int]:
        pruned, revived, kept = self._counts.tolist()
        return pruned, revived, kept

    @property
    def pruned(self) -> int:
        """Entries newly pruned."""
        return self._found[0]

    @property
    def revived(self) -> int:
        """Entries that came back."""
        return self._found[1]

    @property
    def flipped(self) -> float:
        """Share of the entries that were pruned or came back."""
        return (self.pruned + self.revived) / self._entries

    @property
    def density(self) -> float:
        """Share of the entries that are kept."""
        return self._found[2] / self._entries


def rank(importance: Float[Tensor, " n"], sizes: Sequence[int], *, checked: bool = False) -> Ranking:
    """Rank `importance` (shape (n,)) inside consecutive segments of the given `sizes`, ties by index.

    Raises ValueError when the sizes do not add up to n or an importance is NaN (its place would be arbitrary), for
    which it waits for a GPU; with `checked` the caller looks.
    """
    if sum(sizes) != importance.numel():
        raise ValueError(f"segments hold {sum(sizes)} entries, importance has {importance.numel()}")
    if not checked and bool(importance.isnan().any()):
        raise ValueError("importance has NaN entries")
    ranks = torch.empty(importance.numel(), dtype=torch.int64, device=importance.device)
    by_size: dict[int, list[int]] = {}
    start = 0
    for size in sizes:
        by_size.setdefault(size, []).append(start)
        start += size
    for size, starts in by_size.items():  # tensors of one size are sorted in one call
        origin = moved(torch.tensor(starts), importance.device)[:, None]
        where = origin + torch.arange(size, device=importance.device)
        order = torch.argsort(importance[where], dim=1, stable=True)
        ranks[(origin + order).flatten()] = torch.arange(size, device=importance.device).repeat(len(starts))
    return Ranking(ranks, tuple(sizes))
