"""The compared methods at work in a run folder: what they are given, the runs they ask for, and what those cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ..adapters.bank import AdapterBank
from ..adapters.merge import Pair
from ..adapters.peft_load import AdapterFactors
from ..adapters.point import MergePoint
from ..baselines import Judge, Method, MethodContext, SearchRun, find_method
from ..config import Config
from ..data import Splits
from .finalize import FinalResult
from .stages import Run, content, final_stage, finalize_stage, search_stage, trained_stage

# What a search's result holds beside the ratio and its interval, as a method's details.
_DETAILS = ("point", "rounds", "evaluations", "stop_reason", "diagnostics")


class Bench:
    """The workbench of a method: every run it asks for is a stage of the run folder (see `baselines.Workbench`)."""

    def __init__(self, run: Run) -> None:
        self._run = run

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self._run.folder.path

    def train(self, name: str, start: AdapterFactors, *, config: Config | None = None) -> AdapterFactors:
        """Fine-tune one adapter on the target's train split, from `start`."""
        training = (config or self._run.config).train_target
        return trained_stage(self._run, name, "target", training, start)

    def finalize(
        self, name: str, adapters: Sequence[AdapterFactors], where: float | MergePoint,
        *, config: Config | None = None, judge: Judge | None = None,
    ) -> FinalResult:  # fmt: skip
        """Prune the merge at a ratio or point and fine-tune it."""
        run = self._run.changed(config=config or self._run.config, judge=judge or self._run.judge)
        return finalize_stage(run, adapters, where, name)

    def grasp(self, adapters: Sequence[AdapterFactors], config: Config) -> tuple[SearchRun, FinalResult]:
        """Run the controller, and the final run at what it learned."""
        run = self._run.changed(config=config)
        found = search_stage(run, adapters)
        interval = tuple(found["interval"]) if found["interval"] else None
        searched = SearchRun(float(found["p_star"]), interval, {key: found[key] for key in _DETAILS})
        return searched, final_stage(run, adapters)


def context(run: Run, method: Method, adapters: Sequence[AdapterFactors]) -> MethodContext:
    """Return what `method` may see: its own splits and adapters; the test split is never among them."""
    own = method.splits(run.config)
    splits = Splits(source={}, target={name: run.splits.target[name] for name in own if name in run.splits.target})
    blind = run.changed(splits=splits)
    return MethodContext(blind.setup, method.of(adapters), Bench(blind))


def system_factors(bank: AdapterBank | None) -> Mapping[str, Pair]:
    """Return the merged factors of a system, pruned entries at zero; none for the bare base model."""
    return {} if bank is None else bank.merged(bank.dense() * bank.kept)


def rival_bank(run: Run, rival: str, adapters: Sequence[AdapterFactors]) -> AdapterBank | None:
    """Return a rival's system, training it first where it needs a run of its own; None is the bare base model."""
    method = find_method(rival)
    return method.make(context(run, method, adapters)).bank


def rival_factors(run: Run, rival: str, adapters: Sequence[AdapterFactors]) -> Mapping[str, Pair]:
    """Return the merged factors of a rival, training it first where it needs a run of its own."""
    return system_factors(rival_bank(run, rival, adapters))


def rival_content(rival: str, adapters: Sequence[AdapterFactors]) -> dict[str, str]:
    """Return the hashes of the adapters that a rival is made from."""
    return content(find_method(rival).of(adapters))
