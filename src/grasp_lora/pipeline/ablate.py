"""Vary one setting of the search at a time, on adapters that are trained once.

Every cell (one value of one setting, one seed) is a run folder of its own whose `results.json` is written last, so a
done cell is not done again, and a cell that fails leaves the others alone. A value that is the configured one shares
its cell with every other ablation that has it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..adapters.peft_load import AdapterFactors
from ..config import Config, build_config, to_dict, to_yaml
from ..controller import resolve
from ..data import Splits
from ..errors import ConfigError, DataError, GraspError, Interrupted, nearest
from ..rng import numpy_generator
from ..runs import Progress, RunFolder, write_json_atomic, write_text_atomic
from ..runs.folder import MARKER
from ..training.setup import Base, Setup
from .ablation_table import LOSSES, markdown
from .accounts import cost
from .checks import required_splits
from .keeping import GRASP
from .members import final_content, members
from .opening import clean_stops, default_folder, working
from .scoring import evaluate_stage
from .stages import Run, all_adapters, final_stage, search_stage
from .story import grasp_factors


@dataclass(frozen=True)
class Ablation:
    """One setting and the values it is given, which may depend on the configuration."""

    setting: str
    values: Callable[[Config], Sequence[Any]]


ABLATIONS: dict[str, Ablation] = {
    "micro_dev_size": Ablation("data.micro_dev_size", lambda _c: (4, 8, 16, 32)),
    "entropy_bonus": Ablation(
        "controller.entropy_bonus", lambda c: [x * resolve(c.controller).entropy_bonus for x in (0, 1, 3)]
    ),
    "anchor": Ablation("controller.anchor", lambda c: [x * resolve(c.controller).anchor for x in (0, 1, 10)]),
    "max_step": Ablation("controller.max_step", lambda _c: (0.05, 0.1, 1.0)),
    "candidates": Ablation("controller.candidates", lambda _c: (1, 3, 7)),
    "interval": Ablation("controller.interval", lambda _c: (5, 10, 20)),
    "importance": Ablation("prune.importance", lambda _c: ("magnitude", "activation", "sensitivity")),
}
"""Every ablation by its name: the paper's failure modes and its table of micro-dev sizes, and what they depend on."""


@dataclass(frozen=True)
class Cell:
    """One value of one setting with one seed; `size` is the number of micro-dev examples, None for all."""

    ablation: str
    value: Any
    seed: int
    config: Config
    size: int | None
    name: str


@dataclass(frozen=True)
class _CellRun(Run):
    """A run on a base model that is already loaded."""

    base: Base | None = None

    @cached_property
    def setup(self) -> Setup:
        """The shared base model with this cell's configuration and splits."""
        assert self.base is not None
        return Setup(self.config, self.base, self.splits.target, self.splits.source)


def check_ablations(names: Sequence[str], seeds: int = 1) -> tuple[str, ...]:
    """Return the ablations to do, all when none is named; raises `ConfigError` for an unknown one, or no seed."""
    if seeds < 1:
        raise ConfigError(f"--seeds: at least 1 is needed (got {seeds}).")
    for name in names:
        if name not in ABLATIONS:
            raise ConfigError(
                f"--what: unknown ablation '{name}'.{nearest(name, ABLATIONS)} Known: {', '.join(ABLATIONS)}."
            )
    return tuple(dict.fromkeys(names)) or tuple(ABLATIONS)


def cells_of(config: Config, names: Sequence[str], seeds: int, examples: int) -> list[Cell]:
    """Return every cell, ablation by ablation; `examples` is the number of micro-dev examples that there are."""
    return [
        _cell(config, name, value, config.seed + k, examples)
        for name in names
        for value in ABLATIONS[name].values(config)
        for k in range(seeds)
    ]


def _cell(config: Config, name: str, value: Any, seed: int, examples: int) -> Cell:
    tree = to_dict(config)
    tree["seed"] = seed
    tree["evaluate"]["metrics"], tree["evaluate"]["rivals"] = ["loss"], []
    plain = build_config(tree)
    size = value if name == "micro_dev_size" and value != examples else None
    if name != "micro_dev_size":
        section, key = ABLATIONS[name].setting.split(".")
        tree[section][key] = value
    changed = build_config(tree)
    same = size is None and _filled_in(changed) == _filled_in(plain)
    shown = value if isinstance(value, str) else f"{value:g}"
    return Cell(
        name, value, seed, plain if same else changed, size, f"{'as-set' if same else f'{name}-{shown}'}-s{seed}"
    )


def _filled_in(config: Config) -> tuple[Any, ...]:
    """Return what tells whether two configurations are the same: a preset's own value may also be given in words."""
    return resolve(config.controller), config.controller.interval, config.prune


@dataclass(frozen=True)
class Asked:
    """What to do: ablations by name (none: all), seeds of each value, the final run or not, and the folder."""

    what: Sequence[str] = ()
    seeds: int = 1
    finalize: bool = False
    out: str | Path | None = None


def ablate(
    config: Config, asked: Asked, progress: Progress | None = None, *,
    resume: bool = False, overwrite: bool = False, command: Sequence[str] = (),
) -> dict[str, Any]:  # fmt: skip
    """Do what is asked and return `{"folder", "ablations": {name: {"setting", "cells": [...]}}}`.

    A cell holds value, seed, number of micro-dev examples, p_star, interval, the whole learned point, rounds,
    evaluations, token passes and seconds of its search, the dev and test loss of its final run with `finalize` (else
    None), and `error`, None unless it failed. `ablations.json` and `ablations.md` in the folder hold the same.

    Raises:
        GraspError: whatever concerns all cells: settings, data, the adapters, the folder, or a stop by the user.

    """
    names = check_ablations(asked.what, asked.seeds)
    folder = Path(asked.out) if asked.out is not None else Path(f"{default_folder(config)}-ablate")
    tree = to_dict(config)
    shared = build_config(tree | {"run": tree["run"] | {"dir": str(folder / "adapters")}})
    with working(
        shared, progress, resume=resume, overwrite=overwrite, command=command, needs=required_splits(config)
    ) as run:
        cells = cells_of(config, names, asked.seeds, len(run.splits.target["micro_dev"]))
        rows = _all(
            _Bench(run, members(run, all_adapters(run)), folder / "cells", asked.finalize, resume, overwrite), cells
        )
    found = {
        name: {
            "setting": ABLATIONS[name].setting,
            "cells": [{"value": c.value, "seed": c.seed, **rows[c.name]} for c in cells if c.ablation == name],
        }
        for name in names
    }
    write_json_atomic(folder / "ablations.json", {"ablations": found})
    write_text_atomic(folder / "ablations.md", markdown(found))
    return {"folder": str(folder), "ablations": found}


@dataclass(frozen=True)
class _Bench:
    """What all cells share."""

    run: Run
    adapters: Sequence[AdapterFactors]
    folder: Path
    finalize: bool
    resume: bool
    overwrite: bool

    def open(self, cell: Cell) -> RunFolder:
        """Open the folder of a cell."""
        path, text = self.folder / cell.name, to_yaml(cell.config)
        if self.resume and (path / MARKER).is_file():
            return RunFolder.resume(path, text)
        return RunFolder.create(path, text, overwrite=self.overwrite)


def _all(bench: _Bench, cells: Sequence[Cell]) -> dict[str, dict[str, Any]]:
    distinct = list({cell.name: cell for cell in cells}.values())
    rows = {}
    for number, cell in enumerate(distinct, 1):
        bench.run.progress.note(f"cell {number} of {len(distinct)}: {cell.name}")
        rows[cell.name] = _attempt(bench, cell)
    return rows


MEASURED = (
    "micro_dev", "p_star", "interval", "point", "rounds", "evaluations", "token_passes", "seconds",
    *LOSSES,
)  # fmt: skip


def _attempt(bench: _Bench, cell: Cell) -> dict[str, Any]:
    """Do one cell; its failure becomes its `error`, and only a stop by the user ends the whole."""
    run = bench.run
    try:
        with clean_stops():
            splits = _subset(run.splits, cell)
            with bench.open(cell) as folder:
                own = _CellRun(cell.config, folder, splits, run.progress, run.stop_requested, base=run.setup.base)
                return {**_measure(own, bench.adapters, bench.finalize), "error": None}
    except Interrupted:
        raise
    except GraspError as error:
        run.progress.warn(f"{cell.name}: {error}")
        return {**dict.fromkeys(MEASURED), "error": str(error), "exit_code": error.exit_code}


def _subset(splits: Splits, cell: Cell) -> Splits:
    """Return splits whose micro-dev is the cell's subset: those of one seed are nested, in the file's order."""
    if cell.size is None:
        return splits
    examples = splits.target["micro_dev"]
    if cell.size > len(examples):
        raise DataError(
            f"data.target.micro_dev has {len(examples)} examples, so {cell.size} cannot be drawn from it. "
            "Give a larger file (and data.micro_dev_size), or take this size as not measured."
        )
    order = numpy_generator(cell.seed, "ablate", "micro_dev").permutation(len(examples))
    chosen = [examples[i] for i in sorted(order[: cell.size])]
    return Splits(splits.source, {**splits.target, "micro_dev": chosen})


def _measure(run: Run, adapters: Sequence[AdapterFactors], finalize: bool) -> dict[str, Any]:
    """Search, and with `finalize` the final run and its losses; what is done is read back."""
    saved = run.folder.results() if (run.folder.path / "results.json").exists() else None
    if saved is not None and (saved["finalized"] or not finalize):
        return {key: saved[key] for key in MEASURED}
    fresh, start = not (run.folder.path / "stages" / "search").exists(), time.perf_counter()
    found = search_stage(run, adapters)
    # A search that was interrupted has no time of its own.
    seconds = time.perf_counter() - start if fresh else saved and saved["seconds"]
    result = {
        "micro_dev": len(run.splits.target["micro_dev"]),
        **{key: found[key] for key in ("p_star", "interval", "point", "rounds", "evaluations")},
        "token_passes": cost(run)["search"]["token_passes"],
        "seconds": seconds,
        **(_final_losses(run, adapters) if finalize else dict.fromkeys(LOSSES)),
    }
    run.folder.write_results({**result, "finalized": finalize})
    return result


def _final_losses(run: Run, adapters: Sequence[AdapterFactors]) -> dict[str, float | None]:
    final = final_stage(run, adapters)
    losses: dict[str, float | None] = {"dev_loss": min(final.outcome.dev_losses, default=None), "test_loss": None}
    if run.setup.has("test"):
        scored = evaluate_stage(run, GRASP, lambda: grasp_factors(final), final_content(run))
        losses["test_loss"] = float(scored["scores"][0]["value"])
    return losses
