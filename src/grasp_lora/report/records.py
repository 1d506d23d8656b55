"""One run folder, read once. A run that is unfinished or lacks parts is read as far as it goes, and that is said."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from ..config import Config, parse_yaml, to_dict
from ..errors import ConfigError, RunError
from ..runs import RunFolder, StageFolder, portable, read_events
from ..runs.folder import RESULT
from .labels import OURS, stage_label

Row = Mapping[str, Any]
T = TypeVar("T")
_EVALUATION = "evaluate_"
_ABSENT = object()


@dataclass(frozen=True)
class RunRecord:
    """What a run folder holds. No path of the machine is in it: values are as `portable` leaves them.

    `stages` maps every stage that was begun to its result, None while it is not done; `events`, `history` and
    `predictions` are the lines of its logs; `finished` says whether the whole run ended; `missing` names in whole
    sentences what a finished run would have and this one has not.
    """

    name: str
    config: Mapping[str, Any]
    manifest: Mapping[str, Any]
    stages: Mapping[str, Row | None]
    events: Mapping[str, tuple[Row, ...]]
    history: tuple[Row, ...]
    predictions: Mapping[str, tuple[Row, ...]]
    finished: bool
    missing: tuple[str, ...]

    def setting(self, dotted: str) -> Any:
        """Return a setting by its dotted name; the package's default where the run's file does not name it."""
        for tree in (self.config, to_dict(Config())):
            node: Any = tree
            for part in dotted.split("."):
                node = node.get(part, _ABSENT) if isinstance(node, Mapping) else _ABSENT
            if node is not _ABSENT:
                return node
        raise KeyError(dotted)

    def result(self, stage: str) -> Row:
        """Return a stage's result; empty while it is not done."""
        return self.stages.get(stage) or {}

    @property
    def systems(self) -> tuple[str, ...]:
        """Systems that were scored, in the order in which they were asked for, ours last."""
        scored = [name.removeprefix(_EVALUATION) for name, row in self.stages.items() if _scores(name, row)]
        asked = [name for name in self.setting("evaluate.rivals") if name in scored]
        others = [name for name in scored if name not in asked and name != OURS]
        return (*asked, *others, *(name for name in scored if name == OURS))

    def scores(self, system: str) -> dict[str, Row]:
        """Return a system's scores by name."""
        rows = self.result(f"{_EVALUATION}{system}").get("scores", ())
        return {row["name"]: _numeric(row) for row in rows}


def _numeric(row: Row) -> Row:
    """Return a score whose numbers are numbers: JSON holds those that are not finite as words."""
    value, interval = row.get("value"), row.get("interval")
    ends = [float(end) for end in interval] if interval else None
    return {**row, "value": None if value is None else float(value), "interval": ends}


def read_run(path: str | Path) -> RunRecord:
    """Read a run folder, which may be one that is being written; raises `RunError` when it is none."""
    folder = RunFolder.open(path)
    notes: list[str] = []
    stages = {p.name: _noted(StageFolder(p).done, None, notes) for p in _stage_folders(folder.path)}
    events = {name: tuple(_log(folder.path / "stages" / name / "events.jsonl", notes)) for name in stages}
    finished = (folder.path / "results.json").is_file()
    history = _log(folder.path / "stages" / "search" / "history.jsonl", notes)
    predictions = {
        name.removeprefix(_EVALUATION): _lines(folder.path / "stages" / name / "predictions.jsonl", notes)
        for name, row in stages.items()
        if name.startswith(_EVALUATION) and row is not None
    }
    record = RunRecord(
        name=folder.path.resolve().name,
        config=_noted(lambda: _mapping(parse_yaml(folder.config_yaml(), "config.yaml")), {}, notes),
        manifest=_noted(lambda: _mapping(folder.manifest()), {}, notes),
        stages=_in_order(stages),
        events=events,
        history=tuple(history),
        predictions=predictions,
        finished=finished,
        missing=(),
    )
    return _with_missing(record, notes)


def begun(path: Path) -> bool:
    """Return whether anything is in a stage's folder, which its writer may be making anew just now."""
    try:
        return any(path.iterdir())
    except FileNotFoundError:
        return False


def _stage_folders(path: Path) -> list[Path]:
    stages = path / "stages"
    return [p for p in sorted(stages.iterdir()) if p.is_dir() and begun(p)] if stages.is_dir() else []


def _in_order(stages: Mapping[str, Row | None]) -> dict[str, Row | None]:
    """Return the stages in the order of the method: adapters, search, final run, rivals, evaluation, export."""
    first = ["source_adapter", "target_adapter", "search", "finalize"]
    last = ["export", "deployment"]
    between = [name for name in stages if name not in first and name not in last]
    between.sort(key=lambda name: (name.startswith(_EVALUATION), name))
    return {name: stages[name] for name in (*first, *between, *last) if name in stages}


def _scores(name: str, row: Row | None) -> bool:
    return name.startswith(_EVALUATION) and row is not None and bool(row.get("scores"))


def _mapping(value: Any) -> Mapping[str, Any]:
    return portable(value) if isinstance(value, Mapping) else {}


def _noted(read: Callable[[], T], absent: T, notes: list[str]) -> T:
    """Return what `read` does; a file that is missing or damaged becomes a note and `absent`."""
    try:
        return read()
    except (RunError, ConfigError) as error:
        notes.append(portable(str(error)))
        return absent


def _log(path: Path, notes: list[str]) -> list[dict[str, Any]]:
    return _noted(lambda: read_events(path), [], notes) if path.is_file() else []


def _lines(path: Path, notes: list[str]) -> tuple[Row, ...]:
    """Return the rows of a file of JSON lines; one that is missing or damaged becomes a note."""
    if not path.is_file():
        return ()
    try:
        return tuple(json.loads(line) for line in path.read_bytes().splitlines() if line.strip())
    except (OSError, ValueError) as error:
        notes.append(f"{path.parent.name}/{path.name} cannot be read ({type(error).__name__}).")
        return ()


def _with_missing(record: RunRecord, notes: list[str]) -> RunRecord:
    found = list(notes)
    for name, row in record.stages.items():
        if row is None:
            found.append(f"The stage “{stage_label(name)}” has begun and has no {RESULT} yet.")
    if not record.stages:
        found.append("No stage was begun yet.")
    wanted = {"search": "no ratio was learned", "finalize": "there is no final run", "export": "nothing was exported"}
    found += [
        f"The stage “{stage_label(name)}” was not begun: {what}."
        for name, what in wanted.items()
        if name not in record.stages and record.stages
    ]
    if record.result("search") and "estimate" not in record.result("search"):
        found.append("The search kept no loss curve (an older version wrote it), so none is drawn.")
    if OURS not in record.systems and "finalize" in record.stages:
        found.append("GRASP was not scored on a test split, so it is compared with nothing.")
    return replace(record, missing=tuple(dict.fromkeys(found)))
