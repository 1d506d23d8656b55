"""Where a run stands, read from its folder: also one that another process, or another machine, is writing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..config import parse_yaml
from ..runs import Owner, RunFolder, read_events, who_works
from ..runs.folder import RESULT
from .coordinates import axis_label
from .labels import OURS, stage_label
from .records import begun

Status = Literal["running", "finished", "stopped"]
StageStatus = Literal["done", "running", "stopped", "waiting"]
_RECENT = 50
"""Steps whose pace the time that is left is reckoned from."""


@dataclass(frozen=True)
class StageState:
    """One stage of the run: what it is called and how far it is."""

    name: str
    label: str
    status: StageStatus


@dataclass(frozen=True)
class RunState:
    """A run at one moment.

    `step` of at most `total` optimizer steps of the stage `current` are done (None where a stage logs no steps);
    `values` holds its last loss, ratio and sigma; `left` is the time in seconds that the rest of that stage takes at
    its recent pace, an upper bound where it may stop early; `last_event` is the Unix time of its last sign of life.
    """

    name: str
    status: Status
    owner: Owner
    stages: tuple[StageState, ...]
    current: str | None
    step: int | None
    total: int | None
    values: Mapping[str, float]
    left: float | None
    last_event: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types."""
        stages = {stage.name: stage.status for stage in self.stages}
        return {**self.__dict__, "stages": stages, "values": dict(self.values)}


def read_state(path: str | Path) -> RunState:
    """Return where the run in `path` stands; raises `RunError` when it is no run folder."""
    folder = RunFolder.open(path)
    owner = who_works(folder.path)
    finished = (folder.path / "results.json").is_file() and owner == "nobody"
    status: Status = "finished" if finished else "stopped" if owner == "nobody" else "running"
    stages = _stages(folder, status)
    current = next((stage.name for stage in stages if stage.status in {"running", "stopped"}), None)
    events = _events(folder, current, "events.jsonl")
    steps = [event for event in events if event["kind"] == "step"]
    total = next((int(event["steps"]) for event in events if event["kind"] == "start"), None)
    step = int(steps[-1]["step"]) if steps else 0 if total is not None else None
    return RunState(
        name=folder.path.resolve().name,
        status=status,
        owner=owner,
        stages=stages,
        current=current,
        step=step,
        total=total,
        values=_values(events, _events(folder, current, "history.jsonl")),
        left=_left(steps, total) if status == "running" else None,
        last_event=_time(events[-1]) if events else None,
    )


def _stages(folder: RunFolder, status: Status) -> tuple[StageState, ...]:
    """Return the stages that the configuration asks for, and any others that are there, in their order."""
    root = folder.path / "stages"
    there = {p.name for p in root.iterdir() if p.is_dir() and begun(p)} if root.is_dir() else set()
    expected = expected_stages(parse_yaml(folder.config_yaml(), "config.yaml") or {})
    others = sorted(there - set(expected))
    states = []
    for name in (*expected, *others):
        unfinished: StageStatus = "running" if status == "running" else "stopped"
        done = (root / name / RESULT).is_file()
        states.append(
            StageState(name, stage_label(name), "done" if done else unfinished if name in there else "waiting")
        )
    return tuple(states)


def expected_stages(config: Mapping[str, Any]) -> list[str]:
    """Return the stages of a whole run with this configuration, in the order in which it does them."""
    adapters, evaluate = config.get("adapters") or {}, config.get("evaluate") or {}
    names = [f"{role}_adapter" for role in ("source", "target") if not adapters.get(role)]
    names += ["search", "finalize"]
    if ((config.get("data") or {}).get("target") or {}).get("test"):
        for rival in evaluate.get("rivals", ()):
            names += [f"rival_{rival}"] if rival in {"sequential", "merged"} else []
            names.append(f"evaluate_{rival}")
        names.append(f"evaluate_{OURS}")
        return [*names, "export", *(["deployment"] if evaluate.get("deployment") else [])]
    return [*names, "export"]


def _events(folder: RunFolder, stage: str | None, file: str) -> list[dict[str, Any]]:
    if stage is None:
        return []
    path = folder.path / "stages" / stage / file
    return read_events(path) if path.is_file() else []


def _values(events: Sequence[Mapping[str, Any]], rounds: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    found: dict[str, float] = {}
    for event in events:
        if event["kind"] == "step":
            found["loss"] = float(event["loss"])
        if event.get("dev_loss") is not None:
            found["dev loss"] = float(event["dev_loss"])
    if rounds:
        after = rounds[-1]["after"]
        found |= {"ratio": float(after["p"]), "mean": float(after["mean"]), "sigma": float(after["std"])}
        further = zip(rounds[-1].get("axes", ())[1:], rounds[-1].get("applied", ())[1:], strict=False)
        found |= {axis_label(str(name)): float(value) for name, value in further}
    return found


def _left(steps: Sequence[Mapping[str, Any]], total: int | None) -> float | None:
    recent = steps[-_RECENT:]
    if total is None or len(recent) < 2:
        return None
    first, last = _time(recent[0]), _time(recent[-1])
    if first is None or last is None:
        return None
    pace = (last - first) / (int(recent[-1]["step"]) - int(recent[0]["step"]))
    return max(pace * (total - int(steps[-1]["step"])), 0.0)


def _time(event: Mapping[str, Any]) -> float | None:
    unix = event.get("time", {}).get("unix")
    return float(unix) if unix is not None else None
