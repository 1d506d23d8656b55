"""Where stages report to while a run goes on, and two of the places: plain lines, or nothing (`dashboard`: a terminal).

All of it goes to standard error and none of it feeds back into the computation: wall time decides only what
is shown.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol, TextIO

Value = float | int | str
PLAIN_INTERVAL = 10.0  # seconds between two plain lines of one stage


class Task(Protocol):
    """One stage in progress."""

    def advance(self, n: int = 1, **values: Value) -> None:
        """Count `n` units and show `values` (loss=..., ratio=..., sigma=...); earlier ones stay shown."""

    def event(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Take note of a `step`, an `epoch` or a `round`, with the fields of its line in the run folder's logs."""


class Progress(Protocol):
    """Where stages report to; stages may be nested."""

    def stage(self, title: str, total: int | None = None) -> AbstractContextManager[Task]:
        """Show a stage of `total` units (None: unknown) while the block runs."""

    def note(self, text: str) -> None:
        """Show a line that matters to the user."""

    def warn(self, text: str) -> None:
        """Show a line about something that may be wrong."""

    def result(self, title: str, **values: float) -> None:
        """Take note of what a stage found."""


def format_values(values: Mapping[str, Value]) -> str:
    """Return `loss 1.2345  ratio 0.4000`: four decimals, or four digits for numbers below a thousandth."""
    return "  ".join(f"{name} {_format(value)}" for name, value in values.items())


def format_duration(seconds: float) -> str:
    """Return `8 s`, `2:05 min` or `1:02:05 h`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes}:{rest:02d} min" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d}:{rest:02d} h"


def _format(value: Value) -> str:
    if isinstance(value, float):
        return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e6 else f"{value:.3e}"
    return str(value)


class QuietProgress:
    """Shows nothing."""

    @contextmanager
    def stage(self, title: str, total: int | None = None) -> Iterator[Task]:
        """Run the block."""
        yield _QuietTask()

    def note(self, text: str) -> None:
        """Show nothing."""

    def warn(self, text: str) -> None:
        """Show nothing."""

    def result(self, title: str, **values: float) -> None:
        """Show nothing."""


class _QuietTask:
    def advance(self, n: int = 1, **values: Value) -> None:
        """Show nothing."""

    def event(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Show nothing."""


class PlainProgress:
    """One line when a stage starts and ends, and at most one per ten seconds in between."""

    def __init__(self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock

    @contextmanager
    def stage(self, title: str, total: int | None = None) -> Iterator[Task]:
        """Show a stage; its last line says how long it took, or that it stopped."""
        task = _PlainTask(self, title, total, self._clock)
        self.note(f"{title} ..." if total is None else f"{title} (0/{total}) ...")
        try:
            yield task
        except BaseException:
            self.note(task.line("stopped"))
            raise
        self.note(task.line("done"))

    def note(self, text: str) -> None:
        """Write one line."""
        self._stream.write(f"{text}\n")
        self._stream.flush()

    def warn(self, text: str) -> None:
        """Write one line marked as a warning."""
        self.note(f"warning: {text}")

    def result(self, title: str, **values: float) -> None:
        """Write one line."""
        self.note(f"{title}: {format_values(values)}")


class _PlainTask:
    def __init__(self, progress: PlainProgress, title: str, total: int | None, clock: Callable[[], float]) -> None:
        self._progress, self._title, self._total, self._clock = progress, title, total, clock
        self._done = 0
        self._values: dict[str, Value] = {}
        self._start = self._shown = clock()

    def advance(self, n: int = 1, **values: Value) -> None:
        """Count, and write a line when the last one is old enough."""
        self._done += n
        self._values.update(values)
        now = self._clock()
        if now - self._shown >= PLAIN_INTERVAL:
            self._shown = now
            self._progress.note(self.line(self._remaining(now)))

    def event(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Show nothing: the lines carry the values of `advance`."""

    def line(self, ending: str) -> str:
        """Return the stage's state as one line."""
        if ending in {"done", "stopped"}:
            ending = f"{ending} after {format_duration(self._clock() - self._start)}"
        count = f"{self._done}" if self._total is None else f"{self._done}/{self._total}"
        return "  ".join(part for part in (self._title, count, format_values(self._values), ending) if part)

    def _remaining(self, now: float) -> str:
        if self._total is None or not 0 < self._done < self._total:
            return ""
        return f"{format_duration((now - self._start) / self._done * (self._total - self._done))} left"
