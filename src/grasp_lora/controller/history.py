"""Every evaluation a controller has seen: which round, which ratio, which per-example losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Evaluations:
    """n evaluations: `rounds` (n,), `points` (n, D), `losses` (n, m) in nats, one column per micro-dev example.

    The first coordinate of a point is a prune ratio.
    """

    rounds: Vector
    points: Matrix
    losses: Matrix

    @property
    def per_example(self) -> bool:
        """Return whether single examples were recorded; with one column only means are known."""
        return bool(self.losses.shape[1] > 1)


@dataclass
class History:
    """A growing list of evaluations; `as_arrays` gives the estimator's view of it."""

    rounds: list[int] = field(default_factory=list)
    points: list[tuple[float, ...]] = field(default_factory=list)
    losses: list[list[float]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.rounds)

    def add(self, round_index: int, point: float | Sequence[float], losses: Vector) -> None:
        """Append one evaluation at a ratio or a point of several coordinates; losses (m,)."""
        self.rounds.append(round_index)
        self.points.append(tuple(float(x) for x in np.atleast_1d(np.asarray(point, float))))
        self.losses.append([float(x) for x in losses])

    def as_arrays(self) -> Evaluations:
        """Return the evaluations as arrays; where rounds differ in m, every row is reduced to its mean."""
        widths = {len(row) for row in self.losses}
        rows = self.losses if len(widths) == 1 else [[float(np.mean(row))] for row in self.losses]
        return Evaluations(np.asarray(self.rounds, float), np.asarray(self.points, float), np.asarray(rows, float))

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types."""
        return {
            "rounds": list(self.rounds),
            "points": [list(point) for point in self.points],
            "losses": [list(r) for r in self.losses],
        }

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> History:
        """Rebuild from `to_dict`."""
        return cls(
            [int(x) for x in saved["rounds"]],
            [tuple(float(x) for x in point) for point in saved["points"]],
            [[float(x) for x in row] for row in saved["losses"]],
        )
