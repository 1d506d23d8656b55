"""What a run's passes cost in seconds: how many of which kind each stage makes, and a line for each kind.

A pass takes a fixed time and a time per token (padding included); a stage is the sum of its passes. The lines come from
a calibration on this machine or from a record of `bench`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from ..config import SpeedConfig, TrainingConfig
from ..data import Encoded, epoch_order, length_sorted_chunks
from ..training.passes import cut_update, pass_tokens

Kind = Literal["train", "forward", "decode", "select", "round"]


@dataclass(frozen=True)
class Load:
    """So many passes of one kind that hold `tokens` in all, padding included.

    `decode` counts one step of a batch of answers as a pass and its rows as tokens; `select` is the selection of a
    dynamic mask after an update, `round` what a round of the controller costs beside its passes.
    """

    kind: Kind
    passes: int
    tokens: int = 0

    def times(self, count: float) -> Load:
        """Return the load so many times over, in whole passes and tokens."""
        return replace(self, passes=round(count * self.passes), tokens=round(count * self.tokens))


@dataclass(frozen=True)
class Line:
    """Seconds of a pass: `fixed` and `per_token`, each the smallest and the largest seen."""

    fixed: tuple[float, float]
    per_token: tuple[float, float] = (0.0, 0.0)

    def seconds(self, load: Load) -> tuple[float, float]:
        """Return the least and the most that a load takes."""
        low, high = (load.passes * self.fixed[i] + load.tokens * self.per_token[i] for i in (0, 1))
        return min(low, high), max(low, high)


@dataclass(frozen=True)
class CostModel:
    """A line for every kind of pass, in words where they come from, and how far a prediction may be off by itself.

    `margin` widens the range that the calibration's own spread gives, as a share of it. `without` says of a kind that
    has no line why not.
    """

    lines: dict[Kind, Line]
    source: str
    margin: float
    without: Mapping[Kind, str] = field(default_factory=dict)

    def why_not(self, loads: Iterable[Load]) -> str | None:
        """Return why the seconds of loads are not known, or None where they are."""
        return next((self.without[load.kind] for load in loads if load.passes and load.kind in self.without), None)

    def seconds(self, loads: Iterable[Load]) -> tuple[float, float]:
        """Return the least and the most that loads take together; (0, 0) for none. Each kind needs its line."""
        pairs = [self.lines[load.kind].seconds(load) for load in loads if load.passes]
        return sum(p[0] for p in pairs) * (1 - self.margin), sum(p[1] for p in pairs) * (1 + self.margin)


@dataclass(frozen=True)
class Prediction:
    """Seconds of stages by name and of these together, (least, most); `why_not` says why some, or all, have none.

    The stages run to their last epoch and round here: early stopping can only shorten them.
    """

    source: str
    stages: dict[str, tuple[float, float]]
    total: tuple[float, float]
    measuring_s: float
    why_not: str | None = None


def training_load(
    speed: SpeedConfig, training: TrainingConfig, items: Sequence[Encoded], seed: int, *,
    on_gpu: bool = False, padded: bool = True,
) -> Load:  # fmt: skip
    """Return the load of one epoch in the order of the first, with or without padding."""
    lengths = [len(item.input_ids) for item in items]
    order, size = epoch_order(len(items), seed, 0), training.batch_size * training.accumulation
    budget, sizes = pass_tokens(speed, training, items, on_gpu=on_gpu), []
    for start in range(0, len(order), size):
        chosen = [lengths[i] for i in order[start : start + size]]
        chunks = [[chosen[i] for i in chunk] for chunk in cut_update(chosen, training, budget, padded=padded)]
        sizes += [len(chunk) * max(chunk) if padded else sum(chunk) for chunk in chunks]
    return Load("train", len(sizes), sum(sizes))


def forward_load(items: Sequence[Encoded], batch_size: int, candidates: int = 1) -> Load:
    """Return the load of one evaluation of `items`, of so many candidates at once; an empty one without either."""
    if not candidates:
        return Load("forward", 0)
    sizes = [len(chunk) * len(items[chunk[0]].input_ids) for chunk in length_sorted_chunks(items, batch_size)]
    return Load("forward", len(sizes), candidates * sum(sizes))


def answering_loads(prompts: Sequence[Encoded], batch_size: int, new_tokens: int) -> list[Load]:
    """Return the loads of answering prompts in batches, every answer as long as it may be."""
    chunks = length_sorted_chunks(prompts, batch_size)
    read = sum(len(chunk) * len(prompts[chunk[0]].input_ids) for chunk in chunks)
    steps = max(new_tokens - 1, 0)
    return [Load("forward", len(chunks), read), Load("decode", len(chunks) * steps, len(prompts) * steps)]
