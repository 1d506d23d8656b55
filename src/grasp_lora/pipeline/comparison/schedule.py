"""Units side by side: processes that each load the base model once, in the order their adapters become ready.

A unit that fails is recorded and its dependants with it; everything else goes on. A stop request lets running units
save a checkpoint and starts no new ones.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ...errors import GraspError, Interrupted
from ...runs import Progress, write_text_atomic
from ...runs.progress import Task
from .units import Unit
from .worker import Done, run_unit

_stop: Any = None  # the event of a worker process, set once by its initializer
_LOOK_EVERY = 0.5  # seconds between two looks at the stop request
TRACE = "traceback.txt"


def _begin_process(stop: Any) -> None:
    global _stop
    _stop = stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to all; the first process decides


def _in_process(unit: Unit) -> Done:
    return run_unit(unit, _stop.is_set)


@contextmanager
def _threads_each(jobs: int) -> Iterator[None]:
    """Let each new process use its share of the cores, unless the user has said how many."""
    if jobs == 1 or "OMP_NUM_THREADS" in os.environ:
        yield
        return
    os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // jobs))
    try:
        yield
    finally:
        del os.environ["OMP_NUM_THREADS"]


@dataclass
class Pool:
    """Where units run: one at a time in a thread of this process, or `jobs` at once in processes of their own."""

    jobs: int
    progress: Progress
    stop_requested: Callable[[], bool]
    results: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    failures: dict[str, Done] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._event: Any = threading.Event() if self.jobs == 1 else self._context.Event()
        self._executor: Executor | None = None
        self._origin: dict[Future[Done], Executor] = {}

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self._event.set()
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)

    def run(self, units: Sequence[Unit], task: Task) -> None:
        """Do all units that are not done yet, adapters before what is made from them.

        Raises `Interrupted` when a stop was requested, after the running units have ended.
        """
        with _threads_each(self.jobs):
            self._run([unit for unit in units if unit.key not in self.results], task)

    def _run(self, waiting: list[Unit], task: Task) -> None:
        running: dict[Future[Done], Unit] = {}
        while waiting or running:
            if self.stop_requested():
                self._event.set()
                waiting = []
            self._start(waiting, running, task)
            if not running:
                continue
            finished, _ = wait(running, timeout=_LOOK_EVERY, return_when=FIRST_COMPLETED)
            for future in finished:
                self._end(running.pop(future), future, task)
        if self._event.is_set():
            raise Interrupted("stopped; what is done is kept. Go on with --resume.")

    def _start(self, waiting: list[Unit], running: dict[Future[Done], Unit], task: Task) -> None:
        """Start what is ready while there is room, and give up what waits for something that failed."""
        for unit in list(waiting):
            broken = [key for key in unit.waits if key in self.failures]
            if broken:
                waiting.remove(unit)
                cause = self.failures[broken[0]]
                self._fail(unit, Done(unit.key, None, f"its {broken[0]} failed: {cause.error}", cause.exit_code), task)
            elif len(running) < self.jobs and all(key in self.results for key in unit.waits):
                waiting.remove(unit)
                running[self._submit(unit)] = unit

    def _submit(self, unit: Unit) -> Future[Done]:
        executor = self._executor = self._executor or self._new_executor()
        try:
            if self.jobs == 1:
                future = executor.submit(run_unit, unit, self._event.is_set)
            else:
                future = executor.submit(_in_process, unit)
        except BrokenProcessPool:  # a process died since the last look; its unit is told by its own future
            self._executor = None
            return self._submit(unit)
        self._origin[future] = executor
        return future

    def _new_executor(self) -> Executor:
        if self.jobs == 1:
            return ThreadPoolExecutor(1)
        return ProcessPoolExecutor(
            self.jobs, mp_context=self._context, initializer=_begin_process, initargs=(self._event,)
        )

    def _end(self, unit: Unit, future: Future[Done], task: Task) -> None:
        error, origin = future.exception(), self._origin.pop(future)
        if isinstance(error, BrokenProcessPool):
            self._executor = None if origin is self._executor else self._executor
            died = "a process of the comparison died, perhaps for lack of memory. Lower compare.jobs and use --resume"
            self._fail(unit, Done(unit.key, None, f"{died}.", GraspError.exit_code), task)
        elif error is not None:
            write_text_atomic(unit.path / TRACE, "".join(traceback.format_exception(error)))
            text = f"{type(error).__name__}: {error} (a defect; see {unit.path / TRACE})"
            self._fail(unit, Done(unit.key, None, text, GraspError.exit_code), task)
        else:
            done = future.result()
            if done.result is not None:
                self.results[unit.key] = done.result
                task.advance(1)
                self.progress.note(f"{unit.words}: {_shown(done.result)}")
            elif not done.interrupted:
                self._fail(unit, done, task)

    def _fail(self, unit: Unit, done: Done, task: Task) -> None:
        self.failures[unit.key] = done
        task.advance(1)
        self.progress.warn(f"{unit.words}: failed: {done.error}")


def _shown(result: Mapping[str, Any]) -> str:
    """Return a unit's result in a few words."""
    loss = next((row["value"] for row in result.get("scores", ()) if row["name"] == "loss"), None)
    ratio = result.get("ratio")
    words = [f"test loss {loss:.3f}"] if loss is not None else []
    words += [f"ratio {ratio:.3f}"] if ratio is not None else []
    return ", ".join([*words, f"{result['cost']['seconds']:.1f} s"])
