"""Tables of a comparison as Markdown, from its records alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from .paper import paper_table

Record = Mapping[str, Any]
# Digits behind the point: losses in nats, scores in percent.
_LOSS_DIGITS, _SCORE_DIGITS = 3, 1
_SHORT = {"train": "train", "dev": "dev", "micro_dev": "micro-dev"}


def tables(records: Record) -> str:
    """Return everything a reader wants to see of a comparison, as Markdown without a title."""
    parts = [setting(records), *_summary(records)]
    for cell in records["cells"]:
        parts += _cell(records, cell)
    parts += [*_tuning(records), *_adapters(records), *_missing(records), *_failed(records)]
    return "\n\n".join(parts) + "\n"


def setting(records: Record) -> str:
    """Return what the records were made with: model, device, versions, seeds."""
    found = records["provenance"]
    hardware, versions = found["hardware"], found["versions"]
    names = dict.fromkeys(gpu["name"] for gpu in hardware["gpus"])
    device = ", ".join(names) if hardware["device"].startswith("cuda") else f"{hardware['cpu']} (CPU)"
    seeds = ", ".join(map(str, records["seeds"]))
    code = found["code"]["commit"]
    return (
        f"Base model: {records['model']}{_dtype(found['config'])}. Device: {device}, {records['jobs']} at a time. "
        f"torch {versions['torch']}, "
        f"transformers {versions['transformers']}, peft {versions['peft']}. "
        + (f"Commit {code[:12]}{' with changes' if found['code']['dirty'] else ''}. " if code else "")
        + (
            f"The runs were made by {len(records['codes'])} versions of the code. "
            if len(records.get("codes", ())) > 1
            else ""
        )
        + f"Seeds: {seeds}. Losses are nats per answer token, mean per example, then over examples; lower is better."
    )


def _dtype(config: Record) -> str:
    """Return how the base model's weights were held, where that was a choice."""
    dtype = (config.get("model") or {}).get("dtype", "auto")
    return "" if dtype == "auto" else f", {dtype}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table of cells that are text."""
    lines = [f"| {' | '.join(head)} |", "| --- |" + " --- |" * (len(head) - 1)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


# --- all cells --------------------------------------------------------------------------------------------------


def _summary(records: Record) -> list[str]:
    """Return test loss by row and cell, the mean where a row is in every cell, and the mean cost of a cell and seed."""
    cells = records["cells"]
    names = list(dict.fromkeys((row["row"], row["title"]) for cell in cells for row in cell["rows"]))
    rows = []
    for name, title in names:
        found = [next((row for row in cell["rows"] if row["row"] == name), None) for cell in cells]
        there = [row for row in found if row is not None]
        losses = [
            row["scores"]["loss"]["mean"] if row is not None and "loss" in row["scores"] else None for row in found
        ]
        shown = ["-" if loss is None else f"{loss:.{_LOSS_DIGITS}f}" for loss in losses]
        known = [loss for loss in losses if loss is not None]
        whole = f"{fmean(known):.{_LOSS_DIGITS}f}" if len(known) == len(cells) else "-"
        spent = fmean(seed["cost"]["token_passes"] for row in there for seed in row["seeds"])
        rows.append([title, *shown, whole, passes(spent)])
    head = ["test loss", *(cell["name"] for cell in cells), "mean", "token passes per run"]
    return ["## Summary", table(head, rows)]


# --- one cell ---------------------------------------------------------------------------------------------------


def _cell(records: Record, cell: Record) -> list[str]:
    count = len(records["seeds"])
    spread = f", mean ± standard deviation over {count} seeds" if count > 1 else ""
    metrics = list(dict.fromkeys(name for row in cell["rows"] for name in row["scores"]))
    others = [name for name in metrics if name != "loss"]
    reference = records["reference"]
    head = ["method", "loss [95 %]", f"loss less {reference} [95 %]", "p", *others, "ratio [90 %]", "lr"]
    rows = [
        [
            f"{row['title']} (`{row['row']}`)", _score(row, "loss"), _difference(row, "loss"), _p(row, "loss"),
            *(_score(row, name) for name in others), _ratio(row), "-" if row["lr"] is None else f"{row['lr']:g}",
        ]
        for row in cell["rows"]
    ]  # fmt: skip
    parts = [f"## {cell['name']}", f"{cell['task']}, {cell['language']}; {cell['examples']} test examples{spread}."]
    parts += [table(head, rows), *_reading(records, cell), *_differences(cell, others, reference)]
    parts += [*_hindsight(cell), _cost(cell), *paper_table(records, cell)]
    return parts


def _digits(metric: str) -> int:
    return _LOSS_DIGITS if metric == "loss" else _SCORE_DIGITS


def _score(row: Record, metric: str) -> str:
    found = row["scores"].get(metric)
    if found is None:
        return "-"
    digits = _digits(metric)
    spread = f" ± {found['sd']:.{digits}f}" if found["sd"] is not None else ""
    return f"{found['mean']:.{digits}f}{spread}{_interval(found['interval'], digits)}"


def _interval(interval: Sequence[float] | None, digits: int) -> str:
    return "" if interval is None else f" [{interval[0]:.{digits}f}, {interval[1]:.{digits}f}]"


def _difference(row: Record, metric: str) -> str:
    found = row["against"].get(metric)
    digits = _digits(metric)
    return "-" if found is None else f"{found['difference']:+.{digits}f}{_interval(found['interval'], digits)}"


def _p(row: Record, metric: str) -> str:
    found = row["against"].get(metric)
    return "-" if found is None else f"{found['p']:.3f}"


def _ratio(row: Record) -> str:
    """Return the ratio of every seed, with its interval where the method gives one."""
    seeds = [seed for seed in row["seeds"] if seed["ratio"] is not None]
    return "; ".join(f"{seed['ratio']:.3f}{_interval(seed['interval'], 2)}" for seed in seeds) or "-"


def _reading(records: Record, cell: Record) -> list[str]:
    """Return in words which rows differ from the reference by more than chance over test examples."""
    groups: dict[str, list[str]] = {"better": [], "worse": [], "within noise": []}
    for row in cell["rows"]:
        found = row["against"].get("loss")
        if found is not None:
            low, high = found["interval"]
            groups["better" if high < 0 else "worse" if low > 0 else "within noise"].append(f"`{row['row']}`")
    if not any(groups.values()):
        return []
    said = "; ".join(f"{what}: {', '.join(names) or 'none'}" for what, names in groups.items())
    return [f"Against `{records['reference']}`, by the 95 % interval of the loss difference, {said}."]


def _differences(cell: Record, metrics: Sequence[str], reference: str) -> list[str]:
    """Return the differences of the other metrics, where any row was scored by generation."""
    shown = [m for m in metrics if any(m in row["against"] for row in cell["rows"])]
    rows = [
        [row["title"], *(f"{_difference(row, m)}, p {_p(row, m)}" if m in row["against"] else "-" for m in shown)]
        for row in cell["rows"]
        if any(m in row["against"] for m in shown)
    ]
    return [table([f"less {reference} [95 %]", *shown], rows)] if rows else []


def _hindsight(cell: Record) -> list[str]:
    """Return what the best choice would have given, judged by test: no method, a bound."""
    lines = []
    for row in cell["rows"]:
        each = [seed["hindsight"] for seed in row["seeds"] if seed["hindsight"]]
        if each:
            means = {name: fmean(found[name] for found in each) for name in each[0]}
            best = min(means, key=lambda name: means[name])
            shown = ", ".join(f"{name} {loss:.{_LOSS_DIGITS}f}" for name, loss in means.items())
            lines.append(
                f"In hindsight (test loss, no method may use it) the best of {row['title']} is {best}: {shown}."
            )
    return lines


def _cost(cell: Record) -> str:
    head = [
        "cost",
        "optimizer steps",
        "tokens trained",
        "tokens forward",
        "token passes",
        "seconds",
        "peak MiB",
        "labels",
    ]
    return table(head, [[row["title"], *_cost_cells([seed["cost"] for seed in row["seeds"]])] for row in cell["rows"]])


def _cost_cells(costs: Sequence[Record]) -> list[str]:
    """Return mean costs over seeds; seconds of a run that was interrupted are a lower bound and marked so."""
    mean = {key: fmean(cost[key] for cost in costs) for key in
            ("optimizer_steps", "trained_tokens", "forward_tokens", "token_passes", "seconds")}  # fmt: skip
    bound = "≥ " if any(cost["attempts"] > 1 for cost in costs) else ""
    peaks = [cost["peak_memory_bytes"] for cost in costs if cost["peak_memory_bytes"] is not None]
    labels = costs[0].get("labels", {})
    return [
        f"{mean['optimizer_steps']:.0f}", passes(mean["trained_tokens"]), passes(mean["forward_tokens"]),
        passes(mean["token_passes"]), f"{bound}{mean['seconds']:.1f}",
        f"{max(peaks) / 2**20:.0f}" if peaks else "-",
        ", ".join(f"{count} {_SHORT[split]}" for split, count in labels.items()) or "none",
    ]  # fmt: skip


def passes(tokens: float) -> str:
    """Return a number of token passes in thousands or millions."""
    return f"{tokens / 1e6:.2f}M" if tokens >= 1e6 else f"{tokens / 1e3:.1f}k"


# --- what is shared ---------------------------------------------------------------------------------------------


def _tuning(records: Record) -> list[str]:
    """Return the learning rates that were chosen, and what trying the others cost."""
    titles = {row["row"]: row["title"] for cell in records["cells"] for row in cell["rows"]}
    rows = [
        [
            titles.get(choice["row"], choice["row"]), choice["task"],
            ", ".join(f"{lr}: {loss:.{_LOSS_DIGITS}f}" for lr, loss in choice["dev_losses"].items()),
            f"{choice['lr']:g}", passes(choice["token_passes"]), f"{choice['seconds']:.1f}",
        ]
        for choice in records["tuning"]
    ]  # fmt: skip
    if not rows:
        return []
    head = ["method", "task", "dev loss by rate", "taken", "token passes of the others", "seconds of the others"]
    said = f"By mean dev loss over the task's cells, on seed {records['seeds'][0]} only; not part of the costs above."
    return ["## Learning rates", said, table(head, rows)]


def _adapters(records: Record) -> list[str]:
    rows = [
        [f"{found['role']} adapter, {found['cell']}, seed {found['seed']}", *_cost_cells([found["cost"]])[:-1]]
        for found in records["adapters"]
    ]
    if not rows:
        return []
    head = ["trained once, shared by all", "optimizer steps", "tokens trained", "tokens forward", "token passes",
            "seconds", "peak MiB"]  # fmt: skip
    return ["## Adapters", table(head, rows)]


def _missing(records: Record) -> list[str]:
    count = records.get("missing", 0)
    return [f"Not run yet: {count} of this table's runs; `--resume` goes on with them."] if count else []


def _failed(records: Record) -> list[str]:
    if not records["failed"]:
        return []
    return ["## Failed", "\n".join(f"- {found['unit']}: {found['error']}" for found in records["failed"])]
