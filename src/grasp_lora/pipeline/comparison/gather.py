"""Results of all units as one record: scores over seeds, differences to the reference, ratios, costs; no texts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...config import Config
from ...metrics.bootstrap import bootstrap_interval, paired_bootstrap
from ...runs import portable
from .parts import Part
from .schedule import Results
from .tuning import Tuning
from .units import Cell, Unit
from .worker import TEST

FORMAT = 1
_TEXT = {"id", "question", "references", "prediction"}
Values = Mapping[int, NDArray[np.float64]]  # per seed, one value per test example


def gather(part: Part, units: Sequence[Unit], results: Results, tuning: Tuning) -> dict[str, Any]:
    """Return the record of a comparison's part as JSON values; `units` are those that its tables show."""
    config, keys = part.config, {unit.key for unit in units} | {unit.key for unit in tuning.tried}
    own = {str(unit.row) for unit in units} & {str(unit.row) for unit in tuning.tried}
    choices = tuning.choices(sorted(own), part.tasks, results.done)
    names = [row.name for row in part.rows]
    return {
        "format": FORMAT,
        "model": portable(config.model.name_or_path),
        "lora": {"r": config.lora.r, "alpha": config.lora.alpha},
        "reference": config.compare.reference,
        "seeds": list(config.compare.seeds),
        "codes": sorted({results.done[unit.key]["code"] for unit in units if unit.key in results.done}),
        "adapters": [_adapter(u, results) for u in units if u.role is not None and u.key in results.done],
        "tuning": [_choice(choice) for choice in sorted(choices, key=lambda choice: names.index(choice.row))],
        "cells": [_cell(part, cell, [u for u in units if u.cell == cell.name], results) for cell in part.first],
        "failed": [{"unit": k, "error": portable(done.error)} for k, done in results.failures.items() if k in keys],
        "missing": _missing(part, units, results),
    }  # fmt: skip


def _missing(part: Part, units: Sequence[Unit], results: Results) -> int:
    """Return how many runs of the tables have neither ended nor failed, those without a learning rate yet included."""
    wanted = len(part.rows) * sum(len(cells) for cells in part.cells.values())
    return wanted - sum(results.ended(unit.key) for unit in units if unit.role is None)


def _choice(choice: Any) -> dict[str, Any]:
    found = asdict(choice)
    return found | {"dev_losses": {f"{lr:g}": loss for lr, loss in found["dev_losses"].items()}}


def _adapter(unit: Unit, results: Results) -> dict[str, Any]:
    return {"role": unit.role, "cell": unit.cell, "seed": unit.config.seed, "cost": results.done[unit.key]["cost"]}


def _cell(part: Part, cell: Cell, units: Sequence[Unit], known: Results) -> dict[str, Any]:
    """Return one cell: every row's scores, and its differences to the reference on the same examples."""
    config, rows = part.config, part.rows
    done = {row.name: [u for u in units if u.row == row.name and u.key in known.done] for row in rows}
    values = {name: _per_example(found) for name, found in done.items() if found}
    reference = values.get(config.compare.reference, {})
    table = []
    for row in rows:
        if not done[row.name]:
            continue
        results = [known.done[unit.key] for unit in done[row.name]]
        table.append(
            {
                "row": row.name, "title": row.title, "method": row.method.name, "formula": row.method.formula,
                "source": row.method.source,
                "lr": results[0]["lr"],
                "scores": _scores(config, results, values[row.name]),
                "against": {} if row.name == config.compare.reference else
                           _against(config, values[row.name], reference),
                "seeds": [_seed(result) for result in results],
            }
        )  # fmt: skip
    task = cell.config.task
    scored = [known.done[unit.key] for units in done.values() for unit in units]
    examples = max((result["examples"] for result in scored), default=0)
    return {"name": cell.name, "task": task.name, "language": task.language, "examples": examples, "rows": table}


def _per_example(units: Sequence[Unit]) -> Mapping[str, Values]:
    """Return metric -> seed -> values of the test examples, from the predictions that each unit kept."""
    found: dict[str, dict[int, NDArray[np.float64]]] = {}
    for unit in units:
        lines = _lines(unit.path / "stages" / f"evaluate_{TEST}" / "predictions.jsonl")
        for metric in [key for key in lines[0] if key not in _TEXT]:
            found.setdefault(metric, {})[unit.config.seed] = np.array(
                [line[metric] for line in lines if metric in line], float
            )  # answers may be fewer than losses
    return found


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _scores(config: Config, results: Sequence[Mapping[str, Any]], values: Mapping[str, Values]) -> dict[str, Any]:
    """Return each metric's mean over seeds, its spread, and a 95 % interval over test examples where there is one.

    With several seeds the interval is that of the mean over seeds of every example's score; a corpus score (BLEU, chrF)
    has one with a single seed only.
    """
    found = {}
    for name in [row["name"] for row in results[0]["scores"] if row["available"]]:
        each = [row["value"] for result in results for row in result["scores"] if row["name"] == name]
        interval = next(row["interval"] for row in results[0]["scores"] if row["name"] == name)
        if len(results) > 1:
            interval = None
            if name in values:
                mean = np.mean(list(values[name].values()), axis=0)
                interval = list(bootstrap_interval(mean, resamples=config.evaluate.bootstrap, seed=config.seed))
        spread = stdev(each) if len(each) > 1 else None
        found[name] = {"mean": fmean(each), "sd": spread, "interval": interval}
    return found


def _against(config: Config, values: Mapping[str, Values], reference: Mapping[str, Values]) -> dict[str, Any]:
    """Return differences to the reference (ours minus it), paired by example over the seeds that both have."""
    found = {}
    for metric in values:
        seeds = sorted(values[metric].keys() & reference.get(metric, {}).keys())
        if not seeds:
            continue
        ours, theirs = (np.mean([side[metric][seed] for seed in seeds], axis=0) for side in (values, reference))
        pair = paired_bootstrap(ours, theirs, resamples=config.evaluate.bootstrap, seed=config.seed)
        found[metric] = {"difference": pair.difference, "interval": list(pair.interval), "p": pair.p_value}
    return found


def _seed(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a record keeps of one unit."""
    scores = {row["name"]: row["value"] for row in result["scores"]}
    keys = ("seed", "ratio", "interval", "density", "dev_loss", "details", "hindsight", "cost")
    return {key: result[key] for key in keys} | {"scores": scores}
