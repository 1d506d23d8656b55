"""The page of the true curves: what final runs give at every ratio, and what each way to choose one loses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from ..metrics.bootstrap import PairedComparison, paired_bootstrap
from .comparison import passes, setting, table
from .true_curve import BEYOND, GRID, PENALTY, SIDES, Curve, Regrets, Side, chosen_ratios, curve, has_curve, regrets

Record = Mapping[str, Any]
Losses = dict[tuple[str, int], dict[Side, Any]]
HEAD = """# True curves of the prune ratio

Made by `python scripts/results_page.py` from `benchmarks/compare/real-curves.json`, which `grasp-lora compare` wrote.
Do not edit. What is compared, and under which rules: [comparison.md](comparison.md)."""
METHOD = f"""\
A whole final run at each ratio, everything else as in `finalize`, at the learning rate of the grid, whose eight runs
are points of the curve. Smoothed by one rule for all: a natural cubic smoothing spline over -ln(1 - p) with penalty
{PENALTY:g}, through the means over seeds. Regret is the smoothed curve at the chosen ratio less its minimum, never the
loss of the run that chose. A row that learns more than one ratio, or merges other adapters, has none:
what its own final run gives stands in the second table."""


def curves_page(records: Record) -> str:
    """Return the page as Markdown; raises ValueError when a cell lacks the rows `grid` and `curve`."""
    return "\n\n".join([HEAD, METHOD, setting(records), *curves_parts(records)]) + "\n"


def curves_parts(records: Record, *, partly: bool = False) -> list[str]:
    """Return the paragraphs of the page below its head; raises ValueError as `curves_page` does.

    With `partly`, cells without a curve are left out, and that is said.
    """
    left = [cell["name"] for cell in records["cells"] if partly and not has_curve(cell)]
    records = {**records, "cells": [cell for cell in records["cells"] if cell["name"] not in left]}
    parts = [f"No curve was measured on {', '.join(left)}."] if left else []
    parts += ["## Regret", *_regret(records), "## Final runs", final_losses(records, GRID), "## Curves"]
    for cell in records["cells"]:
        curves = {side: curve(cell, side) for side in SIDES}
        parts += [f"### {cell['name']}", _minima(curves), _points(curves), _chosen(records, cell, curves)]
    return parts


def _rows(records: Record) -> dict[str, str]:
    """Return the titles of the rows that choose something, by name."""
    return {row["row"]: row["title"] for cell in records["cells"] for row in cell["rows"] if row["row"] != BEYOND}


# --- over all cells and seeds -----------------------------------------------------------------------------------


def _regret(records: Record) -> list[str]:
    """Return the table of regrets and costs, and its reading against the grid."""
    grid = _cost(records, GRID)
    lines, read = [], []
    for name, title in _rows(records).items():
        found = {side: regrets(records, name, side) for side in SIDES}
        spent = _cost(records, name)
        shown = [word for side in SIDES for word in _regret_words(found[side])]
        share = f"{spent['token_passes'] / grid['token_passes']:.2f}"
        lines.append([title, *shown, passes(spent["token_passes"]), share, f"{spent['seconds']:.1f}"])
        read += [_reading(title, side, found[side], regrets(records, GRID, side)) for side in SIDES if name != GRID]
    head = ["chosen by", "dev regret [95 %]", "less grid [95 %]", "test regret [95 %]", "less grid [95 %]",
            "token passes", "of the grid's", "seconds"]  # fmt: skip
    count = len(records["cells"]) * len(records["seeds"])
    said = (
        f"Nats, mean over {count} values (cells x seeds); intervals by a bootstrap over these. Costs are those of a "
        "cell and seed, search and final run together, adapters not counted."
    )
    return [said, table(head, lines), "\n".join(line for line in read if line)]


def _regret_words(found: Regrets | None) -> list[str]:
    if found is None:
        return ["-", "-"]
    low, high = found.interval
    against = "-" if found.against is None else _difference(found.against)
    return [f"{found.mean:.4f} [{low:.4f}, {high:.4f}]", against]


def _difference(pair: PairedComparison) -> str:
    low, high = pair.interval
    return f"{pair.difference:+.4f} [{low:.4f}, {high:.4f}]"


def _reading(title: str, side: str, ours: Regrets | None, theirs: Regrets | None) -> str:
    """Return one sentence on a row against the grid; an interval that holds zero is no difference."""
    if ours is None or theirs is None or ours.against is None:
        return ""
    low, high = ours.against.interval
    verdict = "lower" if high < 0 else "higher" if low > 0 else "no difference beyond the noise"
    share = f", {ours.mean / theirs.mean:.2f} times the grid's" if theirs.mean > 0 else ""
    return f"- {title}, {side}: mean regret {ours.mean:.4f}{share}: {verdict}."


def _cost(records: Record, name: str) -> dict[str, float]:
    """Return the mean cost of a row over cells and seeds."""
    costs = [seed["cost"] for cell in records["cells"] for row in cell["rows"] if row["row"] == name
             for seed in row["seeds"]]  # fmt: skip
    return {key: fmean(cost[key] for cost in costs) for key in ("token_passes", "seconds")}


def final_losses(records: Record, reference: str) -> str:
    """Return each row's own losses, mean over cells and seeds, and the differences to `reference`, paired by these.

    A row that lacks some of them says how many it has; its mean is that of these.
    """
    losses = {name: _own(records, name) for name in _rows(records)}
    most = max((len(found) for found in losses.values()), default=0)
    lines = []
    for name, title in _rows(records).items():
        theirs = None if name == reference else losses[reference]
        part = f" ({len(losses[name])} of {most})" if len(losses[name]) < most else ""
        lines.append([title + part, *(word for side in SIDES for word in _final_words(losses[name], theirs, side))])
    less = f"less {reference} [95 %]"
    return table(["row", "dev loss", less, "test loss", less], lines)


def _final_words(ours: Losses, theirs: Losses | None, side: Side) -> list[str]:
    """Return a row's mean loss and its difference to another's, both over the cells and seeds that both have."""
    shared = [key for key in theirs or ours if key in ours]
    own = [ours[key][side] for key in shared]
    if not own or any(loss is None for loss in own):
        return ["-", "-"]
    against = None if theirs is None else [theirs[key][side] for key in shared]
    if against is None or any(loss is None for loss in against):
        return [f"{fmean(own):.3f}", "-"]
    return [f"{fmean(own):.3f}", _difference(paired_bootstrap(own, against))]


def _own(records: Record, name: str) -> Losses:
    return {
        (cell["name"], seed["seed"]): {"dev": seed["dev_loss"], "test": seed["scores"]["loss"]}
        for cell in records["cells"] for row in cell["rows"] if row["row"] == name for seed in row["seeds"]
    }  # fmt: skip


# --- one cell ---------------------------------------------------------------------------------------------------


def _minima(curves: Mapping[Side, Curve]) -> str:
    words = ["{} {:.3f} at {:.2f}".format(side, *reversed(found.minimum)) for side, found in curves.items()]
    return f"Smoothed minimum: {', '.join(words)}."


def _points(curves: Mapping[Side, Curve]) -> str:
    dev = curves["dev"]
    lines: list[Sequence[str]] = []
    for side, found in curves.items():
        shown = [f"{mean:.3f}" + (f" ± {spread:.3f}" if spread is not None else "")
                 for mean, spread in zip(found.means, found.spreads, strict=True)]  # fmt: skip
        lines += [[f"{side} loss", *shown], [f"{side}, smoothed", *(f"{found.at(p):.3f}" for p in found.ratios)]]
    return table(["p", *(f"{ratio:g}" for ratio in dev.ratios)], lines)


def _chosen(records: Record, cell: Record, curves: Mapping[Side, Curve]) -> str:
    """Return each row's ratios by seed, with their regrets."""
    lines = []
    for name, title in _rows(records).items():
        ratios = chosen_ratios(cell, name)
        seeds: Sequence[Record] = next((row["seeds"] for row in cell["rows"] if row["row"] == name), ())
        shown = ", ".join("-" if seed["ratio"] is None else f"{seed['ratio']:.3f}" for seed in seeds)
        each = ["-" if ratios is None else ", ".join(f"{found.regret(p):.4f}" for p in ratios)
                for found in curves.values()]  # fmt: skip
        rate = next((row["lr"] for row in cell["rows"] if row["row"] == name), None)
        lines.append([title, shown or "-", *each, "-" if rate is None else f"{rate:g}"])
    seeds_shown = ", ".join(map(str, records["seeds"]))
    return table(["chosen by", f"ratio, seeds {seeds_shown}", "dev regret", "test regret", "lr"], lines)
