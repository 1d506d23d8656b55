"""Ctrl-C that loses nothing: the first asks the loop to stop after its step, the second stops at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from ..errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class InterruptFlag:
    """Whether the user asked to stop; polled after every optimizer step."""

    def __init__(self, on_request: Callable[[], None] | None = None) -> None:
        self.requested = False
        self._on_request = on_request

    def check(self, how_to_resume: str) -> None:
        """Raise `Interrupted` when a stop was requested; call it when everything is saved."""
        if self.requested:
            raise Interrupted(f"stopped on request; everything done so far is kept. {how_to_resume}")

    def handle(self, _signum: int, _frame: FrameType | None) -> None:
        """Note the first signal, and raise `KeyboardInterrupt` on the second."""
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        if self._on_request is not None:
            self._on_request()


@contextmanager
def graceful_interrupt(on_request: Callable[[], None] | None = None) -> Iterator[InterruptFlag]:
    """Catch SIGINT and SIGTERM in the block; the old handlers are back afterwards.

    `on_request` is called once, on the first signal, to tell the user what happens. Inside another such
    block the outer flag is shared; outside the main thread, where Python delivers no signals, the flag
    never rises.
    """
    if threading.current_thread() is not threading.main_thread():
        yield InterruptFlag()
        return
    outer = getattr(signal.getsignal(signal.SIGINT), "__self__", None)
    if isinstance(outer, InterruptFlag):
        yield outer
        return
    flag = InterruptFlag(on_request)
    old = {number: signal.signal(number, flag.handle) for number in SIGNALS}
    try:
        yield flag
    finally:
        for number, handler in old.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
