"""Ablations as tables and as plots of characters: one line per value, all seeds together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

WIDTH = 51
"""Columns from prune ratio 0 to 1: one per 0.02."""
KEYS = ("rounds", "evaluations", "token_passes", "seconds")
SPENT = tuple(key.replace("_", " ") for key in KEYS)
LOSSES = ("dev_loss", "test_loss")

Cells = Sequence[Mapping[str, Any]]


def by_value(cells: Cells) -> list[tuple[Any, Cells]]:
    """Return the cells of each value, in the order in which values first come."""
    values = list(dict.fromkeys(cell["value"] for cell in cells))
    return [(value, [cell for cell in cells if cell["value"] == value]) for value in values]


def value_text(value: Any) -> str:
    """Return a value as it is shown."""
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def table_rows(cells: Cells) -> tuple[list[str], list[list[str]]]:
    """Return column names and one row per value: means over the seeds that did not fail.

    p_star is the mean with its range over seeds; the interval is the mean of both ends. Strength and losses have
    columns where they were learned or measured.
    """
    done = [cell for cell in cells if cell["error"] is None]
    strong = any(cell["point"]["strength"] != 1 for cell in done)
    judged = any(cell[key] is not None for cell in done for key in LOSSES)
    columns = ["value", "seeds", "p_star", "interval", *(["strength"] if strong else [])]
    columns += [*SPENT, *(key.replace("_", " ") for key in LOSSES if judged)]
    rows = []
    for value, group in by_value(cells):
        good = [cell for cell in group if cell["error"] is None]
        count = f"{len(good)}" if len(good) == len(group) else f"{len(good)} of {len(group)}"
        row = [value_text(value), count, _range(good), _interval(good)]
        row += [_mean([cell["point"]["strength"] for cell in good], 3)] if strong else []
        row += [_mean([cell[key] for cell in good], digits) for key, digits in zip(KEYS, (1, 1, 0, 1), strict=True)]
        rows.append(row + [_mean([cell[key] for cell in good], 3) for key in LOSSES if judged])
    return columns, rows


def _mean(values: Sequence[float | None], digits: int) -> str:
    known = [value for value in values if value is not None]
    return f"{np.mean(known):,.{digits}f}" if known else "-"


def _range(cells: Cells) -> str:
    found = [cell["p_star"] for cell in cells]
    if not found:
        return "-"
    spread = f" ({min(found):.3f} to {max(found):.3f})" if len(found) > 1 else ""
    return f"{np.mean(found):.3f}{spread}"


def _interval(cells: Cells) -> str:
    known = [cell["interval"] for cell in cells if cell["interval"] is not None]
    return "[{:.3f}, {:.3f}]".format(*np.mean(known, axis=0)) if known else "-"


def plot(cells: Cells) -> list[str]:
    """Return lines on which `●` is the p_star of a seed and `─` the reach of the intervals, from ratio 0 to 1."""
    groups = by_value(cells)
    wide = max(len(value_text(value)) for value, _ in groups)
    lines = [f"{value_text(value):>{wide}} │{_track(group)}│" for value, group in groups]
    ruler = "0" + "0.5".center(WIDTH - 2) + "1"
    return [*lines, f"{'':>{wide}}  {ruler}"]


def _track(cells: Cells) -> str:
    line = [" "] * WIDTH
    for cell in cells:
        for place in range(*_columns(cell["interval"])):
            line[place] = "─"
    for cell in cells:
        if cell["p_star"] is not None:
            line[round(cell["p_star"] * (WIDTH - 1))] = "●"
    return "".join(line)


def _columns(interval: Sequence[float] | None) -> tuple[int, int]:
    if interval is None:
        return 0, 0
    return round(interval[0] * (WIDTH - 1)), round(interval[1] * (WIDTH - 1)) + 1


def markdown(ablations: Mapping[str, Any]) -> str:
    """Return every ablation as a Markdown table, its plot, and the errors of cells that failed."""
    parts = []
    for name, found in ablations.items():
        columns, rows = table_rows(found["cells"])
        lines = [f"| {' | '.join(columns)} |", "|" + " --- |" * len(columns)]
        lines += [f"| {' | '.join(row)} |" for row in rows]
        failed = "".join(f"- {line}\n" for line in failures(found["cells"]))
        parts.append(f"## {name}\n\n`{found['setting']}`\n\n" + "\n".join(lines) + "\n")
        parts.append("```\n" + "\n".join(plot(found["cells"])) + "\n```\n" + (f"\n{failed}" if failed else ""))
    return "\n".join(parts)


def failures(cells: Cells) -> list[str]:
    """Return one line per cell that failed."""
    return [
        f"{value_text(cell['value'])}, seed {cell['seed']}: {cell['error']}"
        for cell in cells
        if cell["error"] is not None
    ]
