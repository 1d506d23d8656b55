"""CUDA graphs of functions on fixed buffers."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import torch
from torch import Tensor


class CudaRecorder:
    """Records CUDA graphs on `device` that share one memory pool: only one of them runs at a time.

    Whatever GPU is current: a stream of another one would record nothing, and the work would run as it is.

    PyTorch's own context collects garbage and gives all unused memory back before each recording, which takes longer
    than the recording and has the next passes ask for the memory anew. Here that is done only when memory is short.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        with torch.cuda.device(device):
            self._pool = torch.cuda.graph_pool_handle()
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def __call__(self, work: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        """Record `work` on a stream of its own."""
        torch.cuda.synchronize(self._device)
        with torch.cuda.device(self._device):
            found = self._fitting(work)
            if found is None:  # out of the handler, whose error holds on to all that the attempt had made
                gc.collect()
                torch.cuda.empty_cache()
                found = self._recorded(work)
        return found

    def _fitting(self, work: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor] | None:
        try:
            return self._recorded(work)
        except torch.OutOfMemoryError:
            return None

    def _recorded(self, work: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with _no_collection(), torch.cuda.stream(self._stream):
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                result = work()
            except BaseException:
                with suppress(RuntimeError):  # the recording is broken, which the error that is under way explains
                    graph.capture_end()
                raise
            graph.capture_end()
        current.wait_stream(self._stream)
        return graph.replay, result


@contextmanager
def _no_collection() -> Iterator[None]:
    """Collect no garbage inside: freeing another graph's memory would break a recording."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
