"""The true curve of the final loss over the prune ratio, and what a chosen ratio loses on it (its regret).

A curve is measured by whole final runs at the ratios of the methods `grid` and `curve`, its value at a ratio is the
mean over seeds. One rule smooths it, fixed before any of these runs: a natural cubic smoothing spline (Green and
Silverman, 1994, ch. 2) with penalty `PENALTY` over -ln(1 - p), the log of the share that is kept, in which the loss
rises evenly at high ratios. Regret at p is the smoothed curve at p less its minimum. It is read off the curve, never
from the run that chose p, whose own loss has the luck of its seed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import make_smoothing_spline

from ..adapters.point import MergePoint
from ..metrics.bootstrap import PairedComparison, bootstrap_interval, paired_bootstrap

Array = NDArray[np.float64]
Side = Literal["dev", "test"]
SIDES: tuple[Side, ...] = ("dev", "test")
PENALTY = 3e-3
STEPS = 1000  # of the ratios among which the minimum is sought
GRID, BEYOND = "grid", "curve"
ELSEWHERE = ("grasp_recommended",)  # methods that merge other adapters than those whose curve it is
_LEAST = 5  # points that a smoothing spline needs


@dataclass(frozen=True)
class Curve:
    """Mean losses over seeds by ratio, their spread (None with one seed), and the smoothed curve."""

    ratios: tuple[float, ...]
    means: tuple[float, ...]
    spreads: tuple[float | None, ...]
    smoothed: Callable[[Array], Array]

    @property
    def minimum(self) -> tuple[float, float]:
        """The ratio of the smoothed curve's minimum, and the loss there."""
        ratios = np.linspace(self.ratios[0], self.ratios[-1], STEPS + 1)
        losses = self.smoothed(ratios)
        best = int(losses.argmin())
        return float(ratios[best]), float(losses[best])

    def at(self, ratio: float) -> float:
        """Return the smoothed loss at a ratio; beyond the last measured one, the loss there."""
        return float(self.smoothed(np.array([min(max(ratio, self.ratios[0]), self.ratios[-1])]))[0])

    def regret(self, ratio: float) -> float:
        """Return the smoothed loss at a ratio less its minimum."""
        return max(0.0, self.at(ratio) - self.minimum[1])


def smoothed(ratios: Sequence[float], losses: Sequence[float]) -> Callable[[Array], Array]:
    """Return the smoothed curve through mean losses at rising ratios below 1; raises ValueError for fewer than five."""
    if len(ratios) < _LEAST:
        raise ValueError(f"a smoothed curve needs {_LEAST} ratios (got {len(ratios)})")
    spline = make_smoothing_spline(_kept_log(np.array(ratios)), np.array(losses), lam=PENALTY)
    return lambda at: np.asarray(spline(_kept_log(at)), dtype=np.float64)


def _kept_log(ratios: Array) -> Array:
    return -np.log1p(-ratios)


def curve(cell: Mapping[str, Any], side: Side) -> Curve:
    """Return the curve of one cell of a comparison's records; only seeds that have all ratios count."""
    by_seed = [points for points in _points(cell, side) if points]
    if not by_seed:
        raise ValueError(f"cell {cell['name']} has no seed with both rows, {GRID} and {BEYOND}")
    ratios = tuple(sorted(by_seed[0]))
    values = [[points[ratio] for points in by_seed] for ratio in ratios]
    means = tuple(fmean(each) for each in values)
    spreads = tuple(stdev(each) if len(each) > 1 else None for each in values)
    return Curve(ratios, means, spreads, smoothed(ratios, means))


def has_curve(cell: Mapping[str, Any]) -> bool:
    """Return whether a cell has a seed with both rows that a curve is made of."""
    return any(_points(cell, "dev"))


def _points(cell: Mapping[str, Any], side: Side) -> list[dict[float, float]]:
    """Return, per seed, the loss of the final run at each ratio; empty for a seed that lacks one of the two rows."""
    rows = {row["row"]: {seed["seed"]: seed for seed in row["seeds"]} for row in cell["rows"]}
    seeds = rows.get(GRID, {}).keys() & rows.get(BEYOND, {}).keys()
    return [
        {ratio: loss for name in (GRID, BEYOND) for ratio, loss in _losses(rows[name][seed], side).items()}
        for seed in sorted(seeds)
    ]


def _losses(seed: Mapping[str, Any], side: Side) -> dict[float, float]:
    if side == "dev":
        return {float(ratio): loss for ratio, loss in seed["details"]["dev_losses"].items()}
    return {float(name.removeprefix("p=")): loss for name, loss in seed["hindsight"].items()}


def chooses_ratio_alone(seed: Mapping[str, Any]) -> bool:
    """Return whether a run chose one ratio and nothing else: only then does the curve know what it chose."""
    point = seed["details"].get("point")
    return seed["ratio"] is not None and (point is None or point == MergePoint(point["ratio"]).to_dict())


@dataclass(frozen=True)
class Regrets:
    """What a row's ratios lose on the true curve: one value per cell and seed, in the records' order."""

    row: str
    values: tuple[float, ...]
    interval: tuple[float, float]
    against: PairedComparison | None

    @property
    def mean(self) -> float:
        """The mean over cells and seeds."""
        return fmean(self.values)


def regrets(records: Mapping[str, Any], row: str, side: Side) -> Regrets | None:
    """Return a row's regrets with a bootstrap interval of their mean, and their difference to those of the grid.

    None where a run of the row chose more than a ratio, or a cell or seed is missing.
    """
    ours, theirs = _regrets(records, row, side), _regrets(records, GRID, side)
    if ours is None:
        return None
    pair = None if row == GRID or theirs is None or len(ours) != len(theirs) else paired_bootstrap(ours, theirs)
    return Regrets(row, tuple(ours), bootstrap_interval(ours), pair)


def _regrets(records: Mapping[str, Any], row: str, side: Side) -> list[float] | None:
    found = []
    for cell in records["cells"]:
        chosen = chosen_ratios(cell, row)
        if chosen is None or len(chosen) != len(records["seeds"]):
            return None
        measured = curve(cell, side)
        found += [measured.regret(ratio) for ratio in chosen]
    return found


def chosen_ratios(cell: Mapping[str, Any], row: str) -> list[float] | None:
    """Return the ratios that a row chose on a cell, by seed.

    None when there is none, when a run chose more than that, or chose it for another merge than the curve's.
    """
    own = [each for each in cell["rows"] if each["row"] == row and each.get("method") not in ELSEWHERE]
    seeds: Sequence[Mapping[str, Any]] = own[0]["seeds"] if own else ()
    if not seeds or not all(chooses_ratio_alone(seed) for seed in seeds):
        return None
    return [float(seed["ratio"]) for seed in seeds]
