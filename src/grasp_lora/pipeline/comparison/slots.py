"""Where units run: slots, each a process of its own that does one unit after the other on one GPU (or the CPU).

A process loads the base model once. When it dies, the unit that it was at fails, and the slot gets a new process; the
other slots notice nothing.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from ...config import ModelConfig
from ..models import resolve_device
from .units import Unit
from .worker import Done, run_unit, warm_up

T = TypeVar("T")
_stop: Any = None  # the event of a worker process, set once by its initializer
VISIBLE, THREADS = "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS"


def _begin_process(stop: Any) -> None:
    global _stop
    _stop = stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to all; the first process decides


def _in_process(unit: Unit) -> Done:
    return run_unit(unit, _stop.is_set)


def gpus_of(model: ModelConfig) -> list[str]:
    """Return the GPUs to share out, as `CUDA_VISIBLE_DEVICES` names them; none on a CPU, or where one is configured."""
    if model.device not in ("auto", "cuda") or resolve_device(model.device).type != "cuda":
        return []
    named = [name.strip() for name in os.environ.get(VISIBLE, "").split(",") if name.strip()]
    return named or [str(index) for index in range(torch.cuda.device_count())]


@contextmanager
def environment(name: str, value: str | None) -> Iterator[None]:
    """Set a variable for the processes that are started meanwhile; None leaves it."""
    before = os.environ.get(name)
    if value is not None:
        os.environ[name] = value
    try:
        yield
    finally:
        if value is not None and before is None:
            del os.environ[name]
        elif value is not None and before is not None:
            os.environ[name] = before


def threads_of(jobs: int) -> str | None:
    """Return how many threads each of several processes uses: its share of the cores, unless the user has said."""
    if jobs == 1 or THREADS in os.environ:
        return None
    return str(max(1, (os.cpu_count() or 1) // jobs))


class Slots:
    """`jobs` slots; a single one is a thread of this process. GPUs are dealt out in turn."""

    def __init__(self, jobs: int, model: ModelConfig) -> None:
        self._model = model
        self._context = multiprocessing.get_context("spawn")
        self._event: Any = threading.Event() if jobs == 1 else self._context.Event()
        gpus = gpus_of(model) if jobs > 1 else []
        self._gpus = [gpus[slot % len(gpus)] if gpus else None for slot in range(jobs)]
        self._threads = threads_of(jobs)
        self._executors: dict[int, Executor] = {}
        self._free = list(range(jobs))
        self._at: dict[Future[Done], int] = {}

    @property
    def free(self) -> int:
        """Number of slots without a unit."""
        return len(self._free)

    @property
    def stopping(self) -> bool:
        """Whether a stop was asked for."""
        return bool(self._event.is_set())

    def stop(self) -> None:
        """Let the running units save a checkpoint and end."""
        self._event.set()

    def warm_up(self, count: int) -> None:
        """Start the processes of the first `count` slots and load the base model there, ahead of their first units."""
        if len(self._gpus) > 1:
            for slot in self._free[:count]:
                self._submit(slot, warm_up, self._model)

    def submit(self, unit: Unit) -> Future[Done]:
        """Start a unit in a free slot."""
        slot = self._free.pop(0)
        if len(self._gpus) == 1:
            future = self._submit(slot, run_unit, unit, self._event.is_set)
        else:
            try:
                future = self._submit(slot, _in_process, unit)
            except BrokenProcessPool:  # its process died while it had no unit
                del self._executors[slot]
                future = self._submit(slot, _in_process, unit)
        self._at[future] = slot
        return future

    def _submit(self, slot: int, work: Callable[..., T], *given: Any) -> Future[T]:
        # The process of a slot starts at its first work, with the environment of that moment.
        with environment(VISIBLE, self._gpus[slot]), environment(THREADS, self._threads):
            return self._executor(slot).submit(work, *given)

    def ended(self, future: Future[Done]) -> None:
        """Take the slot of a unit that has ended back, with a new process if the old one died."""
        slot = self._at.pop(future)
        if isinstance(future.exception(), BrokenProcessPool):
            self._executors.pop(slot).shutdown(wait=False)
        self._free.append(slot)

    def close(self) -> None:
        """End all processes once their units have ended."""
        self._event.set()
        for executor in self._executors.values():
            executor.shutdown(wait=False, cancel_futures=True)
        for executor in self._executors.values():
            executor.shutdown()
        self._executors.clear()

    def _executor(self, slot: int) -> Executor:
        if slot not in self._executors:
            self._executors[slot] = (
                ThreadPoolExecutor(1)
                if len(self._gpus) == 1
                else ProcessPoolExecutor(
                    1, mp_context=self._context, initializer=_begin_process, initargs=(self._event,)
                )
            )
        return self._executors[slot]
