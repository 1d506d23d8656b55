"""What `simulate`, `replay` and `ablate` print: tables and block plots for people, JSON for programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..controller.landscape import Landscape
from ..controller.slices import AnyLandscape
from .plots import COLUMNS, bars, histogram, ruler
from .tables import console, print_json, table

SHOWN = 0.75
"""Share of the ratios at which the plotted loss is not cut off: a cliff would hide the valley."""


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def show_simulation(landscapes: Sequence[AnyLandscape], report: Mapping[str, Any], as_json: bool) -> None:
    """Print how a controller did on landscapes: a table, and where p_star fell on each curve."""
    if as_json:
        print_json(report)
        return
    rows = report["landscapes"]
    columns = ["landscape", "preset", "seeds", "regret mean", "p90", "evaluations", "coverage", "width", "mean p_star"]
    cells = [
        [
            row["name"], row["preset"], str(row["seeds"]), _number(row["regret"]["mean"], 5),
            _number(row["regret"]["p90"], 5), _number(row["evaluations"], 1), _number(row["coverage"], 2),
            _number(row["width"], 2), _number(float(np.mean(row["p_star"])), 3),
        ]
        for row in rows
    ]  # fmt: skip
    if len(rows) > 1:
        mean = [_number(float(np.mean([row["regret"]["mean"] for row in rows])), 5)]
        spent = [_number(float(np.mean([row["evaluations"] for row in rows])), 1)]
        cells.append(["mean", "", "", *mean, "", *spent, "", "", ""])
    console().print(table(columns, cells))
    console().print("regret: settled loss at p_star above its minimum, nats; coverage and width: of the 90 % interval")
    for landscape, row in zip(landscapes, rows, strict=True):
        _plot(landscape, row)


def _plot(landscape: AnyLandscape, row: Mapping[str, Any]) -> None:
    centres = (np.arange(COLUMNS) + 0.5) / COLUMNS
    fine = np.linspace(0, 1, 1001)
    if isinstance(landscape, Landscape):
        above = landscape.curve(centres) - landscape.curve(fine).min()
    else:  # of a surface: the lowest that the second coordinate allows at each ratio
        above = np.array([min(landscape.regret((p, q)) for q in landscape.q) for p in centres])
    cut = float(np.quantile(above, SHOWN))
    lines = [
        *bars(histogram(row["p_star"]), 3),
        ruler(["0", "0.25", "0.5", "0.75", "1"]),
        *bars([float(x) for x in np.minimum(above, cut)], 3),
    ]
    labels = [
        "p_star of",
        f"{row['seeds']} seeds",
        "",
        "prune ratio",
        "settled loss",
        "above lowest,",
        f"to {cut:.1g} nats",
    ]
    console().print(f"\n{landscape.name}", markup=False)
    for label, line in zip(labels, lines, strict=True):
        console().print(f"  {label:13} {line}".rstrip(), markup=False)


def show_replay(report: Mapping[str, Any], as_json: bool) -> None:
    """Print the states after each recorded round, and the ratio each run comes to."""
    if as_json:
        print_json(report)
        return
    for number, run in enumerate(report["runs"], 1):
        rounds = run["rounds"]
        cells = [[str(r["round"]), *(_number(r[key], 4) for key in ("mean", "std", "p"))] for r in rounds]
        interval = run["interval"]
        shown = "no interval" if interval is None else f"90 % interval [{interval[0]:.4f}, {interval[1]:.4f}]"
        console().print(table(["round", "mean", "std", "p"], cells))
        console().print(
            f"run {number}, seed {run['seed']}, preset {run['preset']}, {len(rounds)} rounds: "
            f"p_star {run['p_star']:.4f}, {shown}",
            markup=False,
        )
    console().print(f"note: {report['note']}", markup=False)


def show_ablations(found: Mapping[str, Any], as_json: bool) -> None:
    """Print a table and a plot per ablation, and what failed."""
    if as_json:
        print_json(found)
        return
    from ..pipeline.ablation_table import failures, plot, table_rows

    for name, ablation in found["ablations"].items():
        console().print(f"[bold]{name}[/] ({ablation['setting']})")
        console().print(table(*table_rows(ablation["cells"])))
        for line in [*plot(ablation["cells"]), *failures(ablation["cells"])]:
            console().print(f"  {line}", markup=False)
        console().print()
    console().print(f"● p_star of a seed, ─ its 90 % interval; all of it lies in {found['folder']}", markup=False)


def failed_code(found: Mapping[str, Any]) -> int:
    """Return the exit code of the first cell that failed, 0 when none did."""
    cells = [cell for ablation in found["ablations"].values() for cell in ablation["cells"]]
    return next((int(cell["exit_code"]) for cell in cells if cell["error"] is not None), 0)
