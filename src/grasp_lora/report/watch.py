"""Follow a run by reading its folder: a live view on a terminal, a line for each change elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ..runs.progress import PLAIN_INTERVAL, format_duration, format_values
from .state import RunState, read_state

POLL = 2.0
"""Seconds between two looks at the folder."""
_MARKS = {"done": ("✓", "green"), "running": ("▶", "bold cyan"), "stopped": ("■", "yellow"), "waiting": ("·", "dim")}
_ENDINGS = {
    "finished": "the run is finished",
    "stopped": "no process works in this folder and the run is not finished; go on with --resume",
}
Sleep = Callable[[float], None]
Clock = Callable[[], float]


def watch(path: str | Path, console: Console, *, sleep: Sleep = time.sleep, clock: Clock = time.time) -> RunState:
    """Show the run until it ends, and return its last state; raises `RunError` when `path` is no run folder."""
    if not console.is_terminal:
        return _watch_lines(path, console, sleep, clock)
    with Live(console=console, auto_refresh=False) as live:
        for state in states(path, sleep):
            live.update(view(state, clock()), refresh=True)
    return state


def states(path: str | Path, sleep: Sleep) -> Iterator[RunState]:
    """Yield the run's state every two seconds, its end last.

    A run that seems to have stopped while it is followed is looked at twice: its writer may be changing the lock.
    """
    state = read_state(path)
    while state.status == "running":
        yield state
        sleep(POLL)
        state = read_state(path)
        if state.status == "stopped":
            sleep(POLL)
            state = read_state(path)
    yield state


def _watch_lines(path: str | Path, console: Console, sleep: Sleep, clock: Clock) -> RunState:
    shown_stage, shown_at = "", float("-inf")
    for state in states(path, sleep):
        now = clock()
        if state.current != shown_stage or now - shown_at >= PLAIN_INTERVAL or state.status != "running":
            console.print(Text(line(state, now)), soft_wrap=True)
            shown_stage, shown_at = state.current or "", now
    return state


def line(state: RunState, now: float) -> str:
    """Return a state as one line: stage, steps, values, time left, or how the run ended."""
    parts = [_title(state), _count(state), format_values(state.values), _time_left(state, now)]
    if state.status in _ENDINGS:
        parts.append(_ENDINGS[state.status])
    return "  ".join(part for part in parts if part)


def view(state: RunState, now: float) -> RenderableType:
    """Return a state as a table of stages, and the current one with bar, values and time left."""
    table = Table.grid(padding=(0, 1))
    for stage in state.stages:
        mark, style = _MARKS[stage.status]
        table.add_row(Text(mark, style=style), Text(stage.label, style=style if stage.status != "done" else ""))
    parts: list[RenderableType] = [Text(f"{state.name}: {state.status}", style="bold"), table]
    if state.step is not None and state.total is not None:
        bar = Table.grid(padding=(0, 1))
        bar.add_row(ProgressBar(total=state.total, completed=state.step, width=40), Text(_count(state)))
        parts.append(bar)
    if state.values:
        parts.append(Text(format_values(state.values)))
    if state.status in _ENDINGS:
        parts.append(Text(_ENDINGS[state.status]))
    elif said := _time_left(state, now):
        parts.append(Text(said, style="dim"))
    return Group(*parts)


def _title(state: RunState) -> str:
    current = next((stage.label for stage in state.stages if stage.name == state.current), None)
    return current or state.name


def _count(state: RunState) -> str:
    if state.step is None:
        return ""
    return f"{state.step}/{state.total}" if state.total is not None else f"{state.step} steps"


def _time_left(state: RunState, now: float) -> str:
    parts = [f"{format_duration(state.left)} left at most"] if state.left else []
    if state.status == "running" and state.last_event is not None and now - state.last_event > PLAIN_INTERVAL:
        parts.append(f"last event {format_duration(now - state.last_event)} ago")
    return ", ".join(parts)
