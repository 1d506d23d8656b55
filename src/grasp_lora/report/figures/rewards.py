"""Colours of rewards: grey within the noise, and three shades for gains and for losses."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..palette import GAINS
from ..records import RunRecord
from .spec import Legend

Vector = NDArray[np.float64]
_SHADES = 3


def bounds(record: RunRecord) -> Sequence[float]:
    """Return the sizes of a reward at which its shade changes: the noise, then thirds of what exceeds it."""
    return shade_bounds(np.asarray([float(r) for row in record.history for r in row["rewards"]]), noise(record))


def noise(record: RunRecord) -> float:
    """Return the noise of one evaluation in nats; 0 where it is not known (yet)."""
    return float((record.result("search").get("estimate") or {}).get("noise", 0.0))


def shade_bounds(rewards: Vector, noise: float) -> Sequence[float]:
    """Return noise, and the two borders of the thirds of the rewards' sizes above it."""
    sizes = np.abs(rewards)[np.abs(rewards) > noise]
    if not len(sizes):
        return (noise, noise, noise)
    return (noise, *(float(q) for q in np.quantile(sizes, [1 / 3, 2 / 3])))


def shade(reward: float, borders: Sequence[float]) -> str:
    """Return the colour of a reward."""
    step = sum(abs(reward) > border for border in borders)
    return GAINS[_SHADES + step] if reward > 0 else GAINS[_SHADES - step]


def legend(borders: Sequence[float]) -> Legend:
    """Return what the shades mean, in nats."""
    low, middle, high = borders
    entries = [
        ("worse-3", f"below −{high:.3f}"),
        ("worse-2", f"−{high:.3f} to −{middle:.3f}"),
        ("worse-1", f"−{middle:.3f} to −{low:.3f}"),
        ("noise", f"within the noise (±{low:.3f})" if low else "no difference"),
        ("better-1", f"{low:.3f} to {middle:.3f}"),
        ("better-2", f"{middle:.3f} to {high:.3f}"),
        ("better-3", f"above {high:.3f}"),
    ]
    return Legend("reward of a candidate, nats", entries)
