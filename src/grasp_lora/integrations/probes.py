"""The micro-dev examples of a trainer's own data set, and their losses shared among processes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..adapters.point import MergePoint
from ..data import Encoded
from ..data.batches import IGNORED
from ..errors import DataError
from ..probing import Attached, Evaluator


def encoded_rows(rows: Iterable[Mapping[str, Any]], origin: str = "micro_dev") -> tuple[Encoded, ...]:
    """Return tokenized rows as the probes take them.

    A row has `input_ids` and `labels` of equal length, as a trainer's data set does: labels are -100 on the prompt and
    equal `input_ids` from there to the end. Padding is cut off: behind, where labels are -100, and in front, where an
    `attention_mask` is 0. Raises `DataError` for anything else.
    """
    return tuple(_encoded(row, f"{origin}, row {number}") for number, row in enumerate(rows))


def _encoded(row: Mapping[str, Any], origin: str) -> Encoded:
    lacking = [name for name in ("input_ids", "labels") if row.get(name) is None]
    if lacking:
        raise DataError(
            f"{origin}: no {' and no '.join(lacking)} (found: {', '.join(sorted(row))}). Give rows tokenized as those "
            "that are trained on."
        )
    tokens, labels = ([int(x) for x in row[name]] for name in ("input_ids", "labels"))
    if len(tokens) != len(labels):
        raise DataError(f"{origin}: {len(tokens)} input_ids, but {len(labels)} labels. Give as many.")
    front = _padding(row, len(tokens), origin)
    tokens, labels = tokens[front:], labels[front:]
    counted = [place for place, label in enumerate(labels) if label != IGNORED]
    if not counted or counted[-1] < 1:
        raise DataError(f"{origin}: no token is learnt (all labels are {IGNORED}). Leave the row out.")
    start, end = counted[0], counted[-1] + 1
    if labels[start:end] != tokens[start:end]:
        raise DataError(
            f"{origin}: labels must be {IGNORED} up to one token and equal input_ids from there on. Give examples with "
            "one prompt and one answer."
        )
    # The first token of all has no predecessor.
    return Encoded(origin, tuple(tokens[:end]), max(start, 1))


def _padding(row: Mapping[str, Any], length: int, origin: str) -> int:
    """Return the number of padding tokens in front, by the row's attention mask if it has one."""
    if row.get("attention_mask") is None:
        return 0
    mask = [int(x) for x in row["attention_mask"]]
    read = [place for place, kept in enumerate(mask) if kept]
    front = read[0] if read else len(mask)
    if len(mask) != length or read != list(range(front, front + len(read))):
        raise DataError(
            f"{origin}: the attention_mask must be as long as input_ids and 0 on padding in front and behind only. "
            "Give rows of one sequence each."
        )
    return front


class SharedEvaluator(Evaluator):
    """Losses computed by several processes, each its share of the examples; all get the same numbers to the bit."""

    def __init__(self, attached: Attached, items: Sequence[Encoded], *, batch_size: int) -> None:
        super().__init__(attached, items, batch_size=batch_size)
        self._rank, self._world = dist.get_rank(), dist.get_world_size()
        share = items[self._rank :: self._world]
        self._own = Evaluator(attached, share, batch_size=batch_size) if share else None

    def flat_losses(self, flat: Tensor, points: Sequence[MergePoint] | None = None) -> Tensor:
        """Return the loss of every example with each row of `flat` as the bank's values, shape (C, m)."""
        losses = torch.zeros(len(flat), self.examples, dtype=torch.float64)
        tokens = 0
        if self._own is not None:
            before = self._own.token_passes
            losses[:, self._rank :: self._world] = self._own.flat_losses(flat, points)
            tokens = self._own.token_passes - before
        both = torch.cat([losses.flatten(), torch.tensor([float(tokens)], dtype=torch.float64)]).to(flat.device)
        dist.all_reduce(both)  # sums: every entry is zero in all processes but one
        both = both.cpu()
        self.token_passes += int(both[-1])
        return both[:-1].view_as(losses)
