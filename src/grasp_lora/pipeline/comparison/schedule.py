"""Units side by side, in the order of their importance and as their adapters become ready.

A unit that fails is recorded and its dependants with it; everything else goes on. A stop request lets running units
save a checkpoint and starts no new ones; after a time limit no new ones are started, and running ones end.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from ...config import ModelConfig
from ...errors import GraspError, Interrupted
from ...runs import Progress, write_text_atomic
from ...runs.progress import Task
from .slots import Slots
from .units import Unit
from .worker import Done, finished

_LOOK_EVERY = 0.5  # seconds between two looks at the stop request
TRACE = "traceback.txt"


@dataclass
class Results:
    """What is known of units by their keys: results, and what went wrong."""

    done: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    failures: dict[str, Done] = field(default_factory=dict)

    def ended(self, key: str) -> bool:
        """Return whether a unit is done or has failed."""
        return key in self.done or key in self.failures

    def recall(self, units: Sequence[Unit]) -> None:
        """Take what earlier calls have left of these units; a result under other settings is a failure."""
        for unit in units:
            found = None if self.ended(unit.key) else finished(unit)
            if found is not None and found.result is not None:
                self.done[unit.key] = found.result
            elif found is not None:
                self.failures[unit.key] = found


@dataclass(frozen=True)
class Limits:
    """How many units at once, and until when new ones are started (`time.monotonic`; None: without an end)."""

    jobs: int
    until: float | None = None


class Pool:
    """Runs units in slots (`Slots`) and keeps their results."""

    def __init__(
        self, limits: Limits, model: ModelConfig, progress: Progress, stop_requested: Callable[[], bool]
    ) -> None:
        self.results = Results()
        self._limits, self._progress, self._stop_requested = limits, progress, stop_requested
        self._slots = Slots(limits.jobs, model)
        self._seconds: dict[str, list[float]] = {}

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self._slots.close()

    def run(self, units: Sequence[Unit], task: Task, more: Callable[[Results], Sequence[Unit]]) -> None:
        """Do all units that are not done yet, adapters before what is made from them.

        `more` gives further units whenever some have ended. Raises `Interrupted` when a stop was requested, after the
        running units have ended.
        """
        waiting = [*self._new(units, task), *self._more(task, more)]
        running: dict[Future[Done], Unit] = {}
        self._slots.warm_up(len(waiting))
        while waiting or running:
            if self._stop_requested():
                self._slots.stop()
            if self._slots.stopping or (self._limits.until is not None and time.monotonic() > self._limits.until):
                waiting = []
            self._start(waiting, running, task)
            finished_now, _ = wait(running, timeout=_LOOK_EVERY, return_when=FIRST_COMPLETED)
            for future in finished_now:
                self._end(running.pop(future), future, task)
            if finished_now:
                waiting += self._more(task, more)
        if self._slots.stopping:
            raise Interrupted("stopped; what is done is kept. Go on with --resume.")

    def _more(self, task: Task, more: Callable[[Results], Sequence[Unit]]) -> list[Unit]:
        """Return what has become possible and is not done: what earlier calls have done may make more possible."""
        found: list[Unit] = []
        while units := more(self.results):
            found += self._new(units, task)
        return found

    def _new(self, units: Sequence[Unit], task: Task) -> list[Unit]:
        """Return those of `units` that are still to be run."""
        self.results.recall(units)
        for unit in units:
            if unit.key in self.results.failures:
                self._fail(unit, self.results.failures[unit.key], task)
            elif unit.key in self.results.done:
                task.advance(1)
        return [unit for unit in units if not self.results.ended(unit.key)]

    def _start(self, waiting: list[Unit], running: dict[Future[Done], Unit], task: Task) -> None:
        """Start what is ready while there is room, and give up what waits for something that failed."""
        for unit in list(waiting):
            broken = [key for key in unit.waits if key in self.results.failures]
            if broken:
                waiting.remove(unit)
                cause = self.results.failures[broken[0]]
                self._fail(unit, Done(unit.key, None, f"its {broken[0]} failed: {cause.error}", cause.exit_code), task)
        ready = [unit for unit in waiting if all(key in self.results.done for key in unit.waits)]
        for unit in sorted(ready, key=self._urgency)[: self._slots.free]:
            waiting.remove(unit)
            running[self._slots.submit(unit)] = unit

    def _urgency(self, unit: Unit) -> tuple[int, float]:
        """Return what sorts units: by rank, then those first whose rows have taken longest so far."""
        known = self._seconds.get(unit.kind)
        return unit.rank, -fmean(known) if known else float("-inf")

    def _end(self, unit: Unit, future: Future[Done], task: Task) -> None:
        self._slots.ended(future)
        error = future.exception()
        if isinstance(error, BrokenProcessPool):
            died = "its process died, perhaps for lack of memory. Lower compare.jobs and use --resume"
            self._fail(unit, Done(unit.key, None, f"{died}.", GraspError.exit_code), task)
        elif error is not None:
            write_text_atomic(unit.path / TRACE, "".join(traceback.format_exception(error)))
            text = f"{type(error).__name__}: {error} (a defect; see {unit.path / TRACE})"
            self._fail(unit, Done(unit.key, None, text, GraspError.exit_code), task)
        else:
            done = future.result()
            if done.result is not None:
                self.results.done[unit.key] = done.result
                self._seconds.setdefault(unit.kind, []).append(done.result["cost"]["seconds"])
                task.advance(1)
                self._progress.note(f"{unit.words}: {_shown(done.result)}")
            elif not done.interrupted:
                self._fail(unit, done, task)

    def _fail(self, unit: Unit, done: Done, task: Task) -> None:
        self.results.failures[unit.key] = done
        task.advance(1)
        self._progress.warn(f"{unit.words}: failed: {done.error}")


def _shown(result: Mapping[str, Any]) -> str:
    """Return a unit's result in a few words."""
    loss = next((row["value"] for row in result.get("scores", ()) if row["name"] == "loss"), None)
    ratio = result.get("ratio")
    words = [f"test loss {loss:.3f}"] if loss is not None else []
    words += [f"ratio {ratio:.3f}"] if ratio is not None else []
    return ", ".join([*words, f"{result['cost']['seconds']:.1f} s"])
