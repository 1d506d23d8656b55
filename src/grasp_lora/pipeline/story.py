"""The method as a story: adapters, merge, search, final run, evaluation, export - one run folder, one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..adapters.merge import Pair
from ..adapters.peft_load import AdapterFactors
from ..baselines import alone
from ..config import Config
from ..data import encode_prompts
from ..runs import (
    Progress,
    StageFolder,
)
from .accounts import cost, score_table
from .adapters import read_adapter
from .deployment import measure_deployment
from .export import export_adapter, export_merged_model, model_card
from .finalize import FinalResult
from .keeping import GRASP, Kept, keep
from .members import final_content, members
from .models import location, resolve_dtype
from .opening import working
from .rivals import rival_content, rival_factors, system_factors
from .scoring import evaluate_stage
from .stages import (
    Run,
    all_adapters,
    begin,
    final_stage,
    load_final,
    require_final,
    search_stage,
)

# Prompts behind the deployment figures.
_SERVED = 8


@dataclass(frozen=True)
class RunResult:
    """What a finished run left: the learned ratio, scores per system, the adapter's folder and every figure as JSON."""

    folder: Path
    p_star: float
    interval: tuple[float, float] | None
    adapter: Path
    results: Mapping[str, Any]


def run_pipeline(
    config: Config, progress: Progress | None = None, *, resume: bool = False, overwrite: bool = False,
    command: Sequence[str] = (),
) -> RunResult:  # fmt: skip
    """Run the whole method and return its result; a stage that is done already is not done again.

    Raises a `GraspError` for whatever the user can mend; the folder then holds everything up to the last checkpoint.
    """
    with working(config, progress, resume=resume, overwrite=overwrite, command=command) as run:
        return tell(run)


def tell(run: Run) -> RunResult:
    """The story itself, on an open run."""
    adapters = all_adapters(run)
    merged = members(run, adapters)
    found = search_stage(run, merged)
    final = final_stage(run, merged)
    scores = evaluate_all(run, adapters, final)
    kept, why = keep(run, adapters, final)
    exported = export_stage(run, kept, scores)
    deployment = deployment_stage(run, exported)
    results = {
        "p_star": found["p_star"],
        "point": found["point"],
        "interval": found["interval"],
        "density": final.density,
        "search": found,
        "finalize": run.folder.stage("finalize").done(),
        "systems": scores,
        "kept": why,
        "export": exported,
        "deployment": deployment,
        "cost": cost(run),
    }
    run.folder.write_results(results)
    interval = tuple(found["interval"]) if found["interval"] else None
    return RunResult(run.folder.path, found["p_star"], interval, run.folder.path / exported["adapter"], results)


def evaluate_all(run: Run, adapters: Sequence[AdapterFactors], final: FinalResult) -> dict[str, Any]:
    """Score the rivals and the result on the test split; without one nothing is scored, and that is said."""
    if not run.setup.has("test"):
        run.progress.warn("data.target.test is not set: nothing is scored")
        return {}
    run.cut_notes("test")
    scores: dict[str, Any] = {}
    for rival in run.config.evaluate.rivals:
        made_from = rival_content(rival, adapters)
        scores[rival] = evaluate_stage(run, rival, partial(rival_factors, run, rival, adapters), made_from)
    scores[GRASP] = evaluate_stage(run, GRASP, lambda: grasp_factors(final), final_content(run))
    return scores


def grasp_factors(final: FinalResult) -> Mapping[str, Pair]:
    """Return the merged factors of a final run."""
    return system_factors(final.bank)


def finished(run: Run) -> tuple[list[AdapterFactors], FinalResult]:
    """Return the adapters and the final run that earlier stages left; raises `RunError` when there is none."""
    require_final(run)
    adapters = all_adapters(run)
    return adapters, load_final(run, members(run, adapters), run.folder.stage("finalize"))


def evaluate_finished(run: Run) -> dict[str, Any]:
    """Score a finished final run and its rivals; raises `RunError` without one."""
    adapters, final = finished(run)
    return evaluate_all(run, adapters, final)


def evaluate_one(run: Run, adapter: str, *, anew: bool = False) -> dict[str, Any]:
    """Score one PEFT adapter alone on the test split; each adapter has a stage of its own, kept unless `anew`."""
    factors = read_adapter(run.setup, adapter, "adapter")
    name = f"adapter-{factors.sha256[:12]}"
    if anew:
        run.folder.stage(f"evaluate_{name}").reset()
    return {
        "adapter": evaluate_stage(
            run, name, lambda: system_factors(alone(run.setup, factors)), {"adapter": factors.sha256}
        )
    }


def export_finished(run: Run) -> dict[str, Any]:
    """Export a finished final run, or the rival that is kept; raises `RunError` without one."""
    kept, _ = keep(run, *finished(run))
    stages = run.folder.stages_done()
    systems = [name for name in (*run.config.evaluate.rivals, GRASP) if f"evaluate_{name}" in stages]
    return export_stage(run, kept, {name: stages[f"evaluate_{name}"] for name in systems})


def export_stage(run: Run, kept: Kept, scores: Mapping[str, Any]) -> dict[str, Any]:
    """Write the PEFT folder, the sparse file and, if asked, the merged model."""
    stage = run.folder.stage("export")
    done = begin(run, stage, **final_content(run))
    if done is not None:
        return done
    folder = run.folder.path / "export"
    facts = {
        "base model": run.setup.base.name,
        "task": f"{run.config.task.name}, {run.config.task.language}",
        "merge rule": run.config.merge.rule,
        "system": kept.name,
        "pruned at": kept.point.describe(),
        "importance": f"{run.config.final_importance}, {run.config.prune.scope}",
        "seed": run.config.seed,
    }
    card = model_card(run.setup.base.name, facts, score_table(scores) if scores else "")
    exported = export_adapter(
        run.setup.base, kept.bank, folder, card=card, sparse=run.config.export.sparse, overwrite=True
    )
    merged = None
    if run.config.export.merged_model:
        merged = export_merged_model(run.config.model, exported.adapter, folder / "merged")
    return stage.finish(
        {
            "adapter": _relative(run, exported.adapter),
            "rank": exported.rank,
            "density_before_summing": exported.density_before,
            "density_after_summing": exported.density_after,
            "densities_after_summing": dict(exported.densities_after),
            "adapter_bytes": exported.adapter_bytes,
            "sparse": _relative(run, exported.sparse),
            "sparse_bytes": exported.sparse_bytes,
            "merged_model": _relative(run, merged),
        }
    )


def _relative(run: Run, path: Path | None) -> str | None:
    return None if path is None else path.relative_to(run.folder.path).as_posix()


def deployment_stage(run: Run, exported: Mapping[str, Any]) -> dict[str, Any] | None:
    """Measure the exported adapter as it would be served; None when switched off or there is no test split."""
    if not run.config.evaluate.deployment or not run.setup.has("test"):
        return None
    stage: StageFolder = run.folder.stage("deployment")
    done = begin(run, stage, **final_content(run))
    if done is not None:
        return done
    setup, config = run.setup, run.config
    room = max(config.task.max_length - config.task.max_new_tokens, 1)
    examples = list(setup.target["test"])[:_SERVED]
    prompts = [item.input_ids for item in encode_prompts(examples, setup.task, setup.base.tokenizer, room).items]
    device = setup.base.device
    with run.progress.stage("deployment figures", None):
        figures = measure_deployment(
            location(config.model), run.folder.path / exported["adapter"], prompts, setup.base.tokenizer,
            device=device, dtype=resolve_dtype(config.model.dtype, device), max_new_tokens=config.task.max_new_tokens,
        )  # fmt: skip
    return stage.finish(figures.to_dict())
