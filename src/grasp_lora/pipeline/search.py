"""The controller run: learn the prune ratio while the merged adapters are fine-tuned on the target data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ..adapters.inject import Injection
from ..adapters.peft_load import AdapterFactors
from ..adapters.point import MergePoint
from ..config import Config
from ..controller import Controller, Diagnostic, Estimate
from ..controller.axes import Axis, merge_point, policy_axes
from ..controller.diagnostics import importance_differs
from ..controller.presets import chosen_policy
from ..controller.session import RatioSearch
from ..training import MaskSelector, Outcome, TrainingLoop
from ..training.setup import Setup
from .finalize import FinalResult
from .stageio import StageIO

PROBE_ROUNDS = 8
"""Rounds after the first where `search.epochs` is 0 and `controller.rounds` says nothing."""


@dataclass(frozen=True)
class SearchResult:
    """What the controller found: the ratio with its interval, what it cost and what to beware of.

    `best` is the whole point (ratio, and strengths where the policy has them), `p_star` its ratio. `probe_tokens` went
    forward only; `evaluations` counts micro-dev evaluations, baselines included. `final` is the adapter that the search
    itself has trained at the point it learned, with `finalize.adapter=reuse`.
    """

    p_star: float
    best: MergePoint
    interval: tuple[float, float] | None
    estimate: Estimate
    diagnostics: tuple[Diagnostic, ...]
    rounds: int
    evaluations: int
    probe_tokens: int
    stop_reason: str | None
    outcome: Outcome
    final: FinalResult | None = None


def search(setup: Setup, adapters: Sequence[AdapterFactors], io: StageIO) -> SearchResult:
    """Run the controller on the merge of `adapters` and return the learned ratio (algorithm.md, section 4).

    Uses the target's train and micro_dev splits; dev only where `search.patience` asks for it, or where the adapter is
    kept (`finalize.adapter=reuse`), to pick its epoch once the point is settled. With `search.epochs=0` nothing is
    trained: every round probes the merge as it is.
    """
    config = setup.config
    keep = config.finalize.adapter == "reuse"
    bank = setup.bank(adapters)
    with Injection(setup.base.model, bank.modules) as injection:
        attached = setup.attach(injection, bank)
        probe = setup.evaluator(attached, "micro_dev", batch_size=config.search.eval_batch_size)
        dev = None
        if config.search.patience is not None or (keep and setup.has("dev")):
            dev = setup.evaluator(attached, "dev", batch_size=config.search.eval_batch_size)
        selector = MaskSelector(bank, injection, config.prune, probe)
        items = setup.items("train")
        updates = -(-len(items) // (config.search.batch_size * config.search.accumulation))
        total = config.search.epochs * updates
        axes = search_axes(config, bank.names, bank.modules)
        at_once = 0 if total else rounds_at_once(config)
        controller = Controller(
            config.controller, config.controller_seed, axes=axes,
            steps_total=total or at_once * config.controller.interval,
        )  # fmt: skip
        session = RatioSearch(
            bank, selector, probe, controller, config.controller, io.record_round,
            axes=controller.settings.axes, hold_from=total // 2 if keep else None,
        )  # fmt: skip
        session.at_once = at_once
        loop = TrainingLoop(
            attached, items, config.search,
            seed=config.seed, dev=dev, callbacks=[session], selector=selector, plumbing=io.plumbing(),
        )  # fmt: skip
        loop.judging = lambda: session.held or not keep
        with io.running(loop, total):
            outcome = loop.run()
    if outcome.dev_losses and dev is not None and not keep:  # an adapter that is kept trains on after its last probe
        _observe_dev(controller, outcome.dev_losses, updates, (probe.examples, dev.examples))
    estimate = controller.estimate()
    best = merge_point(controller.settings.axes, estimate.best)
    differs = importance_differs(config.prune.importance, config.final_importance)
    diagnostics = [*controller.diagnostics(), *([] if differs is None else [differs])]
    final = FinalResult(bank, best, bank.density(), (), outcome) if keep else None
    return SearchResult(
        best.ratio, best, estimate.interval, estimate, tuple(diagnostics), session.rounds,
        session.evaluations, probe.token_passes, session.stop_reason, outcome, final,
    )  # fmt: skip


def _observe_dev(controller: Controller, losses: Sequence[float], updates: int, examples: tuple[int, int]) -> None:
    """Tell the dev losses of the epochs' ends on both sides of the last round (or the one at which it was), if known.

    `updates` are the steps of an epoch, `examples` the numbers of micro-dev's and dev's. Their error is what it would
    be if the examples of dev spread as those of micro-dev do.
    """
    rounds, errors = controller.history.rounds[-1:], controller.observations.micro_error[-1:]
    epoch, beyond = divmod(max(rounds, default=0) * controller.config.interval, updates)
    beside = losses[epoch - 1 : epoch + bool(beyond)] if epoch else ()
    if errors and len(beside) == 1 + bool(beyond):
        for loss in beside:
            controller.observe(dev=loss, dev_error=errors[0] * math.sqrt(examples[0] / examples[1]))


def rounds_at_once(config: Config) -> int:
    """Return how many rounds follow the first where nothing is trained between them."""
    return PROBE_ROUNDS if config.controller.rounds is None else config.controller.rounds


def search_axes(config: Config, adapters: Sequence[str], modules: Iterable[str]) -> Callable[[Axis], tuple[Axis, ...]]:
    """Return how the configured policy's axes follow from the ratio's own, for adapters and modules by name."""
    types = sorted({module.rpartition(".")[2] for module in modules})
    policy = chosen_policy(config.controller)
    return lambda first: policy_axes(policy, config.controller, first, adapters, types, config.prune.scope)
