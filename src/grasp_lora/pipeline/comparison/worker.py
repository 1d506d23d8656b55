"""One unit of a comparison at work: its own run folder, its method on what it may see, its scores, and what it cost.

The result is written last, so a unit is done or it is not; one that was stopped goes on from its last checkpoint. The
base model is loaded once per process.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from ...adapters.merge import Pair
from ...baselines import Method, MethodResult, find_method
from ...config import ModelConfig, to_yaml
from ...data import load_splits
from ...errors import GraspError, Interrupted
from ...runs import QuietProgress, RunFolder, StageFolder, read_json, write_json_atomic
from ...runs.folder import MARKER
from ...runs.manifest import code_identity
from ...training.setup import Base
from ..accounts import cost
from ..deployment import PeakMemory
from ..evaluation import split_losses
from ..models import load_base
from ..rivals import context, system_factors
from ..scoring import evaluate_stage
from ..stageio import StageIO
from ..stages import Run, adapter_stage, all_adapters
from .units import Unit

ATTEMPTS = "attempts.json"
TEST = "test"


@dataclass(frozen=True)
class Done:
    """How a unit ended: its result, or what went wrong (`interrupted`: nothing did, a stop was asked for)."""

    key: str
    result: Mapping[str, Any] | None
    error: str = ""
    exit_code: int = 0

    @property
    def interrupted(self) -> bool:
        """Whether a stop was asked for before the unit was done."""
        return self.exit_code == Interrupted.exit_code


@lru_cache(maxsize=1)
def _code() -> str:
    """Return the hash of the package's files when this process began: a comparison may go on under other code."""
    return str(code_identity()["source_sha256"])


@lru_cache(maxsize=1)
def _base(model: ModelConfig) -> Base:
    return load_base(model)


def warm_up(model: ModelConfig) -> None:
    """Load the base model, so that the first unit of this process finds it there."""
    _base(model)


def run_unit(unit: Unit, stop_requested: Callable[[], bool]) -> Done:
    """Do a unit, or return its result when it is done; a user's mistake comes back as an error, not as an exception."""
    try:
        return finished(unit) or Done(unit.key, _run(unit, stop_requested))
    except GraspError as error:
        return Done(unit.key, None, str(error), error.exit_code)
    finally:
        if torch.cuda.is_available():  # other processes share this GPU, and a loop's buffers may lie in cycles
            gc.collect()
            torch.cuda.empty_cache()


def finished(unit: Unit) -> Done | None:
    """Return the result that an earlier call has left, None when there is none; other settings are an error."""
    try:
        done = StageFolder(unit.path).done()
        if done is None:
            return None
        _resumed(unit).close()  # refuses a result under other settings
        return Done(unit.key, done)
    except GraspError as error:
        return Done(unit.key, None, str(error), error.exit_code)


def _run(unit: Unit, stop_requested: Callable[[], bool]) -> dict[str, Any]:
    with _open(unit) as folder:
        attempts = _count_attempt(unit.path)
        run = Run(unit.config, folder, load_splits(unit.config), QuietProgress(), stop_requested, _base)
        memory = PeakMemory(run.setup.base.device)
        start = time.perf_counter()
        if unit.role is not None:
            adapter_stage(run, unit.role)
            found: dict[str, Any] = {}
            extra = 0
        else:
            method = find_method(str(unit.method))
            adapters = [] if method.uses == "none" else all_adapters(run)
            made = method.make(context(run, method, adapters))
            extra = made.forward_tokens
        if run.setup.base.device.type == "cuda":
            torch.cuda.synchronize(run.setup.base.device)
        seconds = time.perf_counter() - start
        spent = _spent(run, extra) | {
            "seconds": seconds, "attempts": attempts, "peak_memory_bytes": memory.peak(), "memory_kind": memory.kind,
        }  # fmt: skip
        if unit.role is None:
            found = _judged(run, unit, method, made)
            spent["labels"] = {split: len(run.splits.target[split]) for split in method.splits(run.config)}
        spent["scoring_seconds"] = time.perf_counter() - start - seconds
        head = {"cell": unit.cell, "row": unit.row, "role": unit.role, "seed": unit.config.seed, "lr": unit.lr,
                "code": _code()}  # fmt: skip
        return StageFolder(unit.path).finish(head | {"cost": spent} | found)


def _open(unit: Unit) -> RunFolder:
    """Open the unit's run folder, made anew unless an earlier try got as far as to save its configuration."""
    if (unit.path / MARKER).is_file() and (unit.path / "config.yaml").is_file():
        return _resumed(unit)
    return RunFolder.create(unit.path, to_yaml(unit.config), overwrite=True)


def _resumed(unit: Unit) -> RunFolder:
    return RunFolder.resume(unit.path, to_yaml(unit.config), ignore=("run",))


def _count_attempt(path: Path) -> int:
    """Return how many times the unit was started; seconds are those of the last one."""
    file = path / ATTEMPTS
    attempts = 1 + (int(read_json(file)["attempts"]) if file.exists() else 0)
    write_json_atomic(file, {"attempts": attempts})
    return attempts


def _spent(run: Run, forward_tokens: int) -> dict[str, Any]:
    """Return what all stages of the unit cost together, and what the method did beside them."""
    rows = cost(run).values()
    total = {name: sum(row[name] for row in rows) for name in ("optimizer_steps", "trained_tokens", "forward_tokens")}
    total["forward_tokens"] += forward_tokens
    return total | {"token_passes": 4 * total["trained_tokens"] + 2 * total["forward_tokens"]}


def _judged(run: Run, unit: Unit, method: Method, made: MethodResult) -> dict[str, Any]:
    """Score what the method made on test; its dev loss, which chooses the learning rate, is taken here too."""
    factors = system_factors(made.bank)
    dev = None
    if method.runs and "dev" in run.splits.target:
        dev = fmean(split_losses(run.setup, factors, "dev", _silent(run)))
    scores = _scores(run, unit, factors)
    return {
        "ratio": made.ratio,
        "interval": list(made.interval) if made.interval else None,
        "details": dict(made.details),
        "dev_loss": dev,
        "density": made.bank.density() if made.bank is not None else None,
        "scores": scores["scores"],
        "examples": scores["examples"],
        "hindsight": _hindsight(run, made),
    }


def _scores(run: Run, unit: Unit, factors: Mapping[str, Pair]) -> dict[str, Any]:
    config = run.config
    if not unit.generate:
        config = config.model_copy(update={"evaluate": config.evaluate.model_copy(update={"metrics": ("loss",)})})
    return evaluate_stage(run.changed(config=config), TEST, lambda: factors, {})


def _silent(run: Run) -> StageIO:
    """Return the surroundings of passes that leave nothing behind and stop when asked to."""
    return StageIO("scoring", stop_requested=run.stop_requested)


def _hindsight(run: Run, made: MethodResult) -> dict[str, float]:
    """Return the test loss of systems that the method could have chosen: what the best choice would have given."""
    found = {}
    for name, bank in made.alternatives.items():
        losses = split_losses(run.setup, system_factors(bank()), TEST, _silent(run))[: run.config.evaluate.limit]
        found[name] = float(fmean(losses))
    return found
