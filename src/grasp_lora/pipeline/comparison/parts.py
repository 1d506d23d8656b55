"""The tables of a comparison: the main one and further parts, each with its rows and cells, over the same runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from ...baselines import METHODS
from ...config import CompareConfig, Config, PartConfig
from ...errors import ConfigError
from .units import Cell, Row, cells_of, require_known, rows_of

MAIN = ""
T = TypeVar("T")


@dataclass(frozen=True)
class Part:
    """One table: its settings (`compare` narrowed to it), rows, and cells by seed. The main one has no name."""

    name: str
    config: Config
    rows: Sequence[Row]
    cells: Mapping[int, Sequence[Cell]]

    @property
    def suffix(self) -> str:
        """What file names of the part end with."""
        return f"-{self.name}" if self.name else ""

    @property
    def first(self) -> Sequence[Cell]:
        """The cells under the first seed, on which learning rates are tried."""
        return self.cells[self.config.compare.seeds[0]]

    @property
    def tasks(self) -> list[str]:
        """The tasks of the cells."""
        return list(dict.fromkeys(cell.config.task.name for cell in self.first))


def parts_of(config: Config) -> list[Part]:
    """Return the main table and `compare.parts`, in order of importance.

    Raises `ConfigError` for unknown rows, for a learning rate taken from a row that nobody compares, and for a name
    that means two things in two parts: they share their runs.
    """
    section = config.compare
    narrowed = [(MAIN, section.model_copy(update={"parts": ()})), *((p.name, _part(section, p)) for p in section.parts)]
    parts = []
    for name, own in narrowed:
        changed = config.model_copy(update={"compare": own})
        parts.append(Part(name, changed, rows_of(changed), {seed: cells_of(changed, seed) for seed in own.seeds}))
    rows = _same("row", ((row.name, row) for part in parts for row in part.rows))
    _same("cell", ((cell.key, cell) for part in parts for cells in part.cells.values() for cell in cells))
    require_known("generate", section.generate or (), sorted({*METHODS, *rows}))
    for row in rows.values():
        if row.rate_of not in rows or rows[row.rate_of].rate_of != row.rate_of:
            raise ConfigError(
                f"compare: '{row.name}' takes the learning rate of '{row.rate_of}', which is not compared here with a "
                "rate of its own. Add it to the methods."
            )
    return parts


def _part(section: CompareConfig, part: PartConfig) -> CompareConfig:
    own = {"methods": part.methods, "variants": part.variants, "cells": part.cells or section.cells, "parts": ()}
    return section.model_copy(update=own | ({"reference": part.reference} if part.reference else {}))


def _same(what: str, named: Iterable[tuple[str, T]]) -> dict[str, T]:
    found: dict[str, Any] = {}
    for name, thing in named:
        if found.setdefault(name, thing) != thing:
            raise ConfigError(f"compare.parts: the {what} '{name}' means two things. Give one of them another name.")
    return found
