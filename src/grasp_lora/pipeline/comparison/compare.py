"""A comparison from its settings to its tables: check everything, train the adapters, run the methods, gather.

On the first seed every learning rate is tried; the other seeds follow with each method's better rate per task, chosen
by dev loss.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...config import Config, build_config, to_dict, to_yaml
from ...errors import ConfigError, MissingExtraError, RunError, nearest
from ...report.comparison import tables as make_tables
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
from .agenda import Agenda
from .gather import gather
from .parts import MAIN, Part, parts_of
from .schedule import Limits, Pool, Results
from .units import needed_splits

DEFAULT_FOLDER = "runs/compare"
TABLES, PLOT = "comparison{}.md", "cost-quality{}.svg"


@dataclass(frozen=True)
class Comparison:
    """A comparison: its folder, its records (JSON values), tables as Markdown, and how it ended.

    `parts` holds the records of `compare.parts` by name; `tables` shows all of them.
    """

    folder: Path
    records: Mapping[str, Any]
    tables: str
    exit_code: int
    parts: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Asked:
    """What to do in the folder: go on or replace; run what is missing, and make records and tables, or one of them."""

    resume: bool = False
    overwrite: bool = False
    run: bool = True
    tables: bool = True


def compare_config(
    config: Config, methods: Sequence[str] | None = None, jobs: int | None = None, time_limit: float | None = None,
    parts: Sequence[str] | None = None,
) -> Config:  # fmt: skip
    """Return the settings of a comparison with its folder and the choices of the command line in place.

    `methods` are the rows of the main table, which then is the only one; `parts` keeps some of `compare.parts`. Raises
    `ConfigError` for choices that do not go together.
    """
    tree = to_dict(config)
    section = tree["compare"]
    tree["run"]["dir"] = config.run.dir or DEFAULT_FOLDER
    section |= {} if jobs is None else {"jobs": jobs}
    section |= {} if time_limit is None else {"time_limit": time_limit}
    if methods is not None:
        section |= {"methods": list(methods), "parts": []}
    if parts is not None:
        known = [part["name"] for part in section["parts"]]
        for name in parts:
            if name not in known:
                raise ConfigError(f"compare.parts: no part '{name}' here.{nearest(name, known)} Parts: {known}.")
        section["parts"] = [part for part in section["parts"] if part["name"] in parts]
    return build_config(tree)


def compare(
    config: Config, progress: Progress | None = None, asked: Asked | None = None, *, command: Sequence[str] = ()
) -> Comparison:
    """Run a comparison, or go on with one, and return its tables; `config` comes from `compare_config`.

    Raises a `GraspError` for what is wrong before anything starts, and `Interrupted` when stopped. A unit that fails
    does not: it is in the records, and `exit_code` is that of the first failure.
    """
    asked = asked or Asked()
    if asked.resume and asked.overwrite:
        raise ConfigError("--resume goes on with a comparison, --overwrite replaces it. Give one of them.")
    limit = config.compare.time_limit
    limits = Limits(config.compare.jobs, None if limit is None else time.monotonic() + limit)
    shown = progress or QuietProgress()
    parts = parts_of(config)
    if asked.run:
        _require_packages(parts)
    told = lambda: shown.warn("stopping; press Ctrl-C again to stop at once")  # noqa: E731
    with graceful_interrupt(told) as flag, clean_stops():
        if asked.run:
            _check(parts, shown)
        with _open(config, parts, command, asked) as folder:
            agenda = Agenda(folder.path / "stages", parts)
            if not asked.run:
                return _finish(folder, parts, agenda, _recalled(agenda), shown, tables=True)
            with Pool(limits, config.model, shown, lambda: flag.requested) as pool:
                with shown.stage("compare", agenda.size) as task:
                    pool.run(agenda.known(), task, agenda.more)
                return _finish(folder, parts, agenda, pool.results, shown, tables=asked.tables)


def _recalled(agenda: Agenda) -> Results:
    """Return what earlier calls have done, without running anything."""
    results, units = Results(), agenda.known()
    while units:
        results.recall(units)
        units = agenda.more(results)
    return results


def _check(parts: Sequence[Part], progress: Progress) -> None:
    """Check every cell once before hours of work; raises the `GraspError` of the first problem."""
    seen = []
    for part in parts:
        for cell in (cell for cells in part.cells.values() for cell in cells):
            if (cell.name, cell.config.data) not in seen:
                needed = needed_splits(cell.config, [row.method for row in part.rows])
                for warning in preflight(cell.config, needed).warnings:
                    progress.warn(f"{cell.name}: {warning}")
            seen.append((cell.name, cell.config.data))


def _require_packages(parts: Sequence[Part]) -> None:
    """Raise `MissingExtraError` before hours of work, not after."""
    for row in (row for part in parts for row in part.rows):
        for package in ("optuna", "nevergrad") if row.method.extra else ():
            if importlib.util.find_spec(package) is None:
                raise MissingExtraError(package, "baselines", f"method {row.name} (or choose others with --methods)")


def _open(config: Config, parts: Sequence[Part], command: Sequence[str], asked: Asked) -> RunFolder:
    """Make or go on with the comparison's folder; raises `RunError` when an input of a cell has changed since."""
    inputs: dict[str, str | None] = {}
    for cell in (cell for part in parts for cells in part.cells.values() for cell in cells):
        for role, path in inputs_of(cell.config).items():
            name = role if role == "model" else f"{cell.name}.{role}"
            own = inputs.setdefault(name, path) != path  # another seed has data of its own
            inputs |= {f"{cell.key}.{role}": path} if own else {}
    device = str(resolve_device(config.model.device))
    path = str(config.run.dir)
    if not asked.resume:
        folder = RunFolder.create(path, to_yaml(config), overwrite=asked.overwrite)
        folder.write_manifest(build_manifest(config, inputs, command=command, device=device))
        return folder
    folder = RunFolder.resume(path, to_yaml(config))
    if not asked.run:  # what the records say of machine and code stays what it was when the runs were made
        return folder
    manifest = build_manifest(config, inputs, command=command, device=device)
    before = folder.manifest()["inputs"]
    known = {role: entry for role, entry in manifest["inputs"].items() if role in before}
    changed = changed_inputs({"inputs": {role: before[role] for role in known}}, {"inputs": known})
    if changed:
        folder.close()
        raise RunError(f"inputs of {path} changed since it was started: {'; '.join(changed)}. Give another run.dir.")
    folder.write_manifest(manifest | {"inputs": before | manifest["inputs"]})  # cells may have joined
    return folder


def _finish(
    folder: RunFolder, parts: Sequence[Part], agenda: Agenda, results: Results, progress: Progress, *, tables: bool
) -> Comparison:
    """Write records, tables and the plot of every part, and return them."""
    records: dict[str, Any] = {}
    text: dict[str, str] = {}
    manifest = folder.manifest()
    provenance = {"provenance": _provenance(manifest), "jobs": manifest["config"]["compare"]["jobs"]}
    for part in parts if tables else ():
        found = gather(part, agenda.shown(part), results, agenda.tuning) | provenance
        records[part.name], text[part.name] = found, make_tables(found)
        write_json_atomic(folder.path / f"results{part.suffix}.json", found)
        write_text_atomic(folder.path / "report" / TABLES.format(part.suffix), text[part.name])
        try:
            cost_quality_plot(found, folder.path / "report" / PLOT.format(part.suffix))
        except MissingExtraError as error:
            progress.warn(str(error))
    failures = list(results.failures.values())
    whole = "\n".join(f"# {name}\n\n{one}" if name else one for name, one in text.items())
    exit_code = failures[0].exit_code if failures else 0
    return Comparison(folder.path, records.pop(MAIN, {}), whole, exit_code, records)


def _provenance(manifest: Mapping[str, Any]) -> dict[str, Any]:
    return {key: manifest[key] for key in ("started", "command", "config", "inputs", "code", "versions", "hardware")}
