"""Which system a run exports: the pruned merge, or a simple rival with a better dev loss (setting `finalize.keep`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from ..adapters.bank import AdapterBank
from ..adapters.peft_load import AdapterFactors
from ..adapters.point import MergePoint
from ..baselines import find_method
from ..metrics.bootstrap import paired_bootstrap
from .evaluation import split_losses
from .finalize import FinalResult
from .members import final_content
from .rivals import rival_bank, system_factors
from .stages import Run, begin, content

GRASP = "grasp"
# Rivals that cost a run of their own; the target adapter alone costs a dev pass.
_TRAINED = ("sequential", "merged")


@dataclass(frozen=True)
class Kept:
    """The system to export: its name, adapters with mask, and where the merge stands."""

    name: str
    bank: AdapterBank
    point: MergePoint


def keep(run: Run, adapters: Sequence[AdapterFactors], final: FinalResult) -> tuple[Kept, dict[str, Any]]:
    """Return the system to export and why, after a comparison on dev; warns when a simple rival does better.

    Compared are the pruned merge, the target adapter alone, and those of `sequential` and `merged` in `evaluate.rivals`
    that are trained already (with `finalize.keep=best`: all of them). Without dev data the merge is kept.
    """
    result = _comparison(run, adapters, final)
    name = result["kept"]
    if name == GRASP:
        return Kept(GRASP, final.bank, final.point), result
    bank = rival_bank(run, name, adapters)
    assert bank is not None  # the bare base model is no candidate
    return Kept(name, bank, MergePoint(0.0)), result


def _comparison(run: Run, adapters: Sequence[AdapterFactors], final: FinalResult) -> dict[str, Any]:
    stage = run.folder.stage("keep")
    done = begin(run, stage, **final_content(run), **content(adapters))
    if done is not None:
        return done
    if not run.setup.has("dev"):
        return stage.finish({"kept": GRASP, "reason": "there is no dev data to compare on", "dev_losses": {}})
    io = run.io(stage)
    losses = {GRASP: split_losses(run.setup, system_factors(final.bank), "dev", io)}
    for rival in _rivals(run, adapters):
        losses[rival] = split_losses(run.setup, system_factors(rival_bank(run, rival, adapters)), "dev", io)
    means = {name: fmean(values) for name, values in losses.items()}
    best = min(means, key=lambda name: means[name])
    chosen = best if run.config.finalize.keep == "best" else GRASP
    reason = _reason(run, best, losses, means)
    if best != GRASP:
        advice = "It is exported" if chosen == best else "To export it instead, set finalize.keep=best"
        run.progress.warn(f"{reason}. {advice}.")
    tokens = len(losses) * sum(len(item.input_ids) for item in run.setup.items("dev"))
    return stage.finish({"kept": chosen, "best": best, "reason": reason, "dev_losses": means, "probe_tokens": tokens})


def _rivals(run: Run, adapters: Sequence[AdapterFactors]) -> list[str]:
    """Return the rivals whose dev loss is known or cheap."""
    found = ["target"] if len(adapters) > 1 else []
    for name in _TRAINED:
        trained = run.folder.stage(f"rival_{name}").done() is not None
        merged = name == "sequential" and run.config.adapters.continue_source  # a member of the merge, so it is there
        if (merged or name in run.config.evaluate.rivals) and (trained or run.config.finalize.keep == "best"):
            found.append(name)
    return found


def _reason(run: Run, best: str, losses: dict[str, list[float]], means: dict[str, float]) -> str:
    """Return in one sentence how the best system stands to the pruned merge on dev, without a full stop."""
    if best == GRASP:
        untried = [name for name in _TRAINED if name not in losses]
        rest = f"; not tried: {', '.join(untried)} (evaluate.rivals)" if untried else ""
        return f"no simple rival that was tried has a better dev loss than the merge ({means[GRASP]:.3f}){rest}"
    found = paired_bootstrap(losses[best], losses[GRASP], resamples=run.config.evaluate.bootstrap, seed=run.config.seed)
    low, high = found.interval
    noise = ", within noise" if low <= 0.0 <= high else ""
    return (
        f"a simple rival beats the merge on dev ({find_method(best).title}): loss {means[best]:.3f} against "
        f"{means[GRASP]:.3f}, difference {found.difference:.3f} [{low:.3f}, {high:.3f}]{noise}, n={found.n}"
    )
