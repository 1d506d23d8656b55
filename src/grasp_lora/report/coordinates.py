"""What a run learned and probed, one coordinate per axis: the ratio, and strengths where the policy has them.

A history of the ratio alone has no axes in it; its rows are read as points of one coordinate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .records import Row, RunRecord

RATIO = "ratio"
_WORDS = {"ratio": "prune ratio", "strength": "strength", "weight": "weight"}


@dataclass(frozen=True)
class Learned:
    """One coordinate of the learned point, with its interval where one was estimated."""

    name: str
    value: float
    interval: tuple[float, float] | None

    @property
    def label(self) -> str:
        """What it is called."""
        return axis_label(self.name)


@dataclass(frozen=True)
class Curve:
    """The settled loss along one axis through the learned point, nats; the band may be absent."""

    grid: Sequence[float]
    mean: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


def axis_label(name: str) -> str:
    """Return what an axis (`ratio`, `strength`, `ratio:NAME`, `weight:NAME`) is called."""
    kind, _, owner = name.partition(":")
    words = _WORDS.get(kind, kind)
    return f"{words} of {owner}" if owner else words


def axes(record: RunRecord) -> tuple[str, ...]:
    """Return the names of the axes of a run's policy."""
    for row in record.history:
        if row.get("axes"):
            return tuple(str(name) for name in row["axes"])
    return (RATIO,)


def learned(record: RunRecord) -> tuple[Learned, ...]:
    """Return the learned point, one coordinate per axis; empty while nothing is learned."""
    found = record.result("search")
    if "p_star" not in found:
        return ()
    names = axes(record)
    values = found.get("best") or [found["p_star"]]
    intervals = found.get("intervals") or [found.get("interval")]
    padded = [*intervals, *[None] * (len(names) - len(intervals))]
    return tuple(
        Learned(name, float(value), (float(pair[0]), float(pair[1])) if pair else None)
        for name, value, pair in zip(names, values, padded, strict=False)
    )


def points(row: Row) -> list[list[float]]:
    """Return the candidates of a round, (C, D)."""
    if row.get("points"):
        return [[float(x) for x in point] for point in row["points"]]
    return [[float(sample)] for sample in row["samples"]]


def means(row: Row) -> list[float]:
    """Return the policy's mean after a round, (D,)."""
    return [float(x) for x in row.get("means") or [row["after"]["mean"]]]


def spreads(row: Row) -> list[float]:
    """Return the policy's spread after a round, (D,)."""
    return [float(x) for x in row.get("stds") or [row["after"]["std"]]]


def committed(history: Sequence[Row]) -> list[list[float]]:
    """Return the point at which the adapters stood before the first round, and after each, (rounds + 1, D)."""
    held = [float(x) for x in history[0].get("held") or [0.0]] if history else []
    found = [held]
    for row in history:
        if row.get("applied"):
            held = [float(x) for x in row["applied"]]
        elif row.get("mask_ratio") is not None:
            held = [float(row["mask_ratio"])]
        found.append(held)
    return found


def curves(record: RunRecord) -> tuple[Curve, ...]:
    """Return the recorded curves, the first axis first; empty where none were recorded."""
    estimate: Mapping[str, Any] = record.result("search").get("estimate") or {}
    found = [_curve(part) for part in (estimate, *estimate.get("further", ()))]
    known: list[Curve] = []
    for curve in found:
        if curve is None:
            break
        known.append(curve)
    return tuple(known)


def _curve(part: Mapping[str, Any]) -> Curve | None:
    grid, mean = part.get("grid", ()), part.get("mean", ())
    if len(grid) < 2 or len(grid) != len(mean):
        return None
    low, high = part.get("low", ()), part.get("high", ())
    banded = len(low) == len(grid) == len(high)
    return Curve(grid, mean, low if banded else (), high if banded else ())
