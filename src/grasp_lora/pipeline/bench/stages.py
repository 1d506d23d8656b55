"""The stages of a run as `run` calls them, with every step, round and update on the clock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from ...adapters.peft_load import AdapterFactors
from ...adapters.point import MergePoint
from ...runs import QuietProgress
from ...training import Plumbing
from ..finalize import FinalResult, finalize
from ..search import SearchResult, search
from ..stageio import StageIO
from .clock import Marks, Timing, now, settle
from .workloads import TokenSetup

T = TypeVar("T")

# Epochs of a stage that warm up, in which whatever is compiled, captured or allocated is so.
WARM_UP = {"search": 1, "finalize": 2}


class ClockedIO(StageIO):
    """A stage's surroundings that mark its updates, rounds and epochs and keep nothing on disk."""

    def __init__(self, name: str, marks: Marks) -> None:
        self._marks = marks
        super().__init__(name, None, QuietProgress(), stop_requested=self._updated)

    def _updated(self) -> bool:
        """Mark the end of an update, after which the loop asks whether to stop."""
        self._marks.mark("step")
        return False

    def plumbing(self) -> Plumbing:
        """Return what the loop reports to: the ends of epochs are marked."""

        def log(kind: str, _values: dict[str, Any]) -> None:
            if kind == "epoch":
                self._marks.mark("epoch")

        return replace(super().plumbing(), log=log)

    def record_round(self, row: dict[str, Any]) -> None:
        """Mark the end of a round."""
        self._marks.mark("round" if row["step"] else "opening")


@dataclass(frozen=True)
class Epoch:
    """Seconds of an epoch's updates: those without a round, and those with one."""

    steps: tuple[float, ...] = ()
    with_round: tuple[float, ...] = ()


@dataclass(frozen=True)
class StageTimes:
    """One stage: its seconds as a whole, and of every update by epoch; the first `warm` epochs do not count.

    `opening` is what came before the first update: the first look of the controller, or a first mask.
    """

    seconds: float
    opening: float
    epochs: tuple[Epoch, ...]
    warm: int

    @property
    def _split(self) -> tuple[tuple[Epoch, ...], tuple[Epoch, ...]]:
        cut = self.warm if len(self.epochs) > self.warm else 0
        return self.epochs[:cut], self.epochs[cut:]

    def step(self) -> Timing:
        """Return the updates without a round."""
        first, later = self._split
        return Timing(*(tuple(s for epoch in part for s in epoch.steps) for part in (first, later)))

    def round(self) -> Timing:
        """Return the rounds: each update with one, less the mean update without."""
        first, later = self._split
        mean = self.step().mean
        return Timing(*(tuple(s - mean for epoch in part for s in epoch.with_round) for part in (first, later)))

    def warm_up(self) -> float:
        """Return by how much the first epochs took longer than as many later ones."""
        step, rounds = self.step(), self.round()
        later = step.mean * (len(step.warm_up) + len(rounds.warm_up))
        later += rounds.mean * len(rounds.warm_up) if rounds.warm_up else 0.0
        return sum(s for epoch in self._split[0] for s in (*epoch.steps, *epoch.with_round)) - later


def stage_times(seconds: float, durations: Sequence[tuple[str, float]], warm: int) -> StageTimes:
    """Return a stage's times from the seconds between its marks (see `Marks.durations`).

    A search that stops has an epoch that does not end.
    """
    opening, since, probed = 0.0, 0.0, False
    epochs: list[Epoch] = []
    steps: list[float] = []
    with_round: list[float] = []
    for kind, value in durations:
        since += value
        if kind == "round":
            probed = True
            continue
        if kind == "opening":
            opening = since
        elif kind == "step":
            (with_round if probed else steps).append(since)
        else:
            epochs.append(Epoch(tuple(steps), tuple(with_round)))
            steps, with_round = [], []
        since, probed = 0.0, False
    if steps or with_round:
        epochs.append(Epoch(tuple(steps), tuple(with_round)))
    return StageTimes(seconds, opening, tuple(epochs), warm)


def clocked_search(
    setup: TokenSetup, adapters: Sequence[AdapterFactors], epochs: int
) -> tuple[SearchResult, StageTimes]:
    """Run the search for so many epochs and return what it found and its times."""
    changed = setup.config.search.model_copy(update={"epochs": epochs})
    whole = replace(setup, config=setup.config.model_copy(update={"search": changed}))
    return _clocked(whole, "search", lambda io: search(whole, adapters, io))


def clocked_final(
    setup: TokenSetup, adapters: Sequence[AdapterFactors], where: MergePoint, epochs: int
) -> tuple[FinalResult, StageTimes]:
    """Run the final run for so many epochs at a point and return its result and its times."""
    changed = setup.config.finalize.model_copy(update={"epochs": epochs})
    whole = replace(setup, config=setup.config.model_copy(update={"finalize": changed}))
    return _clocked(whole, "finalize", lambda io: finalize(whole, adapters, where, io))


def _clocked(setup: TokenSetup, name: str, stage: Callable[[StageIO], T]) -> tuple[T, StageTimes]:
    device = setup.base.device
    settle(device)
    marks = Marks(device)
    start = now(device)
    marks.mark("start")
    result = stage(ClockedIO(name, marks))
    return result, stage_times(now(device) - start, marks.durations(), WARM_UP[name])
