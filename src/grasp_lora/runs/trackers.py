"""Experiment trackers beside what a person sees: the same stages and events, sent on through accelerate's trackers.

Names are `<stage>/<value>`, and the stage's optimizer step is the step. wandb and trackio want steps that never go
back, which those of several stages do; there the step is a value of its own, `<stage>/step`.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import Section, TrackerName, to_dict
from ..errors import MissingExtraError
from .folder import TRACKERS
from .progress import Progress, Task, Value

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

PROJECT = "grasp-lora"
_OWN_STEPS = ("wandb", "trackio")


def check_trackers(names: Sequence[TrackerName]) -> None:
    """Raise `MissingExtraError` for a tracker whose package is not installed."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise MissingExtraError(name, name, f"run.report_to={name}")


@contextmanager
def tracked(progress: Progress, names: Sequence[TrackerName], folder: Path, config: Section) -> Iterator[Progress]:
    """Send what stages report to the trackers too while the block runs; files of theirs go below `folder/trackers`.

    Raises `MissingExtraError` for a tracker whose package is not installed.
    """
    check_trackers(names)
    if not names:
        yield progress
        return
    with ExitStack() as stack:
        trackers = []
        for name in names:
            with redirect_stdout(sys.stderr):  # standard output is for results
                trackers.append(_start(name, folder, config))
            stack.callback(_finish, trackers[-1])
        yield TrackedProgress(progress, trackers)


def _finish(tracker: GeneralTracker) -> None:
    with redirect_stdout(sys.stderr):
        tracker.finish()


def _start(name: TrackerName, folder: Path, config: Section) -> GeneralTracker:
    from accelerate import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    PartialState()  # accelerate's trackers log through it
    own = folder / TRACKERS
    own.mkdir(exist_ok=True)
    kinds: dict[str, Any] = LOGGER_TYPE_TO_CLASS
    tracker: GeneralTracker
    if name == "tensorboard":
        tracker = kinds[name](folder.name, own)
    elif name == "mlflow":
        tracker = kinds[name](PROJECT, run_name=folder.name)
    elif name == "wandb":
        tracker = kinds[name](PROJECT, name=folder.name, dir=str(own))
    else:
        tracker = kinds[name](PROJECT, name=folder.name)
    tracker.start()
    tracker.store_init_configuration(_flat(to_dict(config)))
    return tracker


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Value]:
    """Return nested settings as `section.key`, in the types that every tracker takes."""
    flat: dict[str, Value] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, (int, float, str)) else str(value)
    return flat


class TrackedProgress:
    """A progress display with trackers behind it."""

    def __init__(self, shown: Progress, trackers: Sequence[GeneralTracker]) -> None:
        self._shown, self._trackers = shown, trackers

    @contextmanager
    def stage(self, title: str, total: int | None = None) -> Iterator[Task]:
        """Show a stage and track what it reports."""
        with self._shown.stage(title, total) as task:
            yield _TrackedTask(self, task, title.replace(" ", "_"))

    def note(self, text: str) -> None:
        """Show a line."""
        self._shown.note(text)

    def warn(self, text: str) -> None:
        """Show a warning."""
        self._shown.warn(text)

    def result(self, title: str, **values: float) -> None:
        """Show what a stage found, and track it."""
        self._shown.result(title, **values)
        self.send(title.replace(" ", "_"), values, None)

    def send(self, stage: str, values: Mapping[str, float], step: int | None) -> None:
        """Send values of a stage to every tracker."""
        named = {f"{stage}/{name}": value for name, value in values.items()}
        for tracker in self._trackers:
            if tracker.name in _OWN_STEPS:
                tracker.log(named if step is None else {**named, f"{stage}/step": step})
            else:
                tracker.log(dict(named), step=step)


class _TrackedTask:
    def __init__(self, progress: TrackedProgress, shown: Task, stage: str) -> None:
        self._progress, self._shown, self._stage = progress, shown, stage
        self._step = 0

    def advance(self, n: int = 1, **values: Value) -> None:
        """Show progress."""
        self._shown.advance(n, **values)

    def event(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Show and track a step, an epoch or a round."""
        self._shown.event(kind, fields)
        self._step = int(fields.get("step", self._step))
        values = _of_round(fields) if kind == "round" else {k: v for k, v in fields.items() if k != "step"}
        self._progress.send(self._stage, values, self._step)


def _of_round(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a round: where the policy stands, what was committed, and every candidate."""
    rewards: list[float] = row["rewards"]
    after, baseline = row["after"], row["baseline"]
    values = {
        "ratio": after["p"], "mean": after["mean"], "sigma": after["std"],
        "density": row["density"], "flipped": row["flipped"], "baseline_loss": sum(baseline) / len(baseline),
        "reward_mean": sum(rewards) / len(rewards), "reward_best": max(rewards),
    }  # fmt: skip
    # Further coordinates of the committed point, where the policy has any.
    values |= {
        axis.replace(":", "_"): x for axis, x in list(zip(row.get("axes", ()), row.get("applied", ()), strict=True))[1:]
    }
    for place, (sample, reward) in enumerate(zip(row["samples"], rewards, strict=True), start=1):
        values |= {f"sample_{place}": sample, f"reward_{place}": reward}
    return values
