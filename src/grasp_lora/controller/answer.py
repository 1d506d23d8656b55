"""What an estimate says: the point, its interval, the curve through it."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from ..errors import check_fields
from .features import Matrix, Vector

__all__ = ["Estimate", "Glimpse", "Slice"]


@dataclass(frozen=True)
class Slice:
    """The settled curve along one axis through the best point: `grid`, `mean`, `low`, `high` (S,), nats."""

    grid: Vector
    mean: Vector
    low: Vector
    high: Vector


@dataclass(frozen=True)
class Glimpse:
    """What decides on the next probes, and the number of evaluations behind it.

    The named point, `minima` (B, D) of posterior draws, `gain` (nats) and `unsettled` are those of an `Estimate`.
    """

    best: tuple[float, ...]
    minima: Matrix
    gain: float
    unsettled: float
    evaluations: int

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types; `from_dict` restores every bit."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self)}

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> Glimpse:
        """Rebuild from `to_dict`, or from that of an `Estimate`; raises `RunError` when a field is missing."""
        check_fields(saved, cls, more=True)
        own = {f.name: saved[f.name] for f in fields(cls)}
        return cls(**{**own, "best": tuple(own["best"]), "minima": np.asarray(own["minima"], float)})


@dataclass(frozen=True)
class Estimate:
    """p_star and what is known about it.

    `best` is the point that is named, one coordinate per axis, `p_star` its first. `interval` holds p_star with
    probability `level` (bootstrap over micro-dev examples), `intervals` every coordinate; None without per-example
    losses. `grid`, `mean`, `low`, `high` (G,) are the settled curve over the first axis in nats, less its minimum, and
    its band at `level`; `further` has the same for the other axes. In nats: `noise` of one evaluation's mean,
    `noise_regret` (what noise may still cost at p_star), `slice_regret` (what noise and the choice of examples may cost
    together), `gain` (what the next probes are expected to win). `settle_rounds` is the time in which training flattens
    the curve, None where it does not, and `unsettled` the share of that still to come in the round after next.
    `minima` (B, D) are minima of posterior draws.
    """

    p_star: float
    interval: tuple[float, float] | None
    best: tuple[float, ...]
    intervals: tuple[tuple[float, float], ...] | None
    level: float
    grid: Vector
    mean: Vector
    low: Vector
    high: Vector
    further: tuple[Slice, ...]
    noise: float
    noise_regret: float
    slice_regret: float
    gain: float
    settle_rounds: float | None
    unsettled: float
    minima: Matrix
    evaluations: int

    def with_p_star(self, p_star: float) -> Estimate:
        """Return the same estimate with another rule's p_star and no interval (that rule claims none)."""
        return replace(self, p_star=p_star, best=(p_star,), interval=None, intervals=None)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self)}


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Slice):
        return {f.name: getattr(value, f.name).tolist() for f in fields(value)}
    return [_plain(v) for v in value] if isinstance(value, tuple) else value
