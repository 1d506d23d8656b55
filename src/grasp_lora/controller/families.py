"""Families of made-up landscapes: what a controller must hold on beside the files that it was tuned on.

Every landscape is drawn from its family's law by (split, index), so that the development part may be looked at freely
and the held-out part, from other streams, only at the end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..rng import numpy_generator
from .landscape import Landscape

Split = Literal["development", "held-out"]
Rng = np.random.Generator
Vector = NDArray[np.float64]
GRID: Vector = np.linspace(0.0, 1.0, 41)


def _valley(rng: Rng, low: float, high: float) -> tuple[float, Vector]:
    """Return a minimum and a valley around it: own steepness on each side, own power, 0.02 to 0.15 nats deep."""
    best = rng.uniform(low, high)
    left, right = rng.uniform(0.02, 0.15) / 0.5**2, rng.uniform(0.02, 0.3) / 0.4**2
    power = rng.uniform(1.5, 2.5)
    away = np.abs(GRID - best)
    return best, np.where(best > GRID, left, right) * away**power


def _landscape(name: str, loss: Vector, drift: float = 0.004) -> Landscape:
    rounded = tuple(float(x) for x in 2.0 + loss)
    return Landscape(name, tuple(float(x) for x in GRID), rounded, 16, 0.8, 0.05, 0.01, drift)


def _plain(rng: Rng, name: str) -> Landscape:
    return _landscape(name, _valley(rng, 0.15, 0.85)[1])


def _noisy(rng: Rng, name: str) -> Landscape:
    return replace(_plain(rng, name), noise_sd=rng.uniform(0.02, 0.04))


def _drifting(rng: Rng, name: str) -> Landscape:
    return replace(_plain(rng, name), drift_per_round=rng.choice([-1, 1]) * rng.uniform(0.01, 0.03))


def _two_valleys(rng: Rng, name: str) -> Landscape:
    first, second = rng.uniform(0.1, 0.35), rng.uniform(0.6, 0.85)
    depths = rng.permutation([1.0, rng.uniform(0.4, 0.8)]) * rng.uniform(0.03, 0.08)
    wells = [
        d * np.exp(-0.5 * ((GRID - c) / rng.uniform(0.08, 0.14)) ** 2)
        for d, c in zip(depths, (first, second), strict=True)
    ]
    return _landscape(name, 0.1 * GRID**4 - wells[0] - wells[1])


def _flat(rng: Rng, name: str) -> Landscape:
    cliff = rng.uniform(0.5, 0.9)
    return _landscape(name, rng.uniform(0, 0.002) * GRID + 3.0 * np.maximum(GRID - cliff, 0) ** 2)


def _edge(rng: Rng, name: str) -> Landscape:
    slope = rng.uniform(0.03, 0.2)
    if rng.random() < 0.5:
        return _landscape(name, slope * GRID + 0.3 * np.maximum(GRID - 0.8, 0) ** 2)
    best = rng.uniform(0.85, 0.95)
    return _landscape(name, slope * np.abs(GRID - best))


def _shifted(rng: Rng, name: str) -> Landscape:
    return replace(_plain(rng, name), shift_sd=rng.uniform(0.1, 0.2), examples=int(rng.choice([8, 16, 32])))


def _settling(rng: Rng, name: str) -> Landscape:
    """Like the measured curves: a deep valley after merging that training flattens and moves by up to 0.1."""
    best, loss = _valley(rng, 0.3, 0.75)
    loss *= rng.uniform(0.3, 1.0)
    start = best + rng.uniform(-0.1, 0.1)
    deep = rng.uniform(0.4, 3.0) * (np.abs(GRID - start) / 0.6) ** rng.uniform(1.5, 2.5)
    deep = rng.uniform(0.2, 1.0) + np.minimum(deep, rng.uniform(0.4, 3.0))
    land = _landscape(name, loss, 0.0)
    return replace(
        land,
        loss_start=tuple(float(x) for x in 2.0 + loss + deep),
        settle_rounds=float(rng.uniform(3, 15)),
    )


def _settling_cliff(rng: Rng, name: str) -> Landscape:
    """Other measured curves: nearly flat up to a knee, steep beyond it, settling."""
    knee, fall = rng.uniform(0.5, 0.8), rng.uniform(0.0, 0.06)
    loss = -fall * np.minimum(GRID, knee) + rng.uniform(0.5, 4.0) * np.maximum(GRID - knee, 0) ** 1.5
    deep = rng.uniform(0.3, 1.0) * (1.0 - np.exp(-0.5 * ((GRID - knee - rng.uniform(-0.05, 0.1)) / 0.25) ** 2))
    land = _landscape(name, loss, 0.0)
    return replace(land, loss_start=tuple(float(x) for x in 2.3 + loss + deep), settle_rounds=float(rng.uniform(4, 12)))


FAMILIES: dict[str, Callable[[Rng, str], Landscape]] = {
    "plain": _plain,
    "noisy": _noisy,
    "drifting": _drifting,
    "two-valleys": _two_valleys,
    "flat": _flat,
    "edge": _edge,
    "shifted": _shifted,
    "settling": _settling,
    "settling-cliff": _settling_cliff,
}
"""Each family's law, by name."""


def member(family: str, split: Split, index: int) -> Landscape:
    """Return the landscape number `index` of a family; raises `KeyError` for an unknown family."""
    name = f"{family}-{split}-{index}"
    return FAMILIES[family](numpy_generator(2601, "family", name), name)
