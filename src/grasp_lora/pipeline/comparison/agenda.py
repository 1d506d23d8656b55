"""Everything that a comparison has to run: known from the start, or as soon as a learning rate is chosen.

Adapters come first, those with the most training data before the others. Of every part, the runs that try learning
rates come before the rest: others wait for them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from ...errors import ConfigError
from .parts import Part
from .schedule import Results
from .tuning import Tuning
from .units import Cell, Row, Unit, adapter_units, method_unit


class Agenda:
    """The units of all parts. `folder` is where they lie; a unit that several parts show is run once."""

    def __init__(self, folder: Path, parts: Sequence[Part]) -> None:
        self._folder, self._parts = folder, parts
        self.tuning = Tuning(parts[0].config.compare.lrs)
        self._given: set[str] = set()
        self._made: dict[tuple[str, str, float | None], Unit] = {}
        self._trained = {
            cell.key: adapter_units(folder, cell)
            for part in parts if any(row.method.uses != "none" for row in part.rows) for cell in _every(part)
        }  # fmt: skip
        self._open = [(index, row, task) for index, part in enumerate(parts) for row in part.rows if row.method.runs
                      for task in part.tasks]  # fmt: skip
        for index, row, task in self._open:
            if row.rate_of == row.name and not self.tuning.knows(row.name, task):
                self.tuning.add(row.name, task, list(self._tried(index, row, task)))
        for _, row, task in self._open:
            if not self.tuning.knows(row.rate_of, task):
                raise ConfigError(
                    f"compare: '{row.name}' takes the learning rate of '{row.rate_of}', which is not compared on a "
                    f"cell of task {task}. Add one."
                )

    @property
    def size(self) -> int:
        """How many units there are in all."""
        cells = [(cell.key, row.name) for part in self._parts for cells in part.cells.values() for cell in cells
                 for row in part.rows]  # fmt: skip
        lost = len(self._parts[0].config.compare.lrs) - 1
        return (
            len(self._adapters(self._parts))
            + len(set(cells))
            + lost * len({(u.cell, u.row) for u in self.tuning.tried})
        )

    def known(self) -> list[Unit]:
        """Return what can be run from the start."""
        fixed = [
            self._unit(index, cell, row, None)
            for index, part in enumerate(self._parts) for cell in _every(part) for row in part.rows
            if not row.method.runs
        ]  # fmt: skip
        return self._fresh([*self._adapters(self._parts), *fixed, *self.tuning.tried])

    def more(self, results: Results) -> list[Unit]:
        """Return what can be run since learning rates have been chosen by `results`."""
        self.tuning.settle(results.ended, results.done)
        units = []
        for entry in list(self._open):
            index, row, task = entry
            if self.tuning.rate(row.rate_of, task) is not None:
                self._open.remove(entry)
                units += list(self._chosen(index, row, task))
        return self._fresh(units)

    def shown(self, part: Part) -> list[Unit]:
        """Return the units whose results enter a part's tables; rows without a learning rate yet have none."""
        index = self._parts.index(part)
        fixed = [self._unit(index, cell, row, None) for cell in _every(part) for row in part.rows
                 if not row.method.runs]  # fmt: skip
        chosen = [unit for row in part.rows if row.method.runs for task in part.tasks
                  for unit in self._chosen(index, row, task)]  # fmt: skip
        return [*self._adapters([part]), *fixed, *chosen]

    def _adapters(self, parts: Sequence[Part]) -> list[Unit]:
        found: dict[str, Unit] = {}
        for part in parts:
            for cell in _every(part) if any(row.method.uses != "none" for row in part.rows) else ():
                found = {unit.key: unit for unit in self._trained[cell.key]} | found
        return sorted(found.values(), key=_training_bytes, reverse=True)

    def _tried(self, index: int, row: Row, task: str) -> Iterator[Unit]:
        part = self._parts[index]
        for cell in part.first:
            if cell.config.task.name == task:
                yield from (self._unit(index, cell, row, lr) for lr in part.config.compare.lrs)

    def _chosen(self, index: int, row: Row, task: str) -> Iterator[Unit]:
        rate = self.tuning.rate(row.rate_of, task)
        for cell in _every(self._parts[index]):
            if rate is not None and cell.config.task.name == task:
                yield self._unit(index, cell, row, rate)

    def _unit(self, index: int, cell: Cell, row: Row, lr: float | None) -> Unit:
        key = (cell.key, row.name, lr)
        if key not in self._made:
            section = self._parts[index].config.compare
            adapters = [] if row.method.uses == "none" else self._trained[cell.key]
            asked = section.generate is None or row.name in section.generate
            unit = method_unit(self._folder, cell, row, lr, adapters, generate=asked)
            tries = lr is not None and row.rate_of == row.name and cell.seed == section.seeds[0]
            self._made[key] = replace(unit, rank=1 + 2 * index + (0 if tries else 1))
        return self._made[key]

    def _fresh(self, units: Sequence[Unit]) -> list[Unit]:
        """Return those that were not returned before."""
        fresh = {unit.key: unit for unit in reversed(units) if unit.key not in self._given}
        self._given |= fresh.keys()
        return list(reversed(fresh.values()))


def _every(part: Part) -> list[Cell]:
    return [cell for cells in part.cells.values() for cell in cells]


def _training_bytes(unit: Unit) -> int:
    """Return the size of an adapter's training file, 0 where it is none on this disk."""
    files = unit.config.data.source if unit.role == "source" else unit.config.data.target
    path = Path(files.train or "")
    return path.stat().st_size if path.is_file() else 0
