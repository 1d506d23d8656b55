"""What every command prints with: the console, tables, and JSON; imports no model code."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from ..runs import to_json


def console() -> Console:
    """Return the console of standard output."""
    # Not a terminal (a file, a pipe): wide enough that no table cell is cut.
    wide = None if sys.stdout.isatty() else 200
    return Console(file=sys.stdout, highlight=False, soft_wrap=wide is not None, width=wide)


def print_json(value: Any) -> None:
    """Print a value as JSON."""
    sys.stdout.write(to_json(value, indent=2) + "\n")


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Return a table whose first column is text and whose others are numbers."""
    made = Table(box=box.SIMPLE_HEAD)
    for index, column in enumerate(columns):
        made.add_column(column, justify="left" if index == 0 else "right", overflow="fold")
    for row in rows:
        made.add_row(*row)
    return made
