"""Landscapes of one dimension: how the micro-dev loss depends on the prune ratio, and what disturbs an evaluation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, nearest
from .axes import Axis

Vector = NDArray[np.float64]
NEAR_MINIMUM = 1e-4
"""Nats above the settled minimum that still count as the minimum when coverage is judged."""


@dataclass(frozen=True)
class Landscape:
    """A loss curve over the ratio: knots `p`, settled `loss` (nats), and what disturbs an evaluation.

    `example_sd` and `noise_sd` are in nats, `shift_sd` is a ratio, `settle_rounds` in rounds; `loss_start` is the
    curve before training, None where the landscape is stationary.
    """

    name: str
    p: tuple[float, ...]
    loss: tuple[float, ...]
    examples: int
    example_sd: float
    shift_sd: float
    noise_sd: float
    drift_per_round: float
    loss_start: tuple[float, ...] | None = None
    settle_rounds: float | None = None

    @property
    def dimensions(self) -> int:
        """Return 1."""
        return 1

    def axes(self, first: Axis) -> tuple[Axis, ...]:
        """Return the policy's axes: the ratio's own."""
        return (first,)

    def curve(self, ratio: Vector | float, round_index: float | None = None) -> Vector:
        """Return the loss at `ratio` (any shape), settled (None) or as it is in a round."""
        x = np.clip(ratio, 0.0, 1.0)
        settled = np.asarray(np.interp(x, self.p, self.loss))
        if round_index is None or self.loss_start is None or self.settle_rounds is None:
            return settled
        start = np.interp(x, self.p, self.loss_start)
        return np.asarray(settled + (start - settled) * np.exp(-round_index / self.settle_rounds))

    def regret(self, ratio: float) -> float:
        """Return curve(ratio) less the settled curve's minimum, in nats."""
        return float(self.curve(ratio)) - float(self.curve(np.asarray(self._knots())).min())

    def covered(self, low: float, high: float) -> bool:
        """Return whether [low, high] meets the set where the settled curve is within 1e-4 of its minimum."""
        inside = [k for k in self._knots() if low <= k <= high]
        # Between knots the curve is linear, so its lowest point on an interval is at an end or at a knot inside.
        return min(self.regret(x) for x in (low, high, *inside)) <= NEAR_MINIMUM

    def _knots(self) -> list[float]:
        return [0.0, 1.0, *(x for x in self.p if 0.0 <= x <= 1.0)]


def landscape_from(loaded: Any, origin: str) -> Landscape:
    """Check a parsed landscape; raises `DataError` for a missing, unknown or impossible field."""
    if not isinstance(loaded, dict):
        raise DataError(f"{origin}: a landscape is one JSON object, got {type(loaded).__name__}.")
    known = [f.name for f in fields(Landscape)]
    check_landscape(loaded, known, origin)
    lists = {k: numbers(loaded[k], k, origin) for k in ("p", "loss", "loss_start") if loaded.get(k) is not None}
    plain = {k: number(loaded[k], k, origin) for k in known if k not in (*lists, "name") and loaded.get(k) is not None}
    examples = int(plain.pop("examples"))
    land = Landscape(name=str(loaded["name"]), examples=examples, **lists, **plain)  # type: ignore[arg-type]
    _check(land, origin)
    return land


def check_landscape(loaded: Mapping[str, Any], known: Sequence[str], origin: str) -> None:
    """Check which fields a landscape has; the last two of `known` are optional, and only together.

    Raises `DataError` naming the field.
    """
    for key in loaded:
        if key not in known:
            raise DataError(f"{origin}: unknown field '{key}'.{nearest(key, known)} Known: {', '.join(known)}.")
    for key in known[:-2]:
        if key not in loaded:
            raise DataError(f"{origin}: field '{key}' is missing. Known fields: {', '.join(known)}.")
    if ("loss_start" in loaded) != ("settle_rounds" in loaded):
        raise DataError(f"{origin}: 'loss_start' and 'settle_rounds' belong together; give both or neither.")


def number(value: Any, key: str, origin: str) -> float:
    """Return a finite number; raises `DataError` naming file and field."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise DataError(f"{origin}: '{key}' must be a finite number (got {value!r}). Correct the file.")
    return float(value)


def numbers(value: Any, key: str, origin: str) -> tuple[float, ...]:
    """Return a list of finite numbers; raises `DataError` naming file and field."""
    if not isinstance(value, list) or not value:
        raise DataError(f"{origin}: '{key}' must be a list of numbers (got {value!r}). Correct the file.")
    return tuple(number(x, key, origin) for x in value)


def _check(land: Landscape, origin: str) -> None:
    rising = all(a < b for a, b in zip(land.p, land.p[1:], strict=False))
    rules = [
        (rising, "p", "must rise strictly", land.p),
        (land.p[0] >= 0.0 and land.p[-1] <= 1.0, "p", "must lie between 0 and 1", (land.p[0], land.p[-1])),
        (len(land.loss) == len(land.p), "loss", f"needs one value per p ({len(land.p)})", len(land.loss)),
        (
            land.loss_start is None or len(land.loss_start) == len(land.p),
            "loss_start",
            "needs one value per p",
            "",
        ),
        (land.examples >= 1, "examples", "must be at least 1", land.examples),
        (
            land.settle_rounds is None or land.settle_rounds > 0,
            "settle_rounds",
            "must be above 0",
            land.settle_rounds,
        ),
        *(
            (getattr(land, k) >= 0, k, "must not be negative", getattr(land, k))
            for k in ("example_sd", "shift_sd", "noise_sd")
        ),
    ]
    for holds, key, rule, value in rules:
        if not holds:
            raise DataError(f"{origin}: '{key}' {rule} (got {value}). Correct the file.")
