"""A comparison from its settings to its tables: check everything, train the adapters, run the methods, gather.

Two waves: first all adapters, every method that trains nothing, and on the first seed every learning rate; then the
other seeds with each method's better rate per task, chosen by dev loss.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...config import Config, build_config, to_dict, to_yaml
from ...errors import ConfigError, MissingExtraError, RunError
from ...report.comparison import tables
from ...report.cost_quality import cost_quality_plot
from ...runs import (
    Progress,
    QuietProgress,
    RunFolder,
    build_manifest,
    changed_inputs,
    graceful_interrupt,
    write_json_atomic,
    write_text_atomic,
)
from ..checks import preflight
from ..models import resolve_device
from ..opening import clean_stops, inputs_of
from .gather import gather
from .schedule import Pool
from .tuning import Tuning, choose
from .units import Cell, Row, Unit, adapter_units, cells_of, method_unit, needed_splits, rows_of

DEFAULT_FOLDER = "runs/compare"
TABLES, PLOT = "comparison.md", "cost-quality.svg"


@dataclass(frozen=True)
class Comparison:
    """A finished comparison: its folder, its records (JSON values), tables as Markdown, and how it ended."""

    folder: Path
    records: Mapping[str, Any]
    tables: str
    exit_code: int


@dataclass(frozen=True)
class _Work:
    """What is compared, checked."""

    config: Config
    folder: RunFolder
    rows: Sequence[Row]
    cells: Mapping[int, Sequence[Cell]]

    @property
    def stages(self) -> Path:
        return self.folder.path / "stages"

    def unit(self, cell: Cell, row: Row, lr: float | None) -> Unit:
        generate = self.config.compare.generate
        return method_unit(self.stages, cell, row, lr, generate is None or row.name in generate)


def compare_config(config: Config, methods: Sequence[str] | None = None, jobs: int | None = None) -> Config:
    """Return the settings of a comparison with its folder and the choices of the command line in place.

    Raises `ConfigError` for choices that do not go together.
    """
    tree = to_dict(config)
    tree["run"]["dir"] = config.run.dir or DEFAULT_FOLDER
    tree["compare"] |= {} if jobs is None else {"jobs": jobs}
    tree["compare"] |= {} if methods is None else {"methods": list(methods)}
    return build_config(tree)


def compare(
    config: Config, progress: Progress | None = None, *, resume: bool = False, overwrite: bool = False,
    command: Sequence[str] = (),
) -> Comparison:  # fmt: skip
    """Run a comparison, or go on with one, and return its tables; `config` comes from `compare_config`.

    Raises a `GraspError` for what is wrong before anything starts, and `Interrupted` when stopped. A unit that fails
    does not: it is in the records, and `exit_code` is that of the first failure.
    """
    if resume and overwrite:
        raise ConfigError("--resume goes on with a comparison, --overwrite replaces it. Give one of them.")
    shown = progress or QuietProgress()
    rows = rows_of(config)
    _require_packages(rows)
    cells = {seed: cells_of(config, seed) for seed in config.compare.seeds}
    told = lambda: shown.warn("stopping; press Ctrl-C again to stop at once")  # noqa: E731
    with graceful_interrupt(told) as flag, clean_stops():
        for cell in cells[config.compare.seeds[0]]:
            for warning in preflight(cell.config, needed_splits(cell.config, [row.method for row in rows])).warnings:
                shown.warn(f"{cell.name}: {warning}")
        with _open(config, cells, command, resume=resume, overwrite=overwrite) as folder:
            work = _Work(config, folder, rows, cells)
            with Pool(config.compare.jobs, shown, lambda: flag.requested) as pool:
                tuning, units = _run(work, pool, shown)
            return _finish(work, pool, tuning, units, shown)


def _require_packages(rows: Sequence[Row]) -> None:
    """Raise `MissingExtraError` before hours of work, not after."""
    for row in rows:
        for package in ("optuna", "nevergrad") if row.method.extra else ():
            if importlib.util.find_spec(package) is None:
                raise MissingExtraError(package, "baselines", f"method {row.name} (or choose others with --methods)")


def _open(
    config: Config, cells: Mapping[int, Sequence[Cell]], command: Sequence[str], *, resume: bool, overwrite: bool
) -> RunFolder:
    """Make or go on with the comparison's folder; raises `RunError` when an input of a cell has changed since."""
    first = cells[config.compare.seeds[0]]
    inputs = {
        (role if role == "model" else f"{cell.name}.{role}"): path
        for cell in first
        for role, path in inputs_of(cell.config).items()
    }
    device = str(resolve_device(config.model.device))
    manifest = build_manifest(config, inputs, command=command, device=device)
    path = str(config.run.dir)
    if not resume:
        folder = RunFolder.create(path, to_yaml(config), overwrite=overwrite)
        folder.write_manifest(manifest)
        return folder
    folder = RunFolder.resume(path, to_yaml(config))
    before = folder.manifest()["inputs"]
    known = {role: entry for role, entry in manifest["inputs"].items() if role in before}
    changed = changed_inputs({"inputs": {role: before[role] for role in known}}, {"inputs": known})
    if changed:
        folder.close()
        raise RunError(f"inputs of {path} changed since it was started: {'; '.join(changed)}. Give another run.dir.")
    folder.write_manifest(manifest | {"inputs": before | manifest["inputs"]})  # cells may have joined
    return folder


def _run(work: _Work, pool: Pool, progress: Progress) -> tuple[Tuning, list[Unit]]:
    """Run both waves; returns the chosen learning rates and the units whose results enter the tables."""
    seeds, lrs = work.config.compare.seeds, work.config.compare.lrs
    every = [cell for cells in work.cells.values() for cell in cells]
    adapters = adapter_units(work.stages, every, work.rows)
    fixed = [work.unit(cell, row, None) for cell in every for row in work.rows if not row.method.runs]
    first = work.cells[seeds[0]]
    tried = [work.unit(cell, row, lr) for cell in first for row in work.rows if row.method.runs for lr in lrs]
    later = sum(row.method.runs for row in work.rows) * (len(every) - len(first))
    with progress.stage("compare", len(adapters) + len(fixed) + len(tried) + later) as task:
        pool.run([*adapters.values(), *fixed, *tried], task)
        tuning = choose(tried, pool.results, first, work.config.compare.lrs)
        chosen = [
            work.unit(cell, row, tuning.rate(row.name, cell.config.task.name))
            for cell in every for row in work.rows if row.method.runs
        ]  # fmt: skip
        pool.run([unit for unit in chosen if unit.key not in {one.key for one in tried}], task)
    return tuning, [*adapters.values(), *fixed, *chosen]


def _finish(work: _Work, pool: Pool, tuning: Tuning, units: Sequence[Unit], progress: Progress) -> Comparison:
    """Write records, tables and the plot."""
    records = gather(work.config, work.rows, work.cells, units, pool, tuning) | {
        "provenance": _provenance(work.folder.manifest())
    }
    report = work.folder.path / "report"
    text = tables(records)
    write_json_atomic(work.folder.path / "results.json", records)
    write_text_atomic(report / TABLES, text)
    try:
        cost_quality_plot(records, report / PLOT)
    except MissingExtraError as error:
        progress.warn(str(error))
    failures = list(pool.failures.values())
    return Comparison(work.folder.path, records, text, failures[0].exit_code if failures else 0)


def _provenance(manifest: Mapping[str, Any]) -> dict[str, Any]:
    return {key: manifest[key] for key in ("started", "command", "config", "inputs", "code", "versions", "hardware")}
