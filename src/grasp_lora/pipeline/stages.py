"""The stages of a run, each able to start from what an earlier one left in the run folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import safetensors.torch

from ..adapters.bank import AdapterBank
from ..adapters.peft_load import AdapterFactors
from ..adapters.peft_save import save_adapter
from ..adapters.point import MergePoint
from ..config import Config, ModelConfig, TrainingConfig
from ..data import Splits
from ..errors import ConfigError, Interrupted, RunError
from ..runs import (
    Progress,
    RunFolder,
    StageFolder,
    clear_checkpoints,
    hash_file,
    read_json,
    write_bytes_atomic,
    write_json_atomic,
)
from ..training import Outcome
from ..training.setup import Base, Setup
from .adapters import read_adapter, train_adapter
from .finalize import FinalResult, as_point, finalize
from .models import load_base
from .search import search
from .stageio import StageIO

ADAPTER = "adapter"
BANK = "bank.safetensors"
ORIGIN = "made_from.json"


@dataclass(frozen=True)
class Run:
    """A run folder at work, its splits checked (`preflight`); the model is loaded when first needed."""

    config: Config
    folder: RunFolder
    splits: Splits
    progress: Progress
    stop_requested: Callable[[], bool] = lambda: False
    load: Callable[[ModelConfig], Base] = load_base
    judge: Callable[[int, float], bool] = lambda _epoch, _loss: False

    @cached_property
    def setup(self) -> Setup:
        """The base model and every split the configuration names."""
        with self.progress.stage("load base model", None):
            base = self.load(self.config.model)
        return Setup(self.config, base, self.splits.target, self.splits.source)

    def changed(self, **changes: Any) -> Run:
        """Return this run with other fields (`config`, `splits`, `judge`), on the same base model and folder."""
        return replace(self, load=lambda _model: self.setup.base, **changes)

    def io(self, stage: StageFolder) -> StageIO:
        """Return the plumbing of a stage in this run's folder."""
        every = self.config.run.checkpoint_every
        return StageIO(stage.name, stage.path, self.progress, self.stop_requested, every, self.judge)

    def cut_notes(self, *splits: str, role: str = "target") -> None:
        """Tell how many examples of the splits were cut to fit."""
        for split in splits:
            if self.setup.has(split, role):
                report = self.setup.encoded(split, role).report
                note = report.sentence(f"{role}.{split}", self.config.task.max_length)
                if note:
                    self.progress.warn(note)


def begin(run: Run, stage: StageFolder, **made_from: Any) -> dict[str, Any] | None:
    """Return the stage's result when it is done; otherwise note what the stage is made from, before it starts.

    `made_from` holds content hashes and settings that do not come from the configuration alone. Raises `RunError` when
    the folder holds the stage, finished or not, made from something else, and `Interrupted` when a stop was asked for.
    """
    path = stage.path / ORIGIN
    was = read_json(path) if path.exists() else None
    if was is not None and was != made_from:
        differing = [f"{key}: {was.get(key)} there, {made_from.get(key)} now" for key in sorted({*was, *made_from})
                     if was.get(key) != made_from.get(key)]  # fmt: skip
        raise RunError(
            f"{stage.path} was made from something else ({'; '.join(differing)}). Add --overwrite to the command of "
            "that stage to make it again, or give another run.dir."
        )
    done = stage.done()
    if done is not None:
        return done
    if run.stop_requested():
        raise Interrupted(f"stopped before {stage.name}; what is done is kept. Go on with --resume.")
    if was is None:
        write_json_atomic(path, made_from)
    return None


def content(adapters: Sequence[AdapterFactors]) -> dict[str, str]:
    """Return adapter names with the hashes of their files."""
    return {adapter.name: adapter.sha256 for adapter in adapters}


def outcome_row(outcome: Outcome) -> dict[str, Any]:
    """Return an outcome as JSON values."""
    return asdict(outcome)


# --- adapters ---------------------------------------------------------------------------------------------------


def adapter_stage(run: Run, role: str) -> AdapterFactors:
    """Return the source or target adapter: the one the configuration names, else one trained here (once)."""
    given: str | None = getattr(run.config.adapters, role)
    if given is not None:
        return _load(run, given, role)
    training = run.config.train_source if role == "source" else run.config.train_target
    return trained_stage(run, f"{role}_adapter", role, training)


def trained_stage(
    run: Run, name: str, role: str, training: TrainingConfig, start: AdapterFactors | None = None
) -> AdapterFactors:
    """Train an adapter in stage `name`, or load it when that stage is done."""
    stage = run.folder.stage(name)
    if begin(run, stage, **content([start] if start else [])) is None:
        run.cut_notes("train", "dev", role=role)
        trained = train_adapter(run.setup, role, training, run.io(stage), start)
        _save_trained(run, stage.path / ADAPTER, trained.factors)
        stage.finish({"outcome": outcome_row(trained.outcome)})
        clear_checkpoints(stage.path / "checkpoints")
    return read_adapter(run.setup, str(stage.path / ADAPTER), role)


def _save_trained(run: Run, folder: Path, factors: AdapterFactors) -> None:
    """Write an adapter trained here as a PEFT folder; scalings that differ by module are folded into B."""
    modules, base = factors.modules, run.setup.base
    shapes = {(factor.scaling, int(factor.A.shape[0])) for factor in modules.values()}
    (scaling, rank), *others = shapes
    alpha = None if others else scaling * rank
    save_adapter(
        folder, {module: (f.A, f.B if alpha else f.scaling * f.B) for module, f in modules.items()},
        base_model=base.name, revision=base.revision, alpha=alpha, overwrite=True,
    )  # fmt: skip


def _load(run: Run, given: str, name: str) -> AdapterFactors:
    factors = read_adapter(run.setup, given, name)
    for notice in factors.notices:
        run.progress.note(notice)
    return factors


def all_adapters(run: Run) -> list[AdapterFactors]:
    """Return source, target and further adapters in the order in which they are merged."""
    others = [_load(run, given, f"other{i + 1}") for i, given in enumerate(run.config.adapters.others)]
    return [adapter_stage(run, "source"), adapter_stage(run, "target"), *others]


# --- search and final run ---------------------------------------------------------------------------------------


def search_stage(run: Run, adapters: Sequence[AdapterFactors]) -> dict[str, Any]:
    """Learn the ratio, or return what an earlier call learned."""
    stage = run.folder.stage("search")
    done = begin(run, stage, **content(adapters))
    if done is not None:
        return done
    run.cut_notes("train", "micro_dev")
    found = search(run.setup, adapters, run.io(stage))
    run.progress.result("search", p_star=found.p_star)
    if found.final is not None:
        _save_bank(stage, found.final.bank)
    result = stage.finish(
        {
            "p_star": found.p_star,
            "point": found.best.to_dict(),
            "best": list(found.estimate.best),
            "intervals": [list(pair) for pair in found.estimate.intervals] if found.estimate.intervals else None,
            "interval": list(found.interval) if found.interval else None,
            "estimate": found.estimate.to_dict(),
            "rounds": found.rounds,
            "evaluations": found.evaluations,
            "probe_tokens": found.probe_tokens,
            "stop_reason": found.stop_reason,
            "diagnostics": [asdict(diagnostic) for diagnostic in found.diagnostics],
            "outcome": outcome_row(found.outcome),
        }
    )
    clear_checkpoints(stage.path / "checkpoints")
    return result


def learned_point(run: Run) -> MergePoint:
    """Return the point of the run's search; raises `RunError` when there was none."""
    done = run.folder.stage("search").done()
    if done is None:
        raise RunError(
            f"no learned ratio in {run.folder.path}: the search is not done. Run `grasp-lora search` first, "
            "or give the ratio with --ratio."
        )
    return MergePoint.from_dict(done["point"])


def final_stage(run: Run, adapters: Sequence[AdapterFactors], where: float | MergePoint | None = None) -> FinalResult:
    """Return the final run at the learned point, or the adapter that the search trained (`finalize.adapter=reuse`).

    Raises `ConfigError` for a ratio that is given although the search's own adapter is to be kept.
    """
    if run.config.finalize.adapter == "fresh":
        return finalize_stage(run, adapters, learned_point(run) if where is None else where)
    if where is not None:
        raise ConfigError(
            "finalize.adapter: reuse keeps what the search trained at its own point, so no ratio can be given. Leave "
            "--ratio out, or use --set finalize.adapter=fresh."
        )
    point = learned_point(run)
    kept = run.folder.stage("search").path / BANK
    stage = run.folder.stage("finalize")
    if begin(run, stage, search=hash_file(kept), **_made_at(point), **content(adapters)) is None:
        write_bytes_atomic(stage.path / BANK, kept.read_bytes())
        done = run.folder.stage("search").done() or {}
        bank = run.setup.bank(adapters)
        bank.load_state(safetensors.torch.load(kept.read_bytes()))
        facts = {"ratio": point.ratio, "point": point.to_dict(), "density": bank.density(), "flips": []}
        stage.finish({**facts, "densities": bank.densities(), "reused": True, "outcome": done["outcome"]})
    return load_final(run, adapters, stage)


def finalize_stage(
    run: Run, adapters: Sequence[AdapterFactors], where: float | MergePoint, name: str = "finalize"
) -> FinalResult:
    """Run the final run at a ratio or point, or load it when it is done; another point than there is a `RunError`."""
    stage = run.folder.stage(name)
    point = as_point(where)
    if begin(run, stage, **_made_at(point), **content(adapters)) is None:
        run.cut_notes("dev")
        final = finalize(run.setup, adapters, point, run.io(stage))
        _save_bank(stage, final.bank)
        stage.finish(
            {
                "ratio": final.point.ratio,
                "point": final.point.to_dict(),
                "asked": point.to_dict(),
                "density": final.density,
                "densities": final.bank.densities(),
                "flips": list(final.flips),
                "plain_dev_loss": final.plain_dev_loss,
                "probe_tokens": final.probe_tokens,
                "outcome": outcome_row(final.outcome),
            }
        )
        clear_checkpoints(stage.path / "checkpoints")
        if final.point != point:
            run.progress.note("dev prefers the merge as it came: neither pruning nor training it further helped")
        return final
    return load_final(run, adapters, stage)


def require_final(run: Run, stage: StageFolder | None = None) -> dict[str, Any]:
    """Return the result of the final run; raises `RunError` when there is none."""
    done = (stage or run.folder.stage("finalize")).done()
    if done is None:
        raise RunError(
            f"no final run in {run.folder.path}. Run `grasp-lora finalize` (or `run`) with this run.dir first."
        )
    return done


def load_final(run: Run, adapters: Sequence[AdapterFactors], stage: StageFolder) -> FinalResult:
    """Return a finished final run from its folder; raises `RunError` for none, or one of other adapters."""
    done = require_final(run, stage)
    origin = _made_at(MergePoint.from_dict(done.get("asked", done["point"])))
    if done.get("reused"):
        origin["search"] = hash_file(run.folder.stage("search").path / BANK)
    begin(run, stage, **origin, **content(adapters))
    bank = run.setup.bank(adapters)
    bank.load_state(safetensors.torch.load((stage.path / BANK).read_bytes()))
    point, outcome = MergePoint.from_dict(done["point"]), Outcome.from_dict(done["outcome"])
    tokens, plain = int(done.get("probe_tokens", 0)), done.get("plain_dev_loss")
    return FinalResult(bank, point, float(done["density"]), tuple(done["flips"]), outcome, tokens, plain)


def _made_at(point: MergePoint) -> dict[str, Any]:
    """Return what a final run's origin says of its point: the ratio, and what else differs from the settings."""
    plain = MergePoint(point.ratio).to_dict()
    return {key: value for key, value in point.to_dict().items() if key == "ratio" or value != plain[key]}


def _save_bank(stage: StageFolder, bank: AdapterBank) -> None:
    portable = {key: tensor.cpu().contiguous() for key, tensor in bank.state().items()}
    write_bytes_atomic(stage.path / BANK, safetensors.torch.save(portable))
