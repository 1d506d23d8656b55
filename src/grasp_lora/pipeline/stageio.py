"""What a stage needs beside its work: a place for checkpoints and logs, a progress display, and the stop request."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import Interrupted
from ..probing.memory import GpuPeak
from ..runs import EventLog, Progress, QuietProgress, load_checkpoint, save_checkpoint
from ..runs.progress import Task
from ..training import Plumbing, TrainingLoop


class StageIO:
    """Checkpoints, logs and progress of one stage.

    Without a folder nothing is written (the Python API on a user's own objects). With one, `events.jsonl` and, in a
    search, `history.jsonl` grow while the stage runs, and the stage goes on from its last checkpoint.
    """

    def __init__(
        self,
        name: str,
        folder: Path | None = None,
        progress: Progress | None = None,
        stop_requested: Callable[[], bool] = lambda: False,
        checkpoint_every: int = 50,
        judge: Callable[[int, float], bool] = lambda _epoch, _loss: False,
    ) -> None:
        self.name, self.folder = name, folder
        self.progress: Progress = progress or QuietProgress()
        self._stop_requested, self._every, self._judge = stop_requested, checkpoint_every, judge
        self._events: EventLog | None = None
        self._history: EventLog | None = None
        self._task: Task | None = None
        self._shown: dict[str, Any] = {}

    @property
    def _checkpoints(self) -> Path:
        if self.folder is None:
            raise ValueError("this stage has no folder")
        return self.folder / "checkpoints"

    def check_stop(self) -> None:
        """Raise `Interrupted` when the user asked to stop; for work that keeps no checkpoint."""
        if self._stop_requested():
            raise Interrupted(f"stopped during {self.name}; what was done before is kept. Go on with --resume.")

    def plumbing(self) -> Plumbing:
        """Return what a training loop reports to."""
        return Plumbing(
            name=self.name,
            log=self._log,
            save=self._save if self.folder else None,
            poll=self._stop_requested,
            show=self._show,
            judge=self._judge,
            checkpoint_every=self._every,
        )

    @contextmanager
    def running(self, loop: TrainingLoop, total: int) -> Iterator[None]:
        """Open logs and display around `loop.run()`, after going back to the stage's last checkpoint, if any."""
        try:
            if self.folder is not None:
                self._restore(loop, self.folder)
            self._log_start(total)
            device = loop.bank.values.device
            peak = GpuPeak(device) if device.type == "cuda" else None
            with self.progress.stage(self.name.replace("_", " "), total) as task:
                self._task = task
                task.advance(loop.position.step)
                yield
            if peak is not None:
                self._log("memory", {"peak_bytes": peak.bytes()})
        finally:
            self._task = None
            for log in (self._events, self._history):
                if log is not None:
                    log.close()
            self._events = self._history = None

    def _log_start(self, total: int) -> None:
        """Say once, before the first step, how many there will be at most, for who follows the log."""
        if self._events is not None and self._events.next_seq == 0:
            self._events.write("start", {"steps": total})

    def _restore(self, loop: TrainingLoop, folder: Path) -> None:
        checkpoint = load_checkpoint(self._checkpoints)
        events, rounds = 0, 0
        if checkpoint is not None:
            for notice in checkpoint.notices:
                self.progress.warn(notice)
            loop.load(checkpoint.tensors, checkpoint.state["loop"])
            events, rounds = checkpoint.state["events"], checkpoint.state["rounds"]
            self.progress.note(f"{self.name}: going on after step {checkpoint.step}")
        self._events = EventLog(folder / "events.jsonl", keep=events)
        self._history = EventLog(folder / "history.jsonl", keep=rounds) if self._keeps_history(folder) else None

    def _keeps_history(self, folder: Path) -> bool:
        return self.name == "search" or (folder / "history.jsonl").exists()

    def _save(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        if self._events is None:
            raise ValueError("a checkpoint outside of `running`")
        self._events.sync()
        rounds = 0
        if self._history is not None:
            self._history.sync()
            rounds = self._history.next_seq
        step = int(state["position"]["step"])
        save_checkpoint(
            self._checkpoints,
            step,
            tensors,
            {"loop": state, "events": self._events.next_seq, "rounds": rounds},
        )

    def _log(self, kind: str, values: dict[str, Any]) -> None:
        if self._events is not None:
            self._events.write(kind, values)
        if self._task is not None:
            self._task.event(kind, values)

    def _show(self, **values: Any) -> None:
        self._shown |= values
        if self._task is not None:
            self._task.advance(1, **self._shown)

    def record_round(self, row: dict[str, Any]) -> None:
        """Append one round of the controller to the history, while the run goes on."""
        self._shown |= {"ratio": row["after"]["p"], "sigma": row["after"]["std"]}
        if self._task is not None:
            self._task.event("round", row)
        if self._history is not None:
            times = row["time"]
            self._history.write("round", {k: v for k, v in row.items() if k != "time"}, times)
