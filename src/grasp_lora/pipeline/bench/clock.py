"""Seconds of a call and of what happens in between, and the two ceilings of a machine."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ...rng import torch_generator

_COPY_BYTES = {"cpu": 1 << 27, "cuda": 1 << 31}  # far more than caches hold


@dataclass(frozen=True)
class Timing:
    """Seconds of repeated calls; `warm_up` are those before, which do not count.

    `cpu` holds the processor's seconds of the repeats where they were taken: they leave out the time in which other
    programs had the machine.
    """

    warm_up: tuple[float, ...]
    repeats: tuple[float, ...]
    cpu: tuple[float, ...] = ()

    @property
    def median(self) -> float:
        """Return the median of the repeats."""
        return statistics.median(self.repeats)

    @property
    def mean(self) -> float:
        """Return the mean of the repeats."""
        return statistics.fmean(self.repeats)

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as JSON values, with the spread: smallest, largest and quartiles of the repeats."""
        quartiles = statistics.quantiles(self.repeats, n=4) if len(self.repeats) > 1 else [self.median] * 3
        return {
            "median_s": self.median, "mean_s": self.mean, "min_s": min(self.repeats), "max_s": max(self.repeats),
            "quartiles_s": [quartiles[0], quartiles[2]], "repeats": len(self.repeats), "repeats_s": list(self.repeats),
            "warm_up_s": list(self.warm_up), "cpu_s": list(self.cpu),
        }  # fmt: skip


def wait(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def now(device: torch.device) -> float:
    """Return the clock in seconds once the device has done what it was given."""
    wait(device)
    return time.perf_counter()


def settle(device: torch.device) -> None:
    """Let go of what earlier parts have left: recorded passes hold memory until they are collected."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def timed(call: Callable[[], object], repeats: int, device: torch.device, warm_up: int = 1) -> Timing:
    """Time `call`, `warm_up` times and `repeats` times; it waits for the device before and after each call only."""
    return in_turn([call], repeats, device, warm_up)[0]


def in_turn(
    calls: Sequence[Callable[[], object]],
    repeats: int,
    device: torch.device,
    warm_up: int = 1,
    before: Callable[[], object] = lambda: None,
) -> list[Timing]:
    """Time several calls in turn, so that a change of the machine's load meets all of them.

    `before` is called before each call and is not on the clock.
    """
    rounds = [[_once(call, device, before) for call in calls] for _ in range(repeats + warm_up)]
    return [_timing(column, warm_up) for column in zip(*rounds, strict=True)]


def _timing(pairs: Sequence[tuple[float, float]], warm_up: int) -> Timing:
    walls, used = [wall for wall, _ in pairs], [cpu for _, cpu in pairs]
    return Timing(tuple(walls[:warm_up]), tuple(walls[warm_up:]), tuple(used[warm_up:]))


def _once(call: Callable[[], object], device: torch.device, before: Callable[[], object]) -> tuple[float, float]:
    """Return the seconds of the wall clock and of the processor."""
    before()
    start, cpu = now(device), time.process_time()
    call()
    return now(device) - start, time.process_time() - cpu


@dataclass
class Marks:
    """Moments of a stage by kind: events of the device, so that marking a moment never makes the host wait."""

    device: torch.device
    _kinds: list[str] = field(default_factory=list)
    _moments: list[Any] = field(default_factory=list)

    def mark(self, kind: str) -> None:
        """Mark this moment of the device's work (of the host's clock without a GPU)."""
        self._kinds.append(kind)
        if self.device.type != "cuda":
            self._moments.append(time.perf_counter())
            return
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self.device))
        self._moments.append(event)

    def durations(self) -> list[tuple[str, float]]:
        """Return every mark but the first with the seconds since the one before it."""
        wait(self.device)
        pairs = zip(self._moments, self._moments[1:], strict=False)
        return [(kind, self._between(a, b)) for kind, (a, b) in zip(self._kinds[1:], pairs, strict=True)]

    def _between(self, first: Any, second: Any) -> float:
        return float(first.elapsed_time(second)) / 1e3 if self.device.type == "cuda" else float(second - first)


@dataclass(frozen=True)
class Ceilings:
    """What the machine gives at most: FLOP per second of a matrix product, bytes per second of a large copy."""

    flops: float
    bytes: float

    def seconds(self, flops: float, moved: float) -> float:
        """Return the least time in which so many operations can be done and so many bytes moved."""
        return max(flops / self.flops, moved / self.bytes)


def measure_rate(side: int, dtype: torch.dtype, device: torch.device, repeats: int = 3) -> float:
    """Return the FLOP per second of a square product of random matrices, by the median of `repeats`."""
    generator = torch_generator(0, "bench", "matrix")
    a, b = (torch.randn(side, side, generator=generator).to(device, dtype) for _ in range(2))
    return 2.0 * side**3 / timed(lambda: a @ b, repeats, device, warm_up=3).median


def measure_ceilings(side: int, dtype: torch.dtype, device: torch.device, repeats: int = 10) -> Ceilings:
    """Measure a square product of random matrices and a copy far larger than the caches; medians of `repeats`."""
    source = torch.ones(_COPY_BYTES[device.type] // 4, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    copy = timed(lambda: target.copy_(source), repeats, device, warm_up=3).median
    return Ceilings(measure_rate(side, dtype, device, repeats), 2.0 * source.nbytes / copy)
