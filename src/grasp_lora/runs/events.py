"""An append-only log, one JSON object per line: a run's `events.jsonl`, the controller's `history.jsonl`.

A line is `{"seq": 0, "kind": "round", ...fields, "time": {"unix": ..., ...}}`. Wall-clock quantities live
only under `time`, so the logs of an interrupted and of an uninterrupted run are equal but for that key. A
checkpoint records `EventLog.next_seq`; going back to the checkpoint drops every later line.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ..errors import RunError
from .atomic import disk_errors, to_json

RESERVED = ("seq", "kind", "time")


class EventLog:
    """Writer of one log file; every event is on its way to the disk before `write` returns.

    Opening an existing file continues it; a last line that a kill cut short is dropped. With `keep` given,
    only the first `keep` events stay, as recorded in a checkpoint; raises `RunError` when the file holds
    fewer.
    """

    def __init__(self, path: str | Path, keep: int | None = None) -> None:
        self.path = Path(path)
        ends = _line_ends(self.path)
        self.next_seq = len(ends)
        self._size = ends[-1] if ends else 0
        with disk_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0)
            self._descriptor: int | None = os.open(self.path, flags, 0o666)
            os.ftruncate(self._descriptor, self._size)
        if keep is not None:
            self._truncate(ends, keep)

    def _truncate(self, ends: list[int], keep: int) -> None:
        if keep > len(ends):
            self.close()
            raise RunError(
                f"{self.path} holds {len(ends)} events, but the checkpoint was made after {keep}. The file "
                "was "
                "shortened or replaced; restore it, or start the run again with --overwrite."
            )
        self.next_seq, self._size = keep, ends[keep - 1] if keep else 0
        with disk_errors(self.path):
            os.ftruncate(self._open(), self._size)

    def _open(self) -> int:
        if self._descriptor is None:
            raise ValueError(f"{self.path}: this log is closed")
        return self._descriptor

    def write(
        self, kind: str, fields: Mapping[str, Any] | None = None, times: Mapping[str, float] | None = None
    ) -> int:
        """Append one event and return its sequence number.

        `fields` is what the computation decided (plain JSON types), `times` are durations in seconds; the
        wall time (`unix`) is added to them. Raises `RunError` on a full disk, without leaving half a line.
        """
        fields = fields or {}
        taken = [name for name in RESERVED if name in fields]
        if taken:
            raise ValueError(f"event field {taken[0]!r} is reserved; give another name")
        record = {
            "seq": self.next_seq,
            "kind": kind,
            **fields,
            "time": {"unix": round(time.time(), 3), **(times or {})},
        }
        self._append((to_json(record) + "\n").encode("utf-8"))
        self.next_seq += 1
        return self.next_seq - 1

    def _append(self, line: bytes) -> None:
        descriptor, written = self._open(), 0
        with disk_errors(self.path):
            try:
                while written < len(line):
                    written += os.write(descriptor, line[written:])
            except BaseException:  # also Ctrl-C: the log must stay readable
                os.ftruncate(descriptor, self._size)
                raise
        self._size += len(line)

    def sync(self) -> None:
        """Wait until the disk has every event; called before a checkpoint that counts on them."""
        with disk_errors(self.path):
            os.fsync(self._open())

    def close(self) -> None:
        """Close the file; closing twice is allowed."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_events(path: str | Path, kind: str | None = None) -> list[dict[str, Any]]:
    """Return the events of a log in order, only those of `kind` when given.

    A last line without its end (the writer was killed, or is writing now) is left out. Raises `RunError`
    when the file is missing, a line is not an event, or a sequence number is out of order.
    """
    path = Path(path)
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        raise RunError(f"{path} does not exist. Was the run started, and is the path right?") from None
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error.strerror}). Check its permissions.") from None
    events = [_parse(path, number, line) for number, line in enumerate(lines)]
    return [event for event in events if kind is None or event["kind"] == kind]


def without_times(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the events without their `time` keys: what two runs of the same computation have in common."""
    return [{key: value for key, value in event.items() if key != "time"} for event in events]


def _parse(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        event = json.loads(line)
    except ValueError:  # not JSON or not UTF-8
        event = None
    if not isinstance(event, dict) or event.get("seq") != number or not isinstance(event.get("kind"), str):
        raise RunError(
            f"{path}, line {number + 1}: not event number {number} of a log. The file was edited or "
            "damaged; restore "
            "it, or start the run again with --overwrite."
        )
    return event


def _line_ends(path: Path) -> list[int]:
    """Return the byte offset behind each whole line; raises `RunError` when a whole line is not an event."""
    if not path.exists():
        return []
    read_events(path)
    ends, position = [], 0
    for line in path.read_bytes().split(b"\n")[:-1]:
        position += len(line) + 1
        ends.append(position)
    return ends
