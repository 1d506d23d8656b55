"""The learning rate of every row that trains: the better dev loss, once per row and task, on the first seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from .units import Unit

Results = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Choice:
    """One row on one task: mean dev loss over the cells by rate, the rate taken, what the other rates cost."""

    row: str
    task: str
    dev_losses: Mapping[float, float]
    lr: float
    token_passes: int
    seconds: float


class Tuning:
    """The rates that are tried, and those that are chosen as soon as every run that tries one has ended."""

    def __init__(self, lrs: Sequence[float]) -> None:
        self._lrs = lrs
        self._tried: dict[tuple[str, str], Sequence[Unit]] = {}
        self._rates: dict[tuple[str, str], float] = {}

    @property
    def tried(self) -> list[Unit]:
        """All runs that try a rate."""
        return [unit for units in self._tried.values() for unit in units]

    def knows(self, row: str, task: str) -> bool:
        """Return whether rates are tried for a row and task."""
        return (row, task) in self._tried

    def add(self, row: str, task: str, units: Sequence[Unit]) -> None:
        """Let a row's rate on a task be chosen by these runs of the first seed, all cells and rates."""
        self._tried[row, task] = units

    def settle(self, ended: Callable[[str], bool], results: Results) -> bool:
        """Choose where all runs have ended, well or not; returns whether a rate was chosen.

        A row without a choice (every cell failed, or there is no dev data) goes on with the first rate.
        """
        found = {
            key: choice.lr if (choice := choose(*key, units, results, self._lrs)) else self._lrs[0]
            for key, units in self._tried.items()
            if key not in self._rates and (len(self._lrs) == 1 or all(ended(unit.key) for unit in units))
        }
        self._rates |= found
        return bool(found)

    def rate(self, row: str, task: str) -> float | None:
        """Return the rate of a row on a task, None while it is not chosen."""
        return self._rates.get((row, task))

    def choices(self, rows: Sequence[str], tasks: Sequence[str], results: Results) -> list[Choice]:
        """Return what was chosen for some rows and tasks, and by which losses."""
        keys = [key for key in self._tried if key in self._rates and key[0] in rows and key[1] in tasks]
        found = [choose(*key, self._tried[key], results, self._lrs) for key in keys]
        return [choice for choice in found if choice is not None]


def choose(row: str, task: str, units: Sequence[Unit], results: Results, lrs: Sequence[float]) -> Choice | None:
    """Return the rate with the lowest mean dev loss; None when no cell has all of them.

    Only cells on which every rate ended count, so that all rates are judged on the same ones.
    """
    losses = {(unit.cell, unit.lr): results[unit.key]["dev_loss"] for unit in units if unit.key in results}
    whole = [c for c in dict.fromkeys(u.cell for u in units) if all(losses.get((c, lr)) is not None for lr in lrs)]
    if not whole:
        return None
    means = {lr: fmean(losses[cell, lr] for cell in whole) for lr in lrs}
    best = min(lrs, key=lambda lr: means[lr])
    lost = [results[unit.key]["cost"] for unit in units if unit.key in results and unit.lr != best]
    return Choice(
        row, task, means, best, sum(cost["token_passes"] for cost in lost), sum(cost["seconds"] for cost in lost)
    )
