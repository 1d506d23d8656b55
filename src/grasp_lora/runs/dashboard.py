"""A live view on a terminal: what runs, how far it is, its losses, and the controller's last rounds."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichBars
from rich.table import Table
from rich.text import Text

from .progress import PlainProgress, Progress, QuietProgress, Task, Value, format_duration, format_values

ROUNDS = 5
"""Rounds that stay in view."""


def make_progress(quiet: bool = False, stream: TextIO | None = None) -> Progress:
    """Return a live view when `stream` (standard error) is a terminal, else plain lines; or nothing."""
    if quiet:
        return QuietProgress()
    stream = sys.stderr if stream is None else stream
    return RichProgress(Console(file=stream)) if Console(file=stream).is_terminal else PlainProgress(stream)


class RichProgress:
    """One bar per stage in progress, its values, and the last rounds; a finished stage leaves one line."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._bars = RichBars(
            SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(bar_width=24),
            MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(compact=True), TextColumn("left"),
            console=self._console, auto_refresh=False,
        )  # fmt: skip
        self._tasks: list[_RichTask] = []
        self._live: Live | None = None

    @contextmanager
    def stage(self, title: str, total: int | None = None) -> Iterator[Task]:
        """Show a bar while the block runs, then one line with its last values."""
        if self._live is None:
            self._live = Live(console=self._console, transient=True, get_renderable=self._view)
            self._live.start()
        task = _RichTask(self._bars, self._bars.add_task(title, total=total))
        self._tasks.append(task)
        ending = "stopped"
        try:
            yield task
            ending = "done"
        finally:
            took = format_duration(self._bars.tasks[self._bars.task_ids.index(task.id)].elapsed or 0.0)
            self._bars.remove_task(task.id)
            self._tasks.remove(task)
            if not self._tasks:
                self._live.stop()
                self._live = None
            self.note("  ".join(part for part in (title, format_values(task.values), f"{ending} after {took}") if part))

    def _view(self) -> RenderableType:
        """Return what is on the screen now: the bars, and the values and rounds of the innermost stage that has any."""
        parts: list[RenderableType] = [self._bars.get_renderable()]
        for task in reversed(self._tasks):
            if task.values:
                parts.append(Text(f"  {format_values(task.values | task.also)}"))
            if task.rounds:
                parts.append(_rounds(task.rounds))
            if task.values or task.rounds:
                break
        return Group(*parts)

    def note(self, text: str) -> None:
        """Print one line above the bars."""
        self._print(Text(text))

    def warn(self, text: str) -> None:
        """Print one line above the bars, marked as a warning."""
        self._print(Text(f"warning: {text}", style="yellow"))

    def result(self, title: str, **values: float) -> None:
        """Print one line above the bars."""
        self.note(f"{title}: {format_values(values)}")

    def _print(self, line: Text) -> None:
        if self._live is not None:
            self._live.refresh()  # printing draws the view again as it was last
        self._console.print(line, soft_wrap=True)


class _RichTask:
    """`values` stay in the stage's last line; `also` and `rounds` are seen only while it runs."""

    def __init__(self, bars: RichBars, task_id: TaskID) -> None:
        self._bars, self.id = bars, task_id
        self.values: dict[str, Value] = {}
        self.also: dict[str, Value] = {}
        self.rounds: deque[Mapping[str, Any]] = deque(maxlen=ROUNDS)

    def advance(self, n: int = 1, **values: Value) -> None:
        """Move the bar and renew the values below it."""
        self.values.update(values)
        self._bars.update(self.id, advance=n)

    def event(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Keep a round for the table, and what else is worth a place beside the values."""
        if kind == "round":
            self.rounds.append(fields)
            return
        names = {"step": ("epoch", "lr"), "epoch": ("dev_loss",)}.get(kind, ())
        self.also |= {name.replace("_", " "): fields[name] for name in names if name in fields}


def _rounds(rounds: deque[Mapping[str, Any]]) -> Table:
    """Return the last rounds: where the policy stands, the best candidate with its reward, and what was committed."""
    table = Table(box=None, padding=(0, 0, 0, 2))
    for name in ("round", "mean", "sigma", "best", "reward", "ratio", "density", "mask"):
        table.add_column(name, justify="right")
    for row in rounds:
        best = max(range(len(row["rewards"])), key=row["rewards"].__getitem__)
        table.add_row(
            str(row["round"]), f"{row['after']['mean']:.3f}", f"{row['after']['std']:.3f}",
            f"{row['samples'][best]:.3f}", f"{row['rewards'][best]:+.4f}",
            f"{row['after']['p']:.3f}", f"{row['density']:.3f}", "moved" if row["committed"] else "kept",
        )  # fmt: skip
    return table
