"""The learning rate of every method that trains: the better dev loss, once per method and task, on the first seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from .units import Cell, Unit


@dataclass(frozen=True)
class Choice:
    """One method on one task: mean dev loss over the cells by rate, the rate taken, what the other rates cost."""

    row: str
    task: str
    dev_losses: Mapping[float, float]
    lr: float
    token_passes: int
    seconds: float


@dataclass(frozen=True)
class Tuning:
    """All choices; a method without one (every cell failed) goes on with the first rate."""

    choices: Sequence[Choice]
    default: float

    def rate(self, row: str, task: str) -> float:
        """Return the rate of a method on a task."""
        return next((c.lr for c in self.choices if (c.row, c.task) == (row, task)), self.default)


def choose(
    tried: Sequence[Unit], results: Mapping[str, Mapping[str, Any]], cells: Sequence[Cell], lrs: Sequence[float]
) -> Tuning:
    """Return the choices from the results of the first seed.

    Only cells on which every rate ended count, so that all rates are judged on the same ones. Without dev data the
    first rate is taken.
    """
    choices = []
    for row in dict.fromkeys(str(unit.row) for unit in tried):
        for task in dict.fromkeys(cell.config.task.name for cell in cells):
            names = {cell.name for cell in cells if cell.config.task.name == task}
            units = [unit for unit in tried if unit.row == row and unit.cell in names]
            choice = _choice(row, task, units, results, lrs)
            if choice is not None:
                choices.append(choice)
    return Tuning(tuple(choices), lrs[0])


def _choice(
    row: str, task: str, units: Sequence[Unit], results: Mapping[str, Mapping[str, Any]], lrs: Sequence[float]
) -> Choice | None:
    """Return the rate with the lowest mean dev loss; None when no cell has all of them."""
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
