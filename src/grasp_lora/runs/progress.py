"""What a person sees while a run goes on: live bars on a terminal, plain lines elsewhere, or nothing.

All of it goes to standard error and none of it feeds back into the computation: wall time decides only what
is shown.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichBars
from rich.text import Text

Value = float | int | str
PLAIN_INTERVAL = 10.0  # seconds between two plain lines of one stage


class Task(Protocol):
    """One stage in progress."""

    def advance(self, n: int = 1, **values: Value) -> None:
        """Count `n` units and show `values` (loss=..., ratio=..., sigma=...); earlier ones stay shown."""


class Progress(Protocol):
    """Where stages report to; stages may be nested."""

    def stage(self, title: str, total: int | None = None) -> AbstractContextManager[Task]:
        """Show a stage of `total` units (None: unknown) while the block runs."""

    def note(self, text: str) -> None:
        """Show a line that matters to the user."""

    def warn(self, text: str) -> None:
        """Show a line about something that may be wrong."""


def make_progress(quiet: bool = False, stream: TextIO | None = None) -> Progress:
    """Return live bars when `stream` (standard error) is a terminal, else plain lines; or nothing."""
    if quiet:
        return QuietProgress()
    stream = sys.stderr if stream is None else stream
    return RichProgress(Console(file=stream)) if Console(file=stream).is_terminal else PlainProgress(stream)


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


class _QuietTask:
    def advance(self, n: int = 1, **values: Value) -> None:
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


class RichProgress:
    """Live bars, one per stage in progress; a finished stage leaves one line."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._bars = RichBars(
            SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(bar_width=24),
            MofNCompleteColumn(), TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[shown]}", markup=False),
            console=self._console, transient=True,
        )  # fmt: skip
        self._depth = 0

    @contextmanager
    def stage(self, title: str, total: int | None = None) -> Iterator[Task]:
        """Show a bar while the block runs, then one line with its last values."""
        if self._depth == 0:
            self._bars.start()
        self._depth += 1
        task = _RichTask(self._bars, self._bars.add_task(title, total=total, shown=""))
        ending = "stopped"
        try:
            yield task
            ending = "done"
        finally:
            self._depth -= 1
            took = format_duration(self._bars.tasks[self._bars.task_ids.index(task.id)].elapsed or 0.0)
            self._bars.remove_task(task.id)
            if self._depth == 0:
                self._bars.stop()
            self.note("  ".join(part for part in (title, task.shown, f"{ending} after {took}") if part))

    def note(self, text: str) -> None:
        """Print one line above the bars."""
        self._console.print(Text(text), soft_wrap=True)

    def warn(self, text: str) -> None:
        """Print one line above the bars, marked as a warning."""
        self._console.print(Text(f"warning: {text}", style="yellow"), soft_wrap=True)


class _RichTask:
    def __init__(self, bars: RichBars, task_id: TaskID) -> None:
        self._bars, self.id = bars, task_id
        self._values: dict[str, Value] = {}
        self.shown = ""

    def advance(self, n: int = 1, **values: Value) -> None:
        """Move the bar and renew the values beside it."""
        self._values.update(values)
        self.shown = format_values(self._values)
        self._bars.update(self.id, advance=n, shown=self.shown)
