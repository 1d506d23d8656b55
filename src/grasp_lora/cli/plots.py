"""Plots of block characters for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

EIGHTHS = " ▁▂▃▄▅▆▇█"
COLUMNS = 64


def bars(values: Sequence[float], height: int = 1) -> list[str]:
    """Return `height` lines in which column i is filled from below in proportion to values[i] >= 0.

    The largest value fills its column; any value above zero shows at least an eighth of a line.
    """
    top = max(values, default=0.0)
    levels = [0 if top <= 0 else max(round(8 * height * v / top), int(v > 0)) for v in values]
    lines = [[EIGHTHS[min(max(level - 8 * row, 0), 8)] for level in levels] for row in reversed(range(height))]
    return ["".join(line).rstrip() for line in lines]


def histogram(values: Sequence[float], low: float = 0.0, high: float = 1.0) -> list[float]:
    """Return how many values fall into each of `COLUMNS` equal parts of [low, high]."""
    counts, _ = np.histogram(np.clip(values, low, high), bins=COLUMNS, range=(low, high))
    return [float(count) for count in counts]


def ruler(labels: Sequence[str]) -> str:
    """Return labels spread evenly over `COLUMNS`, the first at the left end and the last at the right one."""
    line = [" "] * COLUMNS
    for place, label in zip(np.linspace(0, COLUMNS - 1, len(labels)), labels, strict=True):
        start = min(max(round(float(place)) - len(label) // 2, 0), COLUMNS - len(label))
        line[start : start + len(label)] = label
    return "".join(line).rstrip()
