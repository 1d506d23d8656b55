"""Landscapes over two coordinates: a prune ratio and a strength (or a second ratio or weight) together."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import RegularGridInterpolator

from ..errors import DataError
from .axes import RATIO, STRENGTH, WEIGHT, Axis, ratio_axis
from .landscape import NEAR_MINIMUM, check_landscape, number, numbers

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Plane:
    """A loss surface over (ratio, second coordinate): knots `p` and `q`, settled `loss` (len(p), len(q)), nats.

    `axis` names the second coordinate: `strength`, `weight:NAME` or `ratio:NAME`. `shift_sd` has one value per axis, in
    the axis's own units; the rest is as in a landscape of one dimension.
    """

    name: str
    axis: str
    p: tuple[float, ...]
    q: tuple[float, ...]
    loss: tuple[tuple[float, ...], ...]
    examples: int
    example_sd: float
    shift_sd: tuple[float, float]
    noise_sd: float
    drift_per_round: float
    loss_start: tuple[tuple[float, ...], ...] | None = None
    settle_rounds: float | None = None

    @property
    def dimensions(self) -> int:
        """Return 2."""
        return 2

    def axes(self, first: Axis) -> tuple[Axis, ...]:
        """Return the policy's axes: the ratio's own, and the second one as wide as the surface is known."""
        low, high = self.q[0], self.q[-1]
        if self.axis.partition(":")[0] == RATIO:
            owner = self.axis.partition(":")[2]
            return (first, ratio_axis(low, high, min(max(first.init, low), high), owner))
        full = min(max(1.0, low), high)
        return (first, Axis(self.axis, low, high, full, full))

    def curve(self, points: Matrix, round_index: float | None = None) -> Vector:
        """Return the loss at points (n, 2), bilinear between knots and constant outside; settled, or in a round."""
        settled = self._at(points, self.loss)
        if round_index is None or self.loss_start is None or self.settle_rounds is None:
            return settled
        return np.asarray(
            settled + (self._at(points, self.loss_start) - settled) * np.exp(-round_index / self.settle_rounds)
        )

    def _at(self, points: Matrix, loss: tuple[tuple[float, ...], ...]) -> Vector:
        inside = np.clip(points, (self.p[0], self.q[0]), (self.p[-1], self.q[-1]))
        return np.asarray(RegularGridInterpolator((self.p, self.q), np.asarray(loss))(inside), dtype=np.float64)

    def regret(self, point: Sequence[float]) -> float:
        """Return curve(point) less the settled surface's minimum (bilinear: it is at a knot), in nats."""
        return float(self.curve(np.asarray([point], float))[0]) - float(np.min(self.loss))

    def covered(self, box: Sequence[tuple[float, float]]) -> bool:
        """Return whether the box of intervals meets the set within 1e-4 of the settled minimum."""
        (p_low, p_high), (q_low, q_high) = box
        # Between knots the surface is bilinear, so its lowest point in a box is at a corner or at a knot line inside.
        ps = [p_low, p_high, *(p for p in self.p if p_low <= p <= p_high)]
        qs = [q_low, q_high, *(q for q in self.q if q_low <= q <= q_high)]
        points = np.array([(p, q) for p in ps for q in qs])
        return float(self.curve(points).min()) - float(np.min(self.loss)) <= NEAR_MINIMUM


def plane_from(loaded: dict[str, Any], origin: str) -> Plane:
    """Check a parsed landscape of two dimensions; raises `DataError` for a missing, unknown or impossible field."""
    check_landscape(loaded, [f.name for f in fields(Plane)], origin)
    p, q = numbers(loaded["p"], "p", origin), numbers(loaded["q"], "q", origin)
    shifts = loaded["shift_sd"]
    both = numbers(shifts if isinstance(shifts, list) else [shifts, shifts], "shift_sd", origin)
    surfaces = {
        key: _surface(loaded[key], key, len(p), len(q), origin) for key in ("loss", "loss_start") if key in loaded
    }
    plain = {
        key: number(loaded[key], key, origin)
        for key in ("example_sd", "noise_sd", "drift_per_round", "settle_rounds")
        if key in loaded
    }
    examples = int(number(loaded["examples"], "examples", origin))
    found = Plane(
        name=str(loaded["name"]), axis=str(loaded["axis"]), p=p, q=q, examples=examples,
        shift_sd=(both[0], both[-1]), **surfaces, **plain,  # type: ignore[arg-type]
    )  # fmt: skip
    _check(found, len(both), origin)
    return found


def _surface(value: Any, key: str, rows: int, columns: int, origin: str) -> tuple[tuple[float, ...], ...]:
    if not isinstance(value, list) or len(value) != rows:
        raise DataError(f"{origin}: '{key}' needs one list per value of p ({rows}). Correct the file.")
    out = tuple(numbers(row, key, origin) for row in value)
    if any(len(row) != columns for row in out):
        raise DataError(f"{origin}: each list of '{key}' needs one value per value of q ({columns}). Correct the file.")
    return out


def _check(plane: Plane, shifts: int, origin: str) -> None:
    kind, _, owner = plane.axis.partition(":")
    named = (kind == STRENGTH and not owner) or (kind in (RATIO, WEIGHT) and bool(owner))
    spreads = (plane.example_sd, plane.noise_sd, *plane.shift_sd)
    rules = [
        (named, "axis", "must be strength, weight:NAME or ratio:NAME", plane.axis),
        (_rises(plane.p) and plane.p[0] >= 0 and plane.p[-1] <= 1, "p", "must rise strictly within 0 and 1", plane.p),
        (_rises(plane.q) and len(plane.q) > 1, "q", "must rise strictly, over two values or more", plane.q),
        (shifts == 2, "shift_sd", "needs one number, or one for each of the two axes", plane.shift_sd),
        (plane.examples >= 1, "examples", "must be at least 1", plane.examples),
        (min(spreads) >= 0, "example_sd, noise_sd and shift_sd", "must not be negative", spreads),
        (
            plane.settle_rounds is None or plane.settle_rounds > 0,
            "settle_rounds",
            "must be above 0",
            plane.settle_rounds,
        ),
    ]
    for holds, key, rule, value in rules:
        if not holds:
            raise DataError(f"{origin}: '{key}' {rule} (got {value}). Correct the file.")


def _rises(values: tuple[float, ...]) -> bool:
    return all(a < b for a, b in itertools.pairwise(values))
