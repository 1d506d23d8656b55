"""The stages of a run as `run` calls them, with every step, round and update on the clock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from ...adapters.peft_load import AdapterFactors
from ...runs import QuietProgress
from ...training import Plumbing
from ..finalize import FinalResult, finalize
from ..search import SearchResult, search
from ..stageio import StageIO
from .clock import Marks, Timing, now
from .workloads import TokenSetup

T = TypeVar("T")


class ClockedIO(StageIO):
    """A stage's surroundings that mark its steps and rounds and keep nothing on disk."""

    def __init__(self, name: str, marks: Marks) -> None:
        super().__init__(name, None, QuietProgress())
        self._marks = marks

    def plumbing(self) -> Plumbing:
        """Return what the loop reports to: the steps are marked."""

        def log(kind: str, _values: dict[str, Any]) -> None:
            if kind in ("step", "epoch"):
                self._marks.mark(kind)

        return replace(super().plumbing(), log=log)

    def record_round(self, row: dict[str, Any]) -> None:
        """Mark the end of a round."""
        self._marks.mark("opening" if row["step"] == 0 else "round")


@dataclass(frozen=True)
class StageTimes:
    """One stage: its seconds as a whole and of every step and round, in order.

    `opening` is what came before the first step, the first look of the controller in it. `first_epoch` counts the steps
    of the epoch that warms up: whatever is compiled, captured or allocated, is so there.
    """

    seconds: float
    opening: float
    steps: tuple[float, ...]
    rounds: tuple[float, ...]
    first_epoch: int
    first_rounds: int

    def step(self) -> Timing:
        """Return the steps; those of the first epoch do not count."""
        return _settled(self.steps, self.first_epoch)

    def round(self) -> Timing:
        """Return the rounds; those of the first epoch do not count."""
        return _settled(self.rounds, self.first_rounds)

    def warm_up(self) -> float:
        """Return the seconds by which the first epoch's steps and rounds took longer than as many later ones."""
        parts = [(self.step(), self.first_epoch)]
        if self.rounds:
            parts.append((self.round(), self.first_rounds))
        return sum(sum(timing.warm_up) - timing.mean * min(count, len(timing.warm_up)) for timing, count in parts)


def _settled(seconds: Sequence[float], first: int) -> Timing:
    """Return a timing that leaves out the first so many, if any are left then."""
    kept = first if len(seconds) > first else 0
    return Timing(tuple(seconds[:kept]), tuple(seconds[kept:]))


def clocked_search(
    setup: TokenSetup, adapters: Sequence[AdapterFactors], epochs: int
) -> tuple[SearchResult, StageTimes]:
    """Run the search for so many epochs and return what it found and its times."""
    changed = setup.config.search.model_copy(update={"epochs": epochs})
    whole = replace(setup, config=setup.config.model_copy(update={"search": changed}))
    per_epoch = -(-len(setup.items("train")) // (changed.batch_size * changed.accumulation))
    per_round = per_epoch // setup.config.controller.interval
    return _clocked(whole, "search", lambda io: search(whole, adapters, io), per_epoch, per_round)


def clocked_final(
    setup: TokenSetup, adapters: Sequence[AdapterFactors], where: Any, epochs: int
) -> tuple[FinalResult, StageTimes]:
    """Run the final run for so many epochs at a point and return its result and its times."""
    changed = setup.config.finalize.model_copy(update={"epochs": epochs})
    whole = replace(setup, config=setup.config.model_copy(update={"finalize": changed}))
    per_epoch = -(-len(setup.items("train")) // (changed.batch_size * changed.accumulation))
    return _clocked(whole, "finalize", lambda io: finalize(whole, adapters, where, io), per_epoch, 0)


def _clocked(
    setup: TokenSetup, name: str, stage: Callable[[StageIO], T], per_epoch: int, per_round: int
) -> tuple[T, StageTimes]:
    marks = Marks(setup.base.device)
    start = now(setup.base.device)
    marks.mark("start")
    result = stage(ClockedIO(name, marks))
    seconds = now(setup.base.device) - start
    durations = marks.durations()
    opening = 0.0
    if durations and durations[0][0] == "opening":
        opening = durations[0][1]
        durations = durations[1:]
    by_kind = {kind: tuple(value for what, value in durations if what == kind) for kind in ("step", "round")}
    return result, StageTimes(seconds, opening, by_kind["step"], by_kind["round"], per_epoch, per_round)
